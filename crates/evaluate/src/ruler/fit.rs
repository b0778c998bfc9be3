//! Fitting prompts to a number of tokens: a binary search over the size of the haystack, then single steps back.

use super::{Count, Options, Sample, Task};
use crate::{Error, Result};

/// Draws at one size before a smaller one is tried, where the authors' generators would try for ever.
const TRIES: usize = 8;

/// A drawn prompt.
pub(super) struct Drawn {
    /// All but the beginning of the answer.
    pub input: String,
    /// The beginning of the answer.
    pub prefix: String,
    /// What the answer should say.
    pub outputs: Vec<String>,
}

impl Drawn {
    fn tokens(&self, count: Count) -> Result<usize> {
        count(&format!("{}{}", self.input, self.prefix))
    }
}

/// A generator of prompts of any size.
pub(super) trait Draw {
    /// Prompt number `index` with `size` units of haystack (sentences, words, documents); nothing where these are too few.
    fn draw(&mut self, size: usize, index: usize) -> Option<Drawn>;

    /// A prompt as it will be asked, where that is more than what is fitted (an example goes before it).
    fn finish(&mut self, drawn: Drawn) -> Drawn {
        drawn
    }
}

/// How the size is searched.
pub(super) struct Search {
    /// Units of a step.
    pub step: usize,
    /// Units of the prompt by which tokens a unit are estimated.
    pub probe: usize,
    /// The largest size that is tried, from the length and the tokens a unit.
    pub largest: fn(length: usize, tokens: f64) -> usize,
    /// Tokens that are added to each fitted prompt later.
    pub extra: usize,
    /// Tokens kept for the answer.
    pub answer: usize,
    /// The first prompt's number.
    pub first: usize,
}

/// Three times the estimate, for sizes are drawn with luck.
pub(super) fn three_times(length: usize, tokens: f64) -> usize {
    (length as f64 / tokens * 3.0) as usize
}

/// Prompts of a generator that fit.
pub(super) fn fitted(
    task: &Task,
    generator: &mut dyn Draw,
    search: &Search,
    options: &Options,
    count: Count,
) -> Result<Vec<(Drawn, usize)>> {
    let size = size(generator, search, options, count)?;
    let mut drawn = Vec::with_capacity(options.samples);
    for index in 0..options.samples {
        let index = search.first + index;
        let found = one(generator, search, size, index, options.length, count)?;
        drawn.push(found.ok_or_else(|| too_short(task, options.length))?);
    }
    Ok(drawn)
}

/// The largest size whose prompt fits, by the first prompt.
fn size(
    generator: &mut dyn Draw,
    search: &Search,
    options: &Options,
    count: Count,
) -> Result<usize> {
    let Some(probe) = generator.draw(search.probe, 0) else {
        return Ok(search.step);
    };
    let tokens = probe.tokens(count)? as f64 / search.probe as f64;
    let (mut low, mut found) = (search.step, None);
    let mut high = (search.largest)(options.length, tokens).max(2 * search.step);
    while low <= high {
        let middle = (low + high) / 2;
        let fits = match generator.draw(middle, 0) {
            Some(drawn) => drawn.tokens(count)? + search.extra + search.answer <= options.length,
            None => false,
        };
        if fits {
            found = Some(middle);
            low = middle + 1;
        } else {
            high = middle - 1;
        }
    }
    Ok(found.unwrap_or(search.step))
}

/// A prompt of at most this size that fits, with its tokens and the answer's.
fn one(
    generator: &mut dyn Draw,
    search: &Search,
    mut size: usize,
    index: usize,
    length: usize,
    count: Count,
) -> Result<Option<(Drawn, usize)>> {
    let mut tries = 0;
    while size > 0 {
        if let Some(drawn) = generator.draw(size, index) {
            let drawn = generator.finish(drawn);
            let tokens = drawn.tokens(count)? + search.answer;
            if tokens <= length {
                return Ok(Some((drawn, tokens)));
            }
        }
        tries += 1;
        if size > search.step {
            size -= search.step;
        } else if tries >= TRIES {
            size -= 1;
        }
    }
    Ok(None)
}

pub(super) fn too_short(task: &Task, length: usize) -> Error {
    Error::Ruler(format!(
        "{}: no prompt fits in {length} tokens, of which {} are the answer's; take a greater length",
        task.name, task.answer_tokens
    ))
}

/// The samples of what was drawn; those of needles know where their answer stands.
pub(super) fn numbered(
    drawn: Vec<(Drawn, usize)>,
    positions: bool,
    count: Count,
) -> Result<Vec<Sample>> {
    let sample = |(index, (drawn, length)): (usize, (Drawn, usize))| {
        let answer = drawn.outputs.first().map(String::as_str);
        let place = answer.and_then(|answer| drawn.input.find(answer));
        let answer_position = match place.filter(|_| positions) {
            Some(place) => Some(count(&drawn.input[..place])?),
            None => None,
        };
        Ok(Sample {
            index,
            input: drawn.input,
            outputs: drawn.outputs,
            length,
            answer_prefix: drawn.prefix,
            answer_position,
        })
    };
    drawn.into_iter().enumerate().map(sample).collect()
}
