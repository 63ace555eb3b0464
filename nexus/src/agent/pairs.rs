//! The pair channels of an agent: made at the first call, and kept.

use super::pair::{Broken, Pair, Windows};
use crate::wire::control::Role;
use crate::wire::pair::PAIR_PORT;
use serde::Deserialize;
use std::cell::RefCell;
use std::collections::HashMap;
use std::io;
use std::rc::Rc;
use std::time::Duration;
use tokio::sync::OnceCell;
use tokio::task::{spawn_blocking, spawn_local};
use tokio::time::{MissedTickBehavior, interval};
use vchan::{Channel, ConnectOptions, ListenOptions, Listener};
use xen::host::Host;
use xen::{DomId, ErrorKind, Platform};

/// The sizes of each ring, in bytes: the first that the domain may grant.
const RINGS: [usize; 4] = [1 << 20, 1 << 18, 1 << 16, 1 << 12];
/// How long the caller's agent may take to offer a channel.
const COMING: Duration = Duration::from_secs(10);
/// How often channels are looked after: the peer's end is noticed within 2 s.
const TICK: Duration = Duration::from_secs(1);

/// How the channels to other qubes are kept and used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ChannelSettings {
    /// Seconds that a channel without calls is kept; at 0 it ends within a second.
    pub keep_seconds: u64,
    /// Milliseconds that a call that is alone may leave its bytes in the ring while its socket has no room: so they need not be kept.
    pub hold_milliseconds: u64,
}

impl Default for ChannelSettings {
    fn default() -> Self {
        Self { keep_seconds: 600, hold_milliseconds: 2 }
    }
}

impl ChannelSettings {
    pub(super) fn keep(self) -> Duration {
        Duration::from_secs(self.keep_seconds)
    }

    pub(super) fn hold(self) -> Duration {
        Duration::from_millis(self.hold_milliseconds)
    }
}

type Slot = Rc<OnceCell<Rc<Pair>>>;

/// By the peer's domain, and by which end of the calls is here.
#[derive(Debug, Default)]
pub(super) struct Pairs {
    settings: ChannelSettings,
    slots: RefCell<HashMap<(u16, Role), Slot>>,
    windows: Rc<Windows>,
    own: OnceCell<u16>,
}

impl Pairs {
    pub(super) fn new(settings: ChannelSettings) -> Self {
        Self { settings, ..Self::default() }
    }

    /// The channel to a qube for calls whose end of that kind is here; made if there is none.
    pub(super) async fn get(self: &Rc<Self>, domain: u16, role: Role) -> io::Result<Rc<Pair>> {
        let key = (domain, role);
        let slot = {
            let mut slots = self.slots.borrow_mut();
            let slot = slots.entry(key).or_default();
            // Its driver is going to find that out, too.
            if slot.get().is_some_and(|pair| !pair.lives()) {
                *slot = Slot::default();
            }
            slot.clone()
        };
        let pair = slot
            .get_or_try_init(|| async {
                let own = match role {
                    Role::Caller => 0,
                    Role::Service => self.own().await?,
                };
                let channel = spawn_blocking(move || open(domain, own, role)).await??;
                let pair = Pair::new(channel, role, self.settings, &self.windows)?;
                self.look_after(key, pair.clone());
                Ok::<_, io::Error>(pair)
            })
            .await;
        if pair.is_err() {
            self.remove(key, &slot);
        }
        pair.cloned()
    }

    /// The channel, if there is one.
    pub(super) fn existing(&self, domain: u16, role: Role) -> Option<Rc<Pair>> {
        self.slots.borrow().get(&(domain, role)).and_then(|slot| slot.get().cloned())
    }

    /// dom0 says that a qube, or its agent, is gone. Those channels end that nobody has come to; others show it.
    pub(super) fn gone(&self, domain: u16) {
        for role in [Role::Caller, Role::Service] {
            if let Some(pair) = self.existing(domain, role).filter(|pair| !pair.is_connected()) {
                pair.end();
            }
        }
    }

    fn look_after(self: &Rc<Self>, key: (u16, Role), pair: Rc<Pair>) {
        let this = self.clone();
        spawn_local(async move {
            let broken = {
                let mut ticks = interval(TICK);
                ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
                let look = async {
                    loop {
                        ticks.tick().await;
                        if let Err(broken) = pair.look() {
                            return broken;
                        }
                    }
                };
                tokio::select! { broken = pair.drive() => broken, broken = look => broken }
            };
            pair.end();
            let slot = this.slots.borrow().get(&key).cloned();
            if let Some(slot) = slot.filter(|slot| slot.get().is_some_and(|other| Rc::ptr_eq(other, &pair))) {
                this.remove(key, &slot);
            }
            if !matches!(broken, Broken::Idle | Broken::Channel(vchan::Error::Closed)) {
                // Whose calls these were, their ends tell.
                super::complain(&format!("the channel with domain {}: {broken}", key.0));
            }
        });
    }

    fn remove(&self, key: (u16, Role), slot: &Slot) {
        let mut slots = self.slots.borrow_mut();
        if slots.get(&key).is_some_and(|other| Rc::ptr_eq(other, slot)) {
            slots.remove(&key);
        }
    }

    /// The id of the domain that this program runs in.
    pub(super) async fn own(&self) -> io::Result<u16> {
        let ask = || Ok::<_, io::Error>(vchan::own_domid(&*Host.xenstore()?)?.0);
        self.own.get_or_try_init(|| async { spawn_blocking(ask).await? }).await.copied()
    }
}

/// The caller's agent is the server.
fn open(domain: u16, own: u16, role: Role) -> io::Result<Channel> {
    let peer = DomId(domain);
    if role == Role::Service {
        // A channel that this end has ended, the peer may not have seen end: it makes another when it has.
        let options = ConnectOptions { wait: Some(COMING), unused_only: true, ..ConnectOptions::default() };
        return Ok(Channel::connect(&Host, peer, &format!("data/vchan/{own}/{PAIR_PORT}"), &options)?);
    }
    let path = format!("data/vchan/{domain}/{PAIR_PORT}");
    let mut result = Err(vchan::Error::Closed);
    for size in RINGS {
        let options = ListenOptions { read_min: size, write_min: size, ..ListenOptions::default() };
        result = Listener::open(&Host, peer, &path, &options).map(Listener::into_channel);
        match &result {
            // The domain has granted as many pages as it may.
            Err(vchan::Error::Xen(error)) if error.kind() == ErrorKind::Exhausted => {}
            _ => break,
        }
    }
    Ok(result?)
}
