//! `nxl apply`: makes the host what is declared.

use crate::command::ApplyOptions;
use crate::error::Error;
use crate::plan;
use crate::spec::{APPLIED, Declared};
use crate::watch;
use crate::xl_conf::XlConf;
use serde_json::{Value, json};
use std::fs;
use std::io::{self, Write};
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use toolstack::memory::MemoryError;
use toolstack::qubes::{QubeError, Qubes};
use toolstack::spec::{Event, Hooks, Host, Plan, Work};
use toolstack::{KernelCache, UserData};
use xen::host::Dom0;
use xen::{DomId, Platform};

/// How long dom0 may take to give memory back: xl's 30 s.
const ROOM_PATIENCE: Duration = Duration::from_secs(30);

pub(crate) fn apply(options: &ApplyOptions, dryrun: bool) -> Result<(), Error> {
    let qubes = crate::qubes()?;
    if dryrun {
        return plan::plan(&qubes, &options.spec, options.prune, options.json);
    }
    let lock = qubes.lock_apply()?.ok_or(Error::Applying)?;
    let declared = Declared::read(&options.spec)?;
    let mut plan = declared.plan(&qubes, options.prune)?;
    if let Some(conflict) = plan.conflicts.first() {
        return Err(Error::Conflict { first: conflict.to_string(), others: plan.conflicts.len() - 1 });
    }
    let held_back = if options.no_restart { hold_back_restarts(&mut plan) } else { Vec::new() };
    let mut out = io::stdout();
    if !options.quiet && !options.json {
        // Before anything is done: what will be restarted, and why.
        out.write_all(plan::text(&plan).as_bytes()).map_err(Error::Output)?;
    }
    let host = Host { jobs: options.jobs, patience: Duration::from_secs(options.timeout), ..Host::default() };
    let told: Mutex<Vec<Value>> = Mutex::new(Vec::new());
    let report = |event: Event<'_>| tell(&event, options, &told);
    let conf = XlConf::open()?;
    let balloons = conf.balloons_dom0(qubes.control())?;
    // xl's lock is a process's, not a thread's.
    let room = Mutex::new(());
    let make_room = |qubes: &Qubes, kib: u64| make_room(qubes, kib, &conf, balloons, &room);
    let open = || {
        let qubes = Qubes::open(&Dom0, UserData::default())?.with_kernel_cache(KernelCache::default());
        Ok((qubes, Dom0.foreign_memory()?))
    };
    let hooks = Hooks { open: &open, make_room: &make_room, report: &report };
    let outcome = plan.apply(&lock, &declared.spec, &declared.configs, &host, &hooks)?;
    let makes = |work: &Work| matches!(work, Work::Create | Work::Restart { .. });
    if plan.steps.iter().any(|step| makes(&step.work)) {
        watch::ensure(&qubes)?;
    }
    if options.json {
        let steps = told.into_inner().unwrap_or_else(PoisonError::into_inner);
        let done = json!({ "steps": steps, "held_back": held_back, "unchanged": plan.unchanged, "undeclared": plan.undeclared });
        writeln!(out, "{done:#}").map_err(Error::Output)?;
    }
    remember(&options.spec)?;
    match outcome.failures.as_slice() {
        [] if held_back.is_empty() => Ok(()),
        [] => Err(Error::HeldBack(held_back.join(", "))),
        [(name, failure), others @ ..] => {
            Err(Error::NotApplied { first: format!("{name}: {failure}"), others: others.len() })
        }
    }
}

/// Leaves the qubes alone that would have to be restarted; their names.
fn hold_back_restarts(plan: &mut Plan) -> Vec<String> {
    let (restarts, others) = std::mem::take(&mut plan.steps)
        .into_iter()
        .partition(|step| matches!(step.work, Work::Restart { .. }));
    plan.steps = others;
    let restarts: Vec<toolstack::spec::Step> = restarts;
    restarts.into_iter().map(|step| step.name).collect()
}

/// Tells of the progress: lines on stdout as it goes, or all at the end.
fn tell(event: &Event<'_>, options: &ApplyOptions, told: &Mutex<Vec<Value>>) {
    let (step, said, value) = match event {
        Event::Begun(_) => return,
        Event::Done(step, time) => {
            let seconds = time.as_secs_f64();
            let mut value = plan::step_json(step);
            value["seconds"] = seconds.into();
            (step, format!("done in {seconds:.2} s"), value)
        }
        Event::Failed(step, failure) => {
            let mut value = plan::step_json(step);
            value["error"] = failure.to_string().into();
            (step, format!("failed: {failure}"), value)
        }
    };
    if options.json {
        told.lock().unwrap_or_else(PoisonError::into_inner).push(value);
    } else if !options.quiet {
        // Whoever reads it may have gone: no reason to stop half way.
        let _ = writeln!(io::stdout(), "  {} {}: {said}", step.work.name(), step.name);
    }
}

fn make_room(
    qubes: &Qubes,
    kib: u64,
    conf: &XlConf,
    balloons: bool,
    room: &Mutex<()>,
) -> Result<(), MemoryError> {
    if !balloons {
        return Ok(());
    }
    let _room = room.lock().unwrap_or_else(PoisonError::into_inner);
    let _lock = conf.lock().map_err(|error| QubeError::UserData {
        path: "/run/lock/xl".into(),
        source: io::Error::other(error.to_string()),
    })?;
    qubes.make_room(&qubes.get(DomId::DOM0)?, kib, ROOM_PATIENCE)
}

/// Keeps what was applied, for `nxl tree`.
fn remember(spec: &Path) -> Result<(), Error> {
    let applied = Path::new(APPLIED);
    let new = applied.with_extension("new");
    let copy = || {
        let text = fs::read(spec)?;
        if fs::read(applied).is_ok_and(|there| there == text) {
            return Ok(());
        }
        fs::write(&new, text)?;
        fs::rename(&new, applied)
    };
    copy().map_err(|source| Error::Read { path: applied.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn restarts_can_be_held_back() {
        let mut plan = crate::plan::tests::example();
        assert_eq!(hold_back_restarts(&mut plan), ["vault"]);
        assert_eq!(plan.steps.len(), 3);
    }
}
