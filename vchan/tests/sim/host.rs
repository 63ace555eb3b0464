//! A simulated Xen host, and programs in its domains.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use std::{env, fs, thread};

/// Far longer than anything here takes, on a busy machine too.
pub(crate) const PATIENCE: Duration = Duration::from_secs(100);

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

/// A file that cargo built with this test, seen from it.
pub(crate) fn beside(file: &str) -> PathBuf {
    let path = env::current_exe().unwrap().with_file_name(file);
    assert!(path.is_file(), "{} is missing: run `cargo test` without --test", path.display());
    path
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

/// A host of its own, in a folder that is removed at the end.
pub(crate) struct Host {
    dir: PathBuf,
}

impl Host {
    pub(crate) fn new(name: &str) -> Self {
        let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("host-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&dir);
        Self { dir }
    }

    /// A program in a domain.
    pub(crate) fn command(&self, domid: u16, program: impl AsRef<Path>) -> Command {
        let mut command = Command::new(program.as_ref());
        command
            .env("LD_PRELOAD", beside("libxensim.so"))
            .env("XENSIM_DIR", &self.dir)
            .env("XENSIM_DOMID", domid.to_string())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

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

impl Drop for Host {
    fn drop(&mut self) {
        if thread::panicking() {
            let log = fs::read_to_string(self.dir.join("host.log")).unwrap_or_default();
            println!("{}: host.log says: {log:?}", self.dir.display());
        } else {
            let _ = fs::remove_dir_all(&self.dir);
        }
    }
}

/// A program that runs in a domain; killed at the end of the test, whatever that is.
pub(crate) struct Process {
    pub(crate) child: Child,
    shown: String,
    /// Reads what it prints meanwhile, so that it never waits for us.
    output: [Collected; 2],
}

impl Process {
    /// Starts a program whose standard output and standard error are collected.
    pub(crate) fn start(command: &mut Command) -> Self {
        let mut child = command.spawn().unwrap();
        let output = [collect(child.stdout.take().unwrap()), collect(child.stderr.take().unwrap())];
        Self { child, shown: format!("{command:?}"), output }
    }

    /// Waits until it has printed this, on standard output or standard error.
    pub(crate) fn await_text(&mut self, text: &str) {
        let start = Instant::now();
        let printed =
            |output: &Collected| String::from_utf8_lossy(&output.bytes.lock().unwrap()).contains(text);
        while !self.output.iter().any(printed) {
            assert!(start.elapsed() < PATIENCE, "{} does not say {text:?}", self.shown);
            assert!(!self.has_ended() || self.output.iter().any(printed), "{} ends early", self.shown);
            thread::sleep(Duration::from_millis(2));
        }
    }

    /// Stops it (SIGSTOP), or lets it go on (SIGCONT): for the peer, what a paused domain is.
    pub(crate) fn signal(&self, name: &str) {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args([name, &pid]).status().unwrap().success());
    }

    /// kill -9.
    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.wait();
    }

    pub(crate) fn has_ended(&mut self) -> bool {
        self.child.try_wait().unwrap().is_some()
    }

    pub(crate) fn wait(&mut self) -> ExitStatus {
        let start = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(start.elapsed() < PATIENCE, "{} does not end", self.shown);
            thread::sleep(Duration::from_millis(2));
        }
    }

    /// Waits for the end of it, and takes what it printed.
    pub(crate) fn finish(mut self) -> Output {
        let status = self.wait();
        let [stdout, stderr] = self.output.each_mut().map(Collected::all);
        println!("{}: {status}, {}", self.shown, String::from_utf8_lossy(&stderr));
        Output { status, stdout, stderr }
    }

    /// The one line that it prints, and whether it ended well.
    pub(crate) fn verdict(self) -> (bool, String) {
        let output = self.finish();
        (output.status.success(), String::from_utf8(output.stdout).unwrap().trim_end().to_owned())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What comes out of a pipe, read by a thread.
struct Collected {
    bytes: Arc<Mutex<Vec<u8>>>,
    reader: Option<thread::JoinHandle<()>>,
}

impl Collected {
    /// All there is, once the pipe is closed.
    fn all(&mut self) -> Vec<u8> {
        self.reader.take().unwrap().join().unwrap();
        std::mem::take(&mut self.bytes.lock().unwrap())
    }
}

fn collect(mut from: impl Read + Send + 'static) -> Collected {
    let bytes = Arc::new(Mutex::new(Vec::new()));
    let into = Arc::clone(&bytes);
    let reader = thread::spawn(move || {
        let mut part = vec![0; 1 << 16];
        loop {
            match from.read(&mut part).unwrap() {
                0 => return,
                n => into.lock().unwrap().extend_from_slice(&part[..n]),
            }
        }
    });
    Collected { bytes, reader: Some(reader) }
}
