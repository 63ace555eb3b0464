//! The other side: runs the program that a configuration's `bootloader` names, be it pygrub or `nxl-bootloader`, as libxl
//! does, and reads what it is told to boot.

use crate::config::QubeConfig;
use crate::device;
use std::env;
use std::ffi::OsString;
use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

/// How long a boot loader may take: it has nobody to ask.
const LIMIT: Duration = Duration::from_secs(120);
/// Where Xen's own boot loaders are, in Debian and elsewhere.
const FOLDERS: &str = ":/usr/sbin:/usr/lib/xen-4.17/bin:/usr/lib/xen/bin:/usr/libexec/xen/bin";

/// Why a boot loader gave nothing to boot.
#[derive(Debug, thiserror::Error)]
pub enum ProgramError {
    /// There is nothing to look for a kernel on.
    #[error(
        "{program} needs a disk to boot from: the first one of the configuration, of dom0 and without `script' or `backend'",
        program = .program.display()
    )]
    NoDisk {
        /// The boot loader.
        program: PathBuf,
    },
    /// It could not be run, or what it needs not be made.
    #[error("the boot loader {program} could not be run: {source}", program = .program.display())]
    Run {
        /// The boot loader.
        program: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It failed.
    #[error("the boot loader {program} {how}: {said}", program = .program.display())]
    Failed {
        /// The boot loader.
        program: PathBuf,
        /// How it ended.
        how: String,
        /// The last line that it wrote, but for its output.
        said: String,
    },
    /// It named no kernel.
    #[error("the boot loader {program} named no kernel", program = .program.display())]
    NoKernel {
        /// The boot loader.
        program: PathBuf,
    },
}

/// What a boot loader chose. Its files are in a folder that goes with the value: who has opened them needs it no more.
#[derive(Debug)]
pub(crate) struct Chosen {
    pub(crate) kernel: PathBuf,
    pub(crate) ramdisk: Option<PathBuf>,
    pub(crate) cmdline: String,
    _folder: Folder,
}

#[derive(Debug)]
struct Folder(PathBuf);

impl Folder {
    fn new(scratch: &Path) -> io::Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = scratch.join(format!("bootloader.{}-{number}", std::process::id()));
        fs::create_dir_all(scratch)?;
        // Of a process of that number that was killed.
        let _ = fs::remove_dir_all(&path);
        DirBuilder::new().mode(0o700).create(&path)?;
        Ok(Self(path))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // It is on a file system that does not outlive this boot of the host.
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Runs `program`, if the configuration has one, with the arguments that libxl gives (`make_bootloader_args`).
pub(crate) fn run(config: &QubeConfig, scratch: &Path) -> Result<Option<Chosen>, ProgramError> {
    let Some(program) = config.bootloader.clone() else { return Ok(None) };
    let disk = config.disks.first().filter(|disk| disk.script.is_none() && disk.backend.is_none());
    let disk = disk.and_then(|disk| disk.target.as_deref());
    let disk = disk.ok_or_else(|| ProgramError::NoDisk { program: program.clone() })?;
    let run_error = |source| ProgramError::Run { program: program.clone(), source };
    let folder = Folder::new(scratch).map_err(run_error)?;
    let (output, said) = (folder.0.join("output"), folder.0.join("said"));
    let new = |path: &Path| {
        let mut options = fs::OpenOptions::new();
        options.write(true).create_new(true).mode(0o600).open(path).map_err(run_error)
    };
    drop(new(&output)?);
    let messages = new(&said)?;
    let files = folder.0.join("files");
    DirBuilder::new().mode(0o700).create(&files).map_err(run_error)?;

    let option = |name: &str, value: &Path| {
        let mut option = OsString::from(format!("--{name}="));
        option.push(value);
        option
    };
    let mut command = Command::new(find(&program));
    if !config.kernel.as_os_str().is_empty() {
        command.arg(option("kernel", &config.kernel));
    }
    if let Some(ramdisk) = &config.ramdisk {
        command.arg(option("ramdisk", ramdisk));
    }
    if !config.cmdline.is_empty() {
        command.arg(format!("--args={}", config.cmdline));
    }
    command.arg(option("output", &output)).arg("--output-format=simple0");
    command.arg(option("output-directory", &files)).args(&config.bootloader_args).arg(disk);
    command.env("TERM", "vt100").stdin(Stdio::null());
    command.stdout(messages.try_clone().map_err(run_error)?).stderr(messages).process_group(0);
    let mut child = command.spawn().map_err(run_error)?;
    let status = device::wait(&mut child, LIMIT).map_err(run_error)?;
    let how = match status {
        Some(status) if status.success() => None,
        Some(status) => Some(format!("ended with {status}")),
        None => Some(format!("took more than {} s", LIMIT.as_secs())),
    };
    if let Some(how) = how {
        let said = fs::read(said).unwrap_or_default();
        let said = String::from_utf8_lossy(&said);
        let said = said.lines().map(str::trim).rfind(|line| !line.is_empty()).unwrap_or("it said nothing");
        let said = said.chars().filter(|c| !c.is_control()).take(500).collect();
        return Err(ProgramError::Failed { program, how, said });
    }
    let text = fs::read(&output).map_err(run_error)?;
    let (mut kernel, mut ramdisk, mut cmdline) = (None, None, String::new());
    for item in String::from_utf8_lossy(&text).split('\0') {
        // Whatever else a boot loader says libxl only remarks on.
        match item.split_once(char::is_whitespace).map(|(word, value)| (word, value.trim_start())) {
            Some(("kernel", path)) => kernel = Some(PathBuf::from(path)),
            Some(("ramdisk", path)) => ramdisk = Some(PathBuf::from(path)),
            Some(("args", text)) => text.clone_into(&mut cmdline),
            _ => {}
        }
    }
    let kernel = kernel.ok_or(ProgramError::NoKernel { program })?;
    Ok(Some(Chosen { kernel, ramdisk, cmdline, _folder: folder }))
}

/// A program that is named without its folder: the first of that name on the path, or where Xen's are.
fn find(program: &Path) -> PathBuf {
    if program.components().count() > 1 || program.is_absolute() {
        return program.to_owned();
    }
    let mut path = env::var_os("PATH").unwrap_or_default();
    path.push(FOLDERS);
    let found = env::split_paths(&path).map(|folder| folder.join(program)).find(|path| path.is_file());
    found.unwrap_or_else(|| program.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Settings;
    use std::os::unix::fs::PermissionsExt;

    struct Place(tempfile::TempDir);

    impl Place {
        fn new(script: &str) -> Self {
            let folder = tempfile::tempdir().unwrap();
            let program = folder.path().join("loader");
            fs::write(&program, format!("#!/bin/sh\n{script}\n")).unwrap();
            fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
            Self(folder)
        }

        fn run(&self, more: &str) -> Result<Option<Chosen>, ProgramError> {
            let program = self.0.path().join("loader");
            let text = format!("type='pv'\nname='work'\nbootloader='{}'\n{more}\n", program.display());
            let settings = Settings::parse("test.cfg", text.as_bytes(), &[""; 0]).unwrap();
            run(
                &QubeConfig::from_settings("test.cfg", &settings, None).unwrap().0,
                &self.0.path().join("scratch"),
            )
        }

        fn left(&self) -> usize {
            fs::read_dir(self.0.path().join("scratch")).unwrap().count()
        }
    }

    const DISK: &str = "disk=['/img/a,raw,xvda,w']";

    #[test]
    fn a_boot_loader_is_run_as_libxl_runs_it() {
        let place = Place::new(
            "for word; do case $word in --output=*) out=${word#*=};; --output-directory=*) dir=${word#*=};; esac; done\n\
             echo k > $dir/k; echo r > $dir/r\n\
             printf 'kernel %s/k\\0ramdisk  %s/r\\0args %s\\0what is it\\0\\0' $dir $dir \"$*\" > $out",
        );
        let chosen = place
            .run(&format!("{DISK}\nextra='quiet'\nbootloader_args=['-q','--entry=1 2']"))
            .unwrap()
            .unwrap();
        assert_eq!(fs::read_to_string(&chosen.kernel).unwrap(), "k\n");
        assert_eq!(fs::read_to_string(chosen.ramdisk.as_ref().unwrap()).unwrap(), "r\n");
        let folder = chosen.kernel.parent().unwrap().display().to_string();
        let output = folder.replace("/files", "/output");
        let expected = format!(
            "--args=quiet --output={output} --output-format=simple0 --output-directory={folder} -q --entry=1 2 /img/a"
        );
        assert_eq!(chosen.cmdline, expected);
        drop(chosen);
        assert_eq!(place.left(), 0);
    }

    #[test]
    fn a_boot_loader_that_chooses_nothing_is_an_error() {
        for (script, more, why) in [
            ("echo first; echo no such entry >&2; exit 3", DISK, "ended with exit status: 3: no such entry"),
            ("exit 0", DISK, "named no kernel"),
            ("exit 0", "", "needs a disk to boot from"),
            (
                "exit 0",
                "disk=['script=block-nix,vdev=xvda,access=r,target=/nix/store/x']",
                "needs a disk to boot from",
            ),
        ] {
            let place = Place::new(script);
            let error = place.run(more).unwrap_err().to_string();
            assert!(error.contains(why), "{error}");
            assert!(!place.0.path().join("scratch").exists() || place.left() == 0);
        }
        let place = Place::new("exit 0");
        fs::remove_file(place.0.path().join("loader")).unwrap();
        assert!(place.run(DISK).unwrap_err().to_string().contains("could not be run: No such file"));
    }
}
