//! `nxl tree`: dom0, its qubes, what is in them, and who may call whom.

mod drawing;

use crate::command::TreeOptions;
use crate::containers;
use crate::error::Error;
use crate::spec::{self, APPLIED, CallEdge};
use nexus::client::containers::{Container, State};
use nexus::policy::DOM0;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{self, Write};
use std::path::Path;
use toolstack::generations::Generations;
use toolstack::qubes::{Qube, Qubes};
use toolstack::spec::{Class, Container as Declared, Document, uuid_of};
use toolstack::store_path;
use xen::{DomId, PAGE_SHIFT};

pub(crate) fn tree(qubes: &Qubes, options: &TreeOptions) -> Result<(), Error> {
    let path = options.spec.as_deref().unwrap_or(Path::new(APPLIED));
    if path == Path::new(APPLIED) && !path.exists() {
        return Err(Error::NothingApplied { path: path.to_owned() });
    }
    let spec = spec::read(path)?;
    let mut nodes = nodes(qubes, spec.document())?;
    if !options.no_ask {
        let asked = nodes.iter().filter(|node| node.state == "running" && !node.containers.is_empty());
        let asked: Vec<String> = asked.map(|node| node.name.clone()).collect();
        for (qube, said) in containers::list_all(asked) {
            hear(&mut nodes, &qube, &said);
        }
    }
    let calls = spec::calls(spec.document())?;
    let text = match (options.json, options.svg) {
        (true, _) => format!("{:#}\n", json(&nodes, &calls)),
        (_, true) => drawing::svg(&nodes, &calls),
        _ => text(&nodes, &calls),
    };
    io::stdout().write_all(text.as_bytes()).map_err(Error::Output)
}

/// dom0 or a qube.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Node {
    name: String,
    /// nixos, whonix, or nothing of dom0 and of what is not declared.
    class: Option<&'static str>,
    declared: bool,
    /// running, paused, shut down, halted.
    state: &'static str,
    domid: Option<DomId>,
    memory_mib: Option<u64>,
    /// What of that it says to be in use.
    used_kib: Option<u64>,
    /// The system that is declared, by the name in its store path.
    system: Option<String>,
    /// The kernel that it was booted from, by the name in its store path if it is in one.
    kernel: Option<String>,
    /// The generation that it was booted from.
    generation: Option<u64>,
    containers: Vec<Inner>,
}

/// A container, as it is declared.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Inner {
    name: String,
    services: Vec<String>,
    /// The most that it may have.
    memory_mib: Option<u64>,
    /// What its qube says that it does, and has; none if the qube did not say.
    state: Option<State>,
    used_kib: Option<u64>,
}

/// Takes down what a qube says of its containers. Of those that are not declared it may say what it wants.
fn hear(nodes: &mut [Node], qube: &str, said: &[Container]) {
    let declared = nodes.iter_mut().filter(|node| node.name == qube).flat_map(|node| &mut node.containers);
    for inner in declared {
        if let Some(found) = said.iter().find(|found| found.name.as_str() == inner.name) {
            (inner.state, inner.used_kib) = (Some(found.state), found.memory_kib);
        }
    }
}

fn nodes(qubes: &Qubes, document: &Document) -> Result<Vec<Node>, Error> {
    let running = qubes.list()?;
    let generations = Generations::default();
    let mut nodes = Vec::new();
    let dom0 = running.iter().find(|qube| qube.info.domid == DomId::DOM0);
    let own = document.dom0s_containers();
    nodes.push(Node { name: DOM0.to_owned(), containers: containers_of(own), ..node(qubes, dom0)? });
    for (name, qube) in &document.qubes {
        let found = running.iter().find(|running| running.uuid() == uuid_of(name) && !running.info.dying);
        nodes.push(Node {
            name: name.clone(),
            class: Some(match qube.class {
                Class::Nixos => "nixos",
                Class::Whonix => "whonix",
            }),
            declared: true,
            system: qube.system.as_ref().map(|system| store_name(&system.display().to_string())),
            generation: generation(&generations, name, found.is_some())?,
            containers: containers_of(&qube.containers),
            ..node(qubes, found)?
        });
    }
    let declared = |qube: &Qube| document.qubes.keys().any(|name| uuid_of(name) == qube.uuid());
    for qube in running.iter().filter(|qube| qube.info.domid != DomId::DOM0 && !declared(qube)) {
        nodes.push(node(qubes, Some(qube))?);
    }
    Ok(nodes)
}

/// Containers as they are declared: nobody has said what they do.
fn containers_of(declared: &BTreeMap<String, Declared>) -> Vec<Inner> {
    let containers = declared.iter().map(|(name, container)| Inner {
        name: name.clone(),
        services: container.services.clone(),
        memory_mib: container.memory,
        state: None,
        used_kib: None,
    });
    containers.collect()
}

/// Which generation a qube runs.
fn generation(generations: &Generations, name: &str, runs: bool) -> Result<Option<u64>, Error> {
    if !runs {
        return Ok(None);
    }
    Ok(generations.record(name)?.booted.map(|variant| variant.generation))
}

/// What the host says of a domain, or of one that does not run.
fn node(qubes: &Qubes, found: Option<&Qube>) -> Result<Node, Error> {
    let state = match found {
        None => "halted",
        Some(qube) if qube.info.shutdown.is_some() => "shut down",
        Some(qube) if qube.info.paused => "paused",
        Some(_) => "running",
    };
    let config = match found {
        Some(qube) if qube.info.domid != DomId::DOM0 => qubes.current_config(qube)?,
        _ => None,
    };
    let kernel = config.as_ref().and_then(|config| config.pointer("/b_info/kernel")?.as_str());
    let used_kib = found.map(|qube| qubes.memory_in_use(qube)).transpose()?.flatten();
    Ok(Node {
        name: found.map_or_else(String::new, |qube| qube.display_name().to_owned()),
        class: None,
        declared: false,
        state,
        domid: found.map(|qube| qube.info.domid),
        memory_mib: found.map(|qube| qube.info.pages >> (20 - PAGE_SHIFT)),
        used_kib,
        system: None,
        kernel: kernel.map(store_name),
        generation: None,
        containers: Vec::new(),
    })
}

/// What a path's store path is called; another path as it is.
fn store_name(path: &str) -> String {
    store_path::name(path).unwrap_or(path).to_owned()
}

/// The calls of each caller.
fn by_source(calls: &[CallEdge]) -> BTreeMap<&str, Vec<&CallEdge>> {
    let mut by_source: BTreeMap<&str, Vec<&CallEdge>> = BTreeMap::new();
    for call in calls {
        by_source.entry(&call.source).or_default().push(call);
    }
    by_source
}

fn text(nodes: &[Node], calls: &[CallEdge]) -> String {
    let calls = by_source(calls);
    let calls_of = |source: &str| calls.get(source).map_or(&[][..], Vec::as_slice);
    let mut text = String::new();
    let Some((dom0, qubes)) = nodes.split_first() else { return text };
    let _ = writeln!(text, "{}", title(dom0));
    let calls_of_container =
        |owner: &Node, container: &Inner| calls_of(&format!("{}:{}", owner.name, container.name));
    for (number, container) in dom0.containers.iter().enumerate() {
        let last = qubes.is_empty() && number + 1 == dom0.containers.len();
        // Its name is not to be taken for a qube's.
        let title = format!("dom0:{}", container.title());
        branch(&mut text, "", last, &title, calls_of_container(dom0, container));
    }
    for (number, qube) in qubes.iter().enumerate() {
        let last = number + 1 == qubes.len();
        let (twig, trunk) = twig(last);
        let _ = writeln!(text, "{twig}{}", title(qube));
        let bar = if qube.containers.is_empty() { "   " } else { "│  " };
        for call in calls_of(&qube.name) {
            let _ = writeln!(text, "{trunk}{bar}{}", arrow(call));
        }
        for (number, container) in qube.containers.iter().enumerate() {
            let last = number + 1 == qube.containers.len();
            branch(&mut text, trunk, last, &container.title(), calls_of_container(qube, container));
        }
    }
    text
}

/// What leads to one, and what stands before all that is below it.
fn twig(last: bool) -> (&'static str, &'static str) {
    if last { ("└─ ", "   ") } else { ("├─ ", "│  ") }
}

/// A container, and below it whom it may call.
fn branch(text: &mut String, trunk: &str, last: bool, title: &str, calls: &[&CallEdge]) {
    let (twig, bar) = twig(last);
    let _ = writeln!(text, "{trunk}{twig}{title}");
    for call in calls {
        let _ = writeln!(text, "{trunk}{bar}   {}", arrow(call));
    }
}

impl Inner {
    fn title(&self) -> String {
        let mut parts = vec![self.name.clone()];
        parts.extend(self.status());
        if !self.services.is_empty() {
            parts.push(format!("offers {}", self.services.join(", ")));
        }
        parts.join("  ")
    }

    /// What it does, and its memory.
    fn status(&self) -> Vec<String> {
        let used = self.used_kib.map(|kib| kib.div_ceil(1024));
        let memory = match (used, self.memory_mib) {
            (Some(used), Some(most)) => Some(format!("{used} of {most} MiB")),
            (Some(used), None) => Some(format!("{used} MiB")),
            (None, Some(most)) => Some(format!("at most {most} MiB")),
            (None, None) => None,
        };
        self.state.map(|state| state.to_string()).into_iter().chain(memory).collect()
    }
}

fn title(node: &Node) -> String {
    let mut parts = vec![node.name.clone()];
    if let Some(domid) = node.domid.filter(|domid| *domid != DomId::DOM0) {
        parts.push(format!("({domid})"));
    }
    parts.push(node.state.to_owned());
    parts.extend(node.memory_mib.map(|mib| format!("{mib} MiB")));
    parts.extend(node.class.map(str::to_owned));
    parts.extend(node.system.clone());
    parts.extend(node.generation.map(|number| format!("generation {number}")));
    parts.extend(node.kernel.as_ref().map(|kernel| format!("kernel {kernel}")));
    if !node.declared && node.domid != Some(DomId::DOM0) {
        parts.push("not declared".to_owned());
    }
    parts.join("  ")
}

fn arrow(call: &CallEdge) -> String {
    format!("-> {}  {}{}", call.target, call.service, if call.ask { "  (asked)" } else { "" })
}

fn json(nodes: &[Node], calls: &[CallEdge]) -> Value {
    let nodes: Vec<_> = nodes
        .iter()
        .map(|node| {
            let containers: Vec<_> = node
                .containers
                .iter()
                .map(|container| {
                    json!({
                        "name": container.name,
                        "services": container.services,
                        "state": container.state,
                        "memory_mib": container.memory_mib,
                        "used_kib": container.used_kib,
                    })
                })
                .collect();
            json!({
                "name": node.name,
                "class": node.class,
                "declared": node.declared,
                "state": node.state,
                "domid": node.domid.map(|domid| domid.0),
                "memory_mib": node.memory_mib,
                "used_kib": node.used_kib,
                "system": node.system,
                "generation": node.generation,
                "kernel": node.kernel,
                "containers": containers,
            })
        })
        .collect();
    let calls: Vec<_> = calls
        .iter()
        .map(|call| {
            json!({ "source": call.source, "target": call.target, "service": call.service, "ask": call.ask })
        })
        .collect();
    json!({ "qubes": nodes, "calls": calls })
}

#[cfg(test)]
mod tests {
    use super::*;
    use nexus::name::Name;

    pub(super) fn example() -> (Vec<Node>, Vec<CallEdge>) {
        let plain = Node {
            name: "dom0".to_owned(),
            class: None,
            declared: false,
            state: "running",
            domid: Some(DomId(0)),
            memory_mib: Some(768),
            used_kib: None,
            system: None,
            kernel: None,
            generation: None,
            containers: Vec::new(),
        };
        let inner = |name: &str, services: &[&str]| Inner {
            name: name.to_owned(),
            services: services.iter().map(|service| (*service).to_owned()).collect(),
            memory_mib: (name == "db").then_some(64),
            state: None,
            used_kib: None,
        };
        let work = Node {
            name: "work".to_owned(),
            class: Some("nixos"),
            declared: true,
            domid: Some(DomId(3)),
            memory_mib: Some(256),
            used_kib: None,
            system: Some("nixos-system-work".to_owned()),
            kernel: Some("linux-6.12".to_owned()),
            generation: Some(7),
            containers: vec![inner("db", &["q.Query"]), inner("web", &[])],
            ..plain.clone()
        };
        let vault = Node {
            name: "vault".to_owned(),
            state: "halted",
            domid: None,
            memory_mib: None,
            used_kib: None,
            generation: None,
            containers: Vec::new(),
            ..work.clone()
        };
        let mine = Node { name: "mine".to_owned(), domid: Some(DomId(4)), ..plain.clone() };
        let call = |source: &str, target: &str, ask| CallEdge {
            source: source.to_owned(),
            target: target.to_owned(),
            service: "q.<A>".to_owned(),
            ask,
        };
        let calls = vec![
            call("vault", "work", false),
            call("work:web", "vault", true),
            call("work:web", "work:db", false),
        ];
        (vec![plain, vault, work, mine], calls)
    }

    #[test]
    fn the_tree_has_what_is_in_each_and_whom_it_may_call() {
        let (nodes, calls) = example();
        assert_eq!(
            text(&nodes, &calls),
            "dom0  running  768 MiB\n\
             ├─ vault  halted  nixos  nixos-system-work  kernel linux-6.12\n\
             │     -> work  q.<A>\n\
             ├─ work  (3)  running  256 MiB  nixos  nixos-system-work  generation 7  kernel linux-6.12\n\
             │  ├─ db  at most 64 MiB  offers q.Query\n\
             │  └─ web\n\
             │        -> vault  q.<A>  (asked)\n\
             │        -> work:db  q.<A>\n\
             └─ mine  (4)  running  768 MiB  not declared\n"
        );
        let (mut nodes, calls) = (nodes, calls);
        let said =
            |name: &str, state, memory_kib| Container { name: Name::new(name).unwrap(), state, memory_kib };
        let said = [
            said("db", State::Running, Some(5000)),
            said("web", State::Failed, None),
            said("undeclared", State::Running, None),
        ];
        hear(&mut nodes, "vault", &said);
        hear(&mut nodes, "work", &said);
        let shown = text(&nodes, &calls);
        assert!(
            shown.contains("│  ├─ db  running  5 of 64 MiB  offers q.Query\n│  └─ web  failed\n"),
            "{shown}"
        );
        assert!(!shown.contains("undeclared"), "{shown}");
        let json = json(&nodes, &calls);
        assert_eq!(
            (&json["qubes"][2]["containers"][0]["state"], &json["qubes"][2]["containers"][0]["used_kib"]),
            (&"running".into(), &5000.into())
        );
        assert_eq!(json["qubes"][2]["containers"][0]["memory_mib"], 64);
        assert_eq!(json["calls"][1]["ask"], true);
    }

    #[test]
    fn dom0s_containers_stand_before_the_qubes() {
        let (mut nodes, mut calls) = example();
        nodes[0].containers = nodes[2].containers.clone();
        let call = |source: &str, target: &str| CallEdge {
            source: source.to_owned(),
            target: target.to_owned(),
            service: "q.A".to_owned(),
            ask: false,
        };
        calls.extend([call("dom0:web", "vault"), call("vault", "dom0:db")]);
        hear(
            &mut nodes,
            "dom0",
            &[Container { name: Name::new("db").unwrap(), state: State::Running, memory_kib: None }],
        );
        let text = text(&nodes, &calls);
        assert!(
            text.starts_with(
                "dom0  running  768 MiB\n\
                 ├─ dom0:db  running  at most 64 MiB  offers q.Query\n\
                 ├─ dom0:web\n\
                 │     -> vault  q.A\n\
                 ├─ vault  halted"
            ),
            "{text}"
        );
        let svg = drawing::svg(&nodes, &calls);
        // Two boxes more, and a line from one and one to the other.
        assert_eq!((svg.matches("<rect").count(), svg.matches("<path").count()), (8, 6), "{svg}");
        assert_eq!(json(&nodes, &calls)["qubes"][0]["containers"][0]["state"], "running");
    }

    #[test]
    fn a_store_path_is_known_by_its_name() {
        assert_eq!(
            store_name("/nix/store/00000000000000000000000000000000-linux-6.12/bzImage"),
            "linux-6.12"
        );
        assert_eq!(store_name("/boot/vmlinuz"), "/boot/vmlinuz");
    }
}
