//! Boots a kernel as a PVH domain: `boot NAME KERNEL INITRD MEMORY_MIB VCPUS [WORD OF THE COMMAND LINE…]`, in dom0.

use std::error::Error;
use toolstack::UserData;
use toolstack::create::Specification;
use toolstack::qubes::Qubes;
use xen::Platform;
use xen::host::Host;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [name, kernel, initrd, memory, vcpus, cmdline @ ..] = arguments.as_slice() else {
        return Err("usage: boot NAME KERNEL INITRD MEMORY_MIB VCPUS [WORD…]".into());
    };
    let memory_kib = memory.parse::<u64>()? << 10;
    let vcpus = vcpus.parse()?;
    let specification = Specification {
        name: name.clone(),
        uuid: uuid::Uuid::new_v4(),
        memory_kib,
        max_memory_kib: memory_kib,
        vcpus,
        max_vcpus: vcpus,
        kernel: kernel.into(),
        initrd: Some(initrd.into()),
        cmdline: cmdline.join(" "),
        stored: "{}".to_owned(),
    };
    let qubes = Qubes::open(&Host, UserData::default())?;
    let qube = qubes.create(&specification, &*Host.foreign_memory()?)?;
    qubes.unpause(&qube)?;
    Ok(())
}
