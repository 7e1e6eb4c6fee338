//! Asking again: what mutates an object late may concern somebody who saw it earlier.
//!
//! When a webhook or policy changed an object, the mutating phase runs once more. Of the webhooks and policies, those
//! that want it (`reinvocationPolicy: IfNeeded`) and that saw the object before the change are asked again.

use std::collections::HashSet;

use serde_json::Value;

#[derive(Debug, Default)]
pub struct Reinvocation {
    /// Zero, then one.
    pub round: u8,
    /// Whether there is to be a second round.
    pub again: bool,
    pub webhooks: Track,
    pub policies: Track,
}

/// Who of one plugin was asked, and who has to be asked again.
#[derive(Debug, Default)]
pub struct Track {
    asked: HashSet<String>,
    wanted: HashSet<String>,
    /// The object as the plugin left it.
    left: Option<Value>,
}

impl Reinvocation {
    pub fn changed_by_webhook(&mut self) {
        self.webhooks.require();
        self.again = true;
    }

    pub fn changed_by_policy(&mut self) {
        self.policies.require();
        self.again = true;
    }
}

impl Track {
    /// A round of the plugin begins: if others changed the object since it was here, all have to see it again.
    pub fn begin(&mut self, round: u8, object: &Value) {
        if round > 0 && self.left.as_ref().is_some_and(|left| left != object) {
            self.require();
        }
    }

    pub fn end(&mut self, object: &Value) {
        self.left = Some(object.clone());
    }

    pub fn invoked(&mut self, key: String) {
        self.asked.insert(key);
    }

    #[must_use]
    pub fn wants(&self, key: &str) -> bool {
        self.wanted.contains(key)
    }

    fn require(&mut self) {
        self.wanted.extend(self.asked.drain());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn those_before_a_change_are_asked_again() {
        let mut state = Reinvocation::default();
        state.webhooks.begin(0, &json!(1));
        state.webhooks.invoked("first".into());
        state.changed_by_webhook();
        state.webhooks.invoked("second".into());
        state.webhooks.end(&json!(2));
        assert!(state.again && state.webhooks.wants("first") && !state.webhooks.wants("second"));
        // A plugin between the rounds changes the object: now the second is concerned too.
        state.webhooks.begin(1, &json!(3));
        assert!(state.webhooks.wants("second"));
    }
}
