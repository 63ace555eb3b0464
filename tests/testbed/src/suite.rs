//! Runs checks on as few boots as they allow, and gives a verdict on each.
//!
//! Under software emulation about one process in a thousand still goes wrong for no fault of its own. So a check
//! that fails is run a second time, on a fresh boot, before it is called red, and both runs are reported.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::num::NonZero;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crate::assets::{Assets, DECLARED, LIBVIRT, PACKAGES, TUTORIAL};
use crate::cache::{Cache, Scratch};
use crate::checks::{BOOTS, Boot, Check, DEMO};
use crate::closure::{Builder, Closure, Store};
use crate::debian::{Debian, Tree};
use crate::dom0::{self, Base, Task};
use crate::error::At as _;
use crate::products::Products;
use crate::protocol::Event;
use crate::qemu::{Console, Heard, Machine};
use crate::release::{BOOKWORM, Release};
use crate::{Result, process, qemu};

/// How long dom0 has to come up, and to say more once a check's own limit is over.
const PATIENCE: Duration = Duration::from_secs(120);

/// How many lines of the machine's console are shown when it died.
const CONSOLE_LINES: usize = 40;

/// What became of a check.
#[derive(Debug, Clone, PartialEq)]
pub enum Verdict {
    /// It showed what it says.
    Passed {
        /// How long it took.
        seconds: f64,
        /// Why it failed the first time, if it did.
        first_failure: Option<String>,
    },
    /// It failed twice.
    Failed {
        /// Why, both times.
        reasons: [String; 2],
    },
}

/// Everything that boots need.
#[derive(Debug)]
pub struct Testbed {
    cache: Cache,
    debian: Debian,
    base: Base,
    products: Products,
    builder: Builder,
    closures: Vec<Closure>,
    /// What is declared with systems of its own, by asset, built when the first check wants it.
    declared: Mutex<BTreeMap<&'static str, Arc<Closure>>>,
    /// dom0s of other releases than Debian 12's, made when the first check wants one.
    others: Mutex<BTreeMap<Release, Arc<Other>>>,
    assets: Assets,
    scratch: Scratch,
    boots: AtomicU32,
}

/// What a boot of another release than Debian 12's has of its own.
#[derive(Debug)]
struct Other {
    tree: Tree,
    base: Base,
    products: Products,
}

/// One run of a check: seconds, or the reason of its failure.
type Outcome = std::result::Result<f64, String>;

impl Testbed {
    /// Assembles what the cache lacks and builds what is ours.
    pub fn assemble() -> Result<Self> {
        Self::assemble_with(Store::Cached)
    }

    /// The same for a machine that is a Xen dom0 itself.
    pub fn assemble_for_this_dom0() -> Result<Self> {
        Self::assemble_with(Store::Machine)
    }

    fn assemble_with(store: Store) -> Result<Self> {
        let cache = Cache::open()?;
        let debian = step("Debian packages", || Debian::obtain(&cache))?;
        let base = step("Xen and dom0", || Base::assemble(&cache, &debian, (BOOKWORM, &debian.tree)))?;
        let scratch = cache.scratch()?;
        let products = step("our programs", || Products::build(scratch.path()))?;
        let builder =
            step("guests' programs", || Builder::prepare(&cache, &debian, &products, scratch.path(), store))?;
        let closures = step("guests' closures", || builder.systems())?;
        let assets = Assets::make(&cache, &debian, &products, &closures, scratch.path())?;
        let others = Mutex::default();
        Ok(Self {
            cache,
            debian,
            base,
            products,
            builder,
            closures,
            declared: Mutex::default(),
            assets,
            others,
            scratch,
            boots: AtomicU32::new(0),
        })
    }

    fn other(&self, release: Release) -> Result<Arc<Other>> {
        let mut others = self.others.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(other) = others.get(&release) {
            return Ok(Arc::clone(other));
        }
        let tree = step(&format!("Debian {}", release.suite), || Tree::of_release(&self.cache, release))?;
        let name = format!("Xen {}", release.xen);
        let base = step(&name, || Base::assemble(&self.cache, &self.debian, (release, &tree)))?;
        let folder = self.scratch.path().join(format!("xen-{}", release.xen));
        let products = step(&format!("our programs for {name}"), || {
            Products::build_for(release, &tree, &folder, &self.products)
        })?;
        let other = Arc::new(Other { tree, base, products });
        others.insert(release, Arc::clone(&other));
        Ok(other)
    }

    fn declared(&self, name: &'static str) -> Result<Arc<Closure>> {
        let mut declared = self.declared.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(closure) = declared.get(name) {
            return Ok(Arc::clone(closure));
        }
        let closure = Arc::new(step(&format!("closure of {name}"), || self.builder.closure(name))?);
        declared.insert(name, Arc::clone(&closure));
        Ok(closure)
    }

    /// Leaves the logs of this run in place, and says where.
    pub fn keep(&mut self) -> PathBuf {
        self.scratch.keep();
        self.scratch.path().to_owned()
    }

    /// Runs `checks` and tells `report` each verdict as soon as it is final. Machines run beside each other where there is
    /// a processor for each of theirs.
    pub fn run(&self, checks: &[Check], report: impl FnMut(&Check, Verdict) + Send) -> Result<()> {
        let report = Mutex::new(report);
        let report = |check: &Check, verdict| {
            report.lock().unwrap_or_else(PoisonError::into_inner)(check, verdict);
        };
        let processors = thread::available_parallelism().map_or(1, NonZero::get);
        let processors = Processors::new(processors);
        let boots: Vec<_> =
            BOOTS.into_iter().filter(|boot| checks.iter().any(|check| check.boot == *boot)).collect();
        // What compiles takes all processors, and is over before anything is timed.
        for boot in boots.iter().filter(|boot| boot.release != BOOKWORM) {
            self.other(boot.release)?;
        }
        thread::scope(|scope| {
            let mut running = Vec::new();
            for boot in boots {
                let taken = processors.take(boot.processors as usize);
                running.push(scope.spawn(move || {
                    let _taken = taken;
                    self.run_boot(boot, checks, report)
                }));
            }
            running
                .into_iter()
                .try_for_each(|boot| boot.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
        })
    }

    /// The checks of one machine; those that fail once more, on a fresh one.
    fn run_boot(&self, boot: Boot, checks: &[Check], report: impl Fn(&Check, Verdict)) -> Result<()> {
        let here: Vec<_> = checks.iter().filter(|check| check.boot == boot).cloned().collect();
        let mut failed = Vec::new();
        let first = self.run_once(boot, &here)?;
        for check in here {
            match first.get(&check.name).cloned().unwrap_or_else(|| Err("it was never run".to_owned())) {
                Ok(seconds) => report(&check, Verdict::Passed { seconds, first_failure: None }),
                Err(reason) => failed.push((check, reason)),
            }
        }
        if failed.is_empty() {
            return Ok(());
        }
        log(&format!("{} of these checks failed: they run again on a fresh boot", failed.len()));
        let again: Vec<_> = failed.iter().map(|(check, _)| check.clone()).collect();
        let second = self.run_once(boot, &again)?;
        for (check, reason) in failed {
            let verdict = match second
                .get(&check.name)
                .cloned()
                .unwrap_or_else(|| Err("it was never run".to_owned()))
            {
                Ok(seconds) => Verdict::Passed { seconds, first_failure: Some(reason) },
                Err(second) => Verdict::Failed { reasons: [reason, second] },
            };
            report(&check, verdict);
        }
        Ok(())
    }

    /// Shows the demo in the dom0 that this machine is. Whether all of it happened.
    pub fn demo_here(&self) -> Result<bool> {
        let folder = self.scratch.path();
        let (programs, systems, state) = (folder.join("bin"), folder.join("systems"), folder.join("state"));
        for path in [&programs, &systems, &state] {
            fs::create_dir_all(path).at(path)?;
        }
        let mut hypercounter = PathBuf::new();
        for (place, path) in self.products.in_dom0() {
            let name = place.rsplit('/').next().unwrap_or(place);
            if name == "hypercount.so" {
                hypercounter = path.to_owned();
            }
            symlink(path, programs.join(name)).at(&programs)?;
        }
        for closure in &self.closures {
            symlink(&closure.toplevel, systems.join(closure.name)).at(&systems)?;
        }
        let mut search = vec![programs];
        // Where Debian keeps vchan-socket-proxy.
        search.push(PathBuf::from("/usr/lib/xen-4.17/bin"));
        search.extend(std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()));
        let search = std::env::join_paths(search).unwrap_or_default();

        let scripts = dom0::scripts();
        let assets = folder.join("declared");
        fs::create_dir_all(&assets).at(&assets)?;
        // What the demo shows; the others are for checks.
        for name in ["demo", "demo-next"] {
            let closure = self.declared(name)?;
            symlink(&closure.toplevel, assets.join(name)).at(&assets)?;
        }
        let mut demo = Command::new("busybox");
        demo.arg("sh").arg(scripts.join("demo")).env("PATH", search).env("TESTBED", &scripts);
        demo.env("SYSTEMS", &systems).env("STATE", &state).env("HYPERCOUNTER", hypercounter);
        demo.env("DECLARED", &assets);
        process::run_connected(demo.stdin(Stdio::null()))?;
        Ok(state.join("demo-shown").exists())
    }

    /// Shows the demo in QEMU. Whether all of it happened.
    pub fn demo(&self) -> Result<bool> {
        let mut machine = self.boot(&Task::Demo, DEMO, Console::Logged)?;
        let mut shown = false;
        loop {
            match machine.listen(3 * PATIENCE) {
                Heard::Event(Event::Up { seconds }) => {
                    log(&format!(
                        "Xen and dom0 up: {seconds:.1} s of machine time, {:.1} s here",
                        machine.age().as_secs_f64()
                    ));
                }
                Heard::Event(Event::Output(line)) => log(&line),
                Heard::Event(Event::Pass { .. }) => shown = true,
                Heard::Event(Event::Fail { reason, .. }) => log(&format!("the demo failed: {reason}")),
                Heard::Event(_) => {}
                Heard::Gone => break,
                Heard::Silent(wait) => {
                    log(&format!("the machine has said nothing for {} s", wait.as_secs()));
                    shown = false;
                    break;
                }
            }
        }
        if !shown {
            show_console(&machine);
        }
        Ok(shown)
    }

    /// Gives a shell in dom0 on this terminal.
    pub fn shell(&self) -> Result<()> {
        self.boot(&Task::Shell, BOOTS[0], Console::Terminal)?.wait()
    }

    /// Whether this machine is a Xen dom0.
    pub fn is_dom0() -> bool {
        fs::read_to_string("/proc/xen/capabilities").is_ok_and(|words| words.contains("control_d"))
    }

    fn boot(&self, task: &Task<'_>, boot: Boot, console: Console) -> Result<Machine> {
        let before = self.boots.fetch_add(1, Ordering::Relaxed);
        if before == 0 && !qemu::nested_kvm() {
            log("no nested virtualisation here: software emulation");
        }
        let folder = self.scratch.path().join(format!("boot-{}", before + 1));
        let other = (boot.release != BOOKWORM).then(|| self.other(boot.release)).transpose()?;
        let (tree, base, products) = match &other {
            Some(other) => (&other.tree, &other.base, &other.products),
            None => (&self.debian.tree, &self.base, &self.products),
        };
        let is_wanted = |name: &str| match task {
            Task::Checks(checks) => checks.iter().any(|check| check.assets.contains(&name)),
            Task::Demo => true,
            Task::Shell => false,
        };
        let declared = DECLARED.into_iter().filter(|name| is_wanted(name)).map(|name| self.declared(name));
        let declared = declared.collect::<Result<Vec<_>>>()?;
        if matches!(task, Task::Checks(_)) && is_wanted(TUTORIAL) {
            step("what the tutorial builds", || self.assets.make_tutorial(&self.builder))?;
        }
        if matches!(task, Task::Checks(_)) && is_wanted(PACKAGES) {
            let make = || self.assets.make_packages(&self.cache, &self.debian, self.scratch.path());
            step("our Debian packages", make)?;
        }
        if matches!(task, Task::Checks(_)) && is_wanted(LIBVIRT) {
            step("libvirt", || self.assets.make_libvirt(&self.cache, &self.debian))?;
        }
        let systems = dom0::Systems { closures: &self.closures, declared: &declared, assets: &self.assets };
        let overlay = dom0::overlay((&self.debian, tree), products, &systems, task)?;
        Machine::boot(&self.debian, base, &overlay, &folder, boot, console)
    }

    /// One boot for `checks`. A check that the machine did not live to run has no outcome.
    fn run_once(&self, boot: Boot, checks: &[Check]) -> Result<BTreeMap<String, Outcome>> {
        log(&format!("boot '{}' with {} MiB for {} checks", boot.name, boot.memory, checks.len()));
        let mut machine = self.boot(&Task::Checks(checks), boot, Console::Logged)?;
        let mut outcomes = BTreeMap::new();
        let mut running: Option<String> = None;
        let mut patience = PATIENCE;
        let lost = loop {
            match machine.listen(patience) {
                Heard::Event(event) => match event {
                    Event::Up { seconds } => {
                        log(&format!(
                            "dom0 is up after {seconds:.1} s ({:.1} s here)",
                            machine.age().as_secs_f64()
                        ));
                    }
                    Event::Begin { name } => {
                        let limit = checks.iter().find(|check| check.name == name).map(|check| check.limit);
                        patience = PATIENCE + limit.unwrap_or_default();
                        running = Some(name);
                    }
                    Event::Pass { name, seconds } => {
                        log(&format!("pass {name} ({seconds:.1} s)"));
                        running = None;
                        outcomes.insert(name, Ok(seconds));
                    }
                    Event::Fail { name, seconds, reason } => {
                        log(&format!("FAIL {name} ({seconds:.1} s): {reason}"));
                        running = None;
                        outcomes.insert(name, Err(reason));
                    }
                    Event::End => break None,
                    Event::Output(line) => log(&format!("{} | {line}", boot.name)),
                },
                Heard::Gone => break Some("the machine died".to_owned()),
                Heard::Silent(wait) => {
                    break Some(format!("the machine has said nothing for {} s", wait.as_secs()));
                }
            }
        };
        if let Some(lost) = lost {
            log(&lost);
            show_console(&machine);
            if let Some(name) = running {
                outcomes.insert(name, Err(lost));
            }
        }
        log(&format!("boot '{}' took {:.0} s", boot.name, machine.age().as_secs_f64()));
        Ok(outcomes)
    }
}

/// This machine's processors, of which each emulated one wants one for itself.
struct Processors {
    all: usize,
    free: Mutex<usize>,
    given_back: Condvar,
}

/// Some of them, until this is dropped.
struct Taken<'a>(&'a Processors, usize);

impl Processors {
    fn new(all: usize) -> Self {
        Self { all, free: Mutex::new(all), given_back: Condvar::new() }
    }

    /// Waits until so many are free; a machine that wants more than there are gets them all.
    fn take(&self, wanted: usize) -> Taken<'_> {
        let wanted = wanted.min(self.all);
        let free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        let free = self.given_back.wait_while(free, |free| *free < wanted);
        *free.unwrap_or_else(PoisonError::into_inner) -= wanted;
        Taken(self, wanted)
    }
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        *self.0.free.lock().unwrap_or_else(PoisonError::into_inner) += self.1;
        self.0.given_back.notify_all();
    }
}

/// Writes one line of progress.
pub fn log(line: &str) {
    // A closed stderr is no reason to stop testing.
    let _ = writeln!(std::io::stderr().lock(), "testbed: {line}");
}

fn show_console(machine: &Machine) {
    log("the end of Xen's and dom0's console:");
    for line in machine.console_tail(CONSOLE_LINES) {
        log(&format!("  > {line}"));
    }
}

/// Does `work` and says how long it took if that was long.
fn step<T>(name: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    let started = Instant::now();
    let result = work()?;
    log(&format!("{name}: ready ({:.1} s)", started.elapsed().as_secs_f64()));
    Ok(result)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_waits_for_as_many_processors_as_it_has_or_there_are() {
        let processors = Processors::new(2);
        let two = (processors.take(1), processors.take(1));
        thread::scope(|scope| {
            let third = scope.spawn(|| processors.take(4).1);
            assert_eq!(*processors.free.lock().unwrap(), 0);
            drop(two.0);
            drop(two.1);
            assert_eq!(third.join().unwrap(), 2);
        });
        assert_eq!(*processors.free.lock().unwrap(), 2);
    }
}
