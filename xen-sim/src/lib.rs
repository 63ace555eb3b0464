//! `libxensim.so`: a Xen host without Xen, for programs that use grants, event channels and xenstore.
//!
//! Preloaded into a program, it takes the place of the C libraries libxengnttab, libxenevtchn and libxenstore. Two
//! ordinary processes are then two domains that share pages and notify each other at the speed of the machine: Debian's own
//! libxenvchan runs unchanged, and so does everything else that is linked to those libraries dynamically.
//!
//! ```text
//! cargo build --release -p xen-sim
//! export LD_PRELOAD=$PWD/target/release/libxensim.so XENSIM_DIR=/tmp/host
//! XENSIM_DOMID=1 some-vchan-server &
//! XENSIM_DOMID=2 some-vchan-client
//! xenstore-ls -f -p /
//! ```
//!
//! # Environment
//! - `XENSIM_DIR`: the folder of the simulated host; made when it is absent. Required. Processes with the same folder are on
//!   the same host.
//! - `XENSIM_DOMID`: the domain that the process is in, 0 to 32751; 0 if unset. Both are read whenever a handle is opened, so
//!   one process can have handles in several domains.
//! - `XENSIM_GRANT_LIMIT`: pages that one domain may grant at a time, 1024 if unset, as gntalloc's `limit` is. Read by the
//!   first process of a host.
//!
//! What is wrong with them is said in one line on stderr, and the open function fails.
//!
//! # How it works
//! The first handle starts a process, `xensim-host`, which keeps the grant table, the ports and the store, as Xen, the
//! kernel's drivers and xenstored do. It leaves half a second after the last handle was closed; the store is in the folder
//! then, as text, and the next host reads it again (if the host is killed, changes since its start are lost). Every handle is
//! a connection to it. Pages are memory files; the slots of the event channels are one file that all map (`slot`); so are
//! neither data nor notifications any business of the host:
//! - reading and writing granted pages are just that;
//! - a notification is one atomic operation on the peer's slot, and one write(2) of the port into the peer's pipe if it was
//!   neither pending nor masked;
//! - waiting for an event is one read(2), and unmasking one atomic operation.
//!
//! **Death.** The host sees a process' connections end, whatever it died of, and does what the kernel would: unmap
//! notifications (the byte is cleared, then the event sent), revoking grants, closing ports, forgetting watches and
//! transactions. There is nothing that a killed process could leave locked or half-changed, apart from a port that it
//! was just about to write into a pipe; the host writes that one itself.
//!
//! # What is promised
//! As on Xen and Linux, with errnos, down to what the sources of libxenvchan, the drivers and xenstored have it:
//! - *Grants*: references are unique in the granting domain, never 0 and never used again. Only the named domain maps them,
//!   and not for writing if they were granted for reading: `EINVAL`, as for unknown and revoked ones. What is mapped for
//!   reading cannot be written, nor made writable. Pages are zeroed at first and live as long as the last mapping. A program
//!   may unmap with munmap(2), which is one of the functions offered for this reason (mapping something else over them with
//!   `MAP_FIXED`, and mremap(2), are not noticed). One difference: a revoked reference cannot be mapped again, even while
//!   an earlier mapping of it lasts.
//! - *Event channels*: ports are numbered for each domain, not from the same number. Unbound, interdomain, back to
//!   unbound when the peer closes; binding makes the local port pending. Events coalesce; what comes while a port is masked
//!   is delivered when it is unmasked. The descriptor is readable while a port waits, and reading it yields ports, 4 bytes
//!   each. (Writing to it does not unmask: call `xenevtchn_unmask`.) Virtual interrupts can be bound and never fire.
//! - *Xenstore*: permissions, inheritance, transactions that fail with `EAGAIN`, watches with their first firing, and the
//!   quotas of domains other than 0 (10 transactions, 128 watches, 1000 nodes, 2048 bytes a node, 5 permissions). A domain
//!   exists from its first handle on: `/local/domain/N`, which it owns, with `domid` and `data`.
//! - All functions may be called from several threads. A child that was forked inherits descriptors but not handles, except
//!   for notifying, waiting and unmasking.
//!
//! Not offered: grant copy and DMA buffers (`ENOTTY`, as from a kernel without them), `xenevtchn_fdopen` (`EOPNOTSUPP`),
//! xenstored's control commands (`ENOSYS`).
//!
//! # Finding the library in tests
//! A test finds it beside its own executable: `env::current_exe()?.with_file_name("libxensim.so")`, that is
//! `target/PROFILE/deps/libxensim.so`. Cargo builds it there for the tests of this crate, and for those of a crate that has
//! `xen-sim` among its dev-dependencies. `cargo build -p xen-sim` puts it into `target/PROFILE` as well. Being in
//! one file with what becomes the host, it can be copied anywhere.
//!
//! # Speed
//! `cargo bench --bench libxenvchan` measures libxenvchan over it, beside our own vchan.
//!
//! # Where what is
//! `capi` the C functions · `guest` what they do, in the program's process · `wire` requests and replies · `start` finding
//! or starting the host · `host` the tables · `slot` and `memory` what is shared. `unsafe` is in `capi`, `memory` and
//! `start` alone.

mod capi;
mod guest;
mod host;
mod memory;
mod slot;
mod start;
mod wire;
