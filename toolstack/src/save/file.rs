//! The file of a saved qube: `xl`'s, which `nxl` and `xl` restore from each other's.
//!
//! | part | what |
//! |---|---|
//! | 32 bytes | `"Xen saved domain, xl format\n \0 \r"` |
//! | 4 x u32 | 0x01020304, mandatory flags (1 the configuration is JSON, 2 what follows is a stream of version 2), optional flags (0), bytes of the optional data |
//! | optional data | u32 length, the configuration in libxl's JSON and a NUL; behind it, of nxl's own files, `"nxl\0"`, u32 length, and what nxl knows besides. xl leaves out of account what it does not know here |
//! | 16 bytes, big-endian | `"LibxlFmt"`, version 2, options 0 |
//! | records | u32 type, u32 length: 1, of length 0, behind which libxc's stream is; 0, of length 0, the end |
//!
//! Numbers are little-endian where nothing else is said. Sources: tools/xl/xl.h (`struct save_file_header`),
//! docs/specs/libxl-migration-stream.pandoc. A file may come from anywhere: lengths are checked before they are believed.

use std::io::{self, Read, Write};

const MAGIC: &[u8; 32] = b"Xen saved domain, xl format\n \0 \r";
const BYTE_ORDER: u32 = 0x0102_0304;
/// Mandatory flags.
const CONFIG_IS_JSON: u32 = 1 << 0;
const STREAM_IS_V2: u32 = 1 << 1;
/// libxl's stream.
const STREAM_IDENT: &[u8; 8] = b"LibxlFmt";
const STREAM_VERSION: u32 = 2;
/// Options of the stream: big-endian, and one that is allowed, by which it was converted from an older version.
const BIG_ENDIAN: u32 = 1 << 0;
const END: u32 = 0;
const LIBXC_CONTEXT: u32 = 1;
/// What begins our own part of the optional data.
const OURS: &[u8; 4] = b"nxl\0";
/// The most optional data that is read: a configuration has some KiB.
const OPTIONAL_LIMIT: u32 = 16 << 20;

/// Why a file is not that of a saved qube, or not of one that this program can restore.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// Something else.
    #[error("it is no file of a saved qube")]
    Magic,
    /// Of another byte order.
    #[error("it was written on a machine of another byte order")]
    ByteOrder,
    /// Flags that have to be understood, and are not.
    #[error("it has what this version does not know (mandatory flags {0:#x}): a newer one is needed")]
    Flags(u32),
    /// From before Xen 4.6.
    #[error("it was saved before Xen 4.6: `xl restore' converts it")]
    Legacy,
    /// A length that nobody writes.
    #[error("it is damaged: its configuration would have {0} bytes")]
    Length(u32),
    /// What is in the stream, and should not be.
    #[error("it is damaged, or of a domain with a device model: record {0:#x}")]
    Record(u32),
    /// Not a stream, or one of another version.
    #[error("it is damaged: no stream of version 2 follows the configuration")]
    Stream,
    /// Neither in it nor with it.
    #[error("it has no configuration: name one, `nxl restore CONFIG FILE'")]
    NoConfig,
    /// It could not be read or written, or ends too early.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// What is in front of the stream.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub(crate) struct Head {
    /// The configuration in libxl's JSON; or, of older versions of `xl`, as it was given.
    pub(crate) config: Option<Config>,
    /// What nxl keeps besides.
    pub(crate) ours: Option<Vec<u8>>,
}

/// A configuration, as a file of a saved qube has it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Config {
    /// libxl's JSON.
    Json(Vec<u8>),
    /// An xl.cfg.
    Text(Vec<u8>),
}

fn put(to: &mut impl Write, numbers: &[u32]) -> io::Result<()> {
    numbers.iter().try_for_each(|number| to.write_all(&number.to_le_bytes()))
}

fn get<const N: usize>(from: &mut impl Read) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    from.read_exact(&mut bytes)?;
    Ok(bytes)
}

fn number(from: &mut impl Read) -> io::Result<u32> {
    get(from).map(u32::from_le_bytes)
}

fn length(bytes: &[u8]) -> io::Result<u32> {
    u32::try_from(bytes.len()).map_err(|_| io::ErrorKind::FileTooLarge.into())
}

/// Takes a length and as many bytes from what is left.
fn take<'a>(left: &mut &'a [u8]) -> Option<&'a [u8]> {
    let (len, after) = left.split_first_chunk::<4>()?;
    let (part, after) = after.split_at_checked(u32::from_le_bytes(*len) as usize)?;
    *left = after;
    Some(part)
}

/// Writes all up to where libxc's stream begins.
pub(crate) fn write_head(to: &mut impl Write, json: &str, ours: &[u8]) -> Result<(), FileError> {
    let mut optional = Vec::new();
    let json = [json.as_bytes(), b"\0"].concat();
    put(&mut optional, &[length(&json)?])?;
    optional.extend(json);
    optional.extend(OURS);
    put(&mut optional, &[length(ours)?])?;
    optional.extend(ours);
    to.write_all(MAGIC)?;
    put(to, &[BYTE_ORDER, CONFIG_IS_JSON | STREAM_IS_V2, 0, length(&optional)?])?;
    to.write_all(&optional)?;
    to.write_all(STREAM_IDENT)?;
    to.write_all(&STREAM_VERSION.to_be_bytes())?;
    to.write_all(&0_u32.to_be_bytes())?;
    put(to, &[LIBXC_CONTEXT, 0])?;
    Ok(())
}

/// Writes what follows libxc's stream.
pub(crate) fn write_end(to: &mut impl Write) -> Result<(), FileError> {
    Ok(put(to, &[END, 0])?)
}

/// Reads all up to where libxc's stream begins, and no further.
pub(crate) fn read_head(from: &mut impl Read) -> Result<Head, FileError> {
    // Of what is shorter than that, nothing else can be said.
    if get(from).map_err(|error| cut(error, FileError::Magic))? != *MAGIC {
        return Err(FileError::Magic);
    }
    if number(from)? != BYTE_ORDER {
        return Err(FileError::ByteOrder);
    }
    let flags = number(from)?;
    if flags & !(CONFIG_IS_JSON | STREAM_IS_V2) != 0 {
        return Err(FileError::Flags(flags));
    }
    let _optional_flags = number(from)?;
    let len = number(from)?;
    if len > OPTIONAL_LIMIT {
        return Err(FileError::Length(len));
    }
    let mut optional = vec![0; len as usize];
    from.read_exact(&mut optional)?;
    let mut head = Head::default();
    let mut left = &*optional;
    if !left.is_empty() {
        let config = take(&mut left).ok_or(FileError::Length(len))?;
        let config = config.strip_suffix(b"\0").unwrap_or(config).to_vec();
        let is_json = flags & CONFIG_IS_JSON != 0;
        head.config = Some(if is_json { Config::Json(config) } else { Config::Text(config) });
        if let Some(mut ours) = left.strip_prefix(OURS) {
            head.ours = Some(take(&mut ours).ok_or(FileError::Length(len))?.to_vec());
        }
    }
    if flags & STREAM_IS_V2 == 0 {
        return Err(FileError::Legacy);
    }
    let ident: [u8; 8] = get(from)?;
    let [version, options] = [u32::from_be_bytes(get(from)?), u32::from_be_bytes(get(from)?)];
    if ident != *STREAM_IDENT || version != STREAM_VERSION {
        return Err(FileError::Stream);
    }
    if options & BIG_ENDIAN != 0 {
        return Err(FileError::ByteOrder);
    }
    read_record(from, LIBXC_CONTEXT)?;
    Ok(head)
}

/// Reads what follows libxc's stream.
pub(crate) fn read_end(from: &mut impl Read) -> Result<(), FileError> {
    read_record(from, END)
}

/// Reads a record, which is to be of this kind: none of those that a domain without a device model has contains anything.
fn read_record(from: &mut impl Read, kind: u32) -> Result<(), FileError> {
    let (found, len) = (number(from)?, number(from)?);
    if found == kind && len == 0 { Ok(()) } else { Err(FileError::Record(found)) }
}

fn cut(error: io::Error, what: FileError) -> FileError {
    if error.kind() == io::ErrorKind::UnexpectedEof { what } else { error.into() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn file() -> Vec<u8> {
        let mut file = Vec::new();
        write_head(&mut file, "{}", b"known").unwrap();
        file
    }

    #[test]
    fn the_head_is_as_xl_writes_it() {
        // The bytes of tools/xl/xl.h and of the specification, by hand.
        let mut expected = b"Xen saved domain, xl format\n \0 \r".to_vec();
        for number in [0x0102_0304_u32, 3, 0, 4 + 3 + 4 + 4 + 5] {
            expected.extend(number.to_le_bytes());
        }
        expected.extend(b"\x03\0\0\0{}\0nxl\0\x05\0\0\0known");
        expected.extend(b"LibxlFmt\0\0\0\x02\0\0\0\0");
        expected.extend(b"\x01\0\0\0\0\0\0\0");
        assert_eq!(file(), expected);
    }

    #[test]
    fn what_was_written_is_read_and_no_byte_more() {
        let mut file = file();
        file.extend(b"what libxc has");
        let mut from = &*file;
        let head = read_head(&mut from).unwrap();
        let config = Some(Config::Json(b"{}".to_vec()));
        assert_eq!(head, Head { config, ours: Some(b"known".to_vec()) });
        assert_eq!(from, b"what libxc has");
        let mut end = Vec::new();
        write_end(&mut end).unwrap();
        read_end(&mut &*end).unwrap();
    }

    #[test]
    fn what_is_no_saved_qube_says_so() {
        let refused = |change: &dyn Fn(&mut Vec<u8>)| {
            let mut file = file();
            change(&mut file);
            read_head(&mut &*file).unwrap_err().to_string()
        };
        assert_eq!(refused(&|file| file.clear()), "it is no file of a saved qube");
        assert_eq!(refused(&|file| file[0] = b'x'), "it is no file of a saved qube");
        assert_eq!(refused(&|file| file[32] = 1), "it was written on a machine of another byte order");
        assert!(refused(&|file| file[36] = 7).contains("mandatory flags 0x7"));
        assert!(refused(&|file| file[36] = 1).contains("before Xen 4.6"));
        assert!(refused(&|file| file[47] = 0xff).contains("would have"));
        assert!(refused(&|file| file[48] = 0xff).contains("would have"));
        let stream = 48 + 20;
        assert!(refused(&|file| file[stream] = b'X').contains("no stream of version 2"));
        assert!(refused(&|file| file[stream + 15] = 1).contains("byte order"));
        assert!(refused(&|file| file[stream + 16] = 2).contains("record 0x2"));
    }

    proptest! {
        #[test]
        fn arbitrary_files_never_panic(mut file in prop::collection::vec(any::<u8>(), 0..200), good in 0_usize..100) {
            let head = self::file();
            let good = good.min(file.len()).min(head.len());
            file[..good].copy_from_slice(&head[..good]);
            let _ = read_head(&mut &*file);
            let _ = read_end(&mut &*file);
        }
    }
}
