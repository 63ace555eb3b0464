//! A configuration in libxl's JSON (`libxl_domain_config`, tools/libs/light/libxl_types.idl): what `xl create -n` prints,
//! and what is stored for `xl list -l`.
//!
//! As libxl does (tools/libs/light/gentypes.py), the fields stand in the IDL's order and one that has its default is left
//! out: 0, nothing, or what the IDL names. Structures are always there. Flags that may have a default are the strings
//! `"True"` and `"False"`. What was written and what was left open look different here though they mean the same: of keys
//! for which that matters, [`QubeConfig::stated`] knows.

use super::disk::DiskConfig;
use super::nic::{NicConfig, NicType};
use super::parameters::{ChannelConfig, P9Config, VfbConfig, VkbBackend, VkbConfig, VtpmConfig};
use super::pci::{PciConfig, PciDevice, RdmPolicy};
use super::qube::{Action, GuestType, Passthrough, QubeConfig, SchedulingConfig, TimerMode, TscMode};
use super::resources::{IoMemory, IoPorts};
use serde_json::{Map, Value, json};
use std::path::Path;

/// `LIBXL_PCI_FUNC_ALL`, tools/include/libxl.h
const ALL_FUNCTIONS: u32 = u32::MAX;

/// `libxl_altp2m_mode`
const ALTP2M_MODES: [&str; 4] = ["disabled", "mixed", "external", "limited"];

/// `libxl_action_on_shutdown`
fn action(action: Action) -> &'static str {
    match action {
        Action::Destroy => "destroy",
        Action::Restart => "restart",
        Action::RenameRestart => "restart_rename",
        Action::Preserve => "preserve",
        Action::CoredumpDestroy => "coredump_destroy",
        Action::CoredumpRestart => "coredump_restart",
        Action::SoftReset => "soft_reset",
    }
}

/// A structure under construction.
#[derive(Default)]
struct Structure(Map<String, Value>);

impl Structure {
    fn put(&mut self, field: &str, value: impl Into<Value>) {
        self.0.insert(field.to_owned(), value.into());
    }

    /// What has a default that is none of its values.
    fn put_some(&mut self, field: &str, value: Option<impl Into<Value>>) {
        if let Some(value) = value {
            self.put(field, value);
        }
    }

    /// A flag with a default (`libxl_defbool`).
    fn put_flag(&mut self, field: &str, flag: Option<bool>) {
        self.put_some(field, flag.map(|flag| if flag { "True" } else { "False" }));
    }

    /// A number, or a flag without a default, that is left out when it is 0 or false.
    fn put_set<T: Into<Value> + Default + PartialEq>(&mut self, field: &str, value: T) {
        if value != T::default() {
            self.put(field, value);
        }
    }

    fn put_all<T>(&mut self, field: &str, items: &[T], show: impl Fn((usize, &T)) -> Value) {
        if !items.is_empty() {
            self.put(field, items.iter().enumerate().map(show).collect::<Vec<_>>());
        }
    }
}

impl From<Structure> for Value {
    fn from(structure: Structure) -> Self {
        structure.0.into()
    }
}

impl QubeConfig {
    /// The configuration in libxl's JSON, on several lines, each with its end: to the byte what `xl create -n` prints.
    #[must_use]
    pub fn to_libxl_json(&self) -> String {
        laid_out(&self.libxl_value())
    }

    /// The same as libxl records it of a domain that it made: with the defaults that its later answers are computed from
    /// (`xl list -l` would be 1 KiB short of the memory without that of the video memory), and one of a disk's that it writes
    /// although it is the default.
    #[must_use]
    pub fn to_libxl_record(&self) -> String {
        laid_out(&self.libxl_record())
    }

    /// The same as a value.
    pub(crate) fn libxl_record(&self) -> Value {
        let mut value = self.libxl_value();
        value["b_info"]["video_memkb"] = json!(0);
        value["b_info"]["arch_x86"]["msr_relaxed"] = json!("False");
        if let Some(disks) = value.get_mut("disks") {
            *disks = self.disks.iter().map(disk_record).collect();
        }
        value
    }

    fn libxl_value(&self) -> Value {
        let mut config = Structure::default();
        config.put("c_info", self.create_info());
        config.put("b_info", self.build_info());
        config.put_all("disks", &self.disks, |(_, disk)| self::disk(disk));
        config.put_all("nics", &self.nics, nic);
        config.put_all("pcidevs", &self.pcis, |(_, pci)| self::pci(pci));
        config.put_all("vfbs", &self.vfbs, vfb);
        config.put_all("vkbs", &self.vkbs, vkb);
        config.put_all("vtpms", &self.vtpms, vtpm);
        config.put_all("p9s", &self.p9s, |(_, p9)| self::p9(p9));
        config.put_all("channels", &self.channels, channel);
        let actions = self.actions;
        for (field, chosen) in [
            ("on_poweroff", actions.poweroff),
            ("on_reboot", actions.reboot),
            ("on_watchdog", actions.watchdog),
            ("on_crash", actions.crash),
            ("on_soft_reset", actions.soft_reset),
        ] {
            if chosen != Action::Destroy {
                config.put(field, action(chosen));
            }
        }
        config.into()
    }

    /// `libxl_domain_create_info`
    fn create_info(&self) -> Value {
        let mut info = Structure::default();
        info.put("type", self.guest.name());
        info.put_flag("hap", self.stated_flag("hap"));
        info.put_flag("oos", self.stated_flag("oos"));
        info.put_some("ssid_label", self.label.as_deref());
        info.put("name", self.name.as_str());
        info.put("uuid", self.uuid.to_string());
        info.put_some("pool_name", self.pool.as_deref());
        info.put_flag("run_hotplug_scripts", Some(true));
        info.put_flag("driver_domain", self.stated_flag("driver_domain"));
        let passthrough = self.passthrough.filter(|passthrough| *passthrough != Passthrough::Default);
        info.put_some("passthrough", passthrough.map(Passthrough::name));
        info.put_flag("xend_suspend_evtchn_compat", self.stated_flag("xend_suspend_evtchn_compat"));
        info.into()
    }

    /// `libxl_domain_build_info`
    fn build_info(&self) -> Value {
        let kib = |mib: u64| mib << 10;
        let (vcpus, memory) = (self.stated("vcpus").is_some(), self.stated("memory").is_some());
        let mut info = Structure::default();
        if vcpus || self.stated("maxvcpus").is_some() {
            info.put("max_vcpus", self.max_vcpus);
        }
        if vcpus {
            info.put("avail_vcpus", (0..self.vcpus).collect::<Vec<_>>());
        }
        if info.0.contains_key("max_vcpus") {
            // Without a number of vCPUs libxl has nobody to whom this would apply.
            let set = |(_, set): (usize, &std::collections::BTreeSet<u32>)| json!(set);
            info.put_all("vcpu_hard_affinity", &self.hard_affinity, set);
            info.put_all("vcpu_soft_affinity", &self.soft_affinity, set);
        }
        info.put_flag("numa_placement", self.stated_flag("numa_placement"));
        info.put_some("tsc_mode", self.tsc_mode.filter(|mode| *mode != TscMode::Default).map(TscMode::name));
        if memory || self.stated("maxmem").is_some() {
            info.put("max_memkb", kib(self.max_memory_mib));
        }
        if memory {
            info.put("target_memkb", kib(self.memory_mib));
        }
        info.put_some("video_memkb", self.stated("videoram").map(|mib| mib << 10));
        info.put_some("shadow_memkb", self.paging_memory_mib.map(kib));
        // A number of 32 bits without a sign there.
        info.put_set("rtc_timeoffset", self.stated("rtc_timeoffset").unwrap_or(0) as u32);
        info.put_some("exec_ssid_label", self.running_label.as_deref());
        info.put_flag("localtime", self.stated_flag("localtime"));
        info.put_flag("disable_migrate", self.nomigrate);
        info.put_some("max_grant_frames", self.max_grant_frames);
        info.put_some("max_maptrack_frames", self.max_maptrack_frames);
        info.put_some("max_grant_version", self.max_grant_version);
        info.put("sched_params", scheduling(self.scheduling));
        info.put_all("ioports", &self.ioports, |(_, ports)| io_ports(*ports));
        info.put_all("irqs", &self.irqs, |(_, irq)| json!(irq));
        info.put_all("iomem", &self.iomem, |(_, memory)| io_memory(*memory));
        info.put_flag("claim_mode", Some(true));
        info.put_some("event_channels", self.stated("max_event_channels"));
        if !self.kernel.as_os_str().is_empty() {
            info.put("kernel", path(&self.kernel));
        }
        if !self.cmdline.is_empty() || self.stated("cmdline").is_some() {
            info.put("cmdline", self.cmdline.as_str());
        }
        info.put_some("ramdisk", self.stated_path("ramdisk", self.ramdisk.as_deref()));
        info.put_flag("acpi", self.stated_flag("acpi"));
        info.put_some("bootloader", self.stated_path("bootloader", self.bootloader.as_deref()));
        info.put_all("bootloader_args", &self.bootloader_args, |(_, argument)| json!(argument));
        info.put_some("timer_mode", self.stated("timer_mode").map(|_| TimerMode::name(self.timer_mode)));
        info.put_flag("nested_hvm", self.stated_flag("nestedhvm"));
        info.put_flag("dm_restrict", self.stated_flag("dm_restrict"));
        let mut of_type = Structure::default();
        match self.guest {
            GuestType::Pvh => of_type.put_flag("pvshim", self.stated_flag("pvshim")),
            // A guest that drives devices sees the host's memory map.
            GuestType::Pv if !self.pcis.is_empty() => of_type.put_flag("e820_host", Some(true)),
            GuestType::Pv => of_type.put_flag("e820_host", self.stated_flag("e820_host")),
        }
        info.put(&format!("type.{}", self.guest.name()), of_type);
        info.put("arch_arm", json!({}));
        let mut x86 = Structure::default();
        x86.put_flag("msr_relaxed", self.stated_flag("msr_relaxed"));
        info.put("arch_x86", x86);
        let altp2m =
            self.stated("altp2m").and_then(|mode| usize::try_from(mode).ok()).filter(|mode| *mode != 0);
        info.put_some("altp2m", altp2m.and_then(|mode| ALTP2M_MODES.get(mode)).copied());
        info.put_set("vmtrace_buf_kb", self.stated("vmtrace_buf_kb").unwrap_or(0));
        info.put_flag("vpmu", self.stated_flag("vpmu"));
        info.into()
    }

    fn stated(&self, key: &str) -> Option<i64> {
        self.stated.get(key).copied()
    }

    /// A path, or the empty string that was written for none.
    fn stated_path(&self, key: &str, found: Option<&Path>) -> Option<String> {
        found.map(path).or_else(|| self.stated(key).map(|_| String::new()))
    }

    fn stated_flag(&self, key: &str) -> Option<bool> {
        self.stated(key).map(|flag| flag != 0)
    }
}

/// A value as yajl's beautifier writes it, with which libxl writes: four blanks for each level, and an empty line in what is
/// empty.
pub(crate) fn laid_out(value: &Value) -> String {
    let mut text = String::new();
    lay_out(value, 0, &mut text);
    text.push('\n');
    text
}

fn lay_out(value: &Value, level: usize, text: &mut String) {
    let mut inner = |open: char, close: char, entries: Vec<(Option<&String>, &Value)>| {
        text.push(open);
        for (place, (name, value)) in entries.iter().enumerate() {
            text.push_str(if place == 0 { "\n" } else { ",\n" });
            text.extend(std::iter::repeat_n("    ", level + 1));
            if let Some(name) = name {
                quote(name, text);
                text.push_str(": ");
            }
            lay_out(value, level + 1, text);
        }
        text.push_str(if entries.is_empty() { "\n\n" } else { "\n" });
        text.extend(std::iter::repeat_n("    ", level));
        text.push(close);
    };
    match value {
        Value::Object(fields) => {
            inner('{', '}', fields.iter().map(|(name, value)| (Some(name), value)).collect())
        }
        Value::Array(items) => inner('[', ']', items.iter().map(|value| (None, value)).collect()),
        Value::String(string) => quote(string, text),
        number => text.push_str(&number.to_string()),
    }
}

fn quote(string: &str, text: &mut String) {
    text.push('"');
    for char in string.chars() {
        match char {
            '"' => text.push_str("\\\""),
            '\\' => text.push_str("\\\\"),
            '\n' => text.push_str("\\n"),
            '\r' => text.push_str("\\r"),
            '\t' => text.push_str("\\t"),
            '\x08' => text.push_str("\\b"),
            '\x0c' => text.push_str("\\f"),
            '\0'..='\x1f' => text.push_str(&format!("\\u{:04X}", u32::from(char))),
            char => text.push(char),
        }
    }
    text.push('"');
}

fn path(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

/// `libxl_domain_sched_params`
fn scheduling(scheduling: SchedulingConfig) -> Value {
    let mut params = Structure::default();
    params.put_some("weight", scheduling.weight);
    params.put_some("cap", scheduling.cap);
    params.put_some("period", scheduling.period);
    params.put_some("extratime", scheduling.extratime);
    params.put_some("slice", scheduling.slice);
    params.put_some("latency", scheduling.latency);
    params.into()
}

/// `libxl_ioport_range`
fn io_ports(ports: IoPorts) -> Value {
    let mut range = Structure::default();
    range.put_set("first", ports.first);
    range.put_set("number", ports.number);
    range.into()
}

/// `libxl_iomem_range`
fn io_memory(memory: IoMemory) -> Value {
    let mut range = Structure::default();
    range.put_set("start", memory.first);
    range.put_set("number", memory.number);
    range.put_some("gfn", memory.gfn);
    range.into()
}

/// `libxl_device_disk`
fn disk(disk: &DiskConfig) -> Value {
    let mut device = Structure::default();
    device.put_some("backend_domname", disk.backend.as_deref());
    device.put_some("pdev_path", disk.target.as_deref());
    device.put("vdev", disk.vdev.as_str());
    device.put_some("backend", disk.backend_type.map(|backend| backend.name()));
    device.put("format", disk.format.name());
    device.put_some("script", disk.script.as_deref());
    device.put_set("removable", u32::from(disk.cdrom));
    device.put_set("readwrite", u32::from(disk.writable));
    device.put_set("is_cdrom", u32::from(disk.cdrom));
    device.put_set("direct_io_safe", disk.direct_io_safe);
    device.put_flag("discard_enable", disk.discard);
    device.put_some("specification", disk.specification.map(|specification| specification.name()));
    device.put_flag("trusted", disk.trusted);
    device.into()
}

/// The same as libxl records it of a domain.
pub(crate) fn disk_record(config: &DiskConfig) -> Value {
    let mut record = disk(config);
    if let Some(disk) = record.as_object_mut() {
        let trusted = disk.shift_remove("trusted");
        disk.insert("colo_restore_enable".into(), json!("False"));
        disk.extend(trusted.map(|trusted| ("trusted".to_owned(), trusted)));
    }
    record
}

/// An interface as libxl records it of a domain; it has its number.
pub(crate) fn nic_record(config: &NicConfig) -> Value {
    nic((0, config))
}

/// `libxl_device_nic`
fn nic((place, nic): (usize, &NicConfig)) -> Value {
    let mut device = Structure::default();
    device.put_some("backend_domname", nic.backend.as_deref());
    device.put("devid", nic.devid.map_or(json!(place), Value::from));
    device.put_set("mtu", nic.mtu.unwrap_or(0));
    device.put_some("model", nic.model.as_deref());
    let mac = nic.mac.filter(|mac| mac.0 != [0; 6]);
    device.put_some("mac", mac.map(|mac| mac.to_string()));
    device.put_some("ip", nic.ip.as_deref());
    device.put_some("bridge", nic.bridge.as_deref());
    device.put_some("ifname", nic.name.as_deref());
    device.put_some("script", nic.script.as_deref());
    let kind = nic.kind.map(|kind| match kind {
        NicType::Vif => "vif",
        NicType::Ioemu => "vif_ioemu",
    });
    device.put_some("nictype", kind);
    if let Some(rate) = nic.rate {
        device.put_set("rate_bytes_per_interval", rate.bytes_per_interval);
        device.put("rate_interval_usecs", rate.interval_usecs);
    }
    device.put_some("gatewaydev", nic.gatewaydev.as_deref());
    device.put_flag("trusted", nic.trusted);
    device.into()
}

/// A PCI device as libxl records it of a domain.
pub(crate) fn pci_record(config: &PciConfig) -> Value {
    pci(config)
}

/// `libxl_device_pci`
fn pci(pci: &PciConfig) -> Value {
    let mut device = Structure::default();
    let name = match &pci.device {
        PciDevice::Address(address) => {
            device.put_set("func", address.function.unwrap_or(0));
            device.put_set("dev", address.device);
            device.put_set("bus", address.bus);
            device.put_set("domain", address.domain);
            None
        }
        PciDevice::Name(name) => Some(name.as_str()),
    };
    device.put_set("vdevfn", u32::from(pci.slot.unwrap_or(0)) << 3);
    if let PciDevice::Address(address) = &pci.device {
        device.put("vfunc_mask", if address.function.is_some() { 1 } else { ALL_FUNCTIONS });
    }
    device.put_set("msitranslate", pci.options.msitranslate);
    device.put_set("power_mgmt", pci.options.power_mgmt);
    device.put_set("permissive", pci.options.permissive);
    device.put_set("seize", pci.options.seize);
    device.put(
        "rdm_policy",
        match pci.rdm_policy {
            RdmPolicy::Strict => "strict",
            RdmPolicy::Relaxed => "relaxed",
        },
    );
    device.put_some("name", name);
    device.into()
}

/// `libxl_device_vfb`
fn vfb((place, vfb): (usize, &VfbConfig)) -> Value {
    let mut vnc = Structure::default();
    vnc.put_flag("enable", vfb.vnc);
    vnc.put_some("listen", vfb.vnc_listen.as_deref());
    vnc.put_some("passwd", vfb.vnc_password.as_deref());
    vnc.put_set("display", vfb.vnc_display.unwrap_or(0));
    vnc.put_flag("findunused", vfb.vnc_unused);
    let mut sdl = Structure::default();
    sdl.put_flag("enable", vfb.sdl);
    sdl.put_flag("opengl", vfb.opengl);
    sdl.put_some("display", vfb.display.as_deref());
    sdl.put_some("xauthority", vfb.xauthority.as_deref());
    let mut device = Structure::default();
    device.put("devid", place);
    device.put("vnc", vnc);
    device.put("sdl", sdl);
    device.put_some("keymap", vfb.keymap.as_deref());
    device.into()
}

/// `libxl_device_vkb`
fn vkb((place, vkb): (usize, &VkbConfig)) -> Value {
    let mut device = Structure::default();
    device.put_some("backend_domname", vkb.backend.as_deref());
    device.put("devid", place);
    let backend_type = vkb.backend_type.map(|backend| match backend {
        VkbBackend::Qemu => "qemu",
        VkbBackend::Linux => "linux",
    });
    device.put_some("backend_type", backend_type);
    device.put_some("unique_id", vkb.unique_id.as_deref());
    device.put_set("feature_disable_keyboard", vkb.no_keyboard);
    device.put_set("feature_disable_pointer", vkb.no_pointer);
    device.put_set("feature_abs_pointer", vkb.absolute_pointer);
    device.put_set("feature_raw_pointer", vkb.raw_pointer);
    device.put_set("feature_multi_touch", vkb.multi_touch);
    device.put_set("width", vkb.width);
    device.put_set("height", vkb.height);
    device.put_set("multi_touch_width", vkb.multi_touch_width);
    device.put_set("multi_touch_height", vkb.multi_touch_height);
    device.put_set("multi_touch_num_contacts", vkb.multi_touch_contacts);
    device.into()
}

/// `libxl_device_vtpm`
fn vtpm((place, vtpm): (usize, &VtpmConfig)) -> Value {
    let mut device = Structure::default();
    device.put("backend_domname", vtpm.backend.as_str());
    device.put("devid", place);
    device.put_some("uuid", vtpm.uuid.filter(|uuid| !uuid.is_nil()).map(|uuid| uuid.to_string()));
    device.into()
}

/// `libxl_device_p9`, which xl gives no number.
fn p9(p9: &P9Config) -> Value {
    let mut device = Structure::default();
    device.put_some("backend_domname", p9.backend.as_deref());
    device.put("tag", p9.tag.as_str());
    device.put("path", path(&p9.path));
    device.put("security_model", p9.security_model.as_str());
    device.into()
}

/// `libxl_device_channel`
fn channel((place, channel): (usize, &ChannelConfig)) -> Value {
    let mut device = Structure::default();
    device.put_some("backend_domname", channel.backend.as_deref());
    device.put("devid", place);
    device.put_some("name", channel.name.as_deref());
    match &channel.socket {
        Some(socket) => device.put("connection.socket", json!({ "path": path(socket) })),
        None => device.put("connection.pty", json!({})),
    }
    device.into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Settings;
    use proptest::prelude::*;

    /// What `xl create -n` of Xen 4.17 printed for the configuration below (empty values on one line).
    const STOCK: &str = r#"{
        "c_info": {
            "type": "pvh", "name": "json", "uuid": "d5f1129b-3f6a-4d84-b438-cfa95b7402d7",
            "run_hotplug_scripts": "True"
        },
        "b_info": {
            "max_vcpus": 4, "avail_vcpus": [0, 1], "max_memkb": 524288, "target_memkb": 262144,
            "max_grant_frames": 40, "sched_params": {}, "claim_mode": "True",
            "kernel": "/k/bzImage", "cmdline": "init=/i console=hvc0 quiet panic=-1", "ramdisk": "/r/initrd",
            "type.pvh": {}, "arch_arm": {}, "arch_x86": {}
        },
        "on_reboot": "restart", "on_crash": "preserve", "on_soft_reset": "soft_reset"
    }"#;

    fn config(more: &str) -> QubeConfig {
        let text = format!(
            "name = \"json\"\ntype = \"pvh\"\nkernel = \"/k/bzImage\"\nramdisk = \"/r/initrd\"\n\
             cmdline = \"init=/i console=hvc0 quiet panic=-1\"\nmemory = 256\nvcpus = 2\nmaxvcpus = 4\nmaxmem = 512\n\
             uuid = \"d5f1129b-3f6a-4d84-b438-cfa95b7402d7\"\n{more}\n"
        );
        let settings = Settings::parse("json.cfg", text.as_bytes(), &[""; 0]).unwrap();
        QubeConfig::from_settings("json.cfg", &settings, None).unwrap().0
    }

    #[test]
    fn nxl_create_n_prints_what_xl_create_n_prints() {
        let ours = config("on_crash='preserve'\nmax_grant_frames=40").libxl_value();
        let stock: Value = serde_json::from_str(STOCK).unwrap();
        assert_eq!(format!("{ours:#}"), format!("{stock:#}"), "the order of the fields, too");
    }

    proptest! {
        #[test]
        fn whatever_is_in_a_string_the_json_has_it(cmdline: String) {
            let config = QubeConfig { cmdline, ..config("") };
            let json: Value = serde_json::from_str(&config.to_libxl_json()).unwrap();
            prop_assert_eq!(json["b_info"]["cmdline"].as_str(), Some(config.cmdline.as_str()));
        }
    }

    #[test]
    fn the_record_of_a_domain_has_libxls_defaults_besides() {
        let config = config("");
        let record: Value = serde_json::from_str(&config.to_libxl_record()).unwrap();
        let mut expected = config.libxl_value();
        expected["b_info"]["video_memkb"] = json!(0);
        expected["b_info"]["arch_x86"] = json!({ "msr_relaxed": "False" });
        assert_eq!(record, expected);
        let with_disk = self::config("disk=['/a,,xvda,untrusted']").to_libxl_record();
        let record: Value = serde_json::from_str(&with_disk).unwrap();
        let disk = r#"{"pdev_path":"/a","vdev":"xvda","format":"raw","readwrite":1,"colo_restore_enable":"False","trusted":"False"}"#;
        assert_eq!(record["disks"][0].to_string(), disk);
    }

    #[test]
    fn a_pv_guest_is_told_by_its_type_in_both_places() {
        let ours = config("type='pv'").libxl_value();
        let mut stock: Value = serde_json::from_str(STOCK).unwrap();
        let build = stock["b_info"].as_object_mut().unwrap();
        build.remove("type.pvh");
        build.insert("type.pv".into(), json!({}));
        build.remove("max_grant_frames");
        stock["c_info"]["type"] = json!("pv");
        stock.as_object_mut().unwrap().remove("on_crash");
        assert_eq!(ours, stock);
    }

    #[test]
    fn what_is_not_the_default_is_there() {
        let ours =
            config("max_event_channels=2047\ntimer_mode=2\nshadow_memory=9\ndriver_domain=1").libxl_value();
        assert_eq!(ours["b_info"]["event_channels"], 2047);
        assert_eq!(ours["b_info"]["timer_mode"], "no_missed_ticks_pending");
        assert_eq!(ours["b_info"]["shadow_memkb"], 9 << 10);
        assert_eq!(ours["c_info"]["driver_domain"], "True");
    }
}
