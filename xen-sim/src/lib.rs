//! `libxensim.so`: docs follow.

mod capi;
mod guest;
mod host;
mod memory;
mod slot;
mod start;
mod wire;
