use super::*;
use crate::{
    matmul::{How, Matrix, Precision, multiplied},
    testing::numbers,
};

/// The block of eight of the paper's scheme, worked by hand.
#[test]
fn the_worked_example() {
    let weight = [0.12, -0.35, 0.07, 0.0, 0.5, -0.02, 0.21, -0.5];
    let (packed, constants) = quantise::quantise(Code::Nf4, false, &weight);
    assert_eq!(packed, [0xa1, 0x97, 0xf7, 0xc0]);
    assert_eq!(constants, Constants::Single(vec![0.5]));
    let stored = FourBit::of(Code::Nf4, false).quantised(&[1, 8], &weight);
    let found = stored.unwrap().expanded();
    let expected = [
        0.123_056_2,
        -0.348_096_4,
        0.080_465_1,
        0.0,
        0.5,
        0.0,
        0.220_354_9,
        -0.5,
    ];
    for (found, expected) in found.iter().zip(expected) {
        assert!((found - expected).abs() < 1e-6, "{found} {expected}");
    }
    assert!(
        weight
            .iter()
            .zip(&found)
            .all(|(a, b)| (a - b).abs() <= 0.020_001)
    );
}

#[test]
fn the_worked_example_of_constants() {
    let Constants::Double {
        codes,
        constants,
        mean,
    } = Constants::rounded(&[0.05, 0.08, 0.11, 0.20])
    else {
        panic!("they are rounded");
    };
    assert_eq!(codes, [23, 47, 127, 255]);
    assert!((mean - 0.11).abs() < 1e-7 && (constants[0] - 0.09).abs() < 1e-7);
    let map = codes::dynamic_map();
    let restored = codes
        .iter()
        .map(|code| map[usize::from(*code)] * constants[0] + mean);
    for (found, expected) in restored.zip([0.049_742_2, 0.080_117_2, 0.11, 0.20]) {
        assert!((found - expected).abs() < 1e-6, "{found} {expected}");
    }
}

/// Normal numbers, by Box and Muller.
fn normal(count: usize, seed: u64) -> Vec<f32> {
    let even = |seed| {
        numbers(count, seed)
            .into_iter()
            .map(|x| f64::from(x) * 0.5 + 0.5)
    };
    let draw =
        |(a, b): (f64, f64)| (-2.0 * a.max(1e-12).ln()).sqrt() * (std::f64::consts::TAU * b).cos();
    even(seed)
        .zip(even(seed + 1))
        .map(|pair| draw(pair) as f32)
        .collect()
}

/// Relative root mean square of the error.
fn error(values: &[f32], found: &[f32]) -> f64 {
    let square = |x: f32| f64::from(x) * f64::from(x);
    let gap: f64 = values.iter().zip(found).map(|(a, b)| square(a - b)).sum();
    (gap / values.iter().map(|x| square(*x)).sum::<f64>()).sqrt()
}

#[test]
fn errors_on_normal_numbers() {
    let values = normal(1 << 20, 31);
    let mean = values.iter().map(|x| f64::from(*x)).sum::<f64>() / values.len() as f64;
    let variance = values.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>() / values.len() as f64;
    assert!(
        mean.abs() < 0.01 && (variance - 1.0).abs() < 0.01,
        "{mean} {variance}"
    );
    let rounded = |double| {
        let stored = FourBit::of(Code::Nf4, double).quantised(&[1024, 1024], &values);
        error(&values, &stored.unwrap().expanded())
    };
    let (single, double) = (rounded(false), rounded(true));
    assert!((single - 0.092).abs() < 0.001, "{single}");
    assert!(double < 1.01 * single, "{double} {single}");
    let integers: Vec<f32> = values
        .chunks(BLOCK)
        .flat_map(|block| {
            let step = block.iter().fold(0f32, |most, x| most.max(x.abs())) / 7.0;
            block.iter().map(move |x| (x / step).round() * step)
        })
        .collect();
    let integers = error(&values, &integers);
    assert!((integers - 0.108).abs() < 0.001, "{integers}");
}

#[test]
fn zeros_stay_zero_and_a_last_block_has_its_own_constant() {
    for double in [false, true] {
        let format = FourBit::of(Code::Nf4, double);
        assert_eq!(
            format.quantised(&[2, 64], &[0.0; 128]).unwrap().expanded(),
            [0.0; 128]
        );
    }
    let mut values = vec![1.0; 64];
    values.extend([0.25, -0.25, 0.0]);
    let (packed, constants) = quantise::quantise(Code::Nf4, false, &values);
    assert_eq!(packed.len(), 34);
    // Filled up with a zero.
    assert_eq!(packed[33], 0x77);
    assert_eq!(constants, Constants::Single(vec![1.0, 0.25]));
}

/// Rows hold what blocks over the whole weight mean, wherever these begin and end.
#[test]
fn blocks_lie_over_all_rows() {
    for [rows, width] in [
        [3, 64],
        [5, 77],
        [7, 1],
        [300, 100],
        [2, 20_001],
        [130, 192],
    ] {
        let values = normal(rows * width, 40 + width as u64);
        for code in [Code::Nf4, Code::Fp4] {
            for double in [false, true] {
                let format = FourBit::of(code, double);
                let flat = format
                    .quantised(&[1, rows * width], &values)
                    .unwrap()
                    .expanded();
                let weight = format.quantised(&[rows, width], &values).unwrap();
                assert_eq!(
                    weight.expanded(),
                    flat,
                    "{} {rows} x {width}",
                    format.name()
                );
                let (numbers, constants) = quantise::quantise(code, double, &values);
                let constant = |block: usize| match &constants {
                    Constants::Single(constants) => constants[block],
                    Constants::Double {
                        codes,
                        constants,
                        mean,
                    } => {
                        let share = codes::dynamic_map()[usize::from(codes[block])];
                        share * constants[block / GROUP] + mean
                    }
                };
                let value = |i: usize| {
                    let bits = numbers[i / 2] >> (4 * (1 - i % 2)) & 15;
                    code.values()[usize::from(bits)] * constant(i / BLOCK)
                };
                assert!((0..values.len()).all(|i| value(i) == flat[i]));
                let part = weight.part(1..rows).unwrap();
                assert_eq!(part.expanded(), flat[width..]);
            }
        }
    }
}

#[test]
fn rows_expand_from_any_column() {
    let format = FourBit::of(Code::Nf4, true);
    let weight = format.quantised(&[4, 77], &normal(4 * 77, 3)).unwrap();
    let whole = weight.expanded();
    let size = format.row_bytes(77).unwrap();
    for [first, count] in [
        [0, 1],
        [3, 40],
        [31, 46],
        [50, 27],
        [76, 1],
        [5, 0],
        [64, 13],
        [1, 2],
    ] {
        let mut out = vec![9.0; count];
        format.expand(&weight.bytes()[3 * size..], first, &mut out);
        assert_eq!(out, whole[3 * 77 + first..][..count]);
    }
}

#[test]
fn products_have_the_bits_of_the_expanded_weight() {
    for ([outputs, inputs], double) in [([5, 33], true), ([40, 96], false), ([300, 576], true)] {
        let format = FourBit::of(Code::Nf4, double);
        let weight = format
            .quantised(&[outputs, inputs], &normal(outputs * inputs, 6))
            .unwrap();
        let expanded = weight.expanded();
        for rows in [1, 4, 9, 70] {
            let (x, gradient) = (numbers(rows * inputs, 5), numbers(rows * outputs, 6));
            for precision in [Precision::F32, Precision::Bf16] {
                let products = |weight: Matrix<'_>| {
                    let x = Matrix::new(&x, rows, inputs);
                    let gradient = Matrix::new(&gradient, rows, outputs);
                    let how = How::all(precision);
                    [
                        multiplied(x, weight.transposed(), how),
                        multiplied(gradient, weight, how),
                    ]
                };
                let dense = Matrix::new(&expanded, outputs, inputs);
                assert!(products(weight.matrix(0..outputs)) == products(dense));
            }
        }
    }
}

#[test]
fn bytes_a_number() {
    let bits = |double, width: usize| {
        8.0 * FourBit::of(Code::Nf4, double).row_bytes(width).unwrap() as f64 / width as f64
    };
    assert!(bits(true, 576) < 4.36 && bits(true, 4096) < 4.16);
    assert!(bits(false, 576) < 4.56);
}

#[test]
fn what_does_not_fit_is_nothing() {
    let format = FourBit::of(Code::Nf4, true);
    assert!(format.quantised(&[2, 64], &[1.0; 127]).is_none());
    let constants = Constants::Single(vec![1.0; 2]);
    assert!(format.packed(&[2, 64], &[0; 64], &constants).is_none());
    let single = FourBit::of(Code::Nf4, false);
    let weight = single.packed(&[2, 64], &[0; 64], &constants).unwrap();
    assert!(single.packed(&[2, 64], &[0; 63], &constants).is_none());
    assert!(weight.clone().reshaped(vec![1, 2, 64]).is_some());
    assert!(weight.clone().reshaped(vec![128]).is_none() && weight.transposed(0..1).is_none());
    assert!(format.row_bytes(usize::MAX / 2).is_none());
}
