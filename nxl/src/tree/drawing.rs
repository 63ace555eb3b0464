//! The tree as a drawing: dom0 around its qubes, one below the other, containers in them; beside each what it may call, and from
//! there a line to whom, in a lane of its own.

use super::{Inner, Node, title};
use crate::spec::CallEdge;
use nexus::client::containers::State;
use std::collections::BTreeMap;
use std::fmt::Write as _;

const MARGIN: usize = 24;
/// Of a qube's box.
const WIDTH: usize = 460;
/// By how much a container's box is narrower on each side.
const INSET: usize = 14;
/// A line of text below another.
const LINE: usize = 16;
/// The name of a box, and what is below it.
const NAME: usize = 24;
const GAP: usize = 12;
/// Between two lanes.
const LANE: usize = 12;
/// Between two tips at one box.
const TIP: usize = 6;
/// How many tips a box has room for; more stand in the same places.
const TIPS: usize = 6;
/// What a line of text may have.
const CHARACTERS: usize = 64;
const COLOURS: [&str; 6] = ["#2f5d8a", "#a8501a", "#4a7a2c", "#7a3b8f", "#8a6d1b", "#1f7f7f"];

/// All that one may call of another.
struct Line<'a> {
    target: &'a str,
    ask: bool,
    services: Vec<&'a str>,
    /// Where it begins.
    from: (usize, usize),
    colour: &'static str,
}

/// A drawing that grows downwards.
#[derive(Default)]
struct Drawing<'a> {
    boxes: String,
    y: usize,
    lines: Vec<Line<'a>>,
    /// The right edge and the top of each box.
    places: BTreeMap<String, (usize, usize)>,
}

pub(super) fn svg(nodes: &[Node], calls: &[CallEdge]) -> String {
    let Some((dom0, qubes)) = nodes.split_first() else { return String::new() };
    let mut drawing = Drawing { y: MARGIN, ..Drawing::default() };
    let inner = MARGIN * 2;
    drawing.places.insert(dom0.name.clone(), (inner + WIDTH, drawing.y));
    drawing.text(inner, NAME, 16, &title(dom0));
    for container in &dom0.containers {
        drawing.container(inner + INSET, &dom0.name, container, calls);
    }
    drawing.y += GAP;
    for qube in qubes {
        drawing.qube(inner, qube, calls);
    }
    drawing.finish(inner)
}

impl<'a> Drawing<'a> {
    fn text(&mut self, x: usize, height: usize, size: usize, what: &str) {
        self.y += height;
        label(&mut self.boxes, (x, self.y - 5), size, what);
    }

    fn qube(&mut self, x: usize, qube: &'a Node, calls: &'a [CallEdge]) {
        let top = self.y;
        self.places.insert(qube.name.clone(), (x + WIDTH, top));
        let outside = std::mem::take(&mut self.boxes);
        self.text(x + INSET, NAME, 15, &qube.name);
        let domid = qube.domid.map(|domid| format!("domain {}", domid.0));
        let memory = qube.memory_mib.map(|mib| format!("{mib} MiB"));
        let state = [Some(qube.state.to_owned()), memory, domid].into_iter().flatten().collect::<Vec<_>>();
        self.text(x + INSET, LINE, 11, &state.join(", "));
        let kernel = qube.kernel.as_ref().map(|kernel| format!("kernel {kernel}"));
        let generation = qube.generation.map(|number| format!("generation {number}"));
        let system =
            [qube.system.clone(), generation, kernel].into_iter().flatten().collect::<Vec<_>>().join(", ");
        if !system.is_empty() {
            self.text(x + INSET, LINE, 11, &shortened(&system));
        }
        self.calls((x + INSET, x + WIDTH), &qube.name, calls);
        for container in &qube.containers {
            self.container(x + INSET, &qube.name, container, calls);
        }
        self.y += GAP / 2;
        let fill = if qube.state == "running" { "#e8f1fb" } else { "#f2f2f2" };
        self.enclose(outside, (x, top), WIDTH, fill);
    }

    fn container(&mut self, x: usize, qube: &str, container: &'a Inner, calls: &'a [CallEdge]) {
        self.y += GAP / 2;
        let (top, width) = (self.y, WIDTH - 2 * INSET);
        let name = format!("{qube}:{}", container.name);
        self.places.insert(name.clone(), (x + width, top));
        let outside = std::mem::take(&mut self.boxes);
        self.text(x + INSET, NAME, 13, &container.name);
        let status = container.status();
        if !status.is_empty() {
            self.text(x + INSET, LINE, 11, &status.join(", "));
        }
        if !container.services.is_empty() {
            self.text(x + INSET, LINE, 11, &shortened(&format!("offers {}", container.services.join(", "))));
        }
        self.calls((x + INSET, x + width), &name, calls);
        self.y += GAP / 2;
        let fill = match container.state {
            None | Some(State::Running) => "#ffffff",
            Some(State::Failed) => "#fbe3e0",
            Some(_) => "#f2f2f2",
        };
        self.enclose(outside, (x, top), width, fill);
    }

    /// Puts a box around what was drawn since its top, behind what was drawn before.
    fn enclose(&mut self, mut outside: String, (x, top): (usize, usize), width: usize, fill: &str) {
        rectangle(&mut outside, (x, top), (width, self.y - top), fill);
        self.boxes = outside + &self.boxes;
        self.y += GAP / 2;
    }

    /// A line of text for each whom it may call; those that are asked about stand by themselves.
    fn calls(&mut self, (x, right): (usize, usize), source: &str, calls: &'a [CallEdge]) {
        let mut targets: BTreeMap<(&str, bool), Vec<&str>> = BTreeMap::new();
        for call in calls.iter().filter(|call| call.source == source) {
            let target = if call.target == "@adminvm" { "dom0" } else { &call.target };
            targets.entry((target, call.ask)).or_default().push(&call.service);
        }
        let colour = COLOURS[self.places.len() % COLOURS.len()];
        for ((target, ask), services) in targets {
            let asked = if ask { ", asked" } else { "" };
            let said = format!("→ {target}: {}{asked}", services.join(", "));
            self.y += LINE;
            let at = (x, self.y - 5);
            let _ = writeln!(
                self.boxes,
                "<text x=\"{}\" y=\"{}\" font-size=\"11\" fill=\"{colour}\">{}</text>",
                at.0,
                at.1,
                escaped(&shortened(&said))
            );
            self.lines.push(Line { target, ask, services, from: (right, self.y - 9), colour });
        }
    }

    fn finish(self, left: usize) -> String {
        let Self { boxes, y, lines, places } = self;
        let right = left + WIDTH;
        let mut curves = String::new();
        let mut tips: BTreeMap<&str, usize> = BTreeMap::new();
        // What each lane has, from where to where.
        let mut lanes: Vec<Vec<(usize, usize)>> = Vec::new();
        for line in &lines {
            // A disposable qube that is not there has no place.
            let Some(&(edge, top)) = places.get(line.target) else { continue };
            let tip = tips.entry(line.target).or_default();
            let to = (edge, top + 9 + *tip % TIPS * TIP);
            *tip += 1;
            let (begin, end) = (line.from.1.min(to.1), line.from.1.max(to.1));
            let free =
                |lane: &Vec<(usize, usize)>| lane.iter().all(|&(a, b)| end + TIP < a || b + TIP < begin);
            let number = lanes.iter().position(free).unwrap_or_else(|| {
                lanes.push(Vec::new());
                lanes.len() - 1
            });
            lanes[number].push((begin, end));
            let x = right + LANE + number * LANE;
            let dashes = if line.ask { " stroke-dasharray=\"5 4\"" } else { "" };
            let _ = writeln!(
                curves,
                "<path d=\"M{} {} H{x} V{} H{}\" fill=\"none\" stroke=\"{}\" stroke-width=\"1.3\" stroke-linejoin=\"round\"{dashes} \
                 marker-end=\"url(#tip)\"><title>{}</title></path>",
                line.from.0,
                line.from.1,
                to.1,
                to.0 + 2,
                line.colour,
                escaped(&format!("{}: {}", line.target, line.services.join(", "))),
            );
        }
        let (width, height) = (right + (lanes.len() + 1) * LANE + 2 * MARGIN, y + MARGIN);
        let mut text = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" font-family=\"sans-serif\">\n\
             <defs><marker id=\"tip\" viewBox=\"0 0 8 8\" refX=\"7\" refY=\"4\" markerWidth=\"7\" markerHeight=\"7\" orient=\"auto\">\
             <path d=\"M0 0 L8 4 L0 8 z\" fill=\"context-stroke\"/></marker></defs>\n"
        );
        rectangle(&mut text, (MARGIN / 2, MARGIN / 2), (width - MARGIN, height - MARGIN), "#fbfbf7");
        text + &boxes + &curves + "</svg>\n"
    }
}

fn rectangle(text: &mut String, (x, y): (usize, usize), (width, height): (usize, usize), fill: &str) {
    let _ = writeln!(
        text,
        "<rect x=\"{x}\" y=\"{y}\" width=\"{width}\" height=\"{height}\" rx=\"6\" fill=\"{fill}\" stroke=\"#7f7f7f\"/>"
    );
}

fn label(text: &mut String, (x, y): (usize, usize), size: usize, what: &str) {
    let _ = writeln!(text, "<text x=\"{x}\" y=\"{y}\" font-size=\"{size}\">{}</text>", escaped(what));
}

fn shortened(text: &str) -> String {
    match text.char_indices().nth(CHARACTERS) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::super::tests::example;
    use super::*;

    #[test]
    fn the_drawing_has_every_box_and_every_call() {
        let (nodes, calls) = example();
        let svg = svg(&nodes, &calls);
        // dom0, three qubes, two containers; a path for each call, and the tip's.
        assert_eq!((svg.matches("<rect").count(), svg.matches("<path").count()), (6, 4), "{svg}");
        assert!(svg.contains("→ work: q.&lt;A&gt;</text>") && !svg.contains("q.<A>"), "{svg}");
        assert_eq!(svg.matches("stroke-dasharray").count(), 1);
        assert!(svg.ends_with("</svg>\n"));
    }

    #[test]
    fn lines_of_one_height_have_lanes_of_their_own() {
        let (nodes, calls) = example();
        let svg = svg(&nodes, &calls);
        let lanes: Vec<&str> = svg
            .lines()
            .filter_map(|line| line.strip_prefix("<path d=\"M")?.split(" H").nth(1)?.split(' ').next())
            .collect();
        assert_eq!(lanes.len(), 3);
        // The first goes down to `work', past which those of its container `web' go up again.
        assert_ne!(lanes[1], lanes[2], "{svg}");
    }
}
