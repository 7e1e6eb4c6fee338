//! What is done about one object, decided on what the API server says of it and of its owners.

use super::graph::{FOREGROUND, ORPHAN};

/// How an owner that a reference names really is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OwnerState {
    /// There, and in the graph or not.
    Solid,
    /// Gone, or never was.
    Absent,
    /// There, but it waits for its dependents to go first.
    Waiting,
}

/// Someone the object owns.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dependent {
    pub uid: String,
    pub blocking: bool,
    pub deleting_dependents: bool,
}

/// An object, its owners as the API server has them, its dependents as the graph has them.
#[derive(Debug, Default)]
pub struct Observed {
    pub deleting_dependents: bool,
    pub finalizers: Vec<String>,
    /// The uid in each owner reference.
    pub owners: Vec<(String, OwnerState)>,
    pub dependents: Vec<Dependent>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Policy {
    Background,
    Foreground,
    Orphan,
}

/// What is to be done.
#[derive(Debug, PartialEq, Eq)]
pub enum Action {
    /// All that it waited for are gone: take the finalizer `foregroundDeletion` off.
    Finish,
    /// These have to go first.
    LookAt(Vec<String>),
    /// Let owners with these uids go from its references: others still want it.
    DropOwners(Vec<String>),
    /// Say that it blocks none of its owners.
    Unblock,
    Delete(Policy),
}

/// Decides about one object.
pub fn plan(observed: &Observed) -> Vec<Action> {
    if observed.deleting_dependents {
        let mut blocking = observed.dependents.iter().filter(|d| d.blocking).peekable();
        if blocking.peek().is_none() {
            return vec![Action::Finish];
        }
        let next: Vec<String> = blocking
            .filter(|d| !d.deleting_dependents)
            .map(|d| d.uid.clone())
            .collect();
        return match next.is_empty() {
            true => Vec::new(),
            false => vec![Action::LookAt(next)],
        };
    }
    let is = |wanted| observed.owners.iter().any(|(_, state)| *state == wanted);
    if observed.owners.is_empty() {
        return Vec::new();
    }
    if is(OwnerState::Solid) {
        // An owner that waits would wait for ever for one that others keep.
        let dropped: Vec<String> = observed
            .owners
            .iter()
            .filter(|(_, state)| *state != OwnerState::Solid)
            .map(|(uid, _)| uid.clone())
            .collect();
        return match dropped.is_empty() {
            true => Vec::new(),
            false => vec![Action::DropOwners(dropped)],
        };
    }
    if is(OwnerState::Waiting) && !observed.dependents.is_empty() {
        let circle = observed.dependents.iter().any(|d| d.deleting_dependents);
        let unblock = circle.then_some(Action::Unblock);
        return unblock
            .into_iter()
            .chain([Action::Delete(Policy::Foreground)])
            .collect();
    }
    let has = |finalizer: &str| observed.finalizers.iter().any(|f| f == finalizer);
    vec![Action::Delete(if has(ORPHAN) {
        Policy::Orphan
    } else if has(FOREGROUND) {
        Policy::Foreground
    } else {
        Policy::Background
    })]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plans() {
        use OwnerState::{Absent, Solid, Waiting};
        let owners = |states: &[OwnerState]| -> Vec<(String, OwnerState)> {
            states
                .iter()
                .enumerate()
                .map(|(n, s)| (format!("o{n}"), *s))
                .collect()
        };
        // `b`locking or not, `w`aiting for its own dependents or not.
        let dependent = |uid: &str, flags: &str| Dependent {
            uid: uid.into(),
            blocking: flags.contains('b'),
            deleting_dependents: flags.contains('w'),
        };
        let uids = |uids: &[&str]| uids.iter().map(|u| (*u).to_owned()).collect::<Vec<_>>();
        let delete = |policy| vec![Action::Delete(policy)];
        #[rustfmt::skip]
        let cases = vec![
            ("no owners", owners(&[]), vec![], vec![], vec![]),
            ("an owner", owners(&[Solid]), vec![], vec![], vec![]),
            ("none left", owners(&[Absent, Absent]), vec![], vec![], delete(Policy::Background)),
            ("one of two left", owners(&[Absent, Solid]), vec![], vec![], vec![Action::DropOwners(uids(&["o0"]))]),
            ("one of two waits for it", owners(&[Waiting, Solid]), vec![], vec![], vec![Action::DropOwners(uids(&["o0"]))]),
            ("its finalizer says orphan", owners(&[Absent]), vec![ORPHAN], vec![], delete(Policy::Orphan)),
            ("its finalizer says foreground", owners(&[Absent]), vec![FOREGROUND], vec![], delete(Policy::Foreground)),
            ("its owner waits", owners(&[Waiting]), vec![], vec![], delete(Policy::Background)),
            ("its owner waits, and it owns others", owners(&[Waiting]), vec![], vec![dependent("d", "")], delete(Policy::Foreground)),
            ("a circle", owners(&[Waiting]), vec![], vec![dependent("d", "w")], vec![Action::Unblock, Action::Delete(Policy::Foreground)]),
        ];
        for (why, owners, finalizers, dependents, want) in cases {
            let observed = Observed {
                owners,
                dependents,
                finalizers: uids(&finalizers),
                deleting_dependents: false,
            };
            assert_eq!(plan(&observed), want, "{why}");
        }
        #[rustfmt::skip]
        let waiting = vec![
            ("nobody left", vec![], vec![Action::Finish]),
            ("those that do not block may stay", vec![dependent("d", "")], vec![Action::Finish]),
            ("two in the way", vec![dependent("d", "b"), dependent("e", "b"), dependent("f", "")], vec![Action::LookAt(uids(&["d", "e"]))]),
            ("one is on its way out already", vec![dependent("d", "bw")], vec![]),
        ];
        for (why, dependents, want) in waiting {
            let observed = Observed {
                deleting_dependents: true,
                dependents,
                owners: owners(&[Solid]),
                ..Default::default()
            };
            assert_eq!(plan(&observed), want, "{why}");
        }
    }
}
