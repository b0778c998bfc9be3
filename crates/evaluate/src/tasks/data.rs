//! The records of a task: files here, or a data set of the hub that was put into a folder here.

use std::path::{Path, PathBuf};

use espalier_data::tables::{self, Cells, Row};
use serde_json::Value;

use super::file::TaskFile;
use crate::{Error, Result};

/// Endings of files of records, the first that is there is read.
const ENDINGS: [&str; 4] = ["jsonl", "json", "csv", "parquet"];

/// Where data may be: the folder that the user gave, and the folder of the task's file.
#[derive(Debug, Clone, Copy)]
pub struct Places<'a> {
    /// The folder that the user gave.
    pub given: Option<&'a Path>,
    /// The folder of the task's file.
    pub beside: &'a Path,
}

/// The records of a split.
///
/// # Errors
/// When no file is there, naming where it is looked for; when a file is damaged.
pub fn records(task: &TaskFile, split: &str, places: Places<'_>) -> Result<Vec<Value>> {
    let mut all = Vec::new();
    for file in &files(task, split, places)? {
        all.extend(read(file)?);
    }
    match all.is_empty() {
        true => Err(Error::task(format!(
            "task `{}`: split `{split}` has no records",
            task.task
        ))),
        false => Ok(all),
    }
}

/// The files of a split.
///
/// # Errors
/// When no file is there, naming where it is looked for.
pub fn files(task: &TaskFile, split: &str, places: Places<'_>) -> Result<Vec<PathBuf>> {
    match task.dataset_path.as_str() {
        "json" | "csv" | "parquet" => named_files(task, split, places),
        _ => found_files(task, split, places),
    }
}

/// The files that `data_files` of `dataset_kwargs` names for a split.
fn named_files(task: &TaskFile, split: &str, places: Places<'_>) -> Result<Vec<PathBuf>> {
    let wrong = |reason: String| Error::task(format!("task `{}`: {reason}", task.task));
    let missing =
        || wrong("`dataset_kwargs` has no `data_files`, which names a file for each split".into());
    let options = task.dataset_kwargs.as_ref().ok_or_else(missing)?;
    let files = options.get("data_files").ok_or_else(missing)?;
    let named = match files {
        Value::Object(splits) => splits.get(split).ok_or_else(|| {
            let known: Vec<&str> = splits.keys().map(String::as_str).collect();
            wrong(format!(
                "`data_files` has no split `{split}`; it has {}",
                known.join(", ")
            ))
        })?,
        all if split == "train" => all,
        _ => {
            return Err(wrong(format!(
                "`data_files` names no splits, and all of it is `train`, not `{split}`"
            )));
        }
    };
    let folder = options
        .get("data_dir")
        .and_then(Value::as_str)
        .unwrap_or("");
    let names = super::file::names(named);
    if names.is_empty() {
        return Err(wrong(format!("`data_files`: {named} is no name of a file")));
    }
    let find = |name: &str| {
        let name = Path::new(folder).join(name);
        let here = places.given.map(|given| given.join(&name)).into_iter();
        let mut tried = here.chain([places.beside.join(&name), name.clone()]);
        tried.find(|path| path.is_file()).ok_or_else(|| {
            wrong(format!(
                "{}: no such file in the folder of `--data`, beside the task's file or here",
                name.display()
            ))
        })
    };
    names.into_iter().map(find).collect()
}

/// The files of a split of a data set that has a name, in a local folder.
fn found_files(task: &TaskFile, split: &str, places: Places<'_>) -> Result<Vec<PathBuf>> {
    let path = task.dataset_path.as_str();
    let last = path.rsplit('/').next().unwrap_or(path);
    let mut bases = Vec::new();
    if let Some(given) = places.given {
        bases.extend([given.join(path), given.join(last), given.to_path_buf()]);
    }
    bases.extend([places.beside.join(path), PathBuf::from(path)]);
    for base in &bases {
        let part = task.dataset_name.iter().map(|name| base.join(name));
        for folder in part.chain([base.clone()]) {
            let files = split_files(&folder, split);
            if !files.is_empty() {
                return Ok(files);
            }
        }
    }
    let part = task.dataset_name.as_deref();
    let example = [Some(last), part]
        .into_iter()
        .flatten()
        .collect::<Vec<_>>()
        .join("/");
    Err(Error::task(format!(
        "task `{}`: data set `{path}` is not here, and nothing is downloaded; put its split `{split}` into a file such as \
         DIR/{example}/{split}.jsonl (or .json, .csv, .parquet) and give `--data DIR`, for example after \
         `hf download {path} --repo-type dataset --local-dir DIR/{last}`",
        task.task
    )))
}

/// Files of a split: `test.jsonl`, `test-00000-of-00001.parquet`, `name_test.jsonl`, in a folder or its `data`.
fn split_files(folder: &Path, split: &str) -> Vec<PathBuf> {
    let mut candidates: Vec<PathBuf> = [folder.to_path_buf(), folder.join("data")]
        .iter()
        .flat_map(|folder| std::fs::read_dir(folder).into_iter().flatten().flatten())
        .map(|entry| entry.path())
        .filter(|path| path.is_file())
        .collect();
    candidates.sort();
    for ending in ENDINGS {
        let of_split = |path: &&PathBuf| {
            let stem = path
                .file_stem()
                .and_then(|stem| stem.to_str())
                .unwrap_or_default();
            let fits = stem == split
                || stem.starts_with(&format!("{split}-"))
                || stem.ends_with(&format!("_{split}"))
                || stem.ends_with(&format!("-{split}"));
            fits && path.extension().is_some_and(|found| found == ending)
        };
        let found: Vec<PathBuf> = candidates.iter().filter(of_split).cloned().collect();
        if !found.is_empty() {
            return found;
        }
    }
    Vec::new()
}

/// The records of a file.
///
/// # Errors
/// When it cannot be read or has another format.
pub fn read(path: &Path) -> Result<Vec<Value>> {
    if tables::is_table(path) {
        let rows = tables::rows(path, &Cells::Numbers)?;
        let row = |row: espalier_data::Result<Row>| Ok(Value::Object(row?.1));
        return rows.map(row).collect();
    }
    let ending = path.extension().and_then(|ending| ending.to_str());
    match ending.unwrap_or_default() {
        "jsonl" | "json" | "ndjson" => json_records(path),
        other => Err(Error::task(format!(
            "{}: cannot read records of a file that ends in `{other}`; expected {}",
            path.display(),
            ENDINGS.join(", ")
        ))),
    }
}

/// A list of objects, or an object in each line.
fn json_records(path: &Path) -> Result<Vec<Value>> {
    let wrong = |reason: String| Error::task(format!("{}: {reason}", path.display()));
    let text = std::fs::read_to_string(path).map_err(|error| wrong(error.to_string()))?;
    let text = text.trim_start_matches('\u{feff}');
    if text.trim_start().starts_with('[') {
        return serde_json::from_str(text).map_err(|error| wrong(error.to_string()));
    }
    let lines = text.lines().enumerate();
    let filled = lines.filter(|(_, line)| !line.trim().is_empty());
    let record = |(number, line)| {
        let value: Result<Value, _> = serde_json::from_str(line);
        let value = value.map_err(|error| wrong(format!("line {}: {error}", number + 1)))?;
        match value.is_object() {
            true => Ok(value),
            false => Err(wrong(format!("line {}: no object", number + 1))),
        }
    };
    filled.map(record).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn places(given: &Path) -> Places<'_> {
        Places {
            given: Some(given),
            beside: Path::new("/nowhere"),
        }
    }

    #[test]
    fn a_split_is_found_in_the_shapes_that_hubs_have() {
        for (path, name) in [
            ("test.jsonl", None),
            ("org/set/main/test.jsonl", Some("main")),
            ("set/main/test.jsonl", Some("main")),
            ("set/data/test-00000.jsonl", None),
            ("set_test.jsonl", None),
        ] {
            let folder = tempfile::tempdir().unwrap();
            let file = folder.path().join(path);
            std::fs::create_dir_all(file.parent().unwrap()).unwrap();
            std::fs::write(&file, "{\"a\": 1}\n\n{\"a\": 2}\n").unwrap();
            let task = TaskFile {
                dataset_path: "org/set".into(),
                dataset_name: name.map(str::to_owned),
                ..TaskFile::default()
            };
            let found = records(&task, "test", places(folder.path())).unwrap();
            assert_eq!(found, [json!({"a": 1}), json!({"a": 2})], "{path}");
            let error = records(&task, "train", places(folder.path()))
                .unwrap_err()
                .to_string();
            assert!(error.contains("hf download org/set"), "{error}");
        }
    }

    #[test]
    fn tables_have_numbers_where_all_cells_are() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("a.csv");
        std::fs::write(&file, "q,label,x\n\"a, b\",1,0.5\nc,,2\n").unwrap();
        let rows = read(&file).unwrap();
        assert_eq!(rows[0], json!({"q": "a, b", "label": 1, "x": 0.5}));
        assert_eq!(rows[1], json!({"q": "c", "label": null, "x": 2.0}));
        std::fs::write(folder.path().join("b.jsonl"), "{}\n{\n").unwrap();
        let error = read(&folder.path().join("b.jsonl"))
            .unwrap_err()
            .to_string();
        assert!(error.contains("line 2"), "{error}");
    }
}
