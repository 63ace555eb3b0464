//! Names of store paths, `HASH-NAME`, by which a file is known for good: nobody writes to what has one.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_store_paths_begin_with_a_hash() {
        let is_one = |name: &str| hash(OsStr::new(name)).is_some();
        let name = |digit: char| format!("{}-a", digit.to_string().repeat(HASH_LEN));
        assert!(is_one(&name('0')));
        assert!(!is_one(&name('e')), "no digit");
        assert!(!is_one(&name('0')[..HASH_LEN + 1]) && !is_one(&"0".repeat(40)));
        assert!(!is_one("short") && !is_one(""));
    }
}
