//! What stands in the source and target columns of a rule, and in `target=`.

use super::system::DOM0;
use crate::name::{Name, NameError, shown};
use std::fmt;
use uuid::Uuid;

/// One qube: by its name, or by its UUID (`uuid:` in a policy), which outlives a change of name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Qube {
    /// By name.
    Name(Name),
    /// By UUID.
    Uuid(Uuid),
}

/// Where one call may go.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Place {
    /// dom0: `@adminvm` or `dom0`.
    AdminVm,
    /// A qube, and none of its containers.
    Qube(Qube),
    /// `QUBE:CONTAINER`.
    Container {
        /// The qube that it is in, or dom0.
        qube: Name,
        /// Its name there.
        container: Name,
    },
    /// `@dispvm`: a new disposable qube of the kind that the caller's qube uses.
    DispVm,
    /// `@dispvm:NAME`: a new disposable qube made from that one.
    DispVmOf(Qube),
}

/// What a column of a rule may say.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Token {
    /// `*`: every qube, dom0, and whatever else is no container.
    Any,
    /// `@anyvm`: the same without dom0.
    AnyVm,
    /// `@default`: the caller named no target.
    Default,
    /// `@tag:TAG`: qubes that have the tag.
    Tag(Name),
    /// `@type:TYPE`: qubes of that class, such as AppVM.
    Type(Name),
    /// `@dispvm:@tag:TAG`: disposable qubes that are made from one with the tag.
    DispVmTag(Name),
    /// `QUBE:*`: every container of a qube, or of dom0.
    Containers(Name),
    /// One place.
    Place(Place),
}

/// Where in a rule a token stands; not all may stand everywhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Column {
    /// Who calls.
    Source,
    /// Who is called.
    Target,
    /// `target=` and `default_target=`.
    Redirect,
    /// What the caller asked for.
    Intended,
}

impl fmt::Display for Column {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Column::Source => "a source",
            Column::Target => "a target",
            Column::Redirect => "the value of target= or default_target=",
            Column::Intended => "the target of a call",
        })
    }
}

/// Why a string is no token, or not where it stands.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// It begins with `@`, and is none.
    #[error("{0:?} is no token; those are @adminvm, @anyvm, @default, @dispvm, @tag: and @type:")]
    Unknown(String),
    /// It is one, and may not stand there.
    #[error("{token} cannot be {column}")]
    Column {
        /// The token.
        token: String,
        /// Where it stands.
        column: Column,
    },
    /// The name in it is none.
    #[error(transparent)]
    Name(#[from] NameError),
    /// The UUID in it is none.
    #[error("{0:?} is no UUID: 8, 4, 4, 4 and 12 hexadecimal digits, with a hyphen between")]
    Uuid(String),
    /// A container in something else than dom0 or a qube that is named.
    #[error("{0:?}: only dom0 and a qube that is named have containers here, as in work:mail")]
    ContainerOf(String),
}

impl Qube {
    fn parse(text: &str) -> Result<Self, TokenError> {
        match text.strip_prefix("uuid:") {
            // The crate reads other spellings, too (braces, no hyphens): what a policy says has one.
            Some(uuid) => match Uuid::try_parse(uuid) {
                Ok(parsed) if uuid.len() == 36 => Ok(Qube::Uuid(parsed)),
                _ => Err(TokenError::Uuid(shown(uuid))),
            },
            None => Ok(Qube::Name(Name::new(text)?)),
        }
    }
}

impl Place {
    /// Its qube, or dom0; `None` of what is still to be made, and of a qube of which there is no more than a UUID.
    pub fn qube_name(&self) -> Option<&str> {
        match self {
            Self::AdminVm => Some(DOM0),
            Self::Qube(Qube::Name(name)) | Self::Container { qube: name, .. } => Some(name.as_str()),
            Self::Qube(Qube::Uuid(_)) | Self::DispVm | Self::DispVmOf(_) => None,
        }
    }

    /// Reads the value of `target=` or `default_target=`.
    ///
    /// # Errors
    /// As [`TokenError`] says.
    pub fn redirect(text: &str) -> Result<Self, TokenError> {
        match Token::parse(text, Column::Redirect)? {
            Token::Place(place) => Ok(place),
            token => Err(TokenError::Column { token: token.to_string(), column: Column::Redirect }),
        }
    }

    /// Reads what a caller asked for: a place, or none (`None`) if it said nothing or `@default`. Older callers begin
    /// tokens with `$`.
    ///
    /// # Errors
    /// As [`TokenError`] says.
    pub fn intended(text: &str) -> Result<Option<Self>, TokenError> {
        let modern;
        let text = match text.strip_prefix('$') {
            Some(rest) => {
                modern = format!("@{rest}");
                &modern
            }
            None => text,
        };
        if text.is_empty() {
            return Ok(None);
        }
        match Token::parse(text, Column::Intended)? {
            Token::Default => Ok(None),
            Token::Place(place) => Ok(Some(place)),
            token => Err(TokenError::Column { token: token.to_string(), column: Column::Intended }),
        }
    }
}

impl Token {
    /// Reads a token.
    ///
    /// # Errors
    /// As [`TokenError`] says.
    pub fn parse(text: &str, column: Column) -> Result<Self, TokenError> {
        let token = Self::read(text)?;
        let allowed = match &token {
            Token::Any | Token::AnyVm | Token::Tag(_) | Token::Type(_) => {
                matches!(column, Column::Source | Column::Target)
            }
            Token::DispVmTag(_) | Token::Containers(_) => matches!(column, Column::Source | Column::Target),
            Token::Default => matches!(column, Column::Target | Column::Intended),
            Token::Place(Place::DispVm) => column != Column::Source,
            Token::Place(_) => true,
        };
        if allowed { Ok(token) } else { Err(TokenError::Column { token: token.to_string(), column }) }
    }

    fn read(text: &str) -> Result<Self, TokenError> {
        let place = match text {
            "*" => return Ok(Token::Any),
            "@anyvm" => return Ok(Token::AnyVm),
            "@default" => return Ok(Token::Default),
            "@adminvm" | "dom0" => Place::AdminVm,
            "@dispvm" => Place::DispVm,
            _ => {
                if let Some(tag) = text.strip_prefix("@tag:") {
                    return Ok(Token::Tag(Name::new(tag)?));
                } else if let Some(class) = text.strip_prefix("@type:") {
                    return Ok(Token::Type(Name::new(class)?));
                } else if let Some(tag) = text.strip_prefix("@dispvm:@tag:") {
                    return Ok(Token::DispVmTag(Name::new(tag)?));
                } else if let Some(base) = text.strip_prefix("@dispvm:") {
                    Place::DispVmOf(Qube::parse(base)?)
                } else if text.starts_with('@') {
                    return Err(TokenError::Unknown(shown(text)));
                } else if text.starts_with("uuid:") {
                    match Qube::parse(text)? {
                        // dom0's, whatever is known of the qubes.
                        Qube::Uuid(uuid) if uuid.is_nil() => Place::AdminVm,
                        qube => Place::Qube(qube),
                    }
                } else if let Some((qube, container)) = text.split_once(':') {
                    return Self::container(text, qube, container);
                } else {
                    Place::Qube(Qube::parse(text)?)
                }
            }
        };
        Ok(Token::Place(place))
    }

    fn container(text: &str, qube: &str, container: &str) -> Result<Self, TokenError> {
        // `*:mail` would be a grant to qubes that are not there yet.
        if qube == "*" {
            return Err(TokenError::ContainerOf(shown(text)));
        }
        let qube = Name::new(qube)?;
        if container == "*" {
            return Ok(Token::Containers(qube));
        }
        crate::name::check(text, crate::name::MAX_NAME, |_| true)?;
        Ok(Token::Place(Place::Container { qube, container: Name::new(container)? }))
    }
}

impl fmt::Display for Qube {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Qube::Name(name) => name.fmt(f),
            Qube::Uuid(uuid) => write!(f, "uuid:{uuid}"),
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::AdminVm => f.write_str("@adminvm"),
            Place::Qube(qube) => qube.fmt(f),
            Place::Container { qube, container } => write!(f, "{qube}:{container}"),
            Place::DispVm => f.write_str("@dispvm"),
            Place::DispVmOf(base) => write!(f, "@dispvm:{base}"),
        }
    }
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Token::Any => f.write_str("*"),
            Token::AnyVm => f.write_str("@anyvm"),
            Token::Default => f.write_str("@default"),
            Token::Tag(tag) => write!(f, "@tag:{tag}"),
            Token::Type(class) => write!(f, "@type:{class}"),
            Token::DispVmTag(tag) => write!(f, "@dispvm:@tag:{tag}"),
            Token::Containers(qube) => write!(f, "{qube}:*"),
            Token::Place(place) => place.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const UUID: &str = "uuid:12345678-abcd-abcd-abcd-12345678abcd";

    #[test]
    fn every_token_stands_where_the_format_lets_it() {
        // The table of the format's documentation, and two lines for containers.
        let table = [
            // token, source, target, redirect, intended
            ("work", true, true, true, true),
            (UUID, true, true, true, true),
            ("@adminvm", true, true, true, true),
            ("@anyvm", true, true, false, false),
            ("*", true, true, false, false),
            ("@default", false, true, false, true),
            ("@dispvm", false, true, true, true),
            ("@dispvm:work", true, true, true, true),
            ("@dispvm:uuid:12345678-abcd-abcd-abcd-12345678abcd", true, true, true, true),
            ("@dispvm:@tag:red", true, true, false, false),
            ("@tag:red", true, true, false, false),
            ("@type:AppVM", true, true, false, false),
            ("work:mail", true, true, true, true),
            ("work:*", true, true, false, false),
            ("dom0:update", true, true, true, true),
            ("dom0:*", true, true, false, false),
        ];
        for (text, source, target, redirect, intended) in table {
            for (column, allowed) in [
                (Column::Source, source),
                (Column::Target, target),
                (Column::Redirect, redirect),
                (Column::Intended, intended),
            ] {
                match Token::parse(text, column) {
                    Ok(token) => {
                        assert!(allowed, "{text} as {column}");
                        assert_eq!(token.to_string(), text);
                    }
                    Err(error) => {
                        assert!(!allowed, "{text} as {column}: {error}");
                        assert!(matches!(error, TokenError::Column { .. }), "{error}");
                    }
                }
            }
        }
    }

    #[test]
    fn dom0_is_the_adminvm() {
        for text in ["dom0", "uuid:00000000-0000-0000-0000-000000000000"] {
            assert_eq!(Token::parse(text, Column::Source).unwrap(), Token::Place(Place::AdminVm));
        }
    }

    #[test]
    fn what_is_no_token_is_refused() {
        for text in [
            "",
            "@",
            "@anyvmm",
            "@@anyvm",
            "@tag:",
            "@type:",
            "@dispvm:",
            "@dispvm:@tag:",
            "test-m@e",
            "**",
            "any&vm",
            "t=est",
            "uuuid:12345678-abcd-abcd-abcd-12345678abcd:x",
            "uuid:",
            "uuid:work",
            "uuid::12345678-abcd-abcd-abcd-12345678abcd",
            "uuid:12345678abcdabcdabcd12345678abcd",
            "uuid:g2345678-abcd-abcd-abcd-12345678abcd",
            "@dispvm:uuid:12345678-abcd-abcd-abcd-12345678abcd1",
            "work:",
            ":mail",
            "work:mail:x",
            "work:*x",
            "*:mail",
            "*:*",
            "@anyvm:*",
            "@tag:a:*",
            "@adminvm:x",
            "uuid:00000000-0000-0000-0000-000000000000:x",
            "@dispvm:work:mail",
        ] {
            assert!(Token::parse(text, Column::Target).is_err(), "{text}");
        }
        assert!(Token::parse(&format!("{}:{}", "q".repeat(31), "c".repeat(31)), Column::Target).is_ok());
        assert!(Token::parse(&format!("{}:{}", "q".repeat(31), "c".repeat(32)), Column::Target).is_err());
    }

    #[test]
    fn a_caller_may_name_nothing_and_use_the_old_sign() {
        assert_eq!(Place::intended("").unwrap(), None);
        assert_eq!(Place::intended("$default").unwrap(), None);
        assert_eq!(Place::intended("$dispvm").unwrap(), Some(Place::DispVm));
        assert_eq!(Place::intended("$adminvm").unwrap(), Some(Place::AdminVm));
        assert!(Place::intended("$anyvm").is_err());
        assert!(Place::intended("work\n").is_err());
    }
}
