//! The measurements, one function a row (or a few rows that share their preparation).

mod api;
mod cluster;
mod scheduling;
mod store;
mod validation;
mod watchers;

use std::future::Future;
use std::path::PathBuf;
use std::pin::Pin;
use std::time::Duration;

use anyhow::Result;

use crate::plane::{Make, Plane, Store};
use crate::report::{Figure, Unit};

/// What a run measures with.
#[derive(Debug, Clone)]
pub struct Setting {
    /// Where Skiff's programs are.
    pub bin_dir: PathBuf,
    /// Kubernetes' programs, to be measured in the same run.
    pub peer: Option<Make>,
    /// How long each rate is measured.
    pub duration: Duration,
}

type Running<'a> = Pin<Box<dyn Future<Output = Result<Vec<Figure>>> + 'a>>;

/// A measurement by the name that the command line knows it by.
pub struct Row {
    pub name: &'static str,
    pub about: &'static str,
    pub run: for<'a> fn(&'a Setting) -> Running<'a>,
}

pub const ROWS: &[Row] = &[
    Row {
        name: "start",
        about: "API server: from its start to /readyz",
        run: |s| Box::pin(api::start(s)),
    },
    Row {
        name: "memory",
        about: "API server and control plane: memory, empty cluster",
        run: |s| Box::pin(api::memory_empty(s)),
    },
    Row {
        name: "memory-large",
        about: "API server: memory with 1,000 nodes and 10,000 pods",
        run: |s| Box::pin(api::memory_large(s)),
    },
    Row {
        name: "get",
        about: "GET of one object, 16 connections",
        run: |s| Box::pin(api::get(s)),
    },
    Row {
        name: "list",
        about: "LIST of 500 pods, 8 connections",
        run: |s| Box::pin(api::list(s)),
    },
    Row {
        name: "list-large",
        about: "API server: extra memory while 50,000 pods are listed",
        run: |s| Box::pin(api::list_large(s)),
    },
    Row {
        name: "create",
        about: "create, 32 connections, on both stores",
        run: |s| Box::pin(api::create(s)),
    },
    Row {
        name: "strict",
        about: "create of an object of 1 MB with strict field validation, dry run",
        run: |s| Box::pin(validation::strict(s)),
    },
    Row {
        name: "cel",
        about: "CEL rules of custom resources evaluated a second",
        run: |s| Box::pin(validation::cel(s)),
    },
    Row {
        name: "schedule",
        about: "scheduling of 5,000 pods on 1,000 nodes",
        run: |s| Box::pin(scheduling::schedule(s)),
    },
    Row {
        name: "watchers",
        about: "10,000 watchers with 100 writes a second: latency and memory",
        run: |s| Box::pin(watchers::watchers(s)),
    },
    Row {
        name: "cluster",
        about: "a local cluster of three nodes: creation, and processor time when idle",
        run: |s| Box::pin(cluster::cluster(s)),
    },
    Row {
        name: "disk",
        about: "embedded store: size after a day's writes, longest wait of a client",
        run: |s| Box::pin(store::churn(s)),
    },
];

impl Setting {
    fn ours(&self) -> Make {
        Make::Skiff(self.bin_dir.clone())
    }

    /// The same measurement on Skiff with `store`, and on the peer with etcd where there is a peer.
    async fn compare(
        &self,
        store: Store,
        (what, unit, budget): (&str, Unit, &'static str),
        measure: impl AsyncFn(Plane) -> Result<f64>,
    ) -> Result<Figure> {
        let ours = measure(Plane::start(&self.ours(), store).await?).await?;
        let peer = match &self.peer {
            Some(peer) => Some(measure(Plane::start(peer, Store::Etcd).await?).await?),
            None => None,
        };
        Ok(Figure {
            what: what.to_owned(),
            unit,
            ours,
            peer,
            budget,
        })
    }
}
