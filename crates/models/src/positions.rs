//! Absolute positions: vectors that are added to the embedded tokens, learned or made of sines and cosines
//! (arXiv 1706.03762, section 3.5).

use std::collections::BTreeSet;

use burn::tensor::{Device, Tensor, TensorData};
use espalier_kernels::embedding::embedding;

use crate::{
    Error, Result,
    checkpoint::Checkpoint,
    families::Family,
    layers::Builder,
    parameter::{Parameter, parameters},
    source::{Initial, stored_name},
    spec::{EncoderSpec, ModelSpec, PositionSpec},
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
        let initial = Initial::Normal(builder.deviation);
        let table = spec
            .table_rows()
            .map(|rows| {
                builder.weight(
                    format!("{prefix}positions.weight"),
                    vec![rows, width],
                    initial,
                )
            })
            .transpose()?;
        let table = match spec {
            PositionSpec::Fixed { .. } => table.map(Parameter::fixed),
            _ => table,
        };
        Ok(Self { spec, width, table })
    }

    /// The vectors of `positions` `[batch * time]`, where `ids` stand: `[batch, time, width]`.
    ///
    /// # Errors
    /// When a position is outside the table.
    pub fn forward(
        &self,
        positions: &[u32],
        ids: &[u32],
        [batch, time]: [usize; 2],
        device: &Device,
    ) -> Result<Tensor<3>> {
        let behind = |padding| behind_padding(positions, ids, time, padding);
        let vectors = match self.spec {
            PositionSpec::Learned { count, offset } => {
                let rows = positions.iter().map(|p| p.saturating_add(offset as u32));
                self.rows(&rows.collect::<Vec<_>>(), count, offset)?
            }
            PositionSpec::Fixed { count } => self.rows(positions, count, 0)?,
            PositionSpec::LearnedBehindPadding { count, padding } => {
                self.rows(&behind(padding), count, padding as usize + 1)?
            }
            PositionSpec::Sinusoidal { interleaved } => {
                let vector = |p: u32| sinusoid(p, self.width, interleaved);
                computed(positions, self.width, vector, device)
            }
            PositionSpec::SinusoidalBehindPadding { padding } => {
                let vector = |p: u32| match p == padding {
                    true => vec![0.0; self.width],
                    false => bounded_sinusoid(p, self.width),
                };
                computed(&behind(padding), self.width, vector, device)
            }
        };
        Ok(vectors.reshape([batch, time, self.width]))
    }

    /// `rows` of the table, of which the first `offset` stand before position 0.
    fn rows(&self, rows: &[u32], count: usize, offset: usize) -> Result<Tensor<2>> {
        let Some(table) = &self.table else {
            return Err(Error::Invalid(
                "a model without its table of positions".into(),
            ));
        };
        if let Some(row) = rows.iter().find(|row| **row as usize >= count + offset) {
            let position = *row as usize - offset;
            let reason = format!("position {position} is outside the model's {count} positions");
            return Err(Error::Invalid(format!("{reason}; shorten the input")));
        }
        Ok(embedding(table.weight(), rows))
    }
}

/// The vectors of `positions`, `[positions, width]`. Rows of a batch have the same ones: each is computed once.
fn computed(
    positions: &[u32],
    width: usize,
    vector: impl Fn(u32) -> Vec<f32>,
    device: &Device,
) -> Tensor<2> {
    let distinct: Vec<u32> = BTreeSet::from_iter(positions.iter().copied())
        .into_iter()
        .collect();
    let rows: Vec<u32> = positions
        .iter()
        .map(|p| distinct.partition_point(|known| known < p) as u32)
        .collect();
    let values: Vec<f32> = distinct.iter().flat_map(|p| vector(*p)).collect();
    let values = TensorData::new(values, [distinct.len(), width]);
    embedding(
        Tensor::<2>::from_data(values, &device.clone().inner()),
        &rows,
    )
}

/// Positions counted from behind the number of the padding token, which itself stands where its number says and is not counted.
fn behind_padding(positions: &[u32], ids: &[u32], time: usize, padding: u32) -> Vec<u32> {
    let row = |(positions, ids): (&[u32], &[u32])| -> Vec<u32> {
        let mut skipped = 0;
        let place = |(position, id): (&u32, &u32)| {
            if *position == 0 {
                skipped = 0;
            }
            if *id == padding {
                skipped += 1;
                return padding;
            }
            padding
                .saturating_add(1)
                .saturating_add(position.saturating_sub(skipped))
        };
        positions.iter().zip(ids).map(place).collect()
    };
    let time = time.max(1);
    positions
        .chunks(time)
        .zip(ids.chunks(time))
        .flat_map(row)
        .collect()
}

/// Sines, then cosines, of `position` times `10000^(-i / (width / 2 - 1))`, `[width]`; of an odd width the last is 0.
fn bounded_sinusoid(position: u32, width: usize) -> Vec<f32> {
    let half = width / 2;
    // In f32, as the reference rounds it.
    let step = (10_000f64.ln() / half.saturating_sub(1).max(1) as f64) as f32;
    let angle = |i: usize| position as f32 * (-step * i as f32).exp();
    let (sines, cosines) = (
        (0..half).map(|i| angle(i).sin()),
        (0..half).map(|i| angle(i).cos()),
    );
    let rest = std::iter::repeat_n(0.0, width - 2 * half);
    sines.chain(cosines).chain(rest).collect()
}

/// How far a file's sines and cosines may be from those of today: further than halves round.
const COMPUTED_GAP: f32 = 0.01;

/// Takes a file's tables of sines and cosines, which are computed elsewhere, as they are where they hold other numbers.
///
/// # Errors
/// When one cannot be read.
pub(crate) fn settle(spec: &mut ModelSpec, family: &Family, checkpoint: &Checkpoint) -> Result<()> {
    let other = |ours: &str, positions: Option<PositionSpec>| -> Result<Option<PositionSpec>> {
        let Some(PositionSpec::Sinusoidal { interleaved }) = positions else {
            return Ok(positions);
        };
        match other_table(spec, family, checkpoint, ours, interleaved)? {
            Some(count) => Ok(Some(PositionSpec::Fixed { count })),
            None => Ok(positions),
        }
    };
    let decoders = other("positions.weight", spec.positions)?;
    let encoders = match &spec.encoder {
        Some(encoder) => other("encoder.positions.weight", encoder.positions)?,
        None => None,
    };
    spec.positions = decoders;
    if let Some(encoder) = &mut spec.encoder {
        encoder.positions = encoders;
    }
    Ok(())
}

/// The rows of the file's table of this parameter of ours, where it has one of other numbers than sines and cosines.
fn other_table(
    spec: &ModelSpec,
    family: &Family,
    checkpoint: &Checkpoint,
    ours: &str,
    interleaved: bool,
) -> Result<Option<usize>> {
    let fixed = Some(PositionSpec::Fixed { count: 1 });
    let encoder = spec.encoder.clone().map(|encoder| EncoderSpec {
        positions: fixed,
        ..encoder
    });
    let with_tables = ModelSpec {
        positions: fixed,
        encoder,
        ..spec.clone()
    };
    let entries = (family.tensors)(&with_tables);
    let entry = entries
        .iter()
        .find(|entry| entry.parts.iter().any(|p| p == ours));
    let stored = entry.and_then(|entry| stored_name(checkpoint, family.prefix, &entry.name));
    let Some(name) = stored else {
        return Ok(None);
    };
    let table = checkpoint.read_f32(&name, None)?;
    let rows = table.chunks(spec.width.max(1));
    let count = rows.len();
    let far = |(a, b): (&f32, &f32)| (a - b).abs() > COMPUTED_GAP;
    let differs = |(position, row): (usize, &[f32])| {
        let computed = sinusoid(position as u32, row.len(), interleaved);
        row.iter().zip(&computed).any(far)
    };
    Ok(rows.enumerate().any(differs).then_some(count))
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
    fn padding_is_not_counted() {
        let (positions, ids) = ([0, 1, 2, 3, 0, 1, 0, 1], [5, 1, 6, 7, 1, 1, 8, 9]);
        let expected = [2, 1, 3, 4, 1, 1, 2, 3];
        assert_eq!(behind_padding(&positions, &ids, 8, 1), expected);
        // Rows count for themselves.
        assert_eq!(
            behind_padding(&[0, 1, 0, 1], &[1, 4, 4, 1], 2, 1),
            [1, 2, 2, 1]
        );
    }

    #[test]
    fn the_longest_wavelength_is_ten_thousand_times_the_shortest() {
        let found = bounded_sinusoid(3, 6);
        let angles = [3.0f64, 0.03, 0.0003];
        let expected = angles.map(f64::sin).into_iter().chain(angles.map(f64::cos));
        for (found, expected) in found.iter().zip(expected) {
            assert!(
                (f64::from(*found) - expected).abs() < 1e-6,
                "{found} against {expected}"
            );
        }
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
