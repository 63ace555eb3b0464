//! What is wrong with a policy, and where.

use super::service::ServiceError;
use super::token::TokenError;
use crate::name::NameError;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A fault of a file. With one of them, all calls are denied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PolicyError {
    /// The file or folder.
    pub file: Arc<Path>,
    /// Where in it: line and column, both counted from 1, the column in characters.
    pub place: Option<(usize, usize)>,
    /// What.
    pub fault: Fault,
}

impl fmt::Display for PolicyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:", self.file.display())?;
        if let Some((line, column)) = self.place {
            write!(f, "{line}:{column}:")?;
        }
        write!(f, " {}", self.fault)
    }
}

impl std::error::Error for PolicyError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.fault)
    }
}

/// What is wrong.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// The file or folder cannot be read, or is none.
    #[error("{0}")]
    Unreadable(String),
    /// The bytes are no text.
    #[error("not UTF-8 from byte {0} on")]
    NotText(usize),
    /// A file in a policy folder ends with `.policy` and has a name that sorts differently in other locales.
    #[error(
        "a policy's file name has lower-case letters, digits, '_', '.' and '-' only; rename or remove it"
    )]
    FileName,
    /// A rule or directive has too few fields.
    #[error("{after} is followed by {missing}, which is missing")]
    Missing {
        /// What is there.
        after: &'static str,
        /// What is not.
        missing: &'static str,
    },
    /// A directive has too many fields.
    #[error("{0:?} is one too many here")]
    Surplus(String),
    /// A line begins with `!` and is no directive.
    #[error("{0:?} is no directive; those are !include, !include-dir, !include-service and !compat-4.0")]
    Directive(String),
    /// The directive may not stand in a file of this kind.
    #[error("{0} cannot stand in a file without service columns")]
    NotHere(&'static str),
    /// Service or argument.
    #[error(transparent)]
    Service(#[from] ServiceError),
    /// Source, target or a place in a parameter.
    #[error(transparent)]
    Token(#[from] TokenError),
    /// The fifth column.
    #[error("{0:?} is no action; those are allow, deny and ask")]
    Action(String),
    /// It is not `KEY=VALUE`.
    #[error("{0:?} is no parameter: that is KEY=VALUE, and there are no comments at the end of a line")]
    NoParameter(String),
    /// An action has no such parameter.
    #[error("{action} has no parameter {key}=; it has {known}")]
    Parameter {
        /// The action.
        action: &'static str,
        /// The parameter.
        key: String,
        /// Those that it has.
        known: &'static str,
    },
    /// A parameter twice.
    #[error("{0}= stands there twice")]
    Twice(String),
    /// Neither yes nor no.
    #[error("{key}={value:?}: it is yes or no")]
    YesNo {
        /// The parameter.
        key: &'static str,
        /// Its value.
        value: String,
    },
    /// `user=`.
    #[error("user=: {0}")]
    User(#[source] NameError),
    /// `allow` to `@default` leads nowhere.
    #[error("allow for @default leads nowhere without target=")]
    AllowDefault,
    /// `user=` for a container's service.
    #[error("a container's services run as the container says: user= is for those of qubes")]
    ContainerUser,
    /// Files that include one another, or a chain that is too long.
    #[error("{0} files include one another: is one of them its own?")]
    Depth(usize),
    /// More text than a policy is to have.
    #[error("more than {0} bytes of policy")]
    TooLarge(u64),
}

impl Fault {
    pub(crate) fn io(error: &io::Error) -> Self {
        Fault::Unreadable(error.to_string())
    }

    pub(crate) fn at(self, file: &Arc<Path>, line: usize, column: usize) -> PolicyError {
        PolicyError { file: file.clone(), place: Some((line, column)), fault: self }
    }

    pub(crate) fn of(self, file: impl Into<PathBuf>) -> PolicyError {
        PolicyError { file: file.into().into(), place: None, fault: self }
    }
}
