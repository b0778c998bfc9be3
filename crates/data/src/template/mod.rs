//! Chat templates: the Jinja program of a tokenizer that turns messages into the text a model was tuned on, rendered as
//! Hugging Face's `transformers` renders it.
//!
//! A template may come from anyone, so it reaches no file, its output is limited ([`OUTPUT_LIMIT`]) and so is its recursion.
//! Left out: a limit on the steps of nested loops (a hostile template can still waste time), includes and imports, and time
//! zones (`strftime_now` gives UTC).

mod clock;
mod engine;
mod generation;
mod messages;
mod python;
mod slices;

use std::borrow::Cow;

use serde_json::{Map, Value};

use crate::record::{Content, Message};
use crate::tokenizer::SpecialTokens;
use crate::{Error, Result};
use generation::Sentinels;

/// The most bytes that a template may render.
pub const OUTPUT_LIMIT: usize = 64 << 20;

/// The messages' texts and nothing else, with the end-of-sequence token after the assistant's part: for tasks whose questions and
/// answers carry their own marks.
pub const PLAIN: &str = "\
{%- for message in messages %}
{%- if message.role == 'assistant' %}
{%- generation %}
{{- message.content + eos_token }}
{%- endgeneration %}
{%- else %}
{{- message.content }}
{%- endif %}
{%- endfor %}";

/// ChatML, with generation marks around the assistant's text and the token that ends its turn. It refuses tools, for which ChatML has
/// no one form.
pub const CHATML: &str = "\
{%- if tools %}
{{- raise_exception('the built-in ChatML has no form for tools; use the template of a model that has') }}
{%- endif %}
{%- for message in messages %}
{%- if message.tool_calls %}
{{- raise_exception('the built-in ChatML has no form for tool calls; use the template of a model that has') }}
{%- endif %}
{{- '<|im_start|>' + message.role + '\\n' }}
{%- if message.role == 'assistant' %}
{%- generation %}
{{- message.content + '<|im_end|>' }}
{%- endgeneration %}
{%- else %}
{{- message.content + '<|im_end|>' }}
{%- endif %}
{{- '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|im_start|>assistant\\n' }}
{%- endif %}";

/// Marks the place where a final message is to be continued; the same text as in `transformers`.
const CONTINUE_MARK: &str = "CONTINUE_FINAL_MESSAGE_TAG ";

/// A chat template, checked for its syntax.
///
/// ```
/// use espalier_data::record::Message;
/// use espalier_data::template::{CHATML, ChatTemplate, Conversation};
/// let messages = [Message::user("Hi"), Message::assistant("Hello")];
/// let rendered = ChatTemplate::new(CHATML)?.render(&Conversation::new(&messages, &Default::default()))?;
/// assert_eq!(rendered.text, "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello<|im_end|>\n");
/// assert_eq!(rendered.generation, [(52, 67)]);
/// # Ok::<(), espalier_data::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChatTemplate {
    source: String,
    /// The source with the generation tags turned into filter tags.
    program: String,
    marks_generation: bool,
}

/// The variables of a template's rendering.
#[derive(Debug, Clone)]
pub struct Conversation<'a> {
    /// The turns, in order.
    pub messages: &'a [Message],
    /// JSON schemas of the tools on offer; templates see `none` when there are none.
    pub tools: Option<&'a Value>,
    /// Whether to end with the beginning of an assistant's turn.
    pub add_generation_prompt: bool,
    /// Whether to cut the text right after the last message's content, so that a model goes on with it.
    pub continue_final_message: bool,
    /// The tokenizer's special tokens, seen as `bos_token` and so on.
    pub special: &'a SpecialTokens,
    /// Further variables, such as `enable_thinking`; they win over the ones above.
    pub variables: Map<String, Value>,
}

impl<'a> Conversation<'a> {
    /// A conversation without tools, rendered whole and without a prompt at its end.
    pub fn new(messages: &'a [Message], special: &'a SpecialTokens) -> Self {
        Self {
            messages,
            tools: None,
            add_generation_prompt: false,
            continue_final_message: false,
            special,
            variables: Map::new(),
        }
    }
}

/// A rendered conversation.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Rendered {
    /// The text, to be encoded without adding special tokens.
    pub text: String,
    /// Half-open ranges of characters (not bytes) inside the template's generation marks, in order.
    pub generation: Vec<(usize, usize)>,
}

impl ChatTemplate {
    /// Checks a template's syntax.
    ///
    /// # Errors
    /// [`Error::Template`] with the line when the template is malformed.
    pub fn new(source: &str) -> Result<Self> {
        let (program, marks_generation) = generation::rewrite(source);
        engine::check(&program)?;
        Ok(Self {
            source: source.into(),
            program,
            marks_generation,
        })
    }

    /// The template as it was given.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// Whether the template says which text the assistant generates (`{% generation %}`).
    pub fn marks_generation(&self) -> bool {
        self.marks_generation
    }

    /// Renders a conversation.
    ///
    /// # Errors
    /// [`Error::Template`] when the template refuses the conversation (with the template's own words), fails, or renders more
    /// than [`OUTPUT_LIMIT`]; when a final message is to be continued but the template does not show it.
    pub fn render(&self, conversation: &Conversation) -> Result<Rendered> {
        if !conversation.continue_final_message {
            let messages = self.understood(conversation);
            return self.render_messages(conversation, &messages);
        }
        if conversation.add_generation_prompt {
            return Err(Error::Template(
                "continue_final_message excludes add_generation_prompt; choose one".into(),
            ));
        }
        let mut messages = conversation.messages.to_vec();
        let Some(last) = messages.last_mut() else {
            return Err(Error::Template(
                "continue_final_message: there is no message to continue".into(),
            ));
        };
        last.content = Content::Text(last.text().into_owned() + CONTINUE_MARK);
        cut_at_mark(self.render_messages(conversation, &messages)?)
    }

    /// Messages as the template understands them. Contents that are absent are none where the template fails without them (DeepSeek's
    /// ask for that), parts of contents are joined where it fails at lists or writes them as values.
    pub(crate) fn understood<'a>(&self, conversation: &Conversation<'a>) -> Cow<'a, [Message]> {
        let given = conversation.messages;
        let joined = messages::joined(given);
        let nulls = messages::with_nulls(given);
        let both = joined.as_deref().and_then(messages::with_nulls);
        if joined.is_none() && nulls.is_none() || self.understands(conversation, given) {
            return Cow::Borrowed(given);
        }
        let others = [joined, nulls, both].into_iter().flatten();
        let understood = others
            .into_iter()
            .find(|messages| self.understands(conversation, messages));
        understood.map_or(Cow::Borrowed(given), Cow::Owned)
    }

    /// Whether the template takes the messages, and writes no value where there should be a text.
    fn understands(&self, conversation: &Conversation, messages: &[Message]) -> bool {
        let Ok(rendered) = self.render_messages(conversation, messages) else {
            return false;
        };
        let nulls = messages
            .iter()
            .any(|message| message.content == Content::Null);
        let prints_nulls = || {
            let empty = messages::with_empty_texts(messages);
            let empty = self.render_messages(conversation, &empty);
            empty.is_ok_and(|empty| messages::prints_nulls(&rendered.text, &empty.text))
        };
        !messages::prints_parts(&rendered.text, messages) && !(nulls && prints_nulls())
    }

    /// Renders these messages in place of the conversation's, as they are.
    pub(crate) fn render_messages(
        &self,
        conversation: &Conversation,
        messages: &[Message],
    ) -> Result<Rendered> {
        self.render_variables(&variables(conversation, messages))
    }

    /// Characters that occur neither in the template nor in what the conversation brings.
    pub(crate) fn absent_characters(
        &self,
        conversation: &Conversation,
    ) -> impl Iterator<Item = char> + use<> {
        generation::absent_characters(
            &self.program,
            &variables(conversation, conversation.messages),
        )
    }

    fn render_variables(&self, variables: &Map<String, Value>) -> Result<Rendered> {
        let sentinels = Sentinels::absent_from(&self.program, variables);
        let output = engine::render(&self.program, variables, move |body| sentinels.wrap(&body))?;
        Ok(sentinels.extract(&output))
    }
}

/// The variables that a template sees.
fn variables(conversation: &Conversation, messages: &[Message]) -> Map<String, Value> {
    let mut variables = Map::new();
    for (name, token) in conversation.special.named() {
        variables.insert(name.into(), token.into());
    }
    variables.insert(
        "messages".into(),
        messages.iter().map(messages::value).collect(),
    );
    variables.insert(
        "tools".into(),
        conversation.tools.cloned().unwrap_or(Value::Null),
    );
    variables.insert("documents".into(), Value::Null);
    variables.insert(
        "add_generation_prompt".into(),
        conversation.add_generation_prompt.into(),
    );
    variables.extend(conversation.variables.clone());
    variables
}

/// Cuts at the last continuation mark; if the template trimmed the mark's space, it would have trimmed the content's too.
fn cut_at_mark(rendered: Rendered) -> Result<Rendered> {
    let Some(place) = rendered.text.rfind(CONTINUE_MARK.trim_end()) else {
        return Err(Error::Template(
            "continue_final_message: the template does not show the last message, so it cannot be continued".into(),
        ));
    };
    let kept = &rendered.text[..place];
    let kept = if rendered.text[place..].starts_with(CONTINUE_MARK) {
        kept
    } else {
        kept.trim_end()
    };
    let length = kept.chars().count();
    let spans = rendered
        .generation
        .iter()
        .filter(|(start, _)| *start < length);
    let generation = spans
        .map(|(start, end)| (*start, length.min(*end)))
        .collect();
    Ok(Rendered {
        text: kept.to_string(),
        generation,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

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
        let cases: Vec<Case> =
            serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
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
        let turns = "<|user|>\nHi<|end|>\n<|assistant|>\nHello!<|end|>\n<|user|>\nBye<|end|>\n<|assistant|>\n";
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
}
