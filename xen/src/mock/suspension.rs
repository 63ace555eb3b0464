//! Suspended domains of the mock: the stream has their frames, as far as there is anything in them, and the two rings.

use super::control::{Control, Domain};
use crate::suspension::{RestoredRings, RingEnds, Suspension};
use crate::{DomId, Error, Gfn, HvmParam, PAGE_SIZE, Pfn, Populate, Result, ShutdownReason};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::BorrowedFd;

/// The stream begins with this and has little-endian numbers of 8 bytes, but for the pages' contents.
const MAGIC: &[u8; 8] = b"mockdomn";
/// Pages that are looked at in one go.
const AT_ONCE: u64 = 512;

/// An error's errno, as the C library would leave it.
fn errno(error: &io::Error) -> i32 {
    error.raw_os_error().unwrap_or(libc::EINVAL)
}

fn write_state(domain: &Domain, to: &mut impl Write) -> io::Result<()> {
    let mut put = |number: u64| to.write_all(&number.to_le_bytes());
    put(u64::from_le_bytes(*MAGIC))?;
    put(domain.pv.is_none().into())?;
    let rings = [HvmParam::StorePfn, HvmParam::ConsolePfn];
    let frames: Vec<(u64, u64)> = domain.runs().collect();
    for (nth, ring) in rings.into_iter().enumerate() {
        // A PV domain's are somewhere among its frames.
        let first = frames.first().map_or(0, |(start, _)| start + nth as u64);
        put(domain.param(ring).unwrap_or(first))?;
    }
    put(frames.len() as u64)?;
    for (start, len) in &frames {
        put(*start)?;
        put(*len)?;
    }
    let mut filled = Vec::new();
    for (start, len) in frames {
        for at in (start..start + len).step_by(AT_ONCE as usize) {
            let count = AT_ONCE.min(start + len - at);
            let memory = domain.memory().read(at * PAGE_SIZE as u64, count as usize * PAGE_SIZE);
            let pages = (at..).zip(memory.chunks_exact(PAGE_SIZE));
            let pages = pages.filter(|(_, page)| page.iter().any(|byte| *byte != 0));
            filled.extend(pages.map(|(frame, page)| (frame, page.to_vec())));
        }
    }
    to.write_all(&(filled.len() as u64).to_le_bytes())?;
    for (frame, page) in filled {
        to.write_all(&frame.to_le_bytes())?;
        to.write_all(&page)?;
    }
    Ok(())
}

fn number(from: &mut impl Read) -> io::Result<u64> {
    let mut bytes = [0; 8];
    from.read_exact(&mut bytes)?;
    Ok(u64::from_le_bytes(bytes))
}

impl Control {
    fn read_state(&self, domid: DomId, ends: RingEnds, from: &mut impl Read) -> Result<RestoredRings> {
        let args = || format!("domid {domid}");
        let failed = |error: io::Error| Error::errno("xc_domain_restore", args(), errno(&error));
        let refused = |number| Error::errno("xc_domain_restore", args(), number);
        let mut next = || number(from).map_err(failed);
        if next()? != u64::from_le_bytes(*MAGIC) {
            return Err(refused(libc::EINVAL));
        }
        let is_pvh = next()? != 0;
        let (store, console) = (next()?, next()?);
        for _ in 0..next()? {
            let (start, len) = (next()?, next()?);
            let frames = start..start.saturating_add(len);
            let made = if is_pvh {
                let gfns: Vec<Gfn> = frames.map(Gfn).collect();
                self.populate_for_restore(domid, &gfns)?
            } else {
                let pfns: Vec<Pfn> = frames.map(Pfn).collect();
                crate::DomainControl::populate_pv(self, domid, 0, &pfns)?.len()
            };
            if made as u64 != len {
                return Err(refused(libc::ENOMEM));
            }
        }
        let filled = next()?;
        for _ in 0..filled {
            let frame = number(from).map_err(failed)?;
            let mut page = [0; PAGE_SIZE];
            from.read_exact(&mut page).map_err(failed)?;
            self.on_domain("mock", domid, "", |domain, _| {
                domain.memory().write(frame, &page).map_err(|_| libc::EINVAL)
            })?;
        }
        let machine_frame = |frame| {
            self.on_domain("mock", domid, "", |domain, _| match domain.pv() {
                None => Ok(Gfn(frame)),
                Some(pv) => {
                    let run = pv.runs().find(|(_, pfn, len)| (*pfn..pfn + len).contains(&frame));
                    run.map(|(gfn, pfn, _)| Gfn(gfn + frame - pfn)).ok_or(libc::EINVAL)
                }
            })
        };
        if is_pvh {
            for (param, value) in [
                (HvmParam::StorePfn, store),
                (HvmParam::ConsolePfn, console),
                (HvmParam::StoreEvtchn, ends.store.0.0.into()),
                (HvmParam::ConsoleEvtchn, ends.console.0.0.into()),
            ] {
                crate::DomainControl::set_hvm_param(self, domid, param, value)?;
            }
        }
        Ok(RestoredRings { store: machine_frame(store)?, console: machine_frame(console)? })
    }

    fn populate_for_restore(&self, domid: DomId, gfns: &[Gfn]) -> Result<usize> {
        crate::DomainControl::populate_physmap(self, domid, 0, gfns, Populate::Now)
    }
}

impl Suspension for Control {
    fn save_domain(&self, domid: DomId, to: BorrowedFd<'_>) -> Result<()> {
        self.on_domain("xc_domain_save", domid, "", |domain, _| {
            if domain.shutdown_reason() != Some(ShutdownReason::Suspend) {
                return Err(libc::EINVAL);
            }
            let file = to.try_clone_to_owned().map(File::from);
            file.and_then(|mut file| write_state(domain, &mut file)).map_err(|error| errno(&error))
        })
    }

    fn restore_domain(&self, domid: DomId, from: BorrowedFd<'_>, ends: RingEnds) -> Result<RestoredRings> {
        self.on_domain("xc_domain_restore", domid, "", |domain, _| {
            if domain.runs().next().is_some() { Err(libc::EINVAL) } else { Ok(()) }
        })?;
        let file = from.try_clone_to_owned().map(File::from);
        let mut file =
            file.map_err(|error| Error::new("xc_domain_restore", format!("domid {domid}"), error))?;
        self.read_state(domid, ends, &mut file)
    }

    fn resume_domain(&self, domid: DomId) -> Result<()> {
        self.on_domain("xc_domain_resume", domid, "", |domain, _| domain.resume())
    }
}

#[cfg(test)]
mod tests {
    use super::super::Machine;
    use crate::{Access, ForeignMemory, RingEnds, ShutdownReason};
    use crate::{
        CreateDomain, DomId, DomainControl, ErrorKind, Gfn, GuestKind, Pfn, Platform, Populate, Port,
    };
    use std::fs::File;
    use std::io::{Seek, Write};
    use std::os::fd::AsFd;
    use std::sync::Arc;

    const ENDS: RingEnds = RingEnds { store: (Port(1), DomId::DOM0), console: (Port(2), DomId::DOM0) };

    fn domain(control: &Arc<dyn DomainControl>, kind: GuestKind) -> DomId {
        let domid = control.create_domain(&CreateDomain::new(kind, [7; 16], 1)).unwrap();
        control.set_max_vcpus(domid, 1).unwrap();
        control.set_max_mem(domid, 64 << 2).unwrap();
        domid
    }

    fn in_memory() -> File {
        rustix::fs::memfd_create("stream", rustix::fs::MemfdFlags::CLOEXEC).unwrap().into()
    }

    fn open(machine: &Machine) -> (Arc<dyn DomainControl>, Arc<dyn ForeignMemory>) {
        let dom0 = machine.domain(DomId::DOM0);
        (dom0.domain_control().unwrap(), dom0.foreign_memory().unwrap())
    }

    #[test]
    fn a_new_domain_has_what_a_suspended_one_had_and_the_stream_is_read_to_its_end() {
        for kind in [GuestKind::Pvh, GuestKind::Pv] {
            let machine = Machine::new();
            let (control, foreign) = open(&machine);
            let old = domain(&control, kind);
            let frame = match kind {
                GuestKind::Pvh => {
                    control.populate_physmap(old, 0, &[Gfn(3), Gfn(4)], Populate::Now).unwrap();
                    Gfn(4)
                }
                GuestKind::Pv => control.populate_pv(old, 0, &[Pfn(3), Pfn(4)]).unwrap()[1],
            };
            foreign.map(old, &[frame], Access::ReadWrite).unwrap().copy_from(0, b"kept");
            let mut file = in_memory();
            let error = control.save_domain(old, file.as_fd()).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Invalid, "it is not suspended");
            machine.shut_down(old, ShutdownReason::Suspend);
            control.save_domain(old, file.as_fd()).unwrap();
            let end = file.stream_position().unwrap();
            file.write_all(b"what follows").unwrap();
            file.rewind().unwrap();
            let new = domain(&control, kind);
            control.restore_domain(new, file.as_fd(), ENDS).unwrap();
            assert_eq!(file.stream_position().unwrap(), end);
            let guest = machine.guest(new).unwrap();
            assert_eq!((guest.pages, guest.read(4 << 12, 4)), (2, b"kept".to_vec()));
        }
    }

    #[test]
    fn a_suspended_domain_goes_on_and_no_other() {
        let machine = Machine::new();
        let (control, _) = open(&machine);
        let domid = domain(&control, GuestKind::Pvh);
        assert_eq!(control.resume_domain(domid).unwrap_err().kind(), ErrorKind::Invalid);
        machine.shut_down(domid, ShutdownReason::Suspend);
        control.resume_domain(domid).unwrap();
        assert_eq!(control.domain_info(domid).unwrap().shutdown, None);
    }

    #[test]
    fn a_stream_that_is_cut_or_none_is_an_error() {
        let machine = Machine::new();
        let (control, _) = open(&machine);
        let new = domain(&control, GuestKind::Pvh);
        for text in [&b""[..], b"mockdom", b"something else that is long enough"] {
            let mut file = in_memory();
            file.write_all(text).unwrap();
            file.rewind().unwrap();
            let error = control.restore_domain(new, file.as_fd(), ENDS).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Invalid);
        }
    }
}
