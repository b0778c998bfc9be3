//! The server under load: clients over HTTP that ask again as soon as they are answered (a closed loop), on random tokens.
//!
//! Every answer has the same number of tokens, ends being forbidden. Times are the client's: to the first piece of an answer, and
//! between its pieces.

use std::{
    io::{BufRead, BufReader, Write},
    net::{SocketAddr, TcpStream},
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use clap::builder::RangedU64ValueParser;
use espalier_engine::{sampler::SamplerOptions, scheduler::Options};
use espalier_kernels::linear::Precision;
use espalier_serve::{Config, Limits, Model, Server};
use serde_json::{Map, Value, json};

use super::{Figures, random_tokens};
use crate::{Error, Result, cli::Context, model_path};

/// What is measured.
#[derive(Debug, clap::Args)]
pub struct ServeArgs {
    /// A model folder, an adapter folder, or a run's output
    pub model: PathBuf,
    /// How many clients ask at once, one measurement for each
    #[arg(long, value_name = "COUNTS", value_delimiter = ',', default_value = "1,8,32", value_parser = RangedU64ValueParser::<usize>::new().range(1..=1024))]
    pub clients: Vec<usize>,
    /// Requests of each client
    #[arg(long, value_name = "COUNT", default_value_t = 2, value_parser = super::number_of_runs())]
    pub requests: usize,
    /// Tokens of each prompt
    #[arg(long, value_name = "COUNT", default_value_t = 64, value_parser = RangedU64ValueParser::<usize>::new().range(1..=1 << 20))]
    pub prompt: usize,
    /// How many of them all prompts share
    #[arg(long, value_name = "COUNT", default_value_t = 0)]
    pub shared: usize,
    /// Tokens of each answer
    #[arg(long, value_name = "COUNT", default_value_t = 64, value_parser = RangedU64ValueParser::<usize>::new().range(1..=1 << 16))]
    pub new: usize,
    /// The arithmetic of products: f32 or bf16
    #[arg(long, value_name = "NAME", default_value = "f32")]
    pub precision: Precision,
}

/// Serves the model to as many clients as asked for.
///
/// # Errors
/// When the model cannot be loaded, the sizes do not fit it, or a client gets no answer.
pub fn run(args: &ServeArgs, context: &Context) -> Result<()> {
    let opened = model_path::open_text_model(&args.model, &context.device)?;
    let mut text = opened.text;
    text.model.set_precision(args.precision);
    let (window, vocabulary) = (text.model.spec().context, text.model.spec().vocabulary);
    if args.prompt + args.new > window || args.shared > args.prompt {
        return Err(Error::usage(format!(
            "`--prompt` {} and `--new` {} are more than the model's context of {window} tokens, or `--shared` is more than the prompt",
            args.prompt, args.new
        )));
    }
    let work = Work {
        ends: text.end_tokens(),
        vocabulary: vocabulary.min(text.tokenizer.vocabulary_size()),
        requests: args.requests,
        sizes: [args.shared, args.prompt, args.new],
    };
    let most = args.clients.iter().copied().max().unwrap_or(1);
    let config = Config {
        models: vec![Model {
            name: "model".into(),
            text,
            sampler: SamplerOptions::default(),
            stops: Vec::new(),
            embedder: None,
        }],
        scheduler: Options {
            memory: 4 << 30,
            rows: most,
            ..Options::default()
        },
        limits: Limits {
            in_flight: 2 * most,
            output: args.new,
            answer: Duration::from_secs(3600),
            ..Limits::default()
        },
        keys: Vec::new(),
        log: Box::new(|_| {}),
    };
    let work_failed = |error: espalier_serve::Error| Error::Work(error.to_string());
    let server = Server::listen(config, "127.0.0.1:0").map_err(work_failed)?;
    let (address, over) = (server.address(), Arc::new(AtomicBool::new(false)));
    let (counts, seen) = (args.clients.clone(), Arc::clone(&over));
    let clients = thread::spawn(move || {
        // What is read first is not counted.
        let warm = work.load(address, 1, 0);
        let all = warm.and_then(|_| {
            let loads = counts.iter().enumerate();
            loads
                .map(|(number, count)| work.load(address, *count, number + 1))
                .collect::<Result<Vec<_>>>()
        });
        over.store(true, Ordering::Relaxed);
        all
    });
    server
        .run(move || seen.load(Ordering::Relaxed))
        .map_err(work_failed)?;
    let loads = clients
        .join()
        .map_err(|_| Error::Work("a client failed".into()))??;
    show(args, &loads, context)
}

/// What every client does.
struct Work {
    ends: Vec<u32>,
    vocabulary: usize,
    requests: usize,
    /// Shared tokens of a prompt, all of them, those of an answer.
    sizes: [usize; 3],
}

/// What came of a number of clients.
struct Load {
    clients: usize,
    tokens_per_second: f64,
    first: Vec<f64>,
    gaps: Vec<f64>,
}

impl Work {
    /// All requests of so many clients; prompts of another `turn` are other ones.
    fn load(&self, address: SocketAddr, clients: usize, turn: usize) -> Result<Load> {
        let [shared, prompt, new] = self.sizes;
        let rows = (turn + 1) * clients * self.requests;
        let mut prompts = random_tokens(self.vocabulary, rows + 1, prompt);
        let common = prompts.pop().unwrap_or_default();
        let prompts = prompts.split_off(turn * clients * self.requests);
        let begun = Instant::now();
        let answers = thread::scope(|scope| {
            let client = |prompts: Vec<Vec<u32>>| {
                let common = &common;
                scope.spawn(move || {
                    let ask = |prompt: &Vec<u32>| {
                        let prompt = [&common[..shared], &prompt[shared..]].concat();
                        self.ask(address, &prompt)
                    };
                    prompts.iter().map(ask).collect::<Result<Vec<_>>>()
                })
            };
            let threads: Vec<_> = prompts
                .chunks(self.requests)
                .map(|prompts| client(prompts.to_vec()))
                .collect();
            let join = |thread: thread::ScopedJoinHandle<'_, Result<Vec<_>>>| {
                let joined = thread.join();
                joined.unwrap_or_else(|_| Err(Error::Work("a client failed".into())))
            };
            threads.into_iter().map(join).collect::<Result<Vec<_>>>()
        })?;
        let seconds = begun.elapsed().as_secs_f64();
        let answers: Vec<(f64, Vec<f64>)> = answers.into_iter().flatten().collect();
        Ok(Load {
            clients,
            tokens_per_second: (answers.len() * new) as f64 / seconds,
            first: answers.iter().map(|(first, _)| *first).collect(),
            gaps: answers.into_iter().flat_map(|(_, gaps)| gaps).collect(),
        })
    }

    /// The time to the first piece of an answer, and those between its pieces, in seconds.
    fn ask(&self, address: SocketAddr, prompt: &[u32]) -> Result<(f64, Vec<f64>)> {
        let new = self.sizes[2];
        let bias = self.ends.iter().map(|end| (end.to_string(), json!(-100)));
        let body = json!({
            "model": "model", "prompt": prompt, "max_tokens": new, "stream": true,
            "stream_options": {"include_usage": true}, "logit_bias": Value::Object(Map::from_iter(bias)),
        })
        .to_string();
        let begun = Instant::now();
        let mut stream = TcpStream::connect(address)?;
        write!(
            stream,
            "POST /v1/completions HTTP/1.1\r\nHost: {address}\r\nContent-Type: application/json\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        )?;
        let (mut times, mut tokens, mut last) = (Vec::new(), None, begun);
        let mut head = String::new();
        for line in BufReader::new(stream).lines() {
            let line = line?;
            if head.is_empty() {
                head.clone_from(&line);
            }
            let Some(data) = line.strip_prefix("data: ") else {
                continue;
            };
            let event: Value = serde_json::from_str(data).unwrap_or_default();
            if event["choices"][0]["text"]
                .as_str()
                .is_some_and(|text| !text.is_empty())
            {
                times.push(last.elapsed().as_secs_f64());
                last = Instant::now();
            }
            tokens = event["usage"]["completion_tokens"].as_u64().or(tokens);
        }
        match tokens {
            Some(tokens) if tokens == new as u64 && !times.is_empty() => {
                let gaps = times.split_off(1);
                Ok((times[0], gaps))
            }
            _ => Err(Error::Work(format!(
                "a client got no whole answer of {new} tokens; the server said {head}"
            ))),
        }
    }
}

/// The value below which this share of the values lies.
fn percentile(values: &[f64], share: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let place = (share * sorted.len().saturating_sub(1) as f64).round() as usize;
    sorted.get(place).copied().unwrap_or(f64::NAN)
}

fn show(args: &ServeArgs, loads: &[Load], context: &Context) -> Result<()> {
    let mut measured = Vec::new();
    for load in loads {
        let clients = load.clients;
        let mut add = |name: String, unit, value: f64| measured.push((name, unit, value));
        add(
            format!("{clients}_clients"),
            "tokens/s",
            load.tokens_per_second,
        );
        for (name, times) in [("first", &load.first), ("between", &load.gaps)] {
            for share in [50, 95, 99] {
                let value = 1000.0 * percentile(times, f64::from(share) / 100.0);
                add(format!("{clients}_clients_{name}_p{share}"), "ms", value);
            }
        }
    }
    Figures {
        job: "serve",
        model: Some(&args.model),
        sizes: vec![
            ("prompt", args.prompt.into()),
            ("shared", args.shared.into()),
            ("new", args.new.into()),
            ("requests", args.requests.into()),
            ("precision", args.precision.to_string().into()),
        ],
        measured: measured
            .iter()
            .map(|(name, unit, value)| (name.as_str(), *unit, *value))
            .collect(),
    }
    .show(context)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_values_of_the_list() {
        let values: Vec<f64> = (0..101).rev().map(f64::from).collect();
        let found = [0.0, 0.5, 0.95, 1.0].map(|share| percentile(&values, share));
        assert_eq!(found, [0.0, 50.0, 95.0, 100.0]);
        assert!(percentile(&[], 0.5).is_nan());
    }
}
