//! The log of calls, as a file.

use super::record::{Entry, Record};
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;

/// A file to which lines are appended, and which may be renamed and opened anew.
#[derive(Debug)]
pub(super) struct Log {
    path: PathBuf,
    file: File,
    lines: Vec<u8>,
}

impl Log {
    pub(super) fn open(path: PathBuf) -> io::Result<Self> {
        let file = open(&path)?;
        Ok(Self { path, file, lines: Vec::new() })
    }

    /// Opens it by its name once more: for who has renamed it.
    pub(super) fn reopen(&mut self) -> io::Result<()> {
        self.file = open(&self.path)?;
        Ok(())
    }

    pub(super) fn add(&mut self, record: Record) {
        let entry = Entry { time: jiff::Timestamp::now().to_string(), record };
        let begin = self.lines.len();
        // A record is made of strings and numbers: all of them can be written as JSON.
        if serde_json::to_writer(&mut self.lines, &entry).is_err() {
            self.lines.truncate(begin);
        }
        self.lines.push(b'\n');
    }

    /// Writes what was added, whole lines at once.
    pub(super) fn flush(&mut self) -> io::Result<()> {
        if self.lines.is_empty() {
            return Ok(());
        }
        let result = self.file.write_all(&self.lines);
        self.lines.clear();
        result
    }
}

impl Drop for Log {
    /// However nexusd ends, what it has decided is written.
    fn drop(&mut self) {
        // Nobody is left to be told.
        let _ = self.flush();
    }
}

fn open(path: &PathBuf) -> io::Result<File> {
    OpenOptions::new().append(true).create(true).mode(0o640).open(path)
}
