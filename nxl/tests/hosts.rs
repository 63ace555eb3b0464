//! `nxl apply --host`, over OpenSSH: a server of our own on a port of its own, and behind it hosts that are told apart by the
//! port. On some of them `nxl` is this program, called with a variable set: the toolstack on a host in memory. On one it is nxl.

#![allow(clippy::unwrap_used, reason = "what fails in here fails the test")]
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "it is the nxl of a host")]

use libtest_mimic::{Arguments, Failed, Trial};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Output, Stdio};
use std::sync::Arc;
use std::thread::sleep;
use std::time::{Duration, Instant};
use tempfile::TempDir;
use toolstack::UserData;
use toolstack::generations::Generations;
use toolstack::qubes::Qubes;
use toolstack::spec::{Hooks, Host, Plan, PolicyChange, PolicyFolder, Spec, Wishes};
use xen::mock::Machine;
use xen::{DomId, Platform};

const NXL: &str = env!("CARGO_BIN_EXE_nxl");
const SSHD: &str = "/usr/sbin/sshd";
/// The folder of a host, in the environment of this program when it is the nxl there.
const FAR: &str = "NXL_HOSTS_FAR";
/// For whatever is waited for: other programs may have the machine.
const PATIENCE: Duration = Duration::from_secs(60);
const STEP: Duration = Duration::from_millis(10);

type Test = fn(&Fleet) -> Result<(), Failed>;

fn main() -> ExitCode {
    if let Some(folder) = std::env::var_os(FAR) {
        return far(Path::new(&folder));
    }
    let tests: [(&str, Test); 15] = [
        (
            "a_document_is_applied_on_another_host_and_what_is_said_there_arrives",
            a_document_is_applied_on_another_host_and_what_is_said_there_arrives,
        ),
        ("progress_arrives_as_it_is_made", progress_arrives_as_it_is_made),
        ("what_is_refused_there_names_its_attribute_here", what_is_refused_there_names_its_attribute_here),
        (
            "what_is_wrong_with_a_document_is_said_before_any_host_is_asked",
            what_is_wrong_with_a_document_is_said_before_any_host_is_asked,
        ),
        ("a_document_may_come_from_stdin", a_document_may_come_from_stdin),
        ("a_lock_that_is_held_there_is_reported_here", a_lock_that_is_held_there_is_reported_here),
        (
            "a_host_that_cannot_be_reached_is_told_from_one_without_nxl",
            a_host_that_cannot_be_reached_is_told_from_one_without_nxl,
        ),
        ("of_several_hosts_the_worst_status_counts", of_several_hosts_the_worst_status_counts),
        (
            "in_turn_nothing_is_done_after_a_host_that_failed",
            in_turn_nothing_is_done_after_a_host_that_failed,
        ),
        (
            "each_host_has_its_own_document_and_all_their_json_is_one",
            each_host_has_its_own_document_and_all_their_json_is_one,
        ),
        (
            "no_host_and_no_argument_is_an_option_or_a_command",
            no_host_and_no_argument_is_an_option_or_a_command,
        ),
        ("closures_are_copied_before", closures_are_copied_before),
        ("an_apply_whose_connection_breaks_goes_on", an_apply_whose_connection_breaks_goes_on),
        ("the_example_of_a_fleet_is_what_its_hosts_read", the_example_of_a_fleet_is_what_its_hosts_read),
        ("a_host_says_whether_its_nxl_reads_a_document", a_host_says_whether_its_nxl_reads_a_document),
    ];
    let arguments = Arguments::from_args();
    // To list them takes no server.
    let fleet = if arguments.list { None } else { Some(Arc::new(Fleet::start())) };
    let trials = tests.into_iter().map(|(name, test)| {
        let fleet = fleet.clone();
        Trial::test(name, move || fleet.map_or(Ok(()), |fleet| test(&fleet)))
    });
    // The server goes with the last test's fleet.
    let conclusion = libtest_mimic::run(&arguments, trials.collect());
    conclusion.exit_code()
}

// --- a host's nxl

/// Applies what comes from stdin, on a host in memory that keeps its locks and policy in a folder.
fn far(folder: &Path) -> ExitCode {
    let line: Vec<String> = std::env::args().skip(1).collect();
    fs::write(folder.join("line"), line.join("\n")).unwrap();
    match apply(folder, line.iter().any(|word| word == "--json")) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("nxl: {error}");
            ExitCode::FAILURE
        }
    }
}

fn qubes(folder: &Path, machine: &Machine) -> Qubes {
    Qubes::open(&machine.domain(DomId::DOM0), UserData::in_folder(folder.join("userdata"))).unwrap()
}

fn apply(folder: &Path, as_json: bool) -> Result<(), Box<dyn std::error::Error>> {
    let text = Spec::text(Path::new("standard input"), std::io::stdin())?;
    let spec = Spec::parse("standard input", &text)?;
    let machine = Machine::new();
    let qubes = qubes(folder, &machine);
    let lock = qubes.lock_apply()?.ok_or("another `nxl apply' (or switch, or rollback) is at work")?;
    let host = Host {
        policy: PolicyFolder(folder.join("policy.d")),
        generations: Generations::in_folder(folder.join("generations")),
        ..Host::default()
    };
    let configs = spec.configs(&spec.choices(&host.generations)?)?;
    let wishes = Wishes { prune: false, start: BTreeSet::new() };
    let plan = Plan::of(&qubes, &spec, &configs, &host.policy, &wishes)?;
    let files = plan.policy.iter().map(|change| match change {
        PolicyChange::Write { file, .. } | PolicyChange::Remove { file } => file,
    });
    let files: Vec<_> = files.collect();
    if as_json {
        println!("{}", json!({ "policy": files }));
    } else {
        files.iter().for_each(|file| println!("policy {file}"));
    }
    // Whoever wants to see that arrive makes a file of this name, and takes it away then.
    let begun = Instant::now();
    while folder.join("wait").exists() && begun.elapsed() < PATIENCE {
        sleep(STEP);
    }
    let open = || Ok((self::qubes(folder, &machine), machine.domain(DomId::DOM0).foreign_memory()?));
    let hooks = Hooks { open: &open, make_room: &|_, _| Ok(()), report: &|_| () };
    let outcome = plan.apply(&lock, &spec, &configs, &host, &hooks)?;
    assert!(outcome.failures.is_empty(), "{:?}", outcome.failures);
    if !as_json {
        println!("done");
    }
    Ok(())
}

// --- the hosts

/// berlin and oslo have a host in memory, lisbon has nxl itself, athens has none, and nobody listens where rome should be.
const HOSTS: [&str; 5] = ["berlin", "oslo", "lisbon", "athens", "rome"];

struct Fleet {
    folder: TempDir,
    sshd: Child,
    /// What tests of the same hosts hold.
    turn: std::sync::Mutex<()>,
}

impl Drop for Fleet {
    fn drop(&mut self) {
        let _ = self.sshd.kill();
        let _ = self.sshd.wait();
    }
}

impl Fleet {
    fn start() -> Self {
        assert!(Path::new(SSHD).exists(), "no {SSHD}: .ci/deps installs openssh-server");
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let shown = |name: &str| at(name).display().to_string();
        for key in ["host-key", "key"] {
            let said = Command::new("ssh-keygen")
                .args(["-q", "-t", "ed25519", "-N", "", "-C", "nxl's tests", "-f"])
                .arg(at(key))
                .output()
                .unwrap();
            assert!(said.status.success(), "{said:?}");
        }
        if rustix::process::geteuid().is_root() {
            // A server that is root's wants it; one of anybody else's has no use for it.
            let _ = fs::DirBuilder::new().mode(0o755).create("/run/sshd");
        }
        // Held together, so that no two are the same.
        let listeners = HOSTS.map(|_| TcpListener::bind(("127.0.0.1", 0)).unwrap());
        let ports = listeners.map(|listener| listener.local_addr().unwrap().port());
        let mut server = format!(
            "ListenAddress 127.0.0.1\nHostKey {}\nAuthorizedKeysFile {}\nPidFile none\nUsePAM no\nStrictModes no\n\
             PasswordAuthentication no\nKbdInteractiveAuthentication no\nPermitRootLogin yes\nMaxStartups 100\n",
            shown("host-key"),
            shown("key.pub")
        );
        let mut client = format!(
            "Host *\nHostName 127.0.0.1\nHostKeyAlias fleet\nIdentityFile {}\nIdentitiesOnly yes\nIdentityAgent none\n\
             UserKnownHostsFile {}\nGlobalKnownHostsFile /dev/null\nStrictHostKeyChecking yes\nConnectTimeout 60\n",
            shown("key"),
            shown("known")
        );
        fs::write(at("known"), format!("fleet {}", fs::read_to_string(at("host-key.pub")).unwrap())).unwrap();
        for port in &ports[..4] {
            writeln!(server, "Port {port}").unwrap();
        }
        for (host, port) in HOSTS.iter().zip(ports) {
            fs::create_dir_all(at(host).join("bin")).unwrap();
            writeln!(client, "Host {host}\nPort {port}").unwrap();
            if *host != "rome" {
                // Without the programs of this machine but for Nix', and without what a shell reads in one's home.
                let path = format!("{}:{}", at(host).join("bin").display(), shown("nix-bin"));
                let store = at(host).join("store");
                writeln!(
                    server,
                    "Match LocalPort {port}\nSetEnv HOME={} PATH={path} NIX_REMOTE=local?root={}",
                    at(host).display(),
                    store.display()
                )
                .unwrap();
            }
        }
        for host in ["berlin", "oslo"] {
            let program = at(host).join("bin/nxl");
            let this = std::env::current_exe().unwrap();
            let script =
                format!("#!/bin/sh\n{FAR}='{}' exec '{}' \"$@\"\n", at(host).display(), this.display());
            fs::write(&program, script).unwrap();
            fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        }
        symlink(NXL, at("lisbon").join("bin/nxl")).unwrap();
        fs::create_dir(at("nix-bin")).unwrap();
        symlink("/usr/bin/nix-store", at("nix-bin").join("nix-store")).unwrap();
        fs::write(at("sshd_config"), server).unwrap();
        fs::write(at("ssh_config"), client).unwrap();
        let log = fs::File::create(at("log")).unwrap();
        let mut sshd = Command::new(SSHD)
            .args(["-D", "-e", "-f"])
            .arg(at("sshd_config"))
            .stdin(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        let begun = Instant::now();
        for port in &ports[..4] {
            while TcpStream::connect(("127.0.0.1", *port)).is_err() {
                let log = fs::read_to_string(at("log")).unwrap();
                assert!(sshd.try_wait().unwrap().is_none() && begun.elapsed() < PATIENCE, "sshd: {log}");
                sleep(STEP);
            }
        }
        Self { folder, sshd, turn: std::sync::Mutex::new(()) }
    }

    fn at(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn nxl(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(NXL);
        command
            .args(arguments)
            .current_dir(self.folder.path())
            .env("NXL_SSHOPTS", format!("-F {}", self.at("ssh_config").display()))
            .env_remove("NIX_SSHOPTS")
            .stdin(Stdio::null());
        command
    }

    /// What it says on stdout and stderr, and its status.
    fn run(&self, arguments: &[&str]) -> (String, String, i32) {
        said(self.nxl(arguments).output().unwrap())
    }

    /// A document with this policy, under this name; the host in memory has none of it yet.
    fn document(&self, name: &str, policy: &Value) {
        self.write(name, &json!({ "version": 3, "host": { "memory": null }, "qubes": {}, "remotes": {}, "policy": policy }));
    }

    /// A document with a qube of which there is no system, changed by `change`.
    fn with_qube(&self, name: &str, change: fn(&mut Value)) {
        let full: Value = serde_json::from_str(include_str!("../../nixos/tests/full.json")).unwrap();
        let mut vault = full["qubes"]["vault"].clone();
        change(&mut vault);
        let document = json!({ "version": 3, "host": { "memory": null }, "qubes": { "vault": vault }, "remotes": {}, "policy": {} });
        self.write(name, &document);
    }

    fn write(&self, name: &str, document: &Value) {
        fs::write(self.at(name), document.to_string()).unwrap();
    }

    /// The hosts in memory as they are at first, for as long as what is returned is held.
    fn anew(&self) -> std::sync::MutexGuard<'_, ()> {
        let turn = self.turn.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        for host in ["berlin", "oslo"] {
            for name in ["line", "wait"] {
                let _ = fs::remove_file(self.at(host).join(name));
            }
            let _ = fs::remove_dir_all(self.at(host).join("policy.d"));
        }
        turn
    }

    /// The arguments that the nxl of a host got; none if it was not called.
    fn line(&self, host: &str) -> Option<String> {
        fs::read_to_string(self.at(host).join("line")).ok()
    }
}

fn said(output: Output) -> (String, String, i32) {
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (text(output.stdout), text(output.stderr), output.status.code().unwrap_or(-1))
}

fn equal<T: PartialEq + std::fmt::Debug>(found: T, wanted: T) -> Result<(), Failed> {
    if found == wanted { Ok(()) } else { Err(format!("{found:?} is not {wanted:?}").into()) }
}

fn contains(text: &str, part: &str) -> Result<(), Failed> {
    if text.contains(part) { Ok(()) } else { Err(format!("no {part:?} in {text:?}").into()) }
}

fn policy() -> Value {
    json!({ "50-nexus.policy": "q.A * work vault allow\n" })
}

// --- the tests

fn a_document_is_applied_on_another_host_and_what_is_said_there_arrives(fleet: &Fleet) -> Result<(), Failed> {
    let _turn = fleet.anew();
    fleet.document("applied.json", &policy());
    let (stdout, stderr, status) = fleet.run(&["apply", "--host", "berlin", "--no-restart", "applied.json"]);
    equal((&*stdout, &*stderr, status), ("policy 50-nexus.policy\ndone\n", "", 0))?;
    let written = fs::read_to_string(fleet.at("berlin/policy.d/50-nexus.policy")).unwrap();
    contains(&written, "\nq.A * work vault allow\n")?;
    equal(fleet.line("berlin").as_deref(), Some("apply\n--no-restart\n--jobs=4\n--timeout=60\n-"))?;
    // The second time, nothing is left to be done; as root@ or whoever else, it is the same host.
    let who = said(Command::new("id").arg("-un").output().unwrap()).0;
    let host = format!("{}@berlin", who.trim());
    equal(fleet.run(&["apply", "--host", &host, "applied.json"]), ("done\n".into(), String::new(), 0))
}

fn progress_arrives_as_it_is_made(fleet: &Fleet) -> Result<(), Failed> {
    let _turn = fleet.anew();
    fleet.document("streamed.json", &policy());
    for hosts in [&["--host", "berlin"][..], &["--host", "berlin", "--host", "oslo"]] {
        let _ = fs::remove_dir_all(fleet.at("berlin/policy.d"));
        fs::write(fleet.at("berlin/wait"), "").unwrap();
        let mut child = fleet
            .nxl(&[&["apply"][..], hosts, &["streamed.json"]].concat())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
        let prefix = if hosts.len() > 2 { "berlin: " } else { "" };
        let first = format!("{prefix}policy 50-nexus.policy");
        // It is there although the other end goes on.
        let found = lines.any(|line| line == first);
        let goes_on = child.try_wait().unwrap().is_none();
        fs::remove_file(fleet.at("berlin/wait")).unwrap();
        equal((found, goes_on), (true, true))?;
        let last = format!("{prefix}done");
        equal(lines.filter(|line| *line == last).count(), 1)?;
        equal(child.wait().unwrap().code(), Some(0))?;
    }
    Ok(())
}

fn what_is_refused_there_names_its_attribute_here(fleet: &Fleet) -> Result<(), Failed> {
    let _turn = fleet.anew();
    fleet.with_qube("no-system.json", |_| ());
    let (stdout, stderr, status) = fleet.run(&["apply", "--host", "berlin", "no-system.json"]);
    contains(&stderr, "nxl: qubes.vault.system: ")?;
    equal((&*stdout, stderr.lines().count(), status), ("", 1, 1))?;
    let (stdout, stderr, status) =
        fleet.run(&["apply", "--host", "berlin", "--host", "oslo", "no-system.json"]);
    for part in ["berlin: nxl: qubes.vault.system: ", "nxl: 2 of 2 hosts failed: berlin (1), oslo (1)\n"] {
        contains(&stderr, part)?;
    }
    equal((&*stdout, status), ("", 1))
}

fn what_is_wrong_with_a_document_is_said_before_any_host_is_asked(fleet: &Fleet) -> Result<(), Failed> {
    let _turn = fleet.anew();
    fleet.with_qube("wrong.json", |vault| vault["memory"] = 8.into());
    for command in ["apply", "plan", "diff"] {
        let (stdout, stderr, status) = fleet.run(&[command, "--host", "berlin", "wrong.json"]);
        contains(&stderr, "nxl: wrong.json:1:")?;
        contains(&stderr, "qubes.vault.memory: 8 is not within 32 to 16777216")?;
        equal((&*stdout, status, fleet.line("berlin")), ("", 1, None))?;
    }
    Ok(())
}

fn a_document_may_come_from_stdin(fleet: &Fleet) -> Result<(), Failed> {
    let _turn = fleet.anew();
    let feed = |arguments: &[&str], text: &[u8]| {
        let mut command = fleet.nxl(arguments);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        child.stdin.take().unwrap().write_all(text).unwrap();
        said(child.wait_with_output().unwrap())
    };
    // What the nxl of another host says when it is given one that is wrong.
    fleet.with_qube("stdin.json", |vault| vault["memory"] = 8.into());
    let wrong = fs::read(fleet.at("stdin.json")).unwrap();
    for command in ["apply", "plan", "diff"] {
        let (stdout, stderr, status) = feed(&[command, "-"], &wrong);
        contains(&stderr, "nxl: standard input:1:")?;
        contains(&stderr, "qubes.vault.memory: 8 is not within")?;
        equal((&*stdout, status), ("", 1))?;
    }
    fleet.document("stdin.json", &policy());
    let good = fs::read(fleet.at("stdin.json")).unwrap();
    equal(feed(&["plan", "--check", "-"], &good), ("0 qubes, 0 containers\n".into(), String::new(), 0))?;
    let (stdout, _, status) = feed(&["apply", "--host", "berlin", "--host", "oslo", "-"], &good);
    equal(status, 0)?;
    for host in ["berlin", "oslo"] {
        contains(&stdout, &format!("{host}: policy 50-nexus.policy\n"))?;
    }
    Ok(())
}

fn a_lock_that_is_held_there_is_reported_here(fleet: &Fleet) -> Result<(), Failed> {
    let _turn = fleet.anew();
    fleet.document("locked.json", &policy());
    let qubes = qubes(&fleet.at("berlin"), &Machine::new());
    let lock = qubes.lock_apply().unwrap().expect("nobody else applies");
    let wanted = "another `nxl apply' (or switch, or rollback) is at work";
    let (stdout, stderr, status) = fleet.run(&["apply", "--host", "berlin", "locked.json"]);
    equal((&*stdout, &*stderr, status), ("", &*format!("nxl: {wanted}\n"), 1))?;
    equal(fleet.at("berlin/policy.d").exists(), false)?;
    drop(lock);
    equal(fleet.run(&["apply", "--host", "berlin", "locked.json"]).2, 0)
}

fn a_host_that_cannot_be_reached_is_told_from_one_without_nxl(fleet: &Fleet) -> Result<(), Failed> {
    fleet.document("unreachable.json", &policy());
    let (stdout, stderr, status) = fleet.run(&["apply", "--host", "rome", "unreachable.json"]);
    contains(&stderr, "Connection refused")?;
    contains(&stderr, "nxl: rome: ssh failed")?;
    equal((&*stdout, status), ("", 255))?;
    let (stdout, stderr, status) = fleet.run(&["apply", "--host", "athens", "unreachable.json"]);
    contains(&stderr, "nxl: athens: \"nxl\" could not be run there: --remote-program says where")?;
    equal((&*stdout, status), ("", 127))?;
    // It is where somebody says it is, and may be called by more than a word.
    let there = format!("env LANG=C {}", fleet.at("lisbon/bin/nxl").display());
    let arguments = [
        "plan",
        "--check",
        "--host",
        "athens",
        "--remote-program",
        &format!("/usr/bin/{there}"),
        "unreachable.json",
    ];
    equal(fleet.run(&arguments).2, 0)?;
    fs::write(fleet.at("text"), "").unwrap();
    let text = fleet.at("text").display().to_string();
    let (_, stderr, status) =
        fleet.run(&["apply", "--host", "athens", "--remote-program", &text, "unreachable.json"]);
    contains(&stderr, "could not be run there")?;
    equal(status, 126)
}

fn of_several_hosts_the_worst_status_counts(fleet: &Fleet) -> Result<(), Failed> {
    let _turn = fleet.anew();
    fleet.document("several.json", &policy());
    let (stdout, stderr, status) =
        fleet.run(&["apply", "--host", "berlin", "--host", "rome", "--host", "athens", "several.json"]);
    equal((&*stdout, status), ("berlin: policy 50-nexus.policy\nberlin: done\n", 255))?;
    contains(&stderr, "rome: ssh: connect to host 127.0.0.1")?;
    contains(&stderr, "nxl: 2 of 3 hosts failed: rome (255), athens (127)\n")?;
    let held = qubes(&fleet.at("oslo"), &Machine::new());
    let _lock = held.lock_apply().unwrap().expect("nobody else applies");
    let (stdout, stderr, status) =
        fleet.run(&["apply", "--host", "oslo", "--host", "berlin", "several.json"]);
    equal((&*stdout, status), ("berlin: done\n", 1))?;
    contains(&stderr, "oslo: nxl: another `nxl apply' (or switch, or rollback) is at work\n")?;
    contains(&stderr, "nxl: 1 of 2 hosts failed: oslo (1)\n")?;
    let (_, stderr, status) =
        fleet.run(&["apply", "--host", "berlin", "--host", "root@berlin", "several.json"]);
    equal((&*stderr, status), ("nxl: --host: berlin is given twice\n", 2))
}

fn in_turn_nothing_is_done_after_a_host_that_failed(fleet: &Fleet) -> Result<(), Failed> {
    let _turn = fleet.anew();
    fleet.document("in-turn.json", &policy());
    let (stdout, stderr, status) = fleet.run(&[
        "apply",
        "--in-turn",
        "--host",
        "berlin",
        "--host",
        "rome",
        "--host",
        "oslo",
        "in-turn.json",
    ]);
    equal((&*stdout, status), ("berlin: policy 50-nexus.policy\nberlin: done\n", 255))?;
    contains(&stderr, "nxl: 1 of 3 hosts failed: rome (255); left alone: oslo\n")?;
    equal(fleet.line("oslo"), None)
}

fn each_host_has_its_own_document_and_all_their_json_is_one(fleet: &Fleet) -> Result<(), Failed> {
    let _turn = fleet.anew();
    fs::create_dir_all(fleet.at("fleet")).unwrap();
    for host in ["berlin", "oslo"] {
        fleet.document(
            &format!("fleet/{host}.json"),
            &json!({ format!("10-{host}.policy"): "q.A * work vault allow\n" }),
        );
    }
    let (stdout, stderr, status) = fleet.run(&[
        "apply",
        "--json",
        "--host",
        "berlin",
        "--host",
        "rome",
        "--host",
        "oslo",
        "fleet/%h.json",
    ]);
    // There is none for rome, and so nothing is done.
    contains(&stderr, "nxl: fleet/rome.json: ")?;
    equal((&*stdout, status, fleet.line("berlin")), ("", 1, None))?;
    fleet.document("fleet/rome.json", &json!({}));
    let (stdout, _, status) = fleet.run(&[
        "apply",
        "--json",
        "--host",
        "berlin",
        "--host",
        "rome",
        "--host",
        "oslo",
        "fleet/%h.json",
    ]);
    let wanted = json!({
        "berlin": { "status": 0, "said": { "policy": ["10-berlin.policy"] } },
        "oslo": { "status": 0, "said": { "policy": ["10-oslo.policy"] } },
        "rome": { "status": 255, "said": null },
    });
    equal((serde_json::from_str::<Value>(&stdout)?, status), (wanted, 255))?;
    for host in ["berlin", "oslo"] {
        equal(fleet.at(&format!("{host}/policy.d/10-{host}.policy")).exists(), true)?;
    }
    // Of one host, it is what that host says.
    let (stdout, _, status) = fleet.run(&["apply", "--json", "--host", "berlin", "fleet/%h.json"]);
    equal((serde_json::from_str::<Value>(&stdout)?, status), (json!({ "policy": [] }), 0))
}

fn no_host_and_no_argument_is_an_option_or_a_command(fleet: &Fleet) -> Result<(), Failed> {
    let _turn = fleet.anew();
    fleet.document("hostile.json", &policy());
    let mark = fleet.at("mark");
    let command = format!("-oProxyCommand=touch${{IFS}}{}", mark.display());
    for host in [
        command.clone(),
        format!("root@{command}"),
        format!("{command}@berlin"),
        "berlin;true".into(),
        "ber lin".into(),
    ] {
        let (stdout, stderr, status) = fleet.run(&["apply", &format!("--host={host}"), "hostile.json"]);
        contains(&stderr, "invalid value")?;
        equal((&*stdout, status), ("", 2))?;
    }
    // As a word of its own it is an option, which there is not.
    equal(fleet.run(&["apply", "--host", &command, "hostile.json"]).2, 2)?;
    // What goes to the shell there is what was typed here, and nothing else.
    let name = format!("a'b\"; touch {}; $(touch {})", mark.display(), mark.display());
    equal(fleet.run(&["apply", "--host", "berlin", "--start", &name, "hostile.json"]).2, 0)?;
    contains(&fleet.line("berlin").unwrap_or_default(), &format!("--start={name}\n"))?;
    equal(mark.exists(), false)
}

fn closures_are_copied_before(fleet: &Fleet) -> Result<(), Failed> {
    let store = fleet.at("near-store");
    let nix = format!("local?root={}", store.display());
    fs::create_dir(fleet.at("nixos-system-vault")).unwrap();
    fs::write(fleet.at("nixos-system-vault/init"), "init").unwrap();
    let added = Command::new("nix-store")
        .arg("--add")
        .arg(fleet.at("nixos-system-vault"))
        .env("NIX_REMOTE", &nix)
        .output();
    let (path, stderr, status) = said(added.unwrap());
    equal((status, path.starts_with("/nix/store/")), (0, true)).map_err(|_| stderr)?;
    let path = path.trim();
    fleet.with_qube("copied.json", |_| ());
    let text = fs::read_to_string(fleet.at("copied.json")).unwrap();
    let mut document: Value = serde_json::from_str(&text).unwrap();
    document["qubes"]["vault"]["system"] = path.into();
    fleet.write("copied.json", &document);
    let there = fleet.at("lisbon/store").join(&path[1..]).join("init");
    let arguments = ["plan", "--check", "--copy-closures", "--host", "lisbon", "copied.json"];
    equal(there.exists(), false)?;
    let (stdout, stderr, status) = said(fleet.nxl(&arguments).env("NIX_REMOTE", &nix).output().unwrap());
    equal((&*stdout, status), ("1 qubes, 1 containers\n", 0)).map_err(|_| format!("{stdout}{stderr}"))?;
    equal(fs::read_to_string(&there).unwrap(), "init".to_owned())?;
    // Of what is not there, nothing is applied.
    fleet.with_qube("copied.json", |_| ());
    let _turn = fleet.anew();
    let arguments = ["apply", "--copy-closures", "--host", "berlin", "copied.json"];
    let (stdout, stderr, status) = said(fleet.nxl(&arguments).env("NIX_REMOTE", &nix).output().unwrap());
    contains(&stderr, "nxl: berlin: nix-copy-closure ended with 1: nothing was done there")?;
    equal((&*stdout, status, fleet.line("berlin")), ("", 1, None))
}

fn a_host_says_whether_its_nxl_reads_a_document(fleet: &Fleet) -> Result<(), Failed> {
    fleet.with_qube("checked.json", |_| ());
    let (stdout, stderr, status) = fleet.run(&["plan", "--check", "--host", "lisbon", "checked.json"]);
    equal((&*stdout, &*stderr, status), ("1 qubes, 1 containers\n", "", 0))
}

fn the_example_of_a_fleet_is_what_its_hosts_read(fleet: &Fleet) -> Result<(), Failed> {
    let systems = ["relay", "shop", "vault"].map(|name| {
        format!("{name} = \"/nix/store/0123456789abcdfghijklmnpqrsvwxyz-nixos-system-{name}\"; ")
    });
    let evaluated = Command::new("nix-instantiate")
        .args(["--eval", "--strict", "--json", "-A", "documents"])
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/../nixos/examples/fleet.nix"))
        .args(["--arg", "systems", &format!("{{ {} }}", systems.concat())])
        .env("NIX_REMOTE", format!("local?root={}", fleet.at("example-store").display()))
        .output();
    let (stdout, stderr, status) = said(evaluated.unwrap());
    equal(status, 0).map_err(|_| stderr)?;
    let documents: serde_json::Map<String, Value> = serde_json::from_str(&stdout)?;
    fs::create_dir_all(fleet.at("example")).unwrap();
    for (host, document) in &documents {
        fleet.write(&format!("example/{host}.json"), document);
        let (stdout, stderr, status) = fleet.run(&["plan", "--check", &format!("example/{host}.json")]);
        equal((&*stdout, &*stderr, status), ("2 qubes, 0 containers\n", "", 0))?;
    }
    equal(documents.len(), 3)?;
    let (stdout, _, status) = fleet.run(&["plan", "--check", "--host", "lisbon", "example/%h.json"]);
    equal((&*stdout, status), ("2 qubes, 0 containers\n", 0))
}

fn an_apply_whose_connection_breaks_goes_on(fleet: &Fleet) -> Result<(), Failed> {
    let _turn = fleet.anew();
    fleet.document("broken.json", &policy());
    fs::write(fleet.at("berlin/wait"), "").unwrap();
    let mut nxl = fleet.nxl(&["apply", "--host", "berlin", "broken.json"]);
    let mut child = nxl.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
    // The fourth word of a process' stat is who started it; the name before may be of several words.
    let is_its = |stat: &str| {
        let parent = stat.rsplit_once(')').and_then(|(_, words)| words.split_whitespace().nth(1));
        parent == Some(&child.id().to_string())
    };
    let processes =
        fs::read_dir("/proc").unwrap().filter_map(|entry| entry.unwrap().file_name().into_string().ok());
    let ssh = processes
        .filter_map(|process| process.parse::<i32>().ok())
        .find(|process| fs::read_to_string(format!("/proc/{process}/stat")).is_ok_and(|stat| is_its(&stat)));
    let ssh = rustix::process::Pid::from_raw(ssh.expect("nxl runs ssh")).unwrap();
    rustix::process::kill_process(ssh, rustix::process::Signal::KILL).unwrap();
    let (_, stderr, status) = said(child.wait_with_output().unwrap());
    equal(&*line, "policy 50-nexus.policy\n")?;
    contains(&stderr, "nxl: berlin: ssh failed")?;
    equal((status, fleet.at("berlin/policy.d").exists()), (255, false))?;
    fs::remove_file(fleet.at("berlin/wait")).unwrap();
    let begun = Instant::now();
    while !fleet.at("berlin/policy.d/50-nexus.policy").exists() && begun.elapsed() < PATIENCE {
        sleep(STEP);
    }
    equal(fleet.at("berlin/policy.d/50-nexus.policy").exists(), true)?;
    // Until it has ended, its lock is held.
    while qubes(&fleet.at("berlin"), &Machine::new()).lock_apply().unwrap().is_none()
        && begun.elapsed() < PATIENCE
    {
        sleep(STEP);
    }
    equal(fleet.run(&["apply", "--host", "berlin", "broken.json"]), ("done\n".into(), String::new(), 0))
}
