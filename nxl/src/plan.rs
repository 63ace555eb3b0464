//! `nxl plan`: what `nxl apply` would do.

use crate::command::PlanOptions;
use crate::error::Error;
use crate::remote::Order;
use crate::spec::{Declared, Text};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{self, Write};
use toolstack::generations::Choice;
use toolstack::qubes::Qubes;
use toolstack::spec::{Plan, PolicyChange, Step, Wishes, Work};
use toolstack::store_path;

pub(crate) fn run(options: &PlanOptions) -> Result<(), Error> {
    let PlanOptions { hosts, wishes, json, spec, .. } = options;
    if hosts.are_given() {
        return Order { options: hosts, line: options.line(), spec, json: *json }.give();
    }
    let text = Text::read(spec)?;
    if options.check {
        return check(&text);
    }
    // What is wrong with it is wrong whatever the host is like.
    text.spec()?;
    plan(&crate::qubes()?, &text, &wishes.wishes(), *json)
}

pub(crate) fn plan(qubes: &Qubes, text: &Text, wishes: &Wishes, as_json: bool) -> Result<(), Error> {
    let declared = Declared::of(text)?;
    let plan = declared.plan(qubes, wishes)?;
    let said = if as_json {
        let mut value = json(&plan);
        value["held"] = held_json(&declared.choices);
        format!("{value:#}\n")
    } else {
        self::text(&plan) + &held(&declared.choices)
    };
    io::stdout().write_all(said.as_bytes()).map_err(Error::Output)
}

/// Says that a document is right, as far as that can be seen without the host and the systems that it names.
fn check(text: &Text) -> Result<(), Error> {
    let spec = text.spec()?;
    let qubes = &spec.document().qubes;
    let containers: usize = qubes.values().map(|qube| qube.containers.len()).sum();
    writeln!(io::stdout(), "{} qubes, {containers} containers", qubes.len()).map_err(Error::Output)
}

/// The plan in words, with the reasons.
pub(crate) fn text(plan: &Plan) -> String {
    let mut text = String::new();
    // Writing to a String does not fail.
    let mut line = |what: std::fmt::Arguments<'_>| _ = writeln!(text, "{what}");
    for conflict in &plan.conflicts {
        line(format_args!("conflict: {conflict}"));
    }
    for leftover in &plan.leftovers {
        line(format_args!("clean up: {leftover}"));
    }
    for change in &plan.policy {
        match change {
            PolicyChange::Write { file, there: true, .. } => line(format_args!("policy {file}: changed")),
            PolicyChange::Write { file, .. } => line(format_args!("policy {file}: new")),
            PolicyChange::Remove { file } => line(format_args!("policy {file}: removed")),
        }
    }
    for step in &plan.steps {
        line(format_args!("{} {}", step.work.name(), step.name));
        for reason in reasons(step) {
            line(format_args!("    {reason}"));
        }
    }
    if plan.is_empty() {
        line(format_args!("Nothing has to be done."));
    }
    for (names, what) in [
        (&plan.unchanged, "unchanged"),
        (&plan.halted, "not to be started"),
        (&plan.undeclared, "not declared, left alone"),
    ] {
        if !names.is_empty() {
            line(format_args!("{what}: {}", names.join(", ")));
        }
    }
    text
}

/// Which qubes run something else than what is declared, and until when.
pub(crate) fn held(choices: &BTreeMap<String, Choice>) -> String {
    let mut text = String::new();
    for (name, choice) in choices {
        if let Some(held) = &choice.held {
            let said = held.reason.said();
            let declared = held.against.display();
            let declared =
                store_path::name(&declared.to_string()).map_or(declared.to_string(), str::to_owned);
            let _ = writeln!(
                text,
                "{name}: {said} to {}, until something else than {declared} is declared (or `nxl switch {name}')",
                held.variant
            );
        }
        if choice.on_trial {
            let _ = writeln!(text, "{name}: on trial, until it reports ready");
        }
    }
    text
}

/// The same for programs.
pub(crate) fn held_json(choices: &BTreeMap<String, Choice>) -> Value {
    let held = choices.iter().filter_map(|(name, choice)| {
        let held = choice.held.as_ref()?;
        Some(json!({
            "qube": name,
            "reason": held.reason,
            "generation": held.variant.generation,
            "specialisation": held.variant.specialisation,
            "declared": held.against,
        }))
    });
    held.collect::<Vec<_>>().into()
}

fn reasons(step: &Step) -> Vec<String> {
    match &step.work {
        Work::Change(changes) => changes.iter().map(ToString::to_string).collect(),
        Work::Restart { why } => why.iter().map(ToString::to_string).collect(),
        Work::Resume => vec!["it was made, and never ran".to_owned()],
        Work::Create | Work::Remove => Vec::new(),
    }
}

/// The same for programs.
pub(crate) fn json(plan: &Plan) -> Value {
    let steps: Vec<_> = plan.steps.iter().map(step_json).collect();
    let policy: Vec<_> = plan
        .policy
        .iter()
        .map(|change| match change {
            PolicyChange::Write { file, there, .. } => {
                json!({ "file": file, "change": if *there { "changed" } else { "new" } })
            }
            PolicyChange::Remove { file } => json!({ "file": file, "change": "removed" }),
        })
        .collect();
    json!({
        "conflicts": plan.conflicts.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "leftovers": plan.leftovers.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "policy": policy,
        "steps": steps,
        "unchanged": plan.unchanged,
        "halted": plan.halted,
        "undeclared": plan.undeclared,
    })
}

pub(crate) fn step_json(step: &Step) -> Value {
    let mut value = json!({ "qube": step.name, "work": step.work.name(), "wave": step.wave });
    match &step.work {
        Work::Change(changes) => {
            value["changes"] = changes.iter().map(ToString::to_string).collect::<Vec<_>>().into();
        }
        Work::Restart { why } => {
            let why: Vec<_> = why
                .iter()
                .map(|difference| {
                    json!({
                        "attribute": difference.attribute,
                        "running": difference.running,
                        "declared": difference.declared,
                    })
                })
                .collect();
            value["why"] = why.into();
        }
        Work::Create | Work::Resume | Work::Remove => {}
    }
    value
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use toolstack::generations::{Held, Reason, Variant};
    use toolstack::spec::{Change, Difference, uuid_of};

    pub(crate) fn example() -> Plan {
        let step = |name: &str, work, wave| Step { name: name.to_owned(), uuid: uuid_of(name), work, wave };
        Plan {
            conflicts: Vec::new(),
            leftovers: Vec::new(),
            policy: vec![PolicyChange::Write {
                file: "50-nexus.policy".to_owned(),
                text: String::new(),
                there: true,
            }],
            steps: vec![
                step("old", Work::Remove, 0),
                step(
                    "work",
                    Work::Change(vec![Change::Vcpus { running: Some(1), declared: 2 }, Change::Kept]),
                    1,
                ),
                step("net", Work::Create, 2),
                step(
                    "vault",
                    Work::Restart {
                        why: vec![Difference {
                            attribute: "type",
                            running: "pv".to_owned(),
                            declared: "pvh".to_owned(),
                        }],
                    },
                    3,
                ),
            ],
            unchanged: vec!["mail".to_owned()],
            halted: Vec::new(),
            undeclared: vec!["mine".to_owned(), "yours".to_owned()],
        }
    }

    #[test]
    fn a_plan_says_what_and_why() {
        assert_eq!(
            text(&example()),
            "policy 50-nexus.policy: changed\n\
             remove old\n\
             change work\n    vcpus: 1 -> 2\n    what a restart makes of it\n\
             create net\n\
             restart vault\n    type: pv -> pvh\n\
             unchanged: mail\n\
             not declared, left alone: mine, yours\n"
        );
        let json = json(&example());
        assert_eq!(json["steps"][3]["why"][0]["declared"], "pvh");
        assert_eq!(json["steps"][1]["changes"][0], "vcpus: 1 -> 2");
    }

    #[test]
    fn what_runs_instead_of_what_is_declared_is_said() {
        let system = "/nix/store/00000000000000000000000000000000-nixos-system-work-25.11";
        let variant = Variant { generation: 3, specialisation: None };
        let choice = Choice {
            system: "/nix/store/x".into(),
            specialisation: None,
            held: Some(Held { variant, against: system.into(), reason: Reason::RolledBack }),
            on_trial: true,
        };
        let choices = BTreeMap::from([("work".to_owned(), choice)]);
        assert_eq!(
            held(&choices),
            "work: rolled back to generation 3, until something else than nixos-system-work-25.11 is declared (or `nxl switch work')\n\
             work: on trial, until it reports ready\n"
        );
        assert_eq!(held_json(&choices)[0]["reason"], "rolled-back");
    }

    #[test]
    fn that_nothing_has_to_be_done_is_said() {
        let plan = Plan { policy: Vec::new(), steps: Vec::new(), undeclared: Vec::new(), ..example() };
        assert_eq!(text(&plan), "Nothing has to be done.\nunchanged: mail\n");
    }
}
