//! The part of SPDY/3.1 that container runtimes' streaming servers speak, without I/O:
//! bytes in, frames out, and the other way round.
//!
//! Header blocks share one zlib stream per direction, begun with a dictionary that the
//! protocol fixes. Reading needs the dictionary: the raw inflater is fed with it first, as a
//! stored block. Writing does not: blocks are stored uncompressed, in a stream without one.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use flate2::{Decompress, FlushDecompress, Status};

#[derive(Debug, thiserror::Error, PartialEq)]
pub enum Error {
    #[error("a header block cannot be read")]
    Headers,
    #[error("a frame is malformed")]
    Malformed,
}

pub type Headers = Vec<(String, String)>;

#[derive(Clone, Debug, PartialEq)]
pub enum Frame {
    SynStream {
        id: u32,
        headers: Headers,
        fin: bool,
    },
    SynReply {
        id: u32,
        headers: Headers,
        fin: bool,
    },
    Reset {
        id: u32,
        status: u32,
    },
    Ping {
        id: u32,
    },
    GoAway,
    Data {
        id: u32,
        data: Bytes,
        fin: bool,
    },
    /// Settings, window updates, more headers: nothing that is needed here.
    Other,
}

const FIN: u8 = 1;
/// No header block of a streaming server comes near this.
const MAX_HEADERS: usize = 64 << 10;

pub struct Decoder {
    buffer: BytesMut,
    inflate: Decompress,
    begun: bool,
}

impl Default for Decoder {
    fn default() -> Self {
        Self::new()
    }
}

impl Decoder {
    pub fn new() -> Self {
        Decoder {
            buffer: BytesMut::new(),
            inflate: Decompress::new(false),
            begun: false,
        }
    }

    pub fn feed(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// Where a reader puts what it receives.
    pub fn buffer(&mut self) -> &mut BytesMut {
        &mut self.buffer
    }

    /// The next whole frame, if it has arrived.
    pub fn frame(&mut self) -> Result<Option<Frame>, Error> {
        let Some(head) = self.buffer.get(..8) else {
            return Ok(None);
        };
        let (word, flags) = (
            u32::from_be_bytes([head[0], head[1], head[2], head[3]]),
            head[4],
        );
        let length = u32::from_be_bytes([0, head[5], head[6], head[7]]) as usize;
        if self.buffer.len() < 8 + length {
            return Ok(None);
        }
        self.buffer.advance(8);
        let mut body = self.buffer.split_to(length).freeze();
        if word & 0x8000_0000 == 0 {
            return Ok(Some(Frame::Data {
                id: word,
                data: body,
                fin: flags & FIN != 0,
            }));
        }
        let number = |body: &mut Bytes| {
            if body.len() >= 4 {
                Ok(body.get_u32() & 0x7fff_ffff)
            } else {
                Err(Error::Malformed)
            }
        };
        Ok(Some(match word & 0xffff {
            1 => {
                let id = number(&mut body)?;
                if body.len() < 6 {
                    return Err(Error::Malformed);
                }
                body.advance(6);
                Frame::SynStream {
                    id,
                    headers: self.headers(&body)?,
                    fin: flags & FIN != 0,
                }
            }
            2 => {
                let id = number(&mut body)?;
                Frame::SynReply {
                    id,
                    headers: self.headers(&body)?,
                    fin: flags & FIN != 0,
                }
            }
            3 => Frame::Reset {
                id: number(&mut body)?,
                status: number(&mut body)?,
            },
            6 => Frame::Ping {
                id: number(&mut body)?,
            },
            7 => Frame::GoAway,
            8 => {
                number(&mut body)?;
                // The block must be read even if nobody wants it: the compression goes on from it.
                self.headers(&body)?;
                Frame::Other
            }
            _ => Frame::Other,
        }))
    }

    fn headers(&mut self, block: &[u8]) -> Result<Headers, Error> {
        let mut block = block;
        if !self.begun {
            self.begun = true;
            let (&[_, flags], rest) = block.split_first_chunk::<2>().ok_or(Error::Headers)?;
            block = rest;
            if flags & 0x20 != 0 {
                block = block.get(4..).ok_or(Error::Headers)?;
                let mut stored = BytesMut::new();
                store(&mut stored, &dictionary());
                self.inflate(&stored)?;
            }
        }
        let plain = self.inflate(block)?;
        parse_headers(&plain)
    }

    fn inflate(&mut self, mut input: &[u8]) -> Result<Vec<u8>, Error> {
        let mut out = Vec::with_capacity(4096);
        loop {
            let before = (self.inflate.total_in(), self.inflate.total_out());
            let status = self
                .inflate
                .decompress_vec(input, &mut out, FlushDecompress::Sync)
                .map_err(|_| Error::Headers)?;
            let used =
                usize::try_from(self.inflate.total_in() - before.0).map_err(|_| Error::Headers)?;
            input = &input[used..];
            let idle = used == 0 && self.inflate.total_out() == before.1;
            if out.len() > MAX_HEADERS || status == Status::StreamEnd {
                return Err(Error::Headers);
            }
            if out.len() == out.capacity() {
                out.reserve(4096);
            } else if input.is_empty() || idle {
                return if input.is_empty() {
                    Ok(out)
                } else {
                    Err(Error::Headers)
                };
            }
        }
    }
}

fn parse_headers(mut plain: &[u8]) -> Result<Headers, Error> {
    let number = |plain: &mut &[u8]| {
        if plain.len() >= 4 {
            Ok(plain.get_u32() as usize)
        } else {
            Err(Error::Headers)
        }
    };
    fn text(plain: &mut &[u8], length: usize) -> Result<String, Error> {
        let (head, rest) = plain.split_at_checked(length).ok_or(Error::Headers)?;
        *plain = rest;
        String::from_utf8(head.to_vec()).map_err(|_| Error::Headers)
    }
    let count = number(&mut plain)?;
    let mut headers = Headers::new();
    for _ in 0..count {
        let length = number(&mut plain)?;
        let name = text(&mut plain, length)?;
        let length = number(&mut plain)?;
        headers.push((name, text(&mut plain, length)?));
    }
    Ok(headers)
}

/// A stored deflate block; ends on a byte boundary, so the next one can follow.
fn store(out: &mut BytesMut, data: &[u8]) {
    let length = data.len() as u16;
    out.put_u8(0);
    out.put_u16_le(length);
    out.put_u16_le(!length);
    out.put_slice(data);
}

#[derive(Debug, Default)]
pub struct Encoder {
    begun: bool,
}

impl Encoder {
    pub fn encode(&mut self, frame: &Frame, out: &mut BytesMut) {
        match frame {
            Frame::SynStream { id, headers, fin } => {
                let block = self.block(headers);
                control(out, 1, u8::from(*fin), 10 + block.len());
                out.put_u32(*id);
                out.put_u32(0);
                out.put_u16(0);
                out.put_slice(&block);
            }
            Frame::SynReply { id, headers, fin } => {
                let block = self.block(headers);
                control(out, 2, u8::from(*fin), 4 + block.len());
                out.put_u32(*id);
                out.put_slice(&block);
            }
            Frame::Reset { id, status } => {
                control(out, 3, 0, 8);
                out.put_u32(*id);
                out.put_u32(*status);
            }
            Frame::Ping { id } => {
                control(out, 6, 0, 4);
                out.put_u32(*id);
            }
            Frame::GoAway => {
                control(out, 7, 0, 8);
                out.put_u64(0);
            }
            Frame::Data { id, data, fin } => {
                out.put_u32(*id);
                out.put_u32(u32::from(*fin) << 24 | (data.len() as u32 & 0x00ff_ffff));
                out.put_slice(data);
            }
            Frame::Other => {}
        }
    }

    fn block(&mut self, headers: &Headers) -> BytesMut {
        let mut plain = BytesMut::new();
        plain.put_u32(headers.len() as u32);
        for (name, value) in headers {
            plain.put_u32(name.len() as u32);
            plain.put_slice(name.as_bytes());
            plain.put_u32(value.len() as u32);
            plain.put_slice(value.as_bytes());
        }
        let mut block = BytesMut::new();
        if !std::mem::replace(&mut self.begun, true) {
            block.put_slice(&[0x78, 0x01]);
        }
        store(&mut block, &plain);
        // An empty block is a flush: Go's reader hands out nothing before it has seen one.
        store(&mut block, &[]);
        block
    }
}

fn control(out: &mut BytesMut, kind: u16, flags: u8, length: usize) {
    out.put_u16(0x8003);
    out.put_u16(kind);
    out.put_u32(u32::from(flags) << 24 | (length as u32 & 0x00ff_ffff));
}

/// The words that the protocol's dictionary begins with, each behind its length; `_` stands for a blank.
const WORDS: &str = "\
    options head post put delete trace accept accept-charset accept-encoding accept-language accept-ranges age \
    allow authorization cache-control connection content-base content-encoding content-language content-length \
    content-location content-md5 content-range content-type date etag expect expires from host if-match \
    if-modified-since if-none-match if-range if-unmodified-since last-modified location max-forwards pragma \
    proxy-authenticate proxy-authorization range referer retry-after server te trailer transfer-encoding upgrade \
    user-agent vary via warning www-authenticate method get status 200_OK version HTTP/1.1 url public set-cookie \
    keep-alive origin \
";
const TAIL: &str = "\
    100101201202205206300302303304305306307402405406407408409410411412413414415416417502504505203 Non-Authorita\
    tive Information204 No Content301 Moved Permanently400 Bad Request401 Unauthorized403 Forbidden404 Not Foun\
    d500 Internal Server Error501 Not Implemented503 Service UnavailableJan Feb Mar Apr May Jun Jul Aug Sept Oc\
    t Nov Dec 00:00:00 Mon, Tue, Wed, Thu, Fri, Sat, Sun, GMTchunked,text/html,image/png,image/jpg,image/gif,ap\
    plication/xml,application/xhtml+xml,text/plain,text/javascript,publicprivatemax-age=gzip,deflate,sdchcharse\
    t=utf-8charset=iso-8859-1,utf-,*,enq=0.\
";

fn dictionary() -> Vec<u8> {
    let mut all = Vec::with_capacity(1423);
    for word in WORDS.split_whitespace() {
        all.put_u32(word.len() as u32);
        all.extend(word.bytes().map(|b| if b == b'_' { b' ' } else { b }));
    }
    all.extend_from_slice(TAIL.as_bytes());
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frames() -> Vec<Frame> {
        let headers = |v: &str| vec![("streamtype".to_string(), v.to_string())];
        vec![
            Frame::SynStream {
                id: 1,
                headers: headers("error"),
                fin: false,
            },
            Frame::SynStream {
                id: 3,
                headers: headers("stdin"),
                fin: true,
            },
            Frame::SynReply {
                id: 1,
                headers: Vec::new(),
                fin: false,
            },
            Frame::Data {
                id: 3,
                data: Bytes::from_static(b"hello"),
                fin: true,
            },
            Frame::Ping { id: 7 },
            Frame::Reset { id: 3, status: 5 },
            Frame::GoAway,
        ]
    }

    #[test]
    fn frames_survive_any_split() {
        let (mut encoder, mut wire) = (Encoder::default(), BytesMut::new());
        for f in frames() {
            encoder.encode(&f, &mut wire);
        }
        for step in [1, 3, wire.len()] {
            let (mut decoder, mut got) = (Decoder::new(), Vec::new());
            for part in wire.chunks(step) {
                decoder.feed(part);
                while let Some(f) = decoder.frame().unwrap() {
                    got.push(f);
                }
            }
            assert_eq!(got, frames());
        }
    }

    #[test]
    fn compressed_headers_with_the_dictionary() {
        assert_eq!(dictionary().len(), 1423);
        // Two blocks of one stream, as a zlib writer with the dictionary makes them.
        let blocks: [&[u8]; 2] = [
            b"\x78\xf9\xe3\xc6\xa7\xc2\x02\xe5\x0e\x2c\x85\x09\x17\xc2\x15\xe0\x54\x58\x52\x94\x9a\x98\x0b\x95\x03\xa6\xe7\x94\xfc\xd2\x12\x00\x00\x00\x00\xff\xff",
            b"\x02\xb2\x18\xb1\xca\xa5\x16\x15\x01\x00\x00\x00\xff\xff",
        ];
        let pair = |k: &str, v: &str| (k.to_string(), v.to_string());
        let want = [
            vec![
                pair("content-type", "text/plain"),
                pair("streamtype", "stdout"),
            ],
            vec![pair("streamtype", "stderr")],
        ];
        let mut decoder = Decoder::new();
        for (block, headers) in blocks.into_iter().zip(want) {
            let mut wire = BytesMut::new();
            control(&mut wire, 2, 0, 4 + block.len());
            wire.put_u32(9);
            wire.put_slice(block);
            decoder.feed(&wire);
            assert_eq!(
                decoder.frame(),
                Ok(Some(Frame::SynReply {
                    id: 9,
                    headers,
                    fin: false
                }))
            );
        }
    }

    #[test]
    fn nonsense_is_an_error_not_a_panic() {
        for bad in [
            &b"\x80\x03\x00\x01\x00\x00\x00\x04\x00\x00\x00\x01"[..],
            b"\x80\x03\x00\x02\x00\x00\x00\x08\x00\x00\x00\x01\xff\xff\xff\xff",
        ] {
            let mut decoder = Decoder::new();
            decoder.feed(bad);
            assert!(decoder.frame().is_err());
        }
    }
}
