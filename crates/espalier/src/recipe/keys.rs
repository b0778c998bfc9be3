//! The reference of every key, made from the schema.

use std::collections::{BTreeSet, VecDeque};

use serde_json::{Map, Value};

use super::schema;

/// A table of the reference: how a recipe writes it, and what it may hold.
struct Table<'s> {
    title: String,
    schema: &'s Value,
}

/// Every key of a recipe, as Markdown; `docs/recipe-keys.md` is this text.
///
/// ```
/// let reference = espalier::recipe::keys::reference();
/// assert!(reference.contains("| `learning_rate` | number |"));
/// ```
pub fn reference() -> String {
    let schema = schema::whole();
    let mut text = String::from(
        "# Every key of a recipe\n\nMade by `espalier run --keys > docs/recipe-keys.md` from the definitions themselves. \
         A key without a default must be given where it says so, and may be left out else. Keys of a stage's table may stand in \
         `[defaults.KIND]`, or in the stage that a stage is `like`.\n",
    );
    let root = Table {
        title: "Recipe".into(),
        schema: &schema,
    };
    text.push_str(&Reference::new(&schema).all(root));
    text
}

/// Every key of one kind of stage.
pub fn of_kind(kind: &str) -> String {
    let schema = schema::whole();
    let table = &schema["$defs"]["StageTable"]["properties"][kind];
    let root = Table {
        title: format!("[stage.{kind}]"),
        schema: table,
    };
    Reference::new(&schema).all(root).trim_start().to_owned()
}

/// The way through all tables, each of which is described once.
struct Reference<'s> {
    definitions: &'s Value,
    described: BTreeSet<String>,
    next: VecDeque<Table<'s>>,
}

impl<'s> Reference<'s> {
    fn new(schema: &'s Value) -> Self {
        Self {
            definitions: &schema["$defs"],
            described: BTreeSet::new(),
            next: VecDeque::new(),
        }
    }

    fn all(mut self, root: Table<'s>) -> String {
        let mut text = String::new();
        self.next.push_back(root);
        while let Some(table) = self.next.pop_front() {
            text.push_str(&self.table(&table));
        }
        text
    }

    /// The definition behind a reference, or the schema itself.
    fn definition(&self, schema: &'s Value) -> &'s Value {
        match schema::reference(schema) {
            Some(name) => &self.definitions[name],
            None => schema,
        }
    }

    fn table(&mut self, table: &Table<'s>) -> String {
        let schema = self.definition(table.schema);
        let (title, meaning) = (&table.title, sentence(schema));
        let mut text = format!("\n## {title}\n\n{meaning}\n\n");
        text.push_str("| key | type | default | range | meaning |\n|---|---|---|---|---|\n");
        let required = schema["required"].as_array();
        for (key, value) in properties(schema) {
            let needed = required.is_some_and(|keys| keys.contains(&Value::from(key.as_str())));
            text.push_str(&self.row(title, key, value, needed));
        }
        text
    }

    fn row(&mut self, title: &str, key: &str, schema: &'s Value, needed: bool) -> String {
        let kind = self.kind(title, key, schema);
        let default = match (schema.get("default"), needed) {
            (Some(default), _) if !default.is_object() => format!("`{default}`"),
            (None, true) => "must be given".into(),
            _ => String::new(),
        };
        let meaning = match sentence(schema) {
            text if text.is_empty() => sentence(self.definition(schema)),
            text => text,
        };
        format!(
            "| `{key}` | {kind} | {default} | {} | {meaning} |\n",
            range(schema)
        )
    }

    /// The type of a value in words; tables on the way are described later.
    fn kind(&mut self, title: &str, key: &str, schema: &'s Value) -> String {
        let definition = self.definition(schema);
        let choices = ["anyOf", "oneOf"]
            .iter()
            .find_map(|key| definition.get(*key)?.as_array());
        if let Some(choices) = choices {
            return self.choices(title, key, choices);
        }
        if let Some(text) = definition.get("const") {
            return format!("`{text}`");
        }
        if let Some(names) = definition.get("enum").and_then(Value::as_array) {
            let names: Vec<String> = names.iter().map(|name| format!("`{name}`")).collect();
            return names.join(" or ");
        }
        match definition["type"].as_str().unwrap_or("anything") {
            "array" => format!(
                "list of {}",
                several(&self.kind(title, key, &definition["items"]))
            ),
            "object" => self.object(title, key, schema),
            "string" => "text".into(),
            "integer" => "whole number".into(),
            "boolean" => "`true` or `false`".into(),
            other => other.into(),
        }
    }

    fn choices(&mut self, title: &str, key: &str, choices: &'s [Value]) -> String {
        let mut kinds = Vec::new();
        let mut tables = false;
        for choice in choices {
            match variant(choice) {
                // Its name is a choice too.
                Some((name, options)) => {
                    tables = true;
                    self.kind(&format!("{title} {key}"), name, options);
                }
                None => kinds.push(self.kind(title, key, choice)),
            }
        }
        kinds.extend(tables.then(|| "`{ NAME = { OPTIONS } }`".to_owned()));
        kinds.join(" or ")
    }

    fn object(&mut self, title: &str, key: &str, schema: &'s Value) -> String {
        let Some(name) = schema::reference(schema) else {
            let values = &schema["additionalProperties"];
            return match values.is_object() {
                true => format!("table of {}", several(&self.kind(title, key, values))),
                false => "table of any keys".into(),
            };
        };
        // What may stand in the defaults is what may stand in stages.
        let empty = properties(self.definition(schema)).next().is_none();
        if !empty && name != "Defaults" && self.described.insert(name.to_owned()) {
            let title = below(title, key);
            self.next.push_back(Table { title, schema });
        }
        "table".into()
    }
}

/// The plural of a type.
fn several(kind: &str) -> String {
    match kind.contains(['`', ' ']) && kind != "whole number" {
        true => format!("({kind})"),
        false => format!("{kind}s"),
    }
}

/// How a recipe writes the table `key` in the table `title`.
fn below(title: &str, key: &str) -> String {
    match (title, key) {
        ("Recipe", "stage") => "[[stage]]".into(),
        ("Recipe", key) => format!("[{key}]"),
        ("[[stage]]", "repeat") => "[stage.repeat]".into(),
        _ => {
            let place = title.trim_matches(['[', ']']).replace("] ", ".");
            format!("[{place}.{key}]")
        }
    }
}

fn properties(schema: &Value) -> impl Iterator<Item = (&String, &Value)> {
    schema["properties"]
        .as_object()
        .into_iter()
        .flat_map(Map::iter)
}

/// The name and the options of a choice that is written as a table of one key.
fn variant(choice: &Value) -> Option<(&str, &Value)> {
    let name = choice.get("required")?.get(0)?.as_str()?;
    Some((name, choice.get("properties")?.get(name)?))
}

/// A description in one line.
fn sentence(schema: &Value) -> String {
    let text = schema["description"].as_str().unwrap_or_default();
    text.split_whitespace()
        .collect::<Vec<_>>()
        .join(" ")
        .replace('|', "\\|")
}

fn range(schema: &Value) -> String {
    let bound = |key: &str| schema.get(key)?.as_f64();
    // That whole numbers are not negative goes without saying.
    let whole = schema["type"] == "integer";
    let low = bound("minimum").filter(|low| !(whole && *low == 0.0));
    let bounds = [
        ("at least", low),
        ("above", bound("exclusiveMinimum")),
        ("at most", bound("maximum")),
        ("below", bound("exclusiveMaximum")),
    ];
    let words = |(word, bound): (&str, Option<f64>)| Some(format!("{word} {}", bound?));
    let words: Vec<String> = bounds.into_iter().filter_map(words).collect();
    words.join(", ")
}
