//! The two keys in xenstore through which a client finds a server.
//!
//! `<path>/ring-ref` is the grant reference of the control page, `<path>/event-channel` the server's port; both decimal,
//! both readable for the client's domain and for nobody else. They are written without a transaction, of which stock
//! xenstored allows a domain ten at once: the port comes last, so whoever sees it sees the reference that belongs to it.

use crate::{Error, Result};
use std::sync::Arc;
use xen::{DomId, ErrorKind, GrantRef, Permissions, Port, Transaction, Xenstore};

const NONE: Transaction = Transaction::NONE;

/// What the keys say.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Rendezvous {
    pub(crate) gref: GrantRef,
    pub(crate) port: Port,
}

pub(crate) fn gref_key(path: &str) -> String {
    format!("{path}/ring-ref")
}

pub(crate) fn port_key(path: &str) -> String {
    format!("{path}/event-channel")
}

/// The id of the domain that this program runs in, as xenstored knows it.
///
/// # Errors
/// xenstored does not answer, or with something that is no domain id.
pub fn own_domid(store: &dyn Xenstore) -> Result<DomId> {
    let path = "domid";
    let value = store.read(NONE, path)?;
    let number = decimal(&value).and_then(|number| u16::try_from(number).ok());
    number.map(DomId).ok_or_else(|| bad_key(path, &value))
}

/// A server's keys, removed when this is dropped.
pub(crate) struct Published {
    store: Arc<dyn Xenstore>,
    path: String,
    rendezvous: Rendezvous,
}

impl Published {
    /// Writes the keys of `server` for `client` under `path`.
    pub(crate) fn new(
        store: Arc<dyn Xenstore>,
        path: &str,
        (server, client): (DomId, DomId),
        rendezvous: Rendezvous,
    ) -> Result<Self> {
        let path = path.to_owned();
        // Of a server that was killed there may be keys left: without the port a client takes no notice of them.
        removed(store.remove(NONE, &port_key(&path)))?;
        let published = Self { store, path, rendezvous };
        let Rendezvous { gref, port } = rendezvous;
        let permissions = Permissions::readable_by(server, client);
        for (key, value) in
            [(gref_key(&published.path), gref.to_string()), (port_key(&published.path), port.to_string())]
        {
            published.store.write(NONE, &key, value.as_bytes())?;
            published.store.set_permissions(NONE, &key, &permissions)?;
        }
        Ok(published)
    }

    /// Removes the keys, and their directory if nothing else is in it; unless another server has replaced them.
    pub(crate) fn remove(&self) -> Result<()> {
        let store = &*self.store;
        let (gref_key, port_key) = (gref_key(&self.path), port_key(&self.path));
        let value = |key: &str| store.read(NONE, key).ok().and_then(|value| decimal(&value));
        let replaced = value(&gref_key).is_some_and(|gref| gref != self.rendezvous.gref.0)
            || value(&port_key).is_some_and(|port| port != self.rendezvous.port.0);
        if replaced {
            return Ok(());
        }
        let keys = removed(store.remove(NONE, &port_key)).and(removed(store.remove(NONE, &gref_key)));
        match store.directory(NONE, &self.path) {
            Ok(names) if names.is_empty() => removed(store.remove(NONE, &self.path))?,
            _ => {}
        }
        keys
    }
}

/// To remove what is not there is a success.
fn removed(result: xen::Result<()>) -> Result<()> {
    match result {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error.into()),
        _ => Ok(()),
    }
}

impl Drop for Published {
    fn drop(&mut self) {
        // Whoever wants to know closes the channel explicitly.
        let _ = self.remove();
    }
}

/// Reads the keys that `server` has for us; [`Error::NoServer`] when they are not there, or not (yet) for us to read.
pub(crate) fn find(store: &dyn Xenstore, server: DomId, path: &str) -> Result<Rendezvous> {
    let read = |key: String| {
        let value = store.read(NONE, &key).map_err(|error| match error.kind() {
            ErrorKind::NotFound | ErrorKind::PermissionDenied => {
                Error::NoServer { domid: server, path: key.clone() }
            }
            _ => error.into(),
        })?;
        let number = decimal(&value).filter(|number| *number != 0);
        number.ok_or_else(|| bad_key(&key, &value))
    };
    let port = Port(read(port_key(path))?);
    Ok(Rendezvous { gref: GrantRef(read(gref_key(path))?), port })
}

fn bad_key(path: &str, value: &[u8]) -> Error {
    const SHOWN: usize = 32;
    let value = String::from_utf8_lossy(&value[..value.len().min(SHOWN)]).into_owned();
    Error::BadKey { path: path.to_owned(), value }
}

/// A number as libxenvchan writes it: digits and nothing else.
fn decimal(value: &[u8]) -> Option<u32> {
    let digits = value.iter().all(u8::is_ascii_digit);
    std::str::from_utf8(value).ok().filter(|_| digits)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use xen::Platform;
    use xen::mock::{Domain, Machine};

    const SERVER: DomId = DomId(1);
    const CLIENT: DomId = DomId(2);
    const PATH: &str = "data/vchan/2/100";
    const HERE: Rendezvous = Rendezvous { gref: GrantRef(8), port: Port(3) };

    fn publish(server: &Domain, rendezvous: Rendezvous) -> Result<Published> {
        Published::new(server.xenstore()?, PATH, (SERVER, CLIENT), rendezvous)
    }

    fn keys(machine: &Machine) -> Vec<String> {
        let lines = machine.inventory().into_iter();
        lines.filter(|line| line.starts_with("/local/domain/1/data/vchan/2/")).collect()
    }

    #[test]
    fn the_keys_are_libxenvchans_and_go() {
        let machine = Machine::new();
        let published = publish(&machine.domain(SERVER), HERE).unwrap();
        assert_eq!(
            keys(&machine),
            [
                "/local/domain/1/data/vchan/2/100 = \"\" (n1)",
                "/local/domain/1/data/vchan/2/100/event-channel = \"3\" (n1,r2)",
                "/local/domain/1/data/vchan/2/100/ring-ref = \"8\" (n1,r2)"
            ]
        );
        let store = machine.domain(CLIENT).xenstore().unwrap();
        let path = format!("/local/domain/1/{PATH}");
        assert_eq!(find(&*store, SERVER, &path).unwrap(), HERE);
        published.remove().unwrap();
        assert!(keys(&machine).is_empty());
        assert!(matches!(find(&*store, SERVER, &path), Err(Error::NoServer { domid: SERVER, .. })));
        published.remove().unwrap();
    }

    #[test]
    fn a_third_domain_does_not_find_the_server() {
        let machine = Machine::new();
        let _published = publish(&machine.domain(SERVER), HERE).unwrap();
        let store = machine.domain(DomId(3)).xenstore().unwrap();
        let found = find(&*store, SERVER, &format!("/local/domain/1/{PATH}"));
        assert!(matches!(found, Err(Error::NoServer { .. })));
    }

    #[test]
    fn no_transaction_is_opened() {
        let machine = Machine::new();
        drop(publish(&machine.domain(SERVER), HERE).unwrap());
        assert_eq!(machine.counts().xenstore_transactions(), 0);
    }

    #[test]
    fn the_keys_of_a_successor_and_what_else_is_there_stay() {
        let machine = Machine::new();
        let server = machine.domain(SERVER);
        let store = server.xenstore().unwrap();
        let first = publish(&server, HERE).unwrap();
        let second = publish(&server, Rendezvous { gref: GrantRef(9), port: Port(4) }).unwrap();
        drop(first);
        assert_eq!(store.read(NONE, &gref_key(PATH)).unwrap(), b"9");
        store.write(NONE, &format!("{PATH}/note"), b"mine").unwrap();
        drop(second);
        assert_eq!(store.directory(NONE, PATH).unwrap(), ["note"]);
    }

    #[test]
    fn the_keys_of_a_killed_server_are_replaced() {
        let machine = Machine::new();
        let server = machine.domain(SERVER);
        let store = server.xenstore().unwrap();
        store.write(NONE, &gref_key(PATH), b"9").unwrap();
        store.write(NONE, &port_key(PATH), b"4").unwrap();
        let _published = publish(&server, HERE).unwrap();
        let store = machine.domain(CLIENT).xenstore().unwrap();
        assert_eq!(find(&*store, SERVER, &format!("/local/domain/1/{PATH}")).unwrap(), HERE);
    }

    #[test]
    fn keys_that_are_no_numbers_are_refused_with_their_value() {
        let machine = Machine::new();
        let server = machine.domain(SERVER);
        let store = server.xenstore().unwrap();
        let _published = publish(&server, HERE).unwrap();
        for value in
            ["", "0", "-1", "+8", " 8", "8 ", "8\0", "0x8", "4294967296", "\u{fffd}", &"9".repeat(99)]
        {
            for key in [gref_key(PATH), port_key(PATH)] {
                let before = store.read(NONE, &key).unwrap();
                store.write(NONE, &key, value.as_bytes()).unwrap();
                let found = find(&*store, SERVER, PATH);
                let shown: String = value.chars().take(32).collect();
                assert!(
                    matches!(&found, Err(Error::BadKey { value, .. }) if *value == shown),
                    "{value:?}: {found:?}"
                );
                store.write(NONE, &key, &before).unwrap();
            }
        }
    }

    #[test]
    fn a_failure_at_any_step_leaves_no_key() {
        let machine = Machine::new();
        let server = machine.domain(SERVER);
        server.xenstore().unwrap().mkdir(NONE, "data/vchan/2").unwrap();
        let before = keys(&machine);
        for nth in 0.. {
            machine.fail(None, nth, ErrorKind::Other);
            let result = publish(&server, HERE);
            let failed = machine.clear_failures() == 0;
            assert_eq!(result.is_err(), failed);
            drop(result);
            assert_eq!(keys(&machine), before, "after a failure of call {nth}");
            if !failed {
                return;
            }
        }
    }
}
