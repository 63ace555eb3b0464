//! One boot of Xen in QEMU 7.2.
//!
//! The processor model is not a matter of taste; each flag below was learnt from a failure.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use crate::checks::Boot;
use crate::debian::Debian;
use crate::dom0::Base;
use crate::error::At as _;
use crate::protocol::{self, Event};
use crate::{Error, Result};

/// An AMD model, since it brings emulated SVM with nested paging, without which Xen has no PVH guests; less
/// - SMAP, SMEP: under their emulation a PV dom0 crashes at its first page fault;
/// - MONITOR: Xen's idle loop takes a #GP from MWAIT;
/// - RDTSCP: a guest that uses it stops Xen with "SVM Insn len emulation failed";
/// - FSGSBASE, XSAVE and what builds on it: with them up to 7 of 1,000 processes in dom0 die of a SIGSEGV or
///   compute nonsense.
const EMULATED_CPU: &str = "EPYC-Rome,-smap,-smep,-monitor,-rdtscp,-fsgsbase,-xsave,-avx,-avx2,-fma,-f16c";

/// dom0 gets 1 GiB, since all its files are in memory, and a processor for each of the machine's; Xen reboots when it
/// panics, which ends QEMU at once instead of leaving a halted machine to a timeout. cpuidle=0 goes with the missing
/// MONITOR.
const XEN_ARGUMENTS: &str =
    "com1=115200,8n1 console=com1 dom0_mem=1024M,max:1024M cpuidle=0 bootscrub=0 sched=credit2";
/// `norandmaps`: QEMU translates code anew for each address that it is found at, so that with programs at an address of their
/// own each time more than half of a short program's life is the translator's.
const DOM0_ARGUMENTS: &str = "console=hvc0 quiet panic=1 norandmaps";

/// Where dom0's own console goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Console {
    /// Into `console.log` of the folder, with the second port's lines given to the caller.
    Logged,
    /// To the terminal that the testbed was started from.
    Terminal,
}

/// A machine that is booting, running or gone.
#[derive(Debug)]
pub struct Machine {
    process: Child,
    lines: Receiver<String>,
    console: PathBuf,
    started: Instant,
}

/// What a machine came to while somebody listened.
#[derive(Debug)]
pub enum Heard {
    /// It said something.
    Event(Event),
    /// It powered off, or died; nothing more will come.
    Gone,
    /// It has said nothing for too long.
    Silent(Duration),
}

impl Machine {
    /// Starts QEMU as `boot` describes. `folder` takes the overlay and the console's log.
    pub fn boot(
        debian: &Debian,
        base: &Base,
        overlay: &[u8],
        folder: &Path,
        boot: Boot,
        console: Console,
    ) -> Result<Self> {
        fs::create_dir_all(folder).at(folder)?;
        let initrd = folder.join("initrd");
        let mut bytes = fs::read(&base.initrd).at(&base.initrd)?;
        bytes.extend_from_slice(overlay);
        fs::write(&initrd, &bytes).at(&initrd)?;
        let log = folder.join("console.log");

        let mut command = qemu(debian)?;
        let can_nest = nested_kvm();
        command.args(["-machine", "q35", "-no-reboot", "-display", "none", "-nic", "none"]);
        if can_nest {
            command.args(["-accel", "kvm", "-cpu", "host"]);
        } else {
            command.args(["-accel", "tcg,thread=multi", "-cpu", EMULATED_CPU]);
        }
        command.arg("-m").arg(boot.memory.to_string()).arg("-smp").arg(boot.processors.to_string());
        command.arg("-kernel").arg(&base.xen).args(["-append", XEN_ARGUMENTS]);
        // The files of a multiboot image are separated by commas; the words after the first are the dom0
        // kernel's command line.
        let modules = format!("{} {DOM0_ARGUMENTS},{}", base.kernel.display(), initrd.display());
        command.args(["-initrd", &modules]);
        match console {
            Console::Logged => {
                command.args(["-monitor", "none", "-serial"]).arg(format!("file:{}", log.display()));
                command.args(["-chardev", "stdio,id=verdicts,signal=off", "-serial", "chardev:verdicts"]);
                command.stdin(Stdio::null()).stdout(Stdio::piped());
            }
            Console::Terminal => {
                command.args(["-serial", "mon:stdio"]);
                command.arg("-serial").arg(format!("file:{}", log.display()));
            }
        }
        // It lists each feature that emulation lacks, twice.
        let complaints = folder.join("qemu.log");
        command.stderr(fs::File::create(&complaints).at(&complaints)?);
        let mut process = command.spawn().map_err(|source| Error::NoProgram {
            program: command.get_program().to_string_lossy().into_owned(),
            source,
        })?;

        let (sender, lines) = channel();
        if let Some(output) = process.stdout.take() {
            std::thread::spawn(move || {
                for line in BufReader::new(output).split(b'\n') {
                    let Ok(line) = line else { break };
                    if sender.send(String::from_utf8_lossy(&line).into_owned()).is_err() {
                        break;
                    }
                }
            });
        }
        Ok(Self { process, lines, console: log, started: Instant::now() })
    }

    /// Waits for the next line for as long as `patience`.
    pub fn listen(&mut self, patience: Duration) -> Heard {
        match self.lines.recv_timeout(patience) {
            Ok(line) => Heard::Event(protocol::parse(&line)),
            Err(RecvTimeoutError::Disconnected) => Heard::Gone,
            Err(RecvTimeoutError::Timeout) => Heard::Silent(patience),
        }
    }

    /// How long ago it was started.
    pub fn age(&self) -> Duration {
        self.started.elapsed()
    }

    /// The last lines of dom0's console: Xen's and the dom0 kernel's messages.
    pub fn console_tail(&self, lines: usize) -> Vec<String> {
        let text = fs::read(&self.console).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let all: Vec<_> = text.lines().map(|line| line.trim_end().to_owned()).collect();
        all[all.len().saturating_sub(lines)..].to_vec()
    }

    /// Waits until it has powered off.
    pub fn wait(&mut self) -> Result<()> {
        self.process.wait().map(drop).at("qemu-system-x86_64")
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // Either fails only when the process is gone already, which is what they are for.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// QEMU out of the packages' tree, with their libraries and their loader, so that whatever QEMU and libc the machine
/// has do not matter.
fn qemu(debian: &Debian) -> Result<Command> {
    let tree = &debian.tree;
    let folders: Vec<_> = tree.library_folders().iter().map(|folder| folder.display().to_string()).collect();
    // A machine does not outlive whoever watches it, even when that is killed.
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL"]);
    command.arg(tree.file("usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2")?);
    command.arg("--library-path").arg(folders.join(":")).arg(tree.file("usr/bin/qemu-system-x86_64")?);
    for data in ["usr/share/qemu", "usr/share/seabios"] {
        command.arg("-L").arg(tree.file(data)?);
    }
    command.env("QEMU_MODULE_DIR", tree.file("usr/lib/x86_64-linux-gnu/qemu")?);
    Ok(command)
}

/// Whether KVM is there, may be used, and lets its guest have guests.
pub fn nested_kvm() -> bool {
    let usable = fs::OpenOptions::new().read(true).write(true).open("/dev/kvm").is_ok();
    let nests = |module: &str| {
        fs::read_to_string(format!("/sys/module/{module}/parameters/nested"))
            .is_ok_and(|value| matches!(value.trim(), "1" | "Y" | "y"))
    };
    usable && (nests("kvm_amd") || nests("kvm_intel"))
}
