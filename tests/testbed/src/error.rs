//! What can keep the testbed from running. A check that fails is not an error but a verdict.

use std::io;
use std::path::{Path, PathBuf};

/// Why the testbed could not be assembled or booted.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file could not be read or written.
    #[error("{path}: {source}")]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A program is not there or could not be started.
    #[error("cannot run {program}: {source}; `.ci/deps testbed` names the package")]
    NoProgram {
        /// The program.
        program: String,
        /// What the system said.
        source: io::Error,
    },
    /// A program failed.
    #[error("{command}: {status}\n{output}")]
    Command {
        /// The command line.
        command: String,
        /// Its exit status.
        status: std::process::ExitStatus,
        /// The last lines that it wrote.
        output: String,
    },
    /// apt on this machine knows no Debian 12.
    #[error("the testbed is made of Debian 12 packages, and apt has no source for bookworm on this machine")]
    NoBookworm,
    /// apt does not get at another release.
    #[error(
        "apt offers no {package}: the repository of this machine's Debian 12 has no {suite}, or did not answer"
    )]
    NotOffered {
        /// The package.
        package: String,
        /// The release that has it.
        suite: &'static str,
    },
    /// A package is not of the version that the testbed is known to work with.
    #[error("{package} is {found}, and only {wanted}* is known to work: {why}")]
    Version {
        /// The package.
        package: &'static str,
        /// The version that apt offers.
        found: String,
        /// The version's required beginning.
        wanted: &'static str,
        /// What goes wrong with others.
        why: &'static str,
    },
    /// A file that the packages should hold is not there.
    #[error("no {path} in the Debian packages")]
    NotPackaged {
        /// The path inside the packages' tree.
        path: String,
    },
    /// A program needs a shared library that no package brought.
    #[error("{binary} needs {library}, which none of the testbed's packages has")]
    NoLibrary {
        /// The program or library.
        binary: PathBuf,
        /// The missing library's name.
        library: String,
    },
    /// Something handed over as an ELF file is none.
    #[error("{path} is no ELF file: {source}")]
    Elf {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: goblin::error::Error,
    },
    /// The dom0 kernel is not the bzImage with an xz payload that Debian 12 ships.
    #[error("{path}: not a bzImage with an xz payload: {what}")]
    Kernel {
        /// The kernel.
        path: PathBuf,
        /// What is wrong with it.
        what: &'static str,
    },
    /// A check file lacks its header.
    #[error("{path}: {what}")]
    Check {
        /// The check.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// The build did not leave what it should have.
    #[error("{path} was not built")]
    NotBuilt {
        /// The missing product.
        path: PathBuf,
    },
}

/// The result of a step of the testbed.
pub type Result<T> = std::result::Result<T, Error>;

/// Names the file in an I/O error.
pub(crate) trait At<T> {
    fn at(self, path: impl AsRef<Path>) -> Result<T>;
}

impl<T> At<T> for io::Result<T> {
    fn at(self, path: impl AsRef<Path>) -> Result<T> {
        self.map_err(|source| Error::File { path: path.as_ref().to_owned(), source })
    }
}
