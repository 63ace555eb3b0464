//! `start_info`: what rsi points to when a PV guest begins (xen/include/public/xen.h).

use super::plan::PvPlan;
use xen::{Gfn, PAGE_SHIFT, Port};

/// What 64-bit guests of this ABI look for.
const MAGIC: &[u8] = b"xen-3.0-x86_64";
/// `SIF_MOD_START_PFN`: the initrd is told by its frame.
const FLAG_INITRD_BY_FRAME: u32 = 1 << 3;
/// `SIF_VIRT_P2M_4TOOLS`: toolstacks understand a p2m that is a list at a virtual address.
const FLAG_VIRTUAL_P2M: u32 = 1 << 4;
/// Bytes of the command line's place, the NUL included (`MAX_GUEST_CMDLINE`).
pub(super) const CMDLINE: usize = 1_024;
/// Bytes of `start_info`.
const SIZE: usize = 1_168;

/// What Xen chose, and the plan cannot know.
pub(super) struct Chosen {
    /// The page shared with Xen.
    pub(super) shared_info: Gfn,
    pub(super) store: (Gfn, Port),
    pub(super) console: (Gfn, Port),
}

/// The bytes of start_info.
pub(super) fn start_info(plan: &PvPlan, chosen: &Chosen) -> Vec<u8> {
    let initrd = plan.initrd.as_ref();
    let by_frame = initrd.is_some_and(|initrd| initrd.by_frame);
    let mut bytes = Vec::with_capacity(SIZE);
    bytes.extend(MAGIC);
    bytes.resize(32, 0);
    let push = |bytes: &mut Vec<u8>, value: u64| bytes.extend(value.to_le_bytes());
    push(&mut bytes, plan.pages);
    push(&mut bytes, chosen.shared_info.address());
    // Numbers of 32 bits have as many bits of padding behind them.
    push(&mut bytes, (FLAG_VIRTUAL_P2M | if by_frame { FLAG_INITRD_BY_FRAME } else { 0 }).into());
    for (ring, port) in [chosen.store, chosen.console] {
        push(&mut bytes, ring.0);
        push(&mut bytes, port.0.into());
    }
    push(&mut bytes, plan.address_of(plan.page_table_frames.start));
    push(&mut bytes, plan.page_table_frames.end - plan.page_table_frames.start);
    push(&mut bytes, plan.p2m.address);
    let (start, len) = initrd.map_or((0, 0), |initrd| {
        let frame = initrd.range.start >> PAGE_SHIFT;
        let start = if initrd.by_frame { frame } else { plan.address_of(frame) };
        (start, initrd.range.end - initrd.range.start)
    });
    push(&mut bytes, start);
    push(&mut bytes, len);
    let cmdline = bytes.len();
    bytes.extend(plan.cmdline.as_bytes());
    bytes.resize(cmdline + CMDLINE, 0);
    // Of a list that stands apart: its frames and those of its page tables, which the kernel may take down.
    let apart = if plan.p2m.apart { plan.p2m.frames.clone() } else { 0..0 };
    push(&mut bytes, apart.start);
    push(&mut bytes, apart.end - apart.start);
    bytes
}
