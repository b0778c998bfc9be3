//! The voice of a run on the terminal: remarks as lines, long work as a bar.

use crate::{
    stages::Voice,
    terminal::{Progress, Terminal},
};

/// Says what a run says.
pub struct TerminalVoice {
    terminal: Terminal,
    bar: Option<(String, Progress)>,
}

impl TerminalVoice {
    /// Speaks on `terminal`.
    pub fn new(terminal: Terminal) -> Self {
        Self {
            terminal,
            bar: None,
        }
    }
}

impl Voice for TerminalVoice {
    fn say(&mut self, line: &str) {
        match &self.bar {
            Some((_, progress)) => progress.note(line),
            None => self.terminal.note(line),
        }
    }

    fn progress(&mut self, label: &str, done: usize, total: usize, message: &str) {
        let (_, progress) = match self.bar.take() {
            Some((current, progress)) if current == label => self.bar.insert((current, progress)),
            _ => self.bar.insert((
                label.to_owned(),
                self.terminal.progress(total as u64, label),
            )),
        };
        progress.set(done as u64, message);
        if done >= total
            && let Some((_, progress)) = self.bar.take()
        {
            progress.finish(message);
        }
    }
}
