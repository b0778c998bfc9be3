//! Task files of lm-evaluation-harness: their keys, what they include, and the groups that they form.
//!
//! Every key is checked. What would ask for Python (`!function`), for pictures or sound is refused by name; keys about contamination mean
//! nothing to a score and are read over.

use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::{Map, Value};

use super::functions::MARK;
use crate::{Error, Result};

/// The largest file that is read, in bytes.
const LARGEST_FILE: u64 = 4 << 20;

/// The deepest chain of files that include one another.
const DEEPEST_INCLUDE: usize = 16;

/// Keys that ask for what is not there.
const REFUSED: &[(&str, &str)] = &[
    (
        "use_prompt",
        "prompts of promptsource are not read; write the prompt as `doc_to_text`",
    ),
    ("doc_to_image", "pictures are not read"),
    ("doc_to_audio", "sound is not read"),
    (
        "custom_dataset",
        "it is a function in Python, which is not run; write its records to a file",
    ),
    ("class", "tasks in Python are not run"),
];

/// A task as its file describes it.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TaskFile {
    /// Its name.
    pub task: String,
    /// The name for readers.
    pub task_alias: Option<String>,
    /// Names by which several tasks are called.
    pub tag: Value,
    /// A group's name, in older files a tag.
    pub group: Value,
    /// A data set of the hub, a local folder, or a format (`json`).
    pub dataset_path: String,
    /// Its part.
    pub dataset_name: Option<String>,
    /// Options of its reader.
    pub dataset_kwargs: Option<Map<String, Value>>,
    /// The split for learning.
    pub training_split: Option<String>,
    /// The split for choosing.
    pub validation_split: Option<String>,
    /// The split that is asked.
    pub test_split: Option<String>,
    /// The split that examples come from.
    pub fewshot_split: Option<String>,
    /// A function that changes records.
    pub process_docs: Value,
    /// The question.
    pub doc_to_text: Value,
    /// The answer.
    pub doc_to_target: Value,
    /// The choices.
    pub doc_to_choice: Value,
    /// A function that marks answers.
    pub process_results: Value,
    /// Whether answers are run as programs.
    pub unsafe_code: bool,
    /// What stands before all.
    pub description: Value,
    /// What separates question and answer.
    #[serde(default = "space")]
    pub target_delimiter: String,
    /// What separates examples.
    #[serde(default = "blank_line")]
    pub fewshot_delimiter: String,
    /// How examples are chosen and written.
    pub fewshot_config: Option<FewShot>,
    /// Examples.
    pub num_fewshot: Option<usize>,
    /// What is measured.
    pub metric_list: Option<Vec<Map<String, Value>>>,
    /// What is asked of the model.
    pub output_type: OutputType,
    /// How answers are generated.
    pub generation_kwargs: Option<Map<String, Value>>,
    /// Answers to each item.
    pub repeats: Option<usize>,
    /// How answers are read.
    pub filter_list: Option<Vec<FilterEntry>>,
    /// Read over.
    pub should_decontaminate: Value,
    /// Read over.
    pub doc_to_decontamination_query: Value,
    /// What every answer begins with.
    pub gen_prefix: Option<String>,
    /// The version, and whatever else its makers keep.
    pub metadata: Value,
}

fn space() -> String {
    " ".into()
}

fn blank_line() -> String {
    "\n\n".into()
}

/// What is asked of the model.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OutputType {
    /// A text that it writes.
    #[default]
    GenerateUntil,
    /// The likelihood of the target.
    Loglikelihood,
    /// The likelihood of a whole text.
    LoglikelihoodRolling,
    /// The likeliest choice.
    MultipleChoice,
}

/// How examples are chosen and written; what is absent is as for the items.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct FewShot {
    /// `default` (by chance) or `first_n`.
    pub sampler: Option<String>,
    /// The split they come from.
    pub split: Option<String>,
    /// A function that changes records.
    pub process_docs: Value,
    /// The records that may be chosen, by number.
    pub fewshot_indices: Option<Vec<usize>>,
    /// Records of the file's own.
    pub samples: Value,
    /// The question.
    pub doc_to_text: Value,
    /// The choices.
    pub doc_to_choice: Value,
    /// The answer.
    pub doc_to_target: Value,
    /// What every answer begins with.
    pub gen_prefix: Option<String>,
    /// What separates examples.
    pub fewshot_delimiter: Option<String>,
    /// What separates question and answer.
    pub target_delimiter: Option<String>,
}

/// One way of reading answers.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FilterEntry {
    /// Its name.
    pub name: String,
    /// The filters, in order.
    pub filter: Vec<Map<String, Value>>,
}

/// What a file holds.
#[derive(Debug, Clone)]
pub enum Content {
    /// A task.
    Task(Box<TaskFile>),
    /// A group of tasks.
    Group(Box<GroupFile>),
}

/// A group as its file describes it.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct GroupFile {
    /// Its name.
    pub group: String,
    /// The name for readers.
    pub group_alias: Option<String>,
    /// Its tasks: names, or tables with a name and what differs.
    pub task: Vec<Value>,
    /// What is averaged over its tasks.
    pub aggregate_metric_list: Option<Value>,
    /// The version, and whatever else its makers keep.
    pub metadata: Value,
    /// Names by which several groups are called.
    pub tag: Value,
}

/// The keys of a file, what it includes beneath its own.
///
/// # Errors
/// When it cannot be read, is no YAML, or includes itself.
pub fn keys(path: &Path) -> Result<Map<String, Value>> {
    included(path, 0)
}

fn included(path: &Path, depth: usize) -> Result<Map<String, Value>> {
    let wrong = |reason: String| Error::task(format!("{}: {reason}", path.display()));
    if depth > DEEPEST_INCLUDE {
        return Err(wrong("files include one another without end".into()));
    }
    let size = std::fs::metadata(path).map_err(|error| wrong(error.to_string()))?;
    if !size.is_file() || size.len() > LARGEST_FILE {
        return Err(wrong("no file of at most 4 MiB, as task files are".into()));
    }
    let text = std::fs::read_to_string(path).map_err(|error| wrong(error.to_string()))?;
    let mut own = parse(&text).map_err(wrong)?;
    let included_names = match own.remove("include") {
        None | Some(Value::Null) => Vec::new(),
        Some(Value::String(name)) => vec![name],
        Some(Value::Array(names)) => {
            let names = names.iter().map(|name| name.as_str().map(str::to_owned));
            let names: Option<Vec<String>> = names.collect();
            names.ok_or_else(|| wrong("`include`: expected names of files".into()))?
        }
        Some(other) => return Err(wrong(format!("`include`: {other} is no name of a file"))),
    };
    let folder = path.parent().unwrap_or(Path::new(""));
    let mut all = Map::new();
    for name in included_names {
        all.extend(included(&folder.join(name), depth + 1)?);
    }
    all.extend(own);
    Ok(all)
}

/// YAML, in which functions are texts that say so.
pub(super) fn parse(text: &str) -> Result<Map<String, Value>, String> {
    serde_saphyr::from_str(&marked(text)).map_err(|error| error.to_string())
}

/// Tags of functions as texts, which the reader would drop.
fn marked(text: &str) -> String {
    let line = |line: &str| {
        let Some(at) = line.find(MARK) else {
            return line.to_owned();
        };
        let before = line[..at].trim_end();
        let is_value = before.ends_with([':', '-', ',', '[']);
        let name = line[at + MARK.len()..].trim_start();
        let end = name
            .find(|c: char| !(c.is_alphanumeric() || "._".contains(c)))
            .unwrap_or(name.len());
        match is_value && !before.trim_start().starts_with('#') {
            true => format!("{} \"{MARK}{}\"{}", before, &name[..end], &name[end..]),
            false => line.to_owned(),
        }
    };
    let lines: Vec<String> = text.split('\n').map(line).collect();
    lines.join("\n")
}

/// What the keys of a file describe.
///
/// # Errors
/// When a key is unknown, of the wrong type, or asks for what is not supported.
pub fn content(path: &Path, mut keys: Map<String, Value>) -> Result<Content> {
    let wrong = |reason: String| Error::task(format!("{}: {reason}", path.display()));
    if let Some((key, reason)) = REFUSED
        .iter()
        .find(|(key, _)| keys.get(*key).is_some_and(|value| !value.is_null()))
    {
        return Err(wrong(format!("`{key}`: {reason}")));
    }
    REFUSED.iter().for_each(|(key, _)| drop(keys.remove(*key)));
    let is_group = keys.get("group").is_some_and(Value::is_string)
        && keys.get("task").is_some_and(Value::is_array);
    // What is null is absent.
    keys.retain(|_, value| !value.is_null());
    let value = Value::Object(keys);
    match is_group {
        true => serde_json::from_value(value).map(|group| Content::Group(Box::new(group))),
        false => serde_json::from_value(value).map(|file| Content::Task(Box::new(file))),
    }
    .map_err(|error| wrong(error.to_string()))
}

/// The names that a value lists: one, or several.
pub fn names(value: &Value) -> Vec<&str> {
    match value {
        Value::String(name) => vec![name],
        Value::Array(names) => names.iter().filter_map(Value::as_str).collect(),
        _ => Vec::new(),
    }
}

/// Task files in a folder and the folders in it, by name; those of a folder that cannot be read are left out.
pub fn files_in(folder: &Path) -> Vec<PathBuf> {
    let (mut found, mut folders) = (Vec::new(), vec![folder.to_path_buf()]);
    while let Some(folder) = folders.pop() {
        let entries = std::fs::read_dir(&folder).into_iter().flatten().flatten();
        for path in entries.map(|entry| entry.path()) {
            let ending = path.extension().and_then(|ending| ending.to_str());
            match path.is_dir() && !path.is_symlink() {
                true => folders.push(path),
                false if matches!(ending, Some("yaml" | "yml")) => found.push(path),
                false => {}
            }
        }
    }
    found.sort();
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(files: &[(&str, &str)]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in files {
            std::fs::write(folder.path().join(name), text).unwrap();
        }
        folder
    }

    #[test]
    fn what_is_included_lies_beneath() {
        let folder = written(&[
            (
                "base",
                "output_type: multiple_choice\ntask: base\ndoc_to_target: !function a.b # why\n",
            ),
            (
                "own.yaml",
                "\"include\": \"base\"\n\"task\": \"own\"\nmetric_list:\n  - metric: !function utils.pass\n",
            ),
        ]);
        let path = folder.path().join("own.yaml");
        let keys = keys(&path).unwrap();
        assert_eq!(keys["task"], "own");
        assert_eq!(keys["doc_to_target"], "!function a.b");
        assert_eq!(keys["metric_list"][0]["metric"], "!function utils.pass");
        let Content::Task(file) = content(&path, keys).unwrap() else {
            panic!("a task");
        };
        assert_eq!(file.output_type, OutputType::MultipleChoice);
        assert_eq!(
            (
                file.target_delimiter.as_str(),
                file.fewshot_delimiter.as_str()
            ),
            (" ", "\n\n")
        );
    }

    #[test]
    fn faults_are_named() {
        let folder = written(&[
            ("loop.yaml", "include: loop.yaml\n"),
            ("typo.yaml", "task: a\ndoc_to_txt: b\n"),
            ("image.yaml", "task: a\ndoc_to_image: b\n"),
            ("type.yaml", "task: a\nnum_fewshot: many\n"),
        ]);
        for (name, words) in [
            ("loop.yaml", "without end"),
            ("typo.yaml", "doc_to_txt"),
            ("image.yaml", "`doc_to_image`: pictures"),
            ("type.yaml", "many"),
            ("none.yaml", "none.yaml"),
        ] {
            let path = folder.path().join(name);
            let error = keys(&path)
                .and_then(|keys| content(&path, keys))
                .unwrap_err();
            assert!(error.to_string().contains(words), "{error}");
        }
    }
}
