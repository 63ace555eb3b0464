//! `nxl generations`, `nxl switch` and `nxl rollback`: the systems that a declared qube was booted from, and another of them.

use crate::apply::{Effort, Wait};
use crate::command::{GenerationsOptions, MannerOptions, RollbackOptions, SwitchOptions};
use crate::error::Error;
use crate::screen::Screen;
use crate::spec::{self, APPLIED, Text};
use jiff::tz::TimeZone;
use jiff::{Timestamp, Zoned};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use toolstack::config::{Closure, ClosureError};
use toolstack::events::Step;
use toolstack::generations::{Generation, Generations, Reason, Record, Variant};
use toolstack::qubes::Qubes;
use toolstack::spec::{Document, Wishes, uuid_of};
use toolstack::store_path;

/// Bytes of a nixos-version that are read.
const VERSION_LIMIT: u64 = 128;
const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// What was applied last, and the system that it declares of a NixOS.
fn declared(qube: &str) -> Result<(Document, PathBuf), Error> {
    let path = Path::new(APPLIED);
    if !path.exists() {
        return Err(Error::NothingApplied { path: path.to_owned() });
    }
    let document = spec::read(path)?.document().clone();
    let system = match document.qubes.get(qube) {
        None => return Err(Error::NotDeclared(qube.to_owned())),
        Some(declared) => declared.system.clone().ok_or_else(|| Error::NoNixos(qube.to_owned()))?,
    };
    Ok((document, system))
}

pub(crate) fn switch(options: &SwitchOptions) -> Result<(), Error> {
    let qubes = crate::qubes()?;
    let lock = options.manner.lock(&qubes)?;
    let (_, system) = declared(&options.qube)?;
    let generations = Generations::default();
    let chosen = choose(&generations, options, &system)?;
    let to = chosen.map_or_else(|| "what is declared".to_owned(), |variant| variant.to_string());
    qubes.tell_of(&options.qube, Step::Switched { to });
    run(&qubes, &lock, &options.qube, &options.manner)
}

/// Writes down what is to run from now on; `None` when that is what is declared.
fn choose(
    generations: &Generations,
    options: &SwitchOptions,
    declared: &Path,
) -> Result<Option<Variant>, Error> {
    let SwitchOptions { qube, generation, specialisation, .. } = options;
    let number = match (generation, specialisation) {
        (None, None) => {
            generations.release(qube)?;
            return Ok(None);
        }
        (Some(number), _) => *number,
        (None, Some(_)) => {
            let booted = generations.record(qube)?.booted.map(|variant| variant.generation);
            let number = booted.map_or_else(|| generations.default_of(qube), |number| Ok(Some(number)))?;
            number.ok_or_else(|| toolstack::generations::GenerationError::NoneYet(qube.clone()))?
        }
    };
    let closure = Closure::open(&generations.get(qube, number)?.system)?;
    // Before the qube is ended: that there is such a specialisation, and that it can be booted.
    match specialisation {
        Some(name) => closure.specialisation(name)?.check()?,
        None => closure.check()?,
    }
    let variant = Variant { generation: number, specialisation: specialisation.clone() };
    generations.hold(qube, declared, variant.clone(), Reason::Switched)?;
    Ok(Some(variant))
}

pub(crate) fn rollback(options: &RollbackOptions) -> Result<(), Error> {
    let qubes = crate::qubes()?;
    let lock = options.manner.lock(&qubes)?;
    let (_, system) = declared(&options.qube)?;
    let generations = Generations::default();
    let before = generations.before(&options.qube)?;
    Closure::open(&before.system)?.check()?;
    let variant = Variant { generation: before.number, specialisation: None };
    let to = variant.to_string();
    generations.hold(&options.qube, &system, variant, Reason::RolledBack)?;
    qubes.tell_of(&options.qube, Step::RolledBack { to });
    run(&qubes, &lock, &options.qube, &options.manner)
}

/// Restarts the qube, and leaves all others as they are.
fn run(
    qubes: &Qubes,
    lock: &toolstack::spec::ApplyLock,
    qube: &str,
    manner: &MannerOptions,
) -> Result<(), Error> {
    let spec = Text::read(Path::new(APPLIED))?;
    let effort = Effort {
        qubes,
        lock,
        spec: &spec,
        wishes: Wishes { prune: false, start: BTreeSet::from([qube.to_owned()]) },
        only: Some(qube),
        no_restart: false,
        jobs: 1,
        wait: if manner.no_wait { Wait::Nobody } else { Wait::All(None) },
        manner,
        screen: Screen::of(manner),
    };
    effort.make()
}

pub(crate) fn generations(qubes: &Qubes, options: &GenerationsOptions) -> Result<(), Error> {
    let generations = Generations::default();
    let name = &options.qube;
    let known = generations.list(name)?;
    if known.is_empty() {
        return Err(toolstack::generations::GenerationError::NoneYet(name.clone()).into());
    }
    let delete = match &options.delete_older_than {
        Some(age) => older_than(&generations, name, &known, age)?,
        None => options.delete.clone(),
    };
    if !delete.is_empty() || options.delete_older_than.is_some() {
        let _lock = qubes.lock_apply()?.ok_or(Error::Applying)?;
        generations.remove(name, &delete)?;
        let said =
            if options.json { format!("{:#}\n", json!({ "removed": delete })) } else { forgot(&delete) };
        return io::stdout().write_all(said.as_bytes()).map_err(Error::Output);
    }
    let runs = qubes.list()?.iter().any(|qube| qube.uuid() == uuid_of(name) && qube.info.shutdown.is_none());
    // Where nothing was applied since the host booted, nothing is marked as declared.
    let declared = declared(name).ok().map(|(_, system)| system);
    let shown =
        Shown { record: generations.record(name)?, default: generations.default_of(name)?, runs, declared };
    let text = if options.json {
        let list: Vec<_> = known.iter().map(|generation| shown.json(generation)).collect();
        format!("{:#}\n", json!(list))
    } else {
        shown.table(&known)
    };
    io::stdout().write_all(text.as_bytes()).map_err(Error::Output)
}

fn forgot(numbers: &[u64]) -> String {
    match numbers {
        [] => "None is that old.\n".to_owned(),
        numbers => {
            let numbers: Vec<_> = numbers.iter().map(u64::to_string).collect();
            format!("Forgotten: {}\n", numbers.join(", "))
        }
    }
}

/// As nix-env has it: all that were made before, but for the newest of these, which was the one to run at that time. Those
/// that are needed are left out.
fn older_than(
    generations: &Generations,
    qube: &str,
    known: &[Generation],
    age: &str,
) -> Result<Vec<u64>, Error> {
    let days = age.strip_suffix('d').unwrap_or(age).parse::<u32>().map_err(|_| Error::Age(age.to_owned()))?;
    let Some(bound) = DAY.checked_mul(days).and_then(|age| SystemTime::now().checked_sub(age)) else {
        return Ok(Vec::new());
    };
    let mut old: Vec<u64> = known
        .iter()
        .filter(|generation| generation.made < bound)
        .map(|generation| generation.number)
        .collect();
    old.pop();
    let mut free = Vec::new();
    for number in old {
        if generations.need(qube, number)?.is_none() {
            free.push(number);
        }
    }
    Ok(free)
}

/// What is shown of generations besides themselves.
struct Shown {
    record: Record,
    default: Option<u64>,
    runs: bool,
    declared: Option<PathBuf>,
}

impl Shown {
    fn marks(&self, generation: &Generation) -> Vec<String> {
        let number = generation.number;
        let of = |variant: &Variant| variant.generation == number;
        let mut marks = Vec::new();
        if self.declared.as_deref() == Some(&generation.system) {
            marks.push("declared".to_owned());
        }
        if self.default == Some(number) {
            marks.push("default".to_owned());
        }
        if let Some(variant) = self.record.booted.as_ref().filter(|variant| self.runs && of(variant)) {
            let special = variant.specialisation.as_ref();
            marks.push(special.map_or_else(|| "booted".to_owned(), |name| format!("booted: {name}")));
            if self.record.trial.is_some() {
                marks.push("on trial".to_owned());
            }
        }
        if let Some(held) = self.record.held.as_ref().filter(|held| of(&held.variant)) {
            marks.push(held.reason.said().to_owned());
        }
        if let Some(why) = self.record.failed.get(&number) {
            marks.push(format!("failed: {why}"));
        }
        marks
    }

    fn table(&self, known: &[Generation]) -> String {
        let mut text =
            format!("{:>4}  {:<19}  {:<20}  {:<24}  {}\n", "No.", "Recorded", "NixOS", "Kernel", "");
        text = text.trim_end().to_owned() + "\n";
        for generation in known {
            let system = System::of(&generation.system);
            let date = Zoned::new(timestamp(generation.made), TimeZone::system());
            let line = format!(
                "{:>4}  {}  {:<20}  {:<24}  {}",
                generation.number,
                date.strftime("%Y-%m-%d %H:%M:%S"),
                system.version,
                system.kernel,
                self.marks(generation).join(", ")
            );
            let _ = writeln!(text, "{}", line.trim_end());
            if !system.specialisations.is_empty() {
                let _ = writeln!(text, "      specialisations: {}", system.specialisations.join(", "));
            }
        }
        text
    }

    fn json(&self, generation: &Generation) -> Value {
        let System { version, kernel, specialisations } = System::of(&generation.system);
        let booted = self.record.booted.as_ref();
        let booted = booted.filter(|variant| self.runs && variant.generation == generation.number);
        json!({
            "generation": generation.number,
            "system": generation.system,
            "recorded": timestamp(generation.made).to_string(),
            "nixos": version,
            "kernel": kernel,
            "specialisations": specialisations,
            "declared": self.declared.as_deref() == Some(&*generation.system),
            "default": self.default == Some(generation.number),
            "booted": booted.is_some(),
            "booted_specialisation": booted.and_then(|variant| variant.specialisation.as_ref()),
            "on_trial": booted.is_some() && self.record.trial.is_some(),
            "failed": self.record.failed.get(&generation.number),
        })
    }
}

fn timestamp(time: SystemTime) -> Timestamp {
    let seconds = time.duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs());
    i64::try_from(seconds).ok().and_then(|seconds| Timestamp::from_second(seconds).ok()).unwrap_or_default()
}

/// What a system says of itself; what it does not say, or cannot any more, is a dash.
struct System {
    version: String,
    kernel: String,
    specialisations: Vec<String>,
}

impl System {
    fn of(system: &Path) -> Self {
        let closure: Option<Closure> = Closure::open(system).map_err(|_: ClosureError| ()).ok();
        let kernel = closure.as_ref().map(|closure| closure.kernel.display().to_string());
        let kernel = kernel.map(|kernel| store_path::name(&kernel).unwrap_or(&kernel).to_owned());
        Self {
            version: version(system).unwrap_or_else(|| "-".to_owned()),
            kernel: kernel.unwrap_or_else(|| "-".to_owned()),
            specialisations: closure
                .map(|closure| closure.specialisations.into_keys().collect())
                .unwrap_or_default(),
        }
    }
}

/// What is in `nixos-version`, as far as it can be shown.
fn version(system: &Path) -> Option<String> {
    let mut text = String::new();
    fs::File::open(system.join("nixos-version")).ok()?.take(VERSION_LIMIT).read_to_string(&mut text).ok()?;
    let text = text.trim();
    (!text.is_empty() && !text.chars().any(char::is_control)).then(|| text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Switch {
        #[command(flatten)]
        options: SwitchOptions,
    }

    fn options(line: &str) -> SwitchOptions {
        Switch::parse_from(std::iter::once("switch").chain(line.split(' '))).options
    }

    struct Site {
        folder: tempfile::TempDir,
        generations: Generations,
    }

    /// Generations 1 (alpha) and 2 (beta), of which the second has a specialisation.
    fn site() -> Site {
        let folder = tempfile::tempdir().unwrap();
        for system in ["alpha", "beta", "beta/specialisation/rescue"] {
            let system = folder.path().join(system);
            fs::create_dir_all(&system).unwrap();
            for file in ["kernel", "initrd", "init", "kernel-params"] {
                fs::write(system.join(file), "x").unwrap();
            }
            fs::write(system.join("nixos-version"), "25.11\n").unwrap();
        }
        let links = folder.path().join("g/links");
        fs::create_dir_all(&links).unwrap();
        for (number, system) in [(1, "alpha"), (2, "beta")] {
            let link = links.join(format!("work-{number}-link"));
            std::os::unix::fs::symlink(folder.path().join(system), link).unwrap();
        }
        std::os::unix::fs::symlink("work-2-link", links.join("work")).unwrap();
        let generations = Generations::in_folder(folder.path().join("g"));
        Site { folder, generations }
    }

    #[test]
    fn what_is_to_run_is_a_number_a_specialisation_or_what_is_declared() {
        let site = site();
        let beta = site.folder.path().join("beta");
        let held = |line: &str| {
            choose(&site.generations, &options(line), &beta).map_err(|error| error.to_string())?;
            Ok::<_, String>(
                site.generations.record("work").unwrap().held.map(|held| held.variant.to_string()),
            )
        };
        assert_eq!(held("work 1").unwrap().as_deref(), Some("generation 1"));
        assert_eq!(held("work").unwrap(), None);
        assert_eq!(
            held("work --specialisation rescue").unwrap().as_deref(),
            Some("generation 2, specialisation rescue")
        );
        assert_eq!(held("work 2").unwrap(), None, "that is what is declared");
        assert!(held("work 3").unwrap_err().ends_with("no generation 3 (it has 1, 2)"));
        assert!(held("work 1 --specialisation rescue").unwrap_err().contains("no specialisation `rescue'"));
        assert!(held("vault --specialisation x").unwrap_err().starts_with("vault has no generations"));
        fs::remove_file(site.folder.path().join("alpha/kernel")).unwrap();
        assert!(held("work 1").is_err(), "it cannot be booted");
    }

    #[test]
    fn generations_are_shown_with_what_they_are() {
        let site = site();
        let known = site.generations.list("work").unwrap();
        let variant = |generation| Variant { generation, specialisation: None };
        let beta = site.folder.path().join("beta");
        let record = Record {
            booted: Some(variant(1)),
            held: Some(toolstack::generations::Held {
                variant: variant(1),
                against: beta.clone(),
                reason: Reason::FellBack,
            }),
            failed: [(2, "ended before it reported ready".to_owned())].into(),
            ..Record::default()
        };
        let shown = Shown { record, default: Some(1), runs: true, declared: Some(beta) };
        let table = shown.table(&known);
        let lines: Vec<_> = table.lines().collect();
        assert!(
            lines[1].starts_with("   1  2") && lines[1].ends_with("  default, booted, fell back"),
            "{table}"
        );
        assert!(lines[1].contains("  25.11  "), "{table}");
        assert!(lines[2].ends_with("  declared, failed: ended before it reported ready"), "{table}");
        assert_eq!(lines[3], "      specialisations: rescue");
        let json = shown.json(&known[1]);
        assert_eq!(
            (&json["failed"], &json["booted"]),
            (&"ended before it reported ready".into(), &false.into())
        );
        assert_eq!(json["specialisations"][0], "rescue");
        let halted = Shown { runs: false, ..shown };
        assert_eq!(halted.marks(&known[0]), ["default", "fell back"]);
        fs::remove_dir_all(site.folder.path().join("alpha")).unwrap();
        assert!(halted.table(&known).contains("  -    "), "it is gone, and shown all the same");
    }

    #[test]
    fn ages_are_days_and_the_one_of_that_time_is_kept() {
        let site = site();
        let old = |age: &str, known: &[Generation]| older_than(&site.generations, "work", known, age);
        let mut known = site.generations.list("work").unwrap();
        assert_eq!(old("30d", &known).unwrap(), [0; 0]);
        for generation in &mut known {
            generation.made -= 31 * DAY;
        }
        assert_eq!(old("30d", &known).unwrap(), [1], "the second ran then");
        assert_eq!(old("32", &known).unwrap(), [0; 0]);
        for wrong in ["", "d", "-1d", "1w"] {
            assert!(matches!(old(wrong, &known), Err(Error::Age(_))), "{wrong}");
        }
        assert_eq!(
            (forgot(&[1, 3]), forgot(&[])),
            ("Forgotten: 1, 3\n".to_owned(), "None is that old.\n".to_owned())
        );
    }
}
