//! Absolute positions: vectors that are added to the embedded tokens, learned or made of sines and cosines
//! (arXiv 1706.03762, section 3.5).

use std::collections::BTreeSet;

use burn::tensor::{Device, Tensor, TensorData};
use espalier_kernels::embedding::embedding;

use crate::{
    Error, Result,
    layers::Builder,
    parameter::{Parameter, parameters},
    source::Initial,
    spec::PositionSpec,
};

/// The positions of a stack.
#[derive(Debug, Clone)]
pub struct Positions {
    spec: PositionSpec,
    width: usize,
    table: Option<Parameter>,
}

parameters!(Positions: table);

impl Positions {
    /// Builds `{prefix}positions.weight`, where there is a table.
    ///
    /// # Errors
    /// When the source lacks a weight.
    pub fn build(
        builder: &mut Builder,
        prefix: &str,
        width: usize,
        spec: PositionSpec,
    ) -> Result<Self> {
        let table = match spec {
            PositionSpec::Sinusoidal { .. } => None,
            PositionSpec::Learned { count, offset } => {
                let (shape, initial) = (
                    vec![count + offset, width],
                    Initial::Normal(builder.deviation),
                );
                Some(builder.weight(format!("{prefix}positions.weight"), shape, initial)?)
            }
        };
        Ok(Self { spec, width, table })
    }

    /// The vectors of `positions` `[batch * time]`: `[batch, time, width]`.
    ///
    /// # Errors
    /// When a position is outside the table.
    pub fn forward(
        &self,
        positions: &[u32],
        [batch, time]: [usize; 2],
        device: &Device,
    ) -> Result<Tensor<3>> {
        let shape = [batch, time, self.width];
        match (self.spec, &self.table) {
            (PositionSpec::Learned { count, offset }, Some(table)) => {
                if let Some(p) = positions.iter().find(|p| **p as usize >= count) {
                    let reason =
                        format!("position {p} is outside the model's {count} learned positions");
                    return Err(Error::Invalid(format!("{reason}; shorten the input")));
                }
                let rows: Vec<u32> = positions.iter().map(|p| p + offset as u32).collect();
                Ok(embedding(table.weight(), &rows).reshape(shape))
            }
            (PositionSpec::Sinusoidal { interleaved }, _) => {
                // Rows of a batch have the same positions: each is computed once.
                let distinct: Vec<u32> = BTreeSet::from_iter(positions.iter().copied())
                    .into_iter()
                    .collect();
                let rows: Vec<u32> = positions
                    .iter()
                    .map(|p| distinct.partition_point(|known| known < p) as u32)
                    .collect();
                let values: Vec<f32> = distinct
                    .iter()
                    .flat_map(|p| sinusoid(*p, self.width, interleaved))
                    .collect();
                let values = TensorData::new(values, [distinct.len(), self.width]);
                Ok(
                    embedding(Tensor::from_data(values, &device.clone().inner()), &rows)
                        .reshape(shape),
                )
            }
            (PositionSpec::Learned { .. }, None) => Err(Error::Invalid(
                "a model without its table of positions".into(),
            )),
        }
    }
}

/// Sines and cosines of `position` times `10000^(-2i / width)`, `[width]`: taking turns, or all sines first.
fn sinusoid(position: u32, width: usize, interleaved: bool) -> Vec<f32> {
    let angle = |i: usize| f64::from(position) * 10_000f64.powf(-2.0 * i as f64 / width as f64);
    let sines = width.div_ceil(2);
    let channel = |channel: usize| match interleaved {
        true if channel.is_multiple_of(2) => angle(channel / 2).sin(),
        true => angle(channel / 2).cos(),
        false if channel < sines => angle(channel).sin(),
        false => angle(channel - sines).cos(),
    };
    (0..width).map(|c| channel(c) as f32).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_of_the_reference_library_and_of_the_paper() {
        let halves = sinusoid(1, 6, false);
        for (found, expected) in halves
            .iter()
            .zip([0.841471, 0.046399, 0.002154, 0.540302, 0.998923, 0.999998])
        {
            assert!(
                (found - expected).abs() < 1e-6,
                "{found} against {expected}"
            );
        }
        assert_eq!(
            sinusoid(1, 6, true),
            [
                halves[0], halves[3], halves[1], halves[4], halves[2], halves[5]
            ]
        );
    }

    #[test]
    fn products_depend_on_the_distance_alone() {
        let product = |p: u32, q: u32| -> f32 {
            sinusoid(p, 32, true)
                .iter()
                .zip(sinusoid(q, 32, true))
                .map(|(a, b)| a * b)
                .sum()
        };
        assert!((product(3, 10) - product(40, 47)).abs() < 1e-4);
    }
}
