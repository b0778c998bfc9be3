//! `dataset_info.json`: names of data sets, their files, forms and columns.

use std::path::{Path, PathBuf};

use espalier_data::nearest::suggestion;
use serde_json::{Map, Value};
use toml::{Table, Value as Toml};

use super::{Reading, set};
use crate::Result;

/// Our column for each of theirs.
const COLUMNS: &[(&str, &str, &str)] = &[
    // Theirs, ours in alpaca's form, ours in sharegpt's or OpenAI's.
    ("prompt", "instruction", ""),
    ("query", "input", ""),
    ("response", "output", ""),
    ("history", "history", ""),
    ("messages", "", "conversations"),
    ("system", "system", "system"),
    ("tools", "tools", "tools"),
    ("chosen", "chosen", "chosen"),
    ("rejected", "rejected", "rejected"),
    ("kto_tag", "label", "label"),
];

/// Keys of an entry that name another place than a file.
const ELSEWHERE: [&str; 5] = [
    "hf_hub_url",
    "ms_hub_url",
    "om_hub_url",
    "script_url",
    "cloud_file_name",
];

/// The data sets of these names as a recipe's sources.
pub(super) fn sources(
    reading: &mut Reading,
    folder: &Path,
    names: &[String],
    limit: Option<i64>,
) -> Result<Vec<Toml>> {
    let path = folder.join("dataset_info.json");
    let wrong = |reason: &str| crate::Error::usage(format!("{}: {reason}", path.display()));
    let text = std::fs::read_to_string(&path).map_err(|error| {
        wrong(&format!(
            "{error}; it names the data sets of `dataset`, give its folder as `dataset_dir`"
        ))
    })?;
    let info: Map<String, Value> =
        serde_json::from_str(&text).map_err(|error| wrong(&error.to_string()))?;
    let mut sources = Vec::new();
    for name in names {
        let Some(Value::Object(entry)) = info.get(name) else {
            let known = info.keys().map(String::as_str);
            let hint = suggestion(name, known);
            reading.refused.push(format!(
                "{}: there is no data set `{name}`{hint}",
                path.display()
            ));
            continue;
        };
        let mut source = source(reading, folder, name, entry);
        set(&mut source, "limit", limit);
        sources.push(Toml::Table(source));
    }
    Ok(sources)
}

/// One data set; what of it has no counterpart is refused by name.
fn source(reading: &mut Reading, folder: &Path, name: &str, entry: &Map<String, Value>) -> Table {
    let mut source = Table::new();
    let stage = reading.keys.get("stage").and_then(Value::as_str);
    let takes_pairs = !matches!(stage.unwrap_or("sft"), "pt" | "sft" | "kto" | "ppo");
    let mut refuse = |key: &str, reason: &str| {
        reading
            .refused
            .push(format!("`{key}` of the data set `{name}` {reason}"));
    };
    for key in ELSEWHERE {
        if entry.contains_key(key) {
            refuse(key, "names no file; download it and give `file_name`");
        }
    }
    match entry.get("file_name").and_then(Value::as_str) {
        Some(file) => set(&mut source, "path", Some(path_text(folder.join(file)))),
        None => refuse("file_name", "is missing"),
    }
    let form = entry.get("formatting").and_then(Value::as_str);
    let form = form.unwrap_or("alpaca");
    let tags = entry.get("tags").and_then(Value::as_object);
    let tag = |key: &str, usual: &str| {
        let given = tags.and_then(|tags| tags.get(key)).and_then(Value::as_str);
        given.unwrap_or(usual).to_owned()
    };
    let is_ranking = entry.get("ranking").and_then(Value::as_bool) == Some(true);
    if is_ranking && !takes_pairs {
        refuse(
            "ranking",
            "says that it holds pairs, which the stages `rm` and `dpo` alone take",
        );
    }
    // As OpenAI has them, whose form is read by its own name.
    let roles = [
        tag("role_tag", "from"),
        tag("content_tag", "value"),
        tag("user_tag", "human"),
        tag("assistant_tag", "gpt"),
    ];
    let ours = match (form, roles.each_ref().map(String::as_str)) {
        ("alpaca", _) => "alpaca",
        ("sharegpt", ["from", "value", "human", "gpt"]) => "sharegpt",
        ("sharegpt" | "openai", ["role", "content", "user", "assistant"]) | ("openai", _) => {
            match is_ranking {
                true => "preference",
                false => "messages",
            }
        }
        ("sharegpt", _) => {
            refuse("tags", "are neither sharegpt's nor OpenAI's");
            "sharegpt"
        }
        _ => {
            refuse("formatting", "is none of `alpaca`, `sharegpt` and `openai`");
            "alpaca"
        }
    };
    set(&mut source, "form", Some(ours));
    let given = entry.get("columns").and_then(Value::as_object);
    let mut columns = Table::new();
    for (theirs, column) in given.into_iter().flatten() {
        let Some(column) = column.as_str() else {
            continue;
        };
        let known = COLUMNS.iter().find(|(known, ..)| known == theirs);
        let own = match (known, ours) {
            (Some((_, own, _)), "alpaca") => *own,
            (Some((.., "conversations")), "messages") => "messages",
            (Some((.., "conversations")), "preference") => "prompt",
            (Some((.., own)), _) => *own,
            (None, _) => "",
        };
        match own {
            "" => refuse(theirs, "is a column that has no counterpart in this form"),
            own if own == column => {}
            own => _ = columns.insert(own.to_owned(), Toml::from(column)),
        }
    }
    // Pre-training texts are alpaca records of a prompt alone.
    let is_alone = given.is_some_and(|given| given.len() == 1) && !is_ranking;
    if ours == "alpaca" && is_alone && columns.contains_key("instruction") {
        let text = columns.remove("instruction");
        source.insert("form".into(), Toml::from("text"));
        if let Some(text) = text.filter(|text| text.as_str() != Some("text")) {
            columns.insert("text".into(), text);
        }
    }
    if !columns.is_empty() {
        source.insert("columns".into(), Toml::Table(columns));
    }
    for key in ["subset", "folder", "num_samples"] {
        if entry.get(key).is_some_and(|value| !value.is_null()) {
            refuse(key, "has no counterpart");
        }
    }
    source
}

/// A path as a recipe writes it.
fn path_text(path: PathBuf) -> String {
    path.to_string_lossy().into_owned()
}
