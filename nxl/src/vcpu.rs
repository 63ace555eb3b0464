//! `nxl vcpu-list`, `vcpu-pin` and `vcpu-set`, in `xl`'s columns.

use crate::error::Error;
use crate::manage::say;
use crate::xl_conf::XlConf;
use clap::Args;
use serde_json::{Value, json};
use std::io::{self, Write};
use toolstack::config::CpusError;
use toolstack::qubes::{Qube, Qubes};
use toolstack::vcpus::{Vcpu, VcpuError};
use xen::CpuSet;

#[derive(Debug, Args)]
#[command(
    after_help = "CPUS is all, or numbers, ranges and nodes with commas: 0-3,^2,node:1. With - it stays as it is."
)]
pub(crate) struct PinOptions {
    /// Undo what the guest's kernel pinned for a moment.
    #[arg(short, long)]
    force: bool,
    /// Leave vm.cpumask and its like in xl.conf out of account.
    #[arg(short, long = "ignore-global-affinity-masks")]
    ignore_masks: bool,
    /// Whose.
    qube: String,
    /// Its number, or all.
    vcpu: String,
    /// The CPUs that it may run on.
    #[arg(value_name = "CPUS")]
    hard: String,
    /// The CPUs that it would rather run on.
    #[arg(value_name = "SOFT_CPUS")]
    soft: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct SetOptions {
    /// More than this host has CPUs, too.
    #[arg(short, long)]
    ignore_host: bool,
    /// Which.
    qube: String,
    /// How many.
    vcpus: u32,
}

pub(crate) fn list(qubes: &Qubes, as_json: bool, which: &[String]) -> Result<(), Error> {
    let selected = match which {
        [] => qubes.list()?,
        which => which.iter().map(|which| qubes.find(which)).collect::<Result<_, _>>()?,
    };
    let cpus = qubes.cpu_count()?;
    let mut text = format!(
        "{:<32} {:>5} {:>5} {:>5} {:>5} {:>9} {}\n",
        "Name", "ID", "VCPU", "CPU", "State", "Time(s)", "Affinity (Hard / Soft)"
    );
    let mut objects = Vec::new();
    for qube in &selected {
        for vcpu in qubes.vcpus(qube)? {
            text += &row(qube, &vcpu, cpus);
            objects.push(object(qube, &vcpu, cpus));
        }
    }
    if as_json {
        text = format!("{:#}\n", Value::Array(objects));
    }
    io::stdout().write_all(text.as_bytes()).map_err(Error::Output)
}

fn row(qube: &Qube, vcpu: &Vcpu, cpus: u32) -> String {
    let Vcpu { number, info, affinity } = vcpu;
    let state = if info.online {
        let flag = |set: bool, letter: char| if set { letter } else { '-' };
        format!("{:>5} {:>3}{}- ", info.cpu, flag(info.running, 'r'), flag(info.blocked, 'b'))
    } else {
        format!("{:>5} {:>3}-p ", '-', '-')
    };
    format!(
        "{:<32} {:>5} {number:>5}{state}{:>9.1}  {} / {}\n",
        qube.display_name(),
        qube.info.domid.0,
        // In f32, as xl rounds it.
        info.cpu_time as f32 / 1e9,
        affinity.hard.display(cpus),
        affinity.soft.display(cpus),
    )
}

fn object(qube: &Qube, vcpu: &Vcpu, cpus: u32) -> Value {
    let Vcpu { number, info, affinity } = vcpu;
    json!({
        "name": qube.name,
        "domid": qube.info.domid.0,
        "vcpu": number,
        "cpu": info.online.then_some(info.cpu),
        "online": info.online,
        "running": info.running,
        "blocked": info.blocked,
        "cpu_time_ns": info.cpu_time,
        "hard_affinity": affinity.hard.display(cpus).to_string(),
        "soft_affinity": affinity.soft.display(cpus).to_string(),
    })
}

pub(crate) fn pin(qubes: &Qubes, options: &PinOptions, dryrun: bool) -> Result<(), Error> {
    let qube = qubes.find(&options.qube)?;
    let vcpu = match options.vcpu.as_str() {
        "all" if options.force => return Err(Error::ForceAll),
        "all" => None,
        number => Some(number.parse().map_err(|_| Error::NoVcpu(number.to_owned()))?),
    };
    let set = |text: &str| -> Result<Option<CpuSet>, VcpuError> {
        if text == "-" { Ok(None) } else { qubes.cpu_set(text).map(Some) }
    };
    let mut hard = set(&options.hard)?;
    let soft = options.soft.as_deref().map(set).transpose()?.flatten();
    if dryrun {
        let cpus = qubes.cpu_count()?;
        let shown = |set: &CpuSet| set.display(cpus).to_string();
        let hard = hard.as_ref().map_or_else(|| "-".to_owned(), shown);
        return say(&format!(
            "cpumap: {hard}{}",
            soft.map_or_else(String::new, |soft| format!(" {}", shown(&soft)))
        ));
    }
    if !options.ignore_masks
        && let Some(wanted) = &mut hard
    {
        for mask in XlConf::open()?.cpu_masks(qube.info.hvm) {
            *wanted = wanted.intersection(&qubes.cpu_set(&mask)?);
            if wanted.is_empty() {
                return Err(CpusError::Masked(mask).into());
            }
        }
    }
    Ok(qubes.pin(&qube, vcpu, hard.as_ref(), soft.as_ref(), options.force)?)
}

pub(crate) fn set(qubes: &Qubes, options: &SetOptions) -> Result<(), Error> {
    Ok(qubes.set_vcpus(&qubes.find(&options.qube)?, options.vcpus, !options.ignore_host)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::list::tests::qube;
    use xen::{Affinity, VcpuInfo};

    #[test]
    fn a_row_has_xls_columns() {
        let info = VcpuInfo { online: true, blocked: true, running: false, cpu_time: 12_340_000_000, cpu: 1 };
        let affinity = Affinity { hard: CpuSet::first(1), soft: CpuSet::first(4) };
        let vcpu = Vcpu { number: 0, info, affinity };
        assert_eq!(
            row(&qube(), &vcpu, 4),
            "work                                 3     0    1   -b-      12.3  0 / all\n"
        );
        let offline = Vcpu { info: VcpuInfo { online: false, ..info }, ..vcpu };
        assert_eq!(
            row(&qube(), &offline, 4),
            "work                                 3     0    -   --p      12.3  0 / all\n"
        );
    }
}
