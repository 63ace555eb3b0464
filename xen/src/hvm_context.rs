//! HVM save records: the form in which a domain's vCPU state is read and loaded.
//!
//! A context is a sequence of records, each a descriptor (type code, instance, length of what follows) and a structure
//! of xen/include/public/arch-x86/hvm/save.h. It begins with HEADER, of which Xen demands that it comes back as it was
//! given out, and ends with END.

use std::mem::offset_of;
use xen_sys::{hvm_hw_cpu, hvm_hw_mtrr, hvm_save_header};

const END: u16 = 0;
const HEADER: u16 = 1;
const CPU: u16 = 2;
const MTRR: u16 = 14;

/// Bytes of `struct hvm_save_descriptor`.
const DESCRIPTOR: usize = size_of::<xen_sys::hvm_save_descriptor>();

/// Default memory type write-back, MTRRs enabled (`MTRR_TYPE_WRBACK`, `MTRR_DEF_TYPE_ENABLE`).
const MTRR_WRITE_BACK: u64 = 6 | 1 << 11;

/// A context that does not hold what was looked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("Xen's HVM context of {len} bytes has no whole record of type {record}")]
pub struct MissingRecord {
    /// The type code.
    pub record: u16,
    /// Bytes of the context.
    pub len: usize,
}

/// The first record of a type: its body.
fn find(context: &[u8], record: u16, size: usize) -> Result<&[u8], MissingRecord> {
    let missing = MissingRecord { record, len: context.len() };
    let mut rest = context;
    loop {
        let (descriptor, after) = rest.split_first_chunk::<DESCRIPTOR>().ok_or(missing)?;
        let code = u16::from_le_bytes([descriptor[0], descriptor[1]]);
        let len = u32::from_le_bytes([descriptor[4], descriptor[5], descriptor[6], descriptor[7]]) as usize;
        let body = after.get(..len).ok_or(missing)?;
        if code == record {
            return body.get(..size).ok_or(missing);
        }
        if code == END {
            return Err(missing);
        }
        rest = &after[len..];
    }
}

fn push(context: &mut Vec<u8>, record: u16, instance: u16, body: &[u8]) {
    context.extend(record.to_le_bytes());
    context.extend(instance.to_le_bytes());
    context.extend((body.len() as u32).to_le_bytes());
    context.extend(body);
}

/// Writes fields of a C structure, by their offsets in the header.
macro_rules! fields {
    ($bytes:ident: $type:ident { $($field:ident: $value:expr),* $(,)? }) => {
        $({
            let at = offset_of!($type, $field);
            let value = $value.to_le_bytes();
            $bytes[at..at + value.len()].copy_from_slice(&value);
        })*
    };
}

/// The context with which a PVH guest begins (docs/misc/pvh.pandoc): `vcpus` vCPUs whose memory type is write-back, the
/// first of them in flat 32-bit protected mode without paging at `entry`, with `start_info` in ebx.
///
/// `current` is the context that Xen gives for the new domain; its header and MTRR state are kept.
///
/// # Errors
/// When `current` lacks either.
pub fn pvh_start(current: &[u8], vcpus: u32, entry: u32, start_info: u32) -> Result<Vec<u8>, MissingRecord> {
    let header = find(current, HEADER, size_of::<hvm_save_header>())?;
    let mut mtrr = find(current, MTRR, size_of::<hvm_hw_mtrr>())?.to_vec();
    fields!(mtrr: hvm_hw_mtrr { msr_mtrr_def_type: MTRR_WRITE_BACK });

    let mut cpu = vec![0; size_of::<hvm_hw_cpu>()];
    fields!(cpu: hvm_hw_cpu {
        rbx: u64::from(start_info),
        rip: u64::from(entry),
        // The bit that is always one.
        rflags: 2_u64,
        // PE | ET
        cr0: 0x11_u64,
        dr6: 0xffff_0ff0_u64,
        dr7: 0x400_u64,
        cs_limit: u32::MAX,
        ds_limit: u32::MAX,
        es_limit: u32::MAX,
        ss_limit: u32::MAX,
        tr_limit: 0x67_u32,
        // Flat code and data segments and a busy TSS, in the order of the VMCB's attribute bits.
        cs_arbytes: 0xc9b_u32,
        ds_arbytes: 0xc93_u32,
        es_arbytes: 0xc93_u32,
        ss_arbytes: 0xc93_u32,
        tr_arbytes: 0x8b_u32,
    });

    let mut context = Vec::new();
    push(&mut context, HEADER, 0, header);
    for vcpu in 0..vcpus {
        push(&mut context, MTRR, vcpu as u16, &mtrr);
    }
    push(&mut context, CPU, 0, &cpu);
    push(&mut context, END, 0, &[]);
    Ok(context)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn current() -> Vec<u8> {
        let mut context = Vec::new();
        push(&mut context, HEADER, 0, &[1; 24]);
        push(&mut context, 5, 0, &[2; 10]);
        push(&mut context, MTRR, 0, &[3; size_of::<hvm_hw_mtrr>()]);
        push(&mut context, END, 0, &[]);
        context
    }

    #[test]
    fn the_start_context_has_the_sizes_that_xl_was_seen_to_load() {
        // golden: sethvmcontext size=288 (MTRR of one vCPU) and size=1080 (CPU), each with a header and an end.
        let context = pvh_start(&current(), 1, 0x100_0a30, 0x420_0000).unwrap();
        assert_eq!(context.len(), 288 + 1_080 - 40);
    }

    #[test]
    fn the_header_is_kept_and_the_registers_are_those_of_the_abi() {
        let context = pvh_start(&current(), 2, 0x100_0a30, 0x420_0000).unwrap();
        assert_eq!(find(&context, HEADER, 24).unwrap(), [1; 24]);
        let mtrr = find(&context, MTRR, size_of::<hvm_hw_mtrr>()).unwrap();
        assert_eq!(mtrr[..8], [3; 8]);
        assert_eq!(mtrr[mtrr.len() - 8..], 0x806_u64.to_le_bytes());
        let cpu = find(&context, CPU, size_of::<hvm_hw_cpu>()).unwrap();
        let word = |at: usize| u64::from_le_bytes(cpu[at..at + 8].try_into().unwrap());
        assert_eq!(word(offset_of!(hvm_hw_cpu, rip)), 0x100_0a30);
        assert_eq!(word(offset_of!(hvm_hw_cpu, rbx)), 0x420_0000);
        assert_eq!(word(offset_of!(hvm_hw_cpu, cr0)), 0x11);
        assert_eq!(word(offset_of!(hvm_hw_cpu, cr4)), 0);
    }

    #[test]
    fn a_context_cut_anywhere_is_an_error() {
        let whole = current();
        for len in 0..whole.len() - DESCRIPTOR {
            assert!(pvh_start(&whole[..len], 1, 0, 0).is_err(), "{len}");
        }
    }
}
