//! Xen's libraries whose ABI is another in each release, libxenctrl and libxenguest: opened at run time, and once, in the
//! release that this was built for. Where there is another one, that is what the error says; a program that is linked
//! against them would not even start. So is libxenforeignmemory, though it is the same in all: most commands map nothing.
#![allow(unsafe_code, reason = "opens libraries")]

use crate::error::{Here, WrongRelease};
use crate::{Error, Result};
use std::fs;
use std::io;
use std::path::Path;
use std::sync::OnceLock;
use xen_sys as sys;

/// libxenctrl.
pub(super) fn control_library() -> Result<&'static sys::ControlLibrary> {
    static LIBRARY: OnceLock<sys::ControlLibrary> = OnceLock::new();
    // SAFETY: the library's constructors do nothing but what the C compiler puts there, and its functions have the types of
    // the headers, which are of the release that is in the file's name.
    once(&LIBRARY, sys::CONTROL_LIBRARY, || unsafe { sys::ControlLibrary::new(sys::CONTROL_LIBRARY) })
}

/// libxenguest.
pub(super) fn guest_library() -> Result<&'static sys::GuestLibrary> {
    static LIBRARY: OnceLock<sys::GuestLibrary> = OnceLock::new();
    // SAFETY: as above.
    once(&LIBRARY, sys::GUEST_LIBRARY, || unsafe { sys::GuestLibrary::new(sys::GUEST_LIBRARY) })
}

/// libxenforeignmemory.
pub(super) fn foreign_library() -> Result<&'static sys::ForeignLibrary> {
    static LIBRARY: OnceLock<sys::ForeignLibrary> = OnceLock::new();
    // SAFETY: as above; the version in the file's name is that of its ABI.
    once(&LIBRARY, sys::FOREIGN_LIBRARY, || unsafe { sys::ForeignLibrary::new(sys::FOREIGN_LIBRARY) })
}

fn once<L, E: std::fmt::Display>(
    place: &'static OnceLock<L>,
    name: &str,
    open: impl FnOnce() -> std::result::Result<L, E>,
) -> Result<&'static L> {
    if let Some(library) = place.get() {
        return Ok(library);
    }
    let library = open().map_err(|error| {
        let here = FOLDERS.iter().filter_map(|folder| releases_in(Path::new(folder))).flatten().collect();
        Error::new("dlopen", name, missing(&error.to_string(), here))
    })?;
    Ok(place.get_or_init(|| library))
}

/// Where the libraries of a 64-bit system are: Debian's and Fedora's.
const FOLDERS: [&str; 4] =
    ["/usr/lib/x86_64-linux-gnu", "/lib/x86_64-linux-gnu", "/usr/lib64", "/usr/local/lib"];

/// The releases of Xen whose libxenctrl is in a folder.
fn releases_in(folder: &Path) -> Option<Vec<String>> {
    let names = fs::read_dir(folder).ok()?.flatten().map(|entry| entry.file_name());
    Some(names.filter_map(|name| release_of(name.to_str()?)).collect())
}

/// Of the name by which the library is found; not of that of the file that it leads to, `libxenctrl.so.4.17.0`.
fn release_of(name: &str) -> Option<String> {
    let release = name.strip_prefix("libxenctrl.so.")?;
    (release.split('.').count() == 2).then(|| release.to_owned())
}

fn missing(why: &str, mut here: Vec<String>) -> io::Error {
    here.sort();
    here.dedup();
    here.retain(|release| release != sys::RELEASE);
    if here.is_empty() {
        let needed = sys::RELEASE;
        io::Error::other(format!(
            "{why}; this program was built for Xen {needed}, whose libraries are not here"
        ))
    } else {
        io::Error::other(WrongRelease { needed: sys::RELEASE, here: Here::Installed(here) })
    }
}

/// An error unless the hypervisor's version, as `XENVER_version` has it, is of the release that this was built for.
pub(super) fn check(version: libc::c_int) -> Result<()> {
    let running = format!("{}.{}", version >> 16, version & 0xffff);
    if running == sys::RELEASE {
        Ok(())
    } else {
        Err(WrongRelease { needed: sys::RELEASE, here: Here::Running(running) }.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_libraries_of_other_releases_are_found_by_name() {
        let names = ["libxenctrl.so.4.20", "libxenctrl.so.4.20.0", "libxenctrl.so", "libxenguest.so.4.19"];
        assert_eq!(names.map(release_of), [Some("4.20".to_owned()), None, None, None]);
        assert_eq!(releases_in(Path::new("/none")), None);
    }

    #[test]
    fn the_error_says_which_release_is_needed_and_which_is_here() {
        let wanted = sys::RELEASE;
        let todo = "install its build for that release, or build it against the headers of that release";
        let error =
            Error::new("dlopen", "x", missing("not found", ["4.99", wanted, "4.99"].map(Into::into).into()));
        let here = Here::Installed(vec!["4.99".to_owned()]);
        assert_eq!(error.wrong_release(), Some(&WrongRelease { needed: wanted, here }));
        assert_eq!(
            error.to_string(),
            format!(
                "this program was built for Xen {wanted}, and here are the libraries of Xen 4.99: {todo}"
            )
        );
        let error = Error::new("dlopen", "x", missing("not found", vec![]));
        assert_eq!(error.wrong_release(), None);
        assert_eq!(
            error.to_string(),
            format!(
                "dlopen(x): not found; this program was built for Xen {wanted}, whose libraries are not here"
            )
        );
        assert_eq!(
            check(4 << 16 | 99).unwrap_err().to_string(),
            format!("this program was built for Xen {wanted}, and Xen 4.99 runs here: {todo}")
        );
        let ours = wanted.split_once('.').unwrap();
        let ours = ours.0.parse::<libc::c_int>().unwrap() << 16 | ours.1.parse::<libc::c_int>().unwrap();
        assert!(check(ours).is_ok());
    }

    #[test]
    fn a_library_that_is_not_there_is_an_error_that_names_it() {
        static NONE: OnceLock<()> = OnceLock::new();
        let error = once(&NONE, "libxenctrl.so.0", || Err("no such file")).unwrap_err();
        assert!(error.to_string().starts_with("dlopen(libxenctrl.so.0): "), "{error}");
        assert!(control_library().is_ok(), "what this was built with is here");
    }
}
