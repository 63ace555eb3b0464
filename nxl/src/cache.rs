//! `nxl cache`: the unpacked kernels that `create` keeps.

use crate::command::CacheCommand;
use crate::error::Error;
use std::fmt::Write as _;
use std::io::{self, Write};
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use toolstack::{Entry, KernelCache, Pruned};

pub(crate) fn cache(command: &CacheCommand) -> Result<(), Error> {
    let text = run(&KernelCache::default(), command, SystemTime::now())?;
    io::stdout().write_all(text.as_bytes()).map_err(Error::Output)
}

fn run(kernels: &KernelCache, command: &CacheCommand, now: SystemTime) -> Result<String, Error> {
    Ok(match command {
        CacheCommand::List { json: true } => json(&serde_json::json!(described(&kernels.list()?))),
        CacheCommand::List { json: false } => table(&kernels.list()?, now),
        CacheCommand::Prune { all, max_size, json: as_json } => {
            let limit = if *all { Some(0) } else { max_size.map(|mib| mib << 20) };
            let pruned = kernels.prune(limit)?;
            if *as_json {
                let Pruned { entries, leftovers } = &pruned;
                json(&serde_json::json!({ "kernels": described(entries), "leftovers": leftovers }))
            } else {
                removed(&pruned, now)
            }
        }
    })
}

fn json(value: &serde_json::Value) -> String {
    format!("{value:#}\n")
}

fn described(entries: &[Entry]) -> Vec<serde_json::Value> {
    let seconds = |time: SystemTime| time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    entries
        .iter()
        .map(|entry| {
            serde_json::json!({
                "key": entry.key,
                "kernel": entry.source,
                "format": entry.format.to_string(),
                "size": entry.size,
                "last_used": seconds(entry.used),
            })
        })
        .collect()
}

fn table(entries: &[Entry], now: SystemTime) -> String {
    let mut text = row("Used", "MiB", "Packed as", Path::new("Kernel"));
    for entry in entries {
        let age = now.duration_since(entry.used).unwrap_or_default();
        let mib = format!("{:.1}", entry.size as f64 / f64::from(1 << 20));
        text += &row(&ago(age), &mib, &entry.format.to_string(), &entry.source);
    }
    text
}

fn row(used: &str, mib: &str, format: &str, kernel: &Path) -> String {
    format!("{used:<12} {mib:>7}  {format:<15} {}\n", kernel.display())
}

fn ago(age: Duration) -> String {
    let seconds = age.as_secs();
    match seconds {
        0..60 => format!("{seconds} s ago"),
        60..3_600 => format!("{} min ago", seconds / 60),
        3_600..86_400 => format!("{} h ago", seconds / 3_600),
        _ => format!("{} d ago", seconds / 86_400),
    }
}

fn removed(pruned: &Pruned, now: SystemTime) -> String {
    if *pruned == Pruned::default() {
        return "Nothing to remove.\n".to_owned();
    }
    let mut text = String::new();
    if !pruned.entries.is_empty() {
        text += &table(&pruned.entries, now);
    }
    for path in &pruned.leftovers {
        // Writing to a String does not fail.
        let _ = writeln!(text, "Left over by a crash: {}", path.display());
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    /// A cache with one kernel, as it lies on disk, and something left over.
    fn cache() -> (tempfile::TempDir, KernelCache) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path();
        fs::set_permissions(path, PermissionsExt::from_mode(0o700)).unwrap();
        let record = serde_json::json!({
            "source": "/nix/store/x-linux/bzImage",
            "format": { "bzimage": true, "codec": "zstd" },
            "cmdline_limit": 2047,
            "size": 3 << 20,
            "crc32": 0,
            "right": { "boot": "", "inode": 0, "modified": [0, 0] },
        });
        fs::write(path.join("store-1.json"), record.to_string()).unwrap();
        fs::write(path.join("store-1.kernel"), vec![0; 3 << 20]).unwrap();
        fs::write(path.join("store-2.new"), "half").unwrap();
        let used = UNIX_EPOCH + Duration::from_secs(1_000_000);
        fs::File::options().write(true).open(path.join("store-1.json")).unwrap().set_modified(used).unwrap();
        let cache = KernelCache::new(path, 1 << 30);
        (folder, cache)
    }

    fn output(cache: &KernelCache, command: &CacheCommand) -> String {
        run(cache, command, UNIX_EPOCH + Duration::from_secs(1_000_125)).unwrap()
    }

    #[test]
    fn kernels_are_listed_as_a_table_and_as_json() {
        let (_folder, cache) = cache();
        assert_eq!(
            output(&cache, &CacheCommand::List { json: false }),
            "Used             MiB  Packed as       Kernel\n\
             2 min ago        3.0  bzImage, zstd   /nix/store/x-linux/bzImage\n"
        );
        let json = output(&cache, &CacheCommand::List { json: true });
        let json: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert_eq!(
            json,
            serde_json::json!([{
                "key": "store-1",
                "kernel": "/nix/store/x-linux/bzImage",
                "format": "bzImage, zstd",
                "size": 3 << 20,
                "last_used": 1_000_000,
            }])
        );
    }

    #[test]
    fn pruning_says_what_it_removed() {
        let (folder, cache) = cache();
        let prune = |all, max_size, json| CacheCommand::Prune { all, max_size, json };
        let left = folder.path().join("store-2.new");
        assert_eq!(
            output(&cache, &prune(false, None, false)),
            format!("Left over by a crash: {}\n", left.display())
        );
        assert_eq!(output(&cache, &prune(false, Some(3), false)), "Nothing to remove.\n");
        let json: serde_json::Value =
            serde_json::from_str(&output(&cache, &prune(false, Some(2), true))).unwrap();
        assert_eq!(
            (&json["kernels"][0]["key"], &json["leftovers"]),
            (&"store-1".into(), &serde_json::json!([]))
        );
        assert_eq!(
            output(&cache, &prune(true, None, true)),
            "{\n  \"kernels\": [],\n  \"leftovers\": []\n}\n"
        );
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[test]
    fn ages_are_rounded_down() {
        let ago = |seconds| ago(Duration::from_secs(seconds));
        assert_eq!(
            [ago(59), ago(3_599), ago(3_600), ago(200_000)],
            ["59 s ago", "59 min ago", "1 h ago", "2 d ago"]
        );
    }
}
