//! Names of qubes, containers, tags, types and services: what they may be made of.

use serde::{Deserialize, Serialize};
use std::borrow::Borrow;
use std::fmt;
use std::sync::Arc;

/// The longest name, in bytes: with its NUL it fills the target field of qrexec's `trigger_service_params3`.
pub const MAX_NAME: usize = 63;

/// A name that was checked: 1 to [`MAX_NAME`] of the characters `A-Z a-z 0-9 _ . -`.
///
/// It is cheap to clone, and needs no quoting in a path, a command line or a policy.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Name(Arc<str>);

/// Why a string is no name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// It has no characters.
    #[error("a name is missing")]
    Empty,
    /// It has more than [`MAX_NAME`] bytes.
    #[error("a name of {0} bytes; {MAX_NAME} are the most")]
    TooLong(usize),
    /// It has another character than those allowed.
    #[error("{character:?} in {text:?}; a name has letters, digits, '_', '.' and '-'")]
    Character {
        /// The whole, or its beginning.
        text: String,
        /// The first that is not allowed.
        character: char,
    },
    /// `.` and `..` are folders, and no names.
    #[error("{0:?} is a folder, and no name")]
    Folder(String),
}

impl Name {
    /// Checks a string.
    ///
    /// # Errors
    /// As [`NameError`] says.
    pub fn new(text: &str) -> Result<Self, NameError> {
        check(text, MAX_NAME, |c| c.is_ascii_alphanumeric() || "_.-".contains(c))?;
        Ok(Self(text.into()))
    }

    /// A name that is written in this program.
    pub(crate) fn from_static(text: &'static str) -> Self {
        debug_assert!(Self::new(text).is_ok(), "{text:?}");
        Self(text.into())
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Checks characters and length. The limit comes first: a hostile string is not walked through or repeated.
pub(crate) fn check(text: &str, most: usize, allowed: impl Fn(char) -> bool) -> Result<(), NameError> {
    if text.is_empty() {
        return Err(NameError::Empty);
    }
    if text.len() > most {
        return Err(NameError::TooLong(text.len()));
    }
    if let Some(character) = text.chars().find(|&c| !allowed(c)) {
        return Err(NameError::Character { text: shown(text), character });
    }
    if matches!(text, "." | "..") {
        return Err(NameError::Folder(text.to_owned()));
    }
    Ok(())
}

/// As much of a string as an error message shows.
pub(crate) fn shown(text: &str) -> String {
    match text.char_indices().nth(64) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&*self.0, f)
    }
}

impl Borrow<str> for Name {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl PartialEq<str> for Name {
    fn eq(&self, other: &str) -> bool {
        &*self.0 == other
    }
}

impl From<Name> for String {
    fn from(name: Name) -> Self {
        name.0.as_ref().to_owned()
    }
}

impl TryFrom<String> for Name {
    type Error = NameError;

    fn try_from(text: String) -> Result<Self, NameError> {
        Self::new(&text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_has_few_characters_and_an_end() {
        for good in ["work", "sys-net", "qubes.Filecopy", "a_1", &"x".repeat(63)] {
            assert_eq!(Name::new(good).unwrap().as_str(), good);
        }
        let bad = |text: &str| Name::new(text).unwrap_err();
        assert_eq!(bad(""), NameError::Empty);
        assert_eq!(bad(&"x".repeat(64)), NameError::TooLong(64));
        assert_eq!(bad(".."), NameError::Folder("..".into()));
        for (text, character) in [("a b", ' '), ("a/b", '/'), ("@work", '@'), ("wörk", 'ö'), ("a\0", '\0')]
        {
            assert_eq!(bad(text), NameError::Character { text: text.into(), character });
        }
    }
}
