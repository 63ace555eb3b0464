//! Debian's `vchan-socket-proxy`, unchanged, with our library in place of Debian's: sockets in one domain, through a channel,
//! to sockets in the other.

use crate::host::{Host, Library, PATIENCE, Process, built, compile};
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::thread;
use std::time::Instant;
use testbed::cache::Cache;
use testbed::debian::Tree;

use Library::{Debian, Ours};

fn program() -> &'static PathBuf {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| {
        let tree = Tree::of_package(&Cache::open().unwrap(), "xen-utils-4.17").unwrap();
        tree.file("usr/lib/xen-4.17/bin/vchan-socket-proxy").unwrap()
    })
}

/// Two proxies, and the sockets at their ends.
struct Tunnel {
    _processes: [Process; 2],
    /// Where the server's proxy connects to.
    exit: UnixListener,
    /// Where the client's proxy listens.
    entrance: PathBuf,
    _host: Host,
}

impl Tunnel {
    fn new(server: Library, client: Library) -> Self {
        let host = Host::new(&format!("proxy-{server:?}-{client:?}"));
        let (exit, entrance) = (host.folder().file("exit"), host.folder().file("entrance"));
        let listener = UnixListener::bind(&exit).unwrap();
        let xenctrl = compile("vchan/capi/tests/c/xenctrl.c", &["-shared", "-fPIC"]);
        let preload = format!("{}:{}", built("libxensim.so").display(), xenctrl.display());
        let start = |domid: u16, library, arguments: [&str; 4], socket: &Path| {
            let mut command = host.command(domid, library, program());
            Process::start(command.env("LD_PRELOAD", &preload).args(arguments).arg(socket))
        };
        let processes = [
            start(1, server, ["-m", "server", "2", "data/vchan/2/7"], &exit),
            start(2, client, ["-m", "client", "1", "/local/domain/1/data/vchan/2/7"], &entrance),
        ];
        Self { _processes: processes, exit: listener, entrance, _host: host }
    }

    /// One conversation: so many bytes each way at the same time.
    fn carry(&self, bytes: usize) {
        let near = self.enter();
        let (far, _) = self.exit.accept().unwrap();
        for socket in [&near, &far] {
            socket.set_read_timeout(Some(PATIENCE)).unwrap();
            socket.set_write_timeout(Some(PATIENCE)).unwrap();
        }
        thread::scope(|scope| {
            scope.spawn(|| send(&near, bytes, 1));
            scope.spawn(|| send(&far, bytes, 2));
            scope.spawn(|| receive(&near, bytes, 2));
            receive(&far, bytes, 1);
        });
        // The client's proxy ends the channel when its socket ends; the server's then lets its own go.
        drop(near);
        assert_eq!((&far).read(&mut [0]).unwrap(), 0);
    }

    fn enter(&self) -> UnixStream {
        let start = Instant::now();
        loop {
            match UnixStream::connect(&self.entrance) {
                Ok(socket) => return socket,
                Err(error) => assert!(start.elapsed() < PATIENCE, "{error}"),
            }
            thread::yield_now();
        }
    }
}

/// A block of bytes that do not repeat within it.
fn block(seed: u8) -> Vec<u8> {
    (0_u32..16384).flat_map(|i| (i.wrapping_mul(2_654_435_761) ^ u32::from(seed)).to_le_bytes()).collect()
}

fn send(mut socket: &UnixStream, bytes: usize, seed: u8) {
    let block = block(seed);
    for start in (0..bytes).step_by(block.len()) {
        socket.write_all(&block[..block.len().min(bytes - start)]).unwrap();
    }
}

fn receive(mut socket: &UnixStream, bytes: usize, seed: u8) {
    let block = block(seed);
    let mut got = vec![0; block.len()];
    for start in (0..bytes).step_by(block.len()) {
        let got = &mut got[..block.len().min(bytes - start)];
        socket.read_exact(got).unwrap();
        assert!(got == &block[..got.len()], "after {start} bytes");
    }
}

/// 100 MiB each way, then several clients one after another.
fn carries(server: Library, client: Library) {
    let tunnel = Tunnel::new(server, client);
    for bytes in [1, 100 << 20, 5000, 300_001] {
        tunnel.carry(bytes);
    }
}

#[test]
fn with_our_library_at_both_ends() {
    carries(Ours, Ours);
}

#[test]
fn with_ours_at_the_server_and_debians_at_the_client() {
    carries(Ours, Debian);
}

#[test]
fn with_debians_at_the_server_and_ours_at_the_client() {
    carries(Debian, Ours);
}
