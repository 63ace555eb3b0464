//! The programs that are the ends of a channel here: ours, and C's over libxenvchan.

use crate::host::{Host, Process, beside};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;

/// A program that can be an end of a channel.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    /// `examples/vchan-peer.rs`.
    Ours,
    /// `tests/peer/peer.c`, over Debian's libxenvchan.
    C,
}

impl Kind {
    fn path(self) -> PathBuf {
        match self {
            Self::Ours => beside("../examples/vchan-peer"),
            Self::C => built("peer", &["-lxenvchan"]),
        }
    }

    /// The one that does what it is told: `examples/vchan-scripted.rs` and `tests/peer/scripted.c`.
    pub(crate) fn scripted(self) -> PathBuf {
        match self {
            Self::Ours => beside("../examples/vchan-scripted"),
            Self::C => built("scripted", &["-lxenvchan", "-lxengnttab", "-lxenstore"]),
        }
    }
}

/// Builds a C program of `tests/peer`, once.
fn built(name: &'static str, libraries: &[&str]) -> PathBuf {
    static BUILT: Mutex<BTreeMap<&str, PathBuf>> = Mutex::new(BTreeMap::new());
    let build = || {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("../tests/peer/{name}.c"));
        // For this run alone: another one may be at it in the same folder.
        let built = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}-{}", std::process::id()));
        let gcc = Command::new("gcc")
            .args(["-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror", "-o"])
            .args([&built, &source])
            .args(libraries)
            .status();
        assert!(
            gcc.expect("gcc is needed (Debian package gcc)").success(),
            "(Debian package libxen-dev has the headers)"
        );
        built
    };
    BUILT.lock().unwrap().entry(name).or_insert_with(build).clone()
}

/// The server's domain, and the client's.
pub(crate) const SERVER: u16 = 1;
pub(crate) const CLIENT: u16 = 2;
/// Where the server publishes.
pub(crate) const PATH: &str = "data/vchan/2/7";

impl Host {
    /// A peer in the server's or the client's domain, by its role.
    pub(crate) fn peer(&self, kind: Kind, role: &str, sizes: (usize, usize), bytes: usize) -> Process {
        self.peer_at(PATH, kind, role, sizes, bytes)
    }

    /// The same, at another path below the server's home.
    pub(crate) fn peer_at(
        &self,
        path: &str,
        kind: Kind,
        role: &str,
        sizes: (usize, usize),
        bytes: usize,
    ) -> Process {
        Process::start(&mut self.peer_command(path, kind, role, sizes, bytes))
    }

    /// A peer under valgrind: it fails for an access that is not allowed and for memory that nobody can give back.
    pub(crate) fn peer_in_valgrind(
        &self,
        kind: Kind,
        role: &str,
        sizes: (usize, usize),
        bytes: usize,
    ) -> Process {
        let peer = self.peer_command(PATH, kind, role, sizes, bytes);
        let domid = if role == "server" { SERVER } else { CLIENT };
        Process::start(
            self.command(domid, "valgrind")
                .args(["--quiet", "--error-exitcode=99", "--leak-check=full"])
                .args(["--show-leak-kinds=definite", "--errors-for-leak-kinds=definite"])
                .arg(peer.get_program())
                .args(peer.get_args()),
        )
    }

    fn peer_command(
        &self,
        path: &str,
        kind: Kind,
        role: &str,
        sizes: (usize, usize),
        bytes: usize,
    ) -> Command {
        let (own, other, path) = match role {
            "server" | "drain" => (SERVER, CLIENT, path.to_owned()),
            _ => (CLIENT, SERVER, format!("/local/domain/{SERVER}/{path}")),
        };
        let numbers = [sizes.0, sizes.1, bytes, bytes ^ 0x5eed].map(|number| number.to_string());
        let mut command = self.command(own, kind.path());
        command.args([role, &other.to_string(), &path]).args(numbers).arg("--progress");
        command
    }

    /// `vchan-cat listen` with these arguments behind the path.
    pub(crate) fn cat_listen(&self, args: &[&str]) -> Command {
        let mut command = self.command(SERVER, env!("CARGO_BIN_EXE_vchan-cat"));
        command.args(["listen", &CLIENT.to_string(), PATH]).args(args);
        command
    }

    /// `vchan-cat connect`, which waits for the server, with these arguments behind the path.
    pub(crate) fn cat_connect(&self, args: &[&str]) -> Command {
        let mut command = self.command(CLIENT, env!("CARGO_BIN_EXE_vchan-cat"));
        command.args(["connect", &SERVER.to_string(), PATH, "--wait", "60"]).args(args);
        command
    }
}
