//! The types of a GGUF file's tensors: ggml's numbers, names and formats.

use espalier_kernels::stored::{
    Bf16, F16, F32, Format, Q4_0, Q4_1, Q4K, Q5_0, Q5_1, Q5K, Q6K, Q8_0, Quantise,
};
use safetensors::Dtype;

/// A type whose numbers are read.
#[derive(Debug, Clone, Copy)]
pub struct Kind {
    /// ggml's number.
    pub number: u32,
    /// How rows are written, and how they are read.
    pub format: &'static dyn Quantise,
}

/// What is read and written.
pub const KINDS: [Kind; 11] = [
    kind(0, &F32),
    kind(1, &F16),
    kind(2, &Q4_0),
    kind(3, &Q4_1),
    kind(6, &Q5_0),
    kind(7, &Q5_1),
    kind(8, &Q8_0),
    kind(12, &Q4K),
    kind(13, &Q5K),
    kind(14, &Q6K),
    kind(30, &Bf16),
];

/// Names of the types that are not.
const OTHERS: [(u32, &str); 23] = [
    (9, "Q8_1"),
    (10, "Q2_K"),
    (11, "Q3_K"),
    (15, "Q8_K"),
    (16, "IQ2_XXS"),
    (17, "IQ2_XS"),
    (18, "IQ3_XXS"),
    (19, "IQ1_S"),
    (20, "IQ4_NL"),
    (21, "IQ3_S"),
    (22, "IQ2_S"),
    (23, "IQ4_XS"),
    (24, "I8"),
    (25, "I16"),
    (26, "I32"),
    (27, "I64"),
    (28, "F64"),
    (29, "IQ1_M"),
    (31, "Q4_0_4_4"),
    (34, "TQ1_0"),
    (35, "TQ2_0"),
    (39, "MXFP4"),
    (40, "NVFP4"),
];

const fn kind(number: u32, format: &'static dyn Quantise) -> Kind {
    Kind { number, format }
}

impl Kind {
    /// The type of this number, or what is wrong with it.
    pub fn of(number: u32) -> Result<Self, String> {
        if let Some(kind) = KINDS.iter().find(|kind| kind.number == number) {
            return Ok(*kind);
        }
        let read: Vec<String> = KINDS
            .iter()
            .map(|kind| kind.format.name().to_uppercase())
            .collect();
        let read = read.join(", ");
        Err(match OTHERS.iter().find(|(other, _)| *other == number) {
            Some((_, name)) => format!(
                "has the type {name}, which is not read; {read} are: quantise the model again as one of these"
            ),
            None => format!("has the type {number}, which is unknown here; {read} are read"),
        })
    }

    /// The type that writes this format.
    pub fn of_format(format: &dyn Format) -> Option<Self> {
        let mut kinds = KINDS.iter();
        kinds
            .find(|kind| kind.format.name() == format.name())
            .copied()
    }

    /// The type of an element where elements stand alone; bytes for blocks.
    pub fn dtype(&self) -> Dtype {
        match self.number {
            0 => Dtype::F32,
            1 => Dtype::F16,
            30 => Dtype::BF16,
            _ => Dtype::U8,
        }
    }
}
