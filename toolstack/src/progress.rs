//! How far a long piece of work has come: whoever does it tells, and a program draws a bar of it, or does not listen.

use std::fmt;
use std::sync::Arc;

/// How many bytes of how many.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bytes {
    /// So many were gone through.
    pub done: u64,
    /// Of so many; never less than those.
    pub all: u64,
}

/// Whoever is told, often and from the thread that does the work; by default nobody.
#[derive(Clone, Default)]
pub struct Progress(Option<Arc<dyn Fn(Bytes) + Send + Sync>>);

impl Progress {
    /// Tells `heard`, which is not to take long.
    #[must_use]
    pub fn new(heard: impl Fn(Bytes) + Send + Sync + 'static) -> Self {
        Self(Some(Arc::new(heard)))
    }

    pub(crate) fn tell(&self, done: u64, all: u64) {
        if let Some(heard) = &self.0 {
            heard(Bytes { done: done.min(all), all });
        }
    }
}

impl fmt::Debug for Progress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Progress").field(&self.0.is_some()).finish()
    }
}
