//! Channels that were opened and closed leave nothing: no memory, no descriptor, no granted page.

use crate::host::{Host, Library, Process, compile, with_our_headers};
use std::process::Command;

/// Pages that the server's domain may grant at a time: some channels' worth, far fewer than all of them need.
const GRANT_LIMIT: &str = "200";

fn open_and_close(channels: u32, valgrind: bool) {
    let arguments = with_our_headers(&["-lxenvchan", "-lvchan-xen"]);
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let program = compile("vchan/capi/tests/c/open-close.c", &arguments);
    let host = Host::new(&format!("open-close-{channels}"));
    let mut command =
        host.command(1, Library::Ours, if valgrind { "valgrind" } else { program.to_str().unwrap() });
    if valgrind {
        assert!(
            Command::new("valgrind").arg("--version").output().is_ok(),
            "valgrind is needed (Debian package valgrind)"
        );
        // What is only possibly lost is threads' own, which live as long as the process.
        command.args(["--quiet", "--leak-check=full", "--show-leak-kinds=definite", "--num-callers=40"]);
        command
            .args(["--errors-for-leak-kinds=definite", "--error-exitcode=9", "--fair-sched=yes"])
            .arg(program);
    }
    command.arg(channels.to_string()).env("XENSIM_GRANT_LIMIT", GRANT_LIMIT);
    assert_eq!(Process::start_long(&mut command).succeed(), "ok\n");
}

#[test]
fn four_hundred_channels_leave_no_descriptor_and_no_grant() {
    open_and_close(400, false);
}

#[test]
fn valgrind_finds_nothing_in_forty_channels() {
    open_and_close(40, true);
}

/// `cargo test -p c-libraries-tests -- --ignored`: a quarter of an hour. (`make leaks`)
#[test]
#[ignore = "long"]
fn valgrind_finds_nothing_in_ten_thousand_channels() {
    open_and_close(10_000, true);
}
