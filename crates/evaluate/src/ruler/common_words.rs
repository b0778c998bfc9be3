//! Common words: a numbered list in which ten words occur more often than all others, after one solved example.

use super::fit::{Draw, Drawn, Search, fitted, numbered};
use super::python_random::PythonRandom;
use super::sources::Sources;
use super::words::all;
use super::{Count, Options, Sample, Task, fill};
use crate::Result;

const TEMPLATE: &str = "Below is a numbered list of words. In these words, some appear more often than others. Memorize the ones that appear most often.\n{context}\nQuestion: What are the 10 most common words in the above list?";
const PREFIX: &str = " Answer: The top 10 words that appear most often in the list are:";

/// Words that are asked for.
const COMMON: usize = 10;

/// Words of the list by which tokens a word are estimated.
const PROBE: usize = 4096;

/// How often words occur in a list.
#[derive(Clone, Copy)]
struct Frequencies {
    common: usize,
    others: usize,
}

struct Lists<'a> {
    words: Vec<&'static str>,
    /// Words that are drawn from where the list needs more than there are.
    more: Vec<String>,
    random: PythonRandom,
    seed: u64,
    example: (usize, Frequencies),
    list: Frequencies,
    template: &'a [String; 2],
}

pub(super) fn samples(
    task: &Task,
    options: &Options,
    sources: &Sources,
    count: Count,
) -> Result<Vec<Sample>> {
    let mut words = all();
    PythonRandom::new(options.seed).shuffle(&mut words);
    let frequencies = |common, others| Frequencies { common, others };
    let (example, list) = match options.length < 4096 {
        true => ((20, frequencies(3, 1)), frequencies(6, 1)),
        false => ((40, frequencies(10, 3)), frequencies(30, 3)),
    };
    // No list has more different words than the prompt has tokens.
    let more = match options.length > words.len() {
        true => sources.more_words(options.length)?,
        false => Vec::new(),
    };
    let mut generator = Lists {
        words,
        more,
        random: PythonRandom::new(options.seed),
        seed: options.seed,
        example,
        list,
        template: &options.template,
    };
    let search = Search {
        step: 10,
        probe: PROBE,
        largest: |length, tokens| (length as f64 / tokens).floor() as usize * 2,
        extra: 0,
        answer: task.answer_tokens,
        first: 0,
    };
    let drawn = fitted(task, &mut generator, &search, options, count)?;
    numbered(drawn, false, count)
}

impl Lists<'_> {
    /// The rendered list and its common words.
    fn list(&mut self, size: usize, frequencies: Frequencies) -> Option<(String, Vec<String>)> {
        let source: Vec<&str> = match size <= self.words.len() {
            true => self.words.clone(),
            false => self.more.iter().map(String::as_str).collect(),
        };
        let drawn = self.random.sample(source.len(), size)?;
        let drawn: Vec<&str> = drawn.into_iter().map(|place| source[place]).collect();
        let (common, others) = drawn.split_at(COMMON.min(drawn.len()));
        let mut list = common.repeat(frequencies.common);
        list.extend(others.repeat(frequencies.others));
        PythonRandom::new(self.seed).shuffle(&mut list);
        Some((
            numbered_list(&list),
            common.iter().map(|word| (*word).to_owned()).collect(),
        ))
    }

    fn question(&self, context: &str) -> String {
        let [before, after] = self.template;
        format!("{before}{}{after}", fill(TEMPLATE, &[("context", context)]))
    }
}

impl Draw for Lists<'_> {
    fn draw(&mut self, size: usize, _: usize) -> Option<Drawn> {
        let (example_size, example_frequencies) = self.example;
        let (example, solved) = self.list(example_size, example_frequencies)?;
        let (list, outputs) = self.list(size, self.list)?;
        // Fewer than ten words have no ten most common ones.
        (outputs.len() == COMMON).then_some(())?;
        let solved: Vec<&str> = solved.iter().map(String::as_str).collect();
        let example = format!(
            "{}{PREFIX} {}",
            self.question(&example),
            numbered_list(&solved)
        );
        Some(Drawn {
            input: format!("{example}\n{}", self.question(&list)),
            prefix: PREFIX.to_owned(),
            outputs,
        })
    }
}

/// `1. word 2. word`.
fn numbered_list(words: &[&str]) -> String {
    let numbered = words.iter().enumerate();
    let numbered: Vec<String> = numbered
        .map(|(place, word)| format!("{}. {word}", place + 1))
        .collect();
    numbered.join(" ")
}
