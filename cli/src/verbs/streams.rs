//! Verbs that stream: `logs`, `exec`, `attach`, `port-forward`.
//!
//! Shells and forwarded ports go over WebSockets, whose first byte says which channel a message belongs to.

use std::io::{IsTerminal, Write};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use base64::Engine;
use bytes::Bytes;
use futures::{AsyncReadExt as _, SinkExt, StreamExt};
use http::{Request, header};
use http_body_util::BodyExt;
use hyper_util::rt::TokioIo;
use kube::client::Body;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::signal::unix::{SignalKind, signal};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::Role;

use super::session::{Exit, Session, escape};
use super::target::{self, Object};

/// Show what containers print
#[derive(Debug, clap::Args)]
pub struct LogsArgs {
    /// POD or TYPE/NAME, and a container
    target: Vec<String>,
    /// Go on with what is printed from now on
    #[arg(long, short = 'f')]
    follow: bool,
    /// The container
    #[arg(long, short = 'c')]
    container: Option<String>,
    /// All containers of the pod
    #[arg(long)]
    all_containers: bool,
    /// Of the container's previous run
    #[arg(long, short = 'p')]
    previous: bool,
    /// How many of the last lines; -1 for all
    #[arg(long, allow_negative_numbers = true)]
    tail: Option<i64>,
    /// Only what is newer than this, such as 5s or 3h
    #[arg(long, value_parser = super::duration)]
    since: Option<Duration>,
    /// Only what is newer than this time (RFC 3339)
    #[arg(long)]
    since_time: Option<String>,
    /// With the time of every line
    #[arg(long)]
    timestamps: bool,
    /// At most so many bytes
    #[arg(long)]
    limit_bytes: Option<i64>,
    /// With pod and container before every line
    #[arg(long)]
    prefix: bool,
    /// Of all pods with these labels
    #[arg(long, short = 'l')]
    selector: Option<String>,
}

pub async fn logs(session: &Session, args: LogsArgs) -> Result<()> {
    let pods = match (&args.selector, args.target.first()) {
        (Some(selector), _) => {
            let kind = session.kind("pods").await?;
            let query = format!("&labelSelector={}", escape(selector));
            let list = session
                .list(
                    &kind.path(Some(&session.namespace)),
                    &query,
                    "application/json",
                )
                .await?;
            list["items"].as_array().cloned().unwrap_or_default()
        }
        (None, Some(name)) => {
            let object = target::one(session, name, "pods").await?;
            let mut pods = target::pods(session, &object).await?;
            if pods.len() > 1 {
                eprintln!(
                    "Found {} pods, using pod/{}",
                    pods.len(),
                    text(&pods[0]["metadata"]["name"])
                );
                pods.truncate(1);
            }
            pods
        }
        (None, None) => bail!("expected 'logs [-f] [-p] (POD | TYPE/NAME) [-c CONTAINER]'"),
    };
    if pods.is_empty() {
        eprintln!("No resources found in {} namespace.", session.namespace);
        return Ok(());
    }
    let mut sources = Vec::new();
    for pod in &pods {
        let containers = match &args.container {
            _ if args.all_containers => containers(pod),
            Some(name) => vec![name.clone()],
            None => match args.target.get(1) {
                Some(name) => vec![name.clone()],
                None => vec![default_container(pod, args.selector.is_none())],
            },
        };
        sources.extend(containers.into_iter().map(|container| (pod, container)));
    }
    let many = sources.len() > 1;
    if !args.follow {
        for (pod, container) in &sources {
            copy_log(session, &args, pod, container).await?;
        }
        return Ok(());
    }
    let all = sources
        .iter()
        .map(|(pod, container)| copy_log(session, &args, pod, container));
    let results = futures::future::join_all(all).await;
    match results.into_iter().find_map(Result::err) {
        Some(error) if !many => Err(error),
        Some(error) => {
            super::print_error(&error);
            Err(Exit(1).into())
        }
        None => Ok(()),
    }
}

async fn copy_log(session: &Session, args: &LogsArgs, pod: &Value, container: &str) -> Result<()> {
    let (namespace, name) = (
        text(&pod["metadata"]["namespace"]),
        text(&pod["metadata"]["name"]),
    );
    let mut path = format!(
        "/api/v1/namespaces/{namespace}/pods/{name}/log?container={}",
        escape(container)
    );
    // Of many pods, the end is what tells.
    let tail = args
        .tail
        .unwrap_or(if args.selector.is_some() { 10 } else { -1 });
    let options = [
        ("follow", args.follow.then(|| "true".to_owned())),
        ("previous", args.previous.then(|| "true".to_owned())),
        ("timestamps", args.timestamps.then(|| "true".to_owned())),
        ("tailLines", (tail >= 0).then(|| tail.to_string())),
        (
            "sinceSeconds",
            args.since.map(|since| since.as_secs().max(1).to_string()),
        ),
        ("sinceTime", args.since_time.as_deref().map(escape)),
        (
            "limitBytes",
            args.limit_bytes.map(|limit| limit.to_string()),
        ),
    ];
    for (option, value) in options {
        if let Some(value) = value {
            path += &format!("&{option}={value}");
        }
    }
    let mut stream = session.stream(&path, "*/*").await?;
    let prefix = args.prefix.then(|| format!("[pod/{name}/{container}] "));
    let (mut buffer, mut at_start) = ([0; 16 * 1024], true);
    loop {
        let length = stream
            .read(&mut buffer)
            .await
            .context("the log broke off")?;
        if length == 0 {
            return Ok(());
        }
        let mut out = std::io::stdout().lock();
        let written = match &prefix {
            None => out.write_all(&buffer[..length]),
            Some(prefix) => buffer[..length]
                .split_inclusive(|b| *b == b'\n')
                .try_for_each(|line| {
                    if at_start {
                        out.write_all(prefix.as_bytes())?;
                    }
                    at_start = line.ends_with(b"\n");
                    out.write_all(line)
                }),
        };
        match written.and_then(|()| out.flush()) {
            // Whoever read along has seen enough.
            Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => return Ok(()),
            result => result?,
        }
    }
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn containers(pod: &Value) -> Vec<String> {
    let of = |field: &str| pod["spec"][field].as_array().cloned().unwrap_or_default();
    of("initContainers")
        .iter()
        .chain(&of("containers"))
        .map(|c| text(&c["name"]))
        .collect()
}

pub fn default_container(pod: &Value, say: bool) -> String {
    let all: Vec<String> = pod["spec"]["containers"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|c| text(&c["name"]))
        .collect();
    let chosen = pod["metadata"]["annotations"]["kubectl.kubernetes.io/default-container"]
        .as_str()
        .map(str::to_owned);
    let first = all.first().cloned().unwrap_or_default();
    if chosen.is_none() && all.len() > 1 && say {
        eprintln!("Defaulted container {first:?} out of: {}", all.join(", "));
    }
    chosen.unwrap_or(first)
}

type WebSocket = WebSocketStream<TokioIo<hyper::upgrade::Upgraded>>;

/// Asks the server to turn the connection into a WebSocket with one of these protocols.
async fn upgrade(session: &Session, path: &str, protocols: &str) -> Result<WebSocket> {
    let key = base64::engine::general_purpose::STANDARD.encode(uuid::Uuid::new_v4().as_bytes());
    let request = Request::get(path)
        .header(header::CONNECTION, "Upgrade")
        .header(header::UPGRADE, "websocket")
        .header(header::SEC_WEBSOCKET_VERSION, "13")
        .header(header::SEC_WEBSOCKET_KEY, key)
        .header(header::SEC_WEBSOCKET_PROTOCOL, protocols)
        .body(Body::empty())?;
    let response = session.client.send(request).await?;
    if response.status() != http::StatusCode::SWITCHING_PROTOCOLS {
        let code = response.status().as_u16();
        let body = response.into_body().collect().await?.to_bytes();
        return Err(super::session::api_error(code, &body));
    }
    let upgraded = hyper::upgrade::on(response).await?;
    Ok(WebSocketStream::from_raw_socket(TokioIo::new(upgraded), Role::Client, None).await)
}

/// Run a command in a container
#[derive(Debug, clap::Args)]
pub struct ExecArgs {
    /// POD or TYPE/NAME
    target: String,
    /// The container
    #[arg(long, short = 'c')]
    container: Option<String>,
    /// Pass standard input on
    #[arg(long, short = 'i')]
    stdin: bool,
    /// With a terminal
    #[arg(long, short = 't')]
    tty: bool,
    /// Print only what the command prints
    #[arg(long, short = 'q')]
    quiet: bool,
    /// The command, after --
    #[arg(last = true, required = true)]
    command: Vec<String>,
}

pub async fn exec(session: &Session, args: ExecArgs) -> Result<()> {
    let (pod, container) = container(session, &args.target, args.container, !args.quiet).await?;
    let command: String = args
        .command
        .iter()
        .map(|word| format!("&command={}", escape(word)))
        .collect();
    remote(
        session,
        &format!(
            "{}/exec?container={}{command}",
            pod.path(),
            escape(&container)
        ),
        args.stdin,
        args.tty,
    )
    .await
}

/// Join what a container's first process reads and prints
#[derive(Debug, clap::Args)]
pub struct AttachArgs {
    /// POD or TYPE/NAME
    target: String,
    /// The container
    #[arg(long, short = 'c')]
    container: Option<String>,
    /// Pass standard input on
    #[arg(long, short = 'i')]
    stdin: bool,
    /// With a terminal
    #[arg(long, short = 't')]
    tty: bool,
}

pub async fn attach(session: &Session, args: AttachArgs) -> Result<()> {
    let (pod, container) = container(session, &args.target, args.container, true).await?;
    remote(
        session,
        &format!("{}/attach?container={}", pod.path(), escape(&container)),
        args.stdin,
        args.tty,
    )
    .await
}

async fn container(
    session: &Session,
    name: &str,
    container: Option<String>,
    say: bool,
) -> Result<(Object, String)> {
    let object = target::one(session, name, "pods").await?;
    let pods = target::pods(session, &object).await?;
    let pod = &pods[0];
    let kind = session.kind("pods").await?;
    let found = Object {
        kind,
        namespace: object.namespace,
        name: text(&pod["metadata"]["name"]),
    };
    Ok((
        found,
        container.unwrap_or_else(|| default_container(pod, say)),
    ))
}

const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const ERROR: u8 = 3;
const RESIZE: u8 = 4;
/// Since v5: the channel whose number follows has ended.
const CLOSE: u8 = 255;

/// The terminal in raw mode, until dropped.
struct RawTerminal(nix::sys::termios::Termios);

impl RawTerminal {
    fn enter() -> Result<Self> {
        use nix::sys::termios::{SetArg, cfmakeraw, tcgetattr, tcsetattr};
        let before = tcgetattr(std::io::stdin())?;
        let mut raw = before.clone();
        cfmakeraw(&mut raw);
        tcsetattr(std::io::stdin(), SetArg::TCSADRAIN, &raw)?;
        Ok(Self(before))
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        let _ = nix::sys::termios::tcsetattr(
            std::io::stdin(),
            nix::sys::termios::SetArg::TCSADRAIN,
            &self.0,
        );
    }
}

fn terminal_size() -> Option<Message> {
    let mut size = nix::libc::winsize {
        ws_row: 0,
        ws_col: 0,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    // SAFETY: the kernel fills the structure that the pointer leads to, which lives until the call ends.
    let answer = unsafe { nix::libc::ioctl(1, nix::libc::TIOCGWINSZ, &mut size) };
    if answer != 0 {
        return None;
    }
    let size = json!({"Width": size.ws_col, "Height": size.ws_row}).to_string();
    Some(message(RESIZE, size.as_bytes()))
}

fn message(channel: u8, data: &[u8]) -> Message {
    let mut bytes = Vec::with_capacity(data.len() + 1);
    bytes.push(channel);
    bytes.extend_from_slice(data);
    Message::Binary(Bytes::from(bytes))
}

async fn remote(session: &Session, path: &str, stdin: bool, tty: bool) -> Result<()> {
    let mut tty = tty;
    if tty && !std::io::stdin().is_terminal() {
        eprintln!("Unable to use a TTY - input is not a terminal or the right kind of file");
        tty = false;
    }
    let path = format!("{path}&stdout=true&stderr={}&stdin={stdin}&tty={tty}", !tty);
    let socket = upgrade(session, &path, "v5.channel.k8s.io, v4.channel.k8s.io").await?;
    let terminal = if tty && stdin {
        Some(RawTerminal::enter()?)
    } else {
        None
    };
    let result = converse(socket, stdin, tty).await;
    drop(terminal);
    let status = result?;
    match exit_code(&status) {
        Some(0) => Ok(()),
        Some(code) => {
            eprintln!("command terminated with exit code {code}");
            // Input may still be waited for by a thread that nothing ends.
            let _ = std::io::stdout().flush();
            std::process::exit(code)
        }
        None => Err(anyhow!("{}", text(&status["message"]))),
    }
}

/// The exit code in the status that ends a command; `None` when it never ran.
fn exit_code(status: &Value) -> Option<i32> {
    if status.is_null() || status["status"] == "Success" {
        return Some(0);
    }
    let causes = status["details"]["causes"].as_array()?;
    let cause = causes.iter().find(|cause| cause["reason"] == "ExitCode")?;
    cause["message"].as_str()?.parse().ok()
}

/// Carries input and output until the other side ends. Gives the status it ends with.
async fn converse(socket: WebSocket, stdin: bool, tty: bool) -> Result<Value> {
    let (mut send, mut receive) = socket.split();
    let (mut input, mut reading) = (tokio::io::stdin(), stdin);
    let mut buffer = vec![0; 8192];
    let mut resized = signal(SignalKind::window_change())?;
    if let Some(size) = terminal_size().filter(|_| tty) {
        send.send(size).await?;
    }
    let mut status = Value::Null;
    loop {
        tokio::select! {
            message = receive.next() => {
                let data = match message {
                    None | Some(Ok(Message::Close(_))) => return Ok(status),
                    Some(Ok(Message::Binary(data))) => data,
                    Some(Ok(Message::Ping(_))) => {
                        send.flush().await?;
                        continue;
                    }
                    Some(Ok(_)) => continue,
                    // A server that ends without goodbye after the status has said everything.
                    Some(Err(_)) if !status.is_null() => return Ok(status),
                    Some(Err(error)) => return Err(anyhow!("the connection broke off: {error}")),
                };
                let Some((channel, data)) = data.split_first() else { continue };
                match *channel {
                    STDOUT => { let mut out = std::io::stdout().lock(); out.write_all(data)?; out.flush()?; }
                    STDERR => { let mut err = std::io::stderr().lock(); err.write_all(data)?; err.flush()?; }
                    ERROR if !data.is_empty() => {
                        status = serde_json::from_slice(data).unwrap_or_else(|_| json!({"message": String::from_utf8_lossy(data)}));
                    }
                    _ => {}
                }
            }
            length = input.read(&mut buffer), if reading => {
                let length = length?;
                if length == 0 {
                    reading = false;
                    send.send(message(CLOSE, &[STDIN])).await?;
                } else {
                    send.send(message(STDIN, &buffer[..length])).await?;
                }
            }
            _ = resized.recv(), if tty => {
                if let Some(size) = terminal_size() {
                    send.send(size).await?;
                }
            }
        }
    }
}

/// Forward local ports to a pod
#[derive(Debug, clap::Args)]
pub struct ForwardArgs {
    /// POD or TYPE/NAME
    target: String,
    /// [LOCAL:]REMOTE; a local port of 0, or none before the colon, is chosen freely
    #[arg(required = true)]
    ports: Vec<String>,
    /// Local addresses to listen on
    #[arg(long, default_value = "localhost", value_delimiter = ',')]
    address: Vec<String>,
}

pub async fn port_forward(session: &Session, args: ForwardArgs) -> Result<()> {
    let object = target::one(session, &args.target, "pods").await?;
    let is_service = object.kind.plural == "services" && object.kind.group.is_empty();
    let service = if is_service {
        session.get(&object.path()).await?
    } else {
        Value::Null
    };
    let pods = target::pods(session, &object).await?;
    let pod = &pods[0];
    if pod["status"]["phase"] != "Running" {
        bail!(
            "unable to forward port because pod is not running. Current status={}",
            text(&pod["status"]["phase"])
        );
    }
    let base = format!(
        "/api/v1/namespaces/{}/pods/{}/portforward",
        text(&pod["metadata"]["namespace"]),
        text(&pod["metadata"]["name"])
    );
    let mut servers = Vec::new();
    for spec in &args.ports {
        let (local, remote) = spec.split_once(':').unwrap_or((spec, spec));
        let remote = remote_port(remote, pod, &service)?;
        let local: u16 = match local {
            "" => 0,
            // A port by name has the number of its target here too.
            local => local
                .parse()
                .or_else(|e| if local == spec { Ok(remote) } else { Err(e) })
                .with_context(|| format!("invalid port {spec:?}"))?,
        };
        for address in &args.address {
            let hosts: &[&str] = if address == "localhost" {
                &["127.0.0.1", "::1"]
            } else {
                &[address.as_str()]
            };
            let mut bound = 0;
            for host in hosts {
                match TcpListener::bind((*host, local)).await {
                    Ok(listener) => {
                        println!("Forwarding from {} -> {remote}", listener.local_addr()?);
                        servers.push(accept(session, listener, &base, remote));
                        bound += 1;
                    }
                    Err(error)
                        if hosts.len() == 1 || error.kind() == std::io::ErrorKind::AddrInUse =>
                    {
                        return Err(error)
                            .with_context(|| format!("unable to listen on port {local}"));
                    }
                    // No IPv6 here, most likely.
                    Err(_) => {}
                }
            }
            if bound == 0 {
                bail!("unable to listen on port {local}");
            }
        }
    }
    std::io::stdout().flush()?;
    futures::future::join_all(servers).await;
    Ok(())
}

/// The number of a port given by number or name; ports of a Service lead to their targets.
fn remote_port(text: &str, pod: &Value, service: &Value) -> Result<u16> {
    let named = |name: &str| {
        let containers = pod["spec"]["containers"].as_array().into_iter().flatten();
        let mut ports = containers.flat_map(|c| c["ports"].as_array().into_iter().flatten());
        ports
            .find(|p| p["name"] == name)
            .and_then(|p| p["containerPort"].as_u64())
    };
    let number = |port: u64| u16::try_from(port).with_context(|| format!("invalid port {port}"));
    if let Some(ports) = service["spec"]["ports"].as_array() {
        let wanted = text.parse::<u64>().ok();
        let port = ports
            .iter()
            .find(|p| p["name"] == text || (wanted.is_some() && p["port"].as_u64() == wanted));
        let port = port.with_context(|| {
            format!(
                "Service {} does not have a service port {text}",
                service["metadata"]["name"]
            )
        })?;
        return match &port["targetPort"] {
            Value::String(name) => {
                number(named(name).with_context(|| format!("no container has a port {name:?}"))?)
            }
            Value::Number(target) => number(target.as_u64().unwrap_or_default()),
            _ => number(port["port"].as_u64().unwrap_or_default()),
        };
    }
    match text.parse() {
        Ok(port) => Ok(port),
        Err(_) => {
            number(named(text).with_context(|| format!("Pod does not have a named port {text:?}"))?)
        }
    }
}

async fn accept(session: &Session, listener: TcpListener, base: &str, remote: u16) {
    let mut running = futures::stream::FuturesUnordered::new();
    loop {
        let busy = !running.is_empty();
        tokio::select! {
            accepted = listener.accept() => {
                let Ok((stream, peer)) = accepted else { return };
                println!("Handling connection for {}", listener.local_addr().map(|a| a.port()).unwrap_or_default());
                running.push(async move {
                    if let Err(error) = tunnel(session, stream, base, remote).await {
                        eprintln!("an error occurred forwarding {peer} -> {remote}: {error:#}");
                    }
                });
            }
            _ = running.next(), if busy => {}
        }
    }
}

/// How long an answer may pause after the local side has ended.
const LINGER: Duration = Duration::from_secs(5);

/// One connection has a WebSocket of its own. Channel 0 carries data, channel 1 an error; the first message on each
/// repeats the port.
async fn tunnel(session: &Session, mut stream: TcpStream, base: &str, remote: u16) -> Result<()> {
    let socket = upgrade(
        session,
        &format!("{base}?ports={remote}"),
        "v4.channel.k8s.io",
    )
    .await?;
    let (mut send, mut receive) = socket.split();
    let (mut read, mut write) = stream.split();
    let mut seen = [false; 2];
    let mut buffer = vec![0; 32 * 1024];
    let mut reading = true;
    loop {
        tokio::select! {
            message = tokio::time::timeout(if reading { Duration::MAX } else { LINGER }, receive.next()) => {
                let data = match message {
                    Err(_) | Ok(None | Some(Ok(Message::Close(_)) | Err(_))) => return Ok(()),
                    Ok(Some(Ok(Message::Binary(data)))) => data,
                    Ok(Some(Ok(_))) => continue,
                };
                let Some((channel, data)) = data.split_first() else { continue };
                let Some(seen) = seen.get_mut(usize::from(*channel)) else { continue };
                if !std::mem::replace(seen, true) {
                    continue;
                }
                match channel {
                    0 => write.write_all(data).await?,
                    _ if data.is_empty() => {}
                    _ => bail!("{}", String::from_utf8_lossy(data)),
                }
            }
            length = read.read(&mut buffer), if reading => match length? {
                // The other direction may go on; this protocol cannot say that one has ended.
                0 => reading = false,
                length => send.send(message(0, &buffer[..length])).await?,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_codes() {
        assert_eq!(exit_code(&json!({"status": "Success"})), Some(0));
        let failed = json!({"status": "Failure", "details": {"causes": [{"reason": "ExitCode", "message": "3"}]}});
        assert_eq!(exit_code(&failed), Some(3));
        assert_eq!(
            exit_code(&json!({"status": "Failure", "message": "no such file"})),
            None
        );
    }

    #[test]
    fn ports() {
        let pod =
            json!({"spec": {"containers": [{"ports": [{"name": "http", "containerPort": 8080}]}]}});
        let service = json!({"metadata": {"name": "s"}, "spec": {"ports": [
            {"name": "web", "port": 80, "targetPort": "http"}, {"name": "raw", "port": 81, "targetPort": 9000}, {"port": 82},
        ]}});
        assert_eq!(remote_port("http", &pod, &Value::Null).unwrap(), 8080);
        assert_eq!(remote_port("99", &pod, &Value::Null).unwrap(), 99);
        for (text, expected) in [("80", 8080), ("web", 8080), ("81", 9000), ("82", 82)] {
            assert_eq!(remote_port(text, &pod, &service).unwrap(), expected);
        }
        assert!(remote_port("83", &pod, &service).is_err());
    }

    #[test]
    fn the_default_container() {
        let pod = json!({"metadata": {"annotations": {"kubectl.kubernetes.io/default-container": "b"}}, "spec": {"containers": [{"name": "a"}, {"name": "b"}]}});
        assert_eq!(default_container(&pod, false), "b");
        assert_eq!(
            default_container(&json!({"spec": {"containers": [{"name": "a"}]}}), false),
            "a"
        );
    }
}
