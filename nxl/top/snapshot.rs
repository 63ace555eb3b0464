//! What there is to show at one moment.

use nexus::client::containers::Container;

/// The host and its qubes.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Snapshot {
    /// Xen's version, such as `4.17.5`.
    pub xen: String,
    /// CPUs on line.
    pub cpus: u32,
    /// Their clock, in MHz.
    pub mhz: u32,
    /// Memory of the machine, in MiB.
    pub memory: u64,
    /// What of it is free, in MiB.
    pub free: u64,
    /// Calls between qubes that are open, where nexusd tells.
    pub calls: Option<u64>,
    /// Bytes that calls have carried both ways which ended since the snapshot before, in a second.
    pub carried: Option<f64>,
    /// The domains, by id.
    pub qubes: Vec<Row>,
}

/// A domain.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Row {
    /// Its id.
    pub domid: u16,
    /// Its name.
    pub name: String,
    /// Its UUID.
    pub uuid: String,
    /// What it does.
    pub state: State,
    /// Of one CPU, in percent since the snapshot before; `None` when there was none.
    pub cpu: Option<f64>,
    /// CPU time in all, in seconds.
    pub seconds: f64,
    /// Memory, in MiB.
    pub memory: u64,
    /// What it says of that to be in use, in MiB.
    pub used: Option<u64>,
    /// Memory that it may have, in MiB; `None`: no limit.
    pub max_memory: Option<u64>,
    /// vCPUs on line.
    pub vcpus: u32,
    /// Bytes that its network interfaces receive and send in a second, where dom0 has their backends.
    pub network: Option<(f64, f64)>,
    /// Bytes that its disks read and write in a second, where dom0 has their backends.
    pub disk: Option<(f64, f64)>,
    /// Containers that dom0 gave it.
    pub containers: Option<usize>,
    /// What it says of those, where it was asked and has said something.
    pub said: Vec<Container>,
}

/// Whether qubes are asked for their containers.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Asked {
    /// They are not.
    #[default]
    No,
    /// A snapshot has what they said last.
    Last,
    /// A snapshot waits for what they say.
    Now,
}

/// What a domain does.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum State {
    /// A vCPU runs.
    Running,
    /// All vCPUs wait.
    #[default]
    Blocked,
    /// Its vCPUs were stopped.
    Paused,
    /// It shut down, and is still there.
    Shutdown,
    /// It crashed, and is still there.
    Crashed,
    /// It is being taken away.
    Dying,
}

impl State {
    /// In a word.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Running => "run",
            Self::Blocked => "wait",
            Self::Paused => "pause",
            Self::Shutdown => "down",
            Self::Crashed => "crash",
            Self::Dying => "dying",
        }
    }
}

/// Takes snapshots.
pub trait Source {
    /// How it is now, with rates since the last one.
    ///
    /// # Errors
    /// Why there is none, in one line.
    fn snapshot(&mut self) -> Result<Snapshot, String>;

    /// Whether snapshots from now on have what qubes say of their containers; a source that knows nothing of that has none.
    fn ask(&mut self, _asked: Asked) {}
}
