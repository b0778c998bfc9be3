//! Prompts for objectives that learn from the policy's own answers, each with everything that its item or line says, for the rewards.

use std::{collections::BTreeMap, path::Path};

use espalier_data::{
    readers,
    record::{Message, Record},
    template::Conversation,
    tokenizer::Tokenizer,
    worlds::{self, Split},
};
use espalier_train::{batch::Sample, objectives::online::rollout};
use rayon::prelude::*;
use serde_json::{Map, Value};

use super::{
    Voice,
    data::{self, Sourced},
};
use crate::{Error, Result, recipe::DataOptions};

/// What the item or the line of each record says, in the order of [`data::records`].
///
/// # Errors
/// When a file cannot be read again.
pub fn origins(sources: &[DataOptions], records: &[Sourced]) -> Result<Vec<Value>> {
    let mut all = Vec::with_capacity(records.len());
    let mut lines: BTreeMap<&Path, BTreeMap<usize, Map<String, Value>>> = BTreeMap::new();
    let mut sources = sources.iter().filter(|source| source.world.is_some());
    let mut of_world = Vec::new().into_iter();
    for record in records {
        let origin = match &record.place {
            Some((path, line)) => {
                if !lines.contains_key(&**path) {
                    lines.insert(path, readers::objects(path)?);
                }
                let object = lines.get_mut(&**path).and_then(|lines| lines.remove(line));
                object.map_or(Value::Null, Value::Object)
            }
            None => {
                if of_world.as_slice().is_empty() {
                    of_world = sources.next().map_or(Ok(Vec::new()), items)?.into_iter();
                }
                of_world.next().unwrap_or_default()
            }
        };
        all.push(origin);
    }
    Ok(all)
}

/// The items of a world's source.
fn items(source: &DataOptions) -> Result<Vec<Value>> {
    let split: Split = source.split.parse()?;
    let task = source.world.as_deref().unwrap_or_default();
    let item = |index: usize| -> Result<Value> {
        Ok(worlds::item(task, split, index as u64, source.seed.unwrap_or(0))?.to_json())
    };
    (0..source.limit.unwrap_or(data::DEFAULT_ITEMS))
        .into_par_iter()
        .map(item)
        .collect()
}

/// Samples that ask for an answer; records that ask for none, and prompts of more than `length` tokens, are counted and said.
///
/// # Errors
/// When a template refuses a conversation, or nothing is left.
pub fn samples(
    tokenizer: &Tokenizer,
    records: &[Sourced],
    origins: &[Value],
    length: usize,
    voice: &mut dyn Voice,
) -> Result<Vec<Sample>> {
    let asked: Vec<Result<Option<Sample>>> = records
        .par_iter()
        .zip(origins)
        .map(|(sourced, origin)| {
            let Some((messages, tools)) = question(&sourced.record) else {
                return Ok(None);
            };
            let ids = encoded(tokenizer, messages, tools)
                .map_err(|error| Error::work(placed(sourced, &error)))?;
            Ok(Some(rollout::prompt(ids, messages, origin)))
        })
        .collect();
    let (mut kept, mut silent, mut long) = (Vec::with_capacity(records.len()), 0, 0);
    for sample in asked {
        match sample? {
            None => silent += 1,
            Some(sample) if sample.tokens() > length => long += 1,
            Some(sample) => kept.push(sample),
        }
    }
    let total = records.len();
    if silent > 0 {
        voice.say(&format!(
            "{silent} of {total} records left out: they ask for no answer"
        ));
    }
    if long > 0 {
        voice.say(&format!(
            "{long} of {total} records left out: the prompt is longer than `length` = {length}"
        ));
    }
    match kept.is_empty() && total > 0 {
        true => Err(Error::work(
            "no prompt is left to be answered; raise `options.length`, or give conversations",
        )),
        false => Ok(kept),
    }
}

/// The tokens of the prompt that a record asks with; nothing where it asks for no answer.
///
/// # Errors
/// When the template refuses the conversation, with the record's place.
pub fn of_record(tokenizer: &Tokenizer, sourced: &Sourced) -> Result<Option<Vec<u32>>> {
    let Some((messages, tools)) = question(&sourced.record) else {
        return Ok(None);
    };
    let ids = encoded(tokenizer, messages, tools);
    ids.map(Some)
        .map_err(|error| Error::work(placed(sourced, &error)))
}

/// The conversation up to the last answer, and the tools on offer.
fn question(record: &Record) -> Option<(&[Message], Option<&Value>)> {
    match record {
        Record::Chat { messages, tools } => {
            let last = messages
                .iter()
                .rposition(|message| message.role != "assistant")?;
            Some((&messages[..=last], tools.as_ref()))
        }
        Record::Preference { prompt, tools, .. } | Record::Unpaired { prompt, tools, .. } => {
            Some((prompt, tools.as_ref()))
        }
        Record::Steps { prompt, .. } => Some((prompt, None)),
        Record::Text { .. } | Record::Labelled { .. } | Record::Tagged { .. } => None,
    }
}

fn encoded(
    tokenizer: &Tokenizer,
    messages: &[Message],
    tools: Option<&Value>,
) -> espalier_data::Result<Vec<u32>> {
    let template = tokenizer.template().ok_or_else(|| {
        espalier_data::Error::Template(
            "the tokenizer has none, and prompts need one; choose one, such as template = \"chatml\"".into(),
        )
    })?;
    let conversation = Conversation {
        tools,
        add_generation_prompt: true,
        ..Conversation::new(messages, tokenizer.special())
    };
    tokenizer.encode_ids(&template.render(&conversation)?.text, false)
}

fn placed(sourced: &Sourced, error: &espalier_data::Error) -> String {
    match &sourced.place {
        Some((path, line)) => format!("{}:{line}: {error}", path.display()),
        None => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stages::Silent;
    use espalier_data::{readers::Wanted, template::ChatTemplate, tokenizer::BpeOptions};

    fn tokenizer() -> Tokenizer {
        let options = BpeOptions {
            vocabulary: 259,
            ..BpeOptions::default()
        };
        let tokenizer = Tokenizer::train_byte_level_bpe(std::iter::empty(), &options).unwrap();
        let source = "{% for m in messages %}{{ m.content }}{% endfor %}{% if add_generation_prompt %}>{% endif %}";
        tokenizer.with_template(ChatTemplate::new(source).unwrap())
    }

    #[test]
    fn prompts_carry_what_their_item_or_line_says() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("asked.jsonl");
        let line = |question: &str, gold: usize| {
            format!("{{\"question\": \"{question}\", \"answer\": \"x\", \"gold\": {gold}}}\n")
        };
        std::fs::write(
            &path,
            line("ab", 1) + "\n" + &line("abcdefgh", 2) + &line("c", 3),
        )
        .unwrap();
        let world = |limit| DataOptions {
            world: Some("addition".into()),
            limit: Some(limit),
            ..DataOptions::default()
        };
        let file = DataOptions {
            path: Some(path),
            ..DataOptions::default()
        };
        let sources = [world(2), file, world(1)];
        let records = data::records(&sources, Wanted::Prompts, &mut Silent).unwrap();
        let origins = origins(&sources, &records).unwrap();
        let key = |key: &str| -> Vec<Value> {
            origins.iter().map(|origin| origin[key].clone()).collect()
        };
        assert_eq!(key("gold")[2..5], [1, 2, 3]);
        assert_eq!(
            key("index"),
            [
                Value::from(0),
                1.into(),
                Value::Null,
                Value::Null,
                Value::Null,
                0.into()
            ]
        );
        let asked = samples(&tokenizer(), &records, &origins, 7, &mut Silent).unwrap();
        // The longest is left out.
        assert_eq!(asked.len(), 5);
        let prompt = |sample: &Sample| tokenizer().decode(&sample.rows[0].ids, true).unwrap();
        assert_eq!(prompt(&asked[2]), "ab>");
        assert_eq!(
            prompt(&asked[0]),
            format!("{}>", key("prompt")[0].as_str().unwrap())
        );
    }
}
