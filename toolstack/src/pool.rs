//! Warm shells: qubes that were built ahead and have never run, to be named and let go on demand.
//!
//! A shell is an ordinary paused domain, which every toolstack sees; `POOL.warm-N` is its name. What makes it one of a
//! pool is a file beside its other ones, so that nothing has to be found out about a domain that somebody destroyed.

use crate::config::QubeConfig;
use crate::create::{CreateError, Ending};
use crate::events::Step;
use crate::qubes::{Qube, QubeError, Qubes};
use crate::userdata::Kind;
use crate::watch;
use std::path::PathBuf;
use uuid::Uuid;
use xen::ForeignMemory;

/// Held while a shell is chosen and named.
const POOL_LOCK: &str = "pool.lock";
/// Between a pool's name and a shell's number.
const WARM: &str = ".warm-";

/// Why a pool could not be filled, or nothing taken out of it.
#[derive(Debug, thiserror::Error)]
pub enum PoolError {
    /// None is left.
    #[error("the pool {0} has no shell left: `nxl pool fill {0} CONFIG` makes some")]
    Empty(String),
    /// The kept configuration is damaged.
    #[error("{path}: {source}", path = path.display())]
    Config {
        /// Whose.
        path: PathBuf,
        /// Why.
        source: serde_json::Error,
    },
    /// A shell could not be made.
    #[error(transparent)]
    Create(#[from] CreateError),
    /// A shell could not be handled.
    #[error(transparent)]
    Qube(#[from] QubeError),
    /// A call failed.
    #[error(transparent)]
    Xen(#[from] xen::Error),
}

/// A qube that waits.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Shell {
    /// Whose it is.
    pub pool: String,
    /// The domain.
    pub qube: Qube,
}

impl Qubes {
    /// All shells of all pools, by domain id.
    ///
    /// # Errors
    /// What Xen, xenstored or the file system says.
    pub fn shells(&self) -> Result<Vec<Shell>, PoolError> {
        let kept = self.userdata.having(Kind::Pool)?;
        let shell = |qube: Qube| {
            let pool = qube.name.as_deref()?.rsplit_once(WARM)?.0.to_owned();
            (qube.info.paused && kept.contains(&(qube.info.domid, qube.uuid())))
                .then_some(Shell { pool, qube })
        };
        Ok(self.list()?.into_iter().filter_map(shell).collect())
    }

    /// Makes shells until the pool has `count`; those that were made. The configuration's name and UUID are not used.
    ///
    /// # Errors
    /// See [`PoolError`]. What was made before stays.
    pub fn fill_pool(
        &self,
        pool: &str,
        config: &QubeConfig,
        count: usize,
        foreign: &dyn ForeignMemory,
    ) -> Result<Vec<Qube>, PoolError> {
        self.fill_pool_with(
            pool,
            count,
            |_| true,
            |name| {
                let config = QubeConfig { name, uuid: Uuid::new_v4(), ..config.clone() };
                Ok(self.make(&config, Some(Kind::Pool), Ending::Paused, foreign)?)
            },
        )
    }

    /// Makes shells, as somebody says, until the pool has `count` of those that count.
    pub(crate) fn fill_pool_with<E: From<PoolError> + From<QubeError>>(
        &self,
        pool: &str,
        count: usize,
        counts: impl Fn(&Qube) -> bool,
        mut make: impl FnMut(String) -> Result<Qube, E>,
    ) -> Result<Vec<Qube>, E> {
        let _lock = self.userdata.lock(POOL_LOCK, true)?;
        let there: Vec<Shell> = self.shells()?.into_iter().filter(|shell| shell.pool == pool).collect();
        let mut names = (1_u32..)
            .map(|number| format!("{pool}{WARM}{number}"))
            .filter(|name| there.iter().all(|shell| shell.qube.name.as_ref() != Some(name)));
        let waiting = there.iter().filter(|shell| counts(&shell.qube)).count();
        let mut made = Vec::new();
        while waiting + made.len() < count
            && let Some(name) = names.next()
        {
            made.push(make(name)?);
        }
        Ok(made)
    }

    /// What a shell was made of.
    fn kept_of(&self, shell: &Qube) -> Result<QubeConfig, PoolError> {
        let domid = shell.info.domid;
        let kept = self.userdata.read(Kind::Pool, domid, shell.uuid())?.unwrap_or_default();
        serde_json::from_str(&kept)
            .map_err(|source| PoolError::Config { path: format!("domain {domid}").into(), source })
    }

    /// Names a shell of the pool and lets it go. With `attended` its configuration is kept for the
    /// [watcher](crate::watch), which is to be started when none runs.
    ///
    /// # Errors
    /// See [`PoolError`].
    pub fn take_from_pool(&self, pool: &str, name: &str, attended: bool) -> Result<Qube, PoolError> {
        self.take_from_pool_if(pool, name, attended, &|_, _| true)
    }

    /// The same, of those shells that fit by what they were made of.
    pub(crate) fn take_from_pool_if(
        &self,
        pool: &str,
        name: &str,
        attended: bool,
        fits: &dyn Fn(&Qube, &QubeConfig) -> bool,
    ) -> Result<Qube, PoolError> {
        let (domid, uuid, config) = {
            let _lock = self.userdata.lock(POOL_LOCK, true)?;
            let mut found = None;
            for Shell { qube, .. } in self.shells()?.into_iter().filter(|shell| shell.pool == pool) {
                let kept = self.kept_of(&qube)?;
                if fits(&qube, &kept) {
                    found = Some((qube, kept));
                    break;
                }
            }
            let (qube, config) = found.ok_or_else(|| PoolError::Empty(pool.to_owned()))?;
            self.rename(&qube, name)?;
            (qube.info.domid, qube.uuid(), config)
        };
        if attended {
            let error = |source| PoolError::Config { path: format!("domain {domid}").into(), source };
            let config = QubeConfig { name: name.to_owned(), ..config };
            // Against a watcher that is about to end for want of qubes.
            let _lock = self.userdata.lock(watch::RECORDS_LOCK, true)?;
            self.userdata.write(Kind::Nxl, domid, uuid, &serde_json::to_string(&config).map_err(error)?)?;
        }
        self.userdata.forget(Kind::Pool, domid, uuid)?;
        self.control.unpause(domid)?;
        let qube = self.get(domid)?;
        self.tell(&qube, Step::Unpaused);
        Ok(qube)
    }

    /// Destroys the shells of a pool; how many there were.
    ///
    /// # Errors
    /// See [`PoolError`].
    pub fn drain_pool(&self, pool: &str) -> Result<usize, PoolError> {
        let _lock = self.userdata.lock(POOL_LOCK, true)?;
        let shells: Vec<Shell> = self.shells()?.into_iter().filter(|shell| shell.pool == pool).collect();
        for shell in &shells {
            self.destroy(&shell.qube)?;
        }
        Ok(shells.len())
    }

    /// Destroys those shells of a pool of which somebody says so, by what they were made of.
    pub(crate) fn drain_pool_of(
        &self,
        pool: &str,
        goes: &dyn Fn(&Qube, &QubeConfig) -> bool,
    ) -> Result<(), PoolError> {
        let _lock = self.userdata.lock(POOL_LOCK, true)?;
        for shell in self.shells()?.into_iter().filter(|shell| shell.pool == pool) {
            if goes(&shell.qube, &self.kept_of(&shell.qube)?) {
                self.destroy(&shell.qube)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::create::tests::{Host, host};

    fn names(host: &Host) -> Vec<String> {
        host.qubes.shells().unwrap().iter().map(|shell| shell.qube.display_name().to_owned()).collect()
    }

    #[test]
    fn a_pool_is_filled_and_drained() {
        let host = host();
        let before = host.inventory();
        let config = host.config_with("any", "");
        let fill = |count| host.qubes.fill_pool("work", &config, count, &*host.foreign).unwrap().len();
        assert_eq!((fill(2), fill(2), fill(3)), (2, 0, 1));
        assert_eq!(names(&host), ["work.warm-1", "work.warm-2", "work.warm-3"]);
        host.qubes.fill_pool("play", &config, 1, &*host.foreign).unwrap();
        assert_eq!(host.qubes.leftovers().unwrap(), []);
        assert_eq!(host.qubes.drain_pool("work").unwrap(), 3);
        assert_eq!(names(&host), ["play.warm-1"]);
        assert_eq!(host.qubes.drain_pool("play").unwrap(), 1);
        assert_eq!((host.inventory(), host.files()), (before, 0));
    }

    #[test]
    fn what_is_taken_is_a_qube_like_others() {
        let host = host();
        host.qubes.fill_pool("work", &host.config_with("any", ""), 2, &*host.foreign).unwrap();
        host.machine.reset_counts();
        let qube = host.qubes.take_from_pool("work", "mail", true).unwrap();
        let counts = host.machine.counts();
        // The list, twice, the start, and the answer; xenstore's names and one transaction.
        assert_eq!((counts.hypercalls, counts.xenstore_transactions()), (4, 1), "{:?}", counts.calls);
        assert_eq!((qube.display_name(), qube.info.paused), ("mail", false));
        assert_eq!(names(&host), ["work.warm-2"]);
        assert_eq!(host.qubes.userdata.known().unwrap(), [(qube.info.domid, qube.uuid())]);
        let error = host.qubes.take_from_pool("work", "mail", true).unwrap_err();
        assert!(error.to_string().contains("taken by domain"), "{error}");
        host.qubes.take_from_pool("work", "web", false).unwrap();
        let error = host.qubes.take_from_pool("work", "chat", true).unwrap_err();
        assert!(matches!(error, PoolError::Empty(_)), "{error}");
    }

    #[test]
    fn each_of_many_takes_another() {
        let host = host();
        host.qubes.fill_pool("work", &host.config_with("any", ""), 8, &*host.foreign).unwrap();
        let take = |i: usize| host.qubes.take_from_pool("work", &format!("work-{i}"), true).unwrap();
        let mut domids: Vec<u16> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..8).map(|i| scope.spawn(move || take(i).info.domid.0)).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        domids.sort_unstable();
        domids.dedup();
        assert_eq!(domids.len(), 8);
    }
}
