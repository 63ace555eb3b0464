//! The cache folder: what is expensive to make, kept under a name that carries a hash of its recipe.
//!
//! An entry is made in a folder beside its place and renamed into it when it is complete, so an entry that is
//! there is whole. A new recipe makes a new entry and leaves the old one to whoever still uses it.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use crate::Result;
use crate::error::At as _;

/// The environment variable that moves the cache out of the checkout.
pub const CACHE_VARIABLE: &str = "TESSERAQT_CACHE";

/// The testbed's cache folder.
#[derive(Debug, Clone)]
pub struct Cache {
    root: PathBuf,
}

impl Cache {
    /// The cache at `$TESSERAQT_CACHE`, or else in `.cache/testbed` of the checkout.
    pub fn open() -> Result<Self> {
        let root = match std::env::var_os(CACHE_VARIABLE) {
            Some(folder) => PathBuf::from(folder),
            None => checkout().join(".cache/testbed"),
        };
        fs::create_dir_all(&root).at(&root)?;
        let root = root.canonicalize().at(&root)?;
        Ok(Self { root })
    }

    /// A folder that is not keyed: the private state of apt and Nix, which keep their own locks.
    pub fn folder(&self, name: &str) -> Result<PathBuf> {
        let path = self.root.join(name);
        fs::create_dir_all(&path).at(&path)?;
        Ok(path)
    }

    /// The folder `NAME-HASH`, made by `make` if it is not there. `recipe` must say everything that `make`
    /// depends on; the hash is of that.
    ///
    /// One process makes an entry at a time; the others wait and find it made.
    pub fn entry(&self, name: &str, recipe: &str, make: impl FnOnce(&Path) -> Result<()>) -> Result<PathBuf> {
        let place = self.root.join(format!("{name}-{:016x}", fnv1a(recipe.as_bytes())));
        if place.is_dir() {
            return Ok(place);
        }
        let _lock = self.lock(name)?;
        if place.is_dir() {
            return Ok(place);
        }
        let unfinished = self.root.join(format!("{name}.unfinished"));
        if unfinished.exists() {
            fs::remove_dir_all(&unfinished).at(&unfinished)?;
        }
        fs::create_dir_all(&unfinished).at(&unfinished)?;
        make(&unfinished)?;
        fs::rename(&unfinished, &place).at(&place)?;
        Ok(place)
    }

    /// Waits for the lock `NAME.lock` and holds it until the file is dropped.
    pub fn lock(&self, name: &str) -> Result<File> {
        let path = self.root.join(format!("{name}.lock"));
        let file = File::create(&path).at(&path)?;
        file.lock().at(&path)?;
        Ok(file)
    }

    /// A fresh folder for one run, removed when the value is dropped unless it is kept.
    pub fn scratch(&self) -> Result<Scratch> {
        let runs = self.folder("runs")?;
        let path = runs.join(std::process::id().to_string());
        if path.exists() {
            // A process of the same number, long gone.
            fs::remove_dir_all(&path).at(&path)?;
        }
        fs::create_dir_all(&path).at(&path)?;
        Ok(Scratch { path, keep: false })
    }
}

/// The folder of one run.
#[derive(Debug)]
pub struct Scratch {
    path: PathBuf,
    keep: bool,
}

impl Scratch {
    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Leaves the folder, with its logs, where it is.
    pub fn keep(&mut self) {
        self.keep = true;
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if !self.keep {
            // Nobody can act on a failure here, and the next run of this process number removes the rest.
            let _ = fs::remove_dir_all(&self.path);
        }
    }
}

/// The checkout that this testbed was built from.
pub fn checkout() -> &'static Path {
    let testbed = Path::new(env!("CARGO_MANIFEST_DIR"));
    testbed.ancestors().nth(2).unwrap_or(testbed)
}

/// FNV-1a, 64 bits: a hash that is the same in every build of the testbed, which std's does not promise.
fn fnv1a(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fnv1a_is_the_published_one() {
        assert_eq!(fnv1a(b""), 0xcbf2_9ce4_8422_2325);
        assert_eq!(fnv1a(b"foobar"), 0x8594_4171_f739_67e8);
    }

    #[test]
    fn an_entry_is_made_once_and_only_when_whole() {
        let root = std::env::temp_dir().join(format!("testbed-cache-{}", std::process::id()));
        fs::create_dir_all(&root).unwrap();
        let cache = Cache { root: root.clone() };

        let failed =
            cache.entry("thing", "recipe", |_| Err(crate::Error::NotPackaged { path: "x".to_owned() }));
        assert!(failed.is_err());

        let first =
            cache.entry("thing", "recipe", |place| fs::write(place.join("a"), "1").at(place)).unwrap();
        assert_eq!(fs::read_to_string(first.join("a")).unwrap(), "1");
        let again = cache.entry("thing", "recipe", |_| panic!("made twice")).unwrap();
        assert_eq!(first, again);
        let other = cache.entry("thing", "another recipe", |_| Ok(())).unwrap();
        assert_ne!(first, other);

        fs::remove_dir_all(root).unwrap();
    }
}
