//! What the libraries export, beside what Debian's does.

use crate::host::{built, libraries};
use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

fn output(program: &str, arguments: &[&str], file: &Path) -> String {
    let output = Command::new(program).args(arguments).arg(file).output();
    let output = output.unwrap_or_else(|_| panic!("{program} is needed (Debian package binutils)"));
    assert!(output.status.success(), "{program} {}", file.display());
    String::from_utf8(output.stdout).unwrap()
}

/// The functions that a library exports, with their versions.
fn functions(library: &Path) -> BTreeSet<String> {
    let symbols = output("nm", &["-D", "--defined-only", "--with-symbol-versions"], library);
    let functions = symbols.lines().filter_map(|line| line.split_once(" T "));
    functions.map(|(_, name)| name.to_owned()).collect()
}

/// Lines of the dynamic section.
fn dynamic(library: &Path, tag: &str) -> Vec<String> {
    let section = output("readelf", &["-dW"], library);
    let lines = section.lines().filter(|line| line.contains(&format!("({tag})")));
    lines.filter_map(|line| Some(line.split_once('[')?.1.split_once(']')?.0.to_owned())).collect()
}

/// Where Debian's library is.
fn debians() -> &'static Path {
    let path = Path::new("/usr/lib/x86_64-linux-gnu/libxenvchan.so.4.17");
    assert!(path.exists(), "{} is missing (Debian package libxen-dev)", path.display());
    path
}

#[test]
fn libxenvchan_exports_what_debians_exports_and_four_functions_more() {
    let (theirs, ours) = (functions(debians()), functions(&built("libxenvchan.so")));
    assert_eq!(theirs.len(), 13);
    assert!(theirs.iter().all(|name| name.ends_with("@@VERS_4.17.0")), "{theirs:?}");
    assert_eq!(theirs.difference(&ours).collect::<Vec<_>>(), Vec::<&String>::new());
    let more: Vec<&str> = ours.difference(&theirs).map(String::as_str).collect();
    assert_eq!(
        more,
        [
            "libxenvchan_last_error@@TESSERAQT_1",
            "libxenvchan_read_from_fd@@TESSERAQT_1",
            "libxenvchan_wait_timeout@@TESSERAQT_1",
            "libxenvchan_write_to_fd@@TESSERAQT_1"
        ]
    );
}

#[test]
fn libvchan_xen_exports_qubes_functions_and_four_more() {
    let functions = functions(&built("libvchan_xen.so"));
    let names = [
        "_check_domain_alive",
        "buffer_space",
        "client_init",
        "client_init_async",
        "client_init_async_finish",
        "close",
        "data_ready",
        "fd_for_select",
        "is_open",
        "last_error",
        "read",
        "read_from_fd",
        "recv",
        "send",
        "server_init",
        "set_blocking",
        "wait",
        "wait_timeout",
        "write",
        "write_to_fd",
    ];
    let expected: BTreeSet<String> = names.iter().map(|name| format!("libvchan_{name}")).collect();
    assert_eq!(functions, expected);
}

#[test]
fn the_libraries_have_the_names_by_which_they_are_found_and_stay_loaded() {
    for (library, soname) in
        [("libxenvchan.so", "libxenvchan.so.4.17"), ("libvchan_xen.so", "libvchan-xen.so.1")]
    {
        assert_eq!(dynamic(&built(library), "SONAME"), [soname]);
        assert!(output("readelf", &["-dW"], &built(library)).contains("NODELETE"));
        assert!(libraries().join(soname).exists());
    }
    assert_eq!(dynamic(debians(), "SONAME"), ["libxenvchan.so.4.17"]);
}

/// No library that depends on the release of Xen, and nothing that a dom0 has alone.
#[test]
fn the_libraries_need_few_others() {
    for library in ["libxenvchan.so", "libvchan_xen.so"] {
        let needed = dynamic(&built(library), "NEEDED");
        let xen: Vec<&String> = needed.iter().filter(|name| name.starts_with("libxen")).collect();
        assert_eq!(xen, ["libxengnttab.so.1", "libxenevtchn.so.1", "libxenstore.so.4"], "{library}");
    }
}
