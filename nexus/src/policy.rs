//! Policy format 5.0: who may call what where.
//!
//! [`PolicyFolders::read`] reads the files into a [`Policy`]; [`Policy::decide`] decides a [`Call`], given what there is
//! to know of the qubes ([`System`]). [`docs/policy.md`](https://github.com/tesseraqt/tesseraqt-n/blob/main/docs/policy.md)
//! has the language.
//!
//! ```
//! use nexus::policy::{Call, Place, Policy, Principal, Service, System, Verdict, rules};
//!
//! let system: System = serde_json::from_str(
//!     r#"{ "qubes": { "work": { "type": "AppVM", "containers": ["mail"] },
//!                     "vault": { "type": "AppVM", "containers": ["gpg"] } } }"#,
//! )?;
//! let policy = Policy::new(rules("nexus.Sign * work:mail vault:gpg allow", "30-user.policy").map_err(|e| format!("{e:?}"))?);
//! let mut call = Call {
//!     source: Principal::parse("work:mail")?,
//!     target: Place::intended("vault:gpg")?,
//!     service: Service::parse("nexus.Sign")?,
//! };
//! assert!(matches!(policy.decide(&call, &system).verdict, Verdict::Allow(_)));
//! // The qube is not its container.
//! call.source = Principal::parse("work")?;
//! assert!(matches!(policy.decide(&call, &system).verdict, Verdict::Deny(_)));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod call;
mod compiled;
mod decision;
pub mod error;
mod explain;
mod files;
mod graph;
pub mod parser;
mod rule;
pub mod service;
mod store;
mod system;
pub mod token;
mod watch;

pub use call::{Call, Principal};
pub use compiled::{Mismatch, Policy};
pub use decision::{Allowed, Decision, Denial, Question, Verdict};
pub use error::PolicyError;
pub use explain::{Explanation, Passed};
pub use files::{PolicyFolders, Reading};
pub use graph::Edge;
pub use rule::{Action, Origin, Rule};
pub use service::Service;
pub use store::{Current, PolicyStore};
pub use system::{DOM0, QubeInfo, System};
pub use token::{Place, Qube, Token};

use parser::{Language, Statement};
use std::path::Path;
use std::sync::Arc;

/// The rules of one text of format 5.0 that includes nothing.
///
/// # Errors
/// The faults of the text; a directive is one.
pub fn rules(text: &str, file: impl AsRef<Path>) -> Result<Vec<Rule>, Vec<PolicyError>> {
    let file: Arc<Path> = file.as_ref().into();
    let (mut rules, mut errors) = (Vec::new(), Vec::new());
    for statement in parser::parse(text, &file, &Language::Five)? {
        match statement {
            Statement::Rule(rule) => rules.push(rule),
            Statement::Include { place: (line, column), .. } => {
                let fault = error::Fault::NotHere("a directive");
                errors.push(fault.at(&file, line, column));
            }
        }
    }
    if errors.is_empty() { Ok(rules) } else { Err(errors) }
}
