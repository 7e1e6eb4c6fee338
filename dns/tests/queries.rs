//! Real questions over loopback, with the bytes that resolvers send.

use std::net::SocketAddr;
use std::sync::Arc;

use dns::forward::{read_frame, write_frame};
use dns::index::Change;
use dns::server::{Metrics, Server};
use dns::zone::Zone;
use hickory_proto::op::{Edns, Message, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::A;
use hickory_proto::rr::{Name, RData, Record, RecordType};
use kube::runtime::watcher::Event;
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream, UdpSocket};

fn fill(server: &Server) {
    let mut index = server.index.lock();
    let service = |name: &str, spec: Value| {
        let object = json!({"metadata": {"namespace": "shop", "name": name}, "spec": spec});
        Change::Service(Event::InitApply(serde_json::from_value(object).unwrap()))
    };
    let endpoints: Vec<Value> = (0..60)
        .map(|n| json!({"addresses": [format!("10.244.0.{n}")]}))
        .collect();
    let slice = json!({
        "metadata": {"namespace": "shop", "name": "big-1", "labels": {"kubernetes.io/service-name": "big"}},
        "addressType": "IPv4", "endpoints": endpoints,
    });
    for change in [
        Change::Namespace(Event::Init),
        Change::Namespace(Event::InitDone),
        Change::Service(Event::Init),
        service("web", json!({"clusterIP": "10.96.0.20"})),
        service("big", json!({"clusterIP": "None"})),
        service(
            "away",
            json!({"type": "ExternalName", "externalName": "example.com"}),
        ),
        Change::Service(Event::InitDone),
        Change::Slice(Event::Init),
        Change::Slice(Event::InitApply(serde_json::from_value(slice).unwrap())),
        Change::Slice(Event::InitDone),
    ] {
        index.apply(change);
    }
}

async fn start(upstreams: Vec<SocketAddr>) -> SocketAddr {
    let zone = Zone::new("cluster.local").unwrap();
    let server = Arc::new(Server::new(zone, upstreams, Metrics::default()));
    fill(&server);
    let tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = tcp.local_addr().unwrap();
    let udp = UdpSocket::bind(address).await.unwrap();
    tokio::spawn(server.clone().serve_udp(udp));
    tokio::spawn(server.serve_tcp(tcp));
    address
}

/// Answers everything with 192.0.2.7, but leaves a first socket without an answer.
async fn upstream() -> SocketAddr {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let address = socket.local_addr().unwrap();
    tokio::spawn(async move {
        let mut buffer = [0; 1500];
        while let Ok((length, peer)) = socket.recv_from(&mut buffer).await {
            let request = Message::from_vec(&buffer[..length]).unwrap();
            let mut response = Message::response(request.metadata.id, OpCode::Query);
            let name = request.queries[0].name().clone();
            response.add_queries(request.queries);
            response.add_answer(Record::from_rdata(name, 60, RData::A(A::new(192, 0, 2, 7))));
            socket
                .send_to(&response.to_vec().unwrap(), peer)
                .await
                .unwrap();
        }
    });
    address
}

fn question(name: &str, kind: RecordType) -> Message {
    let mut message = Message::query();
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
    message
}

async fn raw(server: SocketAddr, bytes: &[u8]) -> (Message, usize) {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    socket.send_to(bytes, server).await.unwrap();
    let mut buffer = [0; 65_535];
    let wait = std::time::Duration::from_secs(5);
    let (length, _) = tokio::time::timeout(wait, socket.recv_from(&mut buffer))
        .await
        .unwrap()
        .unwrap();
    (Message::from_vec(&buffer[..length]).unwrap(), length)
}

async fn ask(server: SocketAddr, message: &Message) -> Message {
    let (answer, _) = raw(server, &message.to_vec().unwrap()).await;
    assert_eq!(answer.metadata.id, message.metadata.id);
    answer
}

#[tokio::test]
async fn udp_answers() {
    let server = start(vec![]).await;
    let answer = ask(
        server,
        &question("Web.shop.svc.cluster.local.", RecordType::A),
    )
    .await;
    assert_eq!(answer.answers[0].data, RData::A(A::new(10, 96, 0, 20)));
    assert_eq!(
        answer.queries[0].name().to_ascii(),
        "Web.shop.svc.cluster.local.",
        "the case that was asked"
    );
    assert!(
        answer.metadata.authoritative
            && answer.metadata.recursion_desired
            && !answer.metadata.recursion_available
    );
    let answer = ask(
        server,
        &question("nope.shop.svc.cluster.local.", RecordType::A),
    )
    .await;
    assert_eq!(answer.metadata.response_code, ResponseCode::NXDomain);
    assert_eq!(answer.authorities[0].record_type(), RecordType::SOA);
    let answer = ask(server, &question("example.com.", RecordType::A)).await;
    assert_eq!(answer.metadata.response_code, ResponseCode::Refused);
}

#[tokio::test]
async fn long_answers() {
    let server = start(vec![]).await;
    let mut big = question("big.shop.svc.cluster.local.", RecordType::A);
    let answer = ask(server, &big).await;
    assert!(answer.metadata.truncation && answer.answers.is_empty());
    let mut edns = Edns::new();
    edns.set_max_payload(4096);
    big.set_edns(edns);
    let (answer, length) = raw(server, &big.to_vec().unwrap()).await;
    assert!(length <= 1232, "{length}");
    assert_eq!(answer.metadata.truncation, answer.answers.is_empty());
    assert_eq!(answer.edns.unwrap().max_payload(), 1232);

    let mut stream = TcpStream::connect(server).await.unwrap();
    for _ in 0..2 {
        write_frame(&mut stream, &big.to_vec().unwrap())
            .await
            .unwrap();
        let answer = Message::from_vec(&read_frame(&mut stream).await.unwrap()).unwrap();
        assert_eq!(answer.answers.len(), 60);
    }
}

#[tokio::test]
async fn others_names_go_upstream() {
    let dead = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let server = start(vec![upstream().await]).await;
    let answer = ask(server, &question("example.com.", RecordType::A)).await;
    assert_eq!(answer.answers[0].data, RData::A(A::new(192, 0, 2, 7)));
    let answer = ask(
        server,
        &question("away.shop.svc.cluster.local.", RecordType::A),
    )
    .await;
    assert_eq!(answer.answers.len(), 2, "the alias and what it leads to");
    assert_eq!(answer.answers[0].record_type(), RecordType::CNAME);

    // The first server is silent: the second is asked, and from then on first.
    let server = start(vec![dead.local_addr().unwrap(), upstream().await]).await;
    for _ in 0..2 {
        let answer = ask(server, &question("example.com.", RecordType::A)).await;
        assert_eq!(answer.metadata.response_code, ResponseCode::NoError);
    }
}

#[tokio::test]
async fn bad_input() {
    let server = start(vec![]).await;
    let good = question("web.shop.svc.cluster.local.", RecordType::A)
        .to_vec()
        .unwrap();
    let (answer, _) = raw(server, &good[..good.len() - 3]).await;
    assert_eq!(answer.metadata.response_code, ResponseCode::FormErr);
    let mut update = good.clone();
    update[2] = (update[2] & 0x87) | (4 << 3); // NOTIFY
    let (answer, _) = raw(server, &update).await;
    assert_eq!(answer.metadata.response_code, ResponseCode::NotImp);
    // Silence for responses and rubbish: the next question is answered as if nothing had been.
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let mut response = good.clone();
    response[2] |= 0x80;
    for message in [&response[..], b"", b"\x01", &[0xff; 11]] {
        socket.send_to(message, server).await.unwrap();
    }
    socket.send_to(&good, server).await.unwrap();
    let mut buffer = [0; 512];
    let (length, _) = socket.recv_from(&mut buffer).await.unwrap();
    assert_eq!(
        Message::from_vec(&buffer[..length]).unwrap().answers.len(),
        1
    );
}
