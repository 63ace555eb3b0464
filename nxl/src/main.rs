//! nxl
fn main() {}
