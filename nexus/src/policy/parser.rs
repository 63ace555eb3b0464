//! The text of one file: lines, fields, and what they say.
//!
//! Two languages share it: format 5.0, and the older one, whose rules have neither service nor argument (those are said
//! by whoever includes the file).

use super::error::{Fault, PolicyError};
use super::rule::{Action, Origin, Rule};
use super::service::{ArgumentColumn, ServiceColumn};
use super::token::{Column, Place, Token};
use crate::name::{self, shown};
use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// What a line says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Statement {
    /// A rule.
    Rule(Rule),
    /// Something to be read in its place.
    Include {
        /// What.
        what: Include,
        /// Where the path (or the directive) stands: line and column.
        place: (usize, usize),
    },
}

/// A directive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Include {
    /// `!include FILE`.
    File(PathBuf),
    /// `!include-dir FOLDER`.
    Folder(PathBuf),
    /// `!include-service SERVICE ARGUMENT FILE`: a file without those columns.
    Service {
        /// The service of its rules.
        service: ServiceColumn,
        /// Their argument.
        argument: ArgumentColumn,
        /// The file.
        file: PathBuf,
    },
    /// `!compat-4.0`: the folder of the older format.
    Compat40,
}

/// The language of a file.
#[derive(Debug, Clone)]
pub enum Language {
    /// Format 5.0.
    Five,
    /// Rules without service and argument, which are these.
    ForService(ServiceColumn, ArgumentColumn),
}

/// Reads one file's text. All its faults are told of, not only the first.
///
/// # Errors
/// Every line that is neither a comment nor a rule nor a directive, with line and column.
pub fn parse(text: &str, file: &Arc<Path>, language: &Language) -> Result<Vec<Statement>, Vec<PolicyError>> {
    let (mut statements, mut errors) = (Vec::new(), Vec::new());
    for (index, text) in text.lines().enumerate() {
        let line = Line { fields: fields(text), length: text.chars().count(), file, number: index + 1 };
        match line.fields.first() {
            None => {}
            Some(first) if first.text.starts_with('#') => {}
            Some(_) => match line.statement(language) {
                Ok(statement) => statements.push(statement),
                Err(error) => errors.push(error),
            },
        }
    }
    if errors.is_empty() { Ok(statements) } else { Err(errors) }
}

/// A word, and its column counted from 1, in characters.
#[derive(Debug, Clone, Copy)]
struct Field<'t> {
    text: &'t str,
    column: usize,
}

fn fields(text: &str) -> Vec<Field<'_>> {
    let (mut fields, mut column, mut rest) = (Vec::new(), 1, text);
    loop {
        let begin = rest.find(|c: char| !c.is_ascii_whitespace()).unwrap_or(rest.len());
        // White space is ASCII: a byte is a column.
        column += begin;
        rest = &rest[begin..];
        if rest.is_empty() {
            return fields;
        }
        let end = rest.find(|c: char| c.is_ascii_whitespace()).unwrap_or(rest.len());
        fields.push(Field { text: &rest[..end], column });
        column += rest[..end].chars().count();
        rest = &rest[end..];
    }
}

struct Line<'t> {
    fields: Vec<Field<'t>>,
    length: usize,
    file: &'t Arc<Path>,
    number: usize,
}

impl<'t> Line<'t> {
    fn error(&self, column: usize, fault: impl Into<Fault>) -> PolicyError {
        fault.into().at(self.file, self.number, column)
    }

    fn field(
        &self,
        index: usize,
        after: &'static str,
        missing: &'static str,
    ) -> Result<Field<'t>, PolicyError> {
        self.fields
            .get(index)
            .copied()
            .ok_or_else(|| self.error(self.length + 1, Fault::Missing { after, missing }))
    }

    fn end(&self, fields: usize) -> Result<(), PolicyError> {
        match self.fields.get(fields) {
            Some(field) => Err(self.error(field.column, Fault::Surplus(shown(field.text)))),
            None => Ok(()),
        }
    }

    fn statement(&self, language: &Language) -> Result<Statement, PolicyError> {
        let first = self.fields[0];
        let older = matches!(language, Language::ForService(..));
        let (word, colon) = match first.text {
            // The older language's spellings of !include.
            "@include" | "$include" if older => ("!include", None),
            text if older && (text.starts_with("@include:") || text.starts_with("$include:")) => {
                ("!include", text.split_once(':'))
            }
            text => (text, None),
        };
        if !word.starts_with('!') {
            return self.rule(language).map(Statement::Rule);
        }
        let path = |index| self.field(index, "the directive", "a path");
        let (what, place) = match word {
            "!include" => {
                if let Some((_, path)) = colon {
                    self.end(1)?;
                    if path.is_empty() {
                        let fault = Fault::Missing { after: "the directive", missing: "a path" };
                        return Err(self.error(self.length + 1, fault));
                    }
                    (Include::File(path.into()), first.column)
                } else {
                    let path = path(1)?;
                    self.end(2)?;
                    (Include::File(path.text.into()), path.column)
                }
            }
            "!include-dir" => {
                let path = path(1)?;
                self.end(2)?;
                (Include::Folder(path.text.into()), path.column)
            }
            "!include-service" if older => {
                return Err(self.error(first.column, Fault::NotHere("!include-service")));
            }
            "!include-service" => {
                let (service, argument) = self.service(1)?;
                let path = path(3)?;
                self.end(4)?;
                (Include::Service { service, argument, file: path.text.into() }, path.column)
            }
            "!compat-4.0" if older => return Err(self.error(first.column, Fault::NotHere("!compat-4.0"))),
            "!compat-4.0" => {
                self.end(1)?;
                (Include::Compat40, first.column)
            }
            other => return Err(self.error(first.column, Fault::Directive(shown(other)))),
        };
        Ok(Statement::Include { what, place: (self.number, place) })
    }

    /// Service and argument, from this field on.
    fn service(&self, index: usize) -> Result<(ServiceColumn, ArgumentColumn), PolicyError> {
        let field = self.field(index, "the directive", "a service")?;
        let service = ServiceColumn::parse(field.text).map_err(|e| self.error(field.column, e))?;
        let field = self.field(index + 1, "the service", "its argument: *, +ARGUMENT or +")?;
        let argument =
            ArgumentColumn::parse(field.text, &service).map_err(|e| self.error(field.column, e))?;
        Ok((service, argument))
    }

    fn rule(&self, language: &Language) -> Result<Rule, PolicyError> {
        let ((service, argument), next) = match language {
            Language::Five => (self.service(0)?, 2),
            Language::ForService(service, argument) => ((service.clone(), argument.clone()), 0),
        };
        let older = matches!(language, Language::ForService(..));
        let token = |field: Field<'_>, column| {
            let text = modern(field.text, older);
            Token::parse(&text, column).map_err(|error| self.error(field.column, error))
        };
        let source = token(self.field(next, "the argument", "a source")?, Column::Source)?;
        let target_field = self.field(next + 1, "the source", "a target")?;
        let target = token(target_field, Column::Target)?;
        let word = self.field(next + 2, "the target", "allow, deny or ask")?;
        let mut words = self.fields[next + 2..].to_vec();
        if older {
            // `ask,default_target=work`: the older language may have commas instead of white space.
            words = words.into_iter().flat_map(commas).collect();
        }
        let Some((action, parameters)) = words.split_first() else {
            return Err(self.error(word.column, Fault::Action(shown(word.text))));
        };
        let action = self.action(*action, parameters, older)?;
        if target == Token::Default && matches!(action, Action::Allow { target: None, .. }) {
            return Err(self.error(target_field.column, Fault::AllowDefault));
        }
        let container = match action.redirect() {
            Some(place) => matches!(place, Place::Container { .. }),
            None => matches!(target, Token::Place(Place::Container { .. }) | Token::Containers(_)),
        };
        if let Some(user) = parameters.iter().find(|field| container && field.text.starts_with("user=")) {
            return Err(self.error(user.column, Fault::ContainerUser));
        }
        let origin = Origin { file: self.file.clone(), line: self.number };
        Ok(Rule { service, argument, source, target, action, origin })
    }

    fn action(&self, word: Field<'_>, parameters: &[Field<'_>], older: bool) -> Result<Action, PolicyError> {
        let (action, known, notify) = match word.text {
            "allow" => ("allow", "target, user, notify and autostart", false),
            "deny" => ("deny", "notify", true),
            "ask" => ("ask", "target, default_target, user, notify and autostart", false),
            other => return Err(self.error(word.column, Fault::Action(shown(other)))),
        };
        let mut seen = HashSet::new();
        let (mut target, mut default_target, mut user) = (None, None, None);
        let (mut notify, mut autostart) = (notify, true);
        for field in parameters {
            let at = field.column;
            let Some((key, value)) = field.text.split_once('=') else {
                return Err(self.error(at, Fault::NoParameter(shown(field.text))));
            };
            let value_at = at + key.chars().count() + 1;
            let place = || {
                let value = modern(value, older);
                Place::redirect(&value).map(Some).map_err(|error| self.error(value_at, error))
            };
            let yes_no = |key| match value {
                "yes" => Ok(true),
                "no" => Ok(false),
                _ => Err(self.error(value_at, Fault::YesNo { key, value: shown(value) })),
            };
            match (key, action) {
                ("notify", _) => notify = yes_no("notify")?,
                ("autostart", "allow" | "ask") => autostart = yes_no("autostart")?,
                ("target", "allow" | "ask") => target = place()?,
                ("default_target", "ask") => default_target = place()?,
                ("user", "allow" | "ask") => {
                    user = Some(user_name(value).map_err(|fault| self.error(value_at, fault))?);
                }
                _ => return Err(self.error(at, Fault::Parameter { action, key: shown(key), known })),
            }
            if !seen.insert(key) {
                return Err(self.error(at, Fault::Twice(key.to_owned())));
            }
        }
        Ok(match action {
            "allow" => Action::Allow { target, user, notify, autostart },
            "deny" => Action::Deny { notify },
            _ => Action::Ask { target, default_target, user, notify, autostart },
        })
    }
}

/// A user goes into a command line `USER:COMMAND`: a colon or a blank in it would make it another one.
fn user_name(text: &str) -> Result<Arc<str>, Fault> {
    name::check(text, 255, |c| c.is_ascii_graphic() && !":/=,".contains(c)).map_err(Fault::User)?;
    Ok(text.into())
}

/// A token of the older language, whose tokens begin with `$` or `@`.
fn modern(text: &str, older: bool) -> String {
    if older { text.replace('$', "@") } else { text.to_owned() }
}

fn commas(field: Field<'_>) -> Vec<Field<'_>> {
    let mut column = field.column;
    let mut parts = Vec::new();
    for text in field.text.split(',') {
        if !text.is_empty() {
            parts.push(Field { text, column });
        }
        column += text.chars().count() + 1;
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::name::NameError;
    use crate::policy::service::ServiceError;
    use crate::policy::token::TokenError;

    fn file() -> Arc<Path> {
        Path::new("30-user.policy").into()
    }

    fn five(text: &str) -> Result<Vec<Statement>, Vec<PolicyError>> {
        parse(text, &file(), &Language::Five)
    }

    fn older(text: &str) -> Result<Vec<Statement>, Vec<PolicyError>> {
        let service = ServiceColumn::parse("q.T").unwrap();
        parse(text, &file(), &Language::ForService(service, ArgumentColumn::Any))
    }

    /// The only fault of a line, with its column.
    fn fault(text: &str) -> (usize, Fault) {
        let mut errors = five(text).unwrap_err();
        let error = errors.pop().unwrap();
        assert!(errors.is_empty());
        assert_eq!(error.place.unwrap().0, 1);
        (error.place.unwrap().1, error.fault)
    }

    #[test]
    fn rules_are_read_and_written_back() {
        for text in [
            "* * source dest deny",
            "* * source dest deny notify=no",
            "* * source dest allow target=example user=user notify=yes autostart=no",
            "* * source dest ask target=example default_target=test user=user notify=yes autostart=no",
            "local.Service + source @adminvm allow target=@adminvm",
            "local.Service ++_-.arg source dest allow target=@dispvm:test",
            "qrexec_Service + source dest allow target=uuid:12345678-abcd-abcd-abcd-12345678abcd",
            "q.S * @dispvm:source @dispvm:@tag:source deny",
            "q.S * @tag:red @type:AppVM deny",
            "nexus.Get +key work:mail vault:* allow",
            "nexus.Get +key work:* @default allow target=vault:gpg",
        ] {
            let statements = five(text).unwrap();
            let [Statement::Rule(rule)] = &statements[..] else { panic!("{text}") };
            assert_eq!(rule.to_string(), text);
            assert_eq!(rule.origin, Origin { file: file(), line: 1 });
        }
    }

    #[test]
    fn defaults_are_left_out_when_written() {
        for (text, short) in [
            ("* * a b deny notify=yes", "* * a b deny"),
            ("* * a dom0 ask notify=no autostart=yes", "* * a @adminvm ask"),
        ] {
            let [Statement::Rule(rule)] = &five(text).unwrap()[..] else { panic!("{text}") };
            assert_eq!(rule.to_string(), short);
        }
    }

    #[test]
    fn comments_and_white_space_say_nothing() {
        let text = "\n# comment\n  \t# ö\n\t\tservice\t\t*  @anyvm\t@anyvm deny \t\r\n";
        let statements = five(text).unwrap();
        let [Statement::Rule(rule)] = &statements[..] else { panic!() };
        assert_eq!(rule.origin.line, 4);
    }

    #[test]
    fn directives_are_read() {
        let text = "!include file_+-.test\n !include-dir  /dir/dir\n!include-service * * f\n!include-service a ++b f\n!compat-4.0";
        let what: Vec<_> = five(text)
            .unwrap()
            .into_iter()
            .map(|statement| match statement {
                Statement::Include { what, place } => (what, place),
                Statement::Rule(rule) => panic!("{rule}"),
            })
            .collect();
        let service = ServiceColumn::parse("a").unwrap();
        let argument = ArgumentColumn::parse("++b", &service).unwrap();
        assert_eq!(
            what,
            [
                (Include::File("file_+-.test".into()), (1, 10)),
                (Include::Folder("/dir/dir".into()), (2, 16)),
                (
                    Include::Service {
                        service: ServiceColumn::Any,
                        argument: ArgumentColumn::Any,
                        file: "f".into()
                    },
                    (3, 22)
                ),
                (Include::Service { service, argument, file: "f".into() }, (4, 24)),
                (Include::Compat40, (5, 1)),
            ]
        );
    }

    #[test]
    fn a_fault_is_told_of_with_its_column() {
        let missing = |after, missing| Fault::Missing { after, missing };
        let character = |text: &str, character| NameError::Character { text: text.into(), character };
        for (text, column, expected) in [
            ("test", 5, missing("the service", "its argument: *, +ARGUMENT or +")),
            ("q.T *", 6, missing("the argument", "a source")),
            ("q.T * @anyvm", 13, missing("the source", "a target")),
            ("q.T * source dest", 18, missing("the target", "allow, deny or ask")),
            ("!include", 9, missing("the directive", "a path")),
            ("!include file err", 15, Fault::Surplus("err".into())),
            ("!compat-4.0 err", 13, Fault::Surplus("err".into())),
            ("!compat-4.0err", 1, Fault::Directive("!compat-4.0err".into())),
            ("!include-service service argument file", 26, ServiceError::NoPlus("argument".into()).into()),
            ("* + * * deny", 3, ServiceError::AnyServiceOneArgument("+".into()).into()),
            ("a/b * * * deny", 1, ServiceError::Name(character("a/b", '/')).into()),
            ("test +a/ * * deny", 6, ServiceError::Name(character("a/", '/')).into()),
            ("* * ** dest deny", 5, TokenError::Name(character("**", '*')).into()),
            ("* * ö ö deny", 5, TokenError::Name(character("ö", 'ö')).into()),
            ("* * a ö deny", 7, TokenError::Name(character("ö", 'ö')).into()),
            ("* * @anyvm @@anyvm deny", 12, TokenError::Unknown("@@anyvm".into()).into()),
            (
                "* * @default dest deny",
                5,
                TokenError::Column { token: "@default".into(), column: Column::Source }.into(),
            ),
            ("* * * * alloww", 9, Fault::Action("alloww".into())),
            (
                "* * * * deny user=x",
                14,
                Fault::Parameter { action: "deny", key: "user".into(), known: "notify" },
            ),
            (
                "* * * * allow default_target=x",
                15,
                Fault::Parameter {
                    action: "allow",
                    key: "default_target".into(),
                    known: "target, user, notify and autostart",
                },
            ),
            ("* * * * deny # why", 14, Fault::NoParameter("#".into())),
            ("* * * * ask notify=yes notify=no", 24, Fault::Twice("notify".into())),
            ("* * * * ask notify=", 20, Fault::YesNo { key: "notify", value: String::new() }),
            ("* * * * ask autostart=yess", 23, Fault::YesNo { key: "autostart", value: "yess".into() }),
            ("* * * * ask user=", 18, Fault::User(NameError::Empty)),
            ("* * * * ask user=a:b", 18, Fault::User(character("a:b", ':'))),
            ("* * * * ask target=", 20, TokenError::Name(NameError::Empty).into()),
            (
                "* * * * ask default_target=@tag:x",
                28,
                TokenError::Column { token: "@tag:x".into(), column: Column::Redirect }.into(),
            ),
            ("* * a @default allow", 7, Fault::AllowDefault),
            ("q.T * a b:c allow user=u", 19, Fault::ContainerUser),
            ("q.T * a b:* ask notify=yes user=u", 28, Fault::ContainerUser),
            ("q.T * a b allow user=u target=b:c", 17, Fault::ContainerUser),
            ("* * $anyvm dest deny", 5, TokenError::Name(character("$anyvm", '$')).into()),
        ] {
            assert_eq!(fault(text), (column, expected), "{text}");
        }
    }

    #[test]
    fn all_faults_of_a_file_are_told_of() {
        let errors = five("x\n* * * * deny\ny").unwrap_err();
        let lines: Vec<_> = errors.iter().map(|error| error.place.unwrap().0).collect();
        assert_eq!(lines, [1, 3]);
        assert_eq!(
            errors[0].to_string(),
            "30-user.policy:1:2: the service is followed by its argument: *, +ARGUMENT or +, which is missing"
        );
    }

    #[test]
    fn the_older_language_has_dollars_and_commas() {
        let text = "$anyvm $dispvm allow,target=$dispvm:x\n@tag:a $default ask default_target=b, user=c\n$include:/etc/x\n@include y\n!include z";
        let statements: Vec<_> = older(text)
            .unwrap()
            .into_iter()
            .map(|statement| match statement {
                Statement::Rule(rule) => rule.to_string(),
                Statement::Include { what, place } => format!("{what:?} {place:?}"),
            })
            .collect();
        assert_eq!(
            statements,
            [
                "q.T * @anyvm @dispvm allow target=@dispvm:x",
                "q.T * @tag:a @default ask default_target=b user=c",
                "File(\"/etc/x\") (3, 1)",
                "File(\"y\") (4, 10)",
                "File(\"z\") (5, 10)",
            ]
        );
        for bad in [
            "!compat-4.0",
            "!include-service a * f",
            "$include:",
            "@include",
            "a b",
            "a b ,",
            "q.T * a b deny",
        ] {
            assert!(older(bad).is_err(), "{bad}");
        }
    }
}
