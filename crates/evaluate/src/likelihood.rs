//! Likelihoods of texts behind others, with what they share computed once.
//!
//! All contexts of an evaluation may begin alike (a description, labelled examples): that beginning is read once. The rest of a context is
//! read once for all of its continuations, whose rows start from the state after it; continuations of one token ask for nothing more.
//! Contexts of one length share a batch, so none is padded before its end, and recurrent models are served alike. What a model computes
//! behind a state is what it computes in one go, which the tests hold to 1e-4.
//!
//! Left out: encoder-decoders. Models whose frequencies change with length (LongRoPE) and those with routed depth read every text whole.

use espalier_kernels::embedding::embedding;
use espalier_models::{
    model::{Input, LanguageModel},
    state::SequenceState,
};

use crate::{Error, Result, tasks::metric::Likelihood};

/// A shared beginning that is shorter is not worth a state of its own.
const SHORTEST_PREFIX: usize = 8;

/// Texts behind a context, all in tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Question {
    /// What comes before; at least one token.
    pub context: Vec<u32>,
    /// The texts that are scored; at least one token each.
    pub continuations: Vec<Vec<u32>>,
}

/// What bounds a batch and a text.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// Most tokens that the model reads at once; contexts are cut at their beginning.
    pub longest: usize,
    /// Most tokens of a batch, padding included, unless one row has more.
    pub batch: usize,
}

/// Takes the likelihoods of a question's continuations.
pub type Sink<'a> = &'a mut dyn FnMut(usize, Vec<Likelihood>) -> Result<()>;

/// Scores every question; `sink` gets each one's number and likelihoods once they are known, in no particular order.
///
/// # Errors
/// When a token is outside the vocabulary, a continuation is longer than the model reads, or the model cannot say how likely a text is.
pub fn likelihoods(
    model: &LanguageModel,
    questions: &[Question],
    bounds: Bounds,
    sink: Sink<'_>,
) -> Result<()> {
    let spec = model.spec();
    if spec.bidirectional {
        return Err(espalier_engine::Error::NoLikelihood.into());
    }
    if spec.encoder.is_some() {
        return Err(Error::task(
            "the likelihood of texts behind others is measured of decoders alone, and this model is an encoder-decoder",
        ));
    }
    Scorer::new(model, questions, bounds)?.score(sink)
}

/// A row of a batch: tokens, and what is predicted at the end of them.
struct Row {
    tokens: Vec<u32>,
    /// Continuations, by question and number, with their tokens.
    owners: Vec<(usize, usize, Vec<u32>)>,
}

struct Scorer<'a> {
    model: &'a LanguageModel,
    questions: &'a [Question],
    bounds: Bounds,
    /// The beginning of all contexts, and the state after it.
    prefix: (usize, Option<SequenceState>),
    shares: bool,
    /// What is known of each question.
    found: Vec<Vec<Option<Likelihood>>>,
}

impl<'a> Scorer<'a> {
    fn new(model: &'a LanguageModel, questions: &'a [Question], bounds: Bounds) -> Result<Self> {
        let spec = model.spec();
        let routed = spec.blocks.iter().any(|block| block.routing.is_some());
        let shares = !routed && !spec.stales_cache(1, bounds.longest.min(spec.context));
        let found = questions
            .iter()
            .map(|question| vec![None; question.continuations.len()])
            .collect();
        let mut scorer = Self {
            model,
            questions,
            bounds,
            prefix: (0, None),
            shares,
            found,
        };
        for question in questions {
            scorer.check(question)?;
        }
        scorer.read_prefix()?;
        Ok(scorer)
    }

    fn check(&self, question: &Question) -> Result<()> {
        let longest = self.bounds.longest;
        if question.context.is_empty() || question.continuations.iter().any(Vec::is_empty) {
            return Err(Error::task(
                "a text to be scored, or what stands before it, has no tokens",
            ));
        }
        match question.continuations.iter().map(Vec::len).max() {
            Some(length) if length > longest => Err(Error::task(format!(
                "a text of {length} tokens is to be scored, and the model reads {longest} at once"
            ))),
            _ => Ok(()),
        }
    }

    /// Reads the beginning that all contexts share.
    fn read_prefix(&mut self) -> Result<()> {
        let mut contexts = self
            .questions
            .iter()
            .enumerate()
            .filter(|(i, _)| self.fits(*i));
        let Some((_, first)) = contexts.next() else {
            return Ok(());
        };
        let mut length = first.context.len() - 1;
        let mut others = 0;
        for (_, question) in contexts {
            let pairs = question.context[..question.context.len() - 1]
                .iter()
                .zip(&first.context);
            length = length.min(pairs.take_while(|(a, b)| a == b).count());
            others += 1;
        }
        if !self.shares || others == 0 || length < SHORTEST_PREFIX {
            return Ok(());
        }
        let state = self.read(None, &[first.context[..length].to_vec()])?;
        self.prefix = (length, Some(state));
        Ok(())
    }

    /// Whether all of a question fits the model, so that nothing of its context is cut.
    fn fits(&self, number: usize) -> bool {
        let question = &self.questions[number];
        let longest = question
            .continuations
            .iter()
            .map(Vec::len)
            .max()
            .unwrap_or(0);
        question.context.len() + longest - 1 <= self.bounds.longest
    }

    fn score(mut self, sink: Sink<'_>) -> Result<()> {
        let (mut alone, mut together) = (Vec::new(), Vec::new());
        for (number, question) in self.questions.iter().enumerate() {
            match self.shares && self.fits(number) && question.continuations.len() > 1 {
                true => together.push(number),
                false => alone.extend((0..question.continuations.len()).map(|i| (number, i))),
            }
        }
        self.score_alone(&alone, sink)?;
        self.score_together(&mut together, sink)
    }

    /// Continuations whose context is read for each anew.
    fn score_alone(&mut self, pairs: &[(usize, usize)], sink: Sink<'_>) -> Result<()> {
        let (mut behind, mut whole) = (Vec::new(), Vec::new());
        for (number, i) in pairs {
            let question = &self.questions[*number];
            let continuation = &question.continuations[*i];
            let from = if self.fits(*number) { self.prefix.0 } else { 0 };
            let mut tokens = question.context[from..].to_vec();
            tokens.extend(&continuation[..continuation.len() - 1]);
            let cut = tokens.len().saturating_sub(self.bounds.longest);
            let row = Row {
                tokens: tokens.split_off(cut),
                owners: vec![(*number, *i, continuation.clone())],
            };
            if from > 0 {
                behind.push(row)
            } else {
                whole.push(row)
            }
        }
        let state = self.prefix.1.clone();
        for (mut rows, state, past) in [(whole, None, 0), (behind, state, self.prefix.0)] {
            rows.sort_by_key(|row| row.tokens.len());
            for rows in batches(&rows, self.bounds.batch) {
                let state = state
                    .as_ref()
                    .map(|state| state.selected(&vec![0; rows.len()]));
                self.score_rows(rows, state, past, sink)?;
            }
        }
        Ok(())
    }

    /// Continuations that share the reading of their context.
    fn score_together(&mut self, numbers: &mut [usize], sink: Sink<'_>) -> Result<()> {
        let questions = self.questions;
        let length = |number: &usize| questions[*number].context.len();
        numbers.sort_by_key(length);
        for group in numbers.chunk_by(|a, b| length(a) == length(b)) {
            let each = (length(&group[0]) - self.prefix.0).max(1);
            for group in group.chunks((self.bounds.batch / each).max(1)) {
                self.score_group(group, sink)?;
            }
        }
        Ok(())
    }

    /// Questions whose contexts have one length.
    fn score_group(&mut self, group: &[usize], sink: Sink<'_>) -> Result<()> {
        let (start, length) = (self.prefix.0, self.questions[group[0]].context.len());
        let rest = |number: &usize| self.questions[*number].context[start..length - 1].to_vec();
        let rests: Vec<Vec<u32>> = group.iter().map(rest).collect();
        let prefix = self.prefix.1.as_ref();
        let state = prefix.map(|state| state.selected(&vec![0; group.len()]));
        let state = match length - 1 > start {
            true => Some(self.read(state, &rests)?),
            false => state,
        };
        // The place in the group that each row continues.
        let (mut rows, mut places) = (Vec::new(), Vec::new());
        for (place, number) in group.iter().enumerate() {
            let own = rows_of(*number, &self.questions[*number]);
            places.extend(std::iter::repeat_n(place, own.len()));
            rows.extend(own);
        }
        let mut done = 0;
        for rows in batches(&rows, self.bounds.batch) {
            let places = &places[done..done + rows.len()];
            let state = state.as_ref().map(|state| state.selected(places));
            self.score_rows(rows, state, length - 1, sink)?;
            done += rows.len();
        }
        Ok(())
    }

    /// The state after rows of one length.
    fn read(&self, state: Option<SequenceState>, rows: &[Vec<u32>]) -> Result<SequenceState> {
        let mut state = state.unwrap_or_else(|| self.model.fresh_state());
        self.model.hidden(&Input::rows(rows)?, Some(&mut state))?;
        Ok(state)
    }

    /// Scores rows behind a state of `past` tokens. What fills a row up stands behind all that counts.
    fn score_rows(
        &mut self,
        rows: &[Row],
        state: Option<SequenceState>,
        past: usize,
        sink: Sink<'_>,
    ) -> Result<()> {
        let time = rows.iter().map(|row| row.tokens.len()).max().unwrap_or(0);
        let last = self
            .model
            .spec()
            .learned_positions()
            .map_or(u32::MAX, |limit| limit as u32 - 1);
        let positions = || (past..past + time).map(|position| (position as u32).min(last));
        let filled = |row: &Row| {
            let padding = std::iter::repeat_n(0, time - row.tokens.len());
            row.tokens
                .iter()
                .copied()
                .chain(padding)
                .collect::<Vec<u32>>()
        };
        let input = Input {
            ids: rows.iter().flat_map(filled).collect(),
            batch: rows.len(),
            positions: Some(rows.iter().flat_map(|_| positions()).collect()),
            ..Input::default()
        };
        let mut state = state;
        let hidden = self.model.hidden(&input, state.as_mut())?;
        let [_, _, width] = hidden.dims();
        let (mut predictors, mut targets) = (Vec::new(), Vec::new());
        for (r, row) in rows.iter().enumerate() {
            for (_, _, tokens) in &row.owners {
                let first = r * time + row.tokens.len() - tokens.len();
                predictors.extend((first..first + tokens.len()).map(|place| place as u32));
                targets.extend(tokens);
            }
        }
        let predicting = embedding(hidden.reshape([rows.len() * time, width]), &predictors);
        let mut scores = self.model.target_scores(predicting, &targets)?.into_iter();
        for (number, i, tokens) in rows.iter().flat_map(|row| &row.owners) {
            let mut found = Likelihood {
                log_probability: 0.0,
                first_choice: true,
            };
            for score in scores.by_ref().take(tokens.len()) {
                found.log_probability += f64::from(score.log_probability);
                found.first_choice &= score.first_choice;
            }
            self.found[*number][*i] = Some(found);
            let all: Option<Vec<Likelihood>> = self.found[*number].iter().copied().collect();
            if let Some(all) = all {
                sink(*number, all)?;
            }
        }
        Ok(())
    }
}

/// The rows of a question behind its context but for the last token; continuations that differ in their last token alone share one.
fn rows_of(number: usize, question: &Question) -> Vec<Row> {
    let last = question.context.len() - 1;
    let mut rows: Vec<Row> = Vec::new();
    for (i, continuation) in question.continuations.iter().enumerate() {
        let mut tokens = vec![question.context[last]];
        tokens.extend(&continuation[..continuation.len() - 1]);
        let owner = (number, i, continuation.clone());
        match rows.iter_mut().find(|row| row.tokens == tokens) {
            Some(row) => row.owners.push(owner),
            None => rows.push(Row {
                tokens,
                owners: vec![owner],
            }),
        }
    }
    rows
}

/// Rows in batches of at most so many tokens, padding included.
fn batches(rows: &[Row], most: usize) -> Vec<&[Row]> {
    let (mut batches, mut from, mut longest) = (Vec::new(), 0, 0);
    for (at, row) in rows.iter().enumerate() {
        let wider = longest.max(row.tokens.len());
        if at > from && wider * (at + 1 - from) > most {
            batches.push(&rows[from..at]);
            (from, longest) = (at, row.tokens.len());
        } else {
            longest = wider;
        }
    }
    if from < rows.len() {
        batches.push(&rows[from..]);
    }
    batches
}

/// Windows of a whole text, as pairs of what comes before and what is scored: every token once, the first behind `start`. Later windows
/// see one token of the one before (lm-evaluation-harness).
///
/// ```
/// use espalier_evaluate::likelihood::windows;
/// let found = windows(&[1, 2, 3, 4, 5], 9, 3);
/// assert_eq!(found[0], (vec![9], vec![1, 2, 3]));
/// assert_eq!(found[1], (vec![2, 3], vec![4, 5]));
/// ```
pub fn windows(tokens: &[u32], start: u32, longest: usize) -> Vec<(Vec<u32>, Vec<u32>)> {
    let longest = longest.max(1);
    let mut all = Vec::new();
    let first = tokens.len().min(longest);
    if first == 0 {
        return all;
    }
    all.push((vec![start], tokens[..first].to_vec()));
    let mut done = first;
    while done < tokens.len() {
        let end = (done + longest).min(tokens.len());
        // The window ends at `end` and is as long as the model reads.
        let from = (end - 1).saturating_sub(longest);
        all.push((tokens[from..done].to_vec(), tokens[done..end].to_vec()));
        done = end;
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::Device;
    use espalier_data::encode::Example;
    use espalier_engine::score::score;
    use espalier_models::{source::Seed, spec::ModelSpec};

    fn questions() -> Vec<Question> {
        let shared = [5, 9, 3, 22, 7, 8, 1, 2, 4, 30];
        let question = |seed: u32| Question {
            context: shared
                .iter()
                .copied()
                .chain((0..1 + seed % 3).map(|i| (seed * 7 + i) % 64))
                .collect(),
            continuations: vec![vec![seed % 64], vec![3], vec![4, 5, seed % 60], vec![4, 5]],
        };
        let mut all: Vec<_> = (0..7).map(question).collect();
        all[3].continuations.truncate(1);
        all[5].context.extend([1; 30]);
        all
    }

    fn alone(model: &LanguageModel, question: &Question, longest: usize) -> Vec<f64> {
        let one = |continuation: &Vec<u32>| {
            let mut ids = [question.context.clone(), continuation.clone()].concat();
            let ids = ids.split_off(ids.len().saturating_sub(longest + 1));
            let first = ids.len() - continuation.len();
            score(model, &[Example::answered(ids, first)], 1).unwrap()[0].log_probability
        };
        question.continuations.iter().map(one).collect()
    }

    #[test]
    fn what_is_shared_changes_nothing() {
        let model = LanguageModel::build(
            ModelSpec::llama(64, 16, 2, 2, 1, 32, 64),
            &mut Seed(1),
            &Device::flex(),
        )
        .unwrap();
        for (longest, batch) in [(64, 4096), (64, 20), (24, 64)] {
            let questions = questions();
            let mut found = vec![Vec::new(); questions.len()];
            let bounds = Bounds { longest, batch };
            likelihoods(&model, &questions, bounds, &mut |number, all| {
                assert!(found[number].is_empty(), "told once");
                found[number] = all;
                Ok(())
            })
            .unwrap();
            for (question, found) in questions.iter().zip(&found) {
                let expected = alone(&model, question, longest);
                assert_eq!(expected.len(), found.len());
                for (expected, found) in expected.iter().zip(found) {
                    assert!(
                        (expected - found.log_probability).abs() < 1e-4,
                        "{expected} {found:?}"
                    );
                }
            }
        }
    }

    #[test]
    fn windows_score_every_token_once() {
        let tokens: Vec<u32> = (1..=10).collect();
        let sets: Vec<Vec<u32>> = windows(&tokens, 0, 4)
            .into_iter()
            .map(|(_, scored)| scored)
            .collect();
        assert_eq!(sets, [vec![1, 2, 3, 4], vec![5, 6, 7, 8], vec![9, 10]]);
        let (before, scored) = &windows(&tokens, 0, 4)[2];
        assert_eq!(before.len() + scored.len(), 5);
        assert!(windows(&[], 0, 4).is_empty());
    }

    #[test]
    fn what_cannot_be_scored_is_refused() {
        let model = LanguageModel::build(
            ModelSpec::llama(64, 16, 1, 2, 1, 32, 64),
            &mut Seed(1),
            &Device::flex(),
        )
        .unwrap();
        let bounds = Bounds {
            longest: 2,
            batch: 64,
        };
        for question in [
            Question {
                context: vec![],
                continuations: vec![vec![1]],
            },
            Question {
                context: vec![1],
                continuations: vec![vec![1, 2, 3]],
            },
        ] {
            assert!(likelihoods(&model, &[question], bounds, &mut |_, _| Ok(())).is_err());
        }
    }
}
