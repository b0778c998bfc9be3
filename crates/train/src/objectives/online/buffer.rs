//! Answers that are learned from for more than one step: in several parts, in several rounds, or both.
//!
//! A step makes its batches one after the other; each has a place here. In the first of `parts * rounds` steps the answers are
//! written, in the others they are taken from here; what comes between two such cycles is nothing. The parts of a round are
//! shuffled and cut as evenly as can be, so that none is empty where there are answers enough; one part is all answers in their order.

use espalier_data::{encode::Example, packing::Row, random::Random};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::{Error, Result, batch::Sample, columns::Columns};

/// Answers under way.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Buffer {
    parts: usize,
    rounds: usize,
    /// Steps of the cycle that are done.
    phase: usize,
    /// Batches of the present step that were made.
    place: usize,
    held: Vec<Held>,
}

/// The answers of one batch.
#[derive(Debug, Clone, PartialEq)]
struct Held {
    answers: Vec<Sample>,
    seed: u64,
    shown: Vec<Value>,
}

/// A [`Sample`] of one or more rows as a checkpoint keeps it: numbers by their bits.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Kept {
    rows: Vec<KeptRow>,
    columns: Vec<(String, Vec<u64>)>,
}

/// A row's tokens, of which the last `answer` are its targets.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct KeptRow {
    ids: Vec<u32>,
    answer: usize,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct KeptBatch {
    answers: Vec<Kept>,
    seed: u64,
    shown: Vec<Value>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct KeptBuffer {
    phase: usize,
    held: Vec<KeptBatch>,
}

impl Buffer {
    /// A buffer whose batches are cut into `parts`, each of which is learned from in `rounds` rounds.
    pub fn new(parts: usize, rounds: usize) -> Self {
        Self {
            parts: parts.max(1),
            rounds: rounds.max(1),
            ..Self::default()
        }
    }

    /// Whether the next batch has to be written.
    pub fn is_due(&self) -> bool {
        self.phase == 0 || self.held.len() <= self.place
    }

    /// Puts in the answers of the next batch; `seed` decides how they are shuffled.
    pub fn put(&mut self, answers: Vec<Sample>, shown: Vec<Value>, seed: u64) {
        if self.phase == 0 && self.place == 0 {
            self.held.clear();
        }
        self.held.truncate(self.place);
        self.held.push(Held {
            answers,
            seed,
            shown,
        });
    }

    /// The answers of the next batch.
    pub fn take(&mut self) -> Vec<&Sample> {
        let Some(held) = self.held.get(self.place) else {
            return Vec::new();
        };
        self.place += 1;
        held.part(self.phase, self.parts)
    }

    /// All answers that were written for the present step; none where it learns from earlier ones.
    pub fn written(&self) -> Vec<&Sample> {
        let fresh: &[Held] = if self.phase == 0 { &self.held } else { &[] };
        fresh.iter().flat_map(|held| &held.answers).collect()
    }

    /// What the last step's first batch shows to readers.
    pub fn shown(&self) -> &[Value] {
        self.held.first().map_or(&[], |held| &held.shown)
    }

    /// A step is done.
    pub fn after_step(&mut self) {
        self.place = 0;
        self.phase = (self.phase + 1) % (self.parts * self.rounds);
    }

    /// What a checkpoint needs: nothing between two cycles.
    pub fn state(&self) -> Value {
        let held: &[Held] = if self.phase == 0 { &[] } else { &self.held };
        json!(KeptBuffer {
            phase: self.phase,
            held: held.iter().map(Held::kept).collect(),
        })
    }

    /// Puts back what [`Buffer::state`] gave.
    ///
    /// # Errors
    /// When the value is another.
    pub fn restore(&mut self, value: &Value) -> Result<()> {
        let kept: KeptBuffer =
            serde_json::from_value(value.clone()).map_err(|error| Error::Option {
                key: "objective",
                reason: format!(
                    "the checkpoint's answers cannot be read ({error}); give another output folder"
                ),
            })?;
        self.phase = kept.phase;
        self.held = kept.held.into_iter().map(Held::from).collect();
        self.place = 0;
        Ok(())
    }
}

impl Held {
    fn part(&self, phase: usize, parts: usize) -> Vec<&Sample> {
        let mut order: Vec<&Sample> = self.answers.iter().collect();
        if parts > 1 {
            let round = phase / parts;
            Random::named(&format!("part|{}|{round}", self.seed)).shuffle(&mut order);
        }
        let (part, count) = (phase % parts, order.len());
        let [start, end] = [part, part + 1].map(|cut| cut * count / parts);
        order[start..end].to_vec()
    }

    fn kept(&self) -> KeptBatch {
        let row = |row: &Row| KeptRow {
            ids: row.ids.clone(),
            answer: row.targets.iter().filter(|target| **target).count(),
        };
        let kept = |answer: &Sample| Kept {
            rows: answer.rows.iter().map(row).collect(),
            columns: answer
                .columns
                .all_numbers()
                .map(|(name, values)| {
                    (
                        name.to_owned(),
                        values.iter().map(|v| v.to_bits()).collect(),
                    )
                })
                .collect(),
        };
        KeptBatch {
            answers: self.answers.iter().map(kept).collect(),
            seed: self.seed,
            shown: self.shown.clone(),
        }
    }
}

impl From<KeptBatch> for Held {
    fn from(kept: KeptBatch) -> Self {
        Self {
            answers: kept.answers.into_iter().map(Sample::from).collect(),
            seed: kept.seed,
            shown: kept.shown,
        }
    }
}

impl From<Kept> for Sample {
    fn from(kept: Kept) -> Self {
        let row = |KeptRow { ids, answer }: KeptRow| {
            let prompt = ids.len().saturating_sub(answer);
            Row::from(&Example::answered(ids, prompt))
        };
        let mut columns = Columns::default();
        for (name, bits) in kept.columns {
            columns.set_numbers(&name, bits.into_iter().map(f64::from_bits).collect());
        }
        Self {
            rows: kept.rows.into_iter().map(row).collect(),
            columns,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(number: u32) -> Sample {
        let mut sample = Sample::example(&Example::new(
            vec![1, 2, 10 + number],
            vec![false, false, true],
        ));
        // What JSON would round, and what it has no word for.
        let values = vec![0.1 + f64::from(number) / 3.0, f64::NEG_INFINITY];
        sample.columns.set_numbers("old", values);
        sample
    }

    fn last(samples: &[&Sample]) -> Vec<u32> {
        samples
            .iter()
            .map(|sample| sample.rows[0].ids[2] - 10)
            .collect()
    }

    #[test]
    fn each_answer_comes_once_in_each_round() {
        let mut buffer = Buffer::new(2, 3);
        assert!(buffer.is_due());
        buffer.put((0..9).map(answer).collect(), vec![json!("a")], 7);
        let mut rounds = Vec::new();
        for phase in 0..6 {
            assert_eq!(buffer.is_due(), phase == 0);
            rounds.push(last(&buffer.take()));
            buffer.after_step();
        }
        for round in rounds.chunks(2) {
            let mut all = round.concat();
            all.sort_unstable();
            assert_eq!(all, [0, 1, 2, 3, 4, 5, 6, 7, 8]);
        }
        assert_ne!(rounds[..2], rounds[2..4]);
        assert!(buffer.is_due());
    }

    #[test]
    fn parts_are_as_even_as_can_be() {
        for (count, parts, expected) in [
            (9, 4, vec![2, 2, 2, 3]),
            (5, 4, vec![1, 1, 1, 2]),
            (8, 2, vec![4, 4]),
            // Fewer answers than parts: of a pass's last batch, or where rewards are missing.
            (1, 2, vec![0, 1]),
        ] {
            let mut buffer = Buffer::new(parts, 1);
            buffer.put((0..count).map(answer).collect(), vec![], 1);
            let mut sizes = Vec::new();
            for phase in 0..parts {
                let written = if phase == 0 { count as usize } else { 0 };
                assert_eq!(buffer.written().len(), written);
                sizes.push(buffer.take().len());
                buffer.after_step();
            }
            assert_eq!(sizes, expected);
        }
    }

    #[test]
    fn batches_of_a_step_have_places_of_their_own() {
        let mut buffer = Buffer::new(1, 2);
        buffer.put(vec![answer(0)], vec![], 0);
        assert_eq!(last(&buffer.take()), [0]);
        buffer.put(vec![answer(1)], vec![], 0);
        assert_eq!(last(&buffer.take()), [1]);
        buffer.after_step();
        assert_eq!(last(&buffer.take()), [0]);
        assert_eq!(last(&buffer.take()), [1]);
        // A step with more batches than the one before.
        assert!(buffer.is_due());
        buffer.after_step();
        buffer.put(vec![answer(2)], vec![], 0);
        assert_eq!(last(&buffer.take()), [2]);
    }

    #[test]
    fn what_is_held_survives_a_checkpoint_bit_for_bit() {
        let mut buffer = Buffer::new(2, 1);
        buffer.put((0..4).map(answer).collect(), vec![json!({"reward": 1})], 3);
        buffer.take();
        buffer.after_step();
        let text = buffer.state().to_string();
        let mut other = Buffer::new(2, 1);
        other
            .restore(&serde_json::from_str(&text).unwrap())
            .unwrap();
        assert_eq!(other, buffer);
        assert_eq!(other.take(), buffer.take());
        assert!(other.restore(&json!({"phase": 1})).is_err());
        buffer.after_step();
        assert_eq!(buffer.state(), json!({"phase": 0, "held": []}));
    }
}
