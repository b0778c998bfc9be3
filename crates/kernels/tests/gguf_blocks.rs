//! GGUF's block formats against the vectors of the `gguf` package (`tests/fixtures/gguf/blocks.txt`), and what must hold of any numbers.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test may fail loudly"
)]

use espalier_kernels::stored::{
    Bf16, F16, Format, Grouped, GroupedParts, Q4_0, Q4_1, Q4K, Q5_0, Q5_1, Q5K, Q6K, Q8_0,
    Quantise, Rounded, RoundedDot, RoundedRow, Stored, quantised_as,
};
use proptest::prelude::*;

const VECTORS: &str = include_str!("../../../tests/fixtures/gguf/blocks.txt");

fn formats() -> [(&'static dyn Quantise, f32, f32); 8] {
    // With the largest error, over the largest number of a block; and by what a scale in f16 is multiplied at most.
    [
        (&Q8_0, 0.5 / 127.0, 127.0),
        (&Q6K, 1.0 / 16.0, 4096.0),
        (&Q5K, 1.0 / 10.0, 1953.0),
        (&Q5_1, 1.0 / 31.0, 31.0),
        (&Q5_0, 1.0 / 15.0, 16.0),
        (&Q4K, 1.0 / 5.0, 945.0),
        (&Q4_1, 1.0 / 15.0, 15.0),
        (&Q4_0, 1.0 / 7.0, 8.0),
    ]
}

fn format(name: &str) -> &'static dyn Quantise {
    let all = formats().map(|(format, ..)| format);
    all.into_iter()
        .find(|format| format.name() == name)
        .unwrap()
}

fn bytes(hexadecimal: &str) -> Vec<u8> {
    let digits = hexadecimal.as_bytes().chunks(2);
    let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap();
    digits.map(byte).collect()
}

fn floats(hexadecimal: &str) -> Vec<f32> {
    let bytes = bytes(hexadecimal);
    let floats = bytes.as_chunks::<4>().0.iter();
    floats.map(|bytes| f32::from_le_bytes(*bytes)).collect()
}

/// Lines of `way format numbers bytes`.
#[test]
fn blocks_are_those_of_the_reference_bit_for_bit() {
    let mut seen = [0, 0];
    for line in VECTORS.lines().filter(|line| !line.starts_with('#')) {
        let [way, name, numbers, block] = line.split(' ').collect::<Vec<_>>()[..] else {
            panic!("{line}")
        };
        let (numbers, block) = (floats(numbers), bytes(block));
        let shape = [1, numbers.len()];
        match way {
            "quantise" => {
                let found = quantised_as(format(name), &shape, &numbers, None).unwrap();
                assert!(found.bytes()[..] == block[..], "{name}");
                seen[0] += 1;
            }
            "expand" => {
                let format: &'static dyn Format = format(name);
                let found = Stored::new(format, shape.to_vec(), block.into()).unwrap();
                let bits =
                    |numbers: &[f32]| numbers.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
                assert!(bits(&found.expanded()) == bits(&numbers), "{name}");
                seen[1] += 1;
            }
            other => panic!("{other}"),
        }
    }
    assert!(seen[0] >= 5 && seen[1] >= 8, "{seen:?}");
}

#[test]
fn the_worked_example() {
    let values: Vec<f32> = (0..32)
        .map(|i| ((7 * i % 32) as f32 - 15.5) / 10.0)
        .collect();
    let four = quantised_as(&Q4_0, &[1, 32], &values, None).unwrap();
    let expected = [
        0x33, 0x32, 0x80, 0xc4, 0xf7, 0x3b, 0x6e, 0xa2, 0xd5, 0x19, 0x4c, 0x8f, 0xb3, 0xf7, 0x2a,
        0x6e, 0x91, 0xd5,
    ];
    let mut bytes = four.bytes().to_vec();
    bytes[..2].reverse();
    assert_eq!(bytes[2..], expected[2..]);
    assert_eq!(bytes[..2], [0x32, 0x33]);
    let eight = quantised_as(&Q8_0, &[1, 32], &values, None).unwrap();
    let quants: Vec<i8> = eight.bytes()[2..10]
        .iter()
        .map(|byte| *byte as i8)
        .collect();
    assert_eq!(eight.bytes()[..2], [0x40, 0x22]);
    assert_eq!(quants, [-127, -70, -12, 45, 102, -102, -45, 12]);
}

/// Numbers with a tail, as weights have.
fn weights(count: usize) -> impl Strategy<Value = Vec<f32>> {
    let number = (-1.0f32..1.0, -1.0f32..1.0).prop_map(|(a, b)| a * b * b.abs() * 3.0);
    proptest::collection::vec(number, count)
}

/// The product of one row, and of five and six of the same, which must be the same to the last bits.
fn one(dot: RoundedDot, left: RoundedRow<'_>, row: &[u8]) -> f32 {
    let mut single = [0.0];
    dot(left, row, row.len(), &mut single);
    for count in [5, 6] {
        let mut several = vec![1.0; count];
        dot(left, &row.repeat(count), row.len(), &mut several);
        for found in several {
            assert!((found - 1.0 - single[0]).abs() <= 2e-6 * (1.0 + single[0].abs()));
        }
    }
    single[0]
}

fn product(left: &[f32], right: &[f32]) -> f64 {
    left.iter()
        .zip(right)
        .map(|(a, b)| f64::from(*a) * f64::from(*b))
        .sum()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn errors_are_bounded_and_rounding_again_loses_little(values in weights(768), power in -20i32..8) {
        let factor = 2f32.powi(power);
        let values: Vec<f32> = values.iter().map(|x| x * factor).collect();
        for (format, bound, multiple) in formats() {
            let stored = quantised_as(format, &[1, 768], &values, None).unwrap();
            let block = format.block()[0];
            for (values, found) in values.chunks(block).zip(stored.expanded().chunks(block)) {
                let largest = values.iter().fold(0f32, |all, x| all.max(x.abs()));
                // What f16 cannot hold of scale and offset is lost besides: half of its smallest step, or of its last bit.
                let bound = largest * (bound * 1.01 + 2e-3) + 2.0 * multiple * 2f32.powi(-25);
                for (value, found) in values.iter().zip(found) {
                    prop_assert!((value - found).abs() <= bound, "{}: {value} {found}, {largest}", format.name());
                }
            }
        }
    }

    #[test]
    fn finer_formats_lose_less(values in weights(2048)) {
        let loss = |format: &'static dyn Quantise| {
            let found = quantised_as(format, &[1, 2048], &values, None).unwrap().expanded();
            values.iter().zip(found).map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>()
        };
        let losses = [&Q8_0 as &'static dyn Quantise, &Q6K, &Q5K, &Q4K, &Q4_0].map(loss);
        prop_assert!(losses.is_sorted(), "{losses:?}");
    }

    /// Where the importance of all numbers but some is little, these are rounded better.
    #[test]
    fn what_matters_is_rounded_better(values in weights(2560)) {
        let importance: Vec<f32> = (0..256).map(|i| if i % 8 == 0 { 1.0 } else { 1e-3 }).collect();
        let loss = |format: &'static dyn Quantise, importance: Option<&[f32]>| {
            let found = quantised_as(format, &[10, 256], &values, importance).unwrap().expanded();
            let gaps = values.iter().zip(found).step_by(8);
            gaps.map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>()
        };
        for format in [&Q4K as &'static dyn Quantise, &Q5K, &Q6K] {
            let (with, without) = (loss(format, Some(&importance)), loss(format, None));
            prop_assert!(with < without, "{}: {with} {without}", format.name());
        }
    }

    /// The product in integers is that with the left factor as it is rounded, to what additions in f32 lose.
    #[test]
    fn products_in_integers_are_exact_but_for_the_rounding(values in weights(1024), left in weights(1024)) {
        let rounded = Rounded::of(&left, 1024);
        let row = rounded.row(0);
        let meant: Vec<f32> = row.quants.iter().enumerate().map(|(i, q)| f32::from(*q) * row.scales[i / 32]).collect();
        for (x, y) in left.chunks(32).zip(meant.chunks(32)) {
            let largest = x.iter().fold(0f32, |all, x| all.max(x.abs()));
            prop_assert!(x.iter().zip(y).all(|(x, y)| (x - y).abs() <= largest / 253.0));
        }
        for (format, ..) in formats() {
            let Some(dot) = format.rounded_dot() else { continue };
            let stored = quantised_as(format, &[1, 1024], &values, None).unwrap();
            let expanded = stored.expanded();
            let size: f64 = meant.iter().zip(&expanded).map(|(a, b)| f64::from(a * b).abs()).sum();
            let (found, expected) = (f64::from(one(dot, row, stored.bytes())), product(&meant, &expanded));
            prop_assert!((found - expected).abs() <= 1e-5 * size + 1e-12, "{}: {found} {expected}", format.name());
        }
    }

    /// The same of numbers in groups, as GPTQ and AWQ leave them.
    #[test]
    fn products_of_groups_are_exact_but_for_the_rounding(
        numbers in proptest::collection::vec(0u8..16, 192),
        zeros in proptest::collection::vec(0u8..17, 3),
        scales in proptest::collection::vec(1u16..0x3000, 3),
        left in weights(192),
    ) {
        let format = Grouped::of(64).unwrap();
        let parts = GroupedParts { numbers: &numbers, scales: &scales, zeros: &zeros };
        let stored = format.packed([1, 192], &parts).unwrap();
        let expanded = stored.expanded();
        for (i, found) in expanded.iter().enumerate() {
            let scale = half::f16::from_bits(scales[i / 64]).to_f32();
            prop_assert_eq!(*found, scale * (f32::from(numbers[i]) - f32::from(zeros[i / 64])));
        }
        let rounded = Rounded::of(&left, 192);
        let row = rounded.row(0);
        let meant: Vec<f32> = row.quants.iter().enumerate().map(|(i, q)| f32::from(*q) * row.scales[i / 32]).collect();
        let size: f64 = meant.iter().zip(&expanded).map(|(a, b)| f64::from(a * b).abs()).sum();
        let dot = format.rounded_dot().unwrap();
        let (found, expected) = (f64::from(one(dot, row, stored.bytes())), product(&meant, &expanded));
        prop_assert!((found - expected).abs() <= 1e-5 * size + 1e-12, "{found} {expected}");
        let mut some = [0.0; 40];
        Format::expand(format, stored.bytes(), 50, &mut some);
        prop_assert_eq!(&some[..], &expanded[50..90]);
    }

    #[test]
    fn any_bytes_expand(bytes in proptest::collection::vec(any::<u8>(), 2 * 210)) {
        for (format, ..) in formats() {
            let [numbers, size] = format.block();
            let count = bytes.len() / size;
            let stored = Stored::new(format as &'static dyn Format, vec![count, numbers], bytes[..count * size].to_vec().into());
            prop_assert_eq!(stored.unwrap().expanded().len(), count * numbers);
        }
    }
}

#[test]
fn rows_that_are_not_whole_blocks_are_refused() {
    for (format, ..) in formats() {
        assert!(quantised_as(format, &[1, 48], &[0.0; 48], None).is_none());
        let width = format.block()[0];
        let zeros = vec![0.0; width];
        assert!(quantised_as(format, &[2, width], &zeros, None).is_none());
        assert!(quantised_as(format, &[1, width], &zeros, Some(&[1.0])).is_none());
        let stored = quantised_as(format, &[1, width], &zeros, None).unwrap();
        assert!(stored.expanded().iter().all(|x| *x == 0.0));
    }
    let half = quantised_as(&F16, &[1, 3], &[1.0, -2.0, 0.5], None).unwrap();
    assert_eq!(half.expanded(), [1.0, -2.0, 0.5]);
    assert_eq!(
        quantised_as(&Bf16, &[1, 1], &[1.003_906_3], None)
            .unwrap()
            .expanded(),
        [1.0]
    );
}

#[test]
fn rows_change_places() {
    let values: Vec<f32> = (0..96).map(|i| i as f32 - 40.0).collect();
    let stored = quantised_as(&Q8_0, &[3, 32], &values, None).unwrap();
    let turned = stored.reordered(|row| 2 - row).unwrap();
    assert_eq!(turned.expanded()[..32], stored.expanded()[64..]);
    assert!(stored.reordered(|row| row + 1).is_none());
}
