//! `/v1/embeddings`.

use std::sync::Arc;

use axum::{body::Body, http::Response};
use base64::{Engine, engine::general_purpose::STANDARD};
use espalier_data::tokenizer::Tokenizer;
use espalier_engine::{
    embed::{embed, normalised},
    sentence_transformers::SentenceTransformer,
};
use espalier_models::{model::LanguageModel, pooling::Pooling};
use serde_json::{Value, json};

use crate::{
    app::{App, Served},
    completions::token_ids,
    error::Refusal,
    fields::Fields,
    generation::HARMLESS,
    stream::json as json_response,
};

/// Most texts of one request, as OpenAI has it.
const MOST_TEXTS: usize = 2048;

/// Texts that are computed together.
const BATCH: usize = 16;

/// What is to be turned into vectors.
enum Texts {
    Texts(Vec<String>),
    Tokens(Vec<Vec<u32>>),
}

/// Vectors of texts, as `espalier embed` makes them.
pub(crate) async fn vectors(app: &Arc<App>, body: &[u8]) -> Result<Response<Body>, Refusal> {
    let mut fields = Fields::parse(body)?;
    let name = fields.text("model")?;
    let model = app.model(name.as_deref())?;
    let texts = texts(fields.need("input")?, model)?;
    let base64 = match fields.text("encoding_format")?.as_deref() {
        None | Some("float") => false,
        Some("base64") => true,
        Some(_) => {
            return Err(Refusal::field(
                "encoding_format",
                "expected float or base64",
            ));
        }
    };
    if let Some(value) = fields.take("dimensions") {
        return Err(Refusal::field(
            "dimensions",
            format!("{value}: vectors have the model's own length"),
        )
        .with_code("unsupported_value"));
    }
    fields.finish(HARMLESS)?;
    let _ticket = app.enter(1)?;
    let (tokenizer, embedder, context) = (
        model.tokenizer.clone(),
        model.embedder.clone(),
        model.context,
    );
    let work =
        move |model: &LanguageModel| compute(model, &tokenizer, embedder.as_ref(), context, &texts);
    let vectors = app.compute(model.number, work).await??;
    let tokens: usize = vectors.iter().map(|(_, tokens)| tokens).sum();
    let entry = |(number, (vector, _)): (usize, &(Vec<f32>, usize))| {
        let embedding = match base64 {
            true => {
                let bytes: Vec<u8> = vector.iter().flat_map(|x| x.to_le_bytes()).collect();
                STANDARD.encode(bytes).into()
            }
            false => json!(vector),
        };
        json!({"object": "embedding", "index": number, "embedding": embedding})
    };
    Ok(json_response(&json!({
        "object": "list", "model": model.name, "data": vectors.iter().enumerate().map(entry).collect::<Vec<_>>(),
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    })))
}

fn texts(value: Value, model: &Served) -> Result<Texts, Refusal> {
    let wrong = || {
        let expected =
            format!("expected a text, tokens, or a list of at most {MOST_TEXTS} of one of them");
        Refusal::field("input", expected)
    };
    let list = match value {
        Value::String(text) => return Ok(Texts::Texts(vec![text])),
        Value::Array(list) if !list.is_empty() && list.len() <= MOST_TEXTS => list,
        _ => return Err(wrong()),
    };
    if list.iter().all(Value::is_number) {
        let ids = token_ids(&list, model).ok_or_else(wrong)?;
        return Ok(Texts::Tokens(vec![ids]));
    }
    if list.iter().all(Value::is_array) {
        let ids = |one: &Value| token_ids(one.as_array()?, model);
        let all: Option<_> = list.iter().map(ids).collect();
        return all.map(Texts::Tokens).ok_or_else(wrong);
    }
    let text = |one: Value| match one {
        Value::String(text) => Ok(text),
        _ => Err(wrong()),
    };
    list.into_iter()
        .map(text)
        .collect::<Result<_, _>>()
        .map(Texts::Texts)
}

/// The vectors with the tokens of each text.
fn compute(
    model: &LanguageModel,
    tokenizer: &Tokenizer,
    embedder: Option<&SentenceTransformer>,
    context: usize,
    texts: &Texts,
) -> Result<Vec<(Vec<f32>, usize)>, Refusal> {
    let refused = |error: espalier_engine::Error| Refusal::of_engine(&error);
    let ids = match texts {
        Texts::Texts(texts) => {
            if let Some(embedder) = embedder {
                let prompt = embedder.prompt(None).map_err(refused)?;
                return embedder
                    .embed(model, tokenizer, texts, prompt, BATCH)
                    .map_err(refused);
            }
            texts
                .iter()
                .map(|text| tokenizer.encode_ids(text, true))
                .collect::<Result<Vec<_>, _>>()
                .map_err(|error| Refusal::field("input", error.to_string()))?
        }
        Texts::Tokens(_) if embedder.is_some() => {
            return Err(Refusal::field(
                "input",
                "this model puts a text of its own before what it reads; give texts, not tokens",
            ));
        }
        Texts::Tokens(ids) => ids.clone(),
    };
    if let Some(place) = ids.iter().position(|ids| ids.len() > context) {
        return Err(Refusal::context(format!(
            "text {} has {} tokens, but this model's context is {context}",
            place + 1,
            ids[place].len()
        )));
    }
    let vectors = embed(model, &ids, Pooling::default(), BATCH).map_err(refused)?;
    let vectors = vectors.iter().map(|vector| normalised(vector));
    Ok(vectors.zip(ids.iter().map(Vec::len)).collect())
}
