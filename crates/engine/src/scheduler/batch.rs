//! The rows that are decoded together: one token each a step, in one forward pass.
//!
//! Rows end together in one rectangle of keys and values; shorter ones stand behind padding that nobody sees. A row that has ended
//! leaves its place to the next one that fits; else the rows move into a new rectangle, which has room for some time.

use espalier_kernels::readback::ReadFloats;
use espalier_models::{
    model::{Input, LanguageModel},
    state::{RowPart, SequenceState},
};
use rayon::prelude::*;

use super::{job::Job, memory::room_for};
use crate::{Result, decode::Finish};

/// The rows.
#[derive(Default)]
pub(super) struct Batch {
    state: Option<SequenceState>,
    /// A place whose row has ended is empty.
    places: Vec<Option<Job>>,
}

/// A row that has ended, with its tokens so far and what the model remembers of all but the last.
pub(super) struct Ended {
    pub job: Job,
    pub finish: Result<Finish>,
    pub state: Option<SequenceState>,
}

impl Batch {
    /// The rows that go on.
    pub fn jobs(&self) -> impl Iterator<Item = &Job> {
        self.places.iter().flatten()
    }

    /// Rows that go on.
    pub fn len(&self) -> usize {
        self.jobs().count()
    }

    /// Bytes of the keys, values and states.
    pub fn bytes(&self) -> u64 {
        self.state.as_ref().map_or(0, SequenceState::bytes)
    }

    /// Tokens that the longest row has in its state.
    pub fn longest(&self) -> usize {
        let known = |job: &Job| job.history.len().saturating_sub(1);
        self.jobs().map(known).max().unwrap_or(0)
    }

    /// Whether there is no room for the next token of every row.
    pub fn is_full(&self) -> bool {
        let full = |state: &SequenceState| state.room() <= state.length();
        self.state.as_ref().is_some_and(full)
    }

    /// Whether much of the rectangle is of no use any more.
    pub fn is_wasteful(&self) -> bool {
        let empty = self.places.len() - self.len();
        let length = self.state.as_ref().map_or(0, SequenceState::length);
        empty * 4 > self.places.len() || length > 2 * self.longest() + 256
    }

    /// Takes in rows whose prompts were read, each with its state.
    pub fn join(&mut self, ready: Vec<(Job, &SequenceState)>) {
        let mut left_over = Vec::new();
        for (job, state) in ready {
            let tokens = state.length();
            let place = self.places.iter().position(Option::is_none);
            match (place, &mut self.state) {
                (Some(place), Some(own)) if tokens <= own.length() => {
                    own.replace(place, &RowPart::whole(state, 0));
                    self.places[place] = Some(job);
                }
                _ => left_over.push((job, state)),
            }
        }
        if !left_over.is_empty() {
            self.regroup(left_over);
        }
    }

    /// Moves the rows that go on, and new ones, into a rectangle of their own.
    pub fn regroup(&mut self, new: Vec<(Job, &SequenceState)>) {
        let old = self.state.take();
        let mut jobs = Vec::new();
        let mut parts = Vec::new();
        for (place, job) in std::mem::take(&mut self.places).into_iter().enumerate() {
            if let (Some(job), Some(state)) = (job, &old) {
                let tokens = job.history.len() - 1;
                parts.push(RowPart {
                    state,
                    row: place,
                    tokens,
                });
                jobs.push(Some(job));
            }
        }
        for (job, state) in new {
            parts.push(RowPart::whole(state, 0));
            jobs.push(Some(job));
        }
        let longest = parts.iter().map(|part| part.tokens).max().unwrap_or(0);
        self.state =
            (!parts.is_empty()).then(|| SequenceState::gathered(&parts, room_for(longest)));
        self.places = jobs;
    }

    /// Takes out rows of which this is true.
    pub fn take(&mut self, mut which: impl FnMut(&Job) -> bool) -> Vec<Job> {
        let mut taken = Vec::new();
        for place in &mut self.places {
            if place.as_ref().is_some_and(&mut which) {
                taken.extend(place.take());
            }
        }
        if self.len() == 0 {
            self.clear();
        }
        taken
    }

    fn clear(&mut self) {
        self.state = None;
        self.places.clear();
    }

    /// One token for every row; the rows that ended with it, whose states are kept where `keep` says so.
    pub fn step(&mut self, model: &LanguageModel, keep: bool) -> Vec<Ended> {
        let logits = match self.logits(model) {
            Ok(logits) => logits,
            Err(error) => {
                let reason = error.to_string();
                let jobs = std::mem::take(&mut self.places).into_iter().flatten();
                let failed = |job| Ended {
                    job,
                    finish: Err(crate::Error::Together(reason.clone())),
                    state: None,
                };
                let ended = jobs.map(failed).collect();
                self.clear();
                return ended;
            }
        };
        let spec = model.spec();
        let rows = self
            .places
            .par_iter_mut()
            .zip(logits.par_chunks(spec.vocabulary));
        let advance = |(place, logits): (&mut Option<Job>, &[f32])| match place {
            Some(job) => job.advance(spec, logits).transpose(),
            None => None,
        };
        let finishes: Vec<Option<Result<Finish>>> = rows.map(advance).collect();
        let mut ended = Vec::new();
        for (place, finish) in finishes.into_iter().enumerate() {
            let Some(finish) = finish else { continue };
            let Some(job) = self.places[place].take() else {
                continue;
            };
            let tokens = job.history.len() - usize::from(finish.is_ok());
            let row = |state: &SequenceState| {
                let part = RowPart {
                    state,
                    row: place,
                    tokens,
                };
                SequenceState::gathered(&[part], tokens)
            };
            let state = self.state.as_ref().filter(|_| keep).map(row);
            ended.push(Ended { job, finish, state });
        }
        if self.len() == 0 {
            self.clear();
        }
        ended
    }

    /// The logits behind the newest token of every row, `[places * vocabulary]`.
    fn logits(&mut self, model: &LanguageModel) -> Result<Vec<f32>> {
        let newest = |place: &Option<Job>| {
            let last = place.as_ref().and_then(|job| job.history.last());
            last.copied().unwrap_or(0)
        };
        let position = |place: &Option<Job>| {
            let position = place.as_ref().map_or(0, |job| job.history.len() - 1);
            u32::try_from(position).unwrap_or(u32::MAX)
        };
        let input = Input {
            ids: self.places.iter().map(newest).collect(),
            batch: self.places.len(),
            positions: Some(self.places.iter().map(position).collect()),
            ..Input::default()
        };
        last_logits(model, &input, self.state.as_mut())
    }
}

/// Logits of the last position of every row, `[batch * vocabulary]`.
pub(super) fn last_logits(
    model: &LanguageModel,
    input: &Input,
    state: Option<&mut SequenceState>,
) -> Result<Vec<f32>> {
    let hidden = model.hidden(input, state)?;
    let [batch, time, width] = hidden.dims();
    let last = hidden.narrow(1, time - 1, 1).reshape([batch, width]);
    Ok(model.head(last).floats())
}
