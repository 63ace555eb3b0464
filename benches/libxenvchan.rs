//! Our vchan beside Debian's libxenvchan: two processes over `libxensim.so`, the same conversations, in turn, in one run.
//!
//! `cargo bench --bench libxenvchan`. Prints a table of medians and ratios, and writes it as Markdown and as a plot to
//! `target/libxenvchan/`. Needs gcc and libxen-dev for the C side. (Not criterion: what is measured are pairs of processes,
//! interleaved so that a machine whose speed drifts does not favour one side.)
#![allow(clippy::print_stdout, reason = "a program that prints its results")]

use std::error::Error;
use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Lines};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::{env, fs};

/// Interleaved runs of each side.
const RUNS: usize = 5;

/// A row of the table.
struct Case {
    what: &'static str,
    /// What the server's rings hold: the left one, which the client writes, and the right one.
    rings: [&'static str; 2],
    command: [&'static str; 3],
    unit: Unit,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Unit {
    /// Bytes that a `pump` carries.
    Megabytes(u32),
    /// A `ping`.
    Microseconds,
}

const fn pump(
    what: &'static str,
    rings: [&'static str; 2],
    bytes: &'static str,
    size: &'static str,
    count: u32,
) -> Case {
    Case { what, rings, command: ["pump", bytes, size], unit: Unit::Megabytes(count) }
}

const K64: [&str; 2] = ["65536", "65536"];
const M1: [&str; 2] = ["1048576", "1048576"];

const CASES: [Case; 9] = [
    pump("64 B writes, 64 KiB rings", K64, "40000000", "64", 40_000_000),
    pump("256 B writes, 64 KiB rings", K64, "150000000", "256", 150_000_000),
    pump("1 KiB writes, 64 KiB rings", K64, "500000000", "1024", 500_000_000),
    pump("4 KiB writes, 64 KiB rings", K64, "1000000000", "4096", 1_000_000_000),
    pump("64 KiB writes, 64 KiB rings", K64, "1000000000", "65536", 1_000_000_000),
    pump("64 KiB writes, 1 MiB rings", M1, "2000000000", "65536", 2_000_000_000),
    pump("4 KiB writes, 2 KiB ring", ["2048", "1024"], "20000000", "4096", 20_000_000),
    Case { what: "round trip, 64 B", rings: K64, command: ["ping", "20000", "64"], unit: Unit::Microseconds },
    Case {
        what: "round trip, 4 KiB",
        rings: K64,
        command: ["ping", "20000", "4096"],
        unit: Unit::Microseconds,
    },
];

struct Bench {
    library: PathBuf,
    folder: PathBuf,
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

impl Bench {
    fn start(&self, peer: &Path, domid: &str, arguments: &[&str]) -> Result<Running, Box<dyn Error>> {
        let mut child = Command::new(peer)
            .args(arguments)
            .env("LD_PRELOAD", &self.library)
            .env("XENSIM_DIR", self.folder.join("host"))
            .env("XENSIM_DOMID", domid)
            .stdout(Stdio::piped())
            .spawn()?;
        let stdout = child.stdout.take().ok_or("no stdout")?;
        Ok(Running { child, lines: BufReader::new(stdout).lines() })
    }

    /// What the end that measures says, in seconds.
    fn measure(&self, peer: &Path, case: &Case) -> Result<f64, Box<dyn Error>> {
        let [left, right] = case.rings;
        let mut server = self.start(
            peer,
            "1",
            &[&["server", "2", "data/speed", left, right], &case.command[..]].concat(),
        )?;
        server.line()?;
        let arguments = [&["client", "1", "/local/domain/1/data/speed"], &case.command[..]].concat();
        let mut client = self.start(peer, "2", &arguments)?;
        let mut seconds = None;
        for end in [&mut server, &mut client] {
            end.line()?;
            for line in end.lines.by_ref() {
                seconds = Some(line?.parse()?);
            }
            if !end.child.wait()?.success() {
                return Err(format!("{} failed", peer.display()).into());
            }
        }
        Ok(seconds.ok_or("nobody measured")?)
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
    build(&["-p", "xen-sim"])?;
    build(&["-p", "tesseraqt-vchan", "--example", "vchan-speed"])?;
    let folder = release.with_file_name("libxenvchan");
    fs::create_dir_all(&folder)?;
    let bench = Bench { library: release.join("libxensim.so"), folder };
    let theirs = bench.folder.join("peer");
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/xen-sim/tests/c/peer.c");
    let gcc = Command::new("gcc").args(["-O2", "-o"]).arg(&theirs).args([source, "-lxenvchan"]).status();
    if !gcc.is_ok_and(|status| status.success()) {
        return Err("gcc and libxenvchan's header are needed (Debian packages gcc and libxen-dev)".into());
    }
    let ours = release.join("examples/vchan-speed");

    let mut table = String::from("| what | libxenvchan | ours | ratio |\n|---|---|---|---|\n");
    let mut ratios = Vec::new();
    print!("{table}");
    for case in &CASES {
        let mut seconds = [Vec::new(), Vec::new()];
        for _ in 0..RUNS {
            for (peer, seconds) in [&theirs, &ours].into_iter().zip(&mut seconds) {
                seconds.push(bench.measure(peer, case)?);
            }
        }
        let [theirs, ours] = seconds.map(median);
        // How often ours is done while theirs is done once.
        let ratio = theirs / ours;
        let show = |seconds: f64| match case.unit {
            Unit::Megabytes(bytes) => format!("{:.0} MB/s", f64::from(bytes) / seconds / 1e6),
            Unit::Microseconds => format!("{:.1} us", seconds * 1e6),
        };
        let row = format!("| {} | {} | {} | {ratio:.2}x |\n", case.what, show(theirs), show(ours));
        print!("{row}");
        table += &row;
        ratios.push((case.what, ratio));
    }
    fs::write(bench.folder.join("table.md"), table)?;
    fs::write(bench.folder.join("ratios.svg"), plot(&ratios))?;
    println!("\nmedians of {RUNS} interleaved runs; also in {}", bench.folder.display());
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
