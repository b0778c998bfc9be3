//! The files beside the weights: the model card, the recipe, the tokenizer and how texts are generated.

use std::path::Path;

use espalier_data::{disk, template};
use serde_json::{Value, json};

use super::model::Model;
use super::plan::Models;
use super::recipe::Document;
use super::tokens::{self, Tokens};
use crate::{Error, Result};

/// Files of a model's folder that a merge of it has as well.
const COPIED: [&str; 12] = [
    "tokenizer_config.json",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer.model",
    "spiece.model",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
];

/// Writes all of them.
///
/// # Errors
/// When a file cannot be read or written, or a template is none.
pub fn write(
    folder: &Path,
    name: &str,
    document: &Document,
    models: &Models,
    tokens: Option<&Tokens>,
) -> Result<()> {
    let base = document.base.as_deref();
    let base = base.and_then(|base| models.iter().position(|(known, _)| known == base));
    let donor = &models[tokens.map_or(base.unwrap_or(0), |tokens| tokens.donor)].1;
    copy(donor, folder)?;
    if let Some(tokens) = tokens {
        // Files from before `tokenizer.json` would say something else.
        for old in [
            "tokenizer.model",
            "spiece.model",
            "vocab.json",
            "vocab.txt",
            "merges.txt",
            "added_tokens.json",
        ] {
            let path = folder.join(old);
            disk::remove_file(&path).map_err(Error::file(&path))?;
        }
        espalier_models::folder::write_json(&folder.join(tokens::FILE), &tokens.tokenizer)?;
    }
    if let Some(template) = chat_template(document, models)? {
        write_template(folder, &template)?;
    }
    for (file, text) in [
        ("mergekit_config.yml", document.text.clone()),
        ("README.md", card(name, document)),
    ] {
        let path = folder.join(file);
        disk::write_whole(&path, text.as_bytes()).map_err(Error::file(&path))?;
    }
    Ok(())
}

fn copy(model: &Model, folder: &Path) -> Result<()> {
    for name in COPIED {
        let from = model.folder.join(name);
        if from.is_file() {
            let bytes = std::fs::read(&from).map_err(Error::file(&from))?;
            let to = folder.join(name);
            disk::write_whole(&to, &bytes).map_err(Error::file(&to))?;
        }
    }
    Ok(())
}

/// The template that the recipe asks for.
///
/// # Errors
/// When it is no template.
pub fn chat_template(document: &Document, models: &Models) -> Result<Option<String>> {
    let Some(asked) = &document.chat_template else {
        return Ok(None);
    };
    let text = match asked.as_str() {
        "auto" => return Ok(most_common(models)),
        "chatml" => template::CHATML.to_owned(),
        text if text.contains('{') => text.to_owned(),
        other => {
            let reason = format!(
                "`chat_template`: `{other}` is none of `auto`, `chatml` and the text of a template"
            );
            return Err(document.error("chat_template", reason));
        }
    };
    let checked = template::ChatTemplate::new(&text);
    checked
        .map_err(|error| document.error("chat_template", format!("`chat_template`: {error}")))?;
    Ok(Some(text))
}

/// The template that most of the models have; of equally many the first.
fn most_common(models: &Models) -> Option<String> {
    let mut found: Vec<(String, usize)> = Vec::new();
    for (_, model) in models {
        let Some(text) = template_of(&model.folder) else {
            continue;
        };
        match found.iter_mut().find(|(known, _)| *known == text) {
            Some((_, count)) => *count += 1,
            None => found.push((text, 1)),
        }
    }
    let most = found.iter().map(|(_, count)| *count).max()?;
    found
        .into_iter()
        .find(|(_, count)| *count == most)
        .map(|(text, _)| text)
}

fn template_of(folder: &Path) -> Option<String> {
    if let Ok(text) = std::fs::read_to_string(folder.join("chat_template.jinja")) {
        return Some(text);
    }
    let text = std::fs::read(folder.join("tokenizer_config.json")).ok()?;
    let config: Value = serde_json::from_slice(&text).ok()?;
    config["chat_template"].as_str().map(str::to_owned)
}

/// Writes a template as the file of its own, and where there is a `tokenizer_config.json` with one, there.
fn write_template(folder: &Path, template: &str) -> Result<()> {
    let path = folder.join("tokenizer_config.json");
    if let Ok(text) = std::fs::read(&path)
        && let Ok(Value::Object(mut config)) = serde_json::from_slice(&text)
        && config.contains_key("chat_template")
    {
        config.insert("chat_template".into(), json!(template));
        espalier_models::folder::write_json(&path, &Value::Object(config))?;
    }
    let path = folder.join("chat_template.jinja");
    disk::write_whole(&path, template.as_bytes()).map_err(Error::file(&path))
}

/// The model card.
fn card(name: &str, document: &Document) -> String {
    let method = document.method;
    let base = document.base.as_deref();
    let from = base
        .map(|base| format!(", with `{base}` as its base"))
        .unwrap_or_default();
    let models = document.models();
    let models = models.iter().filter(|model| Some(**model) != base);
    let models: String = models.map(|model| format!("- `{model}`\n")).collect();
    let recipe = document.text.trim_end();
    format!(
        "---\nlibrary_name: transformers\ntags:\n- mergekit\n- merge\n---\n# {name}\n\nMerged by espalier from a recipe of mergekit's form.\n\n\
         ## Method\n\n[{}]({}){from}.\n\n## Models\n\n{models}\n## Recipe\n\n```yaml\n{recipe}\n```\n",
        method.title, method.source
    )
}
