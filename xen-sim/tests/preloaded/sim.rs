//! A simulated host for one test: C programs, built once, run in its domains with `libxensim.so` preloaded.

use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::{Mutex, mpsc};
use std::time::{Duration, Instant};
use std::{env, fs, thread};

/// Far longer than anything here takes, on a busy machine too.
const PATIENCE: Duration = Duration::from_secs(60);

/// The library: cargo builds it beside the test programs.
pub(crate) fn library() -> PathBuf {
    let library = env::current_exe().unwrap().with_file_name("libxensim.so");
    assert!(library.is_file(), "{} is missing: cargo build -p xen-sim", library.display());
    library
}

/// Builds `tests/c/NAME.c` with gcc against the real C libraries.
pub(crate) fn program(name: &str) -> PathBuf {
    static BUILDING: Mutex<Vec<String>> = Mutex::new(Vec::new());
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/c").join(name).with_extension("c");
    // For this run alone: another one may be at it in the same folder.
    let built = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}-{}", std::process::id()));
    let mut done = BUILDING.lock().unwrap();
    if !done.iter().any(|done| done == name) {
        let gcc = Command::new("gcc")
            .args(["-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror", "-pthread", "-o"])
            .args([&built, &source])
            .args(["-lxenvchan", "-lxengnttab", "-lxenevtchn", "-lxenstore"])
            .status();
        assert!(
            gcc.expect("gcc is needed (Debian package gcc)").success(),
            "(Debian package libxen-dev has the headers)"
        );
        done.push(name.to_owned());
    }
    built
}

/// A host of its own, in a folder that is removed at the end.
pub(crate) struct Sim {
    dir: PathBuf,
}

impl Sim {
    pub(crate) fn new(name: &str) -> Self {
        let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("host-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&dir);
        Self { dir }
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// A program in a domain.
    pub(crate) fn command(&self, domid: u16, program: &Path) -> Command {
        let mut command = Command::new(program);
        command
            .env("LD_PRELOAD", library())
            .env("XENSIM_DIR", &self.dir)
            .env("XENSIM_DOMID", domid.to_string())
            .stdin(Stdio::null());
        command
    }

    /// Starts a program in a domain.
    pub(crate) fn start(&self, domid: u16, program: &Path, args: &[&str]) -> Process {
        spawn(self.command(domid, program).args(args))
    }

    /// Starts a program in a domain that will complain, as it should.
    pub(crate) fn start_silenced(&self, domid: u16, program: &Path, args: &[&str]) -> Process {
        spawn(self.command(domid, program).args(args).stderr(Stdio::null()))
    }
}

fn spawn(command: &mut Command) -> Process {
    let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
    let lines = read_lines(child.stdout.take().unwrap());
    Process { child, lines, shown: format!("{command:?}") }
}

impl Drop for Sim {
    fn drop(&mut self) {
        if thread::panicking() {
            let log = fs::read_to_string(self.dir.join("host.log")).unwrap_or_default();
            println!("{}: host.log says: {log:?}", self.dir.display());
        } else {
            let _ = fs::remove_dir_all(&self.dir);
        }
    }
}

fn read_lines(stdout: ChildStdout) -> mpsc::Receiver<String> {
    let (sender, lines) = mpsc::channel();
    thread::spawn(move || {
        for line in BufReader::new(stdout).lines().map_while(Result::ok) {
            if sender.send(line).is_err() {
                break;
            }
        }
    });
    lines
}

/// A program that runs in a domain; killed at the end of the test, whatever that is.
pub(crate) struct Process {
    child: Child,
    lines: mpsc::Receiver<String>,
    shown: String,
}

impl Process {
    /// The next line that it prints.
    pub(crate) fn line(&self) -> String {
        self.lines
            .recv_timeout(PATIENCE)
            .unwrap_or_else(|error| panic!("{} prints nothing: {error}", self.shown))
    }

    pub(crate) fn says(&self, line: &str) {
        assert_eq!(self.line(), line, "{}", self.shown);
    }

    /// kill -9.
    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
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

    pub(crate) fn succeeds(&mut self) {
        let status = self.wait();
        assert!(status.success(), "{}: {status}", self.shown);
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Waits until something is so.
pub(crate) fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < PATIENCE, "not in {PATIENCE:?}: {what}");
        thread::sleep(Duration::from_millis(10));
    }
}

/// Everything that a program writes to stderr.
pub(crate) fn stderr_of(mut command: Command) -> (ExitStatus, String) {
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let mut text = String::new();
    child.stderr.take().unwrap().read_to_string(&mut text).unwrap();
    (child.wait().unwrap(), text)
}
