//! Grants: pages of one domain that another one may map.

use crate::{Access, DomId, GrantRef, Mapping, Port, Result};

/// What the kernel does when a shared or mapped page goes, also when the process dies: what tells a peer of a death.
///
/// (`xengntshr_share_page_notify`, `xengnttab_map_grant_ref_notify`)
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct UnmapNotify {
    /// The byte of the page, 0 to 4,095, that becomes 0.
    pub clear_byte: Option<u16>,
    /// The local port that is sent an event, after the byte was cleared.
    pub event: Option<Port>,
}

/// Pages of this domain that another domain may map. They stop being shared when this value is dropped; the memory
/// itself lives until the last mapping of it is gone.
#[derive(Debug)]
pub struct SharedPages {
    grefs: Vec<GrantRef>,
    memory: Mapping,
}

impl SharedPages {
    pub(crate) fn new(grefs: Vec<GrantRef>, memory: Mapping) -> Self {
        Self { grefs, memory }
    }

    /// One reference a page, in the order of the pages.
    #[must_use]
    pub fn grefs(&self) -> &[GrantRef] {
        &self.grefs
    }

    /// The pages, contiguous.
    #[must_use]
    pub fn memory(&self) -> &Mapping {
        &self.memory
    }

    /// The references, and the pages. From then on they are shared as long as the mapping lives.
    #[must_use]
    pub fn into_parts(self) -> (Vec<GrantRef>, Mapping) {
        (self.grefs, self.memory)
    }
}

/// Shares pages of this domain.
pub trait GrantShare: Send + Sync {
    /// Shares `count` (at least 1) new zeroed pages with `domid`, who may map them with at most `access`.
    ///
    /// # Errors
    /// [`Exhausted`](crate::ErrorKind::Exhausted) when the driver's limit is reached (Linux' gntalloc: 1,024 pages by
    /// default, parameter `limit`).
    fn share_pages(&self, domid: DomId, count: usize, access: Access) -> Result<SharedPages>;
    /// Shares one new zeroed page with `domid`, with an action for when it goes.
    fn share_page_notify(&self, domid: DomId, access: Access, notify: UnmapNotify) -> Result<SharedPages>;
}

/// Maps pages that other domains share with this one.
pub trait GrantMap: Send + Sync {
    /// Maps the pages that `domid` shares under `grefs` (at least 1), contiguously and in that order.
    ///
    /// An action for when the mapping goes can be given for a single page only.
    ///
    /// # Errors
    /// [`Invalid`](crate::ErrorKind::Invalid) or [`Other`](crate::ErrorKind::Other) when a reference is unknown or
    /// revoked, is not for this domain, or does not allow `access`.
    fn map(
        &self,
        domid: DomId,
        grefs: &[GrantRef],
        access: Access,
        notify: Option<UnmapNotify>,
    ) -> Result<Mapping>;
}
