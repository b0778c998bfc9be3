//! Items of a generated world.

use espalier_data::worlds::{self, Item, Split};

use crate::Result;

/// The first `count` items of a split.
///
/// # Errors
/// When the task is unknown.
pub fn items(task: &str, split: Split, count: usize, seed: u64) -> Result<Vec<Item>> {
    Ok((0..count as u64)
        .map(|i| worlds::item(task, split, i, seed))
        .collect::<Result<_, _>>()?)
}
