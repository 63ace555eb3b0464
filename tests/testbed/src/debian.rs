//! What comes from Debian: one tree of Xen, dom0's user land and QEMU, and three kernels for the guests.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::apt::Apt;
use crate::cache::Cache;
use crate::error::At as _;
use crate::{Error, Result, process};

/// The packages of the tree; what they depend on comes along.
const PACKAGES: [&str; 9] = [
    "xen-utils-4.17",
    "xen-utils-common",
    "xenstore-utils",
    "libxenmisc4.17",
    "busybox-static",
    "bash",
    // `script`: xl console takes input from a terminal only.
    "bsdutils",
    // libxenstore cancels a thread when it closes, and that loads libgcc_s; nothing depends on it by name.
    "libgcc-s1",
    "qemu-system-x86",
];

/// The hypervisor's own package, without its dependencies: they are for booting it from a disk.
const HYPERVISOR: &str = "xen-hypervisor-4.17-amd64";

const QEMU: &str = "qemu-system-x86";
const QEMU_VERSION: &str = "1:7.2";

/// The kernels: by the codec of their payload, the metapackage that stands for the newest of its kind.
const KERNELS: [(&str, &str); 3] = [
    ("xz", "linux-image-amd64"),
    ("lz4", "linux-image-cloud-amd64"),
    ("zstd", "linux-image-6.12-cloud-amd64"),
];

/// The modules that dom0 and the guests load. Debian builds the rest of what they need into the kernel.
pub const MODULES: [&str; 5] = ["xen-privcmd", "xenfs", "xen-evtchn", "xen-gntdev", "xen-gntalloc"];

/// Raised when what the functions below do to the packages changes.
const REVISION: u32 = 1;

/// The unpacked packages.
#[derive(Debug, Clone)]
pub struct Debian {
    /// The tree of everything but kernels.
    pub tree: Tree,
    /// A folder with one folder for each codec (xz, lz4, zstd), holding `vmlinuz`, `version` and `modules/`.
    pub kernels: PathBuf,
}

/// A folder that packages were unpacked into.
#[derive(Debug, Clone)]
pub struct Tree {
    root: PathBuf,
}

impl Debian {
    /// The packages, downloaded if the cache has none yet.
    pub fn obtain(cache: &Cache) -> Result<Self> {
        let recipe = format!("{REVISION} {PACKAGES:?} {HYPERVISOR} {QEMU_VERSION} {KERNELS:?} {MODULES:?}");
        let place = cache.entry("debian", &recipe, |place| fetch(cache, place))?;
        Ok(Self { tree: Tree { root: place.join("tree") }, kernels: place.join("kernels") })
    }
}

impl Tree {
    /// One package without what it depends on, downloaded if the cache does not have it yet: for a program that runs right
    /// here.
    pub fn of_package(cache: &Cache, package: &str) -> Result<Self> {
        let place = cache.entry(package, &format!("{REVISION} {package}"), |place| {
            let _lock = cache.lock("apt")?;
            let archives = place.join("archives");
            for archive in Apt::update(cache)?.download(&[package.to_owned()], &archives)? {
                unpack(&archive, &place.join("tree"), &[])?;
            }
            fs::remove_dir_all(&archives).at(&archives)
        })?;
        Ok(Self { root: place.join("tree") })
    }

    /// Where the packages' `path` is, relative to `/`. Debian 12 packages still say `/bin` or `/lib` where an
    /// installed system has `/usr/bin` and `/usr/lib`; `path` begins with `usr/` for both.
    pub fn file(&self, path: &str) -> Result<PathBuf> {
        let split = path.strip_prefix("usr/").unwrap_or(path);
        [path, split]
            .iter()
            .map(|path| self.root.join(path))
            .find(|path| path.exists())
            .ok_or_else(|| Error::NotPackaged { path: path.to_owned() })
    }

    /// The folders of shared libraries.
    pub fn library_folders(&self) -> Vec<PathBuf> {
        ["lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu"].map(|path| self.root.join(path)).into()
    }
}

fn fetch(cache: &Cache, place: &Path) -> Result<()> {
    let _lock = cache.lock("apt")?;
    let apt = Apt::update(cache)?;
    let offered = apt.candidate(QEMU)?.unwrap_or_else(|| "not offered by apt".to_owned());
    if !offered.starts_with(QEMU_VERSION) {
        return Err(Error::Version {
            package: QEMU,
            found: offered,
            wanted: QEMU_VERSION,
            why: "from 8.0 on, emulated nested paging stops every PVH guest",
        });
    }

    let archives = place.join("archives");
    let mut packages = apt.download_closure(&PACKAGES, &archives)?;
    packages.extend(apt.download(&[HYPERVISOR.to_owned()], &archives.join("hypervisor"))?);
    let tree = place.join("tree");
    for package in &packages {
        unpack(package, &tree, &[])?;
    }
    for (codec, metapackage) in KERNELS {
        let archives = archives.join(codec);
        fetch_kernel(&apt, metapackage, &archives, &place.join("kernels").join(codec))?;
    }
    fs::remove_dir_all(&archives).at(&archives)
}

fn fetch_kernel(apt: &Apt, metapackage: &str, archives: &Path, place: &Path) -> Result<()> {
    if apt.candidate(metapackage)?.is_none() {
        apt.add_backports()?;
    }
    let package = apt
        .stands_for(metapackage)?
        .ok_or_else(|| Error::NotPackaged { path: format!("kernel of {metapackage}") })?;
    let version =
        package.strip_prefix("linux-image-").unwrap_or(&package).trim_end_matches("-unsigned").to_owned();

    let unpacked = archives.join("unpacked");
    for archive in apt.download(&[package], archives)? {
        unpack(&archive, &unpacked, &["./boot/vmlinuz-*", "./lib/modules/*/kernel/drivers/xen/*"])?;
    }
    let modules = place.join("modules");
    fs::create_dir_all(&modules).at(&modules)?;
    let vmlinuz = place.join("vmlinuz");
    fs::copy(unpacked.join(format!("boot/vmlinuz-{version}")), &vmlinuz).at(&vmlinuz)?;
    fs::write(place.join("version"), &version).at(place)?;

    let drivers = unpacked.join(format!("lib/modules/{version}/kernel/drivers/xen"));
    for module in MODULES {
        let candidates = [format!("{module}.ko"), format!("{module}.ko.xz"), format!("{module}/{module}.ko")];
        let nested = format!("{module}/{module}.ko.xz");
        let source = candidates
            .iter()
            .chain([&nested])
            .map(|name| drivers.join(name))
            .find(|path| path.exists())
            .ok_or_else(|| Error::NotPackaged { path: format!("{module}.ko of {version}") })?;
        let name = source.file_name().unwrap_or_default();
        fs::copy(&source, modules.join(name)).at(&source)?;
    }
    Ok(())
}

/// Unpacks the files of `package` that match one of `patterns` (or all) into `place`. Not `dpkg -x`, which insists
/// on owners and setuid bits that only root can set.
fn unpack(package: &Path, place: &Path, patterns: &[&str]) -> Result<()> {
    fs::create_dir_all(place).at(place)?;
    // The archive's path and the target travel as arguments, not as shell text.
    let script = r#"set -o pipefail; package=$1 place=$2; shift 2
        dpkg-deb --fsys-tarfile "$package" |
            tar -x -C "$place" --no-same-owner --no-same-permissions --wildcards "$@""#;
    process::run(Command::new("bash").args(["-c", script, "unpack"]).arg(package).arg(place).args(patterns))
}
