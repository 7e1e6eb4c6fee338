//! From wanted chains to the text for one `iptables-restore --noflush`: everything when the kernel's
//! state is unknown, only chains that differ afterwards. Pure functions.
//!
//! A chain line empties its chain (and makes it if need be); the rules after it fill it again; all of
//! it takes effect in one transaction per table.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::hash::{DefaultHasher, Hash, Hasher};

use super::chains::{DYNAMIC, JUMPS, Ruleset};

/// What the last restore left behind: a hash per chain instead of its text.
pub type Fingerprint = BTreeMap<(&'static str, String), u64>;

pub fn fingerprint(rules: &Ruleset) -> Fingerprint {
    let chains = rules.tables().into_iter().flat_map(|(table, chains)| {
        chains.iter().map(move |(chain, rules)| {
            let mut hasher = DefaultHasher::new();
            rules.hash(&mut hasher);
            ((table, chain.clone()), hasher.finish())
        })
    });
    chains.collect()
}

/// The kernel's own tables, as far as they matter here.
#[derive(Debug, Default)]
pub struct Existing {
    chains: BTreeSet<(String, String)>,
    jumps: BTreeSet<(String, String, String)>,
}

impl Existing {
    /// Reads the output of `iptables-save`.
    pub fn parse(save: &str) -> Self {
        let mut found = Self::default();
        let mut table = String::new();
        for line in save.lines() {
            if let Some(name) = line.strip_prefix('*') {
                table = name.trim().to_owned();
            } else if let Some(chain) = line.strip_prefix(':') {
                let name = chain.split_whitespace().next().unwrap_or_default();
                found.chains.insert((table.clone(), name.to_owned()));
            } else if let Some(rule) = line.strip_prefix("-A ") {
                let from = rule.split_whitespace().next().unwrap_or_default();
                if let Some((_, to)) = rule.rsplit_once(" -j ") {
                    found
                        .jumps
                        .insert((table.clone(), from.to_owned(), to.trim().to_owned()));
                }
            }
        }
        found
    }

    fn stale(&self, table: &str, wanted: &BTreeMap<String, Vec<String>>) -> Vec<String> {
        let ours = self
            .chains
            .iter()
            .filter(|(t, chain)| t == table && is_dynamic(chain) && !wanted.contains_key(chain));
        ours.map(|(_, chain)| chain.clone()).collect()
    }
}

fn is_dynamic(chain: &str) -> bool {
    DYNAMIC.iter().any(|prefix| chain.starts_with(prefix))
}

/// Everything: all chains, the jumps that are missing, and the end of chains that nobody wants.
pub fn full(wanted: &Ruleset, existing: &Existing) -> String {
    let mut text = String::new();
    for (table, chains) in wanted.tables() {
        let jumps = JUMPS.iter().filter(|(t, from, to, _, _)| {
            let jump = (table.to_owned(), (*from).to_owned(), (*to).to_owned());
            *t == table && !existing.jumps.contains(&jump)
        });
        let jumps: Vec<String> = jumps
            .map(|(_, from, to, matching, why)| match *why {
                "" => format!("-I {from} {matching}-j {to}"),
                why => format!("-I {from} {matching}-m comment --comment \"{why}\" -j {to}"),
            })
            .collect();
        let all: Vec<_> = chains.iter().collect();
        write_table(
            &mut text,
            table,
            &all,
            &jumps,
            &existing.stale(table, chains),
        );
    }
    text
}

/// Only chains that differ from what the last restore left; `None` when there is no difference.
pub fn delta(wanted: &Ruleset, applied: &Fingerprint) -> Option<String> {
    let now = fingerprint(wanted);
    let mut text = String::new();
    for (table, chains) in wanted.tables() {
        let changed: Vec<_> = chains
            .iter()
            .filter(|(chain, _)| {
                let key = (table, (*chain).clone());
                now.get(&key) != applied.get(&key)
            })
            .collect();
        let gone: Vec<String> = applied
            .keys()
            .filter(|(t, chain)| *t == table && !chains.contains_key(chain))
            .map(|(_, chain)| chain.clone())
            .collect();
        if !changed.is_empty() || !gone.is_empty() {
            write_table(&mut text, table, &changed, &[], &gone);
        }
    }
    (!text.is_empty()).then_some(text)
}

/// Takes away what `full` and `delta` ever made, from the tables as they are.
pub fn cleanup(existing: &Existing) -> String {
    let nothing = Ruleset::default();
    let mut text = String::new();
    for (table, _) in nothing.tables() {
        let fixed: BTreeSet<&str> = JUMPS
            .iter()
            .filter(|(t, ..)| *t == table)
            .map(|(_, _, to, ..)| *to)
            .chain([
                super::chains::MARK_MASQ,
                super::chains::NODE_PORTS,
                super::chains::CANARY,
            ])
            .collect();
        let mut gone = existing.stale(table, &BTreeMap::new());
        // The kubelet shares the chain that guards loopback, so it stays.
        let have = |chain: &str| {
            existing
                .chains
                .contains(&(table.to_owned(), chain.to_owned()))
        };
        let fixed = fixed
            .into_iter()
            .filter(|c| *c != super::chains::LOCALNET && have(c));
        gone.extend(fixed.map(str::to_owned));
        let jumps: Vec<String> = JUMPS
            .iter()
            .filter(|(t, from, to, ..)| {
                let jump = (table.to_owned(), (*from).to_owned(), (*to).to_owned());
                *t == table && *to != super::chains::LOCALNET && existing.jumps.contains(&jump)
            })
            .map(|(_, from, to, matching, why)| {
                format!("-D {from} {matching}-m comment --comment \"{why}\" -j {to}")
            })
            .collect();
        if !gone.is_empty() {
            write_table(&mut text, table, &[], &jumps, &gone);
        }
    }
    text
}

fn write_table(
    text: &mut String,
    table: &str,
    chains: &[(&String, &Vec<String>)],
    jumps: &[String],
    gone: &[String],
) {
    // Writing to a String cannot fail.
    let _ = writeln!(text, "*{table}");
    for chain in chains.iter().map(|(chain, _)| *chain).chain(gone) {
        let _ = writeln!(text, ":{chain} - [0:0]");
    }
    for jump in jumps {
        let _ = writeln!(text, "{jump}");
    }
    for (chain, rules) in chains {
        for rule in *rules {
            let _ = writeln!(text, "-A {chain} {rule}");
        }
    }
    for chain in gone {
        let _ = writeln!(text, "-X {chain}");
    }
    let _ = writeln!(text, "COMMIT");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ruleset(nat: &[(&str, &[&str])]) -> Ruleset {
        let chains = nat.iter().map(|(chain, rules)| {
            (
                (*chain).to_owned(),
                rules.iter().map(|r| (*r).to_owned()).collect(),
            )
        });
        Ruleset {
            nat: chains.collect(),
            ..Ruleset::default()
        }
    }

    #[test]
    fn delta_names_only_what_changed() {
        let before = ruleset(&[
            ("KUBE-SERVICES", &["-j KUBE-SVC-A"]),
            ("KUBE-SVC-A", &["-j X"]),
        ]);
        let applied = fingerprint(&before);
        assert_eq!(delta(&before, &applied), None);
        let after = ruleset(&[
            ("KUBE-SERVICES", &["-j KUBE-SVC-B"]),
            ("KUBE-SVC-B", &["-j X"]),
        ]);
        assert_eq!(
            delta(&after, &applied).unwrap(),
            "*nat\n:KUBE-SERVICES - [0:0]\n:KUBE-SVC-B - [0:0]\n:KUBE-SVC-A - [0:0]\n\
             -A KUBE-SERVICES -j KUBE-SVC-B\n-A KUBE-SVC-B -j X\n-X KUBE-SVC-A\nCOMMIT\n"
        );
    }

    #[test]
    fn full_adds_missing_jumps_and_drops_stale_chains() {
        let save = "# comment\n*nat\n:PREROUTING ACCEPT [0:0]\n:KUBE-SEP-OLD - [0:0]\n:DOCKER - [0:0]\n\
             -A PREROUTING -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES\nCOMMIT\n";
        let text = full(&ruleset(&[("KUBE-SERVICES", &[])]), &Existing::parse(save));
        assert!(text.contains("-X KUBE-SEP-OLD\n"));
        assert!(!text.contains("DOCKER"));
        assert!(!text.contains("-I PREROUTING"));
        assert!(text.contains(
            "-I OUTPUT -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES\n"
        ));
        assert!(text.contains("-I INPUT -j KUBE-FIREWALL\n"));
    }

    #[test]
    fn cleanup_leaves_others_alone() {
        let save = "*nat\n:PREROUTING ACCEPT [0:0]\n:KUBE-SERVICES - [0:0]\n:KUBE-SVC-A - [0:0]\n:DOCKER - [0:0]\n\
             -A PREROUTING -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES\nCOMMIT\n";
        let text = cleanup(&Existing::parse(save));
        assert!(text.contains("-D PREROUTING"));
        assert!(text.contains("-X KUBE-SERVICES\n") && text.contains("-X KUBE-SVC-A\n"));
        assert!(!text.contains("DOCKER") && !text.contains("*filter"));
        assert_eq!(
            cleanup(&Existing::parse("*nat\n:PREROUTING ACCEPT [0:0]\nCOMMIT\n")),
            ""
        );
    }
}
