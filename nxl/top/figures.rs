//! nexusd's figures, asked for over its socket (docs/nexusd.md).

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

/// How long nexusd may take: it answers at once, or is not well.
const PATIENCE: Duration = Duration::from_secs(2);
/// The most that is read: the figures are some kilobytes.
const MOST: u64 = 1 << 20;

/// The text of the figures, as Prometheus would read it.
///
/// # Errors
/// What connecting, or waiting 2 s for an answer, comes to; `InvalidData` when the answer is none.
pub fn figures(socket: &Path) -> io::Result<String> {
    let mut connection = UnixStream::connect(socket)?;
    connection.set_read_timeout(Some(PATIENCE))?;
    connection.set_write_timeout(Some(PATIENCE))?;
    connection.write_all(b"GET /metrics HTTP/1.1\r\nHost: nexusd\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    connection.take(MOST).read_to_string(&mut answer)?;
    match answer.split_once("\r\n\r\n") {
        Some((head, body)) if head.starts_with("HTTP/1.1 200 ") => Ok(body.to_owned()),
        _ => Err(io::Error::new(io::ErrorKind::InvalidData, "no figures were answered")),
    }
}

/// Bytes of calls that are over, both ways.
#[must_use]
pub fn carried(figures: &str) -> u64 {
    let bytes =
        |line: &str| line.strip_prefix("nexus_call_bytes_total{")?.split_once("} ")?.1.parse::<u64>().ok();
    figures.lines().filter_map(bytes).fold(0, u64::saturating_add)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;

    #[test]
    fn bytes_are_those_of_both_directions() {
        let text = "# TYPE nexus_call_bytes_total counter\nnexus_call_bytes_total{to=\"service\"} 40\n\
                    nexus_call_bytes_total{to=\"caller\"} 2\nnexus_open_calls 9\n";
        assert_eq!(carried(text), 42);
        assert_eq!(carried("nexus_call_bytes_total{to=\"service\"} x\n"), 0);
    }

    #[test]
    fn figures_are_what_is_answered_with_200() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.sock");
        assert_eq!(figures(&path).unwrap_err().kind(), io::ErrorKind::NotFound);
        let listener = UnixListener::bind(&path).unwrap();
        let server = std::thread::spawn(move || {
            for answer in ["HTTP/1.1 200 OK\r\nA: b\r\n\r\nnexus_open_calls 3\n", "HTTP/1.1 404 No\r\n\r\nx"]
            {
                let (mut connection, _) = listener.accept().unwrap();
                let mut request = [0; 256];
                let read = connection.read(&mut request).unwrap();
                assert!(request[..read].starts_with(b"GET /metrics HTTP/1.1\r\n"));
                connection.write_all(answer.as_bytes()).unwrap();
            }
        });
        assert_eq!(figures(&path).unwrap(), "nexus_open_calls 3\n");
        assert_eq!(figures(&path).unwrap_err().kind(), io::ErrorKind::InvalidData);
        server.join().unwrap();
    }
}
