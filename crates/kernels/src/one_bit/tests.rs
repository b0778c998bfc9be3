use super::*;
use crate::testing::{agree, evaluate, numbers};
use burn::tensor::{Device, TensorData};
use proptest::prelude::*;

const WEIGHT: [f32; 8] = [0.9, -0.1, 0.3, -1.2, 0.05, 0.6, -0.4, 0.02];

fn matrix(values: &[f32], rows: usize) -> Tensor<2> {
    let data = TensorData::new(values.to_vec(), [rows, values.len() / rows.max(1)]);
    Tensor::from_data(data, &Device::flex())
}

fn values<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    tensor.into_data().try_into_vec().unwrap()
}

/// The worked example: x is `[32, -64, 16, 127] / 63.5` and the integer sums are -79 and -80.
#[test]
fn a_map_by_hand() {
    let y = bit_linear(
        matrix(&[0.5, -1.0, 0.25, 2.0], 1),
        matrix(&WEIGHT, 2),
        WeightBits::Ternary,
        Precision::F32,
    );
    let scale = 0.44625 / 63.5;
    for (y, sum) in values(y).iter().zip([-79.0, -80.0]) {
        assert!((y - sum * scale).abs() < 1e-6, "{y}");
    }
}

#[test]
fn a_binary_weight_by_hand() {
    let packed = WeightBits::Binary.packed([2, 4], &WEIGHT).unwrap();
    let signs = [1.0, -1.0, 1.0, -1.0, 1.0, 1.0, -1.0, -1.0];
    for (found, sign) in packed.expanded().iter().zip(signs) {
        assert!((found - sign * 0.44625).abs() < 1e-6, "{found}");
    }
}

/// The integer product, by the definition.
fn in_integers(x: &[f32], weight: &[f32], inputs: usize, bits: WeightBits) -> Vec<i32> {
    let units = rounding::weight(bits, weight).0;
    let rows = rounding::rows(x, inputs).values;
    let dot = |row: &[f32], units: &[f32]| {
        let products = row.iter().zip(units);
        products.map(|(x, unit)| *x as i32 * *unit as i32).sum()
    };
    rows.chunks_exact(inputs)
        .flat_map(|row| units.chunks_exact(inputs).map(move |units| dot(row, units)))
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Packed and dense products are the same whole numbers times the same scales, with few rows and with many.
    #[test]
    fn packed_and_dense_products_are_equal_in_every_bit(
        rows in 1usize..40, inputs in 1usize..200, outputs in 1usize..150, seed in 0u64..1000, binary: bool
    ) {
        let bits = if binary { WeightBits::Binary } else { WeightBits::Ternary };
        let (x, weight) = (numbers(rows * inputs, seed + 1), numbers(outputs * inputs, seed + 2));
        let packed = bits.packed([outputs, inputs], &weight).unwrap();
        let found = values(packed_linear(matrix(&x, rows), &packed, Precision::F32));
        let dense = values(bit_linear(matrix(&x, rows), matrix(&weight, outputs), bits, Precision::F32));
        prop_assert!(found.iter().zip(&dense).all(|(a, b)| a.to_bits() == b.to_bits()));
        let (scale, scales) = (rounding::weight(bits, &weight).1, rounding::rows(&x, inputs).scales);
        for (i, sum) in in_integers(&x, &weight, inputs, bits).into_iter().enumerate() {
            prop_assert_eq!(found[i], sum as f32 * (scale / scales[i / outputs]));
        }
    }

    #[test]
    fn agrees_with_the_reference(rows in 1usize..20, inputs in 1usize..70, outputs in 1usize..50) {
        let shapes: [&[usize]; 2] = [&[2, rows, inputs], &[outputs, inputs]];
        for bits in [WeightBits::Ternary, WeightBits::Binary] {
            agree(
                &shapes,
                2e-5,
                |t| bit_linear(t[0].get::<3>(), t[1].get(), bits, Precision::F32).reshape([-1]),
                |t| reference::bit_linear(t[0].get::<3>(), t[1].get(), bits).reshape([-1]),
            );
        }
    }
}

/// Gradients of the input reach what lies below a packed weight, as they do through the dense one.
#[test]
fn inputs_of_packed_weights_have_the_gradients_of_dense_ones() {
    let weight = numbers(30 * 70, 5);
    let packed = WeightBits::Ternary.packed([30, 70], &weight).unwrap();
    let shapes: [&[usize]; 1] = [&[4, 70]];
    let found = evaluate(&shapes, &|t| {
        packed_linear(t[0].get::<2>(), &packed, Precision::F32).reshape([-1])
    });
    let dense = evaluate(&shapes, &|t| {
        let weight = matrix(&weight, 30);
        bit_linear(t[0].get::<2>(), weight, WeightBits::Ternary, Precision::F32).reshape([-1])
    });
    assert_eq!(found[0], dense[0]);
    for (a, b) in found[1].iter().zip(&dense[1]) {
        assert!((a - b).abs() < 1e-5, "{a} against {b}");
    }
}

#[test]
fn what_is_no_number_stays_none() {
    let weight = WeightBits::Ternary.packed([2, 4], &WEIGHT).unwrap();
    for odd in [f32::NAN, f32::INFINITY] {
        let y = packed_linear(matrix(&[1.0, odd, 0.0, 2.0], 1), &weight, Precision::F32);
        assert!(values(y).iter().all(|y| y.is_nan()));
    }
    let zeros = packed_linear(matrix(&[0.0; 4], 1), &weight, Precision::F32);
    assert_eq!(values(zeros), [0.0, 0.0]);
}
