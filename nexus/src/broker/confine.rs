//! What nexusd gives up once everything is open: its user, its capabilities, and most of the system's calls.
//!
//! What Xen offers of that kind does not hold here: `xenevtchn_restrict` and `xentoolcore_restrict_all` tie a handle to one
//! domain, and nexusd speaks with all of them over few.

use nix::unistd::{Uid, User, setgroups, setresgid, setresuid};
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, SeccompRule};
use std::collections::BTreeMap;
use std::io;

/// What may go wrong.
#[derive(Debug, thiserror::Error)]
pub enum ConfineError {
    /// There is no such user.
    #[error("there is no user {0}; make one (useradd --system {0}), or name another in the configuration")]
    NoUser(String),
    /// A system call.
    #[error("{call}: {source}")]
    System {
        /// Which.
        call: &'static str,
        /// Why.
        source: io::Error,
    },
    /// The filter of system calls.
    #[error("the filter of system calls: {0}")]
    Filter(#[from] seccompiler::Error),
    /// The same, for this machine.
    #[error("the filter of system calls: {0}")]
    Backend(#[from] seccompiler::BackendError),
}

/// Whom nexusd becomes when nothing else is said: its packages make that user.
pub const USER: &str = "nexus";

/// Whom to become.
#[derive(Debug, Clone)]
pub struct Identity {
    user: User,
}

impl Identity {
    /// Whom nexusd is to become: who is named; else [`USER`], where there is such a user. `None`: it stays who it is, and
    /// the log says so of root.
    ///
    /// # Errors
    /// There is no user of the name.
    pub fn chosen(named: Option<&str>) -> Result<Option<Self>, ConfineError> {
        Self::choose(named, Uid::effective().is_root(), User::from_name)
    }

    fn choose(
        named: Option<&str>,
        is_root: bool,
        find: impl FnOnce(&str) -> nix::Result<Option<User>>,
    ) -> Result<Option<Self>, ConfineError> {
        if named.is_none() && !is_root {
            // Somebody has started it as whom it is to be.
            return Ok(None);
        }
        let name = named.unwrap_or(USER);
        match find(name).map_err(|error| system("getpwnam_r", error))? {
            Some(user) => Ok(Some(Self { user })),
            None if named.is_some() => Err(ConfineError::NoUser(name.to_owned())),
            None => {
                tracing::warn!(
                    "there is no user {USER}: nexusd stays root. Make one (useradd --system {USER}), or say in the configuration whom \
                     it is to become"
                );
                Ok(None)
            }
        }
    }

    /// The user's number.
    pub fn uid(&self) -> u32 {
        self.user.uid.as_raw()
    }

    /// The number of the user's group.
    pub fn gid(&self) -> u32 {
        self.user.gid.as_raw()
    }

    /// Becomes that user, with all threads. A user that is not root's has no capabilities.
    ///
    /// # Errors
    /// The kernel does not let us.
    pub fn assume(&self) -> Result<(), ConfineError> {
        let (uid, gid) = (self.user.uid, self.user.gid);
        setgroups(&[gid]).map_err(|error| system("setgroups", error))?;
        setresgid(gid, gid, gid).map_err(|error| system("setresgid", error))?;
        setresuid(uid, uid, uid).map_err(|error| system("setresuid", error))
    }
}

fn system(call: &'static str, error: nix::Error) -> ConfineError {
    ConfineError::System { call, source: error.into() }
}

/// What a daemon needs that has its sockets and its devices open: to read, write and wait; to open the policy, the log and
/// the file of the qubes anew; memory, and threads.
#[rustfmt::skip]
const CALLS: &[i64] = &[
    nix::libc::SYS_read, nix::libc::SYS_write, nix::libc::SYS_readv, nix::libc::SYS_writev, nix::libc::SYS_pread64, nix::libc::SYS_lseek,
    nix::libc::SYS_recvfrom, nix::libc::SYS_sendto, nix::libc::SYS_recvmsg, nix::libc::SYS_sendmsg, nix::libc::SYS_accept4,
    nix::libc::SYS_shutdown, nix::libc::SYS_getsockopt, nix::libc::SYS_setsockopt, nix::libc::SYS_getsockname, nix::libc::SYS_getpeername,
    nix::libc::SYS_close, nix::libc::SYS_dup, nix::libc::SYS_fcntl, nix::libc::SYS_ioctl, nix::libc::SYS_pipe2, nix::libc::SYS_eventfd2,
    nix::libc::SYS_epoll_create1, nix::libc::SYS_epoll_ctl, nix::libc::SYS_epoll_pwait, nix::libc::SYS_ppoll,
    nix::libc::SYS_openat, nix::libc::SYS_fstat, nix::libc::SYS_newfstatat, nix::libc::SYS_statx, nix::libc::SYS_getdents64, nix::libc::SYS_readlinkat,
    nix::libc::SYS_faccessat, nix::libc::SYS_faccessat2, nix::libc::SYS_ftruncate, nix::libc::SYS_fsync,
    nix::libc::SYS_inotify_init1, nix::libc::SYS_inotify_add_watch, nix::libc::SYS_inotify_rm_watch,
    nix::libc::SYS_mmap, nix::libc::SYS_munmap, nix::libc::SYS_mremap, nix::libc::SYS_mprotect, nix::libc::SYS_madvise, nix::libc::SYS_brk,
    nix::libc::SYS_futex, nix::libc::SYS_membarrier, nix::libc::SYS_sched_yield, nix::libc::SYS_sched_getaffinity, nix::libc::SYS_rseq,
    nix::libc::SYS_set_robust_list, nix::libc::SYS_clone, nix::libc::SYS_clone3, nix::libc::SYS_exit, nix::libc::SYS_exit_group,
    nix::libc::SYS_rt_sigaction, nix::libc::SYS_rt_sigprocmask, nix::libc::SYS_rt_sigreturn, nix::libc::SYS_sigaltstack, nix::libc::SYS_tgkill,
    nix::libc::SYS_getpid, nix::libc::SYS_gettid, nix::libc::SYS_getuid, nix::libc::SYS_geteuid, nix::libc::SYS_getrandom, nix::libc::SYS_prctl,
    nix::libc::SYS_clock_gettime, nix::libc::SYS_clock_nanosleep, nix::libc::SYS_nanosleep, nix::libc::SYS_gettimeofday,
    nix::libc::SYS_restart_syscall, nix::libc::SYS_uname, nix::libc::SYS_prlimit64,
];

/// Those that other machines do not have: they have the newer ones alone.
#[cfg(target_arch = "x86_64")]
#[rustfmt::skip]
const OLDER: &[i64] = &[
    nix::libc::SYS_poll, nix::libc::SYS_epoll_wait, nix::libc::SYS_open, nix::libc::SYS_stat, nix::libc::SYS_lstat, nix::libc::SYS_readlink, nix::libc::SYS_access,
    nix::libc::SYS_time, nix::libc::SYS_pipe,
];
#[cfg(not(target_arch = "x86_64"))]
const OLDER: &[i64] = &[];

/// Leaves all threads, for ever, only what is needed. No program can be run, no socket made, no signal sent to another
/// process, and no privilege gained. What is not needed fails with `EPERM`.
///
/// # Errors
/// The kernel has no seccomp, or this machine no filter.
pub fn filter() -> Result<(), ConfineError> {
    let rules: BTreeMap<i64, Vec<SeccompRule>> =
        CALLS.iter().chain(OLDER).map(|call| (*call, Vec::new())).collect();
    let filter = SeccompFilter::new(
        rules,
        SeccompAction::Errno(nix::libc::EPERM as u32),
        SeccompAction::Allow,
        std::env::consts::ARCH.try_into()?,
    )?;
    let program: BpfProgram = filter.try_into()?;
    // It sets no_new_privs, too, without which the kernel takes no filter from who is not root.
    Ok(seccompiler::apply_filter_all_threads(&program)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(named: Option<&str>, is_root: bool, there: &[&str]) -> Result<Option<String>, ConfineError> {
        let find = |name: &str| {
            let root = User::from_uid(Uid::from_raw(0))?;
            Ok(root.filter(|_| there.contains(&name)).map(|user| User { name: name.to_owned(), ..user }))
        };
        Ok(Identity::choose(named, is_root, find)?.map(|identity| identity.user.name))
    }

    #[test]
    fn it_becomes_who_is_named_or_its_own_user_if_there_is_one() {
        let becomes = |named, is_root, there: &[&str]| chosen(named, is_root, there).unwrap();
        assert_eq!(becomes(None, true, &["root", "nexus"]).as_deref(), Some("nexus"));
        assert_eq!(becomes(None, true, &["root"]), None);
        assert_eq!(becomes(Some("root"), true, &["root", "nexus"]).as_deref(), Some("root"));
        assert_eq!(becomes(Some("calls"), true, &["root", "nexus", "calls"]).as_deref(), Some("calls"));
        assert_eq!(becomes(None, false, &["root", "nexus"]), None, "who is not root can become nobody");
        let error = chosen(Some("calls"), true, &["root", "nexus"]).unwrap_err().to_string();
        assert!(error.starts_with("there is no user calls"), "{error}");
    }
}
