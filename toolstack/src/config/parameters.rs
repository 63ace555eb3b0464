//! Devices whose text is nothing but `key=value` with commas between: channels, file systems, displays, TPMs.
//!
//! `xl` stops reading such a text at the first part without `=`, and passes over some keys that it does not know; here both
//! are errors.

use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use uuid::Uuid;

/// What is wrong with a device's text.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParameterError {
    /// Something that is no parameter of such a device.
    #[error("a {device} has no parameter `{parameter}'")]
    Unknown {
        /// The device's kind.
        device: &'static str,
        /// What was given.
        parameter: String,
    },
    /// A parameter's value that is none of those that it takes.
    #[error("`{parameter}' of a {device} is {expected}, not {given:?}")]
    Value {
        /// The device's kind.
        device: &'static str,
        /// The parameter.
        parameter: &'static str,
        /// What it may be.
        expected: &'static str,
        /// What it is.
        given: String,
    },
    /// A parameter without which there is no such device.
    #[error("a {device} needs `{parameter}'")]
    Missing {
        /// The device's kind.
        device: &'static str,
        /// The parameter.
        parameter: &'static str,
    },
}

/// A second console with a name, for a program in the guest (xl.cfg(5), "Channels").
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChannelConfig {
    /// The domain that serves it, by name or number; `None` for dom0.
    pub backend: Option<String>,
    /// What the guest finds it by: `org.my.protocol`.
    pub name: Option<String>,
    /// The socket on which the backend listens; `None` for a terminal.
    pub socket: Option<PathBuf>,
}

impl ChannelConfig {
    /// Reads `connection=socket,path=/run/a,name=org.my.protocol` or `connection=pty,name=…`.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &str) -> Result<Self, ParameterError> {
        const DEVICE: &str = "channel";
        let (mut connection, mut path) = (None, None);
        let mut channel = Self { backend: None, name: None, socket: None };
        for parameter in parameters(DEVICE, text) {
            let (key, value) = parameter?;
            let value = value.trim();
            match key.trim() {
                "backend" => channel.backend = Some(value.to_owned()),
                "name" => channel.name = Some(value.to_owned()),
                "path" => path = Some(value.into()),
                "connection" => connection = Some(value),
                key => return Err(unknown(DEVICE, key)),
            }
        }
        let missing = |parameter| ParameterError::Missing { device: DEVICE, parameter };
        match connection.ok_or_else(|| missing("connection"))? {
            "socket" => channel.socket = Some(path.ok_or_else(|| missing("path"))?),
            "pty" if path.is_some() => return Err(unknown("channel with connection=pty", "path")),
            "pty" => (),
            given => return Err(value(DEVICE, "connection", "pty or socket", given)),
        }
        Ok(channel)
    }
}

/// A folder of the backend domain that the guest may mount with 9P.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct P9Config {
    /// What the guest mounts it by.
    pub tag: String,
    /// The folder in the backend domain.
    pub path: PathBuf,
    /// How the guest's owners and modes are kept; `none` is the one that there is.
    pub security_model: String,
    /// The domain that serves it, by name or number; `None` for dom0.
    pub backend: Option<String>,
}

impl P9Config {
    /// Reads `tag=share,path=/srv/share,security_model=none`.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &str) -> Result<Self, ParameterError> {
        const DEVICE: &str = "9P file system";
        let (mut tag, mut path, mut security_model, mut backend) = (None, None, None, None);
        for parameter in parameters(DEVICE, text) {
            let (key, value) = parameter?;
            let to = match key {
                "tag" => &mut tag,
                "path" => &mut path,
                "security_model" => &mut security_model,
                "backend" => &mut backend,
                key => return Err(unknown(DEVICE, key)),
            };
            *to = Some(value.to_owned());
        }
        let missing = |parameter| ParameterError::Missing { device: DEVICE, parameter };
        Ok(Self {
            tag: tag.ok_or_else(|| missing("tag"))?,
            path: path.ok_or_else(|| missing("path"))?.into(),
            security_model: security_model.ok_or_else(|| missing("security_model"))?,
            backend,
        })
    }
}

/// A TPM that another domain emulates.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VtpmConfig {
    /// The domain that emulates it, by name or number.
    pub backend: String,
    /// Which of that domain's TPMs; `None` to make one up.
    pub uuid: Option<Uuid>,
}

impl VtpmConfig {
    /// Reads `backend=vtpm,uuid=…`.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &str) -> Result<Self, ParameterError> {
        const DEVICE: &str = "vtpm";
        let (mut backend, mut uuid) = (None, None);
        for parameter in parameters(DEVICE, text) {
            match parameter? {
                ("backend", name) => backend = Some(name.to_owned()),
                ("uuid", text) => {
                    let expected = "a UUID (12345678-1234-1234-1234-123456789abc)";
                    uuid = Some(parse_uuid(text).ok_or_else(|| value(DEVICE, "uuid", expected, text))?);
                }
                (key, _) => return Err(unknown(DEVICE, key)),
            }
        }
        let missing = ParameterError::Missing { device: DEVICE, parameter: "backend" };
        Ok(Self { backend: backend.ok_or(missing)?, uuid })
    }
}

/// A display without a card (`libxl_device_vfb`): QEMU serves it through VNC, or shows it in a window.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct VfbConfig {
    /// Whether there is a VNC server; `None` for the default, which is that there is.
    pub vnc: Option<bool>,
    /// The address on which it listens.
    pub vnc_listen: Option<String>,
    /// The password that it wants.
    pub vnc_password: Option<String>,
    /// The number of its port less 5900.
    pub vnc_display: Option<u32>,
    /// Whether it takes another port when that is taken; `None` for the default, which is that it does.
    pub vnc_unused: Option<bool>,
    /// Whether it is shown in a window.
    pub sdl: Option<bool>,
    /// Whether the window is drawn with OpenGL.
    pub opengl: Option<bool>,
    /// The X display of the window.
    pub display: Option<String>,
    /// The X authority file of the window.
    pub xauthority: Option<String>,
    /// The keyboard's layout.
    pub keymap: Option<String>,
}

impl VfbConfig {
    /// Reads `vnc=1,vnclisten=0.0.0.0,…`.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &str) -> Result<Self, ParameterError> {
        let mut vfb = Self::default();
        for parameter in parameters("vfb", text) {
            let (key, value) = parameter?;
            vfb.set(key, value)?;
        }
        Ok(vfb)
    }

    /// Sets one parameter. A PV guest's display has them as keys of the configuration, too.
    pub(super) fn set(&mut self, key: &str, value: &str) -> Result<(), ParameterError> {
        let text = || Some(value.to_owned());
        match key {
            "vnc" => self.vnc = Some(flag("vfb", "vnc", value)?),
            "vnclisten" => self.vnc_listen = text(),
            "vncpasswd" => self.vnc_password = text(),
            "vncdisplay" => self.vnc_display = Some(number("vfb", "vncdisplay", value)?),
            "vncunused" => self.vnc_unused = Some(flag("vfb", "vncunused", value)?),
            "sdl" => self.sdl = Some(flag("vfb", "sdl", value)?),
            "opengl" => self.opengl = Some(flag("vfb", "opengl", value)?),
            "display" => self.display = text(),
            "xauthority" => self.xauthority = text(),
            "keymap" => self.keymap = text(),
            _ => return Err(unknown("vfb", key)),
        }
        Ok(())
    }
}

/// What serves a keyboard (`libxl_vkb_backend`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum VkbBackend {
    /// QEMU.
    Qemu,
    /// Somebody who reads xenstore.
    Linux,
}

/// A keyboard and pointer (`libxl_device_vkb`).
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct VkbConfig {
    /// The domain that serves it, by name or number; `None` for dom0.
    pub backend: Option<String>,
    /// What serves it; `None` for the keyboard that comes with a [`VfbConfig`].
    pub backend_type: Option<VkbBackend>,
    /// What the backend finds it by.
    pub unique_id: Option<String>,
    /// Whether there is no keyboard.
    pub no_keyboard: bool,
    /// Whether there is no pointer.
    pub no_pointer: bool,
    /// Whether the pointer's positions are absolute.
    pub absolute_pointer: bool,
    /// Whether positions are not scaled to the display.
    pub raw_pointer: bool,
    /// Whether it can be touched at several points.
    pub multi_touch: bool,
    /// Width for absolute positions, in pixels; 0 for the display's.
    pub width: u32,
    /// Height for absolute positions, in pixels; 0 for the display's.
    pub height: u32,
    /// Width for touching, in pixels.
    pub multi_touch_width: u32,
    /// Height for touching, in pixels.
    pub multi_touch_height: u32,
    /// Points that can be touched at the same time.
    pub multi_touch_contacts: u32,
}

impl VkbConfig {
    /// Reads `backend-type=qemu,width=…`.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &str) -> Result<Self, ParameterError> {
        const DEVICE: &str = "vkb";
        let mut vkb = Self::default();
        for parameter in parameters(DEVICE, text) {
            let (key, given) = parameter?;
            let flag = |parameter| flag(DEVICE, parameter, given);
            let number = |parameter| number(DEVICE, parameter, given);
            match key {
                "backend" => vkb.backend = Some(given.to_owned()),
                "backend-type" => {
                    vkb.backend_type = Some(match given.to_ascii_lowercase().as_str() {
                        "qemu" => VkbBackend::Qemu,
                        "linux" => VkbBackend::Linux,
                        _ => return Err(value(DEVICE, "backend-type", "qemu or linux", given)),
                    });
                }
                "unique-id" => vkb.unique_id = Some(given.to_owned()),
                "feature-disable-keyboard" => vkb.no_keyboard = flag("feature-disable-keyboard")?,
                "feature-disable-pointer" => vkb.no_pointer = flag("feature-disable-pointer")?,
                "feature-abs-pointer" => vkb.absolute_pointer = flag("feature-abs-pointer")?,
                "feature-raw-pointer" => vkb.raw_pointer = flag("feature-raw-pointer")?,
                "feature-multi-touch" => vkb.multi_touch = flag("feature-multi-touch")?,
                "width" => vkb.width = number("width")?,
                "height" => vkb.height = number("height")?,
                "multi-touch-width" => vkb.multi_touch_width = number("multi-touch-width")?,
                "multi-touch-height" => vkb.multi_touch_height = number("multi-touch-height")?,
                "multi-touch-num-contacts" => {
                    vkb.multi_touch_contacts = number("multi-touch-num-contacts")?;
                }
                _ => return Err(unknown(DEVICE, key)),
            }
        }
        let missing = |parameter| Err(ParameterError::Missing { device: DEVICE, parameter });
        if vkb.backend_type.is_none() {
            return missing("backend-type");
        }
        let sizes = [vkb.multi_touch_width, vkb.multi_touch_height, vkb.multi_touch_contacts];
        if vkb.multi_touch && sizes == [0; 3] {
            return missing("multi-touch-width");
        }
        vkb.multi_touch = sizes != [0; 3];
        Ok(vkb)
    }
}

/// A UUID in the one notation that uuid_parse(3), which libxl uses, knows.
pub(super) fn parse_uuid(text: &str) -> Option<Uuid> {
    Uuid::parse_str(text).ok().filter(|_| text.len() == 36)
}

fn parameters<'a>(
    device: &'static str,
    text: &'a str,
) -> impl Iterator<Item = Result<(&'a str, &'a str), ParameterError>> {
    let parts = text.split(',').map(|part| part.trim_start_matches(' ')).filter(|part| !part.is_empty());
    parts.map(move |part| part.split_once('=').ok_or_else(|| unknown(device, part)))
}

fn unknown(device: &'static str, parameter: &str) -> ParameterError {
    ParameterError::Unknown { device, parameter: parameter.to_owned() }
}

fn value(
    device: &'static str,
    parameter: &'static str,
    expected: &'static str,
    given: &str,
) -> ParameterError {
    ParameterError::Value { device, parameter, expected, given: given.to_owned() }
}

fn number(device: &'static str, parameter: &'static str, text: &str) -> Result<u32, ParameterError> {
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    let number = text.parse().ok().filter(|number| digits && i32::try_from(*number).is_ok());
    number.ok_or_else(|| value(device, parameter, "a number from 0 to 2147483647", text))
}

fn flag(device: &'static str, parameter: &'static str, text: &str) -> Result<bool, ParameterError> {
    match text {
        "0" => Ok(false),
        "1" => Ok(true),
        _ => Err(value(device, parameter, "0 or 1", text)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn channels() {
        let channel = ChannelConfig::parse("connection=socket, path = /run/a ,name=org.a,backend=b").unwrap();
        assert_eq!(channel.socket, Some("/run/a".into()));
        assert_eq!((channel.name.as_deref(), channel.backend.as_deref()), (Some("org.a"), Some("b")));
        assert_eq!(ChannelConfig::parse("connection=pty").unwrap().socket, None);
        let error = |text: &str| ChannelConfig::parse(text).unwrap_err().to_string();
        assert_eq!(error("name=a"), "a channel needs `connection'");
        assert_eq!(error("connection=socket"), "a channel needs `path'");
        assert_eq!(error("connection=pty,path=/a"), "a channel with connection=pty has no parameter `path'");
        assert_eq!(error("connection=tcp"), "`connection' of a channel is pty or socket, not \"tcp\"");
        assert_eq!(error("connection=pty,port=1"), "a channel has no parameter `port'");
        assert_eq!(error("pty"), "a channel has no parameter `pty'");
    }

    #[test]
    fn file_systems() {
        let p9 = P9Config::parse("tag=t, path=/srv,security_model=none,backend=files").unwrap();
        assert_eq!(
            (p9.tag.as_str(), p9.path.to_str(), p9.backend.as_deref()),
            ("t", Some("/srv"), Some("files"))
        );
        let error = |text: &str| P9Config::parse(text).unwrap_err().to_string();
        assert_eq!(error("path=/srv,security_model=none"), "a 9P file system needs `tag'");
        assert_eq!(error("tag=t,security_model=none"), "a 9P file system needs `path'");
        assert_eq!(error("tag=t,path=/srv"), "a 9P file system needs `security_model'");
        assert_eq!(error("tag=t,ro"), "a 9P file system has no parameter `ro'");
    }

    #[test]
    fn tpms() {
        let vtpm = VtpmConfig::parse("backend=tpm,uuid=12345678-1234-1234-1234-123456789abc").unwrap();
        assert_eq!((vtpm.backend.as_str(), vtpm.uuid.is_some()), ("tpm", true));
        let error = |text: &str| VtpmConfig::parse(text).unwrap_err().to_string();
        assert_eq!(error(""), "a vtpm needs `backend'");
        assert!(error("backend=tpm,uuid=1").starts_with("`uuid' of a vtpm is a UUID"));
        assert_eq!(error("backend=tpm,version=2"), "a vtpm has no parameter `version'");
    }

    #[test]
    fn displays() {
        let vfb =
            VfbConfig::parse("vnc=1,vncdisplay=7,vncunused=0,sdl=0,opengl=0,display=:0,keymap=de").unwrap();
        assert_eq!(
            (vfb.vnc, vfb.vnc_display, vfb.vnc_unused, vfb.sdl),
            (Some(true), Some(7), Some(false), Some(false))
        );
        assert_eq!(vfb.keymap.as_deref(), Some("de"));
        let error = |text: &str| VfbConfig::parse(text).unwrap_err().to_string();
        assert_eq!(error("vnc=yes"), "`vnc' of a vfb is 0 or 1, not \"yes\"");
        assert_eq!(error("vncport=1"), "a vfb has no parameter `vncport'");
        assert!(error("vncdisplay=-1").starts_with("`vncdisplay' of a vfb is a number"));
    }

    #[test]
    fn keyboards() {
        let vkb = VkbConfig::parse("backend-type=Linux,unique-id=T0,width=800,multi-touch-width=8").unwrap();
        assert_eq!((vkb.backend_type, vkb.width, vkb.multi_touch), (Some(VkbBackend::Linux), 800, true));
        let error = |text: &str| VkbConfig::parse(text).unwrap_err().to_string();
        assert_eq!(error("width=1"), "a vkb needs `backend-type'");
        assert_eq!(error("backend-type=qemu,feature-multi-touch=1"), "a vkb needs `multi-touch-width'");
        assert_eq!(error("backend-type=hid"), "`backend-type' of a vkb is qemu or linux, not \"hid\"");
        assert_eq!(error("backend-type=qemu,depth=1"), "a vkb has no parameter `depth'");
    }

    proptest! {
        #[test]
        fn arbitrary_texts_never_panic(text in any::<String>(), pairs in "[a-z0-9=, -]{0,40}") {
            for text in [&text, &pairs] {
                let _ = ChannelConfig::parse(text);
                let _ = P9Config::parse(text);
                let _ = VtpmConfig::parse(text);
                let _ = VfbConfig::parse(text);
                let _ = VkbConfig::parse(text);
            }
        }
    }
}
