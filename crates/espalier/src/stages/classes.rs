//! What labels mean: the classes of a model, or, where it has none, a fresh classifier for those of the data.

use std::collections::BTreeSet;

use espalier_data::{
    nearest::suggestion,
    record::{Label, Record},
};
use espalier_models::{
    folder::LoadedModel,
    fresh_classifier::{FreshClassifier, names},
    spec::{ClassifierSpec, Problem, Subject},
};
use espalier_train::objectives::ObjectiveOptions;
use serde_json::Value;

use super::{Voice, data::Sourced};
use crate::{Error, Result};

/// Most classes that are made of the numbers of a data set.
const MOST_CLASSES: usize = 1 << 16;

/// Classes that are named in a sentence.
const MOST_NAMED: usize = 12;

/// The classes of a model.
#[derive(Debug, Clone)]
pub struct Classes {
    names: Vec<String>,
    spec: ClassifierSpec,
}

/// What the labels of a data set ask for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Asked {
    of_tokens: bool,
    names: Vec<String>,
    problem: Option<&'static str>,
    /// Whether whole numbers were taken for classes.
    numbered: bool,
    /// The label of all records, where classes are asked for and there is one alone.
    only: Option<String>,
}

impl Asked {
    /// Whether a fresh classifier would have anything to choose.
    fn check_choice(&self) -> Result<()> {
        match &self.only {
            None => Ok(()),
            Some(label) => Err(Error::work(format!(
                "`data`: every label is {label}, and a classifier learns to tell two classes at least; give data with others too"
            ))),
        }
    }
}

/// Makes sure that the model has the classes that the objective learns, and that the labels of all records are among them. A model
/// without a classifier gets a fresh one in place of its head. Nothing for objectives that learn no classes.
///
/// # Errors
/// When a label is no class of the model, the model classifies something else, or its family has no classifier.
pub fn settle(
    loaded: &mut LoadedModel,
    objective: &ObjectiveOptions,
    records: &[&[Sourced]],
    seed: u64,
    voice: &mut dyn Voice,
) -> Result<Option<Classes>> {
    if !objective.registered().classifies {
        return Ok(None);
    }
    let all = || records.iter().flat_map(|records| records.iter());
    let asked = match objective {
        ObjectiveOptions::Reward(_) => Asked {
            of_tokens: false,
            names: names(1),
            ..Asked::default()
        },
        ObjectiveOptions::ProcessReward(_) => Asked {
            of_tokens: true,
            names: STEPS.map(str::to_owned).into(),
            ..Asked::default()
        },
        _ => seen(all())?.asked(loaded.config.get(PROBLEM).and_then(Value::as_str))?,
    };
    check_kinds(objective, all())?;
    if loaded.model.spec().classifier.is_none() {
        asked.check_choice()?;
        let deviation = match objective {
            ObjectiveOptions::Reward(options) => {
                options.head.deviation(loaded.model.spec().hidden_width())
            }
            _ => None,
        };
        if loaded.adapter.is_some() {
            return Err(Error::usage(
                "the model is an adapter on a base without a classifier; merge it into that first (stage `merge`)",
            ));
        }
        let fresh = FreshClassifier {
            of_tokens: asked.of_tokens,
            names: &asked.names,
            problem: asked
                .problem
                .filter(|_| !loaded.config.contains_key(PROBLEM)),
            deviation,
            seed,
        };
        fresh.put_on(loaded)?;
        let of = if asked.of_tokens { "tokens" } else { "texts" };
        voice.say(&format!(
            "   a fresh head takes the place of what stood on the model: {} for {of}",
            said(&asked.names)
        ));
        if asked.numbered {
            voice.say(
                "   labels that are whole numbers are taken for classes; with `config = { problem_type = \"regression\" }` they are amounts",
            );
        }
    }
    let classes = Classes::of(loaded)?;
    let is_of_tokens = classes.spec.subject == Subject::Tokens;
    if is_of_tokens != asked.of_tokens {
        let words = |tokens| if tokens { "tokens" } else { "texts" };
        return Err(Error::usage(format!(
            "the model classifies {}, and the data say classes of {}",
            words(is_of_tokens),
            words(asked.of_tokens)
        )));
    }
    for sourced in all() {
        classes.check(sourced)?;
    }
    Ok(Some(classes))
}

/// The key of a configuration that says what scores mean, and its value for numbers.
const PROBLEM: &str = "problem_type";
const REGRESSION: &str = "regression";

/// What classes of truth values are called: of what is false, of what is true.
const FLAGS: [[&str; 2]; 2] = [["false", "true"], STEPS];

/// What classes of steps are called.
const STEPS: [&str; 2] = ["wrong", "right"];

/// `1 score`, or how many classes, with their names where these are few.
fn said(names: &[String]) -> String {
    match names {
        [_] => "1 score".to_owned(),
        few if few.len() <= MOST_NAMED => format!("{} classes ({})", few.len(), few.join(", ")),
        many => format!("{} classes", many.len()),
    }
}

/// Refuses records that the objective cannot learn from.
fn check_kinds<'a>(
    objective: &ObjectiveOptions,
    mut records: impl Iterator<Item = &'a Sourced>,
) -> Result<()> {
    let (suits, needs): (fn(&Record) -> bool, &str) = match objective {
        ObjectiveOptions::Reward(_) => (
            |record| matches!(record, Record::Preference { .. }),
            "preference pairs",
        ),
        ObjectiveOptions::ProcessReward(_) => (
            |record| matches!(record, Record::Steps { .. }),
            "`prompt`, `completions` and `labels`",
        ),
        _ => (
            |record| matches!(record, Record::Labelled { .. } | Record::Tagged { .. }),
            "`text` and `label`, or `tokens` and `labels`",
        ),
    };
    match records.find(|sourced| !suits(&sourced.record)) {
        None => Ok(()),
        Some(other) => Err(Error::work(format!(
            "{}`{}` learns from {needs}, and this record has none",
            other.words(),
            objective.registered().name
        ))),
    }
}

/// The labels of all records.
fn seen<'a>(records: impl Iterator<Item = &'a Sourced>) -> Result<Seen> {
    let mut seen = Seen::default();
    for sourced in records {
        match &sourced.record {
            Record::Labelled { label, .. } => {
                seen.of_texts = true;
                seen.see(label);
            }
            Record::Tagged { labels, .. } => {
                seen.of_tokens = true;
                labels.iter().for_each(|label| seen.see(label));
            }
            _ => {}
        }
        if seen.of_texts && seen.of_tokens {
            return Err(Error::work(format!(
                "{}the data hold classes of texts and of words; train on one of them",
                sourced.words()
            )));
        }
    }
    Ok(seen)
}

/// What the labels of a data set are.
#[derive(Debug, Default)]
struct Seen {
    of_texts: bool,
    of_tokens: bool,
    names: BTreeSet<String>,
    /// The smallest and the largest number; of tokens, one that is negative asks for nothing.
    numbers: Option<[f64; 2]>,
    fractions: bool,
    many: bool,
    flags: [bool; 2],
    longest: usize,
}

impl Seen {
    fn see(&mut self, label: &Label) {
        match label {
            Label::Flag(flag) => self.flags[usize::from(*flag)] = true,
            Label::Name(name) => _ = self.names.insert(name.clone()),
            Label::Number(number) if *number < 0.0 && self.of_tokens => {}
            Label::Number(number) => {
                self.fractions |= number.fract() != 0.0;
                let [least, most] = self.numbers.unwrap_or([*number; 2]);
                self.numbers = Some([least.min(*number), most.max(*number)]);
            }
            Label::Many(labels) => {
                self.many = true;
                self.longest = self.longest.max(labels.len());
                labels.iter().for_each(|label| self.see(label));
            }
        }
    }

    /// What a fresh classifier needs; `problem` is what the model's configuration says that scores mean.
    fn asked(self, problem: Option<&str>) -> Result<Asked> {
        let asked = |names, problem| Asked {
            of_tokens: self.of_tokens,
            names,
            problem,
            ..Asked::default()
        };
        let is_regression = match problem {
            Some(problem) => problem == REGRESSION,
            None => self.fractions && !self.many,
        };
        let several = self.many.then_some("multi_label_classification");
        let only = self.only();
        Ok(match (self.names.is_empty(), self.numbers) {
            (true, Some(_)) if is_regression => asked(names(self.longest.max(1)), Some(REGRESSION)),
            (true, Some(_)) if self.many => asked(names(self.longest), several),
            (true, Some([_, most])) if most < MOST_CLASSES as f64 => Asked {
                numbered: true,
                only,
                // A single class would say nothing.
                ..asked(names((most.max(1.0) as usize) + 1), None)
            },
            (true, Some([_, most])) => {
                return Err(Error::work(format!(
                    "label {most}: more than {MOST_CLASSES} classes; for numbers set `config = {{ problem_type = \"regression\" }}`"
                )));
            }
            (true, None) if self.flags.contains(&true) => Asked {
                only,
                ..asked(["false", "true"].map(str::to_owned).into(), None)
            },
            (true, None) => {
                return Err(Error::work(
                    "the data hold no label; give `text` and `label`, or `tokens` and `labels`",
                ));
            }
            (false, _) => Asked {
                only,
                ..asked(self.names.into_iter().collect(), several)
            },
        })
    }

    /// The label that all records have, where there is no other.
    fn only(&self) -> Option<String> {
        let names = self.names.iter().map(|name| format!("`{name}`"));
        let flags = [false, true].into_iter().zip(self.flags);
        let flags = flags
            .filter(|(_, seen)| *seen)
            .map(|(flag, _)| format!("`{flag}`"));
        let mut numbers = self.numbers.map_or(Vec::new(), Vec::from);
        numbers.dedup();
        let numbers = numbers.iter().map(|number| format!("`{number}`"));
        let mut all = names.chain(flags).chain(numbers);
        let first = all.next().filter(|_| !self.many);
        first.filter(|_| all.next().is_none())
    }
}

impl Classes {
    /// The classes of a model, by the names in its configuration.
    ///
    /// # Errors
    /// When it has no classifier.
    pub fn of(loaded: &LoadedModel) -> Result<Self> {
        let missing = || {
            Error::usage(
                "`labels`: the model has no classifier (`...ForSequenceClassification`, `...ForTokenClassification`)",
            )
        };
        let spec = loaded.model.spec().classifier.ok_or_else(missing)?;
        let named = |number: usize| {
            let name = loaded.config.get("id2label")?.get(number.to_string())?;
            name.as_str().map(str::to_owned)
        };
        let other = |number: usize| format!("LABEL_{number}");
        Ok(Self {
            names: (0..spec.labels)
                .map(|number| named(number).unwrap_or_else(|| other(number)))
                .collect(),
            spec,
        })
    }

    /// Whether all records have labels of what the model classifies, each of which means something.
    ///
    /// # Errors
    /// The first that has not, with its place.
    pub fn check_all(&self, records: &[Sourced]) -> Result<()> {
        let of_tokens = self.spec.subject == Subject::Tokens;
        let (suits, needs): (fn(&Record) -> bool, &str) = match of_tokens {
            true => (
                |record| matches!(record, Record::Tagged { .. } | Record::Steps { .. }),
                "tokens, so that a record needs `tokens` and `labels`, or `completions` and `labels`",
            ),
            false => (
                |record| matches!(record, Record::Labelled { .. }),
                "texts, so that a record needs `text` and `label`",
            ),
        };
        if let Some(other) = records.iter().find(|sourced| !suits(&sourced.record)) {
            return Err(Error::work(format!(
                "{}`labels`: the model classifies {needs}",
                other.words()
            )));
        }
        records.iter().try_for_each(|sourced| self.check(sourced))
    }

    /// Whether every label of a record means something.
    ///
    /// # Errors
    /// When one does not, with the record's place.
    pub fn check(&self, sourced: &Sourced) -> Result<()> {
        let labels: &[Label] = match &sourced.record {
            Record::Labelled { label, .. } => std::slice::from_ref(label),
            Record::Tagged { labels, .. } | Record::Steps { labels, .. } => labels,
            _ => return Ok(()),
        };
        let values = self.values(labels);
        values
            .map(drop)
            .map_err(|error| Error::work(format!("{}{error}", sourced.words())))
    }

    /// What labels are in numbers: each a class, or as many numbers as there are classes.
    ///
    /// # Errors
    /// When one is no class of the model.
    pub fn values(&self, labels: &[Label]) -> Result<Vec<f64>> {
        let mut values = Vec::with_capacity(labels.len());
        for label in labels {
            values.extend(match self.spec.problem {
                Problem::OneClass => vec![self.class(label)?],
                Problem::ManyClasses => self.several(label)?,
                Problem::Regression => self.numbers(label)?,
            });
        }
        Ok(values)
    }

    /// The number of a class; negative where nothing is asked of a token.
    fn class(&self, label: &Label) -> Result<f64> {
        let unasked = self.spec.subject == Subject::Tokens;
        match label {
            Label::Flag(flag) if self.spec.labels == 2 => Ok(self.flag(*flag)),
            Label::Name(name) => self.position(name).map(|place| place as f64),
            Label::Number(number) if *number < 0.0 && unasked => Ok(*number),
            Label::Number(number)
                if number.fract() == 0.0 && (0.0..self.spec.labels as f64).contains(number) =>
            {
                Ok(*number)
            }
            other => Err(self.wrong(other)),
        }
    }

    /// The number of the class that a truth value is: by its name where the classes are called so, and else 0 for what is false.
    fn flag(&self, flag: bool) -> f64 {
        let called = FLAGS.iter().find(|pair| {
            let mut names = pair.iter();
            names.all(|name| self.names.iter().any(|own| own == name))
        });
        let place = called.and_then(|pair| {
            let name = pair[usize::from(flag)];
            self.names.iter().position(|own| own == name)
        });
        place.unwrap_or(usize::from(flag)) as f64
    }

    /// A number for each class, 1 for those that hold.
    fn several(&self, label: &Label) -> Result<Vec<f64>> {
        let Label::Many(labels) = label else {
            return Err(self.wrong(label));
        };
        if labels.iter().all(|label| matches!(label, Label::Name(_))) {
            let mut values = vec![0.0; self.spec.labels];
            for label in labels {
                values[self.class(label)? as usize] = 1.0;
            }
            return Ok(values);
        }
        self.numbers(label)
    }

    /// Numbers, as many as the model has.
    fn numbers(&self, label: &Label) -> Result<Vec<f64>> {
        let number = |label: &Label| match label {
            Label::Number(number) => Ok(*number),
            Label::Flag(flag) => Ok(f64::from(u8::from(*flag))),
            other => Err(self.wrong(other)),
        };
        let numbers = match label {
            Label::Many(labels) => labels.iter().map(number).collect::<Result<Vec<_>>>()?,
            one => vec![number(one)?],
        };
        match numbers.len() == self.spec.labels {
            true => Ok(numbers),
            false => Err(self.wrong(label)),
        }
    }

    fn position(&self, name: &str) -> Result<usize> {
        let place = self.names.iter().position(|known| known == name);
        place.ok_or_else(|| {
            let hint = suggestion(name, self.names.iter().map(String::as_str));
            Error::work(format!(
                "`{name}` is none of the model's {}{hint}",
                said(&self.names)
            ))
        })
    }

    fn wrong(&self, label: &Label) -> Error {
        let label = serde_json::to_value(label).unwrap_or(Value::Null);
        let needs = match self.spec.problem {
            Problem::OneClass => "a class or its number",
            Problem::ManyClasses => "a list: names of classes, or a number for each",
            Problem::Regression => "a number for each of its scores",
        };
        Error::work(format!(
            "the label {label} does not fit the model's {}; it needs {needs}",
            said(&self.names)
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use espalier_models::pooling::Pooling;

    fn labelled(label: Label) -> Sourced {
        Sourced {
            record: Record::Labelled {
                text: "x".into(),
                label,
            },
            place: None,
            origin: serde_json::Value::Null,
        }
    }

    fn classes(names: &[&str], problem: Problem) -> Classes {
        Classes {
            names: names.iter().map(|name| (*name).to_owned()).collect(),
            spec: ClassifierSpec {
                labels: names.len(),
                subject: Subject::Texts(Pooling::Last),
                dense: None,
                bias: false,
                problem,
            },
        }
    }

    #[test]
    fn truth_values_follow_the_models_names() {
        let value = |names: [&str; 2], flag: bool| {
            let classes = classes(&names, Problem::OneClass);
            classes.values(&[Label::Flag(flag)]).unwrap()
        };
        assert_eq!(value(["wrong", "right"], true), [1.0]);
        assert_eq!(value(["right", "wrong"], true), [0.0]);
        assert_eq!(value(["right", "wrong"], false), [1.0]);
        assert_eq!(value(["true", "false"], true), [0.0]);
        assert_eq!(value(["LABEL_0", "LABEL_1"], true), [1.0]);
    }

    #[test]
    fn the_data_say_which_classes_there_are() {
        let found = |labels: Vec<Label>| {
            let records: Vec<Sourced> = labels.into_iter().map(labelled).collect();
            let asked = seen(records.iter()).unwrap().asked(None).unwrap();
            (asked.names.len(), asked.problem, asked.names[0].clone())
        };
        let named = ["b", "a", "b"].map(|name| Label::Name(name.into()));
        assert_eq!(found(named.into()), (2, None, "a".into()));
        let numbers = [0.0, 3.0].map(Label::Number);
        assert_eq!(found(numbers.into()), (4, None, "LABEL_0".into()));
        let fractions = [0.5, 3.0].map(Label::Number);
        assert_eq!(
            found(fractions.into()),
            (1, Some("regression"), "LABEL_0".into())
        );
        let flags = [true, false].map(Label::Flag);
        assert_eq!(found(flags.into()), (2, None, "false".into()));
        let several = Label::Many(vec![Label::Name("x".into()), Label::Name("y".into())]);
        let multi = Some("multi_label_classification");
        assert_eq!(
            found(vec![several, Label::Many(Vec::new())]),
            (2, multi, "x".into())
        );
        assert!(seen([].iter()).unwrap().asked(None).is_err());
    }

    #[test]
    fn whole_numbers_are_amounts_where_the_model_says_so() {
        let asked = |labels: &[f64], problem| {
            let records = labels.iter().map(|n| labelled(Label::Number(*n)));
            let records: Vec<Sourced> = records.collect();
            seen(records.iter()).unwrap().asked(problem).unwrap()
        };
        let classes = asked(&[1.0, 4.0], None);
        assert_eq!((classes.names.len(), classes.numbered), (5, true));
        let numbers = asked(&[1.0, 4.0], Some(REGRESSION));
        assert_eq!((numbers.names.len(), numbers.numbered), (1, false));
        // Labels that are all the same are amounts, and no classes to choose from.
        assert!(asked(&[2.0, 2.0], Some(REGRESSION)).check_choice().is_ok());
        let said = asked(&[2.0, 2.0], None).check_choice().unwrap_err();
        assert!(said.to_string().contains("every label is `2`"), "{said}");
        assert!(classes.check_choice().is_ok());
    }

    #[test]
    fn labels_become_numbers_or_errors_that_name_the_nearest() {
        let one = classes(&["bad", "good"], Problem::OneClass);
        let values = |classes: &Classes, label: Label| classes.values(&[label]);
        assert_eq!(values(&one, Label::Name("good".into())).unwrap(), [1.0]);
        assert_eq!(values(&one, Label::Flag(true)).unwrap(), [1.0]);
        let error = values(&one, Label::Name("godo".into())).unwrap_err();
        assert!(error.to_string().contains("did you mean `good`"), "{error}");
        let error = values(&one, Label::Number(2.0)).unwrap_err().to_string();
        assert!(error.contains("the label 2.0 does not fit"), "{error}");
        assert!(values(&one, Label::Number(-100.0)).is_err());
        let many = classes(&["a", "b", "c"], Problem::ManyClasses);
        let names = Label::Many(vec![Label::Name("c".into()), Label::Name("a".into())]);
        assert_eq!(values(&many, names).unwrap(), [1.0, 0.0, 1.0]);
        let numbers = Label::Many([0.0, 1.0, 1.0].map(Label::Number).into());
        assert_eq!(values(&many, numbers).unwrap(), [0.0, 1.0, 1.0]);
        assert!(values(&many, Label::Number(1.0)).is_err());
        let score = classes(&["LABEL_0"], Problem::Regression);
        assert_eq!(values(&score, Label::Number(2.5)).unwrap(), [2.5]);
    }
}
