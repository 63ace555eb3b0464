//! Xenstore over the wire (xen/io/xs_wire.h, docs/misc/xenstore.txt): xenstored's socket, or the kernel's device where
//! xenstored is elsewhere.
//!
//! A message is 16 bytes, four words in the machine's order (type, request id, transaction, length), and at most 4,096
//! bytes of text. Requests are answered in their order, so that many can be sent before the first answer is read; events
//! of watches come in between and are kept for whoever asks for them.

use crate::store::found;
use crate::{
    Change, DomId, Error, ErrorKind, Gfn, Permission, Permissions, Port, Result, Transaction, WatchEvent,
    Xenstore,
};
use parking_lot::Mutex;
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, epoll, eventfd, poll};
use rustix::net::SendFlags;
use std::collections::VecDeque;
use std::env;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use xen_sys as sys;

/// Where xenstored listens (`xs_daemon_socket`).
const SOCKET: &str = "/run/xenstored/socket";
/// Where the kernel hands on what is written to xenstored, wherever that is.
const DEVICE: &str = "/dev/xen/xenbus";
/// Names another socket or device, for libxenstore as for us.
const VARIABLE: &str = "XENSTORED_PATH";

/// `struct xsd_sockmsg`.
const HEADER: usize = 16;
/// The longest text of a message.
const PAYLOAD_MAX: usize = sys::XENSTORE_PAYLOAD_MAX as usize;
/// So many bytes are sent before an answer is read: far less than a socket holds, so that neither side ever waits for
/// the other with its own buffer full.
const IN_FLIGHT: usize = 32 << 10;

/// The errors that xenstored has names for (`xsd_errors`).
const ERRORS: [(&str, i32); 16] = [
    ("EINVAL", libc::EINVAL),
    ("EACCES", libc::EACCES),
    ("EEXIST", libc::EEXIST),
    ("EISDIR", libc::EISDIR),
    ("ENOENT", libc::ENOENT),
    ("ENOMEM", libc::ENOMEM),
    ("ENOSPC", libc::ENOSPC),
    ("EIO", libc::EIO),
    ("ENOTEMPTY", libc::ENOTEMPTY),
    ("ENOSYS", libc::ENOSYS),
    ("EROFS", libc::EROFS),
    ("EBUSY", libc::EBUSY),
    ("EAGAIN", libc::EAGAIN),
    ("EISCONN", libc::EISCONN),
    ("E2BIG", libc::E2BIG),
    ("EPERM", libc::EPERM),
];

pub(super) struct Connection {
    wire: OwnedFd,
    /// The kernel's device takes one message in each call, was seen to refuse the next before it had answered some, and
    /// answers watches with request id 0 in some versions (drivers/xen/xenbus/xenbus_dev_frontend.c).
    is_device: bool,
    line: Mutex<Line>,
    /// From the first watch on.
    alarm: OnceLock<Alarm>,
}

/// What was read of the wire and not yet been asked for.
#[derive(Default)]
struct Line {
    last_id: u32,
    bytes: Vec<u8>,
    events: VecDeque<WatchEvent>,
    /// Nothing can be said of what comes next: a read failed, or xenstored sent what it should not.
    broken: bool,
}

/// What is readable when an event is there, be it still on the wire or read while an answer was waited for.
struct Alarm {
    both: OwnedFd,
    /// Readable while `events` has any.
    kept: OwnedFd,
}

struct Request {
    call: &'static str,
    kind: u32,
    tx: Transaction,
    payload: Vec<u8>,
}

struct Message {
    kind: u32,
    id: u32,
    payload: Vec<u8>,
}

/// Each ends in a NUL.
fn strings(texts: &[&str]) -> Vec<u8> {
    texts.iter().flat_map(|text| text.bytes().chain([0])).collect()
}

/// The text of a request; for messages.
fn arguments(request: &Request) -> String {
    let end = request.payload.iter().position(|byte| *byte == 0).unwrap_or(request.payload.len());
    String::from_utf8_lossy(&request.payload[..end]).into_owned()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes.strip_suffix(&[0]).unwrap_or(bytes)).into_owned()
}

fn unexpected(what: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.into())
}

impl Line {
    /// The next whole message, if one was read.
    fn next(&mut self) -> io::Result<Option<Message>> {
        let Some((header, rest)) = self.bytes.split_at_checked(HEADER) else { return Ok(None) };
        let (words, _) = header.as_chunks::<4>();
        let [kind, id, _, len] = [0, 1, 2, 3].map(|n| u32::from_ne_bytes(words[n]));
        let len = len as usize;
        if len > PAYLOAD_MAX {
            return Err(unexpected(format!("xenstored sent a message of {len} bytes")));
        }
        let Some(payload) = rest.get(..len) else { return Ok(None) };
        let message = Message { kind, id, payload: payload.to_vec() };
        self.bytes.drain(..HEADER + len);
        Ok(Some(message))
    }

    /// Reads what is there; waits for it, if nothing is.
    fn fill(&mut self, wire: BorrowedFd<'_>) -> io::Result<()> {
        let mut part = [0; HEADER + PAYLOAD_MAX];
        let len = loop {
            match rustix::io::read(wire, &mut part) {
                Err(rustix::io::Errno::INTR) => {}
                result => break result?,
            }
        };
        if len == 0 {
            return Err(io::Error::from_raw_os_error(libc::ECONNRESET));
        }
        self.bytes.extend_from_slice(&part[..len]);
        Ok(())
    }

    /// Keeps an event; whatever else it is is the answer.
    fn sort(&mut self, message: Message) -> io::Result<Option<Message>> {
        if message.kind != sys::xsd_sockmsg_type_XS_WATCH_EVENT {
            return Ok(Some(message));
        }
        let mut parts = message.payload.split(|byte| *byte == 0).map(text);
        let (Some(path), Some(token), Some(_)) = (parts.next(), parts.next(), parts.next()) else {
            return Err(unexpected("xenstored sent an event without path and token"));
        };
        self.events.push_back(WatchEvent { path, token });
        Ok(None)
    }
}

impl Connection {
    pub(super) fn open() -> Result<Self> {
        let named = env::var_os(VARIABLE).map(PathBuf::from);
        let path = match &named {
            Some(path) => path,
            None if Path::new(SOCKET).exists() => Path::new(SOCKET),
            None => Path::new(DEVICE),
        };
        Self::open_at(path).map_err(|error| Error::new("xs_open", path.display().to_string(), error))
    }

    fn open_at(path: &Path) -> io::Result<Self> {
        if path.metadata()?.file_type().is_socket() {
            return Ok(Self::over(UnixStream::connect(path)?.into(), false));
        }
        let device: File = OpenOptions::new().read(true).write(true).open(path)?;
        Ok(Self::over(device.into(), true))
    }

    fn over(wire: OwnedFd, is_device: bool) -> Self {
        Self { wire, is_device, line: Mutex::default(), alarm: OnceLock::new() }
    }

    /// Sends the requests and reads their answers. An error is that of the first that failed.
    fn talk(&self, requests: &[Request]) -> Vec<Result<Vec<u8>>> {
        let mut line = self.line.lock();
        let had = line.events.len();
        let mut answers = Vec::with_capacity(requests.len());
        let mut rest = requests;
        while !rest.is_empty() {
            let mut bytes = 0;
            let mut count = 0;
            for request in rest {
                bytes += HEADER + request.payload.len();
                if count > 0 && (bytes > IN_FLIGHT || self.is_device) {
                    break;
                }
                count += 1;
            }
            let (now, later) = rest.split_at(count);
            self.exchange(&mut line, now, &mut answers);
            rest = later;
        }
        if had == 0 && !line.events.is_empty() {
            self.ring();
        }
        answers
    }

    fn exchange(&self, line: &mut Line, requests: &[Request], answers: &mut Vec<Result<Vec<u8>>>) {
        let fits = |request: &&Request| request.payload.len() <= PAYLOAD_MAX;
        let first = line.last_id.wrapping_add(1);
        let sent = self.send(line, requests.iter().filter(fits));
        let mut id = first;
        for request in requests {
            let answer = if !fits(&request) {
                Err(io::Error::from_raw_os_error(libc::E2BIG))
            } else if line.broken {
                Err(io::Error::from_raw_os_error(libc::ENOTCONN))
            } else if let Err(error) = &sent {
                Err(io::Error::new(error.kind(), error.to_string()))
            } else {
                let answer = self.answer(line, self.ids_of(request, id));
                line.broken = answer.is_err();
                id = id.wrapping_add(1);
                answer.and_then(|message| checked(request, message))
            };
            answers.push(answer.map_err(|error| Error::new(request.call, arguments(request), error)));
        }
        line.broken |= sent.is_err();
    }

    /// The request ids under which the answer may come: kernels of today give a watch's its own, those before gave it 0.
    fn ids_of(&self, request: &Request, id: u32) -> [u32; 2] {
        let by_kernel = [sys::xsd_sockmsg_type_XS_WATCH, sys::xsd_sockmsg_type_XS_UNWATCH];
        if self.is_device && by_kernel.contains(&request.kind) { [id, 0] } else { [id, id] }
    }

    fn send<'a>(&self, line: &mut Line, requests: impl Iterator<Item = &'a Request>) -> io::Result<()> {
        let mut bytes = Vec::new();
        for request in requests {
            line.last_id = line.last_id.wrapping_add(1);
            for word in [request.kind, line.last_id, request.tx.0, request.payload.len() as u32] {
                bytes.extend(word.to_ne_bytes());
            }
            bytes.extend(&request.payload);
        }
        self.put(&bytes)
    }

    fn put(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let sent = if self.is_device {
                rustix::io::write(&self.wire, bytes)
            } else {
                // That xenstored has gone is an error like another, and no signal.
                rustix::net::send(&self.wire, bytes, SendFlags::NOSIGNAL)
            };
            match sent {
                Ok(len) => bytes = &bytes[len..],
                Err(rustix::io::Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(())
    }

    fn answer(&self, line: &mut Line, ids: [u32; 2]) -> io::Result<Message> {
        loop {
            while let Some(message) = line.next()? {
                if let Some(message) = line.sort(message)? {
                    if !ids.contains(&message.id) {
                        let [wanted, _] = ids;
                        return Err(unexpected(format!(
                            "xenstored answered {} instead of {wanted}",
                            message.id
                        )));
                    }
                    return Ok(message);
                }
            }
            line.fill(self.wire.as_fd())?;
        }
    }

    fn one(&self, call: &'static str, kind: u32, tx: Transaction, payload: Vec<u8>) -> Result<Vec<u8>> {
        let request = Request { call, kind, tx, payload };
        let none = || Error::errno(call, "", libc::EINVAL);
        self.talk(&[request]).pop().ok_or_else(none)?
    }

    /// A request whose answer says no more than that it was done.
    fn done(&self, call: &'static str, kind: u32, tx: Transaction, texts: &[&str]) -> Result<()> {
        self.one(call, kind, tx, joined(call, texts)?).map(drop)
    }

    /// Makes the alarm go off. One that was not set up has nobody who listens.
    fn ring(&self) {
        if let Some(alarm) = self.alarm.get() {
            // The counter of an eventfd is full after 2^64 - 2 of these.
            let _ = rustix::io::write(&alarm.kept, &1_u64.to_ne_bytes());
        }
    }

    fn set_up_alarm(&self) -> io::Result<()> {
        if self.alarm.get().is_some() {
            return Ok(());
        }
        let kept = eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?;
        let both = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        for fd in [self.wire.as_fd(), kept.as_fd()] {
            epoll::add(&both, fd, epoll::EventData::new_u64(0), epoll::EventFlags::IN)?;
        }
        // Another thread's, if that was faster.
        let _ = self.alarm.set(Alarm { both, kept });
        Ok(())
    }

    /// The next event that is on the wire already.
    fn look(&self, line: &mut Line) -> io::Result<()> {
        loop {
            while let Some(message) = line.next()? {
                if let Some(message) = line.sort(message)? {
                    return Err(unexpected(format!("xenstored answered {}, which nobody asked", message.id)));
                }
            }
            let mut wire = [PollFd::new(&self.wire, PollFlags::IN)];
            let ready = match poll(&mut wire, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })) {
                Err(rustix::io::Errno::INTR) => 0,
                ready => ready?,
            };
            if ready == 0 || !line.events.is_empty() {
                return Ok(());
            }
            line.fill(self.wire.as_fd())?;
        }
    }
}

/// The payload of an answer that is one to this request.
fn checked(request: &Request, message: Message) -> io::Result<Vec<u8>> {
    if message.kind == sys::xsd_sockmsg_type_XS_ERROR {
        let name = text(&message.payload);
        let known = ERRORS.iter().find(|(known, _)| *known == name);
        return Err(io::Error::from_raw_os_error(known.map_or(libc::EINVAL, |(_, errno)| *errno)));
    }
    if message.kind != request.kind {
        return Err(unexpected(format!(
            "xenstored answered a request of type {} with {}",
            request.kind, message.kind
        )));
    }
    Ok(message.payload)
}

/// The texts as a payload: none may have a NUL, which ends it.
fn joined(call: &'static str, texts: &[&str]) -> Result<Vec<u8>> {
    match texts.iter().find(|text| text.contains('\0')) {
        Some(text) => Err(Error::errno(call, format!("{text:?}"), libc::EINVAL)),
        None => Ok(strings(texts)),
    }
}

fn write_request(tx: Transaction, path: &str, value: &[u8]) -> Result<Request> {
    let call = "xs_write";
    let mut payload = joined(call, &[path])?;
    payload.extend(value);
    Ok(Request { call, kind: sys::xsd_sockmsg_type_XS_WRITE, tx, payload })
}

fn permissions_request(tx: Transaction, path: &str, permissions: &Permissions) -> Result<Request> {
    let call = "xs_set_permissions";
    let mut payload = joined(call, &[path])?;
    payload.extend(permissions.to_string().bytes().map(|byte| if byte == b',' { 0 } else { byte }));
    payload.push(0);
    Ok(Request { call, kind: sys::xsd_sockmsg_type_XS_SET_PERMS, tx, payload })
}

fn path_request(call: &'static str, kind: u32, tx: Transaction, path: &str) -> Result<Request> {
    Ok(Request { call, kind, tx, payload: joined(call, &[path])? })
}

/// `n0` and the like.
fn permission(text: &str) -> Option<(DomId, Permission)> {
    let (letter, domid) = text.split_at_checked(1)?;
    let permission = match letter {
        "n" => Permission::None,
        "r" => Permission::Read,
        "w" => Permission::Write,
        "b" => Permission::Both,
        _ => return None,
    };
    Some((DomId(domid.parse().ok()?), permission))
}

fn names(payload: &[u8]) -> Vec<String> {
    payload.split(|byte| *byte == 0).filter(|name| !name.is_empty()).map(text).collect()
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.alarm.get().map_or(self.wire.as_fd(), |alarm| alarm.both.as_fd())
    }
}

impl Xenstore for Connection {
    fn is_local(&self) -> bool {
        !self.is_device
    }

    fn read(&self, tx: Transaction, path: &str) -> Result<Vec<u8>> {
        let call = "xs_read";
        self.one(call, sys::xsd_sockmsg_type_XS_READ, tx, joined(call, &[path])?)
    }

    fn write(&self, tx: Transaction, path: &str, value: &[u8]) -> Result<()> {
        self.apply(tx, &[Change::Write(path, value)])
    }

    fn mkdir(&self, tx: Transaction, path: &str) -> Result<()> {
        self.done("xs_mkdir", sys::xsd_sockmsg_type_XS_MKDIR, tx, &[path])
    }

    fn remove(&self, tx: Transaction, path: &str) -> Result<()> {
        self.done("xs_rm", sys::xsd_sockmsg_type_XS_RM, tx, &[path])
    }

    fn directory(&self, tx: Transaction, path: &str) -> Result<Vec<String>> {
        let listed = self.directory_all(tx, &[path])?.into_iter().next().flatten();
        listed.ok_or_else(|| Error::errno("xs_directory", path, libc::ENOENT))
    }

    fn permissions(&self, tx: Transaction, path: &str) -> Result<Permissions> {
        let call = "xs_get_permissions";
        let payload = self.one(call, sys::xsd_sockmsg_type_XS_GET_PERMS, tx, joined(call, &[path])?)?;
        let entries: Option<Vec<_>> = names(&payload).iter().map(|entry| permission(entry)).collect();
        let mut entries = entries.unwrap_or_default().into_iter();
        let (owner, others) = entries.next().ok_or_else(|| Error::errno(call, path, libc::EINVAL))?;
        Ok(Permissions { owner, others, domains: entries.collect() })
    }

    fn set_permissions(&self, tx: Transaction, path: &str, permissions: &Permissions) -> Result<()> {
        self.apply(tx, &[Change::SetPermissions(path, permissions)])
    }

    fn apply(&self, tx: Transaction, changes: &[Change<'_>]) -> Result<()> {
        let request = |change: &Change<'_>| match *change {
            Change::Write(path, value) => write_request(tx, path, value),
            Change::SetPermissions(path, permissions) => permissions_request(tx, path, permissions),
            Change::Remove(path) => path_request("xs_rm", sys::xsd_sockmsg_type_XS_RM, tx, path),
        };
        let requests: Vec<Request> = changes.iter().map(request).collect::<Result<_>>()?;
        let answers = self.talk(&requests).into_iter();
        answers.zip(changes).try_for_each(|(answer, change)| match change {
            Change::Remove(_) => found(answer).map(drop),
            _ => answer.map(drop),
        })
    }

    fn read_all(&self, tx: Transaction, paths: &[&str]) -> Result<Vec<Option<Vec<u8>>>> {
        let request = |path: &&str| path_request("xs_read", sys::xsd_sockmsg_type_XS_READ, tx, path);
        let requests: Vec<Request> = paths.iter().map(request).collect::<Result<_>>()?;
        self.talk(&requests).into_iter().map(found).collect()
    }

    fn directory_all(&self, tx: Transaction, paths: &[&str]) -> Result<Vec<Option<Vec<String>>>> {
        let kind = sys::xsd_sockmsg_type_XS_DIRECTORY;
        let request = |path: &&str| path_request("xs_directory", kind, tx, path);
        let requests: Vec<Request> = paths.iter().map(request).collect::<Result<_>>()?;
        let answers = self.talk(&requests).into_iter();
        let list = |(answer, path): (Result<Vec<u8>>, &&str)| match answer {
            // More than a message holds.
            Err(error) if error.kind() == ErrorKind::Exhausted => self.directory_in_parts(tx, path).map(Some),
            answer => Ok(found(answer)?.map(|payload| names(&payload))),
        };
        answers.zip(paths).map(list).collect()
    }

    fn begin(&self) -> Result<Transaction> {
        let call = "xs_transaction_start";
        let kind = sys::xsd_sockmsg_type_XS_TRANSACTION_START;
        let id = text(&self.one(call, kind, Transaction::NONE, strings(&[""]))?);
        match id.parse() {
            Ok(id) if id != 0 => Ok(Transaction(id)),
            _ => Err(Error::errno(call, format!("answered {id:?}"), libc::EINVAL)),
        }
    }

    fn end(&self, tx: Transaction, commit: bool) -> Result<()> {
        let kind = sys::xsd_sockmsg_type_XS_TRANSACTION_END;
        self.done("xs_transaction_end", kind, tx, &[if commit { "T" } else { "F" }])
    }

    fn watch(&self, path: &str, token: &str) -> Result<()> {
        self.set_up_alarm().map_err(|error| Error::new("xs_watch", path, error))?;
        self.done("xs_watch", sys::xsd_sockmsg_type_XS_WATCH, Transaction::NONE, &[path, token])
    }

    fn unwatch(&self, path: &str, token: &str) -> Result<()> {
        self.done("xs_unwatch", sys::xsd_sockmsg_type_XS_UNWATCH, Transaction::NONE, &[path, token])
    }

    fn watch_event(&self) -> Result<Option<WatchEvent>> {
        let call = "xs_check_watch";
        let mut line = self.line.lock();
        let had = !line.events.is_empty();
        if !had {
            if line.broken {
                return Err(Error::errno(call, "", libc::ENOTCONN));
            }
            let seen = self.look(&mut line);
            line.broken = seen.is_err();
            seen.map_err(|error| Error::new(call, "", error))?;
        }
        let event = line.events.pop_front();
        match (had, line.events.is_empty()) {
            (false, false) => self.ring(),
            (true, true) => {
                if let Some(alarm) = self.alarm.get() {
                    // In non-blocking mode: reading an empty one, the only failure there is, changes nothing.
                    let _ = rustix::io::read(&alarm.kept, &mut [0; 8]);
                }
            }
            _ => {}
        }
        Ok(event)
    }

    fn introduce(&self, domid: DomId, ring: Gfn, port: Port) -> Result<()> {
        let texts = [domid.0.to_string(), ring.0.to_string(), port.0.to_string()];
        let texts = [&*texts[0], &*texts[1], &*texts[2]];
        self.done("xs_introduce_domain", sys::xsd_sockmsg_type_XS_INTRODUCE, Transaction::NONE, &texts)
    }

    fn release(&self, domid: DomId) -> Result<()> {
        let kind = sys::xsd_sockmsg_type_XS_RELEASE;
        self.done("xs_release_domain", kind, Transaction::NONE, &[&domid.0.to_string()])
    }

    fn resume(&self, domid: DomId) -> Result<()> {
        let kind = sys::xsd_sockmsg_type_XS_RESUME;
        self.done("xs_resume_domain", kind, Transaction::NONE, &[&domid.0.to_string()])
    }

    fn is_introduced(&self, domid: DomId) -> Result<bool> {
        let kind = sys::xsd_sockmsg_type_XS_IS_DOMAIN_INTRODUCED;
        let payload = strings(&[&domid.0.to_string()]);
        let answer = self.one("xs_is_domain_introduced", kind, Transaction::NONE, payload)?;
        Ok(text(&answer) == "T")
    }
}

impl Connection {
    /// A folder whose names take more than one message, from its beginning again when it changed meanwhile.
    fn directory_in_parts(&self, tx: Transaction, path: &str) -> Result<Vec<String>> {
        let call = "xs_directory_part";
        let mut generation = Vec::new();
        let mut list: Vec<u8> = Vec::new();
        loop {
            let payload = joined(call, &[path, &list.len().to_string()])?;
            let answer = self.one(call, sys::xsd_sockmsg_type_XS_DIRECTORY_PART, tx, payload)?;
            let Some(end) = answer.iter().position(|byte| *byte == 0) else {
                return Err(Error::errno(call, path, libc::EINVAL));
            };
            let (now, part) = (&answer[..end], &answer[end + 1..]);
            if list.is_empty() {
                generation = now.to_vec();
            } else if generation != now {
                list.clear();
                continue;
            }
            list.extend(part);
            // An empty name is the end. (A part that is empty would never come to one.)
            if part.len() <= 1 || list.ends_with(&[0, 0]) {
                return Ok(names(&list));
            }
        }
    }
}

#[cfg(test)]
mod tests;
