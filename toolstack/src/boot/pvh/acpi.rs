//! The ACPI tables of a PVH guest: what it needs to find its processors, and nothing else.
//!
//! RSDP, XSDT, FADT (hardware-reduced: no fixed hardware, no VGA, no CMOS clock), MADT with a local APIC for each vCPU
//! and a DSDT with a processor device for each. libxl's static DSDT has 128 of them always; ours has as many as the
//! guest can have, so that the tables of most guests fit a page.

use acpi_tables::fadt::{FADTBuilder, Flags};
use acpi_tables::madt::{EnabledStatus, LocalInterruptController, MADT, ProcessorLocalApic};
use acpi_tables::{Aml, aml};
use acpi_tables::{rsdp::Rsdp, sdt::Sdt, xsdt::XSDT};

const OEM_ID: [u8; 6] = *b"TSRAQT";
const OEM_TABLE_ID: [u8; 8] = *b"PVHQUBE ";
const OEM_REVISION: u32 = 1;

/// Where every local APIC is (APIC_DEFAULT_PHYS_BASE).
const LOCAL_APIC: u32 = 0xfee0_0000;
/// FADT, IA-PC boot architecture flags: no VGA, no CMOS real-time clock (and, by absence, no legacy devices).
const NO_VGA_NO_CMOS_RTC: u16 = 1 << 2 | 1 << 5;

/// Tables begin at multiples of this.
const ALIGNMENT: usize = 64;

/// The tables, as they are to lie in the guest's memory from `start` on, and where in them the RSDP is: at the start.
///
/// `online` of the `possible` (at most 128) vCPUs are on line at boot.
pub(super) fn tables(start: u64, online: u32, possible: u32) -> Vec<u8> {
    let mut bytes = vec![0; Rsdp::len()];
    let dsdt = append(&mut bytes, start, &dsdt(possible));
    let fadt = append(&mut bytes, start, &to_bytes(&fadt(dsdt)));
    let madt = append(&mut bytes, start, &to_bytes(&madt(online, possible)));
    let mut xsdt = XSDT::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    xsdt.add_entry(fadt);
    xsdt.add_entry(madt);
    let xsdt = append(&mut bytes, start, &to_bytes(&xsdt));
    let rsdp = to_bytes(&Rsdp::new(OEM_ID, xsdt));
    bytes[..rsdp.len()].copy_from_slice(&rsdp);
    bytes
}

/// Puts a table at the next aligned place and returns its address.
fn append(bytes: &mut Vec<u8>, start: u64, table: &[u8]) -> u64 {
    bytes.resize(bytes.len().next_multiple_of(ALIGNMENT), 0);
    let address = start + bytes.len() as u64;
    bytes.extend(table);
    address
}

fn to_bytes(table: &dyn Aml) -> Vec<u8> {
    let mut bytes = Vec::new();
    table.to_aml_bytes(&mut bytes);
    bytes
}

fn fadt(dsdt: u64) -> acpi_tables::fadt::FADT {
    let mut fadt =
        FADTBuilder::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION).dsdt_64(dsdt).flag(Flags::HwReducedAcpi);
    fadt.iapc_boot_arch = NO_VGA_NO_CMOS_RTC.into();
    fadt.finalize()
}

fn madt(online: u32, possible: u32) -> MADT {
    let mut madt =
        MADT::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION, LocalInterruptController::Address(LOCAL_APIC));
    for vcpu in 0..possible {
        let status = if vcpu < online { EnabledStatus::Enabled } else { EnabledStatus::Disabled };
        // Xen's APIC ids are twice the vCPU's number.
        madt.add_structure(ProcessorLocalApic::new(vcpu as u8, (2 * vcpu) as u8, status));
    }
    madt
}

fn dsdt(possible: u32) -> Vec<u8> {
    let mut dsdt = Sdt::new(*b"DSDT", 36, 2, OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    let mut body = Vec::new();
    for vcpu in 0..possible {
        let path = format!("\\_SB_.C{vcpu:03}");
        let (hid, uid) =
            (aml::Name::new("_HID".into(), &"ACPI0007"), aml::Name::new("_UID".into(), &(vcpu as u8)));
        aml::Device::new(path.as_str().into(), vec![&hid, &uid]).to_aml_bytes(&mut body);
    }
    dsdt.append_slice(&body);
    dsdt.as_slice().to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn u32_at(bytes: &[u8], at: usize) -> usize {
        u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap()) as usize
    }

    fn u64_at(bytes: &[u8], at: usize) -> u64 {
        u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
    }

    /// The table at an address, its checksum checked.
    fn table<'a>(bytes: &'a [u8], start: u64, address: u64, signature: &[u8; 4]) -> &'a [u8] {
        let at = (address - start) as usize;
        assert_eq!(&bytes[at..at + 4], signature);
        let table = &bytes[at..at + u32_at(bytes, at + 4)];
        assert_eq!(table.iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte)), 0, "checksum");
        table
    }

    #[test]
    fn a_guest_finds_its_processors_from_the_rsdp_on() {
        let start = super::super::ACPI_START;
        let bytes = tables(start, 3, 4);
        assert_eq!(&bytes[..8], b"RSD PTR ");
        assert_eq!(bytes[..36].iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte)), 0);
        let xsdt = table(&bytes, start, u64_at(&bytes, 24), b"XSDT");
        assert_eq!(xsdt.len(), 36 + 2 * 8);
        let fadt = table(&bytes, start, u64_at(xsdt, 36), b"FACP");
        assert_eq!(u32_at(fadt, 112) & 1 << 20, 1 << 20, "hardware-reduced");
        let dsdt = table(&bytes, start, u64_at(fadt, 140), b"DSDT");
        assert_eq!(dsdt.windows(4).filter(|name| name.starts_with(b"C00")).count(), 4);
        let madt = table(&bytes, start, u64_at(xsdt, 44), b"APIC");
        assert_eq!(u32_at(madt, 36), LOCAL_APIC as usize);
        let apics: Vec<_> = madt[44..].chunks(8).map(|entry| (entry[2], entry[3], entry[4])).collect();
        assert_eq!(apics, [(0, 0, 1), (1, 2, 1), (2, 4, 1), (3, 6, 0)]);
    }

    #[test]
    fn the_tables_of_small_guests_fit_a_page_and_of_the_largest_two() {
        assert!(tables(0xfc00_0000, 64, 64).len() <= 4_096);
        assert!(tables(0xfc00_0000, 128, 128).len() <= 8_192);
    }
}
