//! Our vchan beside Debian's libxenvchan: two processes over `libxensim.so`, the same conversations, in turn, in one run.
//!
//! `cargo bench --bench libxenvchan [-- WORDS]`; with words, only the rows that contain one of them. Prints a table of
//! medians and ratios, and writes it as Markdown and as a plot to `target/libxenvchan/`. Needs gcc and libxen-dev for the C
//! side. (Not criterion: what is measured are pairs of processes, interleaved so that a machine whose speed drifts does
//! not favour one side.)
//!
//! The last columns are the very same C program with our libxenvchan.so in place of Debian's, beside Debian's.
//!
//! The two ends have a processor each, or, where the row says so, share one: then nobody can win by spinning.
#![allow(clippy::print_stdout, reason = "a program that prints its results")]

use std::error::Error;
use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Lines};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::{env, fs};

/// Interleaved runs of each pairing.
const RUNS: usize = 7;

/// A row of the table.
struct Case {
    what: &'static str,
    /// What the server's rings hold: the left one, which the client writes, and the right one.
    rings: [&'static str; 2],
    command: [&'static str; 3],
    /// What ours does instead, if that is something which libxenvchan cannot.
    ours: Option<&'static str>,
    one_processor: bool,
    unit: Unit,
    /// The least ratio that the project promises.
    at_least: f64,
    /// The same through the C functions.
    at_least_in_c: f64,
}

#[derive(Clone, Copy)]
enum Unit {
    /// How fast a `pump` carries so many bytes.
    Megabytes(f64),
    /// The round trip of a `ping`.
    Microseconds,
    /// The events that a `pump` of so many bytes sends.
    Notifications(f64),
}

const fn pump(
    what: &'static str,
    rings: [&'static str; 2],
    bytes: &'static str,
    size: &'static str,
    count: f64,
    [at_least, at_least_in_c]: [f64; 2],
) -> Case {
    let (command, unit) = (["pump", bytes, size], Unit::Megabytes(count));
    Case { what, rings, command, ours: None, one_processor: false, unit, at_least, at_least_in_c }
}

const fn ping(what: &'static str, one_processor: bool, [at_least, at_least_in_c]: [f64; 2]) -> Case {
    let (command, unit) = (["ping", "20000", "64"], Unit::Microseconds);
    Case { what, rings: K64, command, ours: None, one_processor, unit, at_least, at_least_in_c }
}

const K64: [&str; 2] = ["65536", "65536"];
const M1: [&str; 2] = ["1048576", "1048576"];

const CASES: [Case; 11] = [
    pump("64 B writes, 64 KiB rings", K64, "40000000", "64", 4e7, [4.0, 3.0]),
    pump("256 B writes, 64 KiB rings", K64, "150000000", "256", 1.5e8, [2.0, 1.0]),
    pump("1 KiB writes, 64 KiB rings", K64, "500000000", "1024", 5e8, [1.0, 1.0]),
    pump("4 KiB writes, 64 KiB rings", K64, "1000000000", "4096", 1e9, [1.0, 1.0]),
    pump("64 KiB writes, 64 KiB rings", K64, "1000000000", "65536", 1e9, [1.5, 1.5]),
    pump("64 KiB writes, 1 MiB rings", M1, "2000000000", "65536", 2e9, [1.0, 1.0]),
    pump("4 KiB writes, 2 KiB ring", ["2048", "1024"], "20000000", "4096", 2e7, [2.0, 1.0]),
    Case {
        what: "in place, 64 KiB, 1 MiB rings",
        ours: Some("place"),
        ..pump("", M1, "2000000000", "65536", 2e9, [1.3, 0.0])
    },
    ping("round trip, 64 B, a processor each", false, [5.0, 5.0]),
    ping("round trip, 64 B, one processor", true, [1.0, 1.0]),
    Case {
        what: "notifications per MB, 64 B writes",
        unit: Unit::Notifications(4e7),
        ..pump("", K64, "40000000", "64", 4e7, [1.0, 1.0])
    },
];

struct Bench {
    library: PathBuf,
    folder: PathBuf,
    ours: PathBuf,
    theirs: PathBuf,
    /// A folder with our libxenvchan.so under the name by which the C program looks for it.
    in_c: PathBuf,
}

struct Running {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Running {
    fn line(&mut self) -> Result<String, Box<dyn Error>> {
        Ok(self.lines.next().ok_or("a peer ended early")??)
    }
}

/// Who is at an end of a conversation.
#[derive(Clone, Copy)]
enum Who {
    Theirs,
    Ours,
    /// Their program, our library.
    InC,
}

/// Server and client.
const PAIRINGS: [[Who; 2]; 5] = [
    [Who::Theirs, Who::Theirs],
    [Who::Ours, Who::Ours],
    [Who::Theirs, Who::Ours],
    [Who::Ours, Who::Theirs],
    [Who::InC, Who::InC],
];

impl Bench {
    fn start(
        &self,
        who: Who,
        case: &Case,
        domid: &str,
        arguments: &[&str],
    ) -> Result<Running, Box<dyn Error>> {
        // A domain each, a processor each.
        let processor = if case.one_processor || domid == "1" { "0" } else { "1" };
        let (program, command) = match who {
            Who::Theirs | Who::InC => (&self.theirs, case.command[0]),
            Who::Ours => (&self.ours, case.ours.unwrap_or(case.command[0])),
        };
        let mut taskset = Command::new("taskset");
        if matches!(who, Who::InC) {
            taskset.env("LD_LIBRARY_PATH", &self.in_c);
        }
        let mut child = taskset
            .args(["-c", processor])
            .arg(program)
            .args(arguments)
            .args([command, case.command[1], case.command[2]])
            .env("LD_PRELOAD", &self.library)
            .env("XENSIM_DIR", self.folder.join("host"))
            .env("XENSIM_DOMID", domid)
            .stdout(Stdio::piped())
            .spawn()?;
        let stdout = child.stdout.take().ok_or("no stdout")?;
        Ok(Running { child, lines: BufReader::new(stdout).lines() })
    }

    /// What was measured in the case's unit, but for the number of bytes: seconds, or events.
    fn measure(&self, [server, client]: [Who; 2], case: &Case) -> Result<f64, Box<dyn Error>> {
        let [left, right] = case.rings;
        let mut server = self.start(server, case, "1", &["server", "2", "data/speed", left, right])?;
        server.line()?;
        let mut client = self.start(client, case, "2", &["client", "1", "/local/domain/1/data/speed"])?;
        let (mut seconds, mut notifications) = (None, None);
        for end in [&mut server, &mut client] {
            end.line()?;
            for line in end.lines.by_ref() {
                let line = line?;
                match line.split_once(' ').ok_or("a line without a value")? {
                    ("seconds", value) => seconds = Some(value.parse::<f64>()?),
                    ("notifications", value) => {
                        notifications = Some(notifications.unwrap_or(0.0) + value.parse::<f64>()?);
                    }
                    (what, _) => return Err(format!("a peer measured {what}").into()),
                }
            }
            if !end.child.wait()?.success() {
                return Err("a peer failed".into());
            }
        }
        let measured = match case.unit {
            // None at all is better than anything: one, so that there is a ratio.
            Unit::Notifications(_) => notifications.map(|sent| sent.max(1.0)),
            Unit::Megabytes(_) | Unit::Microseconds => seconds,
        };
        measured.ok_or_else(|| "nobody measured".into())
    }
}

/// Builds a product of another package of this workspace, as this bench was built.
fn build(arguments: &[&str]) -> Result<(), Box<dyn Error>> {
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let done = Command::new(cargo).args(["build", "--release", "--quiet"]).args(arguments).status()?;
    if done.success() { Ok(()) } else { Err(format!("cargo build {} failed", arguments.join(" ")).into()) }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn main() -> Result<(), Box<dyn Error>> {
    // target/release/deps/NAME
    let release = env::current_exe()?.parent().and_then(Path::parent).ok_or("no target folder")?.to_owned();
    build(&["-p", "xen-sim", "-p", "libxenvchan"])?;
    build(&["-p", "tesseraqt-vchan", "--example", "vchan-speed"])?;
    let folder = release.with_file_name("libxenvchan");
    fs::create_dir_all(&folder)?;
    let theirs = folder.join("peer");
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/xen-sim/tests/c/peer.c");
    let gcc = Command::new("gcc")
        .args(["-O2", "-DCOUNT_NOTIFICATIONS", "-o"])
        .arg(&theirs)
        .args([source, "-lxenvchan"])
        .status();
    if !gcc.is_ok_and(|status| status.success()) {
        return Err("gcc and libxenvchan's header are needed (Debian packages gcc and libxen-dev)".into());
    }
    let ours = release.join("examples/vchan-speed");
    let in_c = folder.join("lib");
    fs::create_dir_all(&in_c)?;
    fs::copy(release.join("libxenvchan.so"), in_c.join("libxenvchan.so.4.17"))?;
    let bench = Bench { library: release.join("libxensim.so"), folder, ours, theirs, in_c };

    let words: Vec<String> = env::args().skip(1).filter(|word| !word.starts_with('-')).collect();
    let wanted =
        |case: &&Case| words.is_empty() || words.iter().any(|word| case.what.contains(word.as_str()));
    let mut table = String::from(
        "| what | libxenvchan | ours | ratio | at least | ours to libxenvchan | libxenvchan to ours | through C | at least |\n\
         |---|---|---|---|---|---|---|---|---|\n",
    );
    let mut ratios = Vec::new();
    let mut missed = 0;
    print!("{table}");
    for case in CASES.iter().filter(wanted) {
        // What only ours can do, it does with itself.
        let pairings = if case.ours.is_some() { &PAIRINGS[..2] } else { &PAIRINGS };
        let mut measured = vec![Vec::new(); pairings.len()];
        for _ in 0..RUNS {
            for (pairing, measured) in pairings.iter().zip(&mut measured) {
                measured.push(bench.measure(*pairing, case)?);
            }
        }
        let medians: Vec<f64> = measured.into_iter().map(median).collect();
        let show = |measured: f64| match case.unit {
            Unit::Megabytes(bytes) => format!("{:.0} MB/s", bytes / measured / 1e6),
            Unit::Microseconds => format!("{:.2} us", measured * 1e6),
            Unit::Notifications(bytes) => format!("{:.2}", measured / (bytes / 1e6)),
        };
        // How often ours is done while theirs is done once.
        let ratio = medians[0] / medians[1];
        let mixed = |at: usize| {
            medians.get(at).map_or_else(String::new, |mixed| format!("{:.2}x", medians[0] / mixed))
        };
        let mark = if ratio < case.at_least { " MISSED" } else { "" };
        missed += usize::from(ratio < case.at_least);
        let missed_in_c = medians.get(4).is_some_and(|in_c| medians[0] / in_c < case.at_least_in_c);
        missed += usize::from(missed_in_c);
        let promised_in_c = match medians.get(4) {
            Some(_) => format!("{}x{}", case.at_least_in_c, if missed_in_c { " MISSED" } else { "" }),
            None => String::new(),
        };
        let row = format!(
            "| {} | {} | {} | {ratio:.2}x | {}x{mark} | {} | {} | {} | {promised_in_c} |\n",
            case.what,
            show(medians[0]),
            show(medians[1]),
            case.at_least,
            mixed(2),
            mixed(3),
            mixed(4),
        );
        print!("{row}");
        table += &row;
        ratios.push((case.what, ratio));
    }
    fs::write(bench.folder.join("table.md"), table)?;
    fs::write(bench.folder.join("ratios.svg"), plot(&ratios))?;
    println!(
        "\nmedians of {RUNS} interleaved runs, {missed} below what was promised; also in {}",
        bench.folder.display()
    );
    Ok(())
}

/// A bar for each case: how many times as fast as libxenvchan.
fn plot(ratios: &[(&str, f64)]) -> String {
    const ROW: usize = 26;
    const LEFT: f64 = 230.0;
    let most = ratios.iter().map(|(_, ratio)| *ratio).fold(1.0, f64::max);
    let unit = 400.0 / most;
    let height = (ratios.len() + 1) * ROW;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"720\" height=\"{height}\" font-family=\"sans-serif\" font-size=\"13\">\n"
    );
    // Writing to a String does not fail.
    let one = LEFT + unit;
    let _ = writeln!(svg, "<line x1=\"{one}\" y1=\"0\" x2=\"{one}\" y2=\"{height}\" stroke=\"gray\"/>");
    for (i, (what, ratio)) in ratios.iter().enumerate() {
        let (y, width) = (i * ROW + 4, ratio * unit);
        let text = y + 14;
        let colour = if *ratio >= 1.0 { "seagreen" } else { "firebrick" };
        let _ = writeln!(
            svg,
            "<text x=\"4\" y=\"{text}\">{what}</text><rect x=\"{LEFT}\" y=\"{y}\" width=\"{width:.1}\" height=\"18\" fill=\"{colour}\"/>\
             <text x=\"{:.1}\" y=\"{text}\">{ratio:.2}x</text>",
            LEFT + width + 6.0
        );
    }
    svg += "</svg>\n";
    svg
}
