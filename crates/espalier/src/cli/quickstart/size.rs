//! The two sizes of the quickstart, and the choice between them by what this machine can do.

use std::{fmt, path::Path, time::Instant};

use burn::tensor::{Device, Distribution, Tensor};
use espalier_kernels::linear::{Precision, linear};

use crate::{
    recipe::{Recipe, document},
    stages::kinds::Kind,
};

/// How large the model is that the quickstart grows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Size {
    /// 3.3 million parameters.
    Full,
    /// 2 million parameters, with which a slower machine is done as soon.
    Small,
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Full => "full size, 3.3 million parameters",
            Self::Small => "small size, 2 million parameters",
        })
    }
}

/// What the small size changes in the recipe.
const SMALL: [&str; 4] = [
    "stage.pretrain.train.new.width=192",
    "stage.pretrain.train.new.heads=6",
    "stage.pretrain.train.new.inner=528",
    "stage.tune.train.options.learning_rate=7e-4",
];

impl Size {
    /// The keys of the recipe that this size changes, as `key=value`.
    pub fn overrides(self) -> Vec<String> {
        match self {
            Self::Full => Vec::new(),
            Self::Small => SMALL.map(str::to_owned).to_vec(),
        }
    }
}

/// Steps of every training stage of a short quickstart.
pub const SHORT_STEPS: usize = 3;

/// Billions of operations a second of the faster products, from which on the full size takes about three minutes.
const FULL_FROM: f64 = 250.0;

/// How much faster products must be in bf16 to make up for the rounding of what they read, which loops outside of them do.
const WORTH_ROUNDING: f64 = 1.2;

/// What the quickstart grows, and the arithmetic of its products.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Choice {
    /// The model's size.
    pub size: Size,
    /// The faster arithmetic.
    pub precision: Precision,
}

impl Choice {
    /// What a run that was begun in this folder grows, so that it goes on with that.
    pub fn of_run(folder: &Path) -> Option<Self> {
        let recipe: Recipe = document::load(&folder.join("recipe.toml"), &[]).ok()?;
        recipe.stage.iter().find_map(|stage| match &stage.kind {
            Kind::Train(train) => {
                let small = SMALL[0].ends_with(&format!("={}", train.new.as_ref()?.width));
                Some(Self {
                    size: if small { Size::Small } else { Size::Full },
                    precision: train.options.precision,
                })
            }
            _ => None,
        })
    }
}

/// Whether a folder holds a run that is no short quickstart.
pub fn holds_more_than_short(folder: &Path) -> bool {
    let file = folder.join("recipe.toml");
    let is_short = |recipe: Recipe| {
        let mut stages = recipe.stage.iter();
        stages.any(|stage| matches!(&stage.kind, Kind::Train(train) if train.options.steps == Some(SHORT_STEPS)))
    };
    file.exists() && !document::load(&file, &[]).is_ok_and(is_short)
}

/// Products as large as those of a training step, measured for a second in each arithmetic.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Speed {
    /// Billions of operations a second in f32.
    pub f32: f64,
    /// The same in bf16.
    pub bf16: f64,
}

impl Speed {
    /// Measures for two seconds.
    pub fn measure(device: &Device) -> Self {
        let [f32, bf16] = [Precision::F32, Precision::Bf16].map(|p| products(device, p, 1.0));
        Self { f32, bf16 }
    }

    /// The choice for a machine of this speed.
    pub fn choice(self) -> Choice {
        let precision = match self.bf16 > WORTH_ROUNDING * self.f32 {
            true => Precision::Bf16,
            false => Precision::F32,
        };
        let size = match self.f32.max(self.bf16) >= FULL_FROM {
            true => Size::Full,
            false => Size::Small,
        };
        Choice { size, precision }
    }
}

/// Billions of operations a second of a feed-forward layer's product, in the median of all runs within `seconds`.
fn products(device: &Device, precision: Precision, seconds: f64) -> f64 {
    const SIZES: [usize; 3] = [1024, 256, 704];
    let [rows, inputs, outputs] = SIZES;
    let random = |shape| Tensor::<2>::random(shape, Distribution::Default, device);
    let (x, weight) = (random([rows, inputs]), random([outputs, inputs]));
    let (started, mut runs) = (Instant::now(), Vec::new());
    while runs.len() < 3 || started.elapsed().as_secs_f64() < seconds {
        let run = Instant::now();
        linear(x.clone(), weight.clone(), None, precision).into_data();
        runs.push(run.elapsed().as_secs_f64());
    }
    runs.sort_by(f64::total_cmp);
    2.0 * SIZES.iter().product::<usize>() as f64 / runs[runs.len() / 2] * 1e-9
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fast_machines_grow_the_full_size() {
        let choice = |f32, bf16| Speed { f32, bf16 }.choice();
        let of = |size, precision| Choice { size, precision };
        assert_eq!(choice(195.0, 400.0), of(Size::Full, Precision::Bf16));
        assert_eq!(choice(130.0, 90.0), of(Size::Small, Precision::F32));
        assert_eq!(choice(133.0, 135.0), of(Size::Small, Precision::F32));
        assert_eq!(choice(600.0, 90.0), of(Size::Full, Precision::F32));
    }

    #[test]
    fn products_are_measured() {
        assert!(products(&Device::flex(), Precision::F32, 0.0) > 0.0);
    }
}
