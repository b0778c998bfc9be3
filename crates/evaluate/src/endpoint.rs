//! An endpoint that speaks OpenAI's interface answers tasks: texts by `/chat/completions`, or `/completions` for bare prompts, likelihoods by
//! `/completions` alone.
//!
//! Requests go out side by side, as many as a batch has. One that fails on its way, or that the server cannot serve at the moment (429,
//! 5xx), is repeated after a growing pause.

mod likelihood;

use std::{thread, time::Duration};

use serde_json::{Value, json};

use crate::{
    Error, Result,
    respondent::{Respondent, Response, Sink},
    tasks::{Generation, Item, Prompt, Request},
};

/// Most bytes of a response.
const LARGEST_RESPONSE: u64 = 64 << 20;

/// Pauses before repetitions.
const PAUSES: [Duration; 4] = [
    Duration::from_millis(250),
    Duration::from_secs(1),
    Duration::from_secs(4),
    Duration::from_secs(10),
];

/// Longest wait for a response.
const LONGEST_WAIT: Duration = Duration::from_secs(600);

/// Most stop texts that servers of OpenAI's interface take; the rest ends answers here.
const MOST_STOPS: usize = 4;

/// An endpoint.
#[derive(Debug)]
pub struct Endpoint {
    base: String,
    model: String,
    key: Option<String>,
    chat: bool,
    batch: usize,
    seed: u64,
    agent: ureq::Agent,
}

impl Endpoint {
    /// The endpoint at `base` (`http://host/v1`), asked for `model`, with a key where it wants one; `batch` requests at once.
    ///
    /// # Errors
    /// When the address is none.
    pub fn new(
        base: &str,
        model: &str,
        key: Option<String>,
        chat: bool,
        batch: usize,
        seed: u64,
    ) -> Result<Self> {
        if !["http://", "https://"]
            .iter()
            .any(|scheme| base.starts_with(scheme))
        {
            return Err(Error::task(format!(
                "`{base}` is no address of an endpoint; it begins with http:// or https:// and mostly ends with /v1"
            )));
        }
        let agent = ureq::Agent::config_builder()
            .timeout_global(Some(LONGEST_WAIT))
            .http_status_as_error(false)
            .build()
            .into();
        Ok(Self {
            base: base.trim_end_matches('/').to_owned(),
            model: model.to_owned(),
            key,
            chat,
            batch: batch.max(1),
            seed,
            agent,
        })
    }

    fn response(&self, item: &Item, generation: &Generation, repeats: usize) -> Result<Response> {
        let Request::Generate { prompt, .. } = &item.request else {
            return self.score(item);
        };
        let texts = (0..repeats).map(|repeat| self.ask(item, prompt, generation, repeat));
        Ok(Response::Texts(texts.collect::<Result<_>>()?))
    }

    fn ask(
        &self,
        item: &Item,
        prompt: &Prompt,
        generation: &Generation,
        repeat: usize,
    ) -> Result<String> {
        let seed = self
            .seed
            .wrapping_add(item.number as u64)
            .wrapping_add((repeat as u64) << 32);
        let mut body = json!({
            "model": self.model,
            "max_tokens": generation.max_tokens,
            "temperature": generation.temperature,
            "top_p": generation.top_p,
            "seed": seed % (1 << 31),
        });
        if !generation.until.is_empty() {
            body["stop"] = generation.until.iter().take(MOST_STOPS).cloned().collect();
        }
        let (path, pointer) = match self.chat {
            true => ("chat/completions", "/choices/0/message/content"),
            false => ("completions", "/choices/0/text"),
        };
        match self.chat {
            true => body["messages"] = json!(prompt.messages),
            false => body["prompt"] = prompt.text.clone().into(),
        }
        let url = format!("{}/{path}", self.base);
        let response = self.post(&url, &body.to_string())?;
        match response.pointer(pointer) {
            Some(Value::String(text)) => Ok(cut(text, &generation.until)),
            Some(Value::Null) => Ok(String::new()),
            _ => Err(Error::task(format!(
                "{url} answered {} without `{pointer}`",
                short(&response.to_string())
            ))),
        }
    }

    fn post(&self, url: &str, body: &str) -> Result<Value> {
        let mut pauses = PAUSES.iter();
        loop {
            let (passing, reason) = match self.once(url, body) {
                Ok(value) => return Ok(value),
                Err(fault) => fault,
            };
            match pauses.next().filter(|_| passing) {
                Some(pause) => thread::sleep(*pause),
                None => return Err(Error::task(format!("{url} {reason}"))),
            }
        }
    }

    /// One attempt; why it failed, and whether the next may not.
    fn once(&self, url: &str, body: &str) -> Result<Value, (bool, String)> {
        let mut request = self
            .agent
            .post(url)
            .header("content-type", "application/json");
        if let Some(key) = &self.key {
            request = request.header("authorization", format!("Bearer {key}"));
        }
        let sent = request.send(body);
        let mut response = sent.map_err(|error| (true, format!("cannot be reached: {error}")))?;
        let status = response.status().as_u16();
        let text = response
            .body_mut()
            .with_config()
            .limit(LARGEST_RESPONSE)
            .read_to_string();
        let text = text.map_err(|error| (true, format!("broke off: {error}")))?;
        match status {
            200..300 => serde_json::from_str(&text).map_err(|error| {
                (
                    false,
                    format!("answered with no JSON ({error}): {}", short(&text)),
                )
            }),
            _ => Err((
                status == 429 || status >= 500,
                format!("answered with status {status}: {}", short(&text)),
            )),
        }
    }
}

fn short(text: &str) -> String {
    text.chars().take(300).collect()
}

/// The text up to the first of the stops.
fn cut(text: &str, stops: &[String]) -> String {
    let end = stops
        .iter()
        .filter_map(|stop| text.find(stop.as_str()))
        .min();
    text[..end.unwrap_or(text.len())].to_owned()
}

impl Respondent for Endpoint {
    fn answer(
        &mut self,
        items: &[&Item],
        generation: &Generation,
        repeats: usize,
        sink: Sink<'_>,
    ) -> Result<()> {
        let mut asked = Vec::with_capacity(items.len());
        for (place, item) in items.iter().enumerate() {
            asked.push((place, *item));
        }
        for chunk in asked.chunks(self.batch) {
            let own = &*self;
            let answers: Vec<Result<Response>> = thread::scope(|scope| {
                let started: Vec<_> = chunk
                    .iter()
                    .map(|(_, item)| scope.spawn(move || own.response(item, generation, repeats)))
                    .collect();
                let failed = |_| Err(Error::task("a request failed without words"));
                started
                    .into_iter()
                    .map(|thread| thread.join().unwrap_or_else(failed))
                    .collect()
            });
            for ((place, _), response) in chunk.iter().zip(answers) {
                sink(*place, response?)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{
        io::{BufRead, BufReader, Read, Write},
        net::TcpListener,
    };

    /// A server that answers each chat request with its question, in capitals; the first request it cannot serve.
    fn server() -> String {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/v1", listener.local_addr().unwrap());
        thread::spawn(move || {
            for (number, stream) in listener.incoming().enumerate() {
                let mut reader = BufReader::new(stream.unwrap());
                let (mut length, mut line) = (0, String::new());
                while reader.read_line(&mut line).unwrap() > 2 {
                    if let Some(value) = line.to_lowercase().strip_prefix("content-length:") {
                        length = value.trim().parse().unwrap();
                    }
                    line.clear();
                }
                let mut body = vec![0; length];
                reader.read_exact(&mut body).unwrap();
                let body: Value = serde_json::from_slice(&body).unwrap();
                let said = body["messages"][0]["content"]
                    .as_str()
                    .unwrap()
                    .to_uppercase();
                let answer =
                    json!({"choices": [{"message": {"content": format!("{said}\nmore")}}]})
                        .to_string();
                let status = if number == 0 { 503 } else { 200 };
                let head = format!(
                    "HTTP/1.1 {status} X\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
                    answer.len()
                );
                reader
                    .into_inner()
                    .write_all((head + &answer).as_bytes())
                    .unwrap();
            }
        });
        url
    }

    #[test]
    fn answers_are_asked_for_and_cut() {
        let items: Vec<Item> = ["one", "two", "three"]
            .iter()
            .enumerate()
            .map(|(number, text)| Item {
                number,
                doc: Value::Null,
                request: Request::Generate {
                    prompt: Prompt::plain(*text),
                    gold: vec![],
                },
            })
            .collect();
        let items: Vec<&Item> = items.iter().collect();
        let generation = Generation {
            until: vec!["\n".into()],
            ..Generation::default()
        };
        let mut endpoint = Endpoint::new(&server(), "m", None, true, 2, 0).unwrap();
        let mut found = vec![None; 3];
        endpoint
            .answer(&items, &generation, 1, &mut |place, response| {
                found[place] = Some(response);
                Ok(())
            })
            .unwrap();
        let texts =
            ["ONE", "TWO", "THREE"].map(|text| Some(Response::Texts(vec![text.to_owned()])));
        assert_eq!(found, texts);
        assert!(Endpoint::new("localhost", "m", None, true, 1, 0).is_err());
    }
}
