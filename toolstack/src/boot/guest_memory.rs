//! The memory of a domain that is being built, as slices to fill.
#![allow(unsafe_code, reason = "slices over foreign mappings; the reason why that is sound stands here once")]

use std::collections::HashSet;
use std::ops::Range;
use xen::{Access, DomId, ForeignMemory, Gfn, Mapping, PAGE_SHIFT, PAGE_SIZE, Result};

/// Mapped memory of a domain that has never run.
///
/// A slice over memory that somebody else may write would be unsound (see `xen::Mapping`). Nobody else does here: the
/// domain was created paused by this very builder and is not unpaused before all of these are gone, no other domain
/// knows of it yet, and each frame is mapped once.
pub(super) struct GuestMemory(Mapping);

/// What is still mapped of a domain that was built, though nobody looks at it any more. It is unmapped when this is
/// dropped: a microsecond or more for each of some 16,000 pages, which the guest need not wait for.
#[derive(Debug, Default)]
#[must_use = "dropped at once, it makes the guest wait"]
pub struct Loaded(#[expect(dead_code, reason = "kept to be dropped late")] Option<Mapping>);

impl GuestMemory {
    /// Maps the page-aligned `range` of guest-physical addresses.
    pub(super) fn map_range(foreign: &dyn ForeignMemory, domid: DomId, range: &Range<u64>) -> Result<Self> {
        let gfns: Vec<Gfn> = (range.start >> PAGE_SHIFT..range.end >> PAGE_SHIFT).map(Gfn).collect();
        Self::map_frames(foreign, domid, &gfns)
    }

    /// Maps frames, one behind the other.
    pub(super) fn map_frames(foreign: &dyn ForeignMemory, domid: DomId, gfns: &[Gfn]) -> Result<Self> {
        debug_assert_eq!(gfns.iter().collect::<HashSet<_>>().len(), gfns.len(), "each frame once");
        foreign.map(domid, gfns, Access::ReadWrite).map(Self)
    }

    /// The bytes.
    pub(super) fn as_mut_slice(&mut self) -> &mut [u8] {
        // SAFETY: the frames belong to a domain that was created paused by `build`, which holds it so as long as this
        // value lives, and `build` maps no frame twice; so nobody else reads or writes them.
        unsafe { self.0.as_mut_slice() }
    }

    /// Gives up the slices, and leaves the pages mapped for now.
    pub(super) fn into_loaded(self) -> Loaded {
        Loaded(Some(self.0))
    }

    /// The bytes of the `n`-th page.
    pub(super) fn page(&mut self, n: usize) -> &mut [u8] {
        &mut self.as_mut_slice()[n * PAGE_SIZE..(n + 1) * PAGE_SIZE]
    }
}
