//! What QEMU boots: Xen, dom0's kernel, and dom0's initrd as a cached base followed by a run's overlay.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use crate::archive::Archive;
use crate::assets::{Assets, DECLARED};
use crate::cache::{Cache, checkout};
use crate::checks::Check;
use crate::closure::Closure;
use crate::debian::{BACKENDS, Debian, MODULES, Tree};
use crate::error::At as _;
use crate::products::Products;
use crate::release::Release;
use crate::{Error, Result, elf, process, spec};

/// Programs of the packages: where they lie there, and where they go in dom0. (Of Debian 12: elsewhere Xen's version differs.)
const PROGRAMS: [(&str, &str); 21] = [
    ("usr/bin/bash", "usr/bin/bash"),
    ("usr/bin/busybox", "usr/bin/busybox"),
    // busybox has a losetup, too, but libxl's block script reads this one's output.
    ("usr/sbin/losetup", "usr/bin/losetup"),
    ("usr/bin/flock", "usr/bin/flock"),
    ("usr/bin/script", "usr/bin/script"),
    ("usr/bin/xenstore-chmod", "usr/bin/xenstore-chmod"),
    ("usr/bin/xenstore-exists", "usr/bin/xenstore-exists"),
    ("usr/bin/xenstore-list", "usr/bin/xenstore-list"),
    ("usr/bin/xenstore-ls", "usr/bin/xenstore-ls"),
    ("usr/bin/xenstore-read", "usr/bin/xenstore-read"),
    ("usr/bin/xenstore-rm", "usr/bin/xenstore-rm"),
    ("usr/bin/xenstore-watch", "usr/bin/xenstore-watch"),
    ("usr/bin/xenstore-write", "usr/bin/xenstore-write"),
    // Debian puts a wrapper at /usr/sbin/xl that picks the version of the running Xen. Here there is one.
    ("usr/lib/xen-4.17/bin/xl", "usr/sbin/xl"),
    ("usr/lib/xen-4.17/bin/xenconsole", "usr/lib/xen-4.17/bin/xenconsole"),
    ("usr/lib/xen-4.17/bin/lsevtchn", "usr/sbin/lsevtchn"),
    ("usr/lib/xen-4.17/bin/libxl-save-helper", "usr/lib/xen-4.17/bin/libxl-save-helper"),
    ("usr/lib/xen-4.17/bin/vchan-socket-proxy", "usr/bin/vchan-socket-proxy"),
    ("usr/lib/xen-4.17/bin/xen-init-dom0", "usr/sbin/xen-init-dom0"),
    ("usr/lib/xen-4.17/bin/xenconsoled", "usr/sbin/xenconsoled"),
    ("usr/lib/xen-4.17/bin/xenstored", "usr/sbin/xenstored"),
];

/// Libraries that are loaded without being asked for by name in an ELF header.
const LOADED_LATER: [&str; 1] = ["libgcc_s.so.1"];

/// What makes a file system in dom0, and what shows whether an image of `block-nix` is one: the package, and the program.
const FILE_SYSTEM_PROGRAMS: [(usize, &str); 2] = [(0, "usr/sbin/mkfs.xfs"), (3, "usr/bin/fsck.erofs")];

/// When it is set, checks that go on and on do so to the end, and what is timed is timed more than once.
const AT_LENGTH: &str = "TESSERAQT_AT_LENGTH";

/// Raised when what goes into the base changes otherwise than by the lists above.
const REVISION: u32 = 5;

/// The machine's part of a boot, the same for every run.
#[derive(Debug, Clone)]
pub struct Base {
    /// The hypervisor, an ELF file that QEMU loads as multiboot.
    pub xen: PathBuf,
    /// dom0's kernel, unpacked: under emulation Xen would take 5 s for that, every time.
    pub kernel: PathBuf,
    /// The initrd that overlays follow.
    pub initrd: PathBuf,
}

impl Base {
    /// The base made of a release's packages, with `debian`'s kernel.
    pub fn assemble(cache: &Cache, debian: &Debian, (release, tree): (Release, &Tree)) -> Result<Self> {
        let kernels = debian.kernels.display();
        let recipe = format!("{REVISION} {release:?} {PROGRAMS:?} {LOADED_LATER:?} {kernels}");
        let place = cache.entry("dom0", &recipe, |place| {
            let hypervisor = tree.file(&release.name("boot/xen-4.17-amd64.gz"))?;
            decompress("gzip", &fs::read(&hypervisor).at(&hypervisor)?, &place.join("xen"))?;
            unpack_kernel(&debian.kernels.join("xz/vmlinuz"), &place.join("vmlinux"))?;
            let initrd = place.join("initrd");
            fs::write(&initrd, base_archive(debian, (release, tree))?).at(&initrd)
        })?;
        Ok(Self { xen: place.join("xen"), kernel: place.join("vmlinux"), initrd: place.join("initrd") })
    }
}

fn base_archive(debian: &Debian, (release, tree): (Release, &Tree)) -> Result<Vec<u8>> {
    let mut archive = Archive::default();
    for merged in ["bin", "sbin", "lib", "lib64"] {
        archive.link(merged, &format!("usr/{merged}"));
    }
    for folder in ["proc", "sys", "dev", "run", "tmp", "root", "var/lib/xen", "var/log/xen", "usr/lib64"] {
        archive.directory(folder);
    }
    archive.link("var/run", "/run");
    // xenconsole locks the console that it attaches to.
    archive.link("var/lock", "/run/lock");
    archive.link("usr/bin/sh", "busybox");

    let mut binaries = Vec::new();
    for (packaged, path) in PROGRAMS {
        let source = tree.file(&release.name(packaged))?;
        archive.copy(&release.name(path), &source)?;
        binaries.push(source);
    }
    let folders = tree.library_folders();
    let mut libraries = elf::libraries(&binaries, &folders)?;
    for name in LOADED_LATER {
        let path = elf::locate(name, &folders)
            .ok_or_else(|| Error::NoLibrary { binary: "xl".into(), library: name.to_owned() })?;
        libraries.insert(name.to_owned(), path);
    }
    // Our own programs are built against these; some use more of them than xl does.
    for name in ["libxengnttab.so.1", "libxenvchan.so.4.17", "libm.so.6"] {
        let name = release.name(name);
        let path = elf::locate(&name, &folders)
            .ok_or_else(|| Error::NoLibrary { binary: "nxl".into(), library: name.clone() })?;
        libraries.insert(name, path);
    }
    for (name, path) in libraries {
        let contents = fs::read(&path).at(&path)?;
        archive.file(&format!("usr/lib/x86_64-linux-gnu/{name}"), 0o755, &contents);
    }
    archive.link("usr/lib64/ld-linux-x86-64.so.2", "../lib/x86_64-linux-gnu/ld-linux-x86-64.so.2");

    let modules = MODULES.iter().map(|(module, _)| ("modules", module));
    for (folder, module) in modules.chain(BACKENDS.iter().map(|(module, _)| ("backends", module))) {
        let source = debian.kernels.join("xz").join(folder).join(format!("{module}.ko"));
        archive.copy(&format!("usr/lib/modules/{module}.ko"), &source)?;
    }
    archive.copy("etc/xen/xl.conf", &tree.file("etc/xen/xl.conf")?)?;
    // What stock xl runs for a disk and an interface.
    archive.copy("etc/xen/scripts", &tree.file("etc/xen/scripts")?)?;
    // Besides root, whom nexusd becomes and dom0's agent is (nexus/systemd/nexus.conf).
    let users = "root:x:0:0:root:/root:/bin/sh\nnexus:x:999:999:Calls between qubes:/:/bin/false\n";
    archive.file("etc/passwd", 0o644, users.as_bytes());
    archive.file("etc/group", 0o644, b"root:x:0:\nnexus:x:999:\n");
    Ok(archive.finish())
}

/// What dom0 does once it is up.
#[derive(Debug, Clone)]
pub enum Task<'a> {
    /// Runs checks and powers off.
    Checks(&'a [Check]),
    /// Runs the demo and powers off.
    Demo,
    /// Gives a shell on the console.
    Shell,
}

/// The folder of what runs in dom0.
pub fn scripts() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("dom0")
}

/// What qubes boot.
#[derive(Debug, Clone, Copy)]
pub struct Systems<'a> {
    /// Those that every boot has.
    pub closures: &'a [Closure],
    /// Those that a check asks for as an asset.
    pub declared: &'a [Arc<Closure>],
    /// What is made of them.
    pub assets: &'a Assets,
}

/// The overlay of one run: our programs, the closures, the checks and what to do with them.
pub fn overlay(
    (debian, tree): (&Debian, &Tree),
    products: &Products,
    systems: &Systems<'_>,
    task: &Task<'_>,
) -> Result<Vec<u8>> {
    let Systems { closures, declared, assets } = *systems;
    let mut archive = Archive::default();
    let scripts = scripts();
    let init = scripts.join("init");
    archive.file("init", 0o755, &fs::read(&init).at(&init)?);
    archive.copy("testbed", &scripts)?;
    // What is installed beside our programs.
    archive.copy("testbed/policy.d", &checkout().join("nexus/policy.d"))?;
    archive.copy("testbed/systemd", &checkout().join("nexus/systemd"))?;

    // Where libxl looks for the scripts of disks.
    archive.link("etc/xen/scripts/block-nix", "/usr/bin/block-nix");
    let mut binaries = Vec::new();
    for (package, program) in FILE_SYSTEM_PROGRAMS {
        let source = debian.file_systems[package].file(program)?;
        archive.copy(program, &source)?;
        binaries.push(source);
    }
    for (path, source) in products.in_dom0() {
        archive.copy(path, source)?;
        binaries.push(source.to_owned());
    }
    // The base has the libraries of stock tools; ours may use another of the same packages.
    // What a release's packages do not have, is Debian 12's.
    let trees = debian.file_systems.iter().chain([tree, &debian.tree]);
    let folders: Vec<PathBuf> = trees.flat_map(Tree::library_folders).collect();
    for (name, path) in elf::libraries(&binaries, &folders)? {
        let contents = fs::read(&path).at(&path)?;
        archive.file(&format!("usr/lib/x86_64-linux-gnu/{name}"), 0o755, &contents);
    }
    for (name, text) in spec::evaluate(closures)? {
        archive.file(&format!("testbed/specs/{name}.json"), 0o644, text.as_bytes());
    }
    for closure in closures {
        archive.link(&format!("testbed/systems/{}", closure.name), &closure.toplevel);
        for path in &closure.paths {
            archive.copy(path.trim_start_matches('/'), &closure.root.join(path.trim_start_matches('/')))?;
        }
    }
    // What one is declared with, another may be, too.
    let mut there: BTreeSet<&str> =
        closures.iter().flat_map(|closure| &closure.paths).map(String::as_str).collect();
    for closure in declared {
        archive.link(&format!("testbed/assets/{}", closure.name), &closure.toplevel);
        for path in closure.paths.iter().filter(|path| there.insert(path)) {
            archive.copy(path.trim_start_matches('/'), &closure.root.join(path.trim_start_matches('/')))?;
        }
    }
    match task {
        Task::Checks(checks) => {
            let mut order = String::new();
            for check in *checks {
                archive.copy(&format!("testbed/checks/{}", check.name), &check.path)?;
                order.push_str(&format!("{} {}\n", check.name, check.limit.as_secs()));
            }
            archive.file("testbed/order", 0o644, order.as_bytes());
            let wanted: BTreeSet<_> = checks.iter().flat_map(|check| check.assets.iter().copied()).collect();
            for name in wanted.into_iter().filter(|name| !DECLARED.contains(name)) {
                archive.copy(&format!("testbed/assets/{name}"), &assets.path(name))?;
            }
            if std::env::var_os(AT_LENGTH).is_some() {
                archive.file("testbed/at-length", 0o644, b"");
            }
        }
        Task::Demo => archive.file("testbed/task", 0o644, b"demo\n"),
        Task::Shell => archive.file("testbed/task", 0o644, b"shell\n"),
    }
    Ok(archive.finish())
}

/// The ELF file inside a bzImage with an xz payload (Documentation/arch/x86/boot.rst: setup_sects at 0x1f1,
/// payload_offset at 0x248, payload_length at 0x24c).
fn unpack_kernel(image: &Path, target: &Path) -> Result<()> {
    let bytes = fs::read(image).at(image)?;
    let refuse = |what| Error::Kernel { path: image.to_owned(), what };
    let word = |offset: usize| {
        let bytes = bytes.get(offset..offset + 4).and_then(|slice| slice.try_into().ok());
        bytes.map(|bytes| u32::from_le_bytes(bytes) as usize).ok_or_else(|| refuse("it is too short"))
    };
    if bytes.get(0x202..0x206) != Some(b"HdrS") {
        return Err(refuse("no HdrS"));
    }
    let setup_sectors = bytes[0x1f1] as usize;
    let start = (setup_sectors + 1) * 512 + word(0x248)?;
    let payload = bytes.get(start..start + word(0x24c)?).ok_or_else(|| refuse("its payload is cut off"))?;
    if !payload.starts_with(b"\xfd7zXZ\0") {
        return Err(refuse("the payload is no xz stream"));
    }
    // After the stream stands its unpacked size, which xz would take for garbage.
    decompress("xz", &payload[..payload.len() - 4], target)
}

fn decompress(program: &str, bytes: &[u8], target: &Path) -> Result<()> {
    let packed = target.with_extension("packed");
    fs::write(&packed, bytes).at(&packed)?;
    let output = fs::File::create(target).at(target)?;
    let input = fs::File::open(&packed).at(&packed)?;
    let mut command = Command::new(program);
    command.args(["--decompress", "--stdout"]).stdin(input).stdout(output).stderr(Stdio::inherit());
    process::run_connected(&mut command)?;
    fs::remove_file(&packed).at(&packed)
}
