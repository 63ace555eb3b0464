//! What the tests of both builders build with.

use super::{BuildError, Built, Initrd, Limits, Payload, Plan, build};
use crate::image::Kernel;
use std::fs::File;
use std::io::{Seek, Write};
use xen::mock::Machine;
use xen::{DomId, Platform, TscMode};

pub(super) const LIMITS: Limits = Limits {
    max_event_channel_port: 1_023,
    max_grant_frames: None,
    max_maptrack_frames: None,
    max_grant_version: 2,
    iommu: false,
    tsc_mode: TscMode::Default,
};
pub(super) const INITRD: &[u8] = b"070701 an initrd";

pub(super) fn initrd() -> File {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(INITRD).unwrap();
    file.rewind().unwrap();
    file
}

/// Builds a plan in dom0 of a machine, with this initrd.
pub(super) fn build_from(
    machine: &Machine,
    plan: &Plan,
    kernel: Kernel<'_>,
    initrd: &File,
) -> Result<Built, BuildError> {
    let dom0 = machine.domain(DomId::DOM0);
    let (control, foreign) = (dom0.domain_control()?, dom0.foreign_memory()?);
    let payload =
        Payload { kernel: (kernel, "kernel".into()), initrd: Some((Initrd::File(initrd), "initrd".into())) };
    Ok(build(plan, [7; 16], LIMITS, payload, (DomId(0), DomId(0)), &*control, &*foreign)?.0)
}
