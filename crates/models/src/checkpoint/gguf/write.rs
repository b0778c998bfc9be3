//! Writing a model as a GGUF file, a tensor at a time.
//!
//! What is rounded are matrices and tables; norms, biases, routers, positions and convolutions stay f32. The mixtures are those of llama.cpp's
//! `llama-quantize`: the head (or the table where both are one) has six bits, Q4_K_M and Q5_K_M give six to half of the values and of the
//! feed-forward layers' last matrices, and rows that are no whole blocks fall back to Q5_0, Q5_1, Q8_0 or f16.

use std::{collections::HashMap, path::Path};

use espalier_data::{
    disk::PartialFile,
    gguf::{Metadata, TensorEntry, Value, header_bytes, padding},
};
use espalier_kernels::stored::{
    Bf16, F16, F32, Q4_0, Q4K, Q5_0, Q5_1, Q5K, Q6K, Q8_0, Quantise, quantised_as,
};

use super::{Change, Kind, halves_of_turns, metadata};
use crate::{
    Error, Result,
    families::{self, attention},
    layout::{StoredTensor, stored_tensors},
    model::LanguageModel,
};

/// How a file's matrices are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mixture {
    /// As they are.
    F32,
    /// Half precision.
    F16,
    /// The upper half of f32.
    Bf16,
    /// Eight bits.
    Q8_0,
    /// Four bits in blocks of 32.
    Q4_0,
    /// Four bits in blocks of 256, six where it matters.
    Q4KM,
    /// Five bits in blocks of 256, six where it matters.
    Q5KM,
    /// Six bits.
    Q6K,
}

impl Mixture {
    /// All, with their names.
    pub const ALL: [(&'static str, Self); 8] = [
        ("f32", Self::F32),
        ("f16", Self::F16),
        ("bf16", Self::Bf16),
        ("q8_0", Self::Q8_0),
        ("q4_0", Self::Q4_0),
        ("q4_k_m", Self::Q4KM),
        ("q5_k_m", Self::Q5KM),
        ("q6_k", Self::Q6K),
    ];

    fn format(self) -> &'static dyn Quantise {
        match self {
            Self::F32 => &F32,
            Self::F16 => &F16,
            Self::Bf16 => &Bf16,
            Self::Q8_0 => &Q8_0,
            Self::Q4_0 => &Q4_0,
            Self::Q4KM => &Q4K,
            Self::Q5KM => &Q5K,
            Self::Q6K => &Q6K,
        }
    }

    fn is_quantised(self) -> bool {
        !matches!(self, Self::F32 | Self::F16 | Self::Bf16)
    }

    /// llama.cpp's number.
    fn file_type(self) -> u32 {
        match self {
            Self::F32 => 0,
            Self::F16 => 1,
            Self::Bf16 => 32,
            Self::Q8_0 => 7,
            Self::Q4_0 => 2,
            Self::Q4KM => 15,
            Self::Q5KM => 17,
            Self::Q6K => 18,
        }
    }
}

impl std::str::FromStr for Mixture {
    type Err = String;

    fn from_str(name: &str) -> std::result::Result<Self, String> {
        let found = Self::ALL
            .iter()
            .find(|(known, _)| known.eq_ignore_ascii_case(name));
        found.map(|(_, mixture)| *mixture).ok_or_else(|| {
            let names = Self::ALL.map(|(name, _)| name).join(", ");
            format!("expected one of {names}")
        })
    }
}

/// How much the squares of errors in the columns of a matrix count, by our name of its parameter.
pub type Importance = HashMap<String, Vec<f32>>;

/// One tensor of the file, and what it is made of.
struct Plan<'a> {
    name: String,
    shape: Vec<usize>,
    change: Change,
    kind: Kind,
    /// The tensors of Hugging Face's checkpoint, several where experts are stacked.
    parts: Vec<StoredTensor<'a>>,
    /// Whether the family stores the matrix the other way round.
    transposed: bool,
}

/// Writes a model to `path`; `tokenizer` is the metadata of its tokenizer. Gives the bytes of the file.
///
/// # Errors
/// When llama.cpp has no architecture for the model, a part cannot be said there, or the disk is full.
pub fn write(
    model: &LanguageModel,
    tokenizer: Metadata,
    name: &str,
    path: &Path,
    mixture: Mixture,
    importance: &Importance,
) -> Result<u64> {
    let spec = model.spec();
    let described = metadata::model_metadata(spec, name, mixture.file_type())?;
    let mut all = described.metadata;
    all.extend(tokenizer);
    let plans = plans(model, mixture)?;
    let (mut entries, mut offset) = (Vec::new(), 0u64);
    let mut place = |name: &str, shape: &[usize], kind: Kind| -> Result<()> {
        let width = shape.last().copied().unwrap_or(1);
        let rows: usize = shape.iter().rev().skip(1).product();
        let bytes = kind
            .format
            .row_bytes(width)
            .and_then(|row| row.checked_mul(rows));
        let bytes = bytes
            .ok_or_else(|| Error::Invalid(format!("`{name}`: shape {shape:?} overflows")))?
            as u64;
        entries.push(TensorEntry {
            name: name.to_owned(),
            axes: shape.iter().rev().map(|axis| *axis as u64).collect(),
            kind: kind.number,
            offset,
        });
        offset += bytes + padding(bytes) as u64;
        Ok(())
    };
    let single = Kind::of(0).map_err(Error::Invalid)?;
    for (name, factors) in &described.factors {
        place(name, &[factors.len()], single)?;
    }
    for plan in &plans {
        place(&plan.name, &plan.shape, plan.kind)?;
    }
    let header = header_bytes(&all, &entries);
    let mut file = PartialFile::create(path).map_err(Error::file(path))?;
    let mut put = |bytes: &[u8]| {
        file.write(bytes).map_err(Error::file(path))?;
        let zeros = vec![0; padding(bytes.len() as u64)];
        file.write(&zeros).map_err(Error::file(path))
    };
    put(&header)?;
    for factors in described.factors.values() {
        let bytes: Vec<u8> = factors.iter().flat_map(|x| x.to_le_bytes()).collect();
        put(&bytes)?;
    }
    for plan in &plans {
        put(&plan.bytes(importance)?)?;
    }
    file.rename().map_err(Error::file(path))?;
    Ok(header.len() as u64 + offset)
}

fn plans(model: &LanguageModel, mixture: Mixture) -> Result<Vec<Plan<'_>>> {
    let spec = model.spec();
    let layout = metadata::layout(spec)?;
    let family = families::by_name(&spec.family)?;
    let heads = spec
        .blocks
        .first()
        .and_then(attention)
        .map_or([0; 2], |a| [a.heads, a.kv_heads]);
    let transposed: Vec<String> = (family.tensors)(spec)
        .into_iter()
        .filter(|entry| entry.transposed)
        .map(|entry| entry.name)
        .collect();
    let mut plans: Vec<Plan<'_>> = Vec::new();
    for tensor in stored_tensors(model, family) {
        let Some((name, expert)) = layout.ours(&tensor.name) else {
            return Err(Error::Invalid(format!(
                "as a GGUF file: the architecture `{}` has no place for `{}`",
                layout.architecture, tensor.name
            )));
        };
        if expert.is_some_and(|expert| expert > 0)
            && let Some(stack) = plans.iter_mut().find(|plan| plan.name == name)
        {
            stack.parts.push(tensor);
            stack.shape[0] += 1;
            continue;
        }
        let turned = transposed.contains(&tensor.name);
        let mut shape = tensor.shape.clone();
        if turned {
            shape.reverse();
        }
        let change = layout.change(&name, heads);
        if change == Change::MiddleAxis && shape.len() == 3 {
            shape.remove(1);
        }
        if expert.is_some() {
            shape.insert(0, 1);
        }
        let width = shape.last().copied().unwrap_or(1);
        let is_head = name == "output.weight" || (name == "token_embd.weight" && spec.tied_head);
        let kind = kind(
            mixture,
            &name,
            shape.len(),
            width,
            is_head,
            spec.blocks.len(),
        )?;
        plans.push(Plan {
            name,
            shape,
            change,
            kind,
            parts: vec![tensor],
            transposed: turned,
        });
    }
    Ok(plans)
}

/// How a tensor is written.
fn kind(
    mixture: Mixture,
    name: &str,
    rank: usize,
    width: usize,
    is_head: bool,
    blocks: usize,
) -> Result<Kind> {
    const WHOLE: [&str; 5] = [
        "_norm",
        "ffn_gate_inp",
        "position_embd",
        "ssm_conv1d",
        "ssm_dt",
    ];
    let is_vector = rank < 2 || !name.ends_with(".weight");
    let stays = is_vector || WHOLE.iter().any(|part| name.contains(part));
    let wanted: &'static dyn Quantise = match mixture {
        _ if stays => &F32,
        mixture if !mixture.is_quantised() => mixture.format(),
        Mixture::Q8_0 => &Q8_0,
        // Six bits, or eight where rows are no whole blocks of them.
        _ if is_head => &Q6K,
        Mixture::Q4KM if name.contains("attn_qkv") => &Q5K,
        Mixture::Q4KM | Mixture::Q5KM if matters(name, blocks) => &Q6K,
        mixture => mixture.format(),
    };
    let fits = |format: &dyn Quantise| format.row_bytes(width).is_some();
    let format: &'static dyn Quantise = match wanted.name() {
        _ if fits(wanted) => wanted,
        "q4_k" if fits(&Q5_0) => &Q5_0,
        "q5_k" if fits(&Q5_1) => &Q5_1,
        _ if fits(&Q8_0) => &Q8_0,
        _ => &F16,
    };
    Kind::of_format(format)
        .ok_or_else(|| Error::Invalid(format!("`{}` has no number in GGUF", format.name())))
}

/// Whether a matrix is one of the half that gets more bits: the first and the last eighth of the layers, and every third between.
fn matters(name: &str, blocks: usize) -> bool {
    let block = name
        .strip_prefix("blk.")
        .and_then(|rest| rest.split_once('.'));
    let Some((Ok(block), part)) = block.map(|(block, part)| (block.parse::<usize>(), part)) else {
        return false;
    };
    let eighth = blocks / 8;
    let is_one = part.starts_with("attn_v.")
        || part.starts_with("attn_qkv.")
        || part.starts_with("ffn_down");
    is_one && (block < eighth || block >= 7 * blocks / 8 || (block - eighth) % 3 == 2)
}

impl Plan<'_> {
    /// The bytes of the tensor.
    fn bytes(&self, importance: &Importance) -> Result<Vec<u8>> {
        let mut numbers = Vec::with_capacity(self.shape.iter().product());
        for part in &self.parts {
            let own = part.assemble(&|parameter| parameter.flat());
            numbers.extend(self.changed(own, part)?);
        }
        let columns = self
            .parts
            .first()
            .and_then(|part| part.names().next())
            .and_then(|name| importance.get(name));
        let width = self.shape.last().copied().unwrap_or(1);
        let columns = columns
            .filter(|columns| columns.len() == width)
            .map(Vec::as_slice);
        let stored = quantised_as(self.kind.format, &self.shape, &numbers, columns);
        let stored = stored.ok_or_else(|| {
            Error::Invalid(format!(
                "`{}` of shape {:?} cannot be written",
                self.name, self.shape
            ))
        })?;
        Ok(stored.bytes().to_vec())
    }

    /// The numbers as the file has them.
    fn changed(&self, numbers: Vec<f32>, part: &StoredTensor<'_>) -> Result<Vec<f32>> {
        let numbers = match (self.transposed, &part.shape[..]) {
            (true, [inputs, outputs]) => {
                let at = |i: usize| numbers[i % inputs * outputs + i / inputs];
                (0..numbers.len()).map(at).collect()
            }
            _ => numbers,
        };
        Ok(match self.change {
            Change::None | Change::MiddleAxis => numbers,
            Change::OneMore => numbers.into_iter().map(|x| x + 1.0).collect(),
            Change::NegatedExponential => numbers.into_iter().map(|x| -x.exp()).collect(),
            Change::Halves(heads) => {
                let rows = part.shape.first().copied().unwrap_or(0);
                let width = numbers.len().checked_div(rows).unwrap_or(0);
                let order = halves_of_turns(rows, heads).ok_or_else(|| {
                    Error::Invalid(format!(
                        "`{}` does not divide into {heads} heads of two halves",
                        self.name
                    ))
                })?;
                let mut turned = vec![0.0; numbers.len()];
                for (row, numbers) in numbers.chunks_exact(width.max(1)).enumerate() {
                    let place = order(row) * width;
                    turned[place..place + width].copy_from_slice(numbers);
                }
                turned
            }
        })
    }
}

/// What a file without a tokenizer says of that.
pub fn no_tokenizer(spec: &crate::spec::ModelSpec) -> Metadata {
    let id = |key: &str, id: Option<u32>| {
        id.map(|id| (format!("tokenizer.ggml.{key}_token_id"), Value::U32(id)))
    };
    let model = (
        "tokenizer.ggml.model".to_owned(),
        Value::Text("none".into()),
    );
    let ids = [
        id("bos", spec.bos),
        id("eos", spec.eos.first().copied()),
        id("padding", spec.pad),
    ];
    ids.into_iter().flatten().chain([model]).collect()
}
