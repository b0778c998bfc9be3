//! Packing: several examples in one row, so that no compute is spent on padding.
//!
//! Best-fit-decreasing ("Fewer truncations improve language modeling", 2404.10830): the longest example first, each into the
//! fullest row that still has room. Rows carry a segment number a token for the mask `same segment and causal`, and positions
//! that restart in each segment; the first token of a segment is never a target, since nothing before it may be seen. Rows
//! are not padded here.

use std::collections::BTreeSet;

use crate::encode::{Example, predicted};

/// Several examples side by side; all fields have the same length, at most the row length.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Row {
    /// Token ids, `[time]`.
    pub ids: Vec<u32>,
    /// Whether the loss asks for the token, `[time]`.
    pub targets: Vec<bool>,
    /// Position in its segment, `[time]`.
    pub positions: Vec<u32>,
    /// Number of its segment, from 1, `[time]`; 0 is left for padding.
    pub segments: Vec<u32>,
}

impl From<&Example> for Row {
    /// A row of one example.
    fn from(example: &Example) -> Self {
        let mut row = Self::default();
        row.push(&example.ids, &example.targets);
        row
    }
}

impl Row {
    /// For each target the place in the row from which it is predicted, the one before it, and the token itself.
    ///
    /// ```
    /// use espalier_data::{encode::Example, packing::Row};
    /// let row = Row::from(&Example::new(vec![5, 6, 7], vec![true, false, true]));
    /// assert_eq!(row.predictions().collect::<Vec<_>>(), [(1, 7)]);
    /// ```
    pub fn predictions(&self) -> impl Iterator<Item = (usize, u32)> + '_ {
        predicted(&self.targets).map(|t| (t - 1, self.ids[t]))
    }

    /// For each token, how many tokens of its text stand before the first target: the prompt, which an answer follows. A text
    /// without targets is all prompt.
    ///
    /// ```
    /// use espalier_data::{encode::Example, packing::Row};
    /// let row = Row::from(&Example::new(vec![5, 6, 7], vec![false, false, true]));
    /// assert_eq!(row.prompts(), [2, 2, 2]);
    /// ```
    pub fn prompts(&self) -> Vec<u32> {
        let mut prompts = Vec::with_capacity(self.ids.len());
        for text in self.segments.chunk_by(|a, b| a == b) {
            let start = prompts.len();
            let first = predicted(&self.targets[start..start + text.len()]).next();
            let prompt = first.unwrap_or(text.len()) as u32;
            prompts.extend(std::iter::repeat_n(prompt, text.len()));
        }
        prompts
    }

    /// How many tokens of the row's first text stand before its first target; all of them where it has none.
    pub fn prompt_length(&self) -> usize {
        self.prompts().first().map_or(0, |prompt| *prompt as usize)
    }

    fn push(&mut self, ids: &[u32], targets: &[bool]) {
        let segment = self.segments.last().map_or(1, |last| last + 1);
        let positions = 0..ids.len() as u32;
        self.segments.extend(positions.clone().map(|_| segment));
        self.targets.extend(
            targets
                .iter()
                .zip(positions.clone())
                .map(|(target, position)| *target && position > 0),
        );
        self.positions.extend(positions);
        self.ids.extend_from_slice(ids);
    }
}

/// The way in which examples are distributed over rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Strategy {
    /// Best fit; examples longer than a row lose their end.
    #[default]
    BestFit,
    /// Best fit; examples longer than a row are cut into pieces.
    BestFitSplit,
    /// One after the other, cut wherever a row is full.
    Wrapped,
}

/// Packs examples into rows of at most `length` tokens. Empty examples take no part.
///
/// ```
/// use espalier_data::{encode::Example, packing::{pack, Strategy}};
/// let example = |ids: &[u32]| Example::new(ids.to_vec(), vec![true; ids.len()]);
/// let rows = pack(&[example(&[1, 2]), example(&[3, 4, 5]), example(&[6])], 4, Strategy::BestFit);
/// assert_eq!(rows[0].ids, [3, 4, 5, 6]);
/// assert_eq!(rows[0].segments, [1, 1, 1, 2]);
/// assert_eq!(rows[0].positions, [0, 1, 2, 0]);
/// assert_eq!(rows[0].targets, [false, true, true, false]);
/// ```
pub fn pack(examples: &[Example], length: usize, strategy: Strategy) -> Vec<Row> {
    if length == 0 {
        return Vec::new();
    }
    match strategy {
        Strategy::BestFit => best_fit(examples, length),
        Strategy::BestFitSplit => best_fit(
            &examples
                .iter()
                .flat_map(|example| pieces(example, length))
                .collect::<Vec<_>>(),
            length,
        ),
        Strategy::Wrapped => wrap(examples, length),
    }
}

/// An example cut every `length` tokens.
fn pieces(example: &Example, length: usize) -> impl Iterator<Item = Example> {
    let chunks = example
        .ids
        .chunks(length)
        .zip(example.targets.chunks(length));
    chunks.map(|(ids, targets)| Example::new(ids.to_vec(), targets.to_vec()))
}

fn best_fit(examples: &[Example], length: usize) -> Vec<Row> {
    let lengths: Vec<usize> = examples.iter().map(|example| example.ids.len()).collect();
    let bins = pack_indices(&lengths, length);
    bins.iter()
        .map(|bin| row(bin.iter().map(|index| &examples[*index]), length))
        .collect()
}

fn row<'a>(examples: impl Iterator<Item = &'a Example>, length: usize) -> Row {
    let mut row = Row::default();
    for Example { ids, targets } in examples {
        let kept = ids.len().min(length);
        row.push(&ids[..kept], &targets[..kept]);
    }
    row
}

fn wrap(examples: &[Example], length: usize) -> Vec<Row> {
    let mut rows: Vec<Row> = Vec::new();
    for Example { ids, targets } in examples {
        let mut done = 0;
        while done < ids.len() {
            if rows.last().is_none_or(|row| row.ids.len() == length) {
                rows.push(Row::default());
            }
            let Some(row) = rows.last_mut() else { break };
            let end = ids.len().min(done + length - row.ids.len());
            row.push(&ids[done..end], &targets[done..end]);
            done = end;
        }
    }
    rows
}

/// Which examples share a row, by best-fit-decreasing: the longest first, into the fullest row with room, the oldest of
/// equals. Lengths above `length` count as `length`; empty examples take no part. `O(n log n)`.
///
/// ```
/// use espalier_data::packing::pack_indices;
/// assert_eq!(pack_indices(&[5, 2, 3, 1], 4), [vec![0], vec![2, 3], vec![1]]);
/// ```
pub fn pack_indices(lengths: &[usize], length: usize) -> Vec<Vec<usize>> {
    let mut order: Vec<usize> = (0..lengths.len())
        .filter(|index| lengths[*index].min(length) > 0)
        .collect();
    order.sort_by_key(|index| std::cmp::Reverse(lengths[*index].min(length)));
    let mut bins: Vec<Vec<usize>> = Vec::new();
    let mut spaces: BTreeSet<(usize, usize)> = BTreeSet::new();
    for index in order {
        let needed = lengths[index].min(length);
        let (space, bin) = spaces
            .range((needed, 0)..)
            .next()
            .copied()
            .unwrap_or((length, bins.len()));
        if bin == bins.len() {
            bins.push(Vec::new());
        }
        bins[bin].push(index);
        spaces.remove(&(space, bin));
        spaces.insert((space - needed, bin));
    }
    bins
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::{any, prop_assert, prop_assert_eq, proptest};
    use proptest::strategy::Strategy as Generator;

    fn example(ids: &[u32]) -> Example {
        Example::new(ids.to_vec(), vec![true; ids.len()])
    }

    fn worked(strategy: Strategy) -> Vec<Row> {
        let examples = [&[1, 2, 3, 4, 5][..], &[6, 7], &[8, 9, 10], &[11]].map(example);
        pack(&examples, 4, strategy)
    }

    fn ids(rows: &[Row]) -> Vec<Vec<u32>> {
        rows.iter().map(|row| row.ids.clone()).collect()
    }

    #[test]
    fn best_fit_keeps_the_start() {
        let rows = worked(Strategy::BestFit);
        assert_eq!(
            ids(&rows),
            [vec![1, 2, 3, 4], vec![8, 9, 10, 11], vec![6, 7]]
        );
        assert_eq!(rows[1].segments, [1, 1, 1, 2]);
        assert_eq!(rows[1].positions, [0, 1, 2, 0]);
        assert_eq!(rows[1].targets, [false, true, true, false]);
    }

    #[test]
    fn best_fit_with_pieces() {
        let rows = worked(Strategy::BestFitSplit);
        assert_eq!(
            ids(&rows),
            [vec![1, 2, 3, 4], vec![8, 9, 10, 5], vec![6, 7, 11]]
        );
        assert_eq!(rows[2].segments, [1, 1, 2]);
    }

    #[test]
    fn wrapped_fills_every_row_but_the_last() {
        let rows = worked(Strategy::Wrapped);
        assert_eq!(
            ids(&rows),
            [vec![1, 2, 3, 4], vec![5, 6, 7, 8], vec![9, 10, 11]]
        );
        assert_eq!(rows[1].segments, [1, 2, 2, 3]);
        assert_eq!(rows[1].targets, [false, false, true, false]);
    }

    #[test]
    fn nothing_gives_nothing() {
        for strategy in [Strategy::BestFit, Strategy::BestFitSplit, Strategy::Wrapped] {
            assert!(pack(&[example(&[])], 4, strategy).is_empty());
            assert!(pack(&[example(&[1])], 0, strategy).is_empty());
        }
    }

    #[test]
    fn a_hundred_thousand_examples_fill_their_rows() {
        let mut random = crate::random::Random::new(3);
        let lengths: Vec<usize> = (0..100_000)
            .map(|_| random.range(1, 300) as usize)
            .collect();
        let rows = pack_indices(&lengths, 512).len();
        let tokens: usize = lengths.iter().sum();
        assert!(tokens as f64 / (rows * 512) as f64 > 0.99, "{rows} rows");
    }

    fn examples() -> impl Generator<Value = Vec<Example>> {
        let example =
            proptest::collection::vec((any::<u32>(), any::<bool>()), 0..=12).prop_map(|tokens| {
                let (ids, targets) = tokens.into_iter().unzip();
                Example::new(ids, targets)
            });
        proptest::collection::vec(example, 0..30)
    }

    proptest! {
        #[test]
        fn every_target_is_kept_once(examples in examples()) {
            let rows = pack(&examples, 12, Strategy::BestFit);
            let wanted: usize = examples.iter().map(Example::target_count).sum();
            prop_assert_eq!(rows.iter().flat_map(|row| &row.targets).filter(|target| **target).count(), wanted);
            let mut packed: Vec<u32> = rows.iter().flat_map(|row| row.ids.clone()).collect();
            let mut all: Vec<u32> = examples.iter().flat_map(|example| example.ids.clone()).collect();
            packed.sort_unstable();
            all.sort_unstable();
            prop_assert_eq!(packed, all);
        }

        #[test]
        fn rows_are_never_too_long(examples in examples(), length in 1usize..16) {
            for strategy in [Strategy::BestFit, Strategy::BestFitSplit, Strategy::Wrapped] {
                for row in pack(&examples, length, strategy) {
                    prop_assert!(!row.ids.is_empty() && row.ids.len() <= length);
                    prop_assert_eq!(row.ids.len(), row.targets.len());
                    prop_assert_eq!(row.ids.len(), row.positions.len());
                    prop_assert_eq!(row.ids.len(), row.segments.len());
                    prop_assert!(row.targets.iter().zip(&row.positions).all(|(target, position)| !target || *position > 0));
                }
            }
        }
    }
}
