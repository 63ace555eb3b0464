//! What a qube tells dom0 of its memory: a node of its own xenstore folder, with how much of it is in use. Xen knows what a
//! qube has, and not what it needs.

use std::time::Duration;
use std::{fs, io, thread};
use xen::host::Host;
use xen::{Platform, Transaction, Xenstore};

/// The node, as the guest names it (toolstack's `memory::USED`): KiB, in decimal.
const USED: &str = "data/nexus/memory";
/// How often it is looked.
const INTERVAL: Duration = Duration::from_secs(10);
/// What it must have changed by to be told: a hundredth of all.
const CHANGE: u64 = 100;

/// Tells dom0 how much memory is in use, for as long as the process lives.
///
/// # Errors
/// xenstored cannot be reached, or refuses; the kernel does not say what there is.
pub fn report_memory() -> io::Result<()> {
    let store = Host.xenstore().map_err(io::Error::other)?;
    let mut told = None;
    loop {
        let memory = Memory::of(&fs::read_to_string("/proc/meminfo")?)
            .ok_or_else(|| io::Error::other("/proc/meminfo does not say what there is"))?;
        tell(&*store, memory, &mut told).map_err(io::Error::other)?;
        thread::sleep(INTERVAL);
    }
}

/// In KiB.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Memory {
    total: u64,
    used: u64,
}

impl Memory {
    /// What the kernel says (proc(5), `/proc/meminfo`). What it could give back at once is not in use; what it has put elsewhere is.
    fn of(meminfo: &str) -> Option<Self> {
        let kib = |name: &str| {
            let line = meminfo.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
            line.trim().strip_suffix(" kB")?.parse::<u64>().ok()
        };
        let (total, available) = (kib("MemTotal")?, kib("MemAvailable")?);
        let swapped = kib("SwapTotal").unwrap_or(0).saturating_sub(kib("SwapFree").unwrap_or(0));
        Some(Self { total, used: total.saturating_sub(available) + swapped })
    }
}

fn tell(store: &dyn Xenstore, memory: Memory, told: &mut Option<u64>) -> xen::Result<()> {
    if told.is_some_and(|told| told.abs_diff(memory.used) < memory.total / CHANGE) {
        return Ok(());
    }
    store.write(Transaction::NONE, USED, memory.used.to_string().as_bytes())?;
    *told = Some(memory.used);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use xen::DomId;
    use xen::mock::Machine;

    #[test]
    fn what_could_be_given_back_is_not_in_use_and_what_is_swapped_out_is() {
        let text = "MemTotal:         500000 kB\nMemFree:           10000 kB\nMemAvailable:     300000 kB\n\
                    SwapTotal:        100000 kB\nSwapFree:          99000 kB\n";
        assert_eq!(Memory::of(text), Some(Memory { total: 500_000, used: 201_000 }));
        let without = text.lines().filter(|line| !line.starts_with("Swap")).collect::<Vec<_>>().join("\n");
        assert_eq!(Memory::of(&without), Some(Memory { total: 500_000, used: 200_000 }));
        assert_eq!(Memory::of("MemTotal: 5 kB"), None);
        assert_eq!(Memory::of("MemTotal: x kB\nMemAvailable: 1 kB"), None);
    }

    #[test]
    fn it_is_told_when_it_changes_by_a_hundredth() {
        let machine = Machine::new();
        let store = machine.domain(DomId(3)).xenstore().unwrap();
        let mut told = None;
        let mut after = |used| {
            tell(&*store, Memory { total: 100_000, used }, &mut told).unwrap();
            String::from_utf8(store.read(Transaction::NONE, USED).unwrap()).unwrap()
        };
        assert_eq!(after(40_000), "40000");
        assert_eq!(after(40_999), "40000");
        assert_eq!(after(41_000), "41000");
        assert_eq!(after(40_500), "41000");
        assert_eq!(after(0), "0");
    }
}
