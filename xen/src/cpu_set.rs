//! Sets of CPUs or of NUMA nodes.

use std::collections::BTreeSet;
use std::fmt;

/// A set of CPU numbers, or of NUMA nodes (`xc_cpumap_t`, `xc_nodemap_t`, xenctrl.h: bit `i % 8` of byte `i / 8`).
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct CpuSet(BTreeSet<u32>);

impl CpuSet {
    /// The first `count` of them.
    #[must_use]
    pub fn first(count: u32) -> Self {
        (0..count).collect()
    }

    /// From Xen's bit map.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Self {
        let bits = (0_u32..).zip(bytes.iter().flat_map(|byte| (0..8).map(move |bit| byte >> bit & 1 == 1)));
        bits.filter(|(_, set)| *set).map(|(i, _)| i).collect()
    }

    /// Xen's bit map of that many bytes; what does not fit is left out.
    #[must_use]
    pub fn to_bytes(&self, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        for i in self.iter() {
            if let Some(byte) = bytes.get_mut(i as usize / 8) {
                *byte |= 1 << (i % 8);
            }
        }
        bytes
    }

    /// Whether it is in the set.
    #[must_use]
    pub fn contains(&self, i: u32) -> bool {
        self.0.contains(&i)
    }

    /// Adds one.
    pub fn insert(&mut self, i: u32) {
        self.0.insert(i);
    }

    /// Takes one away.
    pub fn remove(&mut self, i: u32) {
        self.0.remove(&i);
    }

    /// How many are in it.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether none is in it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// All, in order.
    pub fn iter(&self) -> impl Iterator<Item = u32> + '_ {
        self.0.iter().copied()
    }

    /// Those that are in both.
    #[must_use]
    pub fn intersection(&self, other: &Self) -> Self {
        Self(self.0.intersection(&other.0).copied().collect())
    }

    /// As `xl` writes a set on a host that has `count` of them: `all`, `none`, or ranges such as `0-3,6`.
    #[must_use]
    pub fn display(&self, count: u32) -> Display<'_> {
        Display { set: self, count }
    }
}

impl FromIterator<u32> for CpuSet {
    fn from_iter<I: IntoIterator<Item = u32>>(iter: I) -> Self {
        Self(iter.into_iter().collect())
    }
}

/// See [`CpuSet::display`].
#[derive(Clone, Copy, Debug)]
pub struct Display<'a> {
    set: &'a CpuSet,
    count: u32,
}

impl fmt::Display for Display<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut runs: Vec<(u32, u32)> = Vec::new();
        for i in self.set.iter().take_while(|i| *i < self.count) {
            match runs.last_mut() {
                Some((_, last)) if *last + 1 == i => *last = i,
                _ => runs.push((i, i)),
            }
        }
        let text: Vec<String> = match runs[..] {
            [] => vec!["none".to_owned()],
            [(0, last)] if last + 1 == self.count => vec!["all".to_owned()],
            _ => runs
                .iter()
                .map(
                    |(first, last)| if first == last { first.to_string() } else { format!("{first}-{last}") },
                )
                .collect(),
        };
        f.pad(&text.join(","))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bit_map_and_back() {
        let set = CpuSet::from_bytes(&[0b1000_0101, 0b10]);
        assert_eq!(set.iter().collect::<Vec<_>>(), [0, 2, 7, 9]);
        assert_eq!(set.to_bytes(2), [0b1000_0101, 0b10]);
        assert_eq!(set.to_bytes(1), [0b1000_0101]);
        assert_eq!(set.intersection(&CpuSet::first(3)), [0, 2].into_iter().collect());
    }

    #[test]
    fn a_set_is_written_as_xl_writes_it() {
        let shown = |cpus: &[u32], count| cpus.iter().copied().collect::<CpuSet>().display(count).to_string();
        assert_eq!(shown(&[], 4), "none");
        assert_eq!(shown(&[0, 1, 2, 3], 4), "all");
        assert_eq!(shown(&[0, 1, 2, 3, 9], 4), "all", "what the host has not got does not count");
        assert_eq!(shown(&[0, 1, 3], 4), "0-1,3");
        assert_eq!(shown(&[1, 2, 3], 4), "1-3");
        assert_eq!(shown(&[2], 4), "2");
        assert_eq!(shown(&[5], 4), "none");
    }
}
