//! Rules made ready for decisions.
//!
//! Each token that a policy has is a number. A decision asks once which of them match its source and its target, by
//! looking up every token that could: a qube's name, its tags, and so on. What is left for each rule is to compare a
//! number and to test two bits. The rules walked are those of the call's service and those of every service, merged in
//! the order of the policy.

use super::call::{Call, Principal};
use super::rule::Rule;
use super::service::{ArgumentColumn, ServiceColumn};
use super::system::{DOM0, QubeInfo, System};
use super::token::{Place, Qube, Token};
use crate::name::Name;
use std::collections::HashMap;
use std::sync::Arc;

/// All rules of a policy, in their order.
#[derive(Debug, Default)]
pub struct Policy {
    rules: Vec<Rule>,
    columns: Vec<Columns>,
    /// The rules of a service, by their places in `rules`.
    by_service: HashMap<Name, Vec<usize>>,
    /// Those of service `*`.
    any_service: Vec<usize>,
    tokens: HashMap<Token, usize>,
    arguments: HashMap<Arc<str>, usize>,
}

/// A rule's columns but the first, in numbers.
#[derive(Debug, Clone, Copy)]
struct Columns {
    /// None: any.
    argument: Option<usize>,
    source: usize,
    target: usize,
}

/// Which column of a rule a call does not fit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mismatch {
    /// The argument.
    Argument,
    /// The source.
    Source,
    /// The target.
    Target,
}

/// The tokens of a policy that match one side of a call.
#[derive(Debug)]
struct Matching(Vec<u64>);

impl Matching {
    fn has(&self, token: usize) -> bool {
        self.0.get(token / 64).is_some_and(|word| word >> (token % 64) & 1 == 1)
    }
}

/// A call in numbers.
#[derive(Debug)]
pub(super) struct Prepared<'p> {
    own: &'p [usize],
    argument: Option<usize>,
    source: Matching,
    target: Matching,
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
                ArgumentColumn::One(argument) => {
                    let next = policy.arguments.len();
                    Some(*policy.arguments.entry(argument.clone()).or_insert(next))
                }
            };
            let mut number = |token: &Token| {
                let next = policy.tokens.len();
                *policy.tokens.entry(token.clone()).or_insert(next)
            };
            let (source, target) = (number(&rule.source), number(&rule.target));
            policy.columns.push(Columns { argument, source, target });
        }
        policy.rules = rules;
        policy
    }

    /// All rules, in their order.
    pub fn rules(&self) -> &[Rule] {
        &self.rules
    }

    fn matching(&self, tokens: &[Token]) -> Matching {
        let mut words = vec![0; self.tokens.len().div_ceil(64)];
        for number in tokens.iter().filter_map(|token| self.tokens.get(token)) {
            words[number / 64] |= 1 << (number % 64);
        }
        Matching(words)
    }

    pub(super) fn prepare(&self, call: &Call, system: &System) -> Prepared<'_> {
        Prepared {
            own: self.by_service.get(call.service.name()).map_or(&[], Vec::as_slice),
            argument: self.arguments.get(call.service.argument()).copied(),
            source: self.matching(&of_caller(&call.source, system)),
            target: self.matching(&of_target(call.target.as_ref(), &call.source, system)),
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
        call.target = self.matching(&of_target(target, source, system));
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
        let Columns { argument, source, target } = self.columns[rule];
        if argument.is_some() && argument != call.argument {
            Some(Mismatch::Argument)
        } else if !call.source.has(source) {
            Some(Mismatch::Source)
        } else if !call.target.has(target) {
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

/// Every token that matches a caller.
fn of_caller(source: &Principal, system: &System) -> Vec<Token> {
    match source {
        Principal::AdminVm => vec![Token::Any, Token::Place(Place::AdminVm)],
        Principal::Container { qube, container } => of_container(qube, container),
        Principal::Qube(name) => {
            let info = system.qubes.get(name);
            let mut tokens = of_qube(name, info);
            if let Some(base) = info.and_then(|info| info.disposable_of.as_ref()) {
                tokens.extend(of_disposable(base, system.qubes.get(base)));
            }
            tokens
        }
    }
}

/// Every token that matches a target.
fn of_target(target: Option<&Place>, source: &Principal, system: &System) -> Vec<Token> {
    match target {
        None => vec![Token::Any, Token::AnyVm, Token::Default],
        Some(Place::AdminVm) => vec![Token::Any, Token::Place(Place::AdminVm)],
        Some(Place::Container { qube, container }) => of_container(qube, container),
        Some(Place::Qube(qube)) => match system.qube(qube) {
            Some((name, _)) if *name == DOM0 => vec![Token::Any, Token::Place(Place::AdminVm)],
            Some((name, info)) => of_qube(name, Some(info)),
            None => Vec::new(),
        },
        // The kind that the caller has is matched by its name, whether it can be made or not: a denial of it holds.
        Some(Place::DispVm) => {
            let mut tokens = vec![Token::Any, Token::AnyVm, Token::Place(Place::DispVm)];
            let info = system.qubes.get(source.qube_name());
            if let Some(base) = info.and_then(|info| info.default_dispvm.as_ref()) {
                tokens.extend(of_disposable(base, system.qubes.get(base)));
            }
            tokens
        }
        Some(place @ Place::DispVmOf(_)) => {
            let mut tokens = vec![Token::Any, Token::AnyVm];
            if let Some(Place::DispVmOf(Qube::Name(base))) = system.resolve(place, source) {
                tokens.extend(of_disposable(&base, system.qubes.get(&base)));
            }
            tokens
        }
    }
}

fn of_qube(name: &Name, info: Option<&QubeInfo>) -> Vec<Token> {
    let mut tokens = vec![Token::Any, Token::AnyVm, Token::Place(Place::Qube(Qube::Name(name.clone())))];
    if let Some(info) = info {
        tokens.push(Token::Type(info.class.clone()));
        tokens.extend(info.uuid.map(|uuid| Token::Place(Place::Qube(Qube::Uuid(uuid)))));
        tokens.extend(info.tags.iter().cloned().map(Token::Tag));
    }
    tokens
}

/// Neither `*` nor `@anyvm`, nor its qube's tags or type: what was written for qubes says nothing of containers.
fn of_container(qube: &Name, container: &Name) -> Vec<Token> {
    let place = Place::Container { qube: qube.clone(), container: container.clone() };
    vec![Token::Place(place), Token::Containers(qube.clone())]
}

/// What a disposable qube is besides: made from this one.
fn of_disposable(base: &Name, info: Option<&QubeInfo>) -> Vec<Token> {
    let mut tokens = vec![Token::Place(Place::DispVmOf(Qube::Name(base.clone())))];
    if let Some(info) = info {
        tokens.extend(info.uuid.map(|uuid| Token::Place(Place::DispVmOf(Qube::Uuid(uuid)))));
        if info.template_for_dispvms {
            tokens.extend(info.tags.iter().cloned().map(Token::DispVmTag));
        }
    }
    tokens
}
