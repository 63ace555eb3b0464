//! What this checkout builds and the testbed runs: our programs, and the small C programs that face them.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::cache::checkout;
use crate::debian::Tree;
use crate::error::At as _;
use crate::release::{BOOKWORM, Release};
use crate::{Error, Result, process};

/// Our programs, and a library: the package, how cargo is asked for it, and where it lies below `target/release`.
const PROGRAMS: [(&str, &[&str], &str); 13] = [
    ("nxl", &["--bin", "nxl"], "nxl"),
    ("nxl", &["--bin", "nxl-bootloader"], "nxl-bootloader"),
    ("nxl", &["--bin", "block-nix"], "block-nix"),
    ("tesseraqt-nexus", &["--bin", "nexusd"], "nexusd"),
    ("tesseraqt-nexus", &["--bin", "nexus-agent"], "nexus-agent"),
    ("tesseraqt-nexus", &["--bin", "nexus-call"], "nexus-call"),
    ("tesseraqt-nexus", &["--bin", "nexus-service"], "nexus-service"),
    ("tesseraqt-nexus", &["--example", "call-latency"], "examples/call-latency"),
    ("tesseraqt-vchan", &["--bin", "vchan-cat"], "vchan-cat"),
    ("tesseraqt-vchan", &["--example", "vchan-peer"], "examples/vchan-peer"),
    ("tesseraqt-vchan", &["--example", "vchan-hub"], "examples/vchan-hub"),
    ("tesseraqt-vchan", &["--example", "vchan-speed"], "examples/vchan-speed"),
    ("libxenvchan", &["--lib"], "libxenvchan.so"),
];

/// Those, by where they lie, that the checks on other releases of Xen run.
const ON_OTHER_RELEASES: [&str; 2] = ["nxl", "examples/vchan-peer"];

/// Our packages that those consist of. What they do on another release is looked at, and not how fast: so they are compiled
/// faster.
const COMPILED_FASTER: [&str; 6] = [
    "tesseraqt-xen-sys",
    "tesseraqt-xen",
    "tesseraqt-vchan",
    "tesseraqt-toolstack",
    "tesseraqt-nexus",
    "nxl",
];

/// The other side: C programs over Debian's libxenvchan that speak as `vchan-peer` and `vchan-speed` do.
const PEERS: [(&str, &str); 2] =
    [("vchan-peer-c", "tests/peer/peer.c"), ("vchan-speed-c", "xen-sim/tests/c/peer.c")];

/// The built programs.
#[derive(Debug)]
pub struct Products {
    programs: Vec<(String, PathBuf)>,
}

impl Products {
    /// Builds what is not built or is older than its sources, for the release that the machine has installed.
    /// `folder` takes what a C compiler makes.
    pub fn build(folder: &Path) -> Result<Self> {
        Self::build_with(folder, &Toolchain { target: target_folder(), release: BOOKWORM, tree: None })
    }

    /// The same for another release, whose headers and libraries are in `tree`; no more of them than is run there, and `nxl`
    /// as it is built for this machine's, which has to say that it is out of place.
    pub fn build_for(release: Release, tree: &Tree, folder: &Path, here: &Self) -> Result<Self> {
        let target = target_folder().join(format!("xen-{}", release.xen));
        fs::create_dir_all(folder).at(folder)?;
        if !target.exists() {
            // What does not depend on Xen's release is not compiled twice.
            fs::create_dir_all(&target).at(&target)?;
            process::run(Command::new("cp").arg("-a").arg(target_folder().join("release")).arg(&target))?;
        }
        let mut there = Self::build_with(folder, &Toolchain { target, release, tree: Some(tree) })?;
        let place = format!("usr/lib/testbed/nxl-{}", BOOKWORM.xen);
        there.programs.extend(here.at("usr/bin/nxl").map(|path| (place, path.to_owned())));
        Ok(there)
    }

    fn build_with(folder: &Path, toolchain: &Toolchain<'_>) -> Result<Self> {
        let mut programs = Vec::new();
        for (package, arguments, path) in PROGRAMS {
            if toolchain.tree.is_some() && !ON_OTHER_RELEASES.contains(&path) {
                continue;
            }
            let mut cargo = toolchain.cargo();
            cargo.args(["rustc", "--release", "--quiet", "--package", package]).args(arguments);
            process::run(cargo.args(toolchain.rustc_arguments()))?;
            // What a debugger wants of them is four times what runs, and initrds lie in dom0's memory.
            let (_, whole) = built(path, toolchain.target.join("release").join(path))?;
            let bare = folder.join(path.rsplit('/').next().unwrap_or(path));
            process::run(Command::new("strip").arg("--strip-debug").arg("-o").arg(&bare).arg(whole))?;
            programs.push(built(path, bare)?);
        }
        for (name, source) in PEERS {
            let peer = folder.join(name);
            let mut compiler = toolchain.compiler(&peer);
            process::run(compiler.arg(checkout().join(source)).args(["-lxenvchan", "-lxentoollog"]))?;
            programs.push(built(name, peer)?);
        }

        let hypercount = folder.join("hypercount.so");
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("hypercount.c");
        process::run(toolchain.compiler(&hypercount).args(["-shared", "-fPIC", "-pthread"]).arg(source))?;
        programs.push(built("hypercount.so", hypercount)?);
        Ok(Self { programs })
    }

    /// Each product with its place in dom0.
    pub fn in_dom0(&self) -> impl Iterator<Item = (&str, &Path)> {
        self.programs.iter().map(|(place, path)| (place.as_str(), path.as_path()))
    }

    /// The product with that place in dom0.
    pub fn at(&self, place: &str) -> Option<&Path> {
        self.in_dom0().find(|(its, _)| *its == place).map(|(_, path)| path)
    }

    /// The products that the guests carry.
    pub fn in_guests(&self) -> impl Iterator<Item = &Path> {
        self.programs.iter().filter(|(place, _)| place.contains("vchan")).map(|(_, path)| path.as_path())
    }
}

/// What a qube calls and is called with.
pub(crate) const OF_CALLS: [&str; 4] =
    ["usr/bin/nexus-agent", "usr/bin/nexus-call", "usr/bin/nexus-service", "usr/bin/call-latency"];

/// The place in dom0 of the product at `path`, which must exist.
fn built(name: &str, path: PathBuf) -> Result<(String, PathBuf)> {
    if !path.is_file() {
        return Err(Error::NotBuilt { path });
    }
    let base = name.rsplit('/').next().unwrap_or(name);
    let folder = if base.ends_with(".so") { "usr/lib/testbed" } else { "usr/bin" };
    Ok((format!("{folder}/{base}"), path))
}

/// What builds for a release.
struct Toolchain<'a> {
    target: PathBuf,
    release: Release,
    /// Where its headers and libraries are, unless the machine has them installed.
    tree: Option<&'a Tree>,
}

/// The libraries of a newer release want a newer libc than the machine's; they get it where the programs run.
const WITH_A_LATER_LIBC: &str = "-Wl,--allow-shlib-undefined";

impl Toolchain<'_> {
    fn cargo(&self) -> Command {
        let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        cargo.current_dir(checkout()).env("CARGO_TARGET_DIR", &self.target);
        // As for the packages, so that the library of that name is not built twice.
        cargo.env("XEN_SONAME", self.release.xen);
        if let Some(tree) = self.tree {
            let pkg_config = tree.root().join("usr/lib/x86_64-linux-gnu/pkgconfig");
            cargo.env("PKG_CONFIG_SYSROOT_DIR", tree.root()).env("PKG_CONFIG_LIBDIR", pkg_config);
            for package in COMPILED_FASTER {
                cargo.arg("--config").arg(format!("profile.release.package.{package}.opt-level=1"));
            }
        }
        cargo
    }

    /// For what is linked alone, so that what it is linked from can be shared.
    fn rustc_arguments(&self) -> Vec<String> {
        self.tree.map_or_else(Vec::new, |_| vec!["--".to_owned(), format!("-Clink-arg={WITH_A_LATER_LIBC}")])
    }

    fn compiler(&self, output: &Path) -> Command {
        let mut command = Command::new("gcc");
        command.args(["-O2", "-Wall", "-Wextra", "-Werror", "-o"]).arg(output);
        if let Some(tree) = self.tree {
            let libraries = tree.root().join("usr/lib/x86_64-linux-gnu");
            command.arg("-I").arg(tree.root().join("usr/include")).arg("-L").arg(&libraries);
            command.arg(format!("-Wl,-rpath-link,{}", libraries.display())).arg(WITH_A_LATER_LIBC);
        }
        command
    }
}

fn target_folder() -> PathBuf {
    let folder = std::env::var_os("CARGO_TARGET_DIR").unwrap_or_else(|| OsString::from("target"));
    checkout().join(folder)
}
