//! The side of a process in a domain: what the C functions do, in safe Rust.

pub(crate) mod events;
pub(crate) mod grants;
mod link;
pub(crate) mod store;
