//! The memory map of a PV guest that drives devices: it has the holes of the machine's own, for that is where its devices
//! are (`e820_host`).

use xen::{E820Entry, E820Kind};

/// What is below stays the guest's memory, whatever the machine has there.
const LOW: u64 = 1 << 20;
/// Where memory goes on that has no place below the machine's holes.
const HIGH: u64 = 1 << 32;

/// The map of a guest with so much memory, and at the most so much, in bytes.
///
/// Memory comes first, as far as the machine's first range that is none. From there on the guest sees what the machine has,
/// but for its memory, which is unusable: a gap would be taken for a place where devices can be. The rest of the guest's
/// memory is above 4 GiB and all that.
pub(in crate::boot) fn host_map(machine: &[E820Entry], memory: u64, max_memory: u64) -> Vec<E820Entry> {
    let end = |entry: &E820Entry| entry.start.saturating_add(entry.size);
    let of_memory = |entry: &&E820Entry| matches!(entry.kind, E820Kind::Ram | E820Kind::Unusable);
    let above = || machine.iter().filter(|entry| entry.start > LOW);
    let others = || above().filter(|entry| !of_memory(entry));
    let first = others().map(|entry| entry.start).min();
    let last = others().map(end).max().unwrap_or(0);

    let begins = memory.min(first.unwrap_or(u64::MAX));
    let mut map = vec![E820Entry { start: 0, size: begins, kind: E820Kind::Ram }];
    let mut behind = begins;
    if let Some(first) = first.filter(|first| *first > begins) {
        map.push(E820Entry { start: begins, size: first - begins, kind: E820Kind::Unusable });
        behind = first;
    }
    for entry in above() {
        let start = entry.start.max(behind);
        match entry.kind {
            E820Kind::Ram if entry.start < HIGH && end(entry) > start => {
                map.push(E820Entry { start, size: end(entry) - start, kind: E820Kind::Unusable });
            }
            E820Kind::Ram | E820Kind::Unusable => {}
            _ => map.push(*entry),
        }
    }
    let rest = max_memory.saturating_sub(begins);
    if rest > 0 {
        map.push(E820Entry { start: last.max(HIGH), size: rest, kind: E820Kind::Ram });
    }
    map
}

#[cfg(test)]
mod tests {
    use super::*;
    use E820Kind::{Acpi, Nvs, Ram, Reserved, Unusable};

    const MIB: u64 = 1 << 20;

    fn map(machine: &[(u64, u64, E820Kind)], memory: u64, max: u64) -> Vec<(u64, u64, E820Kind)> {
        let entry = |(start, end, kind): &(u64, u64, E820Kind)| E820Entry {
            start: *start,
            size: end - start,
            kind: *kind,
        };
        let machine: Vec<E820Entry> = machine.iter().map(entry).collect();
        let map = host_map(&machine, memory, max);
        map.iter().map(|entry| (entry.start, entry.start + entry.size, entry.kind)).collect()
    }

    const MACHINE: [(u64, u64, E820Kind); 8] = [
        (0, 0x9fc00, Ram),
        (0xf0000, MIB, Reserved),
        (MIB, 0xbffd_f000, Ram),
        (0xbffd_f000, 0xbfff_0000, Acpi),
        (0xbfff_0000, 0xc000_0000, Ram),
        (0xc000_0000, 0xc010_0000, Nvs),
        (0xfeff_c000, 0xff00_0000, Reserved),
        (HIGH, HIGH + 0x8000_0000, Ram),
    ];

    #[test]
    fn small_memory_is_below_the_machines_holes() {
        let expected = [
            (0, 256 * MIB, Ram),
            (256 * MIB, 0xbffd_f000, Unusable),
            (0xbffd_f000, 0xbfff_0000, Acpi),
            (0xbfff_0000, 0xc000_0000, Unusable),
            (0xc000_0000, 0xc010_0000, Nvs),
            (0xfeff_c000, 0xff00_0000, Reserved),
        ];
        assert_eq!(map(&MACHINE, 256 * MIB, 256 * MIB), expected);
        let balloon = map(&MACHINE, 256 * MIB, 512 * MIB);
        assert_eq!(balloon[..6], expected);
        assert_eq!(balloon[6..], [(HIGH, HIGH + 256 * MIB, Ram)]);
    }

    #[test]
    fn what_does_not_fit_below_the_first_hole_is_above_4_gib() {
        let found = map(&MACHINE, 4096 * MIB, 4096 * MIB);
        assert_eq!(found[0], (0, 0xbffd_f000, Ram));
        assert_eq!(found.last(), Some(&(HIGH, HIGH + 4096 * MIB - 0xbffd_f000, Ram)));
        let memory: u64 = found.iter().filter(|(.., kind)| *kind == Ram).map(|(from, to, _)| to - from).sum();
        assert_eq!(memory, 4096 * MIB);
        // Or above what the machine has there.
        let beyond = (HIGH, 0xff_0000_0000, Reserved);
        let found = map(&[MACHINE.as_slice(), &[beyond]].concat(), 4096 * MIB, 4096 * MIB);
        assert_eq!(found.last().map(|entry| entry.0), Some(0xff_0000_0000));
    }

    #[test]
    fn a_machine_that_is_all_memory_changes_nothing() {
        assert_eq!(map(&[(0, HIGH, Ram)], 64 * MIB, 64 * MIB), [(0, 64 * MIB, Ram)]);
        assert_eq!(map(&[], 64 * MIB, 64 * MIB), [(0, 64 * MIB, Ram)]);
    }
}
