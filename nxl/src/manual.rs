//! What a package ships beside the program, and the documents show of it, made from the command line's own description.

use crate::block_nix;
use crate::command::description;
use crate::error::Error;
use clap::{Arg, Command, CommandFactory};
use clap_complete::Shell;
use std::fmt::{self, Write as _};
use std::io::{self, Write as _};
use std::path::Path;

/// The programs that completions can be had of: nxl's, those of calls, and vchan's.
pub(crate) const PROGRAMS: [&str; 8] = [
    "nxl",
    "nxl-bootloader",
    "nexusd",
    "nexus-agent",
    "nexus-ask",
    "nexus-call",
    "nexus-service",
    "vchan-cat",
];

/// The programs that have a description of their own, besides nxl. (That of `nxl-bootloader` is a command of nxl's, too.)
fn others() -> impl Iterator<Item = Command> {
    let nexus = nexus::programs::descriptions().into_iter();
    nexus.chain([vchan::programs::description(), block_nix::Arguments::command()])
}

pub(crate) fn completions(shell: Shell, program: &str) -> Result<(), Error> {
    let mut description =
        others().find(|description| description.get_name() == program).unwrap_or_else(description);
    // A program that is a command of nxl's, too, and called after both.
    let command = program.strip_prefix("nxl-").and_then(|command| description.find_subcommand(command));
    if let Some(command) = command {
        description = command.clone();
    }
    clap_complete::generate(shell, &mut description, program, &mut io::stdout());
    Ok(())
}

pub(crate) fn man(folder: &Path) -> Result<(), Error> {
    [description()]
        .into_iter()
        .chain(others())
        .try_for_each(|description| clap_mangen::generate_to(description, folder))
        .map_err(|source| Error::Read { path: folder.to_owned(), source })
}

/// Prints the page of the documents that has every command and option: nxl's, or that of the other programs.
pub(crate) fn reference(programs: bool) -> Result<(), Error> {
    let page = if programs { programs_page() } else { page() };
    io::stdout().write_all(page.as_bytes()).map_err(Error::Output)
}

/// docs/programs.md.
fn programs_page() -> String {
    let mut page = String::from(
        "# The other programs\n\nEvery option of what is installed beside [nxl](nxl.md), as `--help` has them; each has a manual page, too. This page is made by \
         `nxl reference --programs`; a test compares.\n",
    );
    let written = others().try_for_each(|mut program| {
        program.build();
        section(&mut page, &program, 2)
    });
    written.expect("a string takes all that is written");
    page
}

/// docs/nxl.md.
fn page() -> String {
    let mut description = description();
    description.build();
    let mut page = String::from(
        "# nxl\n\nEvery command and option, as `nxl COMMAND --help` has them. `nxl help` says, besides, which commands of `xl` it runs by the \
         host's own `xl`. This page is made by `nxl reference`; a test compares.\n\n\
         A QUBE is a name or a domain id. **Exit status**: 0 done, 1 it failed (one line on stderr says why), 2 wrong usage; where a command says more, it stands there.\n\n\
         ## Before the command\n\n",
    );
    let written = arguments(&mut page, &description)
        .and_then(|()| description.get_subcommands().try_for_each(|command| section(&mut page, command, 2)));
    written.expect("a string takes all that is written");
    page
}

/// A command and those below it, under a heading of that level.
fn section(page: &mut String, command: &Command, level: usize) -> fmt::Result {
    if command.is_hide_set() || command.get_name() == "help" {
        return Ok(());
    }
    let name = command.get_bin_name().unwrap_or_else(|| command.get_name());
    writeln!(page, "\n{} {name}\n", "#".repeat(level))?;
    if let Some(about) = command.get_long_about().or_else(|| command.get_about()) {
        writeln!(page, "{}\n", escaped(&about.to_string()))?;
    }
    let usage = command.clone().render_usage().to_string();
    writeln!(page, "    {}", usage.trim_start_matches("Usage: ").replace('\n', "\n    "))?;
    let aliases: Vec<_> = command.get_visible_aliases().map(|alias| format!("`{alias}`")).collect();
    if !aliases.is_empty() {
        writeln!(page, "\nAlso: {}", aliases.join(", "))?;
    }
    page.push('\n');
    arguments(page, command)?;
    if let Some(after) = command.get_after_long_help().or_else(|| command.get_after_help()) {
        let text = after.to_string().replace('\n', "\n    ");
        writeln!(page, "\n    {}", text.replace("\n    \n", "\n\n"))?;
    }
    command.get_subcommands().try_for_each(|command| section(page, command, level + 1))
}

/// The table of a command's arguments, if it has any.
fn arguments(page: &mut String, command: &Command) -> fmt::Result {
    let shown = |argument: &&Arg| {
        !argument.is_hide_set() && !["help", "version"].contains(&argument.get_id().as_str())
    };
    let arguments: Vec<&Arg> = command.get_arguments().filter(shown).collect();
    if arguments.is_empty() {
        return Ok(());
    }
    writeln!(page, "| | |\n|---|---|")?;
    for argument in arguments {
        let help = argument
            .get_long_help()
            .or_else(|| argument.get_help())
            .map(ToString::to_string)
            .unwrap_or_default();
        let mut help = escaped(&help).replace('\n', " ");
        let values = argument.get_possible_values();
        let names: Vec<_> = values
            .iter()
            .filter(|value| !value.is_hide_set())
            .map(|value| format!("`{}`", value.get_name()))
            .collect();
        if !names.is_empty() && argument.get_action().takes_values() {
            write!(help, ". One of {}", names.join(", "))?;
        }
        let defaults: Vec<_> = argument
            .get_default_values()
            .iter()
            .map(|value| format!("`{}`", value.to_string_lossy()))
            .collect();
        if !defaults.is_empty() && argument.get_action().takes_values() {
            write!(help, ". Without it: {}", defaults.join(" "))?;
        }
        writeln!(page, "| `{}` | {} |", spelling(argument).replace('|', "\\|"), help.trim())?;
    }
    Ok(())
}

/// How an argument is written: `-n, --name <NAME>`, or its place's name.
fn spelling(argument: &Arg) -> String {
    let short = argument.get_short().map(|short| format!("-{short}"));
    let long = argument.get_long().map(|long| format!("--{long}"));
    let value: Vec<_> =
        argument.get_value_names().unwrap_or_default().iter().map(|name| format!("<{name}>")).collect();
    let names: Vec<_> = short.into_iter().chain(long).collect();
    match (names.is_empty(), argument.get_action().takes_values()) {
        (true, _) => value.join(" "),
        (false, true) => format!("{} {}", names.join(", "), value.join(" ")),
        (false, false) => names.join(", "),
    }
}

/// Text in which Markdown finds nothing to set otherwise.
fn escaped(text: &str) -> String {
    let mut escaped = String::new();
    for character in text.chars() {
        if "<>*_`[]|\\".contains(character) {
            escaped.push('\\');
        }
        escaped.push(character);
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::{page, programs_page};
    use crate::command::Arguments;
    use std::ffi::OsString;
    use std::fs;
    use std::path::{Path, PathBuf};

    fn root() -> &'static Path {
        Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
    }

    #[test]
    fn every_command_and_option_is_documented() {
        for (name, option, page) in [("nxl", "", page()), ("programs", " --programs", programs_page())] {
            let there = fs::read_to_string(root().join(format!("docs/{name}.md"))).unwrap_or_default();
            assert!(
                there == page,
                "docs/{name}.md is not what `cargo run -p nxl --bin nxl -- reference{option} > docs/{name}.md` writes"
            );
        }
    }

    /// The lines that show a command of nxl's, in the README and the documents.
    fn shown() -> Vec<(PathBuf, String)> {
        let folders = ["docs", "docs/how-to"].map(|folder| fs::read_dir(root().join(folder)).unwrap());
        let files = folders.into_iter().flatten().map(|entry| entry.unwrap().path());
        let files = files.filter(|path| path.extension().is_some_and(|kind| kind == "md"));
        let mut shown = Vec::new();
        for file in files.chain([root().join("README.md")]) {
            for line in fs::read_to_string(&file).unwrap().lines() {
                let code = line.trim_start().trim_start_matches("$ ");
                let code = code.split(" #").next().unwrap_or_default();
                // Usage, which is no command.
                if ["<", "[OPTIONS]", "[QUBE", "..."].iter().any(|mark| code.contains(mark)) {
                    continue;
                }
                // A bar between words is a pipe; one without spaces stands between alternatives.
                for command in code
                    .split([';', '>', '&'])
                    .flat_map(|part| part.split(" | "))
                    .map(str::trim)
                    .filter(|part| part.starts_with("nxl "))
                {
                    if code.starts_with("nxl ") {
                        shown.push((file.clone(), command.to_owned()));
                    }
                }
            }
        }
        shown
    }

    /// A line with what stands in brackets left out, and once more with each of the alternatives in them.
    fn spelled_out(line: &str) -> Vec<String> {
        let Some((before, rest)) = line.split_once(" [") else { return vec![line.to_owned()] };
        let Some((inside, after)) = rest.split_once(']') else { return vec![line.to_owned()] };
        let mut lines = spelled_out(&format!("{before}{after}"));
        lines.extend(inside.split('|').flat_map(|choice| spelled_out(&format!("{before} {choice}{after}"))));
        lines
    }

    #[test]
    fn every_command_has_an_example_in_its_help() {
        fn without(command: &clap::Command, path: &str, found: &mut Vec<String>) {
            let path = format!("{path} {}", command.get_name());
            let help = command.get_after_long_help().or_else(|| command.get_after_help());
            // Of a command that only has others, they are the examples.
            if !command.has_subcommands() && !help.is_some_and(|help| help.to_string().contains("Example")) {
                found.push(path.clone());
            }
            command
                .get_subcommands()
                .filter(|one| !one.is_hide_set())
                .for_each(|one| without(one, &path, found));
        }
        let mut found = Vec::new();
        without(&crate::command::description(), "", &mut found);
        assert!(found.is_empty(), "{found:?}");
    }

    #[test]
    fn every_documented_command_and_option_exists() {
        let (mut wrong, mut seen) = (Vec::new(), 0);
        for (file, line) in shown() {
            for line in spelled_out(&line) {
                seen += 1;
                if let Err(error) = Arguments::of(line.split_whitespace().map(OsString::from))
                    && error.exit_code() == 2
                {
                    wrong.push(format!(
                        "{}: {line}: {}",
                        file.display(),
                        error.to_string().lines().next().unwrap()
                    ));
                }
            }
        }
        assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
        assert!(seen > 30, "{seen} commands are too few to be all of them");
    }
}
