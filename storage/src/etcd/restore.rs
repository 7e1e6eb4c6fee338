//! A backup written into an etcd.
//!
//! etcd has no transaction as large as a backup. So a key says that a restore is under way, and as long as it is there no
//! server opens the store: a restore that breaks off is run again, from any point.

use std::collections::HashSet;
use std::path::Path;

use etcd_client::{GetOptions, KvClient, PutOptions};
use futures::{StreamExt, TryStreamExt, stream};

use super::epoch::{self, Found, OFFSET_KEY, RESTORE_KEY};
use super::leases::Leases;
use super::{FIRST_KEY, Options, client, compact, fault, probe, retry};
use crate::backup::{self, Entry, INTERNAL, Reader, RestoreOptions, Restored};
use crate::{Error, Result};

/// How many writes are under way at a time.
const CONCURRENT: usize = 64;
const PAGE: i64 = 10_000;

/// Makes the etcd behind `endpoints` hold what `backup` holds. No server should be at work on it.
pub async fn restore<E: AsRef<str>>(
    endpoints: &[E],
    options: Options,
    backup: &Path,
    how: RestoreOptions,
) -> Result<Restored> {
    let summary = backup::verify(backup)?;
    let client = client(endpoints, &options).await?;
    let kv = client.kv_client().max_decoding_message_size(usize::MAX);
    let target = Target {
        leases: Leases::new(client.lease_client()),
        kv,
        options,
    };
    let found = target.read().await?;
    let mut left = target.keys().await?;
    if !left.is_empty() && !how.overwrite && !found.unfinished {
        return Err(backup::occupied("etcd", left.len() as u64));
    }
    target.put(RESTORE_KEY, "under way").await?;
    let offset = offset(&found, summary.revision, how.bump);
    if offset != found.offset {
        target.put(OFFSET_KEY, &offset.to_string()).await?;
    }
    let mut reader = Reader::open(backup)?;
    let entries = stream::iter(std::iter::from_fn(|| reader.read().transpose()));
    let written = entries.map(async |entry| {
        let entry = entry?;
        target.write(&entry).await?;
        Ok::<_, Error>(entry.key)
    });
    let mut written = std::pin::pin!(written.buffer_unordered(CONCURRENT));
    let mut keys = 0;
    while let Some(key) = written.try_next().await? {
        left.remove(&key);
        keys += 1;
    }
    let gone = stream::iter(left).map(|key| target.delete(key));
    gone.buffer_unordered(CONCURRENT)
        .try_collect::<()>()
        .await?;
    target.delete(RESTORE_KEY.to_owned()).await?;
    let own = target.revision().await?;
    target.compact(own).await?;
    Ok(Restored {
        keys,
        revision: own + offset,
    })
}

/// What has to be added to etcd's revisions so that they go on behind those of the backup and its own.
fn offset(found: &Found, backup: u64, bump: u64) -> u64 {
    found
        .offset
        .max((backup + bump).saturating_sub(found.revision))
}

struct Target {
    kv: KvClient,
    leases: Leases,
    options: Options,
}

/// Writing the same again does no harm here, so every request is repeated while nobody answers.
impl Target {
    async fn read(&self) -> Result<Found> {
        retry(self.options.timeout, || epoch::read(self.kv.clone())).await
    }

    async fn revision(&self) -> Result<u64> {
        retry(self.options.timeout, || probe(self.kv.clone())).await
    }

    /// All keys that are there, but for our own.
    async fn keys(&self) -> Result<HashSet<String>> {
        let mut keys = HashSet::new();
        let mut start = FIRST_KEY.to_owned();
        loop {
            let options = GetOptions::new()
                .with_range(FIRST_KEY)
                .with_keys_only()
                .with_limit(PAGE);
            let page = retry(self.options.timeout, || {
                let (mut kv, start, options) = (self.kv.clone(), start.clone(), options.clone());
                async move { kv.get(start, Some(options)).await.map_err(fault) }
            })
            .await?;
            let names = page
                .kvs()
                .iter()
                .map(|kv| String::from_utf8_lossy(kv.key()));
            let names: Vec<String> = names.map(Into::into).collect();
            match names.last() {
                Some(last) if page.more() => start = format!("{last}\0"),
                _ => start.clear(),
            }
            keys.extend(names.into_iter().filter(|name| !name.starts_with(INTERNAL)));
            if start.is_empty() {
                return Ok(keys);
            }
        }
    }

    async fn write(&self, entry: &Entry) -> Result<()> {
        let lease = match entry.lifetime {
            Some(left) => Some(self.leases.get(left, self.options.timeout).await?),
            None => None,
        };
        let options = lease.map(|lease| PutOptions::new().with_lease(lease));
        retry(self.options.timeout, || {
            let (mut kv, options) = (self.kv.clone(), options.clone());
            async move {
                let put = kv.put(entry.key.as_str(), entry.value.as_ref(), options);
                put.await.map(drop).map_err(fault)
            }
        })
        .await
    }

    async fn put(&self, key: &str, value: &str) -> Result<()> {
        let (key, value) = (key.to_owned(), value.to_owned().into());
        self.write(&Entry {
            key,
            value,
            lifetime: None,
        })
        .await
    }

    async fn delete(&self, key: String) -> Result<()> {
        retry(self.options.timeout, || {
            let (mut kv, key) = (self.kv.clone(), key.as_str());
            async move { kv.delete(key, None).await.map(drop).map_err(fault) }
        })
        .await
    }

    async fn compact(&self, revision: u64) -> Result<()> {
        compact(&self.kv, revision as i64, self.options.timeout).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn revisions_go_on_behind_both() {
        // (etcd's revision, its offset, the backup's, bump, offset)
        for (revision, before, backup, bump, expected) in [
            (1, 0, 500, 0, 499),
            (1, 0, 500, 1000, 1499),
            (800, 0, 500, 0, 0),
            (800, 0, 500, 1000, 700),
            (800, 5000, 500, 1000, 5000),
        ] {
            let found = Found {
                revision,
                offset: before,
                unfinished: false,
            };
            assert_eq!(offset(&found, backup, bump), expected);
        }
    }
}
