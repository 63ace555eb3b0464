//! What hostile bytes can do, as functions: for the fuzzer (`make fuzz`) and for the tests, which replay what it found.

use nexus::broker::{Broker, Effect, Limits, Outcome, Record};
use nexus::command::{CommandError, decode, encode, service};
use nexus::name::Name;
use nexus::policy::parser::{Language, Statement, parse};
use nexus::policy::service::{ArgumentColumn, ServiceColumn};
use nexus::policy::{Call, Current, Place, Policy, Principal, Service, System, Verdict, rules};
use nexus::wire::control::{Ended, OpenCall, Role, Via};
use nexus::wire::{Channel, Decoder, Frame, Header, Ident, Link, Message, Source, Trigger, WireError, pair};
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

static SYSTEM: LazyLock<System> = LazyLock::new(|| {
    serde_json::from_str(
        r#"{ "qubes": {
            "work": { "type": "AppVM", "tags": ["t"], "default_dispvm": "dvm", "containers": ["mail"] },
            "vault": { "type": "AppVM", "containers": ["gpg"] },
            "dvm": { "type": "AppVM", "template_for_dispvms": true }
        } }"#,
    )
    .expect("a system")
});

/// Any argument is a command or says what it is not; and any words are an argument from which they come back.
pub(crate) fn command(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    match decode(&text) {
        Ok(words) => {
            // A word for each +, of no more bytes than stand there, and none that a program's argument cannot have.
            assert_eq!(words.len(), text.split('+').count());
            for (word, stands) in words.iter().zip(text.split('+')) {
                let word = word.as_encoded_bytes();
                assert!(word.len() <= stands.len() && !word.contains(&0), "{stands:?} is {word:?}");
            }
            assert_eq!(decode(&encode(&words)).as_ref(), Ok(&words));
        }
        Err(CommandError::Byte(byte)) => {
            assert!(!byte.is_ascii_alphanumeric() && !b"_.-+".contains(&byte), "{byte:#x}");
            assert!(text.as_bytes().contains(&byte), "{byte:#x} is not in {text:?}");
        }
        Err(CommandError::Escape) => assert!(text.contains('-'), "{text:?}"),
        Err(CommandError::Nul) => assert!(text.contains("-00"), "{text:?}"),
    }
    let words: Vec<_> = bytes.split(|byte| *byte == 0).map(OsStr::from_bytes).collect();
    let argument = encode(&words);
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_.-+".contains(&byte);
    assert!(argument.bytes().all(plain), "{argument:?}");
    assert_eq!(decode(&argument).expect("a command"), words);
    // Whatever is none of too many bytes is the argument of a service.
    match service(None, &words) {
        Ok(service) => assert_eq!(service.argument(), &argument),
        Err(error) => assert!(argument.len() > 60_000, "{error}"),
    }
}

/// Any text is a policy or wrong; a policy is what it is when written anew, and decides every call.
pub(crate) fn policy(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let file: Arc<Path> = Path::new("fuzz.policy").into();
    let older = Language::ForService(ServiceColumn::Any, ArgumentColumn::Any);
    for language in [Language::Five, older] {
        let statements = match parse(&text, &file, &language) {
            Ok(statements) => statements,
            Err(errors) => {
                for error in errors {
                    let (line, column) = error.place.expect("where");
                    let width = text.lines().nth(line - 1).expect("a line").chars().count();
                    assert!((1..=width + 1).contains(&column), "{error}");
                    assert!(error.to_string().len() < 2_000, "{error}");
                }
                continue;
            }
        };
        let rules: Vec<_> = statements
            .into_iter()
            .filter_map(|statement| match statement {
                Statement::Rule(rule) => Some(rule),
                Statement::Include { .. } => None,
            })
            .collect();
        for rule in &rules {
            let again = nexus::policy::rules(&rule.to_string(), "fuzz.policy").expect("what was written");
            assert_eq!(again[0].to_string(), rule.to_string());
            assert_eq!(again[0].action, rule.action);
        }
        let policy = Policy::new(rules);
        for source in ["work", "work:mail", "dom0", "nobody"] {
            for target in ["", "vault", "vault:gpg", "dom0", "@dispvm", "@dispvm:dvm"] {
                let call = Call {
                    source: Principal::parse(source).expect("a caller"),
                    target: Place::intended(target).expect("a target"),
                    service: Service::parse("q.A+x").expect("a service"),
                };
                let explained = policy.explain(&call, &SYSTEM);
                let grants = !matches!(explained.decision.verdict, Verdict::Deny(_));
                assert!(!grants || explained.matched.is_some());
                // What says nothing of containers grants them nothing.
                let of_container =
                    explained.matched.is_some_and(|rule| rule.source.to_string().contains("work:"));
                assert!(!grants || source != "work:mail" || of_container);
            }
        }
    }
}

/// Any bytes are messages or a breach of the protocol, in any pieces; what was understood is what it is when sent anew.
/// The first byte says which way the messages go, the second how long the pieces are.
pub(crate) fn messages(bytes: &[u8]) {
    let [way, piece, stream @ ..] = bytes else { return };
    let channels = [
        Channel::ToAgent,
        Channel::FromAgent,
        Channel::ToService,
        Channel::ToCaller,
        Channel::FromClient,
        Channel::ToClient,
    ];
    let channel = channels[usize::from(*way) % channels.len()];
    for bytes in stream.as_chunks().0 {
        if let Ok(header) = Header::parse(*bytes, channel, Some(channel.version())) {
            assert_eq!(header.encode(), *bytes);
            assert!(header.length <= 65_543);
        }
    }
    let mut whole = Decoder::new(channel);
    let mut pieces = Decoder::new(channel);
    let (seen, ended) = read(&mut whole, &mut std::iter::once(stream));
    let (again, ended_again) = read(&mut pieces, &mut stream.chunks(usize::from(*piece) + 1));
    assert_eq!((seen, ended), (again, ended_again));
    // After a breach, nothing is understood.
    if pieces.decode(&mut &[][..]).is_err() {
        assert!(pieces.decode(&mut &[0, 3, 0, 0, 4, 0, 0, 0, 3, 0, 0, 0][..]).is_err());
        assert_eq!(pieces.kept(), 0);
    }
}

/// What was understood, sent anew, and what ended it.
fn read(decoder: &mut Decoder, pieces: &mut dyn Iterator<Item = &[u8]>) -> (Vec<Vec<u8>>, Option<WireError>) {
    let mut seen = Vec::new();
    for mut piece in pieces {
        loop {
            let length = piece.len();
            let frame = match decoder.decode(&mut piece) {
                Ok(Some(frame)) => frame,
                Ok(None) => break,
                Err(error) => return (seen, Some(error)),
            };
            assert!(piece.len() < length || frame.payload.is_empty());
            match Message::parse(&frame) {
                Ok(message) => {
                    if let Message::TriggerService(trigger)
                    | Message::TriggerService3(trigger)
                    | Message::TriggerService4(_, trigger) = &message
                    {
                        // A request for anything has an answer.
                        let _ = (trigger.target(), trigger.service());
                    }
                    let mut out = Vec::new();
                    message.encode(&mut out).expect("what was understood");
                    let same = Frame { kind: frame.kind, payload: &out[8..] };
                    assert_eq!(Message::parse(&same).as_ref(), Ok(&message));
                    seen.push(out);
                }
                Err(error) => return (seen, Some(error)),
            }
            assert!(decoder.kept() <= 8 + 65_543, "{} bytes", decoder.kept());
        }
    }
    (seen, None)
}

/// Any bytes are headers of a pair channel's frames, or none.
pub(crate) fn pair(bytes: &[u8]) {
    for header in bytes.as_chunks().0 {
        if let Ok(found) = pair::Header::parse(header) {
            assert_eq!(found.encode(), *header);
            assert!(found.length as usize <= pair::MAX_DATA);
        }
    }
}

static BROKERS_POLICY: LazyLock<Arc<Policy>> = LazyLock::new(|| {
    let text = "q.Own * work vault allow\n\
                q.Mail * work:mail vault:gpg allow\n\
                q.Ask * work @anyvm ask\n\
                q.Disp * @anyvm @dispvm:dvm allow\n\
                q.Dom0 * vault dom0 allow\n";
    Arc::new(Policy::new(rules(text, "fuzz.policy").expect("a policy")))
});

/// The qubes around the broker, with dom0: what the fuzzer plays.
const DOMAINS: [(&str, u16); 4] = [("dom0", 0), ("work", 1), ("vault", 2), ("dvm", 3)];
/// Calls that each may have open.
const CALLS: usize = 8;

/// Whatever agents say, in any order: the broker believes each of its own qube alone, answers in the protocol's words, and
/// what it keeps is bounded. Each step is a byte that says what, one that says who, and what that takes.
pub(crate) fn broker(bytes: &[u8]) {
    let limits = Limits {
        calls: CALLS,
        asks: true,
        notifies: true,
        start: Some(Duration::from_secs(60)),
        default_user: "user".to_owned(),
        disposables: [(Name::new("dvm").expect("a name"), Duration::from_secs(60))].into(),
        declared_disposables: None,
    };
    let mut broker = Broker::new(limits, || Current::Policy(BROKERS_POLICY.clone()), 1);
    let mut now = Instant::now();
    let mut running: BTreeMap<Name, u16> =
        DOMAINS[1..].iter().map(|(name, domain)| (Name::new(name).expect("a name"), *domain)).collect();
    broker.set_system(SYSTEM.clone());
    broker.set_running(running.clone(), now);
    let mut agents = [const { None }; DOMAINS.len()];
    let (mut asked, mut made, mut starting) = (Vec::new(), Vec::new(), Vec::new());
    let mut input = bytes;
    let mut next = |count: usize| {
        let (taken, left) = input.split_at_checked(count)?;
        input = left;
        Some(taken)
    };
    while let Some(&[what, who, number]) = next(3).and_then(|step| step.first_chunk()) {
        let index = usize::from(who) % DOMAINS.len();
        let (name, domain) = DOMAINS[index];
        let mut said = Vec::new();
        let mut say = |message: Message<'_>| message.encode(&mut said).expect("a message");
        let via =
            Via { domain: u16::from(number % 5), port: (number > 127).then(|| 400 + u32::from(number)) };
        let call = 1 << 32 | u64::from(number);
        let role = if number % 2 == 0 { Role::Caller } else { Role::Service };
        match what % 15 {
            0 => {
                agents[index] = broker
                    .connected(domain, now)
                    .map(|connection| (connection, Decoder::new(Channel::ToAgent)));
            }
            1 => {
                if let Some((connection, _)) = agents[index].take() {
                    broker.disconnected(connection, now);
                }
            }
            2 => say(Message::Hello([2, 3, 4, 0x4e58_0001][usize::from(number % 4)])),
            3 => said.extend(next(usize::from(number)).unwrap_or_default()),
            4..=6 => {
                let targets = ["vault", "vault:gpg", "", "@dispvm:dvm", "dom0", "work", "\u{7f}"];
                let services = ["q.Own", "q.Mail+x", "q.Ask", "q.Disp", "q.Dom0", "/"];
                let sources = ["", "work", "work:mail", "vault", "dom0", name];
                let trigger = Trigger {
                    ident: Ident::new(b"fuzz").expect("an identifier"),
                    target: targets[usize::from(number) % targets.len()].as_bytes(),
                    service: services[usize::from(number) % services.len()].as_bytes(),
                };
                match what % 15 {
                    4 => say(Message::TriggerService(trigger)),
                    5 => say(Message::TriggerService3(trigger)),
                    _ => {
                        let source = sources[usize::from(number) % sources.len()];
                        say(Message::TriggerService4(Source(source.as_bytes()), trigger));
                    }
                }
            }
            7 => say(Message::Ended(Ended { call, exit: 0, role, to_service: 1, to_caller: 1 })),
            8 => say(Message::Open(OpenCall { call, via, role })),
            9 => say(Message::ConnectionTerminated(Link {
                domain: u16::from(number % 5),
                port: 513 + u32::from(number),
            })),
            10 => {
                if let Some(call) = asked.pop() {
                    let place =
                        Place::redirect(if number % 2 == 0 { "vault" } else { "dom0" }).expect("a place");
                    broker.answered(call, Some(&place).filter(|_| number % 3 > 0), now);
                }
            }
            11 => {
                if let Some(name) = made.pop() {
                    let made = if number % 2 == 0 { Ok(()) } else { Err("broken".to_owned()) };
                    broker.made(&name, made, now);
                    // Its agent plays dvm's part.
                    running.retain(|_, domain| *domain != 3);
                    running.insert(name, 3);
                    broker.set_running(running.clone(), now);
                }
            }
            14 => {
                if let Some(name) = starting.pop() {
                    broker.started(
                        &name,
                        if number % 2 == 0 { Ok(()) } else { Err("broken".to_owned()) },
                        now,
                    );
                }
            }
            12 => {
                now += Duration::from_secs(u64::from(number));
                broker.tick(now);
            }
            _ => {
                running.retain(|_, running| *running != domain);
                if number % 2 == 0 && domain != 0 {
                    running.insert(Name::new(name).expect("a name"), domain);
                }
                broker.set_running(running.clone(), now);
            }
        }
        if let (Some((connection, _)), false) = (&agents[index], said.is_empty()) {
            broker.received(*connection, &said, now);
            let _ = broker.wait(*connection, now);
        }
        while let Some(effect) = broker.next_effect() {
            match effect {
                Effect::Close(closed, _) => {
                    for agent in &mut agents {
                        agent.take_if(|(connection, _)| *connection == closed);
                    }
                }
                Effect::Ask(asking) => asked.push(asking.call),
                Effect::Make { name, .. } => made.push(name),
                Effect::Destroy { name } => broker.unmade(&name),
                Effect::Start { name } => starting.push(name),
                Effect::Record(Record::Decision(decision)) if decision.verdict == Outcome::Allow => {
                    // Nothing but what the policy's five lines let through.
                    let of = |rule: usize| decision.rule.as_deref() == Some(&*format!("fuzz.policy:{rule}"));
                    let good = match decision.source.as_str() {
                        "work" => of(1) || of(3) || of(4),
                        "work:mail" => of(2),
                        "vault" => of(4) || of(5),
                        _ => of(4),
                    };
                    assert!(good, "{decision:?}");
                }
                Effect::Wake(_) | Effect::Notify(_) | Effect::Record(_) => {}
            }
        }
        for (connection, decoder) in agents.iter_mut().flatten() {
            let out = broker.outgoing(*connection);
            let mut out = &out[..];
            while let Some(frame) = decoder.decode(&mut out).expect("the protocol's words") {
                Message::parse(&frame).expect("a message");
            }
        }
        // Of each qube's: calls, what goes on without their callers, and what is said to be open.
        assert!(broker.metrics().open <= DOMAINS.len() * (CALLS + DOMAINS.len() * 256 + 2 * CALLS));
    }
}
