//! Programs with `libxensim.so` preloaded: C programs against the real libraries' headers, and Debian's libxenvchan.

mod libxenvchan;
mod semantics;
mod sim;
