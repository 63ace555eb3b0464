//! What a qube is to be: configuration files of `xl` and NixOS closures, read into one [`QubeConfig`].

mod xl_cfg;

pub use xl_cfg::{Data, Position, Setting, Settings, SyntaxError, SyntaxErrorKind, Value};
