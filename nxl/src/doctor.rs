//! `nxl doctor`: what killed programs have left.

use crate::error::Error;
use std::io::{self, Write};
use toolstack::KernelCache;
use toolstack::doctor::Leftover;
use toolstack::qubes::Qubes;

pub(crate) fn doctor(qubes: Qubes, repair: bool, json: bool) -> Result<(), Error> {
    let qubes = qubes.with_kernel_cache(KernelCache::default());
    let found = qubes.leftovers()?;
    let mut failures = 0;
    let mut text = String::new();
    let mut entries = Vec::new();
    for leftover in &found {
        let failure = if repair { qubes.repair(leftover).err().map(|error| error.to_string()) } else { None };
        failures += usize::from(failure.is_some());
        let repaired = repair && failure.is_none();
        if json {
            entries.push(described(leftover, repaired, failure.as_deref()));
            continue;
        }
        text += &match failure {
            Some(error) => format!("{leftover}: {error}\n"),
            None => format!("{leftover}{}\n", if repaired { ": removed" } else { "" }),
        };
    }
    if json {
        text = format!("{:#}\n", serde_json::Value::Array(entries));
    } else if found.is_empty() {
        text = "Nothing is left over.\n".to_owned();
    }
    io::stdout().write_all(text.as_bytes()).map_err(Error::Output)?;
    match (failures, found.len()) {
        (0, 0) => Ok(()),
        (0, _) if repair => Ok(()),
        (0, left) => Err(Error::LeftOver(left)),
        (failures, _) => Err(Error::NotRepaired(failures)),
    }
}

fn described(leftover: &Leftover, repaired: bool, failure: Option<&str>) -> serde_json::Value {
    let mut entry = serde_json::json!({ "kind": leftover.kind(), "repaired": repaired });
    if let Some(failure) = failure {
        entry["error"] = failure.into();
    }
    match leftover {
        Leftover::Domain { uuid, domid } => {
            entry["uuid"] = uuid.to_string().into();
            entry["domid"] = domid.map(|domid| domid.0).into();
        }
        Leftover::Records { path } => entry["xenstore"] = path.as_str().into(),
        Leftover::File { path } | Leftover::Cache { path } => {
            entry["path"] = path.display().to_string().into();
        }
    }
    entry
}

#[cfg(test)]
mod tests {
    use super::*;
    use uuid::Uuid;
    use xen::DomId;

    #[test]
    fn a_leftover_is_described_by_what_it_is() {
        let uuid = Uuid::from_u128(1);
        let domain = Leftover::Domain { uuid, domid: Some(DomId(3)) };
        assert_eq!(
            described(&domain, false, None),
            serde_json::json!({ "kind": "domain", "repaired": false, "uuid": uuid.to_string(), "domid": 3 })
        );
        let records = Leftover::Records { path: "/libxl/3".to_owned() };
        assert_eq!(
            described(&records, false, Some("no")),
            serde_json::json!({ "kind": "records", "repaired": false, "error": "no", "xenstore": "/libxl/3" })
        );
    }
}
