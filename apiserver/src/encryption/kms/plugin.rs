//! The KMS plugin's side of things: its gRPC service `v2.KeyManagementService` on a Unix socket.

use std::collections::BTreeMap;
use std::sync::OnceLock;
use std::time::Duration;

use http::uri::PathAndQuery;
use hyper_util::rt::TokioIo;
use prost::Message;
use tokio::net::UnixStream;
use tonic::Request;
use tonic::client::Grpc;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic_prost::ProstCodec;

use crate::outbound::chain;

#[derive(Clone, PartialEq, Message)]
pub struct StatusRequest {}

#[derive(Clone, PartialEq, Message)]
pub struct StatusResponse {
    #[prost(string, tag = "1")]
    pub version: String,
    /// Anything but `ok` is a failure.
    #[prost(string, tag = "2")]
    pub healthz: String,
    #[prost(string, tag = "3")]
    pub key_id: String,
}

#[derive(Clone, PartialEq, Message)]
pub struct EncryptRequest {
    #[prost(bytes = "vec", tag = "1")]
    pub plaintext: Vec<u8>,
    #[prost(string, tag = "2")]
    pub uid: String,
}

#[derive(Clone, PartialEq, Message)]
pub struct EncryptResponse {
    #[prost(bytes = "vec", tag = "1")]
    pub ciphertext: Vec<u8>,
    #[prost(string, tag = "2")]
    pub key_id: String,
    #[prost(btree_map = "string, bytes", tag = "3")]
    pub annotations: BTreeMap<String, Vec<u8>>,
}

#[derive(Clone, PartialEq, Message)]
pub struct DecryptRequest {
    #[prost(bytes = "vec", tag = "1")]
    pub ciphertext: Vec<u8>,
    #[prost(string, tag = "2")]
    pub uid: String,
    #[prost(string, tag = "3")]
    pub key_id: String,
    #[prost(btree_map = "string, bytes", tag = "4")]
    pub annotations: BTreeMap<String, Vec<u8>>,
}

#[derive(Clone, PartialEq, Message)]
pub struct DecryptResponse {
    #[prost(bytes = "vec", tag = "1")]
    pub plaintext: Vec<u8>,
}

/// A plugin, connected to when it is first asked and again whenever it has been away.
pub struct Plugin {
    /// Of the socket; an abstract one begins with a zero byte.
    path: String,
    timeout: Duration,
    channel: OnceLock<Channel>,
}

impl Plugin {
    #[must_use]
    pub fn new(path: String, timeout: Duration) -> Self {
        Self {
            path,
            timeout,
            channel: OnceLock::new(),
        }
    }

    pub async fn status(&self) -> Result<StatusResponse, String> {
        self.call("/v2.KeyManagementService/Status", StatusRequest {})
            .await
    }

    pub async fn encrypt(
        &self,
        plaintext: Vec<u8>,
        uid: String,
    ) -> Result<EncryptResponse, String> {
        let request = EncryptRequest { plaintext, uid };
        self.call("/v2.KeyManagementService/Encrypt", request).await
    }

    pub async fn decrypt(&self, request: DecryptRequest) -> Result<DecryptResponse, String> {
        self.call("/v2.KeyManagementService/Decrypt", request).await
    }

    fn channel(&self) -> Channel {
        let connect = || {
            let path = self.path.clone();
            let connector = tower::service_fn(move |_: Uri| {
                let path = path.clone();
                async move { Ok::<_, std::io::Error>(TokioIo::new(UnixStream::connect(path).await?)) }
            });
            Endpoint::from_static("http://localhost").connect_with_connector_lazy(connector)
        };
        self.channel.get_or_init(connect).clone()
    }

    async fn call<M, R>(&self, method: &'static str, message: M) -> Result<R, String>
    where
        M: Message + Default + 'static,
        R: Message + Default + 'static,
    {
        let mut client = Grpc::new(self.channel());
        let call = async {
            client.ready().await.map_err(|error| chain(&error))?;
            let path = PathAndQuery::from_static(method);
            let codec = ProstCodec::<M, R>::default();
            let answer = client.unary(Request::new(message), path, codec).await;
            answer.map(tonic::Response::into_inner).map_err(|status| {
                format!(
                    "rpc error: code = {:?} desc = {}",
                    status.code(),
                    status.message()
                )
            })
        };
        tokio::time::timeout(self.timeout, call)
            .await
            .unwrap_or_else(|_| Err("rpc error: code = DeadlineExceeded".to_owned()))
    }
}
