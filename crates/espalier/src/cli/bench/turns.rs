//! Turns of several measurements in one process. A shared machine changes its speed within seconds; what alternates step by step
//! is measured at the same speed.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// Whose turn it is among some threads, of which one runs at a time, in order.
#[derive(Debug)]
pub(super) struct Turns {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug)]
struct State {
    current: usize,
    /// Which threads still take part.
    present: Vec<bool>,
}

impl Turns {
    /// For `count` threads, numbered from 0, which has the first turn.
    pub fn new(count: usize) -> Self {
        Self {
            state: Mutex::new(State {
                current: 0,
                present: vec![true; count],
            }),
            changed: Condvar::new(),
        }
    }

    /// Thread `number`, once its first turn has come.
    pub fn enter(&self, number: usize) -> Turn<'_> {
        let turn = Turn {
            turns: self,
            number,
        };
        turn.wait(self.lock());
        turn
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Gives the turn to the next thread that takes part, which may be the same one.
    fn pass(&mut self) {
        let count = self.present.len();
        let next = (1..=count)
            .map(|i| (self.current + i) % count)
            .find(|next| self.present[*next]);
        self.current = next.unwrap_or(self.current);
    }
}

/// A thread that takes part until this is dropped.
#[derive(Debug)]
pub(super) struct Turn<'a> {
    turns: &'a Turns,
    number: usize,
}

impl Turn<'_> {
    /// The thread's number.
    pub fn number(&self) -> usize {
        self.number
    }

    /// Lets the other threads have their turns, and returns when the next own one has come.
    pub fn pass(&self) {
        let mut state = self.turns.lock();
        state.pass();
        self.turns.changed.notify_all();
        self.wait(state);
    }

    fn wait(&self, mut state: MutexGuard<'_, State>) {
        while state.current != self.number {
            state = self
                .turns
                .changed
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let mut state = self.turns.lock();
        state.present[self.number] = false;
        state.pass();
        self.turns.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_alternate_until_they_leave() {
        let (turns, order) = (Turns::new(3), Mutex::new(Vec::new()));
        std::thread::scope(|scope| {
            for (number, steps) in [3, 1, 2].into_iter().enumerate() {
                let (turns, order) = (&turns, &order);
                scope.spawn(move || {
                    let turn = turns.enter(number);
                    for step in 0..steps {
                        if step > 0 {
                            turn.pass();
                        }
                        order.lock().unwrap().push(number);
                    }
                });
            }
        });
        assert_eq!(order.into_inner().unwrap(), [0, 1, 2, 0, 2, 0]);
    }
}
