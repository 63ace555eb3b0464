//! The checks: shell scripts in `checks/`, and which of them share a boot.
//!
//! A check's file is named `NN-NAME`: the number orders, the name says what is shown. Its first comment lines may
//! say `# boot: NAME` (default `qubes`), `# limit: SECONDS` and `# with: ASSET…` (see [`assets`](crate::assets)). One with
//! `# ignored: REASON` is counted and not run, unless it is asked for.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::assets::NAMES;
use crate::error::At as _;
use crate::release::{BOOKWORM, Release, TRIXIE};
use crate::{Error, Result};

/// How long a check may take unless it says otherwise: far beyond what it needs, as a machine may be busy and the
/// limit only ends what hangs.
const LIMIT: Duration = Duration::from_secs(300);

/// One machine that checks run on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Boot {
    /// The name by which checks ask for it.
    pub name: &'static str,
    /// What it boots.
    pub release: Release,
    /// The emulated machine's memory in MiB, of which dom0 has 1024.
    pub memory: u32,
    /// Its processors. With two emulated ones about one guest in ten dies of a triple fault while it calibrates its
    /// clock, with one none does; but guests of four vCPUs come up on no fewer than two.
    pub processors: u32,
    /// More words for Xen.
    pub xen: &'static str,
    /// More words for QEMU.
    pub devices: &'static [&'static str],
}

/// The machine that checks run on unless they say otherwise.
const USUAL: &str = "qubes";

/// The machines, in the order in which they are booted: first those that take longest, so that all end at about the same time.
pub const BOOTS: [Boot; 7] = [
    // Two qubes with systemd, of 768 and 384 MiB.
    Boot { name: "containers", release: BOOKWORM, memory: 3328, processors: 1, xen: "", devices: &[] },
    Boot { name: "guests", release: BOOKWORM, memory: 3328, processors: 1, xen: "", devices: &[] },
    Boot { name: USUAL, release: BOOKWORM, memory: 3328, processors: 1, xen: "", devices: &[] },
    Boot { name: "calls", release: BOOKWORM, memory: 3328, processors: 1, xen: "", devices: &[] },
    // An IOMMU and devices that no driver of dom0's wants, for Xen to give away.
    Boot {
        name: "passthrough",
        release: BOOKWORM,
        memory: 3328,
        processors: 1,
        xen: "iommu=verbose,debug",
        devices: &[
            "-device",
            "intel-iommu",
            "-device",
            "edu,addr=10.0",
            "-device",
            "edu,addr=11.0",
            "-device",
            "virtio-rng-pci,addr=12.0",
        ],
    },
    Boot { name: "xen-4.20", release: TRIXIE, memory: 3328, processors: 1, xen: "", devices: &[] },
    // Two processors for four vCPUs, and room for a guest that does not fit below the MMIO hole.
    Boot { name: "large", release: BOOKWORM, memory: 6400, processors: 2, xen: "", devices: &[] },
];

/// The machine that the demo is shown on.
pub const DEMO: Boot = BOOTS[0];

/// One check.
#[derive(Debug, Clone)]
pub struct Check {
    /// What it shows.
    pub name: String,
    /// Its script.
    pub path: PathBuf,
    /// The machine it runs on.
    pub boot: Boot,
    /// How long it may take.
    pub limit: Duration,
    /// What it needs besides the closures.
    pub assets: Vec<&'static str>,
    /// Why it runs only when it is asked for.
    pub ignored: Option<String>,
}

/// All checks, in the order in which they run.
pub fn all() -> Result<Vec<Check>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("checks");
    let mut paths = Vec::new();
    for file in fs::read_dir(&folder).at(&folder)? {
        paths.push(file.at(&folder)?.path());
    }
    paths.sort();
    paths.into_iter().map(read).collect()
}

fn read(path: PathBuf) -> Result<Check> {
    let text = fs::read_to_string(&path).at(&path)?;
    let refuse = |what| Error::Check { path: path.clone(), what };
    let name = path
        .file_name()
        .and_then(|name| name.to_str()?.split_once('-'))
        .map(|(_, name)| name.to_owned())
        .ok_or_else(|| refuse("is not named NN-NAME".to_owned()))?;

    let header = |key: &str| {
        let lines = text.lines().take_while(|line| line.starts_with('#'));
        lines.filter_map(|line| line.strip_prefix("# ")?.strip_prefix(key)?.strip_prefix(": ")).next()
    };
    let boot = header("boot").unwrap_or(USUAL);
    let boot = BOOTS
        .into_iter()
        .find(|known| known.name == boot)
        .ok_or_else(|| refuse(format!("asks for the unknown boot '{boot}'")))?;
    let limit = match header("limit") {
        None => LIMIT,
        Some(seconds) => Duration::from_secs(
            seconds.parse().map_err(|_| refuse(format!("limit '{seconds}' is no number of seconds")))?,
        ),
    };
    let known = |asset| {
        let known = NAMES.into_iter().find(|known| *known == asset);
        known.ok_or_else(|| refuse(format!("asks for the unknown asset '{asset}'")))
    };
    let assets = header("with").unwrap_or_default().split_whitespace().map(known).collect::<Result<_>>()?;
    let ignored = header("ignored").map(str::to_owned);
    Ok(Check { name, path, boot, limit, assets, ignored })
}

/// Whether `name` matches `pattern`, in which `*` stands for anything.
pub fn matches(pattern: &str, name: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == name,
        Some((head, tail)) => name.strip_prefix(head).is_some_and(|rest| {
            (0..=rest.len()).any(|skip| rest.get(skip..).is_some_and(|r| matches(tail, r)))
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_stands_for_anything() {
        assert!(matches("vchan*guest", "vchan_dom0_guest"));
        assert!(matches("*", ""));
        assert!(matches("a*b*c", "abc"));
        assert!(!matches("a*b", "abc"));
        assert!(!matches("abc", "abcd"));
    }

    #[test]
    fn the_demo_has_room_for_qubes_with_systemd() {
        assert_eq!(DEMO.name, "containers");
    }

    #[test]
    fn every_check_can_be_read_and_no_name_is_used_twice() {
        let mut names: Vec<_> = all().unwrap().into_iter().map(|check| check.name).collect();
        assert!(!names.is_empty());
        let count = names.len();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), count);
    }
}
