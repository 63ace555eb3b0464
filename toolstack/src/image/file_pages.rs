//! An unpacked kernel's file in the memory of the guest that it is for.
//!
//! Wherever a segment's bytes stand in their page of the file as they stand in their page of memory (and linkers see to
//! that), the guest's pages can be mapped in the order of the file. A decoder whose output is that mapping puts each
//! segment in its place and has, at the same time, the file in one piece: there is nothing to copy, no memory of dom0's to
//! be had for it, and a format that looks back at what it has unpacked looks there.

use super::elf::Segment;
use std::ops::Range;
use xen::PAGE_SIZE;

const PAGE: u64 = PAGE_SIZE as u64;

/// Which pages of a guest's memory are which of a kernel's unpacked file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FilePages {
    length: u64,
    addresses: Vec<Option<u64>>,
    /// The bytes of the file that are in no segment, but in a page with one.
    edges: Vec<Range<u64>>,
}

impl FilePages {
    /// `None` when a page of the file would be two of memory, or the other way round, or a segment is cut off.
    pub(super) fn new(length: u64, segments: &[Segment]) -> Option<Self> {
        let mut addresses = vec![None; usize::try_from(length.div_ceil(PAGE)).ok()?];
        let mut edges = Vec::new();
        for Segment { file, memory, .. } in segments.iter().filter(|segment| !segment.file.is_empty()) {
            if file.end > length || file.start % PAGE != memory.start % PAGE {
                return None;
            }
            let pages = file.start / PAGE..file.end.div_ceil(PAGE);
            let first = memory.start / PAGE;
            for (at, page) in pages.clone().zip(first..) {
                if addresses.get_mut(at as usize)?.replace(page * PAGE).is_some() {
                    return None;
                }
            }
            edges.extend([pages.start * PAGE..file.start, file.end..pages.end * PAGE]);
        }
        let mut taken: Vec<u64> = addresses.iter().flatten().copied().collect();
        taken.sort_unstable();
        edges.retain(|edge| !edge.is_empty());
        let twice = taken.windows(2).any(|pair| pair[0] == pair[1]);
        (!twice).then_some(Self { length, addresses, edges })
    }

    /// The file's length in bytes.
    #[must_use]
    pub fn length(&self) -> u64 {
        self.length
    }

    /// For each page of the file the guest-physical address of its page of memory; `None` for those that no segment has bytes
    /// in.
    #[must_use]
    pub fn addresses(&self) -> &[Option<u64>] {
        &self.addresses
    }

    /// Zeroes what is in no segment, of the mapped pages.
    pub(super) fn clear(&self, memory: &mut [u8]) {
        for edge in &self.edges {
            memory[edge.start as usize..edge.end as usize].fill(0);
        }
        for (page, address) in memory.chunks_mut(PAGE_SIZE).zip(&self.addresses) {
            if address.is_none() {
                page.fill(0);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn segment(file: Range<u64>, memory: Range<u64>) -> Segment {
        Segment { index: 0, file, memory }
    }

    #[test]
    fn each_page_of_a_segment_has_its_place() {
        let segments =
            [segment(0x1000..0x2800, 0x10_0000..0x10_1800), segment(0x3100..0x3200, 0x9100..0xb000)];
        let pages = FilePages::new(0x3300, &segments).unwrap();
        assert_eq!(pages.addresses(), [None, Some(0x10_0000), Some(0x10_1000), Some(0x9000)]);
        let mut memory = vec![1; 0x4000];
        pages.clear(&mut memory);
        for (at, byte) in (0_u64..).zip(memory) {
            let filled = segments.iter().any(|segment| segment.file.contains(&at));
            assert_eq!(byte == 1, filled, "{at:#x}");
        }
    }

    #[test]
    fn what_does_not_divide_into_pages_has_none() {
        let first = segment(0x1000..0x2800, 0x10_0000..0x10_1800);
        for (second, length, what) in [
            (segment(0x3100..0x3200, 0x9000..0x9100), 0x4000, "another place in the page"),
            (segment(0x2900..0x2a00, 0x9900..0x9a00), 0x4000, "one page of the file, two of memory"),
            (segment(0x3900..0x3a00, 0x10_1900..0x10_1a00), 0x4000, "two pages of the file, one of memory"),
            (segment(0x3000..0x4001, 0x9000..0xb000), 0x4000, "cut off"),
        ] {
            assert_eq!(FilePages::new(length, &[first.clone(), second]), None, "{what}");
        }
    }
}
