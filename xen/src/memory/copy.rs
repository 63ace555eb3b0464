//! Copies to and from memory that another domain may write at the same time.
//!
//! In assembler: so the compiler knows of these accesses only that memory may have changed. It cannot go
//! back to read a byte again, nor rely on what it believes to stand there, and no reference is made that would promise
//! quiet memory. What arrives is a private copy; a byte that the other side changed meanwhile has its old or its new value
//! in it. (Where the moves at both ends of a length overlap, the later one of two reads counts.)

use std::arch::asm;
use std::arch::x86_64::__m128i;

/// Bytes of the registers that the middle sizes are moved with.
const XMM: usize = size_of::<__m128i>();
/// From this length on (bytes) registers of 32 bytes are used, where there are any. (Below, the look whether there are
/// costs more than they save.)
const LONG: usize = 512;
/// Bytes of a cache line.
const LINE: usize = 64;

/// Copies `len` bytes.
///
/// # Safety
/// `len` bytes at `from` are mapped for reading, as many at `to` for writing, and the two do not overlap.
#[inline(always)]
#[allow(clippy::inline_always, reason = "of a length that is known one arm remains")]
pub(super) unsafe fn copy(to: *mut u8, from: *const u8, len: usize) {
    // SAFETY: each arm reads and writes the first bytes and the last ones, of sizes that the length allows.
    unsafe {
        match len {
            0 => {}
            1..4 => bytes(to, from, len),
            4..8 => ends_of_4(to, from, len),
            8..16 => ends_of_8(to, from, len),
            16..=32 => ends_of_16(to, from, len),
            33..=64 => ends_of_32(to, from, len),
            65..LONG => by_64(to, from, len),
            _ if has_avx() => by_128(to, from, len),
            _ => by_64(to, from, len),
        }
    }
}

/// 64 bytes, in registers.
///
/// # Safety
/// 64 bytes at `from` are mapped for reading.
#[inline]
pub(super) unsafe fn line(from: *const u8) -> [u64; 8] {
    let (a, b, c, d): (__m128i, __m128i, __m128i, __m128i);
    // SAFETY: reads those 64 bytes. Four vectors of 16 bytes are as good as eight words.
    unsafe {
        asm!(
            "movdqu {a}, [{from}]",
            "movdqu {b}, [{from} + 16]",
            "movdqu {c}, [{from} + 32]",
            "movdqu {d}, [{from} + 48]",
            a = out(xmm_reg) a, b = out(xmm_reg) b, c = out(xmm_reg) c, d = out(xmm_reg) d, from = in(reg) from,
            options(nostack, preserves_flags, readonly),
        );
        std::mem::transmute([a, b, c, d])
    }
}

/// Sets `len` bytes to `value`. (By the string store, which need not fetch the lines that it overwrites: faster here than a
/// loop over wide registers.)
///
/// # Safety
/// `len` bytes at `to` are mapped for writing.
pub(super) unsafe fn fill(to: *mut u8, value: u8, len: usize) {
    // SAFETY: writes `len` bytes from `to` on; the direction flag is clear at every function's start, by the ABI.
    unsafe {
        asm!("rep stosb", inout("rdi") to => _, inout("rcx") len => _, in("al") value, options(nostack, preserves_flags));
    }
}

unsafe fn bytes(to: *mut u8, from: *const u8, len: usize) {
    for at in 0..len {
        // SAFETY: at < len.
        unsafe { to.add(at).write_volatile(from.add(at).read_volatile()) }
    }
}

/// 4 to 8 bytes.
unsafe fn ends_of_4(to: *mut u8, from: *const u8, len: usize) {
    // SAFETY: the first 4 bytes and the last 4 of at least 4.
    unsafe {
        asm!(
            "mov {a:e}, [{from}]",
            "mov {b:e}, [{from} + {len} - 4]",
            "mov [{to}], {a:e}",
            "mov [{to} + {len} - 4], {b:e}",
            a = out(reg) _, b = out(reg) _, from = in(reg) from, to = in(reg) to, len = in(reg) len,
            options(nostack, preserves_flags),
        );
    }
}

/// 8 to 16 bytes.
unsafe fn ends_of_8(to: *mut u8, from: *const u8, len: usize) {
    // SAFETY: the first 8 bytes and the last 8 of at least 8.
    unsafe {
        asm!(
            "mov {a}, [{from}]",
            "mov {b}, [{from} + {len} - 8]",
            "mov [{to}], {a}",
            "mov [{to} + {len} - 8], {b}",
            a = out(reg) _, b = out(reg) _, from = in(reg) from, to = in(reg) to, len = in(reg) len,
            options(nostack, preserves_flags),
        );
    }
}

/// 16 to 32 bytes.
unsafe fn ends_of_16(to: *mut u8, from: *const u8, len: usize) {
    // SAFETY: the first 16 bytes and the last 16 of at least 16.
    unsafe {
        asm!(
            "movdqu {a}, [{from}]",
            "movdqu {b}, [{from} + {len} - 16]",
            "movdqu [{to}], {a}",
            "movdqu [{to} + {len} - 16], {b}",
            a = out(xmm_reg) _, b = out(xmm_reg) _, from = in(reg) from, to = in(reg) to, len = in(reg) len,
            options(nostack, preserves_flags),
        );
    }
}

/// 32 to 64 bytes.
unsafe fn ends_of_32(to: *mut u8, from: *const u8, len: usize) {
    // SAFETY: the first 32 bytes and the last 32 of at least 32.
    unsafe {
        asm!(
            "movdqu {a}, [{from}]",
            "movdqu {b}, [{from} + 16]",
            "movdqu {c}, [{from} + {len} - 32]",
            "movdqu {d}, [{from} + {len} - 16]",
            "movdqu [{to}], {a}",
            "movdqu [{to} + 16], {b}",
            "movdqu [{to} + {len} - 32], {c}",
            "movdqu [{to} + {len} - 16], {d}",
            a = out(xmm_reg) _, b = out(xmm_reg) _, c = out(xmm_reg) _, d = out(xmm_reg) _,
            from = in(reg) from, to = in(reg) to, len = in(reg) len,
            options(nostack, preserves_flags),
        );
    }
}

/// More than 64 bytes: all but the last 1 to 64 in steps of 64, then the last 64.
unsafe fn by_64(to: *mut u8, from: *const u8, len: usize) {
    let steps = (len - 1) / (4 * XMM);
    // SAFETY: 64 * steps < len, and the last 64 bytes of more than 64.
    unsafe {
        asm!(
            "2:",
            "movdqu {a}, [{from}]",
            "movdqu {b}, [{from} + 16]",
            "movdqu {c}, [{from} + 32]",
            "movdqu {d}, [{from} + 48]",
            "movdqu [{to}], {a}",
            "movdqu [{to} + 16], {b}",
            "movdqu [{to} + 32], {c}",
            "movdqu [{to} + 48], {d}",
            "add {from}, 64",
            "add {to}, 64",
            "dec {steps}",
            "jnz 2b",
            a = out(xmm_reg) _, b = out(xmm_reg) _, c = out(xmm_reg) _, d = out(xmm_reg) _,
            from = inout(reg) from => _, to = inout(reg) to => _, steps = inout(reg) steps => _,
            options(nostack),
        );
        let last = len - 4 * XMM;
        ends_of_32(to.add(last), from.add(last), 4 * XMM);
    }
}

/// More than 256 bytes, with AVX: the first 32, then, from the first whole 32 of the target on, steps of 128, then the last
/// 128. (Stores that cross a line take twice as long; loads that do, hardly longer.)
unsafe fn by_128(to: *mut u8, from: *const u8, len: usize) {
    let head = to.align_offset(32);
    let steps = (len - head - 1) / 128;
    // SAFETY: head < 32 and head + 128 * steps < len, and the last 128 bytes of more than 256; the processor has AVX. The
    // upper halves of the registers, which a program without AVX does not know of, are cleared.
    unsafe {
        ends_of_16(to, from, 32);
        asm!(
            "2:",
            "vmovdqu ymm0, [{from}]",
            "vmovdqu ymm1, [{from} + 32]",
            "vmovdqu ymm2, [{from} + 64]",
            "vmovdqu ymm3, [{from} + 96]",
            "vmovdqa [{to}], ymm0",
            "vmovdqa [{to} + 32], ymm1",
            "vmovdqa [{to} + 64], ymm2",
            "vmovdqa [{to} + 96], ymm3",
            "add {from}, 128",
            "add {to}, 128",
            "dec {steps}",
            "jnz 2b",
            "vmovdqu ymm0, [{end} - 128]",
            "vmovdqu ymm1, [{end} - 96]",
            "vmovdqu ymm2, [{end} - 64]",
            "vmovdqu ymm3, [{end} - 32]",
            "vmovdqu [{to_end} - 128], ymm0",
            "vmovdqu [{to_end} - 96], ymm1",
            "vmovdqu [{to_end} - 64], ymm2",
            "vmovdqu [{to_end} - 32], ymm3",
            "vzeroupper",
            from = inout(reg) from.add(head) => _, to = inout(reg) to.add(head) => _,
            steps = inout(reg) steps => _,
            end = in(reg) from.add(len), to_end = in(reg) to.add(len),
            out("xmm0") _, out("xmm1") _, out("xmm2") _, out("xmm3") _,
            options(nostack),
        );
    }
}

/// Asks for the cache lines of `len` bytes, to be written.
///
/// # Safety
/// `len` bytes at `at` are mapped.
#[inline]
pub(super) unsafe fn prefetch_write(at: *mut u8, len: usize) {
    let mut offset = 0;
    while offset < len {
        // SAFETY: a hint, which changes nothing and does not fault; inside of the mapping all the same.
        unsafe { asm!("prefetchw [{}]", in(reg) at.add(offset), options(nostack, preserves_flags, readonly)) }
        offset += LINE;
    }
}

/// Asks for a cache line, to be read. Any address will do: where nothing is mapped, nothing happens.
#[inline]
pub(super) fn prefetch_read(at: *const u8) {
    // SAFETY: a hint, which changes nothing and does not fault.
    unsafe { asm!("prefetcht0 [{}]", in(reg) at, options(nostack, preserves_flags, readonly)) }
}

/// Whether the processor (and the system) has registers of 32 bytes.
fn has_avx() -> bool {
    is_x86_feature_detected!("avx")
}

/// A full fence: what stands before it is seen by others before anything after it is looked at.
///
/// The same as [`std::sync::atomic::fence`] with `SeqCst`, by an instruction that takes half of the time: a locked
/// operation on the stack. (Linux and Xen make their `mb()` of it for that reason.)
#[inline]
pub fn full_fence() {
    // SAFETY: changes nothing: 0 is added to a word of this thread's own stack.
    unsafe { asm!("lock add dword ptr [rsp - 4], 0") }
}
