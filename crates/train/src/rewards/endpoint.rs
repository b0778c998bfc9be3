//! A reward by a server: the answers of a batch are sent in one HTTP request, or in several at once.
//!
//! The request is a POST of `{"answers": [{"prompt": ..., "messages": [...], "completion": ..., "record": {...}}, ...]}` in JSON, the
//! response `{"rewards": [...]}` or the list alone, with a number, `null` or `{"reward": ...}` for each answer, in order. A request that
//! fails on its way, or that the server cannot serve at the moment (429, 5xx), is repeated after a growing pause; one that it
//! refuses is not.

use std::{
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use burn::tensor::Device;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{Asked, Reward, Source, command::check_timeout, failed, parsed, shortened};
use crate::{Error, Result, error::at_least};

/// The options of an endpoint.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct EndpointOptions {
    /// Its address, `http://` or `https://`.
    pub url: String,
    /// Longest wait for a response, in seconds.
    #[serde(default = "usual_timeout")]
    #[schemars(extend("exclusiveMinimum" = 0.0), range(max = 86400.0))]
    pub timeout: f64,
    /// How often a request that failed is repeated.
    #[serde(default = "usual_retries")]
    #[schemars(range(max = 20))]
    pub retries: usize,
    /// Most answers of a request; all of a batch when absent. A judge is asked for one at a time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub answers: Option<usize>,
    /// Most requests at a time.
    #[serde(default = "usual_concurrency")]
    #[schemars(range(min = 1, max = 256))]
    pub concurrency: usize,
}

fn usual_timeout() -> f64 {
    60.0
}

fn usual_retries() -> usize {
    3
}

fn usual_concurrency() -> usize {
    8
}

/// Most requests at a time: each has a thread.
const MOST_REQUESTS: usize = 256;

/// Most repetitions of a request; the last pause is then over a day long.
const MOST_RETRIES: usize = 20;

/// The pause before the first repetition; each further one is twice as long.
const FIRST_PAUSE: Duration = Duration::from_millis(250);

/// Most bytes of a response.
const LARGEST_RESPONSE: u64 = 64 << 20;

impl Source for EndpointOptions {
    fn build(&self, _: &Device) -> Result<Box<dyn Reward>> {
        Ok(Box::new(EndpointReward::new(self.clone())?))
    }

    fn check(&self) -> Result<()> {
        if !["http://", "https://"]
            .iter()
            .any(|scheme| self.url.starts_with(scheme))
        {
            let reason = format!(
                "`{}` is no address; it begins with http:// or https://",
                self.url
            );
            return Err(Error::Option { key: "url", reason });
        }
        if self.retries > MOST_RETRIES {
            let reason = format!("{} is more than {MOST_RETRIES}", self.retries);
            return Err(Error::Option {
                key: "retries",
                reason,
            });
        }
        if !(1..=MOST_REQUESTS).contains(&self.concurrency) {
            return Err(Error::Option {
                key: "concurrency",
                reason: format!("{} is outside 1 to {MOST_REQUESTS}", self.concurrency),
            });
        }
        at_least("answers", self.answers.unwrap_or(1), 1)?;
        check_timeout(self.timeout)
    }
}

/// The server.
#[derive(Debug)]
pub struct EndpointReward(Endpoint);

impl EndpointReward {
    /// # Errors
    /// When the options make no sense.
    pub(super) fn new(options: EndpointOptions) -> Result<Self> {
        Ok(Self(Endpoint::new("endpoint", options)?))
    }
}

impl Reward for EndpointReward {
    fn score(&mut self, answers: &[Asked<'_>]) -> Result<Vec<Option<f64>>> {
        let most = self.0.options.answers.unwrap_or(answers.len()).max(1);
        let body = |answers: &[Asked<'_>]| {
            let all: Vec<Value> = answers.iter().map(|asked| asked.to_json()).collect();
            json!({"answers": all})
        };
        let bodies: Vec<Value> = answers.chunks(most).map(body).collect();
        let responses = self.0.post_all(&bodies)?;
        let rewards = responses.iter().zip(answers.chunks(most));
        let rewards = rewards.map(|(response, answers)| self.rewards(response, answers.len()));
        Ok(rewards.collect::<Result<Vec<_>>>()?.concat())
    }
}

impl EndpointReward {
    /// The rewards of a response to a request with `count` answers.
    fn rewards(&self, response: &Value, count: usize) -> Result<Vec<Option<f64>>> {
        let list = response.get("rewards").unwrap_or(response).as_array();
        let rewards = list.and_then(|list| list.iter().map(parsed).collect::<Option<Vec<_>>>());
        match rewards {
            Some(rewards) if rewards.len() == count => Ok(rewards),
            Some(rewards) => Err(self.0.failed(format!(
                "gave {} rewards for {count} answers; there must be one for each, in order",
                rewards.len(),
            ))),
            None => Err(self.0.failed(format!(
                "answered {} where {{\"rewards\": [...]}} with a number or null for each answer is expected",
                shortened(&response.to_string())
            ))),
        }
    }
}

/// Something that is sent JSON and answers with JSON.
#[derive(Debug)]
pub(super) struct Endpoint {
    source: &'static str,
    options: EndpointOptions,
    agent: ureq::Agent,
}

/// Why there is no response.
enum Fault {
    /// It may be there the next time.
    Passing(String),
    /// It will be the same the next time.
    Lasting(String),
}

impl Endpoint {
    /// An endpoint of the reward `source`.
    ///
    /// # Errors
    /// When the options make no sense.
    pub(super) fn new(source: &'static str, options: EndpointOptions) -> Result<Self> {
        options.check()?;
        let agent = ureq::Agent::config_builder()
            .timeout_global(Some(Duration::from_secs_f64(options.timeout)))
            .http_status_as_error(false)
            .build()
            .into();
        Ok(Self {
            source,
            options,
            agent,
        })
    }

    /// Sends requests, as many at a time as the options allow; the responses are in the order of the requests.
    ///
    /// # Errors
    /// When one of them fails; those that were not sent by then are not.
    pub(super) fn post_all(&self, bodies: &[Value]) -> Result<Vec<Value>> {
        let next = AtomicUsize::new(0);
        let responses = Mutex::new(Vec::with_capacity(bodies.len()));
        let take = || {
            let number = next.fetch_add(1, Ordering::Relaxed);
            bodies.get(number).map(|body| (number, body))
        };
        let work = || {
            while let Some((number, body)) = take() {
                let response = self.post(body);
                if response.is_err() {
                    next.store(bodies.len(), Ordering::Relaxed);
                }
                let mut all = responses.lock().unwrap_or_else(PoisonError::into_inner);
                all.push((number, response));
            }
        };
        thread::scope(|scope| {
            for _ in 0..self.options.concurrency.min(bodies.len()) {
                scope.spawn(work);
            }
        });
        let mut responses = responses
            .into_inner()
            .unwrap_or_else(PoisonError::into_inner);
        responses.sort_by_key(|(number, _)| *number);
        responses
            .into_iter()
            .map(|(_, response)| response)
            .collect()
    }

    /// Sends a request and repeats it where that may help.
    ///
    /// # Errors
    /// When there is no response, or it is no JSON.
    fn post(&self, body: &Value) -> Result<Value> {
        let body = body.to_string();
        let (mut pause, mut attempt) = (FIRST_PAUSE, 1);
        loop {
            match self.once(&body) {
                Ok(value) => return Ok(value),
                Err(Fault::Passing(_)) if attempt <= self.options.retries => {
                    thread::sleep(pause);
                    pause *= 2;
                    attempt += 1;
                }
                Err(Fault::Passing(reason)) => {
                    let reason = format!("{reason}, {attempt} times; check that the server runs");
                    return Err(self.failed(reason));
                }
                Err(Fault::Lasting(reason)) => return Err(self.failed(reason)),
            }
        }
    }

    fn once(&self, body: &str) -> Result<Value, Fault> {
        let request = self.agent.post(&self.options.url);
        let sent = request
            .header("content-type", "application/json")
            .send(body);
        let mut response =
            sent.map_err(|error| Fault::Passing(format!("cannot be reached: {error}")))?;
        let status = response.status();
        let limited = response.body_mut().with_config().limit(LARGEST_RESPONSE);
        let text = limited.read_to_string();
        let text = text.map_err(|error| Fault::Passing(format!("broke off: {error}")))?;
        let said = shortened(text.trim());
        match status.as_u16() {
            200..300 => serde_json::from_str(&text).map_err(|error| {
                Fault::Lasting(format!("answered with no JSON ({error}): {said}"))
            }),
            429 | 500..600 => Err(Fault::Passing(format!(
                "answered with status {status}: {said}"
            ))),
            _ => Err(Fault::Lasting(format!(
                "answered with status {status}: {said}"
            ))),
        }
    }

    /// An error of this endpoint.
    pub(super) fn failed(&self, reason: String) -> Error {
        failed(self.source, format!("{} {reason}", self.options.url))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use espalier_data::record::Message;
    use std::{
        io::{BufRead, BufReader, Read, Write},
        net::TcpListener,
        sync::mpsc,
    };

    /// A server that gives these responses, one after the other; what it was sent comes out of the channel.
    fn server(responses: Vec<(u16, &'static str)>) -> (String, mpsc::Receiver<String>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/score", listener.local_addr().unwrap());
        let (sender, receiver) = mpsc::channel();
        thread::spawn(move || {
            for (status, body) in responses {
                let (stream, _) = listener.accept().unwrap();
                let mut reader = BufReader::new(stream);
                let mut length = 0;
                loop {
                    let mut line = String::new();
                    reader.read_line(&mut line).unwrap();
                    let lower = line.to_lowercase();
                    if let Some(value) = lower.strip_prefix("content-length:") {
                        length = value.trim().parse().unwrap();
                    }
                    if line.trim().is_empty() {
                        break;
                    }
                }
                let mut sent = vec![0; length];
                reader.read_exact(&mut sent).unwrap();
                let _ = sender.send(String::from_utf8(sent).unwrap());
                let head = format!(
                    "HTTP/1.1 {status} X\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
                    body.len()
                );
                let mut stream = reader.into_inner();
                stream
                    .write_all(format!("{head}{body}").as_bytes())
                    .unwrap();
            }
        });
        (url, receiver)
    }

    fn score(url: &str, retries: usize) -> Result<Vec<Option<f64>>> {
        let options = EndpointOptions {
            url: url.to_owned(),
            timeout: 20.0,
            retries,
            answers: None,
            concurrency: 8,
        };
        let (messages, record) = ([Message::user("?")], json!({"gold": 1}));
        let asked = |answer| Asked {
            messages: &messages,
            answer,
            tokens: 1,
            record: &record,
        };
        EndpointReward::new(options)?.score(&[asked("a"), asked("b")])
    }

    #[test]
    fn a_batch_is_one_request() {
        let (url, sent) = server(vec![(200, r#"{"rewards": [0.5, null]}"#)]);
        assert_eq!(score(&url, 0).unwrap(), [Some(0.5), None]);
        let sent: Value = serde_json::from_str(&sent.recv().unwrap()).unwrap();
        assert_eq!(sent["answers"][1]["completion"], "b");
        assert_eq!(sent["answers"][0]["record"]["gold"], 1);
    }

    /// A server whose every request waits until `together` are there, and gets its answers' lengths as rewards.
    fn patient(together: usize) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/score", listener.local_addr().unwrap());
        thread::spawn(move || {
            let mut waiting = Vec::new();
            while let Ok((stream, _)) = listener.accept() {
                let mut reader = BufReader::new(stream);
                let (mut length, mut line) = (0, String::from("-"));
                while !line.trim().is_empty() {
                    line.clear();
                    reader.read_line(&mut line).unwrap();
                    if let Some(value) = line.to_lowercase().strip_prefix("content-length:") {
                        length = value.trim().parse().unwrap();
                    }
                }
                let mut sent = vec![0; length];
                reader.read_exact(&mut sent).unwrap();
                waiting.push((reader.into_inner(), sent));
                if waiting.len() < together {
                    continue;
                }
                for (mut stream, sent) in waiting.drain(..) {
                    let sent: Value = serde_json::from_slice(&sent).unwrap();
                    let answers = sent["answers"].as_array().unwrap();
                    let length = |answer: &Value| answer["completion"].as_str().unwrap().len();
                    let body = json!(answers.iter().map(length).collect::<Vec<_>>()).to_string();
                    let head = format!("HTTP/1.1 200 X\r\ncontent-length: {}", body.len());
                    let response = format!("{head}\r\nconnection: close\r\n\r\n{body}");
                    stream.write_all(response.as_bytes()).unwrap();
                }
            }
        });
        url
    }

    #[test]
    fn requests_go_out_together_and_come_back_in_order() {
        let options = |concurrency: usize| EndpointOptions {
            url: patient(3),
            timeout: 2.0,
            retries: 0,
            answers: Some(2),
            concurrency,
        };
        let texts: Vec<String> = (0..12).map(|length| "x".repeat(length)).collect();
        let messages = [Message::user("?")];
        let asked = |answer| Asked {
            messages: &messages,
            answer,
            tokens: 1,
            record: &Value::Null,
        };
        let answers: Vec<Asked<'_>> = texts.iter().map(String::as_str).map(asked).collect();
        let mut reward = EndpointReward::new(options(3)).unwrap();
        let expected: Vec<_> = (0..12).map(|length| Some(f64::from(length))).collect();
        assert_eq!(reward.score(&answers).unwrap(), expected);
        // Two at a time never are three.
        let mut reward = EndpointReward::new(options(2)).unwrap();
        assert!(reward.score(&answers).is_err());
        assert!(EndpointReward::new(options(0)).is_err());
    }

    #[test]
    fn what_may_pass_is_tried_again() {
        let (url, sent) = server(vec![(503, "busy"), (429, ""), (200, "[1, 2]")]);
        assert_eq!(score(&url, 3).unwrap(), [Some(1.0), Some(2.0)]);
        assert_eq!(sent.iter().count(), 3);
        let (url, _sent) = server(vec![(500, "out of memory"), (500, "out of memory")]);
        let error = score(&url, 1).unwrap_err().to_string();
        assert!(
            error.contains("status 500") && error.contains("out of memory, 2 times"),
            "{error}"
        );
    }

    #[test]
    fn what_lasts_is_not() {
        for (status, body, words) in [
            (404, "no such page", "status 404"),
            (200, "fine", "no JSON"),
            (200, "[1]", "gave 1 rewards for 2 answers"),
            (200, r#"{"scores": [1, 2]}"#, "is expected"),
        ] {
            let (url, sent) = server(vec![(status, body)]);
            let error = score(&url, 5).unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
            assert_eq!(sent.iter().count(), 1);
        }
        let nobody = score("http://127.0.0.1:9/", 0).unwrap_err().to_string();
        assert!(nobody.contains("cannot be reached"), "{nobody}");
        assert!(score("localhost:80", 0).is_err());
    }
}
