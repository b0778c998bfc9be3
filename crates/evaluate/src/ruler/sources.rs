//! Where essays, documents and words come from: the authors' files, or our own worlds where there are none.
//!
//! The folder is what the authors' download scripts leave in `scripts/data/synthetic/json`: `PaulGrahamEssays.json`, `squad.json`
//! (SQuAD dev-v2.0), `hotpotqa.json` (HotpotQA dev distractor v1) and `english_words.json`. Without it, essays are stories of
//! the world `g8`, and the questions are about made-up people and books.

mod generated;

use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::words::all;
use crate::{Error, Result};

/// A collection of questions over documents.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Documents {
    /// One document has the answer; the others of its article are the first to stand beside it.
    Squad,
    /// Two documents have the answer, and eight more were chosen to distract.
    HotpotQa,
}

/// Questions and the documents of all of them.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Collection {
    /// The questions.
    pub questions: Vec<Question>,
    /// The documents, sorted.
    pub documents: Vec<String>,
}

/// A question; documents are named by their places.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Question {
    /// The question.
    pub query: String,
    /// Its answers, any of which is right.
    pub outputs: Vec<String>,
    /// Documents that always stand in the prompt.
    pub documents: Vec<usize>,
    /// Documents that stand beside them first.
    pub related: Vec<usize>,
}

/// Where the texts of the tasks come from.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Sources {
    folder: Option<PathBuf>,
}

impl Sources {
    /// Texts of our own worlds.
    pub fn generated() -> Self {
        Self::default()
    }

    /// The authors' files in a folder.
    pub fn folder(folder: &Path) -> Self {
        Self {
            folder: Some(folder.to_owned()),
        }
    }

    /// What the sources are, in a word, for those who read the scores.
    pub fn name(&self) -> &'static str {
        match self.folder {
            Some(_) => "the authors' files",
            None => "generated",
        }
    }

    /// The words of the essays.
    ///
    /// # Errors
    /// When the authors' file is asked for and missing or malformed.
    pub fn essay(&self) -> Result<Vec<String>> {
        #[derive(Deserialize)]
        struct Essays {
            text: String,
        }
        let text = match &self.folder {
            Some(folder) => read::<Essays>(folder, "PaulGrahamEssays.json")?.text,
            None => generated::essay()?,
        };
        let words: Vec<String> = text.split_whitespace().map(str::to_owned).collect();
        if words.is_empty() {
            return Err(Error::Ruler("the essays have no words".to_owned()));
        }
        Ok(words)
    }

    /// Questions over documents.
    ///
    /// # Errors
    /// When the authors' file is asked for and missing or malformed.
    pub fn collection(&self, documents: Documents) -> Result<Collection> {
        match (&self.folder, documents) {
            (Some(folder), Documents::Squad) => squad(read(folder, "squad.json")?),
            (Some(folder), Documents::HotpotQa) => hotpot_qa(read(folder, "hotpotqa.json")?),
            (None, Documents::Squad) => Ok(generated::people()),
            (None, Documents::HotpotQa) => Ok(generated::books()),
        }
    }

    /// Words for lists with more of them than [`super::words::all`]: the authors' English words, or `count` words of our own: all there
    /// are, then made-up ones.
    ///
    /// # Errors
    /// When the authors' file is asked for and missing or malformed.
    pub fn more_words(&self, count: usize) -> Result<Vec<String>> {
        match &self.folder {
            Some(folder) => {
                // An object from numbers to words, in the order of the file.
                let words: serde_json::Map<String, serde_json::Value> =
                    read(folder, "english_words.json")?;
                let words = words.values().filter_map(|word| word.as_str());
                Ok(words.map(str::to_owned).collect())
            }
            None => {
                let words = all().into_iter().map(str::to_owned);
                Ok(words.chain(generated::words()).take(count).collect())
            }
        }
    }
}

fn read<T: serde::de::DeserializeOwned>(folder: &Path, name: &str) -> Result<T> {
    let path = folder.join(name);
    let failed = |reason: String| {
        Error::Ruler(format!(
            "{}: {reason}; it is what RULER's download scripts leave in scripts/data/synthetic/json, and without a folder generated texts take its place",
            path.display()
        ))
    };
    let bytes = std::fs::read(&path).map_err(|error| failed(error.to_string()))?;
    serde_json::from_slice(&bytes).map_err(|error| failed(error.to_string()))
}

#[derive(Deserialize)]
struct Squad {
    data: Vec<Article>,
}

#[derive(Deserialize)]
struct Article {
    paragraphs: Vec<Paragraph>,
}

#[derive(Deserialize)]
struct Paragraph {
    context: String,
    qas: Vec<Asked>,
}

#[derive(Deserialize)]
struct Asked {
    question: String,
    #[serde(default)]
    answers: Vec<Answer>,
    is_impossible: bool,
}

#[derive(Deserialize)]
struct Answer {
    text: String,
}

/// Sorted documents, each once, and their places.
fn placed(documents: impl Iterator<Item = String>) -> (Vec<String>, HashMap<String, usize>) {
    let documents: Vec<String> = documents.collect::<BTreeSet<_>>().into_iter().collect();
    let places = documents.iter().cloned().zip(0..).collect();
    (documents, places)
}

fn squad(file: Squad) -> Result<Collection> {
    let paragraphs = file.data.iter().flat_map(|article| &article.paragraphs);
    let (documents, places) = placed(paragraphs.map(|paragraph| paragraph.context.clone()));
    let mut questions = Vec::new();
    for article in &file.data {
        let all: Vec<usize> = article
            .paragraphs
            .iter()
            .map(|other| places[&other.context])
            .collect();
        for paragraph in &article.paragraphs {
            let place = places[&paragraph.context];
            let related: Vec<usize> = all
                .iter()
                .copied()
                .filter(|other| *other != place)
                .collect();
            let answerable = paragraph.qas.iter().filter(|asked| !asked.is_impossible);
            questions.extend(answerable.map(|asked| {
                Question {
                    query: asked.question.clone(),
                    outputs: asked
                        .answers
                        .iter()
                        .map(|answer| answer.text.clone())
                        .collect(),
                    documents: vec![place],
                    related: related.clone(),
                }
            }));
        }
    }
    Ok(Collection {
        questions,
        documents,
    })
}

#[derive(Deserialize)]
struct Hotpot {
    question: String,
    answer: String,
    context: Vec<(String, Vec<String>)>,
}

fn hotpot_qa(file: Vec<Hotpot>) -> Result<Collection> {
    let text =
        |(title, sentences): &(String, Vec<String>)| format!("{title}\n{}", sentences.concat());
    let (documents, places) = placed(file.iter().flat_map(|asked| asked.context.iter().map(text)));
    let question = |asked: Hotpot| Question {
        documents: asked
            .context
            .iter()
            .map(|part| places[&text(part)])
            .collect(),
        query: asked.question,
        outputs: vec![asked.answer],
        related: Vec::new(),
    };
    Ok(Collection {
        questions: file.into_iter().map(question).collect(),
        documents,
    })
}
