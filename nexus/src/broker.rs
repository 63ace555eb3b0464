//! dom0's part of a call from one qube to another: it decides, tells both agents, and never touches a byte of the call.
//!
//! [`Broker`] is all of it that needs neither Xen nor a clock: bytes of control connections go in, bytes and [`Effect`]s
//! come out. What it is told of qubes by others than the qubes (who runs, what dom0 has configured) is taken as it is;
//! what an agent says is checked, bounded, and believed of that agent's own qube alone.

mod bucket;
mod core;
mod metrics;
mod ports;
mod record;
mod settings;

pub use self::core::{Asking, Broker, Connection, Effect, Limits, Parting};
pub use metrics::Metrics;
pub use record::{DecisionRecord, EndRecord, Entry, Outcome, Record};
pub use settings::{DisposableSettings, Settings};
