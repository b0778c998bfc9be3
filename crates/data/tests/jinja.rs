//! Expressions of chat templates beside what the Jinja of transformers prints for them.
#![allow(clippy::unwrap_used, reason = "a test may fail loudly")]

use espalier_data::{
    record::Message,
    template::{ChatTemplate, Conversation},
    tokenizer::SpecialTokens,
};

#[derive(serde::Deserialize)]
struct Case {
    expression: String,
    /// Nothing where Jinja raises an error.
    rendered: Option<String>,
}

fn render(source: &str) -> Option<String> {
    let messages = [Message::user("Qone"), Message::assistant("Aone")];
    let special = SpecialTokens {
        bos: Some("<s>".into()),
        eos: Some("</s>".into()),
        ..SpecialTokens::default()
    };
    let conversation = Conversation::new(&messages, &special);
    let rendered = ChatTemplate::new(source).and_then(|it| it.render(&conversation));
    rendered.ok().map(|rendered| rendered.text)
}

#[test]
fn expressions_print_what_they_print_in_python() {
    let path = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../tests/fixtures/jinja.json"
    );
    let cases: Vec<Case> = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    assert!(cases.len() > 380);
    let mut wrong = Vec::new();
    for Case {
        expression,
        rendered,
    } in cases
    {
        let ours = render(&format!("{{{{ {expression} }}}}"));
        if ours != rendered {
            wrong.push(format!("{expression}: {ours:?}, not {rendered:?}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn ends_of_lines_are_line_feeds() {
    let source = "a\r\n  {% if true %}\r\n  b\r  {% endif %}\r\n{{ 'c\r\nd' }}";
    assert_eq!(render(source).unwrap(), "a\n  b\nc\nd");
}

#[test]
fn values_that_come_from_variables_are_checked_too() {
    for refused in [
        "{% set n = namespace(x=0) %}{{ 1 / n.x }}",
        "{% set n = namespace(x='a') %}{{ n.x < 1 }}",
        "{% autoescape true %}{{ '<' }}{% endautoescape %}",
        "{{ '%999999d' % 1 }}",
        "{{ '{:{w}}'.format(1, w=999999) }}",
        "{{ 'a'.ljust(10 ** 9) }}",
        "{{ 'a\tb'.expandtabs(10 ** 9) }}",
        "{{ 1.5 | round(10 ** 9) }}",
        "{{ 10 ** 10 ** 10 }}",
    ] {
        assert_eq!(render(refused), None, "{refused}");
    }
    let empty = "{% set n = namespace(x=[]) %}{{ n.x and 1 }}";
    assert_eq!(render(empty).unwrap(), "[]");
}
