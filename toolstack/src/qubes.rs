//! The qubes of this host: finding, listing, pausing, shutting down and destroying them, whoever made them.

use crate::cache::KernelCache;
use crate::config::nearest_of;
use crate::device::{Address, DeviceError, Dom0, Plumbing};
use crate::events::{Event, EventLog, Step};
use crate::pciback::{KernelSysfs, Sysfs};
use crate::store::{self, home};
use crate::userdata::{Kind, UserData};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};
use uuid::Uuid;
use xen::{DomId, DomainControl, DomainInfo, ErrorKind, Gfn, Platform, Port, Transaction, Xenstore};

/// The name that tools show for a domain that has none.
const NAMELESS: &str = "(null)";

/// A domain of this host.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Qube {
    /// What Xen says of it.
    pub info: DomainInfo,
    /// Its name in xenstore.
    pub name: Option<String>,
}

impl Qube {
    /// Its UUID.
    #[must_use]
    pub fn uuid(&self) -> Uuid {
        Uuid::from_bytes(self.info.uuid)
    }

    /// Its name, or what tools show for a domain that has none.
    #[must_use]
    pub fn display_name(&self) -> &str {
        self.name.as_deref().unwrap_or(NAMELESS)
    }
}

/// Why a qube could not be found or handled.
#[derive(Debug, thiserror::Error)]
pub enum QubeError {
    /// No domain of that name or id.
    #[error("{which} is an invalid domain identifier: there is no domain of that name or id{} (see `nxl list`)",
        meant.as_ref().map_or_else(String::new, |meant| format!("; did you mean `{meant}'?")))]
    NotFound {
        /// The name or id.
        which: String,
        /// A name that is near enough to have been meant.
        meant: Option<String>,
    },
    /// dom0 is to be left alone.
    #[error("domain 0 is this very domain: it is not to be {0}")]
    Dom0(&'static str),
    /// It has devices that only their own toolstack can take away in order.
    #[error("domain {domid} has devices that nxl does not manage ({kinds}): use `xl destroy {domid}`")]
    ForeignDevices {
        /// Which domain.
        domid: DomId,
        /// The kinds of device, such as `vbd, vif`.
        kinds: String,
    },
    /// It did not go in time.
    #[error("domain {domid} did not shut down within {} s; `nxl destroy {domid}` ends it", waited.as_secs())]
    Timeout {
        /// Which domain.
        domid: DomId,
        /// How long it was waited for.
        waited: Duration,
    },
    /// Its stored configuration could not be read, written or removed.
    #[error("{path}: {source}")]
    UserData {
        /// Which file.
        path: std::path::PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The name is another domain's, or none.
    #[error("the name {name:?} is {}", match holder { Some(holder) => format!("taken by domain {holder}"), None => "no name: it is empty, a number, or has a / in it".to_owned() })]
    Name {
        /// The name.
        name: String,
        /// Who has it.
        holder: Option<DomId>,
    },
    /// Waiting failed.
    #[error("waiting for xenstore: {0}")]
    Wait(io::Error),
    /// It is gone, but something that stood behind one of its devices is not.
    #[error("domain {domid} is gone, but not all that stood behind its devices: {source}")]
    LeftBehind {
        /// Which domain.
        domid: DomId,
        /// What.
        source: DeviceError,
    },
    /// A device could not be attached or detached.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// A call failed.
    #[error(transparent)]
    Xen(#[from] xen::Error),
}

/// What a guest can be asked for through `control/shutdown`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Request {
    /// Power off.
    Poweroff,
    /// Restart.
    Reboot,
}

impl Request {
    fn word(self) -> &'static str {
        match self {
            Self::Poweroff => "poweroff",
            Self::Reboot => "reboot",
        }
    }
}

/// The qubes of this host.
pub struct Qubes {
    /// For connections to xenstored that are somebody's own.
    pub(crate) platform: Box<dyn Platform>,
    pub(crate) control: Arc<dyn DomainControl>,
    pub(crate) store: Arc<dyn Xenstore>,
    pub(crate) userdata: UserData,
    pub(crate) kernels: Option<KernelCache>,
    pub(crate) plumbing: Arc<dyn Plumbing>,
    pub(crate) sysfs: Box<dyn Sysfs + Send + Sync>,
    pub(crate) events: EventLog,
}

impl Qubes {
    /// Opens domain control and xenstore.
    ///
    /// # Errors
    /// What [`Platform`] says, of kind [`Unavailable`](ErrorKind::Unavailable) or [`NotFound`](ErrorKind::NotFound) when
    /// this is not dom0 of a Xen host.
    pub fn open(
        platform: &(impl Platform + Clone + 'static),
        userdata: UserData,
    ) -> Result<Self, xen::Error> {
        Ok(Self {
            control: platform.domain_control()?,
            store: platform.xenstore()?,
            platform: Box::new(platform.clone()),
            userdata,
            kernels: None,
            plumbing: Arc::new(Dom0),
            sysfs: Box::new(KernelSysfs),
            events: EventLog::nowhere(),
        })
    }

    /// Tells there of what happens to qubes.
    #[must_use]
    pub fn with_events(self, events: EventLog) -> Self {
        Self { events, ..self }
    }

    /// Tells of a step of a qube's life that was done.
    pub(crate) fn tell(&self, qube: &Qube, step: Step) {
        self.events.tell(&[Event::of(qube, step)]);
    }

    /// Tells of something that was done about a qube of that name, which may have no domain now.
    pub fn tell_of(&self, name: &str, step: Step) {
        self.events.tell(&[Event::now(step).named(name)]);
    }

    /// Puts something else behind the devices than this domain's kernel: for tests.
    #[must_use]
    pub fn with_plumbing(self, plumbing: impl Plumbing + 'static) -> Self {
        Self { plumbing: Arc::new(plumbing), ..self }
    }

    /// Has PCI devices in another sysfs than this domain's kernel's: for tests.
    #[must_use]
    pub fn with_sysfs(self, sysfs: impl Sysfs + Send + Sync + 'static) -> Self {
        Self { sysfs: Box::new(sysfs), ..self }
    }

    /// Keeps unpacked kernels for the next qube with the same.
    #[must_use]
    pub fn with_kernel_cache(self, kernels: KernelCache) -> Self {
        Self { kernels: Some(kernels), ..self }
    }

    /// What Xen says of the machine and of itself is asked here.
    #[must_use]
    pub fn control(&self) -> &dyn DomainControl {
        &*self.control
    }

    /// A value of xenstore as text; `None` where there is no such node.
    pub(crate) fn read(&self, path: &str) -> Result<Option<String>, xen::Error> {
        store::text_if_there(&*self.store, path)
    }

    pub(crate) fn directory(&self, path: &str) -> Result<Vec<String>, xen::Error> {
        Ok(store::directory_if_there(&*self.store, Transaction::NONE, path)?.unwrap_or_default())
    }

    fn named(&self, info: DomainInfo) -> Result<Qube, xen::Error> {
        let name = self.read(&format!("{}/name", home(info.domid)))?.filter(|name| !name.is_empty());
        Ok(Qube { info, name })
    }

    /// All domains, by id.
    ///
    /// # Errors
    /// What Xen or xenstored says.
    pub fn list(&self) -> Result<Vec<Qube>, QubeError> {
        let domains = self.control.domains()?;
        let paths: Vec<String> = domains.iter().map(|info| format!("{}/name", home(info.domid))).collect();
        let paths: Vec<&str> = paths.iter().map(String::as_str).collect();
        let names = self.store.read_all(Transaction::NONE, &paths)?;
        let name = |value: Vec<u8>| {
            Some(String::from_utf8_lossy(&value).into_owned()).filter(|name| !name.is_empty())
        };
        Ok(domains
            .into_iter()
            .zip(names)
            .map(|(info, value)| Qube { info, name: value.and_then(name) })
            .collect())
    }

    /// The domain of an id.
    ///
    /// # Errors
    /// [`QubeError::NotFound`] when there is none.
    pub fn get(&self, domid: DomId) -> Result<Qube, QubeError> {
        match self.control.domain_info(domid) {
            Ok(info) => Ok(self.named(info)?),
            Err(error) if error.kind() == ErrorKind::NotFound => Err(not_found(domid.to_string())),
            Err(error) => Err(error.into()),
        }
    }

    /// The domain of a name, or of an id when `which` is a number, as `xl` has it.
    ///
    /// # Errors
    /// [`QubeError::NotFound`] when there is none.
    pub fn find(&self, which: &str) -> Result<Qube, QubeError> {
        if !which.is_empty() && which.bytes().all(|byte| byte.is_ascii_digit()) {
            return self.get(DomId(which.parse().map_err(|_| not_found(which.to_owned()))?));
        }
        let mut qubes = self.list()?;
        if let Some(at) = qubes.iter().position(|qube| qube.name.as_deref() == Some(which)) {
            return Ok(qubes.swap_remove(at));
        }
        let meant = nearest_of(which, qubes.iter().filter_map(|qube| qube.name.as_deref()));
        Err(QubeError::NotFound { which: which.to_owned(), meant: meant.map(str::to_owned) })
    }

    /// Stops the vCPUs of a domain.
    ///
    /// # Errors
    /// What Xen says; dom0 is refused.
    pub fn pause(&self, qube: &Qube) -> Result<(), QubeError> {
        if qube.info.domid == DomId::DOM0 {
            return Err(QubeError::Dom0("paused"));
        }
        self.control.pause(qube.info.domid)?;
        self.tell(qube, Step::Paused);
        Ok(())
    }

    /// Lets the vCPUs of a domain run.
    ///
    /// # Errors
    /// What Xen says.
    pub fn unpause(&self, qube: &Qube) -> Result<(), QubeError> {
        self.control.unpause(qube.info.domid)?;
        self.tell(qube, Step::Unpaused);
        Ok(())
    }

    /// Asks the guest to power off or to restart. It may take its time, or not listen at all.
    ///
    /// # Errors
    /// What xenstored says; dom0 is refused.
    pub fn request(&self, qube: &Qube, request: Request) -> Result<(), QubeError> {
        if qube.info.domid == DomId::DOM0 {
            return Err(QubeError::Dom0(match request {
                Request::Poweroff => "shut down",
                Request::Reboot => "rebooted",
            }));
        }
        let path = format!("{}/control/shutdown", home(qube.info.domid));
        self.store.write(Transaction::NONE, &path, request.word().as_bytes())?;
        self.tell(qube, Step::Requested { request: request.word().to_owned() });
        Ok(())
    }

    /// Waits until a domain shut down or is gone; at most `limit`, if there is one.
    ///
    /// # Errors
    /// [`QubeError::Timeout`], or what Xen or xenstored says.
    pub fn wait_for_shutdown(&self, qube: &Qube, limit: Option<Duration>) -> Result<(), QubeError> {
        let gone =
            self.watched("@releaseDomain", limit, || match self.control.domain_info(qube.info.domid) {
                Ok(info) if info.shutdown.is_none() && !info.dying && info.uuid == qube.info.uuid => Ok(None),
                Ok(_) => Ok(Some(())),
                Err(error) if error.kind() == ErrorKind::NotFound => Ok(Some(())),
                Err(error) => Err(error.into()),
            })?;
        gone.ok_or(QubeError::Timeout { domid: qube.info.domid, waited: limit.unwrap_or_default() })
    }

    /// Asks `question` whenever the watch on `path` fires, until it has an answer; `None` after `limit`.
    pub(crate) fn watched<T>(
        &self,
        path: &str,
        limit: Option<Duration>,
        mut question: impl FnMut() -> Result<Option<T>, QubeError>,
    ) -> Result<Option<T>, QubeError> {
        const TOKEN: &str = "nxl";
        let begun = Instant::now();
        self.store.watch(path, TOKEN)?;
        let answer = loop {
            match question() {
                Ok(None) => {}
                answer => break answer,
            }
            let left = limit.map(|limit| limit.saturating_sub(begun.elapsed()));
            if left == Some(Duration::ZERO) {
                break Ok(None);
            }
            if let Err(error) = self.wait_for_watch(left) {
                break Err(error);
            }
        };
        self.store.unwatch(path, TOKEN)?;
        answer
    }

    /// Waits until a watch fires, at most `limit`, and takes all events that are there.
    pub(crate) fn wait_for_watch(&self, limit: Option<Duration>) -> Result<(), QubeError> {
        wait_readable(self.store.as_fd(), limit).map_err(QubeError::Wait)?;
        while self.store.watch_event()?.is_some() {}
        Ok(())
    }

    /// Gives a domain another name. Its guest is not told, and goes by the one that it knows.
    ///
    /// # Errors
    /// [`QubeError::Name`], or what Xen or xenstored says.
    pub fn rename(&self, qube: &Qube, name: &str) -> Result<(), QubeError> {
        let refused = |holder| QubeError::Name { name: name.to_owned(), holder };
        // A number would be taken for a domain id.
        if name.is_empty() || name.contains('/') || name.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(refused(None));
        }
        let domid = qube.info.domid;
        let holds = |other: &&Qube| other.name.as_deref() == Some(name) && other.info.domid != domid;
        if let Some(other) = self.list()?.iter().find(holds) {
            return Err(refused(Some(other.info.domid)));
        }
        let paths = [home(domid), store::vm_path(qube.uuid())];
        xen::transaction(&*self.store, |tx| {
            paths.iter().try_for_each(|path| self.store.write(tx, &format!("{path}/name"), name.as_bytes()))
        })
        .map_err(QubeError::from)?;
        let was = qube.display_name().to_owned();
        self.tell(&Qube { name: Some(name.to_owned()), ..qube.clone() }, Step::Renamed { was });
        Ok(())
    }

    /// Ends a domain, and removes all that was made for it.
    ///
    /// # Errors
    /// What Xen or xenstored says; dom0, and domains with devices that nxl does not manage, are refused.
    pub fn destroy(&self, qube: &Qube) -> Result<(), QubeError> {
        let devices = self.destroyable(qube)?;
        // Before Xen tells everybody of the end: the watcher shall not take time for what is being done already.
        self.userdata.forget(Kind::Nxl, qube.info.domid, qube.uuid())?;
        self.end_told(qube, &devices)
    }

    /// The same by the watcher, whose file stays until the end: it tells the next watcher what is to be done.
    pub(crate) fn destroy_attended(&self, qube: &Qube) -> Result<(), QubeError> {
        let devices = self.destroyable(qube)?;
        self.end_told(qube, &devices)
    }

    fn end_told(&self, qube: &Qube, devices: &[Address]) -> Result<(), QubeError> {
        let ended = self.end(qube.info.domid, qube.uuid(), devices);
        if matches!(ended, Ok(()) | Err(QubeError::LeftBehind { .. })) {
            self.tell(qube, Step::Destroyed);
        }
        ended
    }

    /// The devices of a domain that may be destroyed.
    pub(crate) fn destroyable(&self, qube: &Qube) -> Result<Vec<Address>, QubeError> {
        let domid = qube.info.domid;
        if domid == DomId::DOM0 {
            return Err(QubeError::Dom0("destroyed"));
        }
        let devices = self.devices(domid)?;
        if !devices.foreign.is_empty() {
            return Err(QubeError::ForeignDevices { domid, kinds: devices.foreign.join(", ") });
        }
        Ok(devices.managed)
    }

    /// Ends a domain without further questions, and removes all that was made for it: the devices first, as a backend
    /// that has a domain's pages mapped keeps it from going. What could not be undone of them is told when the rest is
    /// gone.
    pub(crate) fn end(&self, domid: DomId, uuid: Uuid, devices: &[Address]) -> Result<(), QubeError> {
        let problems = self.close_all(domid, devices)?;
        match self.control.destroy(domid) {
            Ok(()) => {}
            // Gone between being found and now: what is left of it is removed all the same.
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(error.into()),
        }
        store::remove(&*self.store, domid, uuid, self.daemon_domid("xenconsoled")?, devices)?;
        self.userdata.remove(domid, uuid)?;
        problems.into_iter().next().map_or(Ok(()), |source| Err(QubeError::LeftBehind { domid, source }))
    }

    /// Ends a domain that was not finished, and removes all that was made for it.
    ///
    /// xenstored tells the others only of the end of a domain that was introduced to it. xenconsoled, which finds domains in
    /// Xen's list, may have mapped the console of one that was not, and would keep the domain from going until the next
    /// one comes or goes: so it is introduced now, if that far it came.
    pub(crate) fn end_half_made(
        &self,
        domid: DomId,
        uuid: Uuid,
        devices: &[Address],
    ) -> Result<(), QubeError> {
        if !self.store.is_introduced(domid)? {
            let number = |name: &str| self.read(&format!("{}/store/{name}", home(domid)));
            if let (Some(ring), Some(port)) = (number("ring-ref")?, number("port")?)
                && let (Ok(ring), Ok(port)) = (ring.parse(), port.parse())
            {
                // If that cannot be, the domain may stay a while longer.
                let _ = self.store.introduce(domid, Gfn(ring), Port(port));
            }
        }
        self.end(domid, uuid, devices)
    }

    /// Where `xenstored` or `xenconsoled` runs; dom0 unless it says otherwise.
    pub(crate) fn daemon_domid(&self, daemon: &str) -> Result<DomId, xen::Error> {
        let domid = self.read(&format!("/tool/{daemon}/domid"))?;
        Ok(domid.and_then(|text| text.trim().parse().ok()).map_or(DomId::DOM0, DomId))
    }

    /// The pseudo-terminal on which xenconsoled offers a domain's console, which for a new domain takes it a moment:
    /// `None` when there is none after `limit`, or the domain is gone.
    ///
    /// # Errors
    /// What xenstored says.
    pub fn wait_for_console(&self, qube: &Qube, limit: Duration) -> Result<Option<String>, QubeError> {
        let path = format!("{}/console/tty", home(qube.info.domid));
        self.watched(&path, Some(limit), || match self.read(&path)? {
            Some(tty) if tty.is_empty() => Ok(None),
            found => Ok(Some(found)),
        })
        .map(Option::flatten)
    }

    /// The configuration that was stored when the domain was made, in libxl's JSON.
    ///
    /// # Errors
    /// [`QubeError::UserData`] when it cannot be read; `None` when there is none.
    pub fn stored_config(&self, qube: &Qube) -> Result<Option<String>, QubeError> {
        self.userdata.read(Kind::Libxl, qube.info.domid, qube.uuid())
    }
}

fn not_found(which: String) -> QubeError {
    QubeError::NotFound { which, meant: None }
}

/// Waits until a descriptor is readable, at most `limit`; a signal ends the wait, too.
pub(crate) fn wait_readable(fd: BorrowedFd<'_>, limit: Option<Duration>) -> io::Result<()> {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let timeout = limit.and_then(|limit| Timespec::try_from(limit).ok());
    match poll(&mut [PollFd::new(&fd, PollFlags::IN)], timeout.as_ref()) {
        Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}
