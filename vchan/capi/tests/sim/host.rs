//! A simulated Xen host, programs in its domains, and the libraries that they are given.

use std::io::Read as _;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, OnceLock};
use std::time::{Duration, Instant};
use std::{env, fs, thread};

/// Far longer than anything here takes, on a busy machine too.
pub(crate) const PATIENCE: Duration = Duration::from_secs(100);

/// Whose library a program is given.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Library {
    /// Ours.
    Ours,
    /// The one that is installed.
    Debian,
}

/// A file of this workspace.
pub(crate) fn source(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../..").join(path)
}

/// A library that cargo built with this test.
pub(crate) fn built(library: &str) -> PathBuf {
    let path = env::current_exe().unwrap().with_file_name(library);
    assert!(path.is_file(), "{} is missing", path.display());
    path
}

/// A folder of this run alone, removed when it is dropped.
pub(crate) struct Folder(PathBuf);

impl Folder {
    pub(crate) fn new(name: &str) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path =
            Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}-{}-{number}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if !thread::panicking() {
            let _ = fs::remove_dir_all(&self.0);
        }
    }
}

/// A folder with our libraries under the names by which programs look for them.
pub(crate) fn libraries() -> &'static Path {
    static LIBRARIES: OnceLock<PathBuf> = OnceLock::new();
    LIBRARIES.get_or_init(|| {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("libraries-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        for (library, names) in [
            ("libxenvchan.so", ["libxenvchan.so.4.17", "libxenvchan.so"]),
            ("libvchan_xen.so", ["libvchan-xen.so.1", "libvchan-xen.so"]),
        ] {
            for name in names {
                let _ = fs::remove_file(folder.join(name));
                symlink(built(library), folder.join(name)).unwrap();
            }
        }
        folder
    })
}

/// Builds a C program, once. `arguments` come behind the source.
pub(crate) fn compile(source_path: &str, arguments: &[&str]) -> PathBuf {
    static BUILT: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());
    let mut done = BUILT.lock().unwrap();
    let source = source(source_path);
    let name = format!(
        "{}-{:x}-{}",
        source.file_stem().unwrap().to_str().unwrap(),
        arguments.concat().bytes().fold(5381_u64, |hash, byte| hash.wrapping_mul(33) ^ u64::from(byte)),
        std::process::id()
    );
    let program = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    if !done.contains(&program) {
        let output = Command::new("gcc")
            .args(["-std=gnu11", "-O2", "-g", "-Wall", "-Wextra", "-Werror", "-o"])
            .args([&program, &source])
            .args(arguments)
            .output()
            .expect("gcc is needed (Debian package gcc)");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        done.push(program.clone());
    }
    program
}

/// Where our headers are, and our libraries, for gcc.
pub(crate) fn with_our_headers(arguments: &[&str]) -> Vec<String> {
    let include = source("vchan/capi/include");
    [
        format!("-I{}", include.display()),
        format!("-I{}", include.join("vchan-xen").display()),
        format!("-L{}", libraries().display()),
    ]
    .into_iter()
    .chain(arguments.iter().map(|argument| (*argument).to_owned()))
    .collect()
}

/// A host of its own.
pub(crate) struct Host {
    folder: Folder,
}

impl Host {
    pub(crate) fn new(name: &str) -> Self {
        Self { folder: Folder::new(name) }
    }

    pub(crate) fn folder(&self) -> &Folder {
        &self.folder
    }

    /// A program in a domain, with a library.
    pub(crate) fn command(&self, domid: u16, library: Library, program: impl AsRef<Path>) -> Command {
        let mut command = Command::new(program.as_ref());
        command
            .env("LD_PRELOAD", built("libxensim.so"))
            .env("XENSIM_DIR", self.folder.file("host"))
            .env("XENSIM_DOMID", domid.to_string())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        if library == Library::Ours {
            command.env("LD_LIBRARY_PATH", libraries());
        }
        command
    }
}

/// A program that runs; killed at the end of the test, whatever that is.
pub(crate) struct Process {
    pub(crate) child: Child,
    shown: String,
    patience: Duration,
}

impl Process {
    pub(crate) fn start(command: &mut Command) -> Self {
        Self { child: command.spawn().unwrap(), shown: format!("{command:?}"), patience: PATIENCE }
    }

    /// The same for what takes longer.
    pub(crate) fn start_long(command: &mut Command) -> Self {
        let mut process = Self::start(command);
        process.patience = 50 * PATIENCE;
        process
    }

    /// Waits until a peer says on standard error that it is connected.
    pub(crate) fn await_connection(&mut self) {
        let stderr = self.child.stderr.as_mut().unwrap();
        let mut said = String::new();
        while !said.contains("connected\n") {
            let mut byte = [0];
            assert_eq!(stderr.read(&mut byte).unwrap(), 1, "{} ends early", self.shown);
            said.push(byte[0].into());
        }
    }

    /// Waits for the end of it, and takes what it printed (which has to fit into pipes).
    pub(crate) fn finish(mut self) -> Output {
        let start = Instant::now();
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            assert!(start.elapsed() < self.patience, "{} does not end", self.shown);
            thread::sleep(Duration::from_millis(2));
        };
        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        self.child.stdout.take().unwrap().read_to_end(&mut stdout).unwrap();
        self.child.stderr.take().unwrap().read_to_end(&mut stderr).unwrap();
        println!("{}: {status}, {}", self.shown, String::from_utf8_lossy(&stderr));
        Output { status, stdout, stderr }
    }

    /// The same of a program that has to end well; what it printed.
    pub(crate) fn succeed(self) -> String {
        let shown = self.shown.clone();
        let output = self.finish();
        let said = String::from_utf8(output.stdout).unwrap();
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{shown}: {}, {said}{errors}", output.status);
        said
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
