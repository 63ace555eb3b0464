//! The names of the library: its SONAME and the versions of its symbols, both after a release of Xen.
//!
//! `XEN_SONAME=4.19 cargo build --release` builds for that release; 4.17 otherwise.

use std::env;
use std::path::Path;
use std::process::exit;

/// What Debian's library of Xen 4.17 exports.
const PUBLIC: [&str; 13] = [
    "libxenvchan_server_init",
    "libxenvchan_client_init",
    "libxenvchan_close",
    "libxenvchan_recv",
    "libxenvchan_read",
    "libxenvchan_send",
    "libxenvchan_write",
    "libxenvchan_wait",
    "libxenvchan_fd_for_select",
    "libxenvchan_is_open",
    "libxenvchan_data_ready",
    "libxenvchan_buffer_space",
    "close_xs_srv",
];

/// What is ours (`libxenvchan-extra.h`).
const EXTRA: [&str; 4] = [
    "libxenvchan_read_from_fd",
    "libxenvchan_write_to_fd",
    "libxenvchan_wait_timeout",
    "libxenvchan_last_error",
];

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-env-changed=XEN_SONAME");
    let release = env::var("XEN_SONAME").unwrap_or_else(|_| "4.17".to_owned());
    let numbers = release.split_once('.').filter(|(major, minor)| {
        [major, minor].iter().all(|part| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit()))
    });
    let Some((major, minor)) = numbers else {
        fail(&format!("XEN_SONAME is {release:?}: it must be a release of Xen such as 4.17"));
    };
    // rustc has the linker make every name local that Rust does not export, in a script without version names. Ours, read
    // besides, names these; so the functions' names are given in assembler (`export!`), where rustc does not see them.
    let script = format!(
        "VERS_{major}.{minor}.0 {{ global: {}; }};\nTESSERAQT_1 {{ global: {}; }};\n",
        PUBLIC.join("; "),
        EXTRA.join("; ")
    );
    let path = Path::new(&env::var_os("OUT_DIR").unwrap_or_default()).join("versions.map");
    if let Err(error) = std::fs::write(&path, script) {
        fail(&format!("{} cannot be written: {error}", path.display()));
    }
    println!("cargo::rustc-cdylib-link-arg=-Wl,--version-script={}", path.display());
    println!("cargo::rustc-cdylib-link-arg=-Wl,-soname,libxenvchan.so.{release}");
    // It has threads, and functions that are called at a fork: never to be unloaded.
    println!("cargo::rustc-cdylib-link-arg=-Wl,-z,nodelete");
}

fn fail(message: &str) -> ! {
    println!("cargo::error={message}");
    exit(1)
}
