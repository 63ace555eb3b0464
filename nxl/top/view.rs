//! What is shown of a snapshot: a pure function of it, and of what was chosen by keys.

use crate::snapshot::{Row, Snapshot, State};
use nexus::client::containers::Container;
use ratatui::Frame;
use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Text};
use std::cmp::Ordering;

/// By what rows are sorted.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Sort {
    /// CPU, the most first.
    #[default]
    Cpu,
    /// Memory, the most first.
    Memory,
    /// Bytes by network, the most first.
    Network,
    /// Bytes by disk, the most first.
    Disk,
    /// Name.
    Name,
    /// Domain id.
    Id,
}

impl Sort {
    /// All, in the order in which a key goes through them.
    pub const ALL: [Self; 6] = [Self::Cpu, Self::Memory, Self::Network, Self::Disk, Self::Name, Self::Id];

    /// Its name: `cpu`, `memory`, `network`, `disk`, `name`, `id`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Memory => "memory",
            Self::Network => "network",
            Self::Disk => "disk",
            Self::Name => "name",
            Self::Id => "id",
        }
    }

    /// The next of them.
    fn next(self) -> Self {
        let place = Self::ALL.iter().position(|sort| *sort == self).unwrap_or(0);
        Self::ALL[(place + 1) % Self::ALL.len()]
    }

    fn compare(self, a: &Row, b: &Row) -> Ordering {
        let sum = |pair: Option<(f64, f64)>| pair.map_or(-1.0, |(there, back)| there + back);
        let of_it = match self {
            Self::Cpu => b.cpu.unwrap_or(-1.0).total_cmp(&a.cpu.unwrap_or(-1.0)),
            Self::Memory => b.memory.cmp(&a.memory),
            Self::Network => sum(b.network).total_cmp(&sum(a.network)),
            Self::Disk => sum(b.disk).total_cmp(&sum(a.disk)),
            Self::Name => a.name.cmp(&b.name),
            Self::Id => Ordering::Equal,
        };
        of_it.then(a.domid.cmp(&b.domid))
    }
}

/// What was chosen.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Choice {
    /// By what rows are sorted.
    pub sort: Sort,
    /// What names must contain.
    pub filter: String,
    /// Whether keys are of the filter.
    pub editing: bool,
    /// Whether help is shown.
    pub help: bool,
    /// The row that is pointed at, by its domain: it stays pointed at when rows change places.
    pub selected: Option<u16>,
    /// Whether the containers of each qube are shown.
    pub containers: bool,
    /// Whether colours are used.
    pub colours: bool,
}

/// What a key comes to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// Go on.
    Stay,
    /// End.
    Quit,
}

const HELP: [&str; 14] = [
    "q  Ctrl-C      quit",
    "s              sort by the next of: cpu, memory, network, disk, name, id",
    "f  /           show only names with what is typed; Enter ends, Esc shows all again",
    "Up Down  k j   point at a qube",
    "c              show containers, as their qubes tell of them; and hide them",
    "h  ?           this help, and back",
    "",
    "CPU%           of one CPU, since the last time; TIME: seconds of it in all",
    "MEM            MiB",
    "USE%           what a qube says to be in use of its memory: nexus-agent --memory",
    "NET, DISK      KiB a second, both ways, of devices whose backends dom0 has",
    "calls, KiB/s   calls between qubes that are open, and what those carried that ended since",
    "CONT           containers that dom0 gave it, where nexusd runs",
    "run, wait, pause, down, crash, dying: what a qube does",
];

impl Choice {
    /// Takes a key.
    pub fn key(&mut self, key: KeyEvent, snapshot: &Snapshot) -> Outcome {
        if key.code == KeyCode::Char('c') && key.modifiers.contains(KeyModifiers::CONTROL) {
            return Outcome::Quit;
        }
        if self.editing {
            match key.code {
                KeyCode::Enter => self.editing = false,
                KeyCode::Esc => {
                    self.editing = false;
                    self.filter.clear();
                }
                KeyCode::Backspace => drop(self.filter.pop()),
                KeyCode::Char(letter) => self.filter.push(letter),
                _ => {}
            }
            return Outcome::Stay;
        }
        match key.code {
            KeyCode::Char('q') => return Outcome::Quit,
            KeyCode::Char('s') => self.sort = self.sort.next(),
            KeyCode::Char('f' | '/') => self.editing = true,
            KeyCode::Char('c') => self.containers = !self.containers,
            KeyCode::Char('h' | '?') => self.help = !self.help,
            KeyCode::Esc if self.help => self.help = false,
            KeyCode::Esc => self.filter.clear(),
            KeyCode::Up | KeyCode::Char('k') => self.point(snapshot, -1),
            KeyCode::Down | KeyCode::Char('j') => self.point(snapshot, 1),
            _ => {}
        }
        Outcome::Stay
    }

    fn point(&mut self, snapshot: &Snapshot, by: isize) {
        let rows = rows(snapshot, self);
        let Some(last) = rows.len().checked_sub(1) else { return };
        let place = self.selected.and_then(|domid| rows.iter().position(|row| row.domid == domid));
        let place = place.map_or(0, |place| place.saturating_add_signed(by).min(last));
        self.selected = rows.get(place).map(|row| row.domid);
    }
}

/// The rows that are shown, in their order.
fn rows<'a>(snapshot: &'a Snapshot, choice: &Choice) -> Vec<&'a Row> {
    let mut rows: Vec<&Row> = snapshot.qubes.iter().filter(|row| row.name.contains(&choice.filter)).collect();
    rows.sort_by(|a, b| choice.sort.compare(a, b));
    rows
}

fn host(snapshot: &Snapshot) -> [String; 2] {
    let Snapshot { xen, cpus, mhz, memory, free, calls, carried, qubes } = snapshot;
    let busy: Option<f64> = qubes.iter().map(|row| row.cpu).sum();
    let busy =
        busy.map_or_else(String::new, |busy| format!(", {:.1}% busy", busy / f64::from((*cpus).max(1))));
    let count = |state: State| qubes.iter().filter(|row| row.state == state).count();
    let mut second = format!(
        "{} domains: {} run, {} wait, {} paused, {} down or crashed",
        qubes.len(),
        count(State::Running),
        count(State::Blocked),
        count(State::Paused),
        count(State::Shutdown) + count(State::Crashed)
    );
    if let Some(calls) = calls {
        second += &format!("; {calls} calls open");
    }
    if let Some(carried) = carried {
        second += &format!(", {:.0} KiB/s", carried / 1024.0);
    }
    let first = format!("Xen {xen}  {cpus} CPUs, {mhz} MHz{busy}  {memory} MiB, {free} free");
    [first, second]
}

const HEAD: &str = "   ID STATE   CPU%     TIME    MEM USE% VCPU      NET     DISK CONT";

/// A row whose name has so many columns.
fn row(row: &Row, width: usize) -> String {
    let kib = |rate: Option<(f64, f64)>| {
        rate.map_or_else(|| "-".to_owned(), |(there, back)| format!("{:.0}", (there + back) / 1024.0))
    };
    let cpu = row.cpu.map_or_else(|| "-".to_owned(), |cpu| format!("{cpu:.1}"));
    let used = row.used.filter(|_| row.memory > 0);
    let used = used.map_or_else(|| "-".to_owned(), |used| (100 * used / row.memory).to_string());
    let containers = row.containers.map_or_else(|| "-".to_owned(), |containers| containers.to_string());
    format!(
        "{} {:>4} {:<5} {cpu:>6} {:>8.0} {:>6} {used:>4} {:>4} {:>8} {:>8} {containers:>4}",
        fitted(&row.name, width),
        row.domid,
        row.state.word(),
        row.seconds,
        row.memory,
        row.vcpus,
        kib(row.network),
        kib(row.disk),
    )
}

/// A line that is shown below the head.
enum Shown<'a> {
    Qube(&'a Row),
    Container(&'a Container),
}

/// The lines, in their order: each qube, and what it says of its containers.
fn shown<'a>(snapshot: &'a Snapshot, choice: &Choice) -> Vec<Shown<'a>> {
    let with_its_own = |found: &'a Row| {
        let inner = if choice.containers { &found.said[..] } else { &[] };
        std::iter::once(Shown::Qube(found)).chain(inner.iter().map(Shown::Container))
    };
    rows(snapshot, choice).into_iter().flat_map(with_its_own).collect()
}

impl Shown<'_> {
    /// Its text, with a name of so many columns.
    fn text(&self, width: usize) -> String {
        match self {
            Self::Qube(found) => row(found, width),
            Self::Container(Container { name, state, memory_kib }) => {
                let memory = memory_kib.map_or_else(|| "-".to_owned(), |kib| (kib >> 10).to_string());
                let name = fitted(&format!("  {name}"), width);
                format!("{name}      {state:<12} {:>8} {memory:>6}", "")
            }
        }
    }
}

/// A name in so many columns, one for each character; what a terminal could take for a command is not shown.
fn fitted(name: &str, width: usize) -> String {
    let shown: String =
        name.chars().take(width).map(|letter| if letter.is_control() { '?' } else { letter }).collect();
    format!("{shown:<width$}")
}

/// All of it as plain text, for batch mode.
#[must_use]
pub fn text(snapshot: &Snapshot, choice: &Choice) -> String {
    let rows = shown(snapshot, choice);
    let name = |shown: &Shown<'_>| match shown {
        Shown::Qube(row) => row.name.chars().count(),
        Shown::Container(container) => 2 + container.name.as_str().len(),
    };
    let width = rows.iter().map(name).max().unwrap_or(0).max(18);
    let mut lines = host(snapshot).to_vec();
    lines.push(String::new());
    lines.push(format!("{:<width$}{HEAD}", "NAME"));
    lines.extend(rows.iter().map(|shown| shown.text(width)));
    lines.join("\n") + "\n"
}

/// Draws it.
pub fn draw(frame: &mut Frame<'_>, snapshot: &Snapshot, choice: &Choice) {
    let area = frame.area();
    let lines = lines(snapshot, choice, area.width.into(), area.height.into());
    frame.render_widget(Text::from(lines), area);
}

/// The lines of a screen of that size.
fn lines(snapshot: &Snapshot, choice: &Choice, width: usize, height: usize) -> Vec<Line<'static>> {
    let reversed = Style::new().add_modifier(Modifier::REVERSED);
    let full = |text: String| Line::styled(format!("{text:<width$}"), reversed);
    let [first, second] = host(snapshot);
    let mut lines = vec![Line::from(first), Line::from(second)];
    let foot = foot(choice);
    let room = height.saturating_sub(lines.len() + 2);
    if choice.help {
        lines.push(full("nxl top".to_owned()));
        lines.extend(HELP.iter().take(room).map(|line| Line::from(*line)));
    } else {
        let name = width.saturating_sub(HEAD.len()).max(8);
        lines.push(full(format!("{:<name$}{HEAD}", "NAME")));
        let rows = shown(snapshot, choice);
        let pointed = rows
            .iter()
            .position(|shown| matches!(shown, Shown::Qube(row) if Some(row.domid) == choice.selected));
        // What is pointed at is in sight.
        let above = pointed.map_or(0, |place| (place + 1).saturating_sub(room));
        for (place, found) in rows.iter().enumerate().skip(above).take(room) {
            let text = found.text(name);
            lines.push(match found {
                _ if Some(place) == pointed => full(text),
                Shown::Qube(row) => Line::styled(text, style(row.state, choice.colours)),
                Shown::Container(_) => Line::from(text),
            });
        }
    }
    lines.resize(height.saturating_sub(1), Line::default());
    lines.push(Line::styled(foot, Style::new().add_modifier(Modifier::BOLD)));
    lines
}

fn foot(choice: &Choice) -> String {
    if choice.editing {
        return format!("Show only names with: {}_", choice.filter);
    }
    let filter = if choice.filter.is_empty() { String::new() } else { format!("  only {:?}", choice.filter) };
    format!("q quit  s sort ({})  f filter  c containers  h help{filter}", choice.sort.name())
}

/// How a row looks. Without colours, what is wrong is bold.
fn style(state: State, colours: bool) -> Style {
    match (state, colours) {
        (State::Running, true) => Style::new().fg(Color::Green),
        (State::Paused | State::Shutdown, true) => Style::new().fg(Color::Yellow),
        (State::Crashed | State::Dying, true) => Style::new().fg(Color::Red),
        (State::Crashed | State::Dying, false) => Style::new().add_modifier(Modifier::BOLD),
        _ => Style::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;

    fn snapshot() -> Snapshot {
        let row = |domid, name: &str, state, cpu, memory| Row {
            domid,
            name: name.to_owned(),
            uuid: String::new(),
            state,
            cpu: Some(cpu),
            seconds: 12.4,
            memory,
            used: (domid == 1).then_some(memory / 3),
            max_memory: None,
            vcpus: 2,
            network: None,
            disk: None,
            containers: None,
            said: Vec::new(),
        };
        Snapshot {
            xen: "4.17.5".to_owned(),
            cpus: 4,
            mhz: 2_400,
            memory: 16_384,
            free: 1_024,
            calls: Some(3),
            carried: Some(20_480.0),
            qubes: vec![
                row(0, "Domain-0", State::Running, 25.0, 4_096),
                Row {
                    network: Some((10_240.0, 0.0)),
                    containers: Some(2),
                    ..row(1, "work", State::Blocked, 75.5, 512)
                },
                Row { disk: Some((0.0, 4_096.0)), ..row(2, "vault", State::Crashed, 0.0, 1_024) },
            ],
        }
    }

    fn screen(choice: &Choice, width: u16, height: u16) -> Vec<String> {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        terminal.draw(|frame| draw(frame, &snapshot(), choice)).unwrap();
        let buffer = terminal.backend().buffer().clone();
        let row = |y: u16| (0..width).map(|x| buffer[(x, y)].symbol()).collect::<String>();
        (0..height).map(|y| row(y).trim_end().to_owned()).collect()
    }

    fn press(choice: &mut Choice, keys: &str) -> Outcome {
        let mut outcome = Outcome::Stay;
        for key in keys.chars() {
            let code = match key {
                '\n' => KeyCode::Enter,
                '\x1b' => KeyCode::Esc,
                '\x08' => KeyCode::Backspace,
                key => KeyCode::Char(key),
            };
            outcome = choice.key(KeyEvent::new(code, KeyModifiers::NONE), &snapshot());
        }
        outcome
    }

    #[test]
    fn a_screen_of_80_by_24_has_host_qubes_and_keys() {
        let screen = screen(&Choice::default(), 80, 24);
        assert_eq!(screen[0], "Xen 4.17.5  4 CPUs, 2400 MHz, 25.1% busy  16384 MiB, 1024 free");
        assert_eq!(
            screen[1],
            "3 domains: 1 run, 1 wait, 0 paused, 1 down or crashed; 3 calls open, 20 KiB/s"
        );
        assert_eq!(
            screen[2..7],
            [
                "NAME            ID STATE   CPU%     TIME    MEM USE% VCPU      NET     DISK CONT",
                "work             1 wait    75.5       12    512   33    2       10        -    2",
                "Domain-0         0 run     25.0       12   4096    -    2        -        -    -",
                "vault            2 crash    0.0       12   1024    -    2        -        4    -",
                "",
            ]
        );
        assert_eq!(screen[23], "q quit  s sort (cpu)  f filter  c containers  h help");
        assert!(screen.iter().all(|line| line.chars().count() <= 80));
    }

    #[test]
    fn keys_sort_filter_point_and_quit() {
        let mut choice = Choice::default();
        let names = |choice: &Choice| {
            rows(&snapshot(), choice).iter().map(|row| row.name.clone()).collect::<Vec<_>>().join(" ")
        };
        let mut orders = Vec::new();
        for _ in Sort::ALL {
            orders.push(format!("{} {}", choice.sort.name(), names(&choice)));
            press(&mut choice, "s");
        }
        assert_eq!(
            orders,
            [
                "cpu work Domain-0 vault",
                "memory Domain-0 vault work",
                "network work Domain-0 vault",
                "disk vault Domain-0 work",
                "name Domain-0 vault work",
                "id Domain-0 work vault",
            ]
        );
        assert_eq!(choice.sort, Sort::Cpu);
        press(&mut choice, "jjj");
        assert_eq!(choice.selected, Some(2), "it stays with the last");
        press(&mut choice, "k");
        assert_eq!(choice.selected, Some(0));
        press(&mut choice, "fqx\x08");
        assert_eq!((names(&choice), choice.editing), (String::new(), true), "q is of the filter now");
        assert_eq!(screen(&choice, 80, 24)[23], "Show only names with: q_");
        press(&mut choice, "\x08aul\n");
        assert_eq!((names(&choice).as_str(), choice.editing), ("vault", false));
        assert!(screen(&choice, 80, 24)[23].ends_with("only \"aul\""));
        press(&mut choice, "\x1b");
        assert_eq!(names(&choice), "work Domain-0 vault");
        assert_eq!(press(&mut choice, "q"), Outcome::Quit);
        let interrupt = KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL);
        assert_eq!(Choice { editing: true, ..choice }.key(interrupt, &snapshot()), Outcome::Quit);
    }

    #[test]
    fn containers_are_below_their_qubes_when_they_are_wanted() {
        let mut snapshot = snapshot();
        let container = |name: &str, state, memory_kib| Container {
            name: nexus::name::Name::new(name).unwrap(),
            state,
            memory_kib,
        };
        snapshot.qubes[1].said = vec![
            container("front", nexus::client::containers::State::Running, Some(9_000)),
            container("orders", nexus::client::containers::State::Stopped, None),
        ];
        let mut choice = Choice { sort: Sort::Id, ..Choice::default() };
        let lines = |choice: &Choice| -> Vec<String> {
            text(&snapshot, choice).lines().skip(3).map(str::to_owned).collect()
        };
        assert_eq!(lines(&choice).len(), 4);
        press(&mut choice, "c");
        let shown = lines(&choice);
        assert!(shown[2].starts_with("work "), "{shown:?}");
        assert_eq!(shown[3], "  front                 running                    8");
        assert_eq!(shown[4], "  orders                stopped                    -");
        assert_eq!(shown[0].find("   MEM").map(|at| at + 6), Some(shown[3].len()), "{shown:?}");
        assert!(shown[5].starts_with("vault "), "{shown:?}");
        press(&mut choice, "c");
        assert_eq!(lines(&choice).len(), 4);
    }

    #[test]
    fn help_is_shown_and_goes() {
        let mut choice = Choice::default();
        press(&mut choice, "h");
        let help = screen(&choice, 80, 24);
        assert!(help.iter().any(|line| line.starts_with("q  Ctrl-C")), "{help:?}");
        assert!(help.iter().all(|line| line.chars().count() <= 80));
        press(&mut choice, "\x1b");
        assert_eq!(screen(&choice, 80, 24)[3].split(' ').next(), Some("work"));
    }

    #[test]
    fn what_is_pointed_at_is_in_sight_on_a_small_screen() {
        let choice = Choice { selected: Some(2), ..Choice::default() };
        let screen = screen(&choice, 80, 5);
        assert!(screen[3].starts_with("vault"), "{screen:?}");
        // Smaller than anything: it is cut off, and nothing else happens.
        for (width, height) in [(1, 1), (5, 2), (200, 3), (0, 0)] {
            let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
            terminal.draw(|frame| draw(frame, &snapshot(), &choice)).unwrap();
        }
    }

    #[test]
    fn colours_are_used_only_where_they_are_wanted() {
        let colours = |colours| {
            let choice = Choice { colours, ..Choice::default() };
            let mut terminal = Terminal::new(TestBackend::new(80, 24)).unwrap();
            terminal.draw(|frame| draw(frame, &snapshot(), &choice)).unwrap();
            let buffer = terminal.backend().buffer();
            buffer.content.iter().filter(|cell| cell.fg != Color::Reset || cell.bg != Color::Reset).count()
        };
        assert_eq!(colours(false), 0);
        assert!(colours(true) > 0);
    }

    #[test]
    fn a_batch_is_plain_text_and_names_are_whole() {
        let mut snapshot = snapshot();
        snapshot.qubes[1].name = "a-name-of-more-than-eighteen\x1b[2J".to_owned();
        let text = text(&snapshot, &Choice { sort: Sort::Id, ..Choice::default() });
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 7, "{text}");
        assert!(lines[5].starts_with("a-name-of-more-than-eighteen?[2J    1 wait"), "{text}");
        assert_eq!(lines[3].len(), lines[4].len());
        assert!(!text.contains('\x1b'));
    }
}
