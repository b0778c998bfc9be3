//! The server over real HTTP: what clients get, what is refused, and what happens when they leave.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test may fail loudly"
)]

mod client;
mod hardship;
mod interfaces;
mod refusals;

use client::{serve, text_model};
use espalier_data::record::Message;
use espalier_engine::{
    decode::Finish,
    sampler::SamplerOptions,
    text::{GeneratedText, TextOptions},
};
use espalier_serve::Limits;
use serde_json::{Value, json};

fn user(text: &str) -> Value {
    json!([{"role": "user", "content": text}])
}

/// What the engine writes by itself.
fn engine(text: &str, new: usize, sampler: SamplerOptions, stops: &[&str]) -> GeneratedText {
    let model = text_model(1);
    let prompt = model.chat_prompt(&[Message::user(text)]).unwrap();
    let options = TextOptions {
        max_new_tokens: new,
        sampler,
        stops: stops.iter().map(|stop| (*stop).to_string()).collect(),
    };
    model.generate(&prompt, &options, &mut |_| true).unwrap()
}

fn drawn(seed: u64) -> SamplerOptions {
    SamplerOptions {
        seed,
        ..SamplerOptions::default()
    }
}

/// An answer with its id and times replaced, which differ every time.
fn golden(mut body: Value) -> Value {
    for name in ["id", "created"] {
        assert!(!body[name].is_null(), "{body}");
        body[name] = name.into();
    }
    body
}

#[test]
fn an_answer_is_that_of_the_engine() {
    let server = serve(Limits::default(), &[]);
    let expected = engine("two and", 12, drawn(7), &[]);
    let request =
        json!({"model": "tiny", "messages": user("two and"), "max_tokens": 12, "seed": 7});
    let body = golden(server.post("/v1/chat/completions", &request).json());
    let prompt = text_model(1)
        .chat_prompt(&[Message::user("two and")])
        .unwrap()
        .len();
    let expected = json!({
        "id": "id", "object": "chat.completion", "created": "created", "model": "tiny",
        "choices": [{
            "index": 0, "message": {"role": "assistant", "content": expected.text, "refusal": null},
            "finish_reason": "length", "logprobs": null,
        }],
        "usage": {
            "prompt_tokens": prompt, "completion_tokens": 12, "total_tokens": prompt + 12,
            "prompt_tokens_details": {"cached_tokens": 0},
        },
        "system_fingerprint": null,
    });
    assert_eq!(body, expected);
    // The next one like it reads less, and says the same.
    let again = server.post("/v1/chat/completions", &request).json();
    assert_eq!(again["choices"], expected["choices"]);
    let cached = again["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64();
    assert!(cached.unwrap() >= 16, "{again}");
}

#[test]
fn a_stream_says_the_same_in_pieces() {
    let server = serve(Limits::default(), &[]);
    for seed in 0..6 {
        let whole = engine("é 日本", 40, drawn(seed), &[]);
        let expected = whole.text;
        let request = json!({
            "model": "tiny", "messages": user("é 日本"), "max_completion_tokens": 40, "seed": seed,
            "stream": true, "stream_options": {"include_usage": true},
        });
        let reply = server.post("/v1/chat/completions", &request);
        assert!(reply.head.contains("text/event-stream"), "{}", reply.head);
        let events = reply.events();
        let delta = |event: &Value| event["choices"][0]["delta"].clone();
        assert_eq!(delta(&events[0])["role"], "assistant");
        let pieces = events.iter().filter_map(|event| {
            let content = delta(event)["content"].as_str()?.to_owned();
            Some(content)
        });
        assert_eq!(pieces.collect::<String>(), expected);
        let [.., last, usage] = &events[..] else {
            panic!()
        };
        let reason = match whole.finish {
            Finish::Length => "length",
            _ => "stop",
        };
        assert_eq!(last["choices"][0]["finish_reason"], reason);
        assert_eq!(usage["choices"], json!([]));
        assert_eq!(usage["usage"]["completion_tokens"], whole.tokens);
        assert_eq!(last["usage"], Value::Null);
        assert!(events.iter().all(|event| event["id"] == events[0]["id"]));
    }
}

#[test]
fn stop_strings_never_leak() {
    let server = serve(Limits::default(), &[]);
    let whole = engine("sum", 60, drawn(3), &[]).text;
    let characters: Vec<char> = whole.chars().collect();
    // Stops of several lengths from the middle, which lie across tokens.
    for length in [1, 2, 5, 9] {
        let stop: String = characters[20..20 + length].iter().collect();
        let expected = engine("sum", 60, drawn(3), &[&stop]);
        assert!(!expected.text.contains(&stop));
        let mut request = json!({
            "model": "tiny", "messages": user("sum"), "max_tokens": 60, "seed": 3, "stop": [stop, "never there"],
        });
        let body = server.post("/v1/chat/completions", &request).json();
        let choice = &body["choices"][0];
        assert_eq!(choice["message"]["content"], expected.text);
        assert_eq!(choice["finish_reason"], "stop");
        assert_eq!(body["usage"]["completion_tokens"], expected.tokens);
        request["stream"] = true.into();
        let events = server.post("/v1/chat/completions", &request).events();
        let pieces = events
            .iter()
            .filter_map(|event| event["choices"][0]["delta"]["content"].as_str());
        assert_eq!(pieces.collect::<String>(), expected.text);
    }
}

#[test]
fn several_answers_have_seeds_of_their_own() {
    let server = serve(Limits::default(), &[]);
    let request =
        json!({"model": "tiny", "messages": user("three"), "max_tokens": 9, "seed": 5, "n": 3});
    let body = server.post("/v1/chat/completions", &request).json();
    for (number, choice) in body["choices"].as_array().unwrap().iter().enumerate() {
        let expected = engine("three", 9, drawn(5 + number as u64), &[]).text;
        assert_eq!(choice["message"]["content"], expected);
        assert_eq!(choice["index"], number);
    }
    assert_eq!(body["usage"]["completion_tokens"], 27);
    let mut request = request;
    request["stream"] = true.into();
    let events = server.post("/v1/chat/completions", &request).events();
    for number in 0..3u64 {
        let own = |event: &&Value| event["choices"][0]["index"] == number;
        let pieces = events.iter().filter(own);
        let pieces = pieces.filter_map(|event| event["choices"][0]["delta"]["content"].as_str());
        assert_eq!(
            pieces.collect::<String>(),
            engine("three", 9, drawn(5 + number), &[]).text
        );
    }
}

#[test]
fn log_probabilities_and_biases() {
    let server = serve(Limits::default(), &[]);
    let request = json!({
        "model": "tiny", "messages": user("a"), "max_tokens": 4, "temperature": 0, "logprobs": true, "top_logprobs": 3,
    });
    let body = server.post("/v1/chat/completions", &request).json();
    let told = body["choices"][0]["logprobs"]["content"]
        .as_array()
        .unwrap()
        .clone();
    assert_eq!(told.len(), 4);
    for one in &told {
        let top = one["top_logprobs"].as_array().unwrap();
        assert_eq!(top.len(), 3);
        assert_eq!(
            top[0]["logprob"], one["logprob"],
            "greedy choice takes the likeliest"
        );
        assert!(one["logprob"].as_f64().unwrap() <= 0.0);
    }
    let biased = json!({
        "model": "tiny", "messages": user("a"), "max_tokens": 3, "logit_bias": {"70": 100}, "temperature": 0,
    });
    let body = server.post("/v1/chat/completions", &biased).json();
    let token = text_model(1).tokenizer.decode(&[70, 70, 70], true).unwrap();
    assert_eq!(body["choices"][0]["message"]["content"], token);
}

#[test]
fn completions_take_texts_and_tokens() {
    let server = serve(Limits::default(), &[]);
    let model = text_model(1);
    let ids = model.tokenizer.encode_ids("the sum", true).unwrap();
    let options = TextOptions {
        max_new_tokens: 6,
        sampler: drawn(2),
        stops: Vec::new(),
    };
    let expected = model.generate(&ids, &options, &mut |_| true).unwrap().text;
    for prompt in [
        json!("the sum"),
        json!(ids),
        json!(["the sum"]),
        json!([ids]),
    ] {
        let request =
            json!({"model": "tiny", "prompt": prompt, "max_tokens": 6, "seed": 2, "logprobs": 2});
        let body = golden(server.post("/v1/completions", &request).json());
        assert_eq!(body["object"], "text_completion");
        assert_eq!(body["choices"][0]["text"], expected);
        let told = &body["choices"][0]["logprobs"];
        assert_eq!(told["tokens"].as_array().unwrap().len(), 6);
        assert_eq!(told["text_offset"][0], 0);
    }
    let request = json!({
        "model": "tiny", "prompt": ["the sum", "two"], "max_tokens": 6, "seed": 2, "n": 2, "stream": true,
        "stream_options": {"include_usage": true},
    });
    let events = server.post("/v1/completions", &request).events();
    let own = events
        .iter()
        .filter(|event| event["choices"][0]["index"] == 0);
    let pieces = own.filter_map(|event| event["choices"][0]["text"].as_str());
    assert_eq!(pieces.collect::<String>(), expected);
    let usage = &events.last().unwrap()["usage"];
    assert_eq!(usage["completion_tokens"], 24);
    let two = model.tokenizer.encode_ids("two", true).unwrap().len();
    assert_eq!(usage["prompt_tokens"], ids.len() + two);
}

#[test]
fn vectors_are_numbers_or_base64() {
    let server = serve(Limits::default(), &[]);
    let request = json!({"model": "other", "input": ["two", "three"], "encoding_format": "float"});
    let body = server.post("/v1/embeddings", &request).json();
    let vector: Vec<f64> = serde_json::from_value(body["data"][1]["embedding"].clone()).unwrap();
    assert_eq!(vector.len(), 32);
    let length: f64 = vector.iter().map(|x| x * x).sum();
    assert!((length - 1.0).abs() < 1e-5);
    let request = json!({"model": "other", "input": "three", "encoding_format": "base64"});
    let body = server.post("/v1/embeddings", &request).json();
    assert_eq!(
        body["data"][0]["embedding"].as_str().unwrap().len(),
        (32usize * 4).div_ceil(3) * 4
    );
    let wrong = server.post("/v1/embeddings", &json!({"model": "other", "input": [""]}));
    assert_eq!(wrong.status, 400, "{}", wrong.text());
}

#[test]
fn tokens_and_models() {
    let server = serve(Limits::default(), &[]);
    let request = json!({"model": "tiny", "prompt": "the sum é"});
    let body = server.post("/tokenize", &request).json();
    assert_eq!(body["max_model_len"], 512);
    let request = json!({"model": "tiny", "tokens": body["tokens"]});
    assert_eq!(
        server.post("/detokenize", &request).json()["prompt"],
        "the sum é"
    );
    let messages = json!({"model": "tiny", "messages": user("x")});
    let count = server.post("/tokenize", &messages).json()["count"].clone();
    assert_eq!(
        count,
        text_model(1)
            .chat_prompt(&[Message::user("x")])
            .unwrap()
            .len()
    );
    let models = server.get("/v1/models").json();
    let names: Vec<&str> = models["data"]
        .as_array()
        .unwrap()
        .iter()
        .map(|model| model["id"].as_str().unwrap())
        .collect();
    assert_eq!(names, ["tiny", "other"]);
    assert_eq!(server.get("/v1/models/other").json()["object"], "model");
    assert_eq!(server.get("/health").json(), json!({"status": "ok"}));
    assert!(server.get("/").text().contains("espalier"));
    assert!(server.figure("espalier_requests_in_flight") == 0.0);
    assert!(
        server
            .get("/metrics")
            .text()
            .contains("path=\"/tokenize\",status=\"200\"} 2")
    );
}

#[test]
fn tools_are_rendered_and_calls_read() {
    let server = serve(Limits::default(), &[]);
    let tools = json!([{"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}]);
    // A conversation that holds a call and its result is rendered too.
    let messages = json!([
        {"role": "user", "content": "1 and 2?"},
        {"role": "assistant", "content": null, "tool_calls": [
            {"id": "call_1", "type": "function", "function": {"name": "add", "arguments": "{\"a\": 41}"}}]},
        {"role": "tool", "tool_call_id": "call_1", "content": "3"},
    ]);
    let request = json!({"model": "tiny", "messages": messages, "tools": tools});
    let tokens = server.post("/tokenize", &request).json()["tokens"].clone();
    let text = server
        .post("/detokenize", &json!({"model": "tiny", "tokens": tokens}))
        .json();
    let text = text["prompt"].as_str().unwrap();
    assert!(
        text.contains("<tools>") && text.contains("<tool_call>41</tool_call>"),
        "{text}"
    );
    let mut request = request;
    request["max_tokens"] = 5.into();
    let body = server.post("/v1/chat/completions", &request).json();
    assert_eq!(body["choices"][0]["finish_reason"], "length", "{body}");
}
