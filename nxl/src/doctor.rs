//! `nxl doctor`: whether this host is fit for qubes, and what killed programs have left on it.

use crate::error::Error;
use crate::watch;
use clap::Args;
use nexus::broker::{SETTINGS_FILE, Settings};
use nexus::policy::PolicyFolders;
use nxl_top::figures::figures;
use std::fs;
use std::io::{self, Write};
use std::path::Path;
use toolstack::KernelCache;
use toolstack::checkup::{Finding, HostFiles, Machine, State};
use toolstack::doctor::Leftover;
use toolstack::qubes::Qubes;
use xen::host::Dom0;
use xen::{Platform, Transaction};

const WATCHER: &str = "the watcher";
const AGENT_SETTINGS: &str = "/etc/nexus/dom0.json";

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  nxl doctor
  nxl doctor --repair
  nxl doctor --json

Each line says what was looked at, how it is (ok, unused, wrong), and what to do. --repair loads modules, makes folders and
closes them to others, raises xen-gntalloc's limit, starts the watcher, and removes what is left over; nothing else.

Exit status: 0 all is well, 1 something is wrong or left over, 2 wrong usage, 3 this is no Xen host, or a qube of one and
not its dom0.")]
pub(crate) struct DoctorOptions {
    /// Do what can be done safely about what is wrong, and remove what is left over.
    #[arg(short, long)]
    pub(crate) repair: bool,
    /// Say it as JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

pub(crate) fn doctor(options: &DoctorOptions) -> Result<(), Error> {
    let files = HostFiles::default();
    match files.machine() {
        Machine::Dom0 => {}
        machine => return Err(Error::NoXenHost(machine)),
    }
    let mut findings = files.findings();
    findings.push(hypervisor());
    findings.push(xenstored());
    let qubes = crate::qubes().ok().map(|qubes| qubes.with_kernel_cache(KernelCache::default()));
    if let Some(qubes) = &qubes {
        findings.push(watcher(qubes)?);
    }
    findings.push(nexusd());
    findings.push(agent(&files));
    findings.push(policy(&PolicyFolders::default()));

    let host: Vec<Looked> = findings
        .into_iter()
        .map(|finding| {
            let repaired = options.repair.then(|| repair(&files, qubes.as_ref(), &finding)).flatten();
            Looked { finding, repaired }
        })
        .collect();
    let mut left = Vec::new();
    for leftover in qubes.as_ref().map(Qubes::leftovers).transpose()?.unwrap_or_default() {
        let repaired = match (&qubes, options.repair) {
            (Some(qubes), true) => Some(qubes.repair(&leftover).map_err(|error| error.to_string())),
            _ => None,
        };
        left.push((leftover, repaired));
    }
    let text = if options.json { json(&host, &left) } else { lines(&host, &left, qubes.is_some()) };
    io::stdout().write_all(text.as_bytes()).map_err(Error::Output)?;
    verdict(&host, &left)
}

/// What came of a repair, if one was tried.
type Repaired = Option<Result<(), String>>;

/// What was looked at, and what was done about it.
struct Looked {
    finding: Finding,
    repaired: Repaired,
}

impl Looked {
    fn is_wrong(&self) -> bool {
        self.finding.state == State::Wrong && self.repaired != Some(Ok(()))
    }
}

/// Does what can be done about it, if it can be.
fn repair(files: &HostFiles, qubes: Option<&Qubes>, finding: &Finding) -> Repaired {
    if finding.subject == WATCHER && finding.state == State::Wrong {
        return qubes.map(|qubes| watch::ensure(qubes).map_err(|error| error.to_string()));
    }
    finding.remedy.as_ref().map(|remedy| files.carry_out(remedy).map_err(|error| error.to_string()))
}

fn verdict(host: &[Looked], left: &[(Leftover, Repaired)]) -> Result<(), Error> {
    let wrong = host.iter().filter(|looked| looked.is_wrong()).count();
    let failed = left.iter().filter(|(_, repaired)| matches!(repaired, Some(Err(_)))).count();
    let there = left.iter().filter(|(_, repaired)| repaired.is_none()).count();
    match (wrong, failed, there) {
        (0, 0, 0) => Ok(()),
        (0, 0, there) => Err(Error::LeftOver(there)),
        (0, failed, _) => Err(Error::NotRepaired(failed)),
        (wrong, ..) => Err(Error::Unwell(wrong)),
    }
}

/// Which Xen runs, and whether this program is for it.
fn hypervisor() -> Finding {
    match Dom0.domain_control().and_then(|control| control.version()) {
        Ok(xen) => {
            let said = format!("{}.{}{}, which this program is for", xen.major, xen.minor, xen.extra);
            Finding::well("Xen", said)
        }
        Err(error) => {
            Finding::wrong("Xen", error.to_string(), "run the doctor as root, of the build for this Xen")
        }
    }
}

fn xenstored() -> Finding {
    match Dom0.xenstore().and_then(|store| store.directory(Transaction::NONE, "/")) {
        Ok(_) => Finding::well("xenstored", "answers"),
        Err(error) => Finding::wrong(
            "xenstored",
            error.to_string(),
            "systemctl start xenstored (Debian: service xen start)",
        ),
    }
}

/// Whether somebody carries out what is to be done when a qube ends.
fn watcher(qubes: &Qubes) -> Result<Finding, Error> {
    let said = |count: usize| format!("{count} qubes count on it");
    Ok(match (qubes.is_watched()?, qubes.attended()?) {
        (true, count) => Finding::well(WATCHER, format!("runs; {}", said(count))),
        (false, 0) => Finding::well(WATCHER, "does not run, and no qube counts on it"),
        (false, count) => Finding::wrong(WATCHER, format!("does not run, and {}", said(count)), "nxl watch"),
    })
}

/// nexusd, by its figures: it has to be at work to answer.
fn nexusd() -> Finding {
    match Settings::of_host(Path::new(SETTINGS_FILE)) {
        Ok(settings) => answering(&settings.metrics),
        Err(error) => Finding::wrong("nexusd", error.to_string(), "see docs/nexusd.md"),
    }
}

fn answering(metrics: &Path) -> Finding {
    let subject = format!("nexusd ({})", metrics.display());
    match figures(metrics) {
        Ok(text) => {
            let open = text.lines().find_map(|line| line.strip_prefix("nexus_open_calls "));
            Finding::well(subject, format!("answers; {} calls are open", open.unwrap_or("0")))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Finding::unused(
            subject,
            "does not run",
            "systemctl enable --now nexusd.socket nexusd.service, for calls between qubes",
        ),
        Err(error) => Finding::wrong(
            subject,
            format!("does not answer: {error}"),
            "systemctl restart nexusd, and journalctl -u nexusd says why",
        ),
    }
}

/// dom0's own agent, where there is one.
fn agent(files: &HostFiles) -> Finding {
    const SUBJECT: &str = "dom0's agent";
    let text = match fs::read_to_string(AGENT_SETTINGS) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let advice = "docs/calls.md, for services and callers in dom0";
            return Finding::unused(SUBJECT, format!("there is no {AGENT_SETTINGS}"), advice);
        }
        Err(error) => {
            return Finding::wrong(SUBJECT, format!("{AGENT_SETTINGS}: {error}"), "run the doctor as root");
        }
    };
    match serde_json::from_str::<nexus::agent::Settings>(&text) {
        Ok(settings) => files.socket(SUBJECT, &settings.socket, "systemctl enable --now nexus-agent-dom0"),
        Err(error) => Finding::wrong(SUBJECT, format!("{AGENT_SETTINGS}: {error}"), "see docs/calls.md"),
    }
}

fn policy(folders: &PolicyFolders) -> Finding {
    const SUBJECT: &str = "the policy of calls";
    match folders.read().policy {
        Ok(policy) if policy.rules().is_empty() => {
            Finding::unused(SUBJECT, "has no rules: all calls between qubes are denied", "see docs/policy.md")
        }
        Ok(policy) => Finding::well(SUBJECT, format!("{} rules", policy.rules().len())),
        Err(errors) => Finding::wrong(
            SUBJECT,
            format!("has {} faults: all calls between qubes are denied", errors.len()),
            "nxl policy check",
        ),
    }
}

fn lines(host: &[Looked], left: &[(Leftover, Repaired)], known: bool) -> String {
    let mut text = String::new();
    for Looked { finding, repaired } in host {
        let Finding { subject, state, said, advice, .. } = finding;
        let what = match (repaired, advice) {
            (Some(Ok(())), _) => "; repaired".to_owned(),
            (Some(Err(error)), _) => format!("; could not be repaired: {error}"),
            (None, Some(advice)) => format!("; {advice}"),
            (None, None) => String::new(),
        };
        text += &format!("{:<6}  {subject}: {said}{what}\n", state.word());
    }
    for (leftover, repaired) in left {
        let what = match repaired {
            Some(Ok(())) => ": removed".to_owned(),
            Some(Err(error)) => format!(": {error}"),
            None => String::new(),
        };
        text += &format!("{leftover}{what}\n");
    }
    match (known, left) {
        (false, _) => text += "What is left over cannot be told without Xen and xenstored.\n",
        (true, []) => text += "Nothing is left over.\n",
        _ => {}
    }
    text
}

fn json(host: &[Looked], left: &[(Leftover, Repaired)]) -> String {
    let host: Vec<_> = host
        .iter()
        .map(|Looked { finding, repaired }| {
            let mut entry = serde_json::json!({
                "subject": finding.subject,
                "state": finding.state.word(),
                "said": finding.said,
                "repaired": *repaired == Some(Ok(())),
            });
            if let Some(advice) = &finding.advice {
                entry["advice"] = advice.as_str().into();
            }
            if let Some(Err(error)) = repaired {
                entry["error"] = error.as_str().into();
            }
            entry
        })
        .collect();
    let left: Vec<_> = left.iter().map(|(leftover, repaired)| described(leftover, repaired)).collect();
    format!("{:#}\n", serde_json::json!({ "host": host, "left_over": left }))
}

fn described(leftover: &Leftover, repaired: &Repaired) -> serde_json::Value {
    let mut entry = serde_json::json!({ "kind": leftover.kind(), "repaired": *repaired == Some(Ok(())) });
    if let Some(Err(failure)) = repaired {
        entry["error"] = failure.as_str().into();
    }
    match leftover {
        Leftover::Domain { uuid, domid } => {
            entry["uuid"] = uuid.to_string().into();
            entry["domid"] = domid.map(|domid| domid.0).into();
        }
        Leftover::Records { path } => entry["xenstore"] = path.as_str().into(),
        Leftover::File { path } | Leftover::Cache { path } => {
            entry["path"] = path.display().to_string().into();
        }
    }
    entry
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;
    use uuid::Uuid;

    #[test]
    fn a_leftover_is_described_by_what_it_is() {
        let uuid = Uuid::from_u128(1);
        let domain = Leftover::Domain { uuid, domid: Some(xen::DomId(3)) };
        assert_eq!(
            described(&domain, &None),
            serde_json::json!({ "kind": "domain", "repaired": false, "uuid": uuid.to_string(), "domid": 3 })
        );
        let records = Leftover::Records { path: "/libxl/3".to_owned() };
        assert_eq!(
            described(&records, &Some(Err("no".to_owned()))),
            serde_json::json!({ "kind": "records", "repaired": false, "error": "no", "xenstore": "/libxl/3" })
        );
    }

    fn looked(finding: Finding, repaired: Repaired) -> Looked {
        Looked { finding, repaired }
    }

    #[test]
    fn a_line_says_what_was_looked_at_how_it_is_and_what_to_do() {
        let host = [
            looked(Finding::well("Xen", "4.17.5"), None),
            looked(Finding::wrong("/run/nxl", "is open", "chmod 755 /run/nxl"), None),
            looked(Finding::wrong("a", "b", "c"), Some(Ok(()))),
            looked(Finding::wrong("d", "e", "f"), Some(Err("no".to_owned()))),
        ];
        let left = [(Leftover::Records { path: "/vm/x".to_owned() }, Some(Ok(())))];
        assert_eq!(
            lines(&host, &left, true),
            "ok      Xen: 4.17.5\nwrong   /run/nxl: is open; chmod 755 /run/nxl\nwrong   a: b; repaired\n\
             wrong   d: e; could not be repaired: no\nxenstore: /vm/x is of a domain that is gone: removed\n"
        );
        assert!(lines(&[], &[], true).ends_with("Nothing is left over.\n"));
        assert!(!lines(&[], &[], false).contains("Nothing"));
        let value: serde_json::Value = serde_json::from_str(&json(&host, &left)).unwrap();
        assert_eq!(
            (&value["host"][1]["advice"], &value["host"][3]["error"]),
            (&"chmod 755 /run/nxl".into(), &"no".into())
        );
        assert_eq!(
            (&value["host"][2]["repaired"], &value["left_over"][0]["xenstore"]),
            (&true.into(), &"/vm/x".into())
        );
    }

    #[test]
    fn the_verdict_counts_what_is_still_wrong() {
        let wrong = || Finding::wrong("a", "b", "c");
        let record = || Leftover::Records { path: "/vm/x".to_owned() };
        assert!(verdict(&[looked(Finding::unused("a", "b", "c"), None)], &[]).is_ok());
        assert!(verdict(&[looked(wrong(), Some(Ok(())))], &[(record(), Some(Ok(())))]).is_ok());
        assert!(matches!(verdict(&[looked(wrong(), None)], &[(record(), None)]), Err(Error::Unwell(1))));
        assert!(matches!(verdict(&[], &[(record(), None)]), Err(Error::LeftOver(1))));
        let failed = Some(Err("no".to_owned()));
        assert!(matches!(verdict(&[], &[(record(), failed)]), Err(Error::NotRepaired(1))));
    }

    #[test]
    fn nexusd_is_there_or_is_not_or_has_died() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.sock");
        assert_eq!(answering(&path).state, State::Unused);
        drop(UnixListener::bind(&path).unwrap());
        assert_eq!(answering(&path).state, State::Wrong);
    }

    #[test]
    fn a_wrong_policy_is_wrong_and_none_is_unused() {
        let folder = tempfile::tempdir().unwrap();
        let folders = PolicyFolders::of([folder.path().to_owned()]);
        assert_eq!(policy(&folders).state, State::Unused);
        let write = |text: &str| fs::write(folder.path().join("30-user.policy"), text).unwrap();
        write("q.A * work vault allow\n");
        assert_eq!(policy(&folders).said, "1 rules");
        write("q.A * work vault alow\n");
        assert_eq!(policy(&folders).state, State::Wrong);
    }
}
