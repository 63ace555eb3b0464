//! Block devices put together from parts of files, by the kernel's device mapper (include/uapi/linux/dm-ioctl.h,
//! Documentation/admin-guide/device-mapper/linear.rst).
//!
//! Each file gets a loop device, and a table of `linear` targets says which of its sectors are where; sectors that the table
//! does not name cannot be reached. All are read through the file's page cache, which is one, however many devices have it.
//!
//! Nothing is left to be cleaned up: the loop devices go with the device that has them open, and that is removed, by a
//! deferred removal, as soon as nobody has it open: this process, until the backend has it, and then the backend.
#![allow(unsafe_code, reason = "ioctls with the structures of linux/dm-ioctl.h")]

use super::loop_device;
use super::plumbing::{Composed, Extent};
use super::{DeviceError, Hold};
use rustix::fs::{major, minor};
use rustix::io::Errno;
use rustix::ioctl::{self, IoctlOutput, Opcode};
use std::ffi::c_void;
use std::fs::{File, OpenOptions};
use std::io;
use std::mem;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

const CONTROL: &str = "/dev/mapper/control";
/// What the names of our devices begin with.
const PREFIX: &str = "nxl-";
/// How long a backend may take to open its device.
const LIMIT: Duration = Duration::from_secs(20);
/// There is no event for it; the backend is told by xenstored and has it within a millisecond or two.
const LOOK_AGAIN: Duration = Duration::from_millis(2);
const SECTOR: u64 = 512;

/// The numbers of the requests (`DM_*_CMD`).
const LIST_DEVICES: u32 = 2;
const DEV_CREATE: u32 = 3;
const DEV_REMOVE: u32 = 4;
const DEV_SUSPEND: u32 = 6;
const DEV_STATUS: u32 = 7;
const TABLE_LOAD: u32 = 9;

/// `DM_*_FLAG`
const READ_ONLY: u32 = 1;
const BUFFER_FULL: u32 = 1 << 8;
const DEFERRED_REMOVE: u32 = 1 << 17;
/// `DM_UDEV_DISABLE_*` of libdevmapper: udev's rules find these flags in the upper half of the event's number. It is not
/// to look for partitions or file systems in a qube's disk, nor to make links to it.
const UDEV_HANDS_OFF: u32 = 0x000f << 16;

/// `struct dm_ioctl`
#[derive(Clone, Copy)]
#[repr(C)]
struct Header {
    version: [u32; 3],
    data_size: u32,
    data_start: u32,
    target_count: u32,
    open_count: i32,
    flags: u32,
    event_nr: u32,
    padding: u32,
    dev: u64,
    name: [u8; 128],
    uuid: [u8; 129],
    data: [u8; 7],
}

const HEADER_LEN: usize = mem::size_of::<Header>();
const NAME_LEN: usize = 128;
// What the kernel's header comes to on every 64-bit machine.
const _: () = assert!(HEADER_LEN == 312 && mem::align_of::<Header>() == 8);
/// `struct dm_target_spec` without the parameters behind it.
const SPEC_LEN: usize = 40;

/// A request: the header, and what it takes or gives behind it, in memory that is aligned as the kernel's structures are.
struct Request {
    command: u32,
    words: Vec<u64>,
}

// SAFETY: the pointer is to data_size bytes (set in `new`, and never changed) that this value owns, initialised and aligned
// for struct dm_ioctl; the kernel reads and writes no more than data_size says (copy_params and ctl_ioctl in
// drivers/md/dm-ioctl.c), and any bytes are valid as words.
unsafe impl ioctl::Ioctl for &mut Request {
    type Output = ();
    const IS_MUTATING: bool = true;

    fn opcode(&self) -> Opcode {
        ioctl::opcode::read_write::<Header>(0xfd, self.command as u8)
    }

    fn as_ptr(&mut self) -> *mut c_void {
        self.words.as_mut_ptr().cast()
    }

    unsafe fn output_from_ptr(_: IoctlOutput, _: *mut c_void) -> rustix::io::Result<()> {
        Ok(())
    }
}

impl Request {
    /// `payload` stands behind the header; `room` is how many bytes there may be of an answer.
    fn new(command: u32, name: &str, flags: u32, payload: &[u8], room: usize) -> io::Result<Self> {
        if name.len() >= NAME_LEN {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("{name} is too long for a device's name"),
            ));
        }
        let len = HEADER_LEN + payload.len().max(room);
        let mut request = Self { command, words: vec![0; len.div_ceil(8)] };
        let size = u32::try_from(request.words.len() * 8).map_err(|_| io::ErrorKind::InvalidInput)?;
        request.put(mem::offset_of!(Header, version), &4_u32.to_le_bytes());
        request.put(mem::offset_of!(Header, data_size), &size.to_le_bytes());
        request.put(mem::offset_of!(Header, data_start), &(HEADER_LEN as u32).to_le_bytes());
        request.put(mem::offset_of!(Header, flags), &flags.to_le_bytes());
        request.put(mem::offset_of!(Header, event_nr), &UDEV_HANDS_OFF.to_le_bytes());
        request.put(mem::offset_of!(Header, name), name.as_bytes());
        request.put(HEADER_LEN, payload);
        Ok(request)
    }

    /// Puts bytes at an offset; the toolstack runs on x86-64 alone, whose low byte is first.
    fn put(&mut self, at: usize, bytes: &[u8]) {
        for (at, byte) in (at..).zip(bytes) {
            let shift = at % 8 * 8;
            let word = &mut self.words[at / 8];
            *word = *word & !(0xff << shift) | u64::from(*byte) << shift;
        }
    }

    fn bytes(&self) -> Vec<u8> {
        self.words.iter().flat_map(|word| word.to_le_bytes()).collect()
    }

    fn u32(&self, at: usize) -> u32 {
        (self.words[at / 8] >> (at % 8 * 8)) as u32
    }

    fn run(&mut self, control: &File) -> Result<(), Errno> {
        // SAFETY: see the implementation above.
        unsafe { ioctl::ioctl(control, self) }
    }
}

/// What the kernel says of a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Status {
    number: (u32, u32),
    opened: u32,
    goes: bool,
}

fn status(control: &File, name: &str) -> io::Result<Status> {
    let mut request = Request::new(DEV_STATUS, name, 0, &[], 0)?;
    request.run(control)?;
    let dev = request.words[mem::offset_of!(Header, dev) / 8];
    Ok(Status {
        number: (major(dev), minor(dev)),
        opened: request.u32(mem::offset_of!(Header, open_count)),
        goes: request.u32(mem::offset_of!(Header, flags)) & DEFERRED_REMOVE != 0,
    })
}

fn control() -> io::Result<File> {
    OpenOptions::new().read(true).write(true).open(CONTROL).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => io::Error::new(
            error.kind(),
            format!("{CONTROL} is not there: the kernel's module dm-mod makes it (modprobe dm-mod)"),
        ),
        _ => error,
    })
}

/// Removes a device, at once or when nobody has it open.
fn remove(control: &File, name: &str, flags: u32) -> io::Result<()> {
    match Request::new(DEV_REMOVE, name, flags, &[], 0)?.run(control) {
        // There is none.
        Ok(()) | Err(Errno::NXIO) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

pub(super) fn take_apart(name: &str) -> io::Result<()> {
    remove(&control()?, &format!("{PREFIX}{name}"), DEFERRED_REMOVE)
}

/// A device that this process has open, and that goes when nobody has.
struct Held {
    control: File,
    name: String,
    status: Status,
    _open: File,
}

impl Composed for Held {
    fn number(&self) -> (u32, u32) {
        self.status.number
    }

    fn node(&self) -> String {
        node(self.status)
    }

    fn hand_over(self: Box<Self>) -> Result<(), DeviceError> {
        let begun = Instant::now();
        while status(&self.control, &self.name).map_err(DeviceError::Mapper)?.opened < 2 {
            if begun.elapsed() > LIMIT {
                let late = format!("no backend opened {} within {} s", self.node(), LIMIT.as_secs());
                return Err(DeviceError::Mapper(io::Error::new(io::ErrorKind::TimedOut, late)));
            }
            thread::sleep(LOOK_AGAIN);
        }
        Ok(())
    }
}

fn node(status: Status) -> String {
    format!("/dev/dm-{}", status.number.1)
}

/// Puts parts of files together.
pub(super) fn compose(
    name: &str,
    files: &[(PathBuf, File)],
    extents: &[Extent],
) -> io::Result<Box<dyn Composed>> {
    let control = control()?;
    remove_abandoned(&control)?;
    let name = format!("{PREFIX}{name}");
    // These go when nobody has them open.
    let loops: Vec<Box<dyn Hold>> =
        files.iter().map(|(path, file)| loop_device::attach(file, path, true)).collect::<Result<_, _>>()?;
    let numbers: Vec<u32> = loops.iter().map(|device| device.number()).collect();
    let (targets, table) = table(&numbers, extents)?;

    let create =
        || Request::new(DEV_CREATE, &name, READ_ONLY, &[], 0)?.run(&control).map_err(io::Error::from);
    match create() {
        // Of a domain of that number that is gone: if its backend still has it, it is not.
        Err(error) if error.raw_os_error() == Some(Errno::BUSY.raw_os_error()) => {
            remove(&control, &name, 0)?;
            create()?;
        }
        other => other?,
    }
    let begin = || {
        let mut load = Request::new(TABLE_LOAD, &name, READ_ONLY, &table, 0)?;
        load.put(mem::offset_of!(Header, target_count), &targets.to_le_bytes());
        load.run(&control)?;
        // Without DM_SUSPEND_FLAG it is the opposite: the table is used from now on.
        Request::new(DEV_SUSPEND, &name, READ_ONLY, &[], 0)?.run(&control)?;
        let status = status(&control, &name)?;
        let open = File::open(node(status))?;
        remove(&control, &name, DEFERRED_REMOVE)?;
        Ok((status, open))
    };
    match begin() {
        Ok((status, open)) => Ok(Box::new(Held { control, name, status, _open: open })),
        Err(error) => {
            // Why it could not be made is the thing to say.
            let _ = remove(&control, &name, 0);
            Err(error)
        }
    }
}

/// The table of a device: how many targets it has, and their descriptions.
fn table(loops: &[u32], extents: &[Extent]) -> io::Result<(u32, Vec<u8>)> {
    let (mut bytes, mut sector) = (Vec::new(), 0_u64);
    for extent in extents {
        if extent.len == 0 || !extent.len.is_multiple_of(SECTOR) || !extent.offset.is_multiple_of(SECTOR) {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("{extent:?} is not in whole sectors"),
            ));
        }
        let number = loops.get(extent.file).ok_or(io::ErrorKind::InvalidInput)?;
        let parameters = format!("7:{number} {}\0", extent.offset / SECTOR);
        let next = (SPEC_LEN + parameters.len()).next_multiple_of(8);
        let begun = bytes.len();
        bytes.extend_from_slice(&sector.to_le_bytes());
        bytes.extend_from_slice(&(extent.len / SECTOR).to_le_bytes());
        bytes.extend_from_slice(&0_i32.to_le_bytes());
        bytes.extend_from_slice(&(next as u32).to_le_bytes());
        bytes.extend_from_slice(b"linear\0\0\0\0\0\0\0\0\0\0");
        bytes.extend_from_slice(parameters.as_bytes());
        bytes.resize(begun + next, 0);
        sector += extent.len / SECTOR;
    }
    let targets = u32::try_from(extents.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    Ok((targets, bytes))
}

/// Removes what was left by a process that was killed before the device was its backend's: nobody has it open, and it is
/// not to go by itself.
fn remove_abandoned(control: &File) -> io::Result<()> {
    for name in names(control)? {
        if !name.starts_with(PREFIX) {
            continue;
        }
        match status(control, &name) {
            Ok(status) if status.opened == 0 && !status.goes => remove(control, &name, 0)?,
            // It is in use, or gone since.
            _ => {}
        }
    }
    Ok(())
}

/// The names of all devices of the device mapper.
fn names(control: &File) -> io::Result<Vec<String>> {
    let mut room = 64 << 10;
    loop {
        let mut request = Request::new(LIST_DEVICES, "", 0, &[], room)?;
        request.run(control)?;
        if request.u32(mem::offset_of!(Header, flags)) & BUFFER_FULL == 0 {
            let start = request.u32(mem::offset_of!(Header, data_start)) as usize;
            let bytes = request.bytes();
            return Ok(names_in(bytes.get(start..).unwrap_or_default()));
        }
        room *= 2;
    }
}

/// The names in a list of `struct dm_name_list`: device, offset of the next from this one, name.
fn names_in(mut bytes: &[u8]) -> Vec<String> {
    let mut names = Vec::new();
    while let Some((entry, name)) = bytes.split_at_checked(12) {
        let name = name.split(|byte| *byte == 0).next().unwrap_or_default();
        // An empty list is one entry without a device.
        if entry[..8] != [0; 8] {
            names.push(String::from_utf8_lossy(name).into_owned());
        }
        let next = u32::from_le_bytes([entry[8], entry[9], entry[10], entry[11]]) as usize;
        match bytes.get(next..) {
            Some(rest) if next > 0 => bytes = rest,
            _ => break,
        }
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_has_a_target_for_each_extent() {
        let extents = [Extent { file: 1, offset: 0, len: 4096 }, Extent { file: 0, offset: 8192, len: 512 }];
        let (targets, bytes) = table(&[3, 14], &extents).unwrap();
        assert_eq!((targets, bytes.len()), (2, 48 + 48));
        let text = |at: usize, text: &str| assert_eq!(&bytes[at..at + text.len()], text.as_bytes());
        text(24, "linear\0");
        text(40, "7:14 0\0");
        text(48 + 40, "7:3 16\0");
        assert_eq!([bytes[0], bytes[8], bytes[20], bytes[48], bytes[56]], [0, 8, 48, 8, 1]);
        for wrong in [
            Extent { file: 2, offset: 0, len: 512 },
            Extent { file: 0, offset: 0, len: 100 },
            Extent { file: 0, offset: 1, len: 512 },
            Extent { file: 0, offset: 0, len: 0 },
        ] {
            table(&[3, 14], &[wrong]).unwrap_err();
        }
    }

    #[test]
    fn a_list_of_devices_is_read() {
        let mut bytes = vec![0; 8];
        assert_eq!(names_in(&bytes), [""; 0]);
        bytes = vec![0; 16];
        assert_eq!(names_in(&bytes), [""; 0]);
        bytes = Vec::new();
        for (number, next, name) in [(1_u64, 24_u32, "nxl-3-51712\0"), (2, 0, "vg-root\0\0\0\0\0")] {
            bytes.extend_from_slice(&number.to_le_bytes());
            bytes.extend_from_slice(&next.to_le_bytes());
            bytes.extend_from_slice(name.as_bytes());
        }
        assert_eq!(names_in(&bytes), ["nxl-3-51712", "vg-root"]);
        // What leads out of the list ends it.
        bytes[8] = 250;
        assert_eq!(names_in(&bytes), ["nxl-3-51712"]);
    }

    #[test]
    fn a_request_is_laid_out_as_the_kernel_reads_it() {
        let request = Request::new(DEV_CREATE, "nxl-3-51712", READ_ONLY, b"behind", 0).unwrap();
        let bytes = request.bytes();
        assert_eq!(bytes.len(), 320);
        assert_eq!((request.u32(0), request.u32(12), request.u32(16), request.u32(28)), (4, 320, 312, 1));
        assert_eq!(&bytes[48..60], b"nxl-3-51712\0");
        assert_eq!(&bytes[312..], b"behind\0\0");
        assert!(Request::new(DEV_CREATE, &"x".repeat(128), 0, &[], 0).is_err());
    }
}
