//! What hostile bytes can do, as functions: for the fuzzer (`make fuzz`) and for the tests, which replay what it found.

use nexus::policy::parser::{Language, Statement, parse};
use nexus::policy::service::{ArgumentColumn, ServiceColumn};
use nexus::policy::{Call, Place, Policy, Principal, Service, System, Verdict};
use nexus::wire::{Channel, Decoder, Frame, Message, WireError, pair};
use std::path::Path;
use std::sync::{Arc, LazyLock};

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
