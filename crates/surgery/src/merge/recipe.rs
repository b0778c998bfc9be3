//! Recipes of mergekit: YAML in, every key checked before anything is opened.
//!
//! A file holds one document, or several that use each other's output by `name`, as mergekit-multi reads them; the one without a name is the
//! result.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

use espalier_data::nearest::suggestion;
use espalier_models::checkpoint::Dtype;
use serde_json::{Map, Value};

use super::methods::{self, Method};
use super::setting::Setting;
use super::tokens::TokenizerChoice;
use crate::{Error, Result};

/// More than any recipe has.
const LARGEST_FILE: usize = 16 << 20;

/// Keys of a document.
const DOCUMENT: &[&str] = &[
    "merge_method",
    "base_model",
    "models",
    "slices",
    "modules",
    "parameters",
    "dtype",
    "out_dtype",
    "tokenizer_source",
    "tokenizer",
    "chat_template",
    "name",
];

/// A parameter's name with what the recipe says of it.
pub type Settings = BTreeMap<String, Setting>;

/// A merge as it is written down.
#[derive(Debug, Clone)]
pub struct Document {
    /// What other documents call its output.
    pub name: Option<String>,
    /// How tensors are merged.
    pub method: &'static Method,
    /// The base, as it is written.
    pub base: Option<String>,
    /// The parts of the stack of blocks, from the first on.
    pub slices: Vec<Slice>,
    /// Parameters for all tensors.
    pub parameters: Settings,
    /// The type of the arithmetic, and of the output where `out_dtype` says nothing.
    pub dtype: Option<Dtype>,
    /// The type of the output.
    pub out_dtype: Option<Dtype>,
    /// Whose tokens the output has.
    pub tokenizer: Option<TokenizerChoice>,
    /// The output's chat template: `auto`, or the template.
    pub chat_template: Option<String>,
    /// What the user should know, a sentence each.
    pub remarks: Vec<String>,
    /// The file, for errors.
    pub path: PathBuf,
    /// The whole file as it was.
    pub text: String,
}

/// Blocks that are merged from blocks of one or several models.
#[derive(Debug, Clone, PartialEq)]
pub struct Slice {
    /// The models.
    pub sources: Vec<Source>,
    /// The base of this slice, where it differs.
    pub base: Option<String>,
    /// Parameters for the slice's tensors.
    pub parameters: Settings,
}

/// Blocks of a model.
#[derive(Debug, Clone, PartialEq)]
pub struct Source {
    /// The model as it is written: a folder, or a folder and an adapter's with `+` between.
    pub model: String,
    /// Its blocks; all of them when absent.
    pub layers: Option<Range<usize>>,
    /// Its parameters.
    pub parameters: Settings,
}

impl Document {
    /// All models that are named, each once, in order.
    pub fn models(&self) -> Vec<&str> {
        let sources = self.slices.iter().flat_map(|slice| {
            let sources = slice.sources.iter().map(|source| &source.model);
            sources.chain(&slice.base)
        });
        let mut names: Vec<&str> = Vec::new();
        for name in sources.chain(&self.base) {
            if !names.contains(&name.as_str()) {
                names.push(name);
            }
        }
        names
    }

    /// An error of the recipe at the line with this key.
    pub fn error(&self, key: &str, reason: impl Into<String>) -> Error {
        error_at(&self.path, &self.text, key, reason.into())
    }
}

/// Reads a recipe.
///
/// # Errors
/// When it cannot be read, is no YAML, or a key or value makes no sense.
pub fn read(path: &Path) -> Result<Vec<Document>> {
    let text = std::fs::read_to_string(path).map_err(Error::file(path))?;
    parse(&text, path)
}

/// As [`read`], of a text; `path` is what errors call it.
///
/// # Errors
/// As [`read`].
pub fn parse(text: &str, path: &Path) -> Result<Vec<Document>> {
    let wrong = |reason: String| Error::Recipe {
        path: path.to_owned(),
        line: None,
        reason,
    };
    if text.len() > LARGEST_FILE {
        return Err(wrong("too large for a recipe".into()));
    }
    let documents: Vec<Value> =
        serde_saphyr::from_multiple(text).map_err(|error| wrong(format!("no YAML: {error}")))?;
    let reader = Reader { path, text };
    let documents = documents
        .iter()
        .map(|document| reader.document(document))
        .collect::<Result<Vec<_>>>()?;
    in_order(documents, &wrong)
}

/// Documents such that each comes after those that it uses, and the one without a name last.
fn in_order(mut left: Vec<Document>, wrong: &dyn Fn(String) -> Error) -> Result<Vec<Document>> {
    if left
        .iter()
        .filter(|document| document.name.is_none())
        .count()
        != 1
    {
        return Err(wrong(
            "one document must have no `name`: its merge is the result".into(),
        ));
    }
    let mut names: Vec<String> = left.iter().filter_map(|d| d.name.clone()).collect();
    names.sort();
    if let Some(twice) = names.windows(2).find(|pair| pair[0] == pair[1]) {
        return Err(wrong(format!("two documents have the `name` {}", twice[0])));
    }
    let mut ordered: Vec<Document> = Vec::new();
    while !left.is_empty() {
        let done: Vec<String> = ordered.iter().filter_map(|d| d.name.clone()).collect();
        let ready = |document: &Document| {
            let used = document.models().into_iter().map(model_of);
            used.filter(|model| names.iter().any(|name| name == model))
                .all(|model| done.iter().any(|name| name == model))
        };
        let next = left.iter().position(|d| ready(d) && d.name.is_some());
        let next = next.or_else(|| left.iter().position(|d| ready(d) && left.len() == 1));
        match next {
            Some(next) => ordered.push(left.remove(next)),
            None => return Err(wrong("the documents use each other in a circle".into())),
        }
    }
    Ok(ordered)
}

/// The model of `model+adapter`.
pub fn model_of(reference: &str) -> &str {
    reference
        .split_once('+')
        .map_or(reference, |(model, _)| model)
}

fn error_at(path: &Path, text: &str, key: &str, reason: String) -> Error {
    let names = |line: &str| {
        let written = |quoted: &str| {
            line.match_indices(quoted).any(|(place, _)| {
                let before = line[..place].chars().next_back();
                before.is_none_or(|c| !c.is_alphanumeric() && c != '_')
            })
        };
        written(&format!("{key}:")) || written(&format!("{key}\":"))
    };
    let line = text.lines().position(names).map(|line| line + 1);
    Error::Recipe {
        path: path.to_owned(),
        line,
        reason,
    }
}

struct Reader<'a> {
    path: &'a Path,
    text: &'a str,
}

impl Reader<'_> {
    fn error(&self, key: &str, reason: impl Into<String>) -> Error {
        error_at(
            self.path,
            self.text,
            key,
            format!("`{key}`: {}", reason.into()),
        )
    }

    fn keys<'v>(
        &self,
        value: &'v Value,
        place: &str,
        known: &[&str],
    ) -> Result<&'v Map<String, Value>> {
        let Value::Object(keys) = value else {
            return Err(self.error(place, format!("{value} is no table of keys")));
        };
        match keys.keys().find(|key| !known.contains(&key.as_str())) {
            None => Ok(keys),
            Some(unknown) => {
                let near = suggestion(unknown, known.iter().copied());
                let near = match near.is_empty() {
                    true => format!("; expected one of `{}`", known.join("`, `")),
                    false => near,
                };
                Err(self.error(unknown, format!("unknown key{near}")))
            }
        }
    }

    fn text(&self, keys: &Map<String, Value>, key: &str) -> Result<Option<String>> {
        match keys.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(text)) => Ok(Some(text.clone())),
            Some(other) => Err(self.error(key, format!("{other} is no text"))),
        }
    }

    fn list<'v>(&self, keys: &'v Map<String, Value>, key: &str) -> Result<Option<&'v [Value]>> {
        match keys.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::Array(list)) if !list.is_empty() => Ok(Some(list)),
            Some(other) => Err(self.error(key, format!("{other} is no list of some entries"))),
        }
    }

    fn document(&self, value: &Value) -> Result<Document> {
        let keys = self.keys(value, "merge_method", DOCUMENT)?;
        let name = self.text(keys, "merge_method")?;
        let name = name.ok_or_else(|| self.error("merge_method", "is missing"))?;
        let known = methods::METHODS.iter().map(|method| method.name);
        let method = methods::by_name(&name).ok_or_else(|| {
            let near = match suggestion(&name, known.clone()) {
                near if near.is_empty() => {
                    format!("; there are {}", known.collect::<Vec<_>>().join(", "))
                }
                near => near,
            };
            self.error("merge_method", format!("`{name}` is unknown{near}"))
        })?;
        let mut remarks = Vec::new();
        let slices = self.slices(keys, method, &mut remarks)?;
        let document = Document {
            name: self.text(keys, "name")?,
            method,
            base: self.text(keys, "base_model")?,
            slices,
            parameters: self.parameters(keys, method, true, &mut remarks)?,
            dtype: self.dtype(keys, "dtype")?,
            out_dtype: self.dtype(keys, "out_dtype")?,
            tokenizer: TokenizerChoice::read(keys)
                .map_err(|(key, reason)| self.error(&key, reason))?,
            chat_template: self.text(keys, "chat_template")?,
            remarks,
            path: self.path.to_owned(),
            text: self.text.to_owned(),
        };
        if method.base == methods::Base::Required
            && document.base.is_none()
            && document.slices.iter().any(|slice| slice.base.is_none())
        {
            return Err(self.error("merge_method", format!("`{name}` needs a `base_model`")));
        }
        Ok(document)
    }

    /// The slices of `models`, `slices` or the one entry of `modules`.
    fn slices(
        &self,
        keys: &Map<String, Value>,
        method: &Method,
        remarks: &mut Vec<String>,
    ) -> Result<Vec<Slice>> {
        let given = ["models", "slices", "modules"]
            .into_iter()
            .filter(|key| keys.get(*key).is_some_and(|value| !value.is_null()));
        let given: Vec<&str> = given.collect();
        let [one] = given[..] else {
            let reason = "give exactly one of `models`, `slices` and `modules`";
            return Err(self.error(given.get(1).unwrap_or(&"merge_method"), reason));
        };
        if one == "modules" {
            return self.module(&keys[one], method, remarks);
        }
        let list = self.list(keys, one)?.unwrap_or_default();
        if one == "slices" {
            return list
                .iter()
                .map(|slice| self.slice(slice, method, remarks))
                .collect();
        }
        let mut sources = Vec::new();
        for model in list {
            sources.push(self.source(model, &["model", "parameters"], method, remarks)?);
        }
        Ok(vec![Slice {
            sources,
            base: None,
            parameters: Settings::new(),
        }])
    }

    /// The one entry of `modules`; its parameters become its slices', behind their own.
    fn module(
        &self,
        value: &Value,
        method: &Method,
        remarks: &mut Vec<String>,
    ) -> Result<Vec<Slice>> {
        let one = value.as_object().filter(|modules| modules.len() == 1);
        let Some((_, module)) = one.and_then(|modules| modules.iter().next()) else {
            let reason =
                "expected one module; models of several parts are merged whole, with `models`";
            return Err(self.error("modules", reason));
        };
        let keys = self.keys(module, "modules", &["models", "slices", "parameters"])?;
        let mut slices = self.slices(keys, method, remarks)?;
        let shared = self.parameters(keys, method, true, remarks)?;
        for slice in &mut slices {
            for (name, setting) in &shared {
                slice
                    .parameters
                    .entry(name.clone())
                    .or_insert_with(|| setting.clone());
            }
        }
        Ok(slices)
    }

    fn slice(&self, value: &Value, method: &Method, remarks: &mut Vec<String>) -> Result<Slice> {
        let keys = self.keys(value, "slices", &["sources", "base_model", "parameters"])?;
        let list = self.list(keys, "sources")?;
        let list = list.ok_or_else(|| self.error("slices", "a slice has no `sources`"))?;
        let known = ["model", "layer_range", "parameters"];
        let mut sources = Vec::new();
        for source in list {
            let read = self.source(source, &known, method, remarks)?;
            if read.layers.is_none() {
                return Err(self.error("sources", format!("{} has no `layer_range`", read.model)));
            }
            sources.push(read);
        }
        let blocks = |source: &Source| source.layers.clone().map_or(0, |layers| layers.len());
        if sources
            .iter()
            .any(|source| blocks(source) != blocks(&sources[0]))
        {
            let reason = "all sources of a slice must have equally many blocks";
            return Err(self.error("layer_range", reason));
        }
        Ok(Slice {
            sources,
            base: self.text(keys, "base_model")?,
            parameters: self.parameters(keys, method, true, remarks)?,
        })
    }

    fn source(
        &self,
        value: &Value,
        known: &[&str],
        method: &Method,
        remarks: &mut Vec<String>,
    ) -> Result<Source> {
        let keys = self.keys(value, "model", known)?;
        let model = self.text(keys, "model")?;
        Ok(Source {
            model: model.ok_or_else(|| self.error("models", "an entry has no `model`"))?,
            layers: self.layers(keys)?,
            parameters: self.parameters(keys, method, false, remarks)?,
        })
    }

    fn layers(&self, keys: &Map<String, Value>) -> Result<Option<Range<usize>>> {
        let Some(value) = keys.get("layer_range") else {
            return Ok(None);
        };
        let ends: Option<Vec<usize>> = value.as_array().and_then(|list| {
            let whole = |end: &Value| end.as_u64().and_then(|end| usize::try_from(end).ok());
            list.iter().map(whole).collect()
        });
        match ends.as_deref() {
            Some([start, end]) if start < end => Ok(Some(*start..*end)),
            _ => Err(self.error(
                "layer_range",
                format!(
                    "{value} is not the first block and the one behind the last, such as [0, 4]"
                ),
            )),
        }
    }

    fn parameters(
        &self,
        keys: &Map<String, Value>,
        method: &Method,
        shared: bool,
        remarks: &mut Vec<String>,
    ) -> Result<Settings> {
        let Some(value) = keys.get("parameters").filter(|value| !value.is_null()) else {
            return Ok(Settings::new());
        };
        let every = methods::METHODS.iter();
        let every = every.flat_map(|method| method.globals.iter().chain(method.own));
        let mut known: Vec<&str> = every.map(|parameter| parameter.name).collect();
        known.sort_unstable();
        known.dedup();
        let given = self.keys(value, "parameters", &known)?;
        let mut settings = Settings::new();
        for (name, value) in given {
            let of = |list: &[methods::Parameter]| list.iter().any(|known| known.name == name);
            let mut remark = |reason: &str| {
                let remark = format!("{}: `{name}` {reason}", self.path.display());
                if !remarks.contains(&remark) {
                    remarks.push(remark);
                }
            };
            match () {
                () if of(method.own) || (shared && of(method.globals)) => {}
                () if of(method.globals) => {
                    remark("is a parameter of the merge and not of one model; it is not used here");
                }
                () => remark(&format!(
                    "is no parameter of `{}`; it is not used",
                    method.name
                )),
            }
            let setting = Setting::read(value).map_err(|reason| self.error(name, reason))?;
            settings.insert(name.clone(), setting);
        }
        Ok(settings)
    }

    fn dtype(&self, keys: &Map<String, Value>, key: &str) -> Result<Option<Dtype>> {
        let Some(name) = self.text(keys, key)? else {
            return Ok(None);
        };
        match name.trim_start_matches("torch.") {
            "float32" | "fp32" | "float" => Ok(Some(Dtype::F32)),
            "float16" | "fp16" | "half" => Ok(Some(Dtype::F16)),
            "bfloat16" | "bf16" => Ok(Some(Dtype::BF16)),
            _ => Err(self.error(
                key,
                format!("`{name}` is none of float32, float16 and bfloat16"),
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Result<Vec<Document>> {
        parse(text, Path::new("merge.yaml"))
    }

    fn said(text: &str) -> String {
        parsed(text).unwrap_err().to_string()
    }

    const TIES: &str = "models:\n  - model: a\n    parameters: {weight: 0.6, density: [1, 0.5]}\n  - model: b+lora\n    parameters:\n      weight:\n        - filter: mlp\n          value: 0.5\n        - value: 0\nmerge_method: ties\nbase_model: base\nparameters: {normalize: true}\ndtype: float16\n";

    #[test]
    fn every_form_is_read() {
        let document = parsed(TIES).unwrap().remove(0);
        assert_eq!(
            (document.method.name, document.models()),
            ("ties", vec!["a", "b+lora", "base"])
        );
        assert_eq!(document.dtype, Some(Dtype::F16));
        let weight = &document.slices[0].sources[1].parameters["weight"];
        assert_eq!(
            (weight.value("x.mlp.y", 0.0), weight.value("z", 0.0)),
            (Some(0.5), Some(0.0))
        );
        let slices = parsed(
            "slices:\n  - sources:\n      - {model: a, layer_range: [0, 2]}\n  - sources:\n      - {model: b, layer_range: [1, 3]}\nmerge_method: passthrough\n",
        );
        assert_eq!(slices.unwrap()[0].slices[1].sources[0].layers, Some(1..3));
        let module = parsed(
            "modules:\n  text_decoder:\n    models: [{model: a, parameters: {weight: 1}}]\nmerge_method: linear\n",
        );
        assert_eq!(module.unwrap()[0].slices[0].sources[0].model, "a");
    }

    #[test]
    fn wrong_keys_are_named_with_line_and_neighbour() {
        let found = said(&TIES.replace("density", "densty"));
        assert!(
            found.starts_with("merge.yaml:3: `densty`: unknown key; did you mean `density`?"),
            "{found}"
        );
        let found = said(&TIES.replace("base_model", "basemodel"));
        assert!(
            found
                .starts_with("merge.yaml:11: `basemodel`: unknown key; did you mean `base_model`?"),
            "{found}"
        );
        assert!(
            said(&TIES.replace("merge_method: ties", "merge_method: tis"))
                .contains("did you mean `ties`?")
        );
        assert!(said(&TIES.replace("base_model: base\n", "")).contains("needs a `base_model`"));
        assert!(
            said(&TIES.replace("float16", "float8"))
                .contains("merge.yaml:13: `dtype`: `float8` is none of")
        );
        assert!(said("merge_method: linear\n").contains("exactly one of"));
        assert!(said("a: [\n").contains("no YAML"));
        assert!(said("slices:\n- sources:\n  - {model: a, layer_range: [0, 2]}\n  - {model: b, layer_range: [0, 1]}\nmerge_method: linear\n").contains("equally many blocks"));
        assert!(
            said(
                "slices:\n- sources:\n  - {model: a, layer_range: [2, 2]}\nmerge_method: linear\n"
            )
            .contains("`layer_range`: [2,2] is not")
        );
    }

    #[test]
    fn a_parameter_of_another_method_is_told_of() {
        let document = parsed(&TIES.replace("ties", "linear")).unwrap().remove(0);
        assert_eq!(
            document.remarks,
            ["merge.yaml: `density` is no parameter of `linear`; it is not used"]
        );
    }

    #[test]
    fn documents_come_after_what_they_use() {
        let of = |name: &str, model: &str| {
            format!(
                "{name}models: [{{model: {model}, parameters: {{weight: 1}}}}]\nmerge_method: linear\n"
            )
        };
        let text = [
            of("", "two"),
            of("name: two\n", "one+lora"),
            of("name: one\n", "a"),
        ]
        .join("---\n");
        let order: Vec<_> = parsed(&text).unwrap().into_iter().map(|d| d.name).collect();
        assert_eq!(order, [Some("one".into()), Some("two".into()), None]);
        let circle = [
            of("", "two"),
            of("name: two\n", "one"),
            of("name: one\n", "two"),
        ]
        .join("---\n");
        assert!(said(&circle).contains("in a circle"));
        let unnamed = [of("", "a"), of("", "b")].join("---\n");
        assert!(said(&unnamed).contains("must have no `name`"));
    }
}
