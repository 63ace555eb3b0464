//! Page frames in a memory file: what the mock hands out in place of machine memory.

use super::{Access, Mapping, Owner};
use crate::{PAGE_SIZE, Result, error::Error};
use rustix::mm::{self, MapFlags, ProtFlags};
use std::os::fd::{AsFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::Arc;

/// Page frames in a memory file: what the mock hands out in place of machine memory. Sparse: a frame that nobody wrote
/// takes no memory and reads as zeros.
#[derive(Debug)]
pub(crate) struct Frames {
    file: OwnedFd,
    frames: u64,
}

impl Frames {
    /// Room for `frames` frames, numbered from 0.
    pub(crate) fn new(frames: u64) -> Result<Self> {
        let call =
            |error: rustix::io::Errno| Error::new("memfd_create", format!("{frames} frames"), error.into());
        let file = rustix::fs::memfd_create("xen-mock", rustix::fs::MemfdFlags::CLOEXEC).map_err(call)?;
        rustix::fs::ftruncate(&file, frames * PAGE_SIZE as u64).map_err(call)?;
        Ok(Self { file, frames })
    }

    /// Maps `frames`, contiguously and in that order; `release` is dropped after the pages were unmapped.
    pub(crate) fn map(
        self: &Arc<Self>,
        frames: &[u64],
        access: Access,
        release: Box<dyn Owner>,
    ) -> Result<Mapping> {
        let call =
            |errno: rustix::io::Errno| Error::new("mmap", format!("{} frames", frames.len()), errno.into());
        if frames.is_empty() || frames.iter().any(|frame| *frame >= self.frames) {
            return Err(call(rustix::io::Errno::INVAL));
        }
        let len = frames.len() * PAGE_SIZE;
        // SAFETY: a new anonymous mapping where the kernel likes; it replaces nothing.
        let base =
            unsafe { mm::mmap_anonymous(std::ptr::null_mut(), len, ProtFlags::empty(), MapFlags::PRIVATE) }
                .map_err(call)?;
        let base = NonNull::new(base.cast::<u8>()).ok_or_else(|| call(rustix::io::Errno::NOMEM))?;
        // From here on the reservation is owned, and unmapped also when a step below fails.
        let owner = Reservation { base, len, frames: Arc::clone(self), _release: release };
        let mut at = 0;
        while at < frames.len() {
            let run = frames[at..].windows(2).take_while(|pair| pair[1] == pair[0] + 1).count() + 1;
            let mut prot = ProtFlags::READ;
            if access == Access::ReadWrite {
                prot |= ProtFlags::WRITE;
            }
            // SAFETY: MAP_FIXED over a part of the reservation just made, which nobody else knows of.
            unsafe {
                mm::mmap(
                    base.as_ptr().add(at * PAGE_SIZE).cast(),
                    run * PAGE_SIZE,
                    prot,
                    MapFlags::SHARED | MapFlags::FIXED,
                    owner.frames.file.as_fd(),
                    frames[at] * PAGE_SIZE as u64,
                )
            }
            .map_err(call)?;
            at += run;
        }
        // SAFETY: `len` bytes at the page-aligned `base` are mapped for `access` until `owner` unmaps them.
        Ok(unsafe { Mapping::new(base, len, access, Box::new(owner)) })
    }

    /// Bytes from `address` on, counted from frame 0; what lies beyond the last frame is left out.
    pub(crate) fn read(&self, address: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        let mut done = 0;
        while done < len {
            match rustix::io::pread(&self.file, &mut bytes[done..], address + done as u64) {
                Ok(0) | Err(_) => break,
                Ok(part) => done += part,
            }
        }
        bytes.truncate(done);
        bytes
    }

    /// Writes the beginning of a frame.
    pub(crate) fn write(&self, frame: u64, bytes: &[u8]) -> Result<()> {
        let call = |error: rustix::io::Errno| Error::new("pwrite", format!("frame {frame}"), error.into());
        // Into memory all of it goes at once.
        rustix::io::pwrite(&self.file, bytes, frame * PAGE_SIZE as u64).map(drop).map_err(call)
    }

    /// Sets one byte of a frame to 0, as the kernel does when a page with an unmap notification goes.
    pub(crate) fn clear_byte(&self, frame: u64, offset: u16) {
        // Within the file by construction of `frame`; a write of one byte into memory does not fail.
        let _ = rustix::io::pwrite(&self.file, &[0], frame * PAGE_SIZE as u64 + u64::from(offset));
    }

    /// Makes a frame read as zeros again.
    pub(crate) fn discard(&self, frame: u64) {
        let flags = rustix::fs::FallocateFlags::PUNCH_HOLE | rustix::fs::FallocateFlags::KEEP_SIZE;
        // A frame of a memory file can always be punched; were it not, the next owner would be told by its own zeroing.
        let _ = rustix::fs::fallocate(&self.file, flags, frame * PAGE_SIZE as u64, PAGE_SIZE as u64);
    }
}

struct Reservation {
    base: NonNull<u8>,
    len: usize,
    frames: Arc<Frames>,
    _release: Box<dyn Owner>,
}

// SAFETY: an address range that this value alone unmaps; which thread does it makes no difference.
unsafe impl Send for Reservation {}
// SAFETY: nothing of it can be reached through a shared reference.
unsafe impl Sync for Reservation {}
impl Owner for Reservation {}

impl Drop for Reservation {
    fn drop(&mut self) {
        // SAFETY: the range was mapped by `Frames::map`, and the `Mapping` that gave access to it is being dropped.
        let _ = unsafe { mm::munmap(self.base.as_ptr().cast(), self.len) };
    }
}
