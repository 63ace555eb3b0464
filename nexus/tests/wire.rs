//! Messages byte by byte, worked out from the protocol's text, and decoders under pieces and lies.

use nexus::policy::Place;
use nexus::wire::control::{Ended, Failure, Join, OpenCall, Role, Run, Via};
use nexus::wire::{
    Channel, Decoder, Execute, Ident, Kind, Link, Message, Source, Trigger, Version, WireError,
};
use proptest::prelude::*;

fn ident(text: &str) -> Ident {
    Ident::new(text.as_bytes()).expect("an identifier")
}

fn encoded(message: &Message<'_>) -> Vec<u8> {
    let mut bytes = Vec::new();
    message.encode(&mut bytes).expect("a message");
    bytes
}

/// A decoder after the hello.
fn greeted(channel: Channel, version: u32) -> Decoder {
    let mut decoder = Decoder::new(channel);
    let hello = encoded(&Message::Hello(version));
    let frame = decoder.decode(&mut &hello[..]).expect("a hello").expect("all of it");
    assert_eq!(frame.payload, version.to_le_bytes());
    decoder
}

/// What the first message of these bytes says.
fn first(channel: Channel, version: u32, bytes: &[u8]) -> Result<String, WireError> {
    let mut input = bytes;
    let mut decoder = greeted(channel, version);
    match decoder.decode(&mut input)? {
        Some(frame) => Ok(format!("{:?}", Message::parse(&frame)?)),
        None => Ok("more".to_owned()),
    }
}

fn padded(text: &[u8], width: usize) -> Vec<u8> {
    let mut field = text.to_vec();
    field.resize(width, 0);
    field
}

fn message(kind: u32, parts: &[&[u8]]) -> Vec<u8> {
    let payload = parts.concat();
    [&kind.to_le_bytes()[..], &(payload.len() as u32).to_le_bytes(), &payload].concat()
}

#[test]
fn messages_are_laid_out_as_documented() {
    let link = Link { domain: 7, port: 513 };
    let trigger = Trigger { ident: ident("SOCKET11"), target: b"@dispvm", service: b"q.A+x" };
    let exec = Execute { link, command: b"user:QUBESRPC q.A+x work" };
    let ident11 = padded(b"SOCKET11", 32);
    let wire_link = [7, 0, 0, 0, 1, 2, 0, 0];
    for (channel, sent, bytes) in [
        (
            Channel::ToAgent,
            Message::ExecCmdline(exec),
            message(0x200, &[&wire_link, b"user:QUBESRPC q.A+x work\0"]),
        ),
        (
            Channel::ToAgent,
            Message::JustExec(exec),
            message(0x201, &[&wire_link, b"user:QUBESRPC q.A+x work\0"]),
        ),
        (
            Channel::ToAgent,
            Message::ServiceConnect(link, ident("SOCKET11")),
            message(0x202, &[&wire_link, &ident11]),
        ),
        (Channel::ToAgent, Message::ServiceRefused(ident("SOCKET11")), message(0x203, &[&ident11])),
        (
            Channel::FromAgent,
            Message::TriggerService(trigger),
            message(0x210, &[&padded(b"q.A+x", 64), &padded(b"@dispvm", 32), &ident11]),
        ),
        (Channel::FromAgent, Message::ConnectionTerminated(link), message(0x211, &[&wire_link])),
        (
            Channel::FromAgent,
            Message::TriggerService3(trigger),
            message(0x212, &[&padded(b"@dispvm", 64), &ident11, b"q.A+x\0"]),
        ),
        (Channel::ToService, Message::Stdin(b"abc"), vec![0x90, 1, 0, 0, 3, 0, 0, 0, b'a', b'b', b'c']),
        (Channel::ToCaller, Message::Stdout(b""), vec![0x91, 1, 0, 0, 0, 0, 0, 0]),
        (Channel::ToCaller, Message::Stderr(b"e"), vec![0x92, 1, 0, 0, 1, 0, 0, 0, b'e']),
        (Channel::ToCaller, Message::ExitCode(126), vec![0x93, 1, 0, 0, 4, 0, 0, 0, 126, 0, 0, 0]),
    ] {
        assert_eq!(encoded(&sent), bytes, "{sent:?}");
        assert_eq!(first(channel, 3, &bytes).unwrap(), format!("{sent:?}"));
    }
    let bytes = message(0x213, &[&padded(b"far", 64), &padded(b"@dispvm", 64), &ident11, b"q.A+x\0"]);
    let sent = Message::TriggerService4(Source(b"far"), trigger);
    assert_eq!(encoded(&sent), bytes);
    assert_eq!(first(Channel::FromAgent, 4, &bytes).unwrap(), format!("{sent:?}"));
    assert_eq!(trigger.target().unwrap(), Some(Place::DispVm));
    assert_eq!(trigger.service().unwrap().to_string(), "q.A+x");
    // A request for nonsense is one that can be refused.
    let nonsense = Trigger { target: b"@anyvm", service: b"../sh", ..trigger };
    assert!(nonsense.target().is_err() && nonsense.service().is_err());
}

/// What our hello says, and a peer of ours.
const OURS: u32 = 0x4e58_0001;

#[test]
fn our_own_messages_are_laid_out_as_documented() {
    let pair = Via { domain: 7, port: None };
    let plain = Via { domain: 7, port: Some(513) };
    let run = Run {
        call: 0x0102_0304_0506_0708,
        via: plain,
        container: b"gpg",
        user: b"",
        service: b"q.A+x",
        source: b"work:mail",
        wish: b"@default",
    };
    let call = [8, 7, 6, 5, 4, 3, 2, 1];
    let (wire_pair, wire_plain) = ([7, 0, 0, 0, 0, 0, 0, 0], [7, 0, 0, 0, 1, 2, 0, 0]);
    let ended = Ended { call: run.call, exit: -1, role: Role::Service, to_service: 2, to_caller: 1 << 32 };
    for (channel, sent, bytes) in [
        (
            Channel::ToAgent,
            Message::Run(run),
            message(0x4e58_0200, &[&call, &wire_plain, b"gpg\0\0q.A+x\0work:mail\0@default\0"]),
        ),
        (
            Channel::ToAgent,
            Message::Join(Join { call: run.call, via: pair, ident: ident("S1") }),
            message(0x4e58_0202, &[&call, &wire_pair, &padded(b"S1", 32)]),
        ),
        (
            Channel::ToAgent,
            Message::Failed(ident("S1"), Failure::Limit),
            message(0x4e58_0203, &[&padded(b"S1", 32), &[3, 0, 0, 0]]),
        ),
        (Channel::ToAgent, Message::Gone(7), message(0x4e58_0204, &[&[7, 0, 0, 0]])),
        (
            Channel::FromAgent,
            Message::Ended(ended),
            message(
                0x4e58_0211,
                &[&call, &[0xff; 4], &[1, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0], &[0, 0, 0, 0, 1, 0, 0, 0]],
            ),
        ),
        (
            Channel::FromAgent,
            Message::Open(OpenCall { call: run.call, via: pair, role: Role::Caller }),
            message(0x4e58_0212, &[&call, &wire_pair, &[0; 4]]),
        ),
    ] {
        assert_eq!(encoded(&sent), bytes, "{sent:?}");
        assert_eq!(first(channel, OURS, &bytes).unwrap(), format!("{sent:?}"));
        assert!(matches!(first(channel, 4, &bytes), Err(WireError::Misplaced { .. })));
    }
}

#[test]
fn what_breaks_our_own_messages_is_an_error() {
    let (call, pair) = ([0; 8], [7, 0, 0, 0, 0, 0, 0, 0]);
    let kind = Kind::Run;
    for (channel, bytes, expected) in [
        (
            Channel::ToAgent,
            message(0x4e58_0200, &[&call, &pair, b"\0\0s\0w\0"]),
            WireError::Unterminated(kind),
        ),
        (
            Channel::ToAgent,
            message(0x4e58_0200, &[&call, &pair, b"\0\0s\0w\0w"]),
            WireError::Unterminated(kind),
        ),
        (
            Channel::ToAgent,
            message(0x4e58_0200, &[&call, &pair, b"\0\0s\0w\0w\0w"]),
            WireError::Unterminated(kind),
        ),
        (
            Channel::ToAgent,
            message(0x4e58_0200, &[&call, &pair, &[b'a'; 128], b"\0\0s\0w\0w\0"]),
            WireError::Unterminated(kind),
        ),
        (
            Channel::ToAgent,
            message(0x4e58_0200, &[&call, &[7, 0, 0, 0, 0, 2, 0, 0], b"\0\0s\0w\0\0"]),
            WireError::Port { kind, port: 512 },
        ),
        (
            Channel::ToAgent,
            message(0x4e58_0204, &[&[0xf0, 0x7f, 0, 0]]),
            WireError::Domain { kind: Kind::Gone, domain: 0x7ff0 },
        ),
        (
            Channel::FromAgent,
            message(0x4e58_0212, &[&call, &pair, &[2, 0, 0, 0]]),
            WireError::Role(Kind::Open),
        ),
    ] {
        assert_eq!(first(channel, OURS, &bytes), Err(expected), "{bytes:?}");
    }
}

#[test]
fn an_identifier_may_be_short_and_have_rubbish_behind_it() {
    let link = [7, 0, 0, 0, 1, 2, 0, 0];
    let expected = r#"ServiceConnect(Link { domain: 7, port: 513 }, "S1")"#;
    for ident in [&b"S1\0"[..], b"S1\0\xffrubbish", &padded(b"S1", 32)] {
        assert_eq!(first(Channel::ToAgent, 3, &message(0x202, &[&link, ident])).unwrap(), expected);
    }
    assert!(Ident::new(b"").is_none());
    assert!(Ident::new(&[b'a'; 32]).is_none());
    assert!(Ident::new(b"a b").is_none());
}

#[test]
fn what_breaks_the_protocol_is_an_error() {
    let link = [7, 0, 0, 0, 1, 2, 0, 0];
    let domain = |number: u32| [&number.to_le_bytes()[..], &513_u32.to_le_bytes()].concat();
    let port = |number: u32| [&7_u32.to_le_bytes()[..], &number.to_le_bytes()].concat();
    let good_ident = padded(b"S1", 32);
    let kind = Kind::ExecCmdline;
    for (channel, bytes, expected) in [
        (Channel::ToAgent, message(0x204, &[]), WireError::Type(0x204)),
        (
            Channel::ToAgent,
            message(0x210, &[]),
            WireError::Misplaced { kind: Kind::TriggerService, channel: Channel::ToAgent },
        ),
        (
            Channel::ToService,
            message(0x191, &[]),
            WireError::Misplaced { kind: Kind::Stdout, channel: Channel::ToService },
        ),
        (Channel::FromAgent, message(0x300, &[&[3, 0, 0, 0]]), WireError::Order(Kind::Hello)),
        (Channel::ToAgent, message(0x200, &[&link, b"a:b"]), WireError::Unterminated(kind)),
        (Channel::ToAgent, message(0x200, &[&link, b"a:b\0c\0"]), WireError::Unterminated(kind)),
        (
            Channel::ToAgent,
            message(0x200, &[&link]),
            WireError::Length { kind, length: 8, least: 9, most: 65_543 },
        ),
        (
            Channel::ToAgent,
            message(0x200, &[&domain(0x7ff0), b"a:b\0"]),
            WireError::Domain { kind, domain: 0x7ff0 },
        ),
        (
            Channel::ToAgent,
            message(0x200, &[&domain(0x1_0007), b"a:b\0"]),
            WireError::Domain { kind, domain: 0x1_0007 },
        ),
        (Channel::ToAgent, message(0x200, &[&port(512), b"a:b\0"]), WireError::Port { kind, port: 512 }),
        (Channel::ToAgent, message(0x203, &[&padded(b"S 1", 32)]), WireError::Ident(Kind::ServiceRefused)),
        (Channel::ToAgent, message(0x203, &[&[0; 32]]), WireError::Ident(Kind::ServiceRefused)),
        (Channel::ToAgent, message(0x203, &[&[b'a'; 32]]), WireError::Unterminated(Kind::ServiceRefused)),
        (
            Channel::ToAgent,
            message(0x203, &[b"S1\0"]),
            WireError::Length { kind: Kind::ServiceRefused, length: 3, least: 32, most: 32 },
        ),
        (
            Channel::FromAgent,
            message(0x212, &[&[b'a'; 64], &good_ident, b"q.A\0"]),
            WireError::Unterminated(Kind::TriggerService3),
        ),
        (
            Channel::FromAgent,
            message(0x210, &[&[0; 127]]),
            WireError::Length { kind: Kind::TriggerService, length: 127, least: 128, most: 128 },
        ),
        (
            Channel::ToCaller,
            message(0x193, &[&[0; 5]]),
            WireError::Length { kind: Kind::ExitCode, length: 5, least: 4, most: 4 },
        ),
    ] {
        assert_eq!(first(channel, 3, &bytes), Err(expected), "{bytes:?}");
    }
}

#[test]
fn lengths_end_where_the_version_says() {
    let chunk = |length: u32| [&0x190_u32.to_le_bytes()[..], &length.to_le_bytes()].concat();
    for (version, most) in [(2, 4_096), (3, 65_536), (4, 65_536)] {
        assert_eq!(first(Channel::ToService, version, &chunk(most)).unwrap(), "more");
        assert_eq!(
            first(Channel::ToService, version, &chunk(most + 1)),
            Err(WireError::Length { kind: Kind::Stdin, length: most + 1, least: 0, most: most as usize })
        );
    }
    assert_eq!(
        first(Channel::FromAgent, 2, &message(0x212, &[])),
        Err(WireError::Misplaced { kind: Kind::TriggerService3, channel: Channel::FromAgent })
    );
    let trigger = |length| Trigger { ident: ident("S"), target: b"", service: &[b'a'; 65_001][..length] };
    assert_eq!(encoded(&Message::TriggerService3(trigger(65_000))).len(), 8 + 96 + 65_001);
    let mut out = vec![1];
    assert_eq!(
        Message::TriggerService3(trigger(65_001)).encode(&mut out),
        Err(WireError::Unsendable(Kind::TriggerService3))
    );
    assert_eq!(
        Message::TriggerService(trigger(64)).encode(&mut out),
        Err(WireError::Unsendable(Kind::TriggerService))
    );
    let link = Link { domain: 1, port: 513 };
    let exec = |command| Message::ExecCmdline(Execute { link, command });
    assert_eq!(encoded(&exec(&[b'a'; 65_534])).len(), 8 + 8 + 65_535);
    for command in [&[b'a'; 65_535][..], b"a\0b"] {
        assert_eq!(exec(command).encode(&mut out), Err(WireError::Unsendable(Kind::ExecCmdline)));
    }
    for link in [Link { domain: 0x7ff0, port: 513 }, Link { domain: 1, port: 512 }] {
        let message = Message::ConnectionTerminated(link);
        assert_eq!(message.encode(&mut out), Err(WireError::Unsendable(Kind::ConnectionTerminated)));
    }
    assert_eq!(Message::Stdin(&[0; 65_537]).encode(&mut out), Err(WireError::Unsendable(Kind::Stdin)));
    assert_eq!(out, [1]);
}

#[test]
fn the_hello_comes_first_and_is_of_a_version_that_is_spoken() {
    let mut decoder = Decoder::new(Channel::FromAgent);
    let bytes = message(0x211, &[&[7, 0, 0, 0, 1, 2, 0, 0]]);
    assert_eq!(decoder.decode(&mut &bytes[..]), Err(WireError::Order(Kind::ConnectionTerminated)));
    // It stays so.
    let hello = encoded(&Message::Hello(3));
    assert_eq!(decoder.decode(&mut &hello[..]), Err(WireError::Order(Kind::ConnectionTerminated)));
    assert_eq!(decoder.kept(), 0);

    let mut decoder = Decoder::new(Channel::FromAgent);
    assert_eq!(decoder.decode(&mut &encoded(&Message::Hello(1))[..]), Err(WireError::Version(1)));
    for (channel, number, version) in [
        (Channel::FromAgent, 4, Version::V4),
        (Channel::FromAgent, OURS, Version::Nexus),
        (Channel::ToAgent, OURS + 1, Version::Nexus),
        (Channel::ToService, OURS, Version::V4),
        (Channel::FromClient, 4, Version::V3),
    ] {
        assert_eq!(greeted(channel, number).version(), Some(version));
    }
    assert_eq!(greeted(Channel::FromAgent, 2).version(), Some(Version::V2));
}

#[test]
fn a_decoder_keeps_one_message_and_no_more() {
    let mut decoder = greeted(Channel::ToService, 3);
    let chunk = encoded(&Message::Stdin(&[7; 65_536]));
    let stream = chunk.repeat(3);
    let mut input = &stream[..];
    for round in 1..=3 {
        let frame = decoder.decode(&mut input).unwrap().unwrap();
        assert_eq!(frame.payload.len(), 65_536);
        assert_eq!(input.len(), stream.len() - round * chunk.len());
        assert_eq!(decoder.kept(), chunk.len());
    }
    assert_eq!(decoder.decode(&mut input), Ok(None));
    assert_eq!(decoder.kept(), 0);
    // A header that claims much makes nobody take room for it.
    let mut input = &chunk[..9];
    assert_eq!(decoder.decode(&mut input), Ok(None));
    assert_eq!((decoder.kept(), input.len()), (9, 0));
}

fn any_link() -> impl Strategy<Value = Link> {
    (0_u16..0x7ff0, 513_u32..).prop_map(|(domain, port)| Link { domain, port })
}

proptest! {
    /// Messages come out as they went in, in whatever pieces they arrive.
    #[test]
    fn messages_survive_any_pieces(
        link in any_link(),
        text in prop::collection::vec(1_u8.., 0..200),
        name in "[A-Za-z0-9_.:-]{1,31}",
        code: i32,
        cuts in prop::collection::vec(1_usize..50, 1..20),
    ) {
        let execute = Execute { link, command: &text };
        let trigger = Trigger { ident: ident(&name), target: &text[..text.len().min(31)], service: &text[..text.len().min(63)] };
        for (channel, messages) in [
            (Channel::ToAgent, vec![
                Message::ExecCmdline(execute), Message::JustExec(execute),
                Message::ServiceConnect(link, ident(&name)), Message::ServiceRefused(ident(&name)),
            ]),
            (Channel::FromAgent, vec![
                Message::TriggerService(trigger), Message::TriggerService3(trigger), Message::ConnectionTerminated(link),
            ]),
            (Channel::ToService, vec![Message::Stdin(&text), Message::Stdin(&[])]),
            (Channel::ToCaller, vec![Message::Stdout(&text), Message::Stderr(&text), Message::ExitCode(code)]),
        ] {
            let mut bytes = encoded(&Message::Hello(3));
            for message in &messages {
                message.encode(&mut bytes).unwrap();
            }
            let mut decoder = Decoder::new(channel);
            let mut seen = 0;
            let mut left = &bytes[..];
            for cut in cuts.iter().cycle() {
                let (mut piece, rest) = left.split_at((*cut).min(left.len()));
                left = rest;
                while let Some(frame) = decoder.decode(&mut piece).unwrap() {
                    let message = Message::parse(&frame).unwrap();
                    match seen {
                        0 => prop_assert_eq!(message, Message::Hello(3)),
                        n => prop_assert_eq!(&message, &messages[n - 1]),
                    }
                    seen += 1;
                }
                if left.is_empty() {
                    break;
                }
            }
            prop_assert_eq!(seen, messages.len() + 1);
        }
    }
}
