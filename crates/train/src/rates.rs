//! Learning rates of their own for some parameters, by patterns over their names.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use espalier_models::{
    families::Family,
    model::LanguageModel,
    parameter::{Parameter, Parameters},
};
use regex::Regex;

use crate::{Error, Result};

/// Multiplies the learning rate of every trained parameter by the factors of all patterns that occur in one of its names: those
/// of the checkpoint's tensors that it lies in, and our own. An adapter's parameters have those of the module that they stand at.
///
/// # Errors
/// When a pattern is no regular expression, or occurs in no name of what is trained.
pub fn set_rates(
    model: &mut LanguageModel,
    family: &Family,
    rates: &BTreeMap<String, f64>,
) -> Result<()> {
    let names = checkpoint_names(model, family);
    for (text, factor) in rates {
        let pattern = Regex::new(text).map_err(|error| {
            let reason = format!("`{text}` is no regular expression: {error}");
            Error::Option {
                key: "learning_rates",
                reason,
            }
        })?;
        let mut found = false;
        model.visit_mut(&mut |p: &mut Parameter| {
            let of_module = names.get(module(p.name())).into_iter().flatten();
            let occurs = of_module
                .map(String::as_str)
                .chain([p.name()])
                .any(|name| pattern.is_match(name));
            if p.is_trainable() && occurs {
                found = true;
                p.scale_learning_rate(*factor);
            }
        });
        if !found {
            return Err(Error::Option {
                key: "learning_rates",
                reason: format!(
                    "`{text}` occurs in no name of what is trained; names are, for example, {}",
                    examples(model, &names)
                ),
            });
        }
    }
    Ok(())
}

/// What stands before `.adapter.` of a name, or before its last part.
fn module(name: &str) -> &str {
    let of_adapter = name.split_once(".adapter.").map(|(module, _)| module);
    of_adapter.unwrap_or_else(|| name.rsplit_once('.').map_or(name, |(module, _)| module))
}

/// The checkpoint's names by our modules.
fn checkpoint_names(model: &LanguageModel, family: &Family) -> HashMap<String, BTreeSet<String>> {
    let mut names: HashMap<String, BTreeSet<String>> = HashMap::new();
    for entry in (family.tensors)(model.spec()) {
        for part in &entry.parts {
            let of_module = names.entry(module(part).to_owned()).or_default();
            of_module.insert(entry.name.clone());
        }
    }
    names
}

fn examples(model: &LanguageModel, names: &HashMap<String, BTreeSet<String>>) -> String {
    let mut trained = Vec::new();
    model.visit(&mut |p| {
        if p.is_trainable() {
            let known = names.get(module(p.name())).and_then(BTreeSet::first);
            trained.push(known.map_or(p.name(), String::as_str));
        }
    });
    trained.dedup();
    let some: Vec<String> = trained
        .iter()
        .take(3)
        .map(|name| format!("`{name}`"))
        .collect();
    some.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::Device;
    use espalier_models::{families, source::Seed, spec::ModelSpec};

    fn rates(list: &[(&str, f64)]) -> BTreeMap<String, f64> {
        list.iter()
            .map(|(name, rate)| ((*name).to_owned(), *rate))
            .collect()
    }

    #[test]
    fn factors_of_all_patterns_that_occur_are_multiplied() {
        let spec = ModelSpec::llama(64, 16, 2, 2, 1, 32, 32);
        let mut model = LanguageModel::build(spec, &mut Seed(0), &Device::flex()).unwrap();
        model.set_trainable(|_| true);
        let family = families::by_name("llama").unwrap();
        let given = rates(&[("q_proj", 2.0), (r"layers\.1\.", 3.0), ("^embedding", 0.5)]);
        set_rates(&mut model, family, &given).unwrap();
        let mut found = BTreeMap::new();
        model.visit(&mut |p| _ = found.insert(p.name().to_owned(), p.learning_rate()));
        assert_eq!(found["blocks.0.mixer.query.weight"], 2.0);
        assert_eq!(found["blocks.1.mixer.query.weight"], 6.0);
        assert_eq!(found["blocks.1.mixer.key.weight"], 3.0);
        assert_eq!(found["blocks.0.mixer.key.weight"], 1.0);
        assert_eq!(found["embedding.weight"], 0.5);
        let error = set_rates(&mut model, family, &rates(&[("qproj", 2.0)])).unwrap_err();
        assert!(error.to_string().contains("`model."), "{error}");
        let error = set_rates(&mut model, family, &rates(&[("(", 2.0)])).unwrap_err();
        assert!(
            error.to_string().contains("no regular expression"),
            "{error}"
        );
    }
}
