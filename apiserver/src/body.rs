//! The bodies of requests and responses.

use std::pin::Pin;
use std::task::{Context, Poll};

use apimachinery::status::{Result, Status};
use bytes::Bytes;
use futures::stream::BoxStream;
use http::Response;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::body::{Frame, Incoming, SizeHint};

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

/// Reads a whole request body, within the limit.
pub async fn read(body: Incoming) -> Result<Bytes> {
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
