//! Wrong requests: each has its status and a sentence in OpenAI's form, and the server goes on.

use std::{io::Write, time::Duration};

use espalier_engine::scheduler::Options;
use espalier_serve::Limits;
use serde_json::{Value, json};

use super::{
    client::{serve, serve_with},
    user,
};

#[test]
fn every_wrong_field_is_named() {
    let server = serve(Limits::default(), &[]);
    let cases: &[(&str, Value)] = &[
        ("temperature", json!(3)),
        ("temperature", json!("hot")),
        ("top_p", json!(-0.5)),
        ("n", json!(0)),
        ("n", json!(1_000_000)),
        ("n", json!(u64::MAX)),
        ("max_tokens", json!(0)),
        ("max_tokens", json!(-5)),
        ("max_tokens", json!(1.5)),
        ("stop", json!([""])),
        ("stop", json!(7)),
        ("seed", json!("x")),
        ("logit_bias", json!({"999999": 1})),
        ("logit_bias", json!({"x": 1})),
        ("logit_bias", json!({"3": 101})),
        ("top_logprobs", json!(3)),
        ("stream", json!("yes")),
        ("stream_options.x", json!(null)),
        ("tools", json!({})),
        ("tool_choice", json!("required")),
        ("response_format", json!({"type": "json_object"})),
        ("messages", json!([])),
        ("messages", json!("hello")),
        ("messages[0]", json!([{"role": "robot", "content": "x"}])),
        ("messages[0]", json!([{"role": "user"}])),
        (
            "messages[0]",
            json!([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]),
        ),
        ("temprature", json!(0.5)),
        ("audio", json!({"voice": "x"})),
    ];
    for (name, value) in cases {
        let mut request = json!({"model": "tiny", "messages": user("x"), "max_tokens": 2});
        match *name {
            "stream_options.x" => request["stream_options"] = json!({"x": 1}),
            "messages[0]" => request["messages"] = value.clone(),
            name => request[name] = value.clone(),
        }
        let reply = server.post("/v1/chat/completions", &request);
        assert_eq!(reply.status, 400, "{name}: {}", reply.text());
        assert!(
            reply.error().contains(&format!("`{name}`")),
            "{name}: {}",
            reply.error()
        );
        let param = reply.json()["error"]["param"].clone();
        assert_eq!(param, *name, "{value}");
    }
    let fine = json!({
        "model": "tiny", "messages": user("x"), "max_tokens": 2, "user": "u", "response_format": {"type": "text"},
        "stop": null, "tools": [], "metadata": {"a": "b"}, "presence_penalty": 0.5, "top_p": 0,
    });
    assert_eq!(server.post("/v1/chat/completions", &fine).status, 200);
}

#[test]
fn bodies_that_are_none() {
    let limits = Limits {
        body: 10_000,
        arrival: Duration::from_millis(300),
        ..Limits::default()
    };
    let server = serve(limits, &[]);
    let post = |body: &[u8]| server.send("POST", "/v1/chat/completions", &[], body);
    for body in [
        &b""[..],
        b"{",
        b"[]",
        b"null",
        b"\"text\"",
        b"{\"model\": \"tiny\", \"messages\": [}",
        b"{\"model\": \"\xff\xfe\"}",
        b"\x00\x01\x02",
    ] {
        let reply = post(body);
        assert_eq!(reply.status, 400, "{body:?}");
        assert!(
            reply.error().starts_with("the body is"),
            "{}",
            reply.error()
        );
    }
    let deep = "[".repeat(5000);
    assert_eq!(post(deep.as_bytes()).status, 400);
    let large = post(&vec![b' '; 10_001]);
    assert_eq!(large.status, 413, "{}", large.text());
    assert!(large.error().contains("10000 bytes"));
    // A body that is announced and does not come.
    let mut stream = server.open("POST", "/v1/completions", &[("X-Slow", "1")], b"");
    drop(stream.write_all(b""));
    let head = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 50\r\nConnection: close\r\n\r\n{";
    let mut slow = std::net::TcpStream::connect(server.address).unwrap();
    slow.write_all(head.as_bytes()).unwrap();
    let mut bytes = Vec::new();
    std::io::Read::read_to_end(&mut slow, &mut bytes).unwrap();
    assert_eq!(super::client::Reply::parse(&bytes).status, 408);
    // A chunked body without end is cut at the limit.
    let head = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n";
    let mut endless = std::net::TcpStream::connect(server.address).unwrap();
    endless.write_all(head.as_bytes()).unwrap();
    for _ in 0..20 {
        let chunk = format!("400\r\n{}\r\n", "x".repeat(0x400));
        if endless.write_all(chunk.as_bytes()).is_err() {
            break;
        }
    }
    let mut bytes = Vec::new();
    let _ = std::io::Read::read_to_end(&mut endless, &mut bytes);
    assert_eq!(super::client::Reply::parse(&bytes).status, 413);
    assert_eq!(server.get("/health").status, 200);
}

#[test]
fn paths_models_and_keys() {
    let server = serve(Limits::default(), &["secret", "other"]);
    let request = json!({"model": "tiny", "messages": user("x"), "max_tokens": 2}).to_string();
    let post = |headers: &[(&str, &str)]| {
        server.send("POST", "/v1/chat/completions", headers, request.as_bytes())
    };
    for headers in [
        &[][..],
        &[("Authorization", "Bearer wrong")],
        &[("Authorization", "Bearer secre")],
        &[("Authorization", "Bearer secret1")],
        &[("Authorization", "Basic secret")],
        &[("Authorization", "Bearer")],
        &[("x-api-key", "")],
    ] {
        let reply = post(headers);
        assert_eq!(reply.status, 401, "{headers:?}");
        assert!(reply.error().contains("API key"), "{}", reply.error());
    }
    assert_eq!(post(&[("Authorization", "bearer secret")]).status, 200);
    assert_eq!(post(&[("x-api-key", "other")]).status, 200);
    assert_eq!(server.get("/v1/models").status, 401);
    assert_eq!(server.get("/metrics").status, 401);
    assert_eq!(server.get("/health").status, 200);
    assert_eq!(server.get("/nowhere").status, 404);
    assert_eq!(server.get("/v1/chat/completions").status, 405);
    assert_eq!(server.send("POST", "/health", &[], b"").status, 405);

    let server = serve(Limits::default(), &[]);
    let unknown = server.post(
        "/v1/chat/completions",
        &json!({"model": "gpt-4", "messages": user("x")}),
    );
    assert_eq!(unknown.status, 404);
    assert!(
        unknown.error().contains("`tiny`, `other`"),
        "{}",
        unknown.error()
    );
    assert_eq!(unknown.json()["error"]["code"], "model_not_found");
    let none = server.post("/v1/chat/completions", &json!({"messages": user("x")}));
    assert_eq!(none.status, 400);
    assert_eq!(server.get("/v1/models/none").status, 404);
    // Pages of other places, and other names that lead here.
    let evil = [("Origin", "http://evil.example")];
    assert_eq!(server.send("GET", "/v1/models", &evil, b"").status, 403);
    let turned = [("Host", "evil.example:80")];
    assert_eq!(server.send("GET", "/v1/models", &turned, b"").status, 403);
    let own = format!("http://{}", server.address);
    assert_eq!(
        server
            .send("GET", "/v1/models", &[("Origin", &own)], b"")
            .status,
        200
    );
}

#[test]
fn what_is_too_long_is_refused() {
    let server = serve(Limits::default(), &[]);
    let long =
        json!({"model": "tiny", "messages": user(&"two and three ".repeat(300)), "max_tokens": 2});
    let reply = server.post("/v1/chat/completions", &long);
    assert_eq!(reply.status, 400);
    assert_eq!(reply.json()["error"]["code"], "context_length_exceeded");
    // An answer has the room that is left.
    let rest = json!({"model": "tiny", "messages": user("x"), "max_tokens": 100_000, "seed": 1});
    let body = server.post("/v1/chat/completions", &rest).json();
    assert!(
        body["usage"]["total_tokens"].as_u64().unwrap() <= 512,
        "{body}"
    );
    let small = Options {
        memory: 20_000,
        ..Options::default()
    };
    let server = serve_with(Limits::default(), &[], small);
    let reply = server.post(
        "/v1/chat/completions",
        &json!({"model": "tiny", "messages": user("x")}),
    );
    assert_eq!(reply.status, 400, "{}", reply.text());
    assert!(
        reply.error().contains("the budget is 20000"),
        "{}",
        reply.error()
    );
}
