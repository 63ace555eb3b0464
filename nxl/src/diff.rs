//! `nxl diff`: in what the host differs from what is declared, attribute by attribute.

use crate::command::DiffOptions;
use crate::error::Error;
use crate::plan;
use crate::remote::Order;
use crate::spec::{Declared, Text};
use std::io::{self, Write};
use toolstack::spec::{Change, Plan, PolicyChange, Wishes, Work};

pub(crate) fn diff(options: &DiffOptions) -> Result<(), Error> {
    let DiffOptions { hosts, json, spec } = options;
    if hosts.are_given() {
        return Order { options: hosts, line: options.line(), spec, json: *json }.give();
    }
    let declared = Text::read(spec)?;
    // As with --prune: what is declared no longer is a difference, too.
    let plan =
        Declared::of(&declared)?.plan(&crate::qubes()?, &Wishes { prune: true, ..Wishes::default() })?;
    let text = if *json { format!("{:#}\n", plan::json(&plan)) } else { text(&plan) };
    io::stdout().write_all(text.as_bytes()).map_err(Error::Output)
}

/// As diff(1) has it: `-` runs and is not declared, `+` is declared and does not run, `~` is both, and differs.
fn text(plan: &Plan) -> String {
    let mut lines = Vec::new();
    for change in &plan.policy {
        lines.push(match change {
            PolicyChange::Write { file, there: true, .. } => format!("~ policy {file}"),
            PolicyChange::Write { file, .. } => format!("+ policy {file}"),
            PolicyChange::Remove { file } => format!("- policy {file}"),
        });
    }
    for conflict in &plan.conflicts {
        lines.push(format!("! {conflict}"));
    }
    for step in &plan.steps {
        match &step.work {
            Work::Create => lines.push(format!("+ {}", step.name)),
            Work::Remove => lines.push(format!("- {}", step.name)),
            Work::Resume => lines.push(format!("~ {} (never ran)", step.name)),
            Work::Change(changes) => {
                lines.push(format!("~ {} (while it runs)", step.name));
                let shown = changes.iter().filter(|change| !matches!(change, Change::Kept));
                lines.extend(shown.map(|change| format!("    {change}")));
            }
            Work::Restart { why } => {
                lines.push(format!("~ {} (by a restart)", step.name));
                for difference in why {
                    lines.push(format!("  - {}: {}", difference.attribute, difference.running));
                    lines.push(format!("  + {}: {}", difference.attribute, difference.declared));
                }
            }
        }
    }
    lines.iter().map(|line| format!("{line}\n")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences_are_marked() {
        assert_eq!(
            text(&crate::plan::tests::example()),
            "~ policy 50-nexus.policy\n- old\n~ work (while it runs)\n    vcpus: 1 -> 2\n+ net\n\
             ~ vault (by a restart)\n  - type: pv\n  + type: pvh\n"
        );
    }
}
