//! Loop devices: block devices over image files (loop(4), include/uapi/linux/loop.h).
#![allow(unsafe_code, reason = "ioctls with the structures of linux/loop.h")]

use super::{DeviceError, Hold, LoopInfo};
use rustix::io::Errno;
use rustix::ioctl::{self, IoctlOutput, Opcode};
use std::ffi::c_void;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::mem;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

const LOOP_CLR_FD: Opcode = 0x4C01;
const LOOP_SET_STATUS64: Opcode = 0x4C04;
const LOOP_GET_STATUS64: Opcode = 0x4C05;
const LOOP_SET_CAPACITY: Opcode = 0x4C07;
const LOOP_CONFIGURE: Opcode = 0x4C0A;
const LOOP_CTL_GET_FREE: Opcode = 0x4C82;

const LO_FLAGS_READ_ONLY: u32 = 1;
const LO_FLAGS_AUTOCLEAR: u32 = 4;
const LO_FLAGS_DIRECT_IO: u32 = 16;

/// How often another process may be faster with the loop device that the kernel offered.
const ATTEMPTS: u32 = 64;

/// `struct loop_info64`
#[derive(Clone, Copy)]
#[repr(C)]
struct Info {
    device: u64,
    inode: u64,
    rdevice: u64,
    offset: u64,
    sizelimit: u64,
    number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    flags: u32,
    file_name: [u8; 64],
    crypt_name: [u8; 64],
    encrypt_key: [u8; 32],
    init: [u64; 2],
}

/// `struct loop_config`
#[derive(Clone, Copy)]
#[repr(C)]
struct Config {
    fd: u32,
    block_size: u32,
    info: Info,
    reserved: [u64; 8],
}

// What the kernel's header comes to on every 64-bit machine.
const _: () = assert!(mem::size_of::<Info>() == 232 && mem::size_of::<Config>() == 304);

const NOTHING: Info = Info {
    device: 0,
    inode: 0,
    rdevice: 0,
    offset: 0,
    sizelimit: 0,
    number: 0,
    encrypt_type: 0,
    encrypt_key_size: 0,
    flags: 0,
    file_name: [0; 64],
    crypt_name: [0; 64],
    encrypt_key: [0; 32],
    init: [0; 2],
};

/// `LOOP_CTL_GET_FREE`, whose answer is the call's result.
struct GetFree;

// SAFETY: the request takes no argument, writes no memory, and its result is a number or an error.
unsafe impl ioctl::Ioctl for GetFree {
    type Output = u32;
    const IS_MUTATING: bool = false;

    fn opcode(&self) -> Opcode {
        LOOP_CTL_GET_FREE
    }

    fn as_ptr(&mut self) -> *mut c_void {
        std::ptr::null_mut()
    }

    unsafe fn output_from_ptr(output: IoctlOutput, _: *mut c_void) -> rustix::io::Result<u32> {
        u32::try_from(output).map_err(|_| Errno::RANGE)
    }
}

fn status(device: &File) -> io::Result<Info> {
    // SAFETY: the request writes one loop_info64, and every bit pattern of its integers is valid.
    Ok(unsafe { ioctl::ioctl(device, ioctl::Getter::<LOOP_GET_STATUS64, Info>::new()) }?)
}

/// A loop device that vanishes with this value, or with this process.
struct Held {
    number: u32,
    device: File,
}

impl Hold for Held {
    fn number(&self) -> u32 {
        self.number
    }

    fn keep(self: Box<Self>) -> Result<(), DeviceError> {
        let keep = || {
            let mut info = status(&self.device)?;
            info.flags &= !LO_FLAGS_AUTOCLEAR;
            // SAFETY: the request reads one loop_info64.
            unsafe { ioctl::ioctl(&self.device, ioctl::Setter::<LOOP_SET_STATUS64, Info>::new(info)) }?;
            Ok(())
        };
        keep().map_err(DeviceError::Loop)
    }
}

/// The path of a loop device.
pub(super) fn path(number: u32) -> String {
    format!("/dev/loop{number}")
}

fn open(number: u32, write: bool) -> io::Result<File> {
    OpenOptions::new().read(true).write(write).open(path(number))
}

/// Makes a loop device over `image`, which goes when the value is dropped unless it is [kept](Hold::keep). What may be
/// written bypasses the host's cache where the file system can do that: the guest has a cache of its own, and believes
/// what it wrote to be on the disk. A read-only image does not: all qubes that share it are served from one cache.
pub(super) fn attach(image: &File, name: &Path, readonly: bool) -> io::Result<Box<dyn Hold>> {
    let mut info = NOTHING;
    info.flags = LO_FLAGS_AUTOCLEAR | if readonly { LO_FLAGS_READ_ONLY } else { LO_FLAGS_DIRECT_IO };
    // For losetup to show; it is a C string.
    let name = name.as_os_str().as_bytes();
    let len = name.len().min(info.file_name.len() - 1);
    info.file_name[..len].copy_from_slice(&name[..len]);
    let fd = u32::try_from(image.as_raw_fd()).map_err(|_| Errno::BADF)?;
    let config = Config { fd, block_size: 0, info, reserved: [0; 8] };

    let control = OpenOptions::new().read(true).write(true).open("/dev/loop-control")?;
    let mut attempt = 0;
    loop {
        // SAFETY: see the implementation above.
        let number = unsafe { ioctl::ioctl(&control, GetFree) }?;
        let device = open(number, true)?;
        // SAFETY: the request reads one loop_config; the descriptor in it is open.
        match unsafe { ioctl::ioctl(&device, ioctl::Setter::<LOOP_CONFIGURE, Config>::new(config)) } {
            Ok(()) => return Ok(Box::new(Held { number, device })),
            Err(Errno::BUSY) if attempt < ATTEMPTS => attempt += 1,
            Err(errno) => return Err(errno.into()),
        }
    }
}

/// All loop devices that have a file.
pub(super) fn all() -> io::Result<Vec<LoopInfo>> {
    let mut loops = Vec::new();
    for entry in fs::read_dir("/sys/block")? {
        let name = entry?.file_name();
        let number = name.to_str().and_then(|name| name.strip_prefix("loop")?.parse().ok());
        let Some(number) = number else { continue };
        if !Path::new("/sys/block").join(&name).join("loop").exists() {
            continue;
        }
        match open(number, false).and_then(|device| status(&device)) {
            Ok(info) => loops.push(LoopInfo { number, file: (info.device, info.inode) }),
            // Gone since.
            Err(error) if is_gone(&error) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(loops)
}

/// Lets a loop device be as large as its file is now.
pub(super) fn grow(number: u32) -> io::Result<()> {
    // SAFETY: the request takes no argument.
    match unsafe { ioctl::ioctl(&open(number, false)?, ioctl::NoArg::<LOOP_SET_CAPACITY>::new()) } {
        // It has no file any more.
        Ok(()) | Err(Errno::NXIO) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

/// Takes the file from a loop device, now or as soon as nobody has the device open; that it has none is no error.
pub(super) fn detach(number: u32) -> io::Result<()> {
    let device = match open(number, false) {
        Ok(device) => device,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    // SAFETY: the request takes no argument.
    match unsafe { ioctl::ioctl(&device, ioctl::NoArg::<LOOP_CLR_FD>::new()) } {
        Ok(()) | Err(Errno::NXIO) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

fn is_gone(error: &io::Error) -> bool {
    [Errno::NXIO, Errno::NOENT].iter().any(|errno| error.raw_os_error() == Some(errno.raw_os_error()))
}
