//! What finished stages left: models, data sets and reports, by name, each with its hash.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use espalier_data::nearest::{nearest, suggestion};

use super::{
    hashes::{FileHashes, digest},
    kinds::{ArtifactKind, Input, Output},
};
use crate::{
    Result,
    model_path::resolve_model,
    recipe::{Stage, document::Complaint},
};

/// Chat templates that need no file.
const BUILT_IN_TEMPLATES: [&str; 2] = ["chatml", "plain"];

/// The name of what a stage leaves: its own, or `stage.part`.
pub fn name(stage: &str, output: &Output) -> String {
    match output.part {
        "" => stage.to_owned(),
        part => format!("{stage}.{part}"),
    }
}

/// Something that a stage left.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Artifact {
    /// Its file or folder.
    pub path: PathBuf,
    /// The hash of what is in it.
    pub hash: String,
}

impl Artifact {
    /// Looks at what a stage left in its folder.
    ///
    /// # Errors
    /// When it is not there or cannot be read.
    pub fn of(output: &Output, folder: &Path, hashes: &mut FileHashes) -> Result<Self> {
        let path = folder.join(output.path);
        let hash = match output.kind {
            ArtifactKind::Model => hashes.of_model(&path)?,
            ArtifactKind::Data | ArtifactKind::Report => hashes.of_file(&path)?,
        };
        Ok(Self { path, hash })
    }
}

/// What the stages of a run left so far, by name.
#[derive(Debug, Default)]
pub struct Artifacts {
    all: BTreeMap<String, Artifact>,
}

impl Artifacts {
    /// Adds one.
    pub fn insert(&mut self, name: String, artifact: Artifact) {
        self.all.insert(name, artifact);
    }

    /// The stage with paths in place of the names of artifacts.
    pub fn resolved(&self, stage: &Stage) -> Stage {
        let mut stage = stage.clone();
        for input in stage.kind.work_mut().inputs() {
            self.resolve(input);
        }
        stage
    }

    fn resolve(&self, input: Input<'_>) {
        match input {
            Input::Model(name) => *name = self.model_path(name).to_string_lossy().into_owned(),
            Input::Tokenizer(name) | Input::Evaluation(name) => {
                if let Some(artifact) = self.all.get(name) {
                    *name = artifact.path.to_string_lossy().into_owned();
                }
            }
            Input::Data(data) => {
                let artifact = data.from.as_ref().and_then(|name| self.all.get(name));
                if let Some(artifact) = artifact {
                    (data.path, data.from) = (Some(artifact.path.clone()), None);
                }
            }
            Input::Template(_) | Input::Word(_) => {}
        }
    }

    /// The model that is meant: an earlier stage's by its name, else a path. A run's folder stands for the last model that it
    /// made, as it does for `chat` and `eval`.
    fn model_path(&self, name: &str) -> PathBuf {
        let elsewhere = || resolve_model(Path::new(name)).unwrap_or_else(|_| name.into());
        let artifact = self.all.get(name).map(|artifact| artifact.path.clone());
        artifact.unwrap_or_else(elsewhere)
    }

    /// The hash of everything that goes into a stage: the keys that decide what comes out, and what it reads.
    ///
    /// # Errors
    /// When a file cannot be read.
    pub fn fingerprint(&self, stage: &Stage, hashes: &mut FileHashes) -> Result<String> {
        let mut keys = stage.kind.work().deciding_keys()?;
        keys.sort_all_objects();
        let mut parts = vec![
            ("kind", stage.kind.name().to_owned()),
            ("keys", keys.to_string()),
        ];
        for input in stage.clone().kind.work_mut().inputs() {
            parts.push(("input", self.input_hash(input, hashes)?));
        }
        Ok(digest(parts))
    }

    fn input_hash(&self, input: Input<'_>, hashes: &mut FileHashes) -> Result<String> {
        match input {
            Input::Model(name) => match self.all.get(name) {
                Some(artifact) => Ok(artifact.hash.clone()),
                None => hashes.of_model(&self.model_path(name)),
            },
            Input::Tokenizer(name) => {
                let artifact = self.all.get(name).map(|artifact| artifact.path.as_path());
                hashes.of_tokenizer(artifact.unwrap_or(Path::new(name)))
            }
            Input::Data(data) => {
                let artifact = data.from.as_ref().and_then(|name| self.all.get(name));
                match (artifact, &data.path) {
                    (Some(artifact), _) => Ok(artifact.hash.clone()),
                    (None, Some(path)) => hashes.of_file(path),
                    (None, None) => Ok(String::new()),
                }
            }
            Input::Evaluation(name) => match self.all.get(name) {
                Some(artifact) => Ok(artifact.hash.clone()),
                None => hashes.of_file(&Path::new(name).join("results.json")),
            },
            Input::Template(name) if BUILT_IN_TEMPLATES.contains(&name.as_str()) => {
                Ok(String::new())
            }
            Input::Template(path) => hashes.of_file(Path::new(path)),
            Input::Word(word) => match Path::new(word) {
                path if path.is_file() => hashes.of_file(path),
                _ => Ok(String::new()),
            },
        }
    }
}

/// Whether what a stage reads exists by then: references are to earlier stages, and to what these leave.
///
/// # Errors
/// The first reference that is not.
pub fn check_inputs(stages: &[Stage]) -> Result<(), Complaint> {
    for (index, stage) in stages.iter().enumerate() {
        let wrong = |reason| Complaint {
            stage: stage.name.clone(),
            reason,
        };
        for input in stage.clone().kind.work_mut().inputs() {
            check_input(input, index, stages).map_err(wrong)?;
        }
    }
    Ok(())
}

fn check_input(input: Input<'_>, index: usize, stages: &[Stage]) -> Result<(), String> {
    let expected = match &input {
        Input::Model(_) | Input::Tokenizer(_) => ArtifactKind::Model,
        Input::Data(_) => ArtifactKind::Data,
        Input::Evaluation(_) => ArtifactKind::Report,
        Input::Template(_) | Input::Word(_) => return Ok(()),
    };
    if let Input::Data(data) = &input {
        data.check().map_err(|error| error.to_string())?;
        check_path(data.path.as_deref(), &stages[..index])?;
    }
    match input.reference() {
        Some(reference) => check_reference(reference, expected, index, stages),
        None => Ok(()),
    }
}

/// A path that is not there and has the name of an earlier stage's data set was meant as such.
fn check_path(path: Option<&Path>, above: &[Stage]) -> Result<(), String> {
    let text = path.filter(|path| !path.exists()).and_then(Path::to_str);
    let is_data = |name: &str| left(above).any(|(n, kind)| n == name && kind == ArtifactKind::Data);
    match text.filter(|text| is_data(text)) {
        None => Ok(()),
        Some(name) => Err(format!(
            "there is no file `{name}`; what the stage left is `data = {{ from = \"{name}\" }}`"
        )),
    }
}

/// The names and kinds of all that stages leave.
fn left(stages: &[Stage]) -> impl Iterator<Item = (String, ArtifactKind)> {
    stages.iter().flat_map(|stage| {
        let outputs = stage.kind.work().outputs().into_iter();
        outputs.map(|output| (name(&stage.name, &output), output.kind))
    })
}

fn check_reference(
    reference: &str,
    expected: ArtifactKind,
    index: usize,
    stages: &[Stage],
) -> Result<(), String> {
    let (above, wanted) = (&stages[..index], expected.words());
    let head = reference.split('.').next().unwrap_or_default();
    if reference.starts_with("previous.") {
        return Err(format!(
            "`{reference}` has a meaning inside of `repeat` only"
        ));
    }
    if let Some((_, kind)) = left(above).find(|(name, _)| name == reference) {
        return match kind == expected {
            true => Ok(()),
            false => Err(format!("`{reference}` is {}, not {wanted}", kind.words())),
        };
    }
    if stages[index].name == head {
        return Err(format!(
            "it cannot read what it leaves itself (`{reference}`)"
        ));
    }
    if stages[index..].iter().any(|stage| stage.name == head) {
        return Err(format!(
            "it reads `{reference}`, but stage `{head}` comes later"
        ));
    }
    let fitting: Vec<String> = left(above)
        .filter(|(_, kind)| *kind == expected)
        .map(|(name, _)| name)
        .collect();
    let names = || fitting.iter().map(String::as_str);
    if above.iter().any(|stage| stage.name == head) || expected == ArtifactKind::Data {
        let near = suggestion(reference, names());
        let known = match fitting.is_empty() {
            true => format!("no stage above leaves {wanted}"),
            false => format!("there are: `{}`", fitting.join("`, `")),
        };
        return Err(format!(
            "no stage above leaves `{reference}`{near}; {known}"
        ));
    }
    let is_path = reference.contains(['/', '\\']) || Path::new(reference).exists();
    match nearest(reference, names()).filter(|_| !is_path) {
        None => Ok(()),
        Some(near) => Err(format!(
            "`{reference}` is neither a folder nor a stage above; did you mean `{near}`?"
        )),
    }
}
