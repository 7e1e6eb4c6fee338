//! Many watches over one HTTP/2 connection, read with no more work than it takes to read every event.
//!
//! The load runs on the cores that are measured. A general client wakes a task for each event and hands it through several
//! queues, and so costs more than the server; here one task takes the frames of all the connection's streams off the wire.

use anyhow::{Context, Result, bail, ensure};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const HEAD: usize = 9;
/// What streams and connections may send before they hear that it is read, as with Go's client.
const STREAM_WINDOW: u32 = 4 << 20;
const CONNECTION_WINDOW: u32 = 1 << 30;
const INITIAL_WINDOW: u32 = 65_535;
/// How much is read at once.
const READ: usize = 128 << 10;

mod kind {
    pub const DATA: u8 = 0;
    pub const HEADERS: u8 = 1;
    pub const RESET: u8 = 3;
    pub const SETTINGS: u8 = 4;
    pub const PING: u8 = 6;
    pub const GO_AWAY: u8 = 7;
    pub const WINDOW_UPDATE: u8 = 8;
}

const ACK: u8 = 1;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
const PADDED: u8 = 8;

struct Frame<'a> {
    kind: u8,
    flags: u8,
    stream: u32,
    payload: &'a [u8],
}

/// Writes a frame.
fn put(out: &mut Vec<u8>, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
    out.extend_from_slice(&(payload.len() as u32).to_be_bytes()[1..]);
    out.extend_from_slice(&[kind, flags]);
    out.extend_from_slice(&stream.to_be_bytes());
    out.extend_from_slice(payload);
}

/// The frame that a text begins with, and its length; `None` while it is not whole.
fn parse(text: &[u8]) -> Option<(Frame<'_>, usize)> {
    let (head, rest) = text.split_at_checked(HEAD)?;
    let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
    let frame = Frame {
        kind: head[3],
        flags: head[4],
        stream: u32::from_be_bytes([head[5], head[6], head[7], head[8]]) & (u32::MAX >> 1),
        payload: rest.get(..length)?,
    };
    Some((frame, HEAD + length))
}

/// The header block of a GET: indexed fields, and literal ones that are not to be remembered.
fn get(authority: &str, path: &str) -> Vec<u8> {
    const METHOD_GET: u8 = 0x82;
    const SCHEME_HTTPS: u8 = 0x87;
    let mut block = vec![METHOD_GET, SCHEME_HTTPS];
    let fields: [(&[u8], &str); 3] = [
        (&[0x04], path),
        (&[0x01], authority),
        (&[0x0f, 0x04], "application/json"),
    ];
    for (name, value) in fields {
        block.extend_from_slice(name);
        // Lengths from 127 on would take more than one byte.
        block.push(value.len().min(126) as u8);
        block.extend_from_slice(&value.as_bytes()[..value.len().min(126)]);
    }
    block
}

/// Whether a response's header block says 200, which comes first but for a change of the table's size.
fn is_ok(mut block: &[u8]) -> bool {
    const STATUS_200: u8 = 0x88;
    const SIZE_BITS: u8 = 0x1f;
    while let [size @ 0x20..=0x3f, rest @ ..] = block {
        let more = match size & SIZE_BITS {
            SIZE_BITS => rest.iter().take_while(|byte| **byte >= 0x80).count() + 1,
            _ => 0,
        };
        block = rest.get(more..).unwrap_or_default();
    }
    block.first() == Some(&STATUS_200)
}

/// One stream: a watch.
#[derive(Default)]
struct Stream {
    open: bool,
    /// The beginning of an event whose end has not come yet.
    rest: Vec<u8>,
    /// Bytes that the server does not know to be read.
    unacknowledged: u32,
}

impl Stream {
    /// Passes on all whole lines.
    fn take(&mut self, data: &[u8], each: impl FnOnce(&[u8])) {
        // Nearly always whole events come: those need not be put together.
        if self.rest.is_empty() && data.last() == Some(&b'\n') {
            return each(data);
        }
        self.rest.extend_from_slice(data);
        if let Some(end) = memchr::memrchr(b'\n', &self.rest) {
            each(&self.rest[..=end]);
            self.rest.drain(..=end);
        }
    }
}

/// The watches of one connection.
pub struct Watches<T> {
    io: T,
    input: Vec<u8>,
    output: Vec<u8>,
    /// In the order in which they were opened.
    streams: Vec<Stream>,
    unacknowledged: u32,
}

impl<T: AsyncRead + AsyncWrite + Unpin> Watches<T> {
    pub fn new(io: T) -> Self {
        const INITIAL_WINDOW_SIZE: u16 = 4;
        let mut output = PREFACE.to_vec();
        let mut setting = INITIAL_WINDOW_SIZE.to_be_bytes().to_vec();
        setting.extend_from_slice(&STREAM_WINDOW.to_be_bytes());
        put(&mut output, kind::SETTINGS, 0, 0, &setting);
        let more = CONNECTION_WINDOW - INITIAL_WINDOW;
        put(&mut output, kind::WINDOW_UPDATE, 0, 0, &more.to_be_bytes());
        Self {
            io,
            input: Vec::with_capacity(READ),
            output,
            streams: Vec::new(),
            unacknowledged: 0,
        }
    }

    /// Asks for a path, and waits until the answer has begun.
    pub async fn open(
        &mut self,
        authority: &str,
        path: &str,
        mut each: impl FnMut(usize, &[u8]),
    ) -> Result<()> {
        let number = self.streams.len();
        let block = get(authority, path);
        let flags = END_STREAM | END_HEADERS;
        put(
            &mut self.output,
            kind::HEADERS,
            flags,
            2 * number as u32 + 1,
            &block,
        );
        self.streams.push(Stream::default());
        while !self.streams[number].open {
            self.turn(&mut each).await?;
        }
        Ok(())
    }

    /// Reads events until the connection ends: the number of the watch, and whole lines of it.
    pub async fn listen(mut self, mut each: impl FnMut(usize, &[u8])) -> Result<()> {
        loop {
            self.turn(&mut each).await?;
        }
    }

    /// Writes what there is to say, reads what has come.
    async fn turn(&mut self, each: &mut impl FnMut(usize, &[u8])) -> Result<()> {
        if !self.output.is_empty() {
            self.io.write_all(&self.output).await?;
            self.io.flush().await?;
            self.output.clear();
        }
        self.input.reserve(READ);
        let count = self.io.read_buf(&mut self.input).await?;
        ensure!(count > 0, "the connection was closed");
        let input = std::mem::take(&mut self.input);
        let mut at = 0;
        while let Some((frame, length)) = parse(&input[at..]) {
            self.take(&frame, each)?;
            at += length;
        }
        self.input = input;
        self.input.drain(..at);
        Ok(())
    }

    fn take(&mut self, frame: &Frame<'_>, each: &mut impl FnMut(usize, &[u8])) -> Result<()> {
        let number = (frame.stream as usize).saturating_sub(1) / 2;
        match frame.kind {
            kind::DATA => {
                ensure!(frame.flags & PADDED == 0, "padding is not understood");
                let stream = self.streams.get_mut(number);
                let stream = stream.context("data of a stream that nobody opened")?;
                stream.take(frame.payload, |lines| each(number, lines));
                let length = frame.payload.len() as u32;
                self.unacknowledged += length;
                stream.unacknowledged += length;
                let (id, read) = (frame.stream, &mut stream.unacknowledged);
                acknowledge(&mut self.output, id, read, STREAM_WINDOW);
                let read = &mut self.unacknowledged;
                acknowledge(&mut self.output, 0, read, CONNECTION_WINDOW);
                ensure!(frame.flags & END_STREAM == 0, "a watch ended");
            }
            kind::HEADERS => {
                ensure!(is_ok(frame.payload), "a watch was refused");
                if let Some(stream) = self.streams.get_mut(number) {
                    stream.open = true;
                }
            }
            kind::SETTINGS if frame.flags & ACK == 0 => {
                put(&mut self.output, kind::SETTINGS, ACK, 0, &[]);
            }
            kind::PING if frame.flags & ACK == 0 => {
                put(&mut self.output, kind::PING, ACK, 0, frame.payload);
            }
            kind::RESET | kind::GO_AWAY => bail!("the server ended a watch"),
            _ => {}
        }
        Ok(())
    }
}

/// Says that bytes are read once they are half of the window.
fn acknowledge(out: &mut Vec<u8>, stream: u32, read: &mut u32, window: u32) {
    if *read >= window / 2 {
        put(out, kind::WINDOW_UPDATE, 0, stream, &read.to_be_bytes());
        *read = 0;
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{DuplexStream, duplex};

    use super::*;

    /// The other end of a connection, which checks what it hears.
    struct Server {
        io: DuplexStream,
        heard: Vec<u8>,
    }

    impl Server {
        async fn expect(&mut self, kind: u8, flags: u8, payload: &[u8]) {
            while parse(&self.heard).is_none() {
                self.io.read_buf(&mut self.heard).await.unwrap();
            }
            let (frame, length) = parse(&self.heard).unwrap();
            assert_eq!((frame.kind, frame.flags), (kind, flags));
            assert!(frame.payload.starts_with(payload));
            self.heard.drain(..length);
        }

        /// In pieces that end anywhere.
        async fn say(&mut self, frames: &[(u8, u8, u32, &[u8])]) {
            let mut sent = Vec::new();
            for (kind, flags, stream, payload) in frames {
                put(&mut sent, *kind, *flags, *stream, payload);
            }
            for piece in sent.chunks(7) {
                self.io.write_all(piece).await.unwrap();
                tokio::task::yield_now().await;
            }
        }
    }

    #[tokio::test]
    async fn events_come_whole_however_they_are_cut() {
        let (near, far) = duplex(1 << 20);
        let server = async {
            let (io, heard) = (far, Vec::new());
            let mut server = Server { io, heard };
            let mut preface = vec![0; PREFACE.len()];
            server.io.read_exact(&mut preface).await.unwrap();
            assert_eq!(preface, PREFACE);
            server.expect(kind::SETTINGS, 0, &[0, 4]).await;
            server.expect(kind::WINDOW_UPDATE, 0, &[]).await;
            let whole = END_STREAM | END_HEADERS;
            server.expect(kind::HEADERS, whole, &[0x82, 0x87]).await;
            let answer = (kind::HEADERS, END_HEADERS, 1, &[0x3f, 0x01, 0x88][..]);
            server.say(&[(kind::SETTINGS, 0, 0, &[]), answer]).await;
            server.expect(kind::SETTINGS, ACK, &[]).await;
            let (one, two) = (
                (kind::DATA, 0, 1, &b"one\ntw"[..]),
                (kind::DATA, 0, 1, &b"o\n"[..]),
            );
            server
                .say(&[one, (kind::PING, 0, 0, b"12345678"), two])
                .await;
            server.expect(kind::PING, ACK, b"12345678").await;
            server.say(&[(kind::DATA, END_STREAM, 1, b"three\n")]).await;
        };
        let client = async {
            let mut seen = Vec::new();
            let mut watches = Watches::new(near);
            let mut each = |_: usize, lines: &[u8]| seen.push(lines.to_vec());
            watches.open("localhost", "/", &mut each).await.unwrap();
            let end = watches.listen(&mut each).await.unwrap_err();
            assert_eq!(end.to_string(), "a watch ended");
            seen
        };
        let (seen, ()) = tokio::join!(client, server);
        assert_eq!(seen, [&b"one\n"[..], b"two\n", b"three\n"]);
    }

    #[test]
    fn refusals_are_told_from_answers() {
        assert!(is_ok(&[0x88, 0x01]));
        assert!(!is_ok(&[0x8d]) && !is_ok(&[]));
    }
}
