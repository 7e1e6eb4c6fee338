//! Questions in, answers out, over UDP and TCP.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use hickory_proto::op::{Edns, Message, MessageType, Metadata, OpCode, Query, ResponseCode};
use hickory_proto::rr::{DNSClass, Name, RecordType};
use parking_lot::Mutex;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use crate::forward::{Upstreams, read_frame, write_frame};
use crate::index::Index;
use crate::zone::Zone;

/// What passes most networks in one piece (the DNS flag day's number).
const PAYLOAD: u16 = 1232;
/// Questions under way to upstreams; beyond that, clients are told to come back.
const UNDER_WAY: usize = 1024;
const CONNECTIONS: usize = 256;
const IDLE: Duration = Duration::from_secs(10);

#[derive(Debug, Default)]
pub struct Metrics {
    requests: Family<[(&'static str, String); 1], Counter>,
    responses: Family<[(&'static str, String); 1], Counter>,
    forwarded: Counter,
}

impl Metrics {
    /// Names as CoreDNS', so that dashboards find them.
    pub fn register(registry: &mut Registry) -> Self {
        let new = Self::default();
        registry.register(
            "coredns_dns_requests",
            "Questions by type",
            new.requests.clone(),
        );
        registry.register(
            "coredns_dns_responses",
            "Answers by code",
            new.responses.clone(),
        );
        registry.register(
            "coredns_forward_requests",
            "Questions asked of upstreams",
            new.forwarded.clone(),
        );
        new
    }
}

pub struct Server {
    zone: Zone,
    pub index: Mutex<Index>,
    upstreams: Upstreams,
    slots: Semaphore,
    metrics: Metrics,
    turn: AtomicUsize,
}

/// What is to be done about a message.
enum Step {
    /// Not a question at all: silence, lest two servers talk to each other for ever.
    Ignore,
    Answer(Message),
    /// Somebody else knows.
    Forward(Message),
    /// Somebody else knows the name that this answer ends with.
    Follow(Message, Name, RecordType),
}

impl Server {
    pub fn new(zone: Zone, upstreams: Vec<SocketAddr>, metrics: Metrics) -> Self {
        Self {
            zone,
            index: Mutex::default(),
            upstreams: Upstreams::new(upstreams),
            slots: Semaphore::new(UNDER_WAY),
            metrics,
            turn: AtomicUsize::new(0),
        }
    }

    /// Serves UDP on the socket until the task is dropped.
    pub async fn serve_udp(self: Arc<Self>, socket: UdpSocket) {
        let socket = Arc::new(socket);
        let mut buffer = vec![0; 4096];
        loop {
            let (length, peer) = match socket.recv_from(&mut buffer).await {
                Ok(received) => received,
                // An earlier answer met a closed port; nothing is wrong with the socket.
                Err(error) => {
                    tracing::debug!(%error, "receive");
                    continue;
                }
            };
            let query = &buffer[..length];
            match self.consider(query) {
                Step::Ignore => {}
                Step::Answer(answer) => {
                    if let Some(answer) = self.encode(answer, false) {
                        let _ = socket.send_to(&answer, peer).await;
                    }
                }
                step => {
                    let (server, socket, query) = (self.clone(), socket.clone(), query.to_vec());
                    tokio::spawn(async move {
                        if let Some(answer) = server.ask_others(step, &query, false).await {
                            let _ = socket.send_to(&answer, peer).await;
                        }
                    });
                }
            }
        }
    }

    /// Serves TCP until the task is dropped.
    pub async fn serve_tcp(self: Arc<Self>, listener: TcpListener) {
        let connections = Arc::new(Semaphore::new(CONNECTIONS));
        loop {
            let Ok(permit) = connections.clone().acquire_owned().await else {
                return;
            };
            match listener.accept().await {
                Ok((stream, _)) => {
                    let server = self.clone();
                    tokio::spawn(async move {
                        server.connection(stream).await;
                        drop(permit);
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "accept");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }

    async fn connection(&self, mut stream: TcpStream) {
        while let Ok(Ok(query)) = timeout(IDLE, read_frame(&mut stream)).await {
            let answer = match self.consider(&query) {
                Step::Ignore => return,
                Step::Answer(answer) => self.encode(answer, true),
                step => self.ask_others(step, &query, true).await,
            };
            let Some(answer) = answer else { return };
            if !matches!(
                timeout(IDLE, write_frame(&mut stream, &answer)).await,
                Ok(Ok(()))
            ) {
                return;
            }
        }
    }

    /// Decides from the message alone and the index, without waiting for anybody.
    fn consider(&self, query: &[u8]) -> Step {
        let is_question = query.len() >= 12 && query[2] & 0x80 == 0;
        if !is_question {
            return Step::Ignore;
        }
        let Ok(request) = Message::from_vec(query) else {
            let id = u16::from_be_bytes([query[0], query[1]]);
            return Step::Answer(Message::error_msg(id, OpCode::Query, ResponseCode::FormErr));
        };
        let mut response = Message::response(request.metadata.id, request.metadata.op_code);
        response.metadata = Metadata::response_from_request(&request.metadata);
        response.metadata.recursion_available = !self.upstreams.is_empty();
        response.add_queries(request.queries.iter().cloned());
        if let Some(asked) = &request.edns {
            let mut edns = Edns::new();
            // The client's limit travels here until the answer is encoded.
            edns.set_max_payload(asked.max_payload()).set_version(0);
            response.set_edns(edns);
        }
        let refuse = |mut response: Message, code| {
            response.metadata.response_code = code;
            Step::Answer(response)
        };
        let [question] = request.queries.as_slice() else {
            return refuse(response, ResponseCode::FormErr);
        };
        self.metrics
            .requests
            .get_or_create(&[("type", question.query_type().to_string())])
            .inc();
        if request.metadata.op_code != OpCode::Query
            || request.metadata.message_type != MessageType::Query
        {
            return refuse(response, ResponseCode::NotImp);
        }
        if request.edns.as_ref().is_some_and(|edns| edns.version() > 0) {
            return refuse(response, ResponseCode::BADVERS);
        }
        if question.query_class() != DNSClass::IN {
            return refuse(response, ResponseCode::Refused);
        }
        self.look_up(question, response)
    }

    fn look_up(&self, question: &Query, mut response: Message) -> Step {
        let kind = question.query_type();
        let Some(mut answer) = self.zone.answer(&self.index.lock(), question.name(), kind) else {
            if self.upstreams.is_empty() {
                response.metadata.response_code = ResponseCode::Refused;
                return Step::Answer(response);
            }
            return Step::Forward(response);
        };
        // Clients take the first address: each is first in its turn. An alias stays before what it leads to.
        if answer
            .answers
            .iter()
            .all(|record| record.record_type() == kind)
            && answer.answers.len() > 1
        {
            let turn = self.turn.fetch_add(1, Ordering::Relaxed) % answer.answers.len();
            answer.answers.rotate_left(turn);
        }
        response.metadata.authoritative = true;
        response.metadata.response_code = answer.code;
        response.add_answers(answer.answers);
        response.add_authorities(answer.authorities);
        response.add_additionals(answer.additionals);
        match answer.follow {
            Some(target) if !self.upstreams.is_empty() => Step::Follow(response, target, kind),
            _ => Step::Answer(response),
        }
    }

    async fn ask_others(&self, step: Step, query: &[u8], tcp: bool) -> Option<Vec<u8>> {
        let busy = self.slots.try_acquire();
        self.metrics.forwarded.inc();
        let failed = match step {
            Step::Forward(failed) => {
                let answer = if busy.is_ok() {
                    self.upstreams.ask(query, tcp).await
                } else {
                    None
                };
                if answer.is_some() {
                    return answer;
                }
                failed
            }
            Step::Follow(response, target, kind) => {
                match if busy.is_ok() {
                    self.resolve(target, kind).await
                } else {
                    None
                } {
                    Some(found) => {
                        let mut response = response;
                        response.add_answers(found.answers);
                        response.metadata.response_code = found.metadata.response_code;
                        return self.encode(response, tcp);
                    }
                    None => response,
                }
            }
            Step::Ignore | Step::Answer(_) => return None,
        };
        let mut failed = failed;
        failed.answers.clear();
        failed.metadata.response_code = ResponseCode::ServFail;
        self.encode(failed, tcp)
    }

    /// A question of our own, over TCP when the answer does not fit otherwise.
    async fn resolve(&self, name: Name, kind: RecordType) -> Option<Message> {
        let mut question = Message::query();
        question.metadata.recursion_desired = true;
        question.add_query(Query::query(name, kind));
        let question = question.to_vec().ok()?;
        let answer = Message::from_vec(&self.upstreams.ask(&question, false).await?).ok()?;
        if !answer.metadata.truncation {
            return Some(answer);
        }
        Message::from_vec(&self.upstreams.ask(&question, true).await?).ok()
    }

    /// As bytes. Over UDP no longer than the client takes: first without what it did not ask for, then cut, so
    /// that it asks again over TCP.
    fn encode(&self, mut response: Message, tcp: bool) -> Option<Vec<u8>> {
        let code = format!("{:?}", response.metadata.response_code).to_uppercase();
        self.metrics
            .responses
            .get_or_create(&[("rcode", code)])
            .inc();
        let limit = match &mut response.edns {
            Some(edns) => {
                let asked = edns.max_payload().clamp(512, PAYLOAD);
                edns.set_max_payload(PAYLOAD);
                asked
            }
            None => 512,
        };
        let fits = |bytes: &Vec<u8>| tcp || bytes.len() <= usize::from(limit);
        let whole = response
            .to_vec()
            .inspect_err(|error| tracing::warn!(%error, "cannot encode an answer"))
            .ok()?;
        if fits(&whole) {
            return Some(whole);
        }
        response.additionals.clear();
        let bare = response.to_vec().ok()?;
        if fits(&bare) {
            Some(bare)
        } else {
            response.truncate().to_vec().ok()
        }
    }
}
