//! `nxl sched-credit2`, in `xl`'s columns.

use crate::error::Error;
use clap::Args;
use std::io::{self, Write};
use toolstack::qubes::{Qube, Qubes};
use xen::CpuShare;

#[derive(Debug, Args)]
#[command(after_help = "Without options: all pools that are under credit2, and what each domain has.")]
pub(crate) struct Credit2Options {
    /// This domain's.
    #[arg(short, long, value_name = "QUBE", conflicts_with_all = ["cpupool", "schedparam"])]
    domain: Option<String>,
    /// Set its weight, 1 to 65535: relative to the others', 256 by default.
    #[arg(short, long, requires = "domain")]
    weight: Option<u32>,
    /// Set the most that it may use, in per cent of one CPU; 0 for no limit.
    #[arg(short, long, requires = "domain")]
    cap: Option<u32>,
    /// The scheduler's own parameters.
    #[arg(short, long)]
    schedparam: bool,
    /// Set how long a vCPU runs undisturbed, in microseconds: 0, or 100 to 500000.
    #[arg(short, long = "ratelimit_us", value_name = "MICROSECONDS", requires = "schedparam")]
    rate_limit: Option<u32>,
    /// Of this CPU pool.
    #[arg(short = 'p', long)]
    cpupool: Option<String>,
}

pub(crate) fn credit2(qubes: &Qubes, options: &Credit2Options) -> Result<(), Error> {
    let mut text = String::new();
    if let Some(which) = &options.domain {
        let qube = qubes.find(which)?;
        if options.weight.is_some() || options.cap.is_some() {
            return Ok(qubes.set_credit2(&qube, options.weight, options.cap)?);
        }
        text += &header();
        text += &row(&qube, qubes.credit2(&qube)?);
    } else if options.schedparam {
        // Without a name it is the first pool's, as xl has it.
        let pools = qubes.credit2_pools(Some(options.cpupool.as_deref().unwrap_or("0")))?;
        if let Some(microseconds) = options.rate_limit {
            return Ok(qubes.set_rate_limit(&pools, microseconds)?);
        }
        for pool in &pools {
            text += &pool_line(qubes, pool.id)?;
        }
    } else {
        let all = qubes.list()?;
        for pool in qubes.credit2_pools(options.cpupool.as_deref())? {
            text += &pool_line(qubes, pool.id)?;
            text += &header();
            for qube in all.iter().filter(|qube| qube.info.cpupool == pool.id) {
                text += &row(qube, qubes.control().credit2(qube.info.domid)?);
            }
        }
    }
    io::stdout().write_all(text.as_bytes()).map_err(Error::Output)
}

fn pool_line(qubes: &Qubes, pool: u32) -> Result<String, Error> {
    let name = qubes.cpu_pool_name(pool)?;
    Ok(format!("Cpupool {name}: ratelimit={}us\n", qubes.control().credit2_rate_limit(pool)?))
}

fn header() -> String {
    format!("{:<33} {:>4} {:>6} {:>4}\n", "Name", "ID", "Weight", "Cap")
}

fn row(qube: &Qube, part: CpuShare) -> String {
    format!("{:<33} {:>4} {:>6} {:>4}\n", qube.display_name(), qube.info.domid.0, part.weight, part.cap)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_stands_under_its_header() {
        assert_eq!(header(), "Name                                ID Weight  Cap\n");
        let row = row(&crate::list::tests::qube(), CpuShare { weight: 512, cap: 50 });
        assert_eq!(row, "work                                 3    512   50\n");
    }
}
