//! The scheduler: tokens are those of plain decoding, whatever else is computed.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test may fail loudly")]

use std::sync::mpsc::{Receiver, Sender, channel};

use burn::tensor::Device;
use espalier_engine::{
    Result,
    decode::{DecodeOptions, Finish, decode},
    sampler::SamplerOptions,
    scheduler::{Cancellation, Ending, Listener, Options, Request, Scheduler, Token},
};
use espalier_models::{folder, model::LanguageModel};

/// Attention, learned positions, a recurrent model, hybrids, a window, latents, experts.
const MODELS: [&str; 9] = [
    "llama",
    "gpt2",
    "mamba",
    "jamba",
    "recurrent-gemma",
    "rwkv7",
    "deepseek-v2",
    "bloom-alibi",
    "mistral",
];

fn model(name: &str) -> LanguageModel {
    let path = format!("{}/../../tests/fixtures/{name}", env!("CARGO_MANIFEST_DIR"));
    let loaded = folder::load(path.as_ref(), &Device::flex()).unwrap();
    loaded.model.frozen()
}

/// Texts that are all different and of different lengths.
fn prompt(number: usize) -> Vec<u32> {
    let length = 3 + number * 7 % 23;
    (0..length)
        .map(|place| (4 + (number * 13 + place * 5) % 50) as u32)
        .collect()
}

fn sampler(seed: u64) -> SamplerOptions {
    SamplerOptions {
        temperature: 1.0,
        top_p: 0.95,
        seed,
        ..SamplerOptions::default()
    }
}

#[derive(Debug, PartialEq)]
enum Heard {
    Token(u32),
    End(std::result::Result<Ending, String>),
}

struct Ear {
    number: usize,
    said: Sender<(usize, Heard)>,
    longest: usize,
    heard: usize,
}

impl Listener for Ear {
    fn token(&mut self, token: &Token) -> bool {
        self.heard += 1;
        self.said
            .send((self.number, Heard::Token(token.id)))
            .unwrap();
        self.heard < self.longest
    }

    fn end(&mut self, ending: Result<Ending>) {
        let ending = ending.map_err(|error| error.to_string());
        self.said.send((self.number, Heard::End(ending))).unwrap();
    }
}

struct Trial {
    scheduler: Scheduler,
    said: Sender<(usize, Heard)>,
    heard: Receiver<(usize, Heard)>,
    tokens: Vec<Vec<u32>>,
    endings: Vec<Option<std::result::Result<Ending, String>>>,
}

impl Trial {
    fn new(model: LanguageModel, options: Options) -> Self {
        let (said, heard) = channel();
        Self {
            scheduler: Scheduler::new(model, options).unwrap(),
            said,
            heard,
            tokens: Vec::new(),
            endings: Vec::new(),
        }
    }

    fn request(&mut self, prompt: Vec<u32>, new: usize, seed: u64) -> Request {
        let ear = Ear {
            number: self.tokens.len(),
            said: self.said.clone(),
            longest: usize::MAX,
            heard: 0,
        };
        self.tokens.push(Vec::new());
        self.endings.push(None);
        Request::new(prompt, new, sampler(seed), ear)
    }

    fn submit(&mut self, prompt: Vec<u32>, new: usize, seed: u64) {
        let request = self.request(prompt, new, seed);
        self.scheduler.submit(request);
    }

    fn listen(&mut self) {
        for (number, heard) in self.heard.try_iter() {
            assert!(
                self.endings[number].is_none(),
                "nothing comes after the end"
            );
            match heard {
                Heard::Token(token) => self.tokens[number].push(token),
                Heard::End(ending) => self.endings[number] = Some(ending),
            }
        }
    }

    fn finish(&mut self) {
        for _ in 0..10_000 {
            if !self.scheduler.step() {
                self.listen();
                return;
            }
        }
        panic!(
            "the scheduler does not come to an end: {:?}",
            self.scheduler.status()
        );
    }
}

/// What plain decoding makes of it.
fn alone(model: &LanguageModel, prompt: &[u32], new: usize, seed: u64) -> Vec<u32> {
    let options = DecodeOptions {
        max_new_tokens: new,
        sampler: sampler(seed),
        end: Vec::new(),
    };
    let found = decode(model, &[prompt.to_vec()], &options, &mut |_, _| true);
    found.unwrap().remove(0).ids
}

#[test]
fn tokens_do_not_depend_on_neighbours() {
    for name in MODELS {
        let model = model(name);
        let new = 14;
        let expected = alone(&model, &prompt(0), new, 7);
        for neighbours in [0, 1, 16] {
            let options = Options {
                chunk: 5,
                ..Options::default()
            };
            let mut trial = Trial::new(model.clone(), options);
            // Neighbours come before, with and after it, and end at other times.
            for number in 1..=neighbours / 2 {
                trial.submit(prompt(number), 3 + number % 9, number as u64);
            }
            trial.scheduler.step();
            let own = trial.tokens.len();
            trial.submit(prompt(0), new, 7);
            for number in neighbours / 2 + 1..=neighbours {
                trial.scheduler.step();
                trial.submit(prompt(number), 3 + number % 11, number as u64);
            }
            trial.finish();
            assert_eq!(
                trial.tokens[own], expected,
                "{name}, {neighbours} neighbours"
            );
            let ending = trial.endings[own].clone().unwrap().unwrap();
            assert_eq!((ending.finish, ending.generated), (Finish::Length, new));
        }
    }
}

#[test]
fn every_neighbour_gets_its_own_tokens() {
    for name in ["llama", "jamba", "mamba"] {
        let model = model(name);
        let mut trial = Trial::new(model.clone(), Options::default());
        for number in 0..12 {
            trial.submit(prompt(number), 4 + number % 6, number as u64);
            trial.scheduler.step();
        }
        trial.finish();
        for number in 0..12 {
            let expected = alone(&model, &prompt(number), 4 + number % 6, number as u64);
            assert_eq!(trial.tokens[number], expected, "{name}, request {number}");
        }
    }
}

#[test]
fn too_little_memory_sends_rows_back_and_changes_nothing() {
    for name in ["llama", "jamba"] {
        let model = model(name);
        let spec = model.spec();
        // Room for two rows of a hundred and some tokens, not for six that grow.
        let room = 300 * spec.cache_per_token() + 8 * spec.state_size();
        let options = Options {
            memory: room * 2,
            ..Options::default()
        };
        let mut trial = Trial::new(model.clone(), options);
        for number in 0..6 {
            trial.submit(prompt(number), 75, number as u64);
        }
        let mut most = 0;
        while trial.scheduler.step() {
            let status = trial.scheduler.status();
            most = most.max(status.memory);
            assert!(status.memory <= room * 2, "{name}: {status:?}");
        }
        trial.listen();
        assert!(most > 0);
        for number in 0..6 {
            let new = 75.min(alone(&model, &prompt(number), 75, number as u64).len());
            let expected = alone(&model, &prompt(number), new, number as u64);
            assert_eq!(trial.tokens[number], expected, "{name}, request {number}");
        }
    }
}

#[test]
fn growing_rows_are_preempted() {
    let model = model("llama");
    let spec = model.spec();
    // Admission sees short prompts; what they grow to does not fit.
    let options = Options {
        memory: 4 * 192 * spec.cache_per_token() + 64 * spec.cache_per_token(),
        prefix_cache: false,
        ..Options::default()
    };
    let mut trial = Trial::new(model.clone(), options);
    for number in 0..4 {
        trial.submit(vec![5, 6 + number], 150, u64::from(number));
    }
    trial.finish();
    assert!(trial.scheduler.status().preemptions > 0);
    for number in 0..4 {
        let expected = alone(&model, &[5, 6 + number], 150, u64::from(number));
        assert_eq!(trial.tokens[number as usize], expected, "request {number}");
    }
}

#[test]
fn prefixes_are_read_once_and_change_nothing() {
    for name in ["llama", "mamba", "jamba", "gpt2"] {
        let model = model(name);
        let shared: Vec<u32> = (0..33).map(|place| 4 + place * 7 % 50).collect();
        let with = |tail: &[u32]| [shared.as_slice(), tail].concat();
        let mut trial = Trial::new(model.clone(), Options::default());
        let prompts = [with(&[9]), with(&[11, 12]), with(&[9]), with(&[13, 5])];
        for (number, prompt) in prompts.iter().enumerate() {
            trial.submit(prompt.clone(), 6, number as u64);
            trial.finish();
        }
        for (number, prompt) in prompts.iter().enumerate() {
            let expected = alone(&model, prompt, 6, number as u64);
            assert_eq!(trial.tokens[number], expected, "{name}, request {number}");
            let cached = trial.endings[number].clone().unwrap().unwrap().cached;
            assert_eq!(
                cached,
                if number == 0 { 0 } else { 32 },
                "{name}, request {number}"
            );
        }
        // Other tokens at the same places share nothing.
        let mut other = with(&[9]);
        other[2] += 1;
        trial.submit(other, 2, 0);
        trial.finish();
        assert_eq!(trial.endings[4].clone().unwrap().unwrap().cached, 0);
    }
}

#[test]
fn the_prefix_cache_stays_within_the_budget() {
    let model = model("llama");
    let budget = 700 * model.spec().cache_per_token();
    let options = Options {
        memory: budget,
        ..Options::default()
    };
    let mut trial = Trial::new(model, options);
    for number in 0..40u32 {
        let prompt = (0..20).map(|place| 4 + (number + place * 3) % 50).collect();
        trial.submit(prompt, 3, 0);
        trial.finish();
        assert!(trial.scheduler.status().memory <= budget);
    }
    assert!(trial.scheduler.status().prefix_memory > 0);
}

#[test]
fn whoever_leaves_is_dropped_everywhere() {
    let model = model("llama");
    let options = Options {
        rows: 2,
        chunk: 4,
        ..Options::default()
    };
    let mut trial = Trial::new(model.clone(), options);
    let cancellations: Vec<Cancellation> = (0..4)
        .map(|number| {
            let request = trial.request(prompt(2), 40, number);
            let cancellation = request.cancelled.clone();
            trial.scheduler.submit(request);
            cancellation
        })
        .collect();
    for _ in 0..5 {
        trial.scheduler.step();
    }
    let status = trial.scheduler.status();
    assert_eq!(status.waiting, 2, "{status:?}");
    cancellations.iter().for_each(Cancellation::cancel);
    assert!(!trial.scheduler.step());
    trial.listen();
    for ending in &trial.endings {
        assert_eq!(ending.clone().unwrap().unwrap().finish, Finish::Stopped);
    }
    // And the rest goes on as if nothing had been.
    trial.submit(prompt(3), 5, 3);
    trial.finish();
    assert_eq!(trial.tokens[4], alone(&model, &prompt(3), 5, 3));
}

#[test]
fn what_can_never_be_served_is_refused_alone() {
    let model = model("gpt2");
    let options = Options {
        context: 40,
        memory: 1 << 30,
        ..Options::default()
    };
    let mut trial = Trial::new(model.clone(), options);
    trial.submit(Vec::new(), 5, 0);
    trial.submit(vec![5; 20], 30, 0);
    trial.submit(vec![5, 999_999], 5, 0);
    trial.submit(vec![5, 6], 5, 0);
    trial.finish();
    let said = |number: usize| trial.endings[number].clone().unwrap().unwrap_err();
    assert!(said(0).contains("the prompt is empty"), "{}", said(0));
    assert!(said(1).contains("the context is 40 tokens"), "{}", said(1));
    assert!(said(2).contains("999999"), "{}", said(2));
    assert_eq!(trial.tokens[3], alone(&model, &[5, 6], 5, 0));
    let small = Options {
        memory: 1000,
        ..Options::default()
    };
    let mut trial = Trial::new(model, small);
    trial.submit(vec![5, 6], 5, 0);
    trial.finish();
    let said = trial.endings[0].clone().unwrap().unwrap_err();
    assert!(said.contains("the budget is 1000"), "{said}");
}

#[test]
fn log_probabilities_are_those_of_the_model() {
    let model = model("llama");
    type Told = (u32, f32, Vec<(u32, f32)>);
    struct Sum(Sender<Told>);
    impl Listener for Sum {
        fn token(&mut self, token: &Token) -> bool {
            let told = token.logprobs.clone().unwrap();
            self.0.send((token.id, told.chosen, told.likeliest)).is_ok()
        }
        fn end(&mut self, _: Result<Ending>) {}
    }
    let (said, heard) = channel();
    let mut request = Request::new(prompt(1), 5, sampler(3), Sum(said));
    request.logprobs = Some(61);
    let mut scheduler = Scheduler::new(model, Options::default()).unwrap();
    scheduler.submit(request);
    while scheduler.step() {}
    drop(scheduler);
    let told: Vec<_> = heard.iter().collect();
    assert_eq!(told.len(), 5);
    for (id, chosen, likeliest) in told {
        let mass: f64 = likeliest.iter().map(|(_, p)| f64::from(*p).exp()).sum();
        assert!((mass - 1.0).abs() < 1e-4, "{mass}");
        assert!(likeliest.is_sorted_by(|a, b| a.1 >= b.1));
        assert_eq!(
            likeliest.iter().find(|(one, _)| *one == id).unwrap().1,
            chosen
        );
    }
}

/// Requests of all sizes that come, end and leave in any order, in memory that is always too small.
#[test]
fn any_order_of_coming_and_leaving_gives_the_same_tokens() {
    for name in ["llama", "jamba"] {
        let model = model(name);
        let spec = model.spec();
        let options = Options {
            memory: 1500 * spec.cache_per_token() + 20 * spec.state_size(),
            rows: 8,
            chunk: 32,
            ..Options::default()
        };
        let mut random = espalier_data::random::Random::new(5);
        let mut trial = Trial::new(model.clone(), options);
        let mut asked = Vec::new();
        let mut leaving = Vec::new();
        for number in 0..300 {
            let length = 1 + random.below(60);
            let shared = random.below(4) as u32;
            let text: Vec<u32> = (0..length as u32)
                .map(|place| 4 + (shared + place * 3) % 50)
                .collect();
            let leaves = random.below(5) == 0;
            let new = if leaves { 90 } else { 1 + random.below(30) };
            let request = trial.request(text.clone(), new, number);
            if leaves {
                leaving.push(request.cancelled.clone());
            } else {
                asked.push((number as usize, text, new, number));
            }
            trial.scheduler.submit(request);
            for _ in 0..random.below(6) {
                trial.scheduler.step();
            }
            if random.below(3) == 0 && !leaving.is_empty() {
                leaving.remove(random.below(leaving.len())).cancel();
            }
        }
        leaving.iter().for_each(Cancellation::cancel);
        trial.finish();
        for (number, text, new, seed) in &asked {
            let expected = alone(&model, text, *new, *seed);
            assert_eq!(trial.tokens[*number], expected, "{name}, request {number}");
        }
        let status = trial.scheduler.status();
        // A hybrid's few keys fit all the same.
        assert!(status.preemptions > 0 || name == "jamba", "{status:?}");
    }
}
