//! Linear weights of four bits as bitsandbytes writes them: blocks of 64 over the flattened weight, with their constants in tensors
//! beside it.
//!
//! Beside `P.weight`, of bytes, there are `P.weight.absmax`, `P.weight.quant_map`, where constants are quantised in their turn
//! `P.weight.nested_absmax` and `P.weight.nested_quant_map`, and `P.weight.quant_state.bitsandbytes__nf4` (or `__fp4`), the text of a
//! JSON object.

use espalier_kernels::stored::{Code, Constants, FourBit, Stored};
use serde::Deserialize;
use serde_json::Value;

use super::{Checkpoint, Dtype};
use crate::{Error, Result, families::config::Config};

/// Ends of the names of the tensors beside a weight.
const PARTS: [&str; 6] = [
    ".absmax",
    ".quant_map",
    ".nested_absmax",
    ".nested_quant_map",
    ".quant_state.bitsandbytes__nf4",
    ".quant_state.bitsandbytes__fp4",
];

/// Numbers of a block, and blocks whose constants share one, that are read.
const SIZES: [usize; 2] = [64, 256];

/// The name of the weight that a tensor of this name belongs to.
pub(crate) fn weight_of(name: &str) -> &str {
    let bare = PARTS.iter().find_map(|end| name.strip_suffix(end));
    bare.filter(|name| name.ends_with(".weight"))
        .unwrap_or(name)
}

/// What a weight says of itself.
#[derive(Debug, Deserialize)]
struct State {
    quant_type: String,
    blocksize: usize,
    shape: Vec<usize>,
    nested_blocksize: Option<usize>,
    nested_offset: Option<f32>,
}

/// The weight `tensor` where the file holds it so, in the shape that it says; nothing where it does not.
///
/// # Errors
/// When a part is missing or does not fit the others.
pub(crate) fn read(checkpoint: &Checkpoint, tensor: &str) -> Result<Option<Stored>> {
    let part = |end: &str| format!("{tensor}{end}");
    let state = PARTS[4..].iter().map(|end| part(end));
    let Some(state) = state
        .into_iter()
        .find(|name| checkpoint.info(name).is_some())
    else {
        return Ok(None);
    };
    let error = |name: &str, reason: String| {
        Error::checkpoint(
            checkpoint.path_of(name),
            format!("tensor `{name}` {reason}"),
        )
    };
    let State {
        quant_type,
        blocksize,
        shape,
        nested_blocksize,
        nested_offset,
    } = serde_json::from_slice(&checkpoint.bytes(&state)?)
        .map_err(|reason| error(&state, format!("does not describe a weight: {reason}")))?;
    let code = match quant_type.as_str() {
        "nf4" => Code::Nf4,
        "fp4" => Code::Fp4,
        other => {
            return Err(error(
                &state,
                format!("has the type `{other}`; nf4 and fp4 are read"),
            ));
        }
    };
    if blocksize != SIZES[0] || nested_blocksize.is_some_and(|size| size != SIZES[1]) {
        let reason = format!(
            "has blocks of {blocksize} numbers{}; those of {} and {} are read: quantise the full-precision model again",
            nested_blocksize.map_or(String::new(), |size| format!(", of {size} constants")),
            SIZES[0],
            SIZES[1],
        );
        return Err(error(&state, reason));
    }
    let bytes = |name: &str| match checkpoint.info(name) {
        Some(info) if info.dtype == Dtype::U8 => Ok(checkpoint.bytes(name)?.into_owned()),
        Some(_) => Err(error(
            name,
            "is not of bytes, as it should be; save it with `bnb_4bit_quant_storage` of uint8"
                .into(),
        )),
        None => Err(error(name, "is missing".into())),
    };
    let same_map = |end: &str, expected: &[f32]| {
        let name = part(end);
        let found = checkpoint.read_f32(&name, None)?;
        let is_near = |(a, b): (&f32, &f32)| (a - b).abs() < 1e-6;
        match found.len() == expected.len() && found.iter().zip(expected).all(is_near) {
            true => Ok(()),
            false => Err(error(&name, "is not the map that bitsandbytes uses".into())),
        }
    };
    same_map(PARTS[1], code.values())?;
    let constants = match nested_offset {
        None => Constants::Single(checkpoint.read_f32(&part(PARTS[0]), None)?),
        Some(mean) => {
            same_map(PARTS[3], Constants::map())?;
            Constants::Double {
                codes: bytes(&part(PARTS[0]))?,
                constants: checkpoint.read_f32(&part(PARTS[2]), None)?,
                mean,
            }
        }
    };
    let format = FourBit::of(code, constants.are_double());
    let weight = format.packed(&shape, &bytes(tensor)?, &constants);
    weight.map(Some).ok_or_else(|| {
        error(
            tensor,
            format!("and its constants do not have the sizes of a weight of shape {shape:?}"),
        )
    })
}

/// The configuration without what it says of such weights: their tensors say all of it.
///
/// # Errors
/// When they have eight bits.
pub(crate) fn unpacked(config: Config) -> Result<Config> {
    const KEY: &str = "quantization_config";
    let Some(packing) = config.optional_object(KEY).ok().flatten() else {
        return Ok(config);
    };
    if packing.optional_text("quant_method").ok().flatten() != Some("bitsandbytes") {
        return Ok(config);
    }
    if packing.flag_or("load_in_8bit", false)? {
        return Err(packing.error(
            "load_in_8bit",
            "weights of four bits alone are read; load the full-precision model, with `quantise` where memory asks for it",
        ));
    }
    Ok(config.with(KEY, Value::Null))
}
