//! A configuration out of libxl's JSON, as another toolstack keeps it of a domain: said again as an `xl.cfg`, which is then read
//! as any other, with all its checks.
//!
//! What the JSON has of guests with a device model, and what a qube cannot have, is refused; libxl's own notes (what it computed
//! from the rest, and states in which it is the default) are passed over.

use super::qube::{ConfigError, QubeConfig};
use super::xl_cfg::{Settings, SyntaxError};
use serde_json::{Map, Value};
use std::fmt::Write as _;

/// Why libxl's JSON makes no qube.
#[derive(Debug, thiserror::Error)]
pub enum LibxlJsonError {
    /// It is no JSON.
    #[error("{0}")]
    Json(#[from] serde_json::Error),
    /// It is not what libxl writes.
    #[error("{0} is not what libxl writes there")]
    Shape(String),
    /// Of another kind than those that are made here.
    #[error("it is a guest of type {0:?}: `xl' is for those")]
    Guest(String),
    /// It has devices that a qube cannot have, or cannot be given like this.
    #[error("it has {0}, for which `xl' is")]
    Devices(String),
    /// A text that an xl.cfg has no way to write.
    #[error("{key} is {value:?}, which a configuration cannot have")]
    Text {
        /// Which.
        key: &'static str,
        /// The text.
        value: String,
    },
    /// What it says is no xl.cfg.
    #[error(transparent)]
    Syntax(#[from] SyntaxError),
    /// What it says makes no qube.
    #[error(transparent)]
    Config(#[from] ConfigError),
}

type Result<T, E = LibxlJsonError> = std::result::Result<T, E>;

/// The lists of devices that are read. Those of the others must be empty.
const DEVICES: [&str; 5] = ["disks", "nics", "vkbs", "p9s", "channels"];

/// Flags of libxl (`libxl_defbool`): where they are, and the key.
const FLAGS: [(&str, &str, &str); 7] = [
    ("c_info", "driver_domain", "driver_domain"),
    ("b_info", "localtime", "localtime"),
    ("b_info", "disable_migrate", "nomigrate"),
    ("b_info", "nested_hvm", "nestedhvm"),
    ("b_info", "vpmu", "vpmu"),
    ("type", "pvshim", "pvshim"),
    ("type", "e820_host", "e820_host"),
];

/// Numbers.
const NUMBERS: [(&str, &str); 5] = [
    ("max_vcpus", "maxvcpus"),
    ("max_grant_frames", "max_grant_frames"),
    ("max_maptrack_frames", "max_maptrack_frames"),
    ("max_grant_version", "max_grant_version"),
    ("event_channels", "max_event_channels"),
];

/// Numbers of KiB, which are MiB here.
const SIZES: [(&str, &str); 3] =
    [("target_memkb", "memory"), ("max_memkb", "maxmem"), ("shadow_memkb", "shadow_memory")];

/// Words, and what of them is the default.
const WORDS: [(&str, &str, &str); 2] =
    [("tsc_mode", "tsc_mode", "default"), ("timer_mode", "timer_mode", "")];

/// Of the scheduler.
const SHARES: [(&str, &str); 6] = [
    ("weight", "cpu_weight"),
    ("cap", "cap"),
    ("period", "period"),
    ("extratime", "extratime"),
    ("slice", "slice"),
    ("latency", "latency"),
];

/// A structure of the JSON, which may be left out.
#[derive(Clone, Copy)]
struct Structure<'a>(Option<&'a Map<String, Value>>);

impl<'a> Structure<'a> {
    fn of(value: Option<&'a Value>, name: &str) -> Result<Self> {
        match value {
            None => Ok(Self(None)),
            Some(Value::Object(fields)) => Ok(Self(Some(fields))),
            Some(_) => Err(LibxlJsonError::Shape(name.to_owned())),
        }
    }

    fn get(self, field: &str) -> Option<&'a Value> {
        self.0?.get(field).filter(|value| !value.is_null())
    }

    fn structure(self, field: &str) -> Result<Self> {
        Self::of(self.get(field), field)
    }

    fn text(self, field: &str) -> Result<Option<&'a str>> {
        self.read(field, Value::as_str)
    }

    fn number(self, field: &str) -> Result<Option<u64>> {
        self.read(field, Value::as_u64)
    }

    /// `"True"` and `"False"`, or a plain flag.
    fn flag(self, field: &str) -> Result<Option<bool>> {
        self.read(field, |value| match value {
            Value::Bool(flag) => Some(*flag),
            Value::String(word) if word == "True" => Some(true),
            Value::String(word) if word == "False" => Some(false),
            Value::Number(number) => number.as_u64().map(|number| number != 0),
            _ => None,
        })
    }

    fn list(self, field: &str) -> Result<&'a [Value]> {
        Ok(self.read(field, Value::as_array)?.map_or(&[], Vec::as_slice))
    }

    fn read<T>(self, field: &str, read: impl Fn(&'a Value) -> Option<T>) -> Result<Option<T>> {
        self.get(field)
            .map(|value| read(value).ok_or_else(|| LibxlJsonError::Shape(field.to_owned())))
            .transpose()
    }
}

/// An xl.cfg under construction.
#[derive(Default)]
struct Text(String);

impl Text {
    fn put_text(&mut self, key: &str, value: Option<&str>) {
        if let Some(value) = value {
            // Writing to a String does not fail.
            let _ = writeln!(self.0, "{key} = {}", quoted(value));
        }
    }

    fn put_number(&mut self, key: &str, value: Option<u64>) {
        if let Some(value) = value {
            let _ = writeln!(self.0, "{key} = {value}");
        }
    }

    fn put_list(&mut self, key: &str, items: &[String]) {
        if !items.is_empty() {
            let items: Vec<String> = items.iter().map(|item| quoted(item)).collect();
            let _ = writeln!(self.0, "{key} = [{}]", items.join(", "));
        }
    }
}

fn quoted(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n"))
}

/// A device's parts, `key=value` with commas between them.
#[derive(Default)]
struct Parts(Vec<String>);

impl Parts {
    fn put(&mut self, key: &'static str, value: Option<impl ToString>) -> Result<&mut Self> {
        if let Some(value) = value {
            let value = value.to_string();
            if value.contains(',') || value.trim() != value {
                return Err(LibxlJsonError::Text { key, value });
            }
            self.0.push(format!("{key}={value}"));
        }
        Ok(self)
    }

    fn put_word(&mut self, word: Option<&str>) -> &mut Self {
        self.0.extend(word.map(str::to_owned));
        self
    }

    fn text(self) -> String {
        self.0.join(",")
    }
}

impl QubeConfig {
    /// Reads what libxl keeps of a domain (`libxl_domain_config`), and what [`QubeConfig::to_libxl_record`] makes.
    ///
    /// # Errors
    /// See [`LibxlJsonError`].
    pub fn from_libxl_json(source_name: &str, json: &[u8]) -> Result<Self> {
        let json: Value = serde_json::from_slice(json)?;
        let theirs = Structure::of(Some(&json), "the configuration")?;
        let text = said_as_xl_cfg(theirs)?;
        let settings = Settings::parse(source_name, text.as_bytes(), &[""; 0])?;
        let (mut config, _) = Self::from_settings(source_name, &settings, None)?;
        // A list of CPUs for each vCPU was not necessarily given as one.
        config.stated.remove("numa_placement");
        let placed = theirs.structure("b_info")?.flag("numa_placement")?;
        config.stated.extend(placed.map(|placed| ("numa_placement".to_owned(), placed.into())));
        Ok(config)
    }

    /// Reads the text of an `xl.cfg`.
    ///
    /// # Errors
    /// See [`LibxlJsonError`].
    pub(crate) fn from_text(source_name: &str, text: &[u8]) -> Result<Self> {
        let settings = Settings::parse(source_name, text, &[""; 0])?;
        Ok(Self::from_settings(source_name, &settings, None)?.0)
    }
}

fn said_as_xl_cfg(config: Structure<'_>) -> Result<String> {
    for (name, value) in config.0.into_iter().flatten() {
        if value.as_array().is_some_and(|list| !list.is_empty()) && !DEVICES.contains(&name.as_str()) {
            return Err(LibxlJsonError::Devices(name.clone()));
        }
    }
    let (made, build) = (config.structure("c_info")?, config.structure("b_info")?);
    // Of the host's hardware.
    for field in ["ioports", "irqs", "iomem"] {
        if !build.list(field)?.is_empty() {
            return Err(LibxlJsonError::Devices(field.to_owned()));
        }
    }
    let mut text = Text::default();
    let guest = made.text("type")?.unwrap_or_default();
    if !["pvh", "pv"].contains(&guest) {
        return Err(LibxlJsonError::Guest(guest.to_owned()));
    }
    text.put_text("type", Some(guest));
    text.put_text("name", made.text("name")?);
    text.put_text("uuid", made.text("uuid")?);
    text.put_text("pool", made.text("pool_name")?);
    let label = made.text("ssid_label")?;
    text.put_text("seclabel", if label.is_some() { label } else { build.text("exec_ssid_label")? });
    let of_type = build.structure(&format!("type.{guest}"))?;
    for (place, field, key) in FLAGS {
        let place = match place {
            "c_info" => made,
            "b_info" => build,
            _ => of_type,
        };
        text.put_number(key, place.flag(field)?.map(u64::from));
    }
    text.put_number(
        "msr_relaxed",
        build.structure("arch_x86")?.flag("msr_relaxed")?.filter(|on| *on).map(u64::from),
    );
    // A guest has at least the one that libxl gives it.
    let vcpus = build.list("avail_vcpus")?.len() as u64;
    text.put_number("vcpus", Some(vcpus).filter(|vcpus| *vcpus > 0));
    for (field, key) in NUMBERS {
        text.put_number(key, build.number(field)?);
    }
    for (field, key) in SIZES {
        text.put_number(key, build.number(field)?.map(|kib| kib.div_ceil(1 << 10)));
    }
    for (field, key, default) in WORDS {
        text.put_text(key, build.text(field)?.filter(|word| *word != default));
    }
    let shares = build.structure("sched_params")?;
    for (field, key) in SHARES {
        text.put_number(key, shares.number(field)?);
    }
    for (field, key) in [("vcpu_hard_affinity", "cpus"), ("vcpu_soft_affinity", "cpus_soft")] {
        text.put_list(key, &each(build.list(field)?, cpus)?);
    }
    for key in ["kernel", "ramdisk", "cmdline", "bootloader"] {
        text.put_text(key, build.text(key)?);
    }
    let arguments = each(build.list("bootloader_args")?, |argument| {
        argument
            .as_str()
            .map(str::to_owned)
            .ok_or_else(|| LibxlJsonError::Shape("bootloader_args".to_owned()))
    })?;
    text.put_list("bootloader_args", &arguments);
    for (key, devices) in
        [("disk", "disks"), ("vif", "nics"), ("vkb", "vkbs"), ("p9", "p9s"), ("channel", "channels")]
    {
        let items = each(config.list(devices)?, |value| {
            let device = Structure::of(Some(value), devices)?;
            match key {
                "disk" => disk(device),
                "vif" => nic(device),
                "vkb" => vkb(device),
                "p9" => p9(device),
                _ => channel(device),
            }
        })?;
        text.put_list(key, &items);
    }
    for reason in ["on_poweroff", "on_reboot", "on_watchdog", "on_crash", "on_soft_reset"] {
        let action = match config.text(reason)? {
            None => "destroy".to_owned(),
            Some("restart_rename") => "rename-restart".to_owned(),
            Some(action) => action.replace('_', "-"),
        };
        text.put_text(reason, Some(&action));
    }
    Ok(text.0)
}

fn each<'a>(list: &'a [Value], said: impl Fn(&'a Value) -> Result<String>) -> Result<Vec<String>> {
    list.iter().map(said).collect()
}

fn cpus(set: &Value) -> Result<String> {
    let numbers = set.as_array().and_then(|set| set.iter().map(Value::as_u64).collect::<Option<Vec<_>>>());
    let numbers = numbers.ok_or_else(|| LibxlJsonError::Shape("vcpu_affinity".to_owned()))?;
    Ok(numbers.iter().map(u64::to_string).collect::<Vec<_>>().join(","))
}

fn trusted(device: Structure<'_>) -> Result<Option<&'static str>> {
    Ok(device.flag("trusted")?.map(|trusted| if trusted { "trusted" } else { "untrusted" }))
}

/// `libxl_device_disk`
fn disk(device: Structure<'_>) -> Result<String> {
    let on = |field| Ok::<_, LibxlJsonError>(device.flag(field)? == Some(true));
    let mut parts = Parts::default();
    parts
        .put("vdev", device.text("vdev")?)?
        .put("format", device.text("format")?.filter(|format| *format != "unknown"))?
        .put("access", Some(if on("readwrite")? { "rw" } else { "ro" }))?
        .put("backend", device.text("backend_domname")?)?
        .put("backendtype", device.text("backend")?.filter(|backend| *backend != "unknown"))?
        .put("script", device.text("script")?)?
        .put("specification", device.text("specification")?.filter(|kind| *kind != "unknown"))?
        .put_word(on("is_cdrom")?.then_some("cdrom"))
        .put_word(on("direct_io_safe")?.then_some("direct-io-safe"))
        .put_word(device.flag("discard_enable")?.map(|on| if on { "discard" } else { "no-discard" }))
        .put_word(trusted(device)?);
    // Last: all that follows is its value.
    let target = device.text("pdev_path")?.map(|path| format!("target={path}"));
    parts.put_word(target.as_deref());
    Ok(parts.text())
}

/// `libxl_device_nic`
fn nic(device: Structure<'_>) -> Result<String> {
    let interval = device.number("rate_interval_usecs")?.unwrap_or(0);
    let rate = device.number("rate_bytes_per_interval")?.unwrap_or(0);
    // What comes out at so many bytes in each interval again.
    let rate = (interval > 0).then(|| {
        let per_second = (u128::from(rate) * 1_000_000).div_ceil(interval.into()).max(1);
        let units = [("G", 1_000_000_000), ("M", 1_000_000), ("K", 1_000)];
        let (unit, factor) =
            units.into_iter().find(|(_, factor)| per_second % factor == 0).unwrap_or(("", 1));
        format!("{}{unit}B/s@{interval}us", per_second / factor)
    });
    let kind = device.text("nictype")?.map(|kind| if kind == "vif_ioemu" { "ioemu" } else { kind });
    let mut parts = Parts::default();
    parts
        .put("devid", device.number("devid")?)?
        .put("mac", device.text("mac")?)?
        .put("bridge", device.text("bridge")?)?
        .put("ip", device.text("ip")?)?
        .put("script", device.text("script")?)?
        .put("backend", device.text("backend_domname")?)?
        .put("vifname", device.text("ifname")?)?
        .put("model", device.text("model")?)?
        .put("type", kind)?
        .put("mtu", device.number("mtu")?)?
        .put("rate", rate)?
        .put("gatewaydev", device.text("gatewaydev")?)?
        .put_word(trusted(device)?);
    Ok(parts.text())
}

/// `libxl_device_vkb`
fn vkb(device: Structure<'_>) -> Result<String> {
    let mut parts = Parts::default();
    parts
        .put("backend", device.text("backend_domname")?)?
        .put("backend-type", device.text("backend_type")?)?
        .put("unique-id", device.text("unique_id")?)?;
    for (field, key) in [
        ("feature_disable_keyboard", "feature-disable-keyboard"),
        ("feature_disable_pointer", "feature-disable-pointer"),
        ("feature_abs_pointer", "feature-abs-pointer"),
        ("feature_raw_pointer", "feature-raw-pointer"),
        ("feature_multi_touch", "feature-multi-touch"),
    ] {
        parts.put(key, device.flag(field)?.map(u8::from))?;
    }
    for (field, key) in [
        ("width", "width"),
        ("height", "height"),
        ("multi_touch_width", "multi-touch-width"),
        ("multi_touch_height", "multi-touch-height"),
        ("multi_touch_num_contacts", "multi-touch-num-contacts"),
    ] {
        parts.put(key, device.number(field)?)?;
    }
    Ok(parts.text())
}

/// `libxl_device_p9`
fn p9(device: Structure<'_>) -> Result<String> {
    let mut parts = Parts::default();
    for (field, key) in [
        ("tag", "tag"),
        ("path", "path"),
        ("security_model", "security_model"),
        ("backend_domname", "backend"),
    ] {
        parts.put(key, device.text(field)?)?;
    }
    Ok(parts.text())
}

/// `libxl_device_channel`
fn channel(device: Structure<'_>) -> Result<String> {
    let socket = device.structure("connection.socket")?.text("path")?;
    let mut parts = Parts::default();
    parts
        .put("connection", Some(if socket.is_some() { "socket" } else { "pty" }))?
        .put("path", socket)?
        .put("name", device.text("name")?)?
        .put("backend", device.text("backend_domname")?)?;
    Ok(parts.text())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn config(text: &str) -> QubeConfig {
        let text = format!("name='work'\nkernel='/k'\n{text}\n");
        QubeConfig::from_text("work.cfg", text.as_bytes()).unwrap()
    }

    fn again(config: &QubeConfig) -> Result<QubeConfig> {
        QubeConfig::from_libxl_json("saved", config.to_libxl_record().as_bytes())
    }

    #[test]
    fn what_libxl_keeps_of_a_qube_is_read_again() {
        for text in [
            "type='pvh'\nmemory=512",
            "type='pv'\nmemory=512\nmaxmem=768\nvcpus=2\nmaxvcpus=4\nramdisk='/r'\ncmdline='a \"b\" \\\\ c'",
            "type='pvh'\nmemory=64\ncpus=['0','1,3']\nvcpus=2\npool='p'\ncpu_weight=512\ncap=50\nshadow_memory=9",
            "type='pv'\nmemory=64\non_crash='coredump-restart'\non_poweroff='preserve'\non_reboot='rename-restart'",
            "type='pvh'\nmemory=64\ntimer_mode='one_missed_tick_pending'\ntsc_mode='native'\nnomigrate=0\nmax_event_channels=99",
            "type='pv'\nmemory=64\ndisk=['/a,raw,xvda,rw','phy:/dev/c,xvdb,r','vdev=xvdc,script=nbd,access=rw,target=x,y']",
            "type='pvh'\nmemory=64\nvif=['bridge=b,mac=00:16:3e:01:02:03,rate=7Kb/s@33ms,ip=10.0.0.1 fe80::1','backend=net']",
            "type='pvh'\nmemory=64\nchannel=['connection=pty,name=a,backend=net']\nvkb=['backend-type=linux,width=7,feature-abs-pointer=1']",
            "type='pvh'\nmemory=64\np9=['tag=t,path=/x,security_model=none,backend=net']\nmax_grant_frames=40",
        ] {
            let config = config(text);
            let again = again(&config).unwrap_or_else(|error| panic!("{text}: {error}"));
            assert_eq!(again.to_libxl_record(), config.to_libxl_record(), "{text}");
        }
    }

    #[test]
    fn what_stock_xl_keeps_of_a_domain_is_read() {
        // What `xl list -l` of Xen 4.17 said of a PVH guest, shortened.
        let stock = json!({
            "c_info": {"type": "pvh", "hap": "True", "oos": "False", "ssidref": 0, "name": "work",
                "uuid": "d5f1129b-3f6a-4d84-b438-cfa95b7402d7", "run_hotplug_scripts": "True",
                "driver_domain": "False", "passthrough": "disabled"},
            "b_info": {"max_vcpus": 1, "avail_vcpus": [0], "vcpu_hard_affinity": [], "numa_placement": "True",
                "tsc_mode": "default", "max_memkb": 131072, "target_memkb": 131072, "video_memkb": 0,
                "shadow_memkb": 2048, "localtime": "False", "disable_migrate": "False",
                "device_model_version": "qemu_xen", "event_channels": 1023, "kernel": "/k", "cmdline": "a",
                "sched_params": {"sched": "credit2", "weight": 256, "cap": 0}, "claim_mode": "False",
                "max_grant_frames": 64, "max_maptrack_frames": 1024, "max_grant_version": 2, "nested_hvm": "False",
                "apic": "True", "acpi": "True", "type.pvh": {"pvshim": "False"}, "arch_arm": {},
                "arch_x86": {"msr_relaxed": "False"}, "altp2m": "disabled", "vpmu": "False"},
            "disks": [{"backend_domid": 0, "pdev_path": "/a", "vdev": "xvda", "backend": "phy", "format": "raw",
                "script": null, "readwrite": 1, "discard_enable": "True", "colo_enable": "False",
                "colo_restore_enable": "False", "trusted": "True"}],
            "on_reboot": "restart", "on_soft_reset": "soft_reset",
        });
        let config = QubeConfig::from_libxl_json("saved", stock.to_string().as_bytes()).unwrap();
        assert_eq!((config.memory_mib, config.paging_memory_mib, config.vcpus), (128, Some(2), 1));
        assert_eq!((config.disks.len(), config.disks[0].writable), (1, true));
        assert_eq!(config.cmdline, "a");
    }

    #[test]
    fn what_a_qube_cannot_have_is_refused() {
        let refused = |change: &dyn Fn(&mut Value)| {
            let mut json: Value = serde_json::from_str(&config("type='pvh'").to_libxl_record()).unwrap();
            change(&mut json);
            QubeConfig::from_libxl_json("saved", json.to_string().as_bytes()).unwrap_err().to_string()
        };
        assert!(refused(&|json| json["c_info"]["type"] = json!("hvm")).contains("guest of type \"hvm\""));
        assert!(refused(&|json| json["usbctrls"] = json!([{"devid": 0}])).contains("it has usbctrls"));
        assert!(refused(&|json| json["pcidevs"] = json!([{"bus": 3}])).contains("it has pcidevs"));
        assert!(refused(&|json| json["b_info"]["irqs"] = json!([5])).contains("it has irqs"));
        assert!(refused(&|json| json["disks"] = json!([3])).contains("disks is not what libxl writes"));
        assert!(refused(&|json| json["b_info"]["max_vcpus"] = json!("one")).contains("max_vcpus is not"));
        let comma = json!([{"vdev": "xvda,target=/etc/shadow", "format": "raw"}]);
        assert!(refused(&|json| json["disks"] = comma.clone()).contains("which a configuration cannot have"));
        assert!(refused(&|json| *json = json!([])).contains("the configuration is not"));
    }

    proptest! {
        #[test]
        fn whatever_a_text_has_it_ends_no_other(cmdline in "[^\\x00-\\x09\\x0b-\\x1f\\x7f]{0,40}", path in "/[^\\x00-\\x1f\\x7f]{0,20}") {
            let config = QubeConfig { cmdline, kernel: path.into(), ..config("type='pvh'\nextra='x'") };
            let again = again(&config).unwrap();
            prop_assert_eq!((again.cmdline, again.kernel), (config.cmdline, config.kernel));
        }
    }
}
