//! What a hostile peer can do, driven by bytes: the same functions for the fuzzer (`make fuzz`) and for the tests, which
//! replay the kept inputs and try others for some seconds.
//!
//! Whatever the bytes say: no panic, no hang, no access outside of the pages, and once a channel has said what is wrong with
//! its peer it says nothing else.

use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;
use vchan::{Channel, ConnectOptions, Error, ListenOptions, Listener, State};
use xen::mock::Machine;
use xen::{Access, DomId, GrantRef, Mapping, Permissions, Platform, Transaction};

const SERVER: DomId = DomId(1);
const CLIENT: DomId = DomId(2);
const PATH: &str = "data/hostile";

/// A server that publishes a control page of its own making: `bytes`, from the first one on. Nine references are good,
/// from 8 on, as the mock counts them; the page itself is one of them.
pub(crate) fn page(bytes: &[u8]) {
    let machine = Machine::new();
    let (server, client) = (machine.domain(SERVER), machine.domain(CLIENT));
    let share = server.grant_share().expect("grants");
    let rings = share.share_pages(CLIENT, 8, Access::ReadWrite).expect("pages");
    let page = share.share_pages(CLIENT, 1, Access::ReadWrite).expect("a page");
    let bytes = &bytes[..bytes.len().min(page.memory().len())];
    page.memory().copy_from(0, bytes);
    let port = server.event_channels().expect("events").bind_unbound(CLIENT).expect("a port");
    let store = server.xenstore().expect("xenstore");
    for (key, value) in [("ring-ref", page.grefs()[0].to_string()), ("event-channel", port.to_string())] {
        let path = format!("{PATH}/{key}");
        store.write(Transaction::NONE, &path, value.as_bytes()).expect("a key");
        let permissions = Permissions::readable_by(SERVER, CLIENT);
        store.set_permissions(Transaction::NONE, &path, &permissions).expect("permissions");
    }
    let before = machine.inventory();
    match Channel::connect(&client, SERVER, PATH, &ConnectOptions::default()) {
        Err(_) => assert_eq!(machine.inventory(), before, "who refuses leaves nothing"),
        Ok(mut channel) => {
            channel.set_nonblocking(true);
            use_all(&mut channel);
        }
    }
    drop((rings, page));
}

/// A conversation in whose shared pages somebody writes. Each step takes four bytes: what to do, where, and what to write.
pub(crate) fn traffic(bytes: &[u8]) {
    let machine = Machine::new();
    let (server, client) = (machine.domain(SERVER), machine.domain(CLIENT));
    let options = ListenOptions { read_min: 0, write_min: 4096, ..ListenOptions::default() };
    let listener = Listener::open(&server, CLIENT, PATH, &options).expect("a listener");
    let client_end = Channel::connect(&client, SERVER, PATH, &ConnectOptions::default()).expect("a client");
    let mut ends = [listener.accept().expect("a server"), client_end];
    let raw = control_page(&client);
    let mut spoiled = [false; 2];
    for end in &mut ends {
        end.set_nonblocking(true);
        end.set_timeout(Some(Duration::ZERO));
    }
    let (steps, _) = bytes.as_chunks::<4>();
    for [what, low, high, value] in steps {
        let at = usize::from(u16::from_le_bytes([*low, *high])) % raw.len();
        let which = usize::from(what & 1);
        let len = usize::from(*value) * 13;
        let end = &mut ends[which];
        let result = match what >> 1 & 7 {
            0 => end.send(&vec![*value; len]).map(drop),
            1 => end.recv(&mut vec![0; len]).map(drop),
            2 => end.reserve(1 + len % 900).and_then(|room| room.commit(1)),
            3 => end.peek(1 + len % 900).map(|there| {
                let n = there.len() / 2;
                there.consume(n);
            }),
            4 => end.ready().and_then(|_| end.room()).map(drop),
            5 => end.state().map(drop),
            // Where it hurts most.
            6 => {
                raw.atomic_u8(at % 24).store(*value, SeqCst);
                Ok(())
            }
            _ => {
                raw.copy_from(at, &[*value]);
                Ok(())
            }
        };
        let violation = matches!(result, Err(Error::Violation(_)));
        let moved = what >> 1 & 7 < 6;
        assert!(!spoiled[which] || !moved || violation, "a violation is for ever: {result:?}");
        spoiled[which] |= violation;
    }
}

fn control_page(client: &xen::mock::Domain) -> Mapping {
    let key = format!("/local/domain/{SERVER}/{PATH}/ring-ref");
    let value = client.xenstore().and_then(|store| store.read(Transaction::NONE, &key)).expect("the key");
    let gref = String::from_utf8(value).expect("digits").parse().expect("a number");
    let map = client.grant_map().expect("grants");
    map.map(SERVER, &[GrantRef(gref)], Access::ReadWrite, None).expect("the page")
}

/// Everything that one can do to a channel; it may fail, and must not lie.
fn use_all(channel: &mut Channel) {
    let open = matches!(channel.state(), Ok(State::Open));
    let mut bytes = [0; 3000];
    let got = channel.recv(&mut bytes);
    assert!(got.as_ref().map_or(true, |n| *n <= bytes.len()));
    let _ = channel.send(&bytes);
    let _ = channel.peek(1).map(|there| there.segments().map(|part| part.bytes().count()));
    let _ = channel.reserve(1).map(|mut room| room.segments().map(|part| part.len()));
    let ready = channel.ready();
    assert!(ready.as_ref().map_or(true, |n| *n <= vchan::MAX_RING));
    if let Err(Error::Violation(first)) = ready {
        assert!(matches!(channel.recv(&mut bytes), Err(Error::Violation(again)) if again == first), "{open}");
    }
}
