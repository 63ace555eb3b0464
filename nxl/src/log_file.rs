//! A log of lines that other programs append to, and that logrotate renames.

use crate::error::Error;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How often a log is looked at that is followed.
pub(crate) const AGAIN: Duration = Duration::from_millis(200);

/// A log that is read as it grows.
pub(crate) struct LogFile {
    path: PathBuf,
    file: Option<BufReader<File>>,
    /// Of a line that is only half written, what is there.
    line: Vec<u8>,
}

impl LogFile {
    /// A log that is there.
    pub(crate) fn open(path: &Path) -> Result<Self, Error> {
        let mut log = Self::awaited(path);
        log.file = Some(BufReader::new(File::open(path).map_err(|source| log.failed(source))?));
        Ok(log)
    }

    /// A log that is there, or will be when the first line is written.
    pub(crate) fn awaited(path: &Path) -> Self {
        Self { path: path.to_owned(), file: None, line: Vec::new() }
    }

    fn failed(&self, source: io::Error) -> Error {
        Error::Read { path: self.path.clone(), source }
    }

    /// Hands on each line that came since it was read last.
    pub(crate) fn read(&mut self, mut each: impl FnMut(&str) -> Result<(), Error>) -> Result<(), Error> {
        loop {
            self.rest(&mut each)?;
            let Some(next) = self.another().map_err(|source| self.failed(source))? else { return Ok(()) };
            // What came before it was renamed comes first; what stands there without an end will never have one.
            self.rest(&mut each)?;
            self.line.clear();
            self.file = Some(BufReader::new(next));
        }
    }

    fn rest(&mut self, each: &mut impl FnMut(&str) -> Result<(), Error>) -> Result<(), Error> {
        let path = &self.path;
        let Some(file) = &mut self.file else { return Ok(()) };
        loop {
            let read = file.read_until(b'\n', &mut self.line);
            read.map_err(|source| Error::Read { path: path.clone(), source })?;
            if self.line.pop_if(|last| *last == b'\n').is_none() {
                return Ok(());
            }
            each(&String::from_utf8_lossy(&self.line))?;
            self.line.clear();
        }
    }

    /// The file that is at the path now, if it is another one.
    fn another(&self) -> io::Result<Option<File>> {
        let found = match File::open(&self.path) {
            // It has just been renamed, or nothing was written yet.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            found => found?,
        };
        let identity = |metadata: fs::Metadata| (metadata.dev(), metadata.ino());
        let same = match &self.file {
            Some(file) => identity(file.get_ref().metadata()?) == identity(found.metadata()?),
            None => false,
        };
        Ok((!same).then_some(found))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::OpenOptions;
    use std::io::Write;

    fn read(log: &mut LogFile) -> Vec<String> {
        let mut lines = Vec::new();
        log.read(|line| {
            lines.push(line.to_owned());
            Ok(())
        })
        .unwrap();
        lines
    }

    #[test]
    fn lines_come_whole_and_a_renamed_log_is_read_to_its_end() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        assert!(LogFile::open(&path).is_err());
        let mut log = LogFile::awaited(&path);
        let append = |text: &str| {
            let mut file = OpenOptions::new().append(true).create(true).open(&path).unwrap();
            file.write_all(text.as_bytes()).unwrap();
        };
        assert_eq!(read(&mut log), [""; 0]);
        append("one\ntw");
        assert_eq!(read(&mut log), ["one"]);
        append("o\n");
        assert_eq!(read(&mut log), ["two"]);
        append("three\nfo");
        fs::rename(&path, folder.path().join("log.1")).unwrap();
        assert_eq!(read(&mut log), ["three"]);
        append("five\n");
        assert_eq!(read(&mut log), ["five"]);
    }

    #[test]
    fn what_is_no_text_is_read_all_the_same() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        fs::write(&path, b"a\xff\nb\n").unwrap();
        assert_eq!(read(&mut LogFile::open(&path).unwrap()), ["a\u{fffd}", "b"]);
    }
}
