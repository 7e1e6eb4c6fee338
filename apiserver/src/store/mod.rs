//! The store that the flags name: opened for serving, or backed up, restored and moved by [`command`].

pub mod command;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use storage::Store;
use storage::{embedded, etcd};

/// Where objects are kept: flags that the server and the commands share.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct StoreFlags {
    /// URLs of an etcd cluster; without, objects are kept in a file in the data directory
    #[arg(long, value_delimiter = ',')]
    pub etcd_servers: Vec<String>,
    /// The authority that has signed etcd's certificates
    #[arg(long)]
    pub etcd_cafile: Option<PathBuf>,
    /// The client certificate for etcd
    #[arg(long)]
    pub etcd_certfile: Option<PathBuf>,
    /// The key of the client certificate for etcd
    #[arg(long)]
    pub etcd_keyfile: Option<PathBuf>,
    /// Where the embedded store keeps its file
    #[arg(long, default_value = "/var/lib/skiff")]
    pub data_dir: PathBuf,
}

impl StoreFlags {
    #[must_use]
    pub fn is_embedded(&self) -> bool {
        self.etcd_servers.is_empty()
    }

    /// The file of the embedded store.
    #[must_use]
    pub fn file(&self) -> PathBuf {
        self.data_dir.join("store.redb")
    }

    /// Opens the store. `history` is how long it keeps what was replaced; zero leaves that to others.
    pub async fn open(&self, history: Duration) -> Result<Arc<dyn Store>> {
        if self.is_embedded() {
            let path = self.file();
            let options = embedded::Options {
                history: Some(history)
                    .filter(|h| !h.is_zero())
                    .unwrap_or(Duration::MAX),
                ..embedded::Options::default()
            };
            let engine = embedded::Embedded::open(&path, options)
                .with_context(|| format!("opening the store {}", path.display()))?;
            return Ok(Arc::new(engine));
        }
        let options = etcd::Options {
            history: (!history.is_zero()).then_some(history),
            ..self.etcd()?
        };
        let engine = etcd::Etcd::connect(&self.etcd_servers, options)
            .await
            .with_context(|| format!("connecting to etcd at {}", self.etcd_servers.join(", ")))?;
        Ok(Arc::new(engine))
    }

    fn etcd(&self) -> Result<etcd::Options> {
        let read = |path: &PathBuf| read(path);
        let ca = self.etcd_cafile.as_ref().map(read).transpose()?;
        let identity = match (&self.etcd_certfile, &self.etcd_keyfile) {
            (Some(certificate), Some(key)) => Some((read(certificate)?, read(key)?)),
            _ => None,
        };
        let tls = (ca.is_some() || identity.is_some()).then_some(etcd::Tls { ca, identity });
        Ok(etcd::Options {
            tls,
            ..etcd::Options::default()
        })
    }
}

fn read(path: &Path) -> Result<Vec<u8>> {
    std::fs::read(path).with_context(|| format!("reading {}", path.display()))
}
