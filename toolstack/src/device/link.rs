//! Network interfaces of this domain, over rtnetlink(7): one message puts an interface on a bridge.

use super::{DeviceError, Port};
use rustix::net::{AddressFamily, SendFlags, SocketFlags, SocketType, send, socket_with};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

/// `RTM_SETLINK`, `NLM_F_REQUEST | NLM_F_ACK` and `NLMSG_ERROR` (linux/rtnetlink.h, linux/netlink.h).
const RTM_SETLINK: u16 = 19;
const REQUEST_WITH_ACK: u16 = 1 | 4;
const NLMSG_ERROR: u16 = 2;
/// `IFLA_*` (linux/if_link.h)
const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_MASTER: u16 = 10;
const IFLA_IFALIAS: u16 = 20;
const IFF_UP: u32 = 1;
/// The address of a bridge's port that never sends by itself: the largest that is not a multicast, so that no bridge
/// takes it for its own.
const PORT_ADDRESS: [u8; 6] = [0xfe, 0xff, 0xff, 0xff, 0xff, 0xff];
/// What an interface's alias begins with that was connected here.
const ALIAS: &str = "nxl: ";
/// The longest name of an interface (`IFNAMSIZ` less the NUL).
pub(super) const NAME_MAX: usize = 15;

/// How long netback may take to make an interface.
const APPEARS_WITHIN: Duration = Duration::from_secs(10);

fn folder(interface: &str) -> PathBuf {
    Path::new("/sys/class/net").join(interface)
}

/// Whether it may be the name of an interface.
pub(super) fn is_name(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= NAME_MAX
        && !matches!(name, "." | "..")
        && name.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'/' && byte != b':')
}

fn number(interface: &str, attribute: &str) -> io::Result<u32> {
    let text = fs::read_to_string(folder(interface).join(attribute))?;
    text.trim().parse().map_err(|_| io::ErrorKind::InvalidData.into())
}

/// The index of an interface that is just about to be made: netback says in xenstore that it has taken its device before
/// it makes the interface (`netback_probe`), and nothing in xenstore tells when it has.
fn index_when_there(interface: &str, limit: Duration) -> io::Result<u32> {
    let begun = Instant::now();
    loop {
        match number(interface, "ifindex") {
            Err(error) if error.kind() == io::ErrorKind::NotFound && begun.elapsed() < limit => {
                thread::sleep(Duration::from_millis(2));
            }
            index => return index,
        }
    }
}

/// The MTU of a bridge of this domain.
pub(super) fn bridge_mtu(bridge: &str) -> Result<u32, DeviceError> {
    if !is_name(bridge) || !folder(bridge).join("bridge").exists() {
        return Err(DeviceError::Bridge(bridge.to_owned()));
    }
    number(bridge, "mtu").map_err(|source| DeviceError::Link { interface: bridge.to_owned(), source })
}

/// Whether [`connect`] connected it.
pub(super) fn is_connected_here(interface: &str) -> bool {
    is_name(interface)
        && fs::read_to_string(folder(interface).join("ifalias")).is_ok_and(|alias| alias.starts_with(ALIAS))
}

/// Puts an interface on a bridge, as libxl's vif-bridge does: with the bridge's MTU unless another is given. The answer
/// is the MTU.
pub(super) fn connect(interface: &str, port: &Port) -> Result<u32, DeviceError> {
    let bridge_mtu = bridge_mtu(&port.bridge)?;
    let mtu = port.mtu.unwrap_or(bridge_mtu);
    let error = |source| DeviceError::Link { interface: interface.to_owned(), source };
    let message = set_link(
        index_when_there(interface, APPEARS_WITHIN).map_err(error)?,
        number(&port.bridge, "ifindex").map_err(error)?,
        mtu,
        port,
    );
    request(&message).map_err(error)?;
    Ok(mtu)
}

fn set_link(index: u32, bridge: u32, mtu: u32, port: &Port) -> Vec<u8> {
    let mut message = Vec::new();
    // struct nlmsghdr; the length is filled in below.
    message.extend(0_u32.to_ne_bytes());
    message.extend(RTM_SETLINK.to_ne_bytes());
    message.extend(REQUEST_WITH_ACK.to_ne_bytes());
    message.extend([0; 8]);
    // struct ifinfomsg
    message.extend([0; 4]);
    for word in [index, IFF_UP, IFF_UP] {
        message.extend(word.to_ne_bytes());
    }
    let mut attribute = |kind: u16, value: &[u8]| {
        message.extend((value.len() as u16 + 4).to_ne_bytes());
        message.extend(kind.to_ne_bytes());
        message.extend(value);
        message.resize(message.len().next_multiple_of(4), 0);
    };
    attribute(IFLA_ADDRESS, &PORT_ADDRESS);
    attribute(IFLA_MTU, &mtu.to_ne_bytes());
    if let Some(name) = &port.name {
        attribute(IFLA_IFNAME, &[name.as_bytes(), &[0]].concat());
    }
    attribute(IFLA_IFALIAS, format!("{ALIAS}{}", port.device).as_bytes());
    attribute(IFLA_MASTER, &bridge.to_ne_bytes());
    let len = message.len() as u32;
    message[..4].copy_from_slice(&len.to_ne_bytes());
    message
}

/// Sends a message to the kernel, and reads whether it was done.
fn request(message: &[u8]) -> io::Result<()> {
    // NETLINK_ROUTE is protocol 0.
    let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, None)?;
    send(&socket, message, SendFlags::empty())?;
    let mut answer = [0; 4_096];
    let len = rustix::io::read(&socket, &mut answer)?;
    outcome(&answer[..len])
}

/// The error number behind the header of an answer.
fn outcome(answer: &[u8]) -> io::Result<()> {
    let kind = answer.get(4..6).and_then(|bytes| bytes.try_into().ok()).map(u16::from_ne_bytes);
    let code = answer.get(16..20).and_then(|bytes| bytes.try_into().ok()).map(i32::from_ne_bytes);
    match (kind, code) {
        (Some(NLMSG_ERROR), Some(0)) => Ok(()),
        (Some(NLMSG_ERROR), Some(code)) => Err(io::Error::from_raw_os_error(code.saturating_neg())),
        _ => Err(io::ErrorKind::InvalidData.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::io::Errno;

    fn port() -> Port {
        Port {
            bridge: "xenbr0".into(),
            mtu: None,
            name: Some("work".into()),
            device: "vif 0 of domain 3".into(),
        }
    }

    #[test]
    fn names_are_those_that_the_kernel_takes() {
        for good in ["xenbr0", "vif3.0", "a", "123456789012345"] {
            assert!(is_name(good), "{good}");
        }
        for bad in ["", ".", "..", "a/b", "a b", "a:b", "1234567890123456", "ü"] {
            assert!(!is_name(bad), "{bad}");
        }
    }

    #[test]
    fn a_message_is_aligned_and_says_its_length() {
        let message = set_link(7, 9, 1400, &port());
        assert_eq!(u32::from_ne_bytes(message[..4].try_into().unwrap()) as usize, message.len());
        let mut at = 32;
        let mut attributes = Vec::new();
        while at < message.len() {
            assert_eq!(at % 4, 0);
            let len = u16::from_ne_bytes(message[at..at + 2].try_into().unwrap()) as usize;
            let kind = u16::from_ne_bytes(message[at + 2..at + 4].try_into().unwrap());
            attributes.push((kind, message[at + 4..at + len].to_vec()));
            at += len.next_multiple_of(4);
        }
        assert_eq!(at, message.len());
        assert_eq!(
            attributes,
            [
                (IFLA_ADDRESS, PORT_ADDRESS.to_vec()),
                (IFLA_MTU, 1400_u32.to_ne_bytes().to_vec()),
                (IFLA_IFNAME, b"work\0".to_vec()),
                (IFLA_IFALIAS, b"nxl: vif 0 of domain 3".to_vec()),
                (IFLA_MASTER, 9_u32.to_ne_bytes().to_vec()),
            ]
        );
    }

    #[test]
    fn an_interface_that_does_not_come_is_waited_for_and_one_that_is_there_is_not() {
        let (begun, limit) = (Instant::now(), Duration::from_millis(20));
        let error = index_when_there("no-such-link", limit).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
        assert!(begun.elapsed() >= limit);
        assert!(index_when_there("lo", Duration::ZERO).is_ok());
    }

    #[test]
    fn the_kernel_answers_for_an_interface_that_is_not_there() {
        // Any process may ask; whether the index or the right to change it is missed first is the kernel's business.
        let error = request(&set_link(u32::MAX >> 1, 1, 1500, &port())).unwrap_err();
        let expected = [Errno::NODEV, Errno::PERM, Errno::INVAL].map(|errno| Some(errno.raw_os_error()));
        assert!(expected.contains(&error.raw_os_error()), "{error}");
    }

    #[test]
    fn answers_that_are_none_are_refused() {
        assert!(outcome(&[]).is_err());
        assert!(outcome(&[0; 15]).is_err());
        let mut answer = vec![0; 20];
        answer[4..6].copy_from_slice(&NLMSG_ERROR.to_ne_bytes());
        assert!(outcome(&answer).is_ok());
        answer[16..20].copy_from_slice(&(-19_i32).to_ne_bytes());
        assert_eq!(outcome(&answer).unwrap_err().raw_os_error(), Some(19));
        answer[16..20].copy_from_slice(&i32::MIN.to_ne_bytes());
        assert!(outcome(&answer).is_err());
    }

    #[test]
    fn what_is_no_bridge_is_named() {
        for name in ["no-such-bridge", "lo", "../lo"] {
            let error = bridge_mtu(name).unwrap_err().to_string();
            assert!(error.starts_with(name) && error.contains("no bridge"), "{error}");
        }
    }
}
