//! The releases of Xen that the toolstack is tried on, each with the Debian that packages it.

/// A release of Xen and the Debian release of its packages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Release {
    /// Xen's version, as Debian's packages spell it in their names: `4.17`.
    pub xen: &'static str,
    /// Debian's code name.
    pub suite: &'static str,
}

/// Debian 12's: what this is developed on; what the machine has installed. QEMU and all kernels are from there, too.
pub const BOOKWORM: Release = Release { xen: "4.17", suite: "bookworm" };

/// Debian 13's.
pub const TRIXIE: Release = Release { xen: "4.20", suite: "trixie" };

impl Release {
    /// A name of Debian 12's with this release's version in the place of Xen's.
    pub fn name(self, of_bookworm: &str) -> String {
        of_bookworm.replace(BOOKWORM.xen, self.xen)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_carry_the_version() {
        assert_eq!(TRIXIE.name("usr/lib/xen-4.17/bin/xl"), "usr/lib/xen-4.20/bin/xl");
        assert_eq!(TRIXIE.name("bash"), "bash");
        assert_eq!(BOOKWORM.name("libxenmisc4.17"), "libxenmisc4.17");
    }
}
