//! The service of a call, and the two columns of a rule that it is compared with.

use crate::name::{self, Name, NameError, shown};
use std::fmt;
use std::sync::Arc;

/// The longest service with its argument, in bytes (`MAX_SERVICE_NAME_LEN`, libqrexec/qrexec.h).
pub const MAX_SERVICE: usize = 65_000;

/// What is called: `SERVICE` or `SERVICE+ARGUMENT`. Without `+` the argument is empty, as with `+` alone.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Service {
    name: Name,
    argument: Arc<str>,
}

impl Service {
    /// Reads `SERVICE[+ARGUMENT]`.
    ///
    /// # Errors
    /// [`NameError`] if either has other characters than `A-Z a-z 0-9 _ . -` (the argument: `+` as well), the service
    /// more than 63 bytes or both more than [`MAX_SERVICE`].
    pub fn parse(text: &str) -> Result<Self, NameError> {
        if text.len() > MAX_SERVICE {
            return Err(NameError::TooLong(text.len()));
        }
        let (name, argument) = text.split_once('+').unwrap_or((text, ""));
        Ok(Self { name: Name::new(name)?, argument: check_argument(argument)? })
    }

    /// Its name.
    pub fn name(&self) -> &Name {
        &self.name
    }

    /// Its argument, without the `+`; may be empty.
    pub fn argument(&self) -> &str {
        &self.argument
    }
}

impl fmt::Display for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}+{}", self.name, self.argument)
    }
}

/// The first column.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum ServiceColumn {
    /// `*`.
    Any,
    /// One.
    One(Name),
}

/// The second column.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum ArgumentColumn {
    /// `*`.
    Any,
    /// `+ARGUMENT`; empty for `+` alone.
    One(Arc<str>),
}

/// Why a service or an argument column is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ServiceError {
    /// A character or a length.
    #[error(transparent)]
    Name(#[from] NameError),
    /// It is neither.
    #[error("{0:?} is no argument: that is * or +ARGUMENT, and + alone if it is empty")]
    NoPlus(String),
    /// `*` with an argument.
    #[error("the service * has the argument *, not {0}")]
    AnyServiceOneArgument(String),
}

impl ServiceColumn {
    /// Reads the first column.
    ///
    /// # Errors
    /// As [`ServiceError`] says.
    pub fn parse(text: &str) -> Result<Self, ServiceError> {
        if text == "*" { Ok(Self::Any) } else { Ok(Self::One(Name::new(text)?)) }
    }
}

impl ArgumentColumn {
    /// Reads the second column of a rule that has this first one.
    ///
    /// # Errors
    /// As [`ServiceError`] says.
    pub fn parse(text: &str, service: &ServiceColumn) -> Result<Self, ServiceError> {
        if text == "*" {
            return Ok(Self::Any);
        }
        let argument = text.strip_prefix('+').ok_or_else(|| ServiceError::NoPlus(shown(text)))?;
        if *service == ServiceColumn::Any {
            return Err(ServiceError::AnyServiceOneArgument(shown(text)));
        }
        Ok(Self::One(check_argument(argument)?))
    }
}

impl fmt::Display for ServiceColumn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Any => f.write_str("*"),
            Self::One(name) => name.fmt(f),
        }
    }
}

impl fmt::Display for ArgumentColumn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Any => f.write_str("*"),
            Self::One(argument) => write!(f, "+{argument}"),
        }
    }
}

fn check_argument(text: &str) -> Result<Arc<str>, NameError> {
    // An argument is a name's rest and not one: it may be empty, or two dots.
    match name::check(text, MAX_SERVICE, |c| c.is_ascii_alphanumeric() || "_.+-".contains(c)) {
        Ok(()) | Err(NameError::Empty | NameError::Folder(_)) => Ok(text.into()),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_has_an_argument_that_may_be_empty() {
        let service = Service::parse("qubes.Filecopy").unwrap();
        assert_eq!((service.name().as_str(), service.argument()), ("qubes.Filecopy", ""));
        assert_eq!(service, Service::parse("qubes.Filecopy+").unwrap());
        assert_eq!(Service::parse("a+b+-_.c").unwrap().argument(), "b+-_.c");
        assert_eq!(Service::parse(&format!("a+{}", "b".repeat(64_998))).unwrap().argument().len(), 64_998);
        for bad in ["", "+a", "a b", "a+/etc", "a+b\0", "*", "../a", "a+ö"] {
            assert!(Service::parse(bad).is_err(), "{bad}");
        }
        assert_eq!(Service::parse(&format!("a+{}", "b".repeat(64_999))), Err(NameError::TooLong(65_001)));
    }

    #[test]
    fn columns_are_read_as_documented() {
        let one = ServiceColumn::parse("q.T").unwrap();
        for good in ["*", "+", "+a", "++-_.09argument"] {
            assert_eq!(ArgumentColumn::parse(good, &one).unwrap().to_string(), good);
        }
        for bad in ["", "a*", "a+", "*a", "h+h", "+a/b", "**", "+*"] {
            assert!(ArgumentColumn::parse(bad, &one).is_err(), "{bad}");
        }
        let any = ServiceColumn::parse("*").unwrap();
        assert_eq!(ArgumentColumn::parse("*", &any).unwrap(), ArgumentColumn::Any);
        assert_eq!(ArgumentColumn::parse("+", &any), Err(ServiceError::AnyServiceOneArgument("+".into())));
    }
}
