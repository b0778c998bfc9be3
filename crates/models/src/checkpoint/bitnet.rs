//! Linear weights of two bits as Hugging Face writes BitNet's: four rows' codes in a byte, and a scale beside them.
//!
//! `P.weight` is of bytes, `[out / 4, in]`: bits `2 i` and the next of byte `[r, c]` are the code of row `i out / 4 + r`, the number plus
//! one. `P.weight_scale`, `[1]`, is what the numbers are multiplied by, or divided by, as the class of linear layers that
//! `quantization_config` names has it: no file says so itself.

use espalier_kernels::stored::{Stored, Ternary};

use super::{Checkpoint, Dtype};
use crate::{Error, Result};

/// Rows in a byte.
pub(crate) const ROWS: usize = 4;

/// The end of the name of the scale that belongs to a weight.
pub(crate) const SCALE: &str = "_scale";

/// What a scale is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ScaleForm {
    /// Numbers are multiplied by it (`autobitlinear`).
    Factor,
    /// Numbers are divided by it (`bitlinear`).
    Divisor,
}

/// The name of the weight that a tensor of this name belongs to.
pub(crate) fn weight_of(name: &str) -> &str {
    name.strip_suffix(SCALE)
        .filter(|weight| weight.ends_with(".weight"))
        .unwrap_or(name)
}

/// The weight `tensor` where the file holds it so; nothing where it does not.
///
/// # Errors
/// When its scale is missing or without a weight of bytes, when nothing says what scales are, or a code has no meaning.
pub(crate) fn read(
    checkpoint: &Checkpoint,
    tensor: &str,
    form: Option<ScaleForm>,
) -> Result<Option<Stored>> {
    let beside = format!("{tensor}{SCALE}");
    let scaled = tensor.ends_with(".weight") && checkpoint.info(&beside).is_some();
    let error = |reason: String| {
        Error::checkpoint(
            checkpoint.path_of(tensor),
            format!("tensor `{tensor}` {reason}"),
        )
    };
    let packed = checkpoint
        .info(tensor)
        .filter(|info| info.dtype == Dtype::U8);
    let (info, form) = match (packed, form) {
        (None, _) if !scaled => return Ok(None),
        (None, _) => {
            let reason = format!(
                "is not of bytes, though there is `{beside}`; save the model with packed weights, or without scales"
            );
            return Err(error(reason));
        }
        (Some(info), Some(form)) if scaled => (info, form),
        (Some(_), None) => {
            let reason = "is of bytes, and config.json has no `quantization_config` that says how they are packed; add {\"quant_method\": \"bitnet\"} and its `linear_class`";
            return Err(error(reason.into()));
        }
        (Some(_), Some(_)) => return Err(error(format!("needs its scale, `{beside}`"))),
    };
    let [packed_rows, width] = info.shape[..] else {
        return Err(error(format!(
            "has shape {:?}, not that of a matrix",
            info.shape
        )));
    };
    let scale = match checkpoint.read_f32(&beside, None)?[..] {
        [scale] if scale.is_finite() && scale != 0.0 => scale,
        _ => {
            return Err(error(format!(
                "needs one number in `{beside}`, and not zero"
            )));
        }
    };
    let scale = match form {
        ScaleForm::Factor => scale,
        ScaleForm::Divisor => 1.0 / scale,
    };
    let bytes = checkpoint.bytes(tensor)?;
    let codes: Vec<u8> = (0..ROWS)
        .flat_map(|quarter| bytes.iter().map(move |byte| byte >> (2 * quarter) & 3))
        .collect();
    let weight = packed_rows
        .checked_mul(ROWS)
        .and_then(|rows| Ternary::packed([rows, width], &codes, scale));
    weight
        .map(Some)
        .ok_or_else(|| error("has codes that stand for no number; the file is damaged".into()))
}

/// The bytes and the scale, a factor, of a packed weight; nothing where it is of another format, or its rows do not fill the bytes.
pub(crate) fn written(weight: &Stored) -> Option<(Vec<u8>, f32)> {
    let (codes, scale) = Ternary::codes(weight)?;
    if !weight.rows().is_multiple_of(ROWS) {
        return None;
    }
    let quarter = codes.len() / ROWS;
    let byte = |i: usize| (0..ROWS).fold(0, |byte, q| byte | codes[q * quarter + i] << (2 * q));
    Some(((0..quarter).map(byte).collect(), scale))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example in transformers' own documentation of the layout.
    #[test]
    fn bytes_hold_rows_a_quarter_apart() {
        let rows = [
            [0, -1],
            [-1, 1],
            [-1, 1],
            [-1, 1],
            [1, 0],
            [0, -1],
            [1, -1],
            [1, -1],
        ];
        let codes: Vec<u8> = rows.iter().flatten().map(|n: &i8| (n + 1) as u8).collect();
        let weight = Ternary::packed([8, 2], &codes, 0.5).unwrap();
        let (bytes, scale) = written(&weight).unwrap();
        assert_eq!(bytes, [0b1010_0001, 0b0001_1000, 0b1001_0000, 0b0000_1010]);
        assert_eq!(scale, 0.5);
        let odd = Ternary::packed([3, 1], &[0, 1, 2], 0.5).unwrap();
        assert!(written(&odd).is_none());
    }
}
