//! `/tokenize` and `/detokenize`, as vLLM has them, and `/v1/models`.

use std::sync::Arc;

use axum::{body::Body, http::Response};
use serde_json::{Value, json};

use crate::{
    app::{App, Served},
    completions::token_ids,
    conversation::{Asked, messages, tools},
    error::Refusal,
    fields::Fields,
    stream::json as json_response,
};

/// Token ids of a `prompt`, or of `messages` as the template renders them.
pub(crate) fn tokenize(app: &Arc<App>, body: &[u8]) -> Result<Response<Body>, Refusal> {
    let mut fields = Fields::parse(body)?;
    let name = fields.text("model")?;
    let model = app.model(name.as_deref())?;
    let special = fields.flag("add_special_tokens")?.unwrap_or(true);
    let prompt = fields.text("prompt")?;
    let conversation = fields.take("messages");
    let ids = match (prompt, conversation) {
        (Some(prompt), None) => model
            .tokenizer
            .encode_ids(&prompt, special)
            .map_err(|error| Refusal::field("prompt", error.to_string()))?,
        (None, Some(value)) => {
            let asked = Asked {
                messages: messages(value)?,
                tools: tools(fields.take("tools"))?,
            };
            asked.prompt(model)?
        }
        _ => return Err(Refusal::invalid("give either `prompt` or `messages`")),
    };
    fields.finish(&[])?;
    Ok(json_response(&json!({
        "count": ids.len(), "max_model_len": model.context, "tokens": ids,
    })))
}

/// The text of token ids.
pub(crate) fn detokenize(app: &Arc<App>, body: &[u8]) -> Result<Response<Body>, Refusal> {
    let mut fields = Fields::parse(body)?;
    let name = fields.text("model")?;
    let model = app.model(name.as_deref())?;
    let tokens = fields.need("tokens")?;
    fields.finish(&[])?;
    let wrong = || {
        let expected = format!("expected token ids below {}", model.vocabulary);
        Refusal::field("tokens", expected)
    };
    let list = tokens.as_array().ok_or_else(wrong)?;
    let ids = token_ids(list, model).ok_or_else(wrong)?;
    let text = model
        .tokenizer
        .decode(&ids, false)
        .map_err(|error| Refusal::field("tokens", error.to_string()))?;
    Ok(json_response(&json!({"prompt": text})))
}

/// The models by name.
pub(crate) fn list(app: &App) -> Response<Body> {
    let data: Vec<Value> = app.models.iter().map(shown).collect();
    json_response(&json!({"object": "list", "data": data}))
}

/// One model.
pub(crate) fn one(app: &App, name: &str) -> Result<Response<Body>, Refusal> {
    app.model(Some(name))
        .map(|model| json_response(&shown(model)))
}

fn shown(model: &Served) -> Value {
    json!({
        "id": model.name, "object": "model", "created": model.created, "owned_by": "espalier",
        "max_model_len": model.context, "generates": model.silent.is_none(),
        "converses": model.silent.is_none() && model.tokenizer.template().is_some(),
    })
}
