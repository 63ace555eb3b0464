//! Hundreds of qubes made and ended on one host, with something going wrong each time: what one cycle leaves, the next
//! ones would add up.

use super::*;
use crate::create::tests::next_program;

const CYCLES: u64 = 300;

/// Numbers that are the same in every run, so that a failure can be had again (splitmix64).
struct Draw(u64);

impl Draw {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ mixed >> 31) % limit
    }
}

/// What goes wrong.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Trouble {
    /// The host's memory ends at one of the calls that take some.
    Memory,
    /// xenstored grants no more nodes, or no more bytes.
    StoreQuota,
    /// Any call of any library.
    Call,
    /// dom0's kernel has no loop device, no bridge, or no file.
    Plumbing,
    /// Nobody drives the devices' backends.
    NoBackend,
    /// The program is killed while it makes the qube.
    KilledMaking,
    /// The program is killed while it ends the qube.
    KilledEnding,
    /// A call fails while the qube is ended, which is then done once more.
    Ending,
    /// Nothing.
    None,
}

const TROUBLES: [Trouble; 9] = [
    Trouble::Memory,
    Trouble::StoreQuota,
    Trouble::Call,
    Trouble::Plumbing,
    Trouble::NoBackend,
    Trouble::KilledMaking,
    Trouble::KilledEnding,
    Trouble::Ending,
    Trouble::None,
];

/// The calls that take memory of the host.
const POPULATING: [&str; 4] = [
    "xc_domain_claim_pages",
    "xc_domain_populate_physmap",
    "xc_domain_populate_physmap_exact",
    "xc_set_paging_mempool_size",
];
/// The requests that take of xenstored's quota.
const STORING: [&str; 4] = ["xs_write", "xs_mkdir", "xs_set_permissions", "xs_transaction_end"];

/// The kinds of qubes, as lines of a configuration.
const KINDS: [&str; 4] = [
    "kernel='@/raw'",
    "kernel='@/pv'\ntype='pv'\nmemory=16\nmaxmem=24",
    "kernel='@/raw'\ndisk=['@/a,raw,xvda,r','@/b,raw,xvdb,w']\nvif=['bridge=xenbr0']",
    "kernel='@/raw'\nvcpus=2\nmaxmem=600\ncpus='1'\ncpu_weight=512",
];

/// All that there is: domains and their memory, grants, event channels, nodes, watches; loop devices; files.
fn everything(host: &Host, kernel: &Kernel) -> (Vec<String>, usize, usize) {
    let mut inventory = host.inventory();
    // As with other toolstacks, these stay behind the last qube.
    inventory.retain(|line| !line.starts_with("/libxl = ") && !line.starts_with("/vm = "));
    (inventory, kernel.loop_count(), host.files())
}

fn quietly<T>(what: impl FnOnce() -> T) -> std::thread::Result<T> {
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(what))
}

#[test]
fn three_hundred_cycles_with_something_going_wrong_leave_nothing() {
    let (mut host, kernel) = with_backends(Backends::Prompt);
    fs::write(host.folder.path().join("raw"), SyntheticElf::pvh().build()).unwrap();
    fs::write(host.folder.path().join("pv"), SyntheticElf::pv().build()).unwrap();
    let before = everything(&host, &kernel);
    let mut draw = Draw(5);
    // How often each trouble came, and how often something was left for the doctor.
    let mut came: BTreeMap<Trouble, u64> = BTreeMap::new();
    let mut repaired = 0;
    for cycle in 0..CYCLES {
        let kind = KINDS[draw.below(4) as usize];
        let trouble = TROUBLES[(cycle % TROUBLES.len() as u64) as usize];
        let context = format!("cycle {cycle}, {trouble:?}: {kind}");
        let settings = config(&host, "work", kind);
        let (host_now, kernel_now) = (&host, &kernel);
        let make = || host_now.qubes.create(&settings, true, &*host_now.foreign);
        let machine = host_now.machine.clone();
        let happened = match trouble {
            Trouble::Memory | Trouble::StoreQuota | Trouble::Call => {
                let call = match trouble {
                    Trouble::Memory => Some(POPULATING[draw.below(4) as usize]),
                    Trouble::StoreQuota => Some(STORING[draw.below(4) as usize]),
                    _ => None,
                };
                let nth = if call.is_some() { draw.below(6) } else { draw.below(200) };
                machine.fail(call, nth, ErrorKind::Exhausted);
                let failed = make().is_err();
                // What was not needed, as a populate after the last one, went well.
                failed && machine.clear_failures() == 0
            }
            Trouble::Plumbing => {
                kernel_now.0.lock().unwrap().until_failure = Some(draw.below(9) as usize);
                let failed = make().is_err();
                kernel_now.0.lock().unwrap().until_failure.take().is_none() && failed
            }
            Trouble::NoBackend => {
                let settings = config(host_now, "work", "disk=['vdev=xvda,target=/dev/a,backend=nobody']");
                host_now.qubes.create(&settings, true, &*host_now.foreign).is_err()
            }
            Trouble::KilledMaking => {
                machine.kill_after(draw.below(200));
                quietly(make).is_err()
            }
            Trouble::KilledEnding => {
                let qube = make().unwrap();
                machine.kill_after(draw.below(60));
                quietly(|| host_now.qubes.destroy(&qube)).is_err()
            }
            Trouble::Ending => {
                let qube = make().unwrap();
                machine.fail(None, draw.below(40), ErrorKind::Exhausted);
                let failed = host_now.qubes.destroy(&qube).is_err();
                machine.clear_failures();
                failed
            }
            Trouble::None => {
                let qube = make().unwrap();
                host_now.qubes.unpause(&qube).unwrap();
                host_now.qubes.destroy(&qube).unwrap();
                true
            }
        };
        machine.clear_failures();
        *came.entry(trouble).or_default() += u64::from(happened);
        let killed = matches!(trouble, Trouble::KilledMaking | Trouble::KilledEnding);
        if !killed && trouble != Trouble::Ending && happened {
            // Without anybody's help.
            assert_eq!(everything(&host, &kernel), before, "{context}");
        }
        host = next_program(host);
        host.qubes = host.qubes.with_plumbing(kernel.clone());
        let leftovers = host.qubes.leftovers().unwrap();
        repaired += u64::from(!leftovers.is_empty());
        for leftover in leftovers {
            host.qubes.repair(&leftover).unwrap();
        }
        // One that is whole is not the doctor's.
        if let Ok(qube) = host.qubes.find("work") {
            host.qubes.destroy(&qube).unwrap();
        }
        assert_eq!(host.qubes.leftovers().unwrap(), [], "{context}");
        assert_eq!(everything(&host, &kernel), before, "{context}");
        assert!(host.qubes.userdata.begun().unwrap().is_empty(), "{context}");
    }
    for trouble in TROUBLES {
        assert!(came[&trouble] >= 5, "{trouble:?} came {} times only: {came:?}", came[&trouble]);
    }
    assert!(repaired >= 20, "something was left {repaired} times only");
}
