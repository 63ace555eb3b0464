//! What a call to Xen can come back with.

use std::{fmt, io};

/// The result of a call to Xen.
pub type Result<T> = std::result::Result<T, Error>;

/// A call to Xen that failed: which one, with which arguments, and what the system said. That Xen is of another
/// [release](WrongRelease) has nothing to do with the call, which is not named then.
#[derive(Debug, thiserror::Error)]
#[error("{}", Shown { call, args, source })]
pub struct Error {
    call: &'static str,
    args: String,
    source: io::Error,
}

/// How an [`Error`] is shown.
struct Shown<'a> {
    call: &'a str,
    args: &'a str,
    source: &'a io::Error,
}

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { call, args, source } = self;
        match wrong_release(source) {
            Some(wrong) => wrong.fmt(f),
            None => write!(f, "{call}({args}): {source}"),
        }
    }
}

/// This program was built for another release of Xen than the one that is here: libxenctrl's ABI is each release's own.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error(
    "this program was built for Xen {needed}, and {here}: install its build for that release, or build it against the headers of that release"
)]
pub struct WrongRelease {
    /// The release that it was built for, such as 4.17.
    pub needed: &'static str,
    /// What is here instead.
    pub here: Here,
}

/// Where another release of Xen is.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Here {
    /// The hypervisor is of that release.
    #[error("Xen {0} runs here")]
    Running(String),
    /// These are the releases whose libraries are installed.
    #[error("here are the libraries of Xen {}", .0.join(" and "))]
    Installed(Vec<String>),
}

fn wrong_release(error: &io::Error) -> Option<&WrongRelease> {
    error.get_ref()?.downcast_ref()
}

/// What a caller can do about an [`Error`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ErrorKind {
    /// The device or daemon is not there: this machine runs no Xen, a module is not loaded, or this is not dom0.
    Unavailable,
    /// Xen or xenstored refuses this domain (or user) the operation.
    PermissionDenied,
    /// What was named does not exist.
    NotFound,
    /// It exists already.
    AlreadyExists,
    /// Somebody else was faster (a xenstore transaction, a page in motion): the same call may succeed when repeated.
    Again,
    /// A signal interrupted a wait.
    Interrupted,
    /// Memory, a quota or a table is exhausted.
    Exhausted,
    /// The arguments make no sense to the callee.
    Invalid,
    /// Anything else; the text has it.
    Other,
}

impl Error {
    /// An error of `call`, which was given `args`.
    pub(crate) fn new(call: &'static str, args: impl Into<String>, source: io::Error) -> Self {
        Self { call, args: args.into(), source }
    }

    /// The same with the calling thread's errno, to be taken right after the call failed.
    pub(crate) fn last(call: &'static str, args: impl Into<String>) -> Self {
        let source = io::Error::last_os_error();
        Self::new(call, args, source)
    }

    /// The same with an errno that is not the thread's own; also for implementations of the traits elsewhere.
    #[must_use]
    pub fn errno(call: &'static str, args: impl Into<String>, errno: i32) -> Self {
        Self::new(call, args, io::Error::from_raw_os_error(errno))
    }

    /// The C function (or the mock's equal) that failed.
    #[must_use]
    pub fn call(&self) -> &'static str {
        self.call
    }

    /// Which release of Xen this needs, and which is here, if that is what is wrong.
    #[must_use]
    pub fn wrong_release(&self) -> Option<&WrongRelease> {
        wrong_release(&self.source)
    }

    /// What a caller can do about it.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self.source.raw_os_error() {
            Some(libc::ENODEV | libc::ENXIO | libc::ECONNREFUSED | libc::ENOSYS | libc::EOPNOTSUPP) => {
                ErrorKind::Unavailable
            }
            Some(libc::EPERM | libc::EACCES) => ErrorKind::PermissionDenied,
            Some(libc::ENOENT | libc::ESRCH) => ErrorKind::NotFound,
            Some(libc::EEXIST) => ErrorKind::AlreadyExists,
            Some(libc::EAGAIN) => ErrorKind::Again,
            Some(libc::EINTR) => ErrorKind::Interrupted,
            Some(libc::ENOSPC | libc::ENOMEM | libc::EDQUOT | libc::E2BIG | libc::EMFILE | libc::ENFILE) => {
                ErrorKind::Exhausted
            }
            Some(libc::EINVAL | libc::EFAULT | libc::ERANGE) => ErrorKind::Invalid,
            _ => ErrorKind::Other,
        }
    }
}

impl From<WrongRelease> for Error {
    fn from(wrong: WrongRelease) -> Self {
        Self::new("XENVER_version", "", io::Error::other(wrong))
    }
}

impl From<Error> for io::Error {
    fn from(error: Error) -> Self {
        Self::new(error.source.kind(), error)
    }
}
