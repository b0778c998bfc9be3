//! Which tensors of a checkpoint hold which of our parameters, as a table of names that each family gives.

use super::heads;
use crate::spec::ModelSpec;
use std::ops::Range;

/// How one tensor of a checkpoint makes up our parameters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorEntry {
    /// The name in the checkpoint.
    pub name: String,
    /// Our parameters, which lie in it one after another along our first axis (the outputs).
    pub parts: Vec<String>,
    /// How often the parts take turns: each of so many groups has an equal share of every part's rows. One: each part is
    /// whole.
    pub groups: usize,
    /// Whether it is stored `[in, out]`; ours are `[out, in]`. Of a stack of matrices, `[.., in, out]`, each is.
    pub transposed: bool,
    /// Where it holds some rows of its only part, as one expert's matrix of a stack: which, counted over all axes but the
    /// last.
    pub rows: Option<Range<usize>>,
}

/// Our parameters that one checkpoint tensor holds, as parts of their names; the first one stands for all in the table.
pub(super) struct Fused {
    pub(super) parts: &'static [&'static str],
    /// See [`TensorEntry::groups`].
    pub(super) groups: usize,
}

/// Queries, keys and values.
pub(super) const QUERY_KEY_VALUE: &[&str] = &[".mixer.query.", ".mixer.key.", ".mixer.value."];
/// Gates and inputs of a feed-forward layer.
pub(super) const GATE_UP: &[&str] = &[".channel.gate.", ".channel.up."];

/// The checkpoint's tensors: one for each parameter, or for all that are fused, under the name that `names` makes of ours.
pub(super) fn table(spec: &ModelSpec, names: &[(&str, &str)], fused: &[Fused]) -> Vec<TensorEntry> {
    // A family whose classifier has a name of its own says so in its table.
    let own_classifier = names
        .iter()
        .any(|(ours, _)| ours.starts_with("^classifier."));
    let theirs = |name: &str| match name.strip_prefix("classifier.output.") {
        Some(rest) if !own_classifier => format!("{}{rest}", heads::decoder_name(spec)),
        _ => rename(name, names),
    };
    let entry = |name: String| {
        let (mut parts, mut groups) = (vec![name.clone()], 1);
        for fusion in fused {
            match fusion.parts.iter().position(|part| name.contains(part)) {
                None => {}
                Some(0) => {
                    parts = fusion
                        .parts
                        .iter()
                        .map(|part| name.replace(fusion.parts[0], part))
                        .collect();
                    groups = fusion.groups;
                }
                Some(_) => return None,
            }
        }
        Some(TensorEntry {
            name: theirs(&name),
            parts,
            groups,
            transposed: false,
            rows: None,
        })
    };
    spec.parameters()
        .into_iter()
        .filter_map(|(name, _)| entry(name))
        .collect()
}

/// `name` with each of our names replaced by the checkpoint's; after `^` ours must stand at the beginning.
pub(super) fn rename(name: &str, table: &[(&str, &str)]) -> String {
    table.iter().fold(name.to_owned(), |name, (ours, theirs)| {
        match ours.strip_prefix('^') {
            Some(ours) => name
                .strip_prefix(ours)
                .map(|rest| format!("{theirs}{rest}"))
                .unwrap_or(name),
            None => name.replace(ours, theirs),
        }
    })
}
