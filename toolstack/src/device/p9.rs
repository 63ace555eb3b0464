//! A 9P file system: what is attached, and its records.
//!
//! QEMU serves those of dom0. One of another domain's is recorded for whatever serves it there, as a channel is. (xl 4.17 starts a
//! QEMU in dom0 for these, too, which has nothing to do then; 4.20 does not.)

use super::address::Entries;
use super::{DeviceError, state};
use crate::config::P9Config;
use xen::DomId;

/// Refuses what takes a QEMU.
pub(crate) fn check(p9: &P9Config) -> Result<(), DeviceError> {
    if p9.backend.is_some() { Ok(()) } else { Err(of_dom0(p9)) }
}

/// The refusal of one that dom0 is to serve.
pub(super) fn of_dom0(p9: &P9Config) -> DeviceError {
    let problem =
        "nxl starts no QEMU, which serves the 9P file systems of domain 0 (backend= names another domain)";
    DeviceError::Spec { spec: p9.tag.clone(), problem: problem.to_owned() }
}

/// As libxl writes it (libxl_9pfs.c, libxl__set_xenstore_p9).
pub(super) fn entries(p9: &P9Config, domid: DomId, backend: DomId) -> Entries {
    let state = || ("state", state::INITIALISING.to_owned());
    let back = vec![
        ("frontend-id", domid.to_string()),
        ("online", "1".to_owned()),
        state(),
        ("path", p9.path.display().to_string()),
        ("security_model", p9.security_model.clone()),
    ];
    let front = vec![("backend-id", backend.to_string()), state(), ("tag", p9.tag.clone())];
    Entries { front, back, ..Entries::default() }
}
