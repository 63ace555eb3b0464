//! The xenstore records of a qube: what the guest's drivers, xenconsoled and every other toolstack expect to find.
//!
//! libxl writes the same nodes in three transactions (`libxl__domain_make`, `libxl__build_post`, the console device);
//! here they are one list, written in one transaction before xenstored is told of the domain, so that nobody ever sees
//! half of them. xenconsoled finds its part complete when the introduction wakes it.

use crate::boot::{Built, Sizes};
use crate::device::Address;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};
use uuid::Uuid;
use xen::{Change, DomId, GuestKind, Permission, Permissions, Transaction, Xenstore};

/// A node to be written.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Record {
    /// Absolute path.
    pub path: String,
    /// Value.
    pub value: String,
    /// Permissions, where they are not those of the parent.
    pub permissions: Option<Permissions>,
}

/// What the records tell of a qube that is not in what was built.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Identity<'a> {
    /// The kind of guest.
    pub kind: GuestKind,
    /// How large it is.
    pub sizes: Sizes,
    /// The qube's name.
    pub name: &'a str,
    /// Its UUID.
    pub uuid: Uuid,
    /// When it was made.
    pub start: SystemTime,
    /// Where xenconsoled runs.
    pub console_domid: DomId,
    /// Whether it will have backends: it gets places for them.
    pub driver_domain: bool,
    /// The kernel's file, which the records of a PV guest name.
    pub kernel: &'a Path,
    /// The initrd's file; likewise.
    pub ramdisk: Option<&'a Path>,
    /// The kernel's command line; likewise.
    pub cmdline: &'a str,
}

/// The home of a domain.
#[must_use]
pub fn home(domid: DomId) -> String {
    format!("/local/domain/{domid}")
}

/// The toolstacks' own record of a domain.
#[must_use]
pub fn libxl_path(domid: DomId) -> String {
    format!("/libxl/{domid}")
}

/// What all domains with that UUID share.
#[must_use]
pub fn vm_path(uuid: Uuid) -> String {
    format!("/vm/{uuid}")
}

/// The console's backend records of a domain.
#[must_use]
pub fn console_backend_path(backend: DomId, domid: DomId) -> String {
    format!("{}/backend/console/{domid}", home(backend))
}

/// A list under construction: paths are relative to a folder.
struct Folder<'a> {
    records: &'a mut Vec<Record>,
    path: String,
}

impl<'a> Folder<'a> {
    fn new(records: &'a mut Vec<Record>, path: String, permissions: Permissions) -> Self {
        records.push(Record { path: path.clone(), value: String::new(), permissions: Some(permissions) });
        Self { records, path }
    }

    fn add(&mut self, name: &str, value: impl ToString) -> &mut Self {
        let path = format!("{}/{name}", self.path);
        self.records.push(Record { path, value: value.to_string(), permissions: None });
        self
    }

    fn add_with(&mut self, name: &str, value: impl ToString, permissions: Permissions) -> &mut Self {
        let path = format!("{}/{name}", self.path);
        self.records.push(Record { path, value: value.to_string(), permissions: Some(permissions) });
        self
    }
}

/// All records of a qube, parents before children. A node without permissions of its own inherits its parent's.
#[must_use]
pub fn records(identity: &Identity<'_>, built: &Built) -> Vec<Record> {
    let domid = built.domid;
    let readable = || Permissions::readable_by(DomId::DOM0, domid);
    let guests_own = || Permissions::private(domid);
    let (home_path, vm) = (home(domid), vm_path(identity.uuid));
    let backend = format!("{}/0", console_backend_path(identity.console_domid, domid));
    let frontend = format!("{home_path}/console");

    let mut records = Vec::new();

    let mut folder = Folder::new(&mut records, vm.clone(), readable());
    let since_epoch = identity.start.duration_since(UNIX_EPOCH).unwrap_or_default();
    folder
        .add("uuid", identity.uuid)
        .add("name", identity.name)
        .add("start_time", format!("{}.{:02}", since_epoch.as_secs(), since_epoch.subsec_millis() / 10));

    if identity.kind == GuestKind::Pv {
        folder.add("image", "").add("image/ostype", "linux").add("image/kernel", identity.kernel.display());
        if let Some(ramdisk) = identity.ramdisk {
            folder.add("image/ramdisk", ramdisk.display());
        }
        folder.add("image/cmdline", identity.cmdline);
    }

    let sizes = &identity.sizes;
    let mut folder = Folder::new(&mut records, home_path, readable());
    folder.add("vm", vm).add("name", identity.name).add("cpu", "");
    for vcpu in 0..sizes.max_vcpus {
        folder
            .add(&format!("cpu/{vcpu}"), "")
            .add(&format!("cpu/{vcpu}/availability"), if vcpu < sizes.vcpus { "online" } else { "offline" });
    }
    folder
        .add("memory", "")
        .add("memory/static-max", sizes.max_memory_kib)
        .add("memory/target", sizes.memory_kib)
        .add("memory/videoram", 0)
        .add("device", "")
        .add("device/suspend", "")
        .add_with("device/suspend/event-channel", "", guests_own())
        .add("control", "");
    for name in ["shutdown", "feature-poweroff", "feature-reboot", "feature-suspend", "sysrq"] {
        folder.add_with(&format!("control/{name}"), "", guests_own());
    }
    folder
        .add("control/platform-feature-multiprocessor-suspend", 1)
        .add("control/platform-feature-xs_reset_watches", 1);
    for name in ["data", "drivers", "feature", "attr", "error"] {
        folder.add_with(name, "", guests_own());
    }
    if identity.driver_domain {
        folder.add_with("libxl", "", guests_own()).add_with("device-model", "", guests_own());
    }
    folder
        .add("domid", domid)
        .add("store", "")
        .add("store/port", built.store_port)
        .add("store/ring-ref", built.store_ring.0)
        .add("console", "")
        .add("console/backend", &backend)
        .add_with(
            "console/backend-id",
            identity.console_domid,
            Permissions {
                owner: domid,
                others: Permission::None,
                domains: vec![(DomId::DOM0, Permission::Read)],
            },
        )
        .add("console/limit", 1_048_576)
        .add("console/type", "xenconsoled")
        .add("console/output", "pty")
        .add("console/tty", "")
        .add("console/port", built.console_port)
        .add("console/ring-ref", built.console_ring.0);

    // With the permissions of /libxl, which are dom0's alone.
    records.push(Record { path: libxl_path(domid), value: String::new(), permissions: None });
    let mut folder = Folder { records: &mut records, path: libxl_path(domid) };
    folder
        .add("device", "")
        .add("device/console", "")
        .add("device/console/0", "")
        .add("device/console/0/frontend", &frontend)
        .add("device/console/0/backend", &backend)
        .add("device/console/0/frontend-id", domid)
        .add("device/console/0/online", 1)
        .add("device/console/0/state", 1)
        .add("device/console/0/protocol", "vt100")
        .add("type", if identity.kind == GuestKind::Pv { "pv" } else { "pvh" })
        .add("dm-version", "qemu_xen");

    // As libxl leaves it: with its parent's permissions.
    records.push(Record {
        path: console_backend_path(identity.console_domid, domid),
        value: String::new(),
        permissions: None,
    });
    let mut folder = Folder::new(&mut records, backend, readable());
    folder
        .add("frontend", frontend)
        .add("frontend-id", domid)
        .add("online", 1)
        .add("state", 1)
        .add("protocol", "vt100");
    records
}

/// Writes the records in one transaction.
///
/// # Errors
/// What xenstored says; nothing was written then.
pub fn write(store: &dyn Xenstore, records: &[Record]) -> Result<(), xen::Error> {
    xen::transaction(store, |tx| write_in(store, tx, records))
}

/// Writes records as part of a transaction.
pub(crate) fn write_in(store: &dyn Xenstore, tx: Transaction, records: &[Record]) -> Result<(), xen::Error> {
    store.apply(tx, &changes(records))
}

/// So many children that share permissions which are not their folder's are made by lending the folder theirs.
const WORTH_LENDING: usize = 4;

/// The requests that make the records, in the transaction's isolation.
///
/// A node has its parent's permissions from its making on (whoever makes it, as long as that is dom0). So a folder whose
/// guest is to own many of its children is the guest's itself until they are made, and none of them takes a request for
/// its permissions.
fn changes(records: &[Record]) -> Vec<Change<'_>> {
    let mut effective: BTreeMap<&str, &Permissions> = BTreeMap::new();
    let mut sharing: BTreeMap<&str, BTreeMap<String, (usize, &Permissions)>> = BTreeMap::new();
    for record in records {
        let folder = parent(&record.path);
        let inherited = effective.get(folder).copied();
        if let Some(permissions) = record.permissions.as_ref().or(inherited) {
            effective.insert(&record.path, permissions);
        }
        if let Some(permissions) = record.permissions.as_ref().filter(|own| Some(*own) != inherited) {
            let by_permissions = sharing.entry(folder).or_default();
            by_permissions.entry(permissions.to_string()).or_insert((0, permissions)).0 += 1;
        }
    }
    // What a folder is lent; only of one that is made here, and whose own permissions are known.
    let lent = |folder: &str| -> Option<&Permissions> {
        effective.get(folder)?;
        let most = sharing.get(folder)?.values().max_by_key(|(count, _)| *count)?;
        (most.0 >= WORTH_LENDING).then_some(most.1)
    };
    let mut changes = Vec::new();
    let mut made = BTreeSet::new();
    for (n, record) in records.iter().enumerate() {
        let path = &*record.path;
        if !made.insert(path) {
            continue;
        }
        let Some((permissions, own)) = lent(path).zip(effective.get(path).copied()) else {
            // xenstored makes the parents of what is written: empty, and with the permissions of theirs.
            let is_implied = record.value.is_empty()
                && record.permissions.is_none()
                && records.get(n + 1).is_some_and(|next| is_below(&next.path, path));
            if !is_implied {
                changes.push(Change::Write(path, record.value.as_bytes()));
            }
            changes.extend(record.permissions.as_ref().map(|own| Change::SetPermissions(path, own)));
            continue;
        };
        changes.push(Change::Write(path, record.value.as_bytes()));
        changes.push(Change::SetPermissions(path, permissions));
        // Folders below that are lent the same come about with their first child.
        let mut borrowers = vec![(path, own)];
        for below in records[n + 1..].iter().filter(|below| is_below(&below.path, path)) {
            let folder = parent(&below.path);
            let is_borrower = |at: &str| borrowers.iter().any(|(path, _)| *path == at);
            if !is_borrower(folder) {
                continue;
            }
            if below.permissions.as_ref() == Some(permissions) {
                changes.push(Change::Write(&below.path, below.value.as_bytes()));
                made.insert(&*below.path);
            } else if below.value.is_empty()
                && lent(&below.path) == Some(permissions)
                && let Some(own) = effective.get(&*below.path)
            {
                borrowers.push((&below.path, own));
                made.insert(&*below.path);
            }
        }
        changes.extend(borrowers.into_iter().rev().map(|(path, own)| Change::SetPermissions(path, own)));
    }
    changes
}

fn parent(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(parent, _)| parent)
}

fn is_below(path: &str, parent: &str) -> bool {
    path.strip_prefix(parent).is_some_and(|rest| rest.starts_with('/'))
}

/// Removes what [`records`] lists of a domain and what its devices' backends have, and the parents where they are empty
/// then, in one transaction.
///
/// # Errors
/// What xenstored says. That something is missing already is no error.
pub fn remove(
    store: &dyn Xenstore,
    domid: DomId,
    uuid: Uuid,
    console_domid: DomId,
    devices: &[Address],
) -> Result<(), xen::Error> {
    xen::transaction(store, |tx| {
        let mut gone = vec![home(domid), vm_path(uuid)];
        let with_parents = gone.len();
        gone.extend(devices.iter().map(Address::backend_path));
        gone.extend([libxl_path(domid), console_backend_path(console_domid, domid)]);
        // All is asked before anything is removed, and sent at once: what is empty then is seen from the lists.
        let folders: BTreeSet<&str> = gone[with_parents..].iter().flat_map(|path| folders_of(path)).collect();
        let folders: Vec<&str> = folders.into_iter().collect();
        let lists = store.directory_all(tx, &folders)?;
        let mut lists: BTreeMap<&str, Vec<String>> =
            folders.iter().zip(lists).filter_map(|(folder, names)| Some((*folder, names?))).collect();
        let mut emptied = Vec::new();
        for path in &gone[with_parents..] {
            let mut path = path.as_str();
            for folder in folders_of(path) {
                if let Some(names) = lists.get_mut(folder) {
                    let name = &path[folder.len() + 1..];
                    names.retain(|other| other != name);
                    if !names.is_empty() {
                        break;
                    }
                    lists.remove(folder);
                    emptied.push(folder.to_owned());
                }
                path = folder;
            }
        }
        let removed = gone.iter().chain(&emptied).map(|path| Change::Remove(path));
        store.apply(tx, &removed.collect::<Vec<_>>())
    })
}

/// What is above a node, from below: the folders of devices, of backends and of libxl. A domain's home is none of them.
fn folders_of(path: &str) -> impl Iterator<Item = &str> {
    let above = std::iter::successors(Some(parent(path)), |path| Some(parent(path)));
    let is_home = |path: &str| path.starts_with("/local/") && path.matches('/').count() <= 3;
    above.take_while(move |path| !path.is_empty() && !is_home(path))
}

/// Removes a node, if it is there, and what is above it as far as that is empty then.
pub(crate) fn remove_with_empty_parents(
    store: &dyn Xenstore,
    tx: Transaction,
    path: &str,
) -> Result<(), xen::Error> {
    remove_if_there(store, tx, path)?;
    let mut path = path;
    while let Some((parent, _)) = path.rsplit_once('/').filter(|(parent, _)| !parent.is_empty()) {
        match directory_if_there(store, tx, parent)? {
            Some(names) if names.is_empty() => remove_if_there(store, tx, parent)?,
            Some(_) => break,
            None => {}
        }
        path = parent;
    }
    Ok(())
}

/// A node's value, if it is there.
pub(crate) fn read_if_there(
    store: &dyn Xenstore,
    tx: Transaction,
    path: &str,
) -> Result<Option<Vec<u8>>, xen::Error> {
    match store.read(tx, path) {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.kind() == xen::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// A node's value as text, if it is there.
pub(crate) fn text_if_there(store: &dyn Xenstore, path: &str) -> Result<Option<String>, xen::Error> {
    let value = read_if_there(store, Transaction::NONE, path)?;
    Ok(value.map(|value| String::from_utf8_lossy(&value).into_owned()))
}

/// Removes a node; that there is none is no error.
pub(crate) fn remove_if_there(store: &dyn Xenstore, tx: Transaction, path: &str) -> Result<(), xen::Error> {
    match store.remove(tx, path) {
        Err(error) if error.kind() == xen::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

/// The names below a node, if it is there.
pub(crate) fn directory_if_there(
    store: &dyn Xenstore,
    tx: Transaction,
    path: &str,
) -> Result<Option<Vec<String>>, xen::Error> {
    match store.directory(tx, path) {
        Ok(names) => Ok(Some(names)),
        Err(error) if error.kind() == xen::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::boot::SpecialPage;
    use std::collections::BTreeMap;
    use std::time::Duration;
    use xen::mock::Machine;
    use xen::{Gfn, Platform, Port};

    const GOLDEN: &str = include_str!("../tests/golden/pvh512.xenstore.txt");
    const UUID: &str = "b040376c-ba51-4bbc-9b71-c66649d48343";

    /// What stock `xl` was seen to leave of domain 1: path to value and permissions.
    fn golden() -> BTreeMap<String, (String, String)> {
        let lines = GOLDEN.lines().filter_map(|line| {
            let (path, rest) = line.split_once(" = ")?;
            let (value, permissions) = rest.rsplit_once("   ")?;
            let permissions = permissions.trim_matches(['(', ')']);
            Some((path.to_owned(), (value.trim_matches('"').to_owned(), permissions.to_owned())))
        });
        lines
            .filter(|(path, _)| {
                ["/local/domain/1", "/local/domain/0/backend/console/1", "/libxl/1", &format!("/vm/{UUID}")]
                    .iter()
                    .any(|top| path == top || path.starts_with(&format!("{top}/")))
            })
            .collect()
    }

    fn identity() -> Identity<'static> {
        Identity {
            kind: GuestKind::Pvh,
            sizes: Sizes { vcpus: 1, max_vcpus: 1, memory_kib: 512 << 10, max_memory_kib: 512 << 10 },
            name: "nixpvh",
            uuid: Uuid::parse_str(UUID).unwrap(),
            start: UNIX_EPOCH + Duration::from_millis(1_795_290_279_290),
            console_domid: DomId::DOM0,
            driver_domain: false,
            kernel: Path::new("/boot/vmlinuz"),
            ramdisk: None,
            cmdline: "",
        }
    }

    const BUILT: Built = Built {
        domid: DomId(1),
        store_port: Port(1),
        console_port: Port(2),
        store_ring: SpecialPage::Xenstore.gfn(),
        console_ring: SpecialPage::Console.gfn(),
    };

    #[test]
    fn the_tree_is_that_of_stock_xl() {
        let machine = Machine::new();
        let store = machine.domain(DomId::DOM0).xenstore().unwrap();
        let records = records(&identity(), &BUILT);
        write(&*store, &records).unwrap();
        let ours: BTreeMap<String, (String, String)> = records
            .iter()
            .map(|record| {
                let value = String::from_utf8(store.read(Transaction::NONE, &record.path).unwrap()).unwrap();
                let permissions = store.permissions(Transaction::NONE, &record.path).unwrap().to_string();
                (record.path.clone(), (value, permissions))
            })
            .collect();
        let mut golden = golden();
        // xenconsoled fills it in when it has opened the console.
        golden.get_mut("/local/domain/1/console/tty").unwrap().0.clear();
        assert!(golden.len() > 60, "the golden file was read");
        for (path, theirs) in &golden {
            assert_eq!(ours.get(path), Some(theirs), "{path}");
        }
        assert_eq!(ours.len(), golden.len(), "and nothing else");
    }

    #[test]
    fn a_pv_guest_has_rings_of_the_machine_and_an_image() {
        let ramdisk = Some(Path::new("/boot/initrd"));
        let identity = Identity { kind: GuestKind::Pv, ramdisk, cmdline: "console=hvc0", ..identity() };
        let built = Built { store_ring: Gfn(0x12_3456), console_ring: Gfn(0x65_4321), ..BUILT };
        let records = records(&identity, &built);
        let mut golden = golden();
        for (path, value) in [
            ("/local/domain/1/store/ring-ref", "1193046"),
            ("/local/domain/1/console/ring-ref", "6636321"),
            ("/local/domain/1/console/tty", ""),
            ("/libxl/1/type", "pv"),
        ] {
            golden.get_mut(path).unwrap().0 = value.to_owned();
        }
        // What libxl__domain_build adds for PV (tools/libs/light/libxl_create.c).
        for (name, value) in [
            ("", ""),
            ("/ostype", "linux"),
            ("/kernel", "/boot/vmlinuz"),
            ("/ramdisk", "/boot/initrd"),
            ("/cmdline", "console=hvc0"),
        ] {
            golden.insert(format!("/vm/{UUID}/image{name}"), (value.to_owned(), String::new()));
        }
        let ours: BTreeMap<&str, &str> =
            records.iter().map(|record| (record.path.as_str(), record.value.as_str())).collect();
        let theirs: BTreeMap<&str, &str> =
            golden.iter().map(|(path, (value, _))| (path.as_str(), value.as_str())).collect();
        assert_eq!(ours, theirs);
    }

    proptest::proptest! {
        /// Parents before children, as in every list; the permissions are few, so that many are shared.
        #[test]
        fn the_tree_is_the_same_as_if_each_record_were_written_by_itself(
            nodes in proptest::collection::vec((0_usize..60, 0_u16..5, proptest::bool::ANY), 1..60)
        ) {
            let mut list: Vec<Record> = Vec::new();
            for (n, (above, owner, is_empty)) in nodes.into_iter().enumerate() {
                let above = above % (n + 1);
                let folder = if above == n { "/local/domain/1" } else { &list[above].path };
                let path = format!("{folder}/{n}");
                let value = if is_empty { String::new() } else { n.to_string() };
                let permissions = (owner < 3).then(|| Permissions::private(DomId(owner)));
                list.push(Record { path, value, permissions });
            }
            let one_by_one = Machine::new();
            let store = one_by_one.domain(DomId::DOM0).xenstore().unwrap();
            for Record { path, value, permissions } in &list {
                store.write(Transaction::NONE, path, value.as_bytes()).unwrap();
                if let Some(permissions) = permissions {
                    store.set_permissions(Transaction::NONE, path, permissions).unwrap();
                }
            }
            let at_once = Machine::new();
            write(&*at_once.domain(DomId::DOM0).xenstore().unwrap(), &list).unwrap();
            proptest::prop_assert_eq!(at_once.inventory(), one_by_one.inventory());
            let requests = |machine: &Machine| machine.counts().xenstore_requests();
            proptest::prop_assert!(requests(&at_once) <= requests(&one_by_one) + 2);
        }
    }

    #[test]
    fn one_transaction_writes_and_one_removes_all() {
        let machine = Machine::new();
        let store = machine.domain(DomId::DOM0).xenstore().unwrap();
        let before = machine.inventory();
        write(&*store, &records(&identity(), &BUILT)).unwrap();
        assert_ne!(machine.inventory(), before);
        let stored = store.directory(Transaction::NONE, "/local/domain/1").unwrap();
        assert!(stored.iter().any(|name| name == "cpu"), "parents come with their children: {stored:?}");
        // What it is today, so that a change is noticed; libxl makes 119.
        let counts = machine.counts();
        assert_eq!((counts.calls["xs_write"], counts.calls["xs_set_permissions"]), (49, 7));
        remove(&*store, DomId(1), identity().uuid, DomId::DOM0, &[]).unwrap();
        assert_eq!(machine.counts().xenstore_transactions(), 2);
        assert_eq!(machine.inventory(), before);
    }
}
