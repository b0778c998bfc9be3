//! The pieces of VaL probing: the authors' files, or made-up sentences, functions and entities.

use std::path::{Path, PathBuf};

use espalier_data::random::Random;
use serde::Deserialize;

use super::Task;
use crate::{Error, Result, ruler::words};

/// Made-up pieces of each task: enough for about 100,000 tokens.
const GENERATED: usize = 4000;

/// A piece of a context, and what can be asked about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Piece {
    /// Its text.
    pub text: String,
    /// What the question gives.
    pub keyword: String,
    /// What the answer should say; one of them suffices.
    pub expected: Vec<String>,
}

/// Where pieces come from.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Pieces {
    folder: Option<PathBuf>,
}

/// What stands between two pieces.
pub(super) fn separator(task: Task) -> &'static str {
    match task {
        Task::Document => " ",
        Task::Code => "\n\n",
        Task::Database => "\n",
    }
}

#[derive(Deserialize)]
struct Sentence {
    sentence: String,
    piece: String,
}

#[derive(Deserialize)]
struct Function {
    function_name: String,
    function_define: String,
    piece: String,
}

#[derive(Deserialize)]
struct Entity {
    id: String,
    label: String,
    dcpt: String,
}

impl From<Sentence> for Piece {
    fn from(sentence: Sentence) -> Self {
        Self {
            text: sentence.sentence.clone(),
            keyword: sentence.piece,
            expected: vec![sentence.sentence],
        }
    }
}

impl From<Function> for Piece {
    fn from(function: Function) -> Self {
        Self {
            text: format!(
                "def {}:\n{}",
                function.function_name, function.function_define
            ),
            keyword: function.piece,
            expected: vec![function.function_name],
        }
    }
}

impl From<Entity> for Piece {
    fn from(entity: Entity) -> Self {
        let Entity { id, label, dcpt } = entity;
        Self {
            text: format!("<id: {id}, label: {label}, description: {dcpt}>"),
            keyword: id,
            expected: vec![label, dcpt],
        }
    }
}

impl Pieces {
    /// Made-up pieces.
    pub fn generated() -> Self {
        Self::default()
    }

    /// The files `document_sentences.jsonl`, `code_functions.jsonl` and `database_entities.jsonl` of the authors' repository.
    pub fn folder(folder: &Path) -> Self {
        Self {
            folder: Some(folder.to_owned()),
        }
    }

    /// The pieces of a task.
    ///
    /// # Errors
    /// When the authors' file is asked for and missing or malformed.
    pub fn of(&self, task: Task) -> Result<Vec<Piece>> {
        let Some(folder) = &self.folder else {
            return Ok(generated(task));
        };
        match task {
            Task::Document => read::<Sentence>(&folder.join("document_sentences.jsonl")),
            Task::Code => read::<Function>(&folder.join("code_functions.jsonl")),
            Task::Database => read::<Entity>(&folder.join("database_entities.jsonl")),
        }
    }
}

fn read<T: serde::de::DeserializeOwned + Into<Piece>>(path: &Path) -> Result<Vec<Piece>> {
    let shown = path.display();
    let text = std::fs::read_to_string(path).map_err(|error| {
        Error::Val(format!(
            "{shown}: {error}; it is a file of microsoft/FILM's VaLProbing/pieces, and without a folder made-up pieces take its place"
        ))
    })?;
    let lines = text
        .lines()
        .enumerate()
        .filter(|(_, line)| !line.trim().is_empty());
    let piece = |(number, line): (usize, &str)| {
        let piece: T = serde_json::from_str(line)
            .map_err(|error| Error::Val(format!("{shown}:{}: {error}", number + 1)))?;
        Ok(piece.into())
    };
    lines.map(piece).collect()
}

fn generated(task: Task) -> Vec<Piece> {
    let mut random = Random::named(&format!("val|pieces|{}", task.name()));
    let words: Vec<&str> = words::all()
        .into_iter()
        .filter(|word| word.bytes().all(|letter| letter.is_ascii_lowercase()))
        .collect();
    let mut word = || *random.pick(&words);
    let mut piece = |number: usize| match task {
        Task::Document => {
            let inner = format!("{} of the {} and the {}", word(), word(), word());
            let sentence = format!(
                "We show that the {inner} is a {} of every {}.",
                word(),
                word()
            );
            Sentence {
                sentence,
                piece: inner,
            }
            .into()
        }
        Task::Code => {
            let lines = [(); 3].map(|()| format!("{}.{}({})", word(), word(), word()));
            let piece = lines[number % 3].clone();
            let function_define = lines.map(|line| format!("    {line}")).join("\n");
            let function_name = format!("{}_{}", word(), word());
            Function {
                function_name,
                function_define,
                piece,
            }
            .into()
        }
        Task::Database => Entity {
            // A factor prime to the modulus gives each entity a number of its own.
            id: format!("Q{}", 1_000_000 + number * 7919 % 9_000_000),
            label: format!("{} {}", word(), word()),
            dcpt: format!("{} in the {} of {}", word(), word(), word()),
        }
        .into(),
    };
    (0..GENERATED).map(&mut piece).collect()
}
