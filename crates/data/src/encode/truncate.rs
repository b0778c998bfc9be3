//! Truncation: what is longer than a limit keeps its beginning, and is counted.

use super::{CUT_OFF, Encoded, Example, NO_ANSWER, Pair, dropped, keep};

/// Records that were too long.
///
/// ```
/// use espalier_data::encode::{Encoded, Example, Truncation};
/// let mut truncation = Truncation::default();
/// let encoded = Encoded::Example(Example::new(vec![5, 6, 7], vec![true; 3]));
/// let Encoded::Example(kept) = truncation.cut(encoded, 2) else { unreachable!() };
/// assert_eq!((kept.ids, truncation.records, truncation.lost, truncation.longest), (vec![5, 6], 1, 1, 3));
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Truncation {
    /// Records that were cut.
    pub records: usize,
    /// Their tokens that were cut off.
    pub lost: usize,
    /// Tokens of the longest one before it was cut.
    pub longest: usize,
    /// Whether pairs that are too long are left out as they are, because a part of an answer is not what was compared.
    pub whole_pairs: bool,
}

impl Encoded {
    /// Tokens of its longest text.
    pub fn longest(&self) -> usize {
        match self {
            Self::Example(example) => example.ids.len(),
            Self::Pair(pair) => pair.chosen.ids.len().max(pair.rejected.ids.len()),
            Self::Labelled(labelled) => labelled.ids.len(),
            Self::Unpaired { example, .. } => example.ids.len(),
            Self::Dropped { .. } => 0,
        }
    }
}

impl Truncation {
    /// An encoded record of at most `length` tokens; dropped where nothing to learn is left.
    pub fn cut(&mut self, encoded: Encoded, length: usize) -> Encoded {
        match encoded {
            Encoded::Example(mut example) => match self.examples([&mut example], length) {
                true => keep(example, CUT_OFF),
                false => Encoded::Example(example),
            },
            Encoded::Pair(pair)
                if self.whole_pairs
                    && pair.chosen.ids.len().max(pair.rejected.ids.len()) > length =>
            {
                dropped("an answer is longer than `length`, and a reward is one of whole answers")
            }
            Encoded::Pair(Pair {
                mut chosen,
                mut rejected,
                margin,
            }) => {
                let cut = self.examples([&mut chosen, &mut rejected], length);
                let nothing = chosen.target_count() == 0 || rejected.target_count() == 0;
                let pair = Pair {
                    chosen,
                    rejected,
                    margin,
                };
                match (cut, nothing) {
                    (true, true) => dropped(NO_ANSWER),
                    (true, false) => {
                        pair.kept("`chosen` and `rejected` are the same within `length`")
                    }
                    (false, _) => Encoded::Pair(pair),
                }
            }
            Encoded::Unpaired {
                mut example,
                desirable,
            } => {
                let cut = self.examples([&mut example], length);
                match cut && example.target_count() == 0 {
                    true => dropped(NO_ANSWER),
                    false => Encoded::Unpaired { example, desirable },
                }
            }
            Encoded::Labelled(mut labelled) if labelled.ids.len() > length => {
                self.records += 1;
                self.lost += labelled.ids.len() - length;
                self.longest = self.longest.max(labelled.ids.len());
                labelled.truncate(length);
                labelled.kept()
            }
            fitting => fitting,
        }
    }

    /// Cuts the examples of one record; whether any was too long.
    fn examples<const N: usize>(&mut self, examples: [&mut Example; N], length: usize) -> bool {
        let mut cut = false;
        for example in examples {
            let whole = example.ids.len();
            if whole > length {
                cut = true;
                self.lost += whole - length;
                self.longest = self.longest.max(whole);
                example.ids.truncate(length);
                example.targets.truncate(length);
            }
        }
        self.records += usize::from(cut);
        cut
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example(length: u32) -> Example {
        let targets = (0..length).map(|place| place >= 3).collect();
        Example::new((0..length).collect(), targets)
    }

    #[test]
    fn what_has_nothing_left_to_learn_is_dropped() {
        let mut truncation = Truncation::default();
        let mut kept = |length: u32, limit| {
            let encoded = truncation.cut(Encoded::Example(example(length)), limit);
            matches!(encoded, Encoded::Example(_))
        };
        assert_eq!([kept(8, 4), kept(8, 3), kept(4, 4)], [true, false, true]);
        let pair = || {
            Encoded::Pair(Pair {
                chosen: example(6),
                rejected: example(4),
                margin: 0.0,
            })
        };
        let Encoded::Pair(cut) = truncation.cut(pair(), 5) else {
            panic!()
        };
        assert_eq!((cut.chosen.ids.len(), cut.rejected.ids.len()), (5, 4));
        // One that is only a longer form of the other is no better within what is left.
        let Encoded::Dropped { reason } = truncation.cut(pair(), 4) else {
            panic!()
        };
        assert_eq!(
            reason,
            "`chosen` and `rejected` are the same within `length`"
        );
        let expected = Truncation {
            records: 4,
            lost: 4 + 5 + 1 + 2,
            longest: 8,
            whole_pairs: false,
        };
        assert_eq!(truncation, expected);
    }

    #[test]
    fn pairs_that_must_be_whole_are_left_out() {
        let mut truncation = Truncation {
            whole_pairs: true,
            ..Truncation::default()
        };
        let mut cut = |longer: u32, limit| {
            let pair = Pair {
                chosen: example(4),
                rejected: example(longer),
                margin: 0.0,
            };
            matches!(truncation.cut(Encoded::Pair(pair), limit), Encoded::Pair(_))
        };
        assert_eq!([cut(6, 6), cut(6, 5)], [true, false]);
    }
}
