//! Which domains there are, and whose agents are there to be connected to: by xenstore's watches.

use crate::name::Name;
use crate::readable::readable;
use crate::wire::CONTROL_PATH;
use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use tokio::io::unix::AsyncFd;
use xen::{Transaction, WatchEvent, Xenstore};

/// A watch's token: the list of domains, or something in it, has changed.
const LIST: &str = "domains";
/// The beginning of a watch's token: an agent may have come. The domain's id follows.
const AGENT: &str = "agent/";

/// What has changed.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Change {
    /// The domains: look at them anew.
    Domains,
    /// The agent of one of them.
    Agent(u16),
}

/// The domains of this host but dom0.
pub(super) struct Domains {
    store: Arc<dyn Xenstore>,
    event: AsyncFd<OwnedFd>,
    /// Each has two watches.
    watched: Vec<u16>,
}

fn name_path(domain: u16) -> String {
    format!("/local/domain/{domain}/name")
}

fn agent_path(domain: u16) -> String {
    format!("/local/domain/{domain}/{CONTROL_PATH}/event-channel")
}

impl Domains {
    /// Begins to watch. Within a runtime.
    pub(super) fn new(store: Arc<dyn Xenstore>) -> io::Result<Self> {
        for special in ["@introduceDomain", "@releaseDomain"] {
            store.watch(special, LIST).map_err(io::Error::from)?;
        }
        let event = readable(store.as_fd())?;
        Ok(Self { store, event, watched: Vec::new() })
    }

    /// Waits for a change.
    pub(super) async fn change(&mut self) -> io::Result<Change> {
        loop {
            while let Some(WatchEvent { token, .. }) = self.store.watch_event().map_err(io::Error::from)? {
                if token == LIST {
                    return Ok(Change::Domains);
                }
                let agent = token.strip_prefix(AGENT).and_then(|domain| domain.parse().ok());
                if let Some(domain) = agent {
                    return Ok(Change::Agent(domain));
                }
            }
            self.event.readable().await?.clear_ready();
        }
    }

    /// The domains that have a name by which a qube can be known; where two have the same, the younger.
    pub(super) fn list(&mut self) -> io::Result<BTreeMap<Name, u16>> {
        let listed = self.store.directory(Transaction::NONE, "/local/domain").map_err(io::Error::from)?;
        let mut domains: Vec<u16> =
            listed.iter().filter_map(|domain| domain.parse().ok()).filter(|domain| *domain != 0).collect();
        domains.sort_unstable();
        for gone in self.watched.iter().filter(|domain| !domains.contains(domain)) {
            // A watch that cannot be ended tells of what nobody asks for.
            let _ = self.store.unwatch(&name_path(*gone), LIST);
            let _ = self.store.unwatch(&agent_path(*gone), &format!("{AGENT}{gone}"));
        }
        for new in domains.iter().filter(|domain| !self.watched.contains(domain)) {
            self.store.watch(&name_path(*new), LIST).map_err(io::Error::from)?;
            self.store.watch(&agent_path(*new), &format!("{AGENT}{new}")).map_err(io::Error::from)?;
        }
        self.watched = domains;
        let paths: Vec<_> = self.watched.iter().map(|domain| name_path(*domain)).collect();
        let paths: Vec<_> = paths.iter().map(String::as_str).collect();
        let names = self.store.read_all(Transaction::NONE, &paths).map_err(io::Error::from)?;
        let named = names.into_iter().zip(&self.watched).filter_map(|(name, domain)| {
            let name = Name::new(&String::from_utf8(name?).ok()?).ok()?;
            (name != "dom0").then_some((name, *domain))
        });
        Ok(named.collect())
    }
}
