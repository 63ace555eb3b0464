//! `nxl list`, in `xl list`'s columns.

use crate::command::{ListColumns, ListOptions};
use crate::error::Error;
use serde_json::{Value, json};
use std::io::{self, Write};
use toolstack::qubes::{Qube, Qubes};
use xen::{PAGE_SHIFT, ShutdownReason};

pub(crate) fn list(qubes: &Qubes, options: &ListOptions) -> Result<(), Error> {
    let selected = match options.qubes.as_slice() {
        [] => qubes.list()?,
        which => which.iter().map(|which| qubes.find(which)).collect::<Result<_, _>>()?,
    };
    let text = match options {
        ListOptions { long: true, .. } => details(qubes, &selected)?,
        ListOptions { json: true, .. } => format!("{:#}\n", objects(qubes, &selected)?),
        options => table(qubes, &selected, options.columns, false)?,
    };
    io::stdout().write_all(text.as_bytes()).map_err(Error::Output)
}

/// The letter that `xl list` shows for a shutdown reason.
fn reason_letter(reason: Option<ShutdownReason>) -> char {
    match reason {
        None | Some(ShutdownReason::Poweroff) => '-',
        Some(ShutdownReason::Reboot) => 'r',
        Some(ShutdownReason::Suspend) => 's',
        Some(ShutdownReason::Crash) => 'c',
        Some(ShutdownReason::Watchdog) => 'w',
        Some(ShutdownReason::SoftReset) => 'S',
        Some(ShutdownReason::Unknown(_)) => '?',
    }
}

/// The table of domains, with the memory that is claimed for them when that is what one wants to know.
pub(crate) fn table(
    qubes: &Qubes,
    selected: &[Qube],
    columns: ListColumns,
    claims: bool,
) -> Result<String, Error> {
    let mut text = "Name                                        ID   Mem VCPUs\tState\tTime(s)".to_owned();
    if columns.verbose {
        text += "   UUID                            Reason-Code\tSecurity Label";
    } else if columns.context {
        text += "   Security Label";
    }
    if claims {
        text += "  Claimed";
    }
    if columns.cpupool {
        text += "         Cpupool";
    }
    let nodes = if columns.numa {
        text += " NODE Affinity";
        qubes.control().phys_info()?.nodes
    } else {
        0
    };
    text.push('\n');
    for qube in selected {
        let info = &qube.info;
        text += &row(qube, columns.verbose);
        if claims {
            text += &format!(" {:>5}", info.outstanding_pages >> (20 - PAGE_SHIFT));
        }
        if columns.verbose || columns.context {
            let label = qubes.control().security_label(info.ssidref)?;
            text += &format!(" {:>16}", label.as_deref().unwrap_or("-"));
        }
        if columns.cpupool {
            text += &format!("{:>16}", qubes.cpu_pool_name(info.cpupool)?);
        }
        if columns.numa {
            text += &format!(" {}", qubes.control().node_affinity(info.domid)?.display(nodes));
        }
        text.push('\n');
    }
    Ok(text)
}

/// All but what costs a question: the label, the pool, the nodes.
fn row(qube: &Qube, verbose: bool) -> String {
    let info = &qube.info;
    let flag = |set: bool, letter: char| if set { letter } else { '-' };
    let mib = (info.pages + info.outstanding_pages) >> (20 - PAGE_SHIFT);
    let mut row = format!(
        "{:<40} {:>5} {:>5} {:>5}     {}{}{}{}{}{}  {:>8.1}",
        qube.display_name(),
        info.domid.0,
        mib,
        info.online_vcpus,
        flag(info.running, 'r'),
        flag(info.blocked, 'b'),
        flag(info.paused, 'p'),
        flag(info.shutdown.is_some(), 's'),
        reason_letter(info.shutdown),
        flag(info.dying, 'd'),
        info.cpu_time as f64 / 1e9,
    );
    if verbose {
        let reason = info.shutdown.map_or_else(|| "-".to_owned(), |reason| format!("{:x}", reason.code()));
        row += &format!(" {} {reason:>8}", qube.uuid());
    }
    row
}

/// The rows as JSON.
fn objects(qubes: &Qubes, selected: &[Qube]) -> Result<Value, Error> {
    let nodes = qubes.control().phys_info()?.nodes;
    let mut objects = Vec::new();
    for qube in selected {
        let info = &qube.info;
        let mut object = described(qube);
        object["security_label"] = json!(qubes.control().security_label(info.ssidref)?);
        object["cpupool"] = json!(qubes.cpu_pool_name(info.cpupool)?);
        object["node_affinity"] =
            json!(qubes.control().node_affinity(info.domid)?.display(nodes).to_string());
        objects.push(object);
    }
    Ok(Value::Array(objects))
}

/// All but what costs a question.
fn described(qube: &Qube) -> Value {
    let info = &qube.info;
    // One word of those that xl's letters stand for.
    let state = match info {
        info if info.dying => "dying",
        info if info.shutdown.is_some() => "shutdown",
        info if info.paused => "paused",
        info if info.running => "running",
        info if info.blocked => "blocked",
        _ => "runnable",
    };
    json!({
        "name": qube.name,
        "domid": info.domid.0,
        "uuid": qube.uuid(),
        "memory_kib": (info.pages + info.outstanding_pages) << (PAGE_SHIFT - 10),
        "vcpus": info.online_vcpus,
        "state": state,
        "shutdown_reason": info.shutdown.map(ShutdownReason::code),
        "cpu_time_ns": info.cpu_time,
    })
}

/// What `xl list -l` prints: an array of the configurations as they are now, with their domain ids.
fn details(qubes: &Qubes, selected: &[Qube]) -> Result<String, Error> {
    let mut entries = Vec::new();
    for qube in selected {
        let Some(config) = qubes.current_config(qube)? else { continue };
        entries.push(serde_json::json!({ "domid": qube.info.domid.0, "config": config }));
    }
    let text = serde_json::to_string_pretty(&entries)
        .map_err(|source| Error::Stored { path: "list".to_owned(), source })?;
    Ok(text + "\n")
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use xen::{DomId, DomainInfo, Gfn};

    pub(crate) fn qube() -> Qube {
        Qube {
            info: DomainInfo {
                domid: DomId(3),
                uuid: [0xab; 16],
                hvm: true,
                dying: false,
                paused: false,
                blocked: true,
                running: false,
                shutdown: None,
                pages: 131_079,
                max_pages: 131_328,
                outstanding_pages: 0,
                shared_pages: 0,
                paged_pages: 0,
                cpu_time: 12_340_000_000,
                online_vcpus: 2,
                max_vcpu_id: Some(1),
                shared_info: Gfn(0x1234),
                ssidref: 0,
                cpupool: 0,
            },
            name: Some("work".to_owned()),
        }
    }

    #[test]
    fn as_json_a_row_has_names_and_units() {
        let row = |change: fn(&mut DomainInfo)| {
            let mut qube = qube();
            change(&mut qube.info);
            described(&qube)
        };
        assert_eq!(
            row(|_| ()),
            json!({
                "name": "work", "domid": 3, "uuid": "abababab-abab-abab-abab-abababababab", "memory_kib": 524_316,
                "vcpus": 2, "state": "blocked", "shutdown_reason": null, "cpu_time_ns": 12_340_000_000_u64,
            })
        );
        assert_eq!(row(|info| info.paused = true)["state"], "paused");
        let crashed = row(|info| info.shutdown = Some(ShutdownReason::Crash));
        assert_eq!((&crashed["state"], &crashed["shutdown_reason"]), (&json!("shutdown"), &json!(3)));
    }

    #[test]
    fn a_row_has_xls_columns() {
        let expected = "work                                         3   512     2     -b----      12.3";
        assert_eq!(row(&qube(), false), expected);
    }

    #[test]
    fn a_verbose_row_has_uuid_and_reason() {
        let mut qube = qube();
        qube.info.shutdown = Some(ShutdownReason::Crash);
        let row = row(&qube, true);
        assert!(row.contains("-b-sc-"), "{row}");
        assert!(row.ends_with(" abababab-abab-abab-abab-abababababab        3"), "{row}");
    }
}
