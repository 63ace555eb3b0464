//! A configuration in libxl's JSON (`libxl_domain_config`, tools/libs/light/libxl_types.idl): what `xl create -n` prints,
//! and what is stored for `xl list -l`.
//!
//! As libxl does, a field that has its default is left out. Flags are the strings `"True"` and `"False"`.

use super::qube::{Action, QubeConfig, TimerMode};
use serde_json::{Map, Value, json};

/// libxl's default of `event_channels`.
const DEFAULT_EVENT_CHANNELS: u32 = 1_023;

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

impl QubeConfig {
    /// The configuration in libxl's JSON, on several lines.
    #[must_use]
    pub fn to_libxl_json(&self) -> String {
        // Alternate formatting of a JSON value is its text on several lines; it cannot fail.
        format!("{:#}", self.libxl_value())
    }

    /// The same as libxl records it of a domain that it made: with the defaults that its later answers are computed from
    /// (`xl list -l` would be 1 KiB short of the memory without that of the video memory).
    #[must_use]
    pub fn to_libxl_record(&self) -> String {
        let mut value = self.libxl_value();
        value["b_info"]["video_memkb"] = json!(0);
        value["b_info"]["arch_x86"]["msr_relaxed"] = json!("False");
        format!("{value:#}")
    }

    fn libxl_value(&self) -> Value {
        let path = |path: &std::path::Path| path.to_string_lossy().into_owned();
        let mut create = Map::new();
        create.insert("type".into(), json!(self.guest.name()));
        create.insert("name".into(), json!(self.name));
        create.insert("uuid".into(), json!(self.uuid.to_string()));
        create.insert("run_hotplug_scripts".into(), json!("True"));
        if self.driver_domain {
            create.insert("driver_domain".into(), json!("True"));
        }

        let mut build = Map::new();
        build.insert("max_vcpus".into(), json!(self.max_vcpus));
        build.insert("avail_vcpus".into(), (0..self.vcpus).collect());
        build.insert("max_memkb".into(), json!(self.max_memory_mib << 10));
        build.insert("target_memkb".into(), json!(self.memory_mib << 10));
        if let Some(mib) = self.paging_memory_mib {
            build.insert("shadow_memkb".into(), json!(mib << 10));
        }
        if self.max_event_channels != DEFAULT_EVENT_CHANNELS {
            build.insert("event_channels".into(), json!(self.max_event_channels));
        }
        if let Some(frames) = self.max_grant_frames {
            build.insert("max_grant_frames".into(), json!(frames));
        }
        if let Some(frames) = self.max_maptrack_frames {
            build.insert("max_maptrack_frames".into(), json!(frames));
        }
        build.insert("sched_params".into(), json!({}));
        build.insert("claim_mode".into(), json!("True"));
        build.insert("kernel".into(), json!(path(&self.kernel)));
        build.insert("cmdline".into(), json!(self.cmdline));
        if let Some(ramdisk) = &self.ramdisk {
            build.insert("ramdisk".into(), json!(path(ramdisk)));
        }
        if self.timer_mode != TimerMode::NoDelayForMissedTicks {
            build.insert("timer_mode".into(), json!(self.timer_mode.name()));
        }
        for empty in [&format!("type.{}", self.guest.name()), "arch_arm", "arch_x86"] {
            build.insert(empty.to_owned(), json!({}));
        }

        let mut config = Map::new();
        config.insert("c_info".into(), create.into());
        config.insert("b_info".into(), build.into());
        for (name, devices) in crate::device::lists(&self.disks, &self.nics) {
            config.insert(name.into(), devices);
        }
        let actions = self.actions;
        for (name, chosen) in [
            ("on_poweroff", actions.poweroff),
            ("on_reboot", actions.reboot),
            ("on_watchdog", actions.watchdog),
            ("on_crash", actions.crash),
            ("on_soft_reset", actions.soft_reset),
        ] {
            if chosen != Action::Destroy {
                config.insert(name.into(), json!(action(chosen)));
            }
        }
        config.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Settings;

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
        QubeConfig::from_settings("json.cfg", &settings).unwrap().0
    }

    #[test]
    fn nxl_create_n_prints_what_xl_create_n_prints() {
        let ours = config("on_crash='preserve'\nmax_grant_frames=40").to_libxl_json();
        let stock: Value = serde_json::from_str(STOCK).unwrap();
        assert_eq!(ours, format!("{stock:#}"), "the order of the fields, too");
    }

    #[test]
    fn the_record_of_a_domain_has_libxls_defaults_besides() {
        let config = config("");
        let record: Value = serde_json::from_str(&config.to_libxl_record()).unwrap();
        let mut expected = config.libxl_value();
        expected["b_info"]["video_memkb"] = json!(0);
        expected["b_info"]["arch_x86"] = json!({ "msr_relaxed": "False" });
        assert_eq!(record, expected);
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
