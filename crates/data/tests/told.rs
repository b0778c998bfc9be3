//! What an encoder tells of records: which template it takes, why nothing is learned, and what is left out.
#![allow(clippy::unwrap_used, reason = "a test may fail loudly")]

use espalier_data::{
    encode::{Encoded, Encoder},
    record::{Message, Record},
    template::ChatTemplate,
    tokenizer::{BpeOptions, Tokenizer},
};
use serde_json::{Value, json};

fn tokenizer() -> Tokenizer {
    let options = BpeOptions {
        vocabulary: 259,
        ..BpeOptions::default()
    };
    Tokenizer::train_byte_level_bpe(std::iter::empty(), &options).unwrap()
}

/// A tokenizer read from a folder whose `tokenizer_config.json` has these templates.
fn with_templates(templates: Value) -> Tokenizer {
    let folder = tempfile::tempdir().unwrap();
    tokenizer().save(folder.path()).unwrap();
    let path = folder.path().join("tokenizer_config.json");
    let mut config: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    config["chat_template"] = templates;
    std::fs::write(&path, config.to_string()).unwrap();
    Tokenizer::load(folder.path()).unwrap()
}

fn source(name: &str) -> String {
    let tools = "{{ tools | length if tools else 0 }}";
    format!(
        "{name}{tools}{{% for m in messages %}}[{{{{ m.role }}}}]{{{{ m.content }}}}<|im_end|>{{% endfor %}}"
    )
}

fn chat(messages: Value, tools: Option<Value>) -> Record {
    Record::Chat {
        messages: serde_json::from_value(messages).unwrap(),
        tools,
    }
}

fn turns() -> Value {
    json!([{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}])
}

fn shown(encoder: &Encoder, record: &Record) -> String {
    match encoder.encode(record).unwrap() {
        Encoded::Example(example) => encoder.show(&example, false).unwrap(),
        other => format!("{other:?}"),
    }
}

#[test]
fn conversations_with_tools_have_the_template_for_tools() {
    let list = json!([
        {"name": "default", "template": source("D")},
        {"name": "tool_use", "template": source("T")},
    ]);
    let by_name = json!({"default": source("D"), "tool_use": source("T")});
    let tools = json!([{"type": "function", "function": {"name": "f"}}]);
    for templates in [list, by_name] {
        let tokenizer = with_templates(templates);
        let other = tokenizer
            .clone()
            .with_template(ChatTemplate::new(&source("O")).unwrap());
        let encoder = Encoder::new(tokenizer, 1000);
        assert!(shown(&encoder, &chat(turns(), None)).starts_with("D0[user]"));
        assert!(shown(&encoder, &chat(turns(), Some(tools.clone()))).starts_with("T1[user]"));
        // One that is asked for is that of all conversations.
        let encoder = Encoder::new(other, 1000);
        assert!(shown(&encoder, &chat(turns(), Some(tools.clone()))).starts_with("O1[user]"));
    }
    let encoder = Encoder::new(with_templates(json!({"rag": source("R")})), 1000);
    let error = encoder.encode(&chat(turns(), None)).unwrap_err();
    assert!(
        error.to_string().contains("no `default`, but rag"),
        "{error}"
    );
}

#[test]
fn the_reason_why_nothing_is_learned_is_the_reason() {
    let reason = |encoder: &Encoder, messages: Value| match encoder.encode(&chat(messages, None)) {
        Ok(Encoded::Dropped { reason }) => reason,
        other => format!("{other:?}"),
    };
    let template = ChatTemplate::new(&source("")).unwrap();
    let encoder = Encoder::new(tokenizer().with_template(template.clone()), 1000);
    let mut unlearned = turns();
    unlearned[1]["weight"] = 0.into();
    assert_eq!(
        reason(&encoder, unlearned),
        "no turn of the assistant is to be learned (`weight` 0)"
    );
    let short = Encoder::new(tokenizer().with_template(template), 3);
    assert_eq!(
        reason(&short, turns()),
        "no token to learn is left within `length`"
    );
}

#[test]
fn reasoning_of_earlier_turns_is_told_of() {
    let template = "{% for m in messages %}<|{{ m.role }}|>{% if loop.last and m.thinking %}({{ m.thinking }}){% endif %}{{ m.content }}<|im_end|>{% endfor %}";
    let encoder = |source: &str| {
        let template = ChatTemplate::new(source).unwrap();
        Encoder::new(tokenizer().with_template(template), 1000)
    };
    let thinking = |turn: usize| {
        let mut turns = json!([
            {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"},
            {"role": "user", "content": "r"}, {"role": "assistant", "content": "b"},
        ]);
        turns[turn]["thinking"] = "hm".into();
        chat(turns, None)
    };
    assert!(encoder(template).hides_reasoning(&thinking(1)));
    assert!(!encoder(template).hides_reasoning(&thinking(3)));
    assert!(!encoder(template).hides_reasoning(&chat(turns(), None)));
    let showing = template.replace("loop.last and ", "");
    assert!(!encoder(&showing).hides_reasoning(&thinking(1)));
    assert_eq!(
        shown(&encoder(template), &thinking(3)),
        "<|user|>q<|im_end|>⟦<|assistant|>a<|im_end|>⟧<|user|>r<|im_end|>⟦<|assistant|>(hm)b<|im_end|>⟧"
    );
}

#[test]
fn answers_of_pairs_must_be_shown_too() {
    let template =
        ChatTemplate::new("{% for m in messages %}{{ m.content }}<|im_end|>{% endfor %}").unwrap();
    let encoder = Encoder::new(tokenizer().with_template(template), 1000);
    let mut chosen = Message::assistant("a");
    chosen.rest.insert("reasoning_content".into(), "hm".into());
    let pair = |chosen: Message, tools| Record::Preference {
        prompt: vec![Message::user("q")],
        chosen,
        rejected: Message::assistant("b"),
        tools,
        margin: None,
    };
    let error = encoder.encode(&pair(chosen, None)).unwrap_err();
    assert!(
        error
            .to_string()
            .contains("`reasoning_content` of message 2"),
        "{error}"
    );
    let tools = Some(json!([{"type": "function", "function": {"name": "f"}}]));
    let error = encoder
        .encode(&pair(Message::assistant("a"), tools))
        .unwrap_err();
    assert!(
        error.to_string().contains("does not show the `tools`"),
        "{error}"
    );
}
