//! One exec or attach: the client speaks WebSocket with channels, the runtime SPDY with
//! streams, and this carries bytes between the two until one side has had enough.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::{Bytes, BytesMut};
use futures::{SinkExt, StreamExt};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;

use super::spdy::{Decoder, Encoder, Frame};

const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const ERROR: u8 = 3;
const RESIZE: u8 = 4;
/// Version 5 of the protocol: the byte after it names a channel that its sender has closed.
const CLOSE: u8 = 255;
const PIECE: usize = 32 << 10;

/// How channels are written into messages, and how a session's end is told. Which it is, is agreed on by name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Channels {
    /// A digit and base64 in text messages, instead of a byte and the data in binary ones.
    pub base64: bool,
    /// Before version 4, only failures were told, and in plain text.
    pub plain_status: bool,
}

impl Channels {
    /// The protocols of exec and attach, best first. A client that names none speaks the oldest.
    pub const NAMES: [&'static str; 5] = [
        "v5.channel.k8s.io",
        "v4.channel.k8s.io",
        "v4.base64.channel.k8s.io",
        "channel.k8s.io",
        "base64.channel.k8s.io",
    ];

    pub fn of(protocol: &str) -> Self {
        Self {
            base64: protocol.contains("base64."),
            plain_status: !protocol.starts_with('v'),
        }
    }

    fn message(self, channel: u8, data: &[u8]) -> Message {
        if self.base64 {
            let digit = char::from(b'0' + channel);
            return Message::Text(format!("{digit}{}", STANDARD.encode(data)).into());
        }
        let mut message = BytesMut::with_capacity(data.len() + 1);
        message.extend_from_slice(&[channel]);
        message.extend_from_slice(data);
        Message::Binary(message.freeze())
    }

    /// A channel's byte and its data; `None` for what carries none.
    fn data(self, message: Message) -> Option<Bytes> {
        match message {
            Message::Binary(data) if !self.base64 => Some(data),
            Message::Text(text) if self.base64 => {
                let (digit, data) = text.as_bytes().split_first()?;
                let channel = digit
                    .checked_sub(b'0')
                    .filter(|channel| *channel <= RESIZE)?;
                let mut out = vec![channel];
                out.extend(STANDARD.decode(data).ok()?);
                Some(out.into())
            }
            _ => None,
        }
    }

    /// What is sent at the end, given the runtime's status; `None` for nothing.
    fn status(self, status: Vec<u8>) -> Option<Vec<u8>> {
        if !self.plain_status {
            return Some(status);
        }
        let parsed: serde_json::Value = serde_json::from_slice(&status).unwrap_or_default();
        if parsed["status"] == "Success" {
            return None;
        }
        match parsed["message"].as_str() {
            Some(message) => Some(message.as_bytes().to_vec()),
            None => Some(status),
        }
    }
}

/// Which streams there are.
#[derive(Clone, Copy, Debug, Default)]
pub struct Streams {
    pub stdin: bool,
    pub stdout: bool,
    pub stderr: bool,
    pub tty: bool,
}

impl Streams {
    /// Channel and stream id of each, in the order in which they are opened.
    fn table(self) -> Vec<(u8, u32, &'static str)> {
        let wanted = [
            (true, ERROR, "error"),
            (self.stdin, STDIN, "stdin"),
            (self.stdout, STDOUT, "stdout"),
            (self.stderr && !self.tty, STDERR, "stderr"),
            (self.tty, RESIZE, "resize"),
        ];
        let open = wanted.into_iter().filter(|w| w.0);
        open.zip((1..).step_by(2))
            .map(|((_, channel, kind), id)| (channel, id, kind))
            .collect()
    }
}

type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

/// Carries the session.
pub async fn run<C, R>(
    client: WebSocketStream<C>,
    runtime: R,
    streams: Streams,
    channels: Channels,
) -> Result<()>
where
    C: AsyncRead + AsyncWrite + Unpin,
    R: AsyncRead + AsyncWrite + Unpin,
{
    let table = streams.table();
    let (mut reader, mut writer) = tokio::io::split(runtime);
    let (mut to_client, mut from_client) = client.split();
    let (frames, mut outgoing) = mpsc::channel::<Frame>(16);
    for (_, id, kind) in &table {
        frames
            .send(Frame::SynStream {
                id: *id,
                headers: vec![("streamtype".into(), (*kind).into())],
                fin: false,
            })
            .await?;
    }
    let write = async {
        let (mut encoder, mut buffer) = (Encoder::default(), BytesMut::new());
        while let Some(frame) = outgoing.recv().await {
            encoder.encode(&frame, &mut buffer);
            writer.write_all_buf(&mut buffer).await?;
        }
        Result::Ok(())
    };
    let from_client = async {
        while let Some(message) = from_client.next().await {
            let message = message?;
            if message.is_close() {
                break;
            }
            if let Some(data) = channels.data(message) {
                forward(data, &table, &frames).await?;
            }
        }
        Result::Ok(())
    };
    let from_runtime = async {
        let first = if streams.stdout { STDOUT } else { ERROR };
        // Tells the client that all is set up.
        to_client.send(channels.message(first, &[])).await?;
        let mut incoming = Incoming {
            decoder: Decoder::new(),
            table: &table,
            status: Vec::new(),
            open: output_ids(&table),
        };
        while !incoming.open.is_empty() {
            if reader.read_buf(incoming.decoder.buffer()).await? == 0 {
                break;
            }
            while let Some(frame) = incoming.decoder.frame()? {
                match frame {
                    Frame::Ping { id } => frames.send(Frame::Ping { id }).await?,
                    Frame::GoAway => incoming.open.clear(),
                    frame => {
                        if let Some((channel, data)) = incoming.take(frame) {
                            to_client.send(channels.message(channel, &data)).await?;
                        }
                    }
                }
            }
        }
        if !incoming.status.is_empty()
            && let Some(status) = channels.status(incoming.status)
        {
            to_client.send(channels.message(ERROR, &status)).await?;
        }
        let normal = CloseFrame {
            code: CloseCode::Normal,
            reason: "".into(),
        };
        to_client.send(Message::Close(Some(normal))).await?;
        Result::Ok(())
    };
    tokio::select! {
        done = write => done,
        done = from_runtime => done,
        // A client that goes away ends the session: the runtime sees its connection close.
        done = from_client => done,
    }
}

fn output_ids(table: &[(u8, u32, &str)]) -> Vec<u32> {
    table
        .iter()
        .filter(|(channel, ..)| matches!(*channel, STDOUT | STDERR | ERROR))
        .map(|(_, id, _)| *id)
        .collect()
}

async fn forward(
    mut data: Bytes,
    table: &[(u8, u32, &'static str)],
    frames: &mpsc::Sender<Frame>,
) -> Result<()> {
    let Some(&channel) = data.first() else {
        return Ok(());
    };
    let closing = channel == CLOSE;
    let channel = if closing {
        data.get(1).copied().unwrap_or(CLOSE)
    } else {
        channel
    };
    let Some((_, id, _)) = table
        .iter()
        .find(|(c, ..)| *c == channel && matches!(channel, STDIN | RESIZE))
    else {
        return Ok(());
    };
    if closing {
        frames
            .send(Frame::Data {
                id: *id,
                data: Bytes::new(),
                fin: true,
            })
            .await?;
        return Ok(());
    }
    let mut rest = data.split_off(1);
    while !rest.is_empty() {
        let piece = rest.split_to(rest.len().min(PIECE));
        frames
            .send(Frame::Data {
                id: *id,
                data: piece,
                fin: false,
            })
            .await?;
    }
    Ok(())
}

struct Incoming<'a> {
    decoder: Decoder,
    table: &'a [(u8, u32, &'static str)],
    /// The status arrives in pieces and is passed on as one.
    status: Vec<u8>,
    /// Streams from which something may still come.
    open: Vec<u32>,
}

impl Incoming<'_> {
    /// A channel and what has come in it.
    fn take(&mut self, frame: Frame) -> Option<(u8, Bytes)> {
        let (id, data, fin) = match frame {
            Frame::Data { id, data, fin } => (id, data, fin),
            Frame::SynReply { id, fin, .. } => (id, Bytes::new(), fin),
            Frame::Reset { id, .. } => (id, Bytes::new(), true),
            _ => return None,
        };
        if fin {
            self.open.retain(|open| *open != id);
        }
        let (channel, ..) = self.table.iter().find(|(_, stream, _)| *stream == id)?;
        if *channel == ERROR {
            self.status.extend_from_slice(&data);
            return None;
        }
        (!data.is_empty()).then_some((*channel, data))
    }
}

/// A port-forward in which each WebSocket message carries raw SPDY bytes.
pub async fn tunnel<C, R>(client: WebSocketStream<C>, runtime: R) -> Result<()>
where
    C: AsyncRead + AsyncWrite + Unpin,
    R: AsyncRead + AsyncWrite + Unpin,
{
    let (mut reader, mut writer) = tokio::io::split(runtime);
    let (mut to_client, mut from_client) = client.split();
    let up = async {
        while let Some(message) = from_client.next().await {
            match message? {
                Message::Binary(data) => writer.write_all(&data).await?,
                Message::Close(_) => break,
                _ => {}
            }
        }
        Result::Ok(())
    };
    let down = async {
        let mut buffer = BytesMut::with_capacity(PIECE);
        while reader.read_buf(&mut buffer).await? > 0 {
            to_client
                .send(Message::Binary(buffer.split().freeze()))
                .await?;
            buffer.reserve(PIECE);
        }
        let normal = CloseFrame {
            code: CloseCode::Normal,
            reason: "".into(),
        };
        to_client.send(Message::Close(Some(normal))).await?;
        Result::Ok(())
    };
    tokio::select! { done = up => done, done = down => done }
}

/// The older way to forward ports: channels 2n and 2n+1 carry data and errors of the n-th port, and begin with its number.
pub async fn forward_ports<C, R>(
    client: WebSocketStream<C>,
    runtime: R,
    ports: &[u16],
) -> Result<()>
where
    C: AsyncRead + AsyncWrite + Unpin,
    R: AsyncRead + AsyncWrite + Unpin,
{
    let (mut reader, mut writer) = tokio::io::split(runtime);
    let (mut to_client, mut from_client) = client.split();
    let (frames, mut outgoing) = mpsc::channel::<Frame>(16);
    // Stream ids: 4n+1 for errors and 4n+3 for data of the n-th port.
    for (n, port) in ports.iter().enumerate() {
        for (kind, id) in [("error", 4 * n + 1), ("data", 4 * n + 3)] {
            let headers = vec![
                ("streamtype".into(), kind.into()),
                ("port".into(), port.to_string()),
                ("requestid".into(), n.to_string()),
            ];
            frames
                .send(Frame::SynStream {
                    id: id as u32,
                    headers,
                    fin: kind == "error",
                })
                .await?;
        }
    }
    let write = async {
        let (mut encoder, mut buffer) = (Encoder::default(), BytesMut::new());
        while let Some(frame) = outgoing.recv().await {
            encoder.encode(&frame, &mut buffer);
            writer.write_all_buf(&mut buffer).await?;
        }
        Result::Ok(())
    };
    let up = async {
        while let Some(message) = from_client.next().await {
            let mut data = match message? {
                Message::Binary(data) if !data.is_empty() => data,
                Message::Close(_) => break,
                _ => continue,
            };
            let n = u32::from(data[0]) / 2;
            if data[0] % 2 == 0 && (n as usize) < ports.len() {
                frames
                    .send(Frame::Data {
                        id: 4 * n + 3,
                        data: data.split_off(1),
                        fin: false,
                    })
                    .await?;
            }
        }
        Result::Ok(())
    };
    let down = async {
        for (n, port) in ports.iter().enumerate() {
            for channel in [2 * n as u8, 2 * n as u8 + 1] {
                let low = port.to_le_bytes();
                to_client
                    .send(Message::Binary(Bytes::copy_from_slice(&[
                        channel, low[0], low[1],
                    ])))
                    .await?;
            }
        }
        let mut decoder = Decoder::new();
        let mut open = ports.len();
        while open > 0 && reader.read_buf(decoder.buffer()).await? > 0 {
            while let Some(frame) = decoder.frame()? {
                match frame {
                    Frame::Ping { id } => frames.send(Frame::Ping { id }).await?,
                    Frame::GoAway => open = 0,
                    Frame::Data { id, data, fin } => {
                        let channel = (id / 4 * 2 + u32::from(id % 4 == 1)) as u8;
                        if !data.is_empty() {
                            let message = [&[channel][..], &data].concat();
                            to_client.send(Message::Binary(message.into())).await?;
                        }
                        open -= usize::from(fin && id % 4 == 3 && open > 0);
                    }
                    Frame::Reset { id, .. } if id % 4 == 3 && open > 0 => open -= 1,
                    _ => {}
                }
            }
        }
        to_client.send(Message::Close(None)).await?;
        Result::Ok(())
    };
    tokio::select! { done = write => done, done = up => done, done = down => done }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn channels_in_each_protocol() {
        for name in Channels::NAMES {
            let channels = Channels::of(name);
            let message = channels.message(STDOUT, b"hi");
            assert_eq!(message.is_text(), name.contains("base64"), "{name}");
            assert_eq!(
                channels.data(message).as_deref(),
                Some(&b"\x01hi"[..]),
                "{name}"
            );
        }
        let base64 = Channels::of("base64.channel.k8s.io");
        assert_eq!(base64.message(STDOUT, b"hi"), Message::Text("1aGk=".into()));
        for bad in ["", "9aGk=", "1!"] {
            assert_eq!(base64.data(Message::Text(bad.into())), None, "{bad}");
        }
    }

    #[test]
    fn the_oldest_protocols_tell_failures_only() {
        let old = Channels::of("channel.k8s.io");
        let success = br#"{"status":"Success"}"#.to_vec();
        let failure = br#"{"status":"Failure","message":"exit code 1"}"#.to_vec();
        assert_eq!(old.status(success.clone()), None);
        assert_eq!(old.status(failure), Some(b"exit code 1".to_vec()));
        assert_eq!(Channels::of("").status(success.clone()), None);
        let new = Channels::of("v4.channel.k8s.io");
        assert_eq!(new.status(success.clone()), Some(success));
    }
}
