//! The keys that `xl.cfg` knows (those that tools/xl/xl_parse.c of Xen 4.17 reads), and what becomes of each for a qube.
//! No key is passed over in silence: what cannot be done is refused.

use super::xl_cfg::Data;

/// What becomes of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Support {
    /// It is read.
    Read,
    /// It may be there with one of these values, which change nothing.
    Only(&'static [&'static str]),
    /// It speaks of another kind of guest.
    For(&'static str),
    /// It would make sense, and is not supported.
    Missing,
}

use Support::{For, Missing, Only, Read};

const HVM: Support = For("HVM");
const PV: Support = For("PV");
const ARM: Support = For("Arm");

/// Keys that are read, and speak of what a PV guest has not.
pub(crate) const PVH_ALONE: [&str; 3] = ["mmio_hole", "shadow_memory", "timer_mode"];

/// All keys, in alphabetical order.
const KEYS: &[(&str, Support)] = &[
    ("acpi", Only(&["1"])),
    ("acpi_firmware", HVM),
    ("acpi_laptop_slate", HVM),
    ("acpi_s3", HVM),
    ("acpi_s4", HVM),
    ("altp2m", Only(&["disabled", "0"])),
    ("altp2mhvm", HVM),
    ("apic", HVM),
    ("bios", HVM),
    ("bios_path_override", HVM),
    ("boot", HVM),
    ("bootloader", Missing),
    ("bootloader_args", Missing),
    ("builder", For("HVM or PV")),
    ("cap", Missing),
    ("channel", Missing),
    ("cmdline", Read),
    ("cpu_weight", Missing),
    ("cpuid", Missing),
    ("cpus", Missing),
    ("cpus_soft", Missing),
    ("device_model", HVM),
    ("device_model_args", Missing),
    ("device_model_args_hvm", HVM),
    ("device_model_args_pv", Missing),
    ("device_model_override", Missing),
    ("device_model_stubdomain_override", HVM),
    ("device_model_stubdomain_seclabel", HVM),
    ("device_model_user", HVM),
    ("device_model_version", HVM),
    ("device_tree", ARM),
    ("disk", Read),
    ("display", HVM),
    ("dm_restrict", Only(&["0"])),
    ("driver_domain", Read),
    ("dtdev", ARM),
    ("e820_host", PV),
    ("extra", Read),
    ("extratime", Missing),
    ("firmware", HVM),
    ("firmware_override", HVM),
    ("gfx_passthru", HVM),
    ("gic_version", ARM),
    ("hap", Only(&["1"])),
    ("hdtype", HVM),
    ("hpet", HVM),
    ("init_seclabel", Missing),
    ("iomem", Missing),
    ("ioports", Missing),
    ("irqs", Missing),
    ("kernel", Read),
    ("keymap", HVM),
    ("latency", Missing),
    ("localtime", Only(&["0"])),
    ("max_event_channels", Read),
    ("max_grant_frames", Read),
    ("max_grant_version", Only(&["2"])),
    ("max_maptrack_frames", Read),
    ("maxmem", Read),
    ("maxvcpus", Read),
    ("mca_caps", HVM),
    ("memory", Read),
    ("mmio_hole", Read),
    ("ms_vm_genid", HVM),
    ("msr_relaxed", Only(&["0"])),
    ("name", Read),
    ("nestedhvm", Only(&["0"])),
    ("nographic", HVM),
    ("nomigrate", Only(&["0"])),
    ("nx", HVM),
    ("on_crash", Read),
    ("on_poweroff", Read),
    ("on_reboot", Read),
    ("on_soft_reset", Read),
    ("on_watchdog", Read),
    ("oos", Only(&["1"])),
    ("opengl", HVM),
    ("p9", Missing),
    ("pae", HVM),
    ("passthrough", Only(&["disabled", "0"])),
    ("pci", Missing),
    ("pci_msitranslate", Missing),
    ("pci_permissive", Missing),
    ("pci_power_mgmt", Missing),
    ("pci_seize", Missing),
    ("period", Missing),
    ("pool", Missing),
    ("pvcalls", Missing),
    ("pvshim", Only(&["0"])),
    ("pvshim_cmdline", Missing),
    ("pvshim_extra", Missing),
    ("pvshim_path", Missing),
    ("ramdisk", Read),
    ("rdm", HVM),
    ("rdm_mem_boundary", HVM),
    ("root", Read),
    ("rtc_timeoffset", Only(&["0"])),
    ("sdl", HVM),
    ("seclabel", Missing),
    ("serial", HVM),
    ("shadow_memory", Read),
    ("slice", Missing),
    ("smbios_firmware", HVM),
    ("soundhw", HVM),
    ("spice", HVM),
    ("spice_clipboard_sharing", HVM),
    ("spice_image_compression", HVM),
    ("spice_streaming_video", HVM),
    ("spiceagent_mouse", HVM),
    ("spicedisable_ticketing", HVM),
    ("spicehost", HVM),
    ("spicepasswd", HVM),
    ("spiceport", HVM),
    ("spicetls_port", HVM),
    ("spiceusbredirection", HVM),
    ("spicevdagent", HVM),
    ("stdvga", HVM),
    ("stubdomain_cmdline", HVM),
    ("stubdomain_kernel", HVM),
    ("stubdomain_memory", HVM),
    ("stubdomain_ramdisk", HVM),
    ("tee", ARM),
    ("timer_mode", Read),
    ("tsc_mode", Only(&["default", "0"])),
    ("type", Read),
    ("usb", HVM),
    ("usbctrl", Missing),
    ("usbdev", Missing),
    ("usbdevice", HVM),
    ("usbversion", HVM),
    ("uuid", Read),
    ("vcpus", Read),
    ("vdispl", Missing),
    ("vendor_device", HVM),
    ("vfb", Missing),
    ("vga", HVM),
    ("videoram", Only(&["0"])),
    ("vif", Read),
    ("vif2", Missing),
    ("viridian", HVM),
    ("vkb", Missing),
    ("vkb_device", HVM),
    ("vmtrace_buf_kb", Missing),
    ("vnc", HVM),
    ("vncdisplay", HVM),
    ("vnclisten", HVM),
    ("vncpasswd", HVM),
    ("vncunused", HVM),
    ("vncviewer", HVM),
    ("vnuma", Missing),
    ("vpmu", Only(&["0"])),
    ("vpt_align", HVM),
    ("vsnd", Missing),
    ("vtpm", Missing),
    ("vuart", ARM),
    ("xauthority", HVM),
    ("xen_platform_pci", HVM),
    ("xend_suspend_evtchn_compat", Only(&["0"])),
];

/// What becomes of a key; `None` for one that `xl` does not know either.
pub(crate) fn support(key: &str) -> Option<Support> {
    KEYS.binary_search_by_key(&key, |(known, _)| known).ok().map(|index| KEYS[index].1)
}

/// The key that somebody meant who wrote `key`, when one is near enough.
pub(crate) fn nearest(key: &str) -> Option<&'static str> {
    nearest_of(key, KEYS.iter().map(|(known, _)| *known))
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

    #[test]
    fn keys_are_sorted_so_that_they_can_be_found() {
        assert!(KEYS.is_sorted_by(|a, b| a.0 < b.0));
        assert_eq!(support("vif2"), Some(Missing));
        assert_eq!(support("acpi"), Some(Only(&["1"])));
        assert_eq!(support("memry"), None);
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
