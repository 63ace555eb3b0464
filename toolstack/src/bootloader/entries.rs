//! What a disk image offers to boot: the entries that NixOS' boot loaders leave on a partition.
//!
//! | boot loader | what is read |
//! |---|---|
//! | systemd-boot | `loader/entries/*.conf` and `loader/loader.conf` ([boot loader specification], type 1) |
//! | generic-extlinux-compatible | `extlinux/extlinux.conf` |
//! | lanzaboote, and unified kernel images | `EFI/Linux/*.efi` (type 2) |
//!
//! each at the root of a partition, and in `boot/` of one.
//!
//! [boot loader specification]: https://uapi-group.org/specifications/specs/boot_loader_specification/

use super::volume::{Volume, inside};
use std::path::{Path, PathBuf};

/// Bytes of a text; real ones have some hundreds.
const TEXT_LIMIT: u64 = 1 << 20;

/// What is booted, on one of the volumes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Boots {
    /// A kernel, and initrds that are put one behind the other.
    Kernel { kernel: PathBuf, initrds: Vec<PathBuf>, cmdline: String },
    /// A unified kernel image, or lanzaboote's stub, and the folder that is its partition's root.
    Image { path: PathBuf },
}

/// One entry of the menu.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Found {
    /// Which of the volumes.
    pub(super) volume: usize,
    pub(super) id: String,
    pub(super) title: String,
    pub(super) generation: Option<u64>,
    pub(super) specialisation: Option<String>,
    pub(super) boots: Boots,
}

/// The entries of all volumes, and which of them is booted when nobody chooses.
pub(super) fn find(volumes: &[Volume]) -> (Vec<Found>, usize) {
    let (mut entries, mut default) = (Vec::new(), None);
    for (index, volume) in volumes.iter().enumerate() {
        for root in ["/", "/boot"] {
            let root = Path::new(root);
            let (mut found, mut preferred) = extlinux(volume, root);
            if found.is_empty() {
                found = loader_entries(volume, root);
                found.extend(images(volume, root));
                newest_first(&mut found);
                preferred = preferred_entry(volume, root, &found);
            }
            if default.is_none() && !found.is_empty() {
                default = Some(entries.len() + preferred.unwrap_or_default());
            }
            entries.extend(found.into_iter().map(|found| Found { volume: index, ..found }));
        }
    }
    (entries, default.unwrap_or_default())
}

fn text(volume: &Volume, path: &Path) -> Option<String> {
    String::from_utf8(volume.bytes(path, TEXT_LIMIT).ok()?).ok()
}

/// A keyword and what follows it.
fn keyword(line: &str) -> Option<(&str, &str)> {
    let line = line.trim();
    let (word, rest) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
    (!word.is_empty() && !word.starts_with('#')).then_some((word, rest.trim()))
}

/// The systems first, then their specialisations; of either the newest first.
fn newest_first(entries: &mut [Found]) {
    entries.sort_by(|a, b| {
        let rank = |entry: &Found| (entry.specialisation.is_none(), entry.generation);
        rank(b).cmp(&rank(a)).then_with(|| a.id.cmp(&b.id))
    });
}

/// The entry that `loader.conf` names, by a pattern.
fn preferred_entry(volume: &Volume, root: &Path, entries: &[Found]) -> Option<usize> {
    let conf = text(volume, &root.join("loader/loader.conf"))?;
    let pattern = conf.lines().filter_map(keyword).rfind(|(word, _)| *word == "default")?.1;
    let pattern = pattern.trim_end_matches(".conf");
    entries.iter().position(|entry| matches(pattern, &entry.id))
}

/// Whether `name` matches `pattern`, in which `*` stands for anything and `?` for one character.
fn matches(pattern: &str, name: &str) -> bool {
    // The place to go on from when what follows the last star did not match.
    let (pattern, name): (Vec<char>, Vec<char>) = (pattern.chars().collect(), name.chars().collect());
    let (mut p, mut n, mut again) = (0, 0, None);
    while n < name.len() {
        match pattern.get(p) {
            Some('*') => {
                again = Some((p + 1, n));
                p += 1;
            }
            Some(c) if *c == '?' || *c == name[n] => {
                p += 1;
                n += 1;
            }
            _ => {
                let Some((after, from)) = again else { return false };
                again = Some((after, from + 1));
                (p, n) = (after, from + 1);
            }
        }
    }
    pattern[p..].iter().all(|c| *c == '*')
}

/// NixOS' names of entries: `nixos-generation-42`, `nixos-generation-42-specialisation-rescue`, with the profile's name
/// before `generation` when it is not `system`.
fn generation(id: &str) -> (Option<u64>, Option<String>) {
    let Some((_, rest)) = id.split_once("generation-") else { return (None, None) };
    let (number, rest) = rest.split_once('-').unwrap_or((rest, ""));
    let specialisation = rest.strip_prefix("specialisation-").map(str::to_owned);
    match number.parse() {
        Ok(number) => (Some(number), specialisation),
        Err(_) => (None, None),
    }
}

fn loader_entries(volume: &Volume, root: &Path) -> Vec<Found> {
    let folder = root.join("loader/entries");
    let read = |name: String| {
        let id = name.strip_suffix(".conf")?;
        let text = text(volume, &folder.join(&name))?;
        let (mut title, mut version) = (None, None);
        let (mut kernel, mut image, mut initrds, mut options) = (None, None, Vec::new(), Vec::new());
        for (word, value) in text.lines().filter_map(keyword) {
            let path = || inside(&root.join(value.trim_start_matches('/')));
            match word {
                "title" => title = Some(value.to_owned()),
                "version" => version = Some(value.to_owned()),
                "linux" => kernel = path(),
                "efi" => image = path(),
                "initrd" => initrds.push(path()?),
                "options" if !value.is_empty() => options.push(value.to_owned()),
                _ => {}
            }
        }
        let boots = match (kernel, image) {
            (Some(kernel), _) => Boots::Kernel { kernel, initrds, cmdline: options.join(" ") },
            (None, Some(path)) => Boots::Image { path },
            (None, None) => return None,
        };
        // Behind a plus sign stand the attempts that are left (automatic boot assessment).
        let id = id.split_once('+').map_or(id, |(id, _)| id).to_owned();
        let (generation, specialisation) = generation(&id);
        let title = [title, version].into_iter().flatten().collect::<Vec<_>>().join(", ");
        Some(Found { volume: 0, id, title, generation, specialisation, boots })
    };
    volume.names(&folder).into_iter().filter_map(read).collect()
}

fn images(volume: &Volume, root: &Path) -> Vec<Found> {
    let folder = root.join("EFI/Linux");
    let read = |name: String| {
        let id =
            name.get(..name.len().checked_sub(4)?).filter(|_| name.to_ascii_lowercase().ends_with(".efi"))?;
        let id = id.split_once('+').map_or(id, |(id, _)| id).to_owned();
        // lanzaboote's names end with a hash.
        let named = match id.rsplit_once('-') {
            Some((named, hash)) if hash.len() >= 32 => named,
            _ => &id,
        };
        let (generation, specialisation) = generation(named);
        let boots = Boots::Image { path: folder.join(&name) };
        Some(Found { volume: 0, title: id.clone(), id, generation, specialisation, boots })
    };
    volume.names(&folder).into_iter().filter_map(read).collect()
}

/// The entries of `extlinux.conf`, and its default.
fn extlinux(volume: &Volume, root: &Path) -> (Vec<Found>, Option<usize>) {
    let folder = root.join("extlinux");
    let Some(text) = text(volume, &folder.join("extlinux.conf")) else { return (Vec::new(), None) };
    let (mut entries, mut default): (Vec<Found>, _) = (Vec::new(), None);
    for (word, value) in text.lines().filter_map(keyword) {
        let path = || inside(&folder.join(value)).unwrap_or_default();
        let word = word.to_ascii_lowercase();
        if word == "default" {
            default = Some(value.to_owned());
        } else if word == "label" {
            let (generation, specialisation) = label(value);
            let nothing =
                Boots::Kernel { kernel: PathBuf::new(), initrds: Vec::new(), cmdline: String::new() };
            let (id, title) = (value.to_owned(), value.to_owned());
            entries.push(Found { volume: 0, id, title, generation, specialisation, boots: nothing });
        }
        // What stands before the first label is the menu's.
        let Some(Found { title, boots: Boots::Kernel { kernel, initrds, cmdline }, .. }) = entries.last_mut()
        else {
            continue;
        };
        match word.as_str() {
            "menu" => {
                if let Some(("label" | "LABEL", label)) = keyword(value) {
                    *title = label.to_owned();
                }
            }
            "linux" | "kernel" => *kernel = path(),
            "initrd" => *initrds = value.split(',').filter_map(|value| inside(&folder.join(value))).collect(),
            "append" => *cmdline = value.to_owned(),
            _ => {}
        }
    }
    let boots = |entry: &Found| !matches!(&entry.boots, Boots::Kernel { kernel, .. } if kernel.as_os_str().is_empty());
    entries.retain(boots);
    let default = default.and_then(|default| entries.iter().position(|entry| entry.id == default));
    (entries, default)
}

/// NixOS' labels: `nixos-default` for the current system, `nixos-42-default`, `nixos-42-rescue`.
fn label(label: &str) -> (Option<u64>, Option<String>) {
    let Some((number, variant)) = label.strip_prefix("nixos-").and_then(|rest| rest.split_once('-')) else {
        return (None, None);
    };
    match number.parse() {
        Ok(number) => (Some(number), Some(variant.to_owned()).filter(|variant| variant != "default")),
        Err(_) => (None, None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_tell_generation_and_specialisation() {
        let rescue = || Some("rescue".to_owned());
        assert_eq!(generation("nixos-generation-42"), (Some(42), None));
        assert_eq!(generation("nixos-generation-42-specialisation-rescue"), (Some(42), rescue()));
        assert_eq!(generation("nixos-work-generation-7"), (Some(7), None));
        assert_eq!(generation("memtest86"), (None, None));
        assert_eq!(generation("generation-x"), (None, None));
        assert_eq!(label("nixos-default"), (None, None));
        assert_eq!(label("nixos-42-default"), (Some(42), None));
        assert_eq!(label("nixos-42-rescue"), (Some(42), rescue()));
        assert_eq!(label("other"), (None, None));
    }

    #[test]
    fn patterns_match_as_those_of_shells() {
        for (pattern, name) in
            [("nixos-*", "nixos-1"), ("*", ""), ("a?c*e", "abcde"), ("a*b*c", "axbbxc"), ("", "")]
        {
            assert!(matches(pattern, name), "{pattern} {name}");
        }
        for (pattern, name) in [("nixos", "nixos-1"), ("a?", "a"), ("*b", "ba"), ("", "a"), ("a*b*c", "acb")]
        {
            assert!(!matches(pattern, name), "{pattern} {name}");
        }
    }
}
