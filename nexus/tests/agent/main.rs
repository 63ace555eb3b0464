//! The agent of a qube, and what is called by it.

mod as_user;
mod calls;
mod qube;
