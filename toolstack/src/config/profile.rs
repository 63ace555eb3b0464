//! A Nix profile, such as `/nix/var/nix/profiles/system`: a link to its current generation, `system-42-link` beside it,
//! which is a link to a closure.

use super::closure::ClosureError;
use std::path::{Path, PathBuf};

/// The number of a generation's link, if the name is one: `42` of `system-42-link` for the profile `system`.
fn number(name: &str, profile: &str) -> Option<u64> {
    name.strip_prefix(profile)?.strip_prefix('-')?.strip_suffix("-link")?.parse().ok()
}

/// The profile's name: `system` of `system`, and of `system-42-link`, which is one of its generations.
fn profile_name(name: &str) -> &str {
    let generation = || {
        let (profile, number) = name.strip_suffix("-link")?.rsplit_once('-')?;
        number.parse::<u64>().ok().map(|_| profile)
    };
    generation().unwrap_or(name)
}

/// Whether a name is that of a generation's link.
pub(crate) fn is_generation(name: &str) -> bool {
    profile_name(name) != name
}

/// The link of a profile's generation. `profile` may be the profile itself or another of its generations.
///
/// # Errors
/// [`ClosureError::NotAProfile`] and [`ClosureError::Generation`]
pub fn generation(profile: &Path, wanted: u64) -> Result<PathBuf, ClosureError> {
    let mut known = generations(profile)?;
    if let Some(at) = known.iter().position(|(number, _)| *number == wanted) {
        return Ok(known.swap_remove(at).1);
    }
    let name = profile.file_name().and_then(|name| name.to_str()).map_or("", profile_name);
    let known = known.into_iter().map(|(number, _)| number).collect();
    Err(ClosureError::Generation { profile: profile.with_file_name(name), wanted, known })
}

/// All generations of a profile and their links, in rising order; at least one.
///
/// # Errors
/// [`ClosureError::NotAProfile`]
pub fn generations(profile: &Path) -> Result<Vec<(u64, PathBuf)>, ClosureError> {
    let not_a_profile = || ClosureError::NotAProfile { path: profile.to_owned() };
    let name =
        profile.file_name().and_then(|name| name.to_str()).map(profile_name).ok_or_else(not_a_profile)?;
    let folder = match profile.parent() {
        Some(folder) if folder.as_os_str().is_empty() => Path::new("."),
        Some(folder) => folder,
        None => return Err(not_a_profile()),
    };
    let read_error = |source| ClosureError::Read { path: folder.to_owned(), source };
    let mut known = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(read_error)? {
        let file_name = entry.map_err(read_error)?.file_name();
        if let Some(number) = file_name.to_str().and_then(|file_name| number(file_name, name)) {
            known.push((number, folder.join(file_name)));
        }
    }
    if known.is_empty() {
        return Err(not_a_profile());
    }
    known.sort_unstable();
    Ok(known)
}

/// Numbers in rising order as people write them: `3, 5 to 9`.
pub(super) fn ranges(numbers: &[u64]) -> String {
    let runs = numbers.chunk_by(|a, b| a + 1 == *b);
    let text = runs.map(|run| match run {
        [first, .., last] if run.len() > 2 => format!("{first} to {last}"),
        run => run.iter().map(u64::to_string).collect::<Vec<_>>().join(", "),
    });
    text.collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::folder::Folder;

    #[test]
    fn a_generation_is_found_beside_its_profile() {
        let folder = Folder::new();
        for name in ["system-3-link", "system-12-link", "system-13-link", "system-14-link", "other-7-link"] {
            std::os::unix::fs::symlink("/nix/store/x", folder.path(name)).unwrap();
        }
        std::os::unix::fs::symlink("system-14-link", folder.path("system")).unwrap();
        for profile in ["system", "system-3-link"] {
            assert_eq!(generation(&folder.path(profile), 12).unwrap(), folder.path("system-12-link"));
            let error = generation(&folder.path(profile), 7).unwrap_err().to_string();
            let profile = folder.path("system");
            assert_eq!(error, format!("{}: no generation 7 (it has 3, 12 to 14)", profile.display()));
        }
        for none in ["current-system", "systems"] {
            let error = generation(&folder.path(none), 3).unwrap_err();
            assert!(matches!(error, ClosureError::NotAProfile { .. }), "{error}");
        }
        assert!(matches!(generation(Path::new("/"), 3), Err(ClosureError::NotAProfile { .. })));
        assert!(matches!(generation(&folder.path("none/system"), 3), Err(ClosureError::Read { .. })));
    }

    #[test]
    fn names_may_have_dashes_and_numbers() {
        assert_eq!(profile_name("per-user-1-link"), "per-user");
        assert_eq!((profile_name("a-link"), profile_name("-1-link")), ("a-link", ""));
        assert_eq!(number("per-user-1-link", "per-user"), Some(1));
        assert_eq!((number("system-x-link", "system"), number("system-1-linked", "system")), (None, None));
    }

    #[test]
    fn runs_of_numbers_are_ranges() {
        assert_eq!(ranges(&[1]), "1");
        assert_eq!(ranges(&[1, 2, 4, 5, 6, 9]), "1, 2, 4 to 6, 9");
        assert_eq!(ranges(&[]), "");
    }
}
