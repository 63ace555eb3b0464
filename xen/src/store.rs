//! Xenstore: the tree of small values through which domains find each other.

use crate::{DomId, Error, ErrorKind, Port, Result};
use std::os::fd::AsFd;
use std::{fmt, thread, time::Duration};

/// A transaction that [`Xenstore::begin`] opened, or [`Transaction::NONE`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Transaction(pub(crate) u32);

impl Transaction {
    /// Outside of any transaction: each request stands for itself.
    pub const NONE: Self = Self(0);
}

/// What a domain may do with a node (`XS_PERM_*`, xenstore_lib.h).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Permission {
    /// `n`
    None,
    /// `r`
    Read,
    /// `w`
    Write,
    /// `b`
    Both,
}

/// The permissions of a node: its owner, who may do everything, what the others may do, and the exceptions.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Permissions {
    /// The owner. (dom0 may always do everything.)
    pub owner: DomId,
    /// What a domain that is not named may do.
    pub others: Permission,
    /// Domains for which something else holds.
    pub domains: Vec<(DomId, Permission)>,
}

impl Permissions {
    /// Owned by `owner`, closed to all others: `nOWNER`.
    #[must_use]
    pub fn private(owner: DomId) -> Self {
        Self { owner, others: Permission::None, domains: Vec::new() }
    }

    /// Owned by `owner`, readable by `reader`: `nOWNER,rREADER`.
    #[must_use]
    pub fn readable_by(owner: DomId, reader: DomId) -> Self {
        Self { owner, others: Permission::None, domains: vec![(reader, Permission::Read)] }
    }
}

/// In the notation of the xenstore tools, such as `n0,r1`.
impl fmt::Display for Permissions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let letter = |permission| match permission {
            Permission::None => 'n',
            Permission::Read => 'r',
            Permission::Write => 'w',
            Permission::Both => 'b',
        };
        write!(f, "{}{}", letter(self.others), self.owner)?;
        self.domains.iter().try_for_each(|(domid, permission)| write!(f, ",{}{domid}", letter(*permission)))
    }
}

/// A change at or below a watched path.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct WatchEvent {
    /// The node that changed (or was watched, for the first event, which each watch fires at once).
    pub path: String,
    /// What was given to [`Xenstore::watch`].
    pub token: String,
}

/// A request that changes one node: a part of a list that is [applied](Xenstore::apply) at once.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Change<'a> {
    /// [`Xenstore::write`].
    Write(&'a str, &'a [u8]),
    /// [`Xenstore::set_permissions`].
    SetPermissions(&'a str, &'a Permissions),
    /// [`Xenstore::remove`], but a node that is not there is no error.
    Remove(&'a str),
}

/// A connection to xenstored. The descriptor is readable when a watch fired.
///
/// Paths are absolute (`/local/domain/3/name`) or relative to the own domain's home. A value is any sequence of at
/// most 4,096 bytes less the path; it comes from another domain and is to be treated so.
pub trait Xenstore: AsFd + Send + Sync {
    /// Whether xenstored is known to run in this very domain, without a request.
    fn is_local(&self) -> bool {
        false
    }
    /// The value of a node. [`NotFound`](ErrorKind::NotFound) when there is none.
    fn read(&self, tx: Transaction, path: &str) -> Result<Vec<u8>>;
    /// Writes a value, making the node and its parents where they are missing.
    fn write(&self, tx: Transaction, path: &str, value: &[u8]) -> Result<()>;
    /// Makes an empty node where there is none.
    fn mkdir(&self, tx: Transaction, path: &str) -> Result<()>;
    /// Removes a node and all below it. [`NotFound`](ErrorKind::NotFound) when there is none.
    fn remove(&self, tx: Transaction, path: &str) -> Result<()>;
    /// The names of the nodes right below `path`.
    fn directory(&self, tx: Transaction, path: &str) -> Result<Vec<String>>;
    /// The permissions of a node.
    fn permissions(&self, tx: Transaction, path: &str) -> Result<Permissions>;
    /// Sets the permissions of a node that this domain owns.
    fn set_permissions(&self, tx: Transaction, path: &str, permissions: &Permissions) -> Result<()>;
    /// Makes changes, in their order. Where one fails, those after it may have been made or not: callers who mind do this
    /// in a transaction. The connection to xenstored sends many before it waits for the first answer.
    fn apply(&self, tx: Transaction, changes: &[Change<'_>]) -> Result<()> {
        changes.iter().try_for_each(|change| match *change {
            Change::Write(path, value) => self.write(tx, path, value),
            Change::SetPermissions(path, permissions) => self.set_permissions(tx, path, permissions),
            Change::Remove(path) => found(self.remove(tx, path)).map(drop),
        })
    }
    /// The values of nodes, in the order of the paths; `None` where there is no such node. Sent as [`Self::apply`] is.
    fn read_all(&self, tx: Transaction, paths: &[&str]) -> Result<Vec<Option<Vec<u8>>>> {
        let read = |path: &&str| found(self.read(tx, path));
        paths.iter().map(read).collect()
    }
    /// The names right below each of the paths; `None` where there is no such node. Sent as [`Self::apply`] is.
    fn directory_all(&self, tx: Transaction, paths: &[&str]) -> Result<Vec<Option<Vec<String>>>> {
        let list = |path: &&str| found(self.directory(tx, path));
        paths.iter().map(list).collect()
    }
    /// Opens a transaction. [`Exhausted`](ErrorKind::Exhausted) beyond the quota (stock: 10 a domain). Whoever wants
    /// it closed on every path uses [`transaction`].
    fn begin(&self) -> Result<Transaction>;
    /// Closes a transaction; [`Again`](ErrorKind::Again) when `commit` met a conflict and nothing was written.
    fn end(&self, tx: Transaction, commit: bool) -> Result<()>;
    /// Watches `path` and all below it.
    fn watch(&self, path: &str, token: &str) -> Result<()>;
    /// Ends a watch.
    fn unwatch(&self, path: &str, token: &str) -> Result<()>;
    /// Takes the next event of a watch, if there is one. Does not block.
    fn watch_event(&self) -> Result<Option<WatchEvent>>;
    /// Tells xenstored of a new domain: the frame of its ring and its port. dom0 only.
    fn introduce(&self, domid: DomId, ring: crate::Gfn, port: Port) -> Result<()>;
    /// Tells xenstored to forget a domain. dom0 only.
    fn release(&self, domid: DomId) -> Result<()>;
    /// Tells xenstored that a domain goes on which it has seen shut down: it will tell of the next time as well.
    fn resume(&self, domid: DomId) -> Result<()>;
    /// Whether xenstored knows the domain.
    fn is_introduced(&self, domid: DomId) -> Result<bool>;
}

/// What a request on a node came back with; `None` where there is no such node.
pub(crate) fn found<T>(answer: Result<T>) -> Result<Option<T>> {
    match answer {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// How often [`transaction`] tries before it reports the conflict.
const ATTEMPTS: u32 = 64;

/// Runs `body` in a transaction of `store`, again when it met a conflict, at most 64 times. An error of `body` abandons
/// the transaction.
///
/// # Errors
/// What `body` says, or [`Again`](ErrorKind::Again) when every attempt met a conflict.
pub fn transaction<T, E: From<Error>>(
    store: &dyn Xenstore,
    mut body: impl FnMut(Transaction) -> std::result::Result<T, E>,
) -> std::result::Result<T, E> {
    let mut attempt = 0;
    loop {
        let tx = store.begin()?;
        let value = match body(tx) {
            Ok(value) => value,
            Err(error) => {
                // The first error is the one to report; a transaction that cannot even be abandoned ends with the
                // connection.
                let _ = store.end(tx, false);
                return Err(error);
            }
        };
        match store.end(tx, true) {
            Ok(()) => return Ok(value),
            Err(error) if error.kind() == ErrorKind::Again && attempt < ATTEMPTS => {
                attempt += 1;
                thread::sleep(Duration::from_micros(100 * u64::from(attempt)));
            }
            Err(error) => {
                // Whether xenstored heard of the end at all is not known; if it did, this finds no transaction.
                let _ = store.end(tx, false);
                return Err(error.into());
            }
        }
    }
}
