//! Telling systemd that a daemon is ready (sd_notify(3)).

use std::env;
use std::ffi::OsStr;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

/// The socket of whoever waits for a daemon to be ready. It is opened by itself, because a daemon that has given up making
/// sockets can still write to one.
#[derive(Debug)]
pub struct Notifier(UnixDatagram);

impl Notifier {
    /// Opens the socket that `NOTIFY_SOCKET` names; none: nobody waits.
    ///
    /// # Errors
    /// It names a socket that is not there, or none.
    pub fn from_env() -> io::Result<Option<Self>> {
        env::var_os("NOTIFY_SOCKET").map(|name| Self::open(&name)).transpose()
    }

    fn open(name: &OsStr) -> io::Result<Self> {
        let address = match name.as_bytes() {
            [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
            _ => SocketAddr::from_pathname(name)?,
        };
        let socket = UnixDatagram::unbound()?;
        socket.connect_addr(&address)?;
        Ok(Self(socket))
    }

    /// The daemon is ready.
    ///
    /// # Errors
    /// Whoever waited does so no more.
    pub fn ready(&self) -> io::Result<()> {
        self.0.send(b"READY=1\n").map(|_| ())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heard(socket: &UnixDatagram) -> Vec<u8> {
        let mut room = [0; 64];
        let length = socket.recv(&mut room).unwrap();
        room[..length].to_vec()
    }

    #[test]
    fn both_kinds_of_names_are_known() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notify");
        let by_path = UnixDatagram::bind(&path).unwrap();
        Notifier::open(path.as_os_str()).unwrap().ready().unwrap();
        assert_eq!(heard(&by_path), b"READY=1\n");

        let name = format!("nexus-sd-notify-{}", std::process::id());
        let abstract_name = SocketAddr::from_abstract_name(&name).unwrap();
        let by_name = UnixDatagram::bind_addr(&abstract_name).unwrap();
        Notifier::open(OsStr::new(&format!("@{name}"))).unwrap().ready().unwrap();
        assert_eq!(heard(&by_name), b"READY=1\n");

        assert!(Notifier::open(OsStr::new("/nowhere/notify")).is_err());
    }
}
