//! What a byte between two domains is made of: one grants a page, the other maps it, writes into it, and sends an event.
//!
//! ```text
//! cargo run -p tesseraqt-xen --example share-a-page
//! ```
//! The two domains are a machine's in memory, which checks what Xen checks. On a Xen host, `xen::host::Host` takes the place of
//! either: both are a `Platform`.
#![forbid(unsafe_code)]
#![allow(clippy::print_stdout, reason = "it says what it does")]

use xen::mock::Machine;
use xen::{Access, DomId, Platform, Result};

const VAULT: DomId = DomId(1);
const WORK: DomId = DomId(2);

fn main() -> Result<()> {
    let machine = Machine::new();
    let (vault, work) = (machine.domain(VAULT), machine.domain(WORK));

    // The vault shares a page with work, and nobody else, and has a port that work may bind to.
    let shared = vault.grant_share()?.share_pages(WORK, 1, Access::ReadWrite)?;
    let events = vault.event_channels()?;
    let port = events.bind_unbound(WORK)?;
    println!("vault: grant {} and port {port} are for work", shared.grefs()[0]);

    // Another domain has no use for the reference.
    let refused = machine.domain(DomId(3)).grant_map()?.map(VAULT, shared.grefs(), Access::ReadWrite, None);
    println!("other: {}", refused.err().map_or_else(|| "mapped it".to_owned(), |error| error.to_string()));

    // Work maps it, writes, and sends an event.
    let mapped = work.grant_map()?.map(VAULT, shared.grefs(), Access::ReadWrite, None)?;
    let peer = work.event_channels()?;
    let back = peer.bind_interdomain(VAULT, port)?;
    mapped.copy_from(0, b"sign this");
    peer.notify(back)?;

    // The vault waits for the event, and copies before it looks: work could still write.
    let woken = events.pending()?;
    events.unmask(woken)?;
    let mut text = [0; 9];
    shared.memory().copy_to(0, &mut text);
    println!("vault: an event on port {woken}, and the page says {:?}", String::from_utf8_lossy(&text));

    drop((mapped, peer, shared, events));
    println!("left behind: {} lines of grants and ports", kept(&machine));
    Ok(())
}

/// What is left of grants and event channels.
fn kept(machine: &Machine) -> usize {
    machine.inventory().iter().filter(|line| line.starts_with("grant") || line.starts_with("port")).count()
}
