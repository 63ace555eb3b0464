//! `nexusd` as a process, over a simulated host: control vchans, dom0's socket, and what it leaves behind.

#[cfg(test)]
mod broker_daemon {
    mod host;

    mod lives;
    mod programs;
    mod serving;
}
