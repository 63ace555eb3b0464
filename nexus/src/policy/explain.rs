//! Why a call is decided as it is: the rule that matched, and why those before it did not.

use super::call::{Call, Principal};
use super::compiled::{Mismatch, Policy};
use super::decision::{Decision, Denial};
use super::rule::Rule;
use super::system::{DOM0, System};
use super::token::{Place, Qube, Token};
use serde::Serialize;
use serde::ser::{SerializeStruct, Serializer};
use std::fmt;

/// A decision with its reasons.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Explanation {
    /// The call, as it was decided.
    pub call: Call,
    /// The target that the caller named, if it does not exist and was taken for none.
    pub unknown_target: Option<Place>,
    /// The rules of this service (or of any) before the one that matched, or all of them if none did.
    pub passed: Vec<Passed>,
    /// How many rules of other services stand before it.
    pub other_services: usize,
    /// The rule that matched.
    pub matched: Option<Rule>,
    /// What is decided.
    pub decision: Decision,
}

/// A rule that did not match.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Passed {
    /// The rule.
    pub rule: Rule,
    /// The first column that the call does not fit.
    pub column: Mismatch,
    /// Why not, in words.
    pub why: String,
}

impl Policy {
    /// Decides a call as [`Policy::decide`] does, and says why.
    pub fn explain(&self, call: &Call, system: &System) -> Explanation {
        let decision = self.decide(call, system);
        // Denied before a rule is looked at: for who calls, or for a disposable that cannot be.
        let unknown = decision.rule.is_none()
            && matches!(
                decision.verdict,
                super::Verdict::Deny(Denial::UnknownCaller(_) | Denial::NoSuchTarget(_))
            );
        let unknown_target = call.target.clone().filter(|place| {
            !matches!(place, Place::DispVm | Place::DispVmOf(_))
                && system.resolve(place, &call.source).is_none()
        });
        let target = if unknown_target.is_some() { None } else { call.target.clone() };
        let call = Call { target, ..call.clone() };
        let prepared = self.prepare(&call, system);
        let (mut passed, mut matched) = (Vec::new(), None);
        for index in self.candidates(&prepared).take_while(|_| !unknown) {
            let rule = &self.rules()[index];
            let Some(column) = self.mismatch(index, &prepared) else {
                matched = Some(index);
                break;
            };
            let why = match column {
                Mismatch::Argument => {
                    format!("the argument is +{}, not {}", call.service.argument(), rule.argument)
                }
                Mismatch::Source => why_no_caller(&rule.source, &call.source, system),
                Mismatch::Target => why_no_target(&rule.target, &call, system),
            };
            passed.push(Passed { rule: rule.clone(), column, why });
        }
        let before = matched.unwrap_or(self.rules().len());
        let other_services = if unknown { 0 } else { before - passed.len() };
        let matched = matched.map(|index| self.rules()[index].clone());
        Explanation { call, unknown_target, passed, other_services, matched, decision }
    }
}

/// What keeps a token for qubes from a container, which it never is.
fn container(token: &Token, qube: &impl fmt::Display, name: &impl fmt::Display) -> String {
    match token {
        Token::Containers(of) => format!("{qube}:{name} is not in {of}"),
        Token::Place(Place::Container { .. }) => format!("{qube}:{name} is not {token}"),
        _ => format!("{qube}:{name} is a container, and {token} is for qubes"),
    }
}

fn lacks(token: &Token, name: &impl fmt::Display) -> String {
    match token {
        Token::Tag(tag) => format!("{name} has no tag {tag}"),
        Token::Type(class) => format!("{name} is no {class}"),
        Token::Containers(_) => format!("{name} is a qube, and {token} is for its containers"),
        _ => format!("{name} is not {token}"),
    }
}

fn why_no_caller(token: &Token, source: &Principal, system: &System) -> String {
    match (source, token) {
        (Principal::Container { qube, container: name }, token) => container(token, qube, name),
        (Principal::AdminVm, Token::AnyVm | Token::Tag(_) | Token::Type(_)) => {
            format!("{DOM0} is matched by {DOM0}, @adminvm and * only, not by {token}")
        }
        (Principal::Qube(name), Token::Place(Place::DispVmOf(_)) | Token::DispVmTag(_)) => {
            match system.qubes.get(name).and_then(|info| info.disposable_of.as_ref()) {
                None => format!("{name} is no disposable qube, which {token} is for"),
                Some(base) => format!("{name} was made from {base}, not {token}"),
            }
        }
        (source, token) => lacks(token, source),
    }
}

fn why_no_target(token: &Token, call: &Call, system: &System) -> String {
    match (&call.target, token) {
        (None, token) => format!("the caller named no target, and {token} is one"),
        (Some(Place::Container { qube, container: name }), token) => container(token, qube, name),
        (Some(target @ (Place::DispVm | Place::DispVmOf(_))), token) => {
            match system.resolve(target, &call.source) {
                Some(Place::DispVmOf(base)) => {
                    format!("{target} is a new disposable qube made from {base}, and not {token}")
                }
                _ => format!("{target} is a new disposable qube, and not {token}"),
            }
        }
        (Some(Place::AdminVm), Token::AnyVm | Token::Tag(_) | Token::Type(_)) => {
            format!("{DOM0} is matched by {DOM0}, @adminvm and * only, not by {token}")
        }
        (Some(Place::Qube(Qube::Name(name))), token) => lacks(token, name),
        (Some(target), token) => lacks(token, target),
    }
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Call { source, target, service } = &self.call;
        write!(f, "{source} calls {service} in ")?;
        match target {
            Some(target) => writeln!(f, "{target}")?,
            None => writeln!(f, "@default")?,
        }
        if let Some(unknown) = &self.unknown_target {
            writeln!(f, "  {unknown} does not exist: the call is decided as one without a target")?;
        }
        for Passed { rule, why, .. } in &self.passed {
            writeln!(f, "  {}: {rule}", rule.origin)?;
            writeln!(f, "      no: {why}")?;
        }
        if self.other_services > 0 {
            writeln!(f, "  ({} of other services)", self.other_services)?;
        }
        match &self.matched {
            Some(rule) => writeln!(f, "  {}: {rule}\n      matches", rule.origin)?,
            None if self.passed.is_empty() && self.other_services == 0 => {}
            None => writeln!(f, "  no other rules")?,
        }
        writeln!(f, "{}", self.decision.verdict)
    }
}

/// For programs: the same, with the words `allow`, `ask` or `deny` in `verdict`.
impl Serialize for Explanation {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Call { source, target, service } = &self.call;
        let shown = |target: &Option<Place>| target.as_ref().map(ToString::to_string);
        let rule = |rule: &Rule| {
            serde_json::json!({
                "file": rule.origin.file.to_string_lossy(),
                "line": rule.origin.line,
                "rule": rule.to_string(),
            })
        };
        let passed: Vec<_> = self
            .passed
            .iter()
            .map(|passed| {
                let mut value = rule(&passed.rule);
                value["column"] = match passed.column {
                    Mismatch::Argument => "argument",
                    Mismatch::Source => "source",
                    Mismatch::Target => "target",
                }
                .into();
                value["why"] = passed.why.clone().into();
                value
            })
            .collect();
        let mut fields = serializer.serialize_struct("Explanation", 9)?;
        fields.serialize_field("source", &source.to_string())?;
        fields.serialize_field("target", &target.as_ref().map_or("@default".into(), ToString::to_string))?;
        fields.serialize_field("unknown_target", &shown(&self.unknown_target))?;
        fields.serialize_field("service", &service.to_string())?;
        fields.serialize_field("passed", &passed)?;
        fields.serialize_field("other_services", &self.other_services)?;
        fields.serialize_field("matched", &self.matched.as_ref().map(rule))?;
        fields.serialize_field("decision", &self.decision)?;
        fields.end()
    }
}

impl Serialize for Decision {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        use super::Verdict;
        let mut value = match &self.verdict {
            Verdict::Allow(allowed) => serde_json::json!({
                "verdict": "allow",
                "target": allowed.target.to_string(),
                "user": allowed.user.as_deref(),
                "autostart": allowed.autostart,
            }),
            Verdict::Ask(question) => serde_json::json!({
                "verdict": "ask",
                "targets": question.targets.iter().map(ToString::to_string).collect::<Vec<_>>(),
                "default_target": question.proposed.as_ref().map(ToString::to_string),
                "user": question.user.as_deref(),
                "autostart": question.autostart,
            }),
            Verdict::Deny(denial) => serde_json::json!({ "verdict": "deny", "reason": denial.to_string() }),
        };
        value["notify"] = self.notify.into();
        value.serialize(serializer)
    }
}
