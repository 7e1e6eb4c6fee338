//! Writes to a store as fast as it takes it, from many writers at once: a measurement, and what the contract tests kill
//! in the middle of it.
//!
//! ```text
//! load embedded:/path/to/file | etcd:http://127.0.0.1:2379 [--writers 32] [--seconds 5] [--size 600] [--keys 0] [--keep 0]
//!     [--history 300000] [--print]
//! ```
//!
//! Each writer creates one key after the other, or with `--keys N` goes round N keys of its own. With `--keep N` it deletes
//! all but every Nth again at once. `--history` is how many milliseconds an embedded store keeps it. `--print` prints every
//! acknowledged write as `key revision`, and every acknowledged deletion as `key -`.

use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use storage::embedded::{self, Embedded};
use storage::etcd::{self, Etcd};
use storage::{Expect, Store};

struct Args {
    store: String,
    writers: usize,
    seconds: u64,
    size: usize,
    keys: u64,
    keep: u64,
    history: Duration,
    print: bool,
}

fn args() -> Result<Args, String> {
    let mut given = std::env::args().skip(1);
    let store = given
        .next()
        .ok_or("usage: load STORE [--writers N] [--seconds N] [--size N] [--keys N] [--keep N] [--history MS] [--print]")?;
    let mut args = Args {
        store,
        writers: 32,
        seconds: 5,
        size: 600,
        keys: 0,
        keep: 0,
        history: embedded::Options::default().history,
        print: false,
    };
    while let Some(flag) = given.next() {
        if flag == "--print" {
            args.print = true;
            continue;
        }
        let number = given
            .next()
            .and_then(|n| n.parse::<u64>().ok())
            .ok_or(format!("{flag} takes a number"))?;
        match &*flag {
            "--writers" => args.writers = number as usize,
            "--seconds" => args.seconds = number,
            "--size" => args.size = number as usize,
            "--keys" => args.keys = number,
            "--keep" => args.keep = number,
            "--history" => args.history = Duration::from_millis(number),
            _ => return Err(format!("unknown flag {flag}")),
        }
    }
    Ok(args)
}

/// A value that shows when it is not whole: the key, again and again.
fn value_of(key: &str, size: usize) -> Bytes {
    key.as_bytes()
        .iter()
        .copied()
        .cycle()
        .take(size.max(key.len()))
        .collect()
}

fn print(key: &str, outcome: &str) -> storage::Result<()> {
    writeln!(std::io::stdout().lock(), "{key} {outcome}")
        .map_err(|e| storage::Error::Unavailable(format!("nobody reads what is printed: {e}")))
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args = args()?;
    let store: Arc<dyn Store> = match args.store.split_once(':') {
        Some(("embedded", path)) => {
            let options = embedded::Options {
                history: args.history,
                ..embedded::Options::default()
            };
            Arc::new(Embedded::open(path, options)?)
        }
        Some(("etcd", url)) => Arc::new(Etcd::connect(&[url], etcd::Options::default()).await?),
        _ => return Err("the store is embedded:PATH or etcd:URL".into()),
    };
    let end = Instant::now() + Duration::from_secs(args.seconds);
    let (written, slowest) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let mut writers = tokio::task::JoinSet::new();
    for writer in 0..args.writers {
        let (store, written, slowest) = (store.clone(), written.clone(), slowest.clone());
        writers.spawn(async move {
            let mut n = 0;
            while Instant::now() < end {
                let number = if args.keys > 0 { n % args.keys } else { n };
                let key = format!("/registry/load/w{writer}/k{number}");
                let expect = if args.keys > 0 {
                    Expect::Any
                } else {
                    Expect::Absent
                };
                let started = Instant::now();
                let revision = store
                    .put(&key, expect, value_of(&key, args.size), None)
                    .await?;
                slowest.fetch_max(started.elapsed().as_micros() as u64, Ordering::Relaxed);
                if args.print {
                    print(&key, &revision.to_string())?;
                }
                if args.keep > 0 && number % args.keep != 0 {
                    store.delete(&key, Expect::Any).await?;
                    if args.print {
                        print(&key, "-")?;
                    }
                }
                written.fetch_add(1, Ordering::Relaxed);
                n += 1;
            }
            Ok::<_, storage::Error>(())
        });
    }
    while let Some(done) = writers.join_next().await {
        done??;
    }
    let written = written.load(Ordering::Relaxed);
    eprintln!(
        "{} writes/s, the slowest took {} us",
        written / args.seconds.max(1),
        slowest.load(Ordering::Relaxed)
    );
    store.close().await;
    Ok(())
}
