//! `nxl mem-set`, `mem-max`, `claims` and `sharing`, in `xl`'s columns.

use crate::command::ListColumns;
use crate::error::Error;
use crate::list;
use crate::xl_conf::XlConf;
use clap::Args;
use std::io::{self, Write};
use toolstack::memory::parse_size_kib;
use toolstack::qubes::{Qube, Qubes};
use xen::PAGE_SHIFT;

#[derive(Debug, Args)]
pub(crate) struct MemoryOptions {
    /// Which.
    qube: String,
    /// MiB, or a number with its unit: b, k, m, g or t.
    size: String,
}

impl MemoryOptions {
    fn kib(&self) -> Result<u64, Error> {
        parse_size_kib(&self.size).ok_or_else(|| Error::Size(self.size.clone()))
    }
}

pub(crate) fn set(qubes: &Qubes, options: &MemoryOptions) -> Result<(), Error> {
    let kib = options.kib()?;
    Ok(qubes.set_memory(&qubes.find(&options.qube)?, kib)?)
}

pub(crate) fn set_max(qubes: &Qubes, options: &MemoryOptions) -> Result<(), Error> {
    let kib = options.kib()?;
    Ok(qubes.set_max_memory(&qubes.find(&options.qube)?, kib)?)
}

pub(crate) fn claims(qubes: &Qubes) -> Result<(), Error> {
    if !XlConf::open()?.claims_memory() {
        let _ = writeln!(io::stderr(), "claim_mode not enabled (see man xl.conf).");
    }
    let text = list::table(qubes, &qubes.list()?, ListColumns::default(), true)?;
    io::stdout().write_all(text.as_bytes()).map_err(Error::Output)
}

pub(crate) fn sharing(qubes: &Qubes, which: Option<&str>) -> Result<(), Error> {
    let selected = match which {
        Some(which) => vec![qubes.find(which)?],
        None => qubes.list()?,
    };
    let mut text = "Name                                        ID   Mem Shared\n".to_owned();
    text.extend(selected.iter().map(row));
    io::stdout().write_all(text.as_bytes()).map_err(Error::Output)
}

fn row(qube: &Qube) -> String {
    let mib = |pages: u64| pages >> (20 - PAGE_SHIFT);
    let info = &qube.info;
    let memory = mib(info.pages + info.outstanding_pages);
    format!("{:<40} {:>5} {memory:>5}  {:>5}\n", qube.display_name(), info.domid.0, mib(info.shared_pages))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_has_xls_columns() {
        let expected = "work                                         3   512      0\n";
        assert_eq!(row(&list::tests::qube()), expected);
    }
}
