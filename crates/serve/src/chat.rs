//! `/v1/chat/completions`.

use std::sync::Arc;

use axum::{body::Body, http::Response};
use espalier_engine::decode::Finish;
use serde_json::{Value, json};

use crate::{
    app::{App, Served, fresh_id, now},
    calls::{Call, CallParser, Dialect, Part},
    conversation::{Asked, messages, object, offers_tools, tools},
    error::Refusal,
    fields::Fields,
    generation::{HARMLESS, begin, chat_logprobs, room, sampling, streaming},
    speech::{Ended, Said, Spelled, Told},
    stream::{Events, Whole, Writer, collect, json as json_response, respond},
};

/// Answers a conversation.
pub(crate) async fn chat(
    app: &Arc<App>,
    body: &[u8],
    client: u64,
) -> Result<Response<Body>, Refusal> {
    let mut fields = Fields::parse(body)?;
    let name = fields.text("model")?;
    let model = app.speaker(name.as_deref())?;
    let mut asked = Asked {
        messages: messages(fields.need("messages")?)?,
        tools: tools(fields.take("tools"))?,
    };
    if !offers_tools(fields.take("tool_choice"))? {
        asked.tools = None;
    }
    let sampling = sampling(&mut fields, model, app.limits.choices)?;
    let logprobs = chat_logprobs(&mut fields)?;
    let (stream, usage) = streaming(&mut fields)?;
    let most = fields.count("max_completion_tokens", 1..=u64::MAX)?;
    let most = most.or(fields.count("max_tokens", 1..=u64::MAX)?);
    neutral(&mut fields)?;
    fields.finish(HARMLESS)?;
    let prompt = asked.prompt(model)?;
    let new = room(app, model, prompt.len(), most)?;
    let dialect = match asked.tools {
        Some(_) => model.dialect,
        None => Dialect::None,
    };
    let answers = begin(
        app,
        model,
        vec![(prompt, new)],
        &sampling,
        logprobs,
        dialect.marks(),
        client,
    )?;
    let head = Head::new(model);
    if stream {
        let writer = ChatWriter {
            head,
            usage,
            logprobs: logprobs.is_some(),
            choices: (0..answers.count).map(|_| Choice::new(dialect)).collect(),
            tokens: [0; 3],
        };
        return respond(app, answers, writer).await;
    }
    let all = collect(app, answers).await?;
    let usage = usage_of(&all, 1);
    let choices = all.into_iter().enumerate();
    let choices: Vec<Value> = choices
        .map(|(number, whole)| choice(number, whole, dialect, logprobs.is_some()))
        .collect();
    Ok(json_response(&json!({
        "id": head.id, "object": "chat.completion", "created": head.created, "model": head.model,
        "choices": choices, "usage": usage, "system_fingerprint": null,
    })))
}

/// Fields that may have the values that change nothing.
fn neutral(fields: &mut Fields) -> Result<(), Refusal> {
    let free = json!({"type": "text"});
    fields.neutral(
        "response_format",
        &[free],
        "answers cannot be held to a form; ask for it in words",
    )?;
    fields.neutral("modalities", &[json!(["text"])], "texts alone are made")?;
    fields.neutral(
        "parallel_tool_calls",
        &[json!(true)],
        "calls are not counted",
    )?;
    fields.neutral("verbosity", &[json!("medium")], "say it in words")?;
    fields.neutral("functions", &[json!([])], "use `tools`")?;
    fields.neutral(
        "function_call",
        &[json!("auto"), json!("none")],
        "use `tool_choice`",
    )
}

/// What every chunk of a response says.
pub(crate) struct Head {
    pub id: String,
    pub created: u64,
    pub model: String,
}

impl Head {
    fn new(model: &Served) -> Self {
        Self {
            id: fresh_id("chatcmpl-"),
            created: now(),
            model: model.name.clone(),
        }
    }
}

/// OpenAI's word for an end.
pub(crate) fn reason(finish: Finish, called: bool) -> &'static str {
    match finish {
        _ if called => "tool_calls",
        Finish::End | Finish::Stopped => "stop",
        Finish::Length | Finish::Context => "length",
    }
}

/// The tokens of all answers to `prompts` prompts, each of which counts once.
pub(crate) fn usage_of(all: &[Whole], prompts: usize) -> Value {
    let each = all.len() / prompts.max(1);
    let ended = |whole: &Whole| whole.ended;
    let firsts = all.iter().step_by(each.max(1)).filter_map(ended);
    let (prompt, cached) = firsts.fold((0, 0), |sum, ended| {
        (sum.0 + ended.prompt, sum.1 + ended.cached)
    });
    let generated = all
        .iter()
        .filter_map(ended)
        .map(|ended| ended.generated)
        .sum();
    usage([prompt, cached, generated])
}

/// Tokens of the prompt, those that were known, generated ones.
pub(crate) fn usage([prompt, cached, generated]: [usize; 3]) -> Value {
    json!({
        "prompt_tokens": prompt, "completion_tokens": generated, "total_tokens": prompt + generated,
        "prompt_tokens_details": {"cached_tokens": cached},
    })
}

/// A call in OpenAI's form.
pub(crate) fn call_json(call: &Call) -> Value {
    json!({
        "id": fresh_id("call_"), "type": "function",
        "function": {"name": call.name, "arguments": call.arguments},
    })
}

/// Text and calls of a whole answer.
pub(crate) fn parted(text: &str, dialect: Dialect) -> (String, Vec<Call>) {
    let mut parser = CallParser::new(dialect);
    let mut parts = parser.push(text);
    parts.extend(parser.finish());
    let (mut text, mut calls) = (String::new(), Vec::new());
    for part in parts {
        match part {
            Part::Text(more) => text.push_str(&more),
            Part::Call(call) => calls.push(call),
        }
    }
    (text, calls)
}

fn choice(number: usize, whole: Whole, dialect: Dialect, logprobs: bool) -> Value {
    let (text, calls) = parted(&whole.text, dialect);
    let finish = whole.ended.map_or(Finish::Stopped, |ended| ended.finish);
    let mut message = json!({"role": "assistant", "content": text, "refusal": null});
    if !calls.is_empty() {
        if text.is_empty() {
            message["content"] = Value::Null;
        }
        message["tool_calls"] = calls.iter().map(call_json).collect();
    }
    json!({
        "index": number, "message": message, "finish_reason": reason(finish, !calls.is_empty()),
        "logprobs": if logprobs { logprobs_json(&whole.told) } else { Value::Null },
    })
}

fn logprobs_json(told: &[Told]) -> Value {
    let spelled = |token: &Spelled| json!({"token": token.text, "logprob": finite(token.logprob), "bytes": token.text.as_bytes()});
    let entry = |told: &Told| {
        let mut entry = spelled(&told.token);
        entry["top_logprobs"] = told.likeliest.iter().map(spelled).collect();
        entry
    };
    json!({"content": told.iter().map(entry).collect::<Vec<_>>(), "refusal": null})
}

/// JSON has no infinities; OpenAI's smallest logarithm stands for them.
pub(crate) fn finite(logprob: f32) -> f32 {
    logprob.max(-9999.0)
}

/// An answer that is being streamed.
struct Choice {
    parser: CallParser,
    begun: bool,
    calls: usize,
}

impl Choice {
    fn new(dialect: Dialect) -> Self {
        Self {
            parser: CallParser::new(dialect),
            begun: false,
            calls: 0,
        }
    }
}

/// Writes chunks.
struct ChatWriter {
    head: Head,
    usage: bool,
    logprobs: bool,
    choices: Vec<Choice>,
    tokens: [usize; 3],
}

impl ChatWriter {
    fn chunk(&self, choices: Value) -> Value {
        let mut chunk = json!({
            "id": self.head.id, "object": "chat.completion.chunk", "created": self.head.created,
            "model": self.head.model, "system_fingerprint": null, "choices": choices,
        });
        if self.usage {
            chunk["usage"] = Value::Null;
        }
        chunk
    }

    fn delta(&mut self, number: usize, delta: Value, told: &[Told], events: &mut Events) {
        self.open(number, events);
        let logprobs = match self.logprobs && !told.is_empty() {
            true => logprobs_json(told),
            false => Value::Null,
        };
        let choice =
            json!([{"index": number, "delta": delta, "logprobs": logprobs, "finish_reason": null}]);
        events.data(&self.chunk(choice));
    }

    /// The first chunk of an answer says whose it is.
    fn open(&mut self, number: usize, events: &mut Events) {
        if !std::mem::replace(&mut self.choices[number].begun, true) {
            let delta = json!({"role": "assistant", "content": "", "refusal": null});
            let choice =
                json!([{"index": number, "delta": delta, "logprobs": null, "finish_reason": null}]);
            events.data(&self.chunk(choice));
        }
    }

    fn parts(&mut self, number: usize, parts: Vec<Part>, mut told: Vec<Told>, events: &mut Events) {
        for part in parts {
            let told = std::mem::take(&mut told);
            let delta = match part {
                Part::Text(text) => object([("content", text.into())]),
                Part::Call(call) => {
                    let place = self.choices[number].calls;
                    self.choices[number].calls += 1;
                    let mut call = call_json(&call);
                    call["index"] = place.into();
                    json!({"tool_calls": [call]})
                }
            };
            self.delta(number, delta, &told, events);
        }
        // Text that is held back has its tokens already.
        if !told.is_empty() {
            self.delta(number, json!({}), &told, events);
        }
    }

    fn finish(&mut self, number: usize, ended: Ended, events: &mut Events) {
        let rest = self.choices[number].parser.finish();
        self.parts(number, rest, Vec::new(), events);
        self.open(number, events);
        let reason = reason(ended.finish, self.choices[number].calls > 0);
        let choice =
            json!([{"index": number, "delta": {}, "logprobs": null, "finish_reason": reason}]);
        events.data(&self.chunk(choice));
        self.tokens = [ended.prompt, ended.cached, self.tokens[2] + ended.generated];
    }
}

impl Writer for ChatWriter {
    fn said(&mut self, number: usize, said: Said, events: &mut Events) {
        match said {
            Said::Piece(text, told) => {
                let parts = self.choices[number].parser.push(&text);
                self.parts(number, parts, told, events);
            }
            Said::End(ended) => self.finish(number, ended, events),
            Said::Failed(_) => {}
        }
    }

    fn end(&mut self, events: &mut Events) {
        if self.usage {
            let mut chunk = self.chunk(json!([]));
            chunk["usage"] = usage(self.tokens);
            events.data(&chunk);
        }
        events.done();
    }
}
