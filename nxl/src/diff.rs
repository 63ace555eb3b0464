//! `nxl diff`: in what the host differs from what is declared, attribute by attribute.

use crate::error::Error;
use crate::plan;
use crate::spec::Declared;
use std::io::{self, Write};
use std::path::Path;
use toolstack::qubes::Qubes;
use toolstack::spec::{Change, Plan, PolicyChange, Work};

pub(crate) fn diff(qubes: &Qubes, path: &Path, as_json: bool) -> Result<(), Error> {
    // As with --prune: what is declared no longer is a difference, too.
    let plan = Declared::read(path)?.plan(qubes, true)?;
    let text = if as_json { format!("{:#}\n", plan::json(&plan)) } else { text(&plan) };
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
