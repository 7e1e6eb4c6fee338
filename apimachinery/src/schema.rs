//! The shape of a kind.

/// The shape of one kind's documents. This one knows nothing and allows everything; see the table of kinds for when
/// the built-in ones arrive.
#[derive(Clone, Debug, Default)]
pub struct Schema {}

impl Schema {
    /// Anything goes.
    pub fn any() -> Schema {
        Schema {}
    }
}
