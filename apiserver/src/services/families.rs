//! Which address families a Service gets: from its own fields, what it had before, and the ranges there are.

use apimachinery::field::{Error, ErrorList, Path};
use serde_json::{Value, json};

use super::cidr::Cidr;

pub(super) fn family(range: Cidr) -> &'static str {
    if range.is_ipv4() { "IPv4" } else { "IPv6" }
}

fn other(family: &str) -> &'static str {
    if family == "IPv4" { "IPv6" } else { "IPv4" }
}

fn count(spec: &Value, field: &str) -> usize {
    spec[field].as_array().map_or(0, Vec::len)
}

fn first(spec: &mut Value, field: &str) {
    if let Some(list) = spec[field].as_array_mut() {
        list.truncate(1);
    }
}

/// Fills in `ipFamilyPolicy` and `ipFamilies`. `configured` are the families of the ranges, the default first.
pub(super) fn complete(
    spec: &mut Value,
    old: &Value,
    configured: &[&'static str],
) -> Result<(), ErrorList> {
    if settled(spec, old) {
        return Ok(());
    }
    let open = spec["clusterIP"] == "None"
        && spec["selector"]
            .as_object()
            .is_none_or(serde_json::Map::is_empty);
    if spec["ipFamilyPolicy"].is_null() {
        spec["ipFamilyPolicy"] = match &old["ipFamilyPolicy"] {
            Value::Null if open => "RequireDualStack".into(),
            Value::Null => "SingleStack".into(),
            kept => kept.clone(),
        };
    }
    release(spec, old)?;
    from_addresses(spec, configured)?;
    let single = spec["ipFamilyPolicy"] == "SingleStack";
    let default = configured.first().copied().unwrap_or("IPv4");
    if open {
        // Nobody knows where the endpoints of these will be: any family may be asked for.
        return {
            fill(spec, default, !single);
            Ok(())
        };
    }
    let path = Path::new("spec");
    let mut errors = Vec::new();
    if spec["ipFamilyPolicy"] == "RequireDualStack" && configured.len() < 2 {
        errors.push(Error::invalid(
            &path.child("ipFamilyPolicy"),
            spec["ipFamilyPolicy"].clone(),
            "this cluster is not configured for dual-stack services",
        ));
    }
    for (i, wanted) in spec["ipFamilies"]
        .as_array()
        .into_iter()
        .flatten()
        .enumerate()
    {
        if !configured.iter().any(|c| wanted == c) {
            let path = path.child("ipFamilies").index(i);
            let why = "not configured on this cluster";
            errors.push(Error::invalid(&path, wanted.clone(), why));
        }
    }
    if !errors.is_empty() {
        return Err(ErrorList(errors));
    }
    fill(spec, default, !single && configured.len() == 2);
    Ok(())
}

fn fill(spec: &mut Value, default: &str, both: bool) {
    if count(spec, "ipFamilies") == 0 {
        spec["ipFamilies"] = json!([default]);
    }
    if both
        && let Some(families) = spec["ipFamilies"].as_array_mut()
        && let [only] = families.as_slice()
    {
        let second = other(only.as_str().unwrap_or_default());
        families.push(second.into());
    }
}

/// An update of a PreferDualStack Service that leaves its addresses alone: the cluster may have changed since.
fn settled(spec: &Value, old: &Value) -> bool {
    let prefers = |s: &Value| s["ipFamilyPolicy"] == "PreferDualStack";
    !old.is_null()
        && prefers(spec)
        && (prefers(old) || old["ipFamilyPolicy"].is_null())
        && ["type", "clusterIP", "clusterIPs", "ipFamilies"]
            .into_iter()
            .all(|field| spec[field] == old[field])
}

/// SingleStack gives the second address up, and nothing else does.
fn release(spec: &mut Value, old: &Value) -> Result<(), ErrorList> {
    let path = Path::new("spec").child("ipFamilyPolicy");
    let mut errors = Vec::new();
    let policy = spec["ipFamilyPolicy"].clone();
    let mut refuse = |why: &str| errors.push(Error::invalid(&path, policy.clone(), why));
    let single = spec["ipFamilyPolicy"] == "SingleStack";
    for (field, what) in [("clusterIPs", "cluster IP"), ("ipFamilies", "IP family")] {
        let (now, before) = (count(spec, field), count(old, field));
        if single && spec[field] == old[field] {
            first(spec, field);
        } else if !single && now != 0 && now < before {
            refuse(&format!(
                "must be 'SingleStack' to release the secondary {what}"
            ));
        }
    }
    for (field, what) in [("clusterIPs", "cluster IPs"), ("ipFamilies", "IP families")] {
        if single && count(spec, field) == 2 {
            refuse(&format!(
                "must be 'RequireDualStack' or 'PreferDualStack' when multiple {what} are specified"
            ));
        }
    }
    if errors.is_empty() {
        Ok(())
    } else {
        Err(ErrorList(errors))
    }
}

/// Addresses that are given say their families.
fn from_addresses(spec: &mut Value, configured: &[&'static str]) -> Result<(), ErrorList> {
    let ips = spec["clusterIPs"].as_array().cloned().unwrap_or_default();
    let mut errors = Vec::new();
    for (i, ip) in ips.iter().enumerate() {
        if ip == "None" {
            break;
        }
        let known = count(spec, "ipFamilies");
        if i < known {
            continue;
        }
        let six = ip.as_str().is_some_and(|ip| ip.contains(':'));
        let family = if six { "IPv6" } else { "IPv4" };
        if configured.contains(&family) {
            match spec["ipFamilies"].as_array_mut() {
                Some(families) => families.push(family.into()),
                None => spec["ipFamilies"] = json!([family]),
            }
        } else {
            let path = Path::new("spec").child("clusterIPs").index(i);
            let why = format!("{family} is not configured on this cluster");
            errors.push(Error::invalid(&path, spec["clusterIPs"].clone(), why));
        }
    }
    if errors.is_empty() {
        Ok(())
    } else {
        Err(ErrorList(errors))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SINGLE: &[&str] = &["IPv4"];
    const DUAL: &[&str] = &["IPv4", "IPv6"];

    #[test]
    fn policies_and_families() {
        #[rustfmt::skip]
        let table = [
            (json!({}), SINGLE, Ok(json!(["SingleStack", ["IPv4"]]))),
            (json!({"ipFamilyPolicy": "PreferDualStack"}), SINGLE, Ok(json!(["PreferDualStack", ["IPv4"]]))),
            (json!({"ipFamilyPolicy": "PreferDualStack"}), DUAL, Ok(json!(["PreferDualStack", ["IPv4", "IPv6"]]))),
            (json!({"ipFamilyPolicy": "PreferDualStack", "ipFamilies": ["IPv6"]}), DUAL, Ok(json!(["PreferDualStack", ["IPv6", "IPv4"]]))),
            (json!({"ipFamilyPolicy": "RequireDualStack"}), SINGLE, Err("spec.ipFamilyPolicy: Invalid value: \"RequireDualStack\": this cluster is not configured for dual-stack services")),
            (json!({"ipFamilies": ["IPv6"]}), SINGLE, Err("spec.ipFamilies[0]: Invalid value: \"IPv6\": not configured on this cluster")),
            (json!({"clusterIP": "fd00::1", "clusterIPs": ["fd00::1"]}), DUAL, Ok(json!(["SingleStack", ["IPv6"]]))),
            (json!({"clusterIP": "fd00::1", "clusterIPs": ["fd00::1"]}), SINGLE, Err("spec.clusterIPs[0]: Invalid value: [\"fd00::1\"]: IPv6 is not configured on this cluster")),
            (json!({"clusterIP": "None", "clusterIPs": ["None"]}), SINGLE, Ok(json!(["RequireDualStack", ["IPv4", "IPv6"]]))),
            (json!({"clusterIP": "None", "clusterIPs": ["None"], "selector": {"a": "b"}}), SINGLE, Ok(json!(["SingleStack", ["IPv4"]]))),
            (json!({"ipFamilyPolicy": "SingleStack", "ipFamilies": ["IPv4", "IPv6"]}), DUAL, Err("spec.ipFamilyPolicy: Invalid value: \"SingleStack\": must be 'RequireDualStack' or 'PreferDualStack' when multiple IP families are specified")),
        ];
        for (given, configured, want) in table {
            let mut spec = given.clone();
            let found = complete(&mut spec, &Value::Null, configured)
                .map(|()| json!([spec["ipFamilyPolicy"], spec["ipFamilies"]]))
                .map_err(|errors| errors.to_string());
            assert_eq!(found, want.map_err(str::to_owned), "{given}");
        }
    }

    #[test]
    fn single_stack_releases() {
        let ips = json!(["10.0.0.1", "fd00::1"]);
        let old = json!({"clusterIP": "10.0.0.1", "clusterIPs": ips, "ipFamilies": ["IPv4", "IPv6"], "ipFamilyPolicy": "PreferDualStack"});
        let mut spec = old.clone();
        spec["ipFamilyPolicy"] = "SingleStack".into();
        complete(&mut spec, &old, DUAL).unwrap();
        assert_eq!(spec["clusterIPs"], json!(["10.0.0.1"]));
        assert_eq!(spec["ipFamilies"], json!(["IPv4"]));
        let mut spec = old.clone();
        complete(&mut spec, &old, SINGLE).unwrap();
        assert_eq!(spec, old);
    }
}
