//! `/v1/responses`: OpenAI's newer interface, texts and tools. Nothing is kept between requests.

use std::sync::Arc;

use axum::{body::Body, http::Response};
use espalier_engine::decode::Finish;
use serde_json::{Value, json};

use crate::{
    app::{App, fresh_id, now},
    calls::{Call, CallParser, Dialect, Part},
    chat::parted,
    conversation::{Asked, messages, offers_tools, tools},
    error::Refusal,
    fields::Fields,
    generation::{HARMLESS, begin, room, sampling, streaming},
    speech::{Ended, Said},
    stream::{Events, Writer, collect, json as json_response, respond},
};

/// Answers a conversation.
pub(crate) async fn answer(
    app: &Arc<App>,
    body: &[u8],
    client: u64,
) -> Result<Response<Body>, Refusal> {
    let mut fields = Fields::parse(body)?;
    let name = fields.text("model")?;
    let model = app.speaker(name.as_deref())?;
    let instructions = fields.text("instructions")?;
    let tools_given = fields.take("tools");
    let mut asked = Asked {
        messages: messages(conversation(
            instructions.as_deref(),
            fields.need("input")?,
        )?)?,
        tools: tools(tools_given.clone().map(tools_of).transpose()?)?,
    };
    if !offers_tools(fields.take("tool_choice"))? {
        asked.tools = None;
    }
    let most = fields.count("max_output_tokens", 1..=u64::MAX)?;
    let sampling = sampling(&mut fields, model, 1)?;
    let (stream, _) = streaming(&mut fields)?;
    neutral(&mut fields)?;
    fields.finish(HARMLESS)?;
    let prompt = asked.prompt(model)?;
    let new = room(app, model, prompt.len(), most)?;
    let dialect = match asked.tools {
        Some(_) => model.dialect,
        None => Dialect::None,
    };
    let head = json!({
        "id": fresh_id("resp_"), "object": "response", "created_at": now(), "status": "in_progress", "error": null,
        "incomplete_details": null, "instructions": instructions, "max_output_tokens": most, "model": model.name,
        "output": [], "parallel_tool_calls": true, "previous_response_id": null, "store": false,
        "temperature": sampling.sampler.temperature, "top_p": sampling.sampler.top_p,
        "text": {"format": {"type": "text"}}, "tool_choice": "auto",
        "tools": tools_given.unwrap_or_else(|| json!([])), "truncation": "disabled", "usage": null, "metadata": {},
    });
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
    if stream {
        let writer = ResponseWriter {
            head,
            parser: CallParser::new(dialect),
            output: Vec::new(),
            text: None,
            number: 0,
        };
        return respond(app, answers, writer).await;
    }
    let mut body = head;
    if let Some(whole) = collect(app, answers).await?.into_iter().next() {
        let (text, calls) = parted(&whole.text, dialect);
        let mut output = Vec::new();
        if !text.is_empty() || calls.is_empty() {
            output.push(message(&fresh_id("msg_"), &text, "completed"));
        }
        output.extend(calls.iter().map(|call| call_item(call, "completed")));
        if let Some(ended) = whole.ended {
            finish(&mut body, output, &ended);
        }
    }
    Ok(json_response(&body))
}

/// Fields that may have the values that change nothing.
fn neutral(fields: &mut Fields) -> Result<(), Refusal> {
    let free = json!({"format": {"type": "text"}});
    fields.neutral(
        "text",
        &[free, json!({})],
        "answers cannot be held to a form",
    )?;
    fields.neutral(
        "truncation",
        &[json!("disabled")],
        "nothing is left out of a conversation",
    )?;
    fields.neutral("include", &[json!([])], "there is nothing more to tell")?;
    fields.neutral("background", &[json!(false)], "answers are waited for")?;
    fields.neutral(
        "parallel_tool_calls",
        &[json!(true)],
        "calls are not counted",
    )?;
    fields.neutral(
        "previous_response_id",
        &[],
        "nothing is kept; send the whole conversation",
    )
}

/// The input in the form of `/v1/chat/completions`.
fn conversation(instructions: Option<&str>, input: Value) -> Result<Value, Refusal> {
    let mut all = Vec::new();
    if let Some(text) = instructions {
        all.push(json!({"role": "system", "content": text}));
    }
    let list = match input {
        Value::Array(list) => list,
        Value::String(text) => vec![json!({"role": "user", "content": text})],
        _ => {
            return Err(Refusal::field(
                "input",
                "expected a text or a list of items",
            ));
        }
    };
    for (number, item) in list.into_iter().enumerate() {
        match item["type"].as_str().unwrap_or("message") {
            "message" => all.push(json!({"role": item["role"], "content": item["content"]})),
            "function_call" => {
                let call = json!({
                    "id": item["call_id"], "type": "function",
                    "function": {"name": item["name"], "arguments": item["arguments"]},
                });
                all.push(json!({"role": "assistant", "content": "", "tool_calls": [call]}));
            }
            "function_call_output" => all.push(json!({
                "role": "tool", "tool_call_id": item["call_id"], "content": item["output"],
            })),
            other => {
                return Err(Refusal::field(
                    &format!("input[{number}]"),
                    format!(
                        "an item of the type `{other}`: messages, function_call and function_call_output are understood"
                    ),
                ));
            }
        }
    }
    Ok(Value::Array(all))
}

/// Tools in the form of `/v1/chat/completions`.
fn tools_of(value: Value) -> Result<Value, Refusal> {
    let Value::Array(list) = value else {
        return Err(Refusal::field("tools", "expected a list"));
    };
    let tool = |tool: &Value| {
        let mut function = tool.clone();
        if let Some(map) = function.as_object_mut() {
            map.remove("type");
            map.remove("strict");
        }
        json!({"type": tool["type"], "function": function})
    };
    Ok(list.iter().map(tool).collect())
}

fn text_part(text: &str) -> Value {
    json!({"type": "output_text", "text": text, "annotations": [], "logprobs": []})
}

fn message(id: &str, text: &str, status: &str) -> Value {
    let content = match status {
        "completed" => vec![text_part(text)],
        _ => Vec::new(),
    };
    json!({"type": "message", "id": id, "status": status, "role": "assistant", "content": content})
}

fn call_item(call: &Call, status: &str) -> Value {
    json!({
        "type": "function_call", "id": fresh_id("fc_"), "call_id": fresh_id("call_"), "name": call.name,
        "arguments": call.arguments, "status": status,
    })
}

/// Writes down how it ended.
fn finish(body: &mut Value, output: Vec<Value>, ended: &Ended) {
    let cut = matches!(ended.finish, Finish::Length | Finish::Context);
    body["status"] = if cut { "incomplete" } else { "completed" }.into();
    if cut {
        body["incomplete_details"] = json!({"reason": "max_output_tokens"});
    }
    body["output"] = output.into();
    body["usage"] = json!({
        "input_tokens": ended.prompt, "input_tokens_details": {"cached_tokens": ended.cached},
        "output_tokens": ended.generated, "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": ended.prompt + ended.generated,
    });
}

/// Writes events, each with its number.
struct ResponseWriter {
    head: Value,
    parser: CallParser,
    /// Items that are whole.
    output: Vec<Value>,
    /// The message that grows: its id and its text.
    text: Option<(String, String)>,
    number: u64,
}

impl ResponseWriter {
    fn event(&mut self, name: &str, mut data: Value, events: &mut Events) {
        data["type"] = name.into();
        data["sequence_number"] = self.number.into();
        self.number += 1;
        events.named(name, &data);
    }

    fn parts(&mut self, parts: Vec<Part>, events: &mut Events) {
        for part in parts {
            match part {
                Part::Text(text) => self.grow(&text, events),
                Part::Call(call) => self.call(&call, events),
            }
        }
    }

    fn grow(&mut self, more: &str, events: &mut Events) {
        let place = self.output.len();
        if self.text.is_none() {
            let id = fresh_id("msg_");
            let item = message(&id, "", "in_progress");
            let added = json!({"output_index": place, "item": item});
            self.event("response.output_item.added", added, events);
            let part = json!({"item_id": id, "output_index": place, "content_index": 0, "part": text_part("")});
            self.event("response.content_part.added", part, events);
            self.text = Some((id, String::new()));
        }
        if let Some((id, text)) = &mut self.text {
            text.push_str(more);
            let delta = json!({
                "item_id": id, "output_index": place, "content_index": 0, "delta": more, "logprobs": [],
            });
            self.event("response.output_text.delta", delta, events);
        }
    }

    /// Ends the message that grows.
    fn close(&mut self, events: &mut Events) {
        let Some((id, text)) = self.text.take() else {
            return;
        };
        let at = json!({"item_id": id, "output_index": self.output.len(), "content_index": 0});
        let mut done = at.clone();
        done["text"] = text.clone().into();
        done["logprobs"] = json!([]);
        self.event("response.output_text.done", done, events);
        let mut part = at;
        part["part"] = text_part(&text);
        self.event("response.content_part.done", part, events);
        self.done(message(&id, &text, "completed"), events);
    }

    fn done(&mut self, item: Value, events: &mut Events) {
        let data = json!({"output_index": self.output.len(), "item": item});
        self.event("response.output_item.done", data, events);
        self.output.push(item);
    }

    fn call(&mut self, call: &Call, events: &mut Events) {
        self.close(events);
        let mut item = call_item(call, "in_progress");
        item["arguments"] = "".into();
        let place = self.output.len();
        let added = json!({"output_index": place, "item": item});
        self.event("response.output_item.added", added, events);
        let at = json!({"item_id": item["id"], "output_index": place});
        let mut delta = at.clone();
        delta["delta"] = call.arguments.clone().into();
        self.event("response.function_call_arguments.delta", delta, events);
        let mut done = at;
        done["arguments"] = call.arguments.clone().into();
        self.event("response.function_call_arguments.done", done, events);
        item["arguments"] = call.arguments.clone().into();
        item["status"] = "completed".into();
        self.done(item, events);
    }
}

impl Writer for ResponseWriter {
    fn begin(&mut self, events: &mut Events) {
        for name in ["response.created", "response.in_progress"] {
            let data = json!({"response": self.head});
            self.event(name, data, events);
        }
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
                let output = std::mem::take(&mut self.output);
                finish(&mut self.head, output, &ended);
                let name = match self.head["status"] == "completed" {
                    true => "response.completed",
                    false => "response.incomplete",
                };
                let data = json!({"response": self.head});
                self.event(name, data, events);
            }
            Said::Failed(_) => {}
        }
    }

    fn end(&mut self, _: &mut Events) {}

    fn fail(&mut self, refusal: &Refusal, events: &mut Events) {
        let mut data = refusal.to_json()["error"].take();
        if let Some(map) = data.as_object_mut() {
            map.remove("type");
        }
        self.event("error", data, events);
    }
}
