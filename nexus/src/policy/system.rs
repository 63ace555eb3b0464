//! What a decision needs to know of the qubes: a plain value, given in by whoever asks.
//!
//! As JSON (`nxl policy --system FILE`):
//!
//! ```json
//! {
//!   "qubes": {
//!     "work": {
//!       "type": "AppVM",
//!       "uuid": "12345678-abcd-abcd-abcd-12345678abcd",
//!       "tags": ["office"],
//!       "running": true,
//!       "default_dispvm": "office-dvm",
//!       "template_for_dispvms": false,
//!       "declared": false,
//!       "disposable_of": null,
//!       "containers": ["mail", "web"]
//!     }
//!   }
//! }
//! ```
//!
//! Every key but `type` may be left out. dom0 need not be listed unless it has containers; tags and a type that are given for
//! it match nothing.

use super::call::Principal;
use super::token::{Place, Qube};
use crate::name::Name;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use uuid::Uuid;

/// The name of the administrative domain.
pub const DOM0: &str = "dom0";

/// The qubes that there are.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct System {
    /// By name.
    pub qubes: BTreeMap<Name, QubeInfo>,
    /// The qube whose own policy this is: only calls within it are decided then. None: this is dom0, and only calls from
    /// one qube to another are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub within: Option<Name>,
}

/// One of them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct QubeInfo {
    /// Its class: AppVM, DispVM, StandaloneVM, TemplateVM, RemoteVM.
    #[serde(rename = "type")]
    pub class: Name,
    /// Its UUID.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uuid: Option<Uuid>,
    /// Its tags.
    #[serde(default)]
    pub tags: BTreeSet<Name>,
    /// Whether it runs. Default: yes.
    #[serde(default = "yes")]
    pub running: bool,
    /// What `@dispvm` is made from when it calls.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub default_dispvm: Option<Name>,
    /// Whether disposable qubes may be made from it.
    #[serde(default)]
    pub template_for_dispvms: bool,
    /// Whether `nxl apply` has declared it: what is made of it, `nxl disposable` knows.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub declared: bool,
    /// For a disposable qube: what it was made from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disposable_of: Option<Name>,
    /// The containers that dom0 gave it.
    #[serde(default)]
    pub containers: BTreeSet<Name>,
    /// For a RemoteVM: the qube that calls in its name, and by which it is called.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub relayvm: Option<Name>,
    /// For a RemoteVM: the relay's service that takes calls there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub transport_rpc: Option<Name>,
}

fn yes() -> bool {
    true
}

impl QubeInfo {
    /// A running AppVM of which nothing else is known.
    pub fn app_vm() -> Self {
        Self {
            class: Name::from_static("AppVM"),
            uuid: None,
            tags: BTreeSet::new(),
            running: true,
            default_dispvm: None,
            template_for_dispvms: false,
            declared: false,
            disposable_of: None,
            containers: BTreeSet::new(),
            relayvm: None,
            transport_rpc: None,
        }
    }

    /// Whether it is a qube of another host.
    pub fn is_remote(&self) -> bool {
        self.class == "RemoteVM"
    }
}

impl System {
    /// A qube and what is known of it.
    pub fn qube(&self, qube: &Qube) -> Option<(&Name, &QubeInfo)> {
        match qube {
            Qube::Name(name) => self.qubes.get_key_value(name),
            Qube::Uuid(uuid) => self.qubes.iter().find(|(_, info)| info.uuid == Some(*uuid)),
        }
    }

    /// The same place with names for UUIDs and the caller's kind of disposable for `@dispvm`; `None` if there is no
    /// such place.
    pub fn resolve(&self, place: &Place, source: &Principal) -> Option<Place> {
        let base = |name: &Name| {
            let info = self.qubes.get(name)?;
            info.template_for_dispvms.then(|| Place::DispVmOf(Qube::Name(name.clone())))
        };
        match place {
            Place::AdminVm => Some(Place::AdminVm),
            // dom0 is the admin VM also where its UUID or a listing says it.
            Place::Qube(qube) => match self.qube(qube)? {
                (name, _) if name == DOM0 => Some(Place::AdminVm),
                (name, _) => Some(Place::Qube(Qube::Name(name.clone()))),
            },
            Place::Container { qube, container } => {
                self.qubes.get(qube)?.containers.contains(container).then(|| place.clone())
            }
            Place::DispVm => base(self.qubes.get(source.qube_name())?.default_dispvm.as_ref()?),
            Place::DispVmOf(qube) => base(self.qube(qube)?.0),
        }
    }

    /// Whether it is there and runs now. A disposable that is still to be made does not.
    pub fn runs(&self, place: &Place) -> bool {
        match place {
            Place::AdminVm => true,
            Place::Qube(qube) => self.qube(qube).is_some_and(|(_, info)| info.running),
            Place::Container { qube, .. } => {
                qube == DOM0 || self.qubes.get(qube).is_some_and(|info| info.running)
            }
            Place::DispVm | Place::DispVmOf(_) => false,
        }
    }

    /// Every place that a call could go to, `@dispvm` among them.
    pub fn places(&self) -> Vec<Place> {
        let mut places = vec![Place::AdminVm, Place::DispVm];
        for (name, info) in &self.qubes {
            if name != DOM0 {
                places.push(Place::Qube(Qube::Name(name.clone())));
                if info.template_for_dispvms {
                    places.push(Place::DispVmOf(Qube::Name(name.clone())));
                }
            }
            places.extend(
                info.containers
                    .iter()
                    .map(|container| Place::Container { qube: name.clone(), container: container.clone() }),
            );
        }
        places
    }

    /// Everybody who could call, without dom0 itself.
    pub fn principals(&self) -> Vec<Principal> {
        let mut principals = Vec::new();
        for (name, info) in &self.qubes {
            if name != DOM0 {
                principals.push(Principal::Qube(name.clone()));
            }
            principals.extend(
                info.containers.iter().map(|container| Principal::Container {
                    qube: name.clone(),
                    container: container.clone(),
                }),
            );
        }
        principals
    }
}

impl PartialEq<&str> for Name {
    fn eq(&self, other: &&str) -> bool {
        self.as_str() == *other
    }
}
