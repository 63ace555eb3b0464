//! What a qube says of its containers, by `nexus.Container+list`.
//!
//! It is the qube's word, and whoever reads it is dom0: names are checked as names, states are of a known set, numbers are numbers,
//! and there is an end to it.

use crate::name::Name;
use serde::{Deserialize, Serialize};
use std::fmt;

/// The most that a list may be: a thousand containers with everything that is said of them.
pub const MAX_LIST: usize = 256 << 10;

/// A container, as its qube sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Container {
    /// Its name.
    pub name: Name,
    /// What it does.
    pub state: State,
    /// What it has of memory, in KiB; none where that is not known.
    pub memory_kib: Option<u64>,
}

/// What a container does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// It is up.
    Running,
    /// It is coming up.
    Starting,
    /// It is going down.
    Stopping,
    /// It was ended, or not started.
    Stopped,
    /// It ended by itself, or did not come up.
    Failed,
    /// Nobody knows: there is no systemd, or it has no such unit.
    Unknown,
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Running => "running",
            Self::Starting => "starting",
            Self::Stopping => "stopping",
            Self::Stopped => "stopped",
            Self::Failed => "failed",
            Self::Unknown => "unknown",
        })
    }
}

/// Reads a list.
///
/// # Errors
/// It is none.
pub fn parse(text: &[u8]) -> Result<Vec<Container>, serde_json::Error> {
    serde_json::from_slice(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_of_a_hostile_qube_has_names_states_and_numbers() {
        let list = parse(br#"[{"name":"web","state":"running","memory_kib":12},{"name":"db","state":"failed","memory_kib":null}]"#);
        let list = list.unwrap();
        assert_eq!(
            (list[0].name.as_str(), list[0].state, list[0].memory_kib),
            ("web", State::Running, Some(12))
        );
        assert_eq!(format!("{:<8}|", list[1].state), "failed  |");
        for wrong in [
            &br#"[{"name":"\u001b[2J","state":"running","memory_kib":1}]"#[..],
            br#"[{"name":"web","state":"on fire","memory_kib":1}]"#,
            br#"[{"name":"web","state":"running","memory_kib":-1}]"#,
            br#"[{"name":"web","state":"running","memory_kib":1,"more":1}]"#,
            b"",
        ] {
            assert!(parse(wrong).is_err(), "{}", String::from_utf8_lossy(wrong));
        }
    }
}
