//! Descriptors of others, watched by tokio.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// A descriptor of the runtime's own for the same events, so that neither it nor the owner can close the other's. Within a
/// runtime.
#[allow(deprecated, reason = "its successor is unsafe, for descriptors that are not owned: this one is")]
pub(crate) fn readable(fd: BorrowedFd<'_>) -> io::Result<AsyncFd<OwnedFd>> {
    AsyncFd::with_interest(fd.try_clone_to_owned()?, Interest::READABLE)
}
