//! xen
