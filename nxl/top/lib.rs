//! The view of `nxl top`: qubes as they are now, as text or on a terminal.
//!
//! A [`Source`](snapshot::Source) takes [snapshots](snapshot::Snapshot) (of this host: [`host::HostSource`]), the
//! [view] makes lines of one, and the [terminal] shows them and takes keys.

pub mod containers;
pub mod figures;
pub mod host;
pub mod snapshot;
pub mod terminal;
pub mod view;
