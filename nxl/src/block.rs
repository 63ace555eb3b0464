//! `nxl block-attach`, `block-detach` and `block-list`, in `xl`'s columns.

use crate::command::AttachedOptions;
use crate::error::Error;
use crate::network::number;
use serde_json::{Value, json};
use std::io::{self, Write};
use toolstack::device::{AttachedDisk, Release, Vdev, spec};
use toolstack::qubes::Qubes;

pub(crate) fn attach(qubes: &Qubes, which: &str, specs: &[String]) -> Result<(), Error> {
    let qube = qubes.find(which)?;
    Ok(qubes.attach_disk(&qube, &spec::disk(specs)?)?)
}

pub(crate) fn detach(qubes: &Qubes, which: &str, vdev: &str, force: bool) -> Result<(), Error> {
    let qube = qubes.find(which)?;
    let release = if force { Release::Forced } else { Release::Asked };
    Ok(qubes.detach_disk(&qube, &Vdev::parse(vdev)?, release)?)
}

pub(crate) fn list(qubes: &Qubes, options: &AttachedOptions) -> Result<(), Error> {
    let mut text = format!(
        "{:<5} {:<3} {:<6} {:<5} {:<6} {:<8} {:<30}\n",
        "Vdev", "BE", "handle", "state", "evt-ch", "ring-ref", "BE-path"
    );
    let mut objects = Vec::new();
    for which in &options.qubes {
        match qubes.find(which) {
            Ok(qube) => {
                for disk in qubes.list_disks(&qube)? {
                    text += &row(&disk);
                    objects.push(object(&disk));
                }
            }
            // As xl: the others are listed all the same, and all is well.
            Err(error) => writeln!(io::stderr(), "nxl: {error}").map_err(Error::Output)?,
        }
    }
    if options.json {
        text = format!("{:#}\n", Value::Array(objects));
    }
    io::stdout().write_all(text.as_bytes()).map_err(Error::Output)
}

fn object(disk: &AttachedDisk) -> Value {
    json!({
        "domid": disk.address.domid.0,
        "vdev": disk.address.devid,
        "backend": disk.address.backend.0,
        "state": disk.state,
        "event_channel": disk.event_channel,
        "ring_ref": disk.ring_ref,
        "backend_path": disk.backend_path,
    })
}

fn row(disk: &AttachedDisk) -> String {
    format!(
        "{:<5} {:<3} {:<6} {:<5} {:<6} {:<8} {:<30}\n",
        disk.address.devid,
        disk.address.backend.0,
        disk.address.domid.0,
        number(disk.state),
        number(disk.event_channel),
        number(disk.ring_ref),
        disk.backend_path
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use toolstack::device::{Address, Kind};
    use xen::DomId;

    #[test]
    fn as_json_what_the_guest_has_not_said_is_null() {
        let address = Address { domid: DomId(3), kind: Kind::Vbd, devid: 51712, backend: DomId(0) };
        let disk = AttachedDisk {
            address,
            backend_path: address.backend_path(),
            state: Some(1),
            event_channel: None,
            ring_ref: None,
        };
        assert_eq!(
            object(&disk),
            json!({
                "domid": 3, "vdev": 51712, "backend": 0, "state": 1, "event_channel": null, "ring_ref": null,
                "backend_path": "/local/domain/0/backend/vbd/3/51712",
            })
        );
    }

    #[test]
    fn a_row_has_xls_columns() {
        let address = Address { domid: DomId(3), kind: Kind::Vbd, devid: 51712, backend: DomId(0) };
        let disk = AttachedDisk {
            address,
            backend_path: address.backend_path(),
            state: Some(4),
            event_channel: Some(15),
            ring_ref: None,
        };
        assert_eq!(
            row(&disk),
            "51712 0   3      4     15     -1       /local/domain/0/backend/vbd/3/51712\n"
        );
    }
}
