//! Names that are not the cluster's are asked of other servers. The question goes on as the client wrote it, over
//! the transport the client chose, and the answer comes back as it is: EDNS and truncation need no thought.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;

/// As resolvers wait: a client asks again after 5 seconds, by then a second server has been tried.
const PATIENCE: Duration = Duration::from_secs(2);

#[derive(Debug)]
pub struct Upstreams {
    servers: Vec<SocketAddr>,
    /// The one that answered last is asked first.
    favourite: AtomicUsize,
}

impl Upstreams {
    pub fn new(servers: Vec<SocketAddr>) -> Self {
        Self {
            servers,
            favourite: AtomicUsize::new(0),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.servers.is_empty()
    }

    /// Asks one server after the other. `None` when nobody answers.
    pub async fn ask(&self, query: &[u8], tcp: bool) -> Option<Vec<u8>> {
        let first = self.favourite.load(Ordering::Relaxed);
        for at in 0..self.servers.len() {
            let which = (first + at) % self.servers.len();
            let server = self.servers[which];
            // An id of our own, so that answers cannot be forged by who saw the client's.
            let id: [u8; 2] = rand::random();
            let mut question = query.to_vec();
            question.get_mut(..2)?.copy_from_slice(&id);
            let exchange = async {
                if tcp {
                    over_tcp(server, &question).await
                } else {
                    over_udp(server, &question).await
                }
            };
            match timeout(PATIENCE, exchange).await {
                Ok(Ok(mut answer)) => {
                    self.favourite.store(which, Ordering::Relaxed);
                    answer.get_mut(..2)?.copy_from_slice(&query[..2]);
                    return Some(answer);
                }
                Ok(Err(error)) => tracing::debug!(%server, %error, "upstream"),
                Err(_) => tracing::debug!(%server, "upstream does not answer"),
            }
        }
        None
    }
}

async fn over_udp(server: SocketAddr, query: &[u8]) -> std::io::Result<Vec<u8>> {
    let any: IpAddr = if server.is_ipv4() {
        Ipv4Addr::UNSPECIFIED.into()
    } else {
        Ipv6Addr::UNSPECIFIED.into()
    };
    // A new port for every question is half of what makes an answer hard to forge.
    let socket = UdpSocket::bind((any, 0)).await?;
    socket.connect(server).await?;
    socket.send(query).await?;
    let mut buffer = vec![0; 65_535];
    loop {
        let length = socket.recv(&mut buffer).await?;
        if answers(query, &buffer[..length]) {
            buffer.truncate(length);
            buffer.shrink_to_fit();
            return Ok(buffer);
        }
    }
}

async fn over_tcp(server: SocketAddr, query: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(server).await?;
    write_frame(&mut stream, query).await?;
    let answer = read_frame(&mut stream).await?;
    if !answers(query, &answer) {
        return Err(std::io::Error::other("answer to another question"));
    }
    Ok(answer)
}

/// DNS over TCP puts the length before each message.
pub async fn read_frame(stream: &mut TcpStream) -> std::io::Result<Vec<u8>> {
    let mut message = vec![0; usize::from(stream.read_u16().await?)];
    stream.read_exact(&mut message).await?;
    Ok(message)
}

pub async fn write_frame(stream: &mut TcpStream, message: &[u8]) -> std::io::Result<()> {
    let length =
        u16::try_from(message.len()).map_err(|_| std::io::Error::other("message too long"))?;
    // In one write, so that it travels in one packet.
    let mut frame = length.to_be_bytes().to_vec();
    frame.extend_from_slice(message);
    stream.write_all(&frame).await
}

/// Same id, a response, and to the same question.
fn answers(query: &[u8], answer: &[u8]) -> bool {
    let end = question_end(query);
    let is_response = answer.get(2).is_some_and(|flags| flags & 0x80 != 0);
    let same = |from: usize, to: usize| match (query.get(from..to), answer.get(from..to)) {
        (Some(asked), Some(echoed)) => asked.eq_ignore_ascii_case(echoed),
        _ => false,
    };
    // Some servers leave the question out of errors.
    let no_question = answer.get(4..6) == Some(&[0, 0]);
    answer.get(..2) == query.get(..2) && is_response && (no_question || same(12, end))
}

/// Where the first question ends: labels, a zero, type and class.
fn question_end(message: &[u8]) -> usize {
    let mut at = 12;
    while let Some(length) = message.get(at) {
        at += 1 + usize::from(*length);
        if *length == 0 {
            break;
        }
    }
    at + 4
}

/// The name servers of a `resolv.conf`. Those on loopback are somebody else's loopback when seen from a pod.
pub fn parse_resolv_conf(text: &str) -> Vec<SocketAddr> {
    let servers = text.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        (words.next() == Some("nameserver"))
            .then(|| words.next())
            .flatten()
    });
    let servers = servers.filter_map(|ip| ip.parse::<IpAddr>().ok());
    servers
        .filter(|ip| !ip.is_loopback())
        .map(|ip| SocketAddr::new(ip, 53))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resolv_conf() {
        let text = "# nameserver 9.9.9.9\nnameserver 127.0.0.53\nnameserver 192.0.2.1\nsearch x\nnameserver  fd00::1\nnameserver x\n";
        let servers = parse_resolv_conf(text);
        assert_eq!(
            servers,
            [
                "192.0.2.1:53".parse().unwrap(),
                "[fd00::1]:53".parse::<SocketAddr>().unwrap()
            ]
        );
    }

    #[test]
    fn answers_to_other_questions_do_not_count() {
        let query =
            b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x01a\x02bc\x00\x00\x01\x00\x01";
        let mut answer = query.to_vec();
        answer[2] |= 0x80;
        assert!(answers(query, &answer));
        answer[13] = b'A';
        assert!(answers(query, &answer), "names have no case");
        answer[13] = b'x';
        assert!(!answers(query, &answer));
        answer[13] = b'a';
        answer[1] = 0;
        assert!(!answers(query, &answer));
        assert!(!answers(query, query), "no response");
        assert!(!answers(query, b"\x12"));
    }
}
