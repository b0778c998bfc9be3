//! The chat templates of a tokenizer's folder.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use super::DEFAULT_TEMPLATE;
use super::files::{extension, in_folder, read, read_if_there};
use crate::template::ChatTemplate;
use crate::{Error, Result};

/// The default template.
pub(super) const TEMPLATE: &str = "chat_template.jinja";
/// A folder of others, a file each.
const MORE_TEMPLATES: &str = "additional_chat_templates";

/// Templates as `tokenizer_config.json` lists them.
pub(super) fn named_list(templates: &BTreeMap<String, ChatTemplate>) -> Value {
    templates
        .iter()
        .map(|(name, template)| json!({ "name": name, "template": template.source() }))
        .collect()
}

/// The templates of a folder by name; a file wins over the configuration.
pub(super) fn read_templates(
    folder: &Path,
    config: &Map<String, Value>,
) -> Result<BTreeMap<String, ChatTemplate>> {
    let mut sources = config
        .get("chat_template")
        .map(config_templates)
        .unwrap_or_default();
    for (name, path) in template_files(&folder.join(MORE_TEMPLATES))? {
        sources.insert(name, read(&path)?);
    }
    if let Some(source) = read_if_there(&folder.join(TEMPLATE))? {
        sources.insert(DEFAULT_TEMPLATE.into(), source);
    }
    let parse = |(name, source): (String, String)| {
        let template = ChatTemplate::new(&source).map_err(|reason| in_folder(folder, reason))?;
        Ok((name, template))
    };
    sources.into_iter().map(parse).collect()
}

/// One template, a list of `{name, template}`, or templates by name.
fn config_templates(value: &Value) -> BTreeMap<String, String> {
    let named = |entry: &Value| {
        let field = |key| Some(entry.get(key)?.as_str()?.to_string());
        Some((field("name")?, field("template")?))
    };
    match value {
        Value::String(source) => BTreeMap::from([(DEFAULT_TEMPLATE.into(), source.clone())]),
        Value::Array(list) => list.iter().filter_map(named).collect(),
        Value::Object(by_name) => by_name
            .iter()
            .filter_map(|(name, source)| Some((name.clone(), source.as_str()?.to_string())))
            .collect(),
        _ => BTreeMap::new(),
    }
}

fn template_files(folder: &Path) -> Result<Vec<(String, PathBuf)>> {
    if !folder.is_dir() {
        return Ok(Vec::new());
    }
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(|source| Error::file(folder, source))? {
        let path = entry.map_err(|source| Error::file(folder, source))?.path();
        if let (Some("jinja"), Some(name)) = (
            extension(&path),
            path.file_stem().and_then(|name| name.to_str()),
        ) {
            files.push((name.to_string(), path.clone()));
        }
    }
    Ok(files)
}
