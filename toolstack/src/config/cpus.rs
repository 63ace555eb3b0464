//! Sets of the host's CPUs as `cpus`, `cpus_soft`, `xl vcpu-pin` and the masks of xl.conf name them: `all`, `0-3,^2`,
//! `node:1`.

use std::collections::BTreeSet;
use xen::DomainControl;

/// More CPUs than Xen can be built for (`CONFIG_NR_CPUS`, xen/arch/Kconfig), when the host's number is not known.
const CPUS_LIMIT: u32 = 4_096;

/// What is wrong with a set of CPUs.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CpusError {
    /// Nothing that names CPUs.
    #[error("{0:?} names no CPUs (CPUs are all, 3, 0-3, ^2, node:1, or several of these with commas)")]
    Range(String),
    /// No CPU of the host is in the set.
    #[error("no CPU of this host is in {0:?}")]
    Empty(String),
    /// A mask leaves a vCPU no CPU.
    #[error("the mask {0:?} leaves no CPU to a vCPU")]
    Masked(String),
    /// The set depends on the host, about which nothing is known.
    #[error("which CPUs are in {0:?} can be said in dom0 alone")]
    Host(String),
}

/// The host's CPUs, and on which NUMA nodes they are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostCpus {
    count: u32,
    /// By CPU; `None` when it is not known.
    nodes: Option<Vec<u32>>,
}

impl HostCpus {
    /// That many CPUs, and by CPU the number of its node when that is known.
    #[must_use]
    pub fn new(count: u32, nodes: Option<Vec<u32>>) -> Self {
        Self { count, nodes }
    }

    /// Those of this host. Three hypercalls.
    ///
    /// # Errors
    /// What Xen says.
    pub fn of(control: &dyn DomainControl) -> Result<Self, xen::Error> {
        // A CPU that is off is on no node that one could name.
        let node = |core: Option<xen::Core>| core.map_or(u32::MAX, |core| core.node);
        let nodes = control.cpu_topology()?.into_iter().map(node).collect();
        Ok(Self::new(control.phys_info()?.max_cpu_id + 1, Some(nodes)))
    }
}

/// Reads a set. What the host has not got does not count; on an unknown host there is no `all`, and there are no nodes.
pub(crate) fn cpu_set(text: &str, host: Option<&HostCpus>) -> Result<BTreeSet<u32>, CpusError> {
    let mut set = BTreeSet::new();
    for part in text.split(',').filter(|part| !part.is_empty()) {
        let wrong = || CpusError::Range(part.to_owned());
        let unknown = || CpusError::Host(part.to_owned());
        let (away, rest) = part.strip_prefix('^').map_or((false, part), |rest| (true, rest));
        let nodes = rest.strip_prefix("node:").or_else(|| rest.strip_prefix("nodes:"));
        let count = host.map(|host| host.count);
        let cpus: Vec<u32> = match (nodes.unwrap_or(rest), nodes) {
            ("all", _) if away => return Err(wrong()),
            // libxl's "any" is all bits of the bytes that its bit map has, and shows so in its JSON. Xen knows better.
            ("all", _) => (0..count.ok_or_else(unknown)?.next_multiple_of(8)).collect(),
            (range, None) => {
                let (first, last) = parse_range(range).ok_or_else(wrong)?;
                match count {
                    Some(count) => (first..=last).take_while(|cpu| *cpu < count).collect(),
                    None if last < CPUS_LIMIT => (first..=last).collect(),
                    None => return Err(wrong()),
                }
            }
            (range, Some(_)) => {
                let (first, last) = parse_range(range).ok_or_else(wrong)?;
                let nodes = host.and_then(|host| host.nodes.as_deref()).ok_or_else(unknown)?;
                let on = (0..).zip(nodes).filter(|(_, node)| (first..=last).contains(*node));
                on.map(|(cpu, _)| cpu).collect()
            }
        };
        for cpu in cpus {
            if away {
                set.remove(&cpu);
            } else {
                set.insert(cpu);
            }
        }
    }
    if set.is_empty() { Err(CpusError::Empty(text.to_owned())) } else { Ok(set) }
}

/// The first and the last of a range.
fn parse_range(text: &str) -> Option<(u32, u32)> {
    let number = |text: &str| {
        let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        text.parse().ok().filter(|_| digits)
    };
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let (first, last) = (number(first)?, number(last)?);
    (first <= last).then_some((first, last))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn sets_are_those_of_xl() {
        let host = HostCpus::new(8, Some(vec![0, 0, 0, 0, 1, 1, 1, 1]));
        let set = |text: &str| cpu_set(text, Some(&host)).unwrap().into_iter().collect::<Vec<_>>();
        assert_eq!(set("3"), [3]);
        assert_eq!(set("0-2,6"), [0, 1, 2, 6]);
        assert_eq!(set("0-5,^1-2,,"), [0, 3, 4, 5]);
        assert_eq!(set("^1,1"), [1]);
        assert_eq!(set("all"), [0, 1, 2, 3, 4, 5, 6, 7]);
        assert_eq!(set("nodes:all,^node:0"), [4, 5, 6, 7]);
        assert_eq!(set("node:1,^5"), [4, 6, 7]);
        assert_eq!(set("nodes:0-1,^nodes:1"), [0, 1, 2, 3]);
        assert_eq!(set("6-99"), [6, 7]);
        assert_eq!(set("0-4294967295"), set("all"));
        for wrong in
            ["x", "1-", "-1", "2-1", "+1", " 1", "1 ", "^all", "^nodes:all", "node:", "1-2-3", "99999999999"]
        {
            assert_eq!(cpu_set(wrong, Some(&host)), Err(CpusError::Range(wrong.to_owned())));
        }
        for empty in ["", ",", "8", "^1", "1,^1", "node:2"] {
            assert_eq!(cpu_set(empty, Some(&host)), Err(CpusError::Empty(empty.to_owned())));
        }
        assert_eq!(
            cpu_set("all,^0", Some(&HostCpus::new(2, None))),
            Ok((1..8).collect()),
            "as in libxl's JSON"
        );
        assert_eq!(cpu_set("7", Some(&HostCpus::new(7, None))), Err(CpusError::Empty("7".to_owned())));
    }

    #[test]
    fn an_unknown_host_has_numbers_alone() {
        assert_eq!(cpu_set("4,9-10", None), Ok([4, 9, 10].into()));
        assert_eq!(cpu_set("all", None), Err(CpusError::Host("all".to_owned())));
        assert_eq!(cpu_set("^node:1", None), Err(CpusError::Host("^node:1".to_owned())));
        assert_eq!(
            cpu_set("node:1", Some(&HostCpus::new(2, None))),
            Err(CpusError::Host("node:1".to_owned()))
        );
        assert_eq!(cpu_set("0-4096", None), Err(CpusError::Range("0-4096".to_owned())));
    }

    proptest! {
        #[test]
        fn arbitrary_texts_never_panic(text in any::<String>(), near in "[0-9^,:alnodes-]{0,20}") {
            for text in [&text, &near] {
                let _ = cpu_set(text, None);
                let _ = cpu_set(text, Some(&HostCpus::new(3, Some(vec![0; 3]))));
            }
        }
    }
}
