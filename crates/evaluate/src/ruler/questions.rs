//! Questions over documents, of which one or two hold the answer.

use std::collections::HashSet;

use super::fit::{Draw, Drawn, Search, fitted, numbered, three_times, too_short};
use super::python_random::PythonRandom;
use super::sources::{Collection, Documents, Sources};
use super::{Count, Options, Sample, Task, fill};
use crate::{Error, Result};

const TEMPLATE: &str = "Answer the question based on the given documents. Only give me the answer and do not output any other words.\n\nThe following are given documents.\n\n{context}\n\nAnswer the question based on the given documents. Only give me the answer and do not output any other words.\n\nQuestion: {query}";
const PREFIX: &str = " Answer:";

struct Questions<'a> {
    collection: Collection,
    random: PythonRandom,
    seed: u64,
    template: &'a [String; 2],
}

pub(super) fn samples(
    task: &Task,
    documents: Documents,
    options: &Options,
    sources: &Sources,
    count: Count,
) -> Result<Vec<Sample>> {
    let collection = sources.collection(documents)?;
    let there_are = collection.questions.len();
    if options.samples > there_are || there_are == 0 {
        return Err(Error::Ruler(format!(
            "{}: there are {there_are} questions, not {}; ask for fewer samples",
            task.name, options.samples
        )));
    }
    let mut generator = Questions {
        collection,
        random: PythonRandom::new(options.seed),
        seed: options.seed,
        template: &options.template,
    };
    let search = Search {
        step: 10,
        probe: 10,
        largest: three_times,
        extra: 0,
        answer: task.answer_tokens,
        first: 0,
    };
    if options.length <= task.answer_tokens {
        return Err(too_short(task, options.length));
    }
    let drawn = fitted(task, &mut generator, &search, options, count)?;
    numbered(drawn, false, count)
}

impl Questions<'_> {
    /// Places of `size` documents, those with the answer first.
    fn documents(&mut self, size: usize, index: usize) -> Option<Vec<usize>> {
        let all = self.collection.documents.len();
        let question = self.collection.questions.get(index)?;
        if size >= all {
            return Some((0..size).map(|place| place % all).collect());
        }
        let needed = question.documents.len();
        let mut places = question.documents.clone();
        let others = size.checked_sub(needed)?;
        if others > question.related.len() {
            places.extend(&question.related);
            let known: HashSet<usize> = places.iter().copied().collect();
            let rest: Vec<usize> = (0..all).filter(|place| !known.contains(place)).collect();
            let drawn = self
                .random
                .sample(rest.len(), others - question.related.len())?;
            places.extend(drawn.into_iter().map(|place| rest[place]));
        } else {
            let drawn = self.random.sample(question.related.len(), others)?;
            places.extend(drawn.into_iter().map(|place| question.related[place]));
        }
        Some(places)
    }
}

impl Draw for Questions<'_> {
    fn draw(&mut self, size: usize, index: usize) -> Option<Drawn> {
        let mut places = self.documents(size, index)?;
        PythonRandom::new(self.seed).shuffle(&mut places);
        let document = |(number, place): (usize, &usize)| {
            format!(
                "Document {}:\n{}",
                number + 1,
                self.collection.documents[*place]
            )
        };
        let context: Vec<String> = places.iter().enumerate().map(document).collect();
        let question = &self.collection.questions[index];
        let slots = [
            ("context", context.join("\n\n")),
            ("query", question.query.clone()),
        ];
        let slots = slots.each_ref().map(|(name, text)| (*name, text.as_str()));
        let [before, after] = self.template;
        Some(Drawn {
            input: format!("{before}{}{after}", fill(TEMPLATE, &slots)),
            prefix: PREFIX.to_owned(),
            outputs: question.outputs.clone(),
        })
    }
}
