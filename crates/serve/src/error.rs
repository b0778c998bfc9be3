//! What a client is told when something is wrong: OpenAI's form, `{"error": {"message", "type", "param", "code"}}`, with a status.

use axum::{
    body::Body,
    http::{HeaderValue, Response, StatusCode, header},
};
use serde_json::{Value, json};

/// The crate's result.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why the server cannot begin.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The address cannot be listened at.
    #[error("{address}: {source}; choose another with `--host` or `--port`")]
    Listen {
        /// The address.
        address: String,
        /// The system's reason.
        source: std::io::Error,
    },
    /// The runtime or one of its threads.
    #[error("the server cannot run: {0}")]
    Runtime(#[from] std::io::Error),
    /// Two models of one name.
    #[error("two models are called `{0}`; give one of them another name: NAME=FOLDER")]
    TwiceNamed(String),
    /// No model.
    #[error("no model to serve")]
    NoModel,
}

/// A refusal.
#[derive(Debug, Clone, PartialEq)]
pub struct Refusal {
    status: StatusCode,
    kind: &'static str,
    code: Option<&'static str>,
    param: Option<String>,
    message: String,
    /// Seconds after which it may be tried again.
    retry: Option<u64>,
}

impl Refusal {
    fn new(status: StatusCode, kind: &'static str, message: impl Into<String>) -> Self {
        Self {
            status,
            kind,
            code: None,
            param: None,
            message: message.into(),
            retry: None,
        }
    }

    /// The request is wrong.
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "invalid_request_error", message)
    }

    /// A field of the request is wrong.
    pub fn field(name: &str, message: impl Into<String>) -> Self {
        Self::invalid(format!("`{name}`: {}", message.into())).at(name)
    }

    /// Names the field.
    #[must_use]
    pub fn at(mut self, name: &str) -> Self {
        self.param = Some(name.to_owned());
        self
    }

    /// Adds a word for programs.
    #[must_use]
    pub fn with_code(mut self, code: &'static str) -> Self {
        self.code = Some(code);
        self
    }

    /// What is asked for is too long for the model.
    pub fn context(message: impl Into<String>) -> Self {
        Self::invalid(message).with_code("context_length_exceeded")
    }

    /// No such model, path or thing.
    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, "invalid_request_error", message)
    }

    /// The path is there, the method is another.
    pub fn method() -> Self {
        let message = "this path wants another method";
        Self::new(
            StatusCode::METHOD_NOT_ALLOWED,
            "invalid_request_error",
            message,
        )
    }

    /// The key is wrong or missing.
    pub fn key(message: impl Into<String>) -> Self {
        Self::new(StatusCode::UNAUTHORIZED, "invalid_request_error", message)
            .with_code("invalid_api_key")
    }

    /// The request comes from another page.
    pub fn forbidden(message: impl Into<String>) -> Self {
        Self::new(StatusCode::FORBIDDEN, "invalid_request_error", message)
    }

    /// The body is too large.
    pub fn too_large(limit: usize) -> Self {
        let message =
            format!("the body is larger than {limit} bytes, which is this server's limit");
        Self::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            "invalid_request_error",
            message,
        )
    }

    /// The body does not come.
    pub fn slow() -> Self {
        let message = "the body did not come in time";
        Self::new(
            StatusCode::REQUEST_TIMEOUT,
            "invalid_request_error",
            message,
        )
    }

    /// The queue is full.
    pub fn busy() -> Self {
        let message = "the server has as many requests as it takes; try again later";
        let mut refusal = Self::new(StatusCode::TOO_MANY_REQUESTS, "rate_limit_error", message)
            .with_code("rate_limit_exceeded");
        refusal.retry = Some(1);
        refusal
    }

    /// The answer takes too long.
    pub fn timeout(seconds: u64) -> Self {
        let message = format!("the answer was not ready within {seconds} seconds");
        Self::new(StatusCode::GATEWAY_TIMEOUT, "timeout_error", message).with_code("timeout")
    }

    /// The server ends.
    pub fn closing() -> Self {
        let message = "the server is shutting down";
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "server_error", message)
    }

    /// The server's own fault.
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "server_error", message)
    }

    /// What the engine says of a request.
    pub fn of_engine(error: &espalier_engine::Error) -> Self {
        use espalier_engine::Error as Engine;
        match error {
            Engine::BeyondContext { .. } | Engine::PromptTooLong { .. } => {
                Self::context(error.to_string())
            }
            Engine::BeyondMemory { .. } => Self::context(error.to_string()),
            Engine::EmptyPrompt
            | Engine::EmptyText { .. }
            | Engine::Sampling(_)
            | Engine::Headless
            | Engine::Bidirectional
            | Engine::EncoderDecoder
            | Engine::Data(_)
            | Engine::Model(espalier_models::Error::Invalid(_)) => Self::invalid(error.to_string()),
            _ => Self::internal(error.to_string()),
        }
    }

    /// The status.
    pub fn status(&self) -> StatusCode {
        self.status
    }

    /// The sentence.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// OpenAI's form.
    pub fn to_json(&self) -> Value {
        json!({"error": {
            "message": self.message, "type": self.kind, "param": self.param, "code": self.code,
        }})
    }

    /// Anthropic's form.
    pub fn to_anthropic(&self) -> Value {
        let kind = match self.status {
            StatusCode::UNAUTHORIZED => "authentication_error",
            StatusCode::FORBIDDEN => "permission_error",
            StatusCode::NOT_FOUND => "not_found_error",
            StatusCode::PAYLOAD_TOO_LARGE => "request_too_large",
            StatusCode::TOO_MANY_REQUESTS => "rate_limit_error",
            StatusCode::SERVICE_UNAVAILABLE => "overloaded_error",
            StatusCode::GATEWAY_TIMEOUT => "timeout_error",
            status if status.is_server_error() => "api_error",
            _ => "invalid_request_error",
        };
        json!({"type": "error", "error": {"type": kind, "message": self.message}})
    }

    /// The response, in Anthropic's form where `anthropic`.
    pub fn response(&self, anthropic: bool) -> Response<Body> {
        let body = match anthropic {
            true => self.to_anthropic(),
            false => self.to_json(),
        };
        let mut response = Response::new(Body::from(body.to_string()));
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static("application/json"),
        );
        if let Some(seconds) = self.retry {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}
