//! Rules made ready for decisions: names are numbers, and rules are found by their service.
//!
//! A decision looks up the names of one call and then compares numbers only. It walks the rules of the call's service
//! and those of every service, merged in the order of the policy.

use super::call::{Call, Principal};
use super::rule::Rule;
use super::service::{ArgumentColumn, ServiceColumn};
use super::system::{DOM0, QubeInfo, System};
use super::token::{Place, Qube, Token};
use crate::name::Name;
use std::collections::HashMap;
use std::sync::Arc;
use uuid::Uuid;

/// The number of a string that the policy mentions.
type Symbol = u32;

/// All rules of a policy, in their order.
#[derive(Debug, Default)]
pub struct Policy {
    rules: Vec<Rule>,
    patterns: Vec<Columns>,
    /// The rules of a service, by their places in `rules`.
    by_service: HashMap<Name, Vec<usize>>,
    /// Those of service `*`.
    any_service: Vec<usize>,
    names: HashMap<Arc<str>, Symbol>,
    uuids: HashMap<Uuid, Symbol>,
}

/// A rule's columns but the first.
#[derive(Debug, Clone, Copy)]
struct Columns {
    argument: Option<Symbol>,
    source: Pattern,
    target: Pattern,
}

#[derive(Debug, Clone, Copy)]
enum Pattern {
    Any,
    AnyVm,
    AdminVm,
    Default,
    Name(Symbol),
    Uuid(Symbol),
    Tag(Symbol),
    Type(Symbol),
    DispVm,
    DispVmOf(Symbol),
    DispVmOfUuid(Symbol),
    DispVmTag(Symbol),
    Container(Symbol, Symbol),
    Containers(Symbol),
}

/// Which columns of a rule a call does not fit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mismatch {
    /// The argument.
    Argument,
    /// The source.
    Source,
    /// The target.
    Target,
}

/// One side of a call, in numbers. A name that the policy does not mention has none.
#[derive(Debug, Default)]
struct Subject {
    kind: Kind,
    qube: Known,
    class: Option<Symbol>,
    container: Option<Symbol>,
    /// What a disposable is, or will be, made from.
    base: Option<Known>,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// The caller named no target.
    #[default]
    Default,
    AdminVm,
    Qube,
    Container,
    /// A new disposable: of the caller's kind, or of one that it named.
    New {
        named: bool,
    },
}

#[derive(Debug, Default)]
struct Known {
    name: Option<Symbol>,
    uuid: Option<Symbol>,
    tags: Vec<Symbol>,
}

/// A call in numbers.
#[derive(Debug)]
pub(super) struct Prepared<'p> {
    own: &'p [usize],
    argument: Option<Symbol>,
    source: Subject,
    target: Subject,
}

impl Policy {
    /// Makes rules ready. Their order is what counts: the first that matches decides.
    pub fn new(rules: Vec<Rule>) -> Self {
        let mut policy = Self::default();
        for (index, rule) in rules.iter().enumerate() {
            match &rule.service {
                ServiceColumn::Any => policy.any_service.push(index),
                ServiceColumn::One(name) => policy.by_service.entry(name.clone()).or_default().push(index),
            }
            let argument = match &rule.argument {
                ArgumentColumn::Any => None,
                ArgumentColumn::One(argument) => Some(policy.intern(argument)),
            };
            let columns = Columns {
                argument,
                source: policy.pattern(&rule.source),
                target: policy.pattern(&rule.target),
            };
            policy.patterns.push(columns);
        }
        policy.rules = rules;
        policy
    }

    /// All rules, in their order.
    pub fn rules(&self) -> &[Rule] {
        &self.rules
    }

    fn intern(&mut self, text: &str) -> Symbol {
        let next = self.names.len() as Symbol;
        *self.names.entry(text.into()).or_insert(next)
    }

    fn intern_uuid(&mut self, uuid: Uuid) -> Symbol {
        let next = self.uuids.len() as Symbol;
        *self.uuids.entry(uuid).or_insert(next)
    }

    fn pattern(&mut self, token: &Token) -> Pattern {
        match token {
            Token::Any => Pattern::Any,
            Token::AnyVm => Pattern::AnyVm,
            Token::Default => Pattern::Default,
            Token::Tag(tag) => Pattern::Tag(self.intern(tag.as_str())),
            Token::Type(class) => Pattern::Type(self.intern(class.as_str())),
            Token::DispVmTag(tag) => Pattern::DispVmTag(self.intern(tag.as_str())),
            Token::Containers(qube) => Pattern::Containers(self.intern(qube.as_str())),
            Token::Place(Place::AdminVm) => Pattern::AdminVm,
            Token::Place(Place::DispVm) => Pattern::DispVm,
            Token::Place(Place::Qube(Qube::Name(name))) => Pattern::Name(self.intern(name.as_str())),
            Token::Place(Place::Qube(Qube::Uuid(uuid))) => Pattern::Uuid(self.intern_uuid(*uuid)),
            Token::Place(Place::DispVmOf(Qube::Name(name))) => Pattern::DispVmOf(self.intern(name.as_str())),
            Token::Place(Place::DispVmOf(Qube::Uuid(uuid))) => Pattern::DispVmOfUuid(self.intern_uuid(*uuid)),
            Token::Place(Place::Container { qube, container }) => {
                Pattern::Container(self.intern(qube.as_str()), self.intern(container.as_str()))
            }
        }
    }

    fn symbol(&self, text: &str) -> Option<Symbol> {
        self.names.get(text).copied()
    }

    fn known(&self, name: &Name, info: Option<&QubeInfo>) -> Known {
        Known {
            name: self.symbol(name.as_str()),
            uuid: info.and_then(|info| info.uuid).and_then(|uuid| self.uuids.get(&uuid).copied()),
            tags: info.map_or_else(Vec::new, |info| {
                info.tags.iter().filter_map(|tag| self.symbol(tag.as_str())).collect()
            }),
        }
    }

    fn caller(&self, source: &Principal, system: &System) -> Subject {
        match source {
            Principal::AdminVm => Subject { kind: Kind::AdminVm, ..Subject::default() },
            Principal::Qube(name) => {
                let info = system.qubes.get(name);
                let base = info.and_then(|info| info.disposable_of.as_ref());
                Subject {
                    base: base.map(|base| self.known(base, system.qubes.get(base))),
                    ..self.existing(name, info)
                }
            }
            Principal::Container { qube, container } => self.container(qube, container),
        }
    }

    fn existing(&self, name: &Name, info: Option<&QubeInfo>) -> Subject {
        Subject {
            kind: Kind::Qube,
            qube: self.known(name, info),
            class: info.and_then(|info| self.symbol(info.class.as_str())),
            ..Subject::default()
        }
    }

    /// Nothing of the qube but its name: its tags and its type are not its containers'.
    fn container(&self, qube: &Name, container: &Name) -> Subject {
        Subject {
            kind: Kind::Container,
            qube: Known { name: self.symbol(qube.as_str()), ..Known::default() },
            container: self.symbol(container.as_str()),
            ..Subject::default()
        }
    }

    fn called(&self, target: Option<&Place>, source: &Principal, system: &System) -> Subject {
        match target {
            None => Subject::default(),
            Some(Place::AdminVm) => Subject { kind: Kind::AdminVm, ..Subject::default() },
            Some(Place::Qube(qube)) => match system.qube(qube) {
                Some((name, _)) if *name == DOM0 => Subject { kind: Kind::AdminVm, ..Subject::default() },
                Some((name, info)) => self.existing(name, Some(info)),
                None => Subject::default(),
            },
            Some(Place::Container { qube, container }) => self.container(qube, container),
            Some(place @ (Place::DispVm | Place::DispVmOf(_))) => {
                let base = match system.resolve(place, source) {
                    Some(Place::DispVmOf(Qube::Name(name))) => {
                        Some(self.known(&name, system.qubes.get(&name)))
                    }
                    _ => None,
                };
                let named = matches!(place, Place::DispVmOf(_));
                Subject { kind: Kind::New { named }, base, ..Subject::default() }
            }
        }
    }

    pub(super) fn prepare(&self, call: &Call, system: &System) -> Prepared<'_> {
        Prepared {
            own: self.by_service.get(call.service.name()).map_or(&[], Vec::as_slice),
            argument: self.symbol(call.service.argument()),
            source: self.caller(&call.source, system),
            target: self.called(call.target.as_ref(), &call.source, system),
        }
    }

    /// The same call to somebody else.
    pub(super) fn retarget(
        &self,
        call: &mut Prepared<'_>,
        target: Option<&Place>,
        source: &Principal,
        system: &System,
    ) {
        call.target = self.called(target, source, system);
    }

    /// The rules of a call's service and those of any service, in the order of the policy.
    pub(super) fn candidates<'a>(&'a self, call: &Prepared<'a>) -> impl Iterator<Item = usize> + use<'a> {
        let (mut own, mut any) = (call.own, &self.any_service[..]);
        std::iter::from_fn(move || {
            let list = match (own.first(), any.first()) {
                (Some(left), Some(right)) if left < right => &mut own,
                (_, Some(_)) => &mut any,
                (Some(_), None) => &mut own,
                (None, None) => return None,
            };
            let (first, rest) = list.split_first()?;
            *list = rest;
            Some(*first)
        })
    }

    /// Why a candidate does not match, if it does not.
    pub(super) fn mismatch(&self, rule: usize, call: &Prepared<'_>) -> Option<Mismatch> {
        let Columns { argument, source, target } = self.patterns[rule];
        if argument.is_some() && argument != call.argument {
            Some(Mismatch::Argument)
        } else if !source.matches_caller(&call.source) {
            Some(Mismatch::Source)
        } else if !target.matches_called(&call.target) {
            Some(Mismatch::Target)
        } else {
            None
        }
    }

    /// The first rule that matches, and how many were compared.
    pub(super) fn first_match(&self, call: &Prepared<'_>) -> (Option<usize>, usize) {
        let mut compared = 0;
        for rule in self.candidates(call) {
            compared += 1;
            if self.mismatch(rule, call).is_none() {
                return (Some(rule), compared);
            }
        }
        (None, compared)
    }
}

impl Pattern {
    fn matches_caller(self, subject: &Subject) -> bool {
        match self {
            // A disposable that exists: it is known what it was made from.
            Pattern::DispVmOf(name) => {
                subject.kind == Kind::Qube && subject.is_from(|base| base.name == Some(name))
            }
            Pattern::DispVmOfUuid(uuid) => {
                subject.kind == Kind::Qube && subject.is_from(|base| base.uuid == Some(uuid))
            }
            Pattern::DispVmTag(tag) => {
                subject.kind == Kind::Qube && subject.is_from(|base| base.tags.contains(&tag))
            }
            _ => self.matches(subject),
        }
    }

    fn matches_called(self, subject: &Subject) -> bool {
        let new = matches!(subject.kind, Kind::New { .. });
        match self {
            Pattern::DispVmOf(name) => new && subject.is_from(|base| base.name == Some(name)),
            Pattern::DispVmOfUuid(uuid) => new && subject.is_from(|base| base.uuid == Some(uuid)),
            Pattern::DispVmTag(tag) => new && subject.is_from(|base| base.tags.contains(&tag)),
            _ => self.matches(subject),
        }
    }

    /// What is the same on both sides.
    fn matches(self, subject: &Subject) -> bool {
        let Subject { kind, qube, class, container, .. } = subject;
        match self {
            Pattern::Any => *kind != Kind::Container,
            Pattern::AnyVm => !matches!(kind, Kind::Container | Kind::AdminVm),
            Pattern::AdminVm => *kind == Kind::AdminVm,
            Pattern::Default => *kind == Kind::Default,
            Pattern::Name(name) => *kind == Kind::Qube && qube.name == Some(name),
            Pattern::Uuid(uuid) => *kind == Kind::Qube && qube.uuid == Some(uuid),
            Pattern::Tag(tag) => *kind == Kind::Qube && qube.tags.contains(&tag),
            Pattern::Type(name) => *kind == Kind::Qube && *class == Some(name),
            Pattern::DispVm => *kind == (Kind::New { named: false }),
            Pattern::Container(of, name) => {
                *kind == Kind::Container && qube.name == Some(of) && *container == Some(name)
            }
            Pattern::Containers(of) => *kind == Kind::Container && qube.name == Some(of),
            Pattern::DispVmOf(_) | Pattern::DispVmOfUuid(_) | Pattern::DispVmTag(_) => false,
        }
    }
}

impl Subject {
    fn is_from(&self, base: impl Fn(&Known) -> bool) -> bool {
        self.base.as_ref().is_some_and(base)
    }
}
