//! The machine we run on, through Xen's C libraries; and as a toolstack uses it.

mod connection;
mod control;
mod diagnostics;
mod event;
mod foreign;
mod grant;
mod logger;
mod release;
mod scheduling;
mod store;

use crate::{DomainControl, EventChannels, ForeignMemory, GrantMap, GrantShare, Platform, Result, Xenstore};
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
#[derive(Clone, Copy, Debug, Default)]
pub struct Dom0;

impl Platform for Dom0 {
    fn grant_share(&self) -> Result<Arc<dyn GrantShare>> {
        Host.grant_share()
    }
    fn grant_map(&self) -> Result<Arc<dyn GrantMap>> {
        Host.grant_map()
    }
    fn event_channels(&self) -> Result<Arc<dyn EventChannels>> {
        Host.event_channels()
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
