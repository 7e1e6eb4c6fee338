//! Jobs and cron jobs.

use apimachinery::cron::{self, Schedule};
use apimachinery::field::{Error, ErrorList, Path};
use apimachinery::names;
use serde_json::{Value, json};

use super::check::{Checks, flag, given, integer, list_mut, same, set_default, text};
use super::workload::default_template;
use super::{Context, Strategy, common, pod_spec, pod_warnings};

pub struct Job;
pub struct CronJob;

const UID_LABELS: [&str; 2] = ["controller-uid", "batch.kubernetes.io/controller-uid"];
const NAME_LABELS: [&str; 2] = ["job-name", "batch.kubernetes.io/job-name"];

impl Strategy for Job {
    fn warnings(&self, context: &Context<'_>, object: &Value) -> Vec<String> {
        if !context.subresource.is_empty() {
            return Vec::new();
        }
        let path = Path::new("spec").child("template");
        pod_warnings::warnings(&object["spec"]["template"], &path)
    }

    fn default(&self, object: &mut Value) {
        let Some(spec) = object.get_mut("spec").filter(|s| s.is_object()) else {
            return;
        };
        default_template(spec);
        if given(spec, "completions").is_none() && given(spec, "parallelism").is_none() {
            set_default(spec, "completions", 1);
        }
        set_default(spec, "parallelism", 1);
        let limit = if given(spec, "backoffLimitPerIndex").is_some() {
            i32::MAX
        } else {
            6
        };
        set_default(spec, "backoffLimit", limit);
        set_default(spec, "completionMode", "NonIndexed");
        set_default(spec, "suspend", false);
        set_default(spec, "manualSelector", false);
        let replacement = if given(spec, "podFailurePolicy").is_some() {
            "Failed"
        } else {
            "TerminatingOrFailed"
        };
        set_default(spec, "podReplacementPolicy", replacement);
        if let Some(policy) = spec.get_mut("podFailurePolicy") {
            for rule in list_mut(policy, "rules") {
                for pattern in list_mut(rule, "onPodConditions") {
                    set_default(pattern, "status", "True");
                }
            }
        }
        let labels = spec["template"]["metadata"]["labels"].clone();
        if !same(&labels, &Value::Null) && same(&object["metadata"]["labels"], &Value::Null) {
            object["metadata"]["labels"] = labels;
        }
    }

    /// Gives the job a selector of its own, by its uid, unless it brings one.
    fn prepare_for_create(&self, context: &Context<'_>, object: &mut Value) {
        common::reset_status_on_create(context, object);
        object["status"] = json!({});
        if flag(&object["spec"], "manualSelector") || !object["spec"].is_object() {
            return;
        }
        let (uid, name) = (
            apimachinery::object::uid(object).to_owned(),
            apimachinery::object::name(object).to_owned(),
        );
        let spec = &mut object["spec"];
        for (labels, value) in [(NAME_LABELS, &name), (UID_LABELS, &uid)] {
            for label in labels {
                let slot = &mut spec["template"]["metadata"]["labels"][label];
                if slot.is_null() {
                    *slot = value.as_str().into();
                }
            }
        }
        let slot = &mut spec["selector"]["matchLabels"][UID_LABELS[1]];
        if slot.is_null() {
            *slot = uid.into();
        }
    }

    fn validate(&self, _context: &Context<'_>, object: &Value) -> ErrorList {
        let mut checks = Checks::default();
        let path = Path::new("spec");
        let spec = &object["spec"];
        own_labels(&mut checks, object, &path);
        job_spec(&mut checks, spec, &path);
        selector_matches(&mut checks, spec, &path);
        let completions = integer(spec, "completions").unwrap_or(0);
        if text(spec, "completionMode") == "Indexed" && completions > 0 {
            let name = apimachinery::object::name(object);
            let host = format!("{name}-{}", completions - 1);
            if !names::dns1123_label(&host).is_empty() {
                let why = format!("will not able to create pod with invalid DNS label: {host}");
                checks.invalid(&Path::new("metadata").child("name"), name, &why);
            }
        }
        checks.done()
    }

    fn validate_update(&self, _context: &Context<'_>, object: &Value, old: &Value) -> ErrorList {
        const FIXED: [&str; 6] = [
            "selector",
            "completionMode",
            "podFailurePolicy",
            "backoffLimitPerIndex",
            "managedBy",
            "successPolicy",
        ];
        let mut checks = Checks::default();
        let path = Path::new("spec");
        let (new, before) = (&object["spec"], &old["spec"]);
        job_spec(&mut checks, new, &path);
        selector_matches(&mut checks, new, &path);
        for field in FIXED {
            checks.immutable(&path.child(field), &new[field], &before[field]);
        }
        let completions = path.child("completions");
        if text(new, "completionMode") != "Indexed" {
            checks.immutable(&completions, &new["completions"], &before["completions"]);
        } else if new["completions"] != before["completions"]
            && new["completions"] != new["parallelism"]
        {
            let why = "can only be modified in tandem with spec.parallelism";
            checks.invalid(&completions, new["completions"].clone(), why);
        }
        let mut template = before["template"].clone();
        let never_started = flag(before, "suspend") && old["status"]["startTime"].is_null();
        if never_started {
            // Queue controllers decide where a suspended job's pods will run.
            for field in ["nodeSelector", "tolerations", "schedulingGates"] {
                common::copy(&mut template["spec"], &new["template"]["spec"], field);
            }
            for field in ["annotations", "labels"] {
                common::copy(
                    &mut template["metadata"],
                    &new["template"]["metadata"],
                    field,
                );
            }
            if template["spec"]["affinity"].is_object()
                || new["template"]["spec"]["affinity"].is_object()
            {
                template["spec"]["affinity"]["nodeAffinity"] =
                    new["template"]["spec"]["affinity"]["nodeAffinity"].clone();
            }
        }
        checks.immutable(&path.child("template"), &new["template"], &template);
        checks.done()
    }
}

/// The generated selector and labels must be the job's own.
fn own_labels(checks: &mut Checks, object: &Value, path: &Path) {
    let spec = &object["spec"];
    if flag(spec, "manualSelector") {
        return;
    }
    let labels = path.child("template").child("metadata").child("labels");
    let (uid, name) = (
        apimachinery::object::uid(object),
        apimachinery::object::name(object),
    );
    for (keys, want) in [(UID_LABELS, uid), (NAME_LABELS, name)] {
        for key in keys {
            let got = spec["template"]["metadata"]["labels"][key]
                .as_str()
                .unwrap_or_default();
            if got != want {
                checks.invalid(&labels.key(key), got, &format!("must be '{want}'"));
            }
        }
    }
    let selected = &spec["selector"]["matchLabels"];
    let foreign = UID_LABELS
        .iter()
        .any(|k| selected[k].as_str().is_some_and(|v| v != uid));
    if foreign {
        checks.invalid(
            &path.child("selector"),
            spec["selector"].clone(),
            "`selector` not auto-generated",
        );
    }
}

fn selector_matches(checks: &mut Checks, spec: &Value, path: &Path) {
    let selector = &spec["selector"];
    if selector.is_null() {
        checks.required(&path.child("selector"), "");
        return;
    }
    checks.label_selector(selector, &path.child("selector"));
    let labels = spec["template"]["metadata"]["labels"].clone();
    let empty = serde_json::Map::new();
    let parsed = apimachinery::selector::LabelSelector::from_value(selector);
    if parsed.is_ok_and(|s| !s.matches(labels.as_object().unwrap_or(&empty))) {
        let path = path.child("template").child("metadata").child("labels");
        checks.invalid(&path, labels, "`selector` does not match template `labels`");
    }
}

fn job_spec(checks: &mut Checks, spec: &Value, path: &Path) {
    const COUNTS: [&str; 7] = [
        "parallelism",
        "completions",
        "activeDeadlineSeconds",
        "backoffLimit",
        "ttlSecondsAfterFinished",
        "backoffLimitPerIndex",
        "maxFailedIndexes",
    ];
    for field in COUNTS {
        checks.not_negative(spec, field, path);
    }
    let per_index = integer(spec, "backoffLimitPerIndex");
    let failed = integer(spec, "maxFailedIndexes");
    if failed.is_some() && per_index.is_none() {
        checks.required(
            &path.child("backoffLimitPerIndex"),
            "when maxFailedIndexes is specified",
        );
    }
    let mode = text(spec, "completionMode");
    if !["", "NonIndexed", "Indexed"].contains(&mode) {
        let path = path.child("completionMode");
        checks.push(Error::not_supported(
            &path,
            mode,
            &["NonIndexed", "Indexed"],
        ));
    }
    if mode == "Indexed" {
        indexed(checks, spec, path);
    } else {
        for (field, value) in [
            ("backoffLimitPerIndex", per_index),
            ("maxFailedIndexes", failed),
        ] {
            if let Some(value) = value {
                checks.invalid(
                    &path.child(field),
                    value,
                    "requires indexed completion mode",
                );
            }
        }
        if let Some(policy) = given(spec, "successPolicy") {
            checks.invalid(
                &path.child("successPolicy"),
                policy.clone(),
                "requires indexed completion mode",
            );
        }
    }
    let replacement = text(spec, "podReplacementPolicy");
    if !replacement.is_empty() {
        let path = path.child("podReplacementPolicy");
        let allowed: &[&str] = if given(spec, "podFailurePolicy").is_some() {
            &["Failed"]
        } else {
            &["Failed", "TerminatingOrFailed"]
        };
        checks.one_of(&path, replacement, allowed);
    }
    let template = &spec["template"];
    pod_spec::validate_template(checks, template, &path.child("template"));
    let at = path.child("template").child("spec").child("restartPolicy");
    match text(&template["spec"], "restartPolicy") {
        "" | "Always" => checks.required(&at, r#"valid values: "OnFailure", "Never""#),
        "OnFailure" if given(spec, "podFailurePolicy").is_some() => {
            checks.invalid(
                &at,
                "OnFailure",
                r#"only "Never" is supported when podFailurePolicy is specified"#,
            );
        }
        "OnFailure" | "Never" => {}
        other => checks.push(Error::not_supported(&at, other, &["OnFailure", "Never"])),
    }
}

fn indexed(checks: &mut Checks, spec: &Value, path: &Path) {
    const MOST: i64 = 100_000;
    let completions = integer(spec, "completions");
    if completions.is_none() {
        checks.required(
            &path.child("completions"),
            "when completion mode is Indexed",
        );
    }
    if let Some(parallelism) = integer(spec, "parallelism").filter(|p| *p > MOST) {
        let why = format!("must be less than or equal to {MOST} when completion mode is Indexed");
        checks.invalid(&path.child("parallelism"), parallelism, &why);
    }
    if let Some(failed) = integer(spec, "maxFailedIndexes") {
        let path = path.child("maxFailedIndexes");
        if completions.is_some_and(|c| failed > c) {
            checks.invalid(&path, failed, "must be less than or equal to completions");
        }
        if failed > MOST {
            checks.invalid(
                &path,
                failed,
                &format!("must be less than or equal to {MOST}"),
            );
        }
    }
}

impl Strategy for CronJob {
    fn warnings(&self, context: &Context<'_>, object: &Value) -> Vec<String> {
        if !context.subresource.is_empty() {
            return Vec::new();
        }
        let path = Path::new("spec")
            .child("jobTemplate")
            .child("spec")
            .child("template");
        pod_warnings::warnings(&object["spec"]["jobTemplate"]["spec"]["template"], &path)
    }

    fn default(&self, object: &mut Value) {
        let Some(spec) = object.get_mut("spec").filter(|s| s.is_object()) else {
            return;
        };
        set_default(spec, "concurrencyPolicy", "Allow");
        set_default(spec, "suspend", false);
        set_default(spec, "successfulJobsHistoryLimit", 3);
        set_default(spec, "failedJobsHistoryLimit", 1);
        if let Some(job) = spec.get_mut("jobTemplate").and_then(|t| t.get_mut("spec")) {
            default_template(job);
        }
    }

    fn validate(&self, context: &Context<'_>, object: &Value) -> ErrorList {
        let mut checks = Checks(self.validate_update(context, object, &Value::Null).0);
        let name = apimachinery::object::name(object);
        if name.len() > 52 {
            checks.invalid(
                &Path::new("metadata").child("name"),
                name,
                "must be no more than 52 characters",
            );
        }
        checks.done()
    }

    fn validate_update(&self, _context: &Context<'_>, object: &Value, old: &Value) -> ErrorList {
        let mut checks = Checks::default();
        let path = Path::new("spec");
        let spec = &object["spec"];
        schedule(&mut checks, spec, &old["spec"], &path.child("schedule"));
        for field in [
            "startingDeadlineSeconds",
            "successfulJobsHistoryLimit",
            "failedJobsHistoryLimit",
        ] {
            checks.not_negative(spec, field, &path);
        }
        changed_time_zone(&mut checks, spec, &old["spec"], &path.child("timeZone"));
        let policy = text(spec, "concurrencyPolicy");
        checks.one_of(
            &path.child("concurrencyPolicy"),
            policy,
            &["Allow", "Forbid", "Replace"],
        );
        let (job, at) = (
            &spec["jobTemplate"]["spec"],
            path.child("jobTemplate").child("spec"),
        );
        job_spec(&mut checks, job, &at);
        if let Some(selector) = given(job, "selector") {
            checks.invalid(
                &at.child("selector"),
                selector.clone(),
                "`selector` will be auto-generated",
            );
        }
        if flag(job, "manualSelector") {
            checks.push(Error::not_supported(
                &at.child("manualSelector"),
                true,
                &["nil", "false"],
            ));
        }
        checks.done()
    }
}

/// Zones are a field of their own now; what has one in its schedule from before that may keep it.
fn schedule(checks: &mut Checks, spec: &Value, old: &Value, path: &Path) {
    let schedule = text(spec, "schedule");
    if schedule.is_empty() {
        checks.required(path, "");
        return;
    }
    if let Err(why) = Schedule::parse(schedule) {
        checks.invalid(path, schedule, &why);
    }
    if !schedule.contains("TZ") {
        return;
    }
    if !text(old, "schedule").contains("TZ") {
        let why = "cannot use TZ or CRON_TZ in schedule, use timeZone field instead";
        checks.invalid(path, schedule, why);
    } else if given(spec, "timeZone").is_some() {
        let why = "cannot use both timeZone field and TZ or CRON_TZ in schedule";
        checks.invalid(path, schedule, why);
    }
}

fn changed_time_zone(checks: &mut Checks, spec: &Value, old: &Value, path: &Path) {
    let Some(zone) = given(spec, "timeZone").and_then(Value::as_str) else {
        return;
    };
    if old["timeZone"] == zone {
        return;
    }
    let part = |p: &str| {
        let valid = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '+' | '-');
        let right_length = (1..=14).contains(&p.len());
        !matches!(p, "." | "..") && !p.starts_with('-') && right_length && p.chars().all(valid)
    };
    if zone.is_empty() {
        checks.invalid(path, zone, "timeZone must be nil or non-empty string");
    } else if !zone.split('/').all(part) {
        checks.invalid(path, zone, &format!("unknown time zone {zone}"));
    } else {
        if zone.eq_ignore_ascii_case("local") {
            let why = "timeZone must be an explicit time zone as defined in https://www.iana.org/time-zones";
            checks.invalid(path, zone, why);
        }
        // "Local" itself Go knows.
        if let Err(why) = cron::time_zone(zone)
            && zone != "Local"
        {
            checks.invalid(path, zone, &why);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jobs_get_defaults_and_a_selector() {
        let mut job = json!({"metadata": {"name": "j", "uid": "u"}, "spec": {"template": {"spec": {"containers": []}}}});
        Job.default(&mut job);
        let spec = &job["spec"];
        for (field, want) in [
            ("completions", json!(1)),
            ("parallelism", json!(1)),
            ("backoffLimit", json!(6)),
            ("suspend", json!(false)),
        ] {
            assert_eq!(spec[field], want, "{field}");
        }
        assert_eq!(spec["podReplacementPolicy"], "TerminatingOrFailed");
        let mut parallel = json!({"spec": {"parallelism": 3}});
        Job.default(&mut parallel);
        assert!(parallel["spec"]["completions"].is_null());
    }

    #[test]
    fn schedules_and_their_time_zones() {
        let spec = |schedule: &str, zone: Value| json!({"schedule": schedule, "timeZone": zone});
        let hourly = || spec("@hourly", Value::Null);
        let prefixed = || spec("TZ=UTC 0 * * * *", Value::Null);
        for (new, old, want) in [
            (hourly(), Value::Null, &[][..]),
            (spec("0 * * * *", json!("Europe/Rome")), Value::Null, &[]),
            (
                spec("60 * * * *", Value::Null),
                Value::Null,
                &["end of range (60)"],
            ),
            (prefixed(), Value::Null, &["cannot use TZ"]),
            (prefixed(), hourly(), &["cannot use TZ"]),
            (prefixed(), prefixed(), &[]),
            (
                spec("TZ=UTC 0 * * * *", json!("UTC")),
                prefixed(),
                &["cannot use both"],
            ),
            (
                spec("TZ=0", Value::Null),
                Value::Null,
                &["invalid schedule format", "cannot use TZ"],
            ),
            (
                spec("@hourly", json!("")),
                Value::Null,
                &["must be nil or non-empty"],
            ),
            (
                spec("@hourly", json!("Mars/Base")),
                Value::Null,
                &["unknown time zone Mars/Base"],
            ),
            (
                spec("@hourly", json!("europe/rome")),
                Value::Null,
                &["unknown time zone europe/rome"],
            ),
            (
                spec("@hourly", json!("../UTC")),
                Value::Null,
                &["unknown time zone ../UTC"],
            ),
            (
                spec("@hourly", json!("local")),
                Value::Null,
                &["must be an explicit time zone", "unknown time zone local"],
            ),
            // What was stored with a zone that is not known here can still be changed.
            (
                spec("@daily", json!("Mars/Base")),
                spec("@hourly", json!("Mars/Base")),
                &[],
            ),
        ] {
            let mut checks = Checks::default();
            let path = Path::new("spec");
            schedule(&mut checks, &new, &old, &path.child("schedule"));
            changed_time_zone(&mut checks, &new, &old, &path.child("timeZone"));
            let got: Vec<String> = checks.0.iter().map(ToString::to_string).collect();
            let all = got.len() == want.len() && got.iter().zip(want).all(|(g, w)| g.contains(w));
            assert!(all, "{new} {old}: {got:?}");
        }
    }
}
