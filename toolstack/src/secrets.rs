//! Initrd secrets (RFC 125): a program of the closure appends to a copy of the initrd what must not be in the Nix store.
//!
//! The program runs in dom0, as whoever creates the qube, and reads dom0's files: it is the closure's word that decides
//! what that program is. So it runs only when it was asked for, see [`QubeConfig::initrd_secrets`].
//! The copy is an anonymous file in memory: no secret touches a disk, and whatever ends this process ends the copy.
//!
//! [`QubeConfig::initrd_secrets`]: crate::config::QubeConfig::initrd_secrets

use rustix::fs::MemfdFlags;
use std::fs::File;
use std::io::{self, Read, Seek};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};

/// Where the program's own tools are looked for, on NixOS and elsewhere; NixOS' programs name theirs themselves.
const PATH: &str = "/run/current-system/sw/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Why an initrd has not got its secrets.
#[derive(Debug, thiserror::Error)]
pub enum SecretsError {
    /// The initrd could not be copied, or the copy not be read.
    #[error("the initrd could not be copied, for {program} to append its secrets: {source}", program = .program.display())]
    Copy {
        /// The program.
        program: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The program could not be started.
    #[error("{program}, which appends the initrd's secrets, could not be started: {source}", program = .program.display())]
    Start {
        /// The program.
        program: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The program failed.
    #[error("{program}, which appends the initrd's secrets, failed ({status}): {said}", program = .program.display())]
    Failed {
        /// The program.
        program: PathBuf,
        /// How it ended.
        status: ExitStatus,
        /// The last line of what it wrote to stderr.
        said: String,
    },
    /// The program did not append.
    #[error("{program} was to append secrets to an initrd of {before} bytes, and left {after}", program = .program.display())]
    Shortened {
        /// The program.
        program: PathBuf,
        /// Bytes.
        before: u64,
        /// Bytes.
        after: u64,
    },
}

/// A copy of `initrd` to which `program` has appended its secrets; to be read from its start.
pub(crate) fn append(program: &Path, initrd: &mut dyn Read, scratch: &Path) -> Result<File, SecretsError> {
    let copy_error = |source| SecretsError::Copy { program: program.to_owned(), source };
    let start_error = |source| SecretsError::Start { program: program.to_owned(), source };
    let mut copy = rustix::fs::memfd_create("initrd", MemfdFlags::CLOEXEC)
        .map(File::from)
        .map_err(|errno| copy_error(errno.into()))?;
    let before = io::copy(initrd, &mut copy).map_err(copy_error)?;
    std::fs::create_dir_all(scratch).map_err(start_error)?;
    let output = Command::new(program)
        // Its only argument is a path: ours, since the descriptor is closed in the program.
        .arg(format!("/proc/{}/fd/{}", std::process::id(), copy.as_raw_fd()))
        .current_dir(scratch)
        .env_clear()
        .envs([("PATH", PATH.as_ref()), ("TMPDIR", scratch.as_os_str())])
        .stdin(Stdio::null())
        .output()
        .map_err(start_error)?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        let said = said.trim_end().lines().next_back().unwrap_or("it said nothing").to_owned();
        return Err(SecretsError::Failed { program: program.to_owned(), status: output.status, said });
    }
    let after = copy.metadata().map_err(copy_error)?.len();
    if after < before {
        return Err(SecretsError::Shortened { program: program.to_owned(), before, after });
    }
    copy.rewind().map_err(copy_error)?;
    Ok(copy)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn run(script: &str) -> Result<Vec<u8>, SecretsError> {
        let folder = tempfile::tempdir().unwrap();
        let program = folder.path().join("append-initrd-secrets");
        std::fs::write(&program, format!("#!/bin/sh -e\n{script}\n")).unwrap();
        std::fs::set_permissions(&program, PermissionsExt::from_mode(0o755)).unwrap();
        let mut file = append(&program, &mut &b"070701 initrd"[..], &folder.path().join("scratch"))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).unwrap();
        Ok(bytes)
    }

    #[test]
    fn what_the_program_appends_is_behind_the_initrd() {
        assert_eq!(
            run("[ $# = 1 ]; echo secret > new; cat new >> \"$1\"").unwrap(),
            b"070701 initrdsecret\n"
        );
        assert_eq!(run("exit 0").unwrap(), b"070701 initrd");
        let environment = run("env | cut -d= -f1 | grep -v -e PWD -e _ -e SHLVL | sort >> \"$1\"").unwrap();
        assert_eq!(environment, b"070701 initrdPATH\nTMPDIR\n");
    }

    #[test]
    fn a_program_that_fails_is_an_error_with_its_last_words() {
        let error = run("echo first >&2; echo no key >&2; exit 3").unwrap_err();
        assert!(error.to_string().ends_with("failed (exit status: 3): no key"), "{error}");
        let error = run("exit 1").unwrap_err();
        assert!(error.to_string().ends_with("it said nothing"), "{error}");
        let error = run(": > \"$1\"").unwrap_err();
        assert!(matches!(error, SecretsError::Shortened { before: 13, after: 0, .. }), "{error}");
        let error = append(Path::new("/nonexistent"), &mut &b""[..], &std::env::temp_dir()).unwrap_err();
        assert!(matches!(error, SecretsError::Start { .. }), "{error}");
    }
}
