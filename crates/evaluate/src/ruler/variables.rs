//! Variable tracking: a chain of assignments among sentences that mean nothing, after one solved example.

use std::collections::HashSet;

use super::fit::{Draw, Drawn, Search, fitted, numbered, three_times};
use super::needles::NOISE;
use super::python_random::{NumpyRandom, PythonRandom};
use super::{Count, Options, Sample, Task, fill};
use crate::{Error, Result};

const TEMPLATE: &str = "Memorize and track the chain(s) of variable assignment hidden in the following text.\n\n{context}\nQuestion: Find all variables that are assigned the value {query} in the text above.";
const PREFIX: &str = " Answer: According to the chain(s) of variable assignment in the text above, {num_v} variables are assigned the value {query}, they are: ";

const LETTERS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ";

/// The value of the example, until it gets one of its own.
const EXAMPLE_VALUE: &str = "12345";

/// Most tokens of the example, where the smallest is not longer.
const EXAMPLE_LENGTH: usize = 500;

/// The two streams of random numbers, of letters and places, and of values.
struct Streams {
    python: PythonRandom,
    numpy: NumpyRandom,
}

struct Chain<'a> {
    hops: usize,
    streams: &'a mut Streams,
    /// The solved example; none while it is itself drawn.
    example: Option<&'a str>,
    template: [&'a str; 2],
}

pub(super) fn samples(
    task: &Task,
    hops: usize,
    options: &Options,
    count: Count,
) -> Result<Vec<Sample>> {
    let mut streams = Streams {
        python: PythonRandom::new(options.seed),
        numpy: NumpyRandom::new(options.seed),
    };
    let search = |step, extra, answer| Search {
        step,
        probe: step,
        largest: three_times,
        extra,
        answer,
        first: 0,
    };
    let mut chain = Chain {
        hops,
        streams: &mut streams,
        example: None,
        template: ["", ""],
    };
    let example = Options {
        length: EXAMPLE_LENGTH,
        samples: 1,
        ..options.clone()
    };
    let drawn = match fitted(task, &mut chain, &search(5, 0, 0), &example, count) {
        // The published program would try for ever where so small a vocabulary makes the smallest example longer.
        Err(Error::Ruler(_)) => chain
            .draw(5, 0)
            .map(|drawn| (drawn, 0))
            .into_iter()
            .collect(),
        drawn => drawn?,
    };
    let solved = |(drawn, _): &(Drawn, usize)| {
        let names = drawn.outputs.join(" ");
        format!("{}{} {names}\n", drawn.input, drawn.prefix)
    };
    let example: String = drawn.iter().map(solved).collect();
    let [before, after] = &options.template;
    let mut chain = Chain {
        hops,
        streams: &mut streams,
        example: Some(&example),
        template: [before, after],
    };
    let step = if options.length < 4096 { 5 } else { 10 };
    let search = search(step, count(&example)?, task.answer_tokens);
    let drawn = fitted(task, &mut chain, &search, options, count)?;
    numbered(drawn, false, count)
}

impl Chain<'_> {
    /// The names, the value and the assignments.
    fn assignments(&mut self) -> (Vec<String>, String, Vec<String>) {
        let letters = if self.example.is_some() { 5 } else { 3 };
        // The published program fails where two names are alike, and tries again.
        let names = loop {
            let python = &mut self.streams.python;
            let names: Vec<String> = (0..=self.hops)
                .map(|_| python.letters(LETTERS, letters))
                .collect();
            if names.iter().collect::<HashSet<_>>().len() == names.len() {
                break names;
            }
        };
        let value = match self.example {
            Some(_) => self.streams.numpy.range(10_000, 99_999).to_string(),
            None => EXAMPLE_VALUE.to_owned(),
        };
        let mut lines = vec![format!("VAR {} = {value}", names[0])];
        let assignments = names.windows(2);
        lines.extend(assignments.map(|pair| format!("VAR {} = VAR {} ", pair[1], pair[0])));
        (names, value, lines)
    }

    /// The example with names and a value of its own.
    fn another_example(&mut self, example: &str) -> String {
        let words: Vec<&str> = example.split_whitespace().collect();
        let names = &words[words.len().saturating_sub(self.hops + 1)..];
        let streams = &mut *self.streams;
        let renamed = names.iter().fold(example.to_owned(), |text, name| {
            text.replace(name, &streams.python.letters(LETTERS, name.len()))
        });
        let value = streams.numpy.range(10_000, 99_999).to_string();
        renamed.replace(EXAMPLE_VALUE, &value)
    }
}

impl Draw for Chain<'_> {
    fn draw(&mut self, size: usize, _: usize) -> Option<Drawn> {
        let (names, value, lines) = self.assignments();
        let mut sentences = vec![NOISE.to_owned(); size];
        let mut places = self.streams.python.sample(size, lines.len())?;
        places.sort_unstable();
        for (shift, (place, line)) in places.into_iter().zip(lines).enumerate() {
            sentences.insert(place + shift, line);
        }
        let context = sentences.join("\n").replace(". \n", ".\n");
        let count = (self.hops + 1).to_string();
        let slots = [
            ("context", context.as_str()),
            ("query", value.as_str()),
            ("num_v", count.as_str()),
        ];
        let [before, after] = self.template;
        Some(Drawn {
            input: format!("{before}{}{after}", fill(TEMPLATE, &slots)),
            prefix: fill(PREFIX, &slots),
            outputs: names,
        })
    }

    fn finish(&mut self, mut drawn: Drawn) -> Drawn {
        if let Some(example) = self.example {
            let example = self.another_example(example);
            let before = self.template[0].len();
            drawn.input.insert_str(before, &format!("{example}\n"));
        }
        drawn
    }
}
