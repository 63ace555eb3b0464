//! `nxl create -n` beside Debian's `xl create -n`: for the same configuration the same JSON to the byte, or both refuse it.
//!
//! `xl` runs right here: tests/host.c stands in for the few things that it asks Xen while it reads a configuration.

#![allow(clippy::unwrap_used, reason = "what fails in here fails the test")]

use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::LazyLock;
use testbed::cache::Cache;
use testbed::debian::Tree;
use toolstack::config::{ConfigError, HostCpus, LibxlJsonError, QubeConfig, Settings, known_keys};

/// What `xl` takes and we refuse, and why.
const DEVIATIONS: [(&str, &str); 22] = [
    ("abbreviation", "xl takes any beginning of a type's name, be it empty"),
    ("arm-key", "xl passes the key over, or puts it into its JSON, although this is no Arm machine"),
    ("colo", "nxl does not replicate guests with COLO"),
    (
        "disk-oddity",
        "a stray equals sign, an empty vdev and a line end within a name are slips that libxl meets later",
    ),
    ("display-without-vnc", "xl passes over what is said of a display that there is not"),
    ("emulated", "libxl refuses an emulated card for such a guest when it makes it"),
    ("hvm", "HVM guests need QEMU, which nxl does not start"),
    ("hvm-key", "xl passes over what is said of hardware that such a guest has not"),
    ("junk", "xl remarks on what follows a port, or computes a huge range, and goes on"),
    ("list-in-list", "xl ends a list of strings at a list in it"),
    ("maximum", "libxl refuses a maximum below the beginning when it makes the guest"),
    ("name", "a name that is no file name cannot have a log or a socket"),
    ("no-feature", "nxl has not got the feature; silence would leave the guest without what was asked for"),
    ("no-kernel", "an empty path names no kernel"),
    ("not-a-number", "xl remarks on what is no number, and takes the default"),
    ("other-guest", "xl passes over what is said of the other kind of guest"),
    (
        "passed-over",
        "xl passes over a part of a device's text that it cannot read, or takes the part from another",
    ),
    ("pci-notation", "xl takes what scanf and atoi take: something behind a number, words for 0"),
    ("range", "libxl refuses the number when it makes the guest, or cuts it to what fits"),
    ("unknown-key", "xl passes over a key that it does not know"),
    ("vif-part", "xl remarks on a part of an interface's text that it cannot read, and goes on without"),
    ("wrong-shape", "xl remarks on a list that should be none, or is missing, and goes on"),
];

/// What we take and `xl` refuses, and why.
const ADDITIONS: [(&str, &str); 2] = [
    ("crash", "xl crashes where it splits a text without words"),
    (
        "trusted",
        "xl-disk-configuration(5) has the flag, and so has the lexer's source; Xen 4.17 ships a lexer made before it did",
    ),
];

/// What `xl` is told of the host in tests/host.c.
static HOST: LazyLock<HostCpus> = LazyLock::new(|| HostCpus::new(8, Some(vec![0, 0, 0, 0, 1, 1, 1, 1])));

static XL: LazyLock<PathBuf> = LazyLock::new(|| {
    let tree = Tree::of_package(&Cache::open().unwrap(), "xen-utils-4.17").unwrap();
    tree.file("usr/lib/xen-4.17/bin/xl").unwrap()
});

static STAND_IN: LazyLock<PathBuf> = LazyLock::new(|| {
    let library = Path::new(env!("CARGO_TARGET_TMPDIR")).join("host.so");
    let compiled = Command::new("cc")
        .args(["-Wall", "-Wextra", "-Werror", "-O1", "-shared", "-fPIC", "-o"])
        .arg(&library)
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/host.c"))
        .status()
        .expect("a C compiler");
    assert!(compiled.success(), "tests/host.c needs package libxen-dev");
    library
});

/// A configuration, and arguments of the command line.
#[derive(Debug, Clone)]
struct Case {
    text: String,
    arguments: Vec<String>,
}

/// What `xl` prints, or says instead. A crash is a refusal.
fn theirs(case: &Case) -> Result<String, String> {
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), &case.text).unwrap();
    let output = Command::new(&*XL)
        .env("LD_PRELOAD", &*STAND_IN)
        .args(["create", "-q", "-n"])
        .arg(file.path())
        .args(&case.arguments)
        .output()
        .unwrap();
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    match output.status.code() {
        Some(0) => Ok(String::from_utf8(output.stdout).unwrap()),
        Some(_) => Err(errors),
        None => Err(format!("{}: {errors}", output.status)),
    }
}

/// What we print, or say instead.
fn ours(case: &Case) -> Result<String, String> {
    let settings = Settings::parse("case.cfg", case.text.as_bytes(), &case.arguments);
    let settings = settings.map_err(|error| error.to_string())?;
    let described: Result<_, ConfigError> = QubeConfig::described("case.cfg", &settings, Some(&HOST));
    let (config, _) = described.map_err(|error| error.to_string())?;
    Ok(config.to_libxl_json())
}

fn shown(result: &Result<String, String>) -> String {
    result.clone().unwrap_or_else(|error| format!("refused: {error}"))
}

/// A case of tests/configs: its title, what should become of it, and itself.
fn cases() -> Vec<(String, String, Case)> {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/configs");
    let mut files: Vec<PathBuf> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.retain(|path| path.extension().is_some_and(|extension| extension == "txt"));
    files.sort();
    let mut cases = Vec::new();
    for path in files {
        let file = fs::read_to_string(&path).unwrap();
        let name = path.file_stem().unwrap().to_string_lossy().into_owned();
        for case in file.split("#### ").skip(1) {
            let (head, body) = case.split_once('\n').unwrap();
            let (words, title) = head.split_once(": ").unwrap();
            let (guest, verdict) = words.split_once(' ').unwrap();
            let base = "uuid = \"d5f1129b-3f6a-4d84-b438-cfa95b7402d7\"\nkernel = \"/boot/vmlinuz\"\n";
            let mut text = match guest {
                "pvh" | "pv" => format!("name = \"qube\"\ntype = \"{guest}\"\n{base}"),
                "whole" => String::new(),
                _ => panic!("{name}: {head}"),
            };
            let mut arguments = Vec::new();
            for line in body.lines() {
                match line.strip_prefix('@') {
                    Some(argument) => arguments.push(argument.to_owned()),
                    None => text += &format!("{line}\n"),
                }
            }
            cases.push((format!("{name}: {title}"), verdict.to_owned(), Case { text, arguments }));
        }
    }
    cases
}

#[test]
fn every_configuration_is_read_as_xl_reads_it() {
    let (cases, mut wrong, mut seen) = (cases(), Vec::new(), BTreeSet::new());
    assert!(cases.len() >= 200, "{} cases", cases.len());
    for (title, verdict, case) in &cases {
        let (ours, theirs) = (ours(case), theirs(case));
        let right = match verdict.as_str() {
            "same" => theirs.is_ok() && shown(&ours) == shown(&theirs),
            "refused" => ours.is_err() && theirs.is_err(),
            deviation => {
                seen.insert(deviation);
                let addition = ADDITIONS.iter().any(|(name, _)| *name == deviation);
                ours.is_ok() == addition && theirs.is_err() == addition
            }
        };
        // A message that does not say where helps nobody.
        let placed = ours
            .as_ref()
            .err()
            .is_none_or(|error| error.starts_with("case.cfg") || error.starts_with("command line:"));
        if !right || !placed {
            wrong.push(format!("{title} ({verdict})\nours: {}\nxl: {}", shown(&ours), shown(&theirs)));
        }
    }
    assert!(wrong.is_empty(), "{} of {} cases:\n\n{}", wrong.len(), cases.len(), wrong.join("\n\n"));
    let named: BTreeSet<&str> = DEVIATIONS.iter().chain(&ADDITIONS).map(|(name, _)| *name).collect();
    assert_eq!(seen, named, "every deviation comes up, and every one that comes up has its reason");
    let documentation = include_str!("../../docs/configuration.md");
    for (name, reason) in DEVIATIONS.iter().chain(&ADDITIONS) {
        assert!(documentation.contains(reason), "docs/configuration.md has not got {name}: {reason}");
    }
}

/// A case around a few lines.
#[test]
fn what_libxl_keeps_of_every_configuration_is_read_again() {
    let mut read = 0;
    for (title, _, case) in cases() {
        let Ok(settings) = Settings::parse("case.cfg", case.text.as_bytes(), &case.arguments) else {
            continue;
        };
        let Ok((config, _)) = QubeConfig::from_settings("case.cfg", &settings, Some(&HOST)) else { continue };
        let record = config.to_libxl_record();
        match QubeConfig::from_libxl_json("record", record.as_bytes()) {
            Ok(again) => {
                let said = |config: &QubeConfig| {
                    let mut config = config.clone();
                    // What has no effect in the only state that there is.
                    for flag in ["hap", "oos", "acpi", "dm_restrict", "xend_suspend_evtchn_compat"] {
                        config.stated.remove(flag);
                    }
                    serde_json::from_str::<serde_json::Value>(&config.to_libxl_record()).unwrap()
                };
                assert_eq!(said(&again), said(&config), "{title}");
                read += 1;
            }
            Err(LibxlJsonError::Devices(_)) => {}
            Err(error) => panic!("{title}: {error}\n{record}"),
        }
    }
    assert!(read > 80, "{read} configurations");
}

fn case(guest: &str, lines: &str) -> Case {
    let text = format!(
        "name = 'a'\ntype = '{guest}'\nkernel = 'k'\nuuid = 'd5f1129b-3f6a-4d84-b438-cfa95b7402d7'\n{lines}\n"
    );
    Case { text, arguments: Vec::new() }
}

#[test]
fn whatever_we_take_of_a_key_means_the_same_to_xl() {
    let (mut taken, mut keys, mut wrong) = (0, BTreeSet::new(), Vec::new());
    for key in known_keys() {
        for guest in ["pvh", "pv"] {
            for value in ["0", "1", "3", "'a'", "''", "[]", "[ '' ]", "[ 'a=b', '1' ]"] {
                let case = case(guest, &format!("{key} = {value}"));
                let ours = ours(&case);
                if ours.is_ok() {
                    taken += 1;
                    keys.insert(key);
                    let theirs = theirs(&case);
                    let crashed = theirs.as_ref().is_err_and(|error| error.starts_with("signal:"));
                    if !crashed && shown(&ours) != shown(&theirs) {
                        wrong.push(format!(
                            "{key} = {value}, {guest}\nours: {}\nxl: {}",
                            shown(&ours),
                            shown(&theirs)
                        ));
                    }
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{} of {taken} settings:\n\n{}", wrong.len(), wrong.join("\n\n"));
    assert!(taken > 400 && keys.len() > 80, "{taken} settings of {} keys", keys.len());
}

/// Texts of a list's items, at random: what we take, `xl` takes to the same effect; what we refuse and `xl` takes must be
/// `odd`.
fn compare_items(
    key: &str,
    texts: usize,
    item: impl Strategy<Value = String>,
    odd: impl Fn(&str, &str) -> bool,
) {
    let mut runner = TestRunner::deterministic();
    let mut good = 0;
    for _ in 0..texts {
        let text = item.new_tree(&mut runner).unwrap().current();
        let case = case("pvh", &format!("{key} = [ \"{text}\" ]"));
        let (ours, theirs) = (ours(&case), theirs(&case));
        match (&ours, &theirs) {
            (Ok(_), _) => {
                good += 1;
                assert_eq!(shown(&ours), shown(&theirs), "ours is on the left; {key} = [ {text:?} ]");
            }
            (Err(error), Ok(_)) => {
                assert!(odd(&text, error), "xl takes {key} = [ {text:?} ]; we do not: {error}")
            }
            (Err(_), Err(_)) => (),
        }
    }
    assert!(good > texts / 20, "only {good} of {texts} texts are valid: the pieces do not fit together");
}

#[test]
fn random_disks_are_read_as_xl_reads_them() {
    let piece = prop_oneof![
        6 => "(/[a-c]|raw|qcow2|xvd[ab]|hdc:cdrom|r|w|rw|ro|),",
        4 => "(vdev=xvd[ab]|format=(raw|vhd|)|access=(r|w|)|backend=[ab]|script=b|backendtype=phy|devtype=(disk|cdrom)),",
        2 => "(cdrom|discard|no-discard|direct-io-safe),",
        2 => "(phy|file|tap|aio|raw|qcow2|nbd|hd):",
        1 => "[a-c=:, -]{1,3}",
        1 => " ",
    ];
    let end = prop_oneof![4 => "", 2 => "target=[a-c=,:]{0,4}", 2 => ",xvda", 1 => ",xvda,(r|w)"];
    let disk = (proptest::collection::vec(piece, 0..5), end).prop_map(|(pieces, end)| pieces.concat() + &end);
    compare_items("disk", 800, disk, |text, error| {
        // libxlutil's lexer never comes to report a last `=`, and takes an empty vdev.
        text.ends_with('=') || error.contains("needs a vdev")
    });
}

#[test]
fn random_rates_are_read_as_xl_reads_them() {
    let rate = "rate=(0?[0-9]{1,3}|[0-9]{8,11})[GMK]?[Bb]/s(@[0-9]{1,4}[mu]?s?)?";
    compare_items("vif", 200, rate, |text, _| {
        // An octal number ends before 8 and 9; then xl counts bytes, whatever the unit.
        text.contains("rate=0") || text.contains("@0")
    });
}

#[test]
fn random_pci_devices_are_read_as_xl_reads_them() {
    let address = "([0-9a-f]{1,4}:)?[0-9a-f]{1,2}:[01]?[0-9a-f]\\.([0-8]|\\*)(@[0-2]?[0-9a-f])?";
    let option = "(seize|permissive|msitranslate|power_mgmt)=[01]|vslot=[0-2]?[0-9a-f]|rdm_policy=(strict|relaxed|host)|name=a";
    let device = (address, proptest::collection::vec(option, 0..3));
    let device = device.prop_map(|(address, options)| {
        options.into_iter().fold(address, |device, option| format!("{device},{option}"))
    });
    compare_items("pci", 200, device, |_, _| false);
}

#[test]
fn random_sets_of_cpus_are_read_as_xl_reads_them() {
    let part = "\\^?(nodes?:)?([0-9]|[0-3]-[0-9]|all|1[0-9])";
    let set = proptest::collection::vec(part, 1..4).prop_map(|parts| parts.join(","));
    compare_items("vcpus = 1\ncpus", 200, set, |_, _| false);
}
