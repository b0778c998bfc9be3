//! Scaled dot-product attention with grouped key and value heads (arXiv 1706.03762, 2305.13245), in blocks with an online
//! softmax (FlashAttention, arXiv 2205.14135): memory is linear in the sequence.

mod cpu;
mod mask;
pub mod reference;

use burn::tensor::Tensor;

pub use self::mask::{Mask, MaskSpec};
use crate::{fused, linear::Precision};

/// The numbers of an attention.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Options {
    /// Factor on the scores, positive.
    pub scale: f64,
    /// Scores `s` become `softcap * tanh(s / softcap)` after the scale (Gemma 2).
    pub softcap: Option<f64>,
    /// Arithmetic of the products; softmax and sums are f32.
    pub precision: Precision,
}

impl Options {
    /// Plain attention in f32.
    pub fn scaled(scale: f64) -> Self {
        Self {
            scale,
            softcap: None,
            precision: Precision::F32,
        }
    }
}

/// Attends: `softmax(scale * q k^T) v` over the keys that `mask` allows; a query that sees no key gives zeros.
///
/// `query`: `[batch, queries, heads, head_dim]`; `key`: `[batch, keys, kv_heads, head_dim]` with `kv_heads` dividing `heads`;
/// `value`: `[batch, keys, kv_heads, value_dim]`; query head `h` reads key head `h / (heads / kv_heads)`. Returns
/// `[batch, queries, heads, value_dim]`.
///
/// `bias`, `[heads, queries + keys - 1]`, is added to the scores by distance: element `query - key + keys - 1`, counting
/// both from 0. ALiBi and T5's learned positions are such biases; it has a gradient. Memory is linear in the sequence, for
/// the bias too, which is why biases of single pairs are left out.
///
/// ```
/// use burn::tensor::{Device, Tensor};
/// use espalier_kernels::attention::{Mask, MaskSpec, Options, attention};
/// let x = || Tensor::<4>::ones([1, 3, 2, 4], &Device::flex()); // a row of three tokens, two heads of width 4
/// let mask = Mask::new(MaskSpec { batch: 1, queries: 3, keys: 3, causal: true, window: None, segments: None });
/// let mixed = attention(x(), x(), x(), &mask, None, Options::scaled(0.5));
/// assert!((mixed - x()).abs().max().into_scalar::<f32>() < 1e-6);
/// ```
pub fn attention(
    query: Tensor<4>,
    key: Tensor<4>,
    value: Tensor<4>,
    mask: &Mask,
    bias: Option<Tensor<2>>,
    options: Options,
) -> Tensor<4> {
    let flash = || cpu::Flash {
        mask: mask.clone(),
        options,
    };
    match (fused::on_host(&query), bias) {
        (true, None) => fused::three(query, key, value, flash()),
        (true, Some(bias)) => fused::four(query, key, value, bias, cpu::WithBias(flash())),
        (false, bias) => {
            let mask = mask.bias(&query.device());
            reference::attention(query, key, value, mask, bias, None, options)
        }
    }
}

/// As [`attention`], where every head has a further score, `sinks` `[heads]`, that takes its share of the softmax and adds no value: a
/// query may look at nothing (gpt-oss, after arXiv 2309.17453).
pub fn attention_with_sinks(
    query: Tensor<4>,
    key: Tensor<4>,
    value: Tensor<4>,
    mask: &Mask,
    sinks: Tensor<1>,
    options: Options,
) -> Tensor<4> {
    if !fused::on_host(&query) {
        let mask = mask.bias(&query.device());
        return reference::attention(query, key, value, mask, None, Some(sinks), options);
    }
    let flash = cpu::Flash {
        mask: mask.clone(),
        options,
    };
    fused::four(query, key, value, sinks, cpu::WithSinks(flash))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::agree;
    use burn::tensor::Device;
    use proptest::prelude::*;

    #[test]
    fn worked_example() {
        let device = Device::flex();
        let query = Tensor::<4>::from_floats([[[[1.0, 0.0]]]], &device);
        let key = Tensor::<4>::from_floats([[[[1.0, 0.0]], [[0.0, 1.0]]]], &device);
        // The second channel of the values picks the first key's weight out.
        let value = Tensor::<4>::from_floats([[[[10.0, 1.0]], [[20.0, 0.0]]]], &device);
        let mask = Mask::cross(1, 2, &[(0, 2)]);
        let output = attention(
            query,
            key,
            value,
            &mask,
            None,
            Options::scaled(0.5f64.sqrt()),
        );
        let output = output.into_data().try_to_vec::<f32>().unwrap();
        assert!(
            (output[0] - 13.3024).abs() < 1e-4 && (output[1] - 0.66976).abs() < 1e-5,
            "{output:?}"
        );
    }

    #[test]
    fn scores_are_capped_as_in_gemma2() {
        let device = Device::flex();
        // Scores 10, 100 and 0. Biases take away what the cap leaves of them, so that all keys weigh the same.
        let query = Tensor::<4>::from_floats([[[[1.0, 0.0, 0.0]]]], &device);
        let key = Tensor::<4>::from_floats(
            [[[[10.0, 0.0, 0.0]], [[100.0, 0.0, 0.0]], [[0.0, 0.0, 0.0]]]],
            &device,
        );
        let value = Tensor::<2>::eye(3, &device).reshape([1, 3, 1, 3]);
        // By distance, which is least for the last key.
        let bias = Tensor::<2>::from_floats([[0.0, -48.2014, -9.8688]], &device);
        let options = Options {
            softcap: Some(50.0),
            ..Options::scaled(1.0)
        };
        let output = attention(
            query,
            key,
            value,
            &Mask::cross(1, 3, &[(0, 3)]),
            Some(bias),
            options,
        );
        let weights = output.into_data().try_to_vec::<f32>().unwrap();
        assert!(
            weights
                .iter()
                .all(|weight| (*weight - 1.0 / 3.0).abs() < 1e-4),
            "{weights:?}"
        );
    }

    /// The shape of a comparison.
    #[derive(Debug, Clone, Copy)]
    struct Case {
        batch: usize,
        queries: usize,
        past: usize,
        kv_heads: usize,
        group: usize,
        width: usize,
        /// By how many channels values are wider than queries.
        wider: isize,
        causal: bool,
        window: Option<usize>,
        /// Length of packed documents.
        segment: Option<usize>,
        softcap: Option<f64>,
        biased: bool,
        precision: Precision,
    }

    const CASE: Case = Case {
        batch: 1,
        queries: 10,
        past: 0,
        kv_heads: 1,
        group: 1,
        width: 8,
        wider: 0,
        causal: true,
        window: None,
        segment: None,
        softcap: None,
        biased: false,
        precision: Precision::F32,
    };

    /// Compares with the reference in f32.
    fn check(case: Case, tolerance: f32) {
        let Case {
            batch,
            queries,
            kv_heads,
            width,
            causal,
            window,
            ..
        } = case;
        let (keys, heads) = (queries + case.past, kv_heads * case.group);
        let segments: Option<Vec<u32>> = case.segment.map(|length| {
            (0..batch * keys)
                .map(|i| ((i % keys + i / keys) / length) as u32)
                .collect()
        });
        let mask = Mask::new(MaskSpec {
            batch,
            queries,
            keys,
            causal,
            window,
            segments: segments.as_deref(),
        });
        compare(case, [heads, keys], width, &mask, tolerance);
    }

    fn compare(case: Case, [heads, keys]: [usize; 2], width: usize, mask: &Mask, tolerance: f32) {
        let Case {
            batch,
            queries,
            kv_heads,
            ..
        } = case;
        let shapes: [&[usize]; 4] = [
            &[batch, queries, heads, width],
            &[batch, keys, kv_heads, width],
            &[
                batch,
                keys,
                kv_heads,
                width.saturating_add_signed(case.wider).max(1),
            ],
            &[heads, queries + keys - 1],
        ];
        let options = Options {
            scale: 0.7,
            softcap: case.softcap,
            precision: case.precision,
        };
        let plain = Options {
            precision: Precision::F32,
            ..options
        };
        let bias = |t: &[crate::testing::Leaf]| case.biased.then(|| t[3].get());
        agree(
            if case.biased { &shapes } else { &shapes[..3] },
            tolerance,
            |t| attention(t[0].get(), t[1].get(), t[2].get(), mask, bias(t), options).reshape([-1]),
            |t| {
                let mask = mask.bias(&Device::flex());
                let [query, key, value] = [0, 1, 2].map(|i| t[i].get());
                reference::attention(query, key, value, mask, bias(t), None, plain).reshape([-1])
            },
        );
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn agrees_with_the_reference((batch, queries, past) in (1usize..3, 1usize..70, 0usize..9), kv_heads in 1usize..3,
            group in 1usize..4, width in 1usize..40, wider in -20isize..20, causal: bool, window in proptest::option::of(1usize..20),
            segment in proptest::option::of(2usize..15), softcap in proptest::option::of(0.5f64..3.0), biased: bool) {
            let precision = Precision::F32;
            let case = Case { batch, queries, past, kv_heads, group, width, wider, causal, window, segment, softcap, biased, precision };
            check(case, 1e-5);
            // Scores of up to `width` are off by up to 2^-8 of what they sum, and so are their exponents.
            check(Case { precision: Precision::Bf16, ..case }, 0.05 * (width as f32).sqrt());
        }
    }

    #[test]
    fn several_blocks_of_queries_and_keys_agree_with_the_reference() {
        check(
            Case {
                queries: 600,
                ..CASE
            },
            1e-5,
        );
        check(
            Case {
                queries: 300,
                causal: false,
                softcap: Some(1.0),
                biased: true,
                ..CASE
            },
            1e-5,
        );
        check(
            Case {
                batch: 2,
                queries: 280,
                past: 5,
                group: 2,
                width: 4,
                window: Some(100),
                ..CASE
            },
            1e-5,
        );
        check(
            Case {
                queries: 290,
                width: 4,
                wider: 30,
                segment: Some(70),
                ..CASE
            },
            1e-5,
        );
    }

    #[test]
    fn a_sink_takes_its_share() {
        let device = Device::flex();
        let query = Tensor::<4>::from_floats([[[[1.0, 0.0]]]], &device);
        let key = Tensor::<4>::from_floats([[[[0.0, 1.0]], [[0.0, 2.0]]]], &device);
        let value = Tensor::<4>::from_floats([[[[8.0, 4.0]], [[4.0, 0.0]]]], &device);
        // Three scores of zero, of which one adds nothing.
        let mask = Mask::cross(1, 2, &[(0, 2)]);
        let sinks = Tensor::<1>::zeros([1], &device);
        let mixed = attention_with_sinks(query, key, value, &mask, sinks, Options::scaled(1.0));
        let mixed = mixed.into_data().try_to_vec::<f32>().unwrap();
        let near = |found: f32, expected: f32| (found - expected).abs() < 1e-5;
        assert!(
            near(mixed[0], 4.0) && near(mixed[1], 4.0 / 3.0),
            "{mixed:?}"
        );
    }

    #[test]
    fn sinks_agree_with_the_reference() {
        for (queries, past, window, segment) in [
            (3, 20, None, None),
            (1, 0, Some(2), None),
            (70, 5, Some(9), None),
            (600, 0, None, Some(130)),
        ] {
            let (batch, keys, kv_heads, heads, width) = (2, queries + past, 2, 6, 7);
            let segments: Option<Vec<u32>> = segment.map(|length| {
                (0..batch * keys)
                    .map(|i| (i % keys / length) as u32)
                    .collect()
            });
            let mask = Mask::new(MaskSpec {
                batch,
                queries,
                keys,
                causal: true,
                window,
                segments: segments.as_deref(),
            });
            let shapes: [&[usize]; 4] = [
                &[batch, queries, heads, width],
                &[batch, keys, kv_heads, width],
                &[batch, keys, kv_heads, width + 2],
                &[heads],
            ];
            let options = Options::scaled(0.7);
            agree(
                &shapes,
                1e-5,
                |t| {
                    let [query, key, value] = [0, 1, 2].map(|i| t[i].get());
                    attention_with_sinks(query, key, value, &mask, t[3].get(), options)
                        .reshape([-1])
                },
                |t| {
                    let [query, key, value] = [0, 1, 2].map(|i| t[i].get());
                    let mask = mask.bias(&Device::flex());
                    let sinks = Some(t[3].get());
                    reference::attention(query, key, value, mask, None, sinks, options)
                        .reshape([-1])
                },
            );
        }
    }

    #[test]
    fn cross_attention_agrees_with_the_reference() {
        for queries in [3, 50] {
            let case = Case {
                batch: 2,
                queries,
                ..CASE
            };
            compare(
                case,
                [1, 300],
                8,
                &Mask::cross(queries, 300, &[(0, 300), (7, 290)]),
                1e-5,
            );
        }
    }

    #[test]
    fn a_query_that_sees_nothing_gives_zeros_and_no_gradient() {
        for queries in [2, 20] {
            let device = Device::flex();
            let x = || {
                Tensor::<4>::ones([2, queries, 1, 4], &device)
                    .autodiff()
                    .require_grad()
            };
            let (query, key, value) = (x(), x(), x());
            let mask = Mask::cross(queries, queries, &[(0, 0), (0, 1)]);
            let mixed = attention(
                query.clone(),
                key.clone(),
                value.clone(),
                &mask,
                None,
                Options::scaled(1.0),
            );
            let gradients = mixed.clone().sum().backward();
            let values = mixed.into_data().try_into_vec::<f32>().unwrap();
            assert!(
                values[..queries * 4].iter().all(|v| *v == 0.0)
                    && values[queries * 4..].iter().all(|v| *v == 1.0)
            );
            for input in [query, key, value] {
                let gradient = input
                    .grad(&gradients)
                    .unwrap()
                    .into_data()
                    .try_into_vec::<f32>()
                    .unwrap();
                assert!(
                    gradient[..queries * 4].iter().all(|g| *g == 0.0)
                        && gradient.iter().all(|g| g.is_finite())
                );
            }
        }
    }
}
