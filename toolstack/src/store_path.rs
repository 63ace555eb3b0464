//! Names of store paths, `HASH-NAME`, by which a file is known for good: nobody writes to what has one.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Where store paths are.
const STORE: &str = "/nix/store/";
/// Characters that the name may have besides letters and digits (Nix' checkName).
const NAME_MARKS: &[u8] = b"+._?=-";

/// Characters of the hash that a store path's name begins with.
pub(crate) const HASH_LEN: usize = 32;

/// Whether a byte may stand in a hash: Nix' digits, base 32, are without e, o, t and u.
pub(crate) fn is_digit(byte: u8) -> bool {
    matches!(byte, b'0'..=b'9' | b'a'..=b'z') && !matches!(byte, b'e' | b'o' | b't' | b'u')
}

/// The hash of a store path's name; `None` where it is none.
pub(crate) fn hash(name: &OsStr) -> Option<[u8; HASH_LEN]> {
    let name = name.as_bytes();
    let hash: [u8; HASH_LEN] = name.get(..HASH_LEN)?.try_into().ok()?;
    (hash.iter().all(|byte| is_digit(*byte))
        && name.get(HASH_LEN) == Some(&b'-')
        && name.len() > HASH_LEN + 1)
        .then_some(hash)
}

/// Whether a path is a store path: nothing within one, and nothing that leads elsewhere.
#[must_use]
pub fn is_one(path: &Path) -> bool {
    let Some(name) = path.to_str().and_then(|path| path.strip_prefix(STORE)) else { return false };
    let of_name = |byte: u8| byte.is_ascii_alphanumeric() || NAME_MARKS.contains(&byte);
    hash(OsStr::new(name)).is_some() && name.bytes().all(of_name)
}

/// The store path that a path is, or lies in: `/nix/store/…-linux-6.12` of `/nix/store/…-linux-6.12/bzImage`.
#[must_use]
pub fn of(path: &str) -> Option<&str> {
    let rest = path.strip_prefix(STORE)?;
    let end = STORE.len() + rest.find('/').unwrap_or(rest.len());
    let path = &path[..end];
    is_one(Path::new(path)).then_some(path)
}

/// What the store path is called that a path is, or lies in: `linux-6.12` of `/nix/store/…-linux-6.12/bzImage`.
#[must_use]
pub fn name(path: &str) -> Option<&str> {
    let name = path.strip_prefix(STORE)?.split('/').next()?;
    hash(OsStr::new(name))?;
    name.get(HASH_LEN + 1..)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_lies_in_a_store_path_is_its() {
        let whole = format!("/nix/store/{}-linux-6.12", "0".repeat(HASH_LEN));
        assert_eq!(of(&whole), Some(&*whole));
        assert_eq!(of(&format!("{whole}/bzImage")), Some(&*whole));
        for path in ["/nix/store/", "/nix/store/linux", "/boot/vmlinuz", &whole[1..], &format!("{whole} x")] {
            assert_eq!(of(path), None, "{path}");
        }
    }

    #[test]
    fn names_of_store_paths_begin_with_a_hash() {
        let is_one = |name: &str| hash(OsStr::new(name)).is_some();
        let name = |digit: char| format!("{}-a", digit.to_string().repeat(HASH_LEN));
        assert!(is_one(&name('0')));
        assert!(!is_one(&name('e')), "no digit");
        assert!(!is_one(&name('0')[..HASH_LEN + 1]) && !is_one(&"0".repeat(40)));
        assert!(!is_one("short") && !is_one(""));
    }

    #[test]
    fn a_store_path_is_told_from_what_lies_in_one() {
        let hash = "0".repeat(HASH_LEN);
        let path = |rest: &str| format!("/nix/store/{hash}{rest}");
        assert!(is_one(Path::new(&path("-linux-6.12"))));
        for other in ["-linux/bzImage", "-", "", "-a b", "-../x"] {
            assert!(!is_one(Path::new(&path(other))), "{other}");
        }
        assert!(!is_one(Path::new("/nix/store/../../etc/x")) && !is_one(Path::new("/etc")));
        assert_eq!(name(&path("-linux-6.12/bzImage")), Some("linux-6.12"));
        assert_eq!((name(&path("")), name("/boot/vmlinuz")), (None, None));
    }
}
