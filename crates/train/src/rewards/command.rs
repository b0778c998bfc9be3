//! A reward by a program of one's own: it is started once and asked in JSON lines.
//!
//! For each answer it gets one line, `{"id": ..., "prompt": ..., "messages": [...], "completion": ..., "record": {...}}`, and prints one: a
//! number, `null` where it has no opinion, or `{"reward": ...}`. The lines of a batch are sent without waiting, the answers are expected in
//! the same order. Output must be flushed line by line. What the program writes to its standard error is kept for messages.
//!
//! A line too many would give every later answer the reward of another one, so that it is waited for behind each batch, for as long as an
//! answer has taken. A program that repeats the id, `{"id": ..., "reward": ...}`, proves whose reward it is, and is not waited for.

use std::{
    collections::VecDeque,
    io::{BufRead, BufReader, Read, Write},
    process::{Child, ChildStderr, ChildStdin, ChildStdout, Command, Stdio},
    sync::{
        Arc, Mutex,
        mpsc::{self, Receiver, RecvTimeoutError, Sender},
    },
    thread,
    time::{Duration, Instant},
};

use burn::tensor::Device;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Asked, Read as Named, Reward, Source, failed, parsed, shortened};
use crate::{Error, Result};

/// The options of a command.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CommandOptions {
    /// The program and its arguments, such as `["python3", "reward.py"]`; files among them are part of what the stage is made of.
    pub run: Vec<String>,
    /// Longest wait for an answer, in seconds.
    #[serde(default = "usual_timeout")]
    #[schemars(extend("exclusiveMinimum" = 0.0), range(max = 86400.0))]
    pub timeout: f64,
}

fn usual_timeout() -> f64 {
    60.0
}

impl Source for CommandOptions {
    fn reads(&mut self) -> Vec<Named<'_>> {
        self.run.iter().map(|word| Named::File(word)).collect()
    }

    fn build(&self, _: &Device) -> Result<Box<dyn Reward>> {
        Ok(Box::new(CommandReward::new(self.clone())?))
    }

    fn check(&self) -> Result<()> {
        if self.run.first().is_none_or(String::is_empty) {
            return Err(Error::Option {
                key: "run",
                reason: "names no program; give it with its arguments, such as [\"python3\", \"reward.py\"]".into(),
            });
        }
        check_timeout(self.timeout)
    }
}

/// Whether a wait in seconds makes sense.
///
/// # Errors
/// When it does not.
pub(super) fn check_timeout(seconds: f64) -> Result<()> {
    match seconds > 0.0 && seconds <= 86400.0 {
        true => Ok(()),
        false => Err(Error::Option {
            key: "timeout",
            reason: format!("{seconds} seconds is outside 0 to 86400"),
        }),
    }
}

/// Lines that are kept for messages.
const KEPT_LINES: usize = 8;

/// How long a program that closed its output may take to end, before its end is not waited for.
const LAST_MOMENTS: Duration = Duration::from_millis(500);

/// How long at least a line too many is waited for.
const LAST_LINE: Duration = Duration::from_millis(200);

/// The program, started when it is first asked.
#[derive(Debug)]
pub struct CommandReward {
    options: CommandOptions,
    running: Option<Running>,
}

impl CommandReward {
    /// # Errors
    /// When the options make no sense.
    pub(super) fn new(options: CommandOptions) -> Result<Self> {
        options.check()?;
        Ok(Self {
            options,
            running: None,
        })
    }

    fn failed(&self, reason: String) -> Error {
        failed(
            "command",
            format!("`{}` {reason}", self.options.run.join(" ")),
        )
    }
}

impl Reward for CommandReward {
    fn score(&mut self, answers: &[Asked<'_>]) -> Result<Vec<Option<f64>>> {
        let mut running = match self.running.take() {
            Some(running) => running,
            None => Running::start(&self.options.run).map_err(|error| {
                self.failed(format!(
                    "cannot be started: {error}; check the program's name"
                ))
            })?,
        };
        let wait = Duration::from_secs_f64(self.options.timeout);
        match running.ask(answers, wait) {
            Ok(scores) => {
                self.running = Some(running);
                Ok(scores)
            }
            Err((number, fault)) => {
                let place = format!("answer {number} of {}", answers.len());
                let reason = running.explain(&fault, &place, self.options.timeout);
                Err(self.failed(reason))
            }
        }
    }
}

/// Why there is no reward.
enum Fault {
    /// The output ended.
    Ended,
    /// Nothing came in time.
    Silent,
    /// What came is no number.
    Wrong(String),
    /// What came is of another question, or of none.
    Shifted(String),
}

/// A program under way. Its pipes have threads of their own, so that neither side ever waits for the other to read.
#[derive(Debug)]
struct Running {
    child: Child,
    questions: Option<Sender<String>>,
    lines: Receiver<String>,
    errors: Arc<Mutex<VecDeque<String>>>,
    /// Questions that were asked.
    asked: u64,
}

impl Running {
    fn start(run: &[String]) -> std::io::Result<Self> {
        let (program, arguments) = run.split_first().ok_or(std::io::ErrorKind::NotFound)?;
        let mut command = Command::new(program);
        command
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        // Ctrl-C asks the run to finish its step, for which it needs the program.
        #[cfg(unix)]
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        let mut child = command.spawn()?;
        let (questions, asked) = mpsc::channel();
        let (said, lines) = mpsc::channel();
        let errors = Arc::default();
        if let Some(input) = child.stdin.take() {
            thread::spawn(move || write_lines(input, &asked));
        }
        if let Some(output) = child.stdout.take() {
            thread::spawn(move || read_lines(output, &said));
        }
        if let Some(output) = child.stderr.take() {
            let errors = Arc::clone(&errors);
            thread::spawn(move || keep_lines(output, &errors));
        }
        Ok(Self {
            child,
            questions: Some(questions),
            lines,
            errors,
            asked: 0,
        })
    }

    /// Hands lines to the program; one that is gone is found out by who waits for its answers.
    fn send(&self, lines: String) {
        if let Some(questions) = &self.questions {
            let _ = questions.send(lines);
        }
    }

    /// The rewards of some answers; what went wrong at which of them, from 1.
    fn ask(
        &mut self,
        answers: &[Asked<'_>],
        wait: Duration,
    ) -> Result<Vec<Option<f64>>, (usize, Fault)> {
        if let Ok(line) = self.lines.try_recv() {
            return Err((1, Fault::Shifted(line)));
        }
        let first = self.asked;
        self.asked += answers.len() as u64;
        let line = |(id, asked): (u64, &Asked<'_>)| {
            let mut question = asked.to_json();
            question["id"] = id.into();
            format!("{question}\n")
        };
        self.send((first..).zip(answers).map(line).collect());
        let mut scores = Vec::with_capacity(answers.len());
        let (mut longest, mut proven) = (LAST_LINE, true);
        for (id, number) in (first..self.asked).zip(1..) {
            let started = Instant::now();
            let (score, repeats) = self.score(id, wait).map_err(|fault| (number, fault))?;
            longest = longest.max(started.elapsed());
            proven &= repeats;
            scores.push(score);
        }
        match proven {
            true => Ok(scores),
            false => match self.lines.recv_timeout(longest.min(wait)) {
                Ok(line) => Err((answers.len(), Fault::Shifted(line))),
                Err(_) => Ok(scores),
            },
        }
    }

    /// The reward of the question `id`, and whether the line says that it is.
    fn score(&self, id: u64, wait: Duration) -> Result<(Option<f64>, bool), Fault> {
        let line = self.lines.recv_timeout(wait).map_err(|error| match error {
            RecvTimeoutError::Timeout => Fault::Silent,
            RecvTimeoutError::Disconnected => Fault::Ended,
        })?;
        let value: Option<Value> = serde_json::from_str(&line).ok();
        let Some((value, score)) = value.and_then(|value| Some((parsed(&value)?, value))) else {
            return Err(Fault::Wrong(line));
        };
        match score.get("id") {
            None => Ok((value, false)),
            Some(repeated) if *repeated == id => Ok((value, true)),
            Some(_) => Err(Fault::Shifted(line)),
        }
    }

    /// What went wrong, with the program's end and its last words.
    fn explain(&mut self, fault: &Fault, place: &str, timeout: f64) -> String {
        let reason = match fault {
            Fault::Silent => format!(
                "gave no reward for {place} within {timeout} seconds; check that it prints a line for every question and flushes its output, or raise `timeout`"
            ),
            Fault::Wrong(line) => format!(
                "printed {:?} for {place} where a number, null or {{\"reward\": number}} is expected; print anything else to the standard error",
                shortened(line)
            ),
            Fault::Shifted(line) => format!(
                "printed {:?} at {place}, which is a line too many or of another question, so that rewards would go to other answers; \
                 print one line for each question, in order, and anything else to the standard error",
                shortened(line)
            ),
            Fault::Ended => match self.end() {
                Some(status) => format!("ended ({status}) before {place}"),
                None => format!("closed its output before {place}"),
            },
        };
        // The last words may still be under way.
        thread::sleep(Duration::from_millis(50));
        let errors = self.errors.lock();
        let errors = errors.unwrap_or_else(|poisoned| poisoned.into_inner());
        match errors.is_empty() {
            true => format!("{reason}; it wrote nothing to its standard error"),
            false => {
                let lines: Vec<&str> = errors.iter().map(String::as_str).collect();
                format!("{reason}; its last lines:\n{}", lines.join("\n"))
            }
        }
    }

    /// Ends the program and, where the system knows groups, whatever it has started.
    fn kill(&mut self) {
        #[cfg(unix)]
        let _ = Command::new("kill")
            .args(["-KILL", "--", &format!("-{}", self.child.id())])
            .stderr(Stdio::null())
            .status();
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// How the program ended, if it does so in a moment.
    fn end(&mut self) -> Option<std::process::ExitStatus> {
        let step = Duration::from_millis(10);
        for _ in 0..LAST_MOMENTS.as_millis() / step.as_millis() {
            if let Ok(Some(status)) = self.child.try_wait() {
                return Some(status);
            }
            thread::sleep(step);
        }
        None
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // A program that reads to the end of its input ends by itself; any other is ended.
        self.questions = None;
        if self.end().is_none() {
            self.kill();
        }
    }
}

/// Writes lines as they come, until nobody sends any or reads them.
fn write_lines(mut input: ChildStdin, lines: &Receiver<String>) {
    for text in lines {
        if input
            .write_all(text.as_bytes())
            .and_then(|()| input.flush())
            .is_err()
        {
            return;
        }
    }
}

/// Passes lines on, until the output ends or nobody wants them.
fn read_lines(output: ChildStdout, lines: &Sender<String>) {
    for line in BufReader::new(output).lines() {
        let Ok(line) = line else { return };
        if lines.send(line).is_err() {
            return;
        }
    }
}

/// The longest line that is kept of a standard error.
const LONGEST_LINE: u64 = 1000;

/// Keeps the last lines, cut where they are very long.
fn keep_lines(output: ChildStderr, kept: &Mutex<VecDeque<String>>) {
    let mut reader = BufReader::new(output);
    let mut bytes = Vec::new();
    loop {
        bytes.clear();
        match (&mut reader)
            .take(LONGEST_LINE)
            .read_until(b'\n', &mut bytes)
        {
            Ok(read) if read > 0 => {}
            _ => return,
        }
        let line = String::from_utf8_lossy(&bytes).trim_end().to_owned();
        let mut kept = kept.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        kept.push_back(line);
        if kept.len() > KEPT_LINES {
            kept.pop_front();
        }
    }
}

#[cfg(all(test, unix))]
#[allow(clippy::unwrap_used, reason = "a test may fail loudly")]
mod tests;
