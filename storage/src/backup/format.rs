//! The form of a backup: a line that says what it is, the revision and the time, an entry for each key in the keys' order,
//! and an end with the number of entries and a SHA-256 checksum of all before it. Integers are little-endian.
//!
//! ```text
//! skiff-backup-1\n  revision: u64  taken: u64
//! 1  key length: u32  value length: u32  milliseconds left to live (0: for ever): u64  key  value
//! ...
//! 0  entries: u64  checksum: 32 bytes
//! ```
//!
//! In place of an entry or the end there may be the reason why the backup broke off: 2, a length and a text.

use std::fs::File;
use std::io::{BufReader, ErrorKind, Read};
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use sha2::{Digest, Sha256};

use crate::{Error, Result};

const MAGIC: &[u8] = b"skiff-backup-1\n";
const END: u8 = 0;
const ENTRY: u8 = 1;
const FAILURE: u8 = 2;
/// More than any key or value has. What claims to be longer is damaged, and is not to fill the memory.
const MAX_KEY: u32 = 1 << 20;
const MAX_VALUE: u32 = 64 << 20;
/// Leaves room to count on, in etcd's signed numbers too.
const MAX_REVISION: u64 = 1 << 62;

/// One key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub key: String,
    pub value: Bytes,
    /// What is left of its time to live.
    pub lifetime: Option<Duration>,
}

/// Makes the bytes of a backup.
#[derive(Default)]
pub(super) struct Writer {
    checksum: Sha256,
    entries: u64,
}

impl Writer {
    pub fn header(&mut self, revision: u64, taken: u64) -> Bytes {
        let bytes = [MAGIC, &revision.to_le_bytes(), &taken.to_le_bytes()].concat();
        self.checksum.update(&bytes);
        bytes.into()
    }

    pub fn entry(&mut self, entry: &Entry, to: &mut Vec<u8>) {
        let begin = to.len();
        let millis = entry
            .lifetime
            .map_or(0, |left| left.as_millis().max(1) as u64);
        to.push(ENTRY);
        to.extend_from_slice(&(entry.key.len() as u32).to_le_bytes());
        to.extend_from_slice(&(entry.value.len() as u32).to_le_bytes());
        to.extend_from_slice(&millis.to_le_bytes());
        to.extend_from_slice(entry.key.as_bytes());
        to.extend_from_slice(&entry.value);
        self.checksum.update(&to[begin..]);
        self.entries += 1;
    }

    pub fn end(&mut self) -> Bytes {
        let mut bytes = vec![END];
        bytes.extend_from_slice(&self.entries.to_le_bytes());
        self.checksum.update(&bytes);
        bytes.extend_from_slice(&std::mem::take(&mut self.checksum).finalize());
        bytes.into()
    }

    pub fn failure(reason: &str) -> Bytes {
        let length = (reason.len() as u32).to_le_bytes();
        [&[FAILURE], &length[..], reason.as_bytes()].concat().into()
    }
}

/// Reads a backup entry by entry. Only after the end, `None`, is it known that all before was right.
pub struct Reader<R = BufReader<File>> {
    from: R,
    /// What the errors call it.
    name: String,
    checksum: Sha256,
    entries: u64,
    revision: u64,
    taken: u64,
    /// The key before, as each has to come after it.
    last: String,
    ended: bool,
}

impl Reader {
    pub fn open(path: &Path) -> Result<Self> {
        let name = path.display().to_string();
        match File::open(path) {
            Ok(file) => Reader::new(BufReader::new(file), name),
            Err(error) => Err(Error::Corrupt(format!("cannot open {name}: {error}"))),
        }
    }
}

impl<R: Read> Reader<R> {
    pub fn new(from: R, name: String) -> Result<Self> {
        let mut reader = Reader {
            from,
            name,
            checksum: Sha256::new(),
            entries: 0,
            revision: 0,
            taken: 0,
            last: String::new(),
            ended: false,
        };
        let mut magic = [0; MAGIC.len()];
        if reader.fill(&mut magic).is_err() || magic != *MAGIC {
            return Err(Error::Corrupt(format!("{} is no backup", reader.name)));
        }
        reader.revision = reader.number()?;
        reader.taken = reader.number()?;
        if reader.revision > MAX_REVISION {
            return Err(reader.damaged("it is of a revision that no store has"));
        }
        Ok(reader)
    }

    /// The revision that the backup shows.
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// When it was begun, in seconds since the epoch.
    pub fn taken(&self) -> u64 {
        self.taken
    }

    pub fn read(&mut self) -> Result<Option<Entry>> {
        if self.ended {
            return Ok(None);
        }
        match self.array::<1>()?[0] {
            ENTRY => self.entry().map(Some),
            END => self.end().map(|()| None),
            FAILURE => Err(self.failure()),
            _ => Err(self.damaged("an entry begins with a byte that has no meaning")),
        }
    }

    fn entry(&mut self) -> Result<Entry> {
        let (key, value) = (self.length(MAX_KEY)?, self.length(MAX_VALUE)?);
        let millis = self.number()?;
        let key =
            String::from_utf8(self.bytes(key)?).map_err(|_| self.damaged("a key is not UTF-8"))?;
        let value = self.bytes(value)?.into();
        if key <= self.last {
            return Err(self.damaged("its keys are not in order"));
        }
        self.last.clone_from(&key);
        self.entries += 1;
        Ok(Entry {
            key,
            value,
            lifetime: (millis != 0).then(|| Duration::from_millis(millis)),
        })
    }

    fn end(&mut self) -> Result<()> {
        let entries = self.number()?;
        let expected = std::mem::take(&mut self.checksum).finalize();
        if entries != self.entries {
            return Err(self.damaged("it has not as many entries as it says"));
        }
        if self.array::<32>()?[..] != expected[..] {
            return Err(self.damaged("its checksum is wrong"));
        }
        if !matches!(self.from.read(&mut [0]), Ok(0)) {
            return Err(self.damaged("something follows its end"));
        }
        self.ended = true;
        Ok(())
    }

    /// What was written when the backup broke off.
    fn failure(&mut self) -> Error {
        let reason = self.length(MAX_KEY).and_then(|length| self.bytes(length));
        match reason {
            Ok(reason) => Error::Corrupt(format!(
                "{} is not whole, the backup broke off: {}",
                self.name,
                String::from_utf8_lossy(&reason)
            )),
            Err(error) => error,
        }
    }

    fn damaged(&self, what: &str) -> Error {
        Error::Corrupt(format!("{} is damaged: {what}", self.name))
    }

    fn fill(&mut self, buffer: &mut [u8]) -> Result<()> {
        self.from
            .read_exact(buffer)
            .map_err(|error| match error.kind() {
                ErrorKind::UnexpectedEof => self.damaged("it ends too early"),
                _ => Error::Corrupt(format!("cannot read {}: {error}", self.name)),
            })?;
        self.checksum.update(&*buffer);
        Ok(())
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut array = [0; N];
        self.fill(&mut array)?;
        Ok(array)
    }

    fn bytes(&mut self, length: usize) -> Result<Vec<u8>> {
        let mut bytes = vec![0; length];
        self.fill(&mut bytes)?;
        Ok(bytes)
    }

    fn number(&mut self) -> Result<u64> {
        self.array().map(u64::from_le_bytes)
    }

    fn length(&mut self, limit: u32) -> Result<usize> {
        match self.array().map(u32::from_le_bytes)? {
            length if length <= limit => Ok(length as usize),
            _ => Err(self.damaged("a key or value is longer than any can be")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(key: &str, value: &'static str, seconds: u64) -> Entry {
        Entry {
            key: key.into(),
            value: value.into(),
            lifetime: (seconds != 0).then(|| Duration::from_secs(seconds)),
        }
    }

    fn backup(entries: &[Entry]) -> Vec<u8> {
        let mut writer = Writer::default();
        let mut bytes = writer.header(7, 1000).to_vec();
        entries.iter().for_each(|e| writer.entry(e, &mut bytes));
        bytes.extend(writer.end());
        bytes
    }

    fn read(bytes: &[u8]) -> Result<(u64, Vec<Entry>)> {
        let mut reader = Reader::new(bytes, "test".into())?;
        let mut entries = Vec::new();
        while let Some(entry) = reader.read()? {
            entries.push(entry);
        }
        assert_eq!(reader.read()?, None, "the end stays the end");
        Ok((reader.revision(), entries))
    }

    #[test]
    fn survives_the_way_to_a_file_and_back() {
        for entries in [vec![], vec![entry("/a", "1", 0), entry("/ключ", "", 30)]] {
            assert_eq!(read(&backup(&entries)).unwrap(), (7, entries));
        }
    }

    #[test]
    fn every_damage_is_seen() {
        let whole = backup(&[entry("/a", "first", 0), entry("/b", "second", 9)]);
        for end in 0..whole.len() {
            assert!(read(&whole[..end]).is_err(), "cut off at {end}");
        }
        for at in 0..whole.len() {
            let mut damaged = whole.clone();
            damaged[at] ^= 0x10;
            assert!(read(&damaged).is_err(), "byte {at} changed");
        }
        let twice = [entry("/a", "1", 0), entry("/a", "2", 0)];
        assert!(read(&backup(&twice)).is_err());
        assert!(read(&[whole.as_slice(), b"x"].concat()).is_err());
        assert!(read(b"SQLite format 3\0, and so on").is_err());
    }

    #[test]
    fn says_why_it_broke_off() {
        let mut bytes = Writer::default().header(7, 1000).to_vec();
        bytes.extend(Writer::failure("no leader"));
        let error = read(&bytes).unwrap_err().to_string();
        assert!(
            error.ends_with("the backup broke off: no leader"),
            "{error}"
        );
    }
}
