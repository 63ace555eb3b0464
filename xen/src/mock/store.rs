//! A xenstore in memory: permissions, transactions, quotas and watches as xenstored has them.

use super::{Backends, Domain};
use crate::{DomId, Error, Gfn, Permission, Permissions, Port, Result, Transaction, WatchEvent, Xenstore};
use rustix::event::{EventfdFlags, eventfd};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

/// Open transactions that an unprivileged domain may have (xenstored's `-t`).
const TRANSACTION_QUOTA: usize = 10;
/// The longest absolute path (`XENSTORE_ABS_PATH_MAX`).
const PATH_MAX: usize = 3_072;
/// The longest payload (`XENSTORE_PAYLOAD_MAX`).
const PAYLOAD_MAX: usize = 4_096;

#[derive(Clone, PartialEq, Eq, Debug)]
struct Node {
    value: Vec<u8>,
    permissions: Permissions,
}

type Nodes = BTreeMap<String, Node>;

#[derive(Debug)]
struct Pending {
    owner: DomId,
    connection: u64,
    nodes: Nodes,
    /// The tree's generation when it began.
    since: u64,
    changed: Vec<String>,
}

#[derive(Debug)]
struct Watcher {
    domid: DomId,
    watches: Vec<(String, String)>,
    events: VecDeque<WatchEvent>,
    /// Readable while `events` is not empty.
    signal: Arc<OwnedFd>,
}

/// The tree, and who has a transaction or a watch open.
#[derive(Debug)]
pub(super) struct Tree {
    nodes: Nodes,
    generation: u64,
    transactions: BTreeMap<u32, Pending>,
    next_transaction: u32,
    watchers: BTreeMap<u64, Watcher>,
    next_watcher: u64,
    introduced: BTreeSet<DomId>,
    pub(super) backends: Backends,
}

impl Default for Tree {
    fn default() -> Self {
        let mut nodes = Nodes::new();
        for path in ["/", "/local", "/local/domain", "/tool", "/tool/xenstored", "/vm"] {
            nodes.insert(
                path.to_owned(),
                Node { value: Vec::new(), permissions: Permissions::private(DomId::DOM0) },
            );
        }
        Self {
            nodes,
            generation: 0,
            transactions: BTreeMap::new(),
            next_transaction: 1,
            watchers: BTreeMap::new(),
            next_watcher: 0,
            introduced: BTreeSet::new(),
            backends: Backends::default(),
        }
    }
}

fn home(domid: DomId) -> String {
    format!("/local/domain/{domid}")
}

fn parent(path: &str) -> Option<&str> {
    match path.rfind('/')? {
        0 if path.len() == 1 => None,
        0 => Some("/"),
        at => Some(&path[..at]),
    }
}

fn is_at_or_below(path: &str, top: &str) -> bool {
    top == "/" || path.strip_prefix(top).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

fn allowed(node: &Node, domid: DomId, wanted: Permission) -> bool {
    let permissions = &node.permissions;
    if domid == DomId::DOM0 || domid == permissions.owner {
        return true;
    }
    let named = permissions.domains.iter().find(|(named, _)| *named == domid);
    let granted = named.map_or(permissions.others, |(_, permission)| *permission);
    granted == wanted || granted == Permission::Both
}

/// A failed request; the connection makes an [`Error`] of it.
type Request<T> = std::result::Result<T, i32>;

/// The operations on a set of nodes, be it the tree or a transaction's copy.
struct View<'a> {
    nodes: &'a mut Nodes,
    domid: DomId,
    changed: Vec<String>,
}

impl View<'_> {
    fn readable(&self, path: &str) -> Request<&Node> {
        let node = self.nodes.get(path).ok_or(libc::ENOENT)?;
        if allowed(node, self.domid, Permission::Read) { Ok(node) } else { Err(libc::EACCES) }
    }

    fn write(&mut self, path: &str, value: Option<&[u8]>) -> Request<()> {
        if let Some(node) = self.nodes.get_mut(path) {
            if !allowed(node, self.domid, Permission::Write) {
                return Err(libc::EACCES);
            }
            if let Some(value) = value {
                node.value = value.to_vec();
                self.changed.push(path.to_owned());
            }
            return Ok(());
        }
        let above = parent(path).ok_or(libc::EINVAL)?;
        if !self.nodes.contains_key(above) {
            self.write(above, Some(&[]))?;
        }
        let above = self.nodes.get(above).ok_or(libc::ENOENT)?;
        if !allowed(above, self.domid, Permission::Write) {
            return Err(libc::EACCES);
        }
        // A new node has its parent's permissions, but belongs to whoever makes it, unless that is dom0.
        let mut permissions = above.permissions.clone();
        if self.domid != DomId::DOM0 {
            permissions.owner = self.domid;
        }
        self.nodes.insert(path.to_owned(), Node { value: value.unwrap_or_default().to_vec(), permissions });
        self.changed.push(path.to_owned());
        Ok(())
    }

    fn remove(&mut self, path: &str) -> Request<()> {
        let node = self.nodes.get(path).ok_or(libc::ENOENT)?;
        if path == "/" {
            return Err(libc::EINVAL);
        }
        if !allowed(node, self.domid, Permission::Write) {
            return Err(libc::EACCES);
        }
        self.nodes.retain(|other, _| !is_at_or_below(other, path));
        self.changed.push(path.to_owned());
        Ok(())
    }

    fn directory(&self, path: &str) -> Request<Vec<String>> {
        self.readable(path)?;
        let prefix = if path == "/" { "/".to_owned() } else { format!("{path}/") };
        Ok(self
            .nodes
            .keys()
            .filter_map(|other| other.strip_prefix(&prefix))
            .filter(|rest| !rest.is_empty() && !rest.contains('/'))
            .map(str::to_owned)
            .collect())
    }

    fn set_permissions(&mut self, path: &str, permissions: &Permissions) -> Request<()> {
        let node = self.nodes.get_mut(path).ok_or(libc::ENOENT)?;
        let own = node.permissions.owner == self.domid && permissions.owner == self.domid;
        if self.domid != DomId::DOM0 && !own {
            return Err(libc::EACCES);
        }
        node.permissions = permissions.clone();
        self.changed.push(path.to_owned());
        Ok(())
    }
}

impl Tree {
    /// A domain's home, as the toolstack makes it: the home itself is dom0's, `data` is the domain's own.
    pub(super) fn add_home(&mut self, domid: DomId) {
        let home = home(domid);
        if self.nodes.contains_key(&home) {
            return;
        }
        // dom0's home is nobody's work: it has the root's permissions.
        let shared = match domid {
            DomId::DOM0 => Permissions::private(DomId::DOM0),
            _ => Permissions::readable_by(DomId::DOM0, domid),
        };
        self.nodes.insert(home.clone(), Node { value: Vec::new(), permissions: shared.clone() });
        let name = domid.to_string().into_bytes();
        self.nodes.insert(format!("{home}/domid"), Node { value: name, permissions: shared });
        let own = Permissions::private(domid);
        self.nodes.insert(format!("{home}/data"), Node { value: Vec::new(), permissions: own });
    }

    pub(super) fn inventory(&self) -> Vec<String> {
        let nodes = self.nodes.iter().map(|(path, node)| {
            format!("{path} = {:?} ({})", String::from_utf8_lossy(&node.value), node.permissions)
        });
        let transactions =
            self.transactions.values().map(|pending| format!("a transaction of domain {}", pending.owner));
        let watches = self.watchers.values().flat_map(|watcher| {
            watcher.watches.iter().map(|(path, _)| format!("a watch of domain {} on {path}", watcher.domid))
        });
        let introduced = self.introduced.iter().map(|domid| format!("domain {domid} is introduced"));
        nodes.chain(transactions).chain(watches).chain(introduced).collect()
    }

    /// Runs `body` on the tree or on a transaction's copy of it, and fires the watches of what changed.
    fn run<T>(
        &mut self,
        domid: DomId,
        tx: Transaction,
        body: impl FnOnce(&mut View<'_>) -> Request<T>,
    ) -> Request<T> {
        if tx == Transaction::NONE {
            let mut view = View { nodes: &mut self.nodes, domid, changed: Vec::new() };
            let result = body(&mut view);
            let changed = view.changed;
            self.fire(&changed);
            return result;
        }
        let pending = self.transactions.get_mut(&tx.0).filter(|pending| pending.owner == domid);
        let pending = pending.ok_or(libc::ENOENT)?;
        let mut view = View { nodes: &mut pending.nodes, domid, changed: Vec::new() };
        let result = body(&mut view);
        pending.changed.append(&mut view.changed);
        result
    }

    fn begin(&mut self, domid: DomId, connection: u64) -> Request<u32> {
        let open = self.transactions.values().filter(|pending| pending.owner == domid).count();
        if domid != DomId::DOM0 && open >= TRANSACTION_QUOTA {
            return Err(libc::ENOSPC);
        }
        let id = self.next_transaction;
        self.next_transaction += 1;
        let pending = Pending {
            owner: domid,
            connection,
            nodes: self.nodes.clone(),
            since: self.generation,
            changed: Vec::new(),
        };
        self.transactions.insert(id, pending);
        Ok(id)
    }

    fn end(&mut self, domid: DomId, id: u32, commit: bool) -> Request<()> {
        if self.transactions.get(&id).is_none_or(|pending| pending.owner != domid) {
            return Err(libc::ENOENT);
        }
        let Some(pending) = self.transactions.remove(&id) else { return Err(libc::ENOENT) };
        if !commit {
            return Ok(());
        }
        // Stricter than xenstored, which looks at the nodes that were touched.
        if pending.since != self.generation {
            return Err(libc::EAGAIN);
        }
        self.nodes = pending.nodes;
        self.fire(&pending.changed);
        Ok(())
    }

    fn fire(&mut self, changed: &[String]) {
        if !changed.is_empty() {
            self.generation += 1;
        }
        for path in changed {
            for watcher in self.watchers.values_mut() {
                for (watched, token) in &watcher.watches {
                    // A removed parent fires the watches below it, too.
                    if is_at_or_below(path, watched) || is_at_or_below(watched, path) {
                        watcher.events.push_back(WatchEvent { path: path.clone(), token: token.clone() });
                    }
                }
                settle(watcher);
            }
        }
        self.drive_backends(changed);
    }

    /// Lets the backend drivers see what changed.
    fn drive_backends(&mut self, changed: &[String]) {
        for path in changed {
            let Some(node) = self.nodes.get(path) else { continue };
            let answer = self.backends.answer(path, &node.value, |path| self.nodes.contains_key(path));
            if let (Some(state), Some(node)) = (answer, self.nodes.get_mut(path)) {
                node.value = state.to_vec();
                self.fire(std::slice::from_ref(path));
            }
        }
    }

    /// Fires a special watch, such as `@releaseDomain`.
    pub(super) fn fire_special(&mut self, name: &str) {
        for watcher in self.watchers.values_mut() {
            for (watched, token) in &watcher.watches {
                if watched == name {
                    watcher.events.push_back(WatchEvent { path: name.to_owned(), token: token.clone() });
                }
            }
            settle(watcher);
        }
    }

    /// What xenstored does when a domain is no more: it forgets the introduction. The nodes are the toolstack's to remove.
    pub(super) fn domain_gone(&mut self, domid: DomId) {
        self.introduced.remove(&domid);
        self.fire_special("@releaseDomain");
    }
}

/// Makes the descriptor readable when, and only when, an event waits.
fn settle(watcher: &Watcher) {
    let mut counter = [0; 8];
    // An eventfd in non-blocking mode: reading an empty one, the only failure there is, changes nothing.
    let _ = rustix::io::read(&watcher.signal, &mut counter);
    if !watcher.events.is_empty() {
        let _ = rustix::io::write(&watcher.signal, &1_u64.to_ne_bytes());
    }
}

pub(super) struct Connection {
    domain: Domain,
    watcher: u64,
    signal: Arc<OwnedFd>,
}

impl Connection {
    pub(super) fn new(domain: Domain) -> Result<Self> {
        let signal = eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)
            .map_err(|errno| Error::new("xs_open", "", errno.into()))?;
        let signal = Arc::new(signal);
        let watcher = {
            let mut state = domain.machine.0.state.lock();
            let id = state.store.next_watcher;
            state.store.next_watcher += 1;
            let watcher = Watcher {
                domid: domain.domid,
                watches: Vec::new(),
                events: VecDeque::new(),
                signal: Arc::clone(&signal),
            };
            state.store.watchers.insert(id, watcher);
            id
        };
        Ok(Self { domain, watcher, signal })
    }

    fn absolute(&self, path: &str) -> Request<String> {
        let absolute = if path.starts_with('/') {
            path.to_owned()
        } else {
            format!("{}/{path}", home(self.domain.domid))
        };
        let legal = |c: char| c.is_ascii_alphanumeric() || "-/_@:".contains(c);
        let well_formed = absolute == "/" || (!absolute.ends_with('/') && !absolute.contains("//"));
        if well_formed && absolute.len() <= PATH_MAX && absolute.chars().all(legal) {
            Ok(absolute)
        } else {
            Err(libc::EINVAL)
        }
    }

    fn request<T>(
        &self,
        call: &'static str,
        args: &str,
        body: impl FnOnce(&mut Tree, DomId) -> Request<T>,
    ) -> Result<T> {
        self.domain.machine.enter(call, || args.to_owned())?;
        let mut state = self.domain.machine.0.state.lock();
        body(&mut state.store, self.domain.domid).map_err(|errno| Error::errno(call, args, errno))
    }

    fn on_node<T>(
        &self,
        call: &'static str,
        tx: Transaction,
        path: &str,
        body: impl FnOnce(&mut View<'_>, &str) -> Request<T>,
    ) -> Result<T> {
        self.request(call, path, |tree, domid| {
            let path = self.absolute(path)?;
            tree.run(domid, tx, |view| body(view, &path))
        })
    }

    fn privileged<T>(
        &self,
        call: &'static str,
        domid: DomId,
        body: impl FnOnce(&mut Tree) -> Request<T>,
    ) -> Result<T> {
        self.request(call, &format!("domid {domid}"), |tree, own| {
            if own == DomId::DOM0 { body(tree) } else { Err(libc::EACCES) }
        })
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        let store = &mut self.domain.machine.0.state.lock().store;
        store.watchers.remove(&self.watcher);
        // What it began ends with it.
        store.transactions.retain(|_, pending| pending.connection != self.watcher);
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.signal.as_fd()
    }
}

impl Xenstore for Connection {
    fn is_local(&self) -> bool {
        self.domain.domid == DomId::DOM0
    }

    fn read(&self, tx: Transaction, path: &str) -> Result<Vec<u8>> {
        self.on_node("xs_read", tx, path, |view, path| Ok(view.readable(path)?.value.clone()))
    }

    fn write(&self, tx: Transaction, path: &str, value: &[u8]) -> Result<()> {
        self.on_node("xs_write", tx, path, |view, path| {
            if path.len() + value.len() >= PAYLOAD_MAX {
                return Err(libc::E2BIG);
            }
            view.write(path, Some(value))
        })
    }

    fn mkdir(&self, tx: Transaction, path: &str) -> Result<()> {
        self.on_node("xs_mkdir", tx, path, |view, path| view.write(path, None))
    }

    fn remove(&self, tx: Transaction, path: &str) -> Result<()> {
        self.on_node("xs_rm", tx, path, |view, path| view.remove(path))
    }

    fn directory(&self, tx: Transaction, path: &str) -> Result<Vec<String>> {
        self.on_node("xs_directory", tx, path, |view, path| view.directory(path))
    }

    fn permissions(&self, tx: Transaction, path: &str) -> Result<Permissions> {
        self.on_node("xs_get_permissions", tx, path, |view, path| {
            Ok(view.readable(path)?.permissions.clone())
        })
    }

    fn set_permissions(&self, tx: Transaction, path: &str, permissions: &Permissions) -> Result<()> {
        self.on_node("xs_set_permissions", tx, path, |view, path| view.set_permissions(path, permissions))
    }

    fn begin(&self) -> Result<Transaction> {
        let begin = |tree: &mut Tree, domid| tree.begin(domid, self.watcher);
        self.request("xs_transaction_start", "", begin).map(Transaction)
    }

    fn end(&self, tx: Transaction, commit: bool) -> Result<()> {
        self.request("xs_transaction_end", if commit { "commit" } else { "abandon" }, |tree, domid| {
            tree.end(domid, tx.0, commit)
        })
    }

    fn watch(&self, path: &str, token: &str) -> Result<()> {
        self.request("xs_watch", path, |tree, _| {
            let path = if path.starts_with('@') { path.to_owned() } else { self.absolute(path)? };
            let watcher = tree.watchers.get_mut(&self.watcher).ok_or(libc::EBADF)?;
            let watch = (path.clone(), token.to_owned());
            if watcher.watches.contains(&watch) {
                return Err(libc::EEXIST);
            }
            watcher.watches.push(watch);
            watcher.events.push_back(WatchEvent { path, token: token.to_owned() });
            settle(watcher);
            Ok(())
        })
    }

    fn unwatch(&self, path: &str, token: &str) -> Result<()> {
        self.request("xs_unwatch", path, |tree, _| {
            let path = if path.starts_with('@') { path.to_owned() } else { self.absolute(path)? };
            let watcher = tree.watchers.get_mut(&self.watcher).ok_or(libc::EBADF)?;
            let at = watcher.watches.iter().position(|(watched, given)| *watched == path && given == token);
            watcher.watches.remove(at.ok_or(libc::ENOENT)?);
            Ok(())
        })
    }

    fn watch_event(&self) -> Result<Option<WatchEvent>> {
        let mut state = self.domain.machine.0.state.lock();
        let Some(watcher) = state.store.watchers.get_mut(&self.watcher) else { return Ok(None) };
        let event = watcher.events.pop_front();
        settle(watcher);
        Ok(event)
    }

    fn introduce(&self, domid: DomId, _ring: Gfn, _port: Port) -> Result<()> {
        self.privileged("xs_introduce_domain", domid, |tree| {
            if !tree.introduced.insert(domid) {
                return Err(libc::EINVAL);
            }
            tree.fire_special("@introduceDomain");
            Ok(())
        })
    }

    fn release(&self, domid: DomId) -> Result<()> {
        self.privileged("xs_release_domain", domid, |tree| {
            if !tree.introduced.contains(&domid) {
                return Err(libc::ENOENT);
            }
            tree.domain_gone(domid);
            Ok(())
        })
    }

    fn resume(&self, domid: DomId) -> Result<()> {
        self.privileged("xs_resume_domain", domid, |tree| {
            if tree.introduced.contains(&domid) { Ok(()) } else { Err(libc::ENOENT) }
        })
    }

    fn is_introduced(&self, domid: DomId) -> Result<bool> {
        self.request("xs_is_domain_introduced", &format!("domid {domid}"), |tree, _| {
            Ok(tree.introduced.contains(&domid))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mock::Machine;
    use crate::{ErrorKind, Platform, transaction};

    const NONE: Transaction = Transaction::NONE;

    fn store(machine: &Machine, domid: u16) -> Arc<dyn Xenstore> {
        machine.domain(DomId(domid)).xenstore().unwrap()
    }

    fn kind<T>(result: Result<T>) -> Option<ErrorKind> {
        result.err().map(|error| error.kind())
    }

    #[test]
    fn a_domain_writes_its_own_nodes_and_others_read_what_they_may() {
        let machine = Machine::new();
        let (alice, bob) = (store(&machine, 1), store(&machine, 2));
        alice.write(NONE, "data/key", b"value").unwrap();
        assert_eq!(alice.read(NONE, "/local/domain/1/data/key").unwrap(), b"value");
        assert_eq!(kind(bob.read(NONE, "/local/domain/1/data/key")), Some(ErrorKind::PermissionDenied));
        assert_eq!(kind(bob.write(NONE, "/local/domain/1/data/x", b"")), Some(ErrorKind::PermissionDenied));
        alice.set_permissions(NONE, "data/key", &Permissions::readable_by(DomId(1), DomId(2))).unwrap();
        assert_eq!(bob.read(NONE, "/local/domain/1/data/key").unwrap(), b"value");
        assert_eq!(alice.permissions(NONE, "data/key").unwrap().to_string(), "n1,r2");
        assert_eq!(kind(bob.read(NONE, "/local/domain/1/none")), Some(ErrorKind::NotFound));
        assert_eq!(
            kind(bob.set_permissions(NONE, "/local/domain/1/data", &Permissions::private(DomId(2)))),
            Some(ErrorKind::PermissionDenied)
        );
    }

    #[test]
    fn new_nodes_inherit_permissions_and_change_owner() {
        let machine = Machine::new();
        let (dom0, alice) = (store(&machine, 0), store(&machine, 1));
        dom0.mkdir(NONE, "/local/domain/1/device").unwrap();
        assert_eq!(dom0.permissions(NONE, "/local/domain/1/device").unwrap().to_string(), "n0,r1");
        alice.write(NONE, "data/a/b", b"").unwrap();
        assert_eq!(dom0.permissions(NONE, "/local/domain/1/data/a").unwrap().to_string(), "n1");
        assert_eq!(dom0.directory(NONE, "/local/domain/1").unwrap(), ["data", "device", "domid"]);
    }

    #[test]
    fn a_transaction_is_all_or_nothing_and_notices_a_conflict() {
        let machine = Machine::new();
        let (one, two) = (store(&machine, 1), store(&machine, 1));
        let tx = one.begin().unwrap();
        one.write(tx, "data/a", b"1").unwrap();
        assert_eq!(kind(two.read(NONE, "data/a")), Some(ErrorKind::NotFound));
        two.write(NONE, "data/b", b"2").unwrap();
        assert_eq!(kind(one.end(tx, true)), Some(ErrorKind::Again));
        assert_eq!(kind(two.read(NONE, "data/a")), Some(ErrorKind::NotFound));
        let mut attempts = 0;
        transaction(&*one, |tx| {
            attempts += 1;
            if attempts == 1 {
                two.write(NONE, "data/b", b"3")?;
            }
            one.write(tx, "data/a", b"1")
        })
        .unwrap();
        assert_eq!(attempts, 2);
        assert_eq!(two.read(NONE, "data/a").unwrap(), b"1");
    }

    #[test]
    fn an_error_in_a_transaction_leaves_none_open() {
        let machine = Machine::new();
        let one = store(&machine, 1);
        let before = machine.inventory();
        let result = transaction(&*one, |tx| {
            one.write(tx, "data/a", b"1")?;
            one.read(tx, "data/none")
        });
        assert_eq!(kind(result), Some(ErrorKind::NotFound));
        assert_eq!(machine.inventory(), before);
    }

    #[test]
    fn the_eleventh_transaction_of_a_domain_is_refused() {
        let machine = Machine::new();
        let one = store(&machine, 1);
        let open: Vec<_> = (0..10).map(|_| one.begin().unwrap()).collect();
        assert_eq!(kind(one.begin()), Some(ErrorKind::Exhausted));
        open.into_iter().for_each(|tx| one.end(tx, false).unwrap());
        assert!(one.begin().is_ok());
    }

    #[test]
    fn a_watch_fires_at_once_and_for_what_is_below() {
        let machine = Machine::new();
        let (one, two) = (store(&machine, 1), store(&machine, 1));
        one.watch("/local/domain/1/data", "token").unwrap();
        let event = |path: &str| Some(WatchEvent { path: path.to_owned(), token: "token".to_owned() });
        assert_eq!(one.watch_event().unwrap(), event("/local/domain/1/data"));
        two.write(NONE, "data/a", b"").unwrap();
        assert_eq!(one.watch_event().unwrap(), event("/local/domain/1/data/a"));
        assert_eq!(one.watch_event().unwrap(), None);
        one.unwatch("/local/domain/1/data", "token").unwrap();
        two.write(NONE, "data/b", b"").unwrap();
        assert_eq!(one.watch_event().unwrap(), None);
    }

    #[test]
    fn malformed_paths_and_large_values_are_refused() {
        let machine = Machine::new();
        let one = store(&machine, 1);
        for path in ["data/", "data//x", "data/with space", "/local/domain/1/"] {
            assert_eq!(kind(one.write(NONE, path, b"")), Some(ErrorKind::Invalid), "{path}");
        }
        assert_eq!(kind(one.write(NONE, "data/a", &[0; 4_096])), Some(ErrorKind::Exhausted));
    }
}
