//! dom0's part of a call from one qube to another: it decides, tells both agents, and never touches a byte of the call.
//!
//! [`Broker`] is all of it that needs neither Xen nor a clock: bytes of control connections go in, bytes and [`Effect`]s
//! come out. What it is told of qubes by others than the qubes (who runs, what dom0 has configured) is taken as it is;
//! what an agent says is checked, bounded, and believed of that agent's own qube alone.
//!
//! [`serve`] puts it to work: a vchan to each qube's agent, a Unix socket for dom0's, the policy and what there is to know of
//! the qubes, the log of calls ([`Record`]) and the figures ([`Metrics`]). Whatever needs a program to be run is
//! done by another process ([`attend`]), so that this one can be [confined](confine).

mod attendant;
mod bucket;
pub mod confine;
mod core;
mod daemon;
mod domains;
mod figures;
mod log;
mod metrics;
mod ports;
mod record;
mod settings;

pub use self::core::{Asking, Broker, Connection, Effect, Limits, Notice, Parting};
pub use attendant::attend;
pub use daemon::{OpenError, Opened, serve};
pub use metrics::Metrics;
pub use record::{DecisionRecord, EndRecord, Entry, Outcome, Record};
pub use settings::{DisposableSettings, SETTINGS_FILE, SYSTEM_FILE, Settings, SettingsError};
