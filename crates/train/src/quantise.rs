//! How a frozen base is rounded while it is read (QLoRA, arXiv 2305.14314).

use std::str::FromStr;

use espalier_data::nearest::suggestion;
use espalier_kernels::stored::{Code, FourBit};
use serde::{Deserialize, Serialize};

/// The ways to round the linear maps of a frozen base to four bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub enum QuantiseOptions {
    /// Sixteen quantiles of the normal distribution, times the largest magnitude of every 64 weights.
    #[serde(rename = "nf4")]
    Nf4(FourBitOptions),
    /// Sixteen numbers with two bits of exponent and one of mantissa, likewise.
    #[serde(rename = "fp4")]
    Fp4(FourBitOptions),
}

/// What both have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct FourBitOptions {
    /// Round the magnitudes of the blocks to bytes in their turn.
    pub double: bool,
}

impl Default for FourBitOptions {
    fn default() -> Self {
        Self { double: true }
    }
}

impl QuantiseOptions {
    /// The names that a command line knows.
    pub const NAMES: [&str; 2] = ["nf4", "fp4"];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Nf4(_) => "nf4",
            Self::Fp4(_) => "fp4",
        }
    }

    /// The format of the rounded weights.
    ///
    /// ```
    /// use espalier_train::quantise::QuantiseOptions;
    /// let options: QuantiseOptions = "nf4".parse()?;
    /// assert_eq!(format!("{:?}", options.format()), "FourBit { code: Nf4, double: true }");
    /// # Ok::<(), String>(())
    /// ```
    pub fn format(self) -> &'static FourBit {
        let (code, own) = match self {
            Self::Nf4(own) => (Code::Nf4, own),
            Self::Fp4(own) => (Code::Fp4, own),
        };
        FourBit::of(code, own.double)
    }
}

impl FromStr for QuantiseOptions {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        match name {
            "nf4" => Ok(Self::Nf4(FourBitOptions::default())),
            "fp4" => Ok(Self::Fp4(FourBitOptions::default())),
            other => Err(format!(
                "expected {}{}",
                Self::NAMES.join(" or "),
                suggestion(other, Self::NAMES),
            )),
        }
    }
}
