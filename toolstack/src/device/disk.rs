//! A disk: what is attached, and its records.

use super::address::Entries;
use super::{Vdev, script_path, state};
use xen::DomId;

/// The script that libxl runs for a disk unless another is named. Here its work is done in this process; it is
/// recorded, so that libxl can detach what nxl attached.
pub(super) const SCRIPT: &str = "block";

/// The layout of rings that 64-bit PV guests have, and older ones have to be told (`XEN_IO_PROTO_ABI_X86_64`,
/// xen/include/public/io/protocols.h).
const PV_PROTOCOL: &str = "x86_64-abi";

/// A disk to be attached.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Disk {
    /// A regular file with a raw image, or a block device; for a script, whatever that script understands.
    pub target: String,
    /// How the guest sees it.
    pub vdev: Vdev,
    /// The guest cannot write. Any number of qubes may share an image so, and none while somebody writes.
    pub readonly: bool,
    /// The name or id of the domain with the backend; `None` for dom0.
    pub backend: Option<String>,
    /// The script that makes a block device of `target`, instead of what is done here.
    pub script: Option<String>,
    /// Whether the guest may give blocks back; `None` as libxl: if it may write.
    pub discard: Option<bool>,
    /// Whether the image may be opened without the host's cache even where that is known to be unsafe (for qdisk).
    pub direct_io_safe: bool,
    /// Whether the guest trusts the backend.
    pub trusted: bool,
}

impl Disk {
    /// A disk of dom0 with libxl's defaults.
    #[must_use]
    pub fn new(target: impl Into<String>, vdev: Vdev) -> Self {
        Self {
            target: target.into(),
            vdev,
            readonly: false,
            backend: None,
            script: None,
            discard: None,
            direct_io_safe: false,
            trusted: true,
        }
    }

    /// As libxl writes it (libxl_disk.c, device_disk_add); a PV guest is told the layout of its ring.
    pub(super) fn entries(&self, domid: DomId, backend: DomId, pv: bool) -> Entries {
        let flag = |flag: bool| String::from(if flag { "1" } else { "0" });
        let word = |word: &str| word.to_owned();
        let mut back = vec![
            ("params", self.target.clone()),
            ("script", script_path(self.script.as_deref().unwrap_or(SCRIPT))),
            ("frontend-id", domid.to_string()),
            ("online", flag(true)),
            ("removable", flag(false)),
            ("bootable", flag(true)),
            ("state", word(state::INITIALISING)),
            ("dev", word(self.vdev.name())),
            ("type", word("phy")),
            ("mode", word(if self.readonly { "r" } else { "w" })),
            ("device-type", word("disk")),
        ];
        if self.direct_io_safe {
            back.push(("direct-io-safe", flag(true)));
        }
        back.push(("discard-enable", flag(self.discard.unwrap_or(!self.readonly))));
        back.push(("specification", word("xen")));
        let mut front = vec![
            ("backend-id", backend.to_string()),
            ("state", word(state::INITIALISING)),
            ("virtual-device", self.vdev.devid().to_string()),
            ("device-type", word("disk")),
            ("trusted", flag(self.trusted)),
        ];
        if pv {
            front.push(("protocol", word(PV_PROTOCOL)));
        }
        Entries { front, read_only_front: Vec::new(), back, hotplug: Vec::new() }
    }
}
