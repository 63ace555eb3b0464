//! `nxl plan`: what `nxl apply` would do.

use crate::error::Error;
use crate::spec::Declared;
use serde_json::{Value, json};
use std::fmt::Write as _;
use std::io::{self, Write};
use std::path::Path;
use toolstack::qubes::Qubes;
use toolstack::spec::{Plan, PolicyChange, Step, Work};

pub(crate) fn plan(qubes: &Qubes, path: &Path, prune: bool, as_json: bool) -> Result<(), Error> {
    let plan = Declared::read(path)?.plan(qubes, prune)?;
    let text = if as_json { format!("{:#}\n", json(&plan)) } else { text(&plan) };
    io::stdout().write_all(text.as_bytes()).map_err(Error::Output)
}

/// The plan in words, a line each.
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
        line(format_args!("{} {}{}", step.work.name(), step.name, because(step)));
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

fn because(step: &Step) -> String {
    let reasons: Vec<String> = match &step.work {
        Work::Change(changes) => changes.iter().map(ToString::to_string).collect(),
        Work::Restart { why } => why.iter().map(ToString::to_string).collect(),
        Work::Resume => vec!["it was made, and never ran".to_owned()],
        Work::Create | Work::Remove => Vec::new(),
    };
    if reasons.is_empty() { String::new() } else { format!(": {}", reasons.join("; ")) }
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
             change work: vcpus: 1 -> 2; what a restart makes of it\n\
             create net\n\
             restart vault: type: pv -> pvh\n\
             unchanged: mail\n\
             not declared, left alone: mine, yours\n"
        );
        let json = json(&example());
        assert_eq!(json["steps"][3]["why"][0]["declared"], "pvh");
        assert_eq!(json["steps"][1]["changes"][0], "vcpus: 1 -> 2");
    }

    #[test]
    fn that_nothing_has_to_be_done_is_said() {
        let plan = Plan { policy: Vec::new(), steps: Vec::new(), undeclared: Vec::new(), ..example() };
        assert_eq!(text(&plan), "Nothing has to be done.\nunchanged: mail\n");
    }
}
