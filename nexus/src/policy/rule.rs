//! One rule: five columns and parameters.

use super::service::{ArgumentColumn, ServiceColumn};
use super::token::{Place, Token};
use std::fmt;
use std::path::Path;
use std::sync::Arc;

/// Where something stands: the file and its line, counted from 1.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Origin {
    /// The file, by the path that it was read by.
    pub file: Arc<Path>,
    /// The line.
    pub line: usize,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.file.display(), self.line)
    }
}

/// A rule as it was written.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Rule {
    /// First column.
    pub service: ServiceColumn,
    /// Second column.
    pub argument: ArgumentColumn,
    /// Third column.
    pub source: Token,
    /// Fourth column.
    pub target: Token,
    /// What becomes of calls that match.
    pub action: Action,
    /// Where it stands.
    pub origin: Origin,
}

/// The fifth column, with its parameters.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Action {
    /// The call goes on.
    Allow {
        /// `target=`: it goes there, wherever the caller wanted it to go.
        target: Option<Place>,
        /// `user=`: the service runs as this user; none: as the target's default user.
        user: Option<Arc<str>>,
        /// `notify=`: the user of the machine is told. Default: no.
        notify: bool,
        /// `autostart=`: a target that does not run is started. Default: yes.
        autostart: bool,
    },
    /// The call is refused.
    Deny {
        /// `notify=`: the user of the machine is told. Default: yes.
        notify: bool,
    },
    /// The user of the machine is asked.
    Ask {
        /// `target=`: the only target to choose.
        target: Option<Place>,
        /// `default_target=`: the target that is proposed.
        default_target: Option<Place>,
        /// `user=`, as for allow.
        user: Option<Arc<str>>,
        /// `notify=`: the user of the machine is told of the outcome. Default: no.
        notify: bool,
        /// `autostart=`: without it, only targets that run can be chosen. Default: yes.
        autostart: bool,
    },
}

impl Action {
    /// The word in the fifth column.
    pub fn word(&self) -> &'static str {
        match self {
            Action::Allow { .. } => "allow",
            Action::Deny { .. } => "deny",
            Action::Ask { .. } => "ask",
        }
    }

    /// `target=`.
    pub fn redirect(&self) -> Option<&Place> {
        match self {
            Action::Allow { target, .. } | Action::Ask { target, .. } => target.as_ref(),
            Action::Deny { .. } => None,
        }
    }
}

impl Action {
    /// The places in `target=` and `default_target=`.
    pub fn places(&self) -> impl Iterator<Item = &Place> {
        let proposed = match self {
            Action::Ask { default_target, .. } => default_target.as_ref(),
            _ => None,
        };
        self.redirect().into_iter().chain(proposed)
    }
}

fn yes_no(value: bool) -> &'static str {
    if value { "yes" } else { "no" }
}

/// As it would be written, with the parameters that are not at their defaults.
impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())?;
        let (target, default_target, user, notify, autostart) = match self {
            Action::Allow { target, user, notify, autostart } => (target, &None, user, notify, autostart),
            Action::Ask { target, default_target, user, notify, autostart } => {
                (target, default_target, user, notify, autostart)
            }
            Action::Deny { notify } => (&None, &None, &None, notify, &true),
        };
        if let Some(target) = target {
            write!(f, " target={target}")?;
        }
        if let Some(target) = default_target {
            write!(f, " default_target={target}")?;
        }
        if let Some(user) = user {
            write!(f, " user={user}")?;
        }
        if *notify != matches!(self, Action::Deny { .. }) {
            write!(f, " notify={}", yes_no(*notify))?;
        }
        if !autostart {
            f.write_str(" autostart=no")?;
        }
        Ok(())
    }
}

/// As it would be written in policy format 5.0.
impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { service, argument, source, target, action, .. } = self;
        write!(f, "{service} {argument} {source} {target} {action}")
    }
}
