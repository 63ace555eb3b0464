//! The view of `nxl top`, of a host that somebody else tells of: whatever is a `Source` can be shown.
//!
//! ```text
//! cargo run -p nxl --example view            # once, as text
//! cargo run -p nxl --example view -- live    # on this terminal; q ends it
//! ```
#![forbid(unsafe_code)]
#![allow(clippy::print_stdout, reason = "it shows what there is")]

use nxl_top::snapshot::{Row, Snapshot, Source, State};
use nxl_top::terminal::run;
use nxl_top::view::{Choice, Sort, text};
use std::time::Duration;

/// A host of three qubes, of which one has more to do with each snapshot.
#[derive(Default)]
struct Host {
    snapshots: u32,
}

impl Source for Host {
    fn snapshot(&mut self) -> Result<Snapshot, String> {
        self.snapshots += 1;
        let busy = f64::from(self.snapshots * 7 % 100);
        let row = |domid, name: &str, state, cpu, memory| Row {
            domid,
            name: name.to_owned(),
            state,
            cpu: Some(cpu),
            memory,
            vcpus: 1,
            ..Row::default()
        };
        Ok(Snapshot {
            xen: "4.17.5".to_owned(),
            cpus: 4,
            mhz: 2_400,
            memory: 8_192,
            free: 5_120,
            calls: Some(2),
            carried: None,
            qubes: vec![
                row(0, "Domain-0", State::Running, 3.5, 1_024),
                row(1, "work", State::Running, busy, 1_536),
                row(2, "vault", State::Blocked, 0.0, 512),
            ],
        })
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let (mut host, choice) = (Host::default(), Choice { sort: Sort::Memory, ..Choice::default() });
    if std::env::args().nth(1).as_deref() == Some("live") {
        run(&mut host, choice, Duration::from_secs(1))?;
    } else {
        print!("{}", text(&host.snapshot()?, &choice));
    }
    Ok(())
}
