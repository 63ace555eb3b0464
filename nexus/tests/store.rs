//! A policy that follows its files.

use nexus::policy::{Call, Current, Place, PolicyFolders, PolicyStore, Principal, Service, System};
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

fn folders(root: &Path) -> PolicyFolders {
    PolicyFolders {
        folders: vec![root.join("run/qubes/policy.d"), root.join("etc/qubes/policy.d")],
        older: root.join("etc/qubes-rpc/policy"),
    }
}

fn decide(store: &PolicyStore) -> String {
    let system: System =
        serde_json::from_str(r#"{ "qubes": { "work": { "type": "AppVM" }, "vault": { "type": "AppVM" } } }"#)
            .expect("a fixture");
    let call = Call {
        source: Principal::parse("work").expect("a fixture"),
        target: Place::intended("vault").expect("a fixture"),
        service: Service::parse("q.A").expect("a fixture"),
    };
    store.decide(&call, &system).verdict.to_string()
}

/// Waits until the decision begins so; a change is followed within 2 s, or this fails.
fn becomes(store: &PolicyStore, expected: &str) {
    let begin = Instant::now();
    while !decide(store).starts_with(expected) {
        assert!(begin.elapsed() < Duration::from_secs(2), "{expected}: still {}", decide(store));
        std::thread::sleep(Duration::from_millis(5));
    }
}

const ALLOW: &str = "q.A * work vault allow\n";
const DENY: &str = "q.A * work vault deny\n";

fn write(path: PathBuf, text: &str) {
    fs::create_dir_all(path.parent().expect("a fixture")).expect("a fixture");
    fs::write(path, text).expect("a fixture");
}

#[test]
fn files_that_come_change_and_go_are_followed() {
    let root = tempfile::tempdir().unwrap();
    let file = |path: &str| root.path().join(path);
    let store = PolicyStore::open(folders(root.path())).unwrap();
    assert_eq!(decide(&store), "deny: no rule matches");
    // None of the folders was there.
    write(file("etc/qubes/policy.d/90-a.policy"), ALLOW);
    becomes(&store, "allow");
    write(file("run/qubes/policy.d/50-b.policy"), DENY);
    becomes(&store, "deny: a rule");
    fs::remove_file(file("run/qubes/policy.d/50-b.policy")).unwrap();
    becomes(&store, "allow");
    // Written elsewhere, and renamed.
    fs::write(file("new"), DENY).unwrap();
    fs::rename(file("new"), file("etc/qubes/policy.d/30-c.policy")).unwrap();
    becomes(&store, "deny: a rule");
    // A whole folder is replaced by another.
    write(file("etc/qubes/policy.new/10.policy"), ALLOW);
    fs::rename(file("etc/qubes/policy.d"), file("etc/qubes/policy.old")).unwrap();
    becomes(&store, "deny: no rule");
    fs::rename(file("etc/qubes/policy.new"), file("etc/qubes/policy.d")).unwrap();
    becomes(&store, "allow");
    write(file("etc/qubes/policy.d/00.policy"), DENY);
    becomes(&store, "deny: a rule");
}

#[test]
fn a_wrong_file_denies_everything_until_it_is_right() {
    let root = tempfile::tempdir().unwrap();
    let file = |name: &str| root.path().join("etc/qubes/policy.d").join(name);
    write(file("30.policy"), ALLOW);
    let store = PolicyStore::open(folders(root.path())).unwrap();
    becomes(&store, "allow");
    let before = store.current();
    write(file("90.policy"), "nothing that is a rule\n");
    becomes(&store, "deny: the policy is wrong");
    let Current::Wrong(errors) = store.current() else { panic!() };
    assert!(errors[0].to_string().contains("90.policy:1:"), "{}", errors[0]);
    // Who took the policy before still has a whole one.
    assert!(matches!(before, Current::Policy(policy) if policy.rules().len() == 1));
    fs::remove_file(file("90.policy")).unwrap();
    becomes(&store, "allow");
    // So does a file whose name is wrong.
    write(file("B.policy"), "");
    becomes(&store, "deny: the policy is wrong");
}

#[test]
fn included_files_are_followed() {
    let root = tempfile::tempdir().unwrap();
    let file = |path: &str| root.path().join(path);
    write(
        file("etc/qubes/policy.d/30.policy"),
        &format!("!include {}\n!compat-4.0\n", file("elsewhere/rules").display()),
    );
    let store = PolicyStore::open(folders(root.path())).unwrap();
    becomes(&store, "deny: the policy is wrong");
    write(file("elsewhere/rules"), "");
    becomes(&store, "deny: no rule");
    write(file("etc/qubes-rpc/policy/q.A"), "work vault allow\n");
    becomes(&store, "allow");
    write(file("elsewhere/rules"), DENY);
    becomes(&store, "deny: a rule");
}

#[test]
fn symbolic_links_are_followed_where_they_lead() {
    let root = tempfile::tempdir().unwrap();
    let file = |path: &str| root.path().join(path);
    // As on NixOS: /etc/qubes/policy.d/30.policy -> /etc/static/… -> the store; a switch replaces /etc/static.
    write(file("store/1/qubes/30.policy"), ALLOW);
    write(file("store/2/qubes/30.policy"), DENY);
    fs::create_dir_all(file("etc/qubes/policy.d")).unwrap();
    symlink("../../static/qubes/30.policy", file("etc/qubes/policy.d/30.policy")).unwrap();
    symlink("../store/1", file("etc/static")).unwrap();
    let store = PolicyStore::open(folders(root.path())).unwrap();
    becomes(&store, "allow");
    symlink("../store/2", file("etc/static.new")).unwrap();
    fs::rename(file("etc/static.new"), file("etc/static")).unwrap();
    becomes(&store, "deny: a rule");
    write(file("store/2/qubes/30.policy"), ALLOW);
    becomes(&store, "allow");
    // What is no longer led to is not followed; a link that leads nowhere is a wrong file.
    fs::remove_file(file("etc/static")).unwrap();
    becomes(&store, "deny: the policy is wrong");
}

#[test]
fn a_store_ends_with_its_thread() {
    let root = tempfile::tempdir().unwrap();
    let begin = Instant::now();
    drop(PolicyStore::open(folders(root.path())).unwrap());
    assert!(begin.elapsed() < Duration::from_secs(2));
}
