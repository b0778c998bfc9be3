//! Paths, keys, and what is checked of every request before it is looked at.

use std::{
    hash::{DefaultHasher, Hash, Hasher},
    net::SocketAddr,
    sync::{Arc, atomic::Ordering},
    time::Instant,
};

use axum::{
    Router,
    body::{Body, Bytes, to_bytes},
    extract::{ConnectInfo, Request, State},
    http::{HeaderMap, Method, Response, StatusCode, header},
};
use serde_json::json;
use tokio::time::timeout;

use crate::{
    app::App, chat, completions, embeddings, error::Refusal, messages, page, responses,
    stream::json as json_response, tokens,
};

/// All paths lead to one function, which knows them: so every answer, and every refusal, is made and counted in one place.
pub(crate) fn router(app: Arc<App>) -> Router {
    Router::new().fallback(answer).with_state(app)
}

/// Paths, each with its method.
const PATHS: [(&str, Method); 12] = [
    ("/", Method::GET),
    ("/health", Method::GET),
    ("/metrics", Method::GET),
    ("/v1/models", Method::GET),
    ("/v1/chat/completions", Method::POST),
    ("/v1/completions", Method::POST),
    ("/v1/responses", Method::POST),
    ("/v1/messages", Method::POST),
    ("/v1/embeddings", Method::POST),
    ("/tokenize", Method::POST),
    ("/detokenize", Method::POST),
    ("/v1/models/", Method::GET),
];

async fn answer(
    State(app): State<Arc<App>>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    request: Request,
) -> Response<Body> {
    let begun = Instant::now();
    let method = request.method().clone();
    let path = known(request.uri().path());
    let anthropic = path == Some("/v1/messages");
    let response = match route(&app, peer, path, request).await {
        Ok(response) => response,
        Err(refusal) => refusal.response(anthropic),
    };
    let (path, status) = (path.unwrap_or("other"), response.status().as_u16());
    let took = begun.elapsed();
    app.metrics.request(path, status, took);
    let line = json!({
        "method": method.as_str(), "path": path, "status": status, "milliseconds": took.as_millis() as u64,
    });
    (app.log)(&line.to_string());
    response
}

/// The path as it is counted: one of ours.
fn known(path: &str) -> Option<&'static str> {
    let ours = |(own, _): &&(&'static str, Method)| match own.ends_with('/') && own.len() > 1 {
        true => path.starts_with(own),
        false => path == *own,
    };
    PATHS.iter().find(ours).map(|(own, _)| *own)
}

async fn route(
    app: &Arc<App>,
    peer: SocketAddr,
    path: Option<&'static str>,
    request: Request,
) -> Result<Response<Body>, Refusal> {
    check_origin(app, request.headers())?;
    let Some(path) = path else {
        let paths: Vec<&str> = PATHS.iter().map(|(path, _)| *path).collect();
        return Err(Refusal::not_found(format!(
            "no such path; there are {}",
            paths.join(", ")
        )));
    };
    let wanted = PATHS.iter().find(|(own, _)| *own == path);
    if wanted.is_none_or(|(_, method)| method != request.method()) {
        return Err(Refusal::method());
    }
    match path {
        "/" => return Ok(page::page()),
        "/health" => return Ok(health(app)),
        _ => {}
    }
    let client = check_key(app, request.headers(), peer)?;
    match path {
        "/metrics" => return Ok(plain(app.figures())),
        "/v1/models" => return Ok(tokens::list(app)),
        "/v1/models/" => {
            let name = request.uri().path().trim_start_matches("/v1/models/");
            return tokens::one(app, &unescaped(name));
        }
        _ => {}
    }
    let body = body(app, request).await?;
    match path {
        "/v1/chat/completions" => chat::chat(app, &body, client).await,
        "/v1/completions" => completions::complete(app, &body, client).await,
        "/v1/responses" => responses::answer(app, &body, client).await,
        "/v1/messages" => messages::answer(app, &body, client).await,
        "/v1/embeddings" => embeddings::vectors(app, &body).await,
        "/tokenize" => tokens::tokenize(app, &body),
        _ => tokens::detokenize(app, &body),
    }
}

/// The body, within its limits.
async fn body(app: &App, request: Request) -> Result<Bytes, Refusal> {
    let limit = app.limits.body;
    let announced = request
        .headers()
        .get(header::CONTENT_LENGTH)
        .and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
    if announced.is_some_and(|length| length > limit as u64) {
        return Err(Refusal::too_large(limit));
    }
    match timeout(app.limits.arrival, to_bytes(request.into_body(), limit)).await {
        Err(_) => Err(Refusal::slow()),
        Ok(Ok(body)) => Ok(body),
        Ok(Err(_)) => Err(Refusal::too_large(limit)),
    }
}

/// Pages of other places may not ask, nor may names that were turned to this machine.
fn check_origin(app: &App, headers: &HeaderMap) -> Result<(), Refusal> {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
    let host = text(header::HOST).unwrap_or_default();
    if app.loopback && !host.is_empty() && !is_loopback(host) {
        return Err(Refusal::forbidden(format!(
            "this server is for this machine, and `{host}` is another name; begin it with `--host 0.0.0.0` to serve others"
        )));
    }
    let Some(origin) = text(header::ORIGIN) else {
        return Ok(());
    };
    match origin
        .split_once("://")
        .is_some_and(|(_, place)| place == host)
    {
        true => Ok(()),
        false => Err(Refusal::forbidden(
            "pages of other places may not use this server",
        )),
    }
}

fn is_loopback(host: &str) -> bool {
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next(),
        None => host.split(':').next(),
    };
    ["localhost", "127.0.0.1", "::1"].contains(&name.unwrap_or_default())
}

/// Whose request it is: the key's, or the peer's address where no keys are asked for.
fn check_key(app: &App, headers: &HeaderMap, peer: SocketAddr) -> Result<u64, Refusal> {
    let mut hasher = DefaultHasher::new();
    if app.keys.is_empty() {
        // Connections of one machine are clients of their own.
        peer.hash(&mut hasher);
        return Ok(hasher.finish());
    }
    let bearer = headers.get(header::AUTHORIZATION).and_then(|value| {
        let (scheme, key) = value.to_str().ok()?.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then_some(key.trim())
    });
    // Anthropic's clients have a header of their own.
    let given = bearer.or(headers.get("x-api-key").and_then(|key| key.to_str().ok()));
    let Some(given) = given else {
        return Err(Refusal::key("no API key: send `Authorization: Bearer KEY`"));
    };
    // All keys are compared whole, so that the time says nothing.
    let equal = |key: &String| {
        let (key, given) = (key.as_bytes(), given.as_bytes());
        let differ = key.iter().zip(given).fold(0, |all, (a, b)| all | (a ^ b));
        differ == 0 && key.len() == given.len()
    };
    match app.keys.iter().filter(|key| equal(key)).count() {
        0 => Err(Refusal::key("the API key is not one of this server's")),
        _ => {
            given.hash(&mut hasher);
            Ok(hasher.finish())
        }
    }
}

fn health(app: &App) -> Response<Body> {
    let closing = app.closing.load(Ordering::Relaxed);
    let status = if closing { "closing" } else { "ok" };
    let mut response = json_response(&json!({"status": status}));
    if closing {
        *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
    }
    response
}

fn plain(text: String) -> Response<Body> {
    let mut response = Response::new(Body::from(text));
    let kind = header::HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}

/// A path's part without its %-escapes.
fn unescaped(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((first, behind)) = rest.split_first() {
        let hex = behind
            .get(..2)
            .and_then(|hex| std::str::from_utf8(hex).ok());
        let byte = hex.and_then(|hex| u8::from_str_radix(hex, 16).ok());
        match (first, byte) {
            (b'%', Some(byte)) => {
                bytes.push(byte);
                rest = &behind[2..];
            }
            _ => {
                bytes.push(*first);
                rest = behind;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_this_machine_are_known() {
        for host in ["localhost:8000", "127.0.0.1", "[::1]:80"] {
            assert!(is_loopback(host), "{host}");
        }
        for host in ["evil.example:8000", "127.0.0.1.evil.example", "[::2]"] {
            assert!(!is_loopback(host), "{host}");
        }
        assert_eq!(unescaped("a%2Fb%20c%zz%2"), "a/b c%zz%2");
    }
}
