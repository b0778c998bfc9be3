//! What is learned of conversations, through short templates that do what published ones do.
#![allow(clippy::unwrap_used, reason = "a test may fail loudly")]

use espalier_data::{
    Result,
    encode::render_learned,
    record::Message,
    template::{CHATML, ChatTemplate, Conversation},
    tokenizer::SpecialTokens,
};
use serde_json::{Value, json};

/// Thinking is dropped from earlier turns and written in the last one, even when empty; tools are called by JSON.
const THINKING: &str = "\
{%- set ns = namespace(last=-1) %}
{%- for m in messages[::-1] %}{%- set i = (messages|length - 1) - loop.index0 %}{%- if ns.last < 0 and m.role == 'user' %}{%- set ns.last = i %}{%- endif %}{%- endfor %}
{%- for m in messages %}
{%- if m.role == 'assistant' %}
{%- set content = m.content if m.content is string else '' %}
{%- set thinking = m.reasoning_content or '' %}
{%- if '</think>' in content %}
{%- set thinking = content.split('</think>')[0].split('<think>')[-1].strip('\\n') %}
{%- set content = content.split('</think>')[-1].lstrip('\\n') %}
{%- endif %}
{{- '<|start|>assistant\\n' }}
{%- if loop.index0 > ns.last %}{{- '<think>\\n' + thinking + '\\n</think>\\n\\n' }}{%- endif %}
{{- content }}
{%- for call in m.tool_calls %}{{- '\\n<call>' + (call.function | tojson) + '</call>' }}{%- endfor %}
{{- '<|end|>\\n' }}
{%- else %}
{{- '<|start|>' + m.role + '\\n' + m.content + '<|end|>\\n' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start|>assistant\\n' }}{%- endif %}";

/// Texts are trimmed, the generation prompt opens thinking that no turn has.
const OPENED: &str = "\
{%- for m in messages %}
{%- if m.role == 'assistant' %}{{- '<|A|>' + m.content.split('</think>')[-1] | trim + '</s>' }}
{%- else %}{{- '<|U|>' + m.content | trim }}{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|A|><think>\\n' }}{%- endif %}";

/// Headers that the model writes itself, another end for the last turn and for calls, the call's name in the tool's header.
const CHANNELS: &str = "\
{%- set ns = namespace(name='') %}
{%- for m in messages %}
{%- if m.role == 'assistant' and m.tool_calls %}
{%- set call = m.tool_calls[0].function %}{%- set ns.name = call.name %}
{{- '<|start|>assistant to=' + call.name + '<|message|>' + (call.arguments | tojson) + '<|call|>' }}
{%- elif m.role == 'assistant' %}
{%- if m.thinking and loop.last %}{{- '<|start|>assistant<|channel|>analysis<|message|>' + m.thinking + '<|end|>' }}{%- endif %}
{{- '<|start|>assistant<|channel|>final<|message|>' + m.content + ('<|return|>' if loop.last else '<|end|>') }}
{%- elif m.role == 'tool' %}{{- '<|start|>' + ns.name + ' to=assistant<|message|>' + (m.content | tojson) + '<|end|>' }}
{%- else %}{{- '<|start|>' + m.role + '<|message|>' + m.content + '<|end|>' }}{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start|>assistant' }}{%- endif %}";

/// Roles must take turns, the system message moves into the last question, there is no generation prompt.
const ROLES: &str = "\
{%- if messages[0].role == 'system' %}{%- set system = messages[0].content + '\\n' %}{%- set turns = messages[1:] %}{%- else %}{%- set system = '' %}{%- set turns = messages %}{%- endif %}
{%- for m in turns %}
{%- if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{- raise_exception('roles must alternate') }}{%- endif %}
{%- if m.role == 'user' %}
{{- '[INST]' + (system if loop.index0 >= turns | length - 2 else '') + m.content + '[/INST]' }}
{%- else %}{{- ' ' + m.content + '</s>' }}{%- endif %}
{%- endfor %}";

/// The last turn has no end, earlier ones end where the next turn begins; the date is asked for.
const UNENDED: &str = "\
{{- strftime_now('%Y') | length }}
{%- for m in messages %}{{- '<|' + m.role + '|>' + m.content }}{%- endfor %}
{%- if add_generation_prompt %}{{- '<|assistant|>' }}{%- endif %}";

/// A tool's answer ends in another way when nothing follows.
const UNCLOSED: &str = "\
{%- for m in messages %}
{{- '<|start|>' + m.role + '\\n' + m.content }}
{%- if not loop.last or m.role != 'tool' %}{{- '\\n<|end|>' }}{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start|>assistant\\n' }}{%- endif %}";

/// An instruction stands behind every conversation.
const INSTRUCTED: &str = "\
{%- for m in messages %}{{- '<|start|>' + m.role + '\\n' + m.content + '<|end|>' }}{%- endfor %}
{{- '<|start|>system\\nAnswer in JSON.<|end|>' }}
{%- if add_generation_prompt %}{{- '<|start|>assistant\\n' }}{%- endif %}";

/// A content may be a list of parts, and is asked for none.
const PARTS: &str = "\
{%- for m in messages %}
{%- if m.content is none %}{{- '<|' + m.role + '|>calls ' + m.tool_calls[0].function.name }}
{%- elif m.content is string %}{{- '<|' + m.role + '|>' + m.content }}
{%- else %}{{- '<|' + m.role + '|>' }}{%- for part in m['content'] %}{{- '(' + part.text + ')' }}{%- endfor %}{{- '' + m.content[0].text[:0] }}{%- endif %}
{{- '<|end|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|assistant|>' }}{%- endif %}";

const SPECIAL: [&str; 14] = [
    "<|eot_id|>",
    "<end_of_turn>",
    "<|start|>",
    "<|end|>",
    "<|return|>",
    "<|call|>",
    "<|message|>",
    "<|channel|>",
    "</s>",
    "<|A|>",
    "<|U|>",
    "<|user|>",
    "<|assistant|>",
    "<|im_end|>",
];

/// The texts that are learned.
fn learned(template: &str, messages: Value) -> Result<Vec<String>> {
    with_tools(template, messages, None)
}

fn with_tools(template: &str, messages: Value, tools: Option<&Value>) -> Result<Vec<String>> {
    let messages: Vec<Message> = serde_json::from_value(messages).unwrap();
    let special = SpecialTokens {
        bos: Some("<s>".into()),
        eos: Some("</s>".into()),
        ..SpecialTokens::default()
    };
    let conversation = Conversation {
        tools,
        ..Conversation::new(&messages, &special)
    };
    let template = ChatTemplate::new(template)?;
    let rendered = render_learned(&template, &conversation, &SPECIAL.map(String::from))?;
    assert_eq!(rendered.text, template.render(&conversation)?.text);
    let characters: Vec<char> = rendered.text.chars().collect();
    let spans = rendered.generation.iter();
    Ok(spans
        .map(|(start, end)| characters[*start..*end].iter().collect())
        .collect())
}

fn user(content: &str) -> Value {
    json!({"role": "user", "content": content})
}

fn assistant(content: &str) -> Value {
    json!({"role": "assistant", "content": content})
}

fn tool(content: &str) -> Value {
    json!({"role": "tool", "content": content})
}

/// A call of a tool beside a content.
fn call(content: Value, arguments: Value) -> Value {
    json!({"role": "assistant", "content": content, "tool_calls": [{"function": {"name": "f", "arguments": arguments}}]})
}

#[test]
fn thinking_is_learned_where_it_is_written() {
    let inline = |thought: &str, answer: &str| {
        assistant(&format!("<think>\n{thought}\n</think>\n\n{answer}"))
    };
    let turns = json!([
        user("1+1?"),
        inline("add", "2"),
        user("2+2?"),
        inline("more", "4")
    ]);
    let last = "<think>\nmore\n</think>\n\n4<|end|>";
    assert_eq!(learned(THINKING, turns).unwrap(), ["2<|end|>", last]);
    let mut beside = assistant("4");
    beside["thinking"] = "more".into();
    let turns = json!([user("2+2 is 4?"), beside, user("4?"), beside]);
    assert_eq!(learned(THINKING, turns).unwrap(), ["4<|end|>", last]);
    let turns = json!([user("4"), assistant("4"), user("4"), assistant("4")]);
    let last = "<think>\n\n</think>\n\n4<|end|>";
    assert_eq!(learned(THINKING, turns).unwrap(), ["4<|end|>", last]);
}

#[test]
fn calls_of_tools_are_learned() {
    let contents = [
        (json!("Let me see."), "Let me see.\n"),
        (json!(""), "\n"),
        (Value::Null, "\n"),
    ];
    let arguments = [
        (json!({"city": "Köln"}), r#"{"city": "Köln"}"#),
        (json!({"days": 2}), r#"{"days": 2}"#),
        (json!({}), "{}"),
        (json!("{\"a\": 1}"), r#""{\"a\": 1}""#),
    ];
    for (content, written) in &contents {
        for (arguments, text) in &arguments {
            let called = call(content.clone(), arguments.clone());
            let turns = json!([
                user("?"),
                called,
                tool("7"),
                assistant("7"),
                user("7?"),
                assistant("7")
            ]);
            let expected = [
                &format!("{written}<call>{{\"name\": \"f\", \"arguments\": {text}}}</call><|end|>"),
                "7<|end|>",
                "<think>\n\n</think>\n\n7<|end|>",
            ];
            assert_eq!(learned(THINKING, turns).unwrap(), expected);
        }
    }
}

#[test]
fn empty_answers_end_and_nothing_more() {
    let turns = json!([user("a"), assistant(""), user(""), assistant("b")]);
    let last = "<think>\n\n</think>\n\nb<|end|>";
    assert_eq!(learned(THINKING, turns.clone()).unwrap(), ["<|end|>", last]);
    assert_eq!(learned(OPENED, turns).unwrap(), ["</s>", "b</s>"]);
}

#[test]
fn a_prompt_that_opens_thinking_does_not_cut_the_answer() {
    let turns = json!([
        user(" a "),
        assistant(" <thin ice> "),
        user("b"),
        assistant("<t>")
    ]);
    let expected = ["<thin ice></s>", "<t></s>"];
    assert_eq!(learned(OPENED, turns).unwrap(), expected);
}

#[test]
fn headers_that_the_model_writes_are_learned() {
    let mut thinking = assistant("4");
    thinking["reasoning_content"] = "two and two".into();
    let called = call(json!(""), json!({"f": "x"}));
    let turns = json!([
        user("2?"),
        thinking,
        user("4?"),
        called,
        tool("4"),
        thinking
    ]);
    let expected = [
        "<|channel|>final<|message|>4<|end|>",
        " to=f<|message|>{\"f\": \"x\"}<|call|>",
        "<|channel|>analysis<|message|>two and two<|end|><|start|>assistant<|channel|>final<|message|>4<|return|>",
    ];
    assert_eq!(learned(CHANNELS, turns).unwrap(), expected);
}

#[test]
fn an_empty_earlier_answer_ends_behind_its_header() {
    let turns = json!([user("a"), assistant(""), user("b"), assistant("c")]);
    let expected = [
        "<|channel|>final<|message|><|end|>",
        "<|channel|>final<|message|>c<|return|>",
    ];
    assert_eq!(learned(CHANNELS, turns).unwrap(), expected);
}

#[test]
fn an_end_in_parts_is_learned_whole() {
    let turns = json!([user("a"), assistant("b"), user("c"), assistant("")]);
    let closed = "{% for m in messages %}<|start|>{{ m.role }}<|message|>{{ m.content }}<|channel|>{{ '<|channel|>' if m.role == 'assistant' }}message<|end|>{% endfor %}{% if add_generation_prompt %}<|start|>assistant<|message|>{% endif %}";
    let expected = [
        "b<|channel|><|channel|>message<|end|>",
        "<|channel|><|channel|>message<|end|>",
    ];
    assert_eq!(learned(closed, turns).unwrap(), expected);
    let last = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>\n{% endfor %}{{ '<|assistant|>' if add_generation_prompt else '</s>' }}";
    let turns = json!([user("a"), assistant(""), user("c"), assistant("d")]);
    assert_eq!(learned(last, turns).unwrap(), ["<|end|>", "d<|end|>\n</s>"]);
}

#[test]
fn the_next_turns_beginning_is_not_learned_where_it_is_always_there() {
    let source = "{% for m in messages %}<|start|>{{ m.role }}<|message|>{{ m.content }}{{ '<|channel|>' if m.role == 'assistant' }}<|end|>{% endfor %}<|start|>assistant<|message|>";
    let turns = json!([user("a"), assistant("b"), user("c"), assistant("")]);
    let expected = ["b<|channel|><|end|>", "<|channel|><|end|>"];
    assert_eq!(learned(source, turns).unwrap(), expected);
}

#[test]
fn a_turn_that_ends_behind_a_line_break_learns_its_end() {
    let source = "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}{% if not loop.last %}{{ '\n<|end|>\n' }}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '\n<|assistant|>\n' }}{% endif %}";
    let turns = json!([user("a"), assistant("b"), user("c"), assistant("d")]);
    assert_eq!(learned(source, turns).unwrap(), ["b\n<|end|>", "d"]);
}

#[test]
fn systems_that_move_and_roles_that_must_alternate() {
    let system = json!({"role": "system", "content": "b"});
    let turns = json!([system, user("a"), assistant("b"), user("a"), assistant("a")]);
    assert_eq!(learned(ROLES, turns).unwrap(), [" b</s>", " a</s>"]);
    let refused = learned(ROLES, json!([user("a"), user("b"), assistant("c")])).unwrap_err();
    assert!(refused.to_string().contains("roles must alternate"));
}

#[test]
fn a_turn_without_an_end_stops_where_the_next_begins() {
    let turns = json!([user("a"), assistant("b"), user("b"), assistant("b")]);
    assert_eq!(learned(UNENDED, turns).unwrap(), ["b<|user|>", "b"]);
}

#[test]
fn a_tool_whose_end_depends_on_what_follows_is_not_learned() {
    let turns = json!([user("a"), assistant("b"), tool("c"), assistant("d")]);
    let expected = ["b\n<|end|>", "d\n<|end|>"];
    assert_eq!(learned(UNCLOSED, turns).unwrap(), expected);
}

#[test]
fn an_instruction_behind_the_conversation_is_not_learned() {
    let turns = json!([user("a"), assistant("b"), user("c"), assistant("d")]);
    assert_eq!(
        learned(INSTRUCTED, turns).unwrap(),
        ["b<|end|>", "d<|end|>"]
    );
}

#[test]
fn contents_reach_templates_as_they_take_them() {
    let parts = json!([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]);
    let turns = json!([user("q"), {"role": "assistant", "content": parts}]);
    assert_eq!(learned(PARTS, turns.clone()).unwrap(), ["(a)(b)<|end|>"]);
    assert_eq!(learned(UNENDED, turns).unwrap(), ["ab"]);
    let called = call(Value::Null, json!({}));
    let turns = json!([user("q"), called, user("r"), assistant("s")]);
    let expected = ["calls f<|end|>", "s<|end|>"];
    assert_eq!(learned(PARTS, turns).unwrap(), expected);
}

#[test]
fn turns_that_are_not_to_be_learned_are_not() {
    let mut wrong = assistant("b");
    wrong["weight"] = 0.into();
    let turns = json!([user("a"), wrong, user("b"), assistant("b")]);
    assert_eq!(learned(INSTRUCTED, turns.clone()).unwrap(), ["b<|end|>"]);
    assert_eq!(learned(CHATML, turns).unwrap(), ["b<|im_end|>"]);
}

#[derive(serde::Deserialize)]
struct Case {
    name: String,
    template: String,
    messages: Value,
    tools: Option<Value>,
    add_generation_prompt: bool,
    rendered: Option<String>,
}

/// What the reference's templates have the assistant say.
fn expected(name: &str) -> Vec<&'static str> {
    let call = r#"{"name": "get_weather", "parameters": {"city": "Köln", "days": 2}}<|eot_id|>"#;
    match name {
        "chatml/three" => vec![" Hello! \n<|im_end|>"],
        "chatml-generation/three" => vec!["Hello!<|im_end|>"],
        "chatml/system" | "chatml-generation/system" => vec!["Ja.<|im_end|>"],
        "chatml/tool" | "chatml-generation/tool" => {
            vec![UNSEEN]
        }
        "headers/three" => vec!["Hello!<|eot_id|>"],
        "headers/system" => vec!["Ja.<|eot_id|>"],
        "headers/tool" => vec![call, "Seven degrees.<|eot_id|>"],
        "inst/three" => vec![" Hello!</s>"],
        "turns/three" => vec!["Hello!<end_of_turn>"],
        "turns/tool" => vec![UNSEEN],
        _ => Vec::new(),
    }
}

/// Of a template that leaves out the calls of tools.
const UNSEEN: &str = "refused";

#[test]
fn the_templates_of_the_reference_are_told() {
    let path = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../tests/fixtures/templates.json"
    );
    let text = std::fs::read_to_string(path).unwrap();
    let cases: Vec<Case> = serde_json::from_str(&text).unwrap();
    let mut wrong = Vec::new();
    let mut seen = 0;
    for case in cases {
        let asked = case.rendered.is_none() || case.add_generation_prompt;
        let unlike = case.name.starts_with("filters");
        if asked || unlike {
            continue;
        }
        let said = match with_tools(&case.template, case.messages, case.tools.as_ref()) {
            Err(error) if error.to_string().contains("does not show the `tool_calls`") => {
                vec![UNSEEN.to_owned()]
            }
            said => said.unwrap(),
        };
        let expected = expected(&case.name);
        seen += usize::from(!expected.is_empty());
        if said != expected {
            wrong.push((case.name, said));
        }
    }
    assert_eq!(wrong, []);
    assert_eq!(seen, 15);
}

#[test]
fn templates_that_look_ahead_are_told() {
    // The number of messages comes first, so no part is a prefix of the whole, and there is no generation prompt: the model begins
    // with its role.
    let source = "{{ messages | length }}{% for m in messages %}[{{ m.role }}]{{ m.content }}</s>\n{% endfor %}";
    let turns = json!([
        user("fünf?"),
        assistant("fünf"),
        user("ja?"),
        assistant("ja")
    ]);
    let expected = ["[assistant]fünf</s>", "[assistant]ja</s>"];
    assert_eq!(learned(source, turns).unwrap(), expected);
}

#[test]
fn white_space_that_ends_a_turn_is_said() {
    let source = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}";
    let turns = json!([user("a"), assistant("b"), user("c")]);
    assert_eq!(learned(source, turns).unwrap(), ["b\n"]);
}

#[test]
fn a_template_that_says_nothing_of_the_turns_is_an_error() {
    let backwards =
        "{% for m in messages %}{{ m.content[::-1] }}{{ messages | length }}{% endfor %}";
    let error = learned(backwards, json!([user("ab"), assistant("abc")])).unwrap_err();
    assert!(error.to_string().contains("message 2"), "{error}");
}

#[test]
fn long_conversations_are_told_without_rendering_them_for_each_turn() {
    let mut turns = Vec::new();
    for turn in 0..3000 {
        turns.extend([user("yes"), assistant(&format!("yes {turn}"))]);
    }
    let turns = Value::from(turns);
    // Of the second template an earlier turn ends in another way than the same turn when it is the last one.
    for (template, end) in [
        (THINKING, "yes 2998<|end|>"),
        (CHANNELS, "<|channel|>final<|message|>yes 2998<|end|>"),
    ] {
        let learned = learned(template, turns.clone()).unwrap();
        assert_eq!(learned.len(), 3000);
        assert_eq!(learned[2998], end);
    }
}

#[test]
fn what_a_template_leaves_out_is_refused() {
    let plain = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{{ eos_token }}{% endfor %}";
    let call = json!([
        {"role": "user", "content": "Sum"},
        {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "add", "arguments": {}}}]}
    ]);
    let error = learned(plain, call).unwrap_err().to_string();
    assert!(
        error.contains("does not show the `tool_calls` of message 2"),
        "{error}"
    );
    let thinking = json!([
        {"role": "user", "content": "Sum"},
        {"role": "assistant", "content": [{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "Two"}]}
    ]);
    let error = learned(plain, thinking).unwrap_err().to_string();
    assert!(error.contains("lists of parts"), "{error}");
}

/// The words of an error.
fn refusal(template: &str, messages: Value, tools: Option<&Value>) -> String {
    let refused = with_tools(template, messages, tools);
    refused.unwrap_err().to_string()
}

const HEADED: &str = "\
{%- for m in messages %}{{- '<|' + m.role + '|>' + m.content + '<|end|>' }}{%- endfor %}
{%- if add_generation_prompt %}{{- '<|assistant|>' }}{%- endif %}";

#[test]
fn tools_that_are_not_shown_are_refused() {
    let tools = json!([{"type": "function", "function": {"name": "add"}}]);
    let turns = json!([user("Sum"), assistant("Two")]);
    let error = refusal(HEADED, turns.clone(), Some(&tools));
    assert!(error.contains("does not show the `tools`"), "{error}");
    let showing = format!("{{{{- tools | tojson if tools else '' }}}}{HEADED}");
    let shown = with_tools(&showing, turns, Some(&tools)).unwrap();
    assert_eq!(shown, ["Two<|end|>"]);
}

#[test]
fn reasoning_of_the_answer_that_is_not_shown_is_refused() {
    for name in ["reasoning_content", "thinking", "reasoning"] {
        let mut answer = assistant("Two");
        answer[name] = "one and one".into();
        let turns = json!([user("Sum"), answer.clone()]);
        let error = refusal(HEADED, turns.clone(), None);
        let expected = format!("does not show the `{name}` of message 2");
        assert!(error.contains(&expected), "{error}");
        // Of earlier turns, and of those that are not learned, it may be left out.
        let earlier = json!([user("Sum"), answer, user("More"), assistant("Three")]);
        assert_eq!(
            learned(HEADED, earlier).unwrap(),
            ["Two<|end|>", "Three<|end|>"]
        );
        answer["weight"] = 0.into();
        assert!(learned(HEADED, json!([user("Sum"), answer])).is_ok());
    }
}

#[test]
fn texts_become_parts_where_a_template_reads_nothing_else() {
    let parts = "\
{%- for m in messages %}{{- '<|' + m.role + '|>' }}
{%- for part in m.content %}{%- if part.type == 'text' %}{{- part.text }}{%- endif %}{%- endfor %}{{- '<|end|>' }}{%- endfor %}
{%- if add_generation_prompt %}{{- '<|assistant|>' }}{%- endif %}";
    let turns = json!([user("Sum"), assistant("Two")]);
    assert_eq!(learned(parts, turns).unwrap(), ["Two<|end|>"]);
    let prompt: Vec<Message> = serde_json::from_value(json!([user("Sum")])).unwrap();
    let special = SpecialTokens::default();
    let template = ChatTemplate::new(parts).unwrap();
    let prompt = template
        .render(&Conversation::new(&prompt, &special))
        .unwrap();
    assert_eq!(prompt.text, "<|user|>Sum<|end|>");
    // A system message may be asked for as a text all the same.
    let mixed = parts.replace(
        "{%- for m in messages %}",
        "{{- '<|start|>' + messages[0].content + '<|end|>' }}{%- for m in messages[1:] %}",
    );
    let turns = json!([{"role": "system", "content": "Be brief"}, user("Sum"), assistant("Two")]);
    assert_eq!(learned(&mixed, turns).unwrap(), ["Two<|end|>"]);
}

#[test]
fn an_answer_that_is_not_shown_is_refused() {
    let source = "{% for m in messages %}{{ m.role }}<|end|>{% endfor %}";
    let error = refusal(source, json!([user("Sum"), assistant("Two")]), None);
    assert!(
        error.contains("does not show the content of message 2"),
        "{error}"
    );
}

#[test]
fn a_call_that_is_shown_once_a_tool_has_answered_is_learned() {
    // As Nemotron Nano 2: of a conversation's last turn the content alone is written, and thinking is opened before it.
    let source = "\
{%- set ns = namespace(last='') %}
{%- if messages[-1].role == 'assistant' %}{%- set ns.last = messages[-1].content %}{%- set turns = messages[:-1] %}{%- else %}{%- set turns = messages %}{%- endif %}
{%- for m in turns %}
{%- if m.role == 'assistant' %}{{- '<|start|>assistant\\n' + m.content }}
{%- if m.tool_calls %}{%- for call in m.tool_calls %}{{- '[' + call.function | tojson + ']' }}{%- endfor %}{%- endif %}{{- '\\n<|end|>\\n' }}
{%- else %}{{- '<|start|>' + m.role + '\\n' + m.content + '\\n' }}{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start|>assistant\\n<think>\\n' }}
{%- elif ns.last %}{{- '<|start|>assistant\\n<think>\\n' + ns.last + '\\n<|end|>\\n' }}{%- endif %}";
    let called = call(json!(""), json!({"city": "Paris"}));
    let turns = json!([
        user("Where?"),
        called,
        tool("here"),
        assistant("Here"),
        user("And?"),
        assistant("There")
    ]);
    let expected = [
        "[{\"name\": \"f\", \"arguments\": {\"city\": \"Paris\"}}]\n<|end|>",
        "Here\n<|end|>",
        "There\n<|end|>",
    ];
    assert_eq!(learned(source, turns).unwrap(), expected);
    // Without a token that ends the turn it cannot be told, and nothing is left out without a word.
    let unended = source
        .replace("<|end|>", "(end)")
        .replace("<|start|>", "(start)");
    let turns = json!([user("Where?"), called, tool("here"), assistant("Here")]);
    let error = refusal(&unended, turns, None);
    assert!(
        error.contains("cannot tell which text the assistant says in message 2"),
        "{error}"
    );
}

#[test]
fn turns_that_begin_in_other_ways_than_the_prompt_are_told() {
    // As Motif 2: the prompt has no beginning of a turn. As Apriel 1.6: the prompt goes on with words that no turn has, and stands
    // behind each conversation whose last turn is not the assistant's.
    let motif = "\
{%- for m in messages %}{{- '<|start|><|' + m.role + '|>' + m.content + '\\n<|end|>' }}{%- endfor %}
{%- if add_generation_prompt %}{{- '<|assistant|>\\n' }}{%- else %}{{- '<|return|>' }}{%- endif %}";
    let apriel = "\
{%- for m in messages %}
{%- if m.role == 'user' %}{{- '<|user|>\\n' + m.content }}{%- else %}{{- '\\n<|assistant|>\\n' + m.content + '\\n<|end|>\\n' }}{%- endif %}
{%- if loop.last and m.role != 'assistant' %}{{- '\\n<|assistant|>\\nHere are my steps:\\n' }}{%- endif %}
{%- endfor %}";
    let turns = json!([user("a?"), assistant("b"), user("c?"), assistant("d")]);
    for source in [motif, apriel] {
        assert_eq!(
            learned(source, turns.clone()).unwrap(),
            ["b\n<|end|>", "d\n<|end|>"]
        );
    }
}
