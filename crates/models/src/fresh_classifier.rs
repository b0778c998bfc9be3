//! A fresh classifier in place of what stands on a model: scores of classes for texts (reward models among them) or for tokens.

use std::{collections::HashMap, path::Path};

use serde_json::{Map, Value};

use crate::{
    Error, Result,
    adapter::Adapter,
    families::{Config, Family, TensorEntry, classifying},
    folder::{LoadedModel, write_json},
    model::LanguageModel,
    parameter::{Parameter, Parameters},
    source::{Initial, ParameterSource, Seed, Values},
    spec::ModelSpec,
};

/// Our name of the layer that gives the scores.
const SCORES: &str = "classifier.output.weight";

/// What PEFT calls the two uses of models that classify.
pub(crate) const TASKS: [(&str, bool); 2] = [("SEQ_CLS", false), ("TOKEN_CLS", true)];

/// A classifier that is new to its model.
#[derive(Debug, Clone, Copy)]
pub struct FreshClassifier<'a> {
    /// Whether tokens are classified, each by itself, and not texts.
    pub of_tokens: bool,
    /// Names of the classes.
    pub names: &'a [String],
    /// What the scores mean (`problem_type` of config.json), where their number does not say it.
    pub problem: Option<&'static str>,
    /// Standard deviation of the scores' weights; the model's own for fresh weights when absent.
    pub deviation: Option<f64>,
    /// Seed of its weights.
    pub seed: u64,
}

impl FreshClassifier<'_> {
    /// Puts the classifier on the model, in place of a head over the vocabulary, and into its configuration. A padding token, behind
    /// which no text goes on, is the first end token where the model has none.
    ///
    /// # Errors
    /// When the family has no classifier, an adapter is attached, or a text's last token could not be told from padding.
    pub fn put_on(self, loaded: &mut LoadedModel) -> Result<()> {
        let family = loaded.family()?;
        let mut config = classifying(&loaded.config, family, self.of_tokens, self.names)?;
        if let Some(problem) = self.problem {
            config.insert("problem_type".into(), problem.into());
        }
        let spec = specification(loaded.model.spec(), &config, family)?;
        if spec.pad.is_none() && !self.of_tokens {
            return Err(Error::Invalid(
                "a text's score is read at its last token that is no padding, and the model names no padding token; name one in `config`, such as `config = { pad_token_id = 0 }`".into(),
            ));
        }
        loaded.model = loaded.model.rebuilt(spec, family, self)?;
        loaded.config = config;
        Ok(())
    }
}

/// `spec` with the classifier that `config` describes.
fn specification(
    spec: &ModelSpec,
    config: &Map<String, Value>,
    family: &Family,
) -> Result<ModelSpec> {
    let read = (family.read)(&Config::from_map("config.json".as_ref(), config.clone()))?;
    Ok(ModelSpec {
        headless: read.headless,
        classifier: read.classifier,
        head_transform: read.head_transform,
        head_bias: read.head_bias,
        pooler: read.pooler,
        next_sentence: read.next_sentence,
        pad: spec.pad.or(spec.eos.first().copied()),
        ..spec.clone()
    })
}

impl LanguageModel {
    fn rebuilt(
        &self,
        spec: ModelSpec,
        family: &Family,
        fresh: FreshClassifier<'_>,
    ) -> Result<Self> {
        let mut old = HashMap::new();
        self.visit(&mut |parameter: &Parameter| {
            old.insert(parameter.name().to_owned(), parameter.clone());
        });
        if let Some(adapter) = old.values().find_map(Parameter::adapter) {
            return Err(Error::Invalid(format!(
                "the model cannot get a classifier while the adapter `{adapter}` is attached; merge it first"
            )));
        }
        let mut source = Kept {
            renamed: renamed(self.spec(), &spec, family),
            old,
            fresh: Seed(fresh.seed),
            deviation: fresh.deviation,
        };
        Self::build(spec, &mut source, self.device())
    }
}

/// New parameters that lie in a tensor in which the old model had another one, as BERT's pooler is the layer before its classes.
fn renamed(old: &ModelSpec, new: &ModelSpec, family: &Family) -> HashMap<String, String> {
    let alone = |entry: &TensorEntry| match entry.parts.as_slice() {
        [part] => Some(part.clone()),
        _ => None,
    };
    // Files of models without a head leave the family's prefix out.
    let bare = |name: &str| name.strip_prefix(family.prefix).unwrap_or(name).to_owned();
    let old: HashMap<String, String> = (family.tensors)(old)
        .into_iter()
        .filter_map(|entry| Some((bare(&entry.name), alone(&entry)?)))
        .collect();
    let other = |entry: TensorEntry| {
        let (ours, before) = (alone(&entry)?, old.get(&bare(&entry.name))?);
        (ours != *before).then(|| (ours, before.clone()))
    };
    (family.tensors)(new)
        .into_iter()
        .filter_map(other)
        .collect()
}

/// The weights of a model, and fresh ones for what it lacks.
struct Kept {
    old: HashMap<String, Parameter>,
    renamed: HashMap<String, String>,
    fresh: Seed,
    deviation: Option<f64>,
}

impl ParameterSource for Kept {
    fn parameter(&mut self, name: &str, shape: &[usize], initial: Initial) -> Result<Values> {
        let before = self.renamed.get(name).map_or(name, String::as_str);
        if let Some(old) = self.old.remove(before)
            && old.shape() == shape
        {
            return Ok(old.values());
        }
        let initial = match self.deviation.filter(|_| name == SCORES) {
            Some(deviation) => Initial::Normal(deviation),
            None => initial,
        };
        self.fresh.parameter(name, shape, initial)
    }
}

/// Puts a classifier on the base of an adapter that brings its own along (PEFT's `SEQ_CLS` and `TOKEN_CLS`), as large as that.
///
/// # Errors
/// When the folder cannot be read, or the family has no classifier.
pub(crate) fn for_adapter(
    loaded: &mut LoadedModel,
    adapter: &Adapter,
    folder: &Path,
) -> Result<()> {
    let file = folder.join(crate::adapter::CONFIGURATION);
    let config = Config::load(&file)?;
    let task = config.optional_text("task_type")?;
    let Some((_, of_tokens)) = TASKS.into_iter().find(|(name, _)| Some(*name) == task) else {
        return Ok(());
    };
    if loaded.model.spec().classifier.is_some() {
        return Ok(());
    }
    let family = loaded.family()?;
    let config = classifying(&loaded.config, family, of_tokens, &names(2))?;
    let spec = specification(loaded.model.spec(), &config, family)?;
    let entries = family.in_memory(&spec).into_iter();
    let scores = |entry: &TensorEntry| entry.parts.iter().any(|part| part == SCORES);
    let weights = adapter.weights(folder)?;
    let shape = |entry: TensorEntry| weights.shape_of_base(&entry.name)?.first().copied();
    let Some(labels) = entries.filter(scores).find_map(shape) else {
        return Ok(());
    };
    let names = saved_names(folder, labels)?;
    let fresh = FreshClassifier {
        of_tokens,
        names: &names,
        problem: None,
        deviation: Some(0.0),
        seed: 0,
    };
    fresh.put_on(loaded)
}

/// The file with the names of classes beside an adapter, whose own configuration has no place for them.
const CLASSES: &str = "classes.json";

/// Writes the names of the classes that `config` says beside an adapter, where they have names of their own.
///
/// # Errors
/// When the disk is full.
pub fn save_names(config: &Map<String, Value>, folder: &Path) -> Result<()> {
    let Some(Value::Object(said)) = config.get("id2label") else {
        return Ok(());
    };
    // Each under its own number: the same names in another order are other names.
    let is_usual =
        |(number, name): (&String, &Value)| name.as_str() == Some(&format!("LABEL_{number}"));
    match said.iter().all(is_usual) {
        true => Ok(()),
        false => write_json(&folder.join(CLASSES), &Value::Object(said.clone())),
    }
}

/// The names of so many classes of an adapter: those of the file beside it, and else those that transformers gives.
fn saved_names(folder: &Path, labels: usize) -> Result<Vec<String>> {
    let path = folder.join(CLASSES);
    let usual = names(labels);
    if !path.is_file() {
        return Ok(usual);
    }
    let said = Config::load(&path)?;
    let name = |(number, usual): (usize, String)| {
        let name = said.optional_text(&number.to_string())?;
        Ok(name.map_or(usual, str::to_owned))
    };
    usual.into_iter().enumerate().map(name).collect()
}

/// The names that transformers gives to classes without one.
pub fn names(labels: usize) -> Vec<String> {
    (0..labels)
        .map(|number| format!("LABEL_{number}"))
        .collect()
}
