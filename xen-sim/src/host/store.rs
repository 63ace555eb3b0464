//! Xenstore: the tree, its permissions, transactions and watches.
//!
//! The rules are xenstored's (tools/xenstore/xenstored_core.c, docs/misc/xenstore.txt), down to which errno a domain gets
//! for a node that it may not know about. A request outside of a transaction is a transaction of its own here, so there
//! is one way in which the tree changes.

use super::{ConnectionId, DOMID_SELF};
use crate::wire::{DOMID_FIRST_RESERVED, Domid, Permission, Reply, StoreRequest};
use rustix::io::Errno;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::rc::Rc;

/// Open transactions of a domain (`quota_max_transaction`); as in xenstored it is the next but one that is refused.
const TRANSACTIONS_PER_DOMAIN: usize = 10;
/// Watches of a domain (`quota_nb_watch_per_domain`); the same holds.
const WATCHES_PER_DOMAIN: usize = 128;
/// Nodes that a domain may own (`quota_nb_entry_per_domain`).
const NODES_PER_DOMAIN: usize = 1000;
/// Bytes of a node with all that belongs to it (`quota_max_entry_size`).
const NODE_BYTES: usize = 2048;
/// Entries in a node's permissions (`quota_nb_perms_per_node`).
const PERMISSIONS_PER_NODE: usize = 5;
/// Bytes of a path below a domain's own (`XENSTORE_REL_PATH_MAX`, xen/io/xs_wire.h).
const RELATIVE_PATH_BYTES: usize = 2048;

const INTRODUCED: &str = "@introduceDomain";
const RELEASED: &str = "@releaseDomain";

/// Who asks.
#[derive(Debug, Clone, Copy)]
pub(super) struct Caller {
    pub(super) connection: ConnectionId,
    pub(super) domid: Domid,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Node {
    pub(super) value: Vec<u8>,
    pub(super) permissions: Vec<Permission>,
    children: BTreeSet<String>,
    /// When it was changed last: what transactions are checked against.
    generation: u64,
}

/// A watch event for a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Event {
    pub(super) connection: ConnectionId,
    pub(super) path: String,
    pub(super) token: Vec<u8>,
}

#[derive(Debug)]
struct Watch {
    by: Caller,
    /// Absolute, or one of the two special names.
    path: String,
    token: Vec<u8>,
    /// Set up with a relative path: events carry one too.
    relative: bool,
}

/// What a transaction knows of a node.
#[derive(Debug)]
struct Seen {
    before: Option<Rc<Node>>,
    now: Option<Rc<Node>>,
    modified: bool,
}

#[derive(Debug, Default)]
struct Changes {
    seen: BTreeMap<String, Seen>,
    /// Watches to fire: the path, and whether only those on exactly this path.
    fired: Vec<(String, bool)>,
}

/// The whole store of a host.
#[derive(Debug)]
pub(super) struct Store {
    nodes: BTreeMap<String, Rc<Node>>,
    generation: u64,
    transactions: BTreeMap<(ConnectionId, u32), (Domid, Changes)>,
    next_transaction: u32,
    watches: Vec<Watch>,
    /// Who may see the special events: dom0, unless it says otherwise.
    special: BTreeMap<&'static str, Vec<Permission>>,
    introduced: BTreeSet<Domid>,
    /// Domains that act on behalf of another one.
    targets: HashMap<Domid, Domid>,
    events: Vec<Event>,
}

const fn only(domid: Domid) -> Permission {
    Permission { domid, read: false, write: false }
}

/// What a caller may do with a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Rights {
    read: bool,
    write: bool,
    own: bool,
}

const READ: Rights = Rights { read: true, write: false, own: false };
const WRITE: Rights = Rights { read: false, write: true, own: false };
const WRITE_AND_OWN: Rights = Rights { read: false, write: true, own: true };

impl Rights {
    fn include(self, need: Rights) -> bool {
        self.read >= need.read && self.write >= need.write && self.own >= need.own
    }

    fn include_any(self, need: Rights) -> bool {
        (self.read && need.read) || (self.write && need.write) || (self.own && need.own)
    }
}

fn rights(targets: &HashMap<Domid, Domid>, domid: Domid, permissions: &[Permission]) -> Rights {
    let target = targets.get(&domid);
    let is = |permission: &&Permission| permission.domid == domid || target == Some(&permission.domid);
    let Some((first, listed)) = permissions.split_first() else {
        return Rights { read: false, write: false, own: false };
    };
    if domid == 0 || is(&first) {
        return Rights { read: true, write: true, own: true };
    }
    let found = listed.iter().find(is).unwrap_or(first);
    Rights { read: found.read, write: found.write, own: false }
}

/// `/local/domain/N`.
fn home(domid: Domid) -> String {
    format!("/local/domain/{domid}")
}

fn parent(path: &str) -> &str {
    match path.rfind('/') {
        Some(0) | None => "/",
        Some(at) => &path[..at],
    }
}

fn name(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

fn child(path: &str, name: &str) -> String {
    if path == "/" { format!("/{name}") } else { format!("{path}/{name}") }
}

fn is_below_or_same(path: &str, top: &str) -> bool {
    top == "/" || path.strip_prefix(top).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// The absolute path of what a domain calls `path`.
///
/// # Errors
/// `INVAL`: it can be no node's.
fn absolute(domid: Domid, path: &str) -> Result<String, Errno> {
    let path = if path.starts_with('/') { path.to_owned() } else { format!("{}/{path}", home(domid)) };
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-/_@".contains(&byte);
    // A domain's own path is not counted.
    let counted = path
        .strip_prefix("/local/domain/")
        .and_then(|rest| rest.split_once('/'))
        .filter(|(domid, _)| domid.len() <= 5 && domid.parse::<u32>().is_ok())
        .map_or(path.len(), |(_, rest)| rest.len());
    let fits = counted <= RELATIVE_PATH_BYTES;
    let shaped = path == "/" || (!path.ends_with('/') && !path.contains("//"));
    if fits && shaped && path.bytes().all(allowed) { Ok(path) } else { Err(Errno::INVAL) }
}

/// The tree as a transaction sees it.
struct View<'a> {
    nodes: &'a BTreeMap<String, Rc<Node>>,
    targets: &'a HashMap<Domid, Domid>,
    changes: &'a mut Changes,
    domid: Domid,
}

impl View<'_> {
    fn node(&mut self, path: &str) -> Option<Rc<Node>> {
        if let Some(seen) = self.changes.seen.get(path) {
            return seen.now.clone();
        }
        let before = self.nodes.get(path).cloned();
        let seen = Seen { before: before.clone(), now: before.clone(), modified: false };
        self.changes.seen.insert(path.to_owned(), seen);
        before
    }

    fn set(&mut self, path: &str, node: Option<Node>) {
        self.node(path);
        if let Some(seen) = self.changes.seen.get_mut(path) {
            seen.now = node.map(Rc::new);
            seen.modified = true;
        }
    }

    /// Fires watches when the transaction is committed. Once a path; a wider firing replaces a narrower one.
    fn fire(&mut self, path: &str, exact: bool) {
        match self.changes.fired.iter_mut().find(|(fired, _)| fired == path) {
            Some((_, before)) => *before &= exact,
            None => self.changes.fired.push((path.to_owned(), exact)),
        }
    }

    fn rights(&self, node: &Node) -> Rights {
        rights(self.targets, self.domid, &node.permissions)
    }

    /// The node, if the caller may do that with it.
    ///
    /// # Errors
    /// `NOENT`, or `ACCES`: it may not, or may not even know whether there is such a node, which it may if the nearest
    /// existing parent allows it the same.
    fn get(&mut self, path: &str, need: Rights) -> Result<Rc<Node>, Errno> {
        let error = match self.node(path) {
            Some(node) if self.rights(&node).include(need) => return Ok(node),
            Some(_) => Errno::ACCESS,
            None => Errno::NOENT,
        };
        let mut above = path;
        while above != "/" {
            above = parent(above);
            if let Some(node) = self.node(above) {
                return Err(if self.rights(&node).include_any(need) { error } else { Errno::ACCESS });
            }
        }
        Err(Errno::ACCESS)
    }

    /// Nodes that the caller owns.
    fn owned(&self) -> usize {
        let owned = |node: &Node| node.permissions.first().is_some_and(|owner| owner.domid == self.domid);
        let untouched = self.nodes.iter().filter(|(path, _)| !self.changes.seen.contains_key(*path));
        untouched.filter(|(_, node)| owned(node)).count()
            + self.changes.seen.values().filter(|seen| seen.now.as_deref().is_some_and(owned)).count()
    }

    /// # Errors
    /// `NOSPC`: too large for a domain that is not dom0.
    fn fits(&self, node: &Node) -> Result<(), Errno> {
        // struct xs_tdb_record_hdr and its permissions, then the value and the children's names with their NULs.
        let children: usize = node.children.iter().map(|name| name.len() + 1).sum();
        let bytes = 24 + 8 * node.permissions.len() + node.value.len() + children;
        if self.domid != 0 && bytes >= NODE_BYTES { Err(Errno::NOSPC) } else { Ok(()) }
    }

    /// Makes a node and the parents it lacks; they inherit the permissions of the nearest parent that there is.
    fn create(&mut self, path: &str, value: Vec<u8>) -> Result<(), Errno> {
        let mut missing = vec![path];
        let mut above = parent(path);
        let root = loop {
            match self.node(above) {
                Some(node) => break node,
                None if above == "/" => return Err(Errno::NOENT),
                None => {
                    missing.push(above);
                    above = parent(above);
                }
            }
        };
        if self.domid != 0 && self.owned() + missing.len() > NODES_PER_DOMAIN {
            return Err(Errno::NOSPC);
        }
        let mut permissions = root.permissions.clone();
        if self.domid != 0
            && let Some(owner) = permissions.first_mut()
        {
            owner.domid = self.domid;
        }
        let mut new = Vec::new();
        let mut top = (*root).clone();
        top.children.extend(missing.last().map(|path| name(path).to_owned()));
        new.push((above.to_owned(), top));
        for (index, path) in missing.iter().enumerate().rev() {
            let below = index.checked_sub(1).and_then(|below| missing.get(below));
            let node = Node {
                value: if below.is_none() { value.clone() } else { Vec::new() },
                permissions: permissions.clone(),
                children: below.iter().map(|path| name(path).to_owned()).collect(),
                generation: 0,
            };
            new.push(((*path).to_owned(), node));
        }
        new.iter().try_for_each(|(_, node)| self.fits(node))?;
        for (path, node) in new {
            self.set(&path, Some(node));
        }
        Ok(())
    }

    fn write(&mut self, path: &str, value: Vec<u8>) -> Result<(), Errno> {
        match self.get(path, WRITE) {
            Ok(node) => {
                let node = Node { value, ..(*node).clone() };
                self.fits(&node)?;
                self.set(path, Some(node));
            }
            Err(Errno::NOENT) => self.create(path, value)?,
            Err(error) => return Err(error),
        }
        self.fire(path, false);
        Ok(())
    }

    fn mkdir(&mut self, path: &str) -> Result<(), Errno> {
        match self.get(path, WRITE) {
            Ok(_) => Ok(()),
            Err(Errno::NOENT) => {
                self.create(path, Vec::new())?;
                self.fire(path, false);
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    fn remove(&mut self, path: &str) -> Result<(), Errno> {
        match self.get(path, WRITE) {
            Ok(_) if path == "/" => return Err(Errno::INVAL),
            Ok(_) => {}
            Err(Errno::NOENT) if self.node(parent(path)).is_some() => return Ok(()),
            Err(error) => return Err(error),
        }
        self.remove_tree(path, true);
        if let Some(above) = self.node(parent(path)) {
            let mut above = (*above).clone();
            above.children.remove(name(path));
            self.set(parent(path), Some(above));
        }
        Ok(())
    }

    fn remove_tree(&mut self, path: &str, top: bool) {
        let Some(node) = self.node(path) else { return };
        for name in &node.children {
            self.remove_tree(&child(path, name), false);
        }
        self.fire(path, !top);
        self.set(path, None);
    }

    fn set_permissions(&mut self, path: &str, permissions: Vec<Permission>) -> Result<(), Errno> {
        let node = self.get(path, WRITE_AND_OWN)?;
        let owner = |permissions: &[Permission]| permissions.first().map(|owner| owner.domid);
        if self.domid != 0 && owner(&permissions) != owner(&node.permissions) {
            return Err(Errno::PERM);
        }
        let node = Node { permissions, ..(*node).clone() };
        self.fits(&node)?;
        self.set(path, Some(node));
        self.fire(path, false);
        Ok(())
    }
}

impl Store {
    pub(super) fn new() -> Self {
        let root =
            Node { value: Vec::new(), permissions: vec![only(0)], children: BTreeSet::new(), generation: 0 };
        Self {
            nodes: BTreeMap::from([("/".to_owned(), Rc::new(root))]),
            generation: 1,
            transactions: BTreeMap::new(),
            next_transaction: 1,
            watches: Vec::new(),
            special: BTreeMap::from([(INTRODUCED, vec![only(0)]), (RELEASED, vec![only(0)])]),
            introduced: BTreeSet::new(),
            targets: HashMap::new(),
            events: Vec::new(),
        }
    }

    /// Adds a node of a tree that was saved, parents first.
    ///
    /// # Errors
    /// `INVAL`: no valid path, or without a parent, or without permissions.
    pub(super) fn restore(
        &mut self,
        path: &str,
        permissions: Vec<Permission>,
        value: Vec<u8>,
    ) -> Result<(), Errno> {
        if permissions.is_empty() || absolute(0, path)? != path {
            return Err(Errno::INVAL);
        }
        if path != "/" {
            let above = self.nodes.get_mut(parent(path)).ok_or(Errno::INVAL)?;
            Rc::make_mut(above).children.insert(name(path).to_owned());
        }
        let children = self.nodes.get(path).map_or_else(BTreeSet::new, |node| node.children.clone());
        let node = Node { value, permissions, children, generation: self.generation };
        self.nodes.insert(path.to_owned(), Rc::new(node));
        Ok(())
    }

    /// All nodes, parents first.
    pub(super) fn nodes(&self) -> impl Iterator<Item = (&str, &Node)> {
        self.nodes.iter().map(|(path, node)| (path.as_str(), &**node))
    }

    /// The events since the last call, for the connections that they name.
    pub(super) fn take_events(&mut self) -> Vec<Event> {
        std::mem::take(&mut self.events)
    }

    /// Whether a domain is there: it is from its first handle on until it is released.
    pub(super) fn is_introduced(&self, domid: Domid) -> bool {
        self.introduced.contains(&domid)
    }

    /// Brings a domain up at its first use, as the toolstack would have: `/local/domain/N`, which it owns, with its
    /// domid, which it may read, and `data` to write to.
    pub(super) fn introduce(&mut self, domid: Domid) {
        if !self.introduced.insert(domid) {
            return;
        }
        let home = home(domid);
        let mine = vec![only(domid)];
        let told = vec![only(0), Permission { domid, read: true, write: false }];
        let domid_node = child(&home, "domid");
        let wanted = [
            (home.clone(), mine.clone(), Vec::new()),
            (child(&home, "data"), mine, Vec::new()),
            (
                domid_node.clone(),
                if domid == 0 { vec![only(0)] } else { told },
                domid.to_string().into_bytes(),
            ),
        ];
        // As dom0 it cannot fail.
        let mut changes = Changes::default();
        let mut view = View { nodes: &self.nodes, targets: &self.targets, changes: &mut changes, domid: 0 };
        for (path, permissions, value) in wanted {
            if view.node(&path).is_none() {
                let _ = view.write(&path, value).and_then(|()| view.set_permissions(&path, permissions));
            }
        }
        let _ = self.commit(changes);
        self.fire_special(INTRODUCED);
    }

    /// Runs one request.
    ///
    /// # Errors
    /// Those of xenstored.
    pub(super) fn request(
        &mut self,
        caller: Caller,
        transaction: u32,
        request: StoreRequest,
    ) -> Result<Reply, Errno> {
        let domid = caller.domid;
        let path_of = |path: &str| absolute(domid, path);
        match request {
            StoreRequest::Read { path } => {
                let path = path_of(&path)?;
                self.run(caller, transaction, |view| view.get(&path, READ))
                    .map(|node| Reply::Value(node.value.clone()))
            }
            StoreRequest::List { path } => {
                let path = path_of(&path)?;
                self.run(caller, transaction, |view| view.get(&path, READ))
                    .map(|node| Reply::Names(node.children.iter().cloned().collect()))
            }
            StoreRequest::Permissions { path } => {
                let path = path_of(&path)?;
                self.run(caller, transaction, |view| view.get(&path, READ))
                    .map(|node| Reply::Permissions(node.permissions.clone()))
            }
            StoreRequest::Write { path, value } => {
                let path = path_of(&path)?;
                self.run(caller, transaction, |view| view.write(&path, value)).map(|()| Reply::Done)
            }
            StoreRequest::Mkdir { path } => {
                let path = path_of(&path)?;
                self.run(caller, transaction, |view| view.mkdir(&path)).map(|()| Reply::Done)
            }
            StoreRequest::Remove { path } => {
                let path = path_of(&path)?;
                self.run(caller, transaction, |view| view.remove(&path)).map(|()| Reply::Done)
            }
            StoreRequest::SetPermissions { path, permissions } => {
                if permissions.is_empty() {
                    return Err(Errno::INVAL);
                }
                if domid != 0 && permissions.len() > PERMISSIONS_PER_NODE {
                    return Err(Errno::NOSPC);
                }
                if path.starts_with('@') {
                    return self.set_special(caller, &path, permissions).map(|()| Reply::Done);
                }
                let path = path_of(&path)?;
                self.run(caller, transaction, |view| view.set_permissions(&path, permissions))
                    .map(|()| Reply::Done)
            }
            StoreRequest::Begin => self.begin(caller, transaction).map(Reply::Transaction),
            StoreRequest::End { commit } => self.end(caller, transaction, commit).map(|()| Reply::Done),
            StoreRequest::Watch { path, token } => self.watch(caller, path, token).map(|()| Reply::Done),
            StoreRequest::Unwatch { path, token, .. } => {
                self.unwatch(caller, path, &token).map(|()| Reply::Done)
            }
            StoreRequest::IsIntroduced { domid: asked } => {
                Ok(Reply::Truth(asked == DOMID_SELF || self.is_introduced(asked)))
            }
            StoreRequest::Introduce { domid: new } => {
                self.privileged(caller)?;
                if new >= DOMID_FIRST_RESERVED {
                    return Err(Errno::INVAL);
                }
                self.introduce(new);
                Ok(Reply::Done)
            }
            StoreRequest::Release { domid: gone } => {
                self.known(caller, gone)?;
                self.introduced.remove(&gone);
                self.targets.remove(&gone);
                self.fire_special(RELEASED);
                Ok(Reply::Done)
            }
            StoreRequest::Resume { domid: resumed } => self.known(caller, resumed).map(|()| Reply::Done),
            StoreRequest::SetTarget { domid: agent, target } => {
                self.known(caller, agent)?;
                self.known(caller, target)?;
                self.targets.insert(agent, target);
                Ok(Reply::Done)
            }
            // The queue is the connection's.
            StoreRequest::NextEvent => Err(Errno::INVAL),
        }
    }

    /// Ends a connection: its watches and its open transactions are gone.
    pub(super) fn close(&mut self, connection: ConnectionId) {
        self.watches.retain(|watch| watch.by.connection != connection);
        self.transactions.retain(|(of, _), _| *of != connection);
    }

    fn privileged(&self, caller: Caller) -> Result<(), Errno> {
        if caller.domid == 0 { Ok(()) } else { Err(Errno::ACCESS) }
    }

    /// dom0 names a guest that is there.
    fn known(&self, caller: Caller, domid: Domid) -> Result<(), Errno> {
        self.privileged(caller)?;
        if domid == 0 {
            return Err(Errno::INVAL);
        }
        if self.is_introduced(domid) { Ok(()) } else { Err(Errno::NOENT) }
    }

    fn run<T>(
        &mut self,
        caller: Caller,
        transaction: u32,
        work: impl FnOnce(&mut View<'_>) -> Result<T, Errno>,
    ) -> Result<T, Errno> {
        let Self { nodes, targets, transactions, .. } = self;
        if transaction != 0 {
            let (_, changes) = transactions.get_mut(&(caller.connection, transaction)).ok_or(Errno::NOENT)?;
            return work(&mut View { nodes, targets, changes, domid: caller.domid });
        }
        let mut changes = Changes::default();
        let done = work(&mut View { nodes, targets, changes: &mut changes, domid: caller.domid })?;
        self.commit(changes)?;
        Ok(done)
    }

    fn begin(&mut self, caller: Caller, within: u32) -> Result<u32, Errno> {
        if within != 0 {
            return Err(Errno::BUSY);
        }
        let open = self.transactions.values().filter(|(domid, _)| *domid == caller.domid).count();
        if caller.domid != 0 && open > TRANSACTIONS_PER_DOMAIN {
            return Err(Errno::NOSPC);
        }
        let id = self.next_transaction;
        self.next_transaction = id.checked_add(1).unwrap_or(1);
        self.transactions.insert((caller.connection, id), (caller.domid, Changes::default()));
        Ok(id)
    }

    fn end(&mut self, caller: Caller, transaction: u32, commit: bool) -> Result<(), Errno> {
        let ended = self.transactions.remove(&(caller.connection, transaction));
        let (_, changes) = ended.ok_or(Errno::NOENT)?;
        if commit { self.commit(changes) } else { Ok(()) }
    }

    /// Makes changes true, unless one of the nodes they are based on has changed in between.
    ///
    /// # Errors
    /// `AGAIN`: it has.
    fn commit(&mut self, changes: Changes) -> Result<(), Errno> {
        let generation = |node: Option<&Rc<Node>>| node.map(|node| node.generation);
        for (path, seen) in &changes.seen {
            if generation(self.nodes.get(path)) != generation(seen.before.as_ref()) {
                return Err(Errno::AGAIN);
            }
        }
        let mut before = HashMap::new();
        for (path, seen) in changes.seen {
            if !seen.modified {
                continue;
            }
            if let Some(node) = seen.before {
                before.insert(path.clone(), node);
            }
            match seen.now {
                Some(mut node) => {
                    self.generation += 1;
                    Rc::make_mut(&mut node).generation = self.generation;
                    self.nodes.insert(path, node);
                }
                None => {
                    self.nodes.remove(&path);
                }
            }
        }
        for (path, exact) in changes.fired {
            self.fire(&path, exact, before.get(&path).map(|node| &**node));
        }
        Ok(())
    }

    /// Whether a watcher may hear of a node: it may read it, or might before, or may read the parent.
    fn may_hear(&self, domid: Domid, path: &str, before: Option<&Node>) -> bool {
        let candidates = [
            before,
            self.nodes.get(path).map(|node| &**node),
            self.nodes.get(parent(path)).map(|node| &**node),
        ];
        let readable = |node: &Node| rights(&self.targets, domid, &node.permissions).read;
        candidates.into_iter().flatten().any(readable)
    }

    fn fire(&mut self, path: &str, exact: bool, before: Option<&Node>) {
        let concerned = |watch: &&Watch| {
            let hit = if exact { path == watch.path } else { is_below_or_same(path, &watch.path) };
            hit && self.may_hear(watch.by.domid, path, before)
        };
        let events: Vec<Event> =
            self.watches.iter().filter(concerned).map(|watch| watch.event(path)).collect();
        self.events.extend(events);
    }

    fn fire_special(&mut self, name: &'static str) {
        let permissions = self.special.get(name).map_or(&[][..], |permissions| permissions);
        let may_hear = |domid| rights(&self.targets, domid, permissions).read;
        let concerned = |watch: &&Watch| watch.path == name && may_hear(watch.by.domid);
        let events: Vec<Event> =
            self.watches.iter().filter(concerned).map(|watch| watch.event(name)).collect();
        self.events.extend(events);
    }

    fn set_special(&mut self, caller: Caller, name: &str, permissions: Vec<Permission>) -> Result<(), Errno> {
        self.privileged(caller)?;
        let (_, special) = self.special.iter_mut().find(|(known, _)| **known == name).ok_or(Errno::INVAL)?;
        *special = permissions;
        Ok(())
    }

    fn watch(&mut self, caller: Caller, path: String, token: Vec<u8>) -> Result<(), Errno> {
        let special = path.starts_with('@');
        let relative = !special && !path.starts_with('/');
        let path = match special {
            true if path.len() > RELATIVE_PATH_BYTES => return Err(Errno::INVAL),
            true => path,
            false => absolute(caller.domid, &path)?,
        };
        let mut own = self.watches.iter().filter(|watch| watch.by.connection == caller.connection);
        if own.any(|watch| watch.path == path && watch.token == token) {
            return Err(Errno::EXIST);
        }
        let watches = self.watches.iter().filter(|watch| watch.by.domid == caller.domid).count();
        if caller.domid != 0 && watches > WATCHES_PER_DOMAIN {
            return Err(Errno::TOOBIG);
        }
        let watch = Watch { by: caller, path, token, relative };
        // Fires once at once: the client need not ask first how things are.
        self.events.push(watch.event(&watch.path));
        self.watches.push(watch);
        Ok(())
    }

    fn unwatch(&mut self, caller: Caller, path: String, token: &[u8]) -> Result<(), Errno> {
        let path = if path.starts_with(['@', '/']) { path } else { child(&home(caller.domid), &path) };
        let is = |watch: &Watch| {
            watch.by.connection == caller.connection && watch.path == path && watch.token == token
        };
        let at = self.watches.iter().position(is).ok_or(Errno::NOENT)?;
        self.watches.remove(at);
        Ok(())
    }
}

impl Watch {
    fn event(&self, path: &str) -> Event {
        let shown = if self.relative {
            let below = path.strip_prefix(&home(self.by.domid)).unwrap_or(path);
            below.strip_prefix('/').unwrap_or(below)
        } else {
            path
        };
        Event { connection: self.by.connection, path: shown.to_owned(), token: self.token.clone() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A store with dom0 on connection 100 and domain N on connection N.
    struct Rig(Store);

    fn rig() -> Rig {
        let mut store = Store::new();
        for domid in [0, 1, 2, 3] {
            store.introduce(domid);
        }
        Rig(store)
    }

    impl Rig {
        fn ask(&mut self, domid: Domid, transaction: u32, request: StoreRequest) -> Result<Reply, Errno> {
            let connection = if domid == 0 { 100 } else { ConnectionId::from(domid) };
            self.0.request(Caller { connection, domid }, transaction, request)
        }

        fn read(&mut self, domid: Domid, t: u32, path: &str) -> Result<Vec<u8>, Errno> {
            match self.ask(domid, t, StoreRequest::Read { path: path.into() })? {
                Reply::Value(value) => Ok(value),
                other => panic!("{other:?}"),
            }
        }

        fn write(&mut self, domid: Domid, t: u32, path: &str, value: &str) -> Result<(), Errno> {
            self.ask(domid, t, StoreRequest::Write { path: path.into(), value: value.into() }).map(drop)
        }

        fn remove(&mut self, domid: Domid, t: u32, path: &str) -> Result<(), Errno> {
            self.ask(domid, t, StoreRequest::Remove { path: path.into() }).map(drop)
        }

        fn list(&mut self, domid: Domid, t: u32, path: &str) -> Vec<String> {
            match self.ask(domid, t, StoreRequest::List { path: path.into() }) {
                Ok(Reply::Names(names)) => names,
                other => panic!("{other:?}"),
            }
        }

        fn permit(&mut self, domid: Domid, path: &str, permissions: &[Permission]) -> Result<(), Errno> {
            let permissions = permissions.to_vec();
            self.ask(domid, 0, StoreRequest::SetPermissions { path: path.into(), permissions }).map(drop)
        }

        fn permissions(&mut self, domid: Domid, path: &str) -> Vec<Permission> {
            match self.ask(domid, 0, StoreRequest::Permissions { path: path.into() }) {
                Ok(Reply::Permissions(permissions)) => permissions,
                other => panic!("{other:?}"),
            }
        }

        fn begin(&mut self, domid: Domid) -> Result<u32, Errno> {
            match self.ask(domid, 0, StoreRequest::Begin)? {
                Reply::Transaction(id) => Ok(id),
                other => panic!("{other:?}"),
            }
        }

        fn end(&mut self, domid: Domid, t: u32, commit: bool) -> Result<(), Errno> {
            self.ask(domid, t, StoreRequest::End { commit }).map(drop)
        }

        fn watch(&mut self, domid: Domid, path: &str, token: &str) -> Result<(), Errno> {
            self.ask(domid, 0, StoreRequest::Watch { path: path.into(), token: token.into() }).map(drop)
        }

        fn unwatch(&mut self, domid: Domid, path: &str, token: &str) -> Result<(), Errno> {
            let request = StoreRequest::Unwatch { path: path.into(), token: token.into(), forget: false };
            self.ask(domid, 0, request).map(drop)
        }

        /// "connection path token" of each event.
        fn events(&mut self) -> Vec<String> {
            let shown = |event: Event| {
                format!("{} {} {}", event.connection, event.path, String::from_utf8(event.token).unwrap())
            };
            self.0.take_events().into_iter().map(shown).collect()
        }
    }

    fn reader(domid: Domid) -> Permission {
        Permission { domid, read: true, write: false }
    }

    fn writer(domid: Domid) -> Permission {
        Permission { domid, read: true, write: true }
    }

    #[test]
    fn a_domain_finds_its_own_id_at_a_relative_path() {
        let mut rig = rig();
        for domid in [0, 1, 3] {
            assert_eq!(rig.read(domid, 0, "domid").unwrap(), domid.to_string().as_bytes());
        }
        assert_eq!(rig.read(2, 0, "/local/domain/1/domid"), Err(Errno::ACCESS));
        assert_eq!(rig.write(1, 0, "domid", "7"), Err(Errno::ACCESS), "its id is not its to change");
    }

    #[test]
    fn relative_paths_are_below_the_domains_home() {
        let mut rig = rig();
        rig.write(1, 0, "data/vchan/2/x", "hello").unwrap();
        assert_eq!(rig.read(1, 0, "/local/domain/1/data/vchan/2/x").unwrap(), b"hello");
        assert_eq!(rig.list(1, 0, "data/vchan"), ["2"]);
        assert_eq!(rig.read(1, 0, "data/vchan").unwrap(), b"", "parents are made with no value");
        assert_eq!(rig.read(2, 0, "data/vchan/2/x"), Err(Errno::NOENT), "its own home, where it may look");
    }

    #[test]
    fn paths_that_no_node_can_have_are_refused() {
        let mut rig = rig();
        let long = "x".repeat(RELATIVE_PATH_BYTES + 1);
        for path in ["", "/a//b", "/a/", "a b", "/a.b", "/ä", &long, &format!("/{long}")] {
            assert_eq!(rig.read(0, 0, path), Err(Errno::INVAL), "{path}");
        }
        assert_eq!(rig.write(0, 0, &long[1..], ""), Ok(()), "the home is not counted");
        assert_eq!(rig.read(0, 0, "/").unwrap(), b"");
    }

    #[test]
    fn nobody_but_dom0_and_the_owner_gets_in_uninvited() {
        let mut rig = rig();
        rig.write(1, 0, "data/secret", "s").unwrap();
        let path = "/local/domain/1/data/secret";
        assert_eq!(rig.permissions(1, path), [only(1)], "new nodes are their creator's");
        assert_eq!(rig.read(2, 0, path), Err(Errno::ACCESS));
        assert_eq!(rig.write(2, 0, path, "x"), Err(Errno::ACCESS));
        assert_eq!(rig.remove(2, 0, path), Err(Errno::ACCESS));
        assert_eq!(
            rig.read(2, 0, "/local/domain/1/data/absent"),
            Err(Errno::ACCESS),
            "nor is told what is not there"
        );
        assert_eq!(rig.read(0, 0, path).unwrap(), b"s");
        assert_eq!(rig.write(2, 0, "/local/domain/1/data/mine", "x"), Err(Errno::ACCESS));
        assert_eq!(rig.write(2, 0, "/elsewhere", "x"), Err(Errno::ACCESS));

        rig.permit(1, path, &[only(1), reader(2)]).unwrap();
        assert_eq!(rig.read(2, 0, path).unwrap(), b"s");
        assert_eq!(rig.write(2, 0, path, "x"), Err(Errno::ACCESS));
        assert_eq!(rig.read(3, 0, path), Err(Errno::ACCESS));
        assert_eq!(rig.permit(2, path, &[only(2)]), Err(Errno::ACCESS), "reading is not owning");

        rig.permit(1, path, &[reader(1), writer(2), only(3)]).unwrap();
        rig.write(2, 0, path, "x").unwrap();
        assert_eq!(rig.read(3, 0, path), Err(Errno::ACCESS), "listed by name: the default does not count");
    }

    #[test]
    fn new_nodes_inherit_but_belong_to_their_creator() {
        let mut rig = rig();
        rig.permit(1, "data", &[only(1), writer(2)]).unwrap();
        rig.write(2, 0, "/local/domain/1/data/from-2/deep", "x").unwrap();
        let inherited = [Permission { domid: 2, read: false, write: false }, writer(2)];
        assert_eq!(rig.permissions(0, "/local/domain/1/data/from-2"), inherited);
        assert_eq!(rig.permissions(0, "/local/domain/1/data/from-2/deep"), inherited);
        rig.write(0, 0, "/local/domain/1/data/from-0", "x").unwrap();
        assert_eq!(
            rig.permissions(0, "/local/domain/1/data/from-0"),
            [only(1), writer(2)],
            "dom0 gives it away"
        );
    }

    #[test]
    fn only_dom0_changes_an_owner() {
        let mut rig = rig();
        rig.write(1, 0, "data/x", "").unwrap();
        assert_eq!(rig.permit(1, "data/x", &[only(2)]), Err(Errno::PERM));
        assert_eq!(rig.permit(0, "/local/domain/1/data/x", &[only(2)]), Ok(()));
        assert_eq!(rig.permit(1, "data/x", &[]), Err(Errno::INVAL));
        assert_eq!(rig.permit(2, "/local/domain/1/data/x", &[only(2); 6]), Err(Errno::NOSPC));
    }

    #[test]
    fn removal_takes_the_subtree_and_forgives_what_is_not_there() {
        let mut rig = rig();
        rig.write(1, 0, "data/a/b/c", "x").unwrap();
        rig.remove(1, 0, "data/a").unwrap();
        assert_eq!(rig.read(1, 0, "data/a/b/c"), Err(Errno::NOENT));
        assert_eq!(rig.list(1, 0, "data"), [""; 0]);
        assert_eq!(rig.remove(1, 0, "data/a"), Ok(()), "the parent is there");
        assert_eq!(rig.remove(1, 0, "data/a/b"), Err(Errno::NOENT), "it is not");
        assert_eq!(rig.remove(0, 0, "/"), Err(Errno::INVAL));
    }

    #[test]
    fn a_transaction_is_seen_at_its_end_or_never() {
        let mut rig = rig();
        for (commit, seen) in [(false, Err(Errno::NOENT)), (true, Ok(b"1".to_vec()))] {
            let t = rig.begin(1).unwrap();
            rig.write(1, t, "data/a", "1").unwrap();
            assert_eq!(rig.read(1, t, "data/a").unwrap(), b"1");
            assert_eq!(rig.read(1, 0, "data/a"), Err(Errno::NOENT));
            rig.end(1, t, commit).unwrap();
            assert_eq!(rig.read(1, 0, "data/a"), seen);
            assert_eq!(rig.end(1, t, commit), Err(Errno::NOENT), "ended");
        }
        let t = rig.begin(1).unwrap();
        assert_eq!(rig.read(2, t, "domid"), Err(Errno::NOENT), "another connection's transaction");
    }

    #[test]
    fn transactions_that_touch_the_same_conflict_and_others_do_not() {
        let mut rig = rig();
        rig.write(1, 0, "data/a", "0").unwrap();
        rig.write(1, 0, "data/b", "0").unwrap();
        let (first, second) = (rig.begin(1).unwrap(), rig.begin(1).unwrap());
        rig.read(1, first, "data/a").unwrap();
        rig.write(1, first, "data/b", "1").unwrap();
        rig.write(1, second, "data/a", "2").unwrap();
        rig.end(1, second, true).unwrap();
        assert_eq!(rig.end(1, first, true), Err(Errno::AGAIN), "it had read the old value");
        assert_eq!(rig.read(1, 0, "data/b").unwrap(), b"0", "and nothing of it was done");

        let (first, second) = (rig.begin(1).unwrap(), rig.begin(1).unwrap());
        rig.write(1, first, "data/a", "3").unwrap();
        rig.write(1, second, "data/b", "3").unwrap();
        rig.end(1, second, true).unwrap();
        rig.end(1, first, true).unwrap();

        let t = rig.begin(1).unwrap();
        assert_eq!(rig.read(1, t, "data/new"), Err(Errno::NOENT));
        rig.write(1, 0, "data/new", "x").unwrap();
        assert_eq!(rig.end(1, t, true), Err(Errno::AGAIN), "absence is something read too");
    }

    #[test]
    fn a_domain_has_its_share_of_transactions_and_dom0_has_no_limit() {
        let mut rig = rig();
        let open: Vec<_> = (0..=TRANSACTIONS_PER_DOMAIN).map(|_| rig.begin(1).unwrap()).collect();
        assert_eq!(rig.begin(1), Err(Errno::NOSPC));
        rig.begin(2).unwrap();
        rig.end(1, open[3], false).unwrap();
        rig.begin(1).unwrap();
        assert_eq!(rig.ask(1, open[0], StoreRequest::Begin).unwrap_err(), Errno::BUSY);
        rig.0.close(1);
        rig.begin(1).unwrap();
        for _ in 0..100 {
            rig.begin(0).unwrap();
        }
    }

    #[test]
    fn a_domain_has_its_share_of_nodes_bytes_and_watches() {
        let mut rig = rig();
        let mut made: usize = 0;
        let refused = loop {
            match rig.write(1, 0, &format!("data/{}/{}", made / 200, made % 200), "") {
                Ok(()) => made += 1,
                Err(error) => break error,
            }
        };
        assert_eq!(refused, Errno::NOSPC);
        assert_eq!(made + made.div_ceil(200) + 2, NODES_PER_DOMAIN, "with the groups, its home and data");
        rig.write(2, 0, "data/probe/a/b/c", "").unwrap();
        assert_eq!(rig.write(2, 0, "data/big", &"x".repeat(NODE_BYTES)), Err(Errno::NOSPC));
        rig.write(0, 0, "big", &"x".repeat(NODE_BYTES)).unwrap();
        for n in 0..=WATCHES_PER_DOMAIN {
            rig.watch(3, "data", &n.to_string()).unwrap();
        }
        assert_eq!(rig.watch(3, "data", "more"), Err(Errno::TOOBIG));
    }

    #[test]
    fn a_watch_fires_at_once_and_for_all_below() {
        let mut rig = rig();
        rig.watch(1, "data", "t").unwrap();
        assert_eq!(rig.events(), ["1 data t"]);
        assert_eq!(rig.watch(1, "/local/domain/1/data", "t"), Err(Errno::EXIST), "the same node and token");
        rig.watch(1, "/local/domain/1/data", "u").unwrap();
        rig.events();
        rig.write(1, 0, "data/a/b", "x").unwrap();
        assert_eq!(
            rig.events(),
            ["1 data/a/b t", "1 /local/domain/1/data/a/b u"],
            "named as it was asked for"
        );
        rig.write(1, 0, "database", "x").unwrap();
        assert_eq!(rig.events(), [""; 0], "not below");
        rig.unwatch(1, "data", "t").unwrap();
        assert_eq!(rig.unwatch(1, "data", "t"), Err(Errno::NOENT));
        rig.permit(1, "data/a", &[reader(1)]).unwrap();
        assert_eq!(rig.events(), ["1 /local/domain/1/data/a u"]);
        rig.0.close(1);
        rig.write(1, 0, "data/a", "y").unwrap();
        assert_eq!(rig.events(), [""; 0]);
    }

    #[test]
    fn removal_fires_for_the_top_and_for_each_watched_node_below() {
        let mut rig = rig();
        rig.write(1, 0, "data/a/b", "x").unwrap();
        for path in ["data", "data/a", "data/a/b"] {
            rig.watch(1, path, path).unwrap();
        }
        rig.events();
        rig.remove(1, 0, "data/a").unwrap();
        let mut events = rig.events();
        events.sort();
        assert_eq!(events, ["1 data/a data", "1 data/a data/a", "1 data/a/b data/a/b"]);
    }

    #[test]
    fn a_transaction_fires_when_it_is_committed() {
        let mut rig = rig();
        rig.watch(1, "data", "t").unwrap();
        rig.events();
        let t = rig.begin(1).unwrap();
        rig.write(1, t, "data/a", "1").unwrap();
        rig.write(1, t, "data/a", "2").unwrap();
        assert_eq!(rig.events(), [""; 0]);
        rig.end(1, t, true).unwrap();
        assert_eq!(rig.events(), ["1 data/a t"], "once a node");
    }

    #[test]
    fn a_watch_does_not_tell_what_its_owner_may_not_read() {
        let mut rig = rig();
        let path = "/local/domain/1/data/x";
        rig.watch(2, path, "t").unwrap();
        assert_eq!(rig.events(), [format!("2 {path} t")], "the first one tells nothing");
        rig.write(1, 0, path, "s").unwrap();
        assert_eq!(rig.events(), [""; 0]);
        rig.permit(1, path, &[only(1), reader(2)]).unwrap();
        assert_eq!(rig.events(), [format!("2 {path} t")]);
        rig.permit(1, path, &[only(1)]).unwrap();
        assert_eq!(rig.events(), [format!("2 {path} t")], "it might read it before");
        rig.permit(1, path, &[only(1), reader(2)]).unwrap();
        rig.events();
        rig.remove(1, 0, path).unwrap();
        assert_eq!(rig.events(), [format!("2 {path} t")], "that it is gone as well");
    }

    #[test]
    fn domains_come_and_go_for_those_who_may_know() {
        let mut rig = rig();
        for domid in [0, 1] {
            rig.watch(domid, RELEASED, "r").unwrap();
            rig.watch(domid, INTRODUCED, "i").unwrap();
        }
        rig.events();
        let release = |domid| StoreRequest::Release { domid };
        assert_eq!(rig.ask(1, 0, release(3)).unwrap_err(), Errno::ACCESS);
        rig.ask(0, 0, release(3)).unwrap();
        assert_eq!(rig.events(), ["100 @releaseDomain r"]);
        assert!(!rig.0.is_introduced(3));
        assert_eq!(rig.ask(0, 0, release(3)).unwrap_err(), Errno::NOENT);
        rig.permit(0, INTRODUCED, &[reader(0)]).unwrap();
        rig.ask(0, 0, StoreRequest::Introduce { domid: 3 }).unwrap();
        assert_eq!(rig.events(), ["100 @introduceDomain i", "1 @introduceDomain i"]);
        assert!(rig.0.is_introduced(3));
    }

    #[test]
    fn an_agent_has_the_rights_of_its_target() {
        let mut rig = rig();
        rig.write(1, 0, "data/x", "s").unwrap();
        rig.ask(0, 0, StoreRequest::SetTarget { domid: 2, target: 1 }).unwrap();
        assert_eq!(rig.read(2, 0, "/local/domain/1/data/x").unwrap(), b"s");
        assert_eq!(rig.read(3, 0, "/local/domain/1/data/x"), Err(Errno::ACCESS));
    }
}
