//! The device backend daemon: connects the disks and network interfaces whose backends are in the domain that it runs in,
//! by their scripts, and takes them away again; what `xl devd` does in a driver domain (libxl_device.c,
//! `libxl_device_events_handler`).
//!
//! The toolstack of dom0 writes a backend's records there, and can run no script of another domain. So this watches
//! `backend/` of its own domain, and each device has a thread of its own: scripts take their time.
//!
//! | records | what is done |
//! |---|---|
//! | the driver has the device (state 2 to 4), and no script ran | the script's `add` or `online`; `hotplug-status` `connected`, or `error` with `hotplug-error` |
//! | closed (state 6), and `online` is 0 or the guest's half is gone | the script's `remove` or `offline`; the records are removed, for which the toolstack waits |
//! | gone | `remove` or `offline` |
//!
//! It may be killed at any moment, and another take its place: of each device there is a [`Journal`] in `/run/nxl/devd`,
//! which is locked as long as a script runs and has how it ended, by the hand of the shell that waits for it.
//!
//! A guest cannot write the backend's half. Of its own half it is only asked whether it is there: one that hides it loses
//! its own device, once its backend is closed.

mod journal;

use super::attach::{one_line, with_words};
use super::{Action, Address, DeviceError, Kind, Script, script_path, state};
use crate::lock;
use crate::qubes::wait_readable;
use crate::store::{self, home};
use journal::{Begun, Journal, Phase};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};
use uuid::Uuid;
use xen::{DomId, ErrorKind, Platform, Transaction, Xenstore};

/// Where it keeps account of its devices, until the domain ends.
pub const FOLDER: &str = "/run/nxl/devd";
/// Held by the one that is at work.
const LOCK: &str = "lock";
/// The node in a backend's half that says which journal is about it, and not about one of that place before.
const MARK: &str = "nxl-devd";
/// How long a driver may take to take a device, before that is told (`LIBXL_INIT_TIMEOUT`).
const LIMIT: Duration = if cfg!(test) { Duration::from_millis(200) } else { Duration::from_secs(10) };
/// The kinds that it serves.
const KINDS: [Kind; 2] = [Kind::Vbd, Kind::Vif];
/// What a process of QEMU serves, which is not started here.
const OF_QEMU: [&str; 2] = ["qdisk", "9pfs"];

/// Why it cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum DevdError {
    /// There is one.
    #[error("another nxl devd is at work in this domain")]
    AtWork,
    /// A file, or a wait, failed.
    #[error("{what}: {source}")]
    System {
        /// What was done.
        what: String,
        /// Why it failed.
        source: io::Error,
    },
    /// A call failed.
    #[error(transparent)]
    Xen(#[from] xen::Error),
}

/// Something that it did, or did not.
#[derive(Debug)]
pub enum Told {
    /// A device is connected.
    Connected(Address),
    /// A device is taken away.
    Disconnected(Address),
    /// Something of a device failed.
    Failed(Address, DeviceError),
    /// A backend that this is not for: the path of its records.
    NotServed(String),
}

/// A line of a log.
impl fmt::Display for Told {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Connected(address) => write!(f, "{address}: connected"),
            Self::Disconnected(address) => write!(f, "{address}: taken away"),
            // These say it themselves.
            Self::Failed(_, error @ (DeviceError::Script { .. } | DeviceError::Backend { .. })) => {
                write!(f, "{error}")
            }
            Self::Failed(address, error) => write!(f, "{address}: {error}"),
            Self::NotServed(path) => write!(f, "{path}: is QEMU's to serve, which is not started here"),
        }
    }
}

/// The daemon of the domain that it runs in.
pub struct Devd {
    store: Arc<dyn Xenstore>,
    /// A connection of its own.
    watches: Arc<dyn Xenstore>,
    domid: DomId,
    folder: PathBuf,
}

/// What a backend's half says, as far as it concerns the scripts.
struct Backend {
    state: String,
    online: bool,
    script: Option<String>,
    gatewaydev: Option<String>,
    hotplug_status: String,
    mark: Option<String>,
}

/// What comes next for a device.
enum Next {
    /// A look when something changes.
    Wait,
    /// The same; its driver has not taken it yet.
    Untaken,
    /// Nothing: it is gone.
    End,
}

/// Which devices an event concerns.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Concerned {
    One(Address),
    All,
    /// With the path of a backend that QEMU would have to serve.
    Nobody(Option<String>),
}

type Attended = Mutex<BTreeMap<Address, Sender<()>>>;

fn held(attended: &Attended) -> MutexGuard<'_, BTreeMap<Address, Sender<()>>> {
    attended.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Devd {
    /// Finds out which domain this is. `folder` is for its account of devices, [`FOLDER`] but in tests.
    ///
    /// # Errors
    /// When xenstored is not to be had.
    pub fn open(platform: &dyn Platform, folder: &Path) -> Result<Self, DevdError> {
        let (store, watches) = (platform.xenstore()?, platform.xenstore()?);
        let domid = store.read(Transaction::NONE, "domid")?;
        let domid = str::from_utf8(&domid).ok().and_then(|domid| domid.parse().ok());
        let domid = domid.ok_or_else(|| DevdError::System {
            what: "xenstore's domid".to_owned(),
            source: io::ErrorKind::InvalidData.into(),
        })?;
        Ok(Self { store, watches, domid: DomId(domid), folder: folder.to_owned() })
    }

    /// Serves the backends of this domain, those that are there already first; until `go_on` says no when something changed,
    /// or xenstored is gone. `ready` is called when it watches.
    ///
    /// # Errors
    /// [`DevdError::AtWork`], or why it cannot go on.
    pub fn run(
        &self,
        ready: impl FnOnce(),
        tell: &(dyn Fn(Told) + Sync),
        go_on: impl Fn() -> bool,
    ) -> Result<(), DevdError> {
        let failed = |what: &str| {
            let what = format!("{what} {}", self.folder.display());
            move |source| DevdError::System { what, source }
        };
        let lock = lock::attempt(&self.folder.join(LOCK)).map_err(failed("lock in"))?;
        let Some(_lock) = lock else { return Err(DevdError::AtWork) };
        let top = format!("{}/backend", home(self.domid));
        self.watches.watch(&top, "devd")?;
        let attended = &Attended::default();
        thread::scope(|scope| {
            let wake = |address: Address| {
                let mut threads = held(attended);
                if threads.get(&address).is_none_or(|poke| poke.send(()).is_err()) {
                    let (poke, pokes) = channel();
                    let attend = move || self.attend(address, &pokes, attended, tell);
                    let thread = thread::Builder::new().name(address.vif()).spawn_scoped(scope, attend);
                    thread
                        .map_err(|source| DevdError::System { what: "another thread".to_owned(), source })?;
                    threads.insert(address, poke);
                }
                Ok::<_, DevdError>(())
            };
            let serve = || {
                self.journals().map_err(failed("read"))?.into_iter().try_for_each(&wake)?;
                ready();
                let mut not_served = BTreeSet::new();
                loop {
                    while let Some(event) = self.watches.watch_event()? {
                        match concerned(&top, self.domid, &event.path) {
                            Concerned::One(address) => wake(address)?,
                            Concerned::All => {
                                let known: Vec<Address> = held(attended).keys().copied().collect();
                                self.backends(&top)?.into_iter().chain(known).try_for_each(&wake)?;
                            }
                            Concerned::Nobody(None) => {}
                            Concerned::Nobody(Some(path)) => {
                                if not_served.insert(path.clone()) {
                                    tell(Told::NotServed(path));
                                }
                            }
                        }
                    }
                    // What changes from here on ends the wait.
                    if !go_on() {
                        return Ok(());
                    }
                    wait_readable(self.watches.as_fd(), None).map_err(|source| DevdError::System {
                        what: "waiting for xenstore".into(),
                        source,
                    })?;
                }
            };
            let served = serve();
            // The threads end when nobody can poke them any more.
            held(attended).clear();
            served
        })
    }

    /// The devices that there are accounts of.
    fn journals(&self) -> io::Result<Vec<Address>> {
        let names = fs::read_dir(&self.folder)?.map(|entry| Ok(entry?.file_name()));
        let names: Vec<_> = names.collect::<io::Result<_>>()?;
        Ok(names.iter().filter_map(|name| journal::device_of(name.to_str()?, self.domid)).collect())
    }

    /// The devices whose backends are recorded.
    fn backends(&self, top: &str) -> Result<Vec<Address>, xen::Error> {
        let below = |path: &str| {
            let names = store::directory_if_there(&*self.store, Transaction::NONE, path)?;
            Ok::<_, xen::Error>(
                names
                    .unwrap_or_default()
                    .into_iter()
                    .map(move |name| format!("{path}/{name}"))
                    .collect::<Vec<_>>(),
            )
        };
        let mut found = Vec::new();
        for kind in KINDS {
            for domain in below(&format!("{top}/{}", kind.name()))? {
                for device in below(&domain)? {
                    if let Concerned::One(address) = concerned(top, self.domid, &device) {
                        found.push(address);
                    }
                }
            }
        }
        Ok(found)
    }

    /// Stays with a device until it is gone.
    fn attend(&self, address: Address, pokes: &Receiver<()>, attended: &Attended, tell: &dyn Fn(Told)) {
        let since = Instant::now();
        let mut late = false;
        loop {
            // What comes from here on is looked at again.
            while pokes.try_recv().is_ok() {}
            let next = self.look(address, tell).unwrap_or_else(|error| {
                tell(Told::Failed(address, error));
                Next::Wait
            });
            let poked = match next {
                Next::End => {
                    let mut threads = held(attended);
                    if pokes.try_recv().is_err() {
                        threads.remove(&address);
                        return;
                    }
                    Ok(())
                }
                Next::Untaken if !late => pokes.recv_timeout(LIMIT.saturating_sub(since.elapsed())),
                Next::Untaken | Next::Wait => pokes.recv().map_err(|_| RecvTimeoutError::Disconnected),
            };
            match poked {
                Ok(()) => {}
                Err(RecvTimeoutError::Timeout) => {
                    late = true;
                    tell(Told::Failed(address, self.untaken(address)));
                }
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    fn untaken(&self, address: Address) -> DeviceError {
        let module = address.kind.module().unwrap_or_default();
        let said = format!("{}/error/{}/error", home(self.domid), address.script_path());
        let said = store::text_if_there(&*self.store, &said).ok().flatten();
        let reason =
            said.map_or_else(|| format!("is the module {module} loaded here?"), |said| one_line(&said));
        DeviceError::Backend { address, after: format!("within {} s", LIMIT.as_secs()), reason }
    }

    /// Does what is due for a device.
    fn look(&self, address: Address, tell: &dyn Fn(Told)) -> Result<Next, DeviceError> {
        let system = |source| self.system(source);
        let mut journal = Journal::open(&self.folder, address).map_err(system)?;
        let Some(backend) = self.read(address)? else {
            if journal.phase() == Phase::New {
                journal.remove().map_err(system)?;
            } else {
                // Its records were removed before it was closed; a script may find what it made all the same.
                self.take_away(address, &mut journal, None, tell)?;
                journal.remove().map_err(system)?;
                tell(Told::Disconnected(address));
            }
            return Ok(Next::End);
        };
        // That of a device that was of this place before: its records are gone, and whatever stood behind it with them.
        if journal.begun().is_some_and(|begun| backend.mark.as_deref() != Some(begun.mark.as_str())) {
            journal.restart().map_err(system)?;
        }
        let is_settled = ["connected", "error"].contains(&backend.hotplug_status.as_str());
        if backend.state == state::CLOSED && (!backend.online || self.is_alone(address)?) {
            if journal.phase() != Phase::New || is_settled {
                self.take_away(address, &mut journal, Some(&backend), tell)?;
            }
            self.remove_records(address)?;
            journal.remove().map_err(system)?;
            tell(Told::Disconnected(address));
            return Ok(Next::End);
        }
        if is_settled {
            return Ok(Next::Wait);
        }
        if let Phase::Added(ended) = journal.phase() {
            // Whoever began it did not live to record it.
            self.settle(address, ended.map_err(|reason| failure(address, &journal, reason)), tell)?;
        } else if state::READY.contains(&backend.state.as_str()) {
            self.connect(address, &backend, &mut journal, tell)?;
        } else if backend.state == state::INITIALISING {
            return Ok(Next::Untaken);
        }
        Ok(Next::Wait)
    }

    /// Runs the script that connects a device.
    fn connect(
        &self,
        address: Address,
        backend: &Backend,
        journal: &mut Journal,
        tell: &dyn Fn(Told),
    ) -> Result<(), DeviceError> {
        let Some(path) = backend.script.as_deref().map(script_path) else {
            let reason = "none is recorded".to_owned();
            let error = DeviceError::Script { address, script: "script".to_owned(), reason };
            return self.settle(address, Err(error), tell);
        };
        let script = Script { address, path, gatewaydev: backend.gatewaydev.clone() };
        if self.begin(&script, journal)? {
            let ended = journal.run(&script, Action::Add);
            self.settle(address, ended, tell)?;
        }
        Ok(())
    }

    /// Notes which script a device has, before it is run; `false` when the device is gone.
    fn begin(&self, script: &Script, journal: &mut Journal) -> Result<bool, DeviceError> {
        let mark = Uuid::new_v4().to_string();
        let Script { address, path, gatewaydev } = script.clone();
        journal
            .begin(Begun { mark: mark.clone(), script: path, gatewaydev })
            .map_err(|source| self.system(source))?;
        Ok(self.write_if_there(address, &[(MARK, &mark)])?)
    }

    fn system(&self, source: io::Error) -> DeviceError {
        DeviceError::System { what: self.folder.display().to_string(), source }
    }

    /// Records how a script ended that was to connect a device, for the driver and for the toolstack.
    fn settle(
        &self,
        address: Address,
        ended: Result<(), DeviceError>,
        tell: &dyn Fn(Told),
    ) -> Result<(), DeviceError> {
        let told = match ended {
            Ok(()) => {
                self.write_if_there(address, &[("hotplug-status", "connected")])?;
                Told::Connected(address)
            }
            Err(error) => {
                let path = format!("{}/hotplug-error", address.backend_path());
                let error = match store::text_if_there(&*self.store, &path)? {
                    Some(said) => {
                        self.write_if_there(address, &[("hotplug-status", "error")])?;
                        with_words(error, Some(said))
                    }
                    None => {
                        let said = error.to_string();
                        let said = one_line(&said);
                        self.write_if_there(
                            address,
                            &[("hotplug-error", &said), ("hotplug-status", "error")],
                        )?;
                        error
                    }
                };
                Told::Failed(address, error)
            }
        };
        tell(told);
        Ok(())
    }

    /// Runs the script that takes a device away, unless it has run. That it fails is told, and no reason to keep the device.
    fn take_away(
        &self,
        address: Address,
        journal: &mut Journal,
        backend: Option<&Backend>,
        tell: &dyn Fn(Told),
    ) -> Result<(), DeviceError> {
        if matches!(journal.phase(), Phase::Removed) {
            return Ok(());
        }
        let script = match (journal.begun(), backend) {
            (Some(Begun { script, gatewaydev, .. }), _) => {
                Script { address, path: script.clone(), gatewaydev: gatewaydev.clone() }
            }
            (None, Some(Backend { script: Some(path), gatewaydev, .. })) => {
                let script = Script { address, path: script_path(path), gatewaydev: gatewaydev.clone() };
                self.begin(&script, journal)?;
                script
            }
            _ => return Ok(()),
        };
        if let Err(error) = journal.run(&script, Action::Remove) {
            tell(Told::Failed(address, error));
        }
        Ok(())
    }

    fn read(&self, address: Address) -> Result<Option<Backend>, xen::Error> {
        let path = address.backend_path();
        let names = ["state", "online", "script", "gatewaydev", "hotplug-status", MARK];
        let paths = names.map(|name| format!("{path}/{name}"));
        let values = self.store.read_all(Transaction::NONE, &paths.each_ref().map(String::as_str))?;
        let text = |value: Option<Vec<u8>>| value.map(|value| String::from_utf8_lossy(&value).into_owned());
        let mut values = values.into_iter().map(text);
        let mut next = || values.next().flatten();
        let (state, online, script) = (next(), next(), next());
        let (gatewaydev, hotplug_status, mark) = (next(), next().unwrap_or_default(), next());
        let online = online.is_some_and(|online| online != "0");
        Ok(state.map(|state| Backend { state, online, script, gatewaydev, hotplug_status, mark }))
    }

    /// Whether a device has no guest's half any more. What is not there cannot be told, by a domain that is not dom0, from
    /// what it may not read; it may read the half that a toolstack made.
    fn is_alone(&self, address: Address) -> Result<bool, xen::Error> {
        match self.store.read(Transaction::NONE, &format!("{}/backend", address.frontend_path())) {
            Ok(_) => Ok(false),
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::PermissionDenied) => {
                Ok(true)
            }
            Err(error) => Err(error),
        }
    }

    /// Writes nodes of a backend's half, unless it was removed meanwhile: nobody would remove them again.
    fn write_if_there(&self, address: Address, nodes: &[(&str, &str)]) -> Result<bool, xen::Error> {
        let path = address.backend_path();
        xen::transaction(&*self.store, |tx| {
            if store::read_if_there(&*self.store, tx, &format!("{path}/state"))?.is_none() {
                return Ok(false);
            }
            for (name, value) in nodes {
                self.store.write(tx, &format!("{path}/{name}"), value.as_bytes())?;
            }
            Ok(true)
        })
    }

    /// Removes a backend's half, and the folders above it as far as they are empty and this domain's to remove; the toolstack
    /// removes the others.
    fn remove_records(&self, address: Address) -> Result<(), xen::Error> {
        let path = address.backend_path();
        store::remove_if_there(&*self.store, Transaction::NONE, &path)?;
        match xen::transaction(&*self.store, |tx| store::remove_with_empty_parents(&*self.store, tx, &path)) {
            Err(error) if error.kind() == ErrorKind::PermissionDenied => Ok(()),
            result => result,
        }
    }
}

/// How a script failed whose end is only known from the journal.
fn failure(address: Address, journal: &Journal, reason: String) -> DeviceError {
    let script = journal.begun().map(|begun| begun.script.clone()).unwrap_or_default();
    DeviceError::Script { address, script, reason }
}

/// Which devices an event of the watch on `top` concerns.
fn concerned(top: &str, backend: DomId, path: &str) -> Concerned {
    let Some(inside) = path.strip_prefix(top).and_then(|inside| inside.strip_prefix('/')) else {
        return Concerned::All;
    };
    let mut parts = inside.split('/');
    let (kind, domid, devid) = (parts.next().unwrap_or_default(), parts.next(), parts.next());
    let Some(kind) = KINDS.into_iter().find(|known| known.name() == kind) else {
        let device = domid.zip(devid).filter(|_| OF_QEMU.contains(&kind));
        return Concerned::Nobody(device.map(|(domid, devid)| format!("{top}/{kind}/{domid}/{devid}")));
    };
    let (Some(domid), Some(devid)) = (domid, devid) else { return Concerned::All };
    let (Ok(number), Ok(device)) = (domid.parse(), devid.parse()) else { return Concerned::Nobody(None) };
    let address = Address { domid: DomId(number), kind, devid: device, backend };
    // Not what parses to a device and is spelled otherwise.
    if format!("{number}/{device}") == format!("{domid}/{devid}") {
        Concerned::One(address)
    } else {
        Concerned::Nobody(None)
    }
}

#[cfg(test)]
mod tests;
