//! The layers that sentence-transformers puts behind the pooling: a linear map with an activation, a norm.

use std::path::Path;

use espalier_models::checkpoint::Checkpoint;
use serde_json::{Map, Value};

use super::folder::wrong;
use crate::Result;

/// What follows a linear map.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Activation {
    Identity,
    Tanh,
    Relu,
    Sigmoid,
    Gelu,
    Silu,
}

/// The activations by the name of their class in PyTorch.
const ACTIVATIONS: [(&str, Activation); 6] = [
    ("Identity", Activation::Identity),
    ("Tanh", Activation::Tanh),
    ("ReLU", Activation::Relu),
    ("Sigmoid", Activation::Sigmoid),
    ("GELU", Activation::Gelu),
    ("SiLU", Activation::Silu),
];

impl Activation {
    fn apply(self, x: f32) -> f32 {
        match self {
            Self::Identity => x,
            Self::Tanh => x.tanh(),
            Self::Relu => x.max(0.0),
            Self::Sigmoid => 1.0 / (1.0 + (-x).exp()),
            Self::Gelu => {
                0.5 * x * (1.0 + error_function(f64::from(x) / std::f64::consts::SQRT_2) as f32)
            }
            Self::Silu => x / (1.0 + (-x).exp()),
        }
    }
}

/// The error function by its series, and by the continued fraction of its complement where that converges slowly.
fn error_function(x: f64) -> f64 {
    if x.abs() < 2.5 {
        let (mut term, mut sum) = (x, x);
        for n in 1..60 {
            let n = f64::from(n);
            term *= -x * x / n;
            sum += term / (2.0 * n + 1.0);
        }
        return sum * std::f64::consts::FRAC_2_SQRT_PI;
    }
    let a = x.abs();
    let fraction = (1..60)
        .rev()
        .fold(a, |below, n| a + f64::from(n) / 2.0 / below);
    (1.0 - (-a * a).exp() / fraction * std::f64::consts::FRAC_2_SQRT_PI / 2.0).copysign(x)
}

/// A linear map with what follows it.
#[derive(Debug, Clone)]
pub(super) struct Dense {
    weight: Matrix,
    bias: Vec<f32>,
    activation: Activation,
    /// What is added to the outcome: the input, or a map of it where the sizes differ.
    residual: Option<Option<Matrix>>,
}

/// `[out, in]`, row by row.
#[derive(Debug, Clone)]
struct Matrix {
    inputs: usize,
    values: Vec<f32>,
}

impl Matrix {
    fn read(checkpoint: &Checkpoint, name: &str, inputs: usize, outputs: usize) -> Result<Self> {
        let values = tensor(checkpoint, name, &[outputs, inputs])?;
        Ok(Self { inputs, values })
    }

    fn apply(&self, x: &[f32]) -> Vec<f32> {
        let dot = |row: &[f32]| {
            row.iter()
                .zip(x)
                .map(|(w, x)| f64::from(*w) * f64::from(*x))
                .sum::<f64>() as f32
        };
        self.values.chunks(self.inputs).map(dot).collect()
    }
}

fn tensor(checkpoint: &Checkpoint, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
    let Some(info) = checkpoint.info(name) else {
        return Err(wrong(
            checkpoint.folder(),
            format!("has no tensor `{name}`"),
        ));
    };
    match info.shape == shape {
        true => Ok(checkpoint.read_f32(name, None)?),
        false => Err(wrong(
            checkpoint.folder(),
            format!(
                "`{name}` has the shape {:?}; its config.json says {shape:?}",
                info.shape
            ),
        )),
    }
}

fn size(path: &Path, config: &Map<String, Value>, key: &str) -> Result<usize> {
    let size = config
        .get(key)
        .and_then(Value::as_u64)
        .and_then(|size| usize::try_from(size).ok());
    size.filter(|size| (1..1 << 20).contains(size))
        .ok_or_else(|| wrong(path, format!("`{key}` is missing or no size")))
}

impl Dense {
    /// Reads the folder of such a module.
    pub(super) fn read(folder: &Path, config: &Map<String, Value>) -> Result<Self> {
        let (inputs, outputs) = (
            size(folder, config, "in_features")?,
            size(folder, config, "out_features")?,
        );
        let flag = |key, usual| config.get(key).and_then(Value::as_bool).unwrap_or(usual);
        let named = config
            .get("activation_function")
            .and_then(Value::as_str)
            .unwrap_or("Tanh");
        let short = named.rsplit('.').next().unwrap_or(named);
        let activation = ACTIVATIONS.iter().find(|(name, _)| *name == short);
        let activation = activation
            .map(|(_, activation)| *activation)
            .ok_or_else(|| {
                let known: Vec<&str> = ACTIVATIONS.iter().map(|(name, _)| *name).collect();
                wrong(
                    folder,
                    format!(
                        "unknown `activation_function` `{named}`; known are {}",
                        known.join(", ")
                    ),
                )
            })?;
        for key in ["module_input_name", "module_output_name"] {
            let name = config
                .get(key)
                .and_then(Value::as_str)
                .unwrap_or("sentence_embedding");
            if name != "sentence_embedding" {
                return Err(wrong(
                    folder,
                    format!("`{key}` is `{name}`; only `sentence_embedding` is computed"),
                ));
            }
        }
        let weights = Checkpoint::open(folder)?;
        let residual = flag("use_residual", false).then(|| {
            let map = (inputs != outputs)
                .then(|| Matrix::read(&weights, "residual.weight", inputs, outputs));
            map.transpose()
        });
        Ok(Self {
            weight: Matrix::read(&weights, "linear.weight", inputs, outputs)?,
            bias: match flag("bias", true) {
                true => tensor(&weights, "linear.bias", &[outputs])?,
                false => vec![0.0; outputs],
            },
            activation,
            residual: residual.transpose()?,
        })
    }

    /// The size of what it takes.
    pub(super) fn inputs(&self) -> usize {
        self.weight.inputs
    }

    /// The size of what it gives.
    pub(super) fn outputs(&self) -> usize {
        self.bias.len()
    }

    pub(super) fn apply(&self, x: &[f32]) -> Vec<f32> {
        let linear = self.weight.apply(x);
        let mut out: Vec<f32> = linear
            .iter()
            .zip(&self.bias)
            .map(|(y, b)| self.activation.apply(y + b))
            .collect();
        let residual = self
            .residual
            .as_ref()
            .map(|map| map.as_ref().map_or_else(|| x.to_vec(), |map| map.apply(x)));
        for (y, r) in out.iter_mut().zip(residual.into_iter().flatten()) {
            *y += r;
        }
        out
    }
}

/// Layer normalisation of a vector, with PyTorch's usual epsilon.
#[derive(Debug, Clone)]
pub(super) struct Norm {
    weight: Vec<f32>,
    bias: Vec<f32>,
}

impl Norm {
    /// Reads the folder of such a module.
    pub(super) fn read(folder: &Path, config: &Map<String, Value>) -> Result<Self> {
        let width = size(folder, config, "dimension")?;
        let weights = Checkpoint::open(folder)?;
        Ok(Self {
            weight: tensor(&weights, "norm.weight", &[width])?,
            bias: tensor(&weights, "norm.bias", &[width])?,
        })
    }

    /// The size of what it takes and gives.
    pub(super) fn width(&self) -> usize {
        self.weight.len()
    }

    pub(super) fn apply(&self, x: &[f32]) -> Vec<f32> {
        let count = x.len() as f64;
        let mean = x.iter().map(|x| f64::from(*x)).sum::<f64>() / count;
        let variance = x
            .iter()
            .map(|x| (f64::from(*x) - mean).powi(2))
            .sum::<f64>()
            / count;
        let scale = (variance + 1e-5).sqrt();
        let one =
            |((x, w), b): ((&f32, &f32), &f32)| ((f64::from(*x) - mean) / scale) as f32 * w + b;
        x.iter()
            .zip(&self.weight)
            .zip(&self.bias)
            .map(one)
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_error_function_is_exact() {
        for (x, expected) in [
            (0.0, 0.0),
            (0.5, 0.520_499_877_813_046_5),
            (-1.0, -0.842_700_792_949_714_9),
            (2.4, 0.999_311_486_103_354_9),
            (2.6, 0.999_763_965_583_470_6),
            (-5.0, -0.999_999_999_998_462_5),
        ] {
            assert!(
                (error_function(x) - expected).abs() < 1e-12,
                "{x}: {}",
                error_function(x)
            );
        }
    }

    #[test]
    fn activations_have_their_values() {
        let at_one = |activation: Activation| activation.apply(1.0);
        assert!((at_one(Activation::Gelu) - 0.841_344_7).abs() < 1e-6);
        assert!((at_one(Activation::Silu) - 0.731_058_6).abs() < 1e-6);
        assert!((at_one(Activation::Sigmoid) - 0.731_058_6).abs() < 1e-6);
        assert_eq!(
            (
                Activation::Relu.apply(-2.0),
                Activation::Identity.apply(-2.0)
            ),
            (0.0, -2.0)
        );
    }
}
