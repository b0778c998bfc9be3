//! Keys of a configuration by which linear maps have weights of three or two values, in any family: Hugging Face's `quantization_config`
//! of BitNet, and our own `bits`.
//!
//! `bits` is `ternary` or `binary`. Ternary models are saved with a `quantization_config` that transformers reads, of full-precision
//! weights that are rounded when they multiply (`online`) or of packed ones (`offline`); transformers knows no binary ones.

use super::config::{Config, is_unset};
use crate::{
    checkpoint::bitnet::ScaleForm,
    error::Result,
    spec::{BlockSpec, ChannelSpec, MixerSpec, ModelSpec, WeightBits},
};
use serde_json::{Map, Value, json};

/// Our own key.
pub(crate) const BITS: &str = "bits";
/// Hugging Face's key.
pub(crate) const PACKING: &str = "quantization_config";

/// What the weights are rounded to, if they are.
pub(super) fn read(config: &Config, blocks: &[BlockSpec]) -> Result<Option<WeightBits>> {
    let (said, packing) = (config.optional_text(BITS)?, packing(config)?);
    let said = said
        .map(|name| name.parse::<WeightBits>())
        .transpose()
        .map_err(|reason| config.error(BITS, reason))?;
    if let Some(packing) = &packing
        && !is_packed(packing)?
        && said == Some(WeightBits::Binary)
    {
        let reason = format!("binary, where `{PACKING}` says ternary; remove one of the two");
        return Err(config.error(BITS, reason));
    }
    let key = if said.is_some() { BITS } else { PACKING };
    match said.or(packing.map(|_| WeightBits::Ternary)) {
        Some(_) if !fit(blocks) => Err(config.error(key, UNFIT)),
        bits => Ok(bits),
    }
}

/// Why such weights are refused.
const UNFIT: &str = "weights of one bit or 1.58 need blocks of softmax attention and plain or gated feed-forward layers, which this model has not throughout; remove the key";

/// Whether the blocks' linear maps can have such weights.
fn fit(blocks: &[BlockSpec]) -> bool {
    blocks.iter().all(|block| {
        let channel = matches!(
            block.channel,
            ChannelSpec::Mlp(_) | ChannelSpec::GatedMlp(_)
        );
        let mixer = matches!(block.mixer, MixerSpec::Attention(_));
        mixer && channel && block.cross.is_none() && block.routing.is_none()
    })
}

/// Refuses a model whose linear maps cannot have the weights that it asks for.
///
/// # Errors
/// When it has an encoder, experts, recurrent layers or routed tokens.
pub(crate) fn check(spec: &ModelSpec) -> Result<()> {
    match spec.bits {
        Some(_) if spec.encoder.is_some() || !fit(&spec.blocks) => {
            Err(crate::Error::Invalid(format!("`{BITS}`: {UNFIT}")))
        }
        _ => Ok(()),
    }
}

/// BitNet's `quantization_config`, where there is one.
fn packing(config: &Config) -> Result<Option<Config>> {
    if config.get(PACKING).is_none_or(is_unset) {
        return Ok(None);
    }
    let Some(packing) = config.optional_object(PACKING)? else {
        return Ok(None);
    };
    if packing.optional_text("quant_method")? != Some("bitnet") {
        config.refuse(PACKING)?;
    }
    packing.ignore(&["rms_norm_eps"]);
    packing.refuse("use_rms_norm")?;
    let kept = packing.optional_texts("modules_to_not_convert")?;
    if kept
        .unwrap_or_default()
        .iter()
        .any(|name| *name != "lm_head")
    {
        let reason = "names layers that keep full precision; all linear maps of the blocks have weights of three values here, and nothing else has: remove the key, and rows of others from the file";
        return Err(packing.error("modules_to_not_convert", reason));
    }
    scale_of(&packing)?;
    is_packed(&packing)?;
    Ok(Some(packing))
}

/// Whether the file holds codes rather than weights that are yet to be rounded.
fn is_packed(packing: &Config) -> Result<bool> {
    match packing.optional_text("quantization_mode")? {
        None | Some("offline") => Ok(true),
        Some("online") => Ok(false),
        Some(other) => Err(packing.error(
            "quantization_mode",
            format!("`{other}` is not known; choose `online` or `offline`"),
        )),
    }
}

fn scale_of(packing: &Config) -> Result<ScaleForm> {
    match packing.optional_text("linear_class")? {
        None | Some("bitlinear") => Ok(ScaleForm::Divisor),
        Some("autobitlinear") => Ok(ScaleForm::Factor),
        Some(other) => Err(packing.error(
            "linear_class",
            format!("`{other}` is not known; choose `autobitlinear` or `bitlinear`"),
        )),
    }
}

/// What the scales beside packed weights are, where the configuration says that weights are packed.
///
/// # Errors
/// When it is not understood.
pub(crate) fn scale_form(config: &Config) -> Result<Option<ScaleForm>> {
    // Families have packings of their own, which they read themselves.
    let said = config
        .get(PACKING)
        .and_then(|said| said.get("quant_method"));
    if said.and_then(Value::as_str) != Some("bitnet") {
        return Ok(None);
    }
    packing(config)?
        .map(|packing| scale_of(&packing))
        .transpose()
}

/// Writes the keys of a model whose weights are yet to be rounded.
pub(super) fn write(spec: &ModelSpec, map: &mut Map<String, Value>) {
    match spec.bits {
        None => {}
        Some(WeightBits::Ternary) => {
            map.insert(PACKING.into(), said("online"));
        }
        Some(WeightBits::Binary) => {
            map.insert(BITS.into(), json!("binary"));
        }
    }
}

/// Says that the weights are packed, in a configuration that [`write`] wrote. Binary ones are ternary ones without zeros.
pub(crate) fn say_packed(map: &mut Map<String, Value>) {
    map.insert(PACKING.into(), said("offline"));
}

fn said(mode: &str) -> Value {
    json!({
        "quant_method": "bitnet",
        "linear_class": "autobitlinear",
        "quantization_mode": mode,
        "use_rms_norm": false,
        "rms_norm_eps": 1e-6,
        "modules_to_not_convert": null,
    })
}

#[cfg(test)]
mod tests {
    use super::super::tests::changed;
    use super::super::write_config;
    use super::*;

    #[test]
    fn every_way_to_say_it_is_read_and_written() {
        let bits = |changes: Value| changed("llama", changes).map(|spec| spec.bits);
        assert_eq!(bits(json!({})).unwrap(), None);
        for (name, kind) in [
            ("ternary", WeightBits::Ternary),
            ("binary", WeightBits::Binary),
        ] {
            let spec = changed("llama", json!({ BITS: name })).unwrap();
            assert_eq!(spec.bits, Some(kind));
            let written = write_config(&spec).unwrap();
            assert_eq!(
                written.contains_key(PACKING),
                kind == WeightBits::Ternary,
                "{written:?}"
            );
        }
        for packing in [said("online"), json!({ "quant_method": "bitnet" })] {
            let found = bits(json!({ PACKING: packing })).unwrap();
            assert_eq!(found, Some(WeightBits::Ternary));
        }
    }

    #[test]
    fn what_is_not_understood_is_refused() {
        let error = |model: &str, changes: Value| changed(model, changes).unwrap_err().to_string();
        let of =
            |key: &str, value: Value| json!({ PACKING: { "quant_method": "bitnet", key: value } });
        for (changes, part) in [
            (json!({ BITS: "four" }), "`ternary`"),
            (of("linear_class", json!("bit")), "autobitlinear"),
            (of("quantization_mode", json!("later")), "`online`"),
            (of("use_rms_norm", json!(true)), "use_rms_norm"),
            (
                of("modules_to_not_convert", json!(["q_proj"])),
                "full precision",
            ),
            (json!({ PACKING: { "quant_method": "gptq" } }), "gptq"),
            (
                json!({ BITS: "binary", PACKING: said("online") }),
                "remove one",
            ),
        ] {
            let found = error("llama", changes);
            assert!(found.contains(part), "{found}");
        }
        for model in ["mixtral", "jamba"] {
            let spec = changed(model, json!({ BITS: "ternary" }));
            let found = spec.and_then(|spec| check(&spec)).unwrap_err().to_string();
            assert!(found.contains("softmax attention"), "{found}");
        }
    }
}
