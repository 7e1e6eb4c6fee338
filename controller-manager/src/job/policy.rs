//! What a Job says about the failure and the success of its pods.

use k8s_openapi::api::batch::v1::{
    PodFailurePolicy, PodFailurePolicyOnExitCodesRequirement, PodFailurePolicyRule, SuccessPolicy,
};
use k8s_openapi::api::core::v1::{ContainerStatus, Pod};
use kube::ResourceExt;

use super::indexes::Indexes;

/// What follows from a failed pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    Count,
    Ignore,
    FailIndex,
    /// The whole Job fails, for this reason.
    FailJob(String),
}

/// Matches a failed pod against the rules in their order.
pub fn judge(policy: Option<&PodFailurePolicy>, pod: &Pod) -> Verdict {
    let rules = policy.into_iter().flat_map(|p| p.rules.iter().enumerate());
    for (n, rule) in rules {
        let Some(what) = matches(rule, pod) else {
            continue;
        };
        return match rule.action.as_str() {
            "Ignore" => Verdict::Ignore,
            "FailIndex" => Verdict::FailIndex,
            "FailJob" => {
                Verdict::FailJob(format!("{what} matching {} rule at index {n}", rule.action))
            }
            _ => Verdict::Count,
        };
    }
    Verdict::Count
}

fn matches(rule: &PodFailurePolicyRule, pod: &Pod) -> Option<String> {
    let status = pod.status.as_ref()?;
    let name = format!("{}/{}", pod.namespace().unwrap_or_default(), pod.name_any());
    if let Some(wanted) = &rule.on_exit_codes {
        let statuses = status
            .container_statuses
            .iter()
            .chain(&status.init_container_statuses)
            .flatten();
        let (container, code) = statuses.into_iter().find_map(|s| exit_code(wanted, s))?;
        return Some(format!(
            "Container {container} for pod {name} failed with exit code {code}"
        ));
    }
    let wanted = rule.on_pod_conditions.as_ref()?;
    let conditions = status.conditions.iter().flatten();
    let found = conditions.into_iter().find(|c| {
        wanted
            .iter()
            .any(|w| w.type_ == c.type_ && w.status.as_deref().unwrap_or("True") == c.status)
    })?;
    Some(format!("Pod {name} has condition {}", found.type_))
}

fn exit_code<'a>(
    wanted: &PodFailurePolicyOnExitCodesRequirement,
    status: &'a ContainerStatus,
) -> Option<(&'a str, i32)> {
    let code = status.state.as_ref()?.terminated.as_ref()?.exit_code;
    let named = wanted
        .container_name
        .as_ref()
        .is_none_or(|n| *n == status.name);
    let listed = wanted.values.contains(&code);
    let fits = match wanted.operator.as_str() {
        "In" => listed,
        "NotIn" => !listed,
        _ => false,
    };
    (named && code != 0 && fits).then_some((status.name.as_str(), code))
}

/// Why a Job has succeeded with these indexes, if its policy says so.
pub fn succeeded(
    policy: Option<&SuccessPolicy>,
    completions: i32,
    done: &Indexes,
) -> Option<String> {
    if done.is_empty() {
        return None;
    }
    let mut rules = policy?.rules.iter();
    let met = rules.position(|rule| {
        let enough = |have: i32| rule.succeeded_count.is_some_and(|count| have >= count);
        match &rule.succeeded_indexes {
            None => enough(done.len()),
            Some(text) => {
                let wanted = Indexes::parse(text, completions);
                let have = wanted.overlap(done);
                !wanted.is_empty() && (have == wanted.len() || enough(have))
            }
        }
    })?;
    Some(format!("Matched rules at index {met}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn failures() {
        let policy: PodFailurePolicy = serde_json::from_value(json!({"rules": [
            {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
            {"action": "FailJob", "onExitCodes": {"containerName": "main", "operator": "In", "values": [42]}},
            {"action": "FailIndex", "onExitCodes": {"operator": "NotIn", "values": [1, 42]}},
        ]}))
        .unwrap();
        let pod = |container: &str, code: i32, condition: &str| -> Pod {
            serde_json::from_value(json!({"metadata": {"namespace": "ns", "name": "p"}, "status": {
                "conditions": [{"type": condition, "status": "True"}],
                "containerStatuses": [{"name": container, "image": "", "imageID": "", "ready": false, "restartCount": 0,
                    "state": {"terminated": {"exitCode": code}}}]}}))
            .unwrap()
        };
        let told =
            "Container main for pod ns/p failed with exit code 42 matching FailJob rule at index 1";
        for (pod, want) in [
            (pod("main", 42, "Ready"), Verdict::FailJob(told.into())),
            (pod("main", 42, "DisruptionTarget"), Verdict::Ignore),
            (pod("other", 42, "Ready"), Verdict::Count),
            (pod("other", 7, "Ready"), Verdict::FailIndex),
            (pod("main", 1, "Ready"), Verdict::Count),
            (pod("main", 0, "Ready"), Verdict::Count),
        ] {
            assert_eq!(judge(Some(&policy), &pod), want);
            assert_eq!(judge(None, &pod), Verdict::Count);
        }
    }

    #[test]
    fn successes() {
        for (rules, done, want) in [
            (json!([{"succeededIndexes": "0-2"}]), "0,1", None),
            (json!([{"succeededIndexes": "0-2"}]), "0-3", Some(0)),
            (
                json!([{"succeededIndexes": "0-2", "succeededCount": 1}]),
                "2",
                Some(0),
            ),
            (
                json!([{"succeededIndexes": "4"}, {"succeededCount": 2}]),
                "0,2",
                Some(1),
            ),
            (json!([{"succeededCount": 1}]), "", None),
        ] {
            let policy: SuccessPolicy = serde_json::from_value(json!({"rules": rules})).unwrap();
            let want = want.map(|n: i32| format!("Matched rules at index {n}"));
            assert_eq!(
                succeeded(Some(&policy), 5, &Indexes::parse(done, 5)),
                want,
                "{rules} {done}"
            );
        }
    }
}
