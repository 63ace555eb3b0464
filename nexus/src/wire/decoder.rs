//! Whole messages out of bytes as they come.

use super::channel::{Channel, Kind};
use super::error::WireError;
use super::header::{HEADER, Header};
use super::version::Version;

/// A message whose type and length were checked, and nothing more.
#[derive(Debug, PartialEq, Eq)]
pub struct Frame<'a> {
    /// Its type.
    pub kind: Kind,
    /// Its bytes, without the header.
    pub payload: &'a [u8],
}

/// Reads one direction of a vchan. It keeps at most one message: what its type may have, and not what its header
/// claims, is the bound, and room for it is taken as its bytes come.
#[derive(Debug)]
pub struct Decoder {
    channel: Channel,
    version: Option<Version>,
    /// The beginning of a message; all of it when the frame was given out, until the next call.
    kept: Vec<u8>,
    /// Its header, from when it is there.
    current: Option<Header>,
    given: bool,
    failed: Option<WireError>,
}

impl Decoder {
    /// Reads what comes this way; the first message is a hello.
    pub fn new(channel: Channel) -> Self {
        Self { channel, version: None, kept: Vec::new(), current: None, given: false, failed: None }
    }

    /// The version that is spoken, after the hello.
    pub fn version(&self) -> Option<Version> {
        self.version
    }

    /// How many bytes it keeps.
    pub fn kept(&self) -> usize {
        self.kept.len()
    }

    /// Takes bytes from the front of `input`, up to the end of one message, and gives it out if it is whole. `None`:
    /// all of `input` was taken, and more is needed.
    ///
    /// # Errors
    /// The other end breaks the protocol; the same error comes from every call after that.
    pub fn decode(&mut self, input: &mut &[u8]) -> Result<Option<Frame<'_>>, WireError> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        match self.advance(input) {
            Ok(Some(Header { kind, length })) => {
                self.given = true;
                Ok(Some(Frame { kind, payload: &self.kept[HEADER..HEADER + length] }))
            }
            Ok(None) => Ok(None),
            Err(error) => {
                self.failed = Some(error.clone());
                self.kept = Vec::new();
                Err(error)
            }
        }
    }

    fn advance(&mut self, input: &mut &[u8]) -> Result<Option<Header>, WireError> {
        if std::mem::take(&mut self.given) {
            self.kept.clear();
            self.current = None;
        }
        let header = match self.current {
            Some(current) => current,
            None => {
                self.keep(input, HEADER);
                let Some(header) = self.kept.first_chunk::<HEADER>() else { return Ok(None) };
                *self.current.insert(Header::parse(*header, self.channel, self.version)?)
            }
        };
        self.keep(input, HEADER + header.length);
        if self.kept.len() < HEADER + header.length {
            return Ok(None);
        }
        if let (Kind::Hello, Some(number)) = (header.kind, self.kept[HEADER..].first_chunk()) {
            let theirs = Version::of_peer(u32::from_le_bytes(*number))?;
            self.version = Some(theirs.min(self.channel.version()));
        }
        Ok(Some(header))
    }

    /// Takes what is there, up to so many bytes in all.
    fn keep(&mut self, input: &mut &[u8], in_all: usize) {
        let missing = in_all.saturating_sub(self.kept.len());
        let (taken, left) = input.split_at(missing.min(input.len()));
        self.kept.extend_from_slice(taken);
        *input = left;
    }
}
