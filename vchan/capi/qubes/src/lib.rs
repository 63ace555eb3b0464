//! `libvchan-xen.so`: Qubes' C interface to vchan, over ours. `docs/c-libraries.md` says what differs.
#![allow(unsafe_code, reason = "the C ABI: pointers that callers give, and names for the linker")]

mod connecting;

use c_channel::{Channel, Failure, Handles, Outcome, State, domid, guard};
use connecting::Connecting;
use parking_lot::Mutex;
use rustix::event::{PollFd, PollFlags, poll};
use std::ffi::{c_char, c_int, c_void};
use std::ptr;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};
use vchan::Side;

static HANDLES: Handles = Handles::new();

const DISCONNECTED: c_int = 0;
const CONNECTED: c_int = 1;
const WAITING: c_int = 2;

/// The end of a domain is told to nobody, and costs a hypercall and two requests to xenstored to see: it is looked for
/// so often at most, when a caller wants to know whether the channel is open.
const PROBE_INTERVAL: Duration = Duration::from_secs(1);

/// `libvchan_t`.
struct Vchan {
    /// Once there is one: a client's server may not have appeared yet.
    channel: OnceLock<Arc<Channel>>,
    connecting: Mutex<Option<Connecting>>,
    blocking: AtomicBool,
    /// A server's keys are in xenstore, where Qubes wants them gone once a client came.
    published: AtomicBool,
    /// When it was last looked whether the peer's domain exists.
    probed: Mutex<Instant>,
}

impl Vchan {
    fn new(channel: Option<Arc<Channel>>, connecting: Option<Connecting>) -> Self {
        let published = AtomicBool::new(channel.is_some());
        Self {
            channel: channel.map(OnceLock::from).unwrap_or_default(),
            connecting: Mutex::new(connecting),
            blocking: AtomicBool::new(true),
            published,
            probed: Mutex::new(Instant::now()),
        }
    }

    fn channel(&self) -> Outcome<&Arc<Channel>> {
        self.channel.get().ok_or_else(|| Failure::new(libc::EAGAIN, "the server has not appeared yet"))
    }

    fn is_open(&self) -> Outcome<c_int> {
        let Some(channel) = self.channel.get() else { return Ok(WAITING) };
        let open = match channel.state()? {
            State::Closed => return Ok(DISCONNECTED),
            State::Open => CONNECTED,
            State::Waiting => WAITING,
        };
        if let Some(mut probed) = self.probed.try_lock()
            && probed.elapsed() >= PROBE_INTERVAL
        {
            *probed = Instant::now();
            channel.probe()?;
        }
        Ok(open)
    }

    fn wait(&self, timeout: Option<Duration>) -> Outcome<c_int> {
        let Some(channel) = self.channel.get() else { return Ok(0) };
        let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        let awaits_client =
            || channel.side() == Side::Server && matches!(channel.state(), Ok(State::Waiting));
        loop {
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            match channel.wait(left) {
                // A server that waits for its client goes on waiting.
                Err(failure) if failure.errno() == libc::EINTR && awaits_client() => {}
                Err(failure) => return Err(failure),
                Ok(()) => break,
            }
        }
        if self.published.load(Relaxed) && !awaits_client() && self.published.swap(false, Relaxed) {
            // The client has what it needs. Keys that cannot be removed now are when the channel is closed.
            let _ = channel.unpublish().and_then(|()| channel.prune());
        }
        Ok(0)
    }
}

/// # Safety
/// `ctrl` is null or was returned by one of the functions that make handles, and is not being closed.
#[inline]
unsafe fn find<'a>(ctrl: *const Vchan) -> Outcome<&'a Vchan> {
    HANDLES.check(ctrl)?;
    // SAFETY: it is in the table of live handles, all of them of this type; the caller's word that it stays one.
    Ok(unsafe { &*ctrl })
}

/// Runs an operation whose result is a number of bytes.
///
/// # Safety
/// As [`find`].
#[inline]
unsafe fn bytes(ctrl: *const Vchan, operation: impl FnOnce(&Arc<Channel>, bool) -> Outcome<usize>) -> c_int {
    guard(-1, || {
        // SAFETY: the caller's word.
        let vchan = unsafe { find(ctrl) }?;
        let count = operation(vchan.channel()?, vchan.blocking.load(Relaxed))?;
        Ok(c_int::try_from(count).unwrap_or(c_int::MAX))
    })
}

/// How many bytes there are; 0 while the server has not appeared.
///
/// # Safety
/// As [`find`].
unsafe fn amount(ctrl: *const Vchan, operation: impl FnOnce(&Arc<Channel>, bool) -> Outcome<usize>) -> c_int {
    guard(-1, || {
        // SAFETY: the caller's word.
        let vchan = unsafe { find(ctrl) }?;
        let Some(channel) = vchan.channel.get() else { return Ok(0) };
        let count = operation(channel, vchan.blocking.load(Relaxed))?;
        Ok(c_int::try_from(count).unwrap_or(c_int::MAX))
    })
}

fn port(port: c_int) -> Outcome<u32> {
    u32::try_from(port).map_err(|_| Failure::new(libc::EINVAL, format!("{port} is no port")))
}

#[unsafe(no_mangle)]
extern "C" fn libvchan_server_init(
    domain: c_int,
    port_number: c_int,
    read_min: usize,
    write_min: usize,
) -> *mut Vchan {
    guard(ptr::null_mut(), || {
        let path = format!("data/vchan/{domain}/{}", port(port_number)?);
        let (channel, _) = Channel::listen(domid(domain)?, &path, read_min, write_min)?;
        Ok(HANDLES.open(Vchan::new(Some(channel), None)))
    })
}

#[unsafe(no_mangle)]
extern "C" fn libvchan_client_init(domain: c_int, port_number: c_int) -> *mut Vchan {
    guard(ptr::null_mut(), || {
        let mut connecting = Connecting::new(domid(domain)?, port(port_number)?)?;
        loop {
            if let Some((channel, _)) = connecting.attempt()? {
                let vchan = Vchan::new(None, None);
                let _ = vchan.channel.set(channel);
                return Ok(HANDLES.open(vchan));
            }
            // SAFETY: the descriptor is the connection's, which outlives the call.
            let watch = unsafe { c_channel::descriptor(connecting.descriptor()) }?;
            match poll(&mut [PollFd::from_borrowed_fd(watch, PollFlags::IN)], None) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(errno) => return Err(Failure::new(errno.raw_os_error(), format!("poll: {errno}"))),
            }
        }
    })
}

#[unsafe(no_mangle)]
extern "C" fn libvchan_client_init_async(
    domain: c_int,
    port_number: c_int,
    watch_fd: *mut c_int,
) -> *mut Vchan {
    guard(ptr::null_mut(), || {
        if watch_fd.is_null() {
            return Err(Failure::new(libc::EINVAL, "watch_fd is a null pointer"));
        }
        let connecting = Connecting::new(domid(domain)?, port(port_number)?)?;
        // SAFETY: not null; the caller's word that it may be written.
        unsafe { watch_fd.write(connecting.descriptor()) };
        Ok(HANDLES.open(Vchan::new(None, Some(connecting))))
    })
}

#[unsafe(no_mangle)]
extern "C" fn libvchan_client_init_async_finish(ctrl: *mut Vchan, blocking: bool) -> c_int {
    guard(-1, || {
        // SAFETY: the caller's handle.
        let vchan = unsafe { find(ctrl) }?;
        let mut connecting = vchan.connecting.lock();
        let Some(attempt) = &mut *connecting else {
            return Err(Failure::new(libc::EINVAL, "nothing is to be finished"));
        };
        let Some((channel, _)) = attempt.attempt()? else { return Ok(1) };
        *connecting = None;
        vchan.blocking.store(blocking, Relaxed);
        let _ = vchan.channel.set(channel);
        Ok(0)
    })
}

#[unsafe(no_mangle)]
extern "C" fn libvchan_close(ctrl: *mut Vchan) {
    if ctrl.is_null() {
        return;
    }
    guard((), || {
        // SAFETY: all handles in the table are of this type; who closes a handle uses it no more.
        let mut vchan = unsafe { HANDLES.close(ctrl) }?;
        let Some(channel) = vchan.channel.take() else { return Ok(()) };
        if vchan.published.load(Relaxed) {
            let _ = channel.unpublish().and_then(|()| channel.prune());
        }
        channel.close();
        Ok(())
    });
}

#[unsafe(no_mangle)]
extern "C" fn libvchan_write(ctrl: *mut Vchan, data: *const c_void, size: usize) -> c_int {
    // SAFETY: the caller's handle, and its bytes.
    unsafe { bytes(ctrl, |channel, blocking| channel.write(c_channel::bytes(data, size)?, blocking)) }
}

#[unsafe(no_mangle)]
extern "C" fn libvchan_send(ctrl: *mut Vchan, data: *const c_void, size: usize) -> c_int {
    // SAFETY: the caller's handle, and its bytes.
    unsafe { bytes(ctrl, |channel, blocking| channel.send(c_channel::bytes(data, size)?, blocking)) }
}

#[unsafe(no_mangle)]
extern "C" fn libvchan_read(ctrl: *mut Vchan, data: *mut c_void, size: usize) -> c_int {
    // SAFETY: the caller's handle, and its buffer of that size.
    unsafe { bytes(ctrl, |channel, blocking| channel.read(c_channel::bytes_mut(data, size)?, blocking)) }
}

#[unsafe(no_mangle)]
extern "C" fn libvchan_recv(ctrl: *mut Vchan, data: *mut c_void, size: usize) -> c_int {
    // SAFETY: the caller's handle, and its buffer of that size.
    unsafe { bytes(ctrl, |channel, blocking| channel.recv(c_channel::bytes_mut(data, size)?, blocking)) }
}

#[unsafe(no_mangle)]
extern "C" fn libvchan_wait(ctrl: *mut Vchan) -> c_int {
    // SAFETY: the caller's handle.
    guard(-1, || unsafe { find(ctrl) }?.wait(None))
}

#[unsafe(no_mangle)]
extern "C" fn libvchan_fd_for_select(ctrl: *mut Vchan) -> c_int {
    // SAFETY: the caller's handle.
    guard(-1, || unsafe { find(ctrl) }?.channel()?.descriptor())
}

#[unsafe(no_mangle)]
extern "C" fn libvchan_is_open(ctrl: *mut Vchan) -> c_int {
    // SAFETY: the caller's handle. To callers, what is not open is disconnected; why is in errno.
    guard(DISCONNECTED, || unsafe { find(ctrl) }?.is_open())
}

#[unsafe(no_mangle)]
extern "C" fn libvchan_data_ready(ctrl: *mut Vchan) -> c_int {
    // SAFETY: the caller's handle.
    unsafe { amount(ctrl, |channel, blocking| channel.data_ready(blocking)) }
}

#[unsafe(no_mangle)]
extern "C" fn libvchan_buffer_space(ctrl: *mut Vchan) -> c_int {
    // SAFETY: the caller's handle.
    unsafe { amount(ctrl, |channel, blocking| channel.buffer_space(blocking)) }
}

#[unsafe(no_mangle)]
extern "C" fn libvchan_set_blocking(ctrl: *mut Vchan, blocking: bool) {
    guard((), || {
        // SAFETY: the caller's handle.
        let vchan = unsafe { find(ctrl) }?;
        vchan.channel()?;
        vchan.blocking.store(blocking, Relaxed);
        Ok(())
    });
}

/// The handle of libxenctrl is not used: an event channel tells as much.
#[unsafe(no_mangle)]
extern "C" fn libvchan__check_domain_alive(_xc_handle: *mut c_void, dom: c_int) -> c_int {
    // Who cannot find out does not declare anybody dead.
    guard(1, || Ok(c_channel::is_alive(domid(dom)?)?.into()))
}

#[unsafe(no_mangle)]
extern "C" fn libvchan_read_from_fd(ctrl: *mut Vchan, fd: c_int, max: usize) -> c_int {
    // SAFETY: the caller's handle and its descriptor.
    unsafe {
        bytes(ctrl, |channel, blocking| channel.read_from_fd(c_channel::descriptor(fd)?, max, blocking))
    }
}

#[unsafe(no_mangle)]
extern "C" fn libvchan_write_to_fd(ctrl: *mut Vchan, fd: c_int, max: usize) -> c_int {
    // SAFETY: the caller's handle and its descriptor.
    unsafe { bytes(ctrl, |channel, blocking| channel.write_to_fd(c_channel::descriptor(fd)?, max, blocking)) }
}

#[unsafe(no_mangle)]
extern "C" fn libvchan_wait_timeout(ctrl: *mut Vchan, milliseconds: c_int) -> c_int {
    let timeout = u64::try_from(milliseconds).ok().map(Duration::from_millis);
    // SAFETY: the caller's handle.
    guard(-1, || unsafe { find(ctrl) }?.wait(timeout))
}

#[unsafe(no_mangle)]
extern "C" fn libvchan_last_error(error: *mut c_int) -> *const c_char {
    // SAFETY: the caller's number, if it wants one.
    unsafe { c_channel::last_error(error) }
}
