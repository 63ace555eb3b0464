//! A machine in memory: domains, grant tables, event channels, a xenstore and domain control, for tests.
//!
//! It checks what Xen checks (who may map which grant and how, who may bind which port, who may read which node, how
//! much memory there is), [counts](Machine::counts) what it is asked, can be told to [fail](Machine::fail) a call, and
//! [lists](Machine::inventory) all that exists, so that a test can say "and nothing is left".

mod backend;
mod control;
mod diagnostics;
mod event;
mod fault;
mod foreign;
mod grant;
mod pv;
mod scheduling;
mod store;
mod suspension;

pub use backend::Backends;
pub use control::Guest;
pub use fault::Counts;

use crate::memory::Frames;
use crate::{
    DomId, DomainControl, ErrorKind, EventChannels, ForeignMemory, GrantMap, GrantShare, PciAddress,
    Platform, Result, ShutdownReason, Xenstore,
};
use fault::Faults;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::Arc;

/// A machine in memory. Clones are the same machine.
#[derive(Clone, Debug)]
pub struct Machine(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    /// What grants share; a domain's own memory is in its `control::Domain`.
    frames: Arc<Frames>,
    state: Mutex<State>,
    faults: Mutex<Faults>,
}

/// All that the machine knows, under one lock. Nothing that takes the lock when it is dropped may live in here.
#[derive(Debug)]
struct State {
    grants: grant::Tables,
    events: event::Ports,
    store: store::Tree,
    domains: BTreeMap<DomId, control::Domain>,
    host: control::HostMemory,
    pools: scheduling::Pools,
    /// Whose each PCI device is that is somebody's.
    devices: BTreeMap<PciAddress, DomId>,
    iommu: bool,
    console: diagnostics::Console,
}

/// How many pages can be shared at once, in the whole machine.
const GRANT_FRAMES: u64 = 1 << 16;

/// The memory of [`Machine::new`]: 8 GiB.
const DEFAULT_PAGES: u64 = 8 << 18;

impl Default for Machine {
    fn default() -> Self {
        Self::new()
    }
}

impl Machine {
    /// A machine with 8 GiB of memory that no domain has yet.
    #[must_use]
    pub fn new() -> Self {
        Self::with_memory(DEFAULT_PAGES)
    }

    /// A machine with so many free pages.
    ///
    /// # Panics
    /// When the system has no memory files: nothing can be tested then.
    #[must_use]
    #[allow(clippy::expect_used, reason = "a test cannot go on without its machine")]
    pub fn with_memory(pages: u64) -> Self {
        Self(Arc::new(Inner {
            frames: Arc::new(Frames::new(GRANT_FRAMES).expect("a memory file")),
            state: Mutex::new(State {
                grants: grant::Tables::new(GRANT_FRAMES),
                events: event::Ports::default(),
                store: store::Tree::default(),
                domains: BTreeMap::new(),
                host: control::HostMemory::new(pages),
                pools: scheduling::Pools::default(),
                devices: BTreeMap::new(),
                iommu: true,
                console: diagnostics::Console::default(),
            }),
            faults: Mutex::new(Faults::default()),
        }))
    }

    /// The machine as the domain `domid` sees it. Its home in xenstore is made when it is missing.
    #[must_use]
    pub fn domain(&self, domid: DomId) -> Domain {
        self.0.state.lock().store.add_home(domid);
        Domain { machine: self.clone(), domid }
    }

    /// What was asked of the machine since it was made or [`reset_counts`](Self::reset_counts) was called.
    #[must_use]
    pub fn counts(&self) -> Counts {
        self.0.faults.lock().counts()
    }

    /// Begins to count anew.
    pub fn reset_counts(&self) {
        self.0.faults.lock().reset_counts();
    }

    /// Lets the `nth` call from now on fail (0: the very next), with an errno of that kind. A `call` narrows it to the
    /// calls of that name, such as `"xc_domain_populate_physmap"`.
    pub fn fail(&self, call: Option<&'static str>, nth: u64, kind: ErrorKind) {
        self.0.faults.lock().add(call, nth, kind);
    }

    /// How many of the failures that [`fail`](Self::fail) asked for have not happened yet; they are forgotten.
    pub fn clear_failures(&self) -> usize {
        self.0.faults.lock().clear()
    }

    /// Lets `calls` more calls happen; the next one ends the caller by a silent panic, for `catch_unwind`. As for a program
    /// that is killed, what its destructors would still do has no effect: their calls fail.
    pub fn kill_after(&self, calls: u64) {
        self.0.faults.lock().set_life(Some(calls));
    }

    /// Somebody has mapped memory of a domain from now on: destroyed, it stays in the list as one that is dying.
    pub fn hold(&self, domid: DomId) {
        if let Some(domain) = self.0.state.lock().domains.get_mut(&domid) {
            domain.held = true;
        }
    }

    /// Lets calls happen again: those of the next program.
    pub fn revive(&self) {
        self.0.faults.lock().set_life(None);
    }

    /// All that exists, a line each: domains and their memory, grants, ports, xenstore nodes, open transactions,
    /// watches. Equal before and after means that nothing was left behind.
    #[must_use]
    pub fn inventory(&self) -> Vec<String> {
        let state = self.0.state.lock();
        let mut lines = state.host.inventory();
        lines.extend(state.domains.iter().map(|(domid, domain)| domain.inventory(*domid)));
        lines.extend(state.grants.inventory());
        lines.extend(state.events.inventory());
        lines.extend(state.store.inventory());
        lines
    }

    /// What a test may look at of a domain that was built, if it exists.
    #[must_use]
    pub fn guest(&self, domid: DomId) -> Option<Guest> {
        self.0.state.lock().domains.get(&domid).map(control::Domain::guest)
    }

    /// Makes a pool with another scheduler (`XEN_SCHEDULER_*`), which has all CPUs too; returns its number.
    pub fn add_cpu_pool(&self, scheduler: u32) -> u32 {
        self.0.state.lock().pools.add(scheduler)
    }

    /// The PCI devices that are somebody's, and whose.
    #[must_use]
    pub fn assigned_devices(&self) -> Vec<(DomId, PciAddress)> {
        self.0.state.lock().devices.iter().map(|(device, domid)| (*domid, *device)).collect()
    }

    /// Takes the IOMMU away.
    pub fn without_iommu(&self) {
        self.0.state.lock().iommu = false;
    }

    /// Lets a domain shut down, as its kernel would; xenstored tells those who watch `@releaseDomain`.
    pub fn shut_down(&self, domid: DomId, reason: ShutdownReason) {
        let mut state = self.0.state.lock();
        if let Some(domain) = state.domains.get_mut(&domid) {
            domain.shut_down(reason);
        }
        state.store.fire_special("@releaseDomain");
    }

    /// Counts a call, and fails it when a test asked for that.
    fn enter(&self, call: &'static str, args: impl FnOnce() -> String) -> Result<()> {
        self.0.faults.lock().enter(call, 1, args)
    }

    /// The same for a call that is `hypercalls` hypercalls in libxenctrl.
    fn enter_hypercalls(
        &self,
        call: &'static str,
        hypercalls: u64,
        args: impl FnOnce() -> String,
    ) -> Result<()> {
        self.0.faults.lock().enter(call, hypercalls, args)
    }
}

/// The machine as one of its domains sees it.
#[derive(Clone, Debug)]
pub struct Domain {
    machine: Machine,
    domid: DomId,
}

impl Domain {
    /// The domain's id.
    #[must_use]
    pub fn domid(&self) -> DomId {
        self.domid
    }

    /// dom0 alone may control domains.
    fn privileged(&self, call: &'static str) -> Result<()> {
        if self.domid == DomId::DOM0 { Ok(()) } else { Err(crate::Error::errno(call, "", libc::EACCES)) }
    }
}

impl Platform for Domain {
    fn grant_share(&self) -> Result<Arc<dyn GrantShare>> {
        self.machine.enter("xengntshr_open", String::new)?;
        Ok(Arc::new(grant::Share(self.clone())))
    }
    fn grant_map(&self) -> Result<Arc<dyn GrantMap>> {
        self.machine.enter("xengnttab_open", String::new)?;
        Ok(Arc::new(grant::Map(self.clone())))
    }
    fn event_channels(&self) -> Result<Arc<dyn EventChannels>> {
        self.machine.enter("xenevtchn_open", String::new)?;
        Ok(Arc::new(event::Events::new(self.clone())?))
    }
    fn xenstore(&self) -> Result<Arc<dyn Xenstore>> {
        self.machine.enter("xs_open", String::new)?;
        Ok(Arc::new(store::Connection::new(self.clone())?))
    }
    fn domain_control(&self) -> Result<Arc<dyn DomainControl>> {
        self.privileged("xc_interface_open")?;
        self.machine.enter("xc_interface_open", String::new)?;
        Ok(Arc::new(control::Control(self.machine.clone())))
    }
    fn foreign_memory(&self) -> Result<Arc<dyn ForeignMemory>> {
        self.privileged("xenforeignmemory_open")?;
        self.machine.enter("xenforeignmemory_open", String::new)?;
        Ok(Arc::new(foreign::Foreign(self.machine.clone())))
    }
}
