//! The page tables that a PV guest begins with.
//!
//! They are the machine's own: their entries name frames of the machine, and Xen lets nobody write a page that is a page
//! table. So the guest finds its tables mapped for reading only, and everything else for writing.

use std::collections::{BTreeMap, HashSet};
use std::ops::Range;
use xen::{Gfn, PAGE_SHIFT, PAGE_SIZE};

/// Levels of page tables of a 64-bit guest.
const LEVELS: u8 = 4;
/// log2 of the entries of a table.
const ENTRIES_SHIFT: u32 = 9;
/// Bytes of an entry.
const ENTRY: usize = 8;
/// What tables translate of an address; the rest repeats its highest bit.
const ADDRESS_BITS: u32 = 48;

const PRESENT: u64 = 1;
const WRITABLE: u64 = 1 << 1;
const USER: u64 = 1 << 2;
const ACCESSED: u64 = 1 << 5;
const DIRTY: u64 = 1 << 6;
/// Of entries that lead to a table. A 64-bit PV kernel runs in ring 3: to the processor, it is a user.
const TABLE_FLAGS: u64 = PRESENT | WRITABLE | USER | ACCESSED | DIRTY;
/// Of entries that lead to a page. Xen adds the user's flag.
const PAGE_FLAGS: u64 = PRESENT | ACCESSED;

/// The addresses that the hypervisor keeps to itself (`HYPERVISOR_VIRT_START`, `_END`), as tables see them.
const XENS: Range<u64> = 0x8000_0000_0000..0x8800_0000_0000;

/// Which pages of the guest are tables, and what they map. Frames are the guest's own.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct PageTables {
    /// Tables by level (4 is the root's) and by how many of its size lie below what it maps.
    tables: BTreeMap<(u8, u64), u64>,
    mappings: Vec<Mapping>,
}

/// Addresses behind each other that lead to frames behind each other.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Mapping {
    /// The address of the first, in pages.
    page: u64,
    frame: u64,
    count: u64,
}

/// The part of an address that tables translate, when it is one that a guest may map.
fn translated(address: u64) -> Option<u64> {
    let sign = (address as i64) << (64 - ADDRESS_BITS) >> (64 - ADDRESS_BITS);
    (sign as u64 == address).then_some(address & ((1 << ADDRESS_BITS) - 1))
}

impl PageTables {
    /// Whether a guest may map `pages` pages from `address` on: the range has no hole and touches nothing of the
    /// hypervisor's.
    pub(super) fn mappable(address: u64, pages: u64) -> bool {
        let Some(start) = translated(address) else { return false };
        let end = pages.checked_mul(PAGE_SIZE as u64).and_then(|bytes| start.checked_add(bytes));
        end.is_some_and(|end| end <= 1 << ADDRESS_BITS && (end <= XENS.start || start >= XENS.end))
    }

    /// The tables that are missing to map `count` pages from page `page` on, highest level first.
    fn missing(&self, page: u64, count: u64) -> Vec<(u8, u64)> {
        let last = page + count.max(1) - 1;
        (1..=LEVELS)
            .rev()
            .flat_map(|level| {
                let shift = ENTRIES_SHIFT * u32::from(level);
                (page >> shift..=last >> shift).map(move |index| (level, index))
            })
            .filter(|table| !self.tables.contains_key(table))
            .collect()
    }

    /// How many tables are missing to map `pages` pages from `address` on.
    pub(super) fn needed(&self, address: u64, pages: u64) -> u64 {
        let page = (address & ((1 << ADDRESS_BITS) - 1)) >> PAGE_SHIFT;
        self.missing(page, pages).len() as u64
    }

    /// Maps `pages` pages from the [mappable](Self::mappable) `address` on to frames from `frame` on. The tables that are
    /// missing take the frames from `tables_at` on, the root first.
    pub(super) fn map(&mut self, address: u64, frame: u64, pages: u64, tables_at: u64) {
        let page = (address & ((1 << ADDRESS_BITS) - 1)) >> PAGE_SHIFT;
        let missing = self.missing(page, pages);
        self.tables.extend(missing.into_iter().zip(tables_at..));
        self.mappings.push(Mapping { page, frame, count: pages });
    }

    /// The frame of the root.
    #[must_use]
    pub fn root(&self) -> Option<u64> {
        self.tables.get(&(LEVELS, 0)).copied()
    }

    /// Writes the tables. `machine` is the machine's frame for one of the guest's, `set` writes an entry of the table at a
    /// frame of the guest's, which was zero.
    pub(super) fn write(&self, machine: impl Fn(u64) -> Gfn, mut set: impl FnMut(u64, usize, [u8; ENTRY])) {
        const SLOTS: u64 = 1 << ENTRIES_SHIFT;
        for ((level, index), frame) in &self.tables {
            if let Some(parent) = self.tables.get(&(level + 1, index >> ENTRIES_SHIFT)) {
                let entry = machine(*frame).address() | TABLE_FLAGS;
                set(*parent, (index % SLOTS) as usize * ENTRY, entry.to_le_bytes());
            }
        }
        let tables: HashSet<u64> = self.tables.values().copied().collect();
        for mapping in &self.mappings {
            for nth in 0..mapping.count {
                let (page, frame) = (mapping.page + nth, mapping.frame + nth);
                let Some(table) = self.tables.get(&(1, page >> ENTRIES_SHIFT)) else { continue };
                let writable = if tables.contains(&frame) { 0 } else { WRITABLE };
                let entry = machine(frame).address() | PAGE_FLAGS | writable;
                set(*table, (page % SLOTS) as usize * ENTRY, entry.to_le_bytes());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashMap;

    /// The tables as they are in memory; the machine's frames are far from the guest's.
    fn written(tables: &PageTables) -> HashMap<(u64, usize), u64> {
        let mut entries = HashMap::new();
        tables.write(
            |frame| Gfn(0x100_0000 - frame),
            |table, at, bytes| {
                assert!(entries.insert((table, at), u64::from_le_bytes(bytes)).is_none(), "each once");
            },
        );
        entries
    }

    /// Where an address leads, as the processor finds it, and whether it may be written.
    fn walk(tables: &PageTables, entries: &HashMap<(u64, usize), u64>, address: u64) -> Option<(u64, bool)> {
        let mut table = tables.root()?;
        for level in (1..=LEVELS).rev() {
            let shift = PAGE_SHIFT + ENTRIES_SHIFT * (u32::from(level) - 1);
            let entry = entries.get(&(table, (address >> shift & 511) as usize * ENTRY))?;
            table = 0x100_0000 - ((entry & ((1 << 52) - 1)) >> PAGE_SHIFT);
            if level == 1 {
                return Some((table, entry & WRITABLE != 0));
            }
        }
        None
    }

    const BASE: u64 = 0xffff_ffff_8000_0000;

    #[test]
    fn the_tables_are_as_many_as_xl_was_seen_to_make() {
        // tests/golden/pv.hypercalls.txt: 37 frames from 0x4203 on for a mapping that ends at 0x4400, and 3 behind 256 frames of
        // p2m.
        let mut tables = PageTables::default();
        assert_eq!(tables.needed(BASE, 0x4400), 37);
        tables.map(BASE, 0, 0x4400, 0x4203);
        assert_eq!(tables.needed(0x80_0000_0000, 256), 3);
        tables.map(0x80_0000_0000, 0x5400, 256, 0x5500);
        assert_eq!(tables.root(), Some(0x4203));
    }

    #[test]
    fn tables_are_mapped_for_reading_only() {
        let mut tables = PageTables::default();
        tables.map(BASE, 0, 0x600, 0x500);
        let entries = written(&tables);
        for page in 0..0x600 {
            let table = (0x500..0x500 + 1 + 1 + 1 + 3).contains(&page);
            assert_eq!(walk(&tables, &entries, BASE + (page << PAGE_SHIFT)), Some((page, !table)));
        }
        assert_eq!(walk(&tables, &entries, BASE + (0x600 << PAGE_SHIFT)), None);
        assert_eq!(walk(&tables, &entries, 0), None);
    }

    #[test]
    fn what_is_xens_or_no_address_at_all_cannot_be_mapped() {
        for (address, pages, can) in [
            (BASE, 0x8_0000, true),
            (BASE, 0x8_0001, false),
            (0, 1, true),
            (0x7fff_ffff_f000, 1, true),
            (0x7fff_ffff_f000, 2, false),
            (0xffff_8000_0000_0000, 1, false),
            (0xffff_87ff_ffff_f000, 1, false),
            (0xffff_8800_0000_0000, 1, true),
            (0x8000_0000_0000, 1, false),
            (0x8800_0000_0000, 1, false),
            (0, u64::MAX, false),
        ] {
            assert_eq!(PageTables::mappable(address, pages), can, "{address:#x} {pages:#x}");
        }
    }

    proptest! {
        #[test]
        fn each_address_leads_where_it_was_mapped(
            page in 0_u64..1 << 30, count in 1_u64..3_000, other in 0_u64..1 << 30, others in 1_u64..3_000,
        ) {
            prop_assume!(page + count <= other || other + others <= page);
            let mut tables = PageTables::default();
            for (page, count, frame) in [(page, count, 0), (other, others, 10_000)] {
                let needed = tables.needed(page << PAGE_SHIFT, count);
                let before = tables.tables.len() as u64;
                tables.map(page << PAGE_SHIFT, frame, count, 20_000 + frame);
                prop_assert_eq!(tables.tables.len() as u64, before + needed);
            }
            let entries = written(&tables);
            for (page, count, frame) in [(page, count, 0), (other, others, 10_000)] {
                for nth in [0, count / 2, count - 1] {
                    prop_assert_eq!(walk(&tables, &entries, (page + nth) << PAGE_SHIFT), Some((frame + nth, true)));
                }
            }
        }
    }
}
