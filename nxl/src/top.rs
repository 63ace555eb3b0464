//! `nxl top`: the options, and what they come to.

use crate::containers;
use crate::error::Error;
use clap::Args;
use nexus::broker::{SETTINGS_FILE, Settings};
use nxl_top::containers::Asker;
use nxl_top::host::{HostSource, Nexus};
use nxl_top::terminal::{TopError, batch, run, wants_colours};
use nxl_top::view::{Choice, Sort};
use std::env;
use std::io;
use std::path::Path;
use std::time::Duration;
use toolstack::qubes::Qubes;

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  nxl top
  nxl top -d 1 --sort memory --filter work
  nxl top -b -n 1 --containers
  NO_COLOR=1 nxl top

Keys: q quits, s sorts by the next column, arrows point, f filters, c shows containers, h has help. It needs 80x24 characters, works over a
serial console, and uses no colours with NO_COLOR or on a vt100. `xentop' is Xen's own.")]
pub(crate) struct TopOptions {
    /// Look again after so many seconds.
    #[arg(short, long, value_name = "SECONDS", default_value = "3", value_parser = seconds)]
    delay: Duration,
    /// Print plain text, and take no keys.
    #[arg(short, long)]
    batch: bool,
    /// With --batch: print so many times, and end.
    #[arg(short = 'n', long, value_name = "N", requires = "batch")]
    iterations: Option<u64>,
    /// By what to sort at first.
    #[arg(short, long, value_name = "COLUMN", default_value = "cpu", value_parser = ["cpu", "memory", "network", "disk", "name", "id"])]
    sort: String,
    /// Show only qubes with this in their names.
    #[arg(short, long, value_name = "TEXT", default_value = "", hide_default_value = true)]
    filter: String,
    /// Show the containers of each qube, too. They are what it says of them, by a call: dom0's agent has to run (`nxl tree').
    #[arg(short, long)]
    containers: bool,
}

fn seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| "a number of seconds".to_owned())?;
    match seconds {
        0.1..=86_400.0 => Ok(Duration::from_secs_f64(seconds)),
        _ => Err("0.1 to 86400".to_owned()),
    }
}

pub(crate) fn top(qubes: Qubes, options: &TopOptions) -> Result<(), Error> {
    // Settings that are wrong are the doctor's to tell of.
    let settings = Settings::of_host(Path::new(SETTINGS_FILE)).unwrap_or_default();
    let nexus = Nexus { metrics: settings.metrics, system: settings.system };
    let mut source = HostSource::new(qubes, "/sys", nexus)?.with_asker(Asker::new(containers::list_all));
    let variable = |name| env::var(name).ok();
    let choice = Choice {
        sort: Sort::ALL.into_iter().find(|sort| sort.name() == options.sort).unwrap_or_default(),
        filter: options.filter.clone(),
        containers: options.containers,
        colours: wants_colours(variable("NO_COLOR").as_deref(), variable("TERM").as_deref()),
        ..Choice::default()
    };
    let ended = if options.batch {
        batch(&mut source, &choice, options.iterations, options.delay, &mut io::stdout())
    } else {
        run(&mut source, choice, options.delay)
    };
    ended.map_err(|error| match error {
        TopError::Terminal(error) => Error::Output(error),
        error => Error::Top(error),
    })
}
