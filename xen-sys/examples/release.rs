//! Which release of Xen these bindings are of, and whether this machine has the libraries that go with it. Calls nothing of
//! theirs, so it needs no Xen.
//!
//! ```text
//! cargo run -p tesseraqt-xen-sys --example release
//! ```

use xen_sys::{
    CONTROL_LIBRARY, ControlLibrary, FOREIGN_LIBRARY, ForeignLibrary, GUEST_LIBRARY, GuestLibrary, RELEASE,
};

fn main() {
    println!("made from the headers of Xen {RELEASE}");
    println!("  XEN_DOMCTL_INTERFACE_VERSION {:#x}", xen_sys::XEN_DOMCTL_INTERFACE_VERSION);
    println!("  xen_domctl_createdomain      {} bytes", size_of::<xen_sys::xen_domctl_createdomain>());
    println!("  vchan_interface              {} bytes", size_of::<xen_sys::vchan_interface>());

    println!("opened at run time, with every function that the bindings name:");
    // SAFETY: the initialisers of Xen's libraries ask nothing of who loads them.
    let opened = unsafe {
        [
            (CONTROL_LIBRARY, ControlLibrary::new(CONTROL_LIBRARY).err()),
            (GUEST_LIBRARY, GuestLibrary::new(GUEST_LIBRARY).err()),
            (FOREIGN_LIBRARY, ForeignLibrary::new(FOREIGN_LIBRARY).err()),
        ]
    };
    for (name, error) in opened {
        match error {
            None => println!("  {name}: here"),
            Some(error) => println!("  {name}: {error}"),
        }
    }
}
