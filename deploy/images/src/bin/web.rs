//! The demo's web server: small, without any dependency, and written to be rolled, probed, loaded and stopped.
//!
//! `/` shows who answers: the pod's name (`POD_NAME`), the version (`VERSION`), a message read from a file on every
//! request (`MESSAGE_FILE`), whether a secret was given (`TOKEN`) and what the back end behind `BACKEND` (`host:port`) said.
//! `/healthz` is alive while the process is. `/readyz` can be switched off and on (`/readyz/off`, `/readyz/on`).
//! `/work?ms=N` keeps a CPU busy. On SIGTERM it stops being ready, closes its listener and answers what it has begun.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream, ToSocketAddrs};
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

const THREADS: usize = 16;
/// Connections that wait beyond this are turned away.
const QUEUE: usize = 256;
const IDLE: Duration = Duration::from_secs(10);
const MAX_HEAD: u64 = 16 << 10;
const MAX_WORK: Duration = Duration::from_secs(30);

static READY: AtomicBool = AtomicBool::new(true);
static STOPPING: AtomicBool = AtomicBool::new(false);
static LISTENER: AtomicI32 = AtomicI32::new(-1);

/// Bare libc, which std links anyway: for the two calls that std lacks.
mod libc {
    unsafe extern "C" {
        pub fn signal(number: i32, handler: extern "C" fn(i32)) -> usize;
        pub fn shutdown(fd: i32, how: i32) -> i32;
    }
    pub const SIGINT: i32 = 2;
    pub const SIGTERM: i32 = 15;
    pub const SHUT_RD: i32 = 0;
}

extern "C" fn stop(_: i32) {
    STOPPING.store(true, Ordering::SeqCst);
    // SAFETY: shutdown may be called in a signal handler; it ends the accept that the main thread waits in.
    unsafe { libc::shutdown(LISTENER.load(Ordering::SeqCst), libc::SHUT_RD) };
}

fn main() -> std::io::Result<()> {
    let port = setting("PORT", "8080");
    let listener = TcpListener::bind(format!("[::]:{port}"))
        .or_else(|_| TcpListener::bind(format!("0.0.0.0:{port}")))?;
    LISTENER.store(std::os::fd::AsRawFd::as_raw_fd(&listener), Ordering::SeqCst);
    for number in [libc::SIGTERM, libc::SIGINT] {
        // SAFETY: the handler only stores to atomics and makes one system call.
        unsafe { libc::signal(number, stop) };
    }
    eprintln!("listening on port {port}");
    let queue = Arc::new(Queue::default());
    let threads: Vec<_> = (0..THREADS)
        .map(|_| {
            let queue = queue.clone();
            std::thread::spawn(move || {
                while let Some(stream) = queue.take() {
                    // A client that went away is no fault of the server's.
                    let _ = serve(stream);
                }
            })
        })
        .collect();
    while !STOPPING.load(Ordering::SeqCst) {
        match listener.accept() {
            Ok((stream, _)) => queue.put(stream),
            Err(_) if STOPPING.load(Ordering::SeqCst) => break,
            Err(error) => eprintln!("accept: {error}"),
        }
    }
    eprintln!("stopping");
    drop(listener);
    queue.close();
    for thread in threads {
        let _ = thread.join();
    }
    Ok(())
}

/// Accepted connections, waiting for a thread.
#[derive(Default)]
struct Queue {
    waiting: Mutex<(VecDeque<TcpStream>, bool)>,
    change: Condvar,
}

impl Queue {
    fn put(&self, mut stream: TcpStream) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if waiting.0.len() < QUEUE {
            waiting.0.push_back(stream);
            self.change.notify_one();
        } else {
            let _ = stream.write_all(b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
        }
    }

    /// `None` once closed and empty.
    fn take(&self) -> Option<TcpStream> {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if let Some(stream) = waiting.0.pop_front() {
                return Some(stream);
            }
            if waiting.1 {
                return None;
            }
            waiting = self
                .change
                .wait(waiting)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn close(&self) {
        self.waiting
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .1 = true;
        self.change.notify_all();
    }
}

/// Answers requests on one connection until the client or this server has had enough.
fn serve(stream: TcpStream) -> std::io::Result<()> {
    stream.set_read_timeout(Some(IDLE))?;
    stream.set_write_timeout(Some(IDLE))?;
    stream.set_nodelay(true)?;
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut stream = stream;
    while let Some(request) = Request::read(&mut reader)? {
        let (status, body) = answer(&request);
        // Idle clients would hold one of few threads: only those at work may stay.
        let keep =
            request.keep_alive && !STOPPING.load(Ordering::SeqCst) && reader.buffer().is_empty();
        let connection = if keep { "keep-alive" } else { "close" };
        let head = format!(
            "HTTP/1.1 {status}\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: {}\r\nConnection: {connection}\r\n\r\n",
            body.len()
        );
        stream.write_all(head.as_bytes())?;
        if request.method != "HEAD" {
            stream.write_all(body.as_bytes())?;
        }
        if !keep {
            break;
        }
        stream.set_read_timeout(Some(Duration::from_secs(1)))?;
    }
    Ok(())
}

struct Request {
    method: String,
    path: String,
    query: String,
    keep_alive: bool,
}

impl Request {
    /// `None` when the client has nothing more to ask, or asks for it in no language this speaks.
    fn read(reader: &mut impl BufRead) -> std::io::Result<Option<Request>> {
        let mut head = reader.take(MAX_HEAD);
        let mut line = String::new();
        if head.read_line(&mut line)? == 0 {
            return Ok(None);
        }
        let mut words = line.split_whitespace();
        let (Some(method), Some(target), Some(version)) =
            (words.next(), words.next(), words.next())
        else {
            return Ok(None);
        };
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let mut request = Request {
            method: method.into(),
            path: path.into(),
            query: query.into(),
            keep_alive: version == "HTTP/1.1",
        };
        loop {
            let mut line = String::new();
            if head.read_line(&mut line)? == 0 {
                return Ok(None);
            }
            let line = line.trim_end().to_ascii_lowercase();
            if line.is_empty() {
                return Ok(Some(request));
            }
            if let Some(value) = line.strip_prefix("connection:") {
                request.keep_alive =
                    value.trim() == "keep-alive" || (request.keep_alive && value.trim() != "close");
            } else if line.starts_with("content-length:") && !line.ends_with(" 0") {
                // Bodies are not read: what follows one is not a request.
                request.keep_alive = false;
            }
        }
    }
}

fn answer(request: &Request) -> (&'static str, String) {
    const OK: &str = "200 OK";
    if !["GET", "HEAD", "POST"].contains(&request.method.as_str()) {
        return ("405 Method Not Allowed", "only GET, HEAD and POST\n".into());
    }
    match request.path.as_str() {
        "/" => (OK, page()),
        "/healthz" => (OK, "ok\n".into()),
        "/readyz" if READY.load(Ordering::SeqCst) && !STOPPING.load(Ordering::SeqCst) => {
            (OK, "ok\n".into())
        }
        "/readyz" => ("503 Service Unavailable", "not ready\n".into()),
        "/readyz/on" | "/readyz/off" => {
            READY.store(request.path.ends_with("on"), Ordering::SeqCst);
            (OK, "ok\n".into())
        }
        "/work" => match request
            .query
            .split('&')
            .find_map(|p| p.strip_prefix("ms="))
            .map(str::parse)
        {
            Some(Ok(millis)) => (OK, work(Duration::from_millis(millis))),
            _ => ("400 Bad Request", "say how long: /work?ms=100\n".into()),
        },
        _ => ("404 Not Found", "no such page\n".into()),
    }
}

/// Holds a CPU for so long (30 s at most), by counting primes.
fn work(time: Duration) -> String {
    let begun = Instant::now();
    let (mut number, mut primes) = (2u64, 0u64);
    while begun.elapsed() < time.min(MAX_WORK) {
        for _ in 0..100 {
            let is_prime = (2..)
                .take_while(|d| d * d <= number)
                .all(|d| number % d != 0);
            primes += u64::from(is_prime);
            number += 1;
        }
    }
    format!(
        "{primes} primes below {number} in {} ms\n",
        begun.elapsed().as_millis()
    )
}

fn page() -> String {
    let mut page = String::new();
    if let Ok(file) = std::env::var("MESSAGE_FILE") {
        page += &match std::fs::read_to_string(&file) {
            Ok(message) => format!("{}\n", message.trim_end()),
            Err(error) => format!("no message: {file}: {error}\n"),
        };
    }
    page += &format!(
        "pod {}, version {}\n",
        setting("POD_NAME", "?"),
        setting("VERSION", "?")
    );
    if let Ok(token) = std::env::var("TOKEN") {
        let given = if token.is_empty() { "empty" } else { "given" };
        page += &format!("secret {given}\n");
    }
    if let Ok(backend) = std::env::var("BACKEND") {
        page += &match ask(&backend) {
            Ok(said) => format!("back end {backend} said:\n{}", indent(&said)),
            Err(error) => format!("back end {backend} did not answer: {error}\n"),
        };
    }
    page
}

fn indent(text: &str) -> String {
    text.lines().map(|line| format!("  {line}\n")).collect()
}

/// The back end's page.
fn ask(backend: &str) -> std::io::Result<String> {
    let limit = Duration::from_secs(2);
    let unknown = || std::io::Error::other("unknown host");
    let address = backend.to_socket_addrs()?.next().ok_or_else(unknown)?;
    let mut stream = TcpStream::connect_timeout(&address, limit)?;
    stream.set_read_timeout(Some(limit))?;
    stream.write_all(
        format!("GET / HTTP/1.1\r\nHost: {backend}\r\nConnection: close\r\n\r\n").as_bytes(),
    )?;
    let mut text = String::new();
    stream.take(64 << 10).read_to_string(&mut text)?;
    Ok(text
        .split_once("\r\n\r\n")
        .map_or_else(String::new, |(_, body)| body.to_string()))
}

fn setting(name: &str, default: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| default.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(text: &str) -> Option<Request> {
        Request::read(&mut text.as_bytes()).unwrap()
    }

    #[test]
    fn requests_are_read() {
        let got = request("GET /work?ms=5 HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
        assert_eq!(
            (got.path.as_str(), got.query.as_str(), got.keep_alive),
            ("/work", "ms=5", true)
        );
        assert!(!request("GET / HTTP/1.0\r\n\r\n").unwrap().keep_alive);
        assert!(
            request("GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
                .unwrap()
                .keep_alive
        );
        assert!(
            !request("POST / HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc")
                .unwrap()
                .keep_alive
        );
        assert!(request("").is_none() && request("nonsense\r\n\r\n").is_none());
        assert!(
            request("GET / HTTP/1.1\r\nHost: x\r\n").is_none(),
            "a head cut short"
        );
    }

    #[test]
    fn pages_have_their_status() {
        for (line, want) in [
            ("GET /healthz HTTP/1.1", "200"),
            ("GET /work?ms=x HTTP/1.1", "400"),
            ("GET /work?ms=1 HTTP/1.1", "200"),
            ("GET /nowhere HTTP/1.1", "404"),
            ("DELETE / HTTP/1.1", "405"),
        ] {
            let request = request(&format!("{line}\r\n\r\n")).unwrap();
            assert!(answer(&request).0.starts_with(want), "{line}");
        }
    }

    #[test]
    fn readiness_is_switched() {
        let get = |path: &str| answer(&request(&format!("GET {path} HTTP/1.1\r\n\r\n")).unwrap()).0;
        assert_eq!(get("/readyz"), "200 OK");
        get("/readyz/off");
        assert!(get("/readyz").starts_with("503"));
        get("/readyz/on");
        assert_eq!(get("/readyz"), "200 OK");
    }
}
