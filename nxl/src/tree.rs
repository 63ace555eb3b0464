//! `nxl tree`: dom0, its qubes, what is in them, and who may call whom.

use crate::error::Error;
use crate::spec::{self, APPLIED, CallEdge};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{self, Write};
use std::path::Path;
use toolstack::qubes::{Qube, Qubes};
use toolstack::spec::{Class, Document, uuid_of};
use xen::{DomId, PAGE_SHIFT};

pub(crate) fn tree(qubes: &Qubes, path: Option<&Path>, as_json: bool, as_svg: bool) -> Result<(), Error> {
    let path = path.unwrap_or(Path::new(APPLIED));
    if path == Path::new(APPLIED) && !path.exists() {
        return Err(Error::NothingApplied { path: path.to_owned() });
    }
    let spec = spec::read(path)?;
    let nodes = nodes(qubes, spec.document())?;
    let calls = spec::calls(spec.document())?;
    let text = match (as_json, as_svg) {
        (true, _) => format!("{:#}\n", json(&nodes, &calls)),
        (_, true) => svg(&nodes, &calls),
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
    /// The system that is declared, by the name in its store path.
    system: Option<String>,
    /// The kernel that it was booted from, by the name in its store path if it is in one.
    kernel: Option<String>,
    containers: Vec<Inner>,
}

/// A container, as it is declared.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Inner {
    name: String,
    services: Vec<String>,
    memory_mib: Option<u64>,
}

fn nodes(qubes: &Qubes, document: &Document) -> Result<Vec<Node>, Error> {
    let running = qubes.list()?;
    let mut nodes = Vec::new();
    let dom0 = running.iter().find(|qube| qube.info.domid == DomId::DOM0);
    nodes.push(Node { name: "dom0".to_owned(), ..node(qubes, dom0)? });
    for (name, qube) in &document.qubes {
        let found = running.iter().find(|running| running.uuid() == uuid_of(name) && !running.info.dying);
        let containers = qube.containers.iter().map(|(name, container)| Inner {
            name: name.clone(),
            services: container.services.clone(),
            memory_mib: container.memory,
        });
        nodes.push(Node {
            name: name.clone(),
            class: Some(match qube.class {
                Class::Nixos => "nixos",
                Class::Whonix => "whonix",
            }),
            declared: true,
            system: qube.system.as_ref().map(|system| store_name(&system.display().to_string())),
            containers: containers.collect(),
            ..node(qubes, found)?
        });
    }
    let declared = |qube: &Qube| document.qubes.keys().any(|name| uuid_of(name) == qube.uuid());
    for qube in running.iter().filter(|qube| qube.info.domid != DomId::DOM0 && !declared(qube)) {
        nodes.push(node(qubes, Some(qube))?);
    }
    Ok(nodes)
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
    Ok(Node {
        name: found.map_or_else(String::new, |qube| qube.display_name().to_owned()),
        class: None,
        declared: false,
        state,
        domid: found.map(|qube| qube.info.domid),
        memory_mib: found.map(|qube| qube.info.pages >> (20 - PAGE_SHIFT)),
        system: None,
        kernel: kernel.map(store_name),
        containers: Vec::new(),
    })
}

/// `linux-6.12` of `/nix/store/…-linux-6.12/bzImage`; another path as it is.
fn store_name(path: &str) -> String {
    let name = || path.strip_prefix("/nix/store/")?.split('/').next()?.split_once('-').map(|(_, name)| name);
    name().unwrap_or(path).to_owned()
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
    for (number, qube) in qubes.iter().enumerate() {
        let last = number + 1 == qubes.len();
        let (branch, trunk) = if last { ("└─ ", "   ") } else { ("├─ ", "│  ") };
        let _ = writeln!(text, "{branch}{}", title(qube));
        let bar = if qube.containers.is_empty() { "   " } else { "│  " };
        for call in calls_of(&qube.name) {
            let _ = writeln!(text, "{trunk}{bar}{}", arrow(call));
        }
        for (number, container) in qube.containers.iter().enumerate() {
            let last = number + 1 == qube.containers.len();
            let (branch, bar) = if last { ("└─ ", "   ") } else { ("├─ ", "│  ") };
            let offers = container.services.join(", ");
            let offers = if offers.is_empty() { offers } else { format!("  offers {offers}") };
            let memory = container.memory_mib.map_or_else(String::new, |mib| format!("  at most {mib} MiB"));
            let _ = writeln!(text, "{trunk}{branch}{}{memory}{offers}", container.name);
            for call in calls_of(&format!("{}:{}", qube.name, container.name)) {
                let _ = writeln!(text, "{trunk}{bar}   {}", arrow(call));
            }
        }
    }
    text
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
                        "memory_mib": container.memory_mib,
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
                "system": node.system,
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

// --- the drawing: dom0 around its qubes, a column each, containers in them, and curves for the calls

const WIDTH: usize = 230;
const GAP: usize = 110;
const MARGIN: usize = 30;
const HEAD: usize = 76;
const ROW: usize = 50;
const TOP: usize = 70;

fn svg(nodes: &[Node], calls: &[CallEdge]) -> String {
    let Some((dom0, qubes)) = nodes.split_first() else { return String::new() };
    let mut boxes = String::new();
    // Where a curve begins and ends: left edge, and middle in height.
    let mut places: BTreeMap<String, (usize, usize)> = BTreeMap::new();
    let mut height = 0;
    for (number, qube) in qubes.iter().enumerate() {
        let x = MARGIN * 2 + number * (WIDTH + GAP);
        let tall = HEAD + qube.containers.len() * ROW;
        height = height.max(tall);
        let fill = match qube.state {
            "running" => "#e8f1fb",
            _ => "#f2f2f2",
        };
        rectangle(&mut boxes, (x, TOP), (WIDTH, tall), fill);
        label(&mut boxes, (x + 10, TOP + 22), 15, &qube.name);
        let memory = qube.memory_mib.map_or_else(String::new, |mib| format!(", {mib} MiB"));
        label(&mut boxes, (x + 10, TOP + 40), 11, &format!("{}{memory}", qube.state));
        let system = qube.system.as_deref().or(qube.kernel.as_deref()).unwrap_or_default();
        label(&mut boxes, (x + 10, TOP + 56), 10, &shortened(system, 38));
        places.insert(qube.name.clone(), (x, TOP + 20));
        for (row, container) in qube.containers.iter().enumerate() {
            let y = TOP + HEAD - 6 + row * ROW;
            rectangle(&mut boxes, (x + 10, y), (WIDTH - 20, ROW - 10), "#ffffff");
            label(&mut boxes, (x + 20, y + 17), 13, &container.name);
            label(&mut boxes, (x + 20, y + 32), 10, &shortened(&container.services.join(", "), 36));
            places.insert(format!("{}:{}", qube.name, container.name), (x, y + 20));
        }
    }
    let width = (MARGIN * 4 + qubes.len() * (WIDTH + GAP)).saturating_sub(GAP).max(300) + GAP / 2;
    let bottom = TOP + height + MARGIN;
    places.insert("dom0".to_owned(), (MARGIN, MARGIN + 14));
    let mut curves = String::new();
    for (number, call) in calls.iter().enumerate() {
        let (Some(&from), Some(&to)) = (places.get(&call.source), places.get(&call.target)) else { continue };
        curve(&mut curves, from, to, call, number);
    }
    let mut text = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{}\" font-family=\"sans-serif\">\n\
         <defs><marker id=\"tip\" viewBox=\"0 0 8 8\" refX=\"7\" refY=\"4\" markerWidth=\"7\" markerHeight=\"7\" orient=\"auto\">\
         <path d=\"M0 0 L8 4 L0 8 z\" fill=\"#44546a\"/></marker></defs>\n",
        bottom + MARGIN
    );
    rectangle(&mut text, (MARGIN / 2, MARGIN / 2), (width - MARGIN, bottom), "#fbfbf7");
    label(&mut text, (MARGIN, MARGIN + 14), 16, &title(dom0));
    text + &boxes + &curves + "</svg>\n"
}

fn rectangle(text: &mut String, (x, y): (usize, usize), (width, height): (usize, usize), fill: &str) {
    let _ = writeln!(
        text,
        "<rect x=\"{x}\" y=\"{y}\" width=\"{width}\" height=\"{height}\" rx=\"6\" fill=\"{fill}\" stroke=\"#7f7f7f\"/>"
    );
}

fn label(text: &mut String, (x, y): (usize, usize), size: usize, what: &str) {
    if !what.is_empty() {
        let _ = writeln!(text, "<text x=\"{x}\" y=\"{y}\" font-size=\"{size}\">{}</text>", escaped(what));
    }
}

/// From the caller to whom it calls; beside both, when they are in one column.
fn curve(text: &mut String, from: (usize, usize), to: (usize, usize), call: &CallEdge, number: usize) {
    let (right, left) = (from.0 + WIDTH, to.0);
    let (begin, end) = match from.0.cmp(&to.0) {
        std::cmp::Ordering::Less => (right, left),
        std::cmp::Ordering::Equal => (right, left + WIDTH),
        std::cmp::Ordering::Greater => (from.0, left + WIDTH),
    };
    let bend = if from.0 > to.0 { begin.min(end).saturating_sub(GAP / 2) } else { begin.max(end) + GAP / 2 };
    let through = if from.0 == to.0 { bend } else { usize::midpoint(begin, end) };
    let dashes = if call.ask { " stroke-dasharray=\"5 4\"" } else { "" };
    let _ = writeln!(
        text,
        "<path d=\"M{begin} {} C{through} {} {through} {} {end} {}\" fill=\"none\" stroke=\"#44546a\"{dashes} marker-end=\"url(#tip)\"><title>{}</title></path>",
        from.1,
        from.1,
        to.1,
        to.1,
        escaped(&format!("{} -> {}: {}", call.source, call.target, call.service)),
    );
    let x = if from.0 == to.0 { begin + 6 } else { begin.min(end) + 6 };
    // One below the other, where several come from one place.
    label(text, (x, usize::midpoint(from.1, to.1) + 4 + number % 3 * 11), 9, &shortened(&call.service, 20));
}

fn shortened(text: &str, most: usize) -> String {
    match text.char_indices().nth(most) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example() -> (Vec<Node>, Vec<CallEdge>) {
        let plain = Node {
            name: "dom0".to_owned(),
            class: None,
            declared: false,
            state: "running",
            domid: Some(DomId(0)),
            memory_mib: Some(768),
            system: None,
            kernel: None,
            containers: Vec::new(),
        };
        let inner = |name: &str, services: &[&str]| Inner {
            name: name.to_owned(),
            services: services.iter().map(|service| (*service).to_owned()).collect(),
            memory_mib: (name == "db").then_some(64),
        };
        let work = Node {
            name: "work".to_owned(),
            class: Some("nixos"),
            declared: true,
            domid: Some(DomId(3)),
            memory_mib: Some(256),
            system: Some("nixos-system-work".to_owned()),
            kernel: Some("linux-6.12".to_owned()),
            containers: vec![inner("db", &["q.Query"]), inner("web", &[])],
            ..plain.clone()
        };
        let vault = Node {
            name: "vault".to_owned(),
            state: "halted",
            domid: None,
            memory_mib: None,
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
             ├─ work  (3)  running  256 MiB  nixos  nixos-system-work  kernel linux-6.12\n\
             │  ├─ db  at most 64 MiB  offers q.Query\n\
             │  └─ web\n\
             │        -> vault  q.<A>  (asked)\n\
             │        -> work:db  q.<A>\n\
             └─ mine  (4)  running  768 MiB  not declared\n"
        );
        let json = json(&nodes, &calls);
        assert_eq!(json["qubes"][2]["containers"][0]["memory_mib"], 64);
        assert_eq!(json["calls"][1]["ask"], true);
    }

    #[test]
    fn the_drawing_has_every_box_and_every_call() {
        let (nodes, calls) = example();
        let svg = svg(&nodes, &calls);
        // dom0, three qubes, two containers; a path for each call, and the tip's.
        assert_eq!((svg.matches("<rect").count(), svg.matches("<path").count()), (6, 4), "{svg}");
        assert!(svg.contains("q.&lt;A&gt;") && !svg.contains("q.<A>"), "{svg}");
        assert_eq!(svg.matches("stroke-dasharray").count(), 1);
        assert!(svg.ends_with("</svg>\n"));
    }

    #[test]
    fn a_store_path_is_known_by_its_name() {
        assert_eq!(store_name("/nix/store/0123-linux-6.12/bzImage"), "linux-6.12");
        assert_eq!(store_name("/boot/vmlinuz"), "/boot/vmlinuz");
    }
}
