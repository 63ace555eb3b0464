//! Many channels over few descriptors.

use crate::keys::own_domid;
use crate::liveness::Sighting;
use crate::port::Bell;
use crate::wait::Waiter;
use crate::watches::Watches;
use crate::{Channel, ConnectOptions, Connector, Error, ListenOptions, Listener, Result};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::SeqCst;
use std::sync::{Arc, OnceLock, Weak};
use std::thread::{self, JoinHandle};
use xen::{
    DomId, DomainControl, ErrorKind, EventChannels, ForeignMemory, GrantMap, GrantShare, Platform, Port,
    Xenstore,
};

/// Any number of channels over one handle of event channels, one for each kind of grant, and one connection to xenstored:
/// six descriptors, where each channel of its own has up to five.
///
/// A thread of the hub's takes the events of all its channels, and wakes the thread or the task that waits for each. So
/// its channels need no reactor: [`poll_recv`](Channel::poll_recv) and its kin work under any executor, and
/// `AsyncChannel` under tokio's. What blocks, blocks. Silent channels cost nothing but their memory: whether a domain still
/// exists is asked once for all channels to it.
///
/// A channel of a hub has no descriptor: [`Channel::event_fd`] is `None`. A blocking operation that has to sleep is woken by
/// way of the hub's thread, some microseconds later than that of a channel of its own.
///
/// The hub lives as long as one of its channels does.
///
/// ```
/// use vchan::{ConnectOptions, Hub, ListenOptions};
/// use xen::{DomId, mock::Machine};
///
/// let machine = Machine::new();
/// let (vault, work) = (Hub::open(machine.domain(DomId(1)))?, Hub::open(machine.domain(DomId(2)))?);
/// let mut ends = Vec::new();
/// for n in 0..10 {
///     let path = format!("data/vchan/2/{n}");
///     let listener = vault.listen(DomId(2), &path, &ListenOptions::default())?;
///     let client = work.connect(DomId(1), &path, &ConnectOptions::default())?;
///     ends.push((listener.accept()?, client));
/// }
/// for (server, client) in &mut ends {
///     client.send_all(b"which?").map_err(|partial| partial.error)?;
///     let mut said = [0; 6];
///     server.recv_exact(&mut said).map_err(|partial| partial.error)?;
///     assert_eq!(&said, b"which?");
/// }
/// # Ok::<(), vchan::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Hub {
    switchboard: Arc<Switchboard>,
}

impl Hub {
    /// A hub for channels of the domain that this program runs in.
    ///
    /// # Errors
    /// When event channels or xenstore are not to be had, or no thread.
    pub fn open(platform: impl Platform + 'static) -> Result<Self> {
        Ok(Self { switchboard: Switchboard::new(Box::new(platform))? })
    }

    /// As [`Listener::open`].
    ///
    /// # Errors
    /// As [`Listener::open`].
    pub fn listen(&self, client: DomId, path: &str, options: &ListenOptions) -> Result<Listener> {
        Listener::open_through(&self.switchboard.handles, Some(&self.switchboard), client, path, options)
    }

    /// As [`Channel::connect`].
    ///
    /// # Errors
    /// As [`Channel::connect`].
    pub fn connect(&self, server: DomId, path: &str, options: &ConnectOptions) -> Result<Channel> {
        self.connector(server, path, options)?.connect()
    }

    /// As [`Connector::new`].
    ///
    /// # Errors
    /// As [`Connector::new`].
    pub fn connector(&self, server: DomId, path: &str, options: &ConnectOptions) -> Result<Connector> {
        Connector::through(&self.switchboard.handles, Some(&self.switchboard), server, path, options)
    }
}

/// What the channels of a hub share.
pub(crate) struct Switchboard {
    own: DomId,
    handles: Handles,
    watches: Arc<Watches>,
    lines: Arc<Lines>,
    bell: Bell,
    operator: Mutex<Option<JoinHandle<()>>>,
    sightings: Mutex<HashMap<DomId, Arc<Sighting>>>,
}

impl Switchboard {
    fn new(platform: Box<dyn Platform>) -> Result<Arc<Self>> {
        let (store, events) = (platform.xenstore()?, platform.event_channels()?);
        let handles = Handles { platform, store, events, share: OnceLock::new(), map: OnceLock::new() };
        let lines = Arc::new(Lines {
            events: Arc::clone(&handles.events),
            waiters: Mutex::default(),
            ending: AtomicBool::new(false),
        });
        let own = own_domid(&*handles.store)?;
        let bell = Bell::hang(&handles.events, own)?;
        let operator = {
            let lines = Arc::clone(&lines);
            let thread = thread::Builder::new().name("vchan-hub".to_owned());
            thread.spawn(move || lines.operate()).map_err(|source| Error::System { call: "clone", source })?
        };
        Ok(Arc::new(Self {
            watches: Watches::new(Arc::clone(&handles.store)),
            own,
            handles,
            lines,
            bell,
            operator: Mutex::new(Some(operator)),
            sightings: Mutex::default(),
        }))
    }

    /// The domain that all its channels are of.
    pub(crate) fn own(&self) -> DomId {
        self.own
    }

    pub(crate) fn watches(&self) -> &Arc<Watches> {
        &self.watches
    }

    /// Where those look who have a channel to a domain, before they ask whether it lives.
    pub(crate) fn sighting(&self, domid: DomId) -> Arc<Sighting> {
        Arc::clone(self.sightings.lock().entry(domid).or_default())
    }
}

impl Drop for Switchboard {
    fn drop(&mut self) {
        self.lines.ending.store(true, SeqCst);
        let rung = self.bell.ring();
        // The last channel may have been dropped by a task that the thread itself woke. And where the bell cannot be
        // rung, the thread sleeps for ever, in a handle that it keeps.
        if let Some(operator) = self.operator.lock().take()
            && rung.is_ok()
            && operator.thread().id() != thread::current().id()
        {
            // It cannot panic but by a waker that does, which said so then.
            let _ = operator.join();
        }
    }
}

impl fmt::Debug for Switchboard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Switchboard").field("lines", &self.lines.waiters.lock().len()).finish_non_exhaustive()
    }
}

/// A platform whose every handle is the same one.
struct Handles {
    platform: Box<dyn Platform>,
    store: Arc<dyn Xenstore>,
    events: Arc<dyn EventChannels>,
    // A hub that only serves, or only connects, needs just one of these.
    share: OnceLock<Arc<dyn GrantShare>>,
    map: OnceLock<Arc<dyn GrantMap>>,
}

/// What is in the cell, or else what is opened; should two open it at once, both get the first one.
fn opened<T: ?Sized>(
    cell: &OnceLock<Arc<T>>,
    open: impl FnOnce() -> xen::Result<Arc<T>>,
) -> xen::Result<Arc<T>> {
    match cell.get() {
        Some(handle) => Ok(Arc::clone(handle)),
        None => {
            let handle = open()?;
            Ok(Arc::clone(cell.get_or_init(|| handle)))
        }
    }
}

impl Platform for Handles {
    fn grant_share(&self) -> xen::Result<Arc<dyn GrantShare>> {
        opened(&self.share, || self.platform.grant_share())
    }
    fn grant_map(&self) -> xen::Result<Arc<dyn GrantMap>> {
        opened(&self.map, || self.platform.grant_map())
    }
    fn event_channels(&self) -> xen::Result<Arc<dyn EventChannels>> {
        Ok(Arc::clone(&self.events))
    }
    fn xenstore(&self) -> xen::Result<Arc<dyn Xenstore>> {
        Ok(Arc::clone(&self.store))
    }
    fn domain_control(&self) -> xen::Result<Arc<dyn DomainControl>> {
        self.platform.domain_control()
    }
    fn foreign_memory(&self) -> xen::Result<Arc<dyn ForeignMemory>> {
        self.platform.foreign_memory()
    }
}

/// Who is to hear of which port.
struct Lines {
    events: Arc<dyn EventChannels>,
    waiters: Mutex<HashMap<Port, Weak<Waiter>>>,
    ending: AtomicBool,
}

impl Lines {
    /// Takes events and hands them on, until the hub goes.
    fn operate(&self) {
        loop {
            match self.events.pending() {
                Ok(port) => {
                    if self.ending.load(SeqCst) {
                        return;
                    }
                    // Before anybody looks at the shared page, so that what happens after that look is a new event. Fails
                    // only for a port that was closed meanwhile.
                    let _ = self.events.unmask(port);
                    // An event of a channel that is not on the board yet is for nobody: it looks when it comes.
                    let waiter = self.waiters.lock().get(&port).and_then(Weak::upgrade);
                    if let Some(waiter) = waiter {
                        waiter.arrived();
                    }
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => {
                    tracing::error!(%error, "a hub takes no events any more");
                    let waiters: Vec<_> = self.waiters.lock().values().filter_map(Weak::upgrade).collect();
                    waiters.iter().for_each(|waiter| waiter.abandon());
                    return;
                }
            }
        }
    }
}

/// A channel's place on a switchboard, until this is dropped.
pub(crate) struct Line {
    switchboard: Arc<Switchboard>,
    port: Port,
}

impl Line {
    pub(crate) fn new(switchboard: &Arc<Switchboard>, waiter: &Arc<Waiter>) -> Self {
        let port = waiter.bound().port();
        switchboard.lines.waiters.lock().insert(port, Arc::downgrade(waiter));
        Self { switchboard: Arc::clone(switchboard), port }
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        self.switchboard.lines.waiters.lock().remove(&self.port);
    }
}

#[cfg(test)]
mod tests;
