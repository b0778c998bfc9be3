//! What all ways to ask for text have in common: the fields of sampling, and the start of the answers.

use std::{sync::Arc, time::Instant};

use espalier_engine::{answer::AnswerText, sampler::SamplerOptions, scheduler::Request};
use serde_json::Value;
use tokio::sync::mpsc::unbounded_channel;

use crate::{
    app::{App, InFlight, Served, random},
    error::Refusal,
    fields::Fields,
    host::Command,
    speech::{Heard, Speaker, Waiting},
};

/// Most stop strings.
const MOST_STOPS: usize = 16;

/// Most of the likeliest tokens that are told of.
const MOST_LOGPROBS: u64 = 20;

/// Fields that change no answer.
pub(crate) const HARMLESS: &[&str] = &[
    "user",
    "metadata",
    "store",
    "service_tier",
    "safety_identifier",
    "prompt_cache_key",
    "prompt_cache_retention",
];

/// How answers are made.
#[derive(Debug, Clone)]
pub(crate) struct Sampling {
    pub sampler: SamplerOptions,
    pub stops: Vec<String>,
    pub choices: usize,
    pub priority: i32,
}

/// Reads the fields of sampling that OpenAI's ways to ask share, and those that vLLM and llama.cpp have besides: `top_k`, `min_p`,
/// `repetition_penalty`, `priority`.
pub(crate) fn sampling(
    fields: &mut Fields,
    model: &Served,
    most: usize,
) -> Result<Sampling, Refusal> {
    let mut sampler = model.sampler.clone();
    if let Some(temperature) = fields.number("temperature", 0.0..=2.0)? {
        sampler.temperature = temperature as f32;
    }
    if let Some(top_p) = fields.number("top_p", 0.0..=1.0)? {
        // OpenAI's clients send 0 for the likeliest token alone.
        sampler.top_p = (top_p as f32).max(f32::MIN_POSITIVE);
    }
    if let Some(top_k) = fields.take("top_k") {
        sampler.top_k = match top_k.as_i64() {
            Some(-1) => 0,
            Some(count) if count >= 0 => count as usize,
            _ => {
                return Err(Refusal::field(
                    "top_k",
                    "expected a whole number; 0 or -1 is off",
                ));
            }
        };
    }
    if let Some(min_p) = fields.number("min_p", 0.0..=1.0)? {
        sampler.min_p = min_p as f32;
    }
    if let Some(penalty) = fields.number("repetition_penalty", 0.01..=100.0)? {
        sampler.repetition_penalty = penalty as f32;
    }
    sampler.seed = seed(fields)?;
    sampler.logit_bias.extend(bias(fields, model)?);
    if let Some(penalty) = fields.number("presence_penalty", -2.0..=2.0)? {
        sampler.presence_penalty = penalty as f32;
    }
    if let Some(penalty) = fields.number("frequency_penalty", -2.0..=2.0)? {
        sampler.frequency_penalty = penalty as f32;
    }
    let mut stops = model.stops.clone();
    for stop in fields.texts("stop", MOST_STOPS)? {
        match stop.is_empty() {
            true => return Err(Refusal::field("stop", "an empty text ends nothing")),
            false => stops.push(stop),
        }
    }
    let choices = fields.count("n", 1..=most as u64)?.unwrap_or(1) as usize;
    let priority = fields.number("priority", -1000.0..=1000.0)?;
    Ok(Sampling {
        sampler,
        stops,
        choices,
        priority: priority.unwrap_or(0.0) as i32,
    })
}

/// The seed; a fresh one where none is given.
fn seed(fields: &mut Fields) -> Result<u64, Refusal> {
    match fields.take("seed") {
        None => Ok(random()),
        Some(Value::Number(number)) if number.is_u64() || number.is_i64() => {
            let signed = number.as_i64().map(|seed| seed as u64);
            Ok(number.as_u64().or(signed).unwrap_or_default())
        }
        Some(_) => Err(Refusal::field("seed", "expected a whole number")),
    }
}

/// `logit_bias`: tokens with what is added to their logits.
fn bias(fields: &mut Fields, model: &Served) -> Result<Vec<(u32, f32)>, Refusal> {
    let wrong = || {
        let expected = format!(
            "expected an object of token ids below {} with numbers from -100 to 100",
            model.vocabulary
        );
        Refusal::field("logit_bias", expected)
    };
    match fields.take("logit_bias") {
        None => Ok(Vec::new()),
        Some(Value::Object(map)) => map
            .iter()
            .map(|(id, bias)| {
                let id: u32 = id.parse().map_err(|_| wrong())?;
                let bias = bias.as_f64().filter(|bias| bias.abs() <= 100.0);
                match bias.filter(|_| (id as usize) < model.vocabulary) {
                    Some(bias) => Ok((id, bias as f32)),
                    None => Err(wrong()),
                }
            })
            .collect(),
        Some(_) => Err(wrong()),
    }
}

/// `logprobs` and `top_logprobs` of conversations.
pub(crate) fn chat_logprobs(fields: &mut Fields) -> Result<Option<usize>, Refusal> {
    let asked = fields.flag("logprobs")?.unwrap_or(false);
    let top = fields.count("top_logprobs", 0..=MOST_LOGPROBS)?;
    match (asked, top) {
        (false, Some(top)) if top > 0 => Err(Refusal::field(
            "top_logprobs",
            "it wants `logprobs` to be true",
        )),
        (true, top) => Ok(Some(top.unwrap_or(0) as usize)),
        (false, _) => Ok(None),
    }
}

/// `logprobs` of completions, which is a number.
pub(crate) fn completion_logprobs(fields: &mut Fields) -> Result<Option<usize>, Refusal> {
    let count = fields.count("logprobs", 0..=MOST_LOGPROBS)?;
    Ok(count.map(|count| count as usize))
}

/// What `stream` and `stream_options` say: whether the answer comes piece by piece, and whether its end tells of the tokens.
pub(crate) fn streaming(fields: &mut Fields) -> Result<(bool, bool), Refusal> {
    let stream = fields.flag("stream")?.unwrap_or(false);
    let Some(options) = fields.take("stream_options") else {
        return Ok((stream, false));
    };
    let Value::Object(mut options) = options else {
        return Err(Refusal::field("stream_options", "expected an object"));
    };
    let usage = options.remove("include_usage");
    options.remove("include_obfuscation");
    if let Some(name) = options.keys().next() {
        let name = format!("stream_options.{name}");
        return Err(Refusal::field(&name, "unknown"));
    }
    match usage {
        None | Some(Value::Null) => Ok((stream, false)),
        Some(Value::Bool(usage)) => Ok((stream, usage && stream)),
        Some(_) => Err(Refusal::field(
            "stream_options.include_usage",
            "expected true or false",
        )),
    }
}

/// Answers under way: what comes of them, and what ends when nobody listens any more.
pub(crate) struct Answers {
    pub heard: Heard,
    pub count: usize,
    pub begun: Instant,
    pub _waiting: Waiting,
    pub _ticket: InFlight,
}

/// Most new tokens behind a prompt, at most `asked`.
pub(crate) fn room(
    app: &App,
    model: &Served,
    prompt: usize,
    asked: Option<u64>,
) -> Result<usize, Refusal> {
    let context = model.context;
    if prompt >= context {
        return Err(Refusal::context(format!(
            "the prompt has {prompt} tokens, but this model's context is {context} tokens, and the answer needs some; shorten the prompt"
        )));
    }
    let asked = asked.map_or(usize::MAX, |asked| {
        usize::try_from(asked).unwrap_or(usize::MAX)
    });
    Ok((context - prompt).min(asked).min(app.limits.output))
}

/// Asks for `choices` answers to each prompt; answer `i` to prompt `p` has the number `p * choices + i`.
pub(crate) fn begin(
    app: &Arc<App>,
    model: &Served,
    prompts: Vec<(Vec<u32>, usize)>,
    sampling: &Sampling,
    logprobs: Option<usize>,
    marks: &[&str],
    client: u64,
) -> Result<Answers, Refusal> {
    let count = prompts.len() * sampling.choices;
    let ticket = app.enter(count)?;
    let (to, heard) = unbounded_channel();
    let waiting = Waiting::default();
    let marks: Vec<(u32, String)> = marks
        .iter()
        .filter_map(|mark| Some((model.tokenizer.id(mark)?, (*mark).to_owned())))
        .filter(|(id, _)| model.tokenizer.is_special(*id))
        .collect();
    for (place, (prompt, new)) in prompts.into_iter().enumerate() {
        for choice in 0..sampling.choices {
            let number = place * sampling.choices + choice;
            let text = AnswerText::new(&model.tokenizer, &prompt, sampling.stops.clone())
                .showing(marks.clone());
            let speaker = Speaker::new(
                number,
                text,
                model.tokenizer.clone(),
                model.end.clone(),
                to.clone(),
            );
            let mut sampler = sampling.sampler.clone();
            sampler.seed = sampler.seed.wrapping_add(number as u64);
            let request = Request {
                end: model.end.clone(),
                logprobs,
                priority: sampling.priority,
                client,
                cancelled: waiting.cancellation(),
                ..Request::new(prompt.clone(), new, sampler, speaker)
            };
            app.command(Command::Generate(model.number, Box::new(request)))?;
        }
    }
    Ok(Answers {
        heard,
        count,
        begun: Instant::now(),
        _waiting: waiting,
        _ticket: ticket,
    })
}
