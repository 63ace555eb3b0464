//! `nxl apply --host`: the same command on other hosts, by the `ssh` of this one. The document goes there by stdin; what is said
//! there, and how it ends, comes back.

use crate::command::HostOptions;
use crate::error::Error;
use crate::spec::Text;
use crate::terminal::Harmless;
use serde_json::{Map, Value, json};
use std::borrow::Cow;
use std::collections::BTreeSet;
use std::env;
use std::ffi::OsString;
use std::fmt;
use std::io::{self, BufRead, BufReader, IsTerminal, Read, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;
use std::process::{Command, Stdio};
use std::str::FromStr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use toolstack::spec::Document;
use toolstack::store_path;

/// Options for ssh, separated by blanks.
const SSH_OPTIONS: &str = "NXL_SSHOPTS";
/// The same for what Nix runs.
const NIX_OPTIONS: &str = "NIX_SSHOPTS";
/// What ssh ends with when it could not do its work, or whoever it worked for was killed.
const SSH_FAILED: u8 = 255;
/// What a shell ends with that finds a program it cannot run, and one that finds none.
const NOT_RUN: [u8; 2] = [126, 127];
/// How many hosts are at work at the same time.
const AT_ONCE: usize = 16;
/// Bytes of a line that is still put together; of a longer one, so many are told as a line.
const LINE: u64 = 64 << 10;
/// Bytes of JSON that are kept of a host.
const ANSWER: u64 = 64 << 20;
/// In the name of a document: the host's name.
const HOST: &str = "%h";

/// Where ssh is to go: `[USER@]HOST`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Destination {
    user: Option<String>,
    host: String,
}

impl FromStr for Destination {
    type Err = String;

    /// Takes nothing that ssh or a shell could take for something else than the name of a host.
    fn from_str(text: &str) -> Result<Self, String> {
        let (user, host) = match text.rsplit_once('@') {
            Some((user, host)) => (Some(user), host),
            None => (None, text),
        };
        let made_of = |text: &str, marks: &str| {
            text.chars().all(|c| c.is_ascii_alphanumeric() || marks.contains(c))
                && text.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_' || c == ':')
        };
        if !made_of(host, "._-:%") {
            return Err("[USER@]HOST it is, and a host's name begins with a letter or a digit, and has letters, digits, '.', '_' and '-'; \
                 an address may have ':' and '%'. The port is ssh's configuration's, or NXL_SSHOPTS='-p PORT'"
                .to_owned());
        }
        if user.is_some_and(|user| !made_of(user, "._-")) {
            return Err("the name of a user has letters, digits, '.', '_' and '-'".to_owned());
        }
        Ok(Self { user: user.map(str::to_owned), host: host.to_owned() })
    }
}

impl fmt::Display for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(user) = &self.user {
            write!(f, "{user}@")?;
        }
        f.write_str(&self.host)
    }
}

/// A command for other hosts.
pub(crate) struct Order<'a> {
    pub(crate) options: &'a HostOptions,
    /// The arguments of the nxl there, which reads the document from stdin.
    pub(crate) line: Vec<String>,
    pub(crate) spec: &'a Path,
    /// Whether what it says is JSON.
    pub(crate) json: bool,
}

/// How it went on a host.
struct Ended {
    status: u8,
    /// What it said, if that is JSON and all hosts' is told together.
    said: Option<Value>,
}

impl Order<'_> {
    /// Has all hosts carry it out.
    pub(crate) fn give(&self) -> Result<(), Error> {
        let hosts = &self.options.hosts;
        let mut names = BTreeSet::new();
        if let Some(twice) = hosts.iter().find(|host| !names.insert(&host.host)) {
            return Err(Error::HostTwice(twice.host.clone()));
        }
        // Before anything is done anywhere: a document that is wrong is so for all hosts.
        let texts = self.texts()?;
        let documents = texts.iter().map(|text| Ok(text.spec()?.document().clone()));
        let documents: Vec<Document> = documents.collect::<Result<_, Error>>()?;
        let far: Vec<_> = hosts.iter().zip(texts.iter().zip(&documents)).collect();
        let ended: Vec<Mutex<Option<Ended>>> = hosts.iter().map(|_| Mutex::new(None)).collect();
        let next = AtomicUsize::new(0);
        let work = || {
            loop {
                let at = next.fetch_add(1, Ordering::Relaxed);
                let Some((host, (text, document))) = far.get(at) else { return };
                let end = self.on(host, text, document);
                let failed = end.status != 0;
                *ended[at].lock().unwrap_or_else(PoisonError::into_inner) = Some(end);
                if failed && self.options.in_turn {
                    return;
                }
            }
        };
        let threads = if self.options.in_turn { 1 } else { hosts.len().min(AT_ONCE) };
        thread::scope(|scope| (0..threads).for_each(|_| _ = scope.spawn(work)));
        let ended = ended.into_iter().map(|end| end.into_inner().unwrap_or_else(PoisonError::into_inner));
        self.tell(&ended.collect::<Vec<_>>())
    }

    fn several(&self) -> bool {
        self.options.hosts.len() > 1
    }

    /// The document of each host.
    fn texts(&self) -> Result<Vec<Arc<Text>>, Error> {
        let path = self.spec.as_os_str().as_bytes();
        let Some(at) = path.windows(HOST.len()).position(|part| part == HOST.as_bytes()) else {
            // It may be stdin, which is there once.
            let text = Arc::new(Text::read(self.spec)?);
            return Ok(self.options.hosts.iter().map(|_| Arc::clone(&text)).collect());
        };
        let hosts = self.options.hosts.iter().map(|host| {
            let name = [&path[..at], host.host.as_bytes(), &path[at + HOST.len()..]].concat();
            Text::read(Path::new(&OsString::from_vec(name))).map(Arc::new)
        });
        hosts.collect()
    }

    /// Has one host carry it out.
    fn on(&self, host: &Destination, text: &Text, document: &Document) -> Ended {
        if self.options.copy_closures {
            let paths = store_paths(document);
            if !paths.is_empty() && !self.copy(host, &paths) {
                return Ended { status: 1, said: None };
            }
        }
        let mut ssh = Command::new("ssh");
        ssh.args(words(SSH_OPTIONS));
        // ssh takes of an option what comes first. No terminal, and nothing of this machine's for the other.
        ssh.args(["-T", "-x", "-a", "-o", "ClearAllForwardings=yes"]);
        if self.several() && !self.options.in_turn {
            // Whoever is asked for several passwords at once does not know for which host.
            ssh.args(["-o", "BatchMode=yes"]);
        }
        // The shell there takes the line apart again.
        let line = self.line.iter().map(|word| quoted(word));
        let line =
            [self.options.remote_program.clone()].into_iter().chain(line).collect::<Vec<_>>().join(" ");
        ssh.arg("--").arg(host.to_string()).arg(line);
        let (status, said) = match self.run(ssh, host, text.bytes()) {
            Ok(ended) => ended,
            Err(error) => {
                self.say(
                    host,
                    format_args!("ssh could not be run ({error}): the Debian package openssh-client has it"),
                );
                return Ended { status: SSH_FAILED, said: None };
            }
        };
        let program = &self.options.remote_program;
        if status == SSH_FAILED {
            self.say(
                host,
                format_args!(
                    "ssh failed; if that was after nxl had begun there, another apply finishes what it left"
                ),
            );
        } else if NOT_RUN.contains(&status) {
            self.say(host, format_args!("{program:?} could not be run there: --remote-program says where nxl is, or how it is called"));
        }
        let said = said.and_then(|said| serde_json::from_slice(&said).ok());
        Ended { status, said }
    }

    /// Brings what a document names to the host's store.
    fn copy(&self, host: &Destination, paths: &BTreeSet<String>) -> bool {
        let mut nix = Command::new("nix-copy-closure");
        if let (Some(options), None) = (env::var_os(SSH_OPTIONS), env::var_os(NIX_OPTIONS)) {
            nix.env(NIX_OPTIONS, options);
        }
        nix.arg("--to").arg(host.to_string()).args(paths);
        match self.run_told(nix, host) {
            Ok(0) => true,
            Ok(status) => {
                self.say(host, format_args!("nix-copy-closure ended with {status}: nothing was done there"));
                false
            }
            Err(error) => {
                self.say(host, format_args!("nix-copy-closure could not be run ({error}): it is Nix', and --copy-closures needs it here"));
                false
            }
        }
    }

    /// Runs a program, of which all that it says is for the user; its status.
    fn run_told(&self, mut command: Command, host: &Destination) -> io::Result<u8> {
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
        thread::scope(|scope| {
            // stdout is for what nxl says.
            scope.spawn(|| self.pass_on(host, stdout, &Stream::Err));
            self.pass_on(host, stderr, &Stream::Err);
        });
        child.wait().map(|status| code(status.code()))
    }

    /// Runs ssh with this on its stdin; its status, and what the far end said if that is kept.
    fn run(
        &self,
        mut command: Command,
        host: &Destination,
        stdin: &[u8],
    ) -> io::Result<(u8, Option<Vec<u8>>)> {
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        let (to, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
        let said = thread::scope(|scope| {
            // Who does not read it to its end says why.
            scope.spawn(move || to.map(|mut to| to.write_all(stdin)));
            scope.spawn(|| self.pass_on(host, stderr, &Stream::Err));
            if !(self.json && self.several()) {
                self.pass_on(host, stdout, &Stream::Out);
                return None;
            }
            let mut said = Vec::new();
            let _ = stdout.map(|stdout| stdout.take(ANSWER).read_to_end(&mut said));
            Some(said)
        });
        Ok((code(child.wait()?.code()), said))
    }

    /// Passes on what comes, as it comes: by lines that begin with the host's name if there are several.
    fn pass_on(&self, host: &Destination, from: Option<impl Read>, to: &Stream) {
        let Some(mut from) = from else { return };
        if !self.several() {
            let mut buffer = [0; 8192];
            while let Ok(read @ 1..) = from.read(&mut buffer) {
                to.write(&buffer[..read]);
            }
            return;
        }
        let mut from = BufReader::new(from);
        let mut line = format!("{}: ", host.host).into_bytes();
        let prefix = line.len();
        while let Ok(1..) = from.by_ref().take(LINE).read_until(b'\n', &mut line) {
            if line.last() != Some(&b'\n') {
                line.push(b'\n');
            }
            to.write(&line);
            line.truncate(prefix);
        }
    }

    /// A line of this end's.
    fn say(&self, host: &Destination, what: fmt::Arguments<'_>) {
        let _ = writeln!(io::stderr(), "nxl: {}: {what}", host.host);
    }

    /// What came of it on all hosts.
    fn tell(&self, ended: &[Option<Ended>]) -> Result<(), Error> {
        let hosts = &self.options.hosts;
        if self.json && self.several() {
            let of = |(host, end): (&Destination, &Option<Ended>)| {
                let end = end.as_ref();
                let value = json!({
                    "status": end.map(|end| end.status),
                    "said": end.and_then(|end| end.said.clone()),
                });
                (host.host.clone(), value)
            };
            let all: Map<_, _> = hosts.iter().zip(ended).map(of).collect();
            writeln!(io::stdout(), "{:#}", Value::from(all)).map_err(Error::Output)?;
        }
        let status = |end: &Option<Ended>| end.as_ref().map_or(0, |end| end.status);
        let worst = ended.iter().map(status).max().unwrap_or(0);
        match (worst, self.several()) {
            (0, _) => Ok(()),
            // It was said there.
            (status, false) => Err(Error::Exit(status)),
            (status, true) => {
                let all = || hosts.iter().zip(ended);
                let failed = all().filter_map(|(host, end)| match end.as_ref()?.status {
                    0 => None,
                    status => Some(format!("{} ({status})", host.host)),
                });
                let left = all().filter(|(_, end)| end.is_none()).map(|(host, _)| host.host.clone());
                Err(Error::Hosts { status, of: hosts.len(), failed: failed.collect(), left: left.collect() })
            }
        }
    }
}

/// Where something is told.
enum Stream {
    Out,
    Err,
}

impl Stream {
    /// Whoever reads it may have gone: the other end goes on for all that.
    fn write(&self, bytes: &[u8]) {
        fn whole(to: impl Write + IsTerminal, bytes: &[u8]) -> io::Result<()> {
            let mut to = Harmless::new(to, false);
            to.write_all(bytes)?;
            to.flush()
        }
        let _ = match self {
            Self::Out => whole(io::stdout().lock(), bytes),
            Self::Err => whole(io::stderr().lock(), bytes),
        };
    }
}

/// The status of a program that ended by itself; of one that was ended, what ssh has for its own failures.
fn code(code: Option<i32>) -> u8 {
    code.and_then(|code| u8::try_from(code).ok()).unwrap_or(SSH_FAILED)
}

/// The words of a variable.
fn words(name: &str) -> Vec<OsString> {
    let value = env::var_os(name).unwrap_or_default().into_vec();
    let words = value.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty());
    words.map(|word| OsString::from_vec(word.to_vec())).collect()
}

/// A word as a shell reads it.
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "_-=.,:/".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', "'\\''"))
}

/// The store paths that a host must have to make a document true.
fn store_paths(document: &Document) -> BTreeSet<String> {
    let mut paths = BTreeSet::new();
    for qube in document.qubes.values() {
        let systems =
            qube.system.iter().chain(qube.containers.values().filter_map(|inner| inner.system.as_ref()));
        let boot = qube.boot.iter().flat_map(|boot| [Some(&boot.kernel), boot.initrd.as_ref()]).flatten();
        let files = systems.chain(boot).map(|path| path.to_string_lossy());
        let disks = qube.disks.iter().map(|disk| Cow::from(&disk.target));
        paths.extend(files.chain(disks).filter_map(|path| store_path::of(&path).map(str::to_owned)));
    }
    paths
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_is_nothing_that_ssh_takes_for_an_option() {
        for good in [
            "berlin",
            "root@berlin.example.org",
            "_x",
            "10.0.0.1",
            "fe80::1%eth0",
            "::1",
            "a-b_c",
            "me.too@h",
        ] {
            assert_eq!(good.parse::<Destination>().unwrap().to_string(), good);
        }
        for bad in [
            "",
            "-oProxyCommand=true",
            "root@-oProxyCommand=true",
            "-l@berlin",
            "@berlin",
            "root@",
            "a b",
            "a;b",
            "$(a)",
            "`a`",
            "a/b",
            "..",
            ".",
            "ssh://berlin",
            "a@b@c",
            "a\nb",
            "[::1]",
            "bär",
        ] {
            assert!(bad.parse::<Destination>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_shell_reads_the_words_that_were_meant() {
        let words = ["plain", "--start=a b", "", "it's", "$(touch x); `y` \"z\" \\ *", "\n"];
        let line = words.map(quoted).join(" ");
        let output = Command::new("sh").arg("-c").arg(format!("printf '%s\\0' {line}")).output().unwrap();
        assert_eq!(String::from_utf8(output.stdout).unwrap(), words.map(|word| format!("{word}\0")).concat());
    }

    #[test]
    fn the_store_paths_of_a_document_are_those_that_its_host_reads() {
        let full = crate::spec::tests::full();
        let mut document = full.document().clone();
        let hash = "0".repeat(32);
        let whonix = document.qubes.get_mut("whonix").unwrap();
        whonix.boot.as_mut().unwrap().kernel = format!("/nix/store/{hash}-linux/bzImage").into();
        whonix.disks[0].target = format!("/nix/store/{hash}-root.img");
        let paths = store_paths(&document);
        for name in ["linux", "root.img"] {
            assert!(paths.contains(&format!("/nix/store/{hash}-{name}")), "{paths:?}");
        }
        for name in ["net", "shop", "front", "vault", "viewer"] {
            assert!(
                paths.iter().any(|path| path.ends_with(&format!("-nixos-system-{name}"))),
                "{name}: {paths:?}"
            );
        }
        assert_eq!(paths.len(), 7, "{paths:?}");
    }
}
