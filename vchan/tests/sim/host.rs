//! A simulated Xen host, and programs in its domains.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use std::{env, fs, thread};

/// Far longer than anything here takes, on a busy machine too.
pub(crate) const PATIENCE: Duration = Duration::from_secs(100);

/// A file that cargo built with this test, seen from it.
pub(crate) fn beside(file: &str) -> PathBuf {
    let path = env::current_exe().unwrap().with_file_name(file);
    assert!(path.is_file(), "{} is missing: run `cargo test` without --test", path.display());
    path
}

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

    /// Its folder.
    #[allow(dead_code, reason = "for who looks for the host's process")]
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
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
            if self.has_ended() {
                // What it printed last may still be in the pipe.
                self.output.iter_mut().for_each(Collected::drain);
                assert!(self.output.iter().any(printed), "{} ends early", self.shown);
            }
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
    /// Waits until the pipe is closed, and all of it read.
    fn drain(&mut self) {
        if let Some(reader) = self.reader.take() {
            reader.join().unwrap();
        }
    }

    /// All there is, once the pipe is closed.
    fn all(&mut self) -> Vec<u8> {
        self.drain();
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
