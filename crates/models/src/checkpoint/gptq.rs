//! Linear weights of four bits as GPTQ (arXiv 2210.17323) and AWQ (arXiv 2306.00978) leave them in safetensors.
//!
//! Beside each other lie `P.qweight` and `P.qzeros`, eight numbers in a word, and `P.scales`, a row for each group of inputs. GPTQ packs the
//! numbers along the inputs and its zeros, less one, along the outputs, and `P.g_idx` says the group of each input; AWQ packs both along the
//! outputs, in the order 0, 2, 4, 6, 1, 3, 5, 7. Which of the two a file is follows from the sizes. Rows here have a scale and a zero for each
//! group; where inputs are in groups out of order (`desc_act`), a row has no such groups, and the weight becomes f16.

use espalier_kernels::stored::{F16, Grouped, GroupedParts, Stored, quantised};
use serde_json::Value;

use super::{Checkpoint, Dtype};
use crate::{Error, Result, families::config::Config, source::stored_name};

/// Ends of the names of the tensors that take a weight's place.
const PARTS: [&str; 4] = [".qweight", ".qzeros", ".scales", ".g_idx"];
/// Numbers of a word.
const PACKED: usize = 8;
/// Where AWQ's numbers lie in a word: nibble `i` holds output `ORDER[i]`.
const ORDER: [usize; PACKED] = [0, 2, 4, 6, 1, 3, 5, 7];

/// The name of the weight whose place this tensor takes, where it does.
pub(crate) fn weight_of(checkpoint: &Checkpoint, name: &str) -> Option<String> {
    let bare = PARTS.iter().find_map(|end| name.strip_suffix(end))?;
    let packed = format!("{bare}{}", PARTS[0]);
    checkpoint.info(&packed).map(|_| format!("{bare}.weight"))
}

/// The weight `tensor` where the file holds it so, `[outputs, inputs]`; nothing where it does not.
///
/// # Errors
/// When a part is missing or does not fit the others.
pub(crate) fn read(checkpoint: &Checkpoint, prefix: &str, tensor: &str) -> Result<Option<Stored>> {
    let Some(bare) = tensor.strip_suffix(".weight") else {
        return Ok(None);
    };
    let part = |end: &str| stored_name(checkpoint, prefix, &format!("{bare}{end}"));
    let Some(packed) = part(PARTS[0]) else {
        return Ok(None);
    };
    let error = |reason: String| {
        Error::checkpoint(
            checkpoint.path_of(&packed),
            format!("tensor `{packed}` {reason}"),
        )
    };
    let missing = |end: &str| error(format!("has no `{end}` beside it"));
    let zeros = part(PARTS[1]).ok_or_else(|| missing(PARTS[1]))?;
    let scales = part(PARTS[2]).ok_or_else(|| missing(PARTS[2]))?;
    let shape = |name: &str| {
        checkpoint
            .info(name)
            .map(|info| info.shape.clone())
            .unwrap_or_default()
    };
    let (size, scale_size) = (shape(&packed), shape(&scales));
    let misfit = || {
        error(format!(
            "of shape {size:?} and its scales of shape {scale_size:?} do not belong together; four bits a number are read"
        ))
    };
    let (&[rows, columns], &[groups, outputs]) = (&size[..], &scale_size[..]) else {
        return Err(misfit());
    };
    let is_awq = columns.checked_mul(PACKED) == Some(outputs) && columns != outputs;
    let inputs = if is_awq {
        rows
    } else {
        rows.saturating_mul(PACKED)
    };
    let fits = groups > 0 && outputs.is_multiple_of(PACKED) && (is_awq || columns == outputs);
    if !fits || shape(&zeros) != [groups, outputs / PACKED] {
        return Err(misfit());
    }
    let words = |name: &str| -> Result<Vec<u32>> {
        let bytes = checkpoint.bytes(name)?;
        match checkpoint.info(name).map(|info| info.dtype) {
            Some(Dtype::I32 | Dtype::U32) => Ok(bytes
                .as_chunks::<4>()
                .0
                .iter()
                .map(|word| u32::from_le_bytes(*word))
                .collect()),
            _ => Err(Error::checkpoint(
                checkpoint.path_of(name),
                format!("tensor `{name}` is not of 32-bit integers"),
            )),
        }
    };
    let (numbers, zeros) = (words(&packed)?, words(&zeros)?);
    let scales = checkpoint.read_f32(&scales, None)?;
    let width = inputs.div_ceil(groups);
    let group_of: Vec<usize> = match part(PARTS[3]) {
        Some(name) => words(&name)?
            .into_iter()
            .map(|group| group as usize)
            .collect(),
        None => (0..inputs).map(|input| input / width).collect(),
    };
    if group_of.len() != inputs || group_of.iter().any(|group| *group >= groups) {
        return Err(error(
            "has groups of inputs that its scales do not know".into(),
        ));
    }
    let nibble = |words: &[u32], place: usize, at: usize| (words[place] >> (4 * at) & 15) as u8;
    // Where an output of eight lies in AWQ's words.
    let mut places = [0; PACKED];
    ORDER
        .iter()
        .enumerate()
        .for_each(|(i, output)| places[*output] = i);
    let along = |words: &[u32], row: usize, output: usize| {
        let at = output % PACKED;
        let at = if is_awq { places[at] } else { at };
        nibble(words, row * (outputs / PACKED) + output / PACKED, at)
    };
    let number = |output: usize, input: usize| match is_awq {
        true => along(&numbers, input, output),
        false => nibble(&numbers, input / PACKED * outputs + output, input % PACKED),
    };
    // What is stored is one less than the zero, which may so be sixteen.
    let zero = |output: usize, group: usize| along(&zeros, group, output) + u8::from(!is_awq);
    let in_order = group_of
        .iter()
        .enumerate()
        .all(|(input, group)| *group == input / width);
    if let Some(format) = Grouped::of(width).filter(|_| in_order && inputs.is_multiple_of(32)) {
        let each = |of: &dyn Fn(usize, usize) -> u8, count: usize| -> Vec<u8> {
            (0..outputs)
                .flat_map(|output| (0..count).map(move |i| of(output, i)))
                .collect()
        };
        let scales: Vec<u16> = (0..outputs)
            .flat_map(|output| (0..groups).map(move |group| (output, group)))
            .map(|(output, group)| half::f16::from_f32(scales[group * outputs + output]).to_bits())
            .collect();
        let parts = GroupedParts {
            numbers: &each(&number, inputs),
            scales: &scales,
            zeros: &each(&zero, groups),
        };
        return format
            .packed([outputs, inputs], &parts)
            .map(Some)
            .ok_or_else(misfit);
    }
    let values: Vec<f32> = (0..outputs)
        .flat_map(|output| (0..inputs).map(move |input| (output, input)))
        .map(|(output, input)| {
            let group = group_of[input];
            let steps = f32::from(number(output, input)) - f32::from(zero(output, group));
            scales[group * outputs + output] * steps
        })
        .collect();
    quantised(&F16, &[outputs, inputs], &values, None)
        .map(Some)
        .ok_or_else(misfit)
}

/// The configuration without what it says of such weights, as far as their tensors say it.
///
/// # Errors
/// When they have other than four bits, or are packed in a way that is not read.
pub(crate) fn unpacked(config: Config) -> Result<Config> {
    const KEY: &str = "quantization_config";
    let Some(packing) = config.optional_object(KEY).ok().flatten() else {
        return Ok(config);
    };
    let method = packing
        .optional_text("quant_method")
        .ok()
        .flatten()
        .map(str::to_owned);
    let Some(method) = method.filter(|method| ["gptq", "awq"].contains(&method.as_str())) else {
        return Ok(config);
    };
    if packing.get("bits").and_then(Value::as_u64) != Some(4) {
        return Err(packing.error(
            "bits",
            "weights of four bits alone are read; load the full-precision model",
        ));
    }
    let form = packing
        .optional_text("checkpoint_format")?
        .or(packing.optional_text("version")?);
    let known = if method == "gptq" { "gptq" } else { "gemm" };
    match form.map(str::to_lowercase).filter(|form| form != known) {
        Some(form) => Err(packing.error(
            if method == "gptq" { "checkpoint_format" } else { "version" },
            format!("`{form}` is not read, `{known}` is; save the model so, or load the full-precision one"),
        )),
        None => Ok(config.with(KEY, Value::Null)),
    }
}
