//! Stock peers: a qrexec-daemon before nexus-agent, and a qrexec-agent behind nexusd.
//!
//! Neither program is here. What they say is laid out by hand in this file, after the protocol's description (versions 2 and 3), and
//! what they hear is compared byte by byte: nothing of `nexus::wire` has a part in it. Each peer is a process in a domain of its own.

use crate::host::{PATIENCE, Process};
use crate::nexusd::{Whole, run};
use crate::stage::{Stage, VAULT, WORK};
use serde_json::json;
use std::fs::{self, Permissions};
use std::io::{Read, Write};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::{env, thread};
use vchan::{Channel, ConnectOptions, ListenOptions, Listener, Receiver, Sender};
use xen::host::Host;
use xen::{DomId, Platform, Transaction};

const STDIN: u32 = 0x190;
const STDOUT: u32 = 0x191;
const STDERR: u32 = 0x192;
const EXIT_CODE: u32 = 0x193;
const EXEC_CMDLINE: u32 = 0x200;
const JUST_EXEC: u32 = 0x201;
const SERVICE_CONNECT: u32 = 0x202;
const SERVICE_REFUSED: u32 = 0x203;
const TRIGGER_SERVICE: u32 = 0x210;
const CONNECTION_TERMINATED: u32 = 0x211;
const TRIGGER_SERVICE3: u32 = 0x212;
const HELLO: u32 = 0x300;

/// Where dom0 and an agent speak.
const CONTROL: &str = "data/vchan/0/512";

/// What a peer is told.
const VERSION: &str = "NEXUS_TEST_VERSION";
const FOLDER: &str = "NEXUS_TEST_FOLDER";

fn version() -> u32 {
    env::var(VERSION).unwrap().parse().unwrap()
}

/// The most data in a message.
fn chunk() -> usize {
    if version() == 2 { 4_096 } else { 65_536 }
}

/// Says a message, if somebody is there to hear it.
fn try_say(to: &mut Sender, kind: u32, parts: &[&[u8]]) -> std::io::Result<()> {
    let body = parts.concat();
    let message = [&kind.to_le_bytes()[..], &(body.len() as u32).to_le_bytes(), &body].concat();
    to.write_all(&message)
}

fn say(to: &mut Sender, kind: u32, parts: &[&[u8]]) {
    try_say(to, kind, parts).unwrap();
}

fn hear(from: &mut Receiver) -> (u32, Vec<u8>) {
    let mut header = [0; 8];
    from.read_exact(&mut header).unwrap();
    let number = |at: usize| u32::from_le_bytes(header[at..at + 4].try_into().unwrap());
    let mut body = vec![0; number(4) as usize];
    from.read_exact(&mut body).unwrap();
    (number(0), body)
}

/// A string in a field of that width.
fn field(text: &str, width: usize) -> Vec<u8> {
    let mut field = text.as_bytes().to_vec();
    field.resize(width, 0);
    field
}

/// `struct exec_params` without its command.
fn link(domain: u32, port: u32) -> Vec<u8> {
    [domain.to_le_bytes(), port.to_le_bytes()].concat()
}

/// A vchan after the hellos, of which the server's is the first.
struct End {
    to: Sender,
    from: Receiver,
}

impl End {
    fn offer(client: u16, path: &str, tell: impl FnOnce()) -> Self {
        let listener = Listener::open(&Host, DomId(client), path, &ListenOptions::default()).unwrap();
        tell();
        let (to, from) = listener.accept().unwrap().split().unwrap();
        let mut end = Self { to, from };
        end.say(HELLO, &[&version().to_le_bytes()]);
        end.hear_hello();
        end
    }

    fn come(server: u16, path: &str) -> Self {
        let options = ConnectOptions { wait: Some(PATIENCE), ..ConnectOptions::default() };
        let (to, from) = Channel::connect(&Host, DomId(server), path, &options).unwrap().split().unwrap();
        let mut end = Self { to, from };
        end.hear_hello();
        end.say(HELLO, &[&version().to_le_bytes()]);
        end
    }

    fn hear_hello(&mut self) {
        let (kind, body) = hear(&mut self.from);
        assert_eq!(kind, HELLO);
        assert!(
            u32::from_le_bytes(body.try_into().unwrap()) >= version(),
            "the lower counts, and that is ours"
        );
    }

    fn say(&mut self, kind: u32, parts: &[&[u8]]) {
        say(&mut self.to, kind, parts);
    }

    /// The next message is this.
    fn hears(&mut self, kind: u32, parts: &[&[u8]]) {
        let (heard, found) = hear(&mut self.from);
        let body = parts.concat();
        let (shown, wanted) = (String::from_utf8_lossy(&found), String::from_utf8_lossy(&body));
        assert!((heard, &found) == (kind, &body), "{heard:#x} {shown:?}, and not {kind:#x} {wanted:?}");
    }

    /// A request of the agent's: target, service, and its identifier as it came.
    fn request(&mut self) -> (String, String, Vec<u8>) {
        let (kind, body) = hear(&mut self.from);
        let text = |field: &[u8]| {
            let end = field.iter().position(|byte| *byte == 0).unwrap();
            String::from_utf8(field[..end].to_vec()).unwrap()
        };
        if version() == 2 {
            assert_eq!((kind, body.len()), (TRIGGER_SERVICE, 64 + 32 + 32));
            (text(&body[64..96]), text(&body[..64]), body[96..].to_vec())
        } else {
            assert_eq!((kind, body.last()), (TRIGGER_SERVICE3, Some(&0)));
            (text(&body[..64]), text(&body[96..]), body[64..96].to_vec())
        }
    }

    /// A request as a stock agent says it.
    fn ask(&mut self, target: &str, service: &str, ident: &[u8]) {
        if version() == 2 {
            self.say(TRIGGER_SERVICE, &[&field(service, 64), &field(target, 32), ident]);
        } else {
            self.say(TRIGGER_SERVICE3, &[&field(target, 64), ident, service.as_bytes(), b"\0"]);
        }
    }

    /// The caller's end: says all of that, and hears stdout, stderr and the exit code.
    fn call(mut self, input: &[u8]) -> (Vec<u8>, String, i32) {
        let most = chunk();
        let to = &mut self.to;
        let from = &mut self.from;
        let mut streams = [Vec::new(), Vec::new()];
        let mut open = [true; 2];
        let exit = thread::scope(|scope| {
            scope.spawn(move || {
                // A service may end before it has heard all.
                let _ = input.chunks(most).chain([&[][..]]).try_for_each(|part| try_say(to, STDIN, &[part]));
            });
            loop {
                let (kind, body) = hear(from);
                assert!(body.len() <= most, "{} bytes in a message", body.len());
                match kind {
                    STDOUT | STDERR => {
                        let stream = (kind - STDOUT) as usize;
                        assert!(open[stream], "a stream goes on behind its end");
                        open[stream] = !body.is_empty();
                        streams[stream].extend(body);
                    }
                    EXIT_CODE => return i32::from_le_bytes(body.try_into().unwrap()),
                    other => panic!("{other:#x} from a service"),
                }
            }
        });
        assert_eq!(open, [false; 2], "a stock client waits for the ends of both");
        assert_eq!(self.from.read(&mut [0]).unwrap_or(0), 0, "the exit code is the last word");
        let [stdout, stderr] = streams;
        (stdout, String::from_utf8(stderr).unwrap(), exit)
    }

    /// The service's end: hears all, and says it in capitals, with something on stderr and an exit code.
    fn serve(mut self) -> Vec<u8> {
        let mut said = Vec::new();
        loop {
            let (kind, body) = hear(&mut self.from);
            assert_eq!(kind, STDIN);
            assert!(body.len() <= chunk(), "{} bytes in a message", body.len());
            if body.is_empty() {
                break;
            }
            said.extend(body);
        }
        for part in said.to_ascii_uppercase().chunks(chunk()) {
            self.say(STDOUT, &[part]);
        }
        self.say(STDERR, &[b"served\n"]);
        self.say(STDOUT, &[]);
        self.say(STDERR, &[]);
        self.say(EXIT_CODE, &[&4_i32.to_le_bytes()]);
        // Whoever listens leaves when it has heard that.
        assert_eq!(self.from.read(&mut [0]).unwrap_or(0), 0, "a caller says nothing behind its end");
        said
    }
}

/// Bytes of no pattern.
fn bytes(count: u32) -> Vec<u8> {
    (0..count).map(|number| (number.wrapping_mul(2_654_435_761) >> 13) as u8).collect()
}

/// A test of this file as a peer in a domain.
fn peer(stage: &Stage, name: &str, domid: u16, version: u32) -> Process {
    let mut command = stage.host().command(domid, env::current_exe().unwrap());
    command.args(["--ignored", "--exact", "--nocapture", &format!("stock::{name}")]);
    command.env(VERSION, version.to_string()).env(FOLDER, stage.path(""));
    Process::start(&mut command)
}

fn ends_well(peer: Process) {
    let output = peer.finish();
    let said = [output.stdout, output.stderr].map(|said| String::from_utf8_lossy(&said).into_owned());
    assert!(output.status.success() && said[0].contains("1 passed"), "{}\n{}", said[0], said[1]);
}

/// A socket that says what it hears, when it has heard all.
fn echo(path: PathBuf) {
    crate::calls::serve(path, |mut socket| {
        let mut said = Vec::new();
        socket.read_to_end(&mut said).unwrap();
        socket.write_all(&said).unwrap();
    });
}

/// What a peer has called in the qube whose daemon it is.
fn caller(folder: &Path, socket: &str, target: &str, service: &str) -> Child {
    let mut command = Command::new(env!("CARGO_BIN_EXE_nexus-call"));
    command.arg("--agent").arg(folder.join(socket)).args([target, service]);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

/// Its exit code, stdout and stderr.
fn outcome(mut caller: Child, input: &[u8]) -> (Option<i32>, Vec<u8>, String) {
    // A call that is refused reads nothing.
    let _ = caller.stdin.take().unwrap().write_all(input);
    let output = caller.wait_with_output().unwrap();
    (output.status.code(), output.stdout, String::from_utf8(output.stderr).unwrap())
}

/// Be a client of the vchan that dom0 offers, and run this. dom0 is told when the vchan is closed.
fn execute(control: &mut End, port: u32, kind: u32, command: &str, input: &[u8]) -> (Vec<u8>, String, i32) {
    let params = [&link(0, port)[..], command.as_bytes(), b"\0"].concat();
    let path = format!("data/vchan/{}/{port}", WORK.1);
    let end = End::offer(WORK.1, &path, || control.say(kind, &[&params]));
    let ended = if kind == JUST_EXEC { end.just() } else { end.call(input) };
    control.hears(CONNECTION_TERMINATED, &[&link(0, port)]);
    ended
}

#[test]
#[ignore = "the test below runs it, in dom0"]
fn a_stock_daemon() {
    let folder = PathBuf::from(env::var(FOLDER).unwrap());
    let mut control = End::come(WORK.1, CONTROL);
    let mut port = 600 + 100 * version();
    let mut execute = |control: &mut End, kind: u32, command: &str, input: &[u8]| {
        port += 1;
        execute(control, port, kind, command, input)
    };
    let text =
        |(stdout, stderr, exit): (Vec<u8>, String, i32)| (String::from_utf8(stdout).unwrap(), stderr, exit);

    // A service of a qube that dom0 has let in.
    let said = execute(&mut control, EXEC_CMDLINE, "DEFAULT:QUBESRPC q.Echo+a-b vault name work", b"one");
    assert_eq!(text(said), ("a-b vault q.Echo+a-b name work\none".to_owned(), "bad\n".to_owned(), 3));
    let said = execute(&mut control, EXEC_CMDLINE, "user:QUBESRPC q.Echo vault keyword @default", b"");
    assert_eq!(text(said), (" vault q.Echo+ keyword default\n".to_owned(), "bad\n".to_owned(), 3));
    let said = execute(&mut control, EXEC_CMDLINE, "user:QUBESRPC q.Echo+ dom0", b"");
    assert_eq!(text(said).0, " dom0 q.Echo+  \n");
    // Many bytes, both ways at once.
    let many = bytes(500_000);
    assert!(
        execute(&mut control, EXEC_CMDLINE, "user:QUBESRPC q.Cat+ vault", &many) == (many, String::new(), 0)
    );
    // A socket, which gets the descriptor.
    let said = execute(&mut control, EXEC_CMDLINE, "user:QUBESRPC q.Socket+x vault", b"y");
    assert_eq!(text(said), ("q.Socket+x vault\0y".to_owned(), String::new(), 0));
    // A command of dom0's own.
    let said =
        execute(&mut control, EXEC_CMDLINE, "user:nogui:cat; echo \"$QREXEC_REMOTE_DOMAIN\"; exit 7", b"in ");
    assert_eq!(text(said), ("in dom0\n".to_owned(), String::new(), 7));
    // What there is none of, what would be somebody else's, and what is no request.
    for (command, exit) in [
        ("user:QUBESRPC q.None+ vault", 127),
        ("root:QUBESRPC q.Echo+ vault", 125),
        ("root:id", 125),
        ("id", 125),
        ("user:QUBESRPC ../q.Echo+ vault", 125),
        ("user:QUBESRPC q.Echo+", 125),
        ("user:QUBESRPC q.Echo+ vault uuid work", 125),
    ] {
        let said = execute(&mut control, EXEC_CMDLINE, command, b"in");
        assert_eq!(text(said), (String::new(), String::new(), exit), "{command}");
    }
    // What nobody listens to: it has begun when dom0 is told, and goes on.
    let mark = folder.join(format!("mark-{}", version()));
    for command in
        [format!("user:sleep 0.1; : > {}", mark.display()), "user:QUBESRPC q.Mark+x dom0".to_owned()]
    {
        assert_eq!(text(execute(&mut control, JUST_EXEC, &command, b"")), (String::new(), String::new(), 0));
        while !mark.exists() {
            thread::yield_now();
        }
        fs::remove_file(&mark).unwrap();
    }
    // A service that says what no service may is the end of its call, and of nothing else.
    port_breaks(&mut control);

    // Requests of the qube's.
    let agent = folder.join("work");
    let refused = caller(&agent, "qube.sock", "vault", "q.Upper+key");
    let (target, service, ident) = control.request();
    assert_eq!((target.as_str(), service.as_str()), ("vault", "q.Upper+key"));
    control.say(SERVICE_REFUSED, &[&ident]);
    let (code, stdout, stderr) = outcome(refused, b"");
    assert_eq!((code, stdout.len()), (Some(126), 0));
    assert_eq!(stderr, "nexus-call: vault: q.Upper+key: refused\n");
    // Two at once, of which the second is answered first.
    let calls =
        ["q.Upper+one", "q.Upper+two"].map(|service| caller(&agent, "qube.sock", "@default", service));
    let mut requests = [control.request(), control.request()];
    requests.sort();
    assert_eq!(requests.each_ref().map(|(_, service, _)| service.as_str()), ["q.Upper+one", "q.Upper+two"]);
    assert!(requests.iter().all(|(target, ..)| target == "@default"), "{requests:?}");
    let [one, two] = calls;
    control.say(SERVICE_REFUSED, &[&requests[1].2]);
    assert_eq!(outcome(two, b"").0, Some(126));
    // Offer a vchan to the qube that has the service: the other peer comes there.
    control.say(SERVICE_CONNECT, &[&link(VAULT.1.into(), 500 + version() * 50), &requests[0].2]);
    let many = bytes(300_000);
    let upper = many.to_ascii_uppercase();
    assert!(outcome(one, &many) == (Some(4), upper, "served\n".to_owned()));
    control.hears(CONNECTION_TERMINATED, &[&link(VAULT.1.into(), 500 + version() * 50)]);
    // An answer to what nobody has asked: that vchan is given up, and nothing else happens.
    control.say(SERVICE_REFUSED, &[&field("nexus-ffff", 32)]);
    control.say(SERVICE_CONNECT, &[&link(VAULT.1.into(), 999), &field("nexus-ffff", 32)]);
    control.hears(CONNECTION_TERMINATED, &[&link(VAULT.1.into(), 999)]);
    // A container's call cannot be told: it is never made in the qube's name.
    assert_eq!(outcome(caller(&agent, "mail.sock", "vault", "q.Upper"), b"").0, Some(125));
    let long = format!("q.Upper+{}", "x".repeat(100));
    let call = caller(&agent, "qube.sock", "vault", &long);
    if version() == 2 {
        assert_eq!(outcome(call, b"").0, Some(125), "longer than version 2 has room for");
    } else {
        let (_, service, ident) = control.request();
        assert_eq!(service, long);
        control.say(SERVICE_REFUSED, &[&ident]);
        assert_eq!(outcome(call, b"").0, Some(126));
    }
    // A call that is carried outlives the daemon, and one that is undecided does not.
    let undecided = caller(&agent, "qube.sock", "vault", "q.Upper");
    control.request();
    drop(control);
    assert_eq!(outcome(undecided, b"").0, Some(125));
}

/// A caller that breaks the protocol of a call's own vchan: it is hung up on, with an exit code.
fn port_breaks(control: &mut End) {
    for (number, (kind, body)) in
        [(STDOUT, &b"x"[..]), (EXIT_CODE, &[0; 4]), (HELLO, &[3, 0, 0, 0]), (0x1ff, &[])]
            .into_iter()
            .enumerate()
    {
        let port = 700 + 100 * version() + number as u32;
        let params = [&link(0, port)[..], b"user:QUBESRPC q.Cat+ vault\0"].concat();
        let path = format!("data/vchan/{}/{port}", WORK.1);
        let mut end = End::offer(WORK.1, &path, || control.say(EXEC_CMDLINE, &[&params]));
        end.say(STDIN, &[b"before"]);
        end.say(kind, &[body]);
        let exit = loop {
            let (kind, body) = hear(&mut end.from);
            if kind == EXIT_CODE {
                break i32::from_le_bytes(body.try_into().unwrap());
            }
        };
        assert_eq!(exit, 125, "{kind:#x}");
        control.hears(CONNECTION_TERMINATED, &[&link(0, port)]);
    }
}

impl End {
    /// What nobody listens to has no streams: an exit code and no more.
    fn just(mut self) -> (Vec<u8>, String, i32) {
        let (kind, body) = hear(&mut self.from);
        assert_eq!(kind, EXIT_CODE);
        assert_eq!(self.from.read(&mut [0]).unwrap_or(0), 0);
        (Vec::new(), String::new(), i32::from_le_bytes(body.try_into().unwrap()))
    }
}

#[test]
#[ignore = "the test below runs it, in the qube that has the service"]
fn a_stock_service() {
    let path = format!("data/vchan/{}/{}", VAULT.1, 500 + version() * 50);
    assert!(End::come(WORK.1, &path).serve() == bytes(300_000));
}

#[test]
fn our_agent_serves_a_stock_daemon() {
    let settings = json!({ "control": { "vchan": true } });
    let stage = Stage::of("stock-daemon", |_, _, _| false, &settings, &[(WORK.0, WORK.1, &["mail"])]);
    stage.service(
        WORK.0,
        "q.Echo",
        "echo \"$1 $QREXEC_REMOTE_DOMAIN $QREXEC_SERVICE_FULL_NAME $QREXEC_REQUESTED_TARGET_TYPE \
         $QREXEC_REQUESTED_TARGET$QREXEC_REQUESTED_TARGET_KEYWORD\"; echo bad >&2; cat; exit 3",
    );
    stage.service(WORK.0, "q.Cat", "exec cat");
    echo(stage.path("work/services/q.Socket"));
    // One after the other: a daemon that comes back may be another one.
    for version in [2, 3] {
        let mark = stage.path(&format!("mark-{version}"));
        stage.service(WORK.0, "q.Mark", &format!("sleep 0.1; : > {}", mark.display()));
        let service = peer(&stage, "a_stock_service", VAULT.1, version);
        ends_well(peer(&stage, "a_stock_daemon", 0, version));
        ends_well(service);
    }
}

#[test]
#[ignore = "the test below runs it, in dom0"]
fn a_stock_daemon_that_names_users() {
    let folder = PathBuf::from(env::var(FOLDER).unwrap());
    let mut control = End::come(WORK.1, CONTROL);
    let said = execute(&mut control, 601, EXEC_CMDLINE, "nobody:QUBESRPC q.Who+ dom0", b"in");
    assert_eq!(said, (b"nobody in".to_vec(), String::new(), 5));
    let said = execute(&mut control, 602, EXEC_CMDLINE, "daemon:QUBESRPC q.Who+ dom0", b"");
    assert_eq!(said, (Vec::new(), String::new(), 125));
    // The starter runs services, and nothing else.
    let said = execute(&mut control, 603, EXEC_CMDLINE, "nobody:id", b"");
    assert_eq!(said, (Vec::new(), String::new(), 125));
    // Nobody listens, and it goes on.
    let said = execute(&mut control, 604, JUST_EXEC, "nobody:QUBESRPC q.Mark+ dom0", b"");
    assert_eq!(said, (Vec::new(), String::new(), 0));
    while !folder.join("marks/mark").exists() {
        thread::yield_now();
    }
}

#[test]
fn a_stock_daemon_has_services_run_as_another_user() {
    if !rustix::process::geteuid().is_root() {
        // Not captured, as what is printed would be.
        writeln!(std::io::stderr(), "NOT TESTED without root: services as another user (1 test)").unwrap();
        return;
    }
    let settings = json!({ "control": { "vchan": true }, "user": "root", "users": ["nobody"] });
    let mut stage = Stage::of("stock-users", |_, _, _| false, &settings, &[]);
    let starter = stage.path("starter.sock");
    stage.settings["starter"] = json!(starter);
    for folder in ["", "marks"] {
        let path = stage.path(folder);
        fs::create_dir_all(&path).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o755)).unwrap();
    }
    chown(stage.path("marks"), Some(65_534), None).unwrap();
    stage.add(WORK.0, WORK.1, &json!({ "vchan": true }));
    stage.service(WORK.0, "q.Who", "echo \"$(id -un) $(cat)\" | tr -d '\\n'; exit 5");
    stage.service(WORK.0, "q.Mark", &format!("sleep 0.3; : > {}", stage.path("marks/mark").display()));
    let agent = stage.path("work/agent.json");
    crate::calls::serve(starter, move |socket| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_nexus-service"));
        command.arg("--config").arg(&agent).arg("as-user").stdin(std::os::fd::OwnedFd::from(socket));
        command.status().unwrap();
    });
    ends_well(peer(&stage, "a_stock_daemon_that_names_users", 0, 3));
}

/// A request of a client of the stock agent's own.
const IDENT: &str = "SOCKET7";

#[test]
#[ignore = "the test below runs it, in the qube whose agent it is"]
fn a_stock_agent() {
    let store = Host.xenstore().unwrap();
    store.write(Transaction::NONE, "name", VAULT.0.as_bytes()).unwrap();
    let mut control = End::offer(0, CONTROL, || {});
    println!("up");
    // A call of ours: be a client of the vchan that the caller's qube offers.
    for (command, input) in [
        ("user:QUBESRPC q.Upper+x work", 300_000),
        ("user:QUBESRPC q.Upper+ work:mail", 3),
        ("mail:QUBESRPC q.User+ work", 0),
    ] {
        let (kind, body) = hear(&mut control.from);
        let (params, found) = body.split_at(8);
        assert_eq!(String::from_utf8_lossy(found), format!("{command}\0"));
        assert_eq!((kind, &params[..4]), (EXEC_CMDLINE, &link(WORK.1.into(), 0)[..4]));
        let port = u32::from_le_bytes(params[4..].try_into().unwrap());
        assert!(port > 512, "{port}");
        let said = End::come(WORK.1, &format!("data/vchan/{}/{port}", VAULT.1)).serve();
        assert!(said == bytes(input), "{} bytes", said.len());
        control.say(CONNECTION_TERMINATED, &[params]);
    }
    // Requests of its own, one for nothing that there is.
    for (target, service) in
        [("work", "q.Denied+"), ("nobody", "q.Echo+"), ("work", "q/Echo"), ("@anyvm", "q.Echo")]
    {
        control.ask(target, service, &field(IDENT, 32));
        control.hears(SERVICE_REFUSED, &[&field(IDENT, 32)]);
    }
    for (service, output, exit) in [
        ("q.Echo+a", "a vault q.Echo+a name work\n", 3),
        ("q.Socket", "q.Socket+ vault\0", 0),
        ("q.None+a", "", 127),
        ("q.Root", "", 125),
    ] {
        let input = if exit < 100 { bytes(200_000) } else { Vec::new() };
        control.ask("work", service, &field(IDENT, 32));
        let (kind, body) = hear(&mut control.from);
        assert_eq!(
            (kind, &body[..4], &body[8..]),
            (SERVICE_CONNECT, &link(WORK.1.into(), 0)[..4], &field(IDENT, 32)[..])
        );
        let port = u32::from_le_bytes(body[4..8].try_into().unwrap());
        let (stdout, stderr, code) =
            End::offer(WORK.1, &format!("data/vchan/{}/{port}", WORK.1), || {}).call(&input);
        assert!(stdout == [output.as_bytes(), &input].concat(), "{service}: {} bytes", stdout.len());
        assert_eq!((stderr.as_str(), code), (if exit == 3 { "bad\n" } else { "" }, exit), "{service}");
        control.say(CONNECTION_TERMINATED, &[&body[..8]]);
    }
    println!("done");
}

#[test]
fn nexusd_serves_a_stock_agent() {
    for version in [2, 3] {
        let policy = "q.Upper * work vault allow\nq.Upper * work:mail @default allow target=vault\n\
            q.User * work vault allow user=mail\nq.Echo * vault work allow\nq.None * vault work allow\nq.Socket * vault work allow\n\
            q.Root * vault work allow user=root\n* * work:mail vault deny\n";
        let whole = Whole::of(&format!("stock-agent-{version}"), policy, &[WORK.0]);
        whole.service(
            WORK.0,
            "q.Echo",
            "echo \"$1 $QREXEC_REMOTE_DOMAIN $QREXEC_SERVICE_FULL_NAME $QREXEC_REQUESTED_TARGET_TYPE $QREXEC_REQUESTED_TARGET\"; \
             echo bad >&2; cat; exit 3",
        );
        whole.service(WORK.0, "q.Root", "echo ran");
        echo(whole.path("work/services/q.Socket"));
        let mut agent = peer(&whole, "a_stock_agent", VAULT.1, version);
        agent.await_text("up");
        for (from, target, service, input) in [
            ("qube", "vault", "q.Upper+x", 300_000),
            ("mail", "@default", "q.Upper", 3),
            ("qube", "vault", "q.User", 0),
        ] {
            let input = bytes(input);
            let (code, stdout, stderr) =
                outcome(caller(&whole.path("work"), &format!("{from}.sock"), target, service), &input);
            if agent.has_ended() {
                // It says why.
                return ends_well(agent);
            }
            assert!(stdout == input.to_ascii_uppercase(), "{service}: {} bytes, {stderr}", stdout.len());
            assert_eq!((code, stderr.as_str()), (Some(4), "served\n"), "{service}");
        }
        // Its agent knows no containers; and policy is for it, too.
        assert_eq!(run(&mut whole.caller("qube", "vault:gpg", "q.Upper"), b"").0, Some(126));
        assert_eq!(run(&mut whole.caller("mail", "vault", "q.Upper"), b"").0, Some(126));
        agent.await_text("done");
        ends_well(agent);
    }
}
