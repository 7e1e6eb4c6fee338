//! The bodies of requests and responses.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use apimachinery::status::{Result, Status};
use bytes::Bytes;
use futures::stream::BoxStream;
use http::Response;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::body::{Body as _, Frame, Incoming, SizeHint};
use tokio::runtime::Handle;

pub type Error = Box<dyn std::error::Error + Send + Sync>;

/// Kubernetes' limit for a request body.
pub const MAX_BODY: usize = 3 * 1024 * 1024;

/// What a response carries.
pub enum Body {
    Whole(Option<Bytes>),
    /// Chunks as they come: watches and long lists.
    Stream(BoxStream<'static, Bytes>),
    /// What a kubelet or backend answers, passed through.
    Proxied(Incoming),
}

impl Body {
    #[must_use]
    pub fn empty() -> Self {
        Self::Whole(None)
    }
}

impl From<Bytes> for Body {
    fn from(bytes: Bytes) -> Self {
        Self::Whole((!bytes.is_empty()).then_some(bytes))
    }
}

impl From<Vec<u8>> for Body {
    fn from(bytes: Vec<u8>) -> Self {
        Bytes::from(bytes).into()
    }
}

impl From<&'static str> for Body {
    fn from(text: &'static str) -> Self {
        Bytes::from_static(text.as_bytes()).into()
    }
}

impl From<String> for Body {
    fn from(text: String) -> Self {
        text.into_bytes().into()
    }
}

impl hyper::body::Body for Body {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<std::result::Result<Frame<Bytes>, Error>>> {
        match self.get_mut() {
            Self::Whole(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Self::Stream(stream) => stream
                .as_mut()
                .poll_next(context)
                .map(|item| item.map(|bytes| Ok(Frame::data(bytes)))),
            Self::Proxied(body) => Pin::new(body)
                .poll_frame(context)
                .map(|item| item.map(|frame| frame.map_err(Into::into))),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Whole(bytes) => bytes.is_none(),
            Self::Stream(_) => false,
            Self::Proxied(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole(bytes) => {
                SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64))
            }
            Self::Stream(_) => SizeHint::default(),
            Self::Proxied(body) => body.size_hint(),
        }
    }
}

pub type Reply = Response<Body>;

/// How much of a body that nobody has read is taken off the wire all the same, and for how long: to close on a client that
/// still sends would take the answer away from it. Go's server stops at 256 KiB and then waits for half a second, which
/// helps only clients that look for an answer while they send; many do not.
const DRAINED: usize = 64 * 1024 * 1024;
const DRAIN_TIME: Duration = Duration::from_secs(5);

/// The body of a request. What is left of it when it is dropped is read and thrown away, within bounds.
pub struct Received(Option<Incoming>);

impl From<Incoming> for Received {
    fn from(body: Incoming) -> Self {
        Self(Some(body))
    }
}

impl hyper::body::Body for Received {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<hyper::Result<Frame<Bytes>>>> {
        match &mut self.0 {
            Some(body) => Pin::new(body).poll_frame(context),
            None => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.0.as_ref().is_none_or(hyper::body::Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.0
            .as_ref()
            .map_or_else(SizeHint::default, hyper::body::Body::size_hint)
    }
}

impl Drop for Received {
    fn drop(&mut self) {
        let Some(mut body) = self.0.take() else {
            return;
        };
        let Ok(runtime) = Handle::try_current() else {
            return;
        };
        if body.is_end_stream() {
            return;
        }
        runtime.spawn(tokio::time::timeout(DRAIN_TIME, async move {
            let mut drained = 0;
            while drained < DRAINED
                && let Some(Ok(frame)) = body.frame().await
            {
                drained += frame.data_ref().map_or(0, Bytes::len);
            }
        }));
    }
}

/// Reads a whole request body, within the limit.
pub async fn read(body: Received) -> Result<Bytes> {
    match Limited::new(body, MAX_BODY).collect().await {
        Ok(collected) => {
            let bytes = collected.to_bytes();
            crate::audit::note_body(&bytes);
            Ok(bytes)
        }
        Err(error) if error.is::<LengthLimitError>() => {
            Err(Status::too_large(format!("limit is {MAX_BODY}")))
        }
        Err(error) => Err(Status::bad_request(format!(
            "unable to read the request body: {error}"
        ))),
    }
}
