//! The encoding beneath the messages: tags, varints and lengths.

use super::Error;

pub const VARINT: u8 = 0;
pub const FIXED64: u8 = 1;
pub const LENGTH: u8 = 2;
const FIXED32: u8 = 5;
const START_GROUP: u8 = 3;
const END_GROUP: u8 = 4;

pub fn varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

#[must_use]
pub fn varint_size(value: u64) -> usize {
    (64 - (value | 1).leading_zeros() as usize).div_ceil(7)
}

pub fn tag(out: &mut Vec<u8>, number: u16, wire: u8) {
    varint(out, u64::from(number) << 3 | u64::from(wire));
}

pub fn number(out: &mut Vec<u8>, field: u16, value: u64) {
    tag(out, field, VARINT);
    varint(out, value);
}

pub fn double(out: &mut Vec<u8>, field: u16, value: f64) {
    tag(out, field, FIXED64);
    out.extend_from_slice(&value.to_le_bytes());
}

pub fn bytes(out: &mut Vec<u8>, field: u16, value: &[u8]) {
    tag(out, field, LENGTH);
    varint(out, value.len() as u64);
    out.extend_from_slice(value);
}

pub fn text(out: &mut Vec<u8>, field: u16, value: &str) {
    bytes(out, field, value.as_bytes());
}

/// A field whose length is known only after it has been written: one byte is kept for it, more are made if needed.
pub fn nested<E>(
    out: &mut Vec<u8>,
    field: u16,
    write: impl FnOnce(&mut Vec<u8>) -> Result<(), E>,
) -> Result<(), E> {
    tag(out, field, LENGTH);
    let at = out.len();
    out.push(0);
    write(out)?;
    let length = (out.len() - at - 1) as u64;
    if length < 0x80 {
        out[at] = length as u8;
        return Ok(());
    }
    let mut prefix = Vec::with_capacity(5);
    varint(&mut prefix, length);
    out.splice(at..=at, prefix);
    Ok(())
}

/// The value of a field, as far as it is known without its type.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Value<'a> {
    Varint(u64),
    Fixed64(u64),
    Fixed32,
    Bytes(&'a [u8]),
}

impl Value<'_> {
    #[must_use]
    pub fn wire_type(self) -> u8 {
        match self {
            Self::Varint(_) => VARINT,
            Self::Fixed64(_) => FIXED64,
            Self::Fixed32 => FIXED32,
            Self::Bytes(_) => LENGTH,
        }
    }
}

#[derive(Debug, Clone, Copy)]
pub struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    #[must_use]
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    pub fn varint(&mut self) -> Result<u64, Error> {
        let mut value = 0_u64;
        for shift in (0..64).step_by(7) {
            let (byte, rest) = self.rest.split_first().ok_or(Error::Truncated)?;
            self.rest = rest;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(Error::Overflow)
    }

    fn take(&mut self, length: u64) -> Result<&'a [u8], Error> {
        let length = usize::try_from(length).map_err(|_| Error::Truncated)?;
        let (taken, rest) = self.rest.split_at_checked(length).ok_or(Error::Truncated)?;
        self.rest = rest;
        Ok(taken)
    }

    pub fn fixed64(&mut self) -> Result<u64, Error> {
        let taken = self.take(8)?;
        Ok(u64::from_le_bytes(taken.try_into().unwrap_or_default()))
    }

    /// The next field that is no group: its number and value.
    pub fn field(&mut self) -> Result<Option<(u32, Value<'a>)>, Error> {
        let mut open: Vec<u64> = Vec::new();
        loop {
            if self.rest.is_empty() {
                return if open.is_empty() {
                    Ok(None)
                } else {
                    Err(Error::Truncated)
                };
            }
            let tag = self.varint()?;
            let (number, wire) = (tag >> 3, (tag & 7) as u8);
            let bounded = u32::try_from(number)
                .ok()
                .filter(|n| (1..1 << 29).contains(n));
            let field = bounded.ok_or(Error::Tag(number))?;
            let value = match wire {
                VARINT => Value::Varint(self.varint()?),
                FIXED64 => Value::Fixed64(self.fixed64()?),
                FIXED32 => {
                    self.take(4)?;
                    Value::Fixed32
                }
                LENGTH => {
                    let length = self.varint()?;
                    Value::Bytes(self.take(length)?)
                }
                // Groups are not in use, and skipped whole.
                START_GROUP if open.len() < super::MAX_DEPTH => {
                    open.push(number);
                    continue;
                }
                START_GROUP => return Err(Error::TooDeep),
                END_GROUP if open.pop() == Some(number) => continue,
                other => return Err(Error::UnknownWireType(other)),
            };
            if open.is_empty() {
                return Ok(Some((field, value)));
            }
        }
    }
}
