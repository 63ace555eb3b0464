//! The names of virtual disks, and the numbers behind them (docs/man/xen-vbd-interface.7).

use super::DeviceError;
use std::fmt;

/// Disks and partitions that the extended numbers have room for.
const EXTENDED: (u32, u32) = (1 << 20, 256);

/// A virtual disk as the guest sees it: `xvda`, `xvdb3`, `d5p1`, `hda`, `sdc`, or a number.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Vdev {
    name: String,
    devid: u32,
}

impl Vdev {
    /// Reads a name.
    ///
    /// # Errors
    /// [`DeviceError::Vdev`] when it names no virtual disk.
    pub fn parse(name: &str) -> Result<Self, DeviceError> {
        let devid = devid(name).ok_or_else(|| DeviceError::Vdev(name.to_owned()))?;
        Ok(Self { name: name.to_owned(), devid })
    }

    /// As it was written.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The number in its paths.
    #[must_use]
    pub fn devid(&self) -> u32 {
        self.devid
    }
}

impl fmt::Display for Vdev {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

/// As libxl__device_disk_dev_number reads it, without what overflows there.
fn devid(name: &str) -> Option<u32> {
    if let Some((disk, partition)) = numbered(name).or_else(|| lettered(name, "xvd", EXTENDED)) {
        return Some(if disk < 16 && partition < 16 {
            202 << 8 | disk << 4 | partition
        } else {
            1 << 28 | disk << 8 | partition
        });
    }
    if let Some(number) = number(name) {
        return (number <= i32::MAX as u32).then_some(number);
    }
    if let Some((disk, partition)) = lettered(name, "hd", (4, 64)) {
        let major = if disk < 2 { 3 } else { 22 };
        return Some(major << 8 | (disk & 1) << 6 | partition);
    }
    let (disk, partition) = lettered(name, "sd", (16, 16))?;
    Some(8 << 8 | disk << 4 | partition)
}

/// `d5p1`
fn numbered(name: &str) -> Option<(u32, u32)> {
    let (disk, partition) = name.strip_prefix('d')?.split_once('p')?;
    let (disk, partition) = (number(disk)?, number(partition)?);
    (disk < EXTENDED.0 && partition < EXTENDED.1).then_some((disk, partition))
}

/// `xvdb3`: disks are a to z, aa to zz, aaa …; a partition's number has no leading zero, and 0 is the whole disk.
fn lettered(name: &str, prefix: &str, (disks, partitions): (u32, u32)) -> Option<(u32, u32)> {
    let rest = name.strip_prefix(prefix)?;
    let digits = rest.trim_start_matches(|c: char| c.is_ascii_lowercase());
    let letters = &rest[..rest.len() - digits.len()];
    let mut after = 0_u32;
    for letter in letters.bytes() {
        after = after * 26 + u32::from(letter - b'a') + 1;
        if after > disks {
            return None;
        }
    }
    let partition = match digits {
        "" => 0,
        digits if digits.starts_with('0') || !digits.bytes().all(|byte| byte.is_ascii_digit()) => {
            return None;
        }
        digits => digits.parse().ok()?,
    };
    (partition < partitions).then_some((after.checked_sub(1)?, partition))
}

/// A number as C writes it: decimal, `0x` hexadecimal, or octal after a `0`.
fn number(text: &str) -> Option<u32> {
    let (base, digits) = match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        Some(digits) => (16, digits),
        None if text.len() > 1 && text.starts_with('0') => (8, &text[1..]),
        None => (10, text),
    };
    // from_str_radix would take a sign.
    if digits.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        u32::from_str_radix(digits, base).ok()
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_have_the_numbers_of_xen_vbd_interface_7() {
        for (name, number) in [
            ("xvda", 51712),
            ("xvda1", 51713),
            ("xvdb", 51728),
            ("xvdp15", 51967),
            ("d0p0", 51712),
            ("d1p2", 51730),
            ("d0x10p0", 1 << 28 | 16 << 8),
            ("xvdq", 1 << 28 | 16 << 8),
            ("xvda16", 1 << 28 | 16),
            ("xvdz255", 1 << 28 | 25 << 8 | 255),
            ("xvdaa", 1 << 28 | 26 << 8),
            ("hda", 3 << 8),
            ("hdb1", 3 << 8 | 64 | 1),
            ("hdc", 22 << 8),
            ("hdd63", 22 << 8 | 64 | 63),
            ("sda", 8 << 8),
            ("sdp15", 8 << 8 | 15 << 4 | 15),
            ("51712", 51712),
            ("0xca00", 51712),
            ("0145000", 51712),
        ] {
            assert_eq!(Vdev::parse(name).map(|vdev| vdev.devid()).ok(), Some(number), "{name}");
        }
    }

    #[test]
    fn what_is_no_vdev_is_refused() {
        for name in [
            "",
            "xvd",
            "xvd1",
            "xvda01",
            "xvda256",
            "xvdA",
            "hde",
            "hda64",
            "sdq",
            "sda16",
            "vda",
            "d1",
            "dp",
            "d1048576p0",
            "d0p256",
            "-1",
            "+1",
            "2147483648",
            "xvda-1",
            "xvdzzzzzzzz",
            "xvda ",
            "/dev/xvda",
        ] {
            let error = Vdev::parse(name).unwrap_err().to_string();
            assert!(error.contains("xvda"), "{name}: {error}");
        }
    }

    #[test]
    fn the_last_disk_is_number_2_to_the_20_minus_1() {
        let mut name = String::new();
        let mut rest = 1_u32 << 20;
        while rest > 0 {
            rest -= 1;
            name.insert(0, char::from(b'a' + (rest % 26) as u8));
            rest /= 26;
        }
        assert_eq!(devid(&format!("xvd{name}")), Some(1 << 28 | ((1 << 20) - 1) << 8));
        name.push('a');
        assert_eq!(devid(&format!("xvd{name}")), None);
    }
}
