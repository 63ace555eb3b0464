//! A channel, which is a second console with a name: what is attached, and its records.
//!
//! xenconsoled serves first consoles alone. libxl starts a QEMU for channels that dom0 serves; one of another domain's it
//! records, for the toolstack there. (xl 4.17 gives the first channel of a file the number 0, which is the primary
//! console's and which libxl refuses; xl goes on without it. Here it has the number that libxl itself gives it.)

use super::address::Entries;
use super::{DeviceError, state};
use crate::config::ChannelConfig;
use xen::DomId;

/// Bytes that xenconsoled keeps of a console (`LIBXL_XENCONSOLE_LIMIT`).
const LIMIT: &str = "1048576";
/// libxl's `LIBXL_XENCONSOLE_PROTOCOL`.
const PROTOCOL: &str = "vt100";

fn refused(channel: &ChannelConfig, problem: &str) -> DeviceError {
    let spec = channel.name.clone().unwrap_or_else(|| "channel".to_owned());
    DeviceError::Spec { spec, problem: problem.to_owned() }
}

/// Refuses what takes a QEMU, and what a guest could not find.
pub(crate) fn check(channel: &ChannelConfig) -> Result<(), DeviceError> {
    if channel.name.as_deref().is_none_or(str::is_empty) {
        return Err(refused(channel, "a channel needs a name, by which the guest finds it (name=)"));
    }
    if channel.backend.is_none() {
        return Err(of_dom0(channel));
    }
    Ok(())
}

/// The refusal of a channel that dom0 is to serve.
pub(super) fn of_dom0(channel: &ChannelConfig) -> DeviceError {
    refused(
        channel,
        "nxl starts no QEMU, which serves the channels of domain 0 (backend= names another domain)",
    )
}

/// As libxl writes it (libxl_console.c, libxl__device_console_add); `number` is its place among the channels.
pub(super) fn entries(channel: &ChannelConfig, number: u32, domid: DomId, backend: DomId) -> Entries {
    let name = channel.name.clone().unwrap_or_default();
    let (connection, output) = match channel.socket {
        None => ("pty", "pty".to_owned()),
        Some(_) => ("socket", format!("chardev:libxl-channel{number}")),
    };
    let state = || ("state", state::INITIALISING.to_owned());
    let protocol = || ("protocol", PROTOCOL.to_owned());
    let mut back = vec![
        ("frontend-id", domid.to_string()),
        ("online", "1".to_owned()),
        state(),
        protocol(),
        ("name", name.clone()),
        ("connection", connection.to_owned()),
    ];
    back.extend(channel.socket.as_ref().map(|path| ("path", path.display().to_string())));
    Entries {
        front: vec![("backend-id", backend.to_string()), state(), protocol()],
        read_only_front: vec![
            ("name", name),
            ("limit", LIMIT.to_owned()),
            ("type", "ioemu".to_owned()),
            ("output", output),
            ("tty", String::new()),
        ],
        back,
        hotplug: Vec::new(),
    }
}
