//! How much the rows' keys, values and states take, by the rectangles that they lie in.

use espalier_models::spec::ModelSpec;

/// Positions are set aside in multiples of so many.
const STEP: usize = 64;

/// Positions that a rectangle whose longest row has `tokens` has room for: an eighth more, so that rows seldom move.
pub(super) fn room_for(tokens: usize) -> usize {
    tokens
        .saturating_add(tokens / 8 + STEP)
        .div_ceil(STEP)
        .saturating_mul(STEP)
}

/// Bytes of a model's memory of texts.
#[derive(Debug, Clone, Copy)]
pub(super) struct Footprint {
    token: u64,
    row: u64,
}

impl Footprint {
    pub fn new(spec: &ModelSpec) -> Self {
        Self {
            token: spec.cache_per_token(),
            row: spec.state_size(),
        }
    }

    /// Of `rows` decoded together, the longest of which has `longest` tokens.
    pub fn together(&self, rows: usize, longest: usize) -> u64 {
        let room = (room_for(longest) as u64).saturating_mul(self.token);
        (rows as u64).saturating_mul(room.saturating_add(self.row))
    }

    /// Of a prompt of `tokens` while it is read by itself, in a buffer that grows by doubling.
    pub fn alone(&self, tokens: usize) -> u64 {
        let room = tokens
            .checked_next_power_of_two()
            .unwrap_or(tokens)
            .max(STEP);
        (room as u64)
            .saturating_mul(self.token)
            .saturating_add(self.row)
    }
}
