//! The machine we run on, through Xen's C libraries.

mod control;
mod diagnostics;
mod event;
mod foreign;
mod grant;
mod logger;
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
