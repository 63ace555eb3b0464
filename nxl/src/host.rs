//! `nxl uptime`, `vm-list` and `channel-list`.

use crate::command::AttachedOptions;
use crate::error::Error;
use jiff::tz::TimeZone;
use jiff::{Timestamp, Zoned};
use serde_json::{Value, json};
use std::fs;
use std::io::{self, Write};
use std::path::Path;
use toolstack::host::Channel;
use toolstack::qubes::{Qube, Qubes};
use xen::DomId;

/// How long this Linux has been up, in seconds.
const UPTIME: &str = "/proc/uptime";

pub(crate) fn uptime(qubes: &Qubes, short: bool, which: &[String]) -> Result<(), Error> {
    let selected = match which {
        [] => guests(qubes)?,
        which => which.iter().map(|which| qubes.find(which)).collect::<Result<_, _>>()?,
    };
    let now = Timestamp::now();
    let clock = Zoned::new(now, TimeZone::system()).strftime("%H:%M:%S").to_string();
    let mut text = if short { String::new() } else { format!("{:<33} {:>4} {}\n", "Name", "ID", "Uptime") };
    for qube in &selected {
        let seconds = if qube.info.domid == DomId::DOM0 {
            own_uptime()?
        } else {
            let Some(start) = qubes.start_time(qube)? else { continue };
            u64::try_from(now.as_second()).unwrap_or(0).saturating_sub(start)
        };
        let (name, domid) = (qube.display_name(), qube.info.domid.0);
        text += &if short {
            format!(" {clock} up {}, {name} ({domid})\n", duration(seconds, true))
        } else {
            format!("{name:<33} {domid:>4} {}\n", duration(seconds, false))
        };
    }
    io::stdout().write_all(text.as_bytes()).map_err(Error::Output)
}

/// All but stub domains.
fn guests(qubes: &Qubes) -> Result<Vec<Qube>, Error> {
    let mut guests = Vec::new();
    for qube in qubes.list()? {
        if !qubes.is_stub_domain(&qube)? {
            guests.push(qube);
        }
    }
    Ok(guests)
}

fn own_uptime() -> Result<u64, Error> {
    let error = |source| Error::Read { path: Path::new(UPTIME).to_owned(), source };
    let text = fs::read_to_string(UPTIME).map_err(error)?;
    let seconds = text.split('.').next().and_then(|seconds| seconds.parse().ok());
    seconds.ok_or_else(|| error(io::ErrorKind::InvalidData.into()))
}

fn duration(seconds: u64, short: bool) -> String {
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3_600 % 24, seconds / 60 % 60);
    let days = match days {
        0 => String::new(),
        1 => "1 day, ".to_owned(),
        days => format!("{days} days, "),
    };
    let seconds = if short { String::new() } else { format!(":{:02}", seconds % 60) };
    format!("{days}{hours:>2}:{minutes:02}{seconds}")
}

pub(crate) fn vm_list(qubes: &Qubes, as_json: bool) -> Result<(), Error> {
    let mut text = "UUID                                  ID    name\n".to_owned();
    let mut objects = Vec::new();
    for qube in guests(qubes)? {
        text += &format!("{}  {}    {:<30}\n", qube.uuid(), qube.info.domid, qube.display_name());
        objects.push(json!({ "uuid": qube.uuid(), "domid": qube.info.domid.0, "name": qube.name }));
    }
    if as_json {
        text = format!("{:#}\n", Value::Array(objects));
    }
    io::stdout().write_all(text.as_bytes()).map_err(Error::Output)
}

pub(crate) fn channel_list(qubes: &Qubes, options: &AttachedOptions) -> Result<(), Error> {
    let mut text = format!(
        "{:<3} {:<2} {:<5} {:<6} {:>8} {:<10} {:<30}\n",
        "Idx", "BE", "state", "evt-ch", "ring-ref", "connection", ""
    );
    let mut objects = Vec::new();
    for which in &options.qubes {
        let qube = qubes.find(which)?;
        for channel in qubes.channels(&qube)? {
            text += &channel_row(&channel);
            objects.push(channel_object(qube.info.domid, &channel));
        }
    }
    if options.json {
        text = format!("{:#}\n", Value::Array(objects));
    }
    io::stdout().write_all(text.as_bytes()).map_err(Error::Output)
}

fn channel_object(domid: DomId, channel: &Channel) -> Value {
    let Channel { number, backend, state, port, ring, connection, tty } = channel;
    // Where the table has xl's -1.
    let there = |number: &i64| u64::try_from(*number).ok();
    json!({
        "domid": domid.0,
        "number": number,
        "backend": backend,
        "state": there(state),
        "event_channel": there(port),
        "ring_ref": there(ring),
        "connection": connection,
        "tty": tty,
    })
}

fn channel_row(channel: &Channel) -> String {
    let Channel { number, backend, state, port, ring, connection, tty } = channel;
    let tty = tty.as_ref().map_or_else(String::new, |tty| format!("{tty:<30} "));
    format!("{number:<3} {backend:<2} {state:<5} {port:<6} {ring:<8} {connection:<10} {tty}\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_written_as_xl_writes_them() {
        assert_eq!(duration(59, false), " 0:00:59");
        assert_eq!(duration(86_399, false), "23:59:59");
        assert_eq!(duration(86_400 + 3_661, false), "1 day,  1:01:01");
        assert_eq!(duration(3 * 86_400 + 36_000, true), "3 days, 10:00");
    }

    #[test]
    fn a_channel_has_xls_columns() {
        let channel = Channel {
            number: 0,
            backend: 0,
            state: 4,
            port: 9,
            ring: -1,
            connection: "pty".to_owned(),
            tty: Some("/dev/pts/3".to_owned()),
        };
        assert_eq!(
            channel_row(&channel),
            "0   0  4     9      -1       pty        /dev/pts/3                     \n"
        );
    }
}
