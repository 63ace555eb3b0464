//! `nxl top` on a terminal, of a host in memory. This program is both ends: called with a variable set it is the one that
//! is driven, on the terminal that it is given; else it drives, on the other side of a pseudo-terminal.

#![allow(clippy::unwrap_used, reason = "what fails in here fails the test")]

use libtest_mimic::{Arguments, Failed, Trial};
use nxl_top::host::{HostSource, Nexus};
use nxl_top::snapshot::{Snapshot, Source};
use nxl_top::terminal::run;
use nxl_top::view::Choice;
use rustix::fs::{Mode, OFlags};
use rustix::process::{Pid, Signal, ioctl_tiocsctty, kill_process, setsid};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Termios, Winsize, tcgetattr, tcsetwinsize};
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::process::{Child, Command};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};
use toolstack::UserData;
use toolstack::qubes::Qubes;
use xen::mock::Machine;
use xen::{CreateDomain, DomId, GuestKind, Platform, Transaction};

/// What this program is to be: `keys`, or `panic`.
const DRIVEN: &str = "NXL_TOP_DRIVEN";
/// For whatever is waited for: other programs may have the machine.
const PATIENCE: Duration = Duration::from_secs(20);

fn main() {
    if let Ok(how) = std::env::var(DRIVEN) {
        driven(&how);
        return;
    }
    let trial = |name: &str, test: fn() -> Result<(), Failed>| Trial::test(name, test);
    libtest_mimic::run(
        &Arguments::from_args(),
        vec![
            trial("it_starts_sorts_filters_and_quits", it_starts_sorts_filters_and_quits),
            trial("a_signal_ends_it_and_the_terminal_is_as_it_was", a_signal_ends_it),
            trial("a_panic_is_read_on_the_terminal_as_it_was", a_panic_is_read),
            trial("a_terminal_without_a_size_is_one_of_80_by_24", a_terminal_without_a_size),
        ],
    )
    .exit();
}

/// Shows a host with two qubes, on the terminal that is stdin.
fn driven(how: &str) {
    // The terminal is this program's, and not that of whoever runs the tests.
    setsid().unwrap();
    ioctl_tiocsctty(std::io::stdin()).unwrap();
    let machine = Machine::new();
    let dom0 = machine.domain(DomId::DOM0);
    for (number, name) in [(1, "work"), (2, "vault")] {
        let create = CreateDomain::new(GuestKind::Pvh, [number; 16], 1);
        let domid = dom0.domain_control().unwrap().create_domain(&create).unwrap();
        let path = format!("/local/domain/{domid}/name");
        dom0.xenstore().unwrap().write(Transaction::NONE, &path, name.as_bytes()).unwrap();
    }
    let qubes = Qubes::open(&dom0, UserData::in_folder("/nonexistent")).unwrap();
    let nexus = Nexus { metrics: "/nonexistent".into(), system: "/nonexistent".into() };
    let host = HostSource::new(qubes, "/nonexistent", nexus).unwrap();
    let mut source = Failing { host, left: if how == "panic" { 2 } else { usize::MAX } };
    run(&mut source, Choice::default(), Duration::from_millis(100)).unwrap();
}

/// Panics after so many snapshots.
struct Failing {
    host: HostSource,
    left: usize,
}

impl Source for Failing {
    fn snapshot(&mut self) -> Result<Snapshot, String> {
        assert!(self.left > 0, "the source broke");
        self.left -= 1;
        self.host.snapshot()
    }
}

/// The program on a terminal, and what it wrote there.
struct Driven {
    child: Child,
    ours: File,
    /// Held, so that the terminal lives on, and can be looked at, when the program is gone.
    theirs: OwnedFd,
    before: Termios,
    output: Receiver<Vec<u8>>,
    text: String,
}

impl Driven {
    fn start(how: &str, term: &str, size: (u16, u16)) -> Self {
        let ours = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
        grantpt(&ours).unwrap();
        unlockpt(&ours).unwrap();
        let name = ptsname(&ours, Vec::new()).unwrap();
        let path = std::ffi::OsStr::from_bytes(name.to_bytes());
        let theirs =
            rustix::fs::open(path, OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC, Mode::empty()).unwrap();
        let size = Winsize { ws_col: size.0, ws_row: size.1, ws_xpixel: 0, ws_ypixel: 0 };
        tcsetwinsize(&theirs, size).unwrap();
        let before = tcgetattr(&theirs).unwrap();
        let end = || theirs.try_clone().unwrap();
        let child = Command::new(std::env::current_exe().unwrap())
            .env(DRIVEN, how)
            .env("TERM", term)
            .env_remove("NO_COLOR")
            .stdin(end())
            .stdout(end())
            .stderr(end())
            .spawn()
            .unwrap();
        let ours = File::from(ours);
        let (sender, output) = channel();
        let mut reader = ours.try_clone().unwrap();
        std::thread::spawn(move || {
            let mut buffer = [0; 4_096];
            while let Ok(read @ 1..) = reader.read(&mut buffer) {
                if sender.send(buffer[..read].to_vec()).is_err() {
                    return;
                }
            }
        });
        Self { child, ours, theirs, before, output, text: String::new() }
    }

    fn press(&mut self, keys: &str) {
        self.text.clear();
        self.ours.write_all(keys.as_bytes()).unwrap();
    }

    /// Waits until it has written that.
    fn sees(&mut self, what: &str) -> Result<(), Failed> {
        let begun = Instant::now();
        while !self.text.contains(what) {
            match self.output.recv_timeout(PATIENCE.saturating_sub(begun.elapsed())) {
                Ok(bytes) => self.text += &String::from_utf8_lossy(&bytes),
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
                    return Err(format!("no {what:?} in {:?}", self.text).into());
                }
            }
        }
        Ok(())
    }

    /// Waits until it ends; its status. The terminal has its first screen again, a cursor, and its settings.
    fn ends(mut self) -> Result<i32, Failed> {
        self.sees("\x1b[?1049l")?;
        let begun = Instant::now();
        let status = loop {
            match self.child.try_wait().unwrap() {
                Some(status) => break status,
                None if begun.elapsed() > PATIENCE => {
                    self.child.kill().unwrap();
                    return Err("it does not end".into());
                }
                None => std::thread::sleep(Duration::from_millis(10)),
            }
        };
        while let Ok(bytes) = self.output.try_recv() {
            self.text += &String::from_utf8_lossy(&bytes);
        }
        let after = tcgetattr(self.theirs.as_fd()).unwrap();
        let settings = |settings: &Termios| {
            (settings.input_modes, settings.output_modes, settings.local_modes, settings.control_modes)
        };
        if settings(&after) != settings(&self.before) {
            return Err(format!("the terminal is {after:?} and was {:?}", self.before).into());
        }
        if !self.text.contains("\x1b[?25h") {
            return Err(format!("no cursor: {:?}", self.text).into());
        }
        Ok(status.code().unwrap_or(-1))
    }
}

fn equal<T: PartialEq + std::fmt::Debug>(found: T, wanted: T) -> Result<(), Failed> {
    if found == wanted { Ok(()) } else { Err(format!("{found:?} is not {wanted:?}").into()) }
}

fn it_starts_sorts_filters_and_quits() -> Result<(), Failed> {
    let mut top = Driven::start("keys", "vt100", (80, 24));
    top.sees("sort (cpu)")?;
    for part in ["\x1b[?1049h", "Xen", "NAME", "work", "vault"] {
        equal((part, top.text.contains(part)), (part, true))?;
    }
    // Neither colours nor a mouse on such a terminal.
    for part in ["\x1b[38;", "\x1b[48;", "\x1b[?1000h", "\x1b[?1003h"] {
        equal((part, top.text.contains(part)), (part, false))?;
    }
    top.press("s");
    top.sees("memory")?;
    top.press("fzz\r");
    top.sees("\"zz\"")?;
    top.press("q");
    equal(top.ends()?, 0)
}

fn a_signal_ends_it() -> Result<(), Failed> {
    let mut top = Driven::start("keys", "xterm", (100, 30));
    top.sees("q quit")?;
    kill_process(Pid::from_child(&top.child), Signal::TERM).unwrap();
    equal(top.ends()?, 0)
}

fn a_panic_is_read() -> Result<(), Failed> {
    let mut top = Driven::start("panic", "vt100", (80, 24));
    top.sees("the source broke")?;
    // The first screen is there before the words are.
    let (screen, words) = (top.text.find("\x1b[?1049l"), top.text.find("the source broke"));
    equal(screen < words && screen.is_some(), true)?;
    equal(top.ends()?, 101)
}

fn a_terminal_without_a_size() -> Result<(), Failed> {
    let mut top = Driven::start("keys", "vt100", (0, 0));
    top.sees("q quit")?;
    top.press("q");
    equal(top.ends()?, 0)
}
