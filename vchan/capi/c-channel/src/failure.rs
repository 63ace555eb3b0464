//! What a C caller learns of a failure: errno, and a line of text.

use std::cell::RefCell;
use std::error::Error as _;
use std::ffi::{CString, c_char};
use std::{io, ptr};
use vchan::{Error, Partial};

/// Why a call failed.
#[derive(Debug)]
pub struct Failure {
    errno: i32,
    text: String,
}

/// What a call says, or why it failed.
pub type Outcome<T> = Result<T, Failure>;

/// What the sleep in which a signal interrupted a thread fails with, in place of `EINTR`: that error would be slept
/// through. (The kernel's own name for it; no call that we make fails so.)
pub(crate) const INTERRUPTED: i32 = libc::ERESTART;

impl Failure {
    /// Of the call's own making.
    #[must_use]
    pub fn new(errno: i32, text: impl Into<String>) -> Self {
        Self { errno, text: text.into() }
    }

    /// The peer has gone.
    pub(crate) fn closed() -> Self {
        Error::Closed.into()
    }

    /// The error's number, as errno has it.
    #[must_use]
    pub fn errno(&self) -> i32 {
        self.errno
    }

    /// Leaves this as the calling thread's last failure, and in errno.
    pub(crate) fn tell(self) {
        let text = CString::new(self.text.replace('\0', " ")).unwrap_or_default();
        // Of a thread that is ending nobody will ask.
        let _ = LAST.try_with(|last| *last.borrow_mut() = Some((self.errno, text)));
        crate::boundary::set_errno(self.errno);
    }
}

thread_local! {
    static LAST: RefCell<Option<(i32, CString)>> = const { RefCell::new(None) };
}

/// The calling thread's last failure: its number, and its text, which stays where it is until the thread's next failure. 0 and
/// null if there was none.
pub(crate) fn last() -> (i32, *const c_char) {
    let last = LAST.try_with(|last| last.borrow().as_ref().map(|(errno, text)| (*errno, text.as_ptr())));
    last.ok().flatten().unwrap_or((0, ptr::null()))
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let errno = match &error {
            Error::WouldBlock => libc::EAGAIN,
            Error::TimedOut(_) => libc::ETIMEDOUT,
            Error::Closed => libc::EPIPE,
            Error::ClosedHere => libc::EBADF,
            Error::PeerDied(_) => libc::ECONNRESET,
            Error::Violation(_) | Error::BadKey { .. } => libc::EPROTO,
            Error::RingTooSmall { .. } => libc::EMSGSIZE,
            Error::RingTooLarge { .. } | Error::Loopback(_) | Error::ReservedDomain(_) => libc::EINVAL,
            Error::NoServer { .. } => libc::ENOENT,
            Error::Xen(error) => match source_errno(error) {
                INTERRUPTED => libc::EINTR,
                errno => errno,
            },
            Error::System { source, .. } => source.raw_os_error().unwrap_or(libc::EIO),
            _ => libc::EIO,
        };
        Self::new(errno, error.to_string())
    }
}

impl From<Partial> for Failure {
    fn from(partial: Partial) -> Self {
        let text = partial.to_string();
        Self { text, ..partial.error.into() }
    }
}

impl From<xen::Error> for Failure {
    fn from(error: xen::Error) -> Self {
        Error::from(error).into()
    }
}

fn source_errno(error: &xen::Error) -> i32 {
    let source = error.source().and_then(|source| source.downcast_ref::<io::Error>());
    source.and_then(io::Error::raw_os_error).unwrap_or(libc::EIO)
}
