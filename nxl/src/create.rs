//! `nxl create`.

use crate::command::{CreateOptions, StartOptions, UpdateOptions};
use crate::console;
use crate::error::Error;
use crate::spec::APPLIED;
use crate::watch;
use crate::xl_conf::XlConf;
use std::fs;
use std::io::{self, IsTerminal, Read, Write};
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};
use toolstack::KernelCache;
use toolstack::boot::BuildError;
use toolstack::config::{
    self, CLOSURE_MEMORY_MIB, Closure, ConfigWarning, GuestType, HostCpus, QubeConfig, Settings,
};
use toolstack::create::CreateError;
use toolstack::qubes::{Qube, Qubes};
use xen::host::Dom0;
use xen::{DomId, ForeignMemory, Platform};

/// What the settings of the command line are called in messages.
const COMMAND_LINE: &str = "command line";
/// How long dom0 may take to give memory back: xl's 30 s.
const ROOM_PATIENCE: Duration = Duration::from_secs(30);

pub(crate) fn create(options: &CreateOptions, dryrun: bool) -> Result<(), Error> {
    let start = &options.start;
    if start.wants_viewer() {
        return Err(Error::NoViewer);
    }
    if options.dryrun || dryrun {
        let config = read(options, true)?;
        return write!(io::stdout(), "{}", config.to_libxl_json()).map_err(Error::Output);
    }
    // Before anything is read: elsewhere than in dom0 that is the first thing to know.
    let uncached = Arc::new(OnceLock::new());
    let kernels = KernelCache::default().on_problem({
        let uncached = Arc::clone(&uncached);
        // Told of when the qube is there: if it fails, why is all that one wants to know.
        move |error| drop(uncached.set(error.to_string()))
    });
    let qubes = crate::qubes()?.with_kernel_cache(kernels);
    let foreign = Dom0.foreign_memory().map_err(Error::of_opening)?;
    let begun = Instant::now();
    let config = read(options, false)?;
    if !options.quiet {
        // As xl does, on stdout.
        writeln!(io::stdout(), "Parsing config from {}", options.source().0.display())
            .map_err(Error::Output)?;
    }
    if start.debug {
        write!(io::stdout(), "{}", config.to_libxl_json()).map_err(Error::Output)?;
    }
    let attended = start.attended();
    let create = || {
        if start.paused {
            qubes.create(&config, attended, &*foreign)
        } else {
            qubes.start(&config, attended, &*foreign)
        }
    };
    let qube = match create() {
        Err(CreateError::Build(BuildError::Memory { needed_kib, .. })) => {
            make_room(&qubes, needed_kib)?;
            create()?
        }
        made => made?,
    };
    if let Some(error) = uncached.get().filter(|_| !options.quiet) {
        // Nobody reads stderr: no reason to leave the qube unattended.
        let _ = writeln!(io::stderr(), "nxl: warning: kernels are not cached: {error}");
    }
    if attended {
        watch::ensure(&qubes)?;
    }
    if !options.quiet && Path::new(APPLIED).exists() {
        let _ = writeln!(
            io::stderr(),
            "nxl: {} steps outside of what is declared for this host: nxl apply leaves it alone, and nexusd denies its calls",
            config.name
        );
    }
    if !options.quiet && io::stderr().is_terminal() {
        let _ = writeln!(
            io::stderr(),
            "domain {}, {}: created in {:.0} ms",
            qube.info.domid,
            config.name,
            begun.elapsed().as_secs_f64() * 1e3
        );
    }
    stay(&qubes, &*foreign, qube, &config, start)
}

/// Stays with a qube as long as that is asked for.
pub(crate) fn stay(
    qubes: &Qubes,
    foreign: &dyn ForeignMemory,
    qube: Qube,
    config: &QubeConfig,
    start: &StartOptions,
) -> Result<(), Error> {
    if start.console {
        console::attach(qubes, &qube.info.domid.to_string())?;
    }
    if start.foreground {
        watch::attend(qubes, foreign, qube, config)?;
    }
    Ok(())
}

/// Has dom0 give memory to a new domain, where xl.conf lets it.
pub(crate) fn make_room(qubes: &Qubes, needed_kib: u64) -> Result<(), Error> {
    let conf = XlConf::open()?;
    let dom0 = qubes.get(DomId::DOM0)?;
    if !conf.balloons_dom0(qubes.control())? {
        return Ok(());
    }
    let _lock = conf.lock()?;
    Ok(qubes.make_room(&dom0, needed_kib, ROOM_PATIENCE)?)
}

/// `nxl config-update`: what the watcher makes a qube of when it restarts.
pub(crate) fn update(options: &UpdateOptions, dryrun: bool) -> Result<(), Error> {
    let qubes = crate::qubes()?;
    let qube = qubes.find(&options.qube)?;
    let (path, settings) = options.source();
    let config = read_xl_cfg(path, &settings)?;
    if options.debug || dryrun {
        write!(io::stdout(), "{}", config.to_libxl_json()).map_err(Error::Output)?;
    }
    if dryrun || qubes.keep_config(&qube, config)? {
        return Ok(());
    }
    Err(Error::NotKept { domid: qube.info.domid })
}

/// The configuration of an xl.cfg, and of the settings of the command line.
pub(crate) fn read_xl_cfg(path: &Path, settings: &[&str]) -> Result<QubeConfig, Error> {
    let source_name = path.display().to_string();
    let text = fs::read(path).map_err(|source| Error::Read { path: path.to_owned(), source })?;
    let settings = Settings::parse(&source_name, &text, settings)?;
    let (config, warnings) =
        QubeConfig::from_settings(&source_name, &settings, host_cpus(&settings).as_ref())?;
    for warning in warnings {
        let _ = writeln!(io::stderr(), "nxl: warning: {warning}");
    }
    Ok(config)
}

/// The configuration out of whatever was named, and of the settings of the command line. With `describe` it may be one that
/// no qube can be made with.
pub(crate) fn read(options: &CreateOptions, describe: bool) -> Result<QubeConfig, Error> {
    let (mut config, warnings) = read_with_warnings(options, describe)?;
    let conf = XlConf::open()?;
    conf.complete(&mut config)?;
    if !options.ignore_global_affinity_masks {
        mask_cpus(&mut config, &conf)?;
    }
    for warning in warnings {
        // Nobody reads stderr: no reason not to create the qube.
        let _ = writeln!(io::stderr(), "nxl: warning: {warning}");
    }
    Ok(config)
}

fn read_with_warnings(
    options: &CreateOptions,
    describe: bool,
) -> Result<(QubeConfig, Vec<ConfigWarning>), Error> {
    let (path, settings) = options.source();
    let path = &path.to_owned();
    let generation = match options.generation {
        Some(number) => Some(config::generation(path, number)?),
        None => None,
    };
    let system = generation.as_ref().unwrap_or(path);
    if generation.is_some() || Closure::is_one(system) {
        let system = Closure::open(system)?;
        let closure = match &options.specialisation {
            None => &system,
            Some(name) => system.specialisation(name)?,
        };
        closure.check()?;
        let secrets = closure.secrets()?.map(Path::to_owned);
        if let Some(program) = &secrets
            && !options.initrd_secrets
        {
            return Err(Error::InitrdSecrets {
                toplevel: closure.toplevel.clone(),
                program: program.clone(),
            });
        }
        let closure = Closure { initrd_secrets: secrets, ..closure.clone() };
        let settings = Settings::parse(COMMAND_LINE, b"", &settings)?;
        return Ok(QubeConfig::from_closure(&closure, &settings, host_cpus(&settings).as_ref())?);
    }
    for (given, option) in
        [(options.specialisation.is_some(), "--specialisation"), (options.initrd_secrets, "--initrd-secrets")]
    {
        if given {
            return Err(Error::NotAClosure { path: path.clone(), option });
        }
    }
    let read_error = |source| Error::Read { path: path.clone(), source };
    let source_name = path.display().to_string();
    let text = read_text(path).map_err(read_error)?.unwrap_or_else(|| around_image(path).into_bytes());
    let settings = Settings::parse(&source_name, &text, &settings)?;
    let host = host_cpus(&settings);
    let read = if describe { QubeConfig::described } else { QubeConfig::from_settings };
    Ok(read(&source_name, &settings, host.as_ref())?)
}

/// The host's CPUs, where the settings speak of CPUs; `None` where there is no Xen to ask.
fn host_cpus(settings: &Settings) -> Option<HostCpus> {
    settings.get("cpus").or_else(|| settings.get("cpus_soft"))?;
    HostCpus::of(&*Dom0.domain_control().ok()?).ok()
}

/// Has the vCPUs keep to what xl.conf says.
pub(crate) fn mask_cpus(config: &mut QubeConfig, conf: &XlConf) -> Result<(), Error> {
    let masks = conf.cpu_masks(config.guest == GuestType::Pvh);
    if masks.is_empty() {
        return Ok(());
    }
    let control = Dom0.domain_control().map_err(Error::of_opening)?;
    let host = HostCpus::of(&*control)?;
    Ok(masks.iter().try_for_each(|mask| config.mask_cpus(mask, &host))?)
}

/// A configuration file, which may be a pipe; `None` for what begins as a unified kernel image does.
fn read_text(path: &Path) -> io::Result<Option<Vec<u8>>> {
    let (mut file, mut text) = (fs::File::open(path)?, Vec::new());
    (&mut file).take(2).read_to_end(&mut text)?;
    if text == b"MZ" {
        return Ok(None);
    }
    file.read_to_end(&mut text)?;
    Ok(Some(text))
}

/// The configuration of a qube that boots an image which has all that it needs; the command line's settings follow.
fn around_image(path: &Path) -> String {
    let quoted = |text: &str| text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
    let name = path.file_stem().unwrap_or_default().to_string_lossy();
    format!(
        "type = \"pvh\"\nname = \"{}\"\nmemory = {CLOSURE_MEMORY_MIB}\nkernel = \"{}\"\n",
        quoted(&name),
        quoted(&path.to_string_lossy()),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::{Arguments, Command};
    use clap::Parser;
    use std::os::unix::fs::symlink;

    /// A profile of two generations; the second has a specialisation and secrets.
    fn profile() -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = folder.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        for system in ["one", "two", "two/specialisation/rescue"] {
            for file in ["kernel", "initrd", "init"] {
                write(&format!("{system}/{file}"), system);
            }
            write(&format!("{system}/kernel-params"), system);
        }
        write("one/append-initrd-secrets", "#!/bin/sh\nexit 0\n");
        write("two/append-initrd-secrets", "#!/bin/sh\necho secret >> $1\n");
        write("work.cfg", "type='pvh'\nname='work'\nkernel='/k'\n");
        symlink("one", folder.path().join("system-1-link")).unwrap();
        symlink("two", folder.path().join("system-3-link")).unwrap();
        symlink("system-3-link", folder.path().join("system")).unwrap();
        folder
    }

    fn read_line(folder: &tempfile::TempDir, line: &str) -> Result<QubeConfig, String> {
        let line = line.replace('/', &format!("{}/", folder.path().display()));
        let arguments = Arguments::try_parse_from(format!("nxl create {line}").split(' ')).unwrap();
        let Command::Create(options) = arguments.command else { panic!("{line}") };
        read_with_warnings(&options, false).map(|(config, _)| config).map_err(|error| error.to_string())
    }

    #[test]
    fn generations_and_specialisations_are_chosen_by_number_and_name() {
        let folder = profile();
        let first = read_line(&folder, "/system --generation 1 name=work").unwrap();
        assert!(first.cmdline.starts_with("one init="), "{}", first.cmdline);
        assert_eq!(first.initrd_secrets, None, "its program has none");
        let rescue = read_line(&folder, "/system --specialisation rescue name=work").unwrap();
        assert!(rescue.cmdline.starts_with("two/specialisation/rescue init="), "{}", rescue.cmdline);
        let error = read_line(&folder, "/system --generation 2").unwrap_err();
        assert!(error.ends_with("system: no generation 2 (it has 1, 3)"), "{error}");
        let error = read_line(&folder, "/system --specialisation rescu").unwrap_err();
        assert!(error.ends_with("(did you mean `rescue'? it has rescue)"), "{error}");
        let error = read_line(&folder, "/work.cfg --generation 3").unwrap_err();
        assert!(error.contains("work.cfg: no profile"), "{error}");
        let error = read_line(&folder, "/work.cfg --specialisation rescue").unwrap_err();
        assert!(error.ends_with("work.cfg is no NixOS closure, which --specialisation is for"), "{error}");
    }

    #[test]
    fn secrets_are_appended_only_when_that_is_asked_for() {
        let folder = profile();
        let error = read_line(&folder, "/system name=work").unwrap_err();
        assert!(
            error.contains("append-initrd-secrets") && error.ends_with("--initrd-secrets lets it"),
            "{error}"
        );
        let config = read_line(&folder, "/system --initrd-secrets name=work").unwrap();
        assert!(config.initrd_secrets.unwrap().ends_with("append-initrd-secrets"));
        let error = read_line(&folder, "/work.cfg --initrd-secrets").unwrap_err();
        assert!(error.ends_with("which --initrd-secrets is for"), "{error}");
    }

    #[test]
    fn an_image_that_has_all_it_needs_is_a_configuration() {
        let folder = profile();
        let path = folder.path().join("a \"b\" \\c.efi");
        fs::write(&path, b"MZ and so on").unwrap();
        let read = |settings: &[&str]| {
            let mut line = vec!["nxl".as_ref(), "create".as_ref(), path.as_os_str()];
            line.extend(settings.iter().map(std::ffi::OsStr::new));
            let Command::Create(options) = Arguments::try_parse_from(line).unwrap().command else { panic!() };
            read_with_warnings(&options, false).unwrap().0
        };
        let config = read(&[]);
        assert_eq!((config.name.as_str(), config.memory_mib), ("a \"b\" \\c", 512));
        assert_eq!((&config.kernel, config.cmdline.as_str()), (&path, ""));
        let config = read(&["name='work'", "memory=1024", "extra='debug'"]);
        assert_eq!(
            (config.name.as_str(), config.memory_mib, config.cmdline.as_str()),
            ("work", 1024, "debug")
        );
    }
}
