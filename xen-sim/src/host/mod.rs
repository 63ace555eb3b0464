//! The host process: what Xen, the kernel's grant and event channel drivers and xenstored are to a real machine.
//!
//! One process for each `XENSIM_DIR`, started by the first handle that is opened there (see [`start`](crate::start)) and
//! gone soon after the last one is closed. It is single-threaded: requests come one at a time, so the tables need no
//! locks and cannot be left half-changed by a client that is killed. It learns of a death as the kernel does, by the
//! descriptor that closes, and does then what is due: unmap notifications, revoking grants, closing ports, ending
//! transactions.

mod grants;
mod ports;
mod snapshot;
mod store;

use crate::memory::SlotTable;
use crate::start::{LOCK_FILE, SOCKET_FILE, STORE_FILE};
use crate::wire::{self, DOMID_FIRST_RESERVED, Domid, Notify, PAGE_SIZE, Reply, Request, Role, StoreRequest};
use grants::{GrantTable, OnUnmap};
use ports::{Bell, PortKey, Ports};
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::event::{EventfdFlags, Timespec, eventfd};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{FlockOperation, flock};
use rustix::io::{Errno, read, retry_on_intr, write};
use rustix::net::{RecvFlags, SocketFlags, accept_with};
use std::collections::{BTreeMap, VecDeque};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::{fs, io};
use store::{Caller, Store};

/// A handle that some process has open.
type ConnectionId = u64;

/// The listening socket, among the ids.
const LISTENER: ConnectionId = 0;
/// How long the host waits for another handle after the last one was closed.
const LINGER: Timespec = Timespec { tv_sec: 0, tv_nsec: 500_000_000 };
/// Pages that one domain may grant at a time unless `XENSIM_GRANT_LIMIT` says otherwise: gntalloc's default.
pub(crate) const DEFAULT_GRANT_LIMIT: u32 = 1024;

/// "The domain that asks" (xen/xen.h).
const DOMID_SELF: Domid = DOMID_FIRST_RESERVED;

/// What a connection is to be used for; nothing until its first request.
#[derive(Debug)]
enum Purpose {
    Unknown,
    Grants,
    Events { bell: Rc<Bell>, restricted_to: Option<Domid> },
    Store { waiting: VecDeque<store::Event>, readable: OwnedFd },
}

#[derive(Debug)]
struct Connection {
    socket: OwnedFd,
    domid: Domid,
    purpose: Purpose,
}

/// A reply and the descriptors that go with it.
struct Answer(Reply, Vec<OwnedFd>);

impl From<Reply> for Answer {
    fn from(reply: Reply) -> Self {
        Self(reply, Vec::new())
    }
}

/// The descriptors as ones that may be sent after their owner is gone.
fn duplicates<'a>(fds: impl IntoIterator<Item = BorrowedFd<'a>>) -> Result<Vec<OwnedFd>, Errno> {
    fds.into_iter().map(|fd| rustix::io::fcntl_dupfd_cloexec(fd, 0)).collect()
}

/// What the host knows, apart from who is connected.
#[derive(Debug)]
struct Tables {
    grants: GrantTable,
    ports: Ports,
    slots: OwnedFd,
    store: Store,
}

impl Tables {
    fn on_unmap(&mut self, domid: Domid, notify: Notify) -> Result<OnUnmap, Errno> {
        if notify.clear_byte.is_some_and(|offset| offset as usize >= PAGE_SIZE) {
            return Err(Errno::INVAL);
        }
        let event = notify.event.map(|port| (domid, port));
        event.map_or(Ok(()), |key| self.ports.hold(key))?;
        Ok(OnUnmap { clear_byte: notify.clear_byte, event })
    }

    /// Runs `made` with a notification that is given up again if that fails.
    fn with_notification<T>(
        &mut self,
        domid: Domid,
        notify: Notify,
        made: impl FnOnce(&mut GrantTable, OnUnmap) -> Result<T, Errno>,
    ) -> Result<T, Errno> {
        let on_unmap = self.on_unmap(domid, notify)?;
        let event = on_unmap.event;
        made(&mut self.grants, on_unmap).inspect_err(|_| {
            if let Some(key) = event {
                self.ports.unhold(key);
            }
        })
    }

    /// The event of an unmap notification.
    fn fire(&mut self, key: PortKey) {
        self.ports.notify(key);
        self.ports.unhold(key);
    }

    fn request(
        &mut self,
        id: ConnectionId,
        domid: Domid,
        purpose: &mut Purpose,
        request: Request,
    ) -> Result<Answer, Errno> {
        match (purpose, request) {
            (purpose @ Purpose::Unknown, Request::Open { role, .. }) => self.open(domid, purpose, role),
            (Purpose::Grants, request) => self.grant_request(id, domid, request),
            (Purpose::Events { bell, restricted_to }, request) => {
                self.event_request(id, domid, bell, restricted_to, request)
            }
            (Purpose::Store { waiting, readable }, Request::Store { transaction, request }) => {
                self.store_request(Caller { connection: id, domid }, waiting, readable, transaction, request)
            }
            _ => Err(Errno::INVAL),
        }
    }

    fn open(&mut self, domid: Domid, purpose: &mut Purpose, role: Role) -> Result<Answer, Errno> {
        self.store.introduce(domid);
        let fds;
        (*purpose, fds) = match role {
            Role::Grants => (Purpose::Grants, Vec::new()),
            Role::Events => {
                let bell = Rc::new(Bell::new()?);
                let fds = duplicates([self.slots.as_fd(), bell.reader(), bell.writer()])?;
                (Purpose::Events { bell, restricted_to: None }, fds)
            }
            Role::Store => {
                let readable = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
                let fds = duplicates([readable.as_fd()])?;
                (Purpose::Store { waiting: VecDeque::new(), readable }, fds)
            }
        };
        Ok(Answer(Reply::Done, fds))
    }

    fn grant_request(&mut self, id: ConnectionId, domid: Domid, request: Request) -> Result<Answer, Errno> {
        match request {
            Request::Share { grantee, count, writable, notify } => {
                let shared = self.with_notification(domid, notify, |grants, on_unmap| {
                    grants.share(id, domid, grantee, count, writable, on_unmap)
                })?;
                let fds = duplicates(self.grants.memory(&shared))?;
                Ok(Answer(Reply::Shared { id: shared.id, first: shared.first }, fds))
            }
            Request::Map { refs, writable, notify } => {
                let mapped = self.with_notification(domid, notify, |grants, on_unmap| {
                    grants.map(id, domid, &refs, writable, on_unmap)
                })?;
                let fds = duplicates(mapped.files())?;
                Ok(Answer(Reply::Mapped { id: mapped.id, runs: mapped.runs }, fds))
            }
            Request::Release { id: held } => {
                let event = self.grants.release(id, held)?;
                event.into_iter().for_each(|key| self.fire(key));
                Ok(Reply::Done.into())
            }
            _ => Err(Errno::INVAL),
        }
    }

    fn event_request(
        &mut self,
        id: ConnectionId,
        domid: Domid,
        bell: &Rc<Bell>,
        restricted_to: &mut Option<Domid>,
        request: Request,
    ) -> Result<Answer, Errno> {
        let allowed = |remote| match *restricted_to {
            Some(only) if Some(only) != remote => Err(Errno::ACCESS),
            _ => Ok(()),
        };
        let bound = |(port, slot)| Reply::Bound { port, slot }.into();
        let meant = |remote| if remote == DOMID_SELF { domid } else { remote };
        match request {
            Request::BindUnbound { remote } => {
                allowed(Some(remote))?;
                let remote = meant(remote);
                self.ports.bind_unbound(id, bell, domid, remote).map(bound)
            }
            Request::BindInterdomain { remote, port } => {
                allowed(Some(remote))?;
                let remote = meant(remote);
                if !self.store.is_introduced(remote) {
                    return Err(Errno::SRCH);
                }
                self.ports.bind_interdomain(id, bell, domid, (remote, port)).map(bound)
            }
            Request::BindVirq { virq } => {
                allowed(None)?;
                self.ports.bind_virq(id, bell, domid, virq).map(bound)
            }
            Request::Unbind { port } => {
                self.ports.unbind(id, (domid, port))?;
                Ok(Reply::Done.into())
            }
            Request::Peer { port } => match self.ports.peer(id, (domid, port))? {
                Some(peer) => {
                    let fds = duplicates([peer.bell.writer()])?;
                    Ok(Answer(Reply::Peer(Some((peer.slot, peer.port, peer.handle))), fds))
                }
                None => Ok(Reply::Peer(None).into()),
            },
            Request::Restrict { domid: only } => {
                if restricted_to.is_some() {
                    return Err(Errno::ACCESS);
                }
                if only == 0 || only >= DOMID_FIRST_RESERVED {
                    return Err(Errno::INVAL);
                }
                *restricted_to = Some(only);
                Ok(Reply::Done.into())
            }
            _ => Err(Errno::INVAL),
        }
    }

    fn store_request(
        &mut self,
        caller: Caller,
        waiting: &mut VecDeque<store::Event>,
        readable: &OwnedFd,
        transaction: u32,
        request: StoreRequest,
    ) -> Result<Answer, Errno> {
        match request {
            StoreRequest::NextEvent => {
                let event = waiting.pop_front().ok_or(Errno::AGAIN)?;
                settle(waiting, readable);
                Ok(Reply::Event { path: event.path, token: event.token }.into())
            }
            StoreRequest::Unwatch { path, token, forget: true } => {
                let about = |event: &store::Event| {
                    event.token == token
                        && event
                            .path
                            .strip_prefix(&path)
                            .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
                };
                waiting.retain(|event| !about(event));
                settle(waiting, readable);
                let request = StoreRequest::Unwatch { path, token, forget: true };
                self.store.request(caller, transaction, request).map(Answer::from)
            }
            request => self.store.request(caller, transaction, request).map(Answer::from),
        }
    }

    /// Takes back all that was done through a handle. `clean`: its process closed it; else it died.
    fn close(&mut self, id: ConnectionId, purpose: &Purpose, clean: bool) {
        match purpose {
            Purpose::Unknown => {}
            Purpose::Grants => {
                for key in self.grants.release_all(id) {
                    self.fire(key);
                }
            }
            Purpose::Events { .. } => self.ports.unbind_all(id, clean),
            Purpose::Store { .. } => self.store.close(id),
        }
    }
}

/// Makes the descriptor readable exactly while there are events.
fn settle(waiting: &VecDeque<store::Event>, readable: &OwnedFd) {
    // Neither can block, and a counter that is 0 already is what reading it is for.
    let _ =
        if waiting.is_empty() { read(readable, &mut [0; 8]) } else { write(readable, &1u64.to_ne_bytes()) };
}

/// The process' state.
#[derive(Debug)]
struct Host {
    dir: PathBuf,
    listener: OwnedFd,
    epoll: OwnedFd,
    connections: BTreeMap<ConnectionId, Connection>,
    next_connection: ConnectionId,
    tables: Tables,
    buffer: Vec<u8>,
}

/// Serves the host in `dir` until nobody needs it any more.
///
/// # Errors
/// What made it impossible.
pub(crate) fn serve(dir: &Path, listener: OwnedFd, grant_limit: u32) -> io::Result<()> {
    rustix::io::ioctl_fionbio(&listener, true)?;
    let epoll = epoll::create(CreateFlags::CLOEXEC)?;
    epoll::add(&epoll, &listener, EventData::new_u64(LISTENER), EventFlags::IN)?;
    let slots = SlotTable::create()?;
    let store = match fs::read_to_string(dir.join(STORE_FILE)) {
        Ok(text) => snapshot::load(&text)
            .map_err(|error| io::Error::other(format!("{}: {error}", dir.join(STORE_FILE).display())))?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => Store::new(),
        Err(error) => return Err(error),
    };
    let tables = Tables {
        grants: GrantTable::new(grant_limit),
        ports: Ports::new(SlotTable::map(&slots)?),
        slots,
        store,
    };
    let mut host = Host {
        dir: dir.to_owned(),
        listener,
        epoll,
        connections: BTreeMap::new(),
        next_connection: LISTENER + 1,
        tables,
        buffer: wire::buffer(),
    };
    host.run()
}

impl Host {
    fn run(&mut self) -> io::Result<()> {
        let mut events: Vec<epoll::Event> = Vec::with_capacity(64);
        loop {
            let patience = self.connections.is_empty().then_some(&LINGER);
            events.clear();
            retry_on_intr(|| {
                epoll::wait(&self.epoll, rustix::buffer::spare_capacity(&mut events), patience)
            })?;
            if events.is_empty() && self.connections.is_empty() && self.leave()? {
                return Ok(());
            }
            for event in &events {
                match event.data.u64() {
                    LISTENER => {
                        self.accept()?;
                    }
                    id => self.receive(id),
                }
            }
        }
    }

    /// Ends the service unless somebody came in between. Whoever connects from now on is refused, or sees the connection
    /// end, and starts a new host as soon as it gets the lock that this one has until it exits.
    fn leave(&mut self) -> io::Result<bool> {
        let Ok(lock) = fs::OpenOptions::new().write(true).open(self.dir.join(LOCK_FILE)) else {
            // The folder is gone, and with it everything that there is to keep.
            return Ok(true);
        };
        if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() || self.accept()? {
            return Ok(false);
        }
        let text = snapshot::save(&self.tables.store);
        let (new, kept) = (self.dir.join("xenstore.new"), self.dir.join(STORE_FILE));
        fs::write(&new, text).and_then(|()| fs::rename(&new, &kept))?;
        fs::remove_file(self.dir.join(SOCKET_FILE))?;
        // The lock goes with the process.
        std::mem::forget(lock);
        Ok(true)
    }

    /// False: nobody was there.
    fn accept(&mut self) -> io::Result<bool> {
        let socket =
            match retry_on_intr(|| accept_with(&self.listener, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK))
            {
                Ok(socket) => socket,
                Err(Errno::AGAIN | Errno::CONNABORTED) => return Ok(false),
                Err(error) => return Err(error.into()),
            };
        let id = self.next_connection;
        self.next_connection += 1;
        epoll::add(&self.epoll, &socket, EventData::new_u64(id), EventFlags::IN)?;
        self.connections.insert(id, Connection { socket, domid: 0, purpose: Purpose::Unknown });
        Ok(true)
    }

    /// Serves one request of a connection, or its end.
    fn receive(&mut self, id: ConnectionId) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        let received = wire::receive::<Request>(&connection.socket, &mut self.buffer, RecvFlags::empty());
        match received {
            Err(Errno::AGAIN) => {}
            Ok(Some((Request::Close, _))) => {
                if let Some(connection) = self.connections.remove(&id) {
                    self.tables.close(id, &connection.purpose, true);
                    // Nothing is left that could depend on the reply's arrival.
                    let _ = wire::send(&connection.socket, &mut self.buffer, &Reply::Done, &[]);
                }
            }
            Ok(Some((request, _))) => {
                if let Request::Open { domid, .. } = &request
                    && matches!(connection.purpose, Purpose::Unknown)
                {
                    connection.domid = *domid;
                }
                let answer = self.tables.request(id, connection.domid, &mut connection.purpose, request);
                let Answer(reply, fds) =
                    answer.unwrap_or_else(|error| Reply::Failed(error.raw_os_error()).into());
                let fds: Vec<BorrowedFd<'_>> = fds.iter().map(AsFd::as_fd).collect();
                let socket = &connection.socket;
                let sent = match wire::send(socket, &mut self.buffer, &reply, &fds) {
                    Err(Errno::TOOBIG) => {
                        let reply = Reply::Failed(Errno::TOOBIG.raw_os_error());
                        wire::send(socket, &mut self.buffer, &reply, &[])
                    }
                    sent => sent,
                };
                if sent.is_err() {
                    self.drop_dead(id);
                }
            }
            // The end, or something that is no request.
            Ok(None) | Err(_) => self.drop_dead(id),
        }
        self.pass_events();
    }

    fn drop_dead(&mut self, id: ConnectionId) {
        if let Some(connection) = self.connections.remove(&id) {
            self.tables.close(id, &connection.purpose, false);
        }
    }

    fn pass_events(&mut self) {
        for event in self.tables.store.take_events() {
            if let Some(Connection { purpose: Purpose::Store { waiting, readable }, .. }) =
                self.connections.get_mut(&event.connection)
                // The same event once is enough, unless it is about a domain.
                && (event.path.starts_with('@') || !waiting.contains(&event))
            {
                waiting.push_back(event);
                settle(waiting, readable);
            }
        }
    }
}
