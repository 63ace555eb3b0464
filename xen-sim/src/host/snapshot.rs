//! The store as a text file: one node a line, parents first, `PATH PERMISSIONS "VALUE"`, as `xenstore-ls -f -p` shows
//! them.

use super::store::{Node, Store};
use crate::wire::Permission;
use std::fmt::Write as _;

/// The tree as text.
pub(super) fn save(store: &Store) -> String {
    store.nodes().map(|(path, node)| line(path, node)).collect()
}

/// The tree that a text describes.
///
/// # Errors
/// The first line that is wrong, and its number.
pub(super) fn load(text: &str) -> Result<Store, String> {
    let mut store = Store::new();
    for (number, line) in (1..).zip(text.lines()) {
        let restored =
            parse(line).and_then(|(path, permissions, value)| store.restore(path, permissions, value).ok());
        restored.ok_or_else(|| format!("line {number} describes no node: {line}"))?;
    }
    Ok(store)
}

fn line(path: &str, node: &Node) -> String {
    let letter = |permission: &Permission| match (permission.read, permission.write) {
        (false, false) => 'n',
        (true, false) => 'r',
        (false, true) => 'w',
        (true, true) => 'b',
    };
    let mut line = path.to_owned();
    for (index, permission) in node.permissions.iter().enumerate() {
        let separator = if index == 0 { ' ' } else { ',' };
        // Writing to a String cannot fail.
        let _ = write!(line, "{separator}{}{}", letter(permission), permission.domid);
    }
    let _ = writeln!(line, " \"{}\"", node.value.escape_ascii());
    line
}

fn parse(line: &str) -> Option<(&str, Vec<Permission>, Vec<u8>)> {
    let (path, rest) = line.split_once(' ')?;
    let (permissions, value) = rest.split_once(' ')?;
    let permission = |text: &str| {
        let (letter, domid) = text.split_at_checked(1)?;
        let (read, write) = match letter {
            "n" => (false, false),
            "r" => (true, false),
            "w" => (false, true),
            "b" => (true, true),
            _ => return None,
        };
        Some(Permission { domid: domid.parse().ok()?, read, write })
    };
    let permissions = permissions.split(',').map(permission).collect::<Option<_>>()?;
    let value = unescape(value.strip_prefix('"')?.strip_suffix('"')?)?;
    Some((path, permissions, value))
}

/// The inverse of `escape_ascii`.
fn unescape(text: &str) -> Option<Vec<u8>> {
    let mut value = Vec::new();
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        let byte = match byte {
            b'\\' => match bytes.next()? {
                b'n' => b'\n',
                b'r' => b'\r',
                b't' => b'\t',
                b'x' => {
                    let mut digit = || char::from(bytes.next()?).to_digit(16);
                    u8::try_from(digit()? * 16 + digit()?).ok()?
                }
                quoted @ (b'\\' | b'"' | b'\'') => quoted,
                _ => return None,
            },
            plain => plain,
        };
        value.push(byte);
    }
    Some(value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::store::Caller;
    use crate::wire::{Reply, StoreRequest};

    #[test]
    fn what_is_saved_is_loaded() {
        let caller = Caller { connection: 1, domid: 1 };
        let mut store = Store::new();
        store.introduce(1);
        let every_byte: Vec<u8> = (0..=255).collect();
        let path = || "data/deep/down".to_owned();
        store.request(caller, 0, StoreRequest::Write { path: path(), value: every_byte.clone() }).unwrap();
        let permissions = vec![
            Permission { domid: 1, read: false, write: true },
            Permission { domid: 2, read: true, write: true },
            Permission { domid: 3, read: true, write: false },
        ];
        store
            .request(
                caller,
                0,
                StoreRequest::SetPermissions { path: path(), permissions: permissions.clone() },
            )
            .unwrap();

        let text = save(&store);
        assert!(text.contains("\n/local/domain/1/domid n0,r1 \"1\"\n"), "{text}");
        let mut again = load(&text).unwrap();
        assert_eq!(save(&again), text);
        let read = again.request(caller, 0, StoreRequest::Read { path: path() }).unwrap();
        assert!(matches!(read, Reply::Value(value) if value == every_byte));
        let read = again.request(caller, 0, StoreRequest::Permissions { path: path() }).unwrap();
        assert!(matches!(read, Reply::Permissions(found) if found == permissions));
    }

    #[test]
    fn a_damaged_line_is_named() {
        let good = "/ n0 \"\"\n";
        for bad in [
            "/orphan/x n0 \"\"",
            "/x n0",
            "/x \"\"",
            "/x z0 \"\"",
            "/x n99999 \"\"",
            "/x n0 \"",
            "/x n0 \"\\q\"",
            "/x n0 \"\\x4\"",
            "relative n0 \"\"",
        ] {
            let error = load(&format!("{good}{bad}\n")).unwrap_err();
            assert!(error.starts_with("line 2 ") && error.ends_with(bad), "{error}");
        }
        load(good).unwrap();
    }
}
