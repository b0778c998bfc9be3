//! `/v1/messages`: Anthropic's interface, texts and tools.

use std::sync::Arc;

use axum::{body::Body, http::Response};
use espalier_engine::decode::Finish;
use serde_json::{Map, Value, json};

use crate::{
    app::{App, fresh_id},
    calls::{Call, CallParser, Dialect, Part},
    chat::parted,
    conversation::{Asked, messages, tools},
    error::Refusal,
    fields::Fields,
    generation::{begin, room, sampling, streaming},
    speech::{Ended, Said},
    stream::{Events, Writer, collect, json as json_response, respond},
};

/// Fields that change no answer here.
const HARMLESS: &[&str] = &["metadata", "service_tier"];

/// Answers a conversation.
pub(crate) async fn answer(
    app: &Arc<App>,
    body: &[u8],
    client: u64,
) -> Result<Response<Body>, Refusal> {
    let mut fields = Fields::parse(body)?;
    let name = fields.text("model")?;
    let model = app.speaker(name.as_deref())?;
    let mut asked = asked(&mut fields)?;
    if !offers_tools(fields.take("tool_choice"))? {
        asked.tools = None;
    }
    let most = fields.count("max_tokens", 1..=u64::MAX)?;
    let most = most.ok_or_else(|| Refusal::field("max_tokens", "this field is required"))?;
    fields.rename("stop_sequences", "stop");
    let stops = fields.peek("stop").cloned();
    let sampling = sampling(&mut fields, model, 1)?;
    let (stream, _) = streaming(&mut fields)?;
    fields.neutral(
        "thinking",
        &[json!({"type": "disabled"})],
        "models think as their templates say",
    )?;
    fields.finish(HARMLESS)?;
    let prompt = asked.prompt(model)?;
    let new = room(app, model, prompt.len(), Some(most))?;
    let dialect = match asked.tools {
        Some(_) => model.dialect,
        None => Dialect::None,
    };
    let (tokens, name) = (prompt.len(), model.name.clone());
    let prompts = vec![(prompt, new)];
    let answers = begin(
        app,
        model,
        prompts,
        &sampling,
        None,
        dialect.marks(),
        client,
    )?;
    let head = json!({
        "id": fresh_id("msg_"), "type": "message", "role": "assistant", "model": name, "content": [],
        "stop_reason": null, "stop_sequence": null, "usage": {"input_tokens": tokens, "output_tokens": 0},
    });
    // Of several the engine does not tell which it was.
    let stop = match stops {
        Some(Value::Array(stops)) if stops.len() == 1 => stops[0].clone(),
        _ => Value::Null,
    };
    if stream {
        let writer = MessageWriter {
            head,
            stop,
            parser: CallParser::new(dialect),
            place: 0,
            text: false,
            called: false,
        };
        return respond(app, answers, writer).await;
    }
    let mut body = head;
    if let Some(whole) = collect(app, answers).await?.into_iter().next() {
        let (text, calls) = parted(&whole.text, dialect);
        let mut content = Vec::new();
        if !text.is_empty() {
            content.push(json!({"type": "text", "text": text}));
        }
        content.extend(calls.iter().map(|call| {
            let input: Value = serde_json::from_str(&call.arguments).unwrap_or_else(|_| json!({}));
            json!({"type": "tool_use", "id": fresh_id("toolu_"), "name": call.name, "input": input})
        }));
        if let Some(ended) = whole.ended {
            let reason = reason(ended.finish, !calls.is_empty());
            body["stop_reason"] = reason.into();
            if reason == "stop_sequence" {
                body["stop_sequence"] = stop;
            }
            body["usage"] = usage(&ended);
        }
        body["content"] = content.into();
    }
    Ok(json_response(&body))
}

fn usage(ended: &Ended) -> Value {
    // What was known is counted beside what was read.
    json!({
        "input_tokens": ended.prompt - ended.cached, "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": ended.cached, "output_tokens": ended.generated,
    })
}

fn reason(finish: Finish, called: bool) -> &'static str {
    match finish {
        _ if called => "tool_use",
        Finish::End => "end_turn",
        Finish::Stopped => "stop_sequence",
        Finish::Length | Finish::Context => "max_tokens",
    }
}

/// Anthropic's `tool_choice`: whether tools are on offer.
fn offers_tools(choice: Option<Value>) -> Result<bool, Refusal> {
    let kind = choice.as_ref().map(|choice| choice["type"].as_str());
    match kind {
        None | Some(Some("auto")) => Ok(true),
        Some(Some("none")) => Ok(false),
        _ => Err(Refusal::field(
            "tool_choice",
            "the types `auto` and `none` are understood; a call cannot be forced",
        )),
    }
}

/// The conversation in OpenAI's form.
fn asked(fields: &mut Fields) -> Result<Asked, Refusal> {
    let mut all = Vec::new();
    if let Some(system) = fields.take("system") {
        all.push(json!({"role": "system", "content": system}));
    }
    let Value::Array(list) = fields.need("messages")? else {
        return Err(Refusal::field("messages", "expected a list"));
    };
    for (number, message) in list.into_iter().enumerate() {
        let wrong = |reason: &str| Refusal::field(&format!("messages[{number}]"), reason);
        let role = message["role"].as_str().unwrap_or_default().to_owned();
        if !["user", "assistant"].contains(&role.as_str()) {
            return Err(wrong("`role` is user or assistant"));
        }
        match &message["content"] {
            Value::String(text) => all.push(json!({"role": role, "content": text})),
            Value::Array(blocks) => {
                unfold(&role, blocks, &mut all).map_err(|reason| wrong(&reason))?
            }
            _ => return Err(wrong("`content` is a text or a list of blocks")),
        }
    }
    let tools_given = fields.take("tools");
    Ok(Asked {
        messages: messages(Value::Array(all))?,
        tools: tools(tools_given.map(tools_of).transpose()?)?,
    })
}

/// Blocks of a turn as OpenAI's messages: results of tools are messages of their own.
fn unfold(role: &str, blocks: &[Value], all: &mut Vec<Value>) -> Result<(), String> {
    let (mut text, mut calls) = (String::new(), Vec::new());
    for block in blocks {
        match block["type"].as_str().unwrap_or_default() {
            "text" => text.push_str(block["text"].as_str().unwrap_or_default()),
            "tool_use" => calls.push(json!({
                "id": block["id"], "type": "function",
                "function": {"name": block["name"], "arguments": block["input"]},
            })),
            "tool_result" => {
                let content = match &block["content"] {
                    Value::Null => json!(""),
                    content => content.clone(),
                };
                all.push(json!({"role": "tool", "tool_call_id": block["tool_use_id"], "content": content}));
            }
            other => {
                return Err(format!(
                    "a block of the type `{other}`: texts and tools alone are understood"
                ));
            }
        }
    }
    let mut message = Map::from_iter([
        ("role".to_owned(), json!(role)),
        ("content".to_owned(), json!(text)),
    ]);
    if !calls.is_empty() {
        message.insert("tool_calls".into(), calls.into());
    } else if text.is_empty() {
        return Ok(());
    }
    all.push(Value::Object(message));
    Ok(())
}

/// Tools in OpenAI's form.
fn tools_of(value: Value) -> Result<Value, Refusal> {
    let Value::Array(list) = value else {
        return Err(Refusal::field("tools", "expected a list"));
    };
    let tool = |tool: &Value| {
        let mut function = json!({"name": tool["name"], "parameters": tool["input_schema"]});
        if let Some(description) = tool.get("description") {
            function["description"] = description.clone();
        }
        json!({"type": "function", "function": function})
    };
    Ok(list.iter().map(tool).collect())
}

/// Writes Anthropic's events: blocks that begin, grow and end.
struct MessageWriter {
    head: Value,
    stop: Value,
    parser: CallParser,
    /// The number of the next block, or of the text that is open.
    place: usize,
    /// Whether a block of text is open.
    text: bool,
    called: bool,
}

impl MessageWriter {
    fn parts(&mut self, parts: Vec<Part>, events: &mut Events) {
        for part in parts {
            match part {
                Part::Text(text) => {
                    if !std::mem::replace(&mut self.text, true) {
                        let block = json!({"type": "text", "text": ""});
                        self.block(&block, events);
                    }
                    self.delta(&json!({"type": "text_delta", "text": text}), events);
                }
                Part::Call(call) => self.call(&call, events),
            }
        }
    }

    fn call(&mut self, call: &Call, events: &mut Events) {
        self.close(events);
        self.called = true;
        let block =
            json!({"type": "tool_use", "id": fresh_id("toolu_"), "name": call.name, "input": {}});
        self.block(&block, events);
        self.delta(
            &json!({"type": "input_json_delta", "partial_json": call.arguments}),
            events,
        );
        self.text = true;
        self.close(events);
    }

    fn block(&self, block: &Value, events: &mut Events) {
        let data =
            json!({"type": "content_block_start", "index": self.place, "content_block": block});
        events.named("content_block_start", &data);
    }

    fn delta(&self, delta: &Value, events: &mut Events) {
        let data = json!({"type": "content_block_delta", "index": self.place, "delta": delta});
        events.named("content_block_delta", &data);
    }

    /// Ends the block that is open.
    fn close(&mut self, events: &mut Events) {
        if std::mem::replace(&mut self.text, false) {
            let data = json!({"type": "content_block_stop", "index": self.place});
            events.named("content_block_stop", &data);
            self.place += 1;
        }
    }
}

impl Writer for MessageWriter {
    fn begin(&mut self, events: &mut Events) {
        let data = json!({"type": "message_start", "message": self.head});
        events.named("message_start", &data);
    }

    fn said(&mut self, _: usize, said: Said, events: &mut Events) {
        match said {
            Said::Piece(text, _) => {
                let parts = self.parser.push(&text);
                self.parts(parts, events);
            }
            Said::End(ended) => {
                let rest = self.parser.finish();
                self.parts(rest, events);
                self.close(events);
                let reason = reason(ended.finish, self.called);
                let stop = match reason {
                    "stop_sequence" => self.stop.clone(),
                    _ => Value::Null,
                };
                let data = json!({
                    "type": "message_delta", "delta": {"stop_reason": reason, "stop_sequence": stop},
                    "usage": usage(&ended),
                });
                events.named("message_delta", &data);
            }
            Said::Failed(_) => {}
        }
    }

    fn end(&mut self, events: &mut Events) {
        events.named("message_stop", &json!({"type": "message_stop"}));
    }

    fn fail(&mut self, refusal: &Refusal, events: &mut Events) {
        events.named("error", &refusal.to_anthropic());
    }
}
