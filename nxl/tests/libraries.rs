//! What `nxl` loads when it starts.

use std::fs;

const PROGRAM: &str = env!("CARGO_BIN_EXE_nxl");

#[test]
fn it_is_linked_with_none_of_xens_libraries() {
    let program = fs::read(PROGRAM).unwrap();
    let text = String::from_utf8_lossy(&program);
    assert!(text.contains("libc.so.6"), "the names of the libraries that it needs are there to be found");
    // Those that it opens when it must.
    for library in ["libxenctrl.so.", "libxenguest.so.", "libxenforeignmemory.so."] {
        assert!(text.contains(library), "{library}");
    }
    for library in
        ["libxencall.so", "libxenstore.so", "libxengnttab.so", "libxenevtchn.so", "libxentoollog.so"]
    {
        assert!(!text.contains(library), "{library}");
    }
}
