//! `nxl network-attach`, `network-detach` and `network-list`, in `xl`'s columns.

use crate::command::AttachedOptions;
use crate::error::Error;
use crate::xl_conf::XlConf;
use serde_json::{Value, json};
use std::io::{self, Write};
use toolstack::device::{AttachedNic, DeviceError, Mac, Release, spec};
use toolstack::qubes::{QubeError, Qubes};

pub(crate) fn attach(qubes: &Qubes, which: &str, parts: &[String]) -> Result<(), Error> {
    let qube = qubes.find(which)?;
    let mut nic = spec::nic(parts)?;
    XlConf::open()?.complete_nic(&mut nic);
    Ok(qubes.attach_nic(&qube, &nic)?)
}

pub(crate) fn detach(qubes: &Qubes, which: &str, device: &str) -> Result<(), Error> {
    let qube = qubes.find(which)?;
    let missing = || DeviceError::NotAttached { domid: qube.info.domid, device: device.to_owned() };
    let devid = if device.contains(':') {
        let mac: Mac = device.parse()?;
        let nic = qubes.list_nics(&qube)?.into_iter().find(|nic| nic.mac == mac);
        nic.ok_or_else(missing)?.address.devid
    } else {
        device.parse().map_err(|_| missing())?
    };
    Ok(qubes.detach_nic(&qube, devid, Release::AskedThenForced)?)
}

pub(crate) fn list(qubes: &Qubes, options: &AttachedOptions) -> Result<(), Error> {
    let selected =
        options.qubes.iter().map(|which| qubes.find(which)).collect::<Result<Vec<_>, QubeError>>()?;
    let mut text = format!(
        "{:<3} {:<2} {:<17} {:<6} {:<5} {:<6} {:>5}/{:<5} {:<30}\n",
        "Idx", "BE", "Mac Addr.", "handle", "state", "evt-ch", "tx-", "rx-ring-ref", "BE-path"
    );
    let mut objects = Vec::new();
    for qube in selected {
        for nic in qubes.list_nics(&qube)? {
            text += &row(&nic);
            objects.push(object(&nic));
        }
    }
    if options.json {
        text = format!("{:#}\n", Value::Array(objects));
    }
    io::stdout().write_all(text.as_bytes()).map_err(Error::Output)
}

fn object(nic: &AttachedNic) -> Value {
    json!({
        "domid": nic.address.domid.0,
        "devid": nic.address.devid,
        "mac": nic.mac.to_string(),
        "backend": nic.address.backend.0,
        "state": nic.state,
        "event_channel": nic.event_channel,
        "tx_ring_ref": nic.ring_refs.0,
        "rx_ring_ref": nic.ring_refs.1,
        "backend_path": nic.backend_path,
    })
}

fn row(nic: &AttachedNic) -> String {
    format!(
        "{:<3} {:<2} {}{:>6} {:>5} {:>6} {:>5}/{:<11} {:<30}\n",
        nic.address.devid,
        nic.address.backend.0,
        nic.mac,
        nic.address.devid,
        number(nic.state),
        number(nic.event_channel),
        number(nic.ring_refs.0),
        number(nic.ring_refs.1),
        nic.backend_path
    )
}

/// A number as `xl` shows it, where there may be none.
pub(crate) fn number(number: Option<u32>) -> i64 {
    number.map_or(-1, i64::from)
}

#[cfg(test)]
mod tests {
    use super::*;
    use toolstack::device::{Address, Kind};
    use xen::DomId;

    #[test]
    fn a_row_has_xls_columns() {
        let address = Address { domid: DomId(3), kind: Kind::Vif, devid: 1, backend: DomId(0) };
        let nic = AttachedNic {
            address,
            mac: Mac([0, 0x16, 0x3e, 0, 0, 1]),
            backend_path: address.backend_path(),
            state: Some(4),
            event_channel: None,
            ring_refs: (Some(768), Some(769)),
        };
        let expected =
            "1   0  00:16:3e:00:00:01     1     4     -1   768/769         /local/domain/0/backend/vif/3/1\n";
        assert_eq!(row(&nic), expected);
    }
}
