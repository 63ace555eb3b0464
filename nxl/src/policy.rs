//! `nxl policy`: is a policy right, what does it decide and why, and who may call whom.

use crate::command::{PolicyCommand, PolicySource};
use crate::error::Error;
use nexus::policy::{
    Call, Edge, Place, Policy, PolicyError, PolicyFolders, Principal, Qube, QubeInfo, Rule, Service, System,
    Token,
};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::io::{self, Write};
use std::path::Path;
use std::process::{Command, Stdio};

/// Where what is not known of the qubes was taken from.
const FROM_POLICY: &str = "The qubes are those that the policy names, and have neither tags nor disposables; --system says what they really are.";

pub(crate) fn policy(command: &PolicyCommand) -> Result<(), Error> {
    let mut out = io::stdout();
    match command {
        PolicyCommand::Check { folders, system, json } => {
            let (text, faults) = check(&policy_folders(folders), system.as_deref(), *json)?;
            out.write_all(text.as_bytes()).map_err(Error::Output)?;
            if faults > 0 { Err(Error::WrongPolicy(faults)) } else { Ok(()) }
        }
        PolicyCommand::Explain { policy, json, source, target, service } => {
            let text = explain(policy, *json, source, target, service)?;
            out.write_all(text.as_bytes()).map_err(Error::Output)
        }
        PolicyCommand::Graph { policy, svg } => {
            let (policy, system) = read(policy)?;
            let system = system.unwrap_or_else(|| policy.mentioned());
            let text = dot(&policy.edges(&system));
            let bytes = if *svg { draw(&text)? } else { text.into_bytes() };
            out.write_all(&bytes).map_err(Error::Output)
        }
    }
}

fn policy_folders(folders: &[std::path::PathBuf]) -> PolicyFolders {
    if folders.is_empty() { PolicyFolders::default() } else { PolicyFolders::of(folders.iter().cloned()) }
}

/// A folder that was asked for is there; those that nobody asked for need not be.
fn must_exist(folders: &PolicyFolders) -> Result<(), Error> {
    for path in &folders.folders {
        if *folders != PolicyFolders::default() {
            fs::read_dir(path).map_err(|source| Error::Read { path: path.clone(), source })?;
        }
    }
    Ok(())
}

/// A right policy, and the qubes if a file says them.
fn read(source: &PolicySource) -> Result<(Policy, Option<System>), Error> {
    let folders = policy_folders(&source.folders);
    must_exist(&folders)?;
    let policy = folders.read().policy.map_err(|errors| {
        let others = errors.len().saturating_sub(1);
        let first = errors.into_iter().next().map_or_else(String::new, |error| error.to_string());
        Error::Policy { first, others }
    })?;
    Ok((policy, source.system.as_deref().map(system).transpose()?))
}

fn system(path: &Path) -> Result<System, Error> {
    let text = fs::read_to_string(path).map_err(|source| Error::Read { path: path.to_owned(), source })?;
    serde_json::from_str(&text).map_err(|source| Error::Stored { path: path.display().to_string(), source })
}

/// What is wrong, or looks so, and how many faults there are.
fn check(folders: &PolicyFolders, file: Option<&Path>, json: bool) -> Result<(String, usize), Error> {
    must_exist(folders)?;
    let reading = folders.read();
    let mut warnings = reading.warnings;
    let (rules, errors) = match reading.policy {
        Ok(policy) => {
            if let Some(file) = file {
                warnings.extend(strangers(policy.rules(), &system(file)?));
            }
            (policy.rules().len(), Vec::new())
        }
        Err(errors) => (0, errors),
    };
    let faults = errors.len();
    let text = if json {
        let described: Vec<_> = errors.iter().map(fault).collect();
        let value = serde_json::json!({ "rules": rules, "errors": described, "warnings": warnings });
        format!("{value:#}\n")
    } else {
        let mut text = String::new();
        // Writing to a String does not fail.
        errors.iter().for_each(|error| _ = writeln!(text, "{error}"));
        warnings.iter().for_each(|warning| _ = writeln!(text, "{warning}"));
        if faults == 0 {
            let _ = writeln!(text, "{rules} rules");
        }
        text
    };
    Ok((text, faults))
}

fn fault(error: &PolicyError) -> serde_json::Value {
    serde_json::json!({
        "file": error.file.to_string_lossy(),
        "line": error.place.map(|(line, _)| line),
        "column": error.place.map(|(_, column)| column),
        "error": error.fault.to_string(),
    })
}

/// Rules with names that no qube has: they never match. Each name is told of once, where it stands first.
fn strangers(rules: &[Rule], system: &System) -> Vec<String> {
    let mut told = BTreeSet::new();
    let mut warnings = Vec::new();
    let known = |place: &Place| match place {
        Place::AdminVm | Place::DispVm => true,
        Place::Qube(qube) | Place::DispVmOf(qube) => system.qube(qube).is_some(),
        Place::Container { qube, container } => {
            system.qubes.get(qube).is_some_and(|info| info.containers.contains(container))
        }
    };
    let any = |test: &dyn Fn(&QubeInfo) -> bool| system.qubes.values().any(test);
    for rule in rules {
        let mut tell = |what: String| {
            if told.insert(what.clone()) {
                warnings.push(format!("{}: {what} is no qube's", rule.origin));
            }
        };
        for token in [&rule.source, &rule.target] {
            match token {
                Token::Place(place) if !known(place) => tell(format!("the name {place}")),
                Token::Containers(qube) if !system.qubes.contains_key(qube) => {
                    tell(format!("the name {qube}"))
                }
                Token::Tag(tag) if !any(&|info| info.tags.contains(tag)) => tell(format!("the tag {tag}")),
                Token::DispVmTag(tag)
                    if !any(&|info| info.template_for_dispvms && info.tags.contains(tag)) =>
                {
                    tell(format!("the tag {tag} of templates of disposables"));
                }
                Token::Type(class) if !any(&|info| info.class == *class) => tell(format!("the type {class}")),
                _ => {}
            }
        }
        rule.action
            .places()
            .filter(|place| !known(place))
            .for_each(|place| tell(format!("the name {place}")));
    }
    warnings
}

fn explain(
    from: &PolicySource,
    json: bool,
    source: &str,
    target: &str,
    service: &str,
) -> Result<String, Error> {
    let (policy, system) = read(from)?;
    let call = Call {
        source: Principal::parse(source)?,
        target: Place::intended(target)?,
        service: Service::parse(service)?,
    };
    let known = system.is_some();
    let system = system.unwrap_or_else(|| with_call(policy.mentioned(), &call));
    let explanation = policy.explain(&call, &system);
    Ok(if json {
        let value = serde_json::to_value(&explanation).map_err(|error| Error::Output(error.into()))?;
        format!("{value:#}\n")
    } else if known {
        explanation.to_string()
    } else {
        format!("{FROM_POLICY}\n{explanation}")
    })
}

/// Who is asked about is taken to exist.
fn with_call(mut system: System, call: &Call) -> System {
    let target = call.target.iter().filter_map(|target| match target {
        Place::Qube(Qube::Name(name)) | Place::DispVmOf(Qube::Name(name)) => Some((name, None)),
        Place::Container { qube, container } => Some((qube, Some(container))),
        _ => None,
    });
    let source = match &call.source {
        Principal::AdminVm => None,
        Principal::Qube(name) => Some((name, None)),
        Principal::Container { qube, container } => Some((qube, Some(container))),
    };
    for (qube, container) in source.into_iter().chain(target) {
        let info = system.qubes.entry(qube.clone()).or_insert_with(QubeInfo::app_vm);
        info.containers.extend(container.cloned());
    }
    if let Some(Place::DispVmOf(Qube::Name(name))) = &call.target {
        system.qubes.entry(name.clone()).and_modify(|info| info.template_for_dispvms = true);
    }
    system
}

/// Graphviz's text: an arrow for each pair, with the services on it; broken where somebody is asked. Containers are
/// within their qubes.
fn dot(edges: &BTreeSet<Edge>) -> String {
    let mut arrows: BTreeMap<(String, String, bool), Vec<&str>> = BTreeMap::new();
    let mut nodes = BTreeSet::new();
    for edge in edges {
        let (source, target) = (edge.source.to_string(), edge.target.to_string());
        nodes.extend([source.clone(), target.clone()]);
        arrows.entry((source, target, edge.ask)).or_default().push(&edge.service);
    }
    let mut text = String::from(
        "digraph policy {\n  rankdir=LR;\n  node [shape=box, fontname=\"sans-serif\"];\n  edge [fontname=\"sans-serif\", fontsize=10];\n",
    );
    // Writing to a String does not fail.
    let mut qubes: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for node in &nodes {
        match node.split_once(':') {
            Some((qube, _)) if !node.starts_with('@') => qubes.entry(qube).or_default().push(node),
            _ if node.starts_with("@dispvm") => _ = writeln!(text, "  \"{node}\" [style=dashed];"),
            _ => qubes.entry(node).or_default().push(node),
        }
    }
    for (qube, nodes) in qubes {
        if let [node] = nodes[..] {
            let _ = writeln!(text, "  \"{node}\";");
            continue;
        }
        let _ = writeln!(text, "  subgraph \"cluster_{qube}\" {{\n    label=\"{qube}\";");
        nodes.iter().for_each(|node| _ = writeln!(text, "    \"{node}\";"));
        text += "  }\n";
    }
    for ((source, target, ask), services) in arrows {
        let style = if ask { ", style=dashed" } else { "" };
        let _ = writeln!(text, "  \"{source}\" -> \"{target}\" [label=\"{}\"{style}];", services.join("\\n"));
    }
    text + "}\n"
}

/// Has Graphviz draw it.
fn draw(text: &str) -> Result<Vec<u8>, Error> {
    let dot = |source| Error::Graphviz { source };
    let mut child =
        Command::new("dot").arg("-Tsvg").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().map_err(dot)?;
    let input = child.stdin.take();
    let output = std::thread::scope(|scope| {
        let writer = scope.spawn(move || input.map_or(Ok(()), |mut input| input.write_all(text.as_bytes())));
        let output = child.wait_with_output();
        // What it did not read it has no use for; its status says whether that was right.
        let _ = writer.join();
        output
    })
    .map_err(dot)?;
    if !output.status.success() {
        return Err(dot(io::Error::other(output.status.to_string())));
    }
    Ok(output.stdout)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;

    fn folder(text: &str) -> (tempfile::TempDir, PolicySource) {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("30-user.policy"), text).unwrap();
        let source = PolicySource { folders: vec![folder.path().to_owned()], system: None };
        (folder, source)
    }

    const POLICY: &str = "q.Sign * work:mail vault:gpg allow\nq.A * work @tag:red ask target=vault\nq.A * @tag:red @dispvm allow\n";

    fn with_system(folder: &tempfile::TempDir) -> PathBuf {
        let path = folder.path().join("system.json");
        let text = r#"{ "qubes": {
            "work": { "type": "AppVM", "containers": ["mail"], "default_dispvm": "dvm" },
            "vault": { "type": "AppVM", "tags": ["red"], "default_dispvm": "dvm" },
            "dvm": { "type": "AppVM", "template_for_dispvms": true }
        } }"#;
        fs::write(&path, text).unwrap();
        path
    }

    #[test]
    fn a_right_policy_is_counted_and_strangers_are_told_of() {
        let (folder, source) = folder(POLICY);
        let folders = policy_folders(&source.folders);
        assert_eq!(check(&folders, None, false).unwrap(), ("3 rules\n".to_owned(), 0));
        let file = folder.path().join("30-user.policy");
        assert_eq!(
            check(&folders, Some(&with_system(&folder)), false).unwrap().0,
            format!("{}:1: the name vault:gpg is no qube's\n3 rules\n", file.display())
        );
    }

    #[test]
    fn every_fault_is_told_of_with_its_place() {
        let (folder, source) = folder("x\n* * * * dney\n");
        let file = folder.path().join("30-user.policy");
        let folders = policy_folders(&source.folders);
        let (text, faults) = check(&folders, None, false).unwrap();
        let lines: Vec<_> = text.lines().collect();
        assert_eq!((faults, lines.len()), (2, 2));
        assert!(lines[1].starts_with(&format!("{}:2:9: ", file.display())), "{text}");
        let json: serde_json::Value = serde_json::from_str(&check(&folders, None, true).unwrap().0).unwrap();
        assert_eq!((&json["errors"][1]["line"], &json["errors"][1]["column"]), (&2.into(), &9.into()));
        let error = read(&source).unwrap_err().to_string();
        assert!(
            error.contains(":1:2: ") && error.ends_with("(and 1 more; `nxl policy check` has them all)"),
            "{error}"
        );
    }

    #[test]
    fn a_folder_that_was_asked_for_is_there() {
        let source = PolicySource { folders: vec!["/nonexistent".into()], system: None };
        assert!(matches!(read(&source), Err(Error::Read { .. })));
        assert!(matches!(check(&policy_folders(&source.folders), None, false), Err(Error::Read { .. })));
    }

    #[test]
    fn a_decision_is_explained_in_words_and_in_json() {
        let (folder, mut source) = folder(POLICY);
        let text = explain(&source, false, "work:mail", "vault:gpg", "q.Sign+key").unwrap();
        assert!(text.starts_with(FROM_POLICY), "{text}");
        assert!(text.ends_with("matches\nallow target=vault:gpg\n"), "{text}");
        // Not known from the policy, but asked about.
        let text = explain(&source, false, "other:x", "third", "q.Sign").unwrap();
        assert!(text.ends_with("no other rules\ndeny: no rule matches\n"), "{text}");
        source.system = Some(with_system(&folder));
        let json = explain(&source, true, "vault", "@dispvm", "q.A").unwrap();
        let json: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert_eq!(json["decision"]["target"], "@dispvm:dvm");
        assert_eq!(json["matched"]["line"], 3);
        assert_eq!(json["passed"][0]["why"], "vault is not work");
        assert!(explain(&source, false, "@tag:x", "vault", "q.A").is_err());
        assert!(explain(&source, false, "work", "@anyvm", "q.A").is_err());
        assert!(explain(&source, false, "work", "vault", "q/A").is_err());
    }

    #[test]
    fn a_graph_has_containers_within_their_qubes() {
        let (folder, mut source) = folder(
            "q.Sign * work:mail vault ask\nq.A * work vault allow\nq.B * work vault allow\nq.A * vault @dispvm allow\n",
        );
        source.system = Some(with_system(&folder));
        let (policy, system) = read(&source).unwrap();
        let text = dot(&policy.edges(&system.unwrap()));
        assert_eq!(
            text.lines().skip(4).collect::<Vec<_>>(),
            [
                "  \"@dispvm:dvm\" [style=dashed];",
                "  \"vault\";",
                "  subgraph \"cluster_work\" {",
                "    label=\"work\";",
                "    \"work\";",
                "    \"work:mail\";",
                "  }",
                "  \"vault\" -> \"@dispvm:dvm\" [label=\"q.A\"];",
                "  \"work\" -> \"vault\" [label=\"q.A\\nq.B\"];",
                "  \"work:mail\" -> \"vault\" [label=\"q.Sign\", style=dashed];",
                "}",
            ]
        );
    }
}
