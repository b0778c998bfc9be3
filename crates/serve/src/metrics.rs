//! Figures for Prometheus, in its text format.

use std::{
    collections::BTreeMap,
    fmt::Write,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use espalier_engine::scheduler::Status;

/// Upper bounds of the histograms, in seconds.
const BOUNDS: [f64; 14] = [
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0,
];

#[derive(Debug, Default, Clone)]
struct Histogram {
    counts: [u64; BOUNDS.len()],
    count: u64,
    sum: f64,
}

impl Histogram {
    fn add(&mut self, seconds: f64) {
        for (count, bound) in self.counts.iter_mut().zip(BOUNDS) {
            *count += u64::from(seconds <= bound);
        }
        self.count += 1;
        self.sum += seconds;
    }

    fn write(&self, out: &mut String, name: &str, help: &str) {
        let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} histogram");
        for (count, bound) in self.counts.iter().zip(BOUNDS) {
            let _ = writeln!(out, "{name}_bucket{{le=\"{bound}\"}} {count}");
        }
        let (count, sum) = (self.count, self.sum);
        let _ = writeln!(
            out,
            "{name}_bucket{{le=\"+Inf\"}} {count}\n{name}_sum {sum}\n{name}_count {count}"
        );
    }
}

#[derive(Debug, Default)]
struct Figures {
    /// By path and status.
    requests: BTreeMap<(String, u16), u64>,
    first_token: Histogram,
    between_tokens: Histogram,
    whole: Histogram,
}

/// What the server counts.
#[derive(Debug, Default)]
pub(crate) struct Metrics(Mutex<Figures>);

impl Metrics {
    fn change(&self, what: impl FnOnce(&mut Figures)) {
        what(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// A request was answered; `path` is one of the server's own.
    pub fn request(&self, path: &str, status: u16, took: Duration) {
        self.change(|figures| {
            let key = (path.to_owned(), status);
            *figures.requests.entry(key).or_default() += 1;
            figures.whole.add(took.as_secs_f64());
        });
    }

    /// The first piece of an answer came.
    pub fn first(&self, after: Duration) {
        self.change(|figures| figures.first_token.add(after.as_secs_f64()));
    }

    /// A further piece came.
    pub fn next(&self, after: Duration) {
        self.change(|figures| figures.between_tokens.add(after.as_secs_f64()));
    }

    /// Everything, with the models' figures.
    pub fn render(&self, models: &[(String, Status)], in_flight: usize) -> String {
        let mut out = String::new();
        let figures = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        out.push_str(
            "# HELP espalier_requests_total Answered requests\n# TYPE espalier_requests_total counter\n",
        );
        for ((path, status), count) in &figures.requests {
            let _ = writeln!(
                out,
                "espalier_requests_total{{path=\"{path}\",status=\"{status}\"}} {count}"
            );
        }
        let _ = writeln!(
            out,
            "# HELP espalier_requests_in_flight Answers that are being made\n# TYPE espalier_requests_in_flight gauge\nespalier_requests_in_flight {in_flight}"
        );
        figures.first_token.write(
            &mut out,
            "espalier_time_to_first_token_seconds",
            "From the request to the first piece of text",
        );
        figures.between_tokens.write(
            &mut out,
            "espalier_time_between_tokens_seconds",
            "From one piece of text to the next",
        );
        figures.whole.write(
            &mut out,
            "espalier_request_seconds",
            "From the request to the response, of a stream to its beginning",
        );
        drop(figures);
        type Figure = (&'static str, &'static str, &'static str, fn(&Status) -> u64);
        let all: [Figure; 9] = [
            ("waiting_requests", "gauge", "Requests in the queue", |s| {
                s.waiting as u64
            }),
            (
                "reading_requests",
                "gauge",
                "Requests whose prompts are being read",
                |s| s.reading as u64,
            ),
            (
                "decoding_requests",
                "gauge",
                "Rows that are decoded together",
                |s| s.decoding as u64,
            ),
            (
                "cache_bytes",
                "gauge",
                "Keys, values and states, prefixes included",
                |s| s.memory,
            ),
            (
                "prefix_cache_bytes",
                "gauge",
                "What is kept of earlier prompts",
                |s| s.prefix_memory,
            ),
            ("prompt_tokens_total", "counter", "Tokens of prompts", |s| {
                s.prompt_tokens
            }),
            (
                "prefix_cache_hit_tokens_total",
                "counter",
                "Tokens of prompts that were known",
                |s| s.cached_tokens,
            ),
            (
                "generated_tokens_total",
                "counter",
                "Generated tokens",
                |s| s.generated_tokens,
            ),
            (
                "preemptions_total",
                "counter",
                "Rows sent back for lack of memory",
                |s| s.preemptions,
            ),
        ];
        for (name, kind, help, value) in all {
            let _ = writeln!(
                out,
                "# HELP espalier_{name} {help}\n# TYPE espalier_{name} {kind}"
            );
            for (model, status) in models {
                let model = model.replace(['\\', '"', '\n'], "_");
                let value = value(status);
                let _ = writeln!(out, "espalier_{name}{{model=\"{model}\"}} {value}");
            }
        }
        out
    }
}
