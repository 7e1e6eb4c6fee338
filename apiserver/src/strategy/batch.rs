//! Jobs and cron jobs.

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

    fn validate_update(&self, _context: &Context<'_>, object: &Value, _old: &Value) -> ErrorList {
        let mut checks = Checks::default();
        let path = Path::new("spec");
        let spec = &object["spec"];
        let at = path.child("schedule");
        match text(spec, "schedule") {
            "" => checks.required(&at, ""),
            schedule if schedule.contains("TZ") => {
                let why = "cannot use TZ or CRON_TZ in schedule, use timeZone field instead";
                checks.invalid(&at, schedule, why);
            }
            schedule => {
                if let Err(why) = check_schedule(schedule) {
                    checks.invalid(&at, schedule, &why);
                }
            }
        }
        for field in [
            "startingDeadlineSeconds",
            "successfulJobsHistoryLimit",
            "failedJobsHistoryLimit",
        ] {
            checks.not_negative(spec, field, &path);
        }
        if let Some(zone) = spec.get("timeZone").and_then(Value::as_str) {
            time_zone(&mut checks, zone, &path.child("timeZone"));
        }
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

fn time_zone(checks: &mut Checks, zone: &str, path: &Path) {
    let part = |p: &str| {
        let valid = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '+' | '-');
        !matches!(p, "." | "..") && !p.starts_with('-') && !p.is_empty() && p.chars().all(valid)
    };
    if zone.is_empty() {
        checks.invalid(path, zone, "timeZone must be nil or non-empty string");
    } else if !zone.split('/').all(part) {
        checks.invalid(path, zone, &format!("unknown time zone {zone}"));
    } else if zone.eq_ignore_ascii_case("local") {
        let why =
            "timeZone must be an explicit time zone as defined in https://www.iana.org/time-zones";
        checks.invalid(path, zone, why);
    }
}

/// The five fields of a cron schedule, or one of its names (`@hourly`, `@every 5m`).
fn check_schedule(schedule: &str) -> Result<(), String> {
    const NAMED: [&str; 7] = [
        "@yearly",
        "@annually",
        "@monthly",
        "@weekly",
        "@daily",
        "@midnight",
        "@hourly",
    ];
    const MONTHS: [&str; 12] = [
        "jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec",
    ];
    const DAYS: [&str; 7] = ["sun", "mon", "tue", "wed", "thu", "fri", "sat"];
    if let Some(duration) = schedule.strip_prefix("@every ") {
        let sound = duration.ends_with(|c: char| c.is_ascii_alphabetic())
            && duration.starts_with(|c: char| c.is_ascii_digit());
        return if sound {
            Ok(())
        } else {
            Err(format!(
                "failed to parse duration {schedule}: time: invalid duration {duration:?}"
            ))
        };
    }
    if schedule.starts_with('@') {
        return if NAMED.contains(&schedule) {
            Ok(())
        } else {
            Err(format!("unrecognized descriptor: {schedule}"))
        };
    }
    let fields: Vec<&str> = schedule.split_whitespace().collect();
    if fields.len() != 5 {
        return Err(format!(
            "expected exactly 5 fields, found {}: [{}]",
            fields.len(),
            fields.join(" ")
        ));
    }
    let bounds: [(u32, u32, &[&str], u32); 5] = [
        (0, 59, &[], 0),
        (0, 23, &[], 0),
        (1, 31, &[], 0),
        (1, 12, &MONTHS, 1),
        (0, 6, &DAYS, 0),
    ];
    for (field, (low, high, names, first)) in fields.iter().zip(bounds) {
        for range in field.split(',') {
            check_range(range, low, high, names, first)?;
        }
    }
    Ok(())
}

fn check_range(range: &str, low: u32, high: u32, names: &[&str], first: u32) -> Result<(), String> {
    let number = |text: &str| -> Result<u32, String> {
        if let Some(at) = names.iter().position(|n| n.eq_ignore_ascii_case(text)) {
            return Ok(at as u32 + first);
        }
        text.parse().map_err(|_| {
            format!(
                "failed to parse int from {text}: strconv.Atoi: parsing {text:?}: invalid syntax"
            )
        })
    };
    let (span, step) = range
        .split_once('/')
        .map_or((range, None), |(span, step)| (span, Some(step)));
    let (start, end) = match span.split_once('-') {
        _ if matches!(span, "*" | "?") => (low, high),
        Some((start, end)) => (number(start)?, number(end)?),
        None => {
            let start = number(span)?;
            (start, if step.is_some() { high } else { start })
        }
    };
    if let Some(step) = step
        && number(step)? == 0
    {
        return Err(format!(
            "step of range should be a positive number: {range}"
        ));
    }
    if start < low {
        return Err(format!(
            "beginning of range ({start}) below minimum ({low}): {range}"
        ));
    }
    if end > high {
        return Err(format!(
            "end of range ({end}) above maximum ({high}): {range}"
        ));
    }
    if start > end {
        return Err(format!(
            "beginning of range ({start}) beyond end of range ({end}): {range}"
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schedules() {
        for good in [
            "* * * * *",
            "*/5 0-6,12 1 jan-mar MON",
            "@hourly",
            "@every 1h30m",
            "0 0 ? * 6",
            "5/10 * * * *",
        ] {
            assert_eq!(check_schedule(good), Ok(()), "{good}");
        }
        for (bad, want) in [
            ("* * * *", "expected exactly 5 fields, found 4: [* * * *]"),
            ("60 * * * *", "end of range (60) above maximum (59): 60"),
            ("* * 0 * *", "beginning of range (0) below minimum (1): 0"),
            (
                "5-1 * * * *",
                "beginning of range (5) beyond end of range (1): 5-1",
            ),
            (
                "*/0 * * * *",
                "step of range should be a positive number: */0",
            ),
            (
                "x * * * *",
                "failed to parse int from x: strconv.Atoi: parsing \"x\": invalid syntax",
            ),
            ("@never", "unrecognized descriptor: @never"),
        ] {
            assert_eq!(check_schedule(bad).unwrap_err(), want);
        }
    }

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
}
