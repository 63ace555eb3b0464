//! The machine we run on, as a channel uses it, with the C libraries' own handles and addresses noted on the way: libxenvchan
//! shows them to its callers.

use crate::failure::INTERRUPTED;
use std::os::fd::{AsFd, BorrowedFd};
use std::ptr;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicPtr, AtomicU32};
use std::sync::{Arc, OnceLock};
use xen::host::{Events, Host, Map, Share};
use xen::{
    Access, DomId, DomainControl, Error, EventChannels, ForeignMemory, GrantMap, GrantRef, GrantShare,
    Mapping, Platform, Port, Result, SharedPages, UnmapNotify, Xenstore,
};

/// What lies beneath a channel, for C. Valid as long as the channel.
#[derive(Debug)]
pub struct Raw {
    /// `xengntshr_handle` of a server, `xengnttab_handle` of a client.
    pub grants: *mut u8,
    /// `xenevtchn_handle`.
    pub events: *mut u8,
    /// The local port.
    pub port: u32,
    /// The control page.
    pub page: *mut u8,
    /// Pages of the left ring, if it has some of its own.
    pub left: *mut u8,
    /// The same of the right ring.
    pub right: *mut u8,
}

/// One address that is noted once.
#[derive(Debug, Default)]
struct Note(AtomicPtr<u8>);

impl Note {
    fn take<T>(&self, at: *mut T) {
        self.0.store(at.cast(), Relaxed);
    }

    fn get(&self) -> *mut u8 {
        self.0.load(Relaxed)
    }
}

#[derive(Debug, Default)]
struct Notes {
    grants: Note,
    events: Note,
    port: AtomicU32,
    page: Note,
    /// In the order in which they are shared or mapped: left before right.
    rings: [Note; 2],
}

impl Notes {
    fn ring(&self, memory: &Mapping) {
        if let Some(free) = self.rings.iter().find(|ring| ring.get().is_null()) {
            free.take(memory.as_ptr());
        }
    }

    fn port(&self, port: Port) {
        // The first is the channel's.
        let _ = self.port.compare_exchange(0, port.0, Relaxed, Relaxed);
    }
}

/// [`Host`], for one channel.
#[derive(Default)]
pub(crate) struct Tap {
    notes: Arc<Notes>,
    events: OnceLock<Arc<dyn EventChannels>>,
    store: OnceLock<Arc<dyn Xenstore>>,
}

impl Tap {
    /// The handle of the event channels, once it was opened.
    pub(crate) fn events(&self) -> Option<Arc<dyn EventChannels>> {
        self.events.get().cloned()
    }

    /// The connection to xenstored, once it was opened.
    pub(crate) fn store(&self) -> Option<Arc<dyn Xenstore>> {
        self.store.get().cloned()
    }

    /// What was noted. `left` says whether the left ring has pages of its own: then the first ring's are those.
    pub(crate) fn raw(&self, left: bool) -> Raw {
        let [first, second] = self.notes.rings.each_ref().map(Note::get);
        let (left, right) = if left { (first, second) } else { (ptr::null_mut(), first) };
        Raw {
            grants: self.notes.grants.get(),
            events: self.notes.events.get(),
            port: self.notes.port.load(Relaxed),
            page: self.notes.page.get(),
            left,
            right,
        }
    }
}

impl Platform for Tap {
    fn grant_share(&self) -> Result<Arc<dyn GrantShare>> {
        let inner = Share::open()?;
        self.notes.grants.take(inner.as_raw());
        Ok(Arc::new(Tapped { inner, notes: Arc::clone(&self.notes) }))
    }

    fn grant_map(&self) -> Result<Arc<dyn GrantMap>> {
        let inner = Map::open()?;
        self.notes.grants.take(inner.as_raw());
        Ok(Arc::new(Tapped { inner, notes: Arc::clone(&self.notes) }))
    }

    fn event_channels(&self) -> Result<Arc<dyn EventChannels>> {
        let inner = Events::open()?;
        self.notes.events.take(inner.as_raw());
        let events = Arc::new(Tapped { inner, notes: Arc::clone(&self.notes) });
        Ok(self.events.get_or_init(|| events).clone())
    }

    fn xenstore(&self) -> Result<Arc<dyn Xenstore>> {
        let store = Host.xenstore()?;
        Ok(self.store.get_or_init(|| store).clone())
    }

    // Nothing of dom0's is wanted: so the libraries need neither libxenctrl nor libxenforeignmemory.
    fn domain_control(&self) -> Result<Arc<dyn DomainControl>> {
        Err(Error::errno("xc_interface_open", "", libc::ENOSYS))
    }

    fn foreign_memory(&self) -> Result<Arc<dyn ForeignMemory>> {
        Err(Error::errno("xenforeignmemory_open", "", libc::ENOSYS))
    }
}

struct Tapped<T> {
    inner: T,
    notes: Arc<Notes>,
}

impl GrantShare for Tapped<Share> {
    fn share_pages(&self, domid: DomId, count: usize, access: Access) -> Result<SharedPages> {
        let pages = self.inner.share_pages(domid, count, access)?;
        self.notes.ring(pages.memory());
        Ok(pages)
    }

    fn share_page_notify(&self, domid: DomId, access: Access, notify: UnmapNotify) -> Result<SharedPages> {
        let page = self.inner.share_page_notify(domid, access, notify)?;
        self.notes.page.take(page.memory().as_ptr());
        Ok(page)
    }
}

impl GrantMap for Tapped<Map> {
    fn map(
        &self,
        domid: DomId,
        grefs: &[GrantRef],
        access: Access,
        notify: Option<UnmapNotify>,
    ) -> Result<Mapping> {
        let memory = self.inner.map(domid, grefs, access, notify)?;
        match notify {
            Some(_) => self.notes.page.take(memory.as_ptr()),
            None => self.notes.ring(&memory),
        }
        Ok(memory)
    }
}

impl AsFd for Tapped<Events> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.inner.as_fd()
    }
}

impl EventChannels for Tapped<Events> {
    fn bind_unbound(&self, remote: DomId) -> Result<Port> {
        self.inner.bind_unbound(remote).inspect(|port| self.notes.port(*port))
    }

    fn bind_interdomain(&self, remote: DomId, remote_port: Port) -> Result<Port> {
        self.inner.bind_interdomain(remote, remote_port).inspect(|port| self.notes.port(*port))
    }

    fn unbind(&self, port: Port) -> Result<()> {
        self.inner.unbind(port)
    }

    fn notify(&self, port: Port) -> Result<()> {
        self.inner.notify(port)
    }

    /// A signal ends the sleep of a C caller: its handler may have set a flag that the caller looks at next.
    fn pending(&self) -> Result<Port> {
        self.inner.pending().map_err(|error| match error.kind() {
            xen::ErrorKind::Interrupted => xen::Error::errno(error.call(), "a signal came", INTERRUPTED),
            _ => error,
        })
    }

    fn unmask(&self, port: Port) -> Result<()> {
        self.inner.unmask(port)
    }
}
