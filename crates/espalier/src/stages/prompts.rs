//! Prompts for objectives that learn from the policy's own answers, each with everything that its item or line says, for the rewards.

use espalier_data::{
    encode::Encoder,
    record::{Message, Record},
    tokenizer::Tokenizer,
};
use espalier_train::{batch::Sample, objectives::online::rollout};
use rayon::prelude::*;
use serde_json::Value;

use super::{Voice, data::Sourced};
use crate::{Error, Result};

/// Samples that ask for an answer; records that ask for none, and prompts of more than `length` tokens, are counted and said.
///
/// # Errors
/// When a template refuses a conversation, or nothing is left.
pub fn samples(
    tokenizer: &Tokenizer,
    records: &[Sourced],
    length: usize,
    voice: &mut dyn Voice,
) -> Result<Vec<Sample>> {
    let encoder = Encoder::new(tokenizer.clone(), usize::MAX);
    let sample = |sourced: &Sourced| -> Result<Option<Sample>> {
        let messages = question(&sourced.record).map(|(messages, _)| messages);
        let asked = of_record(&encoder, sourced)?.zip(messages);
        Ok(asked.map(|(ids, messages)| rollout::prompt(ids, messages, &sourced.origin)))
    };
    let asked: Vec<Result<Option<Sample>>> = records.par_iter().map(sample).collect();
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
pub fn of_record(encoder: &Encoder, sourced: &Sourced) -> Result<Option<Vec<u32>>> {
    let Some((messages, tools)) = question(&sourced.record) else {
        return Ok(None);
    };
    let ids = encoder.prompt(messages, tools);
    ids.map(Some)
        .map_err(|error| Error::work(format!("{}{error}", sourced.words())))
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        recipe::DataOptions,
        stages::{Silent, data},
    };
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
        let key = |key: &str| -> Vec<Value> {
            let origins = records.iter().map(|sourced| sourced.origin[key].clone());
            origins.collect()
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
        let asked = samples(&tokenizer(), &records, 7, &mut Silent).unwrap();
        // The longest is left out.
        assert_eq!(asked.len(), 5);
        let prompt = |sample: &Sample| tokenizer().decode(&sample.rows[0].ids, true).unwrap();
        assert_eq!(prompt(&asked[2]), "ab>");
        assert_eq!(
            prompt(&asked[0]),
            format!("{}>", key("prompt")[0].as_str().unwrap())
        );
    }

    #[test]
    fn records_of_one_line_and_of_a_file_that_is_named_twice_keep_what_is_theirs() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("asked.json");
        let element = |gold: usize| format!(r#"{{"prompt": "q{gold}", "gold": {gold}}}"#);
        let line = (1..=3).map(element).collect::<Vec<_>>().join(", ");
        std::fs::write(&path, format!("[{line}]")).unwrap();
        let source = DataOptions {
            path: Some(path),
            ..DataOptions::default()
        };
        let sources = [source.clone(), source];
        let read = |wanted| data::records(&sources, wanted, &mut Silent).unwrap();
        let records = read(Wanted::Prompts);
        let golds: Vec<&Value> = records.iter().map(|one| &one.origin["gold"]).collect();
        assert_eq!(golds, [1, 2, 3, 1, 2, 3]);
    }

    #[test]
    fn a_prompt_with_tools_is_written_by_the_template_for_tools() {
        let folder = tempfile::tempdir().unwrap();
        tokenizer().save(folder.path()).unwrap();
        let template = |name: &str| format!(r#"{{"name": "{name}", "template": "{name}>"}}"#);
        let templates = [template("default"), template("tool_use")].join(", ");
        let configuration = format!(r#"{{"chat_template": [{templates}]}}"#);
        std::fs::write(folder.path().join("tokenizer_config.json"), configuration).unwrap();
        let _ = std::fs::remove_file(folder.path().join("chat_template.jinja"));
        let tokenizer = Tokenizer::load(folder.path()).unwrap();
        let asked = |tools: Option<Value>| {
            let record = Record::Chat {
                messages: vec![Message::user("q")],
                tools,
            };
            let sourced = Sourced {
                record,
                place: None,
                origin: Value::Null,
            };
            let samples = samples(&tokenizer, &[sourced], 99, &mut Silent).unwrap();
            tokenizer.decode(&samples[0].rows[0].ids, true).unwrap()
        };
        assert_eq!(asked(None), "default>");
        let tools = serde_json::json!([{"type": "function", "function": {"name": "f"}}]);
        assert_eq!(asked(Some(tools)), "tool_use>");
    }
}
