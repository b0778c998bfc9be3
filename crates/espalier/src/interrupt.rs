//! Signals that ask the program to stop: SIGINT, as by Ctrl-C, SIGTERM, and SIGHUP, as when a connection breaks; where that one was
//! ignored from the start, as under `nohup`, it stays so.
//!
//! Usually the first one ends the program at once, after its [`last_words`] where there are some. Who has work to save is
//! [`attentive`] meanwhile: then the first one is kept for [`requested`], and the second ends the program.

use std::{
    fs,
    io::{self, Write},
    process,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use signal_hook::{
    consts::{SIGHUP, SIGINT, SIGTERM},
    flag,
};

struct Signals {
    /// Whether the next signal ends the program.
    at_once: Arc<AtomicBool>,
    /// The last signal; 0 before the first.
    received: Arc<AtomicUsize>,
    /// Whether somebody has work to save.
    attentive: AtomicBool,
    /// Whether somebody has something to say before the end.
    speaking: AtomicBool,
}

/// How soon last words follow a signal.
const SOON: Duration = Duration::from_millis(10);

static SIGNALS: OnceLock<Signals> = OnceLock::new();

/// Listens for signals from here on; without it, they end the program as the system sees fit, and nothing is ever
/// [`requested`].
///
/// # Errors
/// When the system refuses.
pub fn listen() -> io::Result<()> {
    let signals = SIGNALS.get_or_init(|| Signals {
        at_once: Arc::new(AtomicBool::new(true)),
        received: Arc::default(),
        attentive: AtomicBool::new(false),
        speaking: AtomicBool::new(false),
    });
    let hangup = (!is_ignored(SIGHUP)).then_some(SIGHUP);
    for signal in [SIGINT, SIGTERM].into_iter().chain(hangup) {
        let status = exit_code(signal as usize);
        // In this order: the first signal is not the second one.
        flag::register_conditional_shutdown(signal, status.into(), Arc::clone(&signals.at_once))?;
        flag::register(signal, Arc::clone(&signals.at_once))?;
        flag::register_usize(signal, Arc::clone(&signals.received), signal as usize)?;
    }
    Ok(())
}

/// Whether the process was started with this signal ignored. Where the system does not tell, it counts as ignored.
fn is_ignored(signal: i32) -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mut lines = status.lines();
    let ignored = lines.find_map(|line| line.strip_prefix("SigIgn:"));
    let ignored = ignored.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    ignored.is_none_or(|mask| mask & 1 << (signal - 1) != 0)
}

/// As long as it lives, the first signal is kept for [`requested`].
#[derive(Debug)]
pub struct Attentive(());

impl Drop for Attentive {
    fn drop(&mut self) {
        change(|signals| {
            // Who was attentive to a signal speaks of it.
            if requested() {
                signals.speaking.store(false, Ordering::SeqCst);
            }
            signals.attentive.store(false, Ordering::SeqCst);
        });
    }
}

/// Keeps the next signal for [`requested`].
pub fn attentive() -> Attentive {
    change(|signals| signals.attentive.store(true, Ordering::SeqCst));
    Attentive(())
}

/// As long as it lives, a signal that ends the program lets it say something first.
#[derive(Debug)]
pub struct LastWords(());

impl Drop for LastWords {
    fn drop(&mut self) {
        change(|signals| signals.speaking.store(false, Ordering::SeqCst));
    }
}

/// Says `words` on the standard error when a signal comes while nobody is [`attentive`], and ends the program.
pub fn last_words(words: &'static str) -> LastWords {
    change(|signals| signals.speaking.store(true, Ordering::SeqCst));
    thread::spawn(move || speak(words));
    LastWords(())
}

/// Waits for a signal that nobody is attentive to, or for the end of the work.
fn speak(words: &str) {
    let Some(signals) = SIGNALS.get() else { return };
    while signals.speaking.load(Ordering::SeqCst) {
        if requested() && !signals.attentive.load(Ordering::SeqCst) {
            let _ = writeln!(io::stderr(), "{words}");
            process::exit(code().into());
        }
        thread::sleep(SOON);
    }
}

/// Changes who cares for signals, and with it what the next one does.
fn change(what: impl FnOnce(&Signals)) {
    if let Some(signals) = SIGNALS.get() {
        what(signals);
        let cares =
            signals.attentive.load(Ordering::SeqCst) || signals.speaking.load(Ordering::SeqCst);
        signals
            .at_once
            .store(!cares || requested(), Ordering::SeqCst);
    }
}

/// Whether a signal came.
pub fn requested() -> bool {
    received() != 0
}

/// Whether a SIGTERM or SIGHUP came, which ask for the end of the program and not of an answer alone.
pub fn is_termination() -> bool {
    [SIGTERM, SIGHUP].contains(&(received() as i32))
}

/// Takes what was requested as done.
pub fn forget() {
    if let Some(signals) = SIGNALS.get() {
        signals.received.store(0, Ordering::SeqCst);
    }
}

/// The exit code of a program that the last signal ended: 129 for SIGHUP, 130 for SIGINT, 143 for SIGTERM.
pub fn code() -> u8 {
    exit_code(received())
}

fn received() -> usize {
    let signals = SIGNALS.get();
    signals.map_or(0, |signals| signals.received.load(Ordering::SeqCst))
}

/// 128 and the signal's number, as shells say it.
fn exit_code(signal: usize) -> u8 {
    128 + signal as u8
}
