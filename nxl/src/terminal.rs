//! What a qube wrote, on a terminal of dom0's: nothing of it may be obeyed by the terminal.

use std::io::{self, IsTerminal, Write};

/// Writes to a terminal what is printable ASCII, line ends and tabs as they are, and every other byte as `\xNN`: no sequence
/// moves the cursor, sets a title, answers in the user's name, or puts a look-alike letter or another direction of writing into a
/// name. Anything but a terminal gets the bytes as they came.
#[derive(Debug)]
pub(crate) struct Harmless<W> {
    to: W,
    escape: bool,
}

impl<W: Write + IsTerminal> Harmless<W> {
    /// `raw`: also a terminal gets the bytes as they came.
    pub(crate) fn new(to: W, raw: bool) -> Self {
        let escape = !raw && to.is_terminal();
        Self { to, escape }
    }
}

impl<W: Write> Write for Harmless<W> {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        if self.escape {
            self.to.write_all(&escaped(data))?;
            Ok(data.len())
        } else {
            self.to.write(data)
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}

fn escaped(data: &[u8]) -> Vec<u8> {
    let mut text = Vec::with_capacity(data.len());
    for &byte in data {
        match byte {
            b'\n' | b'\t' | b' '..=b'~' => text.push(byte),
            // Writing to a Vec does not fail.
            _ => _ = write!(text, "\\x{byte:02x}"),
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_a_terminal_obeys_comes_through() {
        for (hostile, shown) in [
            ("\x1b]0;dom0\x07\x1b[2J\x1b[6n", "\\x1b]0;dom0\\x07\\x1b[2J\\x1b[6n"),
            ("ok\r\x08\x7f", "ok\\x0d\\x08\\x7f"),
            // C1's control sequence introducer, a change of direction.
            ("\u{9b}31m", "\\xc2\\x9b31m"),
            ("\u{202e}txt", "\\xe2\\x80\\xaetxt"),
            ("a\tb\nc ~\n", "a\tb\nc ~\n"),
        ] {
            let mut to = Harmless { to: Vec::new(), escape: true };
            to.write_all(hostile.as_bytes()).unwrap();
            assert_eq!(String::from_utf8(to.to).unwrap(), shown);
        }
        let all: Vec<u8> = (0..=255).collect();
        let shown = escaped(&all);
        assert!(shown.iter().all(|byte| matches!(byte, b'\n' | b'\t' | b' '..=b'~')), "{shown:?}");
    }

    #[test]
    fn a_file_gets_the_bytes_as_they_came() {
        let mut file = tempfile::tempfile().unwrap();
        Harmless::new(file.try_clone().unwrap(), false).write_all(b"\x1b[2J").unwrap();
        let mut back = Vec::new();
        io::Seek::rewind(&mut file).and_then(|()| io::Read::read_to_end(&mut file, &mut back)).unwrap();
        assert_eq!(back, b"\x1b[2J");
    }
}
