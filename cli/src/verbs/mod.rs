//! The everyday verbs of kubectl, with its flags, its output and its messages.
//!
//! Nothing here knows kinds: [`kinds`] asks the server what it serves, tables come from the server too, and only
//! [`describe`] has views for a few kinds. A verb is a clap struct and a function of a [`session`]; start
//! reading at [`Verb`], then [`get`]. What `apply` sends is worked out in [`three_way`].

pub mod complete;
pub mod config;
pub mod describe;
pub mod get;
pub mod info;
pub mod jsonpath;
pub mod kinds;
pub mod make;
pub mod manifest;
pub mod ops;
pub mod output;
pub mod rollout;
pub mod session;
pub mod set;
pub mod streams;
pub mod target;
pub mod three_way;
pub mod write;

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use clap::Subcommand;

pub use session::Globals;
use session::{ApiError, Exit, Session};

#[derive(Debug, Subcommand)]
pub enum Verb {
    Get(get::Args),
    Describe(describe::Args),
    Apply(write::ApplyArgs),
    Create(Box<make::CreateArgs>),
    Replace(write::ReplaceArgs),
    Delete(write::DeleteArgs),
    Edit(write::EditArgs),
    Patch(ops::PatchArgs),
    Logs(streams::LogsArgs),
    Exec(streams::ExecArgs),
    Attach(streams::AttachArgs),
    PortForward(streams::ForwardArgs),
    Run(make::RunArgs),
    Expose(make::ExposeArgs),
    Scale(ops::ScaleArgs),
    #[command(subcommand)]
    Rollout(rollout::Args),
    #[command(subcommand)]
    Set(set::SetArgs),
    /// Change labels
    Label(ops::LabelArgs),
    /// Change annotations
    Annotate(ops::LabelArgs),
    Wait(ops::WaitArgs),
    /// Let no new pods onto nodes
    Cordon(ops::CordonArgs),
    /// Let new pods onto nodes again
    Uncordon(ops::CordonArgs),
    #[command(subcommand)]
    Top(info::TopArgs),
    #[command(subcommand)]
    Auth(info::AuthArgs),
    ApiResources(info::ResourcesArgs),
    /// Show which API versions the server serves
    ApiVersions,
    /// Show where the cluster is
    ClusterInfo,
    Version(info::VersionArgs),
    #[command(subcommand)]
    Config(config::Args),
    Completion(complete::Args),
    #[command(name = "__complete", hide = true)]
    Complete {
        #[arg(last = true)]
        words: Vec<String>,
    },
}

/// Runs one verb, and says what went wrong as kubectl does.
pub fn run(verb: Verb, globals: &Globals) -> ExitCode {
    let runtime = match tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("error: {error}");
            return ExitCode::FAILURE;
        }
    };
    let result = runtime.block_on(dispatch(verb, globals));
    // A thread may still be waiting for input.
    runtime.shutdown_background();
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            if error.downcast_ref::<Exit>().is_none() {
                print_error(&error);
            }
            ExitCode::from(
                error
                    .downcast_ref::<Exit>()
                    .and_then(|exit| u8::try_from(exit.0).ok())
                    .unwrap_or(1),
            )
        }
    }
}

/// What the server said stands for itself; everything else is an error of ours.
pub fn print_error(error: &anyhow::Error) {
    match error.downcast_ref::<ApiError>() {
        Some(error) => eprintln!("{error}"),
        None => {
            let text = format!("{error:#}");
            let plain = ["The connection to the server", "Unable to connect"]
                .iter()
                .any(|start| text.starts_with(start));
            eprintln!("{}{text}", if plain { "" } else { "error: " });
        }
    }
}

async fn dispatch(verb: Verb, globals: &Globals) -> Result<()> {
    match verb {
        Verb::Config(args) => return config::run(globals, args),
        Verb::Completion(args) => {
            complete::script(&args);
            return Ok(());
        }
        // A shell that completes has no use for errors.
        Verb::Complete { words } => return complete::complete(globals, &words).await.or(Ok(())),
        Verb::Version(args) => {
            let session = if args.needs_server() {
                Some(Session::connect(globals).await?)
            } else {
                None
            };
            return info::version(session.as_ref(), args).await;
        }
        _ => {}
    }
    let session = &Session::connect(globals).await?;
    match verb {
        Verb::Get(args) => get::run(session, args).await,
        Verb::Describe(args) => describe::run(session, args).await,
        Verb::Apply(args) => write::apply(session, args).await,
        Verb::Create(args) => make::create(session, *args).await,
        Verb::Replace(args) => write::replace(session, args).await,
        Verb::Delete(args) => write::delete(session, args).await,
        Verb::Edit(args) => write::edit(session, args).await,
        Verb::Patch(args) => ops::patch(session, args).await,
        Verb::Logs(args) => streams::logs(session, args).await,
        Verb::Exec(args) => streams::exec(session, args).await,
        Verb::Attach(args) => streams::attach(session, args).await,
        Verb::PortForward(args) => streams::port_forward(session, args).await,
        Verb::Run(args) => make::run(session, args).await,
        Verb::Expose(args) => make::expose(session, args).await,
        Verb::Scale(args) => ops::scale(session, args).await,
        Verb::Rollout(args) => rollout::run(session, args).await,
        Verb::Set(args) => set::set(session, args).await,
        Verb::Label(args) => ops::label(session, args, "labels").await,
        Verb::Annotate(args) => ops::label(session, args, "annotations").await,
        Verb::Wait(args) => ops::wait(session, args).await,
        Verb::Cordon(args) => ops::cordon(session, args, true).await,
        Verb::Uncordon(args) => ops::cordon(session, args, false).await,
        Verb::Top(args) => info::top(session, args).await,
        Verb::Auth(args) => info::auth(session, args).await,
        Verb::ApiResources(args) => info::api_resources(session, args).await,
        Verb::ApiVersions => info::api_versions(session).await,
        Verb::ClusterInfo => info::cluster_info(session).await,
        Verb::Config(_) | Verb::Completion(_) | Verb::Complete { .. } | Verb::Version(_) => Ok(()),
    }
}

/// A duration as Go writes it: `30s`, `1m30s`, or seconds alone. A negative one means very long.
pub fn duration(text: &str) -> Result<Duration, String> {
    if let Ok(seconds) = text.parse::<u64>() {
        return Ok(Duration::from_secs(seconds));
    }
    if text.starts_with('-') {
        return Ok(Duration::from_secs(7 * 86_400));
    }
    let bad = || format!("{text:?} is not a duration such as 30s or 1m30s");
    let span: jiff::SignedDuration = text.parse().map_err(|_| bad())?;
    Duration::try_from(span).map_err(|_| bad())
}
