//! The guests: closures with the shape of a NixOS generation, built by Nix from `nixos/testing`.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::cache::{Cache, checkout};
use crate::debian::Debian;
use crate::error::At as _;
use crate::products::Products;
use crate::{Error, Result, elf, packages, process};

/// The systems that `nixos/testing/default.nix` defines.
const SYSTEMS: [&str; 3] = ["work", "vault", "office"];

/// What the guests run beside busybox and our own programs.
const TOOLS: [&str; 9] = [
    "usr/bin/xenstore-chmod",
    "usr/bin/xenstore-exists",
    "usr/bin/xenstore-list",
    "usr/bin/xenstore-ls",
    "usr/bin/xenstore-read",
    "usr/bin/xenstore-rm",
    "usr/bin/xenstore-watch",
    "usr/bin/xenstore-write",
    "usr/lib/xen-4.17/bin/vchan-socket-proxy",
];

/// Without a network, without a daemon and without build users: the machine needs nothing but the program.
const NIX_CONFIG: &str = "substituters =\nbuild-users-group =\nsandbox = true\n";

/// A system, or what is declared of several, and everything that it refers to.
#[derive(Debug)]
pub struct Closure {
    /// The attribute that it is: `work`.
    pub name: &'static str,
    /// Its toplevel, `/nix/store/…-nixos-system-NAME-…`; or `/nix/store/…-qubes.json`.
    pub toplevel: String,
    /// The store paths of the closure, the toplevel among them.
    pub paths: Vec<String>,
    /// The folder below which the store paths lie on this machine.
    pub root: PathBuf,
}

/// Where the closures are built.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Store {
    /// Below the cache, for a dom0 that gets copies: a machine's own /nix is neither needed nor touched. Nix shows
    /// the folder to the builders as /nix/store, and the paths inside the closures say so.
    Cached,
    /// In this machine's /nix/store, when this machine is the dom0.
    Machine,
}

/// What Nix builds closures of.
#[derive(Debug)]
pub struct Builder {
    /// The arguments of `nixos/testing/default.nix`, each a folder.
    arguments: Vec<(&'static str, PathBuf)>,
    root: PathBuf,
    store: Store,
    links: PathBuf,
}

impl Builder {
    /// With what the packages and our programs are made of. `folder` takes what goes into the closures.
    pub fn prepare(
        cache: &Cache,
        debian: &Debian,
        products: &Products,
        folder: &Path,
        store: Store,
    ) -> Result<Self> {
        let busybox = folder.join("busybox");
        fs::create_dir_all(&busybox).at(&busybox)?;
        let binary = debian.tree.file("usr/bin/busybox")?;
        fs::copy(&binary, busybox.join("busybox")).at(&binary)?;
        symlink("busybox", busybox.join("sh")).at(&busybox)?;
        let tools = gather_tools(debian, products, folder)?;
        let packages = packages::gather(cache, products, folder)?;
        let root = match store {
            Store::Cached => cache.folder("nix")?,
            Store::Machine => PathBuf::from("/"),
        };
        let arguments = vec![
            ("busybox", busybox),
            ("kernels", debian.kernels.clone()),
            ("tools", tools),
            ("packages", packages),
        ];
        Ok(Self { arguments, root, store, links: folder.to_owned() })
    }

    /// The closures of all systems without systemd.
    pub fn systems(&self) -> Result<Vec<Closure>> {
        SYSTEMS.into_iter().map(|name| self.closure(name)).collect()
    }

    /// The closure of an attribute of `nixos/testing/default.nix`, built if it is not there.
    pub fn closure(&self, name: &'static str) -> Result<Closure> {
        let mut build = self.nix("nix-build");
        build.arg(checkout().join("nixos/testing")).args(["--attr", name, "--out-link"]);
        build.arg(self.links.join(format!("system-{name}")));
        for (argument, path) in &self.arguments {
            build.args(["--arg", argument]).arg(path);
        }
        let toplevel = process::output(&mut build)?.trim().to_owned();
        let query = process::output(self.nix("nix-store").args(["--query", "--requisites"]).arg(&toplevel))?;
        let paths = query.lines().map(str::to_owned).collect();
        Ok(Closure { name, toplevel, paths, root: self.root.clone() })
    }

    /// Runs a command line of a document's as it stands there, in a folder where `nixos` is, with what stands for nixpkgs here in the
    /// place of `<nixpkgs>`. What the links that it makes lead to, by the links' names.
    pub fn documented(&self, command: &str) -> Result<Vec<(String, PathBuf)>> {
        let folder = self.links.join("documented");
        if folder.exists() {
            fs::remove_dir_all(&folder).at(&folder)?;
        }
        let nixpkgs = self.stand_in(&folder.join("nixpkgs"))?;
        let place = folder.join("checkout");
        fs::create_dir(&place).at(&place)?;
        symlink(checkout().join("nixos"), place.join("nixos")).at(&place)?;
        let mut shell = Command::new("sh");
        shell.args(["-e", "-c", command]).current_dir(&place).env("NIX_CONFIG", NIX_CONFIG);
        shell.env("NIX_PATH", format!("nixpkgs={}", nixpkgs.display()));
        if self.store == Store::Cached {
            shell.env("NIX_REMOTE", &self.root);
        }
        process::run(&mut shell)?;
        let mut made = Vec::new();
        for entry in fs::read_dir(&place).at(&place)? {
            let entry = entry.at(&place)?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if name != "nixos" {
                let target = fs::read_link(entry.path()).at(entry.path())?;
                made.push((name, self.root.join(target.strip_prefix("/").unwrap_or(&target))));
            }
        }
        made.sort();
        Ok(made)
    }

    /// A folder that is imported as nixpkgs is.
    fn stand_in(&self, folder: &Path) -> Result<PathBuf> {
        let arguments: Vec<_> =
            self.arguments.iter().map(|(name, path)| format!("{name} = {};", path.display())).collect();
        let files = [
            (
                "testing.nix",
                format!(
                    "import {} {{ {} }}\n",
                    checkout().join("nixos/testing").display(),
                    arguments.join(" ")
                ),
            ),
            (
                "default.nix",
                "{ ... }: (import ./testing.nix).nixpkgs // { path = toString ./.; }\n".to_owned(),
            ),
            ("nixos/lib/eval-config.nix", "(import ../../testing.nix).evalConfig\n".to_owned()),
        ];
        let deepest = folder.join("nixos/lib");
        fs::create_dir_all(&deepest).at(&deepest)?;
        for (name, text) in files {
            let path = folder.join(name);
            fs::write(&path, text).at(&path)?;
        }
        Ok(folder.to_owned())
    }

    fn nix(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.env("NIX_CONFIG", NIX_CONFIG);
        if self.store == Store::Cached {
            command.arg("--store").arg(&self.root);
        }
        command
    }
}

/// A folder with `bin/` and, flat, `lib/`.
fn gather_tools(debian: &Debian, products: &Products, folder: &Path) -> Result<PathBuf> {
    let place = folder.join("tools");
    for part in ["bin", "lib"] {
        let path = place.join(part);
        fs::create_dir_all(&path).at(&path)?;
    }
    let mut binaries = Vec::new();
    for tool in TOOLS {
        binaries.push(debian.tree.file(tool)?);
    }
    binaries.extend(products.in_guests().map(Path::to_owned));
    for binary in &binaries {
        let name = binary.file_name().unwrap_or_default();
        fs::copy(binary, place.join("bin").join(name)).at(binary)?;
    }
    let folders = debian.tree.library_folders();
    let mut libraries = elf::libraries(&binaries, &folders)?;
    // libxenstore cancels its thread when it closes, and that loads libgcc_s.
    let unwinder = "libgcc_s.so.1";
    let path = elf::locate(unwinder, &folders)
        .ok_or_else(|| Error::NoLibrary { binary: "libxenstore".into(), library: unwinder.to_owned() })?;
    libraries.insert(unwinder.to_owned(), path);
    for (name, path) in libraries {
        fs::copy(&path, place.join("lib").join(name)).at(&path)?;
    }
    Ok(place)
}
