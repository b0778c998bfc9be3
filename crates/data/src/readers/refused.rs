//! Keys that change what a record means: honoured where they say which turns are learned, refused where nobody reads them.
//!
//! Which turns are learned is said by `weight` (OpenAI), `train` and `training` (Axolotl), `loss` (SWIFT, XTuner) and
//! `train_on_turn`. Other keys of a turn go to the chat template, other keys of a record (`id`, `source`, ...) say nothing.

use serde_json::{Map, Value};

use super::fields::{Fields, kind, says_nothing};
use super::forms::Form;
use super::verdict;

/// Keys of a turn that say whether it is learned.
const LEARNED: [&str; 6] = [
    "weight",
    "train",
    "training",
    "trainable",
    "train_on_turn",
    "loss",
];

/// Keys that bring what is no text.
const MEDIA: [&str; 6] = ["image", "images", "video", "videos", "audio", "audios"];

/// Keys of a turn that nobody reads, and what to do instead.
const OF_TURNS: [(&str, &str); 8] = [
    ("train_detail", PARTS_OF_TURNS),
    ("training_detail", PARTS_OF_TURNS),
    ("loss_mask", PARTS_OF_TURNS),
    ("loss_scale", WHOLE_WEIGHTS),
    (
        "mask",
        "say with `weight`, 0 or 1, whether the turn is learned",
    ),
    (
        "masked",
        "say with `weight`, 0 or 1, whether the turn is learned",
    ),
    (
        "function_call",
        "write the call as an element of `tool_calls`",
    ),
    ("refusal", "write it as `content`"),
];

/// Keys of a record that nobody reads, and what to do instead.
const OF_RECORDS: [(&str, &str); 18] = [
    ("weight", WHOLE_WEIGHTS),
    ("weights", WHOLE_WEIGHTS),
    ("sample_weight", WHOLE_WEIGHTS),
    ("loss_scale", WHOLE_WEIGHTS),
    ("loss", FLAGS_OF_TURNS),
    ("train", FLAGS_OF_TURNS),
    ("training", FLAGS_OF_TURNS),
    ("trainable", FLAGS_OF_TURNS),
    ("train_on_turn", FLAGS_OF_TURNS),
    ("train_on_inputs", FLAGS_OF_TURNS),
    ("mask", FLAGS_OF_TURNS),
    ("loss_mask", FLAGS_OF_TURNS),
    ("kto_tag", UNPAIRED),
    (
        "chat_template_kwargs",
        "write what it says into the chat template",
    ),
    (
        "enable_thinking",
        "write what it says into the chat template",
    ),
    ("documents", "write them into a message"),
    ("functions", "write them as `tools`"),
    (
        "rejected_response",
        "write pairs of `chosen` and `rejected`",
    ),
];

/// Keys beside a prompt that would change what is asked, and that nobody reads; the others are for whoever scores the answers.
const OF_PROMPTS: [(&str, &str); 6] = [
    (
        "chat_template_kwargs",
        "write what it says into the chat template",
    ),
    (
        "enable_thinking",
        "write what it says into the chat template",
    ),
    ("documents", "write them into the prompt"),
    ("functions", "write them as `tools`"),
    ("history", "write `prompt` as a list of messages"),
    ("system_prompt", "name it `system`"),
];

/// Keys of which a record has one, whatever its name.
const ONE_OF: [(Form, &[&str]); 3] = [
    (Form::Labelled, &["label", "labels"]),
    (Form::Tagged, &["tokens", "words"]),
    (Form::Tagged, &["labels", "ner_tags", "tags"]),
];

/// Keys of a question that nobody reads, but that the answer may rest on.
const OF_QUESTIONS: [(&str, &str); 5] = [
    ("input", "join it to the question"),
    ("context", "join it to the question"),
    ("history", "write the record as `messages`"),
    ("system_prompt", "name it `system`"),
    (
        "function_call",
        "write the record as `messages` with `tool_calls`",
    ),
];

const PARTS_OF_TURNS: &str = "turns are learned whole or not at all";
const WHOLE_WEIGHTS: &str = "what is learned is learned alike; leave out what is not to be";
const FLAGS_OF_TURNS: &str = "say of each turn whether it is learned, with `weight` 0 or 1";
const UNPAIRED: &str = "it judges an answer, and only `kto` learns from verdicts; choose that objective, or leave it out";

/// Takes the keys that say whether a turn is learned out of it.
pub(super) fn learned(role: &str, turn: &mut Map<String, Value>) -> Result<bool, String> {
    let mut said: Option<(&str, bool)> = None;
    for name in LEARNED {
        let Some(value) = turn.shift_remove(name).filter(|value| !value.is_null()) else {
            continue;
        };
        let flag = flag(name, &value)?;
        match said {
            Some((other, earlier)) if earlier != flag => {
                return Err(format!("`{other}` and `{name}` contradict each other"));
            }
            _ => said = Some((name, flag)),
        }
    }
    match said {
        Some((name, true)) if role != "assistant" => Err(format!(
            "`{name}` asks for a turn of the {role} to be learned, but only the assistant's are; leave it out"
        )),
        Some((_, false)) if role != "assistant" => Ok(true),
        said => Ok(said.is_none_or(|(_, flag)| flag)),
    }
}

fn flag(name: &str, value: &Value) -> Result<bool, String> {
    match (value, value.as_f64()) {
        (Value::Bool(flag), _) => Ok(*flag),
        (_, Some(0.0)) => Ok(false),
        (_, Some(1.0)) => Ok(true),
        (Value::Number(number), _) => Err(format!(
            "`{name}` must be 0 or 1, found {number}: a turn is learned or not"
        )),
        _ => Err(format!(
            "`{name}` must be true, false, 0 or 1, found {}",
            kind(value)
        )),
    }
}

/// Refuses keys of a turn that would be ignored.
pub(super) fn refuse_turn_keys(turn: &Map<String, Value>) -> Result<(), String> {
    let keys = turn.iter().filter(|(_, value)| !says_nothing(value));
    keys.map(|(key, _)| key.as_str())
        .try_for_each(|key| refuse(key, &[&OF_TURNS]))
}

/// Refuses keys of a record that would be ignored.
pub(super) fn refuse_record_keys(form: Form, fields: &Fields) -> Result<(), String> {
    refuse_two_names(form, fields)?;
    let conversation = !matches!(form, Form::Text | Form::Labelled | Form::Tagged);
    for (key, value) in fields.unread() {
        if form == Form::Prompt {
            refuse(key, &[&OF_PROMPTS])?;
            continue;
        }
        if key == "label" && conversation && verdict::meaning(value).is_some() {
            return Err(format!("`label` is of no use here: {UNPAIRED}"));
        }
        let other = matches!(key, "messages" | "conversations");
        if other && matches!(form, Form::Messages | Form::ShareGpt) && value.is_array() {
            return Err(
                "`messages` and `conversations` are both there; keep one of them".to_string(),
            );
        }
        match form {
            Form::Alpaca | Form::Completion => refuse(key, &[&OF_RECORDS, &OF_QUESTIONS])?,
            _ => refuse(key, &[&OF_RECORDS])?,
        }
        if form != Form::Text && matches!(key, "system" | "tools") {
            return Err(format!("{form} records have no `{key}`"));
        }
    }
    Ok(())
}

/// Refuses two keys of which one alone would be read.
fn refuse_two_names(form: Form, fields: &Fields) -> Result<(), String> {
    for (_, names) in ONE_OF.iter().filter(|(of, _)| *of == form) {
        let mut there = names.iter().filter(|name| fields.has(name));
        if let (Some(first), Some(second)) = (there.next(), there.next()) {
            return Err(format!(
                "`{first}` and `{second}` are both there; keep one of them"
            ));
        }
    }
    Ok(())
}

fn refuse(key: &str, lists: &[&[(&str, &str)]]) -> Result<(), String> {
    if MEDIA.contains(&key) {
        return Err(format!(
            "`{key}` cannot be learned from: models here read text alone; leave the record out"
        ));
    }
    let mut known = lists.iter().flat_map(|list| list.iter());
    match known.find(|(name, _)| *name == key) {
        Some((_, instead)) => Err(format!("`{key}` is of no use here: {instead}")),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::super::fields::Fields;
    use super::super::{Wanted, forms::Form};
    use crate::record::Record;
    use serde_json::{Value, json};

    fn read(value: Value) -> Result<Record, String> {
        let Value::Object(map) = value else {
            panic!("no object")
        };
        let form = Form::detect(&map, super::super::Wanted::Texts)?;
        form.read(&Fields::new(form, map))
    }

    /// Whether the turns of a conversation are learned, the flags of two answers given.
    fn learned(first: Value, second: Value) -> Result<Vec<bool>, String> {
        let turn = |role: &str, flags: &Value| {
            let mut turn = json!({"role": role, "content": role});
            let flags = flags.as_object().unwrap().clone();
            turn.as_object_mut().unwrap().extend(flags);
            turn
        };
        let turns = [
            turn("user", &json!({})),
            turn("assistant", &first),
            turn("user", &json!({"weight": 0})),
            turn("assistant", &second),
        ];
        let openai = read(json!({"messages": turns}))?;
        let renamed = turns.map(|mut turn| {
            let map = turn.as_object_mut().unwrap();
            let (role, content) = (map.remove("role").unwrap(), map.remove("content").unwrap());
            let from = if role == "user" { "human" } else { "gpt" };
            map.insert("from".into(), from.into());
            map.insert("value".into(), content);
            turn
        });
        assert_eq!(read(json!({"conversations": renamed}))?, openai);
        let Record::Chat { messages, .. } = openai else {
            panic!("no chat")
        };
        assert!(messages.iter().all(|message| message.rest.is_empty()));
        Ok(messages.iter().map(|message| message.learned).collect())
    }

    #[test]
    fn flags_say_which_turns_are_learned() {
        for name in [
            "weight",
            "train",
            "training",
            "trainable",
            "train_on_turn",
            "loss",
        ] {
            for (no, yes) in [(json!(false), json!(true)), (json!(0), json!(1.0))] {
                let flags = learned(json!({name: no}), json!({name: yes})).unwrap();
                assert_eq!(flags, [true, false, true, true], "{name}");
            }
        }
        let unsaid = learned(json!({"weight": null}), json!({})).unwrap();
        assert_eq!(unsaid, [true; 4]);
    }

    #[test]
    fn flags_that_cannot_be_honoured_are_refused() {
        let error = |flags: Value| learned(flags, json!({})).unwrap_err();
        assert_eq!(
            error(json!({"weight": 0.5})),
            "turn 2: `weight` must be 0 or 1, found 0.5: a turn is learned or not"
        );
        assert!(error(json!({"train": "no"})).contains("`train` must be true, false, 0 or 1"));
        assert!(error(json!({"train": false, "weight": 1})).contains("contradict"));
        assert!(error(json!({"train_detail": [{"begin_offset": 0}]})).contains("`train_detail`"));
        let user = json!({"messages": [{"role": "user", "content": "a", "train": true}, {"role": "assistant", "content": "b"}]});
        assert!(
            read(user)
                .unwrap_err()
                .contains("a turn of the user to be learned")
        );
        let answer = json!({"prompt": "a", "chosen": [{"role": "assistant", "content": "b", "weight": 0}], "rejected": "c"});
        assert!(
            read(answer)
                .unwrap_err()
                .contains("`chosen` is not to be learned")
        );
    }

    #[test]
    fn labels_of_unpaired_preferences_are_refused() {
        for label in [
            json!(true),
            json!(0),
            json!(1),
            json!("True"),
            json!("bad"),
            json!(-1),
        ] {
            let record = json!({"prompt": "q", "completion": "a", "label": label});
            let error = read(record).unwrap_err();
            assert!(
                error.starts_with("`label` is of no use here: it judges an answer"),
                "{error}"
            );
        }
        assert!(
            read(json!({"messages": [], "kto_tag": "x"}))
                .unwrap_err()
                .contains("only `kto` learns from verdicts")
        );
        assert!(read(json!({"prompt": "q", "completion": "a", "label": "history"})).is_ok());
        assert!(read(json!({"text": "a", "label": true})).is_ok());
    }

    fn wanted(value: Value, wanted: Wanted) -> Result<Record, String> {
        let Value::Object(map) = value else {
            panic!("no object")
        };
        let form = Form::detect(&map, wanted)?;
        form.read(&Fields::new(form, map))
    }

    #[test]
    fn labels_have_one_name() {
        let labelled = |value| wanted(value, Wanted::Labels);
        let error = labelled(json!({"text": "a", "label": 1, "labels": 0})).unwrap_err();
        assert!(
            error.starts_with("`label` and `labels` are both there; keep one"),
            "{error}"
        );
        let error = labelled(json!({"tokens": ["a"], "tags": [1], "ner_tags": [0]})).unwrap_err();
        assert!(error.starts_with("`ner_tags` and `tags`"), "{error}");
        let error = labelled(json!({"tokens": ["a"], "words": ["b"], "tags": [1]})).unwrap_err();
        assert!(error.starts_with("`tokens` and `words`"), "{error}");
        assert!(labelled(json!({"text": "a", "label": 1, "labels": null})).is_ok());
        // The label of a whole text says nothing of its words.
        assert!(labelled(json!({"tokens": ["a"], "tags": [1], "label": 1})).is_ok());
    }

    #[test]
    fn what_would_change_a_prompt_is_refused_and_what_rewards_read_is_not() {
        let prompt = |key: &str| wanted(json!({"prompt": "q", key: "x"}), Wanted::Prompts);
        for key in ["documents", "history", "system_prompt", "enable_thinking"] {
            let error = prompt(key).unwrap_err();
            assert!(error.starts_with(&format!("`{key}`")), "{error}");
        }
        for key in ["label", "weight", "gold", "answer"] {
            assert!(prompt(key).is_ok(), "{key}");
        }
    }

    #[test]
    fn what_would_be_ignored_is_refused_and_the_rest_is_not() {
        let chat = json!([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]);
        for (key, value) in [
            ("images", json!(["x.png"])),
            ("videos", json!(["x.mp4"])),
            ("audios", json!(["x.wav"])),
            ("documents", json!([{"text": "a"}])),
            ("functions", json!([{"name": "f"}])),
            ("weight", json!(0)),
            ("train_on_inputs", json!(true)),
            ("chat_template_kwargs", json!({"enable_thinking": false})),
            ("enable_thinking", json!(false)),
        ] {
            let error = read(json!({"messages": chat, key: value})).unwrap_err();
            assert!(error.starts_with(&format!("`{key}`")), "{error}");
        }
        let turns = json!([{"from": "human", "value": "c"}, {"from": "gpt", "value": "d"}]);
        let error = read(json!({"messages": chat, "conversations": turns})).unwrap_err();
        assert!(error.contains("keep one of them"), "{error}");
        let image = json!([{"role": "user", "content": "a", "images": ["x"]}]);
        assert!(
            read(json!({"messages": image}))
                .unwrap_err()
                .contains("turn 1: `images`")
        );
        let call = json!([{"role": "assistant", "content": "", "function_call": {"name": "f"}}]);
        assert!(
            read(json!({"messages": call}))
                .unwrap_err()
                .contains("`tool_calls`")
        );
        let question = json!({"question": "a", "answer": "b", "context": "c"});
        assert!(
            read(question)
                .unwrap_err()
                .contains("join it to the question")
        );
        let harmless = json!({"messages": chat, "id": 7, "source": "x", "images": [], "weight": null, "meta": {"x": [1]}});
        assert!(read(harmless).is_ok());
    }
}
