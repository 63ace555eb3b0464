//! Channels between two processes on a simulated host: ours with ours, and with Debian's libxenvchan in each role.

mod cat;
mod conversation;
mod death;
mod host;
