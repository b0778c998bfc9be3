//! Named columns beside the tokens of a sample: labels, gold answers, rewards, scores of a reference.
//!
//! How many values a column has for a sample is up to whoever fills it: one, one for each row, one for each token. Those of
//! a batch are the samples' in their order.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// The values of a column.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Column {
    /// Rewards, scores, numbers of classes.
    Numbers(Vec<f64>),
    /// Gold answers, sources of a checker.
    Texts(Vec<String>),
}

/// Columns by name.
///
/// ```
/// use espalier_train::columns::Columns;
/// let mut sample = Columns::default();
/// sample.set_numbers("reward", vec![1.0]);
/// let batch = Columns::joined([&sample, &sample])?;
/// assert_eq!(batch.numbers("reward", 2)?, [1.0, 1.0]);
/// # Ok::<(), espalier_train::Error>(())
/// ```
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Columns(BTreeMap<String, Column>);

impl Columns {
    /// Sets a column of numbers.
    pub fn set_numbers(&mut self, name: &str, values: Vec<f64>) {
        self.0.insert(name.to_owned(), Column::Numbers(values));
    }

    /// Sets a column of texts.
    pub fn set_texts(&mut self, name: &str, values: Vec<String>) {
        self.0.insert(name.to_owned(), Column::Texts(values));
    }

    /// The numbers of a column that must have `count` of them.
    ///
    /// # Errors
    /// When there is no such column, it holds texts, or another number of values.
    pub fn numbers(&self, name: &str, count: usize) -> Result<&[f64]> {
        match self.column(name)? {
            Column::Numbers(values) => counted(name, values, count),
            Column::Texts(_) => Err(wrong(name, "holds texts where numbers are needed".into())),
        }
    }

    /// The texts of a column that must have `count` of them.
    ///
    /// # Errors
    /// When there is no such column, it holds numbers, or another number of values.
    pub fn texts(&self, name: &str, count: usize) -> Result<&[String]> {
        match self.column(name)? {
            Column::Texts(values) => counted(name, values, count),
            Column::Numbers(_) => Err(wrong(name, "holds numbers where texts are needed".into())),
        }
    }

    /// Every column of numbers, by name.
    pub fn all_numbers(&self) -> impl Iterator<Item = (&str, &[f64])> {
        self.0.iter().filter_map(|(name, column)| match column {
            Column::Numbers(values) => Some((name.as_str(), values.as_slice())),
            Column::Texts(_) => None,
        })
    }

    /// The columns of several samples, one after the other.
    ///
    /// # Errors
    /// When a column is missing in one of them, or of another kind.
    pub fn joined<'a>(samples: impl IntoIterator<Item = &'a Self>) -> Result<Self> {
        let mut samples = samples.into_iter();
        let mut all = samples.next().cloned().unwrap_or_default();
        for sample in samples {
            let missing = |from: &Self, name: &String| !from.0.contains_key(name);
            let here = sample.0.keys().find(|name| missing(&all, name));
            let there = || all.0.keys().find(|name| missing(sample, name));
            if let Some(name) = here.or_else(there) {
                return Err(wrong(name, "is there for some samples alone".into()));
            }
            for (name, column) in &mut all.0 {
                append(name, column, &sample.0[name])?;
            }
        }
        Ok(all)
    }

    fn column(&self, name: &str) -> Result<&Column> {
        let names = || self.0.keys().map(|known| format!("`{known}`"));
        let known = match self.0.is_empty() {
            true => "the samples have no columns".to_owned(),
            false => format!("known: {}", names().collect::<Vec<_>>().join(", ")),
        };
        self.0
            .get(name)
            .ok_or_else(|| wrong(name, format!("is missing; {known}")))
    }
}

fn append(name: &str, column: &mut Column, more: &Column) -> Result<()> {
    match (column, more) {
        (Column::Numbers(all), Column::Numbers(more)) => all.extend(more),
        (Column::Texts(all), Column::Texts(more)) => all.extend(more.iter().cloned()),
        _ => {
            let reason = "holds numbers for some samples and texts for others";
            return Err(wrong(name, reason.into()));
        }
    }
    Ok(())
}

fn counted<'a, T>(name: &str, values: &'a [T], count: usize) -> Result<&'a [T]> {
    match values.len() == count {
        true => Ok(values),
        false => Err(wrong(
            name,
            format!("has {} values where {count} are needed", values.len()),
        )),
    }
}

fn wrong(name: &str, reason: String) -> Error {
    Error::Column {
        name: name.to_owned(),
        reason,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(name: &str, column: Column) -> Columns {
        Columns(BTreeMap::from([(name.to_owned(), column)]))
    }

    #[test]
    fn batches_have_all_values_in_order() {
        let numbers = [vec![1.0, 2.0], vec![3.0]].map(|n| of("reward", Column::Numbers(n)));
        let joined = Columns::joined(&numbers).unwrap();
        assert_eq!(joined.numbers("reward", 3).unwrap(), [1.0, 2.0, 3.0]);
        let error = joined.numbers("reward", 2).unwrap_err().to_string();
        assert_eq!(error, "column `reward`: has 3 values where 2 are needed");
        let error = joined.texts("gold", 1).unwrap_err().to_string();
        assert_eq!(error, "column `gold`: is missing; known: `reward`");
    }

    #[test]
    fn columns_of_some_samples_are_refused() {
        let number = of("a", Column::Numbers(vec![1.0]));
        let text = of("a", Column::Texts(vec!["x".into()]));
        let other = of("b", Column::Numbers(vec![1.0]));
        for second in [&text, &other, &Columns::default()] {
            assert!(Columns::joined([&number, second]).is_err());
            assert!(Columns::joined([second, &number]).is_err());
        }
    }
}
