//! Anthropic's messages and OpenAI's responses: the same texts in other forms.

use espalier_serve::Limits;
use serde_json::{Value, json};

use super::{
    client::{Reply, serve},
    drawn, engine,
};

/// Names and data of a stream's events.
fn named(reply: &Reply) -> Vec<(String, Value)> {
    let text = reply.text();
    let events = text.split_terminator("\n\n");
    let event = |event: &str| {
        let (name, data) = event.split_once("\ndata: ").unwrap();
        let name = name.strip_prefix("event: ").unwrap();
        let data: Value = serde_json::from_str(data).unwrap();
        assert_eq!(data["type"], name, "{data}");
        (name.to_owned(), data)
    };
    events.map(event).collect()
}

#[test]
fn messages_are_anthropics() {
    let server = serve(Limits::default(), &[]);
    let expected = engine("two and", 12, drawn(7), &[]).text;
    let mut request = json!({
        "model": "tiny", "max_tokens": 12, "seed": 7, "metadata": {"user_id": "u"},
        "messages": [{"role": "user", "content": [{"type": "text", "text": "two and"}]}],
    });
    let body = server.post("/v1/messages", &request).json();
    assert_eq!(
        body["content"],
        json!([{"type": "text", "text": expected}]),
        "{body}"
    );
    assert_eq!(
        (&body["type"], &body["role"]),
        (&json!("message"), &json!("assistant"))
    );
    assert_eq!(body["stop_reason"], "max_tokens");
    assert_eq!(body["usage"]["output_tokens"], 12);
    request["stream"] = true.into();
    let events = named(&server.post("/v1/messages", &request));
    let names: Vec<&str> = events.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names[..2], ["message_start", "content_block_start"]);
    assert_eq!(
        names[names.len() - 3..],
        ["content_block_stop", "message_delta", "message_stop"]
    );
    let pieces = events
        .iter()
        .filter_map(|(_, data)| data["delta"]["text"].as_str());
    assert_eq!(pieces.collect::<String>(), expected);
    // Errors have Anthropic's form.
    let wrong = server.post("/v1/messages", &json!({"model": "tiny", "messages": []}));
    assert_eq!(wrong.status, 400);
    assert_eq!(wrong.json()["error"]["type"], "invalid_request_error");
    let unknown = server.post(
        "/v1/messages",
        &json!({"model": "x", "max_tokens": 1, "messages": []}),
    );
    assert_eq!(
        (unknown.status, &unknown.json()["error"]["type"]),
        (404, &json!("not_found_error"))
    );
}

#[test]
fn conversations_with_tools_take_every_form() {
    let server = serve(Limits::default(), &[]);
    let schema = json!({"type": "object", "properties": {"a": {"type": "integer"}}});
    let chat = json!({
        "model": "tiny", "seed": 3, "max_tokens": 6,
        "tools": [{"type": "function", "function": {"name": "add", "parameters": schema}}],
        "messages": [
            {"role": "system", "content": "Count."},
            {"role": "user", "content": "1 and 2?"},
            {"role": "assistant", "content": "", "tool_calls": [
                {"id": "c", "type": "function", "function": {"name": "add", "arguments": "{\"a\": 41}"}}]},
            {"role": "tool", "tool_call_id": "c", "content": "3"},
        ],
    });
    let messages = json!({
        "model": "tiny", "seed": 3, "max_tokens": 6, "system": "Count.",
        "tools": [{"name": "add", "input_schema": schema}],
        "messages": [
            {"role": "user", "content": "1 and 2?"},
            {"role": "assistant", "content": [{"type": "tool_use", "id": "c", "name": "add", "input": {"a": 41}}]},
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "c", "content": "3"}]},
        ],
    });
    let responses = json!({
        "model": "tiny", "seed": 3, "max_output_tokens": 6, "instructions": "Count.",
        "tools": [{"type": "function", "name": "add", "parameters": schema}],
        "input": [
            {"role": "user", "content": "1 and 2?"},
            {"type": "function_call", "call_id": "c", "name": "add", "arguments": "{\"a\": 41}"},
            {"type": "function_call_output", "call_id": "c", "output": "3"},
        ],
    });
    let chat = server.post("/v1/chat/completions", &chat).json();
    let messages = server.post("/v1/messages", &messages).json();
    let responses = server.post("/v1/responses", &responses).json();
    let text = &chat["choices"][0]["message"]["content"];
    assert!(text.as_str().is_some_and(|text| !text.is_empty()), "{chat}");
    assert_eq!(&messages["content"][0]["text"], text, "{messages}");
    assert_eq!(
        &responses["output"][0]["content"][0]["text"], text,
        "{responses}"
    );
}

#[test]
fn responses_are_openais() {
    let server = serve(Limits::default(), &[]);
    let expected = engine("three", 9, drawn(4), &[]).text;
    let mut request = json!({"model": "tiny", "input": "three", "max_output_tokens": 9, "seed": 4, "store": false});
    let body = server.post("/v1/responses", &request).json();
    assert_eq!(body["status"], "incomplete", "{body}");
    assert_eq!(body["incomplete_details"]["reason"], "max_output_tokens");
    assert_eq!(body["output"][0]["content"][0]["text"], expected);
    assert_eq!(body["usage"]["output_tokens"], 9);
    request["stream"] = true.into();
    let events = named(&server.post("/v1/responses", &request));
    let names: Vec<&str> = events.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names[..2], ["response.created", "response.in_progress"]);
    assert_eq!(names.last(), Some(&"response.incomplete"));
    for (number, (_, data)) in events.iter().enumerate() {
        assert_eq!(data["sequence_number"], number);
    }
    let pieces = events
        .iter()
        .filter(|(name, _)| name == "response.output_text.delta")
        .filter_map(|(_, data)| data["delta"].as_str());
    assert_eq!(pieces.collect::<String>(), expected);
    let last = &events.last().unwrap().1["response"];
    assert_eq!(last["output"][0]["content"][0]["text"], expected);
    let kept = json!({"model": "tiny", "input": "x", "previous_response_id": "resp_1"});
    assert_eq!(server.post("/v1/responses", &kept).status, 400);
}
