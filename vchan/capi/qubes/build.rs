//! The library's SONAME. Its symbols have no versions, as Qubes' have none.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rustc-cdylib-link-arg=-Wl,-soname,libvchan-xen.so.1");
    // It has threads, and functions that are called at a fork: never to be unloaded.
    println!("cargo::rustc-cdylib-link-arg=-Wl,-z,nodelete");
}
