//! Many clients' reads, writes and watches, recorded while servers and members of the store are killed, and checked
//! against what the API promises: nothing acknowledged is lost, nothing refused happens, a read is never staler than the
//! moment it began, and every watcher hears of every change once and in order.
//!
//! [`world`] runs the programs and breaks them; [`clients`] act and record; [`model`] checks the record. Each run is made
//! from a seed, which a failure names: `SKIFF_SEED=N` repeats that one, `SKIFF_RUNS=N` makes so many.

mod clients;
mod model;
mod world;

use std::time::Duration;

use anyhow::{Context, Result};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use world::{Fault, World};

/// How long clients go on while things break.
const TROUBLE: Duration = Duration::from_secs(8);

fn variable(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

fn seeds() -> Vec<u64> {
    match variable("SKIFF_SEED") {
        Some(seed) => vec![seed],
        None => {
            let first: u32 = rand::random();
            (0..variable("SKIFF_RUNS").unwrap_or(2))
                .map(|n| u64::from(first) + n)
                .collect()
        }
    }
}

async fn run(seed: u64, mut world: World) -> Result<()> {
    let mut random = StdRng::seed_from_u64(seed);
    let record = clients::Record::default();
    let clients = clients::start(&world, &record, seed);
    let end = tokio::time::Instant::now() + TROUBLE;
    while tokio::time::Instant::now() < end {
        tokio::time::sleep(Duration::from_millis(random.random_range(200..1200))).await;
        let fault = Fault::any(&world, &mut random);
        world.inflict(fault).await?;
    }
    world.heal().await?;
    clients.finish().await?;
    let history = record.take();
    let kept = clients::list(&world).await?;
    model::check(&history, &kept)
}

fn all(make: impl AsyncFn() -> Result<World>) -> Result<()> {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    for seed in seeds() {
        let story = async { run(seed, make().await?).await };
        runtime
            .block_on(story)
            .with_context(|| format!("SKIFF_SEED={seed}"))?;
    }
    Ok(())
}

#[test]
fn one_server_on_its_embedded_store() -> Result<()> {
    all(World::embedded)
}

#[test]
fn three_servers_on_an_etcd_of_three_members() -> Result<()> {
    all(World::etcd)
}
