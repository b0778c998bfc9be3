//! The file of an adapter's weights, of which every tensor must find its place.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    path::Path,
};

use super::PEFT_PREFIX;
use crate::{Error, Result, checkpoint::TensorFile, layout::StoredTensor};

/// What PEFT puts between the name of a module that it wrapped and the module's own weight.
const BASE_LAYER: &str = ".base_layer.";

/// Where PEFT keeps the base's module whose place the adapter's takes.
const ORIGINAL: &str = ".original_module.";

/// What stands before the adapter's name in a state dict, and whether it stays without it.
const BEFORE_ADAPTER: [(&str, bool); 3] = [
    (".lora_A.", true),
    (".lora_B.", true),
    (".modules_to_save.", false),
];

/// What stands before the adapter's name at the end of a name. A magnitude is called a weight behind it.
const AT_THE_END: [&str; 4] = [
    ".lora_magnitude_vector",
    ".lora_embedding_A",
    ".lora_embedding_B",
    ".trainable_tokens_delta",
];

/// A name of a module's state dict as PEFT's folders have it, without the adapter's name, and that.
fn without_adapter(name: &str) -> (String, Option<&str>) {
    for mark in AT_THE_END {
        if let Some((module, rest)) = name.split_once(mark)
            && let Some(adapter) = rest.strip_prefix('.')
        {
            let adapter = adapter.strip_suffix("weight").unwrap_or(adapter);
            let adapter = adapter.trim_end_matches('.');
            let adapter = (!adapter.is_empty()).then_some(adapter);
            return (format!("{module}{mark}"), adapter);
        }
    }
    for (mark, stays) in BEFORE_ADAPTER {
        let parts = name.split_once(mark);
        if let Some((module, rest)) = parts
            && let Some((adapter, part)) = rest.split_once('.')
        {
            let mark = if stays { mark } else { "." };
            return (format!("{module}{mark}{part}"), Some(adapter));
        }
    }
    (name.to_owned(), None)
}

/// The weights of an adapter folder, and which of them nobody has read yet.
#[derive(Debug)]
pub struct AdapterFile {
    /// One file, but where a kind has more.
    files: Vec<TensorFile>,
    /// Where the tensors are, by the names under which they are asked for.
    places: BTreeMap<String, StoredPlace>,
    unread: BTreeSet<String>,
    /// Tokens of the base's vocabulary, once it is known.
    vocabulary: Option<usize>,
}

/// One of the files, and a tensor's name there.
#[derive(Debug, Clone)]
struct StoredPlace {
    file: usize,
    name: String,
}

impl AdapterFile {
    /// Maps the file.
    ///
    /// # Errors
    /// When it is missing or damaged.
    pub fn open(path: &Path) -> Result<Self> {
        Self::open_all(&[(String::new(), path)])
    }

    /// Maps several files as one, in which each puts its own text before its names.
    ///
    /// # Errors
    /// When one is missing or damaged.
    pub fn open_all(paths: &[(String, &Path)]) -> Result<Self> {
        let (mut files, mut places) = (Vec::new(), BTreeMap::new());
        for (file, (before, path)) in paths.iter().enumerate() {
            let opened = TensorFile::open(path)?;
            let place = |name: &str| {
                let asked = format!("{before}{name}");
                let name = name.to_owned();
                (asked, StoredPlace { file, name })
            };
            places.extend(opened.names().map(place));
            files.push(opened);
        }
        let unread = places.keys().cloned().collect();
        Ok(Self {
            files,
            places,
            unread,
            vocabulary: None,
        })
    }

    /// Says how many tokens the base knows, by which a vocabulary of another size is recognised.
    pub fn set_vocabulary(&mut self, tokens: usize) {
        self.vocabulary = Some(tokens);
    }

    /// Reads the names as `tensors`, those that transformers has for the base's: an adapter of a base model leaves out the family's
    /// prefix, or has it where this base lacks it, whole weights may lack PEFT's own prefix or have the name of the base's file
    /// (`renamed`), those of modules that PEFT wrapped have a part of their name more, and a module's state dict has the adapter's
    /// name in all. Returns whether the family's prefix was left out.
    ///
    /// # Errors
    /// When two tensors mean the same, or there are two adapters.
    pub fn name_as(
        &mut self,
        tensors: &[&str],
        renamed: &BTreeMap<String, String>,
        prefix: &str,
    ) -> Result<bool> {
        let of_file = renamed.keys().map(String::as_str);
        let known: BTreeSet<&str> = tensors.iter().copied().chain(of_file).collect();
        let roots = Roots::of(&known, prefix);
        let (mut places, mut left_out) = (BTreeMap::<String, StoredPlace>::new(), false);
        let mut adapters = BTreeSet::new();
        for (stored, own) in std::mem::take(&mut self.places) {
            let bare = match stored.strip_prefix(PEFT_PREFIX) {
                Some(bare) => bare,
                None if known.contains(stored.as_str()) => &stored,
                // What a kind names in a way of its own.
                None => {
                    places.insert(stored, own);
                    continue;
                }
            };
            // What stood there before, which the adapter's own takes the place of.
            if bare.contains(ORIGINAL) {
                continue;
            }
            let (bare, adapter) = without_adapter(bare);
            adapters.extend(adapter.map(str::to_owned));
            let bare = match bare.rsplit_once(BASE_LAYER) {
                Some((module, part @ ("weight" | "bias"))) => format!("{module}.{part}"),
                _ => bare,
            };
            let place = roots.place(&bare);
            left_out |= place == Some(Prefix::Missing);
            let whole = match place {
                Some(Prefix::Missing) => format!("{prefix}{bare}"),
                Some(Prefix::Extra) => bare[prefix.len()..].to_owned(),
                Some(Prefix::AsIs) | None => bare,
            };
            let name = format!("{PEFT_PREFIX}{}", renamed.get(&whole).unwrap_or(&whole));
            if let Some(other) = places.insert(name, own) {
                return Err(self.error(format!(
                    "tensors `{}` and `{stored}` are the same one of the base",
                    other.name
                )));
            }
        }
        if adapters.len() > 1 {
            let all: Vec<String> = adapters.into_iter().collect();
            return Err(self.error(format!(
                "holds the adapters {}; write each with PEFT's `save_pretrained`",
                all.join(", ")
            )));
        }
        self.unread = places.keys().cloned().collect();
        self.places = places;
        Ok(left_out)
    }

    /// The shape of a module's own tensor, by its name in the base, whether or not the file has the adapter's name in it, as a state dict
    /// does, or what PEFT puts there where it wraps the module; before [`AdapterFile::name_as`].
    pub(crate) fn shape_of_base(&self, tensor: &str) -> Option<&[usize]> {
        let is_it = |name: &&String| {
            let bare = name.strip_prefix(PEFT_PREFIX).unwrap_or(name);
            let (own, _) = without_adapter(bare);
            !bare.contains(ORIGINAL) && own.replace(BASE_LAYER, ".") == tensor
        };
        self.shape(self.places.keys().find(is_it)?)
    }

    /// Leaves a tensor unread that changes nothing.
    pub fn skip(&mut self, name: &str) {
        self.unread.remove(name);
    }

    /// The names of tensors that nobody has read yet, sorted.
    pub fn unread(&self) -> impl Iterator<Item = &str> {
        self.unread.iter().map(String::as_str)
    }

    /// The shape of a tensor, if the file has it.
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        let place = self.places.get(name)?;
        let info = self.files[place.file].info(&place.name)?;
        Some(info.shape.as_slice())
    }

    /// The values of a tensor of this shape, row by row.
    ///
    /// # Errors
    /// When the file has no such tensor, or one of another shape.
    pub fn read(&mut self, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
        let wrong = |file: &Self, found: String| {
            Err(file.error(format!(
                "tensor `{name}` is {found}, which does not fit the base: expected {shape:?}"
            )))
        };
        match (self.places.get(name), self.shape(name)) {
            (Some(place), Some(found)) if found == shape => {
                let values = self.files[place.file].read_f32(&place.name, None)?;
                if let Some(broken) = values.iter().find(|value| !value.is_finite()) {
                    return Err(self.error(format!(
                        "tensor `{name}` holds {broken}; the file is damaged, or the training that wrote it had diverged"
                    )));
                }
                self.unread.remove(name);
                Ok(values)
            }
            (_, Some(found)) if self.other_vocabulary(found, shape).is_some() => {
                let own = self.other_vocabulary(found, shape).unwrap_or_default();
                let base = self.vocabulary.unwrap_or_default();
                let fix = "give the grown base the adapter was trained on: save the base after `resize_token_embeddings`, with its tokenizer, and name that folder in `base_model_name_or_path`";
                Err(self.error(format!(
                    "tensor `{name}` has rows for {own} tokens, but the base has {base}: its vocabulary was resized before training; {fix}"
                )))
            }
            (_, Some(found)) => wrong(self, format!("{found:?}")),
            (_, None) => wrong(self, "missing".into()),
        }
    }

    /// The tokens of another vocabulary than the base's, where a tensor of `found` shape differs from `expected` in having an entry for each
    /// of them.
    fn other_vocabulary(&self, found: &[usize], expected: &[usize]) -> Option<usize> {
        let axes = found.iter().zip(expected);
        let mut other = axes.filter(|(found, expected)| found != expected);
        let (own, base) = other.next()?;
        let alone = found.len() == expected.len() && other.next().is_none();
        (alone && Some(*base) == self.vocabulary).then_some(*own)
    }

    /// The values of the parameters that make up these tensors, by the parameters' names.
    ///
    /// # Errors
    /// As [`AdapterFile::read`].
    pub fn values(&mut self, tensors: Vec<StoredTensor<'_>>) -> Result<HashMap<String, Vec<f32>>> {
        let mut values = HashMap::new();
        for tensor in tensors {
            let read = self.read(&tensor.name, &tensor.shape)?;
            values.extend(tensor.split(read));
        }
        Ok(values)
    }

    /// Refuses tensors that nobody has read, but for those of the base that say nothing, by their names there.
    ///
    /// # Errors
    /// When there is one.
    pub fn refuse_unread(&self, says_nothing: &dyn Fn(&str) -> bool) -> Result<()> {
        let counts = |name: &&String| !says_nothing(name.strip_prefix(PEFT_PREFIX).unwrap_or(name));
        match self.unread.iter().find(counts) {
            Some(name) => Err(self.error(format!(
                "tensor `{name}` fits no part of the base model that the configuration names"
            ))),
            None => Ok(()),
        }
    }

    /// An error about the file.
    pub fn error(&self, reason: String) -> Error {
        Error::Adapter {
            path: self
                .files
                .first()
                .map_or_else(Default::default, |file| file.path().to_owned()),
            reason,
        }
    }
}

/// How a name has the family's prefix, compared with the checkpoint's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Prefix {
    AsIs,
    Missing,
    Extra,
}

/// The first parts of the names of a checkpoint's tensors, with and without the family's prefix.
struct Roots<'a> {
    whole: BTreeSet<&'a str>,
    behind: BTreeSet<&'a str>,
    prefix: &'a str,
}

impl<'a> Roots<'a> {
    fn of(tensors: &BTreeSet<&'a str>, prefix: &'a str) -> Self {
        let (mut whole, mut behind) = (BTreeSet::new(), BTreeSet::new());
        for tensor in tensors {
            whole.insert(first_part(tensor));
            let rest = tensor.strip_prefix(prefix).filter(|_| !prefix.is_empty());
            behind.extend(rest.map(first_part));
        }
        Self {
            whole,
            behind,
            prefix,
        }
    }

    fn place(&self, name: &str) -> Option<Prefix> {
        let extra = name.strip_prefix(self.prefix);
        if self.whole.contains(first_part(name)) {
            Some(Prefix::AsIs)
        } else if self.behind.contains(first_part(name)) {
            Some(Prefix::Missing)
        } else if extra.is_some_and(|rest| self.whole.contains(first_part(rest))) {
            Some(Prefix::Extra)
        } else {
            None
        }
    }
}

fn first_part(name: &str) -> &str {
    name.split('.').next().unwrap_or(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_state_dicts_lose_the_adapters() {
        for (name, expected, adapter) in [
            (
                "a.q.lora_A.default.weight",
                "a.q.lora_A.weight",
                Some("default"),
            ),
            ("a.q.lora_B.weight", "a.q.lora_B.weight", None),
            (
                "head.modules_to_save.x.dense.bias",
                "head.dense.bias",
                Some("x"),
            ),
            ("a.q.base_layer.weight", "a.q.base_layer.weight", None),
            (
                "a.q.lora_magnitude_vector",
                "a.q.lora_magnitude_vector",
                None,
            ),
            (
                "a.q.lora_magnitude_vector.x.weight",
                "a.q.lora_magnitude_vector",
                Some("x"),
            ),
            (
                "a.q.lora_magnitude_vector.weight",
                "a.q.lora_magnitude_vector",
                None,
            ),
            ("e.lora_embedding_A.x", "e.lora_embedding_A", Some("x")),
            ("e.lora_embedding_B", "e.lora_embedding_B", None),
            (
                "e.token_adapter.trainable_tokens_delta.x",
                "e.token_adapter.trainable_tokens_delta",
                Some("x"),
            ),
        ] {
            assert_eq!(
                without_adapter(name),
                (expected.to_owned(), adapter),
                "{name}"
            );
        }
    }

    #[test]
    fn names_are_found_with_and_without_the_familys_prefix() {
        let with = [
            "model.layers.0.mlp.up_proj.weight",
            "model.norm.weight",
            "lm_head.weight",
        ];
        let roots = Roots::of(&BTreeSet::from(with), "model.");
        assert_eq!(
            roots.place("model.layers.1.q.lora_A.weight"),
            Some(Prefix::AsIs)
        );
        assert_eq!(roots.place("lm_head.lora_A.weight"), Some(Prefix::AsIs));
        assert_eq!(
            roots.place("layers.1.q.lora_A.weight"),
            Some(Prefix::Missing)
        );
        assert_eq!(roots.place("score.weight"), None);
        let without = Roots::of(
            &BTreeSet::from(["encoder.layer.0.output.dense.weight"]),
            "bert.",
        );
        assert_eq!(
            without.place("bert.encoder.layer.1.q.lora_B.weight"),
            Some(Prefix::Extra)
        );
        assert_eq!(
            without.place("encoder.layer.1.q.lora_B.weight"),
            Some(Prefix::AsIs)
        );
    }
}
