//! Completion: scripts that ask this program what may come next, which asks the server's discovery.

use anyhow::Result;
use clap::CommandFactory;

use super::session::{Globals, Session};

/// Print a script that completes commands, for a shell to read
#[derive(Debug, clap::Args)]
pub struct Args {
    #[arg(value_parser = ["bash", "zsh", "fish"])]
    shell: String,
}

const BASH: &str = r#"_skiff() {
    local IFS=$'\n'
    COMPREPLY=($(skiff __complete -- "${COMP_WORDS[@]:1:COMP_CWORD}" 2>/dev/null))
    case "${COMPREPLY[0]}" in */) compopt -o nospace ;; esac
}
complete -o default -F _skiff skiff
"#;

const ZSH: &str = r#"#compdef skiff
_skiff() {
    local -a found
    found=("${(@f)$(skiff __complete -- "${(@)words[2,CURRENT]}" 2>/dev/null)}")
    compadd -a found
}
compdef _skiff skiff
"#;

const FISH: &str = "complete -c skiff -f -a '(skiff __complete -- (commandline -opc)[2..-1] (commandline -ct) 2>/dev/null)'\n";

pub fn script(args: &Args) {
    print!(
        "{}",
        match args.shell.as_str() {
            "bash" => BASH,
            "zsh" => ZSH,
            _ => FISH,
        }
    );
}

/// What is being completed.
#[derive(Debug, PartialEq)]
enum Wanted {
    /// Verbs, or subcommands of the verbs given.
    Command(Vec<String>),
    Flag(Vec<String>),
    Kind,
    /// Names of this kind; true when the kind belongs to the word (`pod/`).
    Name(String, bool),
    Namespace,
    Context,
    Nothing,
}

/// Verbs whose first argument is a pod (or `TYPE/NAME`).
const ON_PODS: [&str; 4] = ["logs", "exec", "attach", "port-forward"];
const ON_NODES: [&str; 2] = ["cordon", "uncordon"];
const WITH_SUBCOMMANDS: [&str; 6] = ["rollout", "top", "config", "set", "auth", "cluster"];
const ON_KINDS: [&str; 12] = [
    "get", "describe", "delete", "edit", "label", "annotate", "scale", "patch", "wait", "expose",
    "rollout", "set",
];

fn wanted(words: &[String]) -> Wanted {
    let Some((last, before)) = words.split_last() else {
        return Wanted::Command(vec![]);
    };
    match before.last().map(String::as_str) {
        Some("-n" | "--namespace") => return Wanted::Namespace,
        Some("--context") => return Wanted::Context,
        Some(
            "-f" | "--filename" | "-o" | "--output" | "-l" | "--selector" | "-c" | "--container"
            | "--kubeconfig",
        ) => return Wanted::Nothing,
        _ => {}
    }
    // Flags and their values are no arguments; of flags with values only these come before arguments often.
    let (mut arguments, mut skip) = (Vec::new(), false);
    for word in before {
        if skip {
            skip = false;
        } else if word.starts_with('-') {
            skip = matches!(
                word.as_str(),
                "-n" | "--namespace" | "--context" | "--kubeconfig" | "-o" | "-l" | "-f" | "-c"
            );
        } else {
            arguments.push(word.as_str());
        }
    }
    let verbs = |count: usize| {
        arguments
            .iter()
            .take(count)
            .map(|s| (*s).to_owned())
            .collect()
    };
    if last.starts_with('-') {
        return Wanted::Flag(verbs(2));
    }
    let Some((verb, mut rest)) = arguments.split_first() else {
        return Wanted::Command(vec![]);
    };
    if WITH_SUBCOMMANDS.contains(verb) {
        let Some((sub, more)) = rest.split_first() else {
            return Wanted::Command(verbs(1));
        };
        rest = more;
        match (*verb, *sub) {
            ("top", "pod" | "pods" | "po") => return Wanted::Name("pods".into(), false),
            ("top", _) => return Wanted::Name("nodes".into(), false),
            (
                "config",
                "use-context" | "use" | "delete-context" | "get-contexts" | "set-context",
            ) => return Wanted::Context,
            ("rollout" | "set", _) => {}
            _ => return Wanted::Nothing,
        }
    }
    if let Some((kind, _)) = last.split_once('/') {
        return Wanted::Name(kind.to_owned(), true);
    }
    if ON_PODS.contains(verb) && rest.is_empty() {
        return Wanted::Name("pods".into(), false);
    }
    if ON_NODES.contains(verb) {
        return Wanted::Name("nodes".into(), false);
    }
    if !ON_KINDS.contains(verb) {
        return Wanted::Nothing;
    }
    match rest.first() {
        None => Wanted::Kind,
        Some(kind) if kind.contains('/') => Wanted::Kind,
        Some(kind) => Wanted::Name((*kind).to_owned(), false),
    }
}

/// Prints what may come next, one a line. Says nothing when the server cannot be asked.
pub async fn complete(globals: &Globals, words: &[String]) -> Result<()> {
    let typed = words.last().map(String::as_str).unwrap_or_default();
    let mut globals = globals.clone();
    for pair in words.windows(2) {
        match pair[0].as_str() {
            "-n" | "--namespace" => globals.namespace = Some(pair[1].clone()),
            "--context" => globals.context = Some(pair[1].clone()),
            "--kubeconfig" => globals.kubeconfig = Some(pair[1].clone().into()),
            _ => {}
        }
    }
    let found = match wanted(words) {
        Wanted::Command(path) => command(&path).map(|c| subcommands(&c)).unwrap_or_default(),
        Wanted::Flag(path) => flags(&path),
        Wanted::Nothing => vec![],
        Wanted::Context => contexts(&globals),
        Wanted::Kind => {
            let session = Session::connect(&globals).await?;
            let kinds = session
                .kinds()
                .await?
                .0
                .iter()
                .filter(|kind| kind.preferred);
            kinds
                .flat_map(|kind| [kind.short_names.clone(), vec![kind.plural.clone()]].concat())
                .collect()
        }
        Wanted::Namespace => names(&Session::connect(&globals).await?, "namespaces").await?,
        Wanted::Name(kind, joined) => {
            let names = names(&Session::connect(&globals).await?, &kind).await?;
            names
                .into_iter()
                .map(|name| {
                    if joined {
                        format!("{kind}/{name}")
                    } else {
                        name
                    }
                })
                .collect()
        }
    };
    let mut found: Vec<String> = found
        .into_iter()
        .filter(|word| word.starts_with(typed))
        .collect();
    found.sort();
    found.dedup();
    found.iter().for_each(|word| println!("{word}"));
    Ok(())
}

async fn names(session: &Session, kind: &str) -> Result<Vec<String>> {
    let kind = session.kind(kind).await?;
    let accept =
        "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1,application/json";
    let list = session
        .list(&kind.path(Some(&session.namespace)), "", accept)
        .await?;
    let items = list["items"].as_array().into_iter().flatten();
    Ok(items
        .filter_map(|item| item["metadata"]["name"].as_str().map(str::to_owned))
        .collect())
}

fn contexts(globals: &Globals) -> Vec<String> {
    let file = match &globals.kubeconfig {
        Some(path) => kube::config::Kubeconfig::read_from(path),
        None => kube::config::Kubeconfig::read(),
    };
    file.map(|file| {
        file.contexts
            .into_iter()
            .map(|context| context.name)
            .collect()
    })
    .unwrap_or_default()
}

/// The command that a path of subcommands leads to.
fn command(path: &[String]) -> Option<clap::Command> {
    let mut command = crate::Cli::command();
    for name in path {
        let Some(next) = command.find_subcommand(name) else {
            break;
        };
        command = next.clone();
    }
    Some(command)
}

fn subcommands(command: &clap::Command) -> Vec<String> {
    command
        .get_subcommands()
        .filter(|c| !c.is_hide_set())
        .map(|c| c.get_name().to_owned())
        .collect()
}

fn flags(path: &[String]) -> Vec<String> {
    let of = |command: &clap::Command| -> Vec<String> {
        command
            .get_arguments()
            .filter(|a| !a.is_hide_set())
            .filter_map(|a| a.get_long().map(|long| format!("--{long}")))
            .collect()
    };
    let mut all = of(&crate::Cli::command());
    all.extend(command(path).map(|c| of(&c)).unwrap_or_default());
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_next() {
        let ask = |line: &str| wanted(&line.split(' ').map(str::to_owned).collect::<Vec<_>>());
        for (line, expected) in [
            ("", Wanted::Command(vec![])),
            ("ge", Wanted::Command(vec![])),
            ("get ", Wanted::Kind),
            ("get po", Wanted::Kind),
            ("get pods ", Wanted::Name("pods".into(), false)),
            ("-n shop get pods w", Wanted::Name("pods".into(), false)),
            ("get -n ", Wanted::Namespace),
            ("describe pod/w", Wanted::Name("pod".into(), true)),
            ("logs ", Wanted::Name("pods".into(), false)),
            ("logs deploy/", Wanted::Name("deploy".into(), true)),
            ("rollout ", Wanted::Command(vec!["rollout".into()])),
            ("rollout status ", Wanted::Kind),
            ("rollout undo deploy ", Wanted::Name("deploy".into(), false)),
            ("top no", Wanted::Command(vec!["top".into()])),
            ("config use-context ", Wanted::Context),
            ("get --", Wanted::Flag(vec!["get".into()])),
            ("apply -f ", Wanted::Nothing),
        ] {
            assert_eq!(ask(line), expected, "{line:?}");
        }
    }

    #[test]
    fn commands_and_flags() {
        assert!(subcommands(&command(&[]).unwrap()).contains(&"get".to_owned()));
        assert!(subcommands(&command(&["rollout".into()]).unwrap()).contains(&"undo".to_owned()));
        assert!(flags(&["get".into()]).contains(&"--selector".to_owned()));
    }
}
