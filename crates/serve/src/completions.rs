//! `/v1/completions`: texts that continue prompts, without a template.

use std::sync::Arc;

use axum::{body::Body, http::Response};
use espalier_engine::decode::Finish;
use serde_json::{Value, json};

use crate::{
    app::{App, Served, fresh_id, now},
    chat::{finite, reason, usage, usage_of},
    error::Refusal,
    fields::Fields,
    generation::{HARMLESS, begin, completion_logprobs, room, sampling, streaming},
    speech::{Said, Told},
    stream::{Events, Writer, collect, json as json_response, respond},
};

/// Most prompts of one request.
const MOST_PROMPTS: usize = 64;

/// New tokens where the request says nothing, as OpenAI has it.
const NEW_TOKENS: u64 = 16;

/// Continues prompts.
pub(crate) async fn complete(
    app: &Arc<App>,
    body: &[u8],
    client: u64,
) -> Result<Response<Body>, Refusal> {
    let mut fields = Fields::parse(body)?;
    let name = fields.text("model")?;
    let model = app.speaker(name.as_deref())?;
    let prompts = prompts(fields.need("prompt")?, model)?;
    let sampling = sampling(&mut fields, model, app.limits.choices)?;
    let logprobs = completion_logprobs(&mut fields)?;
    let (stream, with_usage) = streaming(&mut fields)?;
    let most = fields.count("max_tokens", 1..=u64::MAX)?;
    let most = most.unwrap_or(NEW_TOKENS);
    fields.neutral("echo", &[json!(false)], "the prompt is not repeated")?;
    fields.neutral(
        "suffix",
        &[json!("")],
        "texts are continued at their end alone",
    )?;
    let choices = sampling.choices;
    fields.neutral(
        "best_of",
        &[json!(choices)],
        "all answers are given; use `n`",
    )?;
    fields.finish(HARMLESS)?;
    let count = prompts.len();
    let prompts = prompts
        .into_iter()
        .map(|prompt| {
            let new = room(app, model, prompt.len(), Some(most))?;
            Ok((prompt, new))
        })
        .collect::<Result<Vec<_>, Refusal>>()?;
    let answers = begin(app, model, prompts, &sampling, logprobs, &[], client)?;
    let head = json!({
        "id": fresh_id("cmpl-"), "object": "text_completion", "created": now(), "model": model.name,
        "system_fingerprint": null,
    });
    if stream {
        let writer = TextWriter {
            head,
            usage: with_usage,
            logprobs: logprobs.is_some(),
            offsets: vec![0; answers.count],
            choices,
            tokens: [0; 3],
        };
        return respond(app, answers, writer).await;
    }
    let all = collect(app, answers).await?;
    let usage = usage_of(&all, count);
    let mut body = head;
    let choice = |(number, whole): (usize, crate::stream::Whole)| {
        let told = logprobs.map_or(Value::Null, |_| logprobs_json(&whole.told, &mut 0));
        let finish = whole.ended.map_or(Finish::Stopped, |ended| ended.finish);
        json!({"index": number, "text": whole.text, "logprobs": told, "finish_reason": reason(finish, false)})
    };
    body["choices"] = all.into_iter().enumerate().map(choice).collect();
    body["usage"] = usage;
    Ok(json_response(&body))
}

/// The prompts: a text, tokens, or a list of one of these.
fn prompts(value: Value, model: &Served) -> Result<Vec<Vec<u32>>, Refusal> {
    let wrong = || {
        Refusal::field(
            "prompt",
            format!("expected a text, tokens, or a list of at most {MOST_PROMPTS} of one of them"),
        )
    };
    let list = match value {
        Value::Array(list) if list.iter().all(Value::is_number) && !list.is_empty() => {
            vec![Value::Array(list)]
        }
        Value::Array(list) => list,
        text => vec![text],
    };
    if list.is_empty() || list.len() > MOST_PROMPTS {
        return Err(wrong());
    }
    list.into_iter()
        .map(|one| match one {
            Value::String(text) => model
                .tokenizer
                .encode_ids(&text, true)
                .map_err(|error| Refusal::field("prompt", error.to_string())),
            Value::Array(tokens) => token_ids(&tokens, model).ok_or_else(wrong),
            _ => Err(wrong()),
        })
        .collect()
}

/// Token ids of the vocabulary.
pub(crate) fn token_ids(tokens: &[Value], model: &Served) -> Option<Vec<u32>> {
    tokens
        .iter()
        .map(|token| {
            let id = u32::try_from(token.as_u64()?).ok()?;
            ((id as usize) < model.vocabulary).then_some(id)
        })
        .collect()
}

/// The older form: lists side by side. `offset` counts characters of the text.
fn logprobs_json(told: &[Told], offset: &mut usize) -> Value {
    let mut offsets = Vec::new();
    for one in told {
        offsets.push(*offset);
        *offset += one.token.text.chars().count();
    }
    let likeliest = |told: &Told| {
        let entries = told.likeliest.iter();
        let entries = entries.map(|token| (token.text.clone(), json!(finite(token.logprob))));
        Value::Object(entries.collect())
    };
    json!({
        "tokens": told.iter().map(|one| one.token.text.clone()).collect::<Vec<_>>(),
        "token_logprobs": told.iter().map(|one| finite(one.token.logprob)).collect::<Vec<_>>(),
        "top_logprobs": told.iter().map(likeliest).collect::<Vec<_>>(),
        "text_offset": offsets,
    })
}

/// Writes chunks.
struct TextWriter {
    head: Value,
    usage: bool,
    logprobs: bool,
    /// Characters of each answer so far.
    offsets: Vec<usize>,
    /// Answers to a prompt.
    choices: usize,
    tokens: [usize; 3],
}

impl TextWriter {
    fn chunk(&self, choices: Value) -> Value {
        let mut chunk = self.head.clone();
        chunk["choices"] = choices;
        if self.usage {
            chunk["usage"] = Value::Null;
        }
        chunk
    }
}

impl Writer for TextWriter {
    fn said(&mut self, number: usize, said: Said, events: &mut Events) {
        let (text, told, finish) = match said {
            Said::Piece(text, told) => (text, told, Value::Null),
            Said::End(ended) => {
                // A prompt counts once, however many answers it has.
                if number.is_multiple_of(self.choices) {
                    self.tokens[0] += ended.prompt;
                    self.tokens[1] += ended.cached;
                }
                self.tokens[2] += ended.generated;
                (
                    String::new(),
                    Vec::new(),
                    reason(ended.finish, false).into(),
                )
            }
            Said::Failed(_) => return,
        };
        let logprobs = match self.logprobs && !told.is_empty() {
            true => logprobs_json(&told, &mut self.offsets[number]),
            false => Value::Null,
        };
        let choice =
            json!([{"index": number, "text": text, "logprobs": logprobs, "finish_reason": finish}]);
        events.data(&self.chunk(choice));
    }

    fn end(&mut self, events: &mut Events) {
        if self.usage {
            let mut chunk = self.chunk(json!([]));
            chunk["usage"] = usage(self.tokens);
            events.data(&chunk);
        }
        events.done();
    }
}
