//! The formats in which kernels are packed, each as a stream of the unpacked bytes.
//!
//! xz, lzma and zstd go through the C libraries that wrote the formats (1.4 and 2.7 times as fast as the pure Rust
//! decoders on Debian's kernels, and continuously fuzzed); gzip and bzip2 through Rust ports of theirs; lz4 through the
//! decoder of `lz4_flex` that has no `unsafe`; lzo through our own, since the others are GPL.

use super::ImageError;
use super::lz4::{self, Lz4Legacy};
use super::lzo::{self, Lzop};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::io::{self, Read};

/// What an xz or lzma decoder may allocate. Linux packs with dictionaries of at most 128 MiB.
const XZ_MEMORY_LIMIT: u64 = 192 << 20;
/// log2 of the largest zstd window; `zstd --ultra -22`, as Linux packs, uses 27.
const ZSTD_WINDOW_LOG: u32 = 27;

/// How a kernel is packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Codec {
    /// `CONFIG_KERNEL_GZIP`, or a gzip file of a kernel
    Gzip,
    /// `CONFIG_KERNEL_BZIP2`
    Bzip2,
    /// `CONFIG_KERNEL_LZMA`
    Lzma,
    /// `CONFIG_KERNEL_XZ`
    Xz,
    /// `CONFIG_KERNEL_LZO`
    Lzo,
    /// `CONFIG_KERNEL_LZ4`
    Lz4,
    /// `CONFIG_KERNEL_ZSTD`
    Zstd,
}

impl fmt::Display for Codec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Gzip => "gzip",
            Self::Bzip2 => "bzip2",
            Self::Lzma => "lzma",
            Self::Xz => "xz",
            Self::Lzo => "lzo",
            Self::Lz4 => "lz4",
            Self::Zstd => "zstd",
        })
    }
}

/// How each format begins.
const MAGICS: [(&[u8], Codec); 7] = [
    (&[0x1f, 0x8b], Codec::Gzip),
    (b"BZh", Codec::Bzip2),
    (&[0x5d, 0, 0], Codec::Lzma),
    (&[0xfd, b'7', b'z', b'X', b'Z', 0], Codec::Xz),
    (&lzo::MAGIC, Codec::Lzo),
    (&lz4::MAGIC, Codec::Lz4),
    (&[0x28, 0xb5, 0x2f, 0xfd], Codec::Zstd),
];

impl Codec {
    /// The format that `packed` begins with.
    pub(crate) fn detect(packed: &[u8]) -> Option<Self> {
        MAGICS.iter().find(|(magic, _)| packed.starts_with(magic)).map(|(_, codec)| *codec)
    }

    /// Whether Linux's build writes the unpacked length, 4 bytes, behind the packed kernel. (gzip's own last 4 bytes
    /// are the length.)
    pub(crate) fn has_length_behind(self) -> bool {
        self != Self::Gzip
    }

    /// Unpacks `packed` into `out` without a buffer beside it, if that can be had: how many bytes it is. A zstd stream looks back as
    /// far as 128 MiB, into a ring of that size; when all of the output is in one place, it looks there.
    pub(crate) fn unpack_at_once(self, packed: &[u8], out: &mut [u8]) -> Option<io::Result<usize>> {
        if self != Self::Zstd {
            return None;
        }
        let error = |code| io::Error::other(zstd::zstd_safe::get_error_name(code));
        let frame = zstd::zstd_safe::find_frame_compressed_size(packed).map_err(error);
        // The first frame, as of a stream.
        let frame = frame.map(|len| &packed[..len.min(packed.len())]);
        Some(frame.and_then(|frame| zstd::bulk::Decompressor::new()?.decompress_to_buffer(frame, out)))
    }

    /// The unpacked bytes of `packed`, as a stream that ends in an error when `packed` is damaged or cut off.
    pub(crate) fn unpack<'a>(self, packed: &'a [u8]) -> Result<Box<dyn Read + Send + 'a>, ImageError> {
        let setup = |error: io::Error| ImageError::Damaged { codec: self, source: error };
        let liblzma = |stream: Result<liblzma::stream::Stream, liblzma::stream::Error>| {
            stream
                .map(|stream| Box::new(liblzma::bufread::XzDecoder::new_stream(packed, stream)))
                .map_err(|error| setup(error.into()))
        };
        Ok(match self {
            Self::Gzip => Box::new(flate2::bufread::GzDecoder::new(packed)),
            Self::Bzip2 => Box::new(bzip2::bufread::BzDecoder::new(packed)),
            Self::Lzma => liblzma(liblzma::stream::Stream::new_lzma_decoder(XZ_MEMORY_LIMIT))?,
            Self::Xz => liblzma(liblzma::stream::Stream::new_stream_decoder(XZ_MEMORY_LIMIT, 0))?,
            Self::Lzo => Box::new(Lzop::new(packed).map_err(setup)?),
            Self::Lz4 => Box::new(Lz4Legacy::new(packed)),
            Self::Zstd => {
                let mut decoder =
                    zstd::stream::read::Decoder::with_buffer(packed).map_err(setup)?.single_frame();
                decoder.window_log_max(ZSTD_WINDOW_LOG).map_err(setup)?;
                Box::new(decoder)
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::synthetic::{CODECS, pack};
    use proptest::prelude::*;
    use std::sync::LazyLock;

    fn unpack(codec: Codec, packed: &[u8]) -> io::Result<Vec<u8>> {
        let mut out = Vec::new();
        codec.unpack(packed).map_err(io::Error::other)?.read_to_end(&mut out).map(|_| out)
    }

    /// The same text in every format; packing it anew for every case would take most of the test's time.
    static PACKED: LazyLock<[Vec<u8>; CODECS.len()]> =
        LazyLock::new(|| CODECS.map(|codec| pack(codec, b"forty-two bytes that are packed several ways")));

    fn plain() -> Vec<u8> {
        (0..10_000_u32).flat_map(|i| (i * i / 3).to_le_bytes()).collect()
    }

    #[test]
    fn every_codec_is_recognised_and_unpacked() {
        for codec in CODECS {
            let packed = pack(codec, &plain());
            assert_eq!(Codec::detect(&packed), Some(codec));
            assert!(unpack(codec, &packed).unwrap() == plain(), "{codec}");
        }
        assert_eq!(Codec::detect(b"\x7fELF"), None);
    }

    #[test]
    fn every_codec_notices_a_cut() {
        for codec in CODECS {
            let packed = pack(codec, &plain());
            for end in [packed.len() - 1, packed.len() - 3, packed.len() / 2, 20] {
                assert!(unpack(codec, &packed[..end]).is_err(), "{codec} cut at {end} of {}", packed.len());
            }
        }
    }

    #[test]
    fn a_window_beyond_the_limit_is_refused() {
        // A zstd frame header with a window of 2^31 bytes (RFC 8878, 3.1.1.1.2: exponent in the upper five bits).
        let frame = [0x28, 0xb5, 0x2f, 0xfd, 0, (31 - 10) << 3, 1, 0, 0];
        assert!(unpack(Codec::Zstd, &frame).is_err());
    }

    proptest! {
        #[test]
        fn damage_never_panics(codec in 0..CODECS.len(), at in 0..200_usize, value in any::<u8>()) {
            let mut packed = PACKED[codec].clone();
            let at = at % packed.len();
            packed[at] = value;
            let _ = unpack(CODECS[codec], &packed);
        }

        #[test]
        fn arbitrary_bytes_never_panic(
            codec in 0..CODECS.len(),
            bytes in proptest::collection::vec(any::<u8>(), 0..200),
        ) {
            let mut packed = PACKED[codec].clone();
            packed.truncate(9);
            packed.extend(bytes);
            let _ = unpack(CODECS[codec], &packed);
        }
    }
}
