//! Freeze-tuning: some blocks are trained, and whatever modules outside of them are named (LLaMA-Factory's `finetuning_type: freeze`).
//!
//! With `expanded` the trained blocks are the last of as many groups, as the stage `expand` leaves new ones (LLaMA Pro, arXiv 2401.02415).

use std::collections::{BTreeSet, HashMap};

use espalier_data::nearest::suggestion;
use espalier_models::{
    expansion::last_of_groups,
    families::Family,
    model::LanguageModel,
    parameter::{Parameter, Parameters},
};
use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// More than any model has blocks.
const MOST_LAYERS: i64 = 1 << 20;

/// What is trained, and nothing else.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct FreezeOptions {
    /// How many blocks are trained: the last ones, or the first where the number is negative.
    pub layers: i64,
    /// Parts of these blocks that are trained, by the beginnings of their names there, such as `mlp` or `self_attn.q_proj`; the
    /// whole blocks when absent.
    pub modules: Vec<String>,
    /// Modules outside of the blocks that are trained too, such as `embed_tokens` or `norm`.
    pub extra_modules: Vec<String>,
    /// The trained blocks are the last of as many groups: those that the stage `expand` added.
    pub expanded: bool,
}

impl Default for FreezeOptions {
    fn default() -> Self {
        Self {
            layers: 2,
            modules: Vec::new(),
            extra_modules: Vec::new(),
            expanded: false,
        }
    }
}

impl FreezeOptions {
    /// Whether the options make sense, whatever the model.
    ///
    /// # Errors
    /// The first option that does not.
    pub fn check(&self) -> Result<()> {
        let layers = self.layers;
        if layers == 0 && self.extra_modules.is_empty() {
            return Err(wrong(
                "layers",
                "0 blocks and no `extra_modules` leave nothing to train".into(),
            ));
        }
        match layers.abs() > MOST_LAYERS || self.expanded && layers < 1 {
            false => Ok(()),
            true => Err(wrong(
                "layers",
                format!(
                    "{layers} is no number of blocks; with `expanded` it is that of the new ones"
                ),
            )),
        }
    }

    /// Marks what is trained, and all else as frozen.
    ///
    /// # Errors
    /// When the model has fewer blocks, or no module of a name.
    pub fn apply(&self, model: &mut LanguageModel, family: &Family) -> Result<()> {
        self.check()?;
        let chosen = self.blocks(model.spec().blocks.len())?;
        let names = Names::of(model, family);
        let mut meant = BTreeSet::new();
        let trained: BTreeSet<String> = names
            .all
            .iter()
            .filter(|(ours, theirs)| match block_of(ours) {
                Some(block) => chosen.contains(&block) && self.means(block, theirs, &mut meant),
                None => self.means_outside(theirs, &mut meant),
            })
            .map(|(ours, _)| ours.clone())
            .collect();
        self.refuse_strange(&meant, &names)?;
        model.set_trainable(|p| p.adapter().is_none() && trained.contains(p.name()));
        Ok(())
    }

    /// The numbers of the trained blocks.
    fn blocks(&self, count: usize) -> Result<Vec<usize>> {
        let wanted = self.layers.unsigned_abs() as usize;
        if wanted > count {
            let reason = format!("{wanted} of {count} blocks cannot be trained; choose less");
            return Err(wrong("layers", reason));
        }
        match (self.expanded, self.layers < 0) {
            (true, _) if !count.is_multiple_of(wanted) => Err(wrong(
                "layers",
                format!(
                    "{count} blocks are not {wanted} groups of one size; give the number of blocks that `expand` added"
                ),
            )),
            (true, _) => Ok(last_of_groups(count, wanted)),
            (false, true) => Ok((0..wanted).collect()),
            (false, false) => Ok((count - wanted..count).collect()),
        }
    }

    fn means(&self, block: usize, names: &[String], meant: &mut BTreeSet<String>) -> bool {
        let entries = self.modules.iter().filter(|entry| *entry != "all");
        let mut entries = entries.peekable();
        if entries.peek().is_none() {
            return true;
        }
        let named = |entry: &&String| {
            let part = format!(".{block}.{entry}");
            names.iter().any(|name| name.contains(&part))
        };
        let found: Vec<String> = entries.filter(named).cloned().collect();
        let is_meant = !found.is_empty();
        meant.extend(found);
        is_meant
    }

    fn means_outside(&self, names: &[String], meant: &mut BTreeSet<String>) -> bool {
        let named = |entry: &&String| {
            let is_module = |name: &String| {
                let module = name
                    .rsplit_once('.')
                    .map_or(name.as_str(), |(module, _)| module);
                module == *entry || module.ends_with(&format!(".{entry}"))
            };
            names.iter().any(is_module)
        };
        let found: Vec<String> = self.extra_modules.iter().filter(named).cloned().collect();
        let is_meant = !found.is_empty();
        meant.extend(found);
        is_meant
    }

    /// Refuses names that mean nothing.
    fn refuse_strange(&self, meant: &BTreeSet<String>, names: &Names) -> Result<()> {
        for (key, entries, known) in [
            ("modules", &self.modules, names.within_blocks()),
            ("extra_modules", &self.extra_modules, names.outside()),
        ] {
            let mut strange = entries.iter().filter(|entry| *entry != "all");
            if let Some(strange) = strange.find(|entry| !meant.contains(*entry)) {
                let hint = suggestion(strange, known.iter().map(String::as_str));
                let all: Vec<String> = known.into_iter().collect();
                let reason = format!("`{strange}` is none{hint}; there are {}", all.join(", "));
                return Err(wrong(key, reason));
            }
        }
        Ok(())
    }
}

/// The names of a model's parameters in its files, by ours.
struct Names {
    all: HashMap<String, Vec<String>>,
}

impl Names {
    fn of(model: &LanguageModel, family: &Family) -> Self {
        let mut all: HashMap<String, Vec<String>> = HashMap::new();
        model.visit(&mut |p: &Parameter| _ = all.entry(p.name().to_owned()).or_default());
        for entry in (family.tensors)(model.spec()) {
            for part in &entry.parts {
                all.entry(part.clone())
                    .or_default()
                    .push(entry.name.clone());
            }
        }
        Self { all }
    }

    /// The first parts of the names behind the blocks' numbers.
    fn within_blocks(&self) -> BTreeSet<String> {
        let first = |(ours, names): (&String, &Vec<String>)| {
            let number = format!(".{}.", block_of(ours)?);
            let (_, rest) = names.first()?.split_once(&number)?;
            Some(rest.split('.').next().unwrap_or(rest).to_owned())
        };
        self.all.iter().filter_map(first).collect()
    }

    /// The last parts of the modules' names outside of blocks.
    fn outside(&self) -> BTreeSet<String> {
        let last = |(ours, names): (&String, &Vec<String>)| {
            let (module, _) = names.first()?.rsplit_once('.')?;
            let outside = block_of(ours).is_none();
            outside.then(|| module.rsplit('.').next().unwrap_or(module).to_owned())
        };
        self.all.iter().filter_map(last).collect()
    }
}

/// The number of the decoder's block that a parameter is in.
fn block_of(name: &str) -> Option<usize> {
    let (number, _) = name.strip_prefix("blocks.")?.split_once('.')?;
    number.parse().ok()
}

fn wrong(key: &'static str, reason: String) -> Error {
    Error::Option { key, reason }
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;
    use espalier_models::{families, source::Seed, spec::ModelSpec};

    use super::*;

    fn trained(options: &FreezeOptions) -> Result<Vec<String>> {
        let spec = ModelSpec::llama(64, 16, 4, 2, 1, 32, 32);
        let mut model = LanguageModel::build(spec, &mut Seed(0), &Device::flex()).unwrap();
        options.apply(&mut model, families::by_name("llama").unwrap())?;
        let parameters = model.parameters().into_iter();
        let trained = parameters.filter(|p| p.is_trainable());
        Ok(trained.map(|p| p.name().to_owned()).collect())
    }

    fn blocks(options: &FreezeOptions) -> BTreeSet<usize> {
        let trained = trained(options).unwrap();
        trained.iter().filter_map(|name| block_of(name)).collect()
    }

    #[test]
    fn blocks_are_counted_from_either_end_or_in_groups() {
        let of = |layers, expanded| FreezeOptions {
            layers,
            expanded,
            ..FreezeOptions::default()
        };
        assert_eq!(blocks(&of(2, false)), BTreeSet::from([2, 3]));
        assert_eq!(blocks(&of(-1, false)), BTreeSet::from([0]));
        assert_eq!(blocks(&of(2, true)), BTreeSet::from([1, 3]));
        let whole = trained(&of(1, false)).unwrap();
        assert!(whole.iter().all(|name| name.starts_with("blocks.3.")) && whole.len() == 9);
        for (options, part) in [
            (of(5, false), "5 of 4 blocks"),
            (of(3, true), "3 groups"),
            (of(0, false), "nothing to train"),
            (of(-2, true), "no number of blocks"),
        ] {
            let error = trained(&options).unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
    }

    #[test]
    fn modules_are_named_as_the_files_name_them() {
        let options = FreezeOptions {
            layers: 1,
            modules: vec!["mlp".into(), "self_attn.q_proj".into()],
            extra_modules: vec!["norm".into()],
            expanded: false,
        };
        assert_eq!(
            trained(&options).unwrap(),
            [
                "blocks.3.mixer.query.weight",
                "blocks.3.channel.gate.weight",
                "blocks.3.channel.up.weight",
                "blocks.3.channel.down.weight",
                "final_norm.weight",
            ]
        );
        for (key, options) in [
            (
                "modules",
                FreezeOptions {
                    modules: vec!["self_atn".into()],
                    ..options.clone()
                },
            ),
            (
                "extra_modules",
                FreezeOptions {
                    extra_modules: vec!["lm_haed".into()],
                    ..options
                },
            ),
        ] {
            let error = trained(&options).unwrap_err().to_string();
            assert!(
                error.contains(key) && error.contains("there are"),
                "{error}"
            );
        }
    }
}
