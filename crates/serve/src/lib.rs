//! The server: many conversations at once over HTTP, as OpenAI's clients speak it.
//!
//! Two sides meet in a channel. One thread, the one that calls [`Server::run`], computes: it owns the models and their schedulers
//! (`host.rs`) and makes text of tokens (`speech.rs`). A second one listens: paths and keys (`http.rs`), the interfaces (`chat.rs`,
//! `completions.rs`, `responses.rs`, Anthropic's `messages.rs`, `embeddings.rs`, `tokens.rs`), each of which reads its fields (`fields.rs`), asks for answers (`generation.rs`) and
//! sends them whole or as events (`stream.rs`). A client that leaves drops its response, and with it the work.
//!
//! What a field asks for and is not there is refused by name. Left out: pictures and sound, `tool_choice` that forces a call, `echo`,
//! `suffix`, answers held to a schema, models that are loaded or unloaded while the server runs.

mod app;
mod calls;
mod chat;
mod completions;
mod conversation;
mod embeddings;
pub mod error;
mod fields;
mod generation;
mod host;
mod http;
mod messages;
mod metrics;
mod page;
mod responses;
mod speech;
mod stream;
mod tokens;

use std::{
    future::IntoFuture,
    net::{SocketAddr, TcpListener},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
        mpsc::{Receiver, channel},
    },
    thread,
    time::Duration,
};

use espalier_engine::{
    sampler::SamplerOptions, scheduler::Options, sentence_transformers::SentenceTransformer,
    text::TextModel,
};
use tokio::time::{sleep, timeout};

pub use app::Limits;
pub use error::{Error, Result};

use app::{App, Served, now};
use calls::Dialect;
use host::{Command, Hosted};
use metrics::Metrics;

/// How often the server looks whether it should end.
const LOOK: Duration = Duration::from_millis(50);

/// A model to serve.
#[derive(Debug, Clone)]
pub struct Model {
    /// The name that requests give.
    pub name: String,
    /// Weights and tokenizer.
    pub text: TextModel,
    /// What requests leave open.
    pub sampler: SamplerOptions,
    /// Strings that end every answer.
    pub stops: Vec<String>,
    /// How vectors are made, where the folder says it; else tokens are averaged.
    pub embedder: Option<SentenceTransformer>,
}

/// What is served, to whom, and within which bounds.
pub struct Config {
    /// The models.
    pub models: Vec<Model>,
    /// Bounds of each model's scheduler.
    pub scheduler: Options,
    /// Bounds of requests.
    pub limits: Limits,
    /// Keys of which a request needs one; none are needed where there are none.
    pub keys: Vec<String>,
    /// Told of every request, a line of JSON without what is said in it.
    pub log: Box<dyn Fn(&str) + Send + Sync>,
}

/// A server that listens, and has not yet answered.
pub struct Server {
    listener: TcpListener,
    address: SocketAddr,
    app: Arc<App>,
    hosted: Vec<Hosted>,
    commands: Receiver<Command>,
}

impl Server {
    /// Listens at `address`, `host:port`; port 0 is any that is free.
    ///
    /// # Errors
    /// When there is no model, two have one name, or the address cannot be listened at.
    pub fn listen(config: Config, address: &str) -> Result<Self> {
        if config.models.is_empty() {
            return Err(Error::NoModel);
        }
        let failed = |source| Error::Listen {
            address: address.to_owned(),
            source,
        };
        let listener = TcpListener::bind(address).map_err(failed)?;
        listener.set_nonblocking(true).map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        let (to, commands) = channel();
        let mut served: Vec<Served> = Vec::new();
        let mut hosted = Vec::new();
        for model in config.models {
            if served.iter().any(|other| other.name == model.name) {
                return Err(Error::TwiceNamed(model.name));
            }
            let (one, host) = split(model, served.len(), &config.scheduler);
            served.push(one);
            hosted.push(host);
        }
        let app = App {
            models: served,
            commands: to,
            limits: config.limits,
            keys: config.keys,
            loopback: address.ip().is_loopback(),
            metrics: Metrics::default(),
            in_flight: AtomicUsize::new(0),
            closing: AtomicBool::new(false),
            log: config.log,
        };
        Ok(Self {
            listener,
            address,
            app: Arc::new(app),
            hosted,
            commands,
        })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves until `should_end`; then nothing new is taken, and what is under way is finished, as far as its limit allows. The calling
    /// thread computes.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub fn run(mut self, should_end: impl Fn() -> bool + Send + 'static) -> Result<()> {
        let (listener, app) = (self.listener, Arc::clone(&self.app));
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let front = thread::Builder::new().name("http".into()).spawn(move || {
            let served = runtime.block_on(serve(listener, &app, should_end));
            // However it ended, the other side is not to wait for ever.
            let _ = app.commands.send(Command::Stop);
            // Connections that outlived their time are cut.
            runtime.shutdown_background();
            served
        })?;
        host::run(&mut self.hosted, &self.commands);
        match front.join() {
            Ok(served) => served,
            Err(_) => Err(Error::Runtime(std::io::Error::other(
                "the thread that listens failed",
            ))),
        }
    }
}

/// A model as requests see it, and as the computing thread does.
fn split(model: Model, number: usize, options: &Options) -> (Served, Hosted) {
    let spec = model.text.model.spec();
    let positions = spec.learned_positions().unwrap_or(usize::MAX);
    let context = spec.context.min(positions).min(options.context).max(1);
    let options = Options {
        context,
        ..options.clone()
    };
    let hosted = Hosted::new(model.text.model.clone(), options);
    let silent = match &hosted.scheduler {
        Some(_) => None,
        None => {
            espalier_engine::scheduler::Scheduler::new(model.text.model.clone(), Options::default())
                .err()
                .map(|error| error.to_string())
        }
    };
    let template = model.text.tokenizer.template_for(true);
    let dialect = template.map_or(Dialect::None, |template| Dialect::of(template.source()));
    let served = Served {
        name: model.name,
        number,
        context,
        vocabulary: model.text.tokenizer.vocabulary_size().min(spec.vocabulary),
        silent,
        end: model.text.end_tokens(),
        sampler: model.sampler,
        stops: model.stops,
        embedder: model.embedder,
        dialect,
        created: now(),
        status: Arc::clone(&hosted.status),
        tokenizer: model.text.tokenizer,
    };
    (served, hosted)
}

async fn serve(
    listener: TcpListener,
    app: &Arc<App>,
    should_end: impl Fn() -> bool + Send + 'static,
) -> Result<()> {
    let listener = tokio::net::TcpListener::from_std(listener)?;
    let service = http::router(Arc::clone(app)).into_make_service_with_connect_info::<SocketAddr>();
    let closing = Arc::clone(app);
    let ending = async move {
        while !should_end() {
            sleep(LOOK).await;
        }
        closing.closing.store(true, Ordering::Relaxed);
    };
    let graceful = axum::serve(listener, service).with_graceful_shutdown(ending);
    let mut graceful = std::pin::pin!(graceful.into_future());
    // In turns, so that the time for farewells begins with the end.
    loop {
        let turn = match app.closing.load(Ordering::Relaxed) {
            true => app.limits.farewell,
            false => LOOK,
        };
        match timeout(turn, &mut graceful).await {
            Ok(served) => return Ok(served?),
            Err(_) if turn == app.limits.farewell => return Ok(()),
            Err(_) => {}
        }
    }
}
