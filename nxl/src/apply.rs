//! `nxl apply`: makes the host what is declared.

use crate::command::{ApplyOptions, MannerOptions};
use crate::error::Error;
use crate::plan;
use crate::remote::Order;
use crate::screen::Screen;
use crate::spec::{self, APPLIED, Declared, Text};
use crate::watch;
use crate::xl_conf::XlConf;
use serde_json::{Value, json};
use std::fs;
use std::io::{self, Write};
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};
use toolstack::events::{self, EventLog, Step};
use toolstack::generations::Variant;
use toolstack::memory::MemoryError;
use toolstack::qubes::{QubeError, Qubes};
use toolstack::ready::{Awaited, Verdict};
use toolstack::spec::{ApplyLock, Event, Hooks, Host, Plan, Wishes, Work, uuid_of};
use toolstack::{KernelCache, UserData, whole_file};
use xen::host::Dom0;
use xen::{DomId, Platform};

/// How long dom0 may take to give memory back: xl's 30 s.
const ROOM_PATIENCE: Duration = Duration::from_secs(30);

/// How long a qube that did not come up may take to power off before the one before takes its place.
const FAILED_PATIENCE: Duration = Duration::from_secs(10);
/// How long the watcher may take to make it again by then.
const RESTART_PATIENCE: Duration = Duration::from_secs(20);
/// How often it is told who is waited for.
const TOLD_EVERY: Duration = Duration::from_secs(10);

pub(crate) fn apply(options: &ApplyOptions, dryrun: bool) -> Result<(), Error> {
    if options.hosts.are_given() {
        let line = options.line(dryrun);
        let json = options.manner.json;
        return Order { options: &options.hosts, line, spec: &options.spec, json }.give();
    }
    let text = Text::read(&options.spec)?;
    // What is wrong with it is wrong whatever the host is like.
    text.spec()?;
    let qubes = crate::qubes()?;
    let wishes = options.wishes();
    if dryrun {
        return plan::plan(&qubes, &text, &wishes, options.manner.json);
    }
    let lock = options.manner.lock(&qubes)?;
    let wait = match options.wait {
        _ if options.manner.no_wait => Wait::Nobody,
        None => Wait::Trials,
        Some(0) => Wait::All(None),
        Some(seconds) => Wait::All(Some(Duration::from_secs(seconds))),
    };
    let effort = Effort {
        qubes: &qubes,
        lock: &lock,
        spec: &text,
        wishes,
        only: None,
        no_restart: options.no_restart,
        jobs: options.jobs,
        wait,
        manner: &options.manner,
        screen: Screen::of(&options.manner),
    };
    effort.make()
}

/// Who is waited for until it reports ready.
pub(crate) enum Wait {
    Nobody,
    /// Those that run something new, without which they would go on with what they had.
    Trials,
    /// All that run, so long at most; `None` for what is declared of each.
    All(Option<Duration>),
}

/// One effort to make this host, or one qube of it, what is declared.
pub(crate) struct Effort<'a> {
    pub(crate) qubes: &'a Qubes,
    pub(crate) lock: &'a ApplyLock,
    pub(crate) spec: &'a Text,
    pub(crate) wishes: Wishes,
    /// Nothing is done about any other qube.
    pub(crate) only: Option<&'a str>,
    pub(crate) no_restart: bool,
    pub(crate) jobs: usize,
    pub(crate) wait: Wait,
    pub(crate) manner: &'a MannerOptions,
    pub(crate) screen: Screen,
}

/// A generation that did not come up, and the one that took its place.
struct Fallen {
    name: String,
    why: String,
    from: Variant,
    to: Variant,
}

/// What became of those that were waited for.
struct Judged {
    verdicts: Vec<(String, Verdict)>,
    fallen: Vec<Fallen>,
}

impl Effort<'_> {
    /// Does it, and sees whether what is new came up.
    pub(crate) fn make(&self) -> Result<(), Error> {
        let declared = Declared::of(self.spec)?;
        let mut plan = declared.plan(self.qubes, &self.wishes)?;
        if let Some(conflict) = plan.conflicts.first() {
            return Err(Error::Conflict { first: conflict.to_string(), others: plan.conflicts.len() - 1 });
        }
        if let Some(name) = self.only {
            restrict(&mut plan, &[name]);
        }
        let held_back = if self.no_restart { hold_back_restarts(&mut plan) } else { Vec::new() };
        if !self.manner.quiet && !self.manner.json {
            // Before anything is done: what will be restarted, and why.
            let said = plan::text(&plan) + &plan::held(&declared.choices);
            io::stdout().write_all(said.as_bytes()).map_err(Error::Output)?;
        }
        let told = Mutex::new(Vec::new());
        let patience = Duration::from_secs(self.manner.timeout);
        let mut failures = self.carry_out(&plan, &declared, patience, &told)?;
        if self.only.is_none() {
            remember(self.spec)?;
            spec::remember_system(declared.spec.document())?;
        }
        let Judged { mut verdicts, fallen } = self.judge(&declared, &plan, &mut failures)?;
        if !fallen.is_empty() {
            self.bring_back(&fallen, patience, &told, &mut failures, &mut verdicts)?;
        }
        if self.manner.json {
            self.print_json(&plan, &held_back, told, &verdicts, &fallen)?;
        }
        let late = verdicts.iter().filter(|(name, verdict)| {
            !matches!(verdict, Verdict::Ready(_)) && !fallen.iter().any(|fallen| fallen.name == *name)
        });
        failures.extend(late.map(|(name, verdict)| (name.clone(), verdict.to_string())));
        match (failures.as_slice(), fallen.as_slice()) {
            ([], []) if held_back.is_empty() => Ok(()),
            ([], []) => Err(Error::HeldBack(held_back.join(", "))),
            ([], [fallen, others @ ..]) => {
                Err(Error::FellBack { first: fallen.to_string(), others: others.len() })
            }
            ([(name, failure), others @ ..], fallen) => {
                let others = others.len() + fallen.len();
                Err(Error::NotApplied { first: format!("{name}: {failure}"), others })
            }
        }
    }

    /// Does what a plan says; what failed, by qube.
    fn carry_out(
        &self,
        plan: &Plan,
        declared: &Declared,
        patience: Duration,
        told: &Mutex<Vec<Value>>,
    ) -> Result<Vec<(String, String)>, Error> {
        let generations = declared.generations.clone();
        let host = Host { jobs: self.jobs, patience, generations, ..Host::default() };
        self.screen.expect(plan.steps.len());
        let report = |event: Event<'_>| self.tell(&event, told);
        let conf = XlConf::open()?;
        let balloons = conf.balloons_dom0(self.qubes.control())?;
        // xl's lock is a process's, not a thread's.
        let room = Mutex::new(());
        let make_room = |qubes: &Qubes, kib: u64| make_room(qubes, kib, &conf, balloons, &room);
        let open = || {
            let qubes = Qubes::open(&Dom0, UserData::default())?
                .with_kernel_cache(KernelCache::default())
                .with_events(EventLog::default());
            Ok((qubes, Dom0.foreign_memory()?))
        };
        let hooks = Hooks { open: &open, make_room: &make_room, report: &report };
        let outcome = plan.apply(self.lock, &declared.spec, &declared.configs, &host, &hooks)?;
        // Whoever runs already is looked after, too: a watcher may have been killed.
        if !plan.unchanged.is_empty() || plan.steps.iter().any(|step| step.work != Work::Remove) {
            watch::ensure(self.qubes)?;
        }
        let said = outcome.failures.into_iter().map(|(name, failure)| (name, failure.to_string()));
        Ok(said.collect())
    }

    /// Waits for those that are to be waited for. What is on trial is confirmed, or is from now on what it was before.
    fn judge(
        &self,
        declared: &Declared,
        plan: &Plan,
        failures: &mut Vec<(String, String)>,
    ) -> Result<Judged, Error> {
        let mut fallen = Vec::new();
        if matches!(self.wait, Wait::Nobody) {
            return Ok(Judged { verdicts: Vec::new(), fallen });
        }
        let running = self.qubes.list()?;
        let mut awaited = Vec::new();
        for (name, qube) in &declared.spec.document().qubes {
            let (Some(ready), Some(system)) = (qube.ready, &qube.system) else { continue };
            // What somebody shut down is judged when it runs again.
            if self.only.is_some_and(|only| only != name) || plan.halted.contains(name) {
                continue;
            }
            let on_trial = declared.generations.record(name)?.trial.is_some();
            // What could not even be made is not waited for.
            if let Some(at) = failures.iter().position(|(failed, _)| failed == name) {
                if let Some((from, to)) = declared.generations.fall_back(name, system, &failures[at].1)? {
                    let why = failures.remove(at).1;
                    fallen.push(Fallen { name: name.clone(), why, from, to });
                }
                continue;
            }
            let uuid = uuid_of(name);
            let limit = match self.wait {
                Wait::All(limit) if running.iter().any(|qube| qube.uuid() == uuid) => limit,
                _ if on_trial => None,
                _ => continue,
            };
            let limit = limit.unwrap_or(Duration::from_secs(ready.timeout));
            awaited.push(Awaited { name: name.clone(), uuid, limit });
        }
        let verdicts = self.await_ready(awaited)?;
        for (name, verdict) in &verdicts {
            let system = declared.spec.document().qubes.get(name).and_then(|qube| qube.system.as_ref());
            let Some(system) = system else { continue };
            if let Verdict::Ready(_) = verdict {
                self.qubes.tell_of(name, Step::Ready);
                declared.generations.confirm(name)?;
            } else if let Some((from, to)) =
                declared.generations.fall_back(name, system, &verdict.to_string())?
            {
                fallen.push(Fallen { name: name.clone(), why: verdict.to_string(), from, to });
            }
        }
        for fallen in &fallen {
            // Where the journal has it, whatever else is said: nobody asked for this.
            let _ = writeln!(io::stderr(), "nxl: {fallen}");
            let Fallen { name, why, from, to } = fallen;
            let (from, to) = (from.to_string(), to.to_string());
            self.qubes.tell_of(name, Step::FellBack { from, to, why: why.clone() });
        }
        Ok(Judged { verdicts, fallen })
    }

    /// Waits, and tells for whom.
    fn await_ready(&self, awaited: Vec<Awaited>) -> Result<Vec<(String, Verdict)>, Error> {
        let mut told = Instant::now();
        let names: Vec<_> = awaited.iter().map(|qube| qube.name.clone()).collect();
        if !awaited.is_empty() {
            self.screen.say(format_args!("  waiting for {}", names.join(", ")));
        }
        let wait = |name: &str| format!("{name} is starting");
        self.screen.expect(names.len());
        names.iter().for_each(|name| self.screen.begin(wait(name)));
        let verdicts = self.qubes.await_ready(awaited, &mut |verdict, waiting| match verdict {
            Some((name, verdict)) => {
                self.screen.end(&wait(name));
                self.screen.say(format_args!("  {name} {verdict}"));
                told = Instant::now();
            }
            None if !self.screen.is_live() && told.elapsed() >= TOLD_EVERY => {
                self.screen.say(format_args!("  waiting for {waiting} of {}", names.len()));
                told = Instant::now();
            }
            None => {}
        })?;
        Ok(verdicts)
    }

    /// Boots what the fallen were before, as any apply would from now on.
    fn bring_back(
        &self,
        fallen: &[Fallen],
        patience: Duration,
        told: &Mutex<Vec<Value>>,
        failures: &mut Vec<(String, String)>,
        verdicts: &mut Vec<(String, Verdict)>,
    ) -> Result<(), Error> {
        let names: Vec<&str> = fallen.iter().map(|fallen| fallen.name.as_str()).collect();
        for fallen in fallen {
            // It may end and be made again all the time: from now on only by whoever holds the lock.
            self.qubes.unattend(uuid_of(&fallen.name), RESTART_PATIENCE)?;
        }
        let declared = Declared::of(self.spec)?;
        let start = names.iter().map(|name| (*name).to_owned()).collect();
        let mut plan = declared.plan(self.qubes, &Wishes { prune: false, start })?;
        restrict(&mut plan, &names);
        failures.extend(self.carry_out(&plan, &declared, patience.min(FAILED_PATIENCE), told)?);
        let awaited = fallen.iter().filter_map(|fallen| {
            let ready = declared.spec.document().qubes.get(&fallen.name)?.ready?;
            let limit = Duration::from_secs(ready.timeout);
            let failed = failures.iter().any(|(name, _)| *name == fallen.name);
            (!failed).then(|| Awaited { name: fallen.name.clone(), uuid: uuid_of(&fallen.name), limit })
        });
        for (name, verdict) in self.await_ready(awaited.collect())? {
            verdicts.retain(|(other, _)| *other != name);
            if !matches!(verdict, Verdict::Ready(_)) {
                failures.push((name.clone(), format!("what it fell back to {verdict}")));
            }
            verdicts.push((name, verdict));
        }
        Ok(())
    }

    fn print_json(
        &self,
        plan: &Plan,
        held_back: &[String],
        told: Mutex<Vec<Value>>,
        verdicts: &[(String, Verdict)],
        fallen: &[Fallen],
    ) -> Result<(), Error> {
        let ready = verdicts.iter().map(|(name, verdict)| match verdict {
            Verdict::Ready(after) => json!({ "qube": name, "ready": true, "seconds": after.as_secs_f64() }),
            verdict => json!({ "qube": name, "ready": false, "why": verdict.to_string() }),
        });
        let fallen = fallen.iter().map(|fallen| {
            json!({ "qube": fallen.name, "failed": fallen.from, "why": fallen.why, "booted": fallen.to })
        });
        let done = json!({
            "steps": told.into_inner().unwrap_or_else(PoisonError::into_inner),
            "held_back": held_back,
            "unchanged": plan.unchanged,
            "undeclared": plan.undeclared,
            "ready": ready.collect::<Vec<_>>(),
            "fell_back": fallen.collect::<Vec<_>>(),
        });
        writeln!(io::stdout(), "{done:#}").map_err(Error::Output)
    }

    /// Tells of the progress: lines on stdout as it goes, or all at the end.
    fn tell(&self, event: &Event<'_>, told: &Mutex<Vec<Value>>) {
        let work = |step: &toolstack::spec::Step| format!("{} {}", step.work.name(), step.name);
        let (step, said, value) = match event {
            Event::Begun(step) => return self.screen.begin(work(step)),
            Event::Waits(step, netvm) => {
                return self.screen.say(format_args!("  {} waits for {netvm}, its netvm", step.name));
            }
            Event::Done(step, time) => {
                let applied = events::Step::Applied { work: step.work.name().to_owned() };
                EventLog::default().tell(&[events::Event::now(applied).named(&step.name)]);
                let seconds = time.as_secs_f64();
                let mut value = plan::step_json(step);
                value["seconds"] = seconds.into();
                (step, format!("done in {seconds:.2} s"), value)
            }
            Event::Failed(step, failure) => {
                let failed = events::Step::Failed { error: format!("{}: {failure}", step.work.name()) };
                EventLog::default().tell(&[events::Event::now(failed).named(&step.name)]);
                let mut value = plan::step_json(step);
                value["error"] = failure.to_string().into();
                (step, format!("failed: {failure}"), value)
            }
        };
        self.screen.end(&work(step));
        if self.manner.json {
            told.lock().unwrap_or_else(PoisonError::into_inner).push(value);
        }
        self.screen.say(format_args!("  {}: {said}", work(step)));
    }
}

impl std::fmt::Display for Fallen {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { name, why, from, to } = self;
        write!(f, "{name}: {from} failed ({why}), and {to} is booted again")
    }
}

/// Leaves alone what is not about these qubes.
fn restrict(plan: &mut Plan, names: &[&str]) {
    plan.leftovers.clear();
    plan.policy.clear();
    plan.undeclared.clear();
    plan.steps.retain(|step| names.contains(&step.name.as_str()) && step.work != Work::Remove);
    plan.unchanged.retain(|name| names.contains(&name.as_str()));
    plan.halted.retain(|name| names.contains(&name.as_str()));
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
fn remember(spec: &Text) -> Result<(), Error> {
    let applied = Path::new(APPLIED);
    let copy = || {
        if fs::read(applied).is_ok_and(|there| there == spec.bytes()) {
            return Ok(());
        }
        whole_file::replace(applied, spec.bytes(), 0o644)
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

    #[test]
    fn a_plan_can_be_about_one_qube() {
        let mut plan = crate::plan::tests::example();
        restrict(&mut plan, &["vault", "old"]);
        assert_eq!(
            plan.steps.iter().map(|step| &*step.name).collect::<Vec<_>>(),
            ["vault"],
            "none is removed"
        );
        assert!(plan.policy.is_empty() && plan.unchanged.is_empty() && plan.undeclared.is_empty());
    }

    #[test]
    fn what_fell_back_is_a_sentence() {
        let variant = |generation| Variant { generation, specialisation: None };
        let why = Verdict::Late(Duration::from_secs(300)).to_string();
        let fallen = Fallen { name: "work".to_owned(), why, from: variant(3), to: variant(2) };
        assert_eq!(
            fallen.to_string(),
            "work: generation 3 failed (did not report ready within 300 s), and generation 2 is booted again"
        );
    }
}
