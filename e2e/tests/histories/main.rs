//! Many clients' reads, writes and watches, recorded while servers and members of the store are killed, paused and cut
//! off and history is compacted, and checked against what the API promises: nothing acknowledged is lost, nothing refused
//! happens, a read is never staler than the moment it began, and every watcher hears of every change once and in order.
//!
//! [`world`] runs the programs, [`faults`] chooses how they are broken and [`link`] is a network that can be cut;
//! [`clients`] act and record; [`model`] checks the record.
//!
//! Each run is made from a seed, which a failure names. `SKIFF_SEED=N` repeats that one, `SKIFF_RUNS=N` makes so many,
//! and `SKIFF_TROUBLE=MS` sets how long things break in each. Some runs share their servers, as a restart of everything
//! would take longer than the run.

mod clients;
mod faults;
mod link;
mod model;
mod world;

use std::time::Duration;

use anyhow::{Context, Result};
use clients::Place;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use world::World;

/// How many runs share their servers and the store in it.
const SHARED_BY: usize = 20;

/// How many writes have to be acknowledged before a run may end, and when it ends in any case.
const ENOUGH: usize = 40;
const LONGEST: Duration = Duration::from_secs(60);

fn variable(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

fn seeds() -> Vec<u64> {
    match variable("SKIFF_SEED") {
        Some(seed) => vec![seed],
        None => {
            let first: u32 = rand::random();
            (0..variable("SKIFF_RUNS").unwrap_or(5))
                .map(|n| u64::from(first) + n)
                .collect()
        }
    }
}

/// How long clients go on while things break, and how long it takes from one fault to the next at most.
#[derive(Clone, Copy)]
struct Pace {
    trouble: Duration,
    between: u64,
}

async fn run(seed: u64, world: &mut World, pace: Pace) -> Result<model::Counts> {
    let mut random = StdRng::seed_from_u64(seed);
    let record = clients::Record::default();
    let place = Place::make(world, seed).await?;
    let clients = clients::start(world, place, &record, seed);
    let trouble = variable("SKIFF_TROUBLE").map_or(pace.trouble, Duration::from_millis);
    let start = tokio::time::Instant::now();
    // On a busy machine it takes longer until there is something to check.
    let done = || {
        let longest = start.elapsed() > LONGEST;
        start.elapsed() > trouble && (record.acknowledged() >= ENOUGH || longest)
    };
    while !done() {
        let wait = random.random_range(pace.between / 6..pace.between);
        tokio::time::sleep(Duration::from_millis(wait)).await;
        let fault = world.condition().worsen(&mut random);
        world
            .inflict(fault)
            .await
            .with_context(|| format!("{fault:?}"))?;
    }
    world.heal().await?;
    let kept = clients.finish(world).await?;
    model::check(&record.take(), &kept)
}

fn all(make: impl AsyncFn() -> Result<World>, pace: Pace) -> Result<()> {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    let started = std::time::Instant::now();
    let (mut clean, mut total) = (0, model::Counts::default());
    for seeds in seeds().chunks(SHARED_BY) {
        runtime.block_on(async {
            let mut world = make().await?;
            for seed in seeds {
                let counts = run(*seed, &mut world, pace).await;
                total += counts.with_context(|| {
                    format!(
                        "SKIFF_SEED={seed}, after {clean} clean runs\n{}",
                        world.logs()
                    )
                })?;
                clean += 1;
            }
            anyhow::Ok(())
        })?;
        println!("{clean} runs clean after {:?}: {total}", started.elapsed());
    }
    Ok(())
}

#[test]
fn one_server_on_its_embedded_store() -> Result<()> {
    let pace = Pace {
        trouble: Duration::from_millis(1200),
        between: 300,
    };
    all(World::embedded, pace)
}

#[test]
fn three_servers_on_an_etcd_of_three_members() -> Result<()> {
    let pace = Pace {
        trouble: Duration::from_secs(4),
        between: 800,
    };
    all(World::etcd, pace)
}
