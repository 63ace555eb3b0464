//! apt with its state in the cache folder: it downloads packages and what they depend on, installs nothing, needs
//! no root, and neither sees nor touches what is installed on the machine.
//!
//! The sources are the machine's own. Its package lists are not: they may be missing or old.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::cache::Cache;
use crate::debian::HYPERVISOR;
use crate::error::At as _;
use crate::release::{BOOKWORM, Release};
use crate::{Error, Result, process};

const SOURCES: &str = "/etc/apt/sources.list.d";

/// A private apt whose package lists are fresh.
#[derive(Debug)]
pub struct Apt {
    state: PathBuf,
    release: Release,
}

impl Apt {
    /// Fetches the package lists of a release.
    pub fn update(cache: &Cache, release: Release) -> Result<Self> {
        let state = cache.folder(&format!("apt-{}", release.suite))?;
        for folder in ["lists/partial", "archives/partial", "sources"] {
            let path = state.join(folder);
            fs::create_dir_all(&path).at(&path)?;
        }
        // An empty list of installed packages: closures come out the same on every machine.
        let status = state.join("status");
        fs::write(&status, "").at(&status)?;

        let apt = Self { state, release };
        if release == BOOKWORM {
            apt.adopt_sources()?;
        } else {
            // The machine's own are of Debian 12; where those are, the others are.
            Self::update(cache, BOOKWORM)?.add_suite(&apt, release.suite)?;
        }
        apt.fetch_lists()?;
        Ok(apt)
    }

    /// The version of `package` that would be downloaded, if apt has any.
    pub fn candidate(&self, package: &str) -> Result<Option<String>> {
        let policy = process::output(self.command("apt-cache").args(["policy", package]))?;
        let version = policy.lines().find_map(|line| line.trim().strip_prefix("Candidate: "));
        Ok(version.filter(|version| *version != "(none)").map(str::to_owned))
    }

    /// The first package that `package` depends on: what a metapackage stands for.
    pub fn stands_for(&self, package: &str) -> Result<Option<String>> {
        let depends = process::output(self.command("apt-cache").args(["depends", "--important", package]))?;
        Ok(depends.lines().find_map(|line| line.trim().strip_prefix("Depends: ")).map(str::to_owned))
    }

    /// Adds the backports of the Debian 12 that the machine uses.
    pub fn add_backports(&self) -> Result<()> {
        self.add_suite(self, "bookworm-backports")?;
        self.fetch_lists()
    }

    /// Adds to the sources of another (or of this) a suite of the repository that has the machine's Debian 12.
    fn add_suite(&self, to: &Self, suite: &str) -> Result<()> {
        let targets = process::output(self.command("apt-get").args([
            "indextargets",
            "--format",
            "$(RELEASE) $(REPO_URI)",
            "Created-By: Packages",
        ]))?;
        let repository =
            targets.lines().find_map(|line| line.strip_prefix("bookworm ")).ok_or(Error::NoBookworm)?;
        let keyring = Path::new("/usr/share/keyrings/debian-archive-keyring.gpg");
        let signed_by =
            if keyring.exists() { format!("[signed-by={}] ", keyring.display()) } else { String::new() };
        let path = to.state.join(format!("sources/testbed-{suite}.list"));
        fs::write(&path, format!("deb {signed_by}{repository} {suite} main\n")).at(&path)
    }

    /// Downloads `packages` and all they depend on, and returns the files.
    pub fn download_closure(&self, packages: &[String], into: &Path) -> Result<Vec<PathBuf>> {
        let partial = into.join("partial");
        fs::create_dir_all(&partial).at(&partial)?;
        let archives = format!("Dir::Cache::archives={}", into.display());
        let options =
            ["-o", &archives, "install", "--download-only", "--no-install-recommends", "--yes", "-qq"];
        process::run(self.command("apt-get").args(options).args(packages))?;
        archives_in(into)
    }

    /// Downloads `packages` alone, and returns the files.
    pub fn download(&self, packages: &[String], into: &Path) -> Result<Vec<PathBuf>> {
        fs::create_dir_all(into).at(into)?;
        process::run(self.command("apt-get").args(["download", "-qq"]).args(packages).current_dir(into))?;
        archives_in(into)
    }

    /// Points at the machine's sources through links, so that one more can be put beside them.
    fn adopt_sources(&self) -> Result<()> {
        let folder = self.state.join("sources");
        for old in fs::read_dir(&folder).at(&folder)? {
            let old = old.at(&folder)?.path();
            fs::remove_file(&old).at(&old)?;
        }
        let Ok(sources) = fs::read_dir(SOURCES) else { return Ok(()) };
        for source in sources {
            let source = source.at(SOURCES)?;
            symlink(source.path(), folder.join(source.file_name())).at(&folder)?;
        }
        Ok(())
    }

    fn fetch_lists(&self) -> Result<()> {
        // A third party's source that does not answer makes this fail and matters only if Debian's did neither.
        let updated = process::run(self.command("apt-get").args(["update", "-qq"]));
        let hypervisor = self.release.name(HYPERVISOR);
        match self.candidate(&hypervisor)? {
            Some(_) => Ok(()),
            None => updated.and(Err(Error::NotOffered { package: hypervisor, suite: self.release.suite })),
        }
    }

    fn command(&self, program: &str) -> Command {
        let state = self.state.display();
        let mut command = Command::new(program);
        for option in [
            format!("Dir::State={state}"),
            format!("Dir::State::lists={state}/lists"),
            format!("Dir::State::status={state}/status"),
            format!("Dir::Cache={state}"),
            format!("Dir::Etc::sourceparts={state}/sources"),
            // Another release's packages are not to be mixed with the machine's.
            format!(
                "Dir::Etc::sourcelist={}",
                if self.release == BOOKWORM { "/etc/apt/sources.list" } else { "/dev/null" }
            ),
            "APT::Architecture=amd64".to_owned(),
            // The folders belong to whoever runs the tests, and apt's own user may not reach them.
            "APT::Sandbox::User=root".to_owned(),
            "Debug::NoLocking=1".to_owned(),
        ] {
            command.arg("-o").arg(option);
        }
        command.env("LC_ALL", "C").env("DEBIAN_FRONTEND", "noninteractive");
        command
    }
}

fn archives_in(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut archives = Vec::new();
    for file in fs::read_dir(folder).at(folder)? {
        let path = file.at(folder)?.path();
        if path.extension().is_some_and(|extension| extension == "deb") {
            archives.push(path);
        }
    }
    archives.sort();
    Ok(archives)
}
