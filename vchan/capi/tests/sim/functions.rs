//! Every function of both headers.

use crate::host::{Host, Library, Process, compile, with_our_headers};

const EVERY_XENVCHAN: &str = "vchan/capi/tests/c/every-xenvchan.c";

fn our_program(source: &str, libraries: &[&str]) -> std::path::PathBuf {
    let arguments = with_our_headers(libraries);
    compile(source, &arguments.iter().map(String::as_str).collect::<Vec<_>>())
}

fn said(name: &str, library: Library, program: &std::path::Path) -> String {
    let host = Host::new(name);
    Process::start(&mut host.command(1, library, program)).succeed()
}

#[test]
fn every_function_of_libxenvchan_does_what_debians_does() {
    let libraries = ["-lxenvchan", "-lxenevtchn", "-lpthread"];
    let theirs = compile(EVERY_XENVCHAN, &libraries);
    let expected = said("every-debian", Library::Debian, &theirs);
    assert!(expected.lines().count() > 250, "{expected}");
    for (what, program) in
        [("over Debian's header", theirs), ("over ours", our_program(EVERY_XENVCHAN, &libraries))]
    {
        let ours = said("every-ours", Library::Ours, &program);
        let differs = expected.lines().zip(ours.lines()).find(|(theirs, ours)| theirs != ours);
        assert_eq!((differs, ours.len()), (None, expected.len()), "{what}");
    }
}

#[test]
fn libxenvchan_promises_more() {
    let program = our_program("vchan/capi/tests/c/extra-xenvchan.c", &["-lxenvchan", "-lpthread"]);
    assert_eq!(said("extra", Library::Ours, &program), "ok\n");
}

#[test]
fn every_function_of_libvchan_does_what_its_header_says() {
    let program =
        our_program("vchan/capi/tests/c/every-libvchan.c", &["-lvchan-xen", "-lxenstore", "-lpthread"]);
    assert_eq!(said("every-libvchan", Library::Ours, &program), "ok\n");
}

/// A program that is linked against Debian's library, and started with ours, is a program that uses ours.
#[test]
fn programs_find_our_library_by_its_name() {
    let program = compile(EVERY_XENVCHAN, &["-lxenvchan", "-lxenevtchn", "-lpthread"]);
    let host = Host::new("ldd");
    for (library, expected) in [(Library::Ours, true), (Library::Debian, false)] {
        let mut command = host.command(1, library, "ldd");
        let output = Process::start(command.env_remove("LD_PRELOAD").arg(&program)).succeed();
        let line = output.lines().find(|line| line.contains("libxenvchan.so.4.17")).unwrap();
        let folder = crate::host::libraries().to_str().unwrap();
        assert_eq!(line.contains(folder), expected, "{line}");
    }
}
