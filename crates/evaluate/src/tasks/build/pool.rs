//! Labelled examples that may stand before a question.

use serde_json::Value;

use super::super::{prompt::Turn, sampling::PythonRandom};
use crate::{Error, Result};

/// Labelled examples to choose from.
pub(super) struct Pool {
    pub(super) docs: Vec<Value>,
    /// Each of them as turns, once it was needed.
    pub(super) turns: Vec<Option<Vec<Turn>>>,
    pub(super) random: PythonRandom,
    pub(super) first: bool,
    /// Whether the record that is asked may be among them.
    pub(super) excludes: bool,
}

impl Pool {
    /// Places of examples before a record.
    pub(super) fn choose(&mut self, count: usize, doc: &Value) -> Result<Vec<usize>> {
        let other = |place: &usize| !self.excludes || self.docs[*place] != *doc;
        let chosen: Vec<usize> = match self.first {
            true => (0..self.docs.len()).filter(other).take(count).collect(),
            false => {
                let wanted = count + usize::from(self.excludes);
                if wanted > self.docs.len() {
                    return Err(self.too_few(count));
                }
                let drawn = self.random.sample(self.docs.len(), wanted);
                drawn.into_iter().filter(other).take(count).collect()
            }
        };
        match chosen.len() == count {
            true => Ok(chosen),
            false => Err(self.too_few(count)),
        }
    }

    fn too_few(&self, count: usize) -> Error {
        Error::task(format!(
            "{count} labelled examples are wanted, and there are {} to choose from; give a smaller `--num-fewshot`",
            self.docs.len()
        ))
    }
}
