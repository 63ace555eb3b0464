//! A keyboard and pointer: what is attached, and its records.
//!
//! libxl leaves those of `backend-type=linux` to whoever serves them (the backend is called vinput), and does not wait for
//! it. The others are QEMU's.

use super::address::Entries;
use super::{DeviceError, state};
use crate::config::{VkbBackend, VkbConfig};
use xen::DomId;

/// Refuses what takes a QEMU.
pub(crate) fn check(vkb: &VkbConfig) -> Result<(), DeviceError> {
    if vkb.backend_type == Some(VkbBackend::Linux) {
        return Ok(());
    }
    let problem = "nxl starts no QEMU, which serves it: a vkb of backend-type=linux needs none".to_owned();
    Err(DeviceError::Spec { spec: "backend-type=qemu".to_owned(), problem })
}

/// As libxl writes it (libxl_vkb.c, libxl__set_xenstore_vkb; the names are those of xen/include/public/io/kbdif.h).
pub(super) fn entries(vkb: &VkbConfig, domid: DomId, backend: DomId) -> Entries {
    let mut back = vec![
        ("frontend-id", domid.to_string()),
        ("online", "1".to_owned()),
        ("state", state::INITIALISING.to_owned()),
    ];
    back.extend(vkb.unique_id.clone().map(|id| ("unique-id", id)));
    let flags = [
        ("feature-disable-keyboard", vkb.no_keyboard),
        ("feature-disable-pointer", vkb.no_pointer),
        ("feature-abs-pointer", vkb.absolute_pointer),
        ("feature-raw-pointer", vkb.raw_pointer),
        ("feature-multi-touch", vkb.multi_touch),
    ];
    back.extend(flags.into_iter().filter(|(_, set)| *set).map(|(name, _)| (name, "1".to_owned())));
    if vkb.multi_touch {
        back.extend([
            ("multi-touch-width", vkb.multi_touch_width.to_string()),
            ("multi-touch-height", vkb.multi_touch_height.to_string()),
            ("multi-touch-num-contacts", vkb.multi_touch_contacts.to_string()),
        ]);
    }
    let sizes = [("width", vkb.width), ("height", vkb.height)];
    back.extend(
        sizes.into_iter().filter(|(_, size)| *size != 0).map(|(name, size)| (name, size.to_string())),
    );
    let front = vec![("backend-id", backend.to_string()), ("state", state::INITIALISING.to_owned())];
    Entries { front, back, ..Entries::default() }
}
