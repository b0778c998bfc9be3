//! Continuous batching: requests come and leave between the steps of one loop, which computes all that are under way together.
//!
//! Iteration-level scheduling after Orca (OSDI 2022), with prompts read in chunks between the decoding steps (Sarathi, arXiv 2308.16369)
//! and a prefix cache by chained hashes (vLLM, arXiv 2309.06180, and its design notes). A step reads at most [`Options::chunk`] tokens of
//! prompts, then decodes one token of every row. Keys, values and states have a stated budget: who does not fit waits; where rows
//! outgrow it, the latest one of the lowest priority is sent back and reads its text again later ("preemption by recomputation"), with the
//! same tokens as if nothing had happened.
//!
//! A request's tokens depend on its prompt, options and seed alone: every row has its own sampler, and rows do not see each other.
//! Recurrent, hybrid and attention models are treated alike.
//!
//! Deviations: rows lie in one rectangle behind padding, not in scattered pages, so the budget counts the longest row for all of them; while
//! rows move into another rectangle both are there. Prompts are read one by one, beside the decoding steps and not within them.
//! Left out: 8-bit keys and values, drafts, encoder-decoders.

mod batch;
mod job;
mod logprobs;
mod memory;
mod prefix;
mod queue;
mod request;

use std::collections::HashMap;

use espalier_models::{
    model::{Input, LanguageModel},
    state::SequenceState,
};

pub use request::{Cancellation, Constraint, Ending, Listener, Logprobs, Request, Token};

use self::{
    batch::{Batch, last_logits},
    job::Job,
    memory::Footprint,
    prefix::{BLOCK, PrefixCache},
    queue::FairQueue,
};
use crate::{
    Error, Result,
    decode::{Finish, check_prompts},
};

/// Bounds of the scheduler.
#[derive(Debug, Clone, PartialEq)]
pub struct Options {
    /// Most bytes of keys, values and states, the prefix cache's included.
    pub memory: u64,
    /// Most rows that are computed together.
    pub rows: usize,
    /// Most tokens of prompts that are read between two decoding steps.
    pub chunk: usize,
    /// Most tokens of a text, prompt and answer together.
    pub context: usize,
    /// Whether what was read is kept for prompts that begin alike.
    pub prefix_cache: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            memory: 1 << 30,
            rows: 32,
            chunk: 256,
            context: usize::MAX,
            prefix_cache: true,
        }
    }
}

/// What the scheduler has done and is doing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Status {
    /// Requests that wait.
    pub waiting: usize,
    /// Requests whose prompts are being read.
    pub reading: usize,
    /// Rows that are decoded.
    pub decoding: usize,
    /// Bytes of keys, values and states, those of the prefix cache included.
    pub memory: u64,
    /// Bytes of the prefix cache.
    pub prefix_memory: u64,
    /// Tokens of prompts, so far.
    pub prompt_tokens: u64,
    /// Those of them that the prefix cache knew.
    pub cached_tokens: u64,
    /// Generated tokens, so far.
    pub generated_tokens: u64,
    /// Rows that were sent back for lack of memory, so far.
    pub preemptions: u64,
    /// Decoding steps, so far.
    pub steps: u64,
}

/// A prompt that is being read.
struct Reading {
    job: Job,
    state: SequenceState,
    done: usize,
}

/// Computes all requests of one model.
///
/// ```
/// use burn::tensor::Device;
/// use espalier_engine::{sampler::SamplerOptions, scheduler::{Ending, Listener, Options, Request, Scheduler, Token}};
/// use espalier_models::{model::LanguageModel, source::Seed, spec::ModelSpec};
/// struct Show;
/// impl Listener for Show {
///     fn token(&mut self, token: &Token) -> bool { println!("{}", token.id); true }
///     fn end(&mut self, ending: espalier_engine::Result<Ending>) { assert_eq!(ending.unwrap().generated, 4) }
/// }
/// let model = LanguageModel::build(ModelSpec::llama(64, 16, 2, 2, 1, 32, 32), &mut Seed(0), &Device::flex())?;
/// let mut scheduler = Scheduler::new(model, Options::default())?;
/// scheduler.submit(Request::new(vec![1, 2, 3], 4, SamplerOptions::default(), Show));
/// while scheduler.step() {}
/// assert_eq!(scheduler.status().generated_tokens, 4);
/// # Ok::<(), espalier_engine::Error>(())
/// ```
pub struct Scheduler {
    model: LanguageModel,
    options: Options,
    footprint: Footprint,
    queue: FairQueue<Job>,
    reading: Vec<Reading>,
    batch: Batch,
    prefixes: PrefixCache,
    status: Status,
    requests: u64,
}

impl Scheduler {
    /// A scheduler without requests.
    ///
    /// # Errors
    /// When the model does not generate, or is an encoder-decoder.
    pub fn new(model: LanguageModel, options: Options) -> Result<Self> {
        check_prompts(&model, 0, &[])?;
        if model.spec().encoder.is_some() {
            return Err(Error::EncoderDecoder);
        }
        Ok(Self {
            footprint: Footprint::new(model.spec()),
            model,
            options,
            queue: FairQueue::default(),
            reading: Vec::new(),
            batch: Batch::default(),
            prefixes: PrefixCache::default(),
            status: Status::default(),
            requests: 0,
        })
    }

    /// The model.
    pub fn model(&self) -> &LanguageModel {
        &self.model
    }

    /// Takes a request. One that can never be served ends at once.
    pub fn submit(&mut self, request: Request) {
        self.requests += 1;
        let refused = self.refused(&request);
        let (mut request, error) = match (refused, Job::new(request, self.requests)) {
            (None, Ok(job)) => {
                let (priority, client) = (job.request.priority, job.request.client);
                return self.queue.push(job, priority, client, false);
            }
            (Some(error), Ok(job)) => (job.request, error),
            (_, Err(failed)) => *failed,
        };
        request.listener.end(Err(error));
    }

    /// Why a request can never be served.
    fn refused(&self, request: &Request) -> Option<Error> {
        let prompt = std::slice::from_ref(&request.prompt);
        if let Err(error) = check_prompts(&self.model, 0, prompt) {
            return Some(error);
        }
        let tokens = request.prompt.len().saturating_add(request.max_new_tokens);
        if tokens > self.options.context {
            return Some(Error::BeyondContext {
                prompt: request.prompt.len(),
                new: request.max_new_tokens,
                limit: self.options.context,
            });
        }
        let needed = self.footprint.together(1, tokens) + self.footprint.alone(tokens);
        (needed > self.options.memory).then_some(Error::BeyondMemory {
            tokens,
            needed,
            budget: self.options.memory,
        })
    }

    /// Reads a chunk of prompts and decodes a token of every row; whether there is more to do.
    pub fn step(&mut self) -> bool {
        self.drop_cancelled();
        self.admit();
        self.read();
        self.make_room();
        if self.batch.len() > 0 {
            self.decode();
        }
        self.prune(0);
        self.queue.len() + self.reading.len() + self.batch.len() > 0
    }

    /// What is going on.
    pub fn status(&self) -> Status {
        Status {
            waiting: self.queue.len(),
            reading: self.reading.len(),
            decoding: self.batch.len(),
            memory: self.used(),
            prefix_memory: self.prefixes.bytes(),
            ..self.status
        }
    }

    /// Ends every request, which is told `reason`.
    pub fn abort(&mut self, reason: &str) {
        let mut jobs = self.queue.take_all(|_| true);
        jobs.extend(self.reading.drain(..).map(|reading| reading.job));
        jobs.extend(self.batch.take(|_| true));
        for job in jobs {
            job.end(Err(Error::Together(reason.to_owned())));
        }
    }

    /// Bytes that are in use, the prefix cache's included.
    fn used(&self) -> u64 {
        let reading = |reading: &Reading| self.footprint.alone(reading.job.history.len());
        let reading: u64 = self.reading.iter().map(reading).sum();
        self.batch.bytes() + reading + self.prefixes.bytes()
    }

    fn drop_cancelled(&mut self) {
        let gone = |job: &Job| job.request.cancelled.is_cancelled();
        let mut dropped = self.queue.take_all(gone);
        dropped.extend(self.batch.take(gone));
        let (out, rest): (Vec<Reading>, Vec<Reading>) = std::mem::take(&mut self.reading)
            .into_iter()
            .partition(|reading| gone(&reading.job));
        self.reading = rest;
        dropped.extend(out.into_iter().map(|reading| reading.job));
        for job in dropped {
            job.end(Ok(Finish::Stopped));
        }
    }

    /// Begins with waiting requests as far as rows and memory allow.
    fn admit(&mut self) {
        while self.batch.len() + self.reading.len() < self.options.rows {
            let mut under_way: HashMap<u64, usize> = HashMap::new();
            let reading = self.reading.iter().map(|reading| &reading.job);
            for job in self.batch.jobs().chain(reading) {
                *under_way.entry(job.request.client).or_default() += 1;
            }
            let Some(place) = self.queue.next(&under_way) else {
                return;
            };
            let tokens = self.queue.get(place).map_or(0, |job| job.history.len());
            if !self.fits(tokens) {
                return;
            }
            let Some(job) = self.queue.take(place) else {
                return;
            };
            self.begin(job);
        }
    }

    /// Whether one more text of so many tokens fits beside those under way; prefixes make room for it.
    fn fits(&mut self, tokens: usize) -> bool {
        let rows = self.batch.len() + self.reading.len() + 1;
        let lengths = self.reading.iter().map(|reading| reading.job.history.len());
        let longest = lengths.max().unwrap_or(0);
        let longest = longest.max(tokens).max(self.batch.longest()) + 1;
        let reading = |reading: &Reading| self.footprint.alone(reading.job.history.len());
        let reading: u64 = self.reading.iter().map(reading).sum();
        let together = self.footprint.together(rows, longest);
        let needed = together
            .saturating_add(reading)
            .saturating_add(self.footprint.alone(tokens));
        while needed.saturating_add(self.prefixes.bytes()) > self.options.memory {
            if !self.prefixes.drop_oldest() {
                // What was admitted alone fits by itself.
                return rows == 1;
            }
        }
        true
    }

    fn begin(&mut self, mut job: Job) {
        let found = match self.options.prefix_cache && !self.model.has_interventions() {
            true => self.prefixes.find(self.model.spec(), &job.history),
            false => None,
        };
        let (done, state) = found.unwrap_or_else(|| (0, SequenceState::new(self.model.spec())));
        if job.generated().is_empty() {
            job.cached = done;
            self.status.prompt_tokens += job.prompt as u64;
            self.status.cached_tokens += done as u64;
        }
        self.reading.push(Reading { job, state, done });
    }

    /// Reads the next chunk of the prompts, in their order; texts that were read whole get their next token and join the batch.
    fn read(&mut self) {
        let mut left = self.options.chunk.max(1);
        let mut ready = Vec::new();
        let mut ended = Vec::new();
        let mut reading = std::mem::take(&mut self.reading).into_iter();
        for mut one in reading.by_ref() {
            match self.read_one(&mut one, &mut left) {
                Ok(None) => self.reading.push(one),
                Ok(Some(logits)) => match one.job.advance(self.model.spec(), &logits) {
                    Ok(None) => ready.push(one),
                    Ok(Some(finish)) => ended.push((one, Ok(finish))),
                    Err(error) => ended.push((one, Err(error))),
                },
                Err(error) => ended.push((one, Err(error))),
            }
            if left == 0 {
                break;
            }
        }
        self.reading.extend(reading);
        let (jobs, states): (Vec<Job>, Vec<(Vec<u32>, SequenceState)>) = ready
            .into_iter()
            .map(|one| {
                let read = one.job.history[..one.done].to_vec();
                (one.job, (read, one.state))
            })
            .unzip();
        self.status.generated_tokens += jobs.len() as u64;
        if !jobs.is_empty() {
            let states = states.iter().map(|(_, state)| state);
            self.batch.join(jobs.into_iter().zip(states).collect());
        }
        for (ids, state) in states {
            self.keep(&ids, state);
        }
        for (one, finish) in ended {
            if finish.is_ok() {
                self.status.generated_tokens += 1;
                self.keep(&one.job.history[..one.done], one.state);
            }
            one.job.end(finish);
        }
    }

    /// Reads a part of a text; the logits behind its end, once it is read.
    fn read_one(&mut self, one: &mut Reading, left: &mut usize) -> Result<Option<Vec<f32>>> {
        let total = one.job.history.len();
        while *left > 0 {
            let mut count = (*left).min(total - one.done);
            // Frequencies that depend on the length of the text are those of the whole.
            if self.model.spec().stales_cache(one.done + count, total) {
                count = total - one.done;
            }
            let cuts = one.state.keeps_every_token();
            let last_block = (total - 1) / BLOCK * BLOCK;
            if self.options.prefix_cache && !cuts && one.done < last_block {
                count = count.min(last_block - one.done);
            }
            let input = Input {
                ids: one.job.history[one.done..one.done + count].to_vec(),
                batch: 1,
                prompts: Some(vec![one.job.prompt as u32; count]),
                ..Input::default()
            };
            one.done += count;
            *left = left.saturating_sub(count);
            if one.done == total {
                return last_logits(&self.model, &input, Some(&mut one.state)).map(Some);
            }
            self.model.hidden(&input, Some(&mut one.state))?;
            if !cuts && one.done.is_multiple_of(BLOCK) && one.done == last_block {
                let ids = one.job.history[..one.done].to_vec();
                self.keep(&ids, one.state.clone());
            }
        }
        Ok(None)
    }

    /// Keeps what was read for later prompts.
    fn keep(&mut self, ids: &[u32], state: SequenceState) {
        if self.options.prefix_cache && !self.model.has_interventions() {
            self.prefixes.keep(ids, state);
        }
    }

    /// Drops prefixes until `more` bytes fit; whether they do.
    fn prune(&mut self, more: u64) -> bool {
        while self.used().saturating_add(more) > self.options.memory {
            if !self.prefixes.drop_oldest() {
                return false;
            }
        }
        true
    }

    /// Sees that every row has room for its next token; rows that do not fit any more are sent back.
    fn make_room(&mut self) {
        self.send_stale_back();
        while self.batch.is_full() || self.batch.is_wasteful() {
            let after = self
                .footprint
                .together(self.batch.len(), self.batch.longest() + 1);
            let more = after.saturating_sub(self.batch.bytes());
            if self.prune(more) || self.batch.len() <= 1 {
                self.batch.regroup(Vec::new());
                return;
            }
            self.send_last_back();
        }
    }

    /// Sends the latest row of the lowest priority back to the queue.
    fn send_last_back(&mut self) {
        let rank = |job: &Job| (std::cmp::Reverse(job.request.priority), job.number);
        let Some(last) = self
            .batch
            .jobs()
            .max_by_key(|job| rank(job))
            .map(|job| job.number)
        else {
            return;
        };
        self.send_back(|job| job.number == last);
    }

    /// Rows whose keys were made with frequencies of a shorter text read it again.
    fn send_stale_back(&mut self) {
        let spec = self.model.spec().clone();
        self.send_back(|job| {
            let length = job.history.len();
            spec.stales_cache(length - 1, length)
        });
    }

    fn send_back(&mut self, which: impl FnMut(&Job) -> bool) {
        for job in self.batch.take(which) {
            self.status.preemptions += 1;
            let (priority, client) = (job.request.priority, job.request.client);
            self.queue.push(job, priority, client, true);
        }
    }

    fn decode(&mut self) {
        let keep = self.options.prefix_cache && !self.model.has_interventions();
        self.status.generated_tokens += self.batch.len() as u64;
        self.status.steps += 1;
        for mut ended in self.batch.step(&self.model, keep) {
            if let Some(state) = ended.state.take() {
                let ids = ended.job.history[..state.length()].to_vec();
                self.keep(&ids, state);
            }
            ended.job.end(ended.finish);
        }
    }
}
