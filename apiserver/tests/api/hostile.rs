//! Clients that are slow, silent or many: they cost themselves, and nobody else.

use std::time::{Duration, Instant};

use bytes::Bytes;
use http::Method;
use http_body_util::BodyExt;
use rustls::pki_types::ServerName;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

use crate::common::{Api, PATIENCE, until};

const MAPS: &str = "/api/v1/namespaces/default/configmaps";
/// Longer than any of the server's timeouts for those who do not get to the point.
const CLOSED_WITHIN: Duration = Duration::from_secs(25);

async fn tls(api: &Api) -> TlsStream<TcpStream> {
    let stream = TcpStream::connect(api.address).await.unwrap();
    let name = ServerName::from(api.address.ip());
    api.nobody().connect(name, stream).await.unwrap()
}

/// Waits for the server to close; what it says before that is its own business.
async fn closed(mut stream: impl AsyncReadExt + Unpin) {
    let end = async {
        let mut buffer = [0; 1024];
        while matches!(stream.read(&mut buffer).await, Ok(read) if read > 0) {}
    };
    tokio::time::timeout(CLOSED_WITHIN, end)
        .await
        .expect("the server closes the connection");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_does_not_get_to_the_point_is_closed_and_holds_up_nobody() {
    let api = Api::start().await;
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..100 {
        // Connected, and nothing more.
        let stream = TcpStream::connect(api.address).await.unwrap();
        tasks.spawn(closed(stream));
    }
    for begins in [
        // Nothing at all; the head of a request a little at a time; half of what begins HTTP/2.
        "",
        "GET /version HTTP/1.1\r\nhost: x\r\nx-slow: ",
        "PRI * HTTP/2.0\r\n\r\n",
    ] {
        for _ in 0..20 {
            let mut stream = tls(&api).await;
            stream.write_all(begins.as_bytes()).await.unwrap();
            stream.flush().await.unwrap();
            tasks.spawn(async move {
                let (read, mut write) = tokio::io::split(stream);
                let drip = async {
                    while write.write_all(b"x").await.is_ok() && write.flush().await.is_ok() {
                        tokio::time::sleep(Duration::from_millis(500)).await;
                    }
                    std::future::pending::<()>().await;
                };
                tokio::select! {
                    () = closed(read) => {}
                    () = drip, if begins.contains("x-slow") => {}
                }
            });
        }
    }
    // Meanwhile others are served as ever.
    let began = Instant::now();
    for _ in 0..20 {
        assert_eq!(api.get("/version").await.code, 200);
    }
    assert!(
        began.elapsed() < Duration::from_secs(5),
        "{:?}",
        began.elapsed()
    );
    while let Some(task) = tasks.join_next().await {
        task.unwrap();
    }
    assert_eq!(api.get("/version").await.code, 200);
}

/// Three quarters of the descriptors are for connections. Who comes then is sent away at once, and the server has what it
/// needs to go on.
#[tokio::test(flavor = "multi_thread")]
async fn connections_beyond_the_limit_are_closed_at_once() {
    const DESCRIPTORS: usize = 160;
    const LIMIT: usize = DESCRIPTORS / 4 * 3;
    const MORE: usize = 20;
    let (api, _program) = Api::start_program(DESCRIPTORS).await;
    let mut open = tokio::task::JoinSet::new();
    for _ in 0..LIMIT + MORE {
        let stream = TcpStream::connect(api.address).await.unwrap();
        open.spawn(closed(stream));
    }
    // Sooner than silence is found out.
    let sent_away = async {
        for _ in 0..MORE {
            open.join_next().await.unwrap().unwrap();
        }
    };
    tokio::time::timeout(Duration::from_secs(8), sent_away)
        .await
        .expect("those beyond the limit are closed");
    assert_eq!(open.len(), LIMIT);
    // When they leave, there is room again.
    open.abort_all();
    while open.join_next().await.is_some() {}
    until("there is room", || async {
        let stream = TcpStream::connect(api.address).await.unwrap();
        let name = ServerName::from(api.address.ip());
        api.nobody().connect(name, stream).await.ok()
    })
    .await;
    let map = json!({"metadata": {"name": "after"}});
    api.post(MAPS, &map).await.ok();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_never_ends_is_refused() {
    let api = Api::start().await;
    let stream = TcpStream::connect(api.address).await.unwrap();
    let name = ServerName::from(api.address.ip());
    let mut stream = api.admin().connect(name, stream).await.unwrap();
    let head = format!(
        "POST {MAPS} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    let (mut read, mut write) = tokio::io::split(stream);
    let flood = async {
        let chunk = format!("10000\r\n{}\r\n", " ".repeat(0x10000));
        while write.write_all(chunk.as_bytes()).await.is_ok() {}
        std::future::pending::<()>().await;
    };
    let answer = async {
        let mut answer = vec![0; 16];
        read.read_exact(&mut answer).await.unwrap();
        answer
    };
    let wait = async {
        tokio::select! {
            answer = answer => answer,
            () = flood => unreachable!(),
        }
    };
    let answer = tokio::time::timeout(PATIENCE, wait)
        .await
        .expect("an answer");
    assert_eq!(&answer[..12], b"HTTP/1.1 413");
}

/// One watcher never reads. The other one sees everything, and what is kept for the first has an end.
#[tokio::test(flavor = "multi_thread")]
async fn a_watcher_that_never_reads_is_cut_off() {
    const WRITES: usize = 60;
    let api = Api::start().await;
    let watch = format!("{MAPS}?watch=1&labelSelector=test");
    let mut stuck = api
        .open(api.admin(), Method::GET, &watch, &[], Bytes::new())
        .await;
    let mut reads = api.watch(&watch).await;
    let big = "x".repeat(900 << 10);
    let object = |n: usize| json!({"metadata": {"name": "big", "labels": {"test": ""}}, "data": {"n": n.to_string(), "big": big}});
    api.post(MAPS, &object(0)).await.ok();
    for n in 0..WRITES {
        if n > 0 {
            api.put(&format!("{MAPS}/big"), &object(n)).await.ok();
        }
        let event: Value = reads.next().await.expect("who reads sees all");
        assert_eq!(event["object"]["data"]["n"], n.to_string());
    }
    // What was kept for the other one comes yet; then its watch is over.
    let rest = async {
        let mut kept = 0;
        while let Some(Ok(frame)) = stuck.body_mut().frame().await {
            kept += frame.into_data().map_or(0, |data| data.len());
        }
        kept
    };
    let kept = tokio::time::timeout(PATIENCE, rest)
        .await
        .expect("the watch is over");
    assert!(kept < WRITES * big.len(), "{kept}");
}
