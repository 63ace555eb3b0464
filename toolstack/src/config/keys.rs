//! The keys that `xl.cfg` knows (those that tools/xl/xl_parse.c of Xen 4.17 reads), and what becomes of each for a PVH or PV
//! qube. No key is passed over in silence: what cannot be done is refused.

use super::qube::GuestType;
use super::xl_cfg::Data;

/// What becomes of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Support {
    /// It is read, and a qube is made accordingly.
    Built,
    /// It is read, and a PV qube is made accordingly; no PVH qube can be made with it. The reason follows as for
    /// [`Support::Unbuilt`].
    BuiltForPv(&'static str),
    /// It is read, but a qube can only be made with one of these values, which change nothing.
    Only(&'static [&'static str]),
    /// It is read, but no qube can be made with it. The reason follows "no qube can be made with it, since …".
    Unbuilt(&'static str),
    /// It is not even read. The reason follows "`key' is not supported: …".
    Refused(&'static str),
    /// It speaks of another kind of guest.
    For(&'static str),
}

/// Which of the guests that nxl makes a key is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Guests {
    Both,
    Pvh,
    Pv,
}

impl Guests {
    /// The name of those guests, when this one is none of them.
    pub(crate) fn other_than(self, guest: GuestType) -> Option<&'static str> {
        match (self, guest) {
            (Self::Pvh, GuestType::Pv) => Some("PVH"),
            (Self::Pv, GuestType::Pvh) => Some("PV"),
            _ => None,
        }
    }
}

use Guests::{Both, Pv, Pvh};
use Support::{Built, BuiltForPv, For, Only, Refused, Unbuilt};

const HVM: Support = For("HVM");
const ARM: Support = For("Arm");
/// Flags that must be clear.
const CLEAR: Support = Only(&["0"]);
/// Flags that must be set.
const SET: Support = Only(&["1"]);

const NO_DISPLAY: Support = Unbuilt("nxl starts no QEMU, which serves displays");
const NO_SCHEDULING: Support =
    Unbuilt("nxl knows the parameters of the schedulers credit and credit2: cpu_weight and cap");
const NO_LABEL: Support = Unbuilt("nxl sets no security labels");
const PCI: Support = BuiltForPv("libxl gives PVH guests no PCI devices");
const NO_HARDWARE: Support =
    Unbuilt("nxl gives qubes no access to the host's hardware but through PCI devices");
const NO_QEMU: Support = Refused("nxl starts no QEMU");
const NO_SHIM: Support = Refused("nxl starts no PV guests within a shim");
const NO_USB: Support = Refused("nxl starts no QEMU, which serves USB devices");

/// All keys, in alphabetical order.
const KEYS: &[(&str, Guests, Support)] = &[
    ("acpi", Pvh, SET),
    ("acpi_firmware", Both, HVM),
    ("acpi_laptop_slate", Both, HVM),
    ("acpi_s3", Both, HVM),
    ("acpi_s4", Both, HVM),
    ("altp2m", Pvh, Only(&["disabled", "0"])),
    ("altp2mhvm", Both, HVM),
    ("apic", Both, HVM),
    ("bios", Both, HVM),
    ("bios_path_override", Both, HVM),
    ("boot", Both, HVM),
    ("bootloader", Both, Built),
    ("bootloader_args", Both, Built),
    ("builder", Both, Built),
    ("cap", Both, Built),
    ("channel", Both, Built),
    ("cmdline", Both, Built),
    ("cpu_weight", Both, Built),
    ("cpuid", Both, Refused("a qube has the CPU features that Xen gives to all of its kind")),
    ("cpus", Both, Built),
    ("cpus_soft", Both, Built),
    ("device_model", Both, Refused("xl passes it over, too; nxl starts no QEMU")),
    ("device_model_args", Both, NO_QEMU),
    ("device_model_args_hvm", Both, HVM),
    ("device_model_args_pv", Both, NO_QEMU),
    ("device_model_override", Both, NO_QEMU),
    ("device_model_stubdomain_override", Both, HVM),
    ("device_model_stubdomain_seclabel", Both, HVM),
    ("device_model_user", Both, HVM),
    ("device_model_version", Both, NO_QEMU),
    ("device_tree", Both, ARM),
    ("disk", Both, Built),
    ("display", Pv, NO_DISPLAY),
    ("dm_restrict", Both, CLEAR),
    ("driver_domain", Both, Built),
    ("dtdev", Both, ARM),
    ("e820_host", Pv, Built),
    ("extra", Both, Built),
    ("extratime", Both, NO_SCHEDULING),
    ("firmware", Both, Refused("kernel= names the file")),
    ("firmware_override", Both, HVM),
    ("gfx_passthru", Both, HVM),
    ("gic_version", Both, ARM),
    ("hap", Pvh, SET),
    ("hdtype", Both, HVM),
    ("hpet", Both, HVM),
    ("init_seclabel", Both, NO_LABEL),
    ("iomem", Both, NO_HARDWARE),
    ("ioports", Both, NO_HARDWARE),
    ("irqs", Both, NO_HARDWARE),
    ("kernel", Both, Built),
    ("keymap", Pv, NO_DISPLAY),
    ("latency", Both, NO_SCHEDULING),
    ("localtime", Both, CLEAR),
    ("max_event_channels", Both, Built),
    ("max_grant_frames", Both, Built),
    ("max_grant_version", Both, Only(&["1", "2"])),
    ("max_maptrack_frames", Both, Built),
    ("maxmem", Both, Built),
    ("maxvcpus", Both, Built),
    ("mca_caps", Both, HVM),
    ("memory", Both, Built),
    ("mmio_hole", Pvh, Built),
    ("ms_vm_genid", Both, HVM),
    ("msr_relaxed", Both, CLEAR),
    ("name", Both, Built),
    ("nestedhvm", Both, CLEAR),
    ("nographic", Both, HVM),
    ("nomigrate", Both, CLEAR),
    ("nx", Both, HVM),
    ("on_crash", Both, Built),
    ("on_poweroff", Both, Built),
    ("on_reboot", Both, Built),
    ("on_soft_reset", Both, Built),
    ("on_watchdog", Both, Built),
    ("oos", Pvh, SET),
    ("opengl", Pv, NO_DISPLAY),
    ("p9", Both, Built),
    ("pae", Both, HVM),
    ("passthrough", Both, Built),
    ("pci", Both, PCI),
    ("pci_msitranslate", Both, Built),
    ("pci_permissive", Both, Built),
    ("pci_power_mgmt", Both, Built),
    ("pci_seize", Both, Built),
    ("period", Both, NO_SCHEDULING),
    ("pool", Both, Built),
    ("pvcalls", Both, Refused("nxl has no backend for sockets")),
    ("pvshim", Pvh, CLEAR),
    ("pvshim_cmdline", Pvh, NO_SHIM),
    ("pvshim_extra", Pvh, NO_SHIM),
    ("pvshim_path", Pvh, NO_SHIM),
    ("ramdisk", Both, Built),
    ("rdm", Both, HVM),
    ("rdm_mem_boundary", Both, HVM),
    ("root", Both, Built),
    ("rtc_timeoffset", Both, CLEAR),
    ("sdl", Pv, NO_DISPLAY),
    ("seclabel", Both, NO_LABEL),
    ("serial", Both, HVM),
    ("shadow_memory", Pvh, Built),
    ("slice", Both, NO_SCHEDULING),
    ("smbios_firmware", Both, HVM),
    ("soundhw", Both, HVM),
    ("spice", Both, HVM),
    ("spice_clipboard_sharing", Both, HVM),
    ("spice_image_compression", Both, HVM),
    ("spice_streaming_video", Both, HVM),
    ("spiceagent_mouse", Both, HVM),
    ("spicedisable_ticketing", Both, HVM),
    ("spicehost", Both, HVM),
    ("spicepasswd", Both, HVM),
    ("spiceport", Both, HVM),
    ("spicetls_port", Both, HVM),
    ("spiceusbredirection", Both, HVM),
    ("spicevdagent", Both, HVM),
    ("stdvga", Both, HVM),
    ("stubdomain_cmdline", Both, HVM),
    ("stubdomain_kernel", Both, HVM),
    ("stubdomain_memory", Both, HVM),
    ("stubdomain_ramdisk", Both, HVM),
    ("tee", Both, ARM),
    ("timer_mode", Pvh, Built),
    ("tsc_mode", Both, Only(&["default", "0", "always_emulate", "1", "native", "2"])),
    ("type", Both, Built),
    ("usb", Both, HVM),
    ("usbctrl", Both, NO_USB),
    ("usbdev", Both, NO_USB),
    ("usbdevice", Both, HVM),
    ("usbversion", Both, HVM),
    ("uuid", Both, Built),
    ("vcpus", Both, Built),
    ("vdispl", Both, Refused("nxl has no backend for it")),
    ("vendor_device", Both, HVM),
    ("vfb", Both, NO_DISPLAY),
    ("vga", Both, HVM),
    ("videoram", Both, CLEAR),
    ("vif", Both, Built),
    ("vif2", Both, Refused("xl passes it over, too; the interfaces are in vif=")),
    ("viridian", Both, HVM),
    ("vkb", Both, Built),
    ("vkb_device", Both, HVM),
    ("vmtrace_buf_kb", Both, CLEAR),
    ("vnc", Pv, NO_DISPLAY),
    ("vncdisplay", Pv, NO_DISPLAY),
    ("vnclisten", Pv, NO_DISPLAY),
    ("vncpasswd", Pv, NO_DISPLAY),
    ("vncunused", Pv, NO_DISPLAY),
    ("vncviewer", Both, HVM),
    ("vnuma", Both, Refused("a qube has one NUMA node")),
    ("vpmu", Both, CLEAR),
    ("vpt_align", Both, HVM),
    ("vsnd", Both, Refused("nxl has no backend for sound")),
    ("vtpm", Both, Unbuilt("nxl attaches no TPMs")),
    ("vuart", Both, ARM),
    ("xauthority", Pv, NO_DISPLAY),
    ("xen_platform_pci", Both, HVM),
    ("xend_suspend_evtchn_compat", Both, CLEAR),
];

/// Which guests a key is for, and what becomes of it; `None` for one that `xl` does not know either.
pub(crate) fn find(key: &str) -> Option<(Guests, Support)> {
    let index = KEYS.binary_search_by_key(&key, |(known, ..)| known).ok()?;
    Some((KEYS[index].1, KEYS[index].2))
}

/// Every key that `xl` 4.17 reads, in alphabetical order, be it supported or not.
pub fn known_keys() -> impl Iterator<Item = &'static str> {
    KEYS.iter().map(|(key, ..)| *key)
}

/// The key that somebody meant who wrote `key`, when one is near enough.
pub(crate) fn nearest(key: &str) -> Option<&'static str> {
    nearest_of(key, known_keys())
}

/// The known word that may have been meant.
pub(crate) fn nearest_of<'a>(word: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    known
        .map(|known| (strsim::damerau_levenshtein(word, known), known))
        .filter(|(distance, known)| *distance <= 1 + known.len() / 5)
        .min()
        .map(|(_, known)| known)
}

/// Whether a value asks for nothing, so that even a key that is not supported may have it: `disk = []`.
pub(crate) fn asks_for_nothing(value: &Data) -> bool {
    matches!(value, Data::List(list) if list.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    /// The keys as docs/configuration.md shows them: those of which the same becomes in one row.
    fn table() -> String {
        let row = |guests: Guests, support: Support| {
            let (place, becomes) = match support {
                Built => (0, "a qube is made accordingly".to_owned()),
                BuiltForPv(why) => {
                    (2, format!("PV: a qube is made accordingly; PVH: described alone: {why}"))
                }
                Only(values) => {
                    let values: Vec<String> = values.iter().map(|value| format!("`{value}`")).collect();
                    (
                        1,
                        format!(
                            "a qube is made with {}; other values are described alone",
                            values.join(" or ")
                        ),
                    )
                }
                Unbuilt(why) => (2, format!("described alone: {why}")),
                Refused(why) => (3, format!("refused: {why}")),
                For(guest) => (4, format!("refused: for {guest} guests")),
            };
            let (guests, only) = match guests {
                Both => (0, ""),
                Pvh => (1, "PVH: "),
                Pv => (2, "PV: "),
            };
            ((place, guests), format!("{only}{becomes}"))
        };
        let mut rows: BTreeMap<((u8, u8), String), Vec<String>> = BTreeMap::new();
        for (key, guests, support) in KEYS {
            rows.entry(row(*guests, *support)).or_default().push(format!("`{key}`"));
        }
        rows.into_iter().map(|((_, becomes), keys)| format!("| {} | {becomes} |\n", keys.join(" "))).collect()
    }

    #[test]
    fn the_documentation_tells_what_becomes_of_each_key() {
        let documentation = include_str!("../../../docs/configuration.md");
        assert!(documentation.contains(&table()), "docs/configuration.md should have:\n{}", table());
    }

    #[test]
    fn keys_are_sorted_so_that_they_can_be_found() {
        assert!(KEYS.is_sorted_by(|a, b| a.0 < b.0));
        assert_eq!(find("vif"), Some((Both, Built)));
        assert_eq!(find("acpi"), Some((Pvh, Only(&["1"]))));
        assert_eq!(find("memry"), None);
    }

    #[test]
    fn the_nearest_key_is_what_was_meant() {
        assert_eq!(nearest("memry"), Some("memory"));
        assert_eq!(nearest("vcpu"), Some("vcpus"));
        assert_eq!(nearest("on_power_off"), Some("on_poweroff"));
        assert_eq!(nearest("nmae"), Some("name"));
        assert_eq!(nearest("frobnicate"), None);
    }
}
