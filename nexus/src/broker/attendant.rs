//! Programs that are run for nexusd, by a process of their own.
//!
//! nexusd reads what qubes say, so it has no privileges and cannot run a program. The attendant is started before it gives
//! them up, reads nothing but nexusd's orders (a line of JSON each), and runs what the configuration names: the program
//! that asks the user, the one that tells him, the one that starts a qube, and those that make and end disposable qubes. A
//! nexusd that was taken over can have it do no more than that: the names of disposables are checked, only those are ended
//! that were made here, and their number is bounded. Which templates are declared is for the program to know that makes them.
//!
//! Each disposable has a file in a folder, with what it was made from in it, so that none is forgotten when either of the two
//! processes dies.

use super::core::{Asking, Notice};
use super::settings::{DisposableSettings, Settings};
use crate::name::Name;
use crate::wire::control::CallId;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// What nexusd wants.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
pub(super) enum Order {
    Make { base: Name, name: Name },
    Destroy { name: Name },
    Start { name: Name },
    Ask { call: CallId, question: serde_json::Value },
    Notify { notice: serde_json::Value },
}

/// What the attendant tells.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
pub(super) enum Report {
    /// One that is there from before.
    Found {
        name: Name,
        base: Name,
    },
    Made {
        name: Name,
        error: Option<String>,
    },
    Destroyed {
        name: Name,
        error: Option<String>,
    },
    Started {
        name: Name,
        error: Option<String>,
    },
    Answered {
        call: CallId,
        target: Option<String>,
    },
    /// The user was told of one, or could not be.
    Notified,
}

impl Order {
    pub(super) fn ask(asking: &Asking) -> Option<Self> {
        Some(Self::Ask { call: asking.call, question: serde_json::to_value(asking).ok()? })
    }

    pub(super) fn notify(notice: &Notice) -> Option<Self> {
        Some(Self::Notify { notice: serde_json::to_value(notice).ok()? })
    }
}

/// Programs that run at once. nexusd asks for no more than it has calls that wait.
const AT_ONCE: usize = 512;
/// Disposable qubes at once.
const DISPOSABLES: usize = 64;
/// The longest answer of a program.
const ANSWER: u64 = 64 << 10;
/// How long a program may take that tells the user something.
const NOTICE: Duration = Duration::from_secs(10);
/// How long a program that makes, starts or ends a qube may take.
const PATIENCE: Duration = Duration::from_secs(300);

/// What all threads of the attendant share.
struct Attendant {
    settings: Settings,
    out: Mutex<UnixStream>,
    busy: AtomicUsize,
    /// One qube is started after the other: two of nxl's applies do not go together.
    starting: Mutex<()>,
    /// Whose disposables are being built ahead; true: once more is wanted meanwhile.
    filling: Mutex<BTreeMap<Name, bool>>,
}

/// Follows the orders that come by a socket, until it is closed.
///
/// # Errors
/// The socket, or the folder of what was made.
pub fn attend(socket: UnixStream, settings: Settings) -> io::Result<()> {
    let orders = BufReader::new(socket.try_clone()?);
    let attendant = Arc::new(Attendant {
        settings,
        out: Mutex::new(socket),
        busy: AtomicUsize::new(0),
        starting: Mutex::default(),
        filling: Mutex::default(),
    });
    if !attendant.settings.disposables.is_empty() || attendant.settings.declared_disposables.is_some() {
        fs::create_dir_all(&attendant.settings.made)?;
        for (name, base) in made(&attendant.settings.made)? {
            attendant.tell(&Report::Found { name, base })?;
        }
    }
    for base in attendant.settings.disposables.keys() {
        attendant.fill(base);
    }
    for line in orders.lines() {
        let line = match line {
            // nexusd was killed.
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => break,
            line => line?,
        };
        let order = serde_json::from_str(&line).map_err(io::Error::from)?;
        if attendant.busy.load(Ordering::Relaxed) >= AT_ONCE {
            attendant.decline(order)?;
            continue;
        }
        attendant.busy.fetch_add(1, Ordering::Relaxed);
        let attendant = attendant.clone();
        thread::Builder::new().name("order".to_owned()).spawn(move || {
            // nexusd is gone: this process ends, too.
            let _ = attendant.follow(order);
            attendant.busy.fetch_sub(1, Ordering::Relaxed);
        })?;
    }
    Ok(())
}

/// The disposables that have a file, and what they were made from.
fn made(folder: &Path) -> io::Result<Vec<(Name, Name)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name().into_string().ok().filter(|name| is_ours(name));
        let name = name.and_then(|name| Name::new(&name).ok());
        let base = fs::read_to_string(entry.path()).ok().and_then(|base| Name::new(base.trim()).ok());
        found.extend(name.zip(base));
    }
    Ok(found)
}

/// No qube of another kind can be meant by such a name.
fn is_ours(name: &str) -> bool {
    name.strip_prefix("disp").is_some_and(|number| {
        (1..=4).contains(&number.len()) && number.bytes().all(|byte| byte.is_ascii_digit())
    })
}

impl Attendant {
    fn tell(&self, report: &Report) -> io::Result<()> {
        let mut line = serde_json::to_vec(report)?;
        line.push(b'\n');
        self.out.lock().unwrap_or_else(PoisonError::into_inner).write_all(&line)
    }

    fn decline(&self, order: Order) -> io::Result<()> {
        let error = Some("too many programs run".to_owned());
        self.tell(&match order {
            Order::Make { name, .. } => Report::Made { name, error },
            Order::Destroy { name } => Report::Destroyed { name, error },
            Order::Start { name } => Report::Started { name, error },
            Order::Ask { call, .. } => Report::Answered { call, target: None },
            Order::Notify { .. } => Report::Notified,
        })
    }

    fn follow(self: &Arc<Self>, order: Order) -> io::Result<()> {
        self.tell(&match order {
            Order::Make { base, name } => {
                let error = self.make(&base, &name).err();
                Report::Made { name, error }
            }
            Order::Destroy { name } => {
                let error = self.destroy(&name).err();
                Report::Destroyed { name, error }
            }
            Order::Start { name } => {
                let error = self.start(&name).err();
                Report::Started { name, error }
            }
            Order::Ask { call, question } => Report::Answered { call, target: self.ask(&question) },
            Order::Notify { notice } => {
                self.notify(&notice);
                Report::Notified
            }
        })
    }

    fn file(&self, name: &Name) -> PathBuf {
        self.settings.made.join(name.as_str())
    }

    fn make(self: &Arc<Self>, base: &Name, name: &Name) -> Result<(), String> {
        let how = self
            .settings
            .disposables_of(base.as_str())
            .ok_or_else(|| format!("nothing is made from {base}"))?;
        if !is_ours(name.as_str()) {
            return Err(format!("{name} is no name of a disposable qube"));
        }
        if base.as_str().starts_with('-') {
            return Err(format!("{base} is an option, and no template"));
        }
        let error = |error: io::Error| format!("{}: {error}", self.settings.made.display());
        if made(&self.settings.made).map_err(error)?.len() >= DISPOSABLES {
            return Err(format!("there are {DISPOSABLES} disposable qubes"));
        }
        // Before it is there: should this process die meanwhile, it is not forgotten. And one of that name there is once.
        let mut file = fs::File::create_new(self.file(name)).map_err(error)?;
        file.write_all(base.as_str().as_bytes()).map_err(error)?;
        if !how.take.is_empty() {
            match run(&how.take, name, Some(base)) {
                Ok(()) => {
                    self.fill(base);
                    return Ok(());
                }
                Err(reason) => {
                    tracing::info!(%base, %name, reason, "no disposable qube is ready: one is made")
                }
            }
        }
        let made = run(&how.create, name, Some(base));
        // Not at the same time: somebody waits for this one.
        self.fill(base);
        made
    }

    /// Has disposables built ahead, beside everything else, if they are to be. One after the other: who asks for it while
    /// that goes on has it done once more.
    fn fill(self: &Arc<Self>, base: &Name) {
        let how = self.settings.disposables_of(base.as_str());
        let Some(how) = how.filter(|how| !how.fill.is_empty()) else { return };
        match self.filling().entry(base.clone()) {
            Entry::Occupied(mut entry) => {
                entry.insert(true);
                return;
            }
            Entry::Vacant(entry) => entry.insert(false),
        };
        let words = how.fill.iter().map(|word| word.replace("{template}", base.as_str()));
        let (this, base, fill) = (self.clone(), base.clone(), words.collect::<Vec<_>>());
        let work = move || {
            loop {
                if let Err(reason) = run_words(fill.iter().cloned()) {
                    tracing::error!(%base, reason, "no disposable qubes are built ahead");
                }
                let mut filling = this.filling();
                match filling.get_mut(&base) {
                    Some(again) if *again => *again = false,
                    _ => {
                        filling.remove(&base);
                        return;
                    }
                }
            }
        };
        if let Err(error) = thread::Builder::new().name("fill".to_owned()).spawn(work) {
            tracing::error!(%error, "no disposable qubes are built ahead");
        }
    }

    fn filling(&self) -> MutexGuard<'_, BTreeMap<Name, bool>> {
        self.filling.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn destroy(&self, name: &Name) -> Result<(), String> {
        let path = self.file(name);
        let base = fs::read_to_string(&path).map_err(|_| format!("{name} was not made here"))?;
        let base = Name::new(base.trim()).map_err(|error| format!("{}: {error}", path.display()))?;
        let how: &DisposableSettings = self
            .settings
            .disposables_of(base.as_str())
            .ok_or_else(|| format!("nothing is made from {base} any more"))?;
        run(&how.destroy, name, Some(&base))?;
        fs::remove_file(&path).map_err(|error| format!("{}: {error}", path.display()))
    }

    /// What can be started is for the program to know: the qubes that are declared.
    fn start(&self, name: &Name) -> Result<(), String> {
        let _turn = self.starting.lock().unwrap_or_else(PoisonError::into_inner);
        run(&self.settings.start, name, None)
    }

    /// Tells the user. That it could not be done is for the log of nexusd: nobody waits for it.
    fn notify(&self, notice: &serde_json::Value) {
        let Some((program, arguments)) = self.settings.notify.split_first() else { return };
        let told =
            Command::new(program).args(arguments).stdin(Stdio::piped()).stdout(Stdio::null()).spawn().map(
                |mut child| {
                    if let Some(mut stdin) = child.stdin.take() {
                        // A line is less than a pipe has room for. Who does not read it has seen enough.
                        let _ = stdin.write_all(format!("{notice}\n").as_bytes());
                    }
                    wait(&mut child, NOTICE)
                },
            );
        match told {
            Ok(Some(true)) => {}
            Ok(_) => tracing::error!(program, "the user was not told of a call: it failed"),
            Err(error) => tracing::error!(program, %error, "the user was not told of a call"),
        }
    }

    /// The target that the user chose. Whatever else the program says or does is a no.
    fn ask(&self, question: &serde_json::Value) -> Option<String> {
        #[derive(Deserialize)]
        struct Answer {
            target: String,
        }
        let (program, arguments) = self.settings.ask.split_first()?;
        let mut child = Command::new(program)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .inspect_err(|error| tracing::error!(program, %error, "nobody can be asked"))
            .ok()?;
        let mut stdin = child.stdin.take()?;
        let stdout = child.stdout.take()?;
        let mut line = serde_json::to_vec(question).ok()?;
        line.push(b'\n');
        let reading = thread::spawn(move || {
            // A program that does not read its question may still say no.
            let _ = stdin.write_all(&line);
            drop(stdin);
            let mut answer = String::new();
            stdout.take(ANSWER).read_to_string(&mut answer).map(|_| answer)
        });
        let success = wait(&mut child, Duration::from_secs(self.settings.ask_seconds))?;
        let answer = reading.join().ok()?.ok()?;
        if !success {
            return None;
        }
        let Answer { target } = serde_json::from_str(answer.trim()).ok()?;
        Some(target)
    }
}

/// Runs a program that makes, starts or ends a qube.
fn run(command: &[String], name: &Name, template: Option<&Name>) -> Result<(), String> {
    run_words(command.iter().map(|word| match template {
        // Of what a name is made there is no { in it.
        Some(template) => word.replace("{name}", name.as_str()).replace("{template}", template.as_str()),
        None => word.replace("{name}", name.as_str()),
    }))
}

fn run_words(mut words: impl Iterator<Item = String>) -> Result<(), String> {
    let program = words.next().ok_or("no program is configured")?;
    let failed = |error: io::Error| format!("{program}: {error}");
    let mut child = Command::new(&program)
        .args(words)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(failed)?;
    let stderr = child.stderr.take();
    let said = thread::spawn(move || {
        let mut said = String::new();
        // What cannot be read of its last words is not told.
        let _ = stderr.map(|stderr| stderr.take(ANSWER).read_to_string(&mut said));
        said
    });
    match wait(&mut child, PATIENCE) {
        Some(true) => Ok(()),
        Some(false) => {
            let said = said.join().unwrap_or_default();
            let last = said.lines().last().unwrap_or("it failed").trim();
            Err(format!("{program}: {}", crate::name::shown(last)))
        }
        None => Err(format!("{program} took more than {} s", PATIENCE.as_secs())),
    }
}

/// Whether it succeeded; none if it had to be killed.
fn wait(child: &mut Child, patience: Duration) -> Option<bool> {
    let until = Instant::now() + patience;
    let mut pause = Duration::from_millis(1);
    loop {
        match child.try_wait() {
            Ok(Some(status)) => return Some(status.success()),
            Ok(None) if Instant::now() < until => {
                thread::sleep(pause);
                pause = (pause * 2).min(Duration::from_millis(50));
            }
            Ok(None) | Err(_) => {
                // It may have just ended; either way it is over.
                let _ = child.kill();
                let _ = child.wait();
                return None;
            }
        }
    }
}
