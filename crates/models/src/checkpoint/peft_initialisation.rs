//! How the factors of a LoRA begin, by PEFT's names.

/// How the factors of a LoRA begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Initialisation {
    /// `A` is uniform within `1 / sqrt(inputs)`, `B` zero.
    #[default]
    Uniform,
    /// `A` is normal with the deviation `1 / rank`, `B` zero.
    Gaussian,
    /// `B A` is the part of the weight with the largest singular values, which the base loses (PiSSA).
    Pissa {
        /// Passes over the weight in which the largest are sought; all are computed when absent.
        passes: Option<usize>,
    },
}

impl Initialisation {
    /// The initialisation that has a name in PEFT: `gaussian`, `pissa`, or `pissa_niter_` and the number of passes.
    ///
    /// ```
    /// use espalier_models::checkpoint::peft_config::Initialisation;
    /// let fast = Initialisation::Pissa { passes: Some(16) };
    /// assert_eq!(Initialisation::named("pissa_niter_16"), Some(fast));
    /// assert_eq!(Initialisation::named("piss"), None);
    /// ```
    pub fn named(name: &str) -> Option<Self> {
        match name {
            "gaussian" => Some(Self::Gaussian),
            "pissa" => Some(Self::Pissa { passes: None }),
            _ => {
                let passes = name.strip_prefix("pissa_niter_")?.parse().ok()?;
                let passes = (1..=1000).contains(&passes).then_some(passes);
                passes.map(|passes| Self::Pissa {
                    passes: Some(passes),
                })
            }
        }
    }
}
