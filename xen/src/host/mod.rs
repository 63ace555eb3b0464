//! The machine we run on, through Xen's C libraries; and as a toolstack uses it.

mod connection;
mod control;
mod diagnostics;
mod event;
mod foreign;
mod grant;
mod hypercall;
mod logger;
mod release;
mod scheduling;
mod store;
mod suspension;

use crate::{
    DomainControl, Error, EventChannels, ForeignMemory, GrantMap, GrantShare, Platform, Result, Xenstore,
};
pub use event::Events;
pub use grant::{Map, Share};
use std::sync::Arc;

/// The machine we run on. Opening what it does not have fails with
/// [`Unavailable`](crate::ErrorKind::Unavailable) or [`NotFound`](crate::ErrorKind::NotFound).
#[derive(Clone, Copy, Debug, Default)]
pub struct Host;

impl Platform for Host {
    fn grant_share(&self) -> Result<Arc<dyn GrantShare>> {
        Ok(Arc::new(Share::open()?))
    }
    fn grant_map(&self) -> Result<Arc<dyn GrantMap>> {
        Ok(Arc::new(Map::open()?))
    }
    fn event_channels(&self) -> Result<Arc<dyn EventChannels>> {
        Ok(Arc::new(Events::open()?))
    }
    fn xenstore(&self) -> Result<Arc<dyn Xenstore>> {
        Ok(Arc::new(store::Store::open()?))
    }
    fn domain_control(&self) -> Result<Arc<dyn DomainControl>> {
        Ok(Arc::new(control::Control::open()?))
    }
    fn foreign_memory(&self) -> Result<Arc<dyn ForeignMemory>> {
        Ok(Arc::new(foreign::Foreign::open()?))
    }
}

/// The machine we run on, as a toolstack in its control domain uses it: xenstored is talked to over the wire, where
/// [`Host`] goes through libxenstore. That saves each program a library, and lets many requests be under way at once.
///
/// A toolstack builds domains and does not talk to them: grants and event channels are [`Unavailable`](crate::ErrorKind::Unavailable)
/// here, so that its programs need not load the libraries of [`Host`] for them.
#[derive(Clone, Copy, Debug, Default)]
pub struct Dom0;

fn for_host<T>(what: &'static str) -> Result<T> {
    Err(Error::errno(what, "not of a toolstack's platform: use Host", libc::ENOSYS))
}

impl Platform for Dom0 {
    fn grant_share(&self) -> Result<Arc<dyn GrantShare>> {
        for_host("xengntshr_open")
    }
    fn grant_map(&self) -> Result<Arc<dyn GrantMap>> {
        for_host("xengnttab_open")
    }
    fn event_channels(&self) -> Result<Arc<dyn EventChannels>> {
        for_host("xenevtchn_open")
    }
    fn xenstore(&self) -> Result<Arc<dyn Xenstore>> {
        Ok(Arc::new(connection::Connection::open()?))
    }
    fn domain_control(&self) -> Result<Arc<dyn DomainControl>> {
        Host.domain_control()
    }
    fn foreign_memory(&self) -> Result<Arc<dyn ForeignMemory>> {
        Host.foreign_memory()
    }
}
