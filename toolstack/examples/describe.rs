//! Reads an xl.cfg as `nxl create` does, and says what would be made: libxl's JSON, as `xl create -n` prints it.
//!
//! ```text
//! cargo run -p tesseraqt-toolstack --example describe                     # of a configuration in here
//! cargo run -p tesseraqt-toolstack --example describe -- work.cfg memory=1024
//! ```
//! No Xen is needed, and none of the files that the configuration names.
#![forbid(unsafe_code)]
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "it says what it read")]

use toolstack::config::{QubeConfig, Settings};

const WORK: &str = r#"
    name = "work"
    type = "pvh"
    uuid = "d5f1129b-3f6a-4d84-b438-cfa95b7402d7"
    kernel = "/boot/vmlinuz"
    ramdisk = "/boot/initrd.img"
    extra = "console=hvc0"
    memory = 512
    vcpus = 2
    disk = [ "/img/store.img,raw,xvda,r", "/img/work.img,raw,xvdb,w" ]
    vif = [ "bridge=xenbr0,mac=00:16:3e:00:00:01" ]
"#;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let (source, text) = match arguments.next() {
        Some(path) => (path.clone(), std::fs::read(path)?),
        None => ("the configuration of this example".to_owned(), WORK.into()),
    };
    // Settings of the command line override those of the file.
    let overrides: Vec<String> = arguments.collect();
    // An error of either names line and column, and of a misspelt key what was meant.
    let settings = Settings::parse(&source, &text, &overrides)?;
    // `described` takes a configuration that no qube could be made with, too; without a Xen, nothing is known of its CPUs.
    let (config, warnings) = QubeConfig::described(&source, &settings, None)?;
    for warning in warnings {
        eprintln!("warning: {warning}");
    }
    print!("{}", config.to_libxl_json());
    Ok(())
}
