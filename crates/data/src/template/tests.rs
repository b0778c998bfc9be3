//! Templates against the reference, and what they may do.

use serde_json::Value;

use super::*;
use crate::tokenizer::SpecialTokens;

mod arithmetic;

#[derive(serde::Deserialize)]
struct Case {
    name: String,
    template: String,
    messages: Vec<Message>,
    tools: Option<Value>,
    add_generation_prompt: bool,
    rendered: Option<String>,
    assistant_mask_spans: Option<Vec<(usize, usize)>>,
    error: Option<String>,
}

fn special() -> SpecialTokens {
    SpecialTokens {
        bos: Some("<s>".into()),
        eos: Some("</s>".into()),
        ..Default::default()
    }
}

fn render(source: &str, messages: &[Message]) -> Result<Rendered> {
    ChatTemplate::new(source)?.render(&Conversation::new(messages, &special()))
}

fn text(source: &str) -> String {
    render(source, &[]).unwrap().text
}

#[test]
fn fixtures_agree_with_the_reference() {
    let path = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../tests/fixtures/templates.json"
    );
    let cases: Vec<Case> = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    assert_eq!(cases.len(), 56);
    for case in cases {
        let template = ChatTemplate::new(&case.template).unwrap();
        assert_eq!(
            template.marks_generation(),
            case.template.contains("generation %}")
        );
        let special = special();
        let mut conversation = Conversation::new(&case.messages, &special);
        conversation.tools = case.tools.as_ref();
        conversation.add_generation_prompt = case.add_generation_prompt;
        match (template.render(&conversation), case.error) {
            (Err(error), Some(expected)) => {
                assert!(
                    error.to_string().contains(&expected),
                    "{}: {error}",
                    case.name
                )
            }
            (Ok(rendered), None) => {
                assert_eq!(Some(rendered.text), case.rendered, "{}", case.name);
                assert_eq!(
                    rendered.generation,
                    case.assistant_mask_spans.unwrap_or_default(),
                    "{}",
                    case.name
                );
            }
            (result, expected) => panic!("{}: {result:?}, expected {expected:?}", case.name),
        }
    }
}

fn brief_chat() -> [Message; 4] {
    [
        Message::system("Be brief."),
        Message::user("Hi"),
        Message::assistant("Hello!"),
        Message::user("Bye"),
    ]
}

#[test]
fn llama2_puts_the_system_message_into_the_first_turn() {
    // As published, without the check of the roles.
    let source = concat!(
        "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}",
        "{% set system_message = messages[0]['content'] %}",
        "{% else %}{% set loop_messages = messages %}{% set system_message = false %}{% endif %}",
        "{% for message in loop_messages %}{% if loop.index0 == 0 and system_message != false %}",
        "{% set content = '<<SYS>>\\n' + system_message + '\\n<</SYS>>\\n\\n' + message['content'] %}",
        "{% else %}{% set content = message['content'] %}{% endif %}",
        "{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}",
        "{% elif message['role'] == 'assistant' %}{{ ' ' + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}",
    );
    let rest = "Hi [/INST] Hello! </s><s>[INST] Bye [/INST]";
    assert_eq!(
        render(source, &brief_chat()[1..]).unwrap().text,
        format!("<s>[INST] {rest}")
    );
    let expected = format!("<s>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\n{rest}");
    assert_eq!(render(source, &brief_chat()).unwrap().text, expected);
}

#[test]
fn phi3_marks_turns_by_their_role() {
    let source = concat!(
        "{% for message in messages %}{{ '<|' + message['role'] + '|>\\n' + message['content'] + '<|end|>\\n' }}",
        "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}",
    );
    let (messages, special) = (brief_chat(), special());
    let conversation = Conversation {
        add_generation_prompt: true,
        ..Conversation::new(&messages, &special)
    };
    let rendered = ChatTemplate::new(source)
        .unwrap()
        .render(&conversation)
        .unwrap()
        .text;
    let turns =
        "<|user|>\nHi<|end|>\n<|assistant|>\nHello!<|end|>\n<|user|>\nBye<|end|>\n<|assistant|>\n";
    assert_eq!(rendered, format!("<|system|>\nBe brief.<|end|>\n{turns}"));
}

#[test]
fn the_plain_template_adds_nothing_but_the_end() {
    let rendered = render(
        PLAIN,
        &[Message::user("3 1 2 ="), Message::assistant(" 1 2 3")],
    )
    .unwrap();
    assert_eq!(rendered.text, "3 1 2 = 1 2 3</s>");
    assert_eq!(rendered.generation, [(7, 17)]);
}

#[test]
fn a_typed_sentinel_is_text() {
    let typed = "\u{F0000}a\u{F0001}";
    let rendered = render(CHATML, &[Message::user(typed), Message::assistant(typed)]).unwrap();
    assert_eq!(rendered.text.matches(typed).count(), 2);
    let characters: Vec<char> = rendered.text.chars().collect();
    let (start, end) = rendered.generation[0];
    assert_eq!(
        characters[start..end].iter().collect::<String>(),
        format!("{typed}<|im_end|>")
    );
}

#[test]
fn undefined_is_empty_and_false() {
    assert_eq!(
        text("[{{ nothing }}]{% if nothing %}x{% endif %}{{ nothing is defined }}"),
        "[]False"
    );
    assert_eq!(
        text("{{ tools is none }}{{ bos_token }}{{ pad_token is defined }}"),
        "True<s>False"
    );
}

#[test]
fn prints_as_python_does() {
    assert_eq!(
        text("{{ true }} {{ none }} {{ 1.0 }} {{ ['a', \"it's\", none, {'k': 1.5}] }}"),
        "True None 1.0 ['a', \"it's\", None, {'k': 1.5}]"
    );
    assert_eq!(
        text("{{ 'abc'[::-1] }}{{ [1,2,3][1:] }}{{ [1,2,3][::-1] | string }}"),
        "cba[2, 3][3, 2, 1]"
    );
    assert_eq!(text("{{ '%s-%d' | format('n', 3) }}"), "n-3");
    assert_eq!(
        text(
            "{{ 'a<think>b</think>c'.split('</think>')[-1].lstrip('\\n') }}{{ 'xay'.removeprefix('x') }}"
        ),
        "cay"
    );
}

#[test]
fn slices_with_a_step_are_pythons() {
    assert_eq!(
        text("{{ ''[::-1] }}{{ 'abcd'[:0:-1] }}{{ [][::-1] | list }}{{ 'abcd'[::2][::-1] }}"),
        "dcb[]ca"
    );
    assert_eq!(
        text("{% for i in [1, 2, 3][::-1] %}{{ i }}{% endfor %}{{ '[::-1]' }}[::-1]"),
        "321[::-1][::-1]"
    );
}

#[test]
fn json_is_pythons() {
    assert_eq!(
        text("{{ {'b': '<é\\n', 'a': [1, 2.0, true, none]} | tojson }}"),
        r#"{"b": "<é\n", "a": [1, 2.0, true, null]}"#
    );
    assert_eq!(
        text("{{ {'b': 1, 'a': []} | tojson(indent=2, sort_keys=true) }}"),
        "{\n  \"a\": [],\n  \"b\": 1\n}"
    );
    assert_eq!(
        text("{{ 'é😀' | tojson(ensure_ascii=true) }}"),
        r#""\u00e9\ud83d\ude00""#
    );
    assert_eq!(
        text("{{ [1, {'a': 2}] | tojson(separators=(',', ':')) }}"),
        r#"[1,{"a":2}]"#
    );
    assert!(render("{{ nothing | tojson }}", &[]).is_err());
}

#[test]
fn loops_namespaces_and_macros_work() {
    let source = "{% set ns = namespace(n=0) %}{% for i in range(9) %}{% if i == 1 %}{% continue %}{% endif %}{% if i > 3 %}{% break %}{% endif %}{% set ns.n = ns.n + i %}{% endfor %}{{ ns.n }}{% macro m(x, y='z') %}{{ x ~ y }}{% endmacro %}{{ m('a') }}";
    assert_eq!(text(source), "5az");
}

#[test]
fn whitespace_is_trimmed_as_configured() {
    assert_eq!(text("a\n  {% if true %}\nb\n  {% endif %}\nc\n"), "a\nb\nc");
    assert_eq!(
        text("a\n  {% generation %}\nb\n  {% endgeneration %}\nc\n"),
        "a\nb\nc"
    );
}

#[test]
fn a_final_message_can_be_continued() {
    let messages = [Message::user("Count"), Message::assistant("one, two, ")];
    let special = special();
    let mut conversation = Conversation::new(&messages, &special);
    conversation.continue_final_message = true;
    let rendered = ChatTemplate::new(CHATML)
        .unwrap()
        .render(&conversation)
        .unwrap();
    assert!(rendered.text.ends_with("<|im_start|>assistant\none, two, "));
    assert_eq!(rendered.generation[0].1, rendered.text.chars().count());
    let trimming = CHATML.replace("message.content +", "message.content | trim +");
    let rendered = ChatTemplate::new(&trimming)
        .unwrap()
        .render(&conversation)
        .unwrap();
    assert!(rendered.text.ends_with("<|im_start|>assistant\none, two,"));
    conversation.add_generation_prompt = true;
    assert!(
        ChatTemplate::new(CHATML)
            .unwrap()
            .render(&conversation)
            .is_err()
    );
}

#[test]
fn hostile_and_broken_templates_are_errors() {
    for source in [
        "{% if %}",
        "{% generation %}",
        "{{ 1",
        "{% endgeneration %}",
    ] {
        assert!(
            matches!(ChatTemplate::new(source), Err(Error::Template(_))),
            "{source}"
        );
    }
    let long = "{% set x = 'x' * 65536 %}{% for i in range(9999) %}{{ x }}{% endfor %}";
    assert!(
        render(long, &[])
            .unwrap_err()
            .to_string()
            .contains("more than")
    );
    let endless = "{% for i in range(9999) %}{% for j in range(9999) %}{% for k in range(9999) %}{% endfor %}{% endfor %}{% endfor %}";
    assert!(render(endless, &[]).is_err());
    assert!(render("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", &[]).is_err());
    assert!(render("{{ messages[0]['role'] }}", &[]).is_err());
}

#[test]
fn the_built_in_template_refuses_tools() {
    let tools = serde_json::json!([{}]);
    let messages = [Message::user("Hi")];
    let special = special();
    let conversation = Conversation {
        tools: Some(&tools),
        ..Conversation::new(&messages, &special)
    };
    assert!(
        ChatTemplate::new(CHATML)
            .unwrap()
            .render(&conversation)
            .unwrap_err()
            .to_string()
            .contains("tools")
    );
}

/// The words of a template's error, which came soon.
fn refusal(source: &str) -> String {
    let begun = std::time::Instant::now();
    let result = render(source, &[Message::user("Hi")]);
    let seconds = begun.elapsed().as_secs();
    assert!(
        seconds < 60,
        "{seconds} s: {}",
        &source[..source.len().min(100)]
    );
    let Err(error) = result else {
        panic!("accepted: {}", &source[..source.len().min(100)]);
    };
    error.to_string()
}

#[test]
fn deep_programs_are_refused_before_they_are_parsed() {
    let many = |text: &str| text.repeat(25_000);
    for source in [
        format!("{{{{ {}1 }}}}", many("-")),
        format!("{{{{ {}true }}}}", many("not ")),
        format!("{{{{ {}1{} }}}}", many("("), many(")")),
        format!("{{{{ {}1{} }}}}", many("["), many("]")),
        format!("{{{{ 1{} }}}}", many(" + 1")),
        format!("{{{{ a{} }}}}", many(".b")),
        format!("{{{{ a{} }}}}", many("[0]")),
        format!("{{{{ a{} }}}}", many("()")),
        format!("{{{{ a{} }}}}", many("|list")),
        format!("{{{{ 1{} }}}}", many(" if a else 1")),
        format!("{{{{ 1{} }}}}", many(" ** 2")),
        format!("{{% if a %}}{}{{% endif %}}", many("{% elif a %}")),
        format!("{}{}", many("{% if a %}"), many("{% endif %}")),
    ] {
        assert!(
            refusal(&source).contains("deeper than"),
            "{}",
            &source[..40]
        );
    }
    let deep_loops = many("{% for a in b %}");
    assert!(refusal(&deep_loops).contains("recursion"));
    // What people write is far from it.
    let long = format!(
        "{{{{ 'a'{} }}}}{{{{ [{}0] }}}}",
        " ~ 'b'".repeat(400),
        many("-1, ")
    );
    assert!(render(&long, &[]).is_ok());
}

#[test]
fn deep_values_are_dropped_or_refused() {
    let nest = |step: &str| {
        format!("{{% set n = namespace(x=[]) %}}{{% for i in range(90000) %}}{step}{{% endfor %}}")
    };
    // Each is as deep as it may be, and dropped.
    assert_eq!(text(&nest("{% set n.x = [n.x] %}")), "");
    let twice = nest("{% set n.x = [n.x] %}").repeat(2);
    assert!(refusal(&twice).contains("lists of lists"));
    let loops = |step: &str| {
        let inner = "{% for j in range(3) %}".to_string() + step + "{% endfor %}";
        refusal(&nest(&inner))
    };
    for step in [
        "{% set n.x = {'a': n.x} %}",
        "{% set n.x = namespace(x=n.x) %}",
        "{% set n.x = dict(a=n.x) %}",
        "{% set n.x = [n.x] | batch(1) %}",
        "{% set n.x = (n.x, 1) %}",
        "{% set y = n.x %}{% macro m() %}{{ y }}{% endmacro %}{% set n.x = m %}",
    ] {
        let words = loops(step);
        assert!(words.contains("lists of lists"), "{step}: {words}");
    }
    for use_of in [
        "{{ n.x }}",
        "{{ n.x | tojson }}",
        "{{ n.x == [n.x] }}",
        "{{ n.x in [n.x] }}",
        "{{ [n.x, n.x] | unique }}",
        "{{ [n.x, n.x] | sort }}",
        "{{ n.x ~ '' }}",
        "{{ 1 < 2 == n.x }}{{ n.x == [n.x] == n.x }}",
    ] {
        let words = refusal(&(nest("{% set n.x = [n.x] %}") + use_of));
        assert!(
            words.contains("nested deeper than 128"),
            "{use_of}: {words}"
        );
    }
    assert!(
        refusal("{% set n = namespace() %}{% set n.n = n %}{{ n == n or n }}").contains("deeper")
    );
}

#[test]
fn memory_is_bounded() {
    let double = |step: &str| {
        format!(
            "{{% set n = namespace(x='x', l=[1]) %}}{{% for i in range(99) %}}{step}{{% endfor %}}"
        )
    };
    for source in [
        double("{% set n.x = n.x ~ n.x %}"),
        double("{% set n.x = n.x + n.x %}"),
        double("{% set n.x = n.x * 2 %}"),
        double("{% set n.x = n.x | replace('', n.x) %}"),
        double("{% set n.x = n.x.replace('x', 'xx') %}"),
        double("{% set n.x %}{{ n.x }}{{ n.x }}{% endset %}"),
        double("{% set n.x = [n.x, n.x] | join %}"),
        double("{% set n.x = '%s%s' | format(n.x, n.x) %}"),
        double("{% set n.x = n.x | tojson ~ n.x %}"),
        double("{% set n.l = n.l + n.l %}"),
        double("{% set n.l = n.l * 3 %}"),
        double("{% set n.l = [n.l, n.l] %}") + "{{ n.l }}",
        double("{% set n.l = [n.l, n.l] %}") + "{{ n.l == n.l }}",
        double("{% set n.l = n.l | chain(n.l) %}"),
        "{{ [1] | slice(10**15) }}".into(),
        "{{ [1] | batch(10**15, 0) | list }}".into(),
        "{{ 'a\nb' | indent(10**15) }}".into(),
        "{{ 'a\nb' | indent(width=10**15) }}".into(),
        "{{ '%999999999d' | format(1) }}".into(),
        "{{ '{:>999999999}'.format(1) }}".into(),
        "{{ '%*d' | format(999999999, 1) }}".into(),
        "{{ range(10**12) | list }}".into(),
        "{{ 'x' * 10**12 }}".into(),
        "{{ [0] * 10**12 }}".into(),
        "{{ [[0] * 99999] | tojson(indent='x' * 99999) }}".into(),
        "{{ [0] * 99999 | tojson(separators=('x' * 99999, ':')) }}".into(),
        "{{ range(99999) | join('x' * 99999) }}".into(),
        format!("{{{{ ['' {}] }}}}", ", 'x' * 99999999".repeat(400)),
        format!(
            "{{% for i in range(99999) %}}{}{{% endfor %}}",
            "raw ".repeat(9999)
        ),
        format!(
            "{{% set x %}}{{% for i in range(99999) %}}{}{{% endfor %}}{{% endset %}}",
            "raw ".repeat(9999)
        ),
    ] {
        refusal(&source);
    }
}

#[test]
fn work_is_bounded() {
    let with = |step: &str| {
        format!(
            "{{% set s = range(99999) | list %}}{{% set t = 'x' * 999999 %}}{{% for i in range(99999) %}}{step}{{% endfor %}}"
        )
    };
    for step in [
        "{% set x = s | sort %}",
        "{% set x = s | unique | list %}",
        "{% set x = s | map('string') | list %}",
        "{% set x = s | select('eq', 1) | list %}",
        "{% set x = s[::-1] %}",
        "{% set x = s[1:] %}",
        "{% set x = s == s + [1] %}",
        "{% set x = 1 < 2 < s | last %}",
        "{% set x = -1 in s %}",
        "{% set x = -1 not in s == false %}",
        "{% set x = s is eq(s) %}",
        "{% set x = s | sum %}",
        "{% set x = s | reverse | first %}",
        "{% set x = 'y' in t %}",
        "{% set x = t.find('y') %}",
        "{% set x = t.split('x') %}",
        "{% set x = t | upper %}",
        "{% set x = t[99999] %}",
        "{% set x = t == t ~ '' %}",
        "{% set x = t | length ~ t %}",
        "{% for j in s %}{% break %}{% endfor %}",
        "{% for j in s %}{% endfor %}",
        "{% set x = dict(s | map('string') | zip(s)) %}",
        "{% set x = loop.changed(s) %}",
    ] {
        refusal(&with(step));
    }
}

#[test]
fn operators_are_pythons() {
    assert_eq!(
        text(
            "{{ 1 + 2 }} {{ 1 + 0.5 }} {{ true + 1 }} {{ 'a' + 'b' }} {{ [1] + ['b'] }} {{ 2 ** 3 * 2 }}"
        ),
        "3 1.5 2 ab [1, 'b'] 16"
    );
    assert_eq!(
        text(
            "{{ 'ab' * 2 }} {{ 2 * [1] }} {{ 'ab' * -1 }}| {{ 3 * 0.5 }} {{ 2 * 3 * 4 }} {{ [] * 9999999999 }}"
        ),
        "abab [1, 1] | 1.5 24 []"
    );
    assert_eq!(
        text(
            "{{ 1 ~ none ~ true ~ 'x' ~ [1] ~ nothing }} {{ 'abc'[1] }} {{ 'abc'[-2:] }} {{ [1, 2, 3][:-1] }}"
        ),
        "1NoneTruex[1] b bc [1, 2]"
    );
    assert_eq!(
        text(
            "{{ 1 < 2 < 3 }} {{ 1 < 2 > 3 }} {{ 1 == 1 in [1] }} {{ 'a' not in 'bc' }} {{ 3 >= 3 }} {{ [1] == [1] }}"
        ),
        "True False True True True True"
    );
    assert_eq!(
        text(
            "{% macro m(a, b=2) %}{{ a * b }}{% endmacro %}{% for i in [[1, 2], [3, 4]] %}{{ m(*i) }}{% else %}x{% endfor %}"
        ),
        "212"
    );
    assert_eq!(
        text(
            "{% for i in [1, [2, [3]]] recursive %}{% if i is iterable %}({{ loop(i) }}){% else %}{{ i }}{% endif %}{% endfor %}"
        ),
        "1(2(3))"
    );
    for wrong in [
        "{{ 'a' + 1 }}",
        "{{ none + 1 }}",
        "{{ 'a' * 'b' }}",
        "{{ none[1:] }}",
        "{{ 1 in 2 }}",
    ] {
        assert!(render(wrong, &[]).is_err(), "{wrong}");
    }
}

#[test]
fn errors_name_the_line() {
    let lines = "{% if true %}\n{{ 'é' * 2 }}\n";
    assert!(refusal(&format!("{lines}{{{{ 'a' + 1 }}}}{{% endif %}}")).contains(":3"));
    assert!(refusal(&format!("{lines}{{{{ {}1 }}}}", "-".repeat(999))).contains("line 3"));
}

#[test]
fn a_turn_with_an_empty_list_of_calls_says_what_it_says() {
    // Reads nothing but lists of parts, as SmolVLM's.
    let source = "{% for m in messages %}{% for part in m.content %}{{ part.text }}{% endfor %}|{% endfor %}";
    for calls in [serde_json::json!([]), Value::Null] {
        let mut answer = Message::assistant("Hello!");
        answer.rest.insert("tool_calls".into(), calls);
        assert!(!answer.has_calls());
        let rendered = render(source, &[Message::user("Hi"), answer]).unwrap();
        assert_eq!(rendered.text, "Hi|Hello!|");
    }
}
