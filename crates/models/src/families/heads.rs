//! What stands on a model, by the name of its architecture: a head over the vocabulary, scores of classes for texts or tokens, or
//! nothing.

use super::{Family, config::Config};
use crate::error::{Error, Result};
use crate::pooling::Pooling;
use crate::spec::{
    ClassifierDenseSpec, ClassifierSpec, HeadTransformSpec, ModelSpec, Problem, Subject,
};
use serde_json::{Map, Value, json};

/// Most classes.
const LABEL_LIMIT: usize = 1 << 24;
const TEXTS: &str = "ForSequenceClassification";
const TOKENS: &str = "ForTokenClassification";
const PRETRAINING: &str = "ForPreTraining";
/// Ends of the names of architectures with a head over the vocabulary.
const VOCABULARY: [&str; 3] = ["ForCausalLM", "LMHeadModel", "ForMaskedLM"];
/// The same of encoder-decoders, of which no classifiers are known.
const TRANSLATORS: [&str; 2] = ["ForConditionalGeneration", "MTModel"];
/// What stands before the ends, where architectures of one family differ in it.
const OTHER_STEMS: [(&str, &str); 1] = [("Gemma3", "Gemma3Text")];
/// Whether a classifier of tokens has a bias.
const TOKEN_BIAS: &str = "token_classification_bias";

/// What stands on a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Task {
    /// Nothing.
    Base,
    /// A head over the vocabulary.
    Vocabulary,
    /// That head and what else the model was pretrained with.
    Pretraining,
    /// Classes of texts.
    Texts,
    /// Classes of tokens.
    Tokens,
}

impl Task {
    /// What `architectures[0]` says; a head over the vocabulary where there is none.
    pub fn read(config: &Config, family: &Family) -> Result<Self> {
        let architectures = config.optional_texts("architectures")?.unwrap_or_default();
        let known = |name: &&str| Self::named(name, family);
        Ok(architectures
            .first()
            .and_then(known)
            .unwrap_or(Self::Vocabulary))
    }

    /// The task of the architecture `name`, where it is one of the family's.
    pub fn named(name: &str, family: &Family) -> Option<Self> {
        let all = [
            Self::Vocabulary,
            Self::Base,
            Self::Texts,
            Self::Tokens,
            Self::Pretraining,
        ];
        let is = |task: &Self| task.architecture(family).is_some_and(|known| known == name);
        all.into_iter().find(is)
    }

    /// The name of the family's architecture for the task, where it has one.
    pub fn architecture(self, family: &Family) -> Option<String> {
        let name = family.architecture;
        let before = |ends: &[&str]| ends.iter().find_map(|end| name.strip_suffix(end));
        let (alone, translator) = (before(&VOCABULARY), before(&TRANSLATORS));
        let (stem, end) = match self {
            Self::Vocabulary => return Some(name.to_owned()),
            Self::Base => (alone.or(translator), "Model"),
            Self::Pretraining => (alone.filter(|_| family.is_masked()), PRETRAINING),
            Self::Texts => (alone, TEXTS),
            Self::Tokens => (alone, TOKENS),
        };
        let stem = stem?;
        let other = OTHER_STEMS.iter().find(|(own, _)| *own == stem);
        Some(format!("{}{end}", other.map_or(stem, |(_, other)| other)))
    }

    /// The task of a model.
    pub fn of(spec: &ModelSpec) -> Self {
        match (&spec.classifier, spec.headless) {
            (Some(classifier), _) => match classifier.subject {
                Subject::Texts(_) => Self::Texts,
                Subject::Tokens => Self::Tokens,
            },
            (None, true) => Self::Base,
            (None, false) => Self::Vocabulary,
        }
    }
}

/// The heads of a family of encoders.
#[derive(Debug, Clone, Copy)]
pub(super) struct EncoderHeads {
    /// The layer before the head over the vocabulary.
    pub transform: HeadTransformSpec,
    /// Whether that head has a bias.
    pub bias: bool,
    /// The layer before classes of texts.
    pub text_dense: Option<ClassifierDenseSpec>,
    /// The layer before classes of tokens.
    pub token_dense: Option<ClassifierDenseSpec>,
    /// How texts are pooled for their classes.
    pub pooling: Pooling,
    /// Whether the model alone pools its first token.
    pub pooler: bool,
}

impl EncoderHeads {
    /// `spec`, which reads both ways, with what its architecture's name puts on it.
    pub fn put_on(self, spec: ModelSpec, config: &Config, family: &Family) -> Result<ModelSpec> {
        let task = Task::read(config, family)?;
        let on = |subject, dense| read_classifier(config, subject, dense, true).map(Some);
        let classifier = match task {
            Task::Texts => on(Subject::Texts(self.pooling), self.text_dense)?,
            Task::Tokens => on(Subject::Tokens, self.token_dense)?,
            Task::Base | Task::Vocabulary | Task::Pretraining => None,
        };
        let headless = task == Task::Base || classifier.is_some();
        Ok(ModelSpec {
            bidirectional: true,
            headless,
            classifier,
            head_transform: (!headless).then_some(self.transform),
            head_bias: !headless && self.bias,
            pooler: self.pooler && task == Task::Base || task == Task::Pretraining,
            next_sentence: task == Task::Pretraining,
            ..spec
        })
    }
}

/// `spec` of a decoder with what its architecture's name puts on it: classes of the last token's state, or of every token's.
pub(super) fn put_on_decoder(
    spec: ModelSpec,
    config: &Config,
    family: &Family,
) -> Result<ModelSpec> {
    let classifier = match Task::read(config, family)? {
        Task::Texts => read_classifier(config, Subject::Texts(Pooling::Last), None, false)?,
        Task::Tokens => {
            let bias = config.flag_or(TOKEN_BIAS, true)?;
            read_classifier(config, Subject::Tokens, None, bias)?
        }
        Task::Base | Task::Vocabulary | Task::Pretraining => return Ok(spec),
    };
    Ok(ModelSpec {
        headless: true,
        classifier: Some(classifier),
        ..spec
    })
}

/// The classes that a configuration names.
pub(super) fn read_classifier(
    config: &Config,
    subject: Subject,
    dense: Option<ClassifierDenseSpec>,
    bias: bool,
) -> Result<ClassifierSpec> {
    let count = config.optional_size("num_labels", LABEL_LIMIT)?;
    let named = config
        .optional_object("id2label")?
        .map(|names| names.map().len())
        .filter(|count| *count > 0);
    if let (Some(count), Some(named)) = (count, named)
        && count != named
    {
        let reason = format!("{count} labels, of which `id2label` names {named}; remove one");
        return Err(config.error("num_labels", reason));
    }
    let labels = count.or(named).unwrap_or(2);
    Ok(ClassifierSpec {
        labels,
        subject,
        dense,
        bias,
        problem: read_problem(config, subject, labels)?,
    })
}

/// What the scores mean: of tokens always one class each; of texts what `problem_type` says, else numbers where there is one.
fn read_problem(config: &Config, subject: Subject, labels: usize) -> Result<Problem> {
    const KEY: &str = "problem_type";
    let said = config.optional_text(KEY)?;
    match (subject, said) {
        (Subject::Tokens, _) | (_, Some("single_label_classification")) => Ok(Problem::OneClass),
        (_, Some("multi_label_classification")) => Ok(Problem::ManyClasses),
        (_, Some("regression")) => Ok(Problem::Regression),
        (_, None) if labels == 1 => Ok(Problem::Regression),
        (_, None) => Ok(Problem::OneClass),
        (_, Some(kind)) => {
            let known = "regression, single_label_classification and multi_label_classification";
            Err(config.error(KEY, format!("unknown kind `{kind}`; known are {known}")))
        }
    }
}

/// `config` with classes of texts, or of tokens, in place of what it says that stands on the model.
///
/// # Errors
/// When the family has no such architecture.
pub fn classifying(
    config: &Map<String, Value>,
    family: &Family,
    of_tokens: bool,
    names: &[String],
) -> Result<Map<String, Value>> {
    let task = if of_tokens { Task::Tokens } else { Task::Texts };
    let refusal = || {
        Error::Invalid(format!(
            "the family `{}` has no classifier; take a decoder or an encoder that has one",
            family.model_type
        ))
    };
    let architecture = task.architecture(family).ok_or_else(refusal)?;
    let mut map = config.clone();
    map.remove("num_labels");
    map.insert("architectures".into(), json!([architecture]));
    let named = names.iter().enumerate();
    let names = named.map(|(number, name)| (number.to_string(), json!(name)));
    map.insert("id2label".into(), Value::Object(names.clone().collect()));
    let numbers = named_numbers(names);
    map.insert("label2id".into(), Value::Object(numbers));
    let read = (family.read)(&Config::from_map("config.json".as_ref(), map.clone()))?;
    read.classifier.map(|_| map).ok_or_else(refusal)
}

/// The numbers of classes by their names.
fn named_numbers(names: impl Iterator<Item = (String, Value)>) -> Map<String, Value> {
    let number = |(number, name): (String, Value)| {
        let name = name.as_str()?.to_owned();
        Some((name, json!(number.parse::<usize>().ok()?)))
    };
    names.filter_map(number).collect()
}

/// The keys that name the architecture and its classes.
pub(super) fn write(spec: &ModelSpec, family: &Family, map: &mut Map<String, Value>) {
    let architecture = Task::of(spec).architecture(family);
    map.insert(
        "architectures".into(),
        json!([architecture.as_deref().unwrap_or(family.architecture)]),
    );
    let Some(classifier) = spec.classifier else {
        return;
    };
    let label = |number: usize| format!("LABEL_{number}");
    let names = (0..classifier.labels).map(|number| (number.to_string(), json!(label(number))));
    let numbers = (0..classifier.labels).map(|number| (label(number), json!(number)));
    map.insert("id2label".into(), Value::Object(names.collect()));
    map.insert("label2id".into(), Value::Object(numbers.collect()));
    if classifier.subject == Subject::Tokens {
        if !classifier.bias {
            map.insert(TOKEN_BIAS.into(), json!(false));
        }
        return;
    }
    let problem = match (classifier.problem, classifier.labels) {
        (Problem::OneClass, 2..) | (Problem::Regression, 1) => return,
        (Problem::OneClass, _) => "single_label_classification",
        (Problem::ManyClasses, _) => "multi_label_classification",
        (Problem::Regression, _) => "regression",
    };
    map.insert("problem_type".into(), json!(problem));
}

/// The name of a decoder's classifier in its files: most call it `score`, some only that of texts.
pub(super) fn decoder_name(spec: &ModelSpec) -> &'static str {
    const OWN: [&str; 6] = ["bloom", "falcon", "gpt2", "gpt_bigcode", "gpt_neox", "mpt"];
    let of_tokens = Task::of(spec) == Task::Tokens;
    match of_tokens && OWN.contains(&spec.family.as_str()) {
        true => "classifier.",
        false => "score.",
    }
}
