//! The broker and what agents can say to it: stock ones of every version, ours, and hostile ones.

#[cfg(test)]
mod broker {
    pub(crate) mod world;

    mod calls;
    mod disposables;
    mod hostile;
    mod parameters;
    mod remote;
    mod restart;
}
