//! Programs with `libxensim.so` preloaded: C programs against the real libraries' headers, and Debian's libxenvchan.

#![allow(clippy::unwrap_used, reason = "what fails here fails a test")]

mod libxenvchan;
mod semantics;
mod sim;
