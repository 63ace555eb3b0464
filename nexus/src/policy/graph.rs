//! Who may call whom: the decisions of all pairs.

use super::call::{Call, Principal};
use super::compiled::Policy;
use super::decision::Verdict;
use super::service::{ArgumentColumn, Service, ServiceColumn};
use super::system::System;
use super::token::Place;
use std::collections::{BTreeMap, BTreeSet};

/// A call that is not denied.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Edge {
    /// Who calls.
    pub source: Principal,
    /// Where the call goes: after `target=`, that is.
    pub target: Place,
    /// Whether somebody is asked first.
    pub ask: bool,
    /// What is called, as policies write it: `SERVICE`, or `SERVICE+ARGUMENT` where a rule names the argument.
    pub service: String,
}

/// What stands for the services and arguments that no rule names.
const OTHER: &str = "*";

impl Policy {
    /// Every call that is allowed or asked about, of every service and argument that a rule names. A name that none has
    /// stands for all others.
    pub fn edges(&self, system: &System) -> BTreeSet<Edge> {
        let mut services: BTreeMap<String, Service> = BTreeMap::new();
        // No rule names it: what a rule names is in the table, under its own name.
        let unnamed = |text: &str| {
            let mut text = text.to_owned();
            while self.rules().iter().any(|rule| {
                rule.service.to_string() == text || rule.argument.to_string() == format!("+{text}")
            }) {
                text.push('-');
            }
            text
        };
        let other = unnamed("-");
        services.extend(Service::parse(&other).ok().map(|service| (OTHER.to_owned(), service)));
        for rule in self.rules() {
            let ServiceColumn::One(name) = &rule.service else { continue };
            let any = Service::parse(&format!("{name}+{other}"));
            services.extend(any.ok().map(|service| (name.to_string(), service)));
            if let ArgumentColumn::One(argument) = &rule.argument {
                let service = Service::parse(&format!("{name}+{argument}"));
                services.extend(service.ok().map(|service| (format!("{name}+{argument}"), service)));
            }
        }
        let mut edges = BTreeSet::new();
        let places = system.places();
        for (shown, service) in &services {
            for source in system.principals() {
                let named = std::iter::once(None).chain(places.iter().cloned().map(Some));
                for target in named {
                    let call =
                        Call { source: source.clone(), target: target.clone(), service: service.clone() };
                    let (targets, ask) = match self.decide(&call, system).verdict {
                        Verdict::Allow(allowed) => ([allowed.target].into(), false),
                        Verdict::Ask(question) => (question.targets, true),
                        Verdict::Deny(_) => continue,
                    };
                    edges.extend(targets.into_iter().map(|target| Edge {
                        source: source.clone(),
                        target,
                        ask,
                        service: shown.clone(),
                    }));
                }
            }
        }
        // What is allowed for all arguments need not be said for each.
        let general: BTreeSet<Edge> = edges.clone();
        edges.retain(|edge| {
            edge.service
                .split_once('+')
                .is_none_or(|(name, _)| !general.contains(&Edge { service: name.to_owned(), ..edge.clone() }))
        });
        edges
    }

    /// The qubes that the policy names, each with what the policy itself says of it: what there is to decide with where
    /// nobody knows the real ones. All run, and their class is AppVM.
    pub fn mentioned(&self) -> System {
        use super::token::{Qube, Token};
        let mut system = System::default();
        let mut add = |qube: &crate::name::Name| {
            let info = super::QubeInfo::app_vm();
            system.qubes.entry(qube.clone()).or_insert(info);
        };
        let place = |place: &Place, add: &mut dyn FnMut(&crate::name::Name)| match place {
            Place::Qube(Qube::Name(name)) | Place::DispVmOf(Qube::Name(name)) => add(name),
            Place::Container { qube, .. } => add(qube),
            _ => {}
        };
        for rule in self.rules() {
            for token in [&rule.source, &rule.target] {
                match token {
                    Token::Place(at) => place(at, &mut add),
                    Token::Containers(qube) => add(qube),
                    _ => {}
                }
            }
            for at in rule.action.places() {
                place(at, &mut add);
            }
        }
        for rule in self.rules() {
            let tokens = [&rule.source, &rule.target].into_iter().filter_map(|token| match token {
                Token::Place(place) => Some(place),
                _ => None,
            });
            for place in tokens.chain(rule.action.places()) {
                match place {
                    Place::DispVmOf(Qube::Name(name)) => {
                        system.qubes.entry(name.clone()).and_modify(|info| info.template_for_dispvms = true);
                    }
                    Place::Container { qube, container } => {
                        system.qubes.entry(qube.clone()).and_modify(|info| {
                            info.containers.insert(container.clone());
                        });
                    }
                    _ => {}
                }
            }
        }
        system
    }
}
