use super::synthetic::{
    CODECS, Class, ENTRY, Load, Notes, SyntheticElf, bzimage, pack, packed_bzimage, xen_note,
};
use super::*;
use proptest::prelude::*;

/// Opens and loads, into memory that was full of something else.
fn load(image: &[u8]) -> Result<(Vec<u8>, Loaded)> {
    let kernel = Kernel::open(image)?;
    let mut memory = vec![0xa5; kernel.footprint().size() as usize];
    let loaded = kernel.load_into(&mut memory)?;
    Ok((memory, loaded))
}

/// What the memory of the synthetic kernel must be.
fn expected(elf: &SyntheticElf) -> Vec<u8> {
    let start = elf.loads.iter().map(|load| load.address).min().unwrap();
    let end = elf.loads.iter().map(|load| load.address + load.memory_size).max().unwrap();
    let mut memory = vec![0; (end - start).next_multiple_of(4096) as usize];
    for load in &elf.loads {
        let at = (load.address - start) as usize;
        memory[at..at + load.data.len()].copy_from_slice(&load.data);
    }
    memory
}

/// The memory of the footprint, the file that was to be kept, and what is known of the kernel.
type InPlace = (Vec<u8>, Vec<u8>, Loaded);

/// Unpacks in place, if the kernel can be.
fn load_in_place(image: &[u8]) -> Option<Result<InPlace>> {
    let kernel = match Kernel::open(image) {
        Ok(kernel) => kernel,
        Err(error) => return Some(Err(error)),
    };
    let pages = kernel.file_pages()?;
    let footprint = kernel.footprint().memory.clone();
    let mut mapped = vec![0xa5; pages.addresses().len() * PAGE_SIZE];
    let mut kept = Vec::new();
    let loaded = match kernel.keep_with(|file| kept = file.to_vec()).unpack_in_place(&pages, &mut mapped) {
        Ok(loaded) => loaded,
        Err(error) => return Some(Err(error)),
    };
    // The other pages are the caller's to zero.
    let mut memory = vec![0; (footprint.end - footprint.start) as usize];
    for (page, address) in mapped.chunks(PAGE_SIZE).zip(pages.addresses()) {
        match address {
            Some(address) => {
                let at = (address - footprint.start) as usize;
                memory[at..at + PAGE_SIZE].copy_from_slice(page);
            }
            None => assert!(page.iter().all(|byte| *byte == 0), "what is in no segment"),
        }
    }
    Some(Ok((memory, kept, loaded)))
}

#[test]
fn every_codec_unpacks_in_place() {
    let elf = SyntheticElf::paged();
    let file = elf.build();
    for codec in CODECS {
        let image = packed_bzimage(codec, &file);
        // A gzip payload's length is its own, and not asked for.
        let Some(loaded) = load_in_place(&image) else {
            assert_eq!(codec, Codec::Gzip);
            continue;
        };
        let (memory, kept, loaded) = loaded.unwrap();
        assert!(memory == expected(&elf), "{codec}");
        assert!(kept == file, "{codec}");
        assert_eq!((loaded.pvh_entry().unwrap(), loaded.unpacked), (ENTRY, file.len() as u64));
        assert_eq!(loaded.notes.guest_os.as_deref(), Some("linux"));
        // The same kernel, loaded without a mapping in the file's order.
        let mut kept = Vec::new();
        let kernel = Kernel::open(&image).unwrap().keep_with(|file| kept = file.to_vec());
        let mut memory = vec![0xa5; kernel.footprint().size() as usize];
        kernel.load_into(&mut memory).unwrap();
        assert!(memory == expected(&elf) && kept == file, "{codec}");
    }
    assert!(load_in_place(&packed_bzimage(Codec::Xz, &SyntheticElf::pvh().build())).is_none());
}

#[test]
fn a_cut_or_a_wrong_length_is_found_in_place() {
    let file = SyntheticElf::paged().build();
    for codec in CODECS.into_iter().filter(|codec| codec.has_length_behind()) {
        let packed = pack(codec, &file);
        let with_length =
            |packed: &[u8], length: usize| bzimage(&[packed, &(length as u32).to_le_bytes()].concat());
        let load = |image: &[u8]| load_in_place(image).unwrap();
        assert!(load(&with_length(&packed, file.len())).is_ok(), "{codec}");
        assert!(load(&with_length(&packed[..packed.len() - 1], file.len())).is_err(), "{codec}");
        for length in [file.len() - 1, file.len() + 1, file.len() + 100_000] {
            let error = load(&with_length(&packed, length)).unwrap_err();
            let told = matches!(error, ImageError::Length { .. } | ImageError::Damaged { .. });
            assert!(told, "{codec}, {length}: {error}");
        }
    }
}

#[test]
fn every_wrapping_and_codec_loads_the_same_kernel() {
    let elf = SyntheticElf::pvh();
    let file = elf.build();
    let mut images = vec![("ELF".to_owned(), file.clone()), ("bzImage".to_owned(), bzimage(&file))];
    for codec in CODECS {
        images.push((format!("ELF, {codec}"), pack(codec, &file)));
        images.push((format!("bzImage, {codec}"), packed_bzimage(codec, &file)));
    }
    for (name, image) in images {
        let kernel = Kernel::open(&image).unwrap();
        assert_eq!(kernel.format().to_string(), name);
        assert_eq!(kernel.footprint().memory, 0x10_0000..0x10_6000, "{name}");
        assert_eq!(kernel.footprint().cmdline_limit.is_some(), name.starts_with("bzImage"));
        assert_eq!(kernel.notes().is_some(), kernel.format().codec.is_none());
        let (memory, loaded) = load(&image).unwrap();
        assert!(memory == expected(&elf), "{name}");
        assert_eq!((loaded.pvh_entry().unwrap(), loaded.unpacked), (ENTRY, file.len() as u64));
        assert_eq!(loaded.notes.guest_os.as_deref(), Some("linux"));
        assert!(loaded.notes.supports(FEATURE_RSDP_UNRESTRICTED));
    }
}

#[test]
fn every_kernel_unpacks_to_its_file() {
    let file = SyntheticElf::pvh().build();
    let mut images = vec![file.clone(), bzimage(&file)];
    images.extend(CODECS.map(|codec| packed_bzimage(codec, &file)));
    for image in images {
        let kernel = Kernel::open(&image).unwrap();
        let (format, footprint) = (kernel.format(), kernel.footprint().clone());
        let mut unpacked = Vec::new();
        let size = kernel
            .unpack(|part| {
                unpacked.extend_from_slice(part);
                Ok::<_, ImageError>(())
            })
            .unwrap();
        assert!(unpacked == file && size == file.len() as u64, "{format}");
        let again = Kernel::open_unpacked(&unpacked, format, footprint.cmdline_limit).unwrap();
        assert_eq!((again.format(), again.footprint()), (format, &footprint));
        assert!(again.notes().is_some());
        if format.codec.is_some() {
            let cut = &image[..image.len() - 9];
            let unpacked = Kernel::open(cut).and_then(|kernel| kernel.unpack(|_| Ok::<_, ImageError>(())));
            assert!(unpacked.is_err(), "{format}");
        }
    }
}

#[test]
fn notes_are_found_wherever_they_are() {
    for class in [Class::Elf32, Class::Elf64] {
        for place in [Notes::InSegment, Notes::Behind, Notes::SectionInSegment, Notes::SectionBehind] {
            let file = SyntheticElf { class, place, ..SyntheticElf::pvh() }.build();
            for image in [file.clone(), packed_bzimage(Codec::Zstd, &file), packed_bzimage(Codec::Lz4, &file)]
            {
                let (_, loaded) = load(&image).unwrap();
                assert_eq!(loaded.pvh_entry().unwrap(), ENTRY, "{class:?} {place:?}");
                assert_eq!(loaded.notes.count, 3);
            }
        }
    }
}

#[test]
fn segments_in_any_order_and_of_32_bits_land_where_they_belong() {
    for class in [Class::Elf32, Class::Elf64] {
        let mut elf = SyntheticElf { class, ..SyntheticElf::pvh() };
        // Zeros alone, in front of the others; its offset in the file means nothing.
        elf.loads.push(Load { address: 0xf_f800, data: vec![], memory_size: 0x100 });
        elf.loads.rotate_right(1);
        elf.loads.swap(1, 2);
        for image in [elf.build(), packed_bzimage(Codec::Gzip, &elf.build())] {
            let kernel = Kernel::open(&image).unwrap();
            assert_eq!(kernel.footprint().memory, 0xf_f000..0x10_6000);
            let (memory, _) = load(&image).unwrap();
            let mut expected = expected(&elf);
            // The footprint begins at the page of the lowest segment.
            expected.splice(0..0, [0; 0x800]);
            expected.resize(memory.len(), 0);
            assert!(memory == expected);
        }
    }
}

#[test]
fn a_large_kernel_goes_through_lz4_block_by_block() {
    let mut elf = SyntheticElf::pvh();
    elf.loads[1].data = (0..20_000_000_u32).map(|i| (i >> 9) as u8).collect();
    elf.loads[1].memory_size = 24 << 20;
    let (memory, _) = load(&packed_bzimage(Codec::Lz4, &elf.build())).unwrap();
    assert!(memory == expected(&elf));
}

#[test]
fn a_cut_anywhere_is_an_error() {
    let file = SyntheticElf::pvh().build();
    let mut images = vec![bzimage(&file)];
    images.extend(CODECS.map(|codec| packed_bzimage(codec, &file)));
    for image in images {
        for end in (0..image.len()).step_by(7).chain(image.len() - 16..image.len()) {
            let error = load(&image[..end]).expect_err("cut off");
            assert!(!error.to_string().contains('\n'));
        }
    }
    // A plain ELF file says itself where its parts end: without the section headers, nothing is missing.
    let sections = file.len() - 128;
    for end in 0..sections - 16 {
        load(&file[..end]).expect_err("cut off");
    }
    assert!(load(&file[..sections]).is_ok());
}

#[test]
fn a_payload_that_ends_too_early_is_told_from_a_damaged_one() {
    let file = SyntheticElf::pvh().build();
    let mut short = pack(Codec::Zstd, &file[..0x900]);
    short.extend_from_slice(&(file.len() as u32).to_le_bytes());
    let error = load(&bzimage(&short)).unwrap_err();
    assert!(matches!(error, ImageError::Truncated { what: "kernel segment", have: 0x900, .. }), "{error}");

    let mut long = pack(Codec::Zstd, &file);
    long.extend_from_slice(&(file.len() as u32 + 1).to_le_bytes());
    let error = load(&bzimage(&long)).unwrap_err();
    assert!(matches!(error, ImageError::Length { said, unpacked } if said == unpacked + 1), "{error}");
}

#[test]
fn damage_is_found_by_the_checksums_even_behind_the_last_segment() {
    let mut file = SyntheticElf::pvh().build();
    file.extend((0..50_000_u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8));
    for codec in [Codec::Gzip, Codec::Bzip2, Codec::Xz, Codec::Lzo, Codec::Zstd] {
        let mut image = packed_bzimage(codec, &file);
        let at = image.len() - 1_000;
        image[at] ^= 0x10;
        assert!(load(&image).is_err(), "{codec}");
    }
}

#[test]
fn what_is_no_kernel_is_said_to_be_none() {
    let error = |image: &[u8]| Kernel::open(image).unwrap_err().to_string();
    assert!(error(b"").contains("an empty file"));
    assert!(error(b"#!/bin/sh\n").contains("a script"));
    assert!(error(b"070701").contains("an initrd"));
    assert!(error(b"MZ\0\0").contains("unified kernel image"));
    assert!(error(b"hello").contains("unknown contents"));
    assert!(error(&bzimage(b"hello")).contains("packed in no known format"));
    assert!(
        error(&bzimage(b"\x89LZO\0\r\n\x1a\n\x10\0\0\0\0"))
            .contains("the lzo payload is damaged: it is cut off")
    );
    assert!(error(&pack(Codec::Xz, b"not an ELF file")).contains("no ELF header"));
}

#[test]
fn kernels_that_cannot_be_pvh_guests_are_refused() {
    let error = |notes: &[u8]| {
        let elf = SyntheticElf { notes: notes.to_vec(), ..SyntheticElf::pvh() };
        let errors = [elf.build(), packed_bzimage(Codec::Gzip, &elf.build())]
            .map(|image| load(&image).and_then(|(_, loaded)| loaded.pvh_entry()).unwrap_err());
        assert_eq!(errors[0].to_string(), errors[1].to_string());
        errors.into_iter().next().unwrap()
    };
    assert!(matches!(error(&xen_note(6, b"linux\0")), ImageError::NotPvh));
    assert!(matches!(error(&[]), ImageError::NotPvh));
    let outside = xen_note(18, &0x10_3000_u32.to_le_bytes());
    assert!(matches!(error(&outside), ImageError::EntryOutside { entry: 0x10_3000 }));
    let dom0 = [xen_note(18, &ENTRY.to_le_bytes()), xen_note(10, b"!dom0")].concat();
    assert!(matches!(error(&dom0), ImageError::Dom0Only));
    assert!(matches!(
        error(&xen_note(18, b"three")),
        ImageError::Notes(NoteError::Size { kind: 18, size: 5 })
    ));
}

#[test]
fn notes_beyond_the_file_are_an_error() {
    let mut file = SyntheticElf::pvh().build();
    // The third program header's p_offset.
    file[64 + 2 * 56 + 8..][..8].copy_from_slice(&0x10_0000_u64.to_le_bytes());
    for image in [file.clone(), packed_bzimage(Codec::Zstd, &file)] {
        assert!(matches!(load(&image), Err(ImageError::NotesOutside(range)) if range.start == 0x10_0000));
    }
}

#[test]
fn notes_may_lie_half_in_a_segment() {
    let elf = SyntheticElf { place: Notes::InSegment, ..SyntheticElf::pvh() };
    let mut file = elf.build();
    // The first segment (its p_filesz and the notes' place in the file are kept) ends in the middle of its notes.
    let at = 64 + 32;
    let size = u64::from_le_bytes(file[at..at + 8].try_into().unwrap());
    file[at..at + 8].copy_from_slice(&(size - 30).to_le_bytes());
    for image in [file.clone(), packed_bzimage(Codec::Xz, &file)] {
        assert_eq!(load(&image).unwrap().1.notes.count, 3);
    }
}

#[test]
fn memory_of_another_size_is_refused() {
    let image = SyntheticElf::pvh().build();
    let mut memory = vec![0; 0x5000];
    let error = Kernel::open(&image).unwrap().load_into(&mut memory).unwrap_err();
    assert!(matches!(error, ImageError::Destination { footprint: 0x6000, given: 0x5000 }));
}

#[test]
fn bombs_are_refused() {
    // 1 GiB and a little of zeros behind the last segment.
    let file = SyntheticElf::pvh().build();
    let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 1).unwrap();
    io::Write::write_all(&mut encoder, &file).unwrap();
    let zeros = vec![0; 1 << 20];
    for _ in 0..1025 {
        io::Write::write_all(&mut encoder, &zeros).unwrap();
    }
    let bomb = encoder.finish().unwrap();
    assert!(matches!(load(&bomb), Err(ImageError::TooLarge)));
    let said = [&bomb[..], &[0xff; 4]].concat();
    assert!(matches!(Kernel::open(&bzimage(&said)), Err(ImageError::TooLarge)));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn arbitrary_files_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
        let _ = load(&bytes);
    }

    #[test]
    fn a_damaged_kernel_never_panics(at in 0..0x300_usize, value in any::<u8>(), wide in any::<bool>(), place in 0..4) {
        let class = if wide { Class::Elf64 } else { Class::Elf32 };
        let place =
            [Notes::InSegment, Notes::Behind, Notes::SectionInSegment, Notes::SectionBehind][place as usize];
        let mut file = SyntheticElf { class, place, ..SyntheticElf::pvh() }.build();
        // The headers of the file and of its sections.
        let at = if at < 0x180 { at } else { file.len() - 1 - at % 0x80 };
        file[at] = value;
        // Up to SPAN_LIMIT is the kernel's good right, but too much for a test.
        if let Ok(kernel) = Kernel::open(&file) && kernel.footprint().size() < 1 << 17 {
            let plain = load(&file);
            let packed = load(&pack(Codec::Lz4, &file));
            prop_assert_eq!(plain.is_ok(), packed.is_ok());
        }
    }

    #[test]
    fn a_damaged_kernel_never_panics_in_place(at in 0..0x180_usize, value in any::<u8>(), packed in any::<bool>()) {
        let mut file = SyntheticElf::paged().build();
        if !packed {
            file[at] = value;
        }
        let mut image = packed_bzimage(Codec::Lz4, &file);
        if packed {
            let at = image.len() - 1 - at;
            image[at] = value;
        }
        // Of what says that it is larger, there is no more to map than a guest has.
        let few = |kernel: &Kernel<'_>| kernel.said_size().is_some_and(|size| size < 1 << 17);
        if Kernel::open(&image).is_ok_and(|kernel| few(&kernel) && kernel.footprint().size() < 1 << 17) {
            let _ = load_in_place(&image);
        }
    }
}
