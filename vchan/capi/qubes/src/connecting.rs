//! A client whose server has not appeared yet.

use c_channel::{Channel, DomId, Failure, Outcome, Raw, is_alive};
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::sync::Arc;
use xen::{ErrorKind, Platform, Transaction, Xenstore, host::Host};

/// What the events of the watches are called by: the own id changed (the domain was restored), some domain ended, the server's
/// key changed.
const OWN_ID: &str = "domid";
const RELEASED: &str = "release";
const KEY: &str = "key";

pub(crate) struct Connecting {
    store: Arc<dyn Xenstore>,
    server: DomId,
    port: u32,
    /// What a server publishes under, and only it: it names the own domain, whose id may change.
    path: Option<String>,
}

impl Connecting {
    /// Begins to look for the server.
    pub(crate) fn new(server: DomId, port: u32) -> Outcome<Self> {
        if server.0 >= DomId::FIRST_RESERVED {
            return Err(vchan::Error::ReservedDomain(server).into());
        }
        let store = Host.xenstore()?;
        store.watch(OWN_ID, OWN_ID)?;
        store.watch("@releaseDomain", RELEASED)?;
        Ok(Self { store, server, port, path: None })
    }

    /// Readable when it is time to try.
    pub(crate) fn descriptor(&self) -> RawFd {
        self.store.as_fd().as_raw_fd()
    }

    /// Connects, if the server is there. Does not wait.
    pub(crate) fn attempt(&mut self) -> Outcome<Option<(Arc<Channel>, Raw)>> {
        while let Some(event) = self.store.watch_event()? {
            if event.token == OWN_ID
                && let Some(path) = self.path.take()
            {
                self.store.unwatch(&key(&path), KEY)?;
            }
        }
        let path = match &self.path {
            Some(path) => path,
            None => {
                let path = self.find_path()?;
                self.store.watch(&key(&path), KEY)?;
                self.path.insert(path)
            }
        };
        match self.store.read(Transaction::NONE, &key(path)) {
            Ok(value) if value.is_empty() => return Ok(None),
            Ok(_) => {}
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::PermissionDenied) => {
                return if is_alive(self.server)? {
                    Ok(None)
                } else {
                    Err(vchan::Error::PeerDied(self.server).into())
                };
            }
            Err(error) => return Err(error.into()),
        }
        Channel::connect(self.server, path).map(Some)
    }

    fn find_path(&self) -> Outcome<String> {
        let id = self.store.read(Transaction::NONE, OWN_ID)?;
        let id = str::from_utf8(&id).ok().and_then(|id| id.parse().ok()).map(DomId);
        let own =
            id.ok_or_else(|| Failure::new(libc::EPROTO, "the key domid in xenstore is no domain's id"))?;
        if own == self.server {
            return Err(vchan::Error::Loopback(own).into());
        }
        Ok(format!("/local/domain/{}/data/vchan/{own}/{}", self.server, self.port))
    }
}

/// The key that a server writes last. The directory need not be ours to read.
fn key(path: &str) -> String {
    format!("{path}/event-channel")
}
