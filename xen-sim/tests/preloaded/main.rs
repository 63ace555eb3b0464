//! Programs with `libxensim.so` preloaded: C programs against the real libraries' headers, and Debian's libxenvchan.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "what fails here fails a test, and says why")]

mod libxenvchan;
mod semantics;
mod sim;
