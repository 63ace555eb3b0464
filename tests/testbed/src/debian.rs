//! What comes from Debian: for each release a tree of Xen and dom0's user land, and from Debian 12 QEMU and three kernels
//! for the guests.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::apt::Apt;
use crate::cache::Cache;
use crate::error::At as _;
use crate::release::{BOOKWORM, Release};
use crate::{Error, Result, process};

/// The packages of a release's tree; what they depend on comes along.
const PACKAGES: [&str; 10] = [
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
    // flock and losetup: what libxl's block script works with.
    "util-linux",
    "mount",
];

/// What our programs are built with for a release that the machine does not have installed.
const DEVELOPMENT: &str = "libxen-dev";

/// The hypervisor's own package, without its dependencies: they are for booting it from a disk.
pub const HYPERVISOR: &str = "xen-hypervisor-4.17-amd64";

const QEMU: &str = "qemu-system-x86";
const QEMU_VERSION: &str = "1:7.2";

/// What makes a file system in dom0 whose files can share blocks, and what looks into images of closures.
const FILE_SYSTEMS: [&str; 4] = ["xfsprogs", "libinih1", "liburcu8", "erofs-utils"];

/// The kernels: by the codec of their payload, the metapackage that stands for the newest of its kind.
const KERNELS: [(&str, &str); 3] = [
    ("xz", "linux-image-amd64"),
    ("lz4", "linux-image-cloud-amd64"),
    ("zstd", "linux-image-6.12-cloud-amd64"),
];

/// The modules that dom0 and the guests load, each with its folder below a kernel's `kernel/`. Debian builds the rest
/// of what they need into the kernel.
pub const MODULES: [(&str, &str); 5] = [
    ("xen-privcmd", "drivers/xen"),
    ("xenfs", "drivers/xen/xenfs"),
    ("xen-evtchn", "drivers/xen"),
    ("xen-gntdev", "drivers/xen"),
    ("xen-gntalloc", "drivers/xen"),
];

/// The guests' halves of disks and network interfaces, and what images of closures and volumes are mounted with. Some kernels
/// have some of the latter built in.
const FRONTENDS: [(&str, &str); 9] = [
    ("xen-blkfront", "drivers/block"),
    ("xen-netfront", "drivers/net"),
    ("crc32c_generic", "crypto"),
    ("libcrc32c", "lib"),
    ("erofs", "fs/erofs"),
    ("crc16", "lib"),
    ("mbcache", "fs"),
    ("jbd2", "fs/jbd2"),
    ("ext4", "fs/ext4"),
];

/// What a qube has that is others' netvm: the backend's half, and what NAT and its filter stand on, in the order in which they are
/// loaded.
const NETVM: [(&str, &str); 12] = [
    ("xen-netback", "drivers/net/xen-netback"),
    ("nfnetlink", "net/netfilter"),
    ("nf_tables", "net/netfilter"),
    ("nf_defrag_ipv4", "net/ipv4/netfilter"),
    ("nf_defrag_ipv6", "net/ipv6/netfilter"),
    ("nf_conntrack", "net/netfilter"),
    ("nf_nat", "net/netfilter"),
    ("nft_chain_nat", "net/netfilter"),
    ("nft_ct", "net/netfilter"),
    ("nft_masq", "net/netfilter"),
    ("nft_fib", "net/netfilter"),
    ("nft_fib_ipv4", "net/ipv4/netfilter"),
];

/// dom0's halves, and what they stand on, in the order in which they are loaded.
pub const BACKENDS: [(&str, &str); 12] = [
    ("crc32c_generic", "crypto"),
    ("libcrc32c", "lib"),
    ("xfs", "fs/xfs"),
    ("dm-mod", "drivers/md"),
    ("loop", "drivers/block"),
    ("xen-blkback", "drivers/block/xen-blkback"),
    ("llc", "net/llc"),
    ("stp", "net/802"),
    ("bridge", "net/bridge"),
    ("xen-netback", "drivers/net/xen-netback"),
    ("xen-pciback", "drivers/xen/xen-pciback"),
    // A guest's, which is given it on a disk: not all of the kernels have it.
    ("xen-pcifront", "drivers/pci"),
];

/// The kernel that dom0 has, by its codec.
const DOM0_KERNEL: &str = "xz";

/// Raised when what the functions below do to the packages changes.
const REVISION: u32 = 3;

/// The unpacked packages.
#[derive(Debug, Clone)]
pub struct Debian {
    /// The tree of everything but kernels.
    pub tree: Tree,
    /// A folder with one folder for each codec (xz, lz4, zstd), holding `vmlinuz`, `version` and `modules/`.
    pub kernels: PathBuf,
    /// mkfs.xfs, libraries of its that nothing else needs, and erofs' own tools.
    pub file_systems: [Tree; 4],
}

/// A folder that packages were unpacked into.
#[derive(Debug, Clone)]
pub struct Tree {
    root: PathBuf,
}

impl Debian {
    /// The packages, downloaded if the cache has none yet.
    pub fn obtain(cache: &Cache) -> Result<Self> {
        let modules = (MODULES, FRONTENDS, NETVM, BACKENDS);
        let recipe =
            format!("{REVISION} {PACKAGES:?} {HYPERVISOR} {QEMU} {QEMU_VERSION} {KERNELS:?} {modules:?}");
        let place = cache.entry("debian", &recipe, |place| fetch(cache, place))?;
        let [mkfs, ini, rcu, erofs] = FILE_SYSTEMS.map(|package| Tree::of_package(cache, package));
        let file_systems = [mkfs?, ini?, rcu?, erofs?];
        Ok(Self { tree: Tree { root: place.join("tree") }, kernels: place.join("kernels"), file_systems })
    }
}

impl Tree {
    /// The tree of a release, with what to build for it, downloaded if the cache has none yet.
    pub fn of_release(cache: &Cache, release: Release) -> Result<Self> {
        let recipe = format!("{REVISION} {PACKAGES:?} {HYPERVISOR} {DEVELOPMENT} {release:?}");
        let place = cache.entry(&format!("xen-{}", release.xen), &recipe, |place| {
            let _lock = cache.lock("apt")?;
            let archives = place.join("archives");
            fetch_tree(&Apt::update(cache, release)?, release, &[DEVELOPMENT], place, &archives)?;
            fs::remove_dir_all(&archives).at(&archives)
        })?;
        Ok(Self { root: place.join("tree") })
    }

    /// Some packages of Debian 12 and all that they depend on, downloaded if the cache does not have them yet.
    pub fn of_packages(cache: &Cache, name: &str, packages: &[&str]) -> Result<Self> {
        let place = cache.entry(name, &format!("{REVISION} {packages:?}"), |place| {
            let _lock = cache.lock("apt")?;
            let (archives, tree) = (place.join("archives"), place.join("tree"));
            let names: Vec<_> = packages.iter().map(|name| (*name).to_owned()).collect();
            for archive in Apt::update(cache, BOOKWORM)?.download_closure(&names, &archives)? {
                unpack(&archive, &tree, &[])?;
            }
            fs::remove_dir_all(&archives).at(&archives)
        })?;
        Ok(Self { root: place.join("tree") })
    }

    /// One package without what it depends on, downloaded if the cache does not have it yet: for a program that runs right
    /// here.
    pub fn of_package(cache: &Cache, package: &str) -> Result<Self> {
        let place = cache.entry(package, &format!("{REVISION} {package}"), |place| {
            let _lock = cache.lock("apt")?;
            let archives = place.join("archives");
            for archive in Apt::update(cache, BOOKWORM)?.download(&[package.to_owned()], &archives)? {
                unpack(&archive, &place.join("tree"), &[])?;
            }
            fs::remove_dir_all(&archives).at(&archives)
        })?;
        Ok(Self { root: place.join("tree") })
    }

    /// Where it is on this machine.
    pub fn root(&self) -> &Path {
        &self.root
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

    /// The version of a package in it, by the package's changelog.
    pub fn version(&self, package: &str) -> Result<String> {
        let path = self.file(&format!("usr/share/doc/{package}/changelog.Debian.gz"))?;
        let text = process::output(Command::new("zcat").arg(&path))?;
        // PACKAGE (VERSION) SUITE; urgency=…
        let version = text.split(['(', ')']).nth(1).map(str::to_owned);
        version.ok_or_else(|| Error::NotPackaged { path: format!("version of {package}") })
    }

    /// The folders of shared libraries.
    pub fn library_folders(&self) -> Vec<PathBuf> {
        ["lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu"].map(|path| self.root.join(path)).into()
    }
}

fn fetch(cache: &Cache, place: &Path) -> Result<()> {
    let _lock = cache.lock("apt")?;
    let apt = Apt::update(cache, BOOKWORM)?;
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
    fetch_tree(&apt, BOOKWORM, &[QEMU], place, &archives)?;
    for (codec, metapackage) in KERNELS {
        let archives = archives.join(codec);
        fetch_kernel(&apt, metapackage, &archives, &place.join("kernels").join(codec))?;
    }
    fs::remove_dir_all(&archives).at(&archives)
}

/// The packages of a release, and some more, in `tree` below the place.
fn fetch_tree(apt: &Apt, release: Release, more: &[&str], place: &Path, archives: &Path) -> Result<()> {
    let names: Vec<_> = PACKAGES.iter().chain(more).map(|name| release.name(name)).collect();
    let mut packages = apt.download_closure(&names, archives)?;
    packages.extend(apt.download(&[release.name(HYPERVISOR)], &archives.join("hypervisor"))?);
    let tree = place.join("tree");
    packages.iter().try_for_each(|package| unpack(package, &tree, &[]))
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
    let folders =
        ["crypto", "drivers", "fs", "lib", "net"].map(|folder| format!("./lib/modules/*/kernel/{folder}/*"));
    let mut patterns = vec!["./boot/vmlinuz-*", "./lib/modules/*/modules.builtin"];
    patterns.extend(folders.iter().map(String::as_str));
    for archive in apt.download(&[package], archives)? {
        unpack(&archive, &unpacked, &patterns)?;
    }
    fs::create_dir_all(place).at(place)?;
    let vmlinuz = place.join("vmlinuz");
    fs::copy(unpacked.join(format!("boot/vmlinuz-{version}")), &vmlinuz).at(&vmlinuz)?;
    fs::write(place.join("version"), &version).at(place)?;

    let modules = unpacked.join(format!("lib/modules/{version}"));
    let builtin = modules.join("modules.builtin");
    let builtin = fs::read_to_string(&builtin).at(&builtin)?;
    let tree = (modules.join("kernel"), builtin.as_str());
    copy_modules((&tree.0, tree.1), MODULES.iter().chain(&FRONTENDS).chain(&NETVM), &place.join("modules"))?;
    if place.ends_with(DOM0_KERNEL) {
        copy_modules((&tree.0, tree.1), BACKENDS.iter(), &place.join("backends"))?;
    }
    Ok(())
}

/// Copies modules from the folder of a kernel, but for those that it lists as built in.
fn copy_modules<'a>(
    (tree, builtin): (&Path, &str),
    modules: impl Iterator<Item = &'a (&'a str, &'a str)>,
    place: &Path,
) -> Result<()> {
    fs::create_dir_all(place).at(place)?;
    for (module, folder) in modules {
        if builtin.lines().any(|line| line == format!("kernel/{folder}/{module}.ko")) {
            continue;
        }
        let source = ["ko", "ko.xz"]
            .iter()
            .map(|extension| tree.join(folder).join(format!("{module}.{extension}")))
            .find(|path| path.exists())
            .ok_or_else(|| Error::NotPackaged { path: format!("{}/{module}.ko", tree.display()) })?;
        let name = source.file_name().unwrap_or_default();
        fs::copy(&source, place.join(name)).at(&source)?;
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
