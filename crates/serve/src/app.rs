//! What all requests share: the models by name, the way to the thread that computes, limits, keys and figures.

use std::{
    collections::hash_map::RandomState,
    hash::BuildHasher,
    sync::{
        Arc, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
        mpsc::Sender,
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use espalier_data::tokenizer::Tokenizer;
use espalier_engine::{sampler::SamplerOptions, sentence_transformers::SentenceTransformer};
use espalier_models::model::LanguageModel;

use crate::{
    calls::Dialect,
    error::Refusal,
    host::{Command, SharedStatus},
    metrics::Metrics,
};

/// Bounds that keep the server usable.
#[derive(Debug, Clone, PartialEq)]
pub struct Limits {
    /// Most bytes of a body.
    pub body: usize,
    /// Most answers that are made or wait; more are refused.
    pub in_flight: usize,
    /// Most tokens of an answer.
    pub output: usize,
    /// Most answers to one request.
    pub choices: usize,
    /// Longest time for an answer.
    pub answer: Duration,
    /// Longest time for a body to come.
    pub arrival: Duration,
    /// Longest time for what is under way when the server ends.
    pub farewell: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            body: 8 << 20,
            in_flight: 256,
            output: 4096,
            choices: 16,
            answer: Duration::from_secs(600),
            arrival: Duration::from_secs(30),
            farewell: Duration::from_secs(60),
        }
    }
}

/// A model as requests see it.
#[derive(Debug)]
pub(crate) struct Served {
    pub name: String,
    pub number: usize,
    pub tokenizer: Tokenizer,
    /// Most tokens of a text.
    pub context: usize,
    pub vocabulary: usize,
    /// Why it does not generate, if it does not.
    pub silent: Option<String>,
    /// Tokens that end an answer.
    pub end: Vec<u32>,
    /// What a request leaves open.
    pub sampler: SamplerOptions,
    pub stops: Vec<String>,
    pub embedder: Option<SentenceTransformer>,
    pub dialect: Dialect,
    pub created: u64,
    pub status: SharedStatus,
}

/// What all requests share.
pub(crate) struct App {
    pub models: Vec<Served>,
    pub commands: Sender<Command>,
    pub limits: Limits,
    pub keys: Vec<String>,
    /// Whether requests must come to a loopback name.
    pub loopback: bool,
    pub metrics: Metrics,
    pub in_flight: AtomicUsize,
    pub closing: AtomicBool,
    pub log: Box<dyn Fn(&str) + Send + Sync>,
}

impl App {
    /// The model of that name; the only one where none is named.
    pub fn model(&self, name: Option<&str>) -> Result<&Served, Refusal> {
        let known = || {
            let names: Vec<String> = self
                .models
                .iter()
                .map(|model| format!("`{}`", model.name))
                .collect();
            names.join(", ")
        };
        match (name, &self.models[..]) {
            (None, [only]) => Ok(only),
            (None, _) => Err(Refusal::field(
                "model",
                format!("this field is required; there are {}", known()),
            )),
            (Some(name), models) => {
                let found = models.iter().find(|model| model.name == name);
                found.ok_or_else(|| {
                    Refusal::not_found(format!(
                        "the model `{name}` does not exist; there are {}",
                        known()
                    ))
                    .at("model")
                    .with_code("model_not_found")
                })
            }
        }
    }

    /// As [`App::model`], of those that generate.
    pub fn speaker(&self, name: Option<&str>) -> Result<&Served, Refusal> {
        let model = self.model(name)?;
        match &model.silent {
            Some(reason) => {
                Err(Refusal::invalid(format!("`{}`: {reason}", model.name)).at("model"))
            }
            None => Ok(model),
        }
    }

    /// Lets another `count` answers in.
    pub fn enter(self: &Arc<Self>, count: usize) -> Result<InFlight, Refusal> {
        if self.closing.load(Ordering::Relaxed) {
            return Err(Refusal::closing());
        }
        let before = self.in_flight.fetch_add(count, Ordering::SeqCst);
        let ticket = InFlight {
            app: Arc::clone(self),
            count,
        };
        match before + count > self.limits.in_flight {
            true => Err(Refusal::busy()),
            false => Ok(ticket),
        }
    }

    /// Asks the thread that computes.
    pub fn command(&self, command: Command) -> Result<(), Refusal> {
        self.commands.send(command).map_err(|_| Refusal::closing())
    }

    /// Lets the thread compute something of a model.
    pub async fn compute<T: Send + 'static>(
        &self,
        model: usize,
        work: impl FnOnce(&LanguageModel) -> T + Send + 'static,
    ) -> Result<T, Refusal> {
        let (to, from) = tokio::sync::oneshot::channel();
        let work = move |model: &LanguageModel| _ = to.send(work(model));
        self.command(Command::Compute(model, Box::new(work)))?;
        from.await.map_err(|_| {
            Refusal::internal("an internal error ended this request; please report it")
        })
    }

    /// The figures for Prometheus.
    pub fn figures(&self) -> String {
        let status = |model: &Served| {
            let status = model.status.lock().unwrap_or_else(PoisonError::into_inner);
            (model.name.clone(), *status)
        };
        let all: Vec<_> = self.models.iter().map(status).collect();
        self.metrics
            .render(&all, self.in_flight.load(Ordering::Relaxed))
    }
}

/// Answers that are made or wait, counted until this goes.
pub(crate) struct InFlight {
    app: Arc<App>,
    count: usize,
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.app.in_flight.fetch_sub(self.count, Ordering::SeqCst);
    }
}

/// Seconds since 1970.
pub(crate) fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs())
}

/// A number that nobody can guess.
pub(crate) fn random() -> u64 {
    // Every state of the standard library's hash maps has keys of its own.
    RandomState::new().hash_one(SystemTime::now())
}

/// A name that does not come twice.
pub(crate) fn fresh_id(prefix: &str) -> String {
    format!("{prefix}{:016x}{:08x}", random(), random() as u32)
}
