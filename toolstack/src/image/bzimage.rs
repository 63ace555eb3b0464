//! Linux's bzImage: a real-mode setup part, and after it the compressed kernel.
//!
//! Only where the payload is, and what the header says of the command line, matters: a PVH guest starts the unpacked
//! kernel, not the setup code. Layout: "The Linux/x86 Boot Protocol", `struct setup_header`
//! (arch/x86/include/uapi/asm/bootparam.h).

use super::ImageError;
use super::bytes::{u16_at, u32_at};

const BOOT_FLAG: usize = 0x1fe;
const MAGIC: usize = 0x202;
const VERSION: usize = 0x206;
const SETUP_SECTORS: usize = 0x1f1;
const CMDLINE_SIZE: usize = 0x238;
const PAYLOAD_OFFSET: usize = 0x248;
const PAYLOAD_LENGTH: usize = 0x24c;
/// Where the fields that are read end.
const HEADER_END: u64 = 0x250;
const SECTOR: u64 = 512;
/// The protocol that brought `payload_offset` and `payload_length` (Linux 2.6.26).
const VERSION_PAYLOAD: u16 = 0x208;

/// What a bzImage's header says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct BzImage<'a> {
    /// The compressed kernel.
    pub(crate) payload: &'a [u8],
    /// The most bytes of a command line that the kernel reads, without the final NUL.
    pub(crate) cmdline_limit: u32,
}

/// Whether a file begins as a bzImage does.
pub(crate) fn is_bzimage(file: &[u8]) -> bool {
    file.get(BOOT_FLAG..BOOT_FLAG + 2) == Some(&[0x55, 0xaa]) && file.get(MAGIC..MAGIC + 4) == Some(b"HdrS")
}

/// Finds the payload.
pub(crate) fn parse(file: &[u8]) -> Result<BzImage<'_>, ImageError> {
    let have = file.len() as u64;
    let truncated = |what, needed| ImageError::Truncated { what, needed, have };
    let header = || truncated("bzImage header", HEADER_END);
    let version = u16_at(file, VERSION).ok_or_else(header)?;
    if version < VERSION_PAYLOAD {
        return Err(ImageError::OldBootProtocol { major: (version >> 8) as u8, minor: version as u8 });
    }
    // 0 stands for 4, for the sake of very old boot loaders.
    let sectors = match file.get(SETUP_SECTORS).ok_or_else(header)? {
        0 => 4,
        sectors => u64::from(*sectors),
    };
    let cmdline_limit = u32_at(file, CMDLINE_SIZE).ok_or_else(header)?;
    let offset = u32_at(file, PAYLOAD_OFFSET).ok_or_else(header)?;
    let length = u32_at(file, PAYLOAD_LENGTH).ok_or_else(header)?;
    // Neither sum can overflow: all terms fit in 32 bits.
    let start = (sectors + 1) * SECTOR + u64::from(offset);
    let end = start + u64::from(length);
    let payload = usize::try_from(start)
        .ok()
        .zip(usize::try_from(end).ok())
        .and_then(|(start, end)| file.get(start..end))
        .ok_or_else(|| truncated("bzImage payload", end))?;
    Ok(BzImage { payload, cmdline_limit })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::synthetic::bzimage;
    use proptest::prelude::*;

    #[test]
    fn the_payload_is_found() {
        let file = bzimage(b"payload");
        assert!(is_bzimage(&file));
        assert_eq!(parse(&file).unwrap(), BzImage { payload: b"payload", cmdline_limit: 2047 });
    }

    #[test]
    fn no_setup_sectors_stand_for_four() {
        let mut file = bzimage(b"payload");
        let sectors = file[SETUP_SECTORS];
        assert_ne!(sectors, 0);
        file[SETUP_SECTORS] = 0;
        file.splice(0x400..0x400, std::iter::repeat_n(0, (4 - usize::from(sectors)) * 512));
        assert_eq!(parse(&file).unwrap().payload, b"payload");
    }

    #[test]
    fn every_cut_is_an_error_that_says_how_much_is_missing() {
        let file = bzimage(b"payload");
        for end in MAGIC + 4..file.len() {
            let error = parse(&file[..end]).unwrap_err();
            let ImageError::Truncated { needed, have, .. } = error else { panic!("{error}") };
            assert_eq!(have, end as u64);
            assert!(needed > have);
        }
    }

    #[test]
    fn numbers_beyond_the_file_are_errors() {
        for at in [PAYLOAD_OFFSET, PAYLOAD_LENGTH] {
            let mut file = bzimage(b"payload");
            file[at..at + 4].copy_from_slice(&[0xff; 4]);
            assert!(matches!(parse(&file), Err(ImageError::Truncated { what: "bzImage payload", .. })));
        }
    }

    #[test]
    fn kernels_without_a_payload_field_are_too_old() {
        let mut file = bzimage(b"payload");
        file[VERSION..VERSION + 2].copy_from_slice(&[7, 2]);
        assert!(matches!(parse(&file), Err(ImageError::OldBootProtocol { major: 2, minor: 7 })));
    }

    proptest! {
        #[test]
        fn arbitrary_headers_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..0x300)) {
            let _ = is_bzimage(&bytes);
            let _ = parse(&bytes);
        }

        #[test]
        fn damaged_headers_never_panic(at in 0x1f0..0x260_usize, value in any::<u8>()) {
            let mut file = bzimage(b"payload");
            file[at] = value;
            let _ = parse(&file);
        }
    }
}
