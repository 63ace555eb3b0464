//! Commands as the argument of a service: how `qubes.VMExec` and `nexus.ExecAs` are told what to run.
//!
//! The words are joined by `+`. Of a word, letters, digits, `_` and `.` stand for themselves, `-` is `--`, and every other byte is
//! `-XX` with two hexadecimal digits in capitals (`qubesagent/vmexec.py` in qubes-core-agent-linux). So a command of any bytes
//! is an argument that policy, file systems and logs can have; a word may be empty.

use crate::name::NameError;
use crate::policy::Service;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

/// Runs a command as the default user: a service of Qubes', which its own templates have, too.
pub const EXEC: &str = "qubes.VMExec";
/// Runs a command as another user, who is the first word.
pub const EXEC_AS: &str = "nexus.ExecAs";
/// The journal. The argument: how many lines, and `.follow` to go on.
pub const LOGS: &str = "nexus.Logs";
/// The containers of a qube: `list`, and `start+NAME`, `stop+NAME`, `restart+NAME`.
pub const CONTAINER: &str = "nexus.Container";

/// Why an argument is no command.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CommandError {
    /// A byte that must be escaped and is not.
    #[error("byte {0:#04x} stands where only letters, digits, _ . - and + may")]
    Byte(u8),
    /// A `-` that begins no escape.
    #[error("a - is followed by neither another nor two hexadecimal digits in capitals")]
    Escape,
    /// A NUL, which no argument of a program can have.
    #[error("a word has a NUL")]
    Nul,
}

/// The words as one argument.
pub fn encode(words: impl IntoIterator<Item = impl AsRef<OsStr>>) -> String {
    use std::fmt::Write as _;
    let mut argument = String::new();
    for (number, word) in words.into_iter().enumerate() {
        if number > 0 {
            argument.push('+');
        }
        for &byte in word.as_ref().as_bytes() {
            match byte {
                b'-' => argument.push_str("--"),
                b'_' | b'.' => argument.push(byte.into()),
                _ if byte.is_ascii_alphanumeric() => argument.push(byte.into()),
                // Writing to a String does not fail.
                _ => _ = write!(argument, "-{byte:02X}"),
            }
        }
    }
    argument
}

/// The words of an argument: at least one, which may be empty.
///
/// # Errors
/// As [`CommandError`] says.
pub fn decode(argument: &str) -> Result<Vec<OsString>, CommandError> {
    argument.split('+').map(word).collect()
}

fn word(text: &str) -> Result<OsString, CommandError> {
    let digit = |byte: Option<u8>| match byte {
        Some(byte @ b'0'..=b'9') => Ok(byte - b'0'),
        Some(byte @ b'A'..=b'F') => Ok(byte - b'A' + 10),
        _ => Err(CommandError::Escape),
    };
    let mut word = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        word.push(match byte {
            b'-' => match bytes.next() {
                Some(b'-') => b'-',
                first => match digit(first)? << 4 | digit(bytes.next())? {
                    0 => return Err(CommandError::Nul),
                    byte => byte,
                },
            },
            b'_' | b'.' => byte,
            _ if byte.is_ascii_alphanumeric() => byte,
            _ => return Err(CommandError::Byte(byte)),
        });
    }
    Ok(OsString::from_vec(word))
}

/// The service that runs a command, as that user or as the default one.
///
/// # Errors
/// [`NameError::TooLong`] where the argument would be too long for a service.
pub fn service(
    user: Option<&str>,
    words: impl IntoIterator<Item = impl AsRef<OsStr>>,
) -> Result<Service, NameError> {
    let command = encode(words);
    Service::parse(&match user {
        None => format!("{EXEC}+{command}"),
        Some(user) => format!("{EXEC_AS}+{}+{command}", encode([user])),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_qubes_writes_is_read_and_written() {
        // Worked out by hand from the rules in qubesagent/vmexec.py.
        for (words, argument) in [
            (&["ls", "-la", "/home/user"][..], "ls+--la+-2Fhome-2Fuser"),
            (&["echo", ""], "echo+"),
            (&["sh", "-c", "echo \"$1\" +\n"], "sh+--c+echo-20-22-241-22-20-2B-0A"),
            (&["é"], "-C3-A9"),
        ] {
            assert_eq!(encode(words), argument);
            assert_eq!(decode(argument).unwrap(), words);
        }
    }

    #[test]
    fn what_is_no_command_is_refused() {
        for (argument, error) in [
            ("a-", CommandError::Escape),
            ("a-2", CommandError::Escape),
            ("a-2f", CommandError::Escape),
            ("a-+b", CommandError::Escape),
            ("a---", CommandError::Escape),
            ("a-00", CommandError::Nul),
            ("a b", CommandError::Byte(b' ')),
            ("a/b", CommandError::Byte(b'/')),
        ] {
            assert_eq!(decode(argument), Err(error), "{argument}");
        }
    }

    #[test]
    fn a_command_that_is_too_long_is_known_by_its_length() {
        assert_eq!(service(Some("root"), ["id", "-u"]).unwrap().to_string(), "nexus.ExecAs+root+id+--u");
        assert_eq!(service(None, ["x".repeat(65_000)]), Err(NameError::TooLong(65_013)));
    }

    proptest! {
        #[test]
        fn every_command_comes_back(words in prop::collection::vec(prop::collection::vec(1..=255_u8, 0..40), 1..8)) {
            let words: Vec<_> = words.into_iter().map(OsString::from_vec).collect();
            let argument = encode(&words);
            let service = Service::parse(&format!("q.Exec+{argument}")).unwrap();
            prop_assert_eq!(service.argument(), &argument);
            prop_assert_eq!(decode(&argument).unwrap(), words);
        }

        #[test]
        fn an_argument_is_a_command_in_one_way(argument in "[a-c0-1A-B_.+-]{0,24}") {
            if let Ok(words) = decode(&argument) {
                // The same but for bytes that need not have been escaped.
                prop_assert_eq!(decode(&encode(&words)).unwrap(), words);
            }
        }
    }
}
