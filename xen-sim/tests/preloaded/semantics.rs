//! What each group of the C functions promises, called from C: one test here for one in `c/semantics.c`.

use crate::sim::{Process, Sim, eventually, program, stderr_of};
use std::fs;

/// Runs a test of `c/semantics.c`, in a host of its own.
fn passes(name: &str) {
    let sim = Sim::new(name);
    sim.start(0, &program("semantics"), &[name]).succeeds();
}

macro_rules! in_c {
    ($($name:ident)*) => { $( #[test] fn $name() { passes(stringify!($name)); } )* };
}

in_c! {
    grants_are_for_one_domain
    grants_for_reading_cannot_be_written
    granted_pages_are_zeroed_and_shared
    many_pages_are_mapped_in_one_piece
    unmapping_follows_the_c_library
    pages_outlive_the_sharer
    plain_munmap_gives_pages_back
    the_grant_limit_is_nospc
    a_child_takes_nothing_from_its_parent
    unmap_notifications
    a_killed_sharer_clears_its_byte
    events_coalesce_and_wait_for_unmask
    binding_follows_xen
    closing_makes_the_peer_unbound
    restricting_a_handle
    a_program_that_is_executed_closes_what_it_had
    store_values_and_lists
    store_permissions
    store_transactions
    store_watches
    store_unwatch_filter
    domains_are_introduced_and_released
    null_pointers_are_refused
    threads_share_handles
}

#[test]
fn processes_count_together_in_transactions() {
    let sim = Sim::new("count");
    let program = program("semantics");
    // All at once in a folder that is not there yet: one host serves them all.
    let mut counting: Vec<Process> = (0..6).map(|_| sim.start(0, &program, &["count_to", "50"])).collect();
    counting.iter_mut().for_each(Process::succeeds);
    let counted = sim.start(0, &program, &["print", "/counter"]);
    counted.says("300");
}

#[test]
fn the_grant_limit_is_the_environments() {
    let sim = Sim::new("limit");
    let mut command = sim.command(1, &program("semantics"));
    command.args(["limit_is", "2000"]).env("XENSIM_GRANT_LIMIT", "2000");
    assert!(command.status().unwrap().success());
    let wrong = Sim::new("wrong-limit");
    let mut command = wrong.command(1, &program("semantics"));
    command.args(["print", "domid"]).env("XENSIM_GRANT_LIMIT", "many");
    assert!(stderr_of(command).1.contains("see host.log there"));
    let log = fs::read_to_string(wrong.dir().join("host.log")).unwrap();
    assert!(log.contains("XENSIM_GRANT_LIMIT is \"many\": it must be a number of pages"), "{log}");
}

#[test]
fn the_store_outlives_its_host() {
    let sim = Sim::new("persistent");
    let program = program("semantics");
    sim.start(3, &program, &["write", "data/kept", "a \"quoted\" value"]).succeeds();
    eventually("the host leaves", || !sim.dir().join("host.sock").exists());
    assert!(
        fs::read_to_string(sim.dir().join("xenstore")).unwrap().contains("/local/domain/3/data/kept n3 ")
    );
    sim.start(3, &program, &["print", "data/kept"]).says("a \"quoted\" value");
}

#[test]
fn a_damaged_store_is_reported_and_not_overwritten() {
    let sim = Sim::new("damaged");
    fs::create_dir_all(sim.dir()).unwrap();
    fs::write(sim.dir().join("xenstore"), "/ n0 \"\"\nnonsense\n").unwrap();
    let mut command = sim.command(0, &program("semantics"));
    command.args(["print", "domid"]);
    let (status, error) = stderr_of(command);
    assert!(!status.success());
    assert!(error.contains("see host.log there"), "{error}");
    let log = fs::read_to_string(sim.dir().join("host.log")).unwrap();
    assert!(log.contains("line 2 describes no node: nonsense"), "{log}");
    assert!(fs::read_to_string(sim.dir().join("xenstore")).unwrap().ends_with("nonsense\n"));
}

#[test]
fn a_host_that_was_killed_is_replaced() {
    let sim = Sim::new("replaced");
    let program = program("semantics");
    // The socket of a host that is gone.
    fs::create_dir_all(sim.dir()).unwrap();
    let folder = fs::File::open(sim.dir()).unwrap();
    let short = format!("/proc/self/fd/{}/host.sock", std::os::fd::AsRawFd::as_raw_fd(&folder));
    drop(std::os::unix::net::UnixListener::bind(short).unwrap());
    assert!(sim.dir().join("host.sock").exists());
    sim.start(7, &program, &["print", "domid"]).says("7");
}

#[test]
fn a_wrong_environment_is_said_in_one_line() {
    let sim = Sim::new("environment");
    let program = program("semantics");
    let complaint = |name: &str, value: Option<&str>| {
        let mut command = sim.command(0, &program);
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
        command.args(["print", "domid"]);
        let (status, error) = stderr_of(command);
        assert_eq!(status.code(), Some(1));
        let lines: Vec<_> =
            error.lines().filter(|line| line.starts_with("xensim: ")).map(str::to_owned).collect();
        assert_eq!(lines.len(), 1, "{error}");
        lines[0].clone()
    };
    let no_dir = "xensim: XENSIM_DIR is not set: name the folder of the simulated host";
    assert_eq!(complaint("XENSIM_DIR", None), no_dir);
    assert_eq!(complaint("XENSIM_DIR", Some("")), no_dir);
    let domid = "xensim: XENSIM_DOMID is \"32752\": it must be a domid, 0 to 32751";
    assert_eq!(complaint("XENSIM_DOMID", Some("32752")), domid);
    let file = sim.dir().with_extension("file");
    fs::write(&file, "").unwrap();
    let in_file = complaint("XENSIM_DIR", file.to_str());
    fs::remove_file(&file).unwrap();
    assert!(in_file.starts_with(&format!("xensim: no host in {}: ", file.display())), "{in_file}");
}

#[test]
fn the_host_keeps_nothing_of_the_program_open_that_started_it() {
    let sim = Sim::new("inherited");
    // Reads the program's stderr to its end: it would not come before the host leaves if the host had it too.
    let mut command = sim.command(0, &program("semantics"));
    command.args(["print", "domid"]);
    let (status, error) = stderr_of(command);
    assert!(status.success());
    assert_eq!(error, "");
    assert!(sim.dir().join("host.sock").exists(), "the host is still there");
}
