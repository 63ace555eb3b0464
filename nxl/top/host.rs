//! Snapshots of this host: of what Xen says of domains, dom0's kernel of their backends, and nexusd of calls.

use crate::containers::{Asker, Said};
use crate::figures::{self, figures};
use crate::snapshot::{Asked, Row, Snapshot, Source, State};
use nexus::policy::{DOM0, System};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;
use toolstack::qubes::{Qube, Qubes};
use xen::{DomId, PAGE_SHIFT, ShutdownReason};

/// What a program of dom0's is told of calls and containers by.
#[derive(Clone, Debug)]
pub struct Nexus {
    /// nexusd's socket of figures.
    pub metrics: PathBuf,
    /// The file of the qubes.
    pub system: PathBuf,
}

/// Counters of a domain.
#[derive(Clone, Copy, Default)]
struct Counters {
    /// Nanoseconds.
    cpu: u64,
    /// Bytes that it received and sent.
    network: Option<(u64, u64)>,
    /// Bytes that it read and wrote.
    disk: Option<(u64, u64)>,
}

/// Bytes there and back, of all devices of one kind of each domain.
type Devices = BTreeMap<DomId, (u64, u64)>;

/// This host.
pub struct HostSource {
    qubes: Qubes,
    /// Where dom0's kernel shows its devices: /sys.
    sys: PathBuf,
    nexus: Nexus,
    xen: String,
    before: Option<(Instant, BTreeMap<DomId, Counters>)>,
    /// Bytes of calls that were over then.
    carried: Option<u64>,
    asker: Option<Asker>,
    asked: Asked,
}

impl HostSource {
    /// The host of these qubes; `sys` is where its kernel shows devices, `/sys`.
    ///
    /// # Errors
    /// What Xen says when it is asked for its version.
    pub fn new(qubes: Qubes, sys: impl Into<PathBuf>, nexus: Nexus) -> Result<Self, xen::Error> {
        let version = qubes.control().version()?;
        let xen = format!("{}.{}{}", version.major, version.minor, version.extra);
        let sys = sys.into();
        Ok(Self { qubes, sys, nexus, xen, before: None, carried: None, asker: None, asked: Asked::No })
    }

    /// The same, with somebody who asks qubes for their containers.
    #[must_use]
    pub fn with_asker(self, asker: Asker) -> Self {
        Self { asker: Some(asker), ..self }
    }

    /// What the running qubes say that have containers.
    fn said(&self, all: &[Qube], system: Option<&System>) -> Said {
        let (Some(asker), Some(system)) = (&self.asker, system) else { return Said::new() };
        let runs = |qube: &&Qube| qube.info.shutdown.is_none() && !qube.info.paused && !qube.info.dying;
        let names = all.iter().filter(runs).filter_map(known_as);
        let has = |name: &&str| system.qubes.get(*name).is_some_and(|known| !known.containers.is_empty());
        let asked = names.filter(has).map(str::to_owned).collect();
        match self.asked {
            Asked::No => Said::new(),
            Asked::Last => asker.last(asked),
            Asked::Now => asker.now(asked),
        }
    }

    fn take(&mut self, now: Instant) -> Result<Snapshot, toolstack::qubes::QubeError> {
        let control = self.qubes.control();
        let host = control.phys_info()?;
        let all = self.qubes.list()?;
        let (network, disk) = (interfaces(&self.sys), disks(&self.sys));
        let answer = figures(&self.nexus.metrics).ok();
        // Where nexusd does not run there are no calls, and what the file says of containers is old.
        let system: Option<System> = answer
            .as_ref()
            .and_then(|_| serde_json::from_str(&fs::read_to_string(&self.nexus.system).ok()?).ok());
        let open = |text: &String| {
            text.lines().find_map(|line| line.strip_prefix("nexus_open_calls ")?.parse().ok())
        };
        let carried = answer.as_deref().map(figures::carried);
        // A nexusd that was started anew begins at none.
        let more = self.carried.zip(carried).and_then(|(then, now)| now.checked_sub(then));
        let elapsed = self.before.as_ref().map(|(then, _)| now.duration_since(*then).as_secs_f64());
        let carried_rate =
            more.zip(elapsed).filter(|(_, time)| *time > 0.0).map(|(more, time)| more as f64 / time);

        let counters: BTreeMap<DomId, Counters> = all
            .iter()
            .map(|qube| {
                let domid = qube.info.domid;
                let of = |devices: &Devices| devices.get(&domid).copied();
                let counters = Counters { cpu: qube.info.cpu_time, network: of(&network), disk: of(&disk) };
                (domid, counters)
            })
            .collect();
        let mut used = BTreeMap::new();
        for qube in &all {
            used.extend(self.qubes.memory_in_use(qube)?.map(|kib| (qube.info.domid, kib >> 10)));
        }
        let before = self.before.as_ref().map(|(then, counters)| (now.duration_since(*then), counters));
        let mut said = self.said(&all, system.as_ref());
        let rows = all.iter().map(|qube| {
            let new = counters.get(&qube.info.domid).copied().unwrap_or_default();
            let old = before.and_then(|(time, all)| {
                let old = all.get(&qube.info.domid)?;
                // Another domain has the id, or no time went by.
                (old.cpu <= new.cpu && !time.is_zero()).then_some((time.as_secs_f64(), *old))
            });
            let name = known_as(qube);
            let given = name.and_then(|name| Some(&system.as_ref()?.qubes.get(name)?.containers));
            let mut inner = name.and_then(|name| said.remove(name)).unwrap_or_default();
            // Of what it was not given a qube may say what it wants.
            inner.retain(|found| given.is_some_and(|given| given.contains(&found.name)));
            let used = used.get(&qube.info.domid).copied();
            Row { used, said: inner, containers: given.map(BTreeSet::len), ..row(qube, new, old) }
        });
        let pages = |pages: u64| pages >> (20 - PAGE_SHIFT);
        let snapshot = Snapshot {
            xen: self.xen.clone(),
            cpus: host.cpus,
            mhz: host.cpu_khz / 1_000,
            memory: pages(host.total_pages),
            free: pages(host.free_pages.saturating_sub(host.outstanding_pages)),
            calls: answer.as_ref().and_then(open),
            carried: carried_rate,
            qubes: rows.collect(),
        };
        self.before = Some((now, counters));
        self.carried = carried;
        Ok(snapshot)
    }
}

impl Source for HostSource {
    fn snapshot(&mut self) -> Result<Snapshot, String> {
        self.take(Instant::now()).map_err(|error| error.to_string())
    }

    fn ask(&mut self, asked: Asked) {
        self.asked = asked;
    }
}

/// What calls and containers know a domain as.
fn known_as(qube: &Qube) -> Option<&str> {
    if qube.info.domid == DomId::DOM0 { Some(DOM0) } else { qube.name.as_deref() }
}

/// A domain with its counters, and those of so many seconds ago.
fn row(qube: &Qube, new: Counters, old: Option<(f64, Counters)>) -> Row {
    let info = &qube.info;
    let state = match info.shutdown {
        _ if info.dying => State::Dying,
        Some(ShutdownReason::Crash | ShutdownReason::Watchdog) => State::Crashed,
        Some(_) => State::Shutdown,
        None if info.paused => State::Paused,
        None if info.running => State::Running,
        None => State::Blocked,
    };
    let rate = |new: Option<(u64, u64)>, old: Option<(f64, Option<(u64, u64)>)>| {
        let (new, (time, old)) = (new?, old?);
        let old = old?;
        let rate = |new: u64, old: u64| new.saturating_sub(old) as f64 / time;
        Some((rate(new.0, old.0), rate(new.1, old.1)))
    };
    // A domain without a limit (dom0) may have as much as numbers go.
    let max_memory = info.max_pages >> (20 - PAGE_SHIFT);
    Row {
        domid: info.domid.0,
        name: qube.display_name().to_owned(),
        uuid: qube.uuid().to_string(),
        state,
        cpu: old.map(|(time, old)| (new.cpu - old.cpu) as f64 / (time * 1e7)),
        seconds: new.cpu as f64 / 1e9,
        memory: (info.pages + info.outstanding_pages) >> (20 - PAGE_SHIFT),
        used: None,
        max_memory: (max_memory < 1 << 32).then_some(max_memory),
        vcpus: info.online_vcpus,
        network: rate(new.network, old.map(|(time, old)| (time, old.network))),
        disk: rate(new.disk, old.map(|(time, old)| (time, old.disk))),
        containers: None,
        said: Vec::new(),
    }
}

fn number(path: &Path) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// The names in a folder; none when it is not there.
fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().into_string().ok()).collect()
}

fn add(devices: &mut Devices, domid: DomId, (there, back): (u64, u64)) {
    let sum = devices.entry(domid).or_default();
    *sum = (sum.0.saturating_add(there), sum.1.saturating_add(back));
}

/// What the interfaces of qubes carried: netback names them `vifDOMID.NUMBER`. What dom0 sends is what a qube receives.
fn interfaces(sys: &Path) -> Devices {
    let mut devices = Devices::new();
    let folder = sys.join("class/net");
    for name in names(&folder) {
        let domid = name.strip_prefix("vif").and_then(|name| name.split_once('.')?.0.parse().ok());
        let statistic = |of: &str| number(&folder.join(&name).join("statistics").join(of));
        if let (Some(domid), Some(received), Some(sent)) =
            (domid, statistic("tx_bytes"), statistic("rx_bytes"))
        {
            add(&mut devices, DomId(domid), (received, sent));
        }
    }
    devices
}

/// What the disks of qubes carried: blkback's devices are named `vbd-DOMID-NUMBER`, and count sectors of 512 bytes.
fn disks(sys: &Path) -> Devices {
    let mut devices = Devices::new();
    let folder = sys.join("bus/xen-backend/devices");
    for name in names(&folder) {
        let domid = name.strip_prefix("vbd-").and_then(|name| name.split_once('-')?.0.parse().ok());
        let statistic = |of: &str| {
            let sectors = number(&folder.join(&name).join("statistics").join(of))?;
            Some(sectors.saturating_mul(512))
        };
        if let (Some(domid), Some(read), Some(written)) = (domid, statistic("rd_sect"), statistic("wr_sect"))
        {
            add(&mut devices, DomId(domid), (read, written));
        }
    }
    devices
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;
    use toolstack::UserData;
    use xen::{CreateDomain, GuestKind, Platform, mock::Machine};

    /// A domain that was just made.
    fn domain(dom0: &impl Platform) -> DomId {
        let create = CreateDomain::new(GuestKind::Pvh, [7; 16], 2);
        dom0.domain_control().unwrap().create_domain(&create).unwrap()
    }

    #[test]
    fn a_mock_host_is_seen_with_its_devices() {
        let folder = tempfile::tempdir().unwrap();
        let machine = Machine::new();
        let dom0 = machine.domain(DomId::DOM0);
        let domid = domain(&dom0);
        let store = dom0.xenstore().unwrap();
        store.write(xen::Transaction::NONE, &format!("/local/domain/{domid}/name"), b"work").unwrap();
        let put = |path: String, number: u64| {
            let path = folder.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, format!("{number}\n")).unwrap();
        };
        let count = |times: u64| {
            for (name, number) in [("rx_bytes", 1_000), ("tx_bytes", 2_000)] {
                put(format!("class/net/vif{domid}.0/statistics/{name}"), number * times);
            }
            for disk in [51_712, 51_728] {
                for (name, number) in [("rd_sect", 2), ("wr_sect", 4)] {
                    put(
                        format!("bus/xen-backend/devices/vbd-{domid}-{disk}/statistics/{name}"),
                        number * times,
                    );
                }
            }
        };
        count(1);
        put("class/net/lo/statistics/rx_bytes".to_owned(), 5);
        let none = folder.path().join("none");
        let nexus = Nexus { metrics: none.clone(), system: none };
        let qubes = Qubes::open(&dom0, UserData::in_folder(folder.path())).unwrap();
        let mut source = HostSource::new(qubes, folder.path(), nexus).unwrap();
        let now = Instant::now();
        let first = source.take(now).unwrap();
        let work =
            |snapshot: &Snapshot| snapshot.qubes.iter().find(|row| row.name == "work").unwrap().clone();
        assert_eq!((work(&first).cpu, work(&first).network, work(&first).disk), (None, None, None));
        assert!(first.cpus > 0 && first.memory > 0 && first.calls.is_none(), "{first:?}");
        count(3);
        let second = work(&source.take(now + Duration::from_secs(2)).unwrap());
        assert_eq!(second.cpu, Some(0.0));
        assert_eq!((second.network, second.disk), (Some((2_000.0, 1_000.0)), Some((2_048.0, 4_096.0))));
        assert_eq!(second.uuid, "07070707-0707-0707-0707-070707070707");
    }

    #[test]
    fn cpu_time_is_percents_of_one_cpu() {
        let folder = tempfile::tempdir().unwrap();
        let machine = Machine::new();
        let dom0 = machine.domain(DomId::DOM0);
        let domid = domain(&dom0);
        let qubes = Qubes::open(&dom0, UserData::in_folder(folder.path())).unwrap();
        let qube = qubes.get(domid).unwrap();
        let counters = |cpu| Counters { cpu, ..Counters::default() };
        let row = row(&qube, counters(5_000_000_000), Some((2.0, counters(2_000_000_000))));
        assert_eq!((row.cpu, row.seconds), (Some(150.0), 5.0));
        assert_eq!((row.name.as_str(), row.state, row.containers), ("(null)", State::Paused, None));
    }
}
