//! AdamW's step on moments that take a byte a number (arXiv 2110.02861).
//!
//! A moment is cut into blocks of [`BLOCK`] numbers; a block keeps its largest magnitude in f32, and of every number the place of
//! the nearest value in a table of 256 (the dynamic tree of that paper, section 2.1, as bitsandbytes makes it): seven decades, each of twice as
//! many values as the one below. The first moment's table has both signs, the second's none. A step restores a block, is AdamW's
//! in f32, and rounds again.

use std::sync::LazyLock;

use burn::{
    backend::Flex,
    tensor::{Device, Tensor},
};

use super::{AdamWStep, CHUNK, step_chunk, whole};
use crate::{
    fused::{self, slice},
    parallel::for_items,
    readback::ReadFloats,
};

/// Numbers of a moment that share a magnitude.
pub const BLOCK: usize = 256;

/// Weight, and the two moments of so many numbers in bytes, each with a magnitude for a block.
#[derive(Debug, Clone)]
pub struct AdamW8BitState {
    /// The weight, `[len]`.
    pub weight: Tensor<1>,
    /// The first moment's places in its table, `len` of them.
    pub first: Vec<u8>,
    /// Its magnitudes, one for a block.
    pub first_scale: Vec<f32>,
    /// The second moment's places in its table, `len` of them.
    pub second: Vec<u8>,
    /// Its magnitudes, one for a block.
    pub second_scale: Vec<f32>,
}

/// The values that a byte may mean, in rising order, and how the nearest one is found.
#[derive(Debug)]
struct Table {
    values: [f32; 256],
    /// What lies halfway between a value and the next.
    halves: [f32; 256],
    /// For the upper half of the bits of a number, the place of the smallest number that has them.
    first: Box<[u8; 1 << 16]>,
}

/// Decades of the tables.
const DECADES: i32 = 7;

/// The values of the dynamic tree, with both signs or none.
fn dynamic_tree(signed: bool) -> [f32; 256] {
    let mut values = vec![0.0, 1.0];
    for decade in 0..DECADES {
        let count = 1usize << (decade + i32::from(!signed));
        let power = 10f64.powi(decade - (DECADES - 1));
        let edge = |i: usize| 0.1 + 0.9 * i as f64 / count as f64;
        for i in 0..count {
            let value = (power * (edge(i) + edge(i + 1)) / 2.0) as f32;
            values.push(value);
            if signed {
                values.push(-value);
            }
        }
    }
    values.sort_by(f32::total_cmp);
    // 2 + 2 (1 + 2 + ... + 64), or 2 + (2 + 4 + ... + 128).
    std::array::from_fn(|i| values[i])
}

impl Table {
    fn new(signed: bool) -> Self {
        let values = dynamic_tree(signed);
        let half = |i: usize| match values.get(i + 1) {
            Some(next) => (values[i] + next) / 2.0,
            None => f32::INFINITY,
        };
        let halves = std::array::from_fn(half);
        let place = |upper: usize| {
            // Of negative numbers the smallest has all lower bits set.
            let lower = if upper >> 15 == 1 { 0xffff } else { 0 };
            let number = f32::from_bits((upper as u32) << 16 | lower);
            let place = halves.partition_point(|half| *half < number);
            place.min(255) as u8
        };
        let first: Vec<u8> = (0..1 << 16).map(place).collect();
        let first = first.into_boxed_slice();
        Self {
            values,
            halves,
            first: first.try_into().unwrap_or_else(|_| Box::new([0; 1 << 16])),
        }
    }

    /// The place of the nearest value, of two that are as near the lower; `number` is within -1 to 1.
    #[inline]
    fn nearest(&self, number: f32) -> u8 {
        let mut place = self.first[(number.to_bits() >> 16) as usize];
        while self.halves[usize::from(place)] < number {
            place += 1;
        }
        place
    }

    /// The numbers of a block.
    fn restore(&self, places: &[u8], scale: f32, numbers: &mut [f32]) {
        for (number, place) in numbers.iter_mut().zip(places) {
            *number = self.values[usize::from(*place)] * scale;
        }
    }

    /// Writes the places of a block's numbers; returns their largest magnitude.
    fn round(&self, numbers: &[f32], places: &mut [u8]) -> f32 {
        let scale = numbers
            .iter()
            .fold(0f32, |most, number| most.max(number.abs()));
        let inverse = match scale > 0.0 {
            true => 1.0 / scale.max(1e-38),
            false => 0.0,
        };
        for (place, number) in places.iter_mut().zip(numbers) {
            *place = self.nearest((number * inverse).clamp(-1.0, 1.0));
        }
        scale
    }
}

static SIGNED: LazyLock<Table> = LazyLock::new(|| Table::new(true));
static UNSIGNED: LazyLock<Table> = LazyLock::new(|| Table::new(false));

/// AdamW with bias correction on moments in bytes; `gradient`: `[len]`. The state changes in place where it has no other owner.
/// Weights of other devices are taken to the host and back.
pub fn adamw_8bit(state: AdamW8BitState, gradient: Tensor<1>, step: AdamWStep) -> AdamW8BitState {
    let device = state.weight.device();
    let is_here = fused::on_host(&state.weight) && fused::on_host(&gradient);
    let to_host = |tensor: Tensor<1>| match is_here {
        true => tensor,
        false => {
            let values = tensor.floats();
            Tensor::from_floats(&values[..], &Device::flex())
        }
    };
    let mut weight = whole(to_host(state.weight));
    let gradient = whole(to_host(gradient));
    let AdamW8BitState {
        mut first,
        mut first_scale,
        mut second,
        mut second_scale,
        ..
    } = state;
    let parts = weight.storage_mut::<f32>().chunks_mut(CHUNK);
    let firsts = first
        .chunks_mut(CHUNK)
        .zip(first_scale.chunks_mut(CHUNK / BLOCK));
    let seconds = second
        .chunks_mut(CHUNK)
        .zip(second_scale.chunks_mut(CHUNK / BLOCK));
    let gradients = slice(&gradient).chunks(CHUNK);
    let all = parts.zip(gradients).zip(firsts).zip(seconds);
    let (signed, unsigned) = (&*SIGNED, &*UNSIGNED);
    for_items(all.collect(), |(((weight, gradient), first), second)| {
        let blocks = weight.chunks_mut(BLOCK).zip(gradient.chunks(BLOCK));
        let firsts = first.0.chunks_mut(BLOCK).zip(first.1);
        let seconds = second.0.chunks_mut(BLOCK).zip(second.1);
        for (((weight, gradient), (first, first_scale)), (second, second_scale)) in
            blocks.zip(firsts).zip(seconds)
        {
            let [mut exact, mut squares] = [[0.0; BLOCK]; 2];
            signed.restore(first, *first_scale, &mut exact);
            unsigned.restore(second, *second_scale, &mut squares);
            let count = weight.len();
            step_chunk(
                weight,
                &mut exact[..count],
                &mut squares[..count],
                gradient,
                &step,
            );
            *first_scale = signed.round(&exact[..count], first);
            *second_scale = unsigned.round(&squares[..count], second);
        }
    });
    let weight = Tensor::from_primitive::<Flex>(weight);
    AdamW8BitState {
        weight: match is_here {
            true => weight,
            false => Tensor::from_floats(&weight.floats()[..], &device),
        },
        first,
        first_scale,
        second,
        second_scale,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::optimiser::{AdamWState, adamw};

    #[test]
    fn the_tables_are_those_of_the_paper() {
        let signed = dynamic_tree(true);
        assert_eq!((signed[127], signed[255]), (0.0, 1.0));
        assert!((signed[0] + 0.992_968_7).abs() < 1e-6);
        // Of the fourth decade's eight values the first, and the lowest of all.
        assert!((signed[128] - 5.5e-7).abs() < 1e-12);
        let unsigned = dynamic_tree(false);
        assert_eq!((unsigned[0], unsigned[255]), (0.0, 1.0));
        assert!((unsigned[254] - 0.996_484_4).abs() < 1e-6);
        for table in [signed, unsigned] {
            assert!(table.windows(2).all(|pair| pair[0] < pair[1]));
        }
    }

    #[test]
    fn the_nearest_value_is_found_for_every_number() {
        for table in [&*SIGNED, &*UNSIGNED] {
            for i in 0..20_001 {
                let number = (i as f32 - 10_000.0) / 10_000.0;
                for number in [number, number * 1e-3, number * 1e-6] {
                    let away = |value: f32| (f64::from(value) - f64::from(number)).abs();
                    let found = away(table.values[usize::from(table.nearest(number))]);
                    let least = table.values.iter().map(|value| away(*value));
                    let least = least.fold(f64::INFINITY, f64::min);
                    // Halfway points are rounded to f32, too.
                    let rounding = f64::from(number.abs() * f32::EPSILON);
                    assert!(found - least <= rounding, "{number} {found} {least}");
                }
            }
        }
    }

    #[test]
    fn the_worked_constants_come_back() {
        // Distances from their mean, and the places that bitsandbytes gives them.
        let mut places = [0; 4];
        let scale = SIGNED.round(&[-0.06, -0.03, 0.0, 0.09], &mut places);
        assert_eq!((scale, places), (0.09, [23, 47, 127, 255]));
        assert!((SIGNED.values[23] + 0.669_531_2).abs() < 1e-6);
    }

    #[test]
    fn a_hundred_steps_stay_beside_those_in_f32() {
        let device = Device::flex();
        let length = BLOCK * 3 + 17;
        let mut plain = AdamWState {
            weight: Tensor::zeros([length], &device),
            first: Tensor::zeros([length], &device),
            second: Tensor::zeros([length], &device),
        };
        let mut small = AdamW8BitState {
            weight: Tensor::zeros([length], &device),
            first: vec![0; length],
            first_scale: vec![0.0; length.div_ceil(BLOCK)],
            second: vec![0; length],
            second_scale: vec![0.0; length.div_ceil(BLOCK)],
        };
        for number in 1..=100 {
            let gradient: Vec<f32> = (0..length)
                .map(|i| ((i * 37 + number * 11) % 101) as f32 / 101.0 - 0.3)
                .collect();
            let gradient = Tensor::<1>::from_floats(&gradient[..], &device);
            let step = AdamWStep {
                learning_rate: 0.01,
                beta1: 0.9,
                beta2: 0.99,
                epsilon: 1e-8,
                weight_decay: 0.0,
                step: number as u64,
                gradient_scale: 1.0,
            };
            plain = adamw(plain, gradient.clone(), step);
            small = adamw_8bit(small, gradient, step);
        }
        let way = plain.weight.clone().abs().mean().into_scalar::<f32>();
        let difference = (plain.weight - small.weight)
            .abs()
            .mean()
            .into_scalar::<f32>();
        assert!(difference < 0.05 * way, "{difference} of {way}");
    }
}
