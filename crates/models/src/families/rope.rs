//! The rotary keys of `config.json`, in today's form and the older one.
//!
//! Today all of it is in `rope_parameters`; older files have `rope_theta` and `rope_scaling`, whose kind is `type` or
//! `rope_type`.

use super::config::{CONTEXT_LIMIT, Config};
use super::{config_keys, layer_types::FULL};
use crate::error::{Error, Result};
use crate::spec::{RotaryScaling, RotarySpec};
use serde_json::{Map, Value, json};

const DEFAULT_THETA: f64 = 10_000.0;

/// Reads the rotary positions of heads of width `head_dim` in a model made for `context` tokens.
///
/// # Errors
/// When a value is out of range or the kind of scaling is not known.
pub fn read(config: &Config, head_dim: usize, context: usize) -> Result<RotarySpec> {
    let rotary = read_any(config, head_dim, context)?;
    match rotary.dim.is_multiple_of(2) {
        true => Ok(rotary),
        false => Err(odd(config, head_dim, rotary.dim)),
    }
}

/// The key of the share of a head that rotates.
pub(super) const SHARE: &str = "partial_rotary_factor";

/// As [`read`], for families whose rotary positions turn whole heads: a share that the file asks for is ignored, as their classes do,
/// and told of.
///
/// # Errors
/// When a value is out of range or the kind of scaling is not known.
pub fn read_whole(config: &Config, head_dim: usize, context: usize) -> Result<RotarySpec> {
    let mut whole = config.clone().with(SHARE, Value::Null);
    let mut shares = vec![config.get(SHARE).cloned()];
    for key in ["rope_parameters", "rope_scaling"] {
        if let Some(object) = config.optional_object(key)? {
            let mut map = object.map().clone();
            shares.push(map.remove(SHARE));
            whole = whole.with(key, Value::Object(map));
        }
    }
    let asks = |share: Value| share.as_f64().is_some_and(|share| share != 1.0);
    if shares.into_iter().flatten().any(asks) {
        config_keys::tell_ignored(config.path(), &[SHARE]);
    }
    read(&whole, head_dim, context)
}

fn odd(config: &Config, head_dim: usize, dim: usize) -> Error {
    let reason = format!(
        "rotary positions need an even number of channels, at most the head's {head_dim}; found {dim}"
    );
    config.error("head_dim", reason)
}

/// As [`read`], for families that turn one channel more where the number is odd, with the frequencies of the odd number.
///
/// # Errors
/// When a value is out of range or the kind of scaling is not known.
pub fn read_any(config: &Config, head_dim: usize, context: usize) -> Result<RotarySpec> {
    let (key, parameters) = parameters(config)?;
    // What stands inside counts; beside it the same keys say nothing.
    config.ignore(&["rope_theta", SHARE]);
    let number = |name: &str| match parameters.optional_positive(name)? {
        None => config.optional_positive(name),
        found => Ok(found),
    };
    let theta = number("rope_theta")?.unwrap_or(DEFAULT_THETA);
    let share = number("partial_rotary_factor")?.unwrap_or(1.0);
    let dim = (head_dim as f64 * share) as usize;
    if theta <= 1.0 {
        return Err(config.error(
            "rope_theta",
            format!("expected a number above 1, found {theta}"),
        ));
    }
    if dim == 0 || dim > head_dim || dim.next_multiple_of(2) > head_dim {
        return Err(odd(config, head_dim, dim));
    }
    let scaling = scaling(config, key, &parameters, context, dim)?;
    Ok(RotarySpec {
        dim,
        theta,
        interleaved: false,
        scaling,
    })
}

/// The configuration as layers of one kind read it, where `full_attention` and `sliding_attention` have rotary positions of their
/// own. Today they are nested by kind; in older files `rope_scaling` is of full attention alone, and `local_theta` names the
/// key of the base of the layers with a window, where there is one.
///
/// # Errors
/// When the parameters are no objects.
pub fn of_layer_type(config: &Config, kind: &str, local_theta: Option<&str>) -> Result<Config> {
    let nested = match config.optional_object("rope_parameters")? {
        Some(parameters) => parameters.optional_object(kind)?,
        None => None,
    };
    let config = config.clone();
    if let Some(nested) = nested {
        let own = Value::Object(nested.map().clone());
        return Ok(config
            .with("rope_parameters", own)
            .with("rope_scaling", Value::Null));
    }
    if kind == FULL {
        return Ok(config);
    }
    let theta = local_theta.and_then(|key| config.get(key)).cloned();
    let plain = config
        .with("rope_parameters", Value::Null)
        .with("rope_scaling", Value::Null);
    Ok(match theta {
        Some(theta) => plain.with("rope_theta", theta),
        None => plain,
    })
}

/// Writes the rotary positions of heads of width `head_dim` in today's form.
pub fn write(rotary: &RotarySpec, head_dim: usize) -> Value {
    let mut parameters = Map::from_iter([("rope_theta".to_owned(), json!(rotary.theta))]);
    if rotary.dim != head_dim {
        parameters.insert(SHARE.into(), json!(share(rotary.dim, head_dim)));
    }
    let scaling = match &rotary.scaling {
        RotaryScaling::None => json!({ "rope_type": "default" }),
        RotaryScaling::Linear { factor } => json!({ "rope_type": "linear", "factor": factor }),
        RotaryScaling::Dynamic { factor, .. } => {
            json!({ "rope_type": "dynamic", "factor": factor })
        }
        RotaryScaling::LongRope {
            short,
            long,
            original_context,
            attention_factor,
        } => json!({
            "rope_type": "longrope",
            "short_factor": short,
            "long_factor": long,
            "original_max_position_embeddings": original_context,
            "attention_factor": attention_factor,
        }),
        RotaryScaling::Llama3 {
            factor,
            low_freq_factor,
            high_freq_factor,
            original_context,
        } => json!({
            "rope_type": "llama3",
            "factor": factor,
            "low_freq_factor": low_freq_factor,
            "high_freq_factor": high_freq_factor,
            "original_max_position_embeddings": original_context,
        }),
        RotaryScaling::Yarn {
            factor,
            original_context,
            beta_fast,
            beta_slow,
            attention_factor,
            truncate,
        } => json!({
            "rope_type": "yarn",
            "factor": factor,
            "original_max_position_embeddings": original_context,
            "beta_fast": beta_fast,
            "beta_slow": beta_slow,
            "attention_factor": attention_factor,
            "truncate": truncate,
        }),
    };
    if let Value::Object(scaling) = scaling {
        parameters.extend(scaling);
    }
    Value::Object(parameters)
}

/// Plain rotary positions, for models none of whose layers has any.
pub fn write_none() -> Value {
    json!({ "rope_type": "default", "rope_theta": DEFAULT_THETA })
}

/// The share of a head's channels that `dim` is, as a number from which `dim` follows again where it is cut off to a whole one.
fn share(dim: usize, head_dim: usize) -> f64 {
    let share = dim as f64 / head_dim as f64;
    match (head_dim as f64 * share) as usize == dim {
        true => share,
        false => share.next_up(),
    }
}

/// As [`write()`], for families that turn a part of each head where nothing is said of it: all of a head is said too.
pub fn write_with_share(rotary: &RotarySpec, head_dim: usize) -> Value {
    let mut parameters = write(rotary, head_dim);
    parameters[SHARE] = json!(share(rotary.dim, head_dim));
    parameters
}

/// YaRN's `mscale_all_dim`, by which DeepSeek's families stretch scores; zero counts as absent.
///
/// # Errors
/// When it is no number.
pub fn score_stretch(config: &Config) -> Result<Option<f64>> {
    let (_, parameters) = parameters(config)?;
    let stretch = parameters.optional_number("mscale_all_dim")?;
    Ok(stretch.filter(|stretch| *stretch != 0.0))
}

/// The object that holds the scaling, with its key; an empty one if the file has neither form.
fn parameters(config: &Config) -> Result<(&'static str, Config)> {
    // Where a file has both, the older key wins in transformers, unless it is empty.
    for key in ["rope_scaling", "rope_parameters"] {
        let Some(object) = config.optional_object(key)? else {
            continue;
        };
        if key == "rope_parameters" || !object.map().is_empty() {
            return Ok((key, one_for_all_layers(config, key, object)?));
        }
    }
    Ok(("rope_scaling", Config::from_map(config.path(), Map::new())))
}

/// Unwraps parameters that are nested by layer type, which must agree: these families have one table for all layers.
fn one_for_all_layers(config: &Config, key: &str, object: Config) -> Result<Config> {
    let Some(full) = object.optional_object("full_attention")? else {
        return Ok(object);
    };
    if object
        .map()
        .values()
        .any(|value| value.as_object() != Some(full.map()))
    {
        return Err(config.error(
            key,
            "rotary parameters that differ between layer types are not supported yet",
        ));
    }
    Ok(full)
}

fn scaling(
    config: &Config,
    key: &str,
    parameters: &Config,
    context: usize,
    dim: usize,
) -> Result<RotaryScaling> {
    let kind = match parameters.optional_text("rope_type")? {
        None => parameters.optional_text("type")?,
        found => found,
    };
    match kind.unwrap_or("default") {
        "default" => Ok(RotaryScaling::None),
        "linear" => Ok(RotaryScaling::Linear {
            factor: parameters.positive("factor")?,
        }),
        "llama3" => llama3(parameters, original_context(config, parameters, context)?),
        "yarn" => yarn(
            parameters,
            context,
            original_context(config, parameters, context)?,
        ),
        "dynamic" => {
            let factor = parameters.positive("factor")?;
            Ok(RotaryScaling::Dynamic {
                factor,
                original_context: context,
            })
        }
        "longrope" | "su" => long_rope(
            parameters,
            context,
            original_context(config, parameters, context)?,
            dim,
        ),
        kind => {
            let known = "default, linear, dynamic, llama3, yarn, longrope";
            Err(config.error(
                key,
                format!("unknown rope_type `{kind}`; known are {known}"),
            ))
        }
    }
}

/// A value beside the scaling overrides the one inside it; without either, the model was not extended.
fn original_context(config: &Config, parameters: &Config, context: usize) -> Result<usize> {
    const KEY: &str = "original_max_position_embeddings";
    let outer = config.optional_size(KEY, CONTEXT_LIMIT)?;
    Ok(outer
        .or(parameters.optional_size(KEY, CONTEXT_LIMIT)?)
        .unwrap_or(context))
}

/// LongRoPE's two lists, and the factor on the rotated vectors: as given, or by the ratio of the contexts.
fn long_rope(
    parameters: &Config,
    context: usize,
    original_context: usize,
    dim: usize,
) -> Result<RotaryScaling> {
    let list = |key: &str| -> Result<Vec<f64>> {
        let numbers = parameters.optional_positives(key)?.unwrap_or_default();
        match numbers.len() == dim / 2 {
            true => Ok(numbers),
            false => {
                let reason = format!(
                    "expected {} numbers, one for each pair of channels, found {}",
                    dim / 2,
                    numbers.len()
                );
                Err(parameters.error(key, reason))
            }
        }
    };
    let stretch = parameters.positive_or("factor", context as f64 / original_context as f64)?;
    let rule = if stretch <= 1.0 {
        1.0
    } else {
        (1.0 + stretch.ln() / (original_context as f64).ln()).sqrt()
    };
    Ok(RotaryScaling::LongRope {
        short: list("short_factor")?,
        long: list("long_factor")?,
        original_context,
        attention_factor: parameters.positive_or("attention_factor", rule)?,
    })
}

fn llama3(parameters: &Config, original_context: usize) -> Result<RotaryScaling> {
    let low_freq_factor = parameters.positive("low_freq_factor")?;
    let high_freq_factor = parameters.positive("high_freq_factor")?;
    if high_freq_factor <= low_freq_factor {
        return Err(parameters.error(
            "high_freq_factor",
            format!("must be above low_freq_factor, {low_freq_factor}"),
        ));
    }
    Ok(RotaryScaling::Llama3 {
        factor: parameters.positive("factor")?,
        low_freq_factor,
        high_freq_factor,
        original_context,
    })
}

fn yarn(parameters: &Config, context: usize, original_context: usize) -> Result<RotaryScaling> {
    let factor = parameters.positive_or("factor", context as f64 / original_context as f64)?;
    Ok(RotaryScaling::Yarn {
        factor,
        original_context,
        beta_fast: parameters.positive_or("beta_fast", 32.0)?,
        beta_slow: parameters.positive_or("beta_slow", 1.0)?,
        attention_factor: yarn_attention_factor(parameters, factor)?,
        truncate: parameters.flag_or("truncate", true)?,
    })
}

/// The factor as given, or by the two `mscale`s, or by the paper's rule; an `mscale` of zero counts as absent.
fn yarn_attention_factor(parameters: &Config, factor: f64) -> Result<f64> {
    if let Some(given) = parameters.optional_positive("attention_factor")? {
        return Ok(given);
    }
    let rule = |mscale: f64| {
        if factor > 1.0 {
            0.1 * mscale * factor.ln() + 1.0
        } else {
            1.0
        }
    };
    let mscale = |key: &str| -> Result<Option<f64>> {
        Ok(parameters
            .optional_number(key)?
            .filter(|mscale| *mscale != 0.0))
    };
    let resolved = match (mscale("mscale")?, mscale("mscale_all_dim")?) {
        (Some(mscale), Some(all)) => rule(mscale) / rule(all),
        _ => rule(1.0),
    };
    // So many decimals are read again as they were written, by every reader of JSON.
    let resolved = (resolved * 1e12).round() / 1e12;
    let positive = resolved.is_finite() && resolved > 0.0;
    positive
        .then_some(resolved)
        .ok_or_else(|| parameters.error("mscale", "gives a factor that is not positive"))
}

#[cfg(test)]
mod tests;
