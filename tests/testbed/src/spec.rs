//! The declarations that checks apply: evaluated from `nixos/examples/testbed.nix` with the closures at hand.

use std::process::Command;

use crate::cache::checkout;
use crate::closure::Closure;
use crate::{Result, process};

/// The attributes of that file.
const DECLARATIONS: [&str; 6] = ["first", "grown", "moved", "foreign", "fewer", "none"];

/// Each declaration's name, and its `qubes.json`.
pub fn evaluate(closures: &[Closure]) -> Result<Vec<(&'static str, String)>> {
    let systems: Vec<_> =
        closures.iter().map(|closure| format!("{} = \"{}\";", closure.name, closure.toplevel)).collect();
    let systems = format!("{{ {} }}", systems.join(" "));
    let evaluate = |name| {
        let mut nix = Command::new("nix-instantiate");
        // To evaluate, no store is needed.
        nix.env("NIX_CONFIG", "build-users-group =")
            .args(["--store", "dummy://", "--eval", "--strict", "--json"]);
        nix.arg(checkout().join("nixos/examples/testbed.nix"));
        nix.args(["--attr", name, "--arg", "systems", &systems]);
        Ok((name, process::output(&mut nix)?))
    };
    DECLARATIONS.into_iter().map(evaluate).collect()
}
