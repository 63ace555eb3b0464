use super::*;
use crate::mock::Machine;
use crate::{Platform, transaction};
use std::io::{Read, Write};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

/// Answers on the wire as xenstored would, out of the mock. It reads `at_once` requests before it answers the first.
struct Server {
    wire: UnixStream,
    store: Arc<dyn Xenstore>,
    at_once: usize,
}

/// A request as it arrived: type, id, transaction, payload.
type Arrived = (u32, u32, u32, Vec<u8>);

impl Server {
    fn read(&mut self) -> Option<Arrived> {
        let mut header = [0; HEADER];
        self.wire.read_exact(&mut header).ok()?;
        let [kind, id, tx, len] =
            [0, 4, 8, 12].map(|at| u32::from_ne_bytes(header[at..at + 4].try_into().unwrap()));
        let mut payload = vec![0; len as usize];
        self.wire.read_exact(&mut payload).ok()?;
        Some((kind, id, tx, payload))
    }

    fn answer(&self, kind: u32, tx: u32, payload: &[u8]) -> Result<Vec<u8>> {
        let parts: Vec<String> = payload.split(|byte| *byte == 0).map(text).collect();
        let (tx, path) = (Transaction(tx), &*parts[0]);
        let number = |at: usize| parts[at].parse::<u64>().unwrap();
        let ok = |()| strings(&["OK"]);
        match kind {
            sys::xsd_sockmsg_type_XS_READ => self.store.read(tx, path),
            sys::xsd_sockmsg_type_XS_WRITE => self.store.write(tx, path, &payload[path.len() + 1..]).map(ok),
            sys::xsd_sockmsg_type_XS_MKDIR => self.store.mkdir(tx, path).map(ok),
            sys::xsd_sockmsg_type_XS_RM => self.store.remove(tx, path).map(ok),
            sys::xsd_sockmsg_type_XS_DIRECTORY => {
                let names = self.store.directory(tx, path)?;
                let list = strings(&names.iter().map(String::as_str).collect::<Vec<_>>());
                if list.len() > PAYLOAD_MAX {
                    return Err(Error::errno("xs_directory", path, libc::E2BIG));
                }
                Ok(list)
            }
            sys::xsd_sockmsg_type_XS_DIRECTORY_PART => {
                let names = self.store.directory(tx, path)?;
                let mut list = strings(&names.iter().map(String::as_str).collect::<Vec<_>>());
                list.push(0);
                let rest = &list[number(1) as usize..];
                let mut part = strings(&["7"]);
                // Whole names, as xenstored sends them.
                let end = rest.len().min(1_000);
                let end = rest[..end].iter().rposition(|byte| *byte == 0).unwrap() + 1;
                part.extend(&rest[..end]);
                Ok(part)
            }
            sys::xsd_sockmsg_type_XS_GET_PERMS => {
                let permissions = self.store.permissions(tx, path)?.to_string();
                Ok(strings(&permissions.split(',').collect::<Vec<_>>()))
            }
            sys::xsd_sockmsg_type_XS_SET_PERMS => {
                let mut entries = parts[1..].iter().filter_map(|entry| permission(entry));
                let (owner, others) = entries.next().unwrap();
                let permissions = Permissions { owner, others, domains: entries.collect() };
                self.store.set_permissions(tx, path, &permissions).map(ok)
            }
            sys::xsd_sockmsg_type_XS_TRANSACTION_START => {
                self.store.begin().map(|tx| strings(&[&tx.0.to_string()]))
            }
            sys::xsd_sockmsg_type_XS_TRANSACTION_END => self.store.end(tx, path == "T").map(ok),
            sys::xsd_sockmsg_type_XS_WATCH => self.store.watch(path, &parts[1]).map(ok),
            sys::xsd_sockmsg_type_XS_UNWATCH => self.store.unwatch(path, &parts[1]).map(ok),
            sys::xsd_sockmsg_type_XS_INTRODUCE => {
                let domid = DomId(number(0) as u16);
                self.store.introduce(domid, Gfn(number(1)), Port(number(2) as u32)).map(ok)
            }
            sys::xsd_sockmsg_type_XS_RELEASE => self.store.release(DomId(number(0) as u16)).map(ok),
            sys::xsd_sockmsg_type_XS_IS_DOMAIN_INTRODUCED => {
                let known = self.store.is_introduced(DomId(number(0) as u16))?;
                Ok(strings(&[if known { "T" } else { "F" }]))
            }
            kind => panic!("a request of type {kind}"),
        }
    }

    fn send(&mut self, kind: u32, id: u32, tx: u32, payload: &[u8]) {
        let mut bytes = Vec::new();
        for word in [kind, id, tx, payload.len() as u32] {
            bytes.extend(word.to_ne_bytes());
        }
        bytes.extend(payload);
        // In two halves, as a stream may deliver it. The client may be gone.
        let (first, second) = bytes.split_at(bytes.len() / 2);
        let _ = self.wire.write_all(first).and_then(|()| self.wire.write_all(second));
    }

    fn run(mut self) {
        loop {
            let mut requests = Vec::new();
            for _ in 0..self.at_once {
                match self.read() {
                    Some(request) => requests.push(request),
                    None => return,
                }
            }
            for (kind, id, tx, payload) in requests {
                let (kind, answer) = match self.answer(kind, tx, &payload) {
                    Ok(answer) => (kind, answer),
                    Err(error) => {
                        let errno = match error.kind() {
                            ErrorKind::NotFound => libc::ENOENT,
                            ErrorKind::AlreadyExists => libc::EEXIST,
                            ErrorKind::Again => libc::EAGAIN,
                            ErrorKind::PermissionDenied => libc::EACCES,
                            ErrorKind::Exhausted => libc::E2BIG,
                            _ => libc::EINVAL,
                        };
                        let (name, _) = ERRORS.iter().find(|(_, known)| *known == errno).unwrap();
                        (sys::xsd_sockmsg_type_XS_ERROR, strings(&[name]))
                    }
                };
                // Events come before the answer here, which is where they are the most in the way.
                while let Some(event) = self.store.watch_event().unwrap() {
                    let payload = strings(&[&event.path, &event.token]);
                    self.send(sys::xsd_sockmsg_type_XS_WATCH_EVENT, 0, 0, &payload);
                }
                self.send(kind, id, tx, &answer);
            }
        }
    }
}

fn served_by(machine: &Machine, at_once: usize) -> Connection {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let store = machine.domain(DomId::DOM0).xenstore().unwrap();
    thread::spawn(move || Server { wire: theirs, store, at_once }.run());
    Connection::over(ours.into(), false)
}

/// A connection whose other end says nothing but `bytes`.
fn told(bytes: &[u8]) -> (Connection, UnixStream) {
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    theirs.write_all(bytes).unwrap();
    (Connection::over(ours.into(), false), theirs)
}

fn message(kind: u32, id: u32, len: u32, payload: &[u8]) -> Vec<u8> {
    let words = [kind, id, 0, len].into_iter().flat_map(u32::to_ne_bytes);
    words.chain(payload.iter().copied()).collect()
}

fn is_readable(store: &Connection) -> bool {
    let mut fds = [PollFd::from_borrowed_fd(store.as_fd(), PollFlags::IN)];
    poll(&mut fds, Some(&Timespec { tv_sec: 5, tv_nsec: 0 })).unwrap() == 1
}

#[test]
fn the_tree_is_the_same_through_the_wire_and_without() {
    let machine = Machine::new();
    let wire = served_by(&machine, 1);
    let direct = machine.domain(DomId::DOM0).xenstore().unwrap();
    let none = Transaction::NONE;
    let permissions = Permissions::readable_by(DomId::DOM0, DomId(3));
    wire.write(none, "/test/a", b"one\0two").unwrap();
    wire.mkdir(none, "/test/b").unwrap();
    wire.set_permissions(none, "/test/b", &permissions).unwrap();
    assert_eq!(direct.read(none, "/test/a").unwrap(), b"one\0two");
    for store in [&wire as &dyn Xenstore, &*direct] {
        assert_eq!(store.read(none, "/test/a").unwrap(), b"one\0two");
        assert_eq!(store.read(none, "/test/b").unwrap(), b"");
        assert_eq!(store.directory(none, "/test").unwrap(), ["a", "b"]);
        assert_eq!(store.directory(none, "/test/a").unwrap(), [""; 0]);
        assert_eq!(store.permissions(none, "/test/b").unwrap(), permissions);
        assert_eq!(store.read(none, "/test/c").unwrap_err().kind(), ErrorKind::NotFound);
        assert_eq!(store.remove(none, "/test/c").unwrap_err().kind(), ErrorKind::NotFound);
        assert_eq!(store.read(none, "/a\0b").unwrap_err().kind(), ErrorKind::Invalid);
        let values = store.read_all(none, &["/test/a", "/test/c", "/test/b"]).unwrap();
        assert_eq!(values, [Some(b"one\0two".to_vec()), None, Some(Vec::new())]);
    }
    transaction(&wire, |tx| wire.write(tx, "/test/a", b"three")).unwrap();
    assert_eq!(direct.read(none, "/test/a").unwrap(), b"three");
    let tx = wire.begin().unwrap();
    wire.remove(tx, "/test").unwrap();
    wire.end(tx, false).unwrap();
    assert_eq!(direct.directory(none, "/test").unwrap(), ["a", "b"]);
    let tx = wire.begin().unwrap();
    wire.write(tx, "/test/a", b"four").unwrap();
    direct.write(none, "/test/a", b"five").unwrap();
    assert_eq!(wire.end(tx, true).unwrap_err().kind(), ErrorKind::Again);
    wire.remove(none, "/test").unwrap();
    assert_eq!(direct.read(none, "/test").unwrap_err().kind(), ErrorKind::NotFound);
}

#[test]
fn changes_are_sent_before_the_first_answer_is_read() {
    const CHANGES: usize = 50;
    let machine = Machine::new();
    let wire = served_by(&machine, CHANGES);
    let paths: Vec<String> = (0..CHANGES).map(|n| format!("/test/{n}")).collect();
    let mut changes: Vec<Change<'_>> = paths.iter().map(|path| Change::Write(path, b"value")).collect();
    let permissions = Permissions::private(DomId(3));
    changes[1] = Change::SetPermissions("/test/0", &permissions);
    changes[2] = Change::Remove("/test/none");
    wire.apply(Transaction::NONE, &changes).unwrap();
    let direct = machine.domain(DomId::DOM0).xenstore().unwrap();
    assert_eq!(direct.directory(Transaction::NONE, "/test").unwrap().len(), CHANGES - 2);
    assert_eq!(direct.permissions(Transaction::NONE, "/test/0").unwrap(), permissions);
    let paths: Vec<&str> = paths.iter().map(String::as_str).collect();
    let values = wire.read_all(Transaction::NONE, &paths).unwrap();
    assert_eq!(values.iter().filter(|value| value.as_deref() == Some(b"value")).count(), CHANGES - 2);
}

#[test]
fn the_first_change_that_fails_is_told_and_the_connection_goes_on() {
    let machine = Machine::new();
    let wire = served_by(&machine, 1);
    let permissions = Permissions::private(DomId(3));
    let (none, long) = (Transaction::NONE, vec![0; PAYLOAD_MAX]);
    let changes = [Change::Write("/a", b"1"), Change::SetPermissions("/b", &permissions)];
    let error = wire.apply(none, &changes).unwrap_err();
    assert_eq!((error.call(), error.kind()), ("xs_set_permissions", ErrorKind::NotFound));
    let changes = [Change::Write("/a", b"1"), Change::Write("/a", &long), Change::Write("/b", b"2")];
    assert_eq!(wire.apply(none, &changes).unwrap_err().kind(), ErrorKind::Exhausted);
    assert_eq!(wire.read(none, "/b").unwrap(), b"2");
}

#[test]
fn more_than_goes_into_the_socket_at_once_is_sent_in_parts() {
    let machine = Machine::new();
    let wire = served_by(&machine, 1);
    let value = [7; 2_000];
    let paths: Vec<String> = (0..200).map(|n| format!("/test/{n}")).collect();
    let changes: Vec<Change<'_>> = paths.iter().map(|path| Change::Write(path, &value)).collect();
    wire.apply(Transaction::NONE, &changes).unwrap();
    let paths: Vec<&str> = paths.iter().map(String::as_str).collect();
    let values = wire.read_all(Transaction::NONE, &paths).unwrap();
    assert!(values.iter().all(|found| found.as_deref() == Some(&value[..])));
}

#[test]
fn a_folder_of_more_names_than_a_message_holds_is_listed() {
    let machine = Machine::new();
    let wire = served_by(&machine, 1);
    let direct = machine.domain(DomId::DOM0).xenstore().unwrap();
    for n in 0..1_500 {
        direct.write(Transaction::NONE, &format!("/test/name-{n}"), b"").unwrap();
    }
    let names = wire.directory(Transaction::NONE, "/test").unwrap();
    assert_eq!(names, direct.directory(Transaction::NONE, "/test").unwrap());
    assert_eq!(names.len(), 1_500);
    let both = wire.directory_all(Transaction::NONE, &["/none", "/test"]).unwrap();
    assert_eq!(both, [None, Some(names)]);
}

#[test]
fn an_event_that_comes_with_an_answer_is_kept_and_the_descriptor_is_readable() {
    let machine = Machine::new();
    let wire = served_by(&machine, 1);
    wire.watch("/test", "token").unwrap();
    let event = |path: &str| WatchEvent { path: path.to_owned(), token: "token".to_owned() };
    assert!(is_readable(&wire), "the event that each watch begins with");
    assert_eq!(wire.watch_event().unwrap(), Some(event("/test")));
    assert_eq!(wire.watch_event().unwrap(), None);
    for n in 0..2 {
        wire.write(Transaction::NONE, &format!("/test/{n}"), b"").unwrap();
        wire.read(Transaction::NONE, "/test/0").unwrap();
    }
    assert!(is_readable(&wire));
    let mut events = Vec::new();
    while let Some(event) = wire.watch_event().unwrap() {
        events.push(event);
    }
    assert!(events.contains(&event("/test/0")) && events.contains(&event("/test/1")), "{events:?}");
    let mut fds = [PollFd::from_borrowed_fd(wire.as_fd(), PollFlags::IN)];
    assert_eq!(poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).unwrap(), 0, "nothing is left");
    wire.unwatch("/test", "token").unwrap();
    wire.write(Transaction::NONE, "/test/3", b"").unwrap();
    assert_eq!(wire.watch_event().unwrap(), None);
}

#[test]
fn an_event_that_comes_while_nobody_asks_is_seen() {
    let (wire, mut theirs) = told(b"");
    wire.set_up_alarm().unwrap();
    let waiting = thread::spawn(move || {
        let begun = Instant::now();
        assert!(is_readable(&wire));
        (wire.watch_event().unwrap(), begun.elapsed())
    });
    thread::sleep(Duration::from_millis(20));
    theirs.write_all(&message(sys::xsd_sockmsg_type_XS_WATCH_EVENT, 0, 5, b"/a\0t\0")).unwrap();
    let (event, waited) = waiting.join().unwrap();
    assert_eq!(event, Some(WatchEvent { path: "/a".to_owned(), token: "t".to_owned() }));
    assert!(waited < Duration::from_secs(5));
}

#[test]
fn what_xenstored_may_not_send_ends_the_connection() {
    const OK: u32 = sys::xsd_sockmsg_type_XS_WRITE;
    let answers: [(&str, Vec<u8>); 5] = [
        ("another id", message(OK, 2, 3, b"OK\0")),
        ("a length beyond all limits", message(OK, 1, u32::MAX, b"OK\0")),
        ("a length just beyond", message(OK, 1, PAYLOAD_MAX as u32 + 1, &[0; PAYLOAD_MAX + 1])),
        ("an event without a token", message(sys::xsd_sockmsg_type_XS_WATCH_EVENT, 0, 3, b"/a\0")),
        ("half a header", vec![0; 7]),
    ];
    for (what, bytes) in answers {
        let (wire, theirs) = told(&bytes);
        theirs.shutdown(std::net::Shutdown::Write).unwrap();
        let error = wire.write(Transaction::NONE, "/a", b"").unwrap_err();
        assert_eq!(error.call(), "xs_write", "{what}");
        // Whatever follows cannot be told apart from the rest of that.
        let again = wire.read(Transaction::NONE, "/a").unwrap_err();
        assert!(again.to_string().contains("not connected"), "{what}: {again}");
        assert!(wire.watch_event().is_err(), "{what}");
    }
    let (wire, _theirs) = told(&message(sys::xsd_sockmsg_type_XS_READ, 1, 3, b"OK\0"));
    let error = wire.write(Transaction::NONE, "/a", b"").unwrap_err();
    assert!(error.to_string().contains("answered a request of type 11 with 2"), "{error}");
    let (wire, _theirs) = told(&message(OK, 1, 3, b"OK\0"));
    assert!(wire.watch_event().is_err(), "an answer to no request");
}

#[test]
fn the_kernels_device_answers_a_watch_by_its_id_or_by_0() {
    const WATCH: u32 = sys::xsd_sockmsg_type_XS_WATCH;
    for (id, is_device, good) in
        [(1, true, true), (0, true, true), (2, true, false), (1, false, true), (0, false, false)]
    {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        theirs.write_all(&message(WATCH, id, 3, b"OK\0")).unwrap();
        let wire = Connection::over(ours.into(), is_device);
        assert_eq!(wire.watch("/a", "t").is_ok(), good, "{id} {is_device}");
    }
}

#[test]
fn an_error_of_a_name_that_is_not_known_is_one() {
    let (wire, _theirs) = told(&message(sys::xsd_sockmsg_type_XS_ERROR, 1, 7, b"EOTHER\0"));
    assert_eq!(wire.read(Transaction::NONE, "/a").unwrap_err().kind(), ErrorKind::Invalid);
}

#[test]
fn the_types_of_messages_are_those_of_the_header() {
    assert_eq!([sys::xsd_sockmsg_type_XS_DIRECTORY, sys::xsd_sockmsg_type_XS_DIRECTORY_PART], [1, 22]);
    assert_eq!((PAYLOAD_MAX, strings(&["a", ""])), (4_096, b"a\0\0".to_vec()));
}
