//! `nxl disposable`: qubes that are made of a declared template, and go when nobody has a use for them any more.

use crate::command::DisposableCommand;
use crate::error::Error;
use crate::manage::say;
use crate::spec::APPLIED;
use crate::xl_conf::XlConf;
use crate::{create, watch};
use std::path::Path;
use toolstack::KernelCache;
use toolstack::boot::BuildError;
use toolstack::create::CreateError;
use toolstack::generations::Generations;
use toolstack::pool::PoolError;
use toolstack::qubes::{QubeError, Qubes};
use toolstack::spec::{Disposable, DisposableError, Spec};
use uuid::Uuid;
use xen::host::Dom0;
use xen::{ForeignMemory, Platform};

/// The numbers that their names have, as in Qubes.
const NUMBERS: u128 = 10_000;
/// How many names are tried when others take them at the same time.
const ATTEMPTS: usize = 8;

pub(crate) fn disposable(qubes: Qubes, command: &DisposableCommand) -> Result<(), Error> {
    let qubes = qubes.with_kernel_cache(KernelCache::default());
    let foreign = || Dom0.foreign_memory().map_err(Error::of_opening);
    match command {
        DisposableCommand::Create { name, quiet, template } => {
            let disposable = of_template(Path::new(APPLIED), &Generations::default(), template)?;
            let name = create(&qubes, &disposable, name.as_deref(), &*foreign()?)?;
            watch::ensure(&qubes)?;
            if *quiet { Ok(()) } else { say(&name) }
        }
        DisposableCommand::Destroy { force, qube } => match qubes.destroy_disposable(qube) {
            Err(DisposableError::Qube(QubeError::NotFound { .. })) if *force => Ok(()),
            ended => Ok(ended?),
        },
        DisposableCommand::Fill { template, count } => {
            let disposable = of_template(Path::new(APPLIED), &Generations::default(), template)?;
            let foreign = foreign()?;
            for qube in with_room(&qubes, || qubes.fill_disposables(&disposable, *count, &*foreign))? {
                say(qube.display_name())?;
            }
            Ok(())
        }
    }
}

/// What disposable qubes are made of, by what was applied last on this host.
fn of_template(applied: &Path, generations: &Generations, template: &str) -> Result<Disposable, Error> {
    if !applied.exists() {
        return Err(Error::NothingApplied { path: applied.to_owned() });
    }
    let spec = Spec::read(applied)?;
    let system = spec.document().qubes.get(template).and_then(|qube| qube.system.as_ref());
    let choice = system.map(|system| generations.choice(template, system)).transpose()?;
    let mut disposable = spec.disposable(template, choice.as_ref())?;
    let conf = XlConf::open()?;
    conf.complete(&mut disposable.config)?;
    create::mask_cpus(&mut disposable.config, &conf)?;
    Ok(disposable)
}

/// Takes one that was built ahead, or makes one; its name.
fn create(
    qubes: &Qubes,
    disposable: &Disposable,
    name: Option<&str>,
    foreign: &dyn ForeignMemory,
) -> Result<String, Error> {
    let mut attempts = 0;
    loop {
        let chosen = name.map_or_else(|| free_name(qubes), |name| Ok(name.to_owned()))?;
        let made = match qubes.take_disposable(disposable, &chosen) {
            Ok(None) => with_room(qubes, || qubes.start_disposable(disposable, &chosen, foreign)).map(drop),
            taken => taken.map(drop).map_err(Error::from),
        };
        match made {
            Ok(()) => return Ok(chosen),
            Err(Error::Disposable(error)) if name.is_none() && attempts < ATTEMPTS && is_taken(&error) => {
                attempts += 1;
            }
            Err(error) => return Err(error),
        }
    }
}

/// Does it once more, with memory of dom0's, where there was none.
fn with_room<T>(qubes: &Qubes, make: impl Fn() -> Result<T, DisposableError>) -> Result<T, Error> {
    match make() {
        Err(DisposableError::Create(CreateError::Build(BuildError::Memory { needed_kib, .. }))) => {
            create::make_room(qubes, needed_kib)?;
            Ok(make()?)
        }
        made => Ok(made?),
    }
}

/// A name of which there is no qube: one of Qubes' kind.
fn free_name(qubes: &Qubes) -> Result<String, Error> {
    let taken = qubes.list()?;
    let first = Uuid::new_v4().as_u128() % NUMBERS;
    (0..NUMBERS)
        .map(|step| format!("disp{}", (first + step) % NUMBERS))
        .find(|name| taken.iter().all(|qube| qube.name.as_deref() != Some(name)))
        .ok_or(Error::NoFreeName)
}

/// Whether somebody else was faster with the name.
fn is_taken(error: &DisposableError) -> bool {
    matches!(
        error,
        DisposableError::Create(CreateError::NameTaken { .. })
            | DisposableError::Pool(PoolError::Qube(QubeError::Name { holder: Some(_), .. }))
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::{Arguments, Command};

    /// The words that nexusd has run for a template that is declared.
    fn words(line: &[String]) -> DisposableCommand {
        let words = line.iter().map(|word| word.replace("{name}", "disp7").replace("{template}", "office"));
        match Arguments::of(words.map(Into::into)).unwrap().command {
            Command::Disposable(command) => command,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn nexusd_has_them_made_and_ended_by_commands_that_there_are() {
        let how = nexus::broker::Settings::default().declared_disposables.unwrap();
        let DisposableCommand::Create { name, template, .. } = words(&how.create) else { panic!() };
        assert_eq!((name.as_deref(), template.as_str()), (Some("disp7"), "office"));
        let DisposableCommand::Destroy { force, qube } = words(&how.destroy) else { panic!() };
        // It may have ended by itself.
        assert_eq!((force, qube.as_str()), (true, "disp7"));
    }

    #[test]
    fn what_was_applied_says_of_what_they_are_made() {
        let folder = tempfile::tempdir().unwrap();
        let applied = folder.path().join("qubes.json");
        let generations = Generations::in_folder(folder.path().join("generations"));
        let made =
            |template: &str| of_template(&applied, &generations, template).map_err(|error| error.to_string());
        let error = made("viewer").unwrap_err();
        assert!(error.contains(&applied.display().to_string()), "{error}");
        std::fs::write(&applied, include_str!("../../nixos/tests/full.json")).unwrap();
        assert_eq!(made("net").unwrap_err(), "qubes.net: net is no template of disposables");
        assert_eq!(made("nobody").unwrap_err(), "qubes.nobody: there is no qube \"nobody\"");
        // This one is, and its system is nowhere here.
        let error = made("viewer").unwrap_err();
        assert!(error.starts_with("qubes.viewer.system: /nix/store/"), "{error}");
    }
}
