//! How fast Debian's libxenvchan is over `libxensim.so`, between two processes: the bar for any other vchan.
//!
//! `cargo run --release -p xen-sim --example libxenvchan_speed` (needs gcc and libxen-dev, as the tests do)
//!
//! Each figure is the best of five runs. The last line is the machine's own round trip through two pipes, with nothing
//! around it: what a blocking round trip cannot be faster than.
#![allow(clippy::print_stdout, reason = "a program that prints its results")]

use std::error::Error;
use std::io::{BufRead, BufReader, Lines, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::Instant;
use std::{env, fs, io, thread};

const RUNS: usize = 5;
/// Both rings' sizes. 2 KiB means the left ring, which the client writes: two in-page rings cannot be equal.
const RINGS: [(&str, &str, &str); 3] =
    [("2 KiB", "2048", "1024"), ("64 KiB", "65536", "65536"), ("1 MiB", "1048576", "1048576")];
const CHUNKS: [usize; 4] = [64, 1024, 4096, 65536];
const ROUND_TRIPS: usize = 20_000;

struct Bench {
    library: PathBuf,
    peer: PathBuf,
    dir: PathBuf,
}

struct Running {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Running {
    fn line(&mut self) -> Result<String, Box<dyn Error>> {
        Ok(self.lines.next().ok_or("the peer ended early")??)
    }
}

impl Bench {
    fn start(&self, domid: &str, args: &[&str]) -> Result<Running, Box<dyn Error>> {
        let mut child = Command::new(&self.peer)
            .args(args)
            .env("LD_PRELOAD", &self.library)
            .env("XENSIM_DIR", &self.dir)
            .env("XENSIM_DOMID", domid)
            .stdout(Stdio::piped())
            .spawn()?;
        let stdout = child.stdout.take().ok_or("no stdout")?;
        Ok(Running { child, lines: BufReader::new(stdout).lines() })
    }

    /// What the end that measures says, in seconds.
    fn measure(&self, left: &str, right: &str, command: &[&str]) -> Result<f64, Box<dyn Error>> {
        let mut server = self.start("1", &[&["server", "2", "data/speed", left, right], command].concat())?;
        server.line()?;
        let client = [&["client", "1", "/local/domain/1/data/speed"], command].concat();
        let mut client = self.start("2", &client)?;
        let ends = [&mut server, &mut client];
        let mut seconds = None;
        for end in ends {
            end.line()?;
            for line in end.lines.by_ref() {
                seconds = Some(line?.parse()?);
            }
            if !end.child.wait()?.success() {
                return Err("a peer failed".into());
            }
        }
        Ok(seconds.ok_or("nobody measured")?)
    }

    fn best(&self, left: &str, right: &str, command: &[&str]) -> Result<f64, Box<dyn Error>> {
        let runs: Result<Vec<f64>, _> = (0..RUNS).map(|_| self.measure(left, right, command)).collect();
        Ok(runs?.into_iter().fold(f64::INFINITY, f64::min))
    }
}

fn pipe_round_trip() -> io::Result<f64> {
    let (mut there, mut to_them) = io::pipe()?;
    let (mut back, mut to_us) = io::pipe()?;
    let echo = thread::spawn(move || -> io::Result<()> {
        let mut word = [0; 4];
        while there.read(&mut word)? == 4 {
            to_us.write_all(&word)?;
        }
        Ok(())
    });
    let start = Instant::now();
    for _ in 0..ROUND_TRIPS {
        to_them.write_all(&[0; 4])?;
        back.read_exact(&mut [0; 4])?;
    }
    let seconds = start.elapsed().as_secs_f64() / ROUND_TRIPS as f64;
    drop(to_them);
    echo.join().map_err(|_| io::Error::other("the echo thread panicked"))??;
    Ok(seconds)
}

fn main() -> Result<(), Box<dyn Error>> {
    // target/PROFILE/examples/NAME; the library is in target/PROFILE/deps.
    let profile = env::current_exe()?.parent().and_then(Path::parent).ok_or("no target folder")?.to_owned();
    let library = profile.join("deps/libxensim.so");
    if !library.is_file() {
        return Err(format!("{} is missing: cargo build --release -p xen-sim", library.display()).into());
    }
    let dir = env::temp_dir().join(format!("xensim-speed-{}", std::process::id()));
    fs::create_dir_all(&dir)?;
    let bench = Bench { library, peer: dir.join("peer"), dir };
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/c/peer.c");
    let gcc = Command::new("gcc").args(["-O2", "-o"]).arg(&bench.peer).args([source, "-lxenvchan"]).status();
    if !gcc.is_ok_and(|status| status.success()) {
        return Err(
            "gcc and the headers of libxenvchan are needed (Debian packages gcc and libxen-dev)".into()
        );
    }

    println!("MB/s, in writes of{:>8} B{:>8} B{:>8} B{:>8} B", CHUNKS[0], CHUNKS[1], CHUNKS[2], CHUNKS[3]);
    for (name, left, right) in RINGS {
        print!("ring of {name:<10}");
        for chunk in CHUNKS {
            let bytes = if left == "2048" {
                (chunk * 50_000).min(20_000_000)
            } else {
                (chunk * 400_000).min(1_000_000_000)
            };
            let seconds = bench.best(left, right, &["pump", &bytes.to_string(), &chunk.to_string()])?;
            print!("{:>10.0}", bytes as f64 / seconds / 1e6);
            io::stdout().flush()?;
        }
        println!();
    }
    for size in ["64", "4096"] {
        let seconds = bench.best("65536", "65536", &["ping", &ROUND_TRIPS.to_string(), size])?;
        println!("round trip of {size} B: {:.1} us", seconds * 1e6);
    }
    let pipes: io::Result<Vec<f64>> = (0..RUNS).map(|_| pipe_round_trip()).collect();
    println!(
        "round trip through two pipes: {:.1} us",
        pipes?.into_iter().fold(f64::INFINITY, f64::min) * 1e6
    );
    fs::remove_dir_all(&bench.dir)?;
    Ok(())
}
