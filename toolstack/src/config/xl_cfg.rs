//! The grammar of `xl.cfg`: from text to settings, each with the place where it was made.
//!
//! What is accepted is what libxlutil 4.17 accepts (libxlu_cfg_l.l and libxlu_cfg_y.y; a test asks it), oddities included:
//! names begin with a small letter, octal escapes vanish, `\x` is never valid, a comment needs its line end. The grammar
//! has forty lines and its oddities are those of a lexer, so lexer and parser are written by hand: a parser library would
//! describe neither the oddities nor the errors better, and line and column fall out of the lexer.
//!
//! ```text
//! file:       { [ assignment ] ( NEWLINE | ';' ) } [ assignment ]
//! assignment: NAME ( '=' | '+=' ) value
//! value:      STRING | NUMBER | '[' { NEWLINE } [ value { NEWLINE } { ',' { NEWLINE } value { NEWLINE } } [ ',' { NEWLINE } ] ] ']'
//! ```

use std::borrow::Cow;
use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

/// Lists in lists in lists: more than any configuration has.
const DEPTH_LIMIT: usize = 64;
/// What argument errors are said to be in.
const ARGUMENTS: &str = "command line";

/// A place in a configuration: `vm.cfg:3:14` when printed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Position {
    /// The file's name, or `command line`.
    pub source: Arc<str>,
    /// From 1. On the command line: the argument's number.
    pub line: usize,
    /// In characters, from 1.
    pub column: usize,
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.source, self.line, self.column)
    }
}

/// A text that is no `xl.cfg`; the first thing that is wrong with it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{position}: {kind}")]
pub struct SyntaxError {
    /// Where.
    pub position: Position,
    /// What.
    pub kind: SyntaxErrorKind,
}

/// What is wrong with a text.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SyntaxErrorKind {
    /// A character that begins nothing.
    #[error("unexpected character {0:?}")]
    Character(char),
    /// A minus sign, a parenthesis …: values of Python, which xend's configurations could use.
    #[error(
        "unexpected character {0:?} (only strings in quotes, whole numbers without a sign and lists are values)"
    )]
    Python(char),
    /// A name that begins with a capital.
    #[error("unexpected character {0:?} (names are written in small letters)")]
    Capital(char),
    /// The line ends of another system.
    #[error("the line ends in a carriage return (save the file with Unix line ends)")]
    CarriageReturn,
    /// A string without its closing quote on the same line.
    #[error("the string is not closed on its line")]
    OpenString,
    /// An escape sequence that does not exist.
    #[error("invalid escape sequence `\\{0}' in a string")]
    Escape(char),
    /// A comment that ends with the file.
    #[error("the comment on the last line needs a line end")]
    OpenComment,
    /// Bytes that are no UTF-8.
    #[error("the text is not UTF-8")]
    Encoding,
    /// Something in the wrong place.
    #[error("expected {expected}, found {found}")]
    Unexpected {
        /// What could stand here.
        expected: &'static str,
        /// What does.
        found: String,
    },
    /// Lists in lists, too many.
    #[error("lists are nested more than {DEPTH_LIMIT} deep")]
    Depth,
    /// `+=` of a list to a string, or the other way round.
    #[error("`{name}' was a {was} so far, a {given} cannot be added to it")]
    Addition {
        /// The setting.
        name: String,
        /// `string` or `list`.
        was: &'static str,
        /// `string` or `list`.
        given: &'static str,
    },
}

/// A value and where it begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Value {
    /// Where.
    pub position: Position,
    /// What.
    pub data: Data,
}

/// What a setting can be. Numbers are strings: `memory = 512` and `memory = "512"` are the same.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Data {
    /// A string or number.
    Text(String),
    /// A list, maybe of lists.
    List(Vec<Value>),
}

impl Data {
    fn kind(&self) -> &'static str {
        match self {
            Self::Text(_) => "string",
            Self::List(_) => "list",
        }
    }
}

/// A setting as it stands after the whole text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Setting {
    /// Its name.
    pub name: String,
    /// Where it was made last.
    pub position: Position,
    /// Whether that was with `+=`. (libxlutil does not take such a value for a number.)
    pub added: bool,
    /// Its value.
    pub value: Value,
}

/// The settings of a configuration, in the order in which they first appear. A later one of the same name replaces an
/// earlier one.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Settings {
    settings: Vec<Setting>,
}

impl Settings {
    /// Reads a text. `arguments` are the `key=value` words of a command line; they count as more lines, so that they win
    /// over the file's. A string among them needs no quotes, which the shell would have to be kept from: `name=work` (where
    /// `xl` wants `'name="work"'`, which does as well). `source` is the file's name in errors.
    ///
    /// # Errors
    /// The first thing that is wrong, with its place.
    ///
    /// ```
    /// use toolstack::config::Settings;
    ///
    /// let settings = Settings::parse("work.cfg", b"name = 'work'\nmemory = 256\n", &["memory=512"])?;
    /// assert_eq!(settings.text("memory"), Some("512"));
    /// let error = Settings::parse("work.cfg", b"name = work\n", &[] as &[&str]).unwrap_err();
    /// assert_eq!(error.to_string(), "work.cfg:1:8: expected a value, found the name `work'");
    /// # Ok::<(), toolstack::config::SyntaxError>(())
    /// ```
    pub fn parse<A: AsRef<str>>(source: &str, text: &[u8], arguments: &[A]) -> Result<Self, SyntaxError> {
        let mut text = text.to_vec();
        let file_end = text.len();
        if !arguments.is_empty() {
            text.push(b'\n');
            for argument in arguments {
                text.extend_from_slice(quoted(argument.as_ref()).as_bytes());
                text.push(b'\n');
            }
        }
        let places = Places::new(source, &text, file_end);
        let lexer = Lexer { text: &text, at: 0 };
        Parser { places, lexer, settings: Vec::new(), by_name: HashMap::new() }.file()
    }

    /// The setting of that name.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&Setting> {
        self.settings.iter().find(|setting| setting.name == name)
    }

    /// The value of the setting of that name, when it is there and no list.
    #[must_use]
    pub fn text(&self, name: &str) -> Option<&str> {
        match &self.get(name)?.value.data {
            Data::Text(text) => Some(text),
            Data::List(_) => None,
        }
    }

    /// All settings.
    pub fn iter(&self) -> impl Iterator<Item = &Setting> {
        self.settings.iter()
    }
}

/// A word of the command line as a line of a file: what is neither a number, a string in quotes nor a list is a string.
fn quoted(argument: &str) -> Cow<'_, str> {
    let Some((key, value)) = argument.split_once('=') else { return argument.into() };
    let number = value.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f' | b'x'))
        && value.starts_with(|first: char| first.is_ascii_digit());
    if number || value.is_empty() || value.starts_with(['"', '\'', '[']) {
        return argument.into();
    }
    format!("{key}=\"{}\"", value.replace('\\', "\\\\").replace('"', "\\\"")).into()
}

/// Finds line and column of a byte, however long text and line are.
struct Places {
    source: Arc<str>,
    arguments: Arc<str>,
    /// Where the file's text ends and the line end before the arguments begins.
    file_end: usize,
    /// Where each line begins.
    lines: Vec<usize>,
    text: Box<[u8]>,
    /// The characters before each [`STRIDE`]th byte.
    characters: Vec<usize>,
}

/// Bytes of which characters are counted one by one.
const STRIDE: usize = 64;

impl Places {
    fn new(source: &str, text: &[u8], file_end: usize) -> Self {
        let ends = text.iter().enumerate().filter(|(_, byte)| **byte == b'\n').map(|(at, _)| at + 1);
        let characters = text.chunks(STRIDE).scan(0, |before, chunk| {
            let here = *before;
            *before += count_characters(chunk);
            Some(here)
        });
        Self {
            source: source.into(),
            arguments: ARGUMENTS.into(),
            file_end,
            lines: std::iter::once(0).chain(ends).collect(),
            text: text.into(),
            characters: characters.collect(),
        }
    }

    fn position(&self, at: usize) -> Position {
        // From 1: the number of lines that begin at or before it.
        let line = self.lines.partition_point(|start| *start <= at);
        let column = self.characters_before(at) - self.characters_before(self.lines[line - 1]) + 1;
        // An error at the very end of the file is the file's, although the arguments begin there.
        if at <= self.file_end {
            return Position { source: Arc::clone(&self.source), line, column };
        }
        let lines_of_file = self.lines.partition_point(|start| *start <= self.file_end);
        Position { source: Arc::clone(&self.arguments), line: line - lines_of_file, column }
    }

    fn characters_before(&self, at: usize) -> usize {
        let Some(counted) = self.characters.get(at / STRIDE) else {
            // The end of a text of whole strides.
            return self
                .characters
                .last()
                .map_or(0, |last| last + count_characters(&self.text[at - STRIDE..]));
        };
        counted + count_characters(&self.text[at / STRIDE * STRIDE..at])
    }

    fn error(&self, at: usize, kind: SyntaxErrorKind) -> SyntaxError {
        SyntaxError { position: self.position(at), kind }
    }
}

/// The bytes that begin a character of UTF-8.
fn count_characters(text: &[u8]) -> usize {
    text.iter().filter(|byte| **byte & 0b1100_0000 != 0b1000_0000).count()
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Token {
    Name(String),
    Text(String),
    Number(String),
    Equals,
    PlusEquals,
    Comma,
    Open,
    Close,
    Semicolon,
    Newline,
    End,
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => write!(f, "the name `{name}'"),
            Self::Text(text) => write!(f, "the string {text:?}"),
            Self::Number(number) => write!(f, "the number {number}"),
            Self::Equals => f.write_str("`='"),
            Self::PlusEquals => f.write_str("`+='"),
            Self::Comma => f.write_str("`,'"),
            Self::Open => f.write_str("`['"),
            Self::Close => f.write_str("`]'"),
            Self::Semicolon => f.write_str("`;'"),
            Self::Newline => f.write_str("the end of the line"),
            Self::End => f.write_str("the end of the file"),
        }
    }
}

/// An error at a byte of the text.
type At<T> = Result<T, (usize, SyntaxErrorKind)>;

struct Lexer<'a> {
    text: &'a [u8],
    at: usize,
}

impl Lexer<'_> {
    /// The next token and where it begins.
    fn next(&mut self) -> At<(usize, Token)> {
        while let Some(b' ' | b'\t') = self.text.get(self.at) {
            self.at += 1;
        }
        let start = self.at;
        let Some(first) = self.text.get(start).copied() else { return Ok((start, Token::End)) };
        self.at += 1;
        let token = match first {
            b'a'..=b'z' => {
                Token::Name(self.word(start, |byte| matches!(byte, b'.' | b'_' | b'0'..=b'9' | b'a'..=b'z')))
            }
            b'0'..=b'9' => {
                Token::Number(self.word(start, |byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f' | b'x')))
            }
            b',' => Token::Comma,
            b'[' => Token::Open,
            b']' => Token::Close,
            b'=' => Token::Equals,
            b';' => Token::Semicolon,
            b'\n' => Token::Newline,
            b'+' if self.text.get(self.at) == Some(&b'=') => {
                self.at += 1;
                Token::PlusEquals
            }
            b'#' => {
                let rest = &self.text[self.at..];
                let newline = rest.iter().position(|byte| *byte == b'\n');
                self.at += newline.ok_or((start, SyntaxErrorKind::OpenComment))? + 1;
                Token::Newline
            }
            b'\'' | b'"' => Token::Text(self.string(start, first)?),
            _ => return Err((start, self.unexpected(start))),
        };
        Ok((start, token))
    }

    /// Goes on while `of_word` holds.
    fn word(&mut self, start: usize, of_word: impl Fn(u8) -> bool) -> String {
        while self.text.get(self.at).is_some_and(|byte| of_word(*byte)) {
            self.at += 1;
        }
        // All of these bytes are ASCII.
        String::from_utf8_lossy(&self.text[start..self.at]).into_owned()
    }

    /// What is wrong with a character that begins no token.
    fn unexpected(&self, at: usize) -> SyntaxErrorKind {
        let rest = &self.text[at..];
        let Some(char) = rest.utf8_chunks().next().and_then(|chunk| chunk.valid().chars().next()) else {
            return SyntaxErrorKind::Encoding;
        };
        match char {
            '\r' => SyntaxErrorKind::CarriageReturn,
            'A'..='Z' => SyntaxErrorKind::Capital(char),
            '+' | '-' | '.' | '(' | ')' | ':' => SyntaxErrorKind::Python(char),
            _ => SyntaxErrorKind::Character(char),
        }
    }

    /// The rest of a string that began with `quote` at `start`.
    fn string(&mut self, start: usize, quote: u8) -> At<String> {
        let open = (start, SyntaxErrorKind::OpenString);
        let mut bytes = Vec::new();
        loop {
            let at = self.at;
            match *self.text.get(at).ok_or_else(|| open.clone())? {
                b'\n' => return Err(open),
                // libxlutil's string would end here and not be closed.
                0 => return Err((at, SyntaxErrorKind::Character('\0'))),
                byte if byte == quote => {
                    self.at += 1;
                    return String::from_utf8(bytes).map_err(|_| (start, SyntaxErrorKind::Encoding));
                }
                b'\\' => {
                    self.at += 2;
                    match self.text.get(at + 1) {
                        None | Some(b'\n') => return Err(open),
                        Some(escape) => bytes.extend(self.escape(at, *escape)?),
                    }
                }
                byte => {
                    bytes.push(byte);
                    self.at += 1;
                }
            }
        }
    }

    /// What the escape sequence at `at` stands for.
    fn escape(&mut self, at: usize, escape: u8) -> At<Option<u8>> {
        Ok(Some(match escape {
            b'"' | b'\'' | b'\\' => escape,
            b'a' => 7,
            b'b' => 8,
            b'f' => 12,
            b'n' => b'\n',
            b'r' => b'\r',
            b't' => b'\t',
            b'v' => 11,
            // Nothing comes of it: libxlutil reads what follows as a decimal number of 2 or 3 characters and drops it.
            b'0'..=b'7' => match decimal(&self.text[self.at..]) {
                Some(length) => {
                    self.at += length;
                    return Ok(None);
                }
                None => return Err((at, SyntaxErrorKind::Escape(escape.into()))),
            },
            // `\x` too: libxlutil wants two digits and never finds them.
            _ => {
                let rest = &self.text[at + 1..];
                let char = rest.utf8_chunks().next().and_then(|chunk| chunk.valid().chars().next());
                return Err((at, char.map_or(SyntaxErrorKind::Encoding, SyntaxErrorKind::Escape)));
            }
        }))
    }
}

/// How many of the first three characters strtoul(3) takes for a number, when that is more than one.
fn decimal(text: &[u8]) -> Option<usize> {
    let text = &text[..text.len().min(3)];
    let blanks = text.iter().take_while(|byte| matches!(byte, b' ' | b'\t' | 11 | 12 | b'\r')).count();
    let sign = usize::from(matches!(text.get(blanks), Some(b'+' | b'-')));
    let digits = text[blanks + sign..].iter().take_while(|byte| byte.is_ascii_digit()).count();
    let length = blanks + sign + digits;
    (digits > 0 && length > 1).then_some(length)
}

struct Parser<'a> {
    places: Places,
    lexer: Lexer<'a>,
    settings: Vec<Setting>,
    by_name: HashMap<String, usize>,
}

impl Parser<'_> {
    fn file(mut self) -> Result<Settings, SyntaxError> {
        loop {
            match self.next()? {
                (_, Token::End) => return Ok(Settings { settings: self.settings }),
                (_, Token::Newline | Token::Semicolon) => {}
                (at, Token::Name(name)) => {
                    self.assignment(at, name)?;
                    match self.next()? {
                        (_, Token::Newline | Token::Semicolon) => {}
                        (_, Token::End) => return Ok(Settings { settings: self.settings }),
                        (at, found) => return Err(self.unexpected(at, "`;' or the end of the line", &found)),
                    }
                }
                (at, found) => return Err(self.unexpected(at, "a name", &found)),
            }
        }
    }

    fn assignment(&mut self, at: usize, name: String) -> Result<(), SyntaxError> {
        let added = match self.next()? {
            (_, Token::Equals) => false,
            (_, Token::PlusEquals) => true,
            (at, found) => return Err(self.unexpected(at, "`=' or `+='", &found)),
        };
        let (value_at, token) = self.next()?;
        let value = self.value(value_at, token, 0)?;
        let position = self.places.position(at);
        self.store(Setting { name, position, added, value })
    }

    fn store(&mut self, setting: Setting) -> Result<(), SyntaxError> {
        let Some(previous) = self.by_name.get(&setting.name).map(|place| &mut self.settings[*place]) else {
            self.by_name.insert(setting.name.clone(), self.settings.len());
            self.settings.push(setting);
            return Ok(());
        };
        if !setting.added {
            *previous = setting;
            return Ok(());
        }
        let given = setting.value.data.kind();
        match (&mut previous.value.data, setting.value.data) {
            (Data::Text(before), Data::Text(text)) => before.push_str(&text),
            (Data::List(before), Data::List(list)) => before.extend(list),
            (before, _) => {
                let kind = SyntaxErrorKind::Addition { name: setting.name, was: before.kind(), given };
                return Err(SyntaxError { position: setting.value.position, kind });
            }
        }
        (previous.position, previous.value.position) = (setting.position, setting.value.position);
        previous.added = true;
        Ok(())
    }

    fn value(&mut self, at: usize, token: Token, depth: usize) -> Result<Value, SyntaxError> {
        let data = match token {
            Token::Text(text) | Token::Number(text) => Data::Text(text),
            Token::Open if depth < DEPTH_LIMIT => Data::List(self.list(depth + 1)?),
            Token::Open => return Err(self.places.error(at, SyntaxErrorKind::Depth)),
            found => return Err(self.unexpected(at, "a value", &found)),
        };
        Ok(Value { position: self.places.position(at), data })
    }

    /// The rest of a list, its closing bracket included.
    fn list(&mut self, depth: usize) -> Result<Vec<Value>, SyntaxError> {
        let mut list = Vec::new();
        loop {
            // At the beginning, or after a comma.
            match self.next_on_any_line()? {
                (_, Token::Close) => return Ok(list),
                (at, token) => list.push(self.value(at, token, depth)?),
            }
            match self.next_on_any_line()? {
                (_, Token::Close) => return Ok(list),
                (_, Token::Comma) => {}
                (at, found) => return Err(self.unexpected(at, "`,' or `]'", &found)),
            }
        }
    }

    fn next_on_any_line(&mut self) -> Result<(usize, Token), SyntaxError> {
        loop {
            match self.next()? {
                (_, Token::Newline) => {}
                next => return Ok(next),
            }
        }
    }

    fn next(&mut self) -> Result<(usize, Token), SyntaxError> {
        self.lexer.next().map_err(|(at, kind)| self.places.error(at, kind))
    }

    fn unexpected(&self, at: usize, expected: &'static str, found: &Token) -> SyntaxError {
        self.places.error(at, SyntaxErrorKind::Unexpected { expected, found: found.to_string() })
    }
}

#[cfg(test)]
mod tests {
    use super::super::cpu_time::assert_takes_at_most;
    use super::*;
    use proptest::prelude::*;

    const NONE: &[&str] = &[];

    fn parse(text: &str) -> Result<Settings, SyntaxError> {
        Settings::parse("f", text.as_bytes(), NONE)
    }

    fn error(text: &str) -> String {
        parse(text).unwrap_err().to_string()
    }

    /// A list as it would be written, without the quotes.
    fn show(value: &Value) -> String {
        match &value.data {
            Data::Text(text) => text.clone(),
            Data::List(list) => format!("[{}]", list.iter().map(show).collect::<Vec<_>>().join(",")),
        }
    }

    fn value(text: &str, name: &str) -> String {
        show(&parse(text).unwrap().get(name).unwrap().value)
    }

    #[test]
    fn values_of_every_kind() {
        assert_eq!(value("a=1", "a"), "1");
        assert_eq!(value("a = 0x1f # hex\n", "a"), "0x1f");
        assert_eq!(value("a.b_9='x y'", "a.b_9"), "x y");
        assert_eq!(value("a=[]", "a"), "[]");
        assert_eq!(value("a=[ 1, 'b' , [2,],\n#c\n3\n,\n]", "a"), "[1,b,[2],3]");
        assert_eq!(value("a=1; b=2 ;; c=3", "c"), "3");
        assert!(parse("").unwrap().iter().next().is_none());
        assert!(parse("\n;;\n# comment\n").unwrap().iter().next().is_none());
    }

    #[test]
    fn later_settings_win_and_additions_add() {
        assert_eq!(value("a=1\na=2", "a"), "2");
        assert_eq!(value("a='x'\na+='y'\na+='z'", "a"), "xyz");
        assert_eq!(value("a=['x']\na+=['y']", "a"), "[x,y]");
        assert_eq!(value("a+='y'", "a"), "y");
        assert!(parse("a='x'\na+='y'").unwrap().get("a").unwrap().added);
        assert!(!parse("a+='y'\na='x'").unwrap().get("a").unwrap().added);
        assert_eq!(error("a=1\na+=[2]"), "f:2:4: `a' was a string so far, a list cannot be added to it");
        assert_eq!(error("a=[1]\na+='2'"), "f:2:4: `a' was a list so far, a string cannot be added to it");
    }

    #[test]
    fn escapes_are_those_of_libxlutil() {
        assert_eq!(value(r#"a="\"\'\\\n\r\t\v\a\b\f""#, "a"), "\"'\\\n\r\t\x0b\x07\x08\x0c");
        assert_eq!(value(r#"a="q\101z""#, "a"), "qz");
        assert_eq!(value(r#"a="q\1011z""#, "a"), "qz");
        assert_eq!(value(r#"a="q\1 1z""#, "a"), "qz");
        assert_eq!(value(r#"a="q\1-11z""#, "a"), "qz");
        assert_eq!(error(r#"a="q\12""#), "f:1:5: invalid escape sequence `\\1' in a string");
        assert_eq!(error(r#"a="\x41""#), "f:1:4: invalid escape sequence `\\x' in a string");
        assert_eq!(error(r#"a="\é""#), "f:1:4: invalid escape sequence `\\é' in a string");
    }

    #[test]
    fn errors_tell_line_column_and_what_was_expected() {
        assert_eq!(error("a=\n"), "f:1:3: expected a value, found the end of the line");
        assert_eq!(error("a=1\n  b\n"), "f:2:4: expected `=' or `+=', found the end of the line");
        assert_eq!(error("a=1 b=2"), "f:1:5: expected `;' or the end of the line, found the name `b'");
        assert_eq!(error("é"), "f:1:1: unexpected character 'é'");
        assert_eq!(error("a='é' ?"), "f:1:7: unexpected character '?'");
        assert_eq!(error("a=[1\n2]"), "f:2:1: expected `,' or `]', found the number 2");
        assert_eq!(error("a=[1,,2]"), "f:1:6: expected a value, found `,'");
        assert_eq!(error("a=[,]"), "f:1:4: expected a value, found `,'");
        assert_eq!(error("a=[1"), "f:1:5: expected `,' or `]', found the end of the file");
        assert_eq!(error("a='b"), "f:1:3: the string is not closed on its line");
        assert_eq!(error("a='b\n'"), "f:1:3: the string is not closed on its line");
        assert_eq!(error("a='b\\"), "f:1:3: the string is not closed on its line");
        assert_eq!(error("a=1 # no end"), "f:1:5: the comment on the last line needs a line end");
        assert_eq!(
            error("a=1\r\n"),
            "f:1:4: the line ends in a carriage return (save the file with Unix line ends)"
        );
        assert!(error("a=-1").starts_with("f:1:3: unexpected character '-' (only strings in quotes"));
        assert_eq!(error("Name='x'"), "f:1:1: unexpected character 'N' (names are written in small letters)");
        assert_eq!(error("= 1"), "f:1:1: expected a name, found `='");
        assert!(error(&format!("a={}", "[".repeat(1000))).contains("nested more than 64 deep"));
        let not_utf8 = Settings::parse("f", b"a='\xff'", NONE).unwrap_err();
        assert_eq!(not_utf8.to_string(), "f:1:3: the text is not UTF-8");
        assert_eq!(Settings::parse("f", b"\xff", NONE).unwrap_err().kind, SyntaxErrorKind::Encoding);
    }

    #[test]
    fn arguments_need_no_quotes() {
        let arguments = [
            "name=work",
            "uuid=12345678-1234-1234-1234-123456789abc",
            "extra+=a=\"b\" \\c",
            "memory=512",
            "kernel='/k'",
            "disk=['x']",
        ];
        let settings = Settings::parse("work.cfg", b"extra='x '", &arguments).unwrap();
        assert_eq!(settings.text("name"), Some("work"));
        assert_eq!(settings.text("uuid"), Some("12345678-1234-1234-1234-123456789abc"));
        assert_eq!(settings.text("extra"), Some("x a=\"b\" \\c"));
        assert_eq!(settings.text("memory"), Some("512"));
        assert_eq!(settings.text("kernel"), Some("/k"));
        assert!(matches!(settings.get("disk").unwrap().value.data, Data::List(_)));
        assert!(Settings::parse("work.cfg", b"", &["name="]).is_err());
    }

    #[test]
    fn arguments_are_more_lines() {
        let settings = Settings::parse("f", b"a=1\nb=[1] # c", &["a=2", "b+=[3]"]).unwrap();
        assert_eq!(
            (settings.text("a"), show(&settings.get("b").unwrap().value).as_str()),
            (Some("2"), "[1,3]")
        );
        assert_eq!(settings.get("a").unwrap().position.to_string(), "command line:1:1");
        let error = |text: &[u8]| Settings::parse("f", text, &["a=2", "b=["]).unwrap_err().to_string();
        assert_eq!(error(b"a=1"), "command line:3:1: expected a value, found the end of the file");
        assert_eq!(error(b"a="), "f:1:3: expected a value, found the end of the line");
    }

    #[test]
    fn a_long_text_takes_no_longer_than_its_length() {
        let many = |piece: &str| piece.repeat((1 << 18) / piece.len());
        let names: String = (0..25_000).map(|number| format!("a{number}=1\n")).collect();
        let texts = [
            names,
            many("a+='x'\n"),
            many("a+=['x']\n"),
            many("a=1;"),
            format!("a=[{}]", many("'é',")),
            format!("a=[{}]", many("1\n,")),
            format!("a='{}'", many("\\1 1")),
            many("\n"),
            many("#\n"),
            format!("a={}", many("[")),
        ];
        assert_takes_at_most(4, || {
            for text in texts {
                let _ = parse(&text);
            }
        });
    }

    #[test]
    fn places_are_right_wherever_a_stride_ends() {
        for blanks in 0..200 {
            let error = error(&format!("# é\n{}'é' ?", " ".repeat(blanks)));
            assert_eq!(error, format!("f:2:{}: expected a name, found the string \"é\"", blanks + 1));
            let text = format!("a='{}", "é".repeat(blanks));
            assert_eq!(Settings::parse("f", text.as_bytes(), NONE).unwrap_err().position.column, 3);
            let end = Settings::parse("f", format!("a{}=", " ".repeat(blanks)).as_bytes(), NONE).unwrap_err();
            assert_eq!(end.position.column, blanks + 3);
        }
    }

    proptest! {
        #[test]
        fn arbitrary_texts_never_panic(text in proptest::collection::vec(any::<u8>(), 0..100)) {
            let _ = Settings::parse("f", &text, NONE);
            let _ = Settings::parse("f", &text, &["a=1"]);
        }

        #[test]
        fn what_was_written_is_read(text in "[^\0\n]{0,20}", number in any::<u32>()) {
            let quoted = text.replace('\\', "\\\\").replace('"', "\\\"");
            let settings = parse(&format!("n = {number}\nl = [ \"{quoted}\", {number:#x}, ]")).unwrap();
            let number = number.to_string();
            prop_assert_eq!(settings.text("n"), Some(number.as_str()));
            let Data::List(list) = &settings.get("l").unwrap().value.data else { panic!("a list") };
            prop_assert_eq!(&list[0].data, &Data::Text(text));
        }
    }
}
