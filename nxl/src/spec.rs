//! `qubes.json`: read for `plan`, `diff`, `apply` and `tree`, with what only the programs beside the toolstack can check:
//! the policy, and what agents are told.

use crate::error::Error;
use crate::xl_conf::XlConf;
use nexus::agent::Settings;
use nexus::broker::SYSTEM_FILE;
use nexus::name::Name;
use nexus::policy::parser::{self, Language, Statement};
use nexus::policy::{DOM0, Policy, QubeInfo, System};
use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use toolstack::config::QubeConfig;
use toolstack::generations::{Choice, Generations};
use toolstack::qubes::Qubes;
use toolstack::spec::{Document, Plan, PolicyFolder, Spec, SpecError, Wishes};
use toolstack::whole_file;

/// What was applied last on this host.
pub(crate) const APPLIED: &str = "/run/nxl/qubes.json";

/// A document, and what becomes of its qubes here.
pub(crate) struct Declared {
    pub(crate) spec: Spec,
    pub(crate) configs: BTreeMap<String, QubeConfig>,
    /// The system that each NixOS is to run.
    pub(crate) choices: BTreeMap<String, Choice>,
    pub(crate) generations: Generations,
}

impl Declared {
    /// Takes a document, and reads the systems that it names.
    pub(crate) fn of(text: &Text) -> Result<Self, Error> {
        let spec = text.spec()?;
        let generations = Generations::default();
        let choices = spec.choices(&generations)?;
        let mut configs = spec.configs(&choices)?;
        let conf = XlConf::open()?;
        for config in configs.values_mut() {
            conf.complete(config)?;
            crate::create::mask_cpus(config, &conf)?;
        }
        Ok(Self { spec, configs, choices, generations })
    }

    /// What has to be done on this host.
    pub(crate) fn plan(&self, qubes: &Qubes, wishes: &Wishes) -> Result<Plan, Error> {
        let declared = &self.spec.document().qubes;
        if let Some(name) = wishes.start.iter().find(|name| !declared.contains_key(*name)) {
            return Err(Error::NotDeclared(name.clone()));
        }
        Ok(Plan::of(qubes, &self.spec, &self.configs, &PolicyFolder::default(), wishes)?)
    }
}

/// The text of a document, and what it is called in errors.
pub(crate) struct Text {
    name: PathBuf,
    bytes: Vec<u8>,
}

impl Text {
    /// Reads a file, or stdin, which `-` stands for.
    pub(crate) fn read(path: &Path) -> Result<Self, Error> {
        let (name, bytes) = if path == Path::new("-") {
            let name = PathBuf::from("standard input");
            let bytes = Spec::text(&name, io::stdin())?;
            (name, bytes)
        } else {
            let error = |source| SpecError::Read { path: path.to_owned(), source };
            (path.to_owned(), Spec::text(path, fs::File::open(path).map_err(error)?)?)
        };
        Ok(Self { name, bytes })
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// What it says, if all is right that can be seen without the systems that it names.
    pub(crate) fn spec(&self) -> Result<Spec, Error> {
        let name = self.name.display().to_string();
        let spec = Spec::parse(&name, &self.bytes)?;
        check(&name, spec.document())?;
        Ok(spec)
    }
}

/// A document of which all is right that can be seen without the systems that it names.
pub(crate) fn read(path: &Path) -> Result<Spec, Error> {
    Text::read(path)?.spec()
}

/// Checks the policies and what the agents are told.
fn check(source_name: &str, document: &Document) -> Result<(), Error> {
    let wrong = |attribute: String, problem: String| Error::Declared {
        source_name: source_name.to_owned(),
        attribute,
        problem,
    };
    let policies = document.policy.iter().map(|(file, text)| (format!("policy.{file:?}"), text));
    let within = document.qubes.iter().flat_map(|(name, qube)| {
        qube.policy.iter().map(move |(file, text)| (format!("qubes.{name}.policy.{file:?}"), text))
    });
    let of_dom0 = document.dom0.iter().flat_map(|dom0| &dom0.policy);
    let of_dom0 = of_dom0.map(|(file, text)| (format!("dom0.policy.{file:?}"), text));
    for (attribute, text) in policies.chain(within).chain(of_dom0) {
        statements(text, &attribute).map_err(|error| {
            wrong(
                attribute.clone(),
                error.split_once(": ").map_or(String::new(), |(_, said)| said.to_owned()),
            )
        })?;
    }
    let agents = document
        .qubes
        .iter()
        .map(|(name, qube)| (format!("qubes.{name}.agent"), &**name, &qube.agent, &qube.containers));
    let dom0s = document.dom0.iter();
    let dom0s = dom0s.map(|dom0| ("dom0.agent".to_owned(), DOM0, &dom0.agent, &dom0.containers));
    for (attribute, name, agent, containers) in agents.chain(dom0s) {
        let settings: Settings = serde_json::from_value(agent.clone().into())
            .map_err(|error| wrong(attribute.clone(), error.to_string()))?;
        if settings.qube.as_str() != name {
            return Err(wrong(attribute, format!("it is the agent of {}", settings.qube)));
        }
        if !settings.containers.keys().map(Name::as_str).eq(containers.keys().map(String::as_str)) {
            return Err(wrong(attribute, "its containers are not those of the qube".to_owned()));
        }
    }
    Ok(())
}

/// What a policy file says; of what is wrong with it, the first.
fn statements(text: &str, file: &str) -> Result<Vec<Statement>, String> {
    let path: Arc<Path> = PathBuf::from(file).into();
    parser::parse(text, &path, &Language::Five)
        .map_err(|errors| errors.first().map_or_else(String::new, ToString::to_string))
}

/// What dom0 may do everywhere (nixos/lib/policy.nix). It is read last.
const ADMINISTRATION: &str = "90-nexus.policy";

/// The rules of files, in the order in which they are read, without what dom0 may do everywhere. What they include is the host's,
/// and not declared.
fn policy(files: &BTreeMap<String, String>) -> Policy {
    let files = files.iter().filter(|(file, _)| *file != ADMINISTRATION);
    let statements = files.filter_map(|(file, text)| statements(text, file).ok()).flatten();
    Policy::new(
        statements
            .filter_map(|statement| match statement {
                Statement::Rule(rule) => Some(rule),
                Statement::Include { .. } => None,
            })
            .collect(),
    )
}

/// What the policy is to know of the qubes.
fn system(document: &Document) -> Result<System, Error> {
    let mut system = System::default();
    let names = |names: &mut dyn Iterator<Item = &String>| {
        names.map(|name| Name::new(name)).collect::<Result<_, _>>()
    };
    let of_dom0 = document.dom0s_containers();
    if !of_dom0.is_empty() {
        let info = QubeInfo { containers: names(&mut of_dom0.keys())?, ..QubeInfo::app_vm() };
        system.qubes.insert(Name::new(DOM0)?, info);
    }
    for (name, qube) in &document.qubes {
        let info = QubeInfo {
            tags: names(&mut qube.tags.iter())?,
            default_dispvm: qube.default_disposable.as_deref().map(Name::new).transpose()?,
            template_for_dispvms: qube.disposable_template,
            declared: true,
            containers: names(&mut qube.containers.keys())?,
            ..QubeInfo::app_vm()
        };
        system.qubes.insert(Name::new(name)?, info);
    }
    for (name, remote) in &document.remotes {
        let info = QubeInfo {
            class: Name::new("RemoteVM")?,
            tags: remote.tags.iter().map(|tag| Name::new(tag)).collect::<Result<_, _>>()?,
            relayvm: Some(Name::new(&remote.relay)?),
            transport_rpc: Some(Name::new(&remote.service)?),
            ..QubeInfo::app_vm()
        };
        system.qubes.insert(Name::new(name)?, info);
    }
    Ok(system)
}

/// Writes down for nexusd which qubes and containers are declared.
pub(crate) fn remember_system(document: &Document) -> Result<(), Error> {
    let path = Path::new(SYSTEM_FILE);
    let text = serde_json::to_string(&system(document)?)
        .map_err(|source| Error::Stored { path: SYSTEM_FILE.to_owned(), source })?;
    // nexusd, which is not root, looks at it each second.
    if fs::read_to_string(path).is_ok_and(|there| there == text) {
        return Ok(());
    }
    whole_file::replace(path, text.as_bytes(), 0o644)
        .map_err(|source| Error::Read { path: path.to_owned(), source })
}

/// A call that is declared to be possible.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct CallEdge {
    pub(crate) source: String,
    pub(crate) target: String,
    pub(crate) service: String,
    pub(crate) ask: bool,
}

/// All calls that are allowed or asked about, those within qubes and within dom0 among them; without what dom0 may do everywhere.
pub(crate) fn calls(document: &Document) -> Result<Vec<CallEdge>, Error> {
    let mut system = system(document)?;
    let mut edges = policy(&document.policy).edges(&system);
    let within = document.qubes.iter().map(|(name, qube)| (&**name, &qube.policy));
    for (name, files) in within.chain(document.dom0.iter().map(|dom0| (DOM0, &dom0.policy))) {
        system.within = Some(Name::new(name)?);
        edges.extend(policy(files).edges(&system));
    }
    let edges = edges.into_iter().map(|edge| CallEdge {
        source: edge.source.to_string(),
        target: edge.target.to_string(),
        service: edge.service,
        ask: edge.ask,
    });
    Ok(edges.collect())
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// What the evaluation tests have as the result of a declaration with every option.
    pub(crate) fn full() -> Spec {
        parse(&value()).unwrap()
    }

    fn value() -> serde_json::Value {
        serde_json::from_str(include_str!("../../nixos/tests/full.json")).unwrap()
    }

    fn parse(value: &serde_json::Value) -> Result<Spec, Error> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("qubes.json");
        std::fs::write(&path, value.to_string()).unwrap();
        read(&path)
    }

    #[test]
    fn what_the_evaluation_writes_is_a_policy_and_what_agents_read() {
        let calls = calls(full().document()).unwrap();
        let found = |source: &str, target: &str, service: &str| {
            calls
                .iter()
                .find(|call| (&*call.source, &*call.target, &*call.service) == (source, target, service))
        };
        assert!(!found("shop:front", "shop:orders", "nexus.Query+orders").unwrap().ask);
        assert!(found("shop:front", "vault:gpg", "nexus.Sign+key").unwrap().ask);
        assert!(!found("shop:front", "net", "nexus.Resolve").unwrap().ask);
        assert!(found("whonix", "vault", "nexus.Query").is_none());
        // dom0's containers, and nothing of what dom0 does in them.
        assert!(!found("shop", "dom0:update", "nexus.Status").unwrap().ask);
        assert!(found("dom0:update", "dom0:backup", "nexus.Keep").unwrap().ask);
        assert!(!found("dom0:update", "net", "nexus.Relay+updates").unwrap().ask);
        assert!(found("dom0:update", "@adminvm", "nexus.Fetch").is_none());
        assert!(calls.iter().all(|call| call.source != "dom0"), "{calls:?}");
    }

    #[test]
    fn nexusd_knows_dom0s_containers() {
        let system = system(full().document()).unwrap();
        let names: Vec<_> = system.qubes[DOM0].containers.iter().map(Name::as_str).collect();
        assert_eq!(names, ["backup", "update"]);
    }

    #[test]
    fn a_qube_of_another_host_goes_by_its_relay() {
        let system = system(full().document()).unwrap();
        let bank = &system.qubes[&Name::new("bank").unwrap()];
        assert!(bank.is_remote());
        let text = serde_json::to_value(bank).unwrap();
        assert_eq!((&text["relayvm"], &text["transport_rpc"]), (&"net".into(), &"nexus.Relay".into()));
    }

    #[test]
    fn a_wrong_policy_and_a_wrong_agent_are_refused() {
        for (pointer, value, says) in [
            ("/policy/50-nexus.policy", "* * * * maybe\n".into(), "policy.\"50-nexus.policy\": "),
            ("/dom0/policy/50-nexus.policy", "x".into(), "dom0.policy.\"50-nexus.policy\": "),
            ("/dom0/agent/qube", "net".into(), "dom0.agent: it is the agent of net"),
            ("/qubes/shop/policy/50-nexus.policy", "x".into(), "qubes.shop.policy.\"50-nexus.policy\": "),
            ("/qubes/shop/agent/qube", "net".into(), "qubes.shop.agent: it is the agent of net"),
            ("/qubes/shop/agent/calls", "many".into(), "qubes.shop.agent: invalid type"),
            (
                "/qubes/shop/agent/containers",
                serde_json::json!({}),
                "its containers are not those of the qube",
            ),
        ] {
            let mut changed = super::tests::value();
            *changed.pointer_mut(pointer).unwrap() = value;
            let error = parse(&changed).map(drop).unwrap_err().to_string();
            assert!(error.contains(says), "{pointer}: {error}");
        }
    }
}
