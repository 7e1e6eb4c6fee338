//! The writes of one connection's streams, put together.
//!
//! An HTTP/2 connection flushes after each larger frame. With many watches on a connection, one write to the store makes as
//! many frames, and each would be a TLS record and a system call of its own. So a flush waits for one turn of the
//! scheduler: the streams that are to speak as well do so before it, and all goes out at once.
//!
//! A connection flushes many times in one turn, once for each larger frame, and nothing tells it where a turn ends. But it
//! reads before it writes, so the first read after a flush was put off begins the next turn.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// How many bytes wait at most: eight full TLS records.
const LIMIT: usize = 128 * 1024;

/// Whether what waits has been asked to go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Flush {
    NotAsked,
    /// In this turn of the connection, whose task has been woken for another.
    PutOff,
    /// In an earlier turn.
    Due,
}

/// Passes everything through unless it is told to put together. Then whoever uses it has to read and then flush whenever it
/// is woken, as an HTTP/2 connection does.
pub struct Coalesced<T> {
    inner: T,
    enabled: bool,
    buffer: Vec<u8>,
    /// How much of the buffer is written.
    written: usize,
    flush: Flush,
}

impl<T: AsyncWrite + Unpin> Coalesced<T> {
    pub fn new(inner: T, enabled: bool) -> Self {
        Self {
            inner,
            enabled,
            buffer: Vec::new(),
            written: 0,
            flush: Flush::NotAsked,
        }
    }

    fn drain(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.written < self.buffer.len() {
            let rest = &self.buffer[self.written..];
            let count = ready!(Pin::new(&mut self.inner).poll_write(context, rest))?;
            if count == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.written += count;
        }
        // Most connections are silent most of the time: they are to hold no memory then.
        self.buffer = Vec::new();
        self.written = 0;
        self.flush = Flush::NotAsked;
        Poll::Ready(Ok(()))
    }

    /// Makes room, and says how much there is.
    fn room(&mut self, context: &mut Context<'_>) -> Poll<io::Result<usize>> {
        if self.buffer.len() >= LIMIT {
            ready!(self.drain(context))?;
        }
        Poll::Ready(Ok(LIMIT - self.buffer.len()))
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Coalesced<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.flush == Flush::PutOff {
            self.flush = Flush::Due;
        }
        Pin::new(&mut self.inner).poll_read(context, into)
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Coalesced<T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        if !self.enabled {
            return Pin::new(&mut self.inner).poll_write(context, data);
        }
        let count = ready!(self.room(context))?.min(data.len());
        self.buffer.extend_from_slice(&data[..count]);
        Poll::Ready(Ok(count))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if !self.enabled {
            return Pin::new(&mut self.inner).poll_write_vectored(context, slices);
        }
        let mut room = ready!(self.room(context))?;
        let before = room;
        for slice in slices {
            let count = slice.len().min(room);
            self.buffer.extend_from_slice(&slice[..count]);
            room -= count;
        }
        Poll::Ready(Ok(before - room))
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.flush {
            Flush::NotAsked if !self.buffer.is_empty() => {
                self.flush = Flush::PutOff;
                // The task goes behind those that are ready now.
                context.waker().wake_by_ref();
                return Poll::Ready(Ok(()));
            }
            Flush::PutOff => return Poll::Ready(Ok(())),
            Flush::NotAsked | Flush::Due => {}
        }
        ready!(self.drain(context))?;
        Pin::new(&mut self.inner).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.drain(context))?;
        Pin::new(&mut self.inner).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    use super::*;

    async fn flush_once<T: AsyncWrite + Unpin>(io: &mut T) {
        poll_fn(|context| Pin::new(&mut *io).poll_flush(context))
            .await
            .unwrap();
    }

    #[tokio::test]
    async fn frames_go_out_together() {
        let (near, mut far) = duplex(1 << 20);
        let mut io = Coalesced::new(near, true);
        for frame in ["one ", "two ", "three"] {
            io.write_all(frame.as_bytes()).await.unwrap();
            flush_once(&mut io).await;
        }
        let mut read = [0; 64];
        let early = tokio::time::timeout(std::time::Duration::ZERO, far.read(&mut read)).await;
        assert!(early.is_err(), "put off");
        // The next turn begins with a read.
        let nothing = tokio::time::timeout(std::time::Duration::ZERO, io.read(&mut read)).await;
        assert!(nothing.is_err());
        flush_once(&mut io).await;
        let count = far.read(&mut read).await.unwrap();
        assert_eq!(&read[..count], b"one two three");
        assert_eq!(io.buffer.capacity(), 0);
    }

    #[tokio::test]
    async fn more_than_fits_arrives_whole_and_in_order() {
        let (near, mut far) = duplex(1000);
        let mut io = Coalesced::new(near, true);
        let sent: Vec<u8> = (0..3 * LIMIT + 17).map(|n| (n % 251) as u8).collect();
        let writing = async {
            io.write_all(&sent).await.unwrap();
            io.shutdown().await.unwrap();
        };
        let mut received = Vec::new();
        let (_, count) = tokio::join!(writing, far.read_to_end(&mut received));
        assert_eq!((count.unwrap(), received), (sent.len(), sent));
    }

    #[tokio::test]
    async fn nothing_waits_unless_asked() {
        let (near, mut far) = duplex(100);
        let mut io = Coalesced::new(near, false);
        io.write_all(b"at once").await.unwrap();
        let mut read = [0; 64];
        assert_eq!(far.read(&mut read).await.unwrap(), 7);
    }
}
