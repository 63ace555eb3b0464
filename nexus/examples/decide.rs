//! Whether a call may be made, and why, by a policy of a few lines.
//!
//! ```text
//! cargo run -p tesseraqt-nexus --example decide                                       # three calls
//! cargo run -p tesseraqt-nexus --example decide -- work:mail vault:gpg nexus.Sign     # one of your own
//! ```
#![forbid(unsafe_code)]
#![allow(clippy::print_stdout, reason = "it says what is decided")]

use nexus::policy::{Call, Place, Policy, Principal, Service, System, rules};

type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

/// What dom0 would read from /etc/qubes/policy.d. A rule for qubes says nothing of the containers in them.
const POLICY: &str = "\
nexus.Sign   *        work:mail  vault:gpg  allow
nexus.Sign   *        @anyvm     @anyvm     deny
nexus.Query  +orders  @tag:shop  @default   ask target=work
";

/// What there is to know of the qubes.
const SYSTEM: &str = r#"{ "qubes": {
    "work":  { "type": "AppVM", "containers": ["mail", "web"] },
    "front": { "type": "AppVM", "tags": ["shop"] },
    "vault": { "type": "AppVM", "containers": ["gpg"] }
} }"#;

fn main() -> Outcome<()> {
    let rules = rules(POLICY, "example.policy").map_err(|errors| errors[0].to_string())?;
    let (policy, system) = (Policy::new(rules), serde_json::from_str::<System>(SYSTEM)?);
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let calls: &[[&str; 3]] = match arguments.as_slice() {
        [] => &[
            ["work:mail", "vault:gpg", "nexus.Sign"],
            ["work", "vault:gpg", "nexus.Sign"],
            ["front", "@default", "nexus.Query+orders"],
        ],
        [source, target, service] => &[[source, target, service]],
        _ => return Err("SOURCE TARGET SERVICE".into()),
    };
    for [source, target, service] in calls {
        let call = Call {
            source: Principal::parse(source)?,
            target: Place::intended(target)?,
            service: Service::parse(service)?,
        };
        // `decide` is what nexusd asks, in microseconds; `explain` decides the same, and says why.
        println!("{}", policy.explain(&call, &system));
    }
    Ok(())
}
