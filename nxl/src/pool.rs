//! `nxl pool`: qubes that are built ahead.

use crate::command::PoolCommand;
use crate::error::Error;
use crate::manage::say;
use crate::{create, watch};
use serde_json::{Value, json};
use std::io::{self, Write};
use toolstack::KernelCache;
use toolstack::pool::Shell;
use toolstack::qubes::Qubes;
use xen::Platform;
use xen::host::Dom0;

pub(crate) fn pool(qubes: Qubes, command: &PoolCommand) -> Result<(), Error> {
    match command {
        PoolCommand::Fill { pool, count, options } => {
            let foreign = Dom0.foreign_memory().map_err(Error::of_opening)?;
            let config = create::read(options, false)?;
            let qubes = qubes.with_kernel_cache(KernelCache::default());
            for qube in qubes.fill_pool(pool, &config, *count, &*foreign)? {
                say(qube.display_name())?;
            }
            Ok(())
        }
        PoolCommand::Take { pool, name, unattended } => {
            let qube = qubes.take_from_pool(pool, name, !unattended)?;
            if !unattended {
                watch::ensure(&qubes)?;
            }
            say(&qube.info.domid.to_string())
        }
        PoolCommand::List { json: true } => {
            let shells = qubes.shells()?.into_iter().map(|shell| {
                let Shell { pool, qube } = shell;
                json!({ "name": qube.name, "domid": qube.info.domid.0, "pool": pool })
            });
            writeln!(io::stdout(), "{:#}", shells.collect::<Value>()).map_err(Error::Output)
        }
        PoolCommand::List { json: false } => {
            let mut text = format!("{:<32} {:>5} Pool\n", "Name", "ID");
            for shell in qubes.shells()? {
                let (name, domid) = (shell.qube.display_name(), shell.qube.info.domid.0);
                text += &format!("{name:<32} {domid:>5} {}\n", shell.pool);
            }
            io::stdout().write_all(text.as_bytes()).map_err(Error::Output)
        }
        PoolCommand::Drain { pool } => {
            qubes.drain_pool(pool)?;
            Ok(())
        }
    }
}
