//! Many clients, clients that leave, full queues, and the end.

use std::{
    io::Read,
    thread,
    time::{Duration, Instant},
};

use espalier_engine::scheduler::Options;
use espalier_serve::Limits;
use serde_json::{Value, json};

use super::{
    client::{Reply, serve, serve_with},
    drawn, engine, user,
};

/// An answer that takes as long as the context allows, with ends forbidden.
fn endless(stream: bool) -> Value {
    let end = super::text_model(1).end_tokens()[0].to_string();
    json!({"model": "tiny", "messages": user("x"), "max_tokens": 450, "stream": stream, "logit_bias": {end: -100}})
}

/// Waits until this is so.
fn eventually(what: &str, mut so: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !so() {
        assert!(begun.elapsed() < Duration::from_secs(30), "never: {what}");
        thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn whoever_leaves_ends_the_work() {
    for stream in [true, false] {
        let server = serve(Limits::default(), &[]);
        let clients: Vec<_> = (0..4)
            .map(|_| {
                let body = endless(stream).to_string();
                let mut client = server.open("POST", "/v1/chat/completions", &[], body.as_bytes());
                if stream {
                    client.read_exact(&mut [0; 200]).unwrap();
                }
                client
            })
            .collect();
        eventually("the requests are under way", || {
            server.figure("espalier_requests_in_flight ") >= 1.0
        });
        drop(clients);
        eventually("nothing is under way", || {
            server.figure("espalier_requests_in_flight ") == 0.0
                && server.figure("espalier_decoding_requests{model=\"tiny\"}") == 0.0
        });
        let generated = server.figure("espalier_generated_tokens_total{model=\"tiny\"}");
        thread::sleep(Duration::from_millis(100));
        assert_eq!(
            server.figure("espalier_generated_tokens_total{model=\"tiny\"}"),
            generated
        );
        assert!(generated < 4.0 * 450.0, "{generated}");
    }
}

#[test]
fn a_full_queue_says_so() {
    let limits = Limits {
        in_flight: 3,
        ..Limits::default()
    };
    let server = serve(limits, &[]);
    let body = endless(true).to_string();
    let clients: Vec<_> = (0..3)
        .map(|_| server.open("POST", "/v1/chat/completions", &[], body.as_bytes()))
        .collect();
    eventually("three are under way", || {
        server.figure("espalier_requests_in_flight ") == 3.0
    });
    let reply = server.post(
        "/v1/chat/completions",
        &json!({"model": "tiny", "messages": user("x")}),
    );
    assert_eq!(reply.status, 429);
    assert!(
        reply.head.to_lowercase().contains("retry-after: 1"),
        "{}",
        reply.head
    );
    assert_eq!(reply.json()["error"]["code"], "rate_limit_exceeded");
    drop(clients);
    eventually("there is room again", || {
        let request = json!({"model": "tiny", "messages": user("x"), "max_tokens": 1});
        server.post("/v1/chat/completions", &request).status == 200
    });
}

#[test]
fn answers_have_their_time() {
    let limits = Limits {
        answer: Duration::from_millis(1),
        ..Limits::default()
    };
    let server = serve(limits, &[]);
    let reply = server.post("/v1/chat/completions", &endless(false));
    assert_eq!(reply.status, 504, "{}", reply.text());
    assert!(reply.error().contains("not ready within"));
}

#[test]
fn the_end_waits_for_what_is_under_way() {
    let mut server = serve(Limits::default(), &[]);
    let body = endless(true).to_string();
    let mut client = server.open("POST", "/v1/chat/completions", &[], body.as_bytes());
    let mut bytes = vec![0; 100];
    client.read_exact(&mut bytes).unwrap();
    server.stop();
    client.read_to_end(&mut bytes).unwrap();
    let events = Reply::parse(&bytes).events();
    let last = &events.last().unwrap()["choices"][0];
    assert_eq!(last["finish_reason"], "length", "{last}");
    server.join();
    assert!(std::net::TcpStream::connect(server.address).is_err());
}

/// Resident memory in bytes, where the system tells.
fn resident() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmRSS:"))?;
    let kilobytes: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kilobytes << 10)
}

/// What sixteen clients do for a while: good requests, wrong ones, ones that are left.
fn torment(server: &super::client::Running, number: usize, until: Instant) -> usize {
    let mut answers = 0;
    let mut turn = number;
    while Instant::now() < until {
        turn += 7;
        match turn % 8 {
            0 => {
                let body = endless(true).to_string();
                let mut client = server.open("POST", "/v1/chat/completions", &[], body.as_bytes());
                let _ = client.read(&mut [0; 60]);
            }
            1 => {
                let body = endless(false).to_string();
                drop(server.open("POST", "/v1/chat/completions", &[], body.as_bytes()));
            }
            2 => assert_eq!(
                server
                    .send("POST", "/v1/completions", &[], b"{\"\xff")
                    .status,
                400
            ),
            3 => {
                let request = json!({"model": "tiny", "messages": user("x"), "n": 1_000_000});
                assert_eq!(server.post("/v1/chat/completions", &request).status, 400);
            }
            4 => {
                let large = vec![b'x'; 200_000];
                assert_eq!(
                    server.send("POST", "/v1/completions", &[], &large).status,
                    413
                );
            }
            _ => {
                let new = 1 + turn % 30;
                let text = "two and ".repeat(turn % 12);
                let request = json!({
                    "model": "tiny", "messages": user(&text), "max_tokens": new, "seed": turn, "stream": turn.is_multiple_of(3),
                });
                let reply = server.post("/v1/chat/completions", &request);
                assert_eq!(reply.status, 200, "{}", reply.text());
                let said = match turn % 3 {
                    0 => {
                        let events = reply.events();
                        let deltas = events.iter();
                        deltas
                            .filter_map(|event| event["choices"][0]["delta"]["content"].as_str())
                            .collect::<String>()
                    }
                    _ => {
                        let body = reply.json();
                        body["choices"][0]["message"]["content"]
                            .as_str()
                            .unwrap()
                            .to_owned()
                    }
                };
                // Now and then the answer is compared with the engine's own.
                if turn.is_multiple_of(5) {
                    assert_eq!(said, engine(&text, new, drawn(turn as u64), &[]).text);
                }
                answers += 1;
            }
        }
    }
    answers
}

#[test]
fn sixteen_clients_of_all_kinds() {
    let limits = Limits {
        body: 100_000,
        ..Limits::default()
    };
    let options = Options {
        memory: 4 << 20,
        rows: 8,
        chunk: 32,
        ..Options::default()
    };
    let server = serve_with(limits, &[], options);
    let seconds = std::env::var("ESPALIER_SERVE_SECONDS")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(6);
    let round = |seconds: u64| -> usize {
        let until = Instant::now() + Duration::from_secs(seconds);
        thread::scope(|scope| {
            let clients: Vec<_> = (0..16)
                .map(|number| {
                    let server = &server;
                    scope.spawn(move || torment(server, number, until))
                })
                .collect();
            clients
                .into_iter()
                .map(|client| client.join().unwrap())
                .sum()
        })
    };
    assert!(round(seconds) > 16);
    let before = resident();
    assert!(round(seconds) > 16);
    eventually("nothing is under way", || {
        server.figure("espalier_requests_in_flight ") == 0.0
    });
    if let (Some(before), Some(after)) = (before, resident()) {
        let grown = after.saturating_sub(before);
        assert!(grown < 48 << 20, "grown by {} MiB", grown >> 20);
    }
    assert!(server.figure("espalier_cache_bytes{model=\"tiny\"}") <= 4.0 * 1024.0 * 1024.0);
}
