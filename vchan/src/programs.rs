//! The command line of `vchan-cat`: what it is started with, and what its help, manual pages and completions are made of.

use clap::{Args, CommandFactory, Parser, Subcommand};

/// Standard input and output through a vchan to another Xen domain.
///
/// Without --send or --recv both directions are used at once, until standard input ends (and the peer has taken all of
/// it) or the peer closes, whichever is first: a vchan cannot be closed in one direction alone. For a file, use --send
/// at one end and --recv at the other; for a protocol that says itself when it is over, --half-close.
///
/// Exit status: 0 all that was to be said was said and taken; 1 the conversation broke off; 2 it did not begin.
#[derive(Debug, Parser)]
#[command(name = "vchan-cat", version)]
pub struct CatArguments {
    /// The end that it is.
    #[command(subcommand)]
    pub end: End,
}

/// Which end of a vchan.
#[derive(Debug, Subcommand)]
pub enum End {
    /// Offer a vchan to a domain, and wait for it
    Listen {
        /// The domain that may connect
        domid: u16,
        /// Where in xenstore: absolute, or below this domain's home
        path: String,
        /// Bytes that the ring towards this end holds at least (up to 1 MiB)
        #[arg(long, value_name = "BYTES", default_value_t = 65_536)]
        read_min: usize,
        /// Bytes that the ring from this end holds at least (up to 1 MiB)
        #[arg(long, value_name = "BYTES", default_value_t = 65_536)]
        write_min: usize,
        /// In which direction bytes go, and until when
        #[command(flatten)]
        mode: Mode,
    },
    /// Connect to a vchan that a domain offers
    Connect {
        /// The domain that offers it
        domid: u16,
        /// Where in xenstore: absolute, or below that domain's home
        path: String,
        /// How long to wait for the other end to come into being
        #[arg(long, value_name = "SECONDS")]
        wait: Option<u64>,
        /// In which direction bytes go, and until when
        #[command(flatten)]
        mode: Mode,
    },
}

/// In which direction bytes go, and until when.
#[derive(Clone, Copy, Debug, Args)]
pub struct Mode {
    /// Send standard input, until it ends and the peer has taken all
    #[arg(long, conflicts_with = "recv")]
    pub send: bool,
    /// Write what the peer sends to standard output, until it closes
    #[arg(long)]
    pub recv: bool,
    /// When standard input has ended, go on receiving until the peer closes
    #[arg(long, conflicts_with_all = ["send", "recv"])]
    pub half_close: bool,
    /// Say on standard error how much went through, and how fast
    #[arg(long)]
    pub stats: bool,
}

/// The description of `vchan-cat`.
#[must_use]
pub fn description() -> clap::Command {
    CatArguments::command()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_called_as_it_is_installed() {
        description().debug_assert();
        assert_eq!(description().get_name(), "vchan-cat");
    }
}
