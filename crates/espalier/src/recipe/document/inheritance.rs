//! Inheritance: `[defaults.KIND]` and `like = "stage"`, resolved in the parsed document.
//!
//! What a stage says counts before what the stage says that it is like, and that before the defaults of its kind. Tables
//! are merged key by key, everything else replaces. Inherited keys keep the places where they were written, so that a
//! complaint about one points there.

use std::{collections::BTreeMap, ops::Range};

use espalier_data::nearest::nearest;
use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use crate::stages::kinds::Kind;

/// A value of the document with its place in the text.
type Value<'a> = Spanned<DeValue<'a>>;

/// Keys whose table chooses one of several things: another choice replaces the whole, as two would contradict each other.
pub(in crate::recipe) const CHOICES: &[&str] = &[
    "adapter",
    "f_divergence",
    "objective",
    "optimiser",
    "quantise",
    "reference",
];

/// Keys of which a table has one: what it says itself replaces an inherited alternative.
const ALTERNATIVES: &[&[&str]] = &[
    &["model", "new"],
    &["adapter", "freeze"],
    &["validation", "validation_share", "validation_count"],
    SOURCES,
];

/// Keys that name where data come from; another source replaces the whole table, whose other keys belong to its kind.
const SOURCES: &[&str] = &["path", "from", "world"];

/// The largest number of rounds for which names are compared; more are refused where the number is read.
const MOST_ROUNDS: i64 = 1000;

/// The largest number of stages, rounds counted.
const MOST_STAGES: usize = 10_000;

/// What is wrong, and where.
pub(super) struct Fault {
    /// The place in the text.
    pub span: Range<usize>,
    /// What is wrong, and the nearest valid choice.
    pub reason: String,
}

impl Fault {
    fn new(span: Range<usize>, reason: impl Into<String>) -> Self {
        let reason = reason.into();
        Self { span, reason }
    }
}

/// The table `defaults`, taken out of the document; none where it is no table, which its type will refuse.
pub(super) fn take_defaults<'a>(document: &mut Value<'a>) -> Option<DeTable<'a>> {
    let DeValue::Table(root) = document.get_mut() else {
        return None;
    };
    if !root.get("defaults")?.get_ref().is_table() {
        return None;
    }
    match root.remove("defaults")?.into_inner() {
        DeValue::Table(defaults) => Some(defaults),
        _ => None,
    }
}

/// For each table of defaults, the document with one stage of that kind which says nothing else: whether every key is known
/// can be told from it, also where no stage of the kind follows.
pub(super) fn probes<'a>(
    document: &Value<'a>,
    defaults: &DeTable<'a>,
) -> Result<Vec<(&'static str, Value<'a>)>, Fault> {
    let mut probes = Vec::new();
    for (key, table) in defaults {
        let name = key.get_ref();
        let kind = Kind::NAMES.iter().find(|kind| *kind == name);
        let kind = kind.ok_or_else(|| unknown_kind(name, key.span()))?;
        let text = Spanned::new(key.span(), DeValue::String("defaults".into()));
        let stage = DeTable::from_iter([
            (Spanned::new(key.span(), "name".into()), text),
            (key.clone(), table.clone()),
        ]);
        let stages = vec![Spanned::new(key.span(), DeValue::Table(stage))];
        let mut probe = document.clone();
        if let DeValue::Table(root) = probe.get_mut() {
            let stages = Spanned::new(key.span(), DeValue::Array(stages.into_iter().collect()));
            root.insert(Spanned::new(key.span(), "stage".into()), stages);
        }
        probes.push((*kind, probe));
    }
    Ok(probes)
}

fn unknown_kind(name: &str, span: Range<usize>) -> Fault {
    let near = nearest(name, Kind::NAMES.iter().copied())
        .map(|near| format!(", did you mean `{near}`?"))
        .unwrap_or(";".into());
    let known = quoted(Kind::NAMES.iter().copied());
    Fault::new(
        span,
        format!("unknown key `{name}`{near} known keys: {known}"),
    )
}

/// Resolves `like` and the defaults in every stage, those of repetitions included.
pub(super) fn apply<'a>(
    document: &mut Value<'a>,
    defaults: Option<&DeTable<'a>>,
) -> Result<(), Fault> {
    let DeValue::Table(root) = document.get_mut() else {
        return Ok(());
    };
    let Some(stages) = root.get_mut("stage") else {
        return Ok(());
    };
    let mut all = Vec::new();
    names(stages, &mut all);
    let mut walk = Walk {
        all,
        above: Vec::new(),
        taken: BTreeMap::new(),
        defaults,
    };
    walk.stages(stages, 0)
}

/// The names of all stages as they are written, in order.
fn names(stages: &Value<'_>, all: &mut Vec<String>) {
    for stage in stages.get_ref().as_array().into_iter().flatten() {
        let stage = stage.get_ref();
        let name = stage.get("name").and_then(|name| name.get_ref().as_str());
        all.extend(name.map(str::to_owned));
        if let Some(inner) = stage.get("repeat").and_then(|r| r.get_ref().get("stage")) {
            names(inner, all);
        }
    }
}

/// The way through all stages, from the first to the last.
struct Walk<'d, 'a> {
    /// The names of all stages.
    all: Vec<String>,
    /// The stages above, without the defaults.
    above: Vec<(String, DeTable<'a>)>,
    /// Names that runs of stages have; those of a repetition carry the round's number.
    taken: BTreeMap<String, Range<usize>>,
    defaults: Option<&'d DeTable<'a>>,
}

impl<'a> Walk<'_, 'a> {
    /// A list of stages; with `rounds`, that of a repetition.
    fn stages(&mut self, stages: &mut Value<'a>, rounds: i64) -> Result<(), Fault> {
        let DeValue::Array(stages) = stages.get_mut() else {
            return Ok(());
        };
        for stage in stages.iter_mut() {
            let span = stage.span();
            if let DeValue::Table(stage) = stage.get_mut() {
                self.stage(stage, span, rounds)?;
            }
        }
        Ok(())
    }

    fn stage(
        &mut self,
        stage: &mut DeTable<'a>,
        span: Range<usize>,
        rounds: i64,
    ) -> Result<(), Fault> {
        let name = stage.get("name").and_then(text);
        if let Some((name, place)) = &name {
            self.take_name(name, place, rounds)?;
        }
        if let Some((other, place)) = stage.get("like").and_then(text) {
            let own = name.as_ref().map(|(name, _)| name.as_str());
            let from = self.stage_above(&other, own, place)?;
            stage.remove("like");
            inherit(stage, &from);
        }
        one_kind(stage, span)?;
        if let Some((name, _)) = name {
            self.above.push((name, stage.clone()));
        }
        for (kind, from) in self.defaults.into_iter().flatten() {
            if let (Some(own), DeValue::Table(from)) =
                (stage.get_mut(kind.get_ref().as_ref()), from.get_ref())
                && let DeValue::Table(own) = own.get_mut()
            {
                inherit(own, from);
            }
        }
        self.rounds(stage)
    }

    /// The stages of a repetition.
    fn rounds(&mut self, stage: &mut DeTable<'a>) -> Result<(), Fault> {
        let Some(DeValue::Table(repeat)) = stage.get_mut("repeat").map(Spanned::get_mut) else {
            return Ok(());
        };
        let times = repeat.get("times").and_then(|times| {
            let number = times.get_ref().as_integer()?;
            i64::from_str_radix(number.as_str(), number.radix()).ok()
        });
        let times = times.unwrap_or(0).clamp(0, MOST_ROUNDS);
        match repeat.get_mut("stage") {
            Some(stages) => self.stages(stages, times),
            None => Ok(()),
        }
    }

    fn take_name(&mut self, name: &str, place: &Range<usize>, rounds: i64) -> Result<(), Fault> {
        let numbered = (1..=rounds).map(|round| format!("{name}-{round}"));
        let taken = match rounds {
            0 => vec![name.to_owned()],
            _ => numbered.chain([name.to_owned()]).collect(),
        };
        if self.taken.len() + taken.len() > MOST_STAGES {
            let reason =
                format!("more than {MOST_STAGES} stages, rounds counted; split the recipe");
            return Err(Fault::new(place.clone(), reason));
        }
        for name in taken {
            if self.taken.insert(name.clone(), place.clone()).is_some() {
                let reason = format!("two stages are named `{name}`; give each its own name");
                return Err(Fault::new(place.clone(), reason));
            }
        }
        Ok(())
    }

    /// What the stage above says.
    fn stage_above(
        &self,
        other: &str,
        own: Option<&str>,
        place: Range<usize>,
    ) -> Result<DeTable<'a>, Fault> {
        if let Some((_, table)) = self.above.iter().find(|(name, _)| name == other) {
            return match table.contains_key("repeat") {
                false => Ok(table.clone()),
                true => Err(Fault::new(
                    place,
                    format!("`like`: `{other}` is a repetition; name one of its stages"),
                )),
            };
        }
        let known = self.above.iter().map(|(name, _)| name.as_str());
        let reason = match () {
            () if own == Some(other) => format!("stage `{other}` cannot be like itself"),
            () if self.all.iter().any(|name| name == other) => {
                format!("stage `{other}` comes later")
            }
            () => match nearest(other, known.clone()) {
                Some(near) => format!("there is no stage `{other}`, did you mean `{near}`?"),
                None => format!("there is no stage `{other}`"),
            },
        };
        let choices = match self.above.is_empty() {
            true => "there is none above".to_owned(),
            false => format!("stages above: {}", quoted(known)),
        };
        let gap = if reason.ends_with('?') { "" } else { ";" };
        let reason = format!("`like`: {reason}{gap} {choices}");
        Err(Fault::new(place, reason))
    }
}

/// A stage does one thing; what `like` brings along counts.
fn one_kind(stage: &DeTable<'_>, span: Range<usize>) -> Result<(), Fault> {
    let kinds = |key: &&Spanned<_>| -> bool {
        let key: &std::borrow::Cow<'_, str> = key.get_ref();
        key == "repeat" || Kind::NAMES.contains(&key.as_ref())
    };
    let mut given = stage.iter().map(|(key, _)| key).filter(kinds);
    let choices = quoted(Kind::NAMES.iter().copied());
    let known = |key: &Spanned<std::borrow::Cow<'_, str>>| {
        ["name", "repeat"].contains(&key.get_ref().as_ref())
    };
    match (given.next(), given.next()) {
        (Some(one), Some(other)) => {
            // What is inherited was written above.
            let (first, second) = match one.span().start <= other.span().start {
                true => (one, other),
                false => (other, one),
            };
            let first = first.get_ref();
            let reason = format!(
                "the stage has `{first}` already, so `{}` cannot stand beside it; give one of {choices}",
                second.get_ref()
            );
            Err(Fault::new(second.span(), reason))
        }
        (None, _) if stage.iter().all(|(key, _)| known(key)) => Err(Fault::new(
            span,
            format!("the stage does nothing; give one of {choices}"),
        )),
        _ => Ok(()),
    }
}

/// Adds what `own` does not say; tables are merged key by key.
fn inherit<'a>(own: &mut DeTable<'a>, from: &DeTable<'a>) {
    let replaced: Vec<&str> = replaced_by(own).collect();
    for (key, value) in from {
        let name = key.get_ref().as_ref();
        if replaced.contains(&name) {
            continue;
        }
        match own.get_mut(name).map(Spanned::get_mut) {
            None => {
                own.insert(key.clone(), value.clone());
            }
            Some(DeValue::Table(mine)) => {
                if let DeValue::Table(theirs) = value.get_ref()
                    && !(CHOICES.contains(&name) && chooses_another(mine, theirs))
                    && !names_another_source(mine, theirs)
                {
                    inherit(mine, theirs);
                }
            }
            Some(_) => {}
        }
    }
}

/// The alternatives of keys that a table has.
fn replaced_by(own: &DeTable<'_>) -> impl Iterator<Item = &'static str> {
    let has = |key: &str| own.contains_key(key);
    let given = ALTERNATIVES
        .iter()
        .filter(move |keys| keys.iter().any(|key| has(key)));
    let absent = given.flat_map(move |keys| keys.iter().filter(move |key| !has(key)));
    absent.copied()
}

fn names_another_source(own: &DeTable<'_>, from: &DeTable<'_>) -> bool {
    let source = |table: &DeTable<'_>| SOURCES.iter().find(|key| table.contains_key(**key));
    match (source(own), source(from)) {
        (Some(own), Some(from)) => own != from,
        _ => false,
    }
}

fn chooses_another(own: &DeTable<'_>, from: &DeTable<'_>) -> bool {
    own.iter()
        .any(|(key, _)| !from.contains_key(key.get_ref().as_ref()))
}

fn text(value: &Value<'_>) -> Option<(String, Range<usize>)> {
    Some((value.get_ref().as_str()?.to_owned(), value.span()))
}

fn quoted<'n>(names: impl Iterator<Item = &'n str>) -> String {
    let quoted: Vec<String> = names.map(|name| format!("`{name}`")).collect();
    quoted.join(", ")
}
