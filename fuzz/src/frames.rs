//! Frames of container runtimes' streaming servers.

/// Bytes as they may arrive, in pieces whose length the first byte tells.
pub fn spdy(bytes: &[u8]) {
    let Some((size, rest)) = bytes.split_first() else {
        return;
    };
    let mut decoder = super::spdy::Decoder::new();
    for piece in rest.chunks(usize::from(*size).max(1)) {
        decoder.feed(piece);
        while let Ok(Some(_)) = decoder.frame() {}
    }
}
