//! How a model's weights are held: their format, and whether they lie in the mapped file or in memory of their own.

use std::collections::BTreeMap;

use espalier_models::{model::LanguageModel, parameter::Parameter};
use serde_json::{Value, json};

use crate::units;

/// Every weight, and the memory by kind.
pub struct Weights {
    list: Vec<Weight>,
}

struct Weight {
    name: String,
    shape: Vec<usize>,
    kind: Kind,
    bytes: u64,
}

/// A format, and whether it lies in a mapped file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Kind {
    format: &'static str,
    mapped: bool,
}

impl Kind {
    fn of(parameter: &Parameter) -> Self {
        match parameter.as_stored() {
            Some(stored) => Self {
                format: stored.format().name(),
                mapped: stored.bytes().is_mapped(),
            },
            None => Self {
                format: "f32",
                mapped: false,
            },
        }
    }

    fn place(self) -> &'static str {
        if self.mapped { "mapped" } else { "owned" }
    }
}

impl Weights {
    /// The weights of a loaded model.
    pub fn of(model: &LanguageModel) -> Self {
        let weight = |parameter: &Parameter| Weight {
            name: parameter.name().to_owned(),
            shape: parameter.shape().to_vec(),
            kind: Kind::of(parameter),
            bytes: parameter.bytes() as u64,
        };
        Self {
            list: model.parameters().into_iter().map(weight).collect(),
        }
    }

    /// Bytes of all together.
    pub fn bytes(&self) -> u64 {
        self.list.iter().map(|weight| weight.bytes).sum()
    }

    /// Weights and bytes of each kind.
    fn kinds(&self) -> BTreeMap<Kind, (usize, u64)> {
        let mut kinds: BTreeMap<Kind, (usize, u64)> = BTreeMap::new();
        for weight in &self.list {
            let (count, bytes) = kinds.entry(weight.kind).or_default();
            (*count, *bytes) = (*count + 1, *bytes + weight.bytes);
        }
        kinds
    }

    /// The kinds in words.
    pub fn describe(&self) -> String {
        let kinds = self.kinds().into_iter().map(|(kind, (count, bytes))| {
            let (format, place) = (kind.format, kind.place());
            format!(
                "{count} weights {format}, {place} ({})",
                units::bytes(bytes)
            )
        });
        kinds.collect::<Vec<_>>().join("; ")
    }

    /// The kinds with their memory.
    pub fn kinds_json(&self) -> Value {
        let kind = |(kind, (count, bytes)): (Kind, (usize, u64))| json!({"format": kind.format, "place": kind.place(), "weights": count, "bytes": bytes});
        self.kinds().into_iter().map(kind).collect()
    }

    /// Every weight.
    pub fn json(&self) -> Value {
        let weight = |weight: &Weight| {
            json!({
                "name": weight.name, "shape": weight.shape, "format": weight.kind.format,
                "place": weight.kind.place(), "bytes": weight.bytes,
            })
        };
        self.list.iter().map(weight).collect()
    }
}
