//! The prefix cache: what was read for one request is not read again for the next that begins alike.
//!
//! As in vLLM, a text is cut into blocks of [`BLOCK`] tokens, and block `i` has the hash `H(hash of block i - 1, tokens of block i)`, so that
//! a hash stands for all tokens before it. What is found is compared token by token, so that equal hashes do no harm. An entry is a
//! whole row: its keys and values can be cut at any block, a recurrent state counts at its end alone. The entry that was not used for
//! the longest time goes first.

use std::collections::HashMap;

use espalier_models::{
    spec::ModelSpec,
    state::{RowPart, SequenceState},
};

/// Tokens of a block.
pub const BLOCK: usize = 16;

/// Rows that were read.
#[derive(Debug, Default)]
pub(super) struct PrefixCache {
    entries: HashMap<u64, Entry>,
    /// By the hash of a chain of blocks: the entry and how many tokens of it the chain has.
    chains: HashMap<u128, (u64, usize)>,
    clock: u64,
    bytes: u64,
}

#[derive(Debug)]
struct Entry {
    ids: Vec<u32>,
    state: SequenceState,
    used: u64,
    bytes: u64,
}

impl PrefixCache {
    /// Bytes of all entries.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The longest known part of a prompt that leaves a token to be read, with what the model remembers of it.
    pub fn find(&mut self, spec: &ModelSpec, prompt: &[u32]) -> Option<(usize, SequenceState)> {
        let known = prompt.len().saturating_sub(1);
        let chains = chain(&prompt[..known]);
        for (number, hash) in chains.iter().enumerate().rev() {
            let tokens = (number + 1) * BLOCK;
            let Some((key, length)) = self.chains.get(hash).copied() else {
                continue;
            };
            let clock = self.tick();
            let Some(entry) = self.entries.get_mut(&key) else {
                continue;
            };
            // Frequencies may depend on the length of a text.
            let stale = spec.stales_cache(tokens, prompt.len())
                || spec.stales_cache(tokens, entry.ids.len());
            if stale || length != tokens || entry.ids.get(..tokens) != Some(&prompt[..tokens]) {
                continue;
            }
            entry.used = clock;
            let part = RowPart {
                state: &entry.state,
                row: 0,
                tokens,
            };
            return Some((tokens, SequenceState::gathered(&[part], prompt.len())));
        }
        None
    }

    /// Keeps what the model remembers of `ids`, a state of one row. An entry that this one makes needless goes.
    pub fn keep(&mut self, ids: &[u32], state: SequenceState) {
        let chains = chain(ids);
        let whole = state.keeps_every_token();
        let Some(last) = chains.last().copied() else {
            return;
        };
        if !whole && !ids.len().is_multiple_of(BLOCK) {
            return;
        }
        let known = self.chains.get(&last).copied();
        if let Some((key, tokens)) = known
            && let Some(entry) = self.entries.get_mut(&key)
            && entry.ids.get(..tokens) == Some(&ids[..tokens])
        {
            self.clock += 1;
            entry.used = self.clock;
            return;
        }
        let key = self.tick();
        for (number, hash) in chains.iter().enumerate() {
            if whole || number + 1 == chains.len() {
                self.chains.insert(*hash, (key, (number + 1) * BLOCK));
            }
        }
        if whole {
            let shorter = |entry: &Entry| {
                entry.ids.len() < ids.len()
                    && ids.starts_with(&entry.ids[..entry.ids.len() / BLOCK * BLOCK])
            };
            let needless: Vec<u64> = self
                .entries
                .iter()
                .filter_map(|(key, entry)| shorter(entry).then_some(*key))
                .collect();
            needless.into_iter().for_each(|key| self.drop_entry(key));
        }
        let bytes = state.bytes();
        self.bytes += bytes;
        let entry = Entry {
            ids: ids.to_vec(),
            state,
            used: key,
            bytes,
        };
        self.entries.insert(key, entry);
    }

    /// Drops the entry that was not used for the longest time; whether there was one.
    pub fn drop_oldest(&mut self) -> bool {
        let oldest = self.entries.iter().min_by_key(|(_, entry)| entry.used);
        let Some(key) = oldest.map(|(key, _)| *key) else {
            return false;
        };
        self.drop_entry(key);
        true
    }

    fn drop_entry(&mut self, key: u64) {
        if let Some(entry) = self.entries.remove(&key) {
            self.bytes -= entry.bytes;
        }
        self.chains.retain(|_, (owner, _)| *owner != key);
    }

    fn tick(&mut self) -> u64 {
        self.clock += 1;
        self.clock
    }
}

/// The hash of every whole block, each with all blocks before it: 128-bit FNV-1a of the tokens' bytes.
fn chain(ids: &[u32]) -> Vec<u128> {
    let mut hash: u128 = 0x6c62_272e_07bb_0142_62b8_2175_6295_c58d;
    let mut chain = Vec::with_capacity(ids.len() / BLOCK);
    for block in ids.chunks_exact(BLOCK) {
        for byte in block.iter().flat_map(|id| id.to_le_bytes()) {
            hash = (hash ^ u128::from(byte)).wrapping_mul(0x0100_0000_0000_0000_0000_013b);
        }
        chain.push(hash);
    }
    chain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hash_stands_for_all_blocks_before_it() {
        let one: Vec<u32> = (0..40).collect();
        let mut other = one.clone();
        other[3] = 99;
        assert_eq!(chain(&one).len(), 2);
        assert_eq!(chain(&one), chain(&one[..32]));
        assert_ne!(chain(&one)[1], chain(&other)[1]);
    }
}
