//! Folders of pyreft (stanfordnlp/pyreft, on stanfordnlp/pyvene): `config.json` with a list of places, and for each of them
//! `intkey_layer_0_comp_block_output_unit_pos_nunit_1#0.bin`, a file of PyTorch with a state dictionary.
//!
//! `#0` is the edit of the first tokens or the only one of a block, `#1` that of the last tokens. LoReFT is stored as `weight`, `bias` and
//! `rotate_layer`, the transpose of `R`; NoReFT and the paper's DiReFT as linear layers. The other forms keep a rotation of the whole
//! width there and are refused; so are edits of anything but a block's output. pyreft keeps neither positions nor activation.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsStr,
    fs,
    path::{Path, PathBuf},
};

use espalier_data::disk;
use serde_json::{Value, json};

use super::{LIMIT, Method, edit::Factor};
use crate::{
    Error, Result, adapter::AdapterFile, checkpoint::state_dictionary, families::config::Config,
    layout::StoredTensor, parameter::Parameter,
};

/// How the names of pyreft's files begin.
const KEY: &str = "intkey_";

/// The class of LoReFT in a configuration.
const LOREFT: &str = "<class 'pyreft.interventions.LoreftIntervention'>";

/// Whether edits of this form are stored so that pyreft's `load` opens them. The unconstrained forms it cannot make at all (their classes ask
/// for `add_bias`), of the others it wants a rotation of the whole width, by the square of that in numbers.
pub(super) fn opens(method: Method) -> bool {
    method == Method::Loreft
}

/// The weights of a folder of pyreft's.
#[derive(Debug, Clone)]
pub(super) struct PyreftFolder {
    /// The form of the edits.
    pub method: Method,
    /// Directions of an edit.
    pub rank: usize,
    /// Block and number among its edits, each with its file.
    files: BTreeMap<(usize, usize), PathBuf>,
}

impl PyreftFolder {
    /// Those beside a configuration.
    pub(super) fn beside(configuration: &Path) -> Result<Option<Self>> {
        configuration.parent().map_or(Ok(None), Self::of)
    }

    /// Those of a folder, if it has any.
    pub(super) fn of(folder: &Path) -> Result<Option<Self>> {
        let entries = fs::read_dir(folder).into_iter().flatten().flatten();
        let mut files = BTreeMap::new();
        for path in entries.map(|entry| entry.path()) {
            let name = path.file_name().and_then(OsStr::to_str).unwrap_or_default();
            let key = name
                .strip_prefix(KEY)
                .and_then(|name| name.strip_suffix(".bin"));
            if let Some(key) = key {
                let place = place(key).ok_or_else(|| Error::Adapter {
                    path: path.clone(),
                    reason: "its name says no block; expected pyreft's, such as `intkey_layer_0_comp_block_output_unit_pos_nunit_1#0.bin`".into(),
                })?;
                files.insert(place, path);
            }
        }
        if files.is_empty() {
            return Ok(None);
        }
        let config = Config::load(&folder.join("config.json"))?;
        let (method, rank) = (method(&config)?, rank(&config)?);
        Ok(Some(Self {
            method,
            rank,
            files,
        }))
    }

    /// The edited blocks.
    pub(super) fn layers(&self) -> Vec<usize> {
        let blocks: BTreeSet<usize> = self.files.keys().map(|(block, _)| *block).collect();
        blocks.into_iter().collect()
    }

    /// Whether blocks have an edit of their own for the last tokens.
    pub(super) fn has_suffixes(&self) -> bool {
        self.files.keys().any(|(_, number)| *number > 0)
    }

    /// The files, each with what its tensors' names begin with here.
    pub(super) fn files(&self) -> Vec<(String, PathBuf)> {
        let named = |((block, number), path): (&(usize, usize), &PathBuf)| {
            (format!("{}/", key(*block, *number)), path.clone())
        };
        self.files.iter().map(named).collect()
    }
}

/// The key of an edit.
fn key(block: usize, number: usize) -> String {
    format!("{KEY}layer_{block}_comp_block_output_unit_pos_nunit_1#{number}")
}

/// The block and the number of a key, as any version of pyvene writes it: the first number, and the one behind `#`.
fn place(key: &str) -> Option<(usize, usize)> {
    let (rest, number) = key.rsplit_once('#')?;
    let from = rest.find(|c: char| c.is_ascii_digit())?;
    let digits = rest[from..].split(|c: char| !c.is_ascii_digit()).next()?;
    let in_range = |number: &usize| *number <= LIMIT;
    let block = digits.parse().ok().filter(in_range)?;
    Some((block, number.parse().ok().filter(in_range)?))
}

/// The form that all edits of a folder have.
fn method(config: &Config) -> Result<Method> {
    let key = "intervention_types";
    let types = config.optional_texts(key)?.unwrap_or_default();
    let class = |text: &str| {
        let name = text.rsplit('.').next().unwrap_or(text);
        name.trim_end_matches(['\'', '>']).to_owned()
    };
    let classes: BTreeSet<String> = types.into_iter().map(class).collect();
    let mut all = classes.iter();
    let (Some(class), None) = (all.next(), all.next()) else {
        let found = classes.len();
        return Err(config.error(key, format!("names {found} kinds of edits; expected one")));
    };
    match class.as_str() {
        "LoreftIntervention" => Ok(Method::Loreft),
        "NoreftIntervention" => Ok(Method::Noreft),
        "NodireftIntervention" => Ok(Method::Direft),
        other => Err(config.error(
            key,
            format!("`{other}` is not read; read are LoreftIntervention, NoreftIntervention and NodireftIntervention"),
        )),
    }
}

/// The rank that all edits of a folder have, each on the output of a block at positions.
fn rank(config: &Config) -> Result<usize> {
    let key = "representations";
    let representations = config.get(key).and_then(Value::as_array);
    let mut ranks = BTreeSet::new();
    for representation in representations.into_iter().flatten() {
        let field = |number: usize, name: &str| {
            representation
                .get(number)
                .or_else(|| representation.get(name))
        };
        let text = |number, name| {
            field(number, name)
                .and_then(Value::as_str)
                .unwrap_or_default()
        };
        let (component, unit) = (text(1, "component"), text(2, "unit"));
        if component != "block_output" && !component.ends_with("].output") || unit != "pos" {
            return Err(config.error(
                key,
                format!("edits `{component}` by `{unit}`; only outputs of blocks are edited here, by `pos`"),
            ));
        }
        let rank = field(4, "low_rank_dimension").and_then(Value::as_u64);
        ranks.extend(rank.and_then(|rank| usize::try_from(rank).ok()));
    }
    let mut all = ranks.iter();
    match (all.next(), all.next()) {
        (Some(rank), None) if (1..=LIMIT).contains(rank) => Ok(*rank),
        _ => Err(config.error(key, "says no single `low_rank_dimension` of all edits")),
    }
}

/// A parameter of an edit as pyreft stores it, under the name of its file and its name there.
pub(super) fn tensor<'a>(
    factor: Factor,
    parameter: &'a Parameter,
    method: Method,
    block: usize,
    number: usize,
) -> StoredTensor<'a> {
    let name = |own: &str| format!("{}/{own}", key(block, number));
    match (factor, opens(method)) {
        (Factor::Directions, true) => StoredTensor::transposed(name("rotate_layer"), parameter),
        (Factor::Weight, true) => StoredTensor::whole(name("weight"), parameter),
        (Factor::Bias, true) => StoredTensor::whole(name("bias"), parameter),
        (Factor::Directions, false) => StoredTensor::whole(name("proj_layer.weight"), parameter),
        (Factor::Weight, false) => StoredTensor::whole(name("learned_source.weight"), parameter),
        (Factor::Bias, false) => StoredTensor::whole(name("learned_source.bias"), parameter),
    }
}

/// Whether a tensor has a name of pyreft's files.
pub(super) fn is_named(name: &str) -> bool {
    name.starts_with(KEY)
}

/// Leaves sizes unread that the shapes say, and the projection's bias where the form does not use it.
pub(super) fn skip_what_says_nothing(file: &mut AdapterFile, method: Method) {
    let says_nothing = |name: &str| {
        let part = name
            .split_once('/')
            .filter(|_| is_named(name))
            .map(|(_, part)| part);
        let is_size = matches!(part, Some("embed_dim" | "interchange_dim"));
        is_size || part == Some("proj_layer.bias") && method == Method::Direft
    };
    let names: Vec<String> = file
        .unread()
        .filter(|name| says_nothing(name))
        .map(str::to_owned)
        .collect();
    names.iter().for_each(|name| file.skip(name));
}

/// A tensor of a file: its name, its shape, its numbers.
type Named = (String, Vec<usize>, Vec<f32>);

/// Writes the files and their `config.json`.
pub(super) fn write(tensors: &[StoredTensor<'_>], rank: usize, folder: &Path) -> Result<()> {
    let mut files: Vec<(&str, Vec<Named>)> = Vec::new();
    for tensor in tensors {
        let Some((key, name)) = tensor.name.split_once('/') else {
            continue;
        };
        let values = tensor.assemble(&|parameter| parameter.flat());
        let stored = (name.to_owned(), tensor.shape.clone(), values);
        match files.last_mut() {
            Some((last, own)) if *last == key => own.push(stored),
            _ => files.push((key, vec![stored])),
        }
    }
    for (key, own) in &files {
        let path = folder.join(format!("{key}.bin"));
        disk::write_whole(&path, &state_dictionary(own)?).map_err(Error::file(&path))?;
    }
    let places: Vec<(usize, usize)> = files.iter().filter_map(|(key, _)| place(key)).collect();
    let representation =
        |(block, _): &(usize, usize)| json!([block, "block_output", "pos", 1, rank]);
    let width = files
        .iter()
        .flat_map(|(_, own)| own)
        .find(|(name, _, _)| name == "rotate_layer")
        .map(|(_, shape, _)| shape[0]);
    let config = json!({
        "representations": places.iter().map(representation).collect::<Vec<_>>(),
        "intervention_types": vec![LOREFT; places.len()],
        "intervention_dimensions": vec![width; places.len()],
        "intervention_constant_sources": vec![true; places.len()],
        "mode": "parallel",
        "sorted_keys": files.iter().map(|(key, _)| key.trim_start_matches(KEY)).collect::<Vec<_>>(),
    });
    let path = folder.join("config.json");
    disk::write_whole(&path, format!("{config:#}\n").as_bytes()).map_err(Error::file(&path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_of_all_versions_are_places() {
        for (name, expected) in [
            (
                "layer_15_comp_block_output_unit_pos_nunit_1#0",
                Some((15, 0)),
            ),
            ("layer.3.comp.block_output.unit.pos.nunit.1#1", Some((3, 1))),
            (
                "comp_model_layers[7]_output_unit_pos_nunit_1#0",
                Some((7, 0)),
            ),
            ("layer_15_comp_block_output", None),
            ("layer#0", None),
            ("layer_99999999999999999999#0", None),
        ] {
            assert_eq!(place(name), expected, "{name}");
        }
        assert_eq!(place(key(4, 1).trim_start_matches(KEY)), Some((4, 1)));
    }
}
