//! `hvm_start_info`, version 1: what ebx points to when a PVH guest begins
//! (xen/include/public/arch-x86/hvm/start_info.h).

use std::ops::Range;
use xen::E820Entry;

/// `XEN_HVM_START_MAGIC_VALUE`: "xEn3" with the top bit of the E set.
const MAGIC: u32 = 0x336e_c578;
const VERSION: u32 = 1;
/// Bytes of `struct hvm_start_info`.
const HEADER: usize = 56;
/// Bytes of `struct hvm_modlist_entry`.
const MODULE: usize = 32;
/// Bytes of `struct hvm_memmap_table_entry`.
const MEMMAP: usize = 24;

/// The bytes of start_info and of what it points to, as they are to lie from `address` on: header, module list, memory
/// map, command line.
pub(super) fn start_info(
    address: u64,
    cmdline: &str,
    rsdp: u64,
    module: Option<&Range<u64>>,
    memory_map: &[E820Entry],
) -> Vec<u8> {
    let modules = usize::from(module.is_some());
    let modlist = HEADER;
    let memmap = modlist + modules * MODULE;
    let text = memmap + memory_map.len() * MEMMAP;
    let at = |offset: usize| address + offset as u64;

    let mut bytes = Vec::with_capacity(text + cmdline.len() + 1);
    let push32 = |bytes: &mut Vec<u8>, value: u32| bytes.extend(value.to_le_bytes());
    let push64 = |bytes: &mut Vec<u8>, value: u64| bytes.extend(value.to_le_bytes());
    push32(&mut bytes, MAGIC);
    push32(&mut bytes, VERSION);
    // No flags: neither dom0 nor anything else that SIF_* says.
    push32(&mut bytes, 0);
    push32(&mut bytes, modules as u32);
    push64(&mut bytes, if modules > 0 { at(modlist) } else { 0 });
    push64(&mut bytes, at(text));
    push64(&mut bytes, rsdp);
    push64(&mut bytes, at(memmap));
    push32(&mut bytes, memory_map.len() as u32);
    push32(&mut bytes, 0);
    if let Some(module) = module {
        push64(&mut bytes, module.start);
        push64(&mut bytes, module.end - module.start);
        // No command line of its own, and a reserved word.
        push64(&mut bytes, 0);
        push64(&mut bytes, 0);
    }
    for entry in memory_map {
        push64(&mut bytes, entry.start);
        push64(&mut bytes, entry.size);
        // XEN_HVM_MEMMAP_TYPE_* are the numbers of E820.
        push32(&mut bytes, entry.kind as u32);
        push32(&mut bytes, 0);
    }
    bytes.extend(cmdline.as_bytes());
    bytes.push(0);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use xen::E820Kind;

    #[test]
    fn the_parts_are_where_the_header_says() {
        let map = [E820Entry { start: 0, size: 0x2000_0000, kind: E820Kind::Ram }];
        let bytes =
            start_info(0x420_0000, "console=hvc0", 0xfc00_0000, Some(&(0x420_1000..0x520_0000)), &map);
        let word = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
        assert_eq!(bytes[..16], [0x78, 0xc5, 0x6e, 0x33, 1, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0]);
        let part = |address: u64| (address - 0x420_0000) as usize;
        assert_eq!(word(part(word(16))), 0x420_1000);
        assert_eq!(word(part(word(16)) + 8), 0x520_0000 - 0x420_1000);
        assert_eq!(&bytes[part(word(24))..], b"console=hvc0\0");
        assert_eq!(word(32), 0xfc00_0000);
        assert_eq!(word(part(word(40)) + 8), 0x2000_0000);
        assert_eq!(word(48), 1);
    }

    #[test]
    fn without_an_initrd_there_is_no_module() {
        let bytes = start_info(0x1000, "", 0, None, &[]);
        assert_eq!(bytes.len(), HEADER + 1);
        assert_eq!(bytes[12..24], [0; 12]);
    }
}
