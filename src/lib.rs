//! TesseraQt-N: the Xen toolstack and the inter-qube data path, in one name.

pub use nexus;
pub use toolstack;
pub use vchan;
pub use xen;
