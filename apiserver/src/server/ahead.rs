//! Large bodies read off a socket in large pieces.
//!
//! TLS asks for four kilobytes at a time, which is a system call for a quarter of a record. Most requests are smaller than
//! that; who sends more has more waiting, and is read ahead.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_util::io::poll_read_buf;

/// How much is read at once when there is more than was asked for: four full TLS records.
const AHEAD: usize = 64 * 1024;

/// Holds memory only while there is something in it.
pub struct ReadAhead<T> {
    inner: T,
    buffer: Vec<u8>,
    /// How much of the buffer has been taken.
    taken: usize,
    /// The last read gave all that was asked for.
    more: bool,
}

impl<T> ReadAhead<T> {
    pub fn new(inner: T) -> Self {
        Self {
            inner,
            buffer: Vec::new(),
            taken: 0,
            more: false,
        }
    }

    fn take(&mut self, into: &mut ReadBuf<'_>) {
        let rest = &self.buffer[self.taken..];
        let count = rest.len().min(into.remaining());
        into.put_slice(&rest[..count]);
        self.taken += count;
        if self.taken == self.buffer.len() {
            self.buffer = Vec::new();
            self.taken = 0;
        }
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for ReadAhead<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.buffer.is_empty() {
            if !this.more || into.remaining() >= AHEAD {
                let before = into.remaining();
                ready!(Pin::new(&mut this.inner).poll_read(context, into))?;
                this.more = before > 0 && into.remaining() == 0;
                return Poll::Ready(Ok(()));
            }
            let mut buffer = Vec::with_capacity(AHEAD);
            // When nothing is there, the space goes back until there is.
            let read = poll_read_buf(Pin::new(&mut this.inner), context, &mut buffer);
            if read.is_pending() {
                this.more = false;
            }
            let count = ready!(read)?;
            this.more = count > into.remaining();
            this.buffer = buffer;
        }
        this.take(into);
        Poll::Ready(Ok(()))
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for ReadAhead<T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(context, data)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    use super::*;

    #[tokio::test]
    async fn all_arrives_in_order_and_nothing_is_kept() {
        let sent: Vec<u8> = (0..5 * AHEAD + 17).map(|n| (n % 251) as u8).collect();
        for size in [1000, AHEAD, 3 * AHEAD] {
            let (near, mut far) = duplex(size);
            let mut io = ReadAhead::new(near);
            let writing = async {
                for piece in sent.chunks(size / 2 + 1) {
                    far.write_all(piece).await.unwrap();
                    tokio::task::yield_now().await;
                }
                drop(far);
            };
            let reading = async {
                let (mut received, mut piece) = (Vec::new(), [0; 4096]);
                loop {
                    let count = io.read(&mut piece).await.unwrap();
                    received.extend_from_slice(&piece[..count]);
                    if count == 0 {
                        return received;
                    }
                }
            };
            let (received, ()) = tokio::join!(reading, writing);
            assert!(received == sent, "{size}");
            assert_eq!(io.buffer.capacity(), 0);
        }
    }

    #[tokio::test]
    async fn what_is_small_is_read_as_it_is() {
        let (near, mut far) = duplex(100);
        let mut io = ReadAhead::new(near);
        for _ in 0..2 {
            far.write_all(b"small").await.unwrap();
            let mut piece = [0; 64];
            assert_eq!(io.read(&mut piece).await.unwrap(), 5);
            assert!(!io.more && io.buffer.capacity() == 0);
        }
        io.write_all(b"back").await.unwrap();
        let mut piece = [0; 64];
        assert_eq!(far.read(&mut piece).await.unwrap(), 4);
    }
}
