//! Diagnostics of the mock: a console that shows the keys that were pressed, and cores that are a line.

use super::Machine;
use super::control::Control;
use crate::{Diagnostics, DomId, Result, Trigger};
use std::path::Path;

/// Xen's console, and what was set off in domains.
#[derive(Debug, Default)]
pub(super) struct Console {
    text: String,
    triggers: Vec<(DomId, Trigger, u32)>,
}

impl Machine {
    /// What was set off, in which domain and on which vCPU.
    #[must_use]
    pub fn triggers(&self) -> Vec<(DomId, Trigger, u32)> {
        self.0.state.lock().console.triggers.clone()
    }
}

impl Diagnostics for Control {
    fn console_ring(&self, clear: bool) -> Result<Vec<u8>> {
        self.0.enter_hypercalls("xc_readconsolering", if clear { 3 } else { 2 }, String::new)?;
        let mut state = self.0.0.state.lock();
        let text = state.console.text.clone();
        if clear {
            state.console.text.clear();
        }
        Ok(text.into_bytes())
    }

    fn send_debug_keys(&self, keys: &str) -> Result<()> {
        self.0.enter("xc_send_debug_keys", || keys.to_owned())?;
        let mut state = self.0.0.state.lock();
        state.console.text.extend(keys.chars().map(|key| format!("(XEN) '{key}' pressed\n")));
        Ok(())
    }

    fn send_trigger(&self, domid: DomId, trigger: Trigger, vcpu: u32) -> Result<()> {
        let args = format!("{trigger:?}, vCPU {vcpu}");
        self.on_domain("xc_domain_send_trigger", domid, &args, |domain, _| match trigger {
            Trigger::Nmi | Trigger::Init if vcpu >= domain.vcpus => Err(libc::ESRCH),
            Trigger::Nmi | Trigger::Init => Ok(()),
            // No buttons without a device model, and no reset at all.
            Trigger::Power | Trigger::Sleep | Trigger::Reset => Err(libc::ENOSYS),
        })?;
        self.0.0.state.lock().console.triggers.push((domid, trigger, vcpu));
        Ok(())
    }

    fn dump_core(&self, domid: DomId, file: &Path) -> Result<()> {
        let args = file.display().to_string();
        self.on_domain("xc_domain_dumpcore", domid, &args, |domain, _| {
            let text = format!("domain {domid}, {} vCPUs\n", domain.vcpus);
            std::fs::write(file, text).map_err(|error| error.raw_os_error().unwrap_or(libc::EIO))
        })
    }

    fn security_label(&self, ssidref: u32) -> Result<Option<String>> {
        self.0.enter("xc_flask_sid_to_context", || format!("id {ssidref}"))?;
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ErrorKind, Platform};

    #[test]
    fn pressed_keys_are_on_the_console_until_it_is_cleared() {
        let machine = Machine::new();
        let control = machine.domain(DomId::DOM0).domain_control().unwrap();
        control.send_debug_keys("hq").unwrap();
        let text = b"(XEN) 'h' pressed\n(XEN) 'q' pressed\n";
        assert_eq!(control.console_ring(false).unwrap(), text);
        assert_eq!(control.console_ring(true).unwrap(), text);
        assert_eq!(control.console_ring(false).unwrap(), b"");
        let error = control.send_trigger(DomId(9), Trigger::Nmi, 0).unwrap_err();
        assert_eq!((error.kind(), machine.triggers()), (ErrorKind::NotFound, vec![]));
    }
}
