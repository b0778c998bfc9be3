//! Overrides: `key=value` texts set in a parsed document.
//!
//! A key is a path from the root, or the end of one path that is in the document, or such an end and further keys below
//! it; a stage is known by its number from 0 or by its name. What a stage has as a key or an option of its own is meant before what
//! stands deeper in it, and what is nowhere goes to the table of the only stage, or to the choice there that has such an option. Every value set here carries a span of the caller's, so
//! that a later complaint can name the override.

use std::borrow::Cow;
use std::ops::Range;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::{
    recipe::{document::inheritance::CHOICES, schema},
    stages::kinds::Kind,
};

/// A value of the document with its place in the text.
type Value<'a> = Spanned<DeValue<'a>>;

/// Keys of the root that may be set though the document does not have them.
const OF_THE_ROOT: &[&str] = &["defaults", "seeds"];

/// Keys whose text is the path of data, for which a table can stand.
const OF_DATA: &[&str] = &[
    "baseline",
    "data",
    "labels",
    "preferences",
    "tokenizer_data",
    "validation",
];

/// The most keys in one path; recursion below is as deep as a path.
const LONGEST_PATH: usize = 32;

/// Sets one override, or says what is wrong with it.
///
/// With `below_options`, a key that is nowhere in the document goes to the `options` of the only stage.
pub(super) fn apply<'a>(
    document: &mut Value<'a>,
    text: &'a str,
    span: Range<usize>,
    below_options: bool,
) -> Result<(), String> {
    let (keys, value) = text
        .split_once('=')
        .ok_or("expected `key=value`, as in `train.learning_rate=1e-4`")?;
    let keys: Vec<&str> = keys.split('.').map(str::trim).collect();
    if keys.iter().any(|key| key.is_empty()) {
        return Err(
            "expected `key=value` with dots between the keys, as in `train.learning_rate=1e-4`"
                .into(),
        );
    }
    if keys.len() > LONGEST_PATH {
        return Err(format!(
            "the path has {} keys, the limit is {LONGEST_PATH}",
            keys.len()
        ));
    }
    let path = resolve(document.get_ref(), &keys, below_options)?;
    set(document, &path, parse_value(value.trim(), &span), &span)
}

/// TOML where the text is TOML, else the text itself.
fn parse_value<'a>(text: &'a str, span: &Range<usize>) -> Value<'a> {
    match DeValue::parse(text) {
        Ok(value) => marked(value.into_inner(), span),
        Err(_) => Spanned::new(span.clone(), DeValue::String(Cow::Borrowed(text))),
    }
}

/// The value with every span in it replaced: its own positions belong to the override's text.
fn marked<'a>(value: DeValue<'a>, span: &Range<usize>) -> Value<'a> {
    let value = match value {
        DeValue::Table(table) => DeValue::Table(
            table
                .into_iter()
                .map(|(key, value)| {
                    (
                        Spanned::new(span.clone(), key.into_inner()),
                        marked(value.into_inner(), span),
                    )
                })
                .collect(),
        ),
        DeValue::Array(array) => DeValue::Array(
            array
                .into_iter()
                .map(|value| marked(value.into_inner(), span))
                .collect(),
        ),
        scalar => scalar,
    };
    Spanned::new(span.clone(), value)
}

/// The whole path that the given keys mean in this document.
fn resolve(
    document: &DeValue<'_>,
    keys: &[&str],
    below_options: bool,
) -> Result<Vec<String>, String> {
    let given = || keys.iter().map(|key| key.to_string());
    if document.get(keys[0]).is_some() || OF_THE_ROOT.contains(&keys[0]) {
        return Ok(in_repetition(document, keys).unwrap_or_else(|| given().collect()));
    }
    let mut known = Vec::new();
    collect_paths(document, &mut Vec::new(), &mut known);
    for length in (1..=keys.len()).rev() {
        let fitting = known.iter().filter(|path| ends_with(path, &keys[..length]));
        let (own, deeper): (Vec<_>, Vec<_>) = fitting.partition(|path| is_own(path));
        let places = match own.is_empty() {
            false => own,
            true if keys.len() == 1 && is_option(document, keys[0]) => Vec::new(),
            true => deeper,
        };
        let whole = |path: &Vec<String>| path.iter().cloned().chain(given().skip(length)).collect();
        match places.as_slice() {
            [] => {}
            [place] => return Ok(whole(place)),
            _ => {
                let places: Vec<Vec<String>> = places.into_iter().map(whole).collect();
                return Err(ambiguous(keys, &places));
            }
        }
    }
    in_only_stage(document, keys, below_options)
}

/// Whether a key stands in the table of a stage, or of the defaults of a kind, or in the options there, and not deeper.
fn is_own(path: &[String]) -> bool {
    let above = path.split_last().map_or(path, |(_, above)| above);
    let table = match above {
        [table @ .., last] if last == "options" => table,
        table => table,
    };
    matches!(table, [.., before, kind] if Kind::NAMES.contains(&kind.as_str())
        && (before == "defaults" || before.parse::<usize>().is_ok()))
}

/// Whether a kind of stage that the document has knows the key as one of its own.
fn is_option(document: &DeValue<'_>, key: &str) -> bool {
    let stages = document
        .get("stage")
        .and_then(|stage| stage.get_ref().as_array());
    let tables = stages
        .into_iter()
        .flatten()
        .flat_map(|stage| children(stage.get_ref()));
    tables
        .into_iter()
        .any(|(kind, _)| schema::place_of_key(&kind, key).is_some())
}

/// The path of a stage of a repetition that is called by its name, as one outside is.
fn in_repetition(document: &DeValue<'_>, keys: &[&str]) -> Option<Vec<String>> {
    let ["stage", name, below @ ..] = keys else {
        return None;
    };
    let stages = document.get("stage")?.get_ref().as_array()?;
    let named = |stages: &[Value<'_>]| stages.iter().position(|stage| is_named(stage, name));
    if name.parse::<usize>().is_ok() || named(stages).is_some() {
        return None;
    }
    let (outer, inner) = stages.iter().enumerate().find_map(|(outer, stage)| {
        let repeat = stage.get_ref().get("repeat")?.get_ref();
        let inner = named(repeat.get("stage")?.get_ref().as_array()?)?;
        Some((outer.to_string(), inner.to_string()))
    })?;
    let path = ["stage", &outer, "repeat", "stage", &inner];
    let keys = path.into_iter().chain(below.iter().copied());
    Some(keys.map(str::to_owned).collect())
}

fn ends_with(path: &[String], keys: &[&str]) -> bool {
    path.len() >= keys.len() && path[path.len() - keys.len()..].iter().eq(keys)
}

fn ambiguous(keys: &[&str], places: &[Vec<String>]) -> String {
    let places: Vec<String> = places
        .iter()
        .take(8)
        .map(|path| format!("`{}`", path.join(".")))
        .collect();
    format!(
        "`{}` fits several places; write one of {}",
        keys.join("."),
        places.join(", ")
    )
}

/// The path of every key in the document, in its order; elements of an array are keys too where they are tables.
fn collect_paths(value: &DeValue<'_>, here: &mut Vec<String>, paths: &mut Vec<Vec<String>>) {
    for (key, child) in children(value) {
        here.push(key);
        paths.push(here.clone());
        collect_paths(child, here, paths);
        here.pop();
    }
}

fn children<'v, 'a>(value: &'v DeValue<'a>) -> Vec<(String, &'v DeValue<'a>)> {
    match value {
        DeValue::Table(table) => table
            .iter()
            .map(|(key, child)| (key.get_ref().to_string(), child.get_ref()))
            .collect(),
        DeValue::Array(array) => {
            let elements = array
                .iter()
                .enumerate()
                .map(|(index, child)| (index.to_string(), child.get_ref()));
            elements
                .filter(|(_, child)| child.is_table() || child.is_array())
                .collect()
        }
        _ => Vec::new(),
    }
}

/// A key that is nowhere in the document belongs to the table of its only stage.
fn in_only_stage(
    document: &DeValue<'_>,
    keys: &[&str],
    below_options: bool,
) -> Result<Vec<String>, String> {
    let key = keys.join(".");
    let Some(stages) = document
        .get("stage")
        .and_then(|stage| stage.get_ref().as_array())
    else {
        return Ok(keys.iter().map(|key| key.to_string()).collect());
    };
    let [stage] = &stages[..] else {
        let count = stages.len();
        return Err(format!(
            "`{key}` is in none of the {count} stages; write its whole path, as in `{}`",
            whole_path(stages, &key)
        ));
    };
    let tables: Vec<String> = children(stage.get_ref())
        .into_iter()
        .filter(|(_, child)| child.is_table())
        .map(|(key, _)| key)
        .collect();
    let [table] = tables.as_slice() else {
        return Err(format!(
            "`{key}` is not in the stage; write its whole path, as in `{}`",
            whole_path(stages, &key)
        ));
    };
    if let [key] = keys
        && let Some(place) = in_choice(stage.get_ref(), table, key)
    {
        return Ok(place);
    }
    let options = below_options.then_some("options");
    Ok(["stage", "0", table]
        .into_iter()
        .chain(options)
        .chain(keys.iter().copied())
        .map(str::to_owned)
        .collect())
}

/// The path of a key that is no option of the only stage, but of one of the choices that it makes, and of no other: `beta` where the
/// objective is `dpo`.
fn in_choice(stage: &DeValue<'_>, table: &str, key: &str) -> Option<Vec<String>> {
    if schema::place_of_key(table, key).is_some() {
        return None;
    }
    let chosen = |place: &[&str]| {
        let mut value = stage.get(table)?;
        for step in place {
            value = value.get_ref().get(*step)?;
        }
        let name = match value.get_ref() {
            DeValue::String(name) => name.to_string(),
            DeValue::Table(choice) => choice.keys().next()?.get_ref().to_string(),
            _ => return None,
        };
        let has = schema::choice_has(table, place, &name, key);
        let path = ["stage", "0", table]
            .into_iter()
            .chain(place.iter().copied());
        has.then(|| {
            path.chain([name.as_str(), key])
                .map(str::to_owned)
                .collect()
        })
    };
    let places = CHOICES
        .iter()
        .flat_map(|choice| [vec![*choice], vec!["options", *choice]]);
    let mut found = places.filter_map(|place| chosen(&place));
    let first = found.next();
    first.filter(|_| found.next().is_none())
}

/// Where a key can stand in one of the stages: in its table, or in the options of its table.
fn whole_path(stages: &[Value<'_>], key: &str) -> String {
    let first = key.split('.').next().unwrap_or_default();
    let places = stages.iter().enumerate().flat_map(|(number, stage)| {
        let tables = children(stage.get_ref()).into_iter();
        tables.map(move |(table, _)| (number, table))
    });
    let fitting = places.into_iter().find_map(|(number, table)| {
        let below = schema::place_of_key(&table, first)?;
        Some(format!("stage.{number}.{table}.{below}{key}"))
    });
    fitting.unwrap_or_else(|| format!("stage.0.train.{key}"))
}

/// Sets the value at a path, making the tables on the way that are missing.
fn set<'a>(
    document: &mut Value<'a>,
    path: &[String],
    new: Value<'a>,
    span: &Range<usize>,
) -> Result<(), String> {
    let mut place = document;
    for (depth, key) in path.iter().enumerate() {
        let parent = path[..depth].join(".");
        let choice = path[..depth]
            .last()
            .filter(|above| CHOICES.contains(&above.as_str()));
        if choice.is_some() && place.get_ref().as_str() == Some(key) {
            *place = named_choice(key, span);
        }
        let is_source = path[..depth]
            .last()
            .is_some_and(|above| OF_DATA.contains(&above.as_str()));
        if is_source && place.get_ref().is_str() {
            *place = source_of_path(place.clone(), span);
        }
        place = match place.get_mut() {
            DeValue::Table(table) => table
                .entry(Spanned::new(span.clone(), Cow::Owned(key.clone())))
                .or_insert_with(|| Spanned::new(span.clone(), DeValue::Table(DeTable::new()))),
            DeValue::Array(array) => {
                let reason = format!(
                    "`{parent}` is a list of {}, so it has no element `{key}`",
                    array.len()
                );
                let named = || array.iter().position(|element| is_named(element, key));
                let index = key.parse().ok().or_else(named);
                index
                    .and_then(|index: usize| array.get_mut(index))
                    .ok_or(reason)?
            }
            DeValue::String(name) if let Some(choice) = choice => {
                return Err(format!(
                    "`{parent}` is `{name}`, whose options are set below its name, as `{choice}.{name}.OPTION=VALUE`; it has no key `{key}`"
                ));
            }
            other => {
                return Err(format!(
                    "`{parent}` is a {}, so it has no key `{key}`",
                    other.type_str()
                ));
            }
        };
    }
    *place = new;
    Ok(())
}

/// A choice that was given by its name alone, as a table in which its options can stand.
fn named_choice<'a>(name: &str, span: &Range<usize>) -> Value<'a> {
    let spanned = |value| Spanned::new(span.clone(), value);
    let key = Spanned::new(span.clone(), Cow::Owned(name.to_owned()));
    let options = spanned(DeValue::Table(DeTable::new()));
    spanned(DeValue::Table(DeTable::from_iter([(key, options)])))
}

/// Data that were given by their path alone, as a table in which other keys can stand.
fn source_of_path<'a>(path: Value<'a>, span: &Range<usize>) -> Value<'a> {
    let key = Spanned::new(span.clone(), Cow::Borrowed("path"));
    let table = DeTable::from_iter([(key, path)]);
    Spanned::new(span.clone(), DeValue::Table(table))
}

/// Whether an element of a list is a table with this name.
fn is_named(element: &Value<'_>, name: &str) -> bool {
    let own = element.get_ref().get("name");
    own.and_then(|own| own.get_ref().as_str()) == Some(name)
}
