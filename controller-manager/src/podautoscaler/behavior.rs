//! How fast a target may follow its recommendations: stabilization windows and scaling policies.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::autoscaling::v2::{
    HPAScalingPolicy, HPAScalingRules, HorizontalPodAutoscalerBehavior,
};

/// What was recommended and done lately for one autoscaler.
#[derive(Debug, Default, Clone, PartialEq)]
pub struct History {
    pub recommendations: Vec<(Timestamp, i32)>,
    /// How many replicas were added, and when.
    pub added: Vec<(Timestamp, i32)>,
    pub removed: Vec<(Timestamp, i32)>,
}

impl History {
    /// Forgets what no window or policy of `limits` reaches any more.
    pub fn prune(&mut self, limits: &Limits, now: Timestamp) {
        let longest = |rules: &Rules| rules.policies.iter().map(|p| p.period_seconds).max();
        let window = limits
            .up
            .stabilization
            .max(limits.down.stabilization)
            .max(i64::from(longest(&limits.up).unwrap_or(0)))
            .max(i64::from(longest(&limits.down).unwrap_or(0)));
        for list in [
            &mut self.recommendations,
            &mut self.added,
            &mut self.removed,
        ] {
            list.retain(|(at, _)| is_within(*at, window, now));
        }
    }

    pub fn scaled(&mut self, from: i32, to: i32, now: Timestamp) {
        if to > from {
            self.added.push((now, to - from));
        } else {
            self.removed.push((now, from - to));
        }
    }
}

fn is_within(at: Timestamp, seconds: i64, now: Timestamp) -> bool {
    now.duration_since(at).as_secs_f64() < seconds as f64
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Select {
    Max,
    Min,
    Disabled,
}

/// The rules of one direction, with Kubernetes' defaults.
#[derive(Debug, Clone, PartialEq)]
pub struct Rules {
    stabilization: i64,
    select: Select,
    policies: Vec<HPAScalingPolicy>,
}

/// What an autoscaler keeps to.
#[derive(Debug, Clone, PartialEq)]
pub struct Limits {
    pub min: i32,
    pub max: i32,
    up: Rules,
    down: Rules,
    /// Without a `behavior`, the way up has one fixed limit and no policies.
    explicit: bool,
}

impl Limits {
    pub fn new(
        (min, max): (i32, i32),
        behavior: Option<&HorizontalPodAutoscalerBehavior>,
        downscale_stabilization: Duration,
    ) -> Self {
        let policy = |kind: &str, value| HPAScalingPolicy {
            type_: kind.into(),
            value,
            period_seconds: 15,
        };
        let rules =
            |given: Option<&HPAScalingRules>, window, policies: Vec<HPAScalingPolicy>| Rules {
                stabilization: given
                    .and_then(|r| r.stabilization_window_seconds)
                    .map_or(window, i64::from),
                select: match given.and_then(|r| r.select_policy.as_deref()) {
                    Some("Disabled") => Select::Disabled,
                    Some("Min") => Select::Min,
                    _ => Select::Max,
                },
                policies: given
                    .and_then(|r| r.policies.clone())
                    .filter(|p| !p.is_empty())
                    .unwrap_or(policies),
            };
        Self {
            min,
            max,
            up: rules(
                behavior.and_then(|b| b.scale_up.as_ref()),
                0,
                vec![policy("Pods", 4), policy("Percent", 100)],
            ),
            down: rules(
                behavior.and_then(|b| b.scale_down.as_ref()),
                downscale_stabilization.as_secs() as i64,
                vec![policy("Percent", 100)],
            ),
            explicit: behavior.is_some(),
        }
    }
}

/// A number of replicas, and the reason and message of the two conditions that explain it.
#[derive(Debug, PartialEq)]
pub struct Decision {
    pub replicas: i32,
    pub able: (&'static str, &'static str),
    pub limited: (bool, &'static str, &'static str),
}

const UP_STABILIZED: (&str, &str) = (
    "ScaleUpStabilized",
    "recent recommendations were lower than current one, applying the lowest recent recommendation",
);
const DOWN_STABILIZED: (&str, &str) = (
    "ScaleDownStabilized",
    "recent recommendations were higher than current one, applying the highest recent recommendation",
);
const READY: (&str, &str) = ("ReadyForNewScale", "recommended size matches current size");
const UP_LIMIT: (&str, &str) = (
    "ScaleUpLimit",
    "the desired replica count is increasing faster than the maximum scale rate",
);
const DOWN_LIMIT: (&str, &str) = (
    "ScaleDownLimit",
    "the desired replica count is decreasing faster than the maximum scale rate",
);
const TOO_MANY: (&str, &str) = (
    "TooManyReplicas",
    "the desired replica count is more than the maximum replica count",
);
const TOO_FEW: (&str, &str) = (
    "TooFewReplicas",
    "the desired replica count is less than the minimum replica count",
);
const WITHIN: (&str, &str) = (
    "DesiredWithinRange",
    "the desired count is within the acceptable range",
);

/// Brings `desired`, as the metrics have it, within what the limits allow, and remembers it.
pub fn decide(
    history: &mut History,
    limits: &Limits,
    (current, desired): (i32, i32),
    now: Timestamp,
) -> Decision {
    let stabilized = stabilize(history, limits, (current, desired), now);
    history.recommendations.push((now, desired));
    history.prune(limits, now);
    let able = match stabilized == desired {
        true => READY,
        false if limits.explicit && desired >= current => UP_STABILIZED,
        false => DOWN_STABILIZED,
    };
    let (replicas, reason) = match limits.explicit {
        true => with_policies(history, limits, (current, stabilized), now),
        false => with_fixed_limit(limits, (current, stabilized)),
    };
    Decision {
        replicas,
        able,
        limited: (replicas != stabilized, reason.0, reason.1),
    }
}

fn stabilize(
    history: &History,
    limits: &Limits,
    (current, desired): (i32, i32),
    now: Timestamp,
) -> i32 {
    let within = |seconds: i64| {
        let recent = history.recommendations.iter();
        recent
            .filter(move |(at, _)| is_within(*at, seconds, now))
            .map(|(_, n)| *n)
    };
    let most = within(limits.down.stabilization)
        .max()
        .unwrap_or(desired)
        .max(desired);
    if !limits.explicit {
        return most;
    }
    let least = within(limits.up.stabilization)
        .min()
        .unwrap_or(desired)
        .min(desired);
    current.max(least).min(most)
}

fn with_fixed_limit(
    limits: &Limits,
    (current, desired): (i32, i32),
) -> (i32, (&'static str, &'static str)) {
    let fastest = current.saturating_mul(2).max(4);
    let (most, reason) = match limits.max > fastest {
        true => (fastest, UP_LIMIT),
        false => (limits.max, TOO_MANY),
    };
    if desired < limits.min {
        (limits.min, TOO_FEW)
    } else if desired > most {
        (most, reason)
    } else {
        (desired, WITHIN)
    }
}

fn with_policies(
    history: &History,
    limits: &Limits,
    (current, desired): (i32, i32),
    now: Timestamp,
) -> (i32, (&'static str, &'static str)) {
    if desired > current {
        let fastest = reach(history, &limits.up, current, true, now).max(current);
        let (most, reason) = match limits.max > fastest {
            true => (fastest, UP_LIMIT),
            false => (limits.max, TOO_MANY),
        };
        if desired > most {
            return (most, reason);
        }
    } else if desired < current {
        let fastest = reach(history, &limits.down, current, false, now).min(current);
        let (least, reason) = match limits.min < fastest {
            true => (fastest, DOWN_LIMIT),
            false => (limits.min, TOO_FEW),
        };
        if desired < least {
            return (least, reason);
        }
    }
    (desired, WITHIN)
}

/// How far the policies of one direction let the number of replicas go by now.
fn reach(history: &History, rules: &Rules, current: i32, up: bool, now: Timestamp) -> i32 {
    if rules.select == Select::Disabled {
        return current;
    }
    let proposals = rules.policies.iter().map(|policy| {
        let sum = |changes: &[(Timestamp, i32)]| -> i32 {
            let period = i64::from(policy.period_seconds);
            let recent = changes.iter().filter(|(at, _)| is_within(*at, period, now));
            recent.map(|(_, n)| n).sum()
        };
        let start = current - sum(&history.added) + sum(&history.removed);
        let percent = f64::from(policy.value) / 100.0;
        match (policy.type_.as_str(), up) {
            ("Pods", true) => start.saturating_add(policy.value),
            ("Pods", false) => start.saturating_sub(policy.value),
            // Rounded up, else a small target would never grow.
            (_, true) => (f64::from(start) * (1.0 + percent)).ceil() as i32,
            (_, false) => (f64::from(start) * (1.0 - percent)) as i32,
        }
    });
    // "Max" is the policy of the largest change, in whichever direction.
    match up == (rules.select == Select::Max) {
        true => proposals.max(),
        false => proposals.min(),
    }
    .unwrap_or(current)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn limits(behavior: Option<Value>) -> Limits {
        let behavior = behavior.map(|b| serde_json::from_value(b).unwrap());
        Limits::new((2, 20), behavior.as_ref(), Duration::from_secs(300))
    }

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(1_000_000 + seconds).unwrap()
    }

    #[test]
    fn without_behavior() {
        for (current, desired, want, reason) in [
            (3, 5, 5, "DesiredWithinRange"),
            (3, 9, 6, "ScaleUpLimit"),
            (1, 9, 4, "ScaleUpLimit"),
            (15, 40, 20, "TooManyReplicas"),
            (3, 1, 2, "TooFewReplicas"),
        ] {
            let mut history = History::default();
            let decision = decide(&mut history, &limits(None), (current, desired), at(0));
            assert_eq!(
                (decision.replicas, decision.limited.1),
                (want, reason),
                "{current} {desired}"
            );
            assert_eq!(decision.limited.0, reason != "DesiredWithinRange");
        }
        let mut history = History::default();
        decide(&mut history, &limits(None), (5, 8), at(0));
        let decision = decide(&mut history, &limits(None), (8, 3), at(299));
        assert_eq!(
            (decision.replicas, decision.able.0),
            (8, "ScaleDownStabilized")
        );
        let decision = decide(&mut history, &limits(None), (8, 3), at(301));
        assert_eq!(
            (decision.replicas, decision.able.0),
            (3, "ReadyForNewScale")
        );
    }

    #[test]
    fn stabilization_windows() {
        let both = limits(Some(json!({
            "scaleUp": {"stabilizationWindowSeconds": 60}, "scaleDown": {"stabilizationWindowSeconds": 120}
        })));
        let mut history = History::default();
        decide(&mut history, &both, (4, 4), at(0));
        let decision = decide(&mut history, &both, (4, 7), at(30));
        assert_eq!(
            (decision.replicas, decision.able.0),
            (4, "ScaleUpStabilized")
        );
        assert_eq!(decide(&mut history, &both, (4, 7), at(61)).replicas, 7);
        let decision = decide(&mut history, &both, (7, 2), at(100));
        assert_eq!(
            (decision.replicas, decision.able.0),
            (7, "ScaleDownStabilized")
        );
        assert_eq!(decide(&mut history, &both, (7, 2), at(182)).replicas, 2);
        assert!(history.recommendations.iter().all(|(t, _)| *t > at(50)));
    }

    #[test]
    fn policies() {
        let policy = |kind: &str, value: i32, period: i32| json!({"type": kind, "value": value, "periodSeconds": period});
        let up = |select: &str| json!({"scaleUp": {"selectPolicy": select, "policies": [policy("Pods", 2, 60), policy("Percent", 100, 60)]}});
        let down = |select: &str| {
            json!({"scaleDown": {"stabilizationWindowSeconds": 0, "selectPolicy": select,
                "policies": [policy("Pods", 2, 60), policy("Percent", 50, 60)]}})
        };
        for (behavior, current, desired, want, reason) in [
            (up("Max"), 5, 20, 10, "ScaleUpLimit"),
            (up("Min"), 5, 20, 7, "ScaleUpLimit"),
            (up("Disabled"), 5, 20, 5, "ScaleUpLimit"),
            (up("Max"), 12, 40, 20, "TooManyReplicas"),
            (down("Max"), 11, 2, 5, "ScaleDownLimit"),
            (down("Min"), 11, 2, 9, "ScaleDownLimit"),
            (down("Disabled"), 11, 2, 11, "ScaleDownLimit"),
            (down("Max"), 3, 1, 2, "TooFewReplicas"),
        ] {
            let mut history = History::default();
            let limits = limits(Some(behavior.clone()));
            let decision = decide(&mut history, &limits, (current, desired), at(0));
            assert_eq!(
                (decision.replicas, decision.limited.1),
                (want, reason),
                "{behavior}"
            );
        }
        let limits = limits(Some(up("Min")));
        let mut history = History::default();
        history.scaled(5, 7, at(0));
        assert_eq!(
            decide(&mut history, &limits, (7, 20), at(59)).replicas,
            7,
            "the period's two are used up"
        );
        assert_eq!(decide(&mut history, &limits, (7, 20), at(61)).replicas, 9);
    }
}
