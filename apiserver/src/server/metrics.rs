//! `/metrics`: counts and latencies of requests under Kubernetes' names, and the process itself.

use std::collections::HashMap;
use std::collections::hash_map::{Entry, RandomState};
use std::fmt::Write;
use std::hash::BuildHasher;
use std::time::Duration;

use parking_lot::Mutex;

use crate::request::RequestInfo;

/// Upper bounds of the latency histogram, in seconds.
const BUCKETS: [f64; 12] = [
    0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0,
];
/// No more series than this: resources come from the table, but a custom one may come and go.
const MAX_SERIES: usize = 4096;

#[derive(Debug)]
struct Series {
    verb: String,
    group: String,
    resource: String,
    subresource: String,
    code: u16,
}

#[derive(Debug, Default)]
struct Latency {
    buckets: [u64; BUCKETS.len()],
    count: u64,
    sum: f64,
}

/// The counters of one server, by the hash of what they count: noting a request allocates nothing.
#[derive(Debug, Default)]
pub struct Metrics {
    requests: Mutex<HashMap<u64, (Series, Latency)>>,
    hasher: RandomState,
}

impl Metrics {
    /// Notes an answered request.
    pub fn observe(&self, info: &RequestInfo, code: u16, took: Duration) {
        let key = (
            &info.verb,
            &info.group,
            &info.resource,
            &info.subresource,
            code,
        );
        let mut requests = self.requests.lock();
        let count = requests.len();
        let (_, latency) = match requests.entry(self.hasher.hash_one(key)) {
            Entry::Occupied(entry) => entry.into_mut(),
            Entry::Vacant(_) if count >= MAX_SERIES => return,
            Entry::Vacant(entry) => entry.insert((
                Series {
                    verb: info.verb.to_ascii_uppercase(),
                    group: info.group.clone(),
                    resource: info.resource.clone(),
                    subresource: info.subresource.clone(),
                    code,
                },
                Latency::default(),
            )),
        };
        let seconds = took.as_secs_f64();
        latency.count += 1;
        latency.sum += seconds;
        if let Some(bucket) = BUCKETS.iter().position(|bound| seconds <= *bound) {
            latency.buckets[bucket] += 1;
        }
    }

    /// The text exposition format.
    #[must_use]
    pub fn render(&self) -> String {
        let mut out = String::new();
        let requests = self.requests.lock();
        // A String takes every write.
        let _ = writeln!(
            out,
            "# HELP apiserver_request_total Counter of apiserver requests."
        );
        let _ = writeln!(out, "# TYPE apiserver_request_total counter");
        for (series, latency) in requests.values() {
            let _ = writeln!(
                out,
                "apiserver_request_total{{{},code=\"{}\"}} {}",
                labels(series),
                series.code,
                latency.count
            );
        }
        let _ = writeln!(
            out,
            "# HELP apiserver_request_duration_seconds Response latency distribution in seconds."
        );
        let _ = writeln!(out, "# TYPE apiserver_request_duration_seconds histogram");
        let mut merged: HashMap<String, Latency> = HashMap::new();
        for (series, latency) in requests.values() {
            let sum = merged.entry(labels(series)).or_default();
            sum.count += latency.count;
            sum.sum += latency.sum;
            sum.buckets
                .iter_mut()
                .zip(&latency.buckets)
                .for_each(|(to, from)| *to += from);
        }
        drop(requests);
        for (labels, latency) in &merged {
            let mut cumulative = 0;
            for (bound, count) in BUCKETS.iter().zip(&latency.buckets) {
                cumulative += count;
                let _ = writeln!(
                    out,
                    "apiserver_request_duration_seconds_bucket{{{labels},le=\"{bound}\"}} {cumulative}"
                );
            }
            let _ = writeln!(
                out,
                "apiserver_request_duration_seconds_bucket{{{labels},le=\"+Inf\"}} {}",
                latency.count
            );
            let _ = writeln!(
                out,
                "apiserver_request_duration_seconds_sum{{{labels}}} {}",
                latency.sum
            );
            let _ = writeln!(
                out,
                "apiserver_request_duration_seconds_count{{{labels}}} {}",
                latency.count
            );
        }
        process(&mut out);
        out
    }
}

fn labels(series: &Series) -> String {
    let escape = |text: &str| {
        text.replace('\\', "\\\\")
            .replace('"', "\\\"")
            .replace('\n', "\\n")
    };
    format!(
        "verb=\"{}\",group=\"{}\",resource=\"{}\",subresource=\"{}\"",
        escape(&series.verb),
        escape(&series.group),
        escape(&series.resource),
        escape(&series.subresource)
    )
}

/// Memory as the kernel counts it.
fn process(out: &mut String) {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let kilobytes = status.lines().find_map(|line| {
        line.strip_prefix("VmRSS:")?
            .split_whitespace()
            .next()?
            .parse::<u64>()
            .ok()
    });
    if let Some(kilobytes) = kilobytes {
        let _ = writeln!(out, "# TYPE process_resident_memory_bytes gauge");
        let _ = writeln!(out, "process_resident_memory_bytes {}", kilobytes * 1024);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn renders() {
        let metrics = Metrics::default();
        let info = crate::request::RequestInfo {
            verb: "get".into(),
            resource: "pods".into(),
            ..Default::default()
        };
        metrics.observe(&info, 200, Duration::from_millis(7));
        metrics.observe(&info, 404, Duration::from_secs(100));
        let text = metrics.render();
        let labels = "verb=\"GET\",group=\"\",resource=\"pods\",subresource=\"\"";
        for line in [
            format!("apiserver_request_total{{{labels},code=\"404\"}} 1"),
            format!("apiserver_request_duration_seconds_bucket{{{labels},le=\"0.01\"}} 1"),
            format!("apiserver_request_duration_seconds_count{{{labels}}} 2"),
        ] {
            assert!(text.contains(&line), "{line}\n{text}");
        }
    }
}
