//! How fast the operators are; run by name with `--ignored --nocapture` on a quiet machine.

use std::{sync::Arc, time::Instant};

use burn::tensor::Tensor;

use super::{Form, Routing, expert_feed_forward, expert_linear, expert_sum};
use crate::{activation::Activation, linear::linear, matmul::Precision, testing::numbers};

const TOKENS: usize = 2048;
const EXPERTS: usize = 8;
const ACTIVE: usize = 2;
const WIDTH: usize = 512;

/// Prints the speed of forward and backward together, the best of several runs on all threads; `elements` of the weights are at
/// work for each token.
fn measure(
    name: &str,
    elements: usize,
    shapes: &[&[usize]],
    operator: impl Fn(&[Tensor<1>]) -> Tensor<2>,
) {
    let tensor = |(i, shape): (usize, &&[usize])| {
        let count = shape.iter().product();
        let flat = Tensor::<1>::from_floats(
            &numbers(count, i as u64 + 1)[..],
            &burn::tensor::Device::flex(),
        );
        flat.autodiff().require_grad()
    };
    let tracked: Vec<Tensor<1>> = shapes.iter().enumerate().map(tensor).collect();
    let seconds = (0..20).map(|_| {
        let start = Instant::now();
        drop(operator(&tracked).sum().backward());
        start.elapsed().as_secs_f64()
    });
    let best = seconds.fold(f64::INFINITY, f64::min);
    println!(
        "{name}: {:.2} ms, {:.0} GFLOP/s",
        best * 1e3,
        6e-9 * (TOKENS * elements) as f64 / best
    );
}

#[test]
#[ignore = "measures speed"]
fn experts_beside_dense_layers() {
    crate::allocator::keep_freed_memory();
    let routing = Arc::new(Routing::top_k(
        &numbers(TOKENS * EXPERTS, 7),
        EXPERTS,
        ACTIVE,
        None,
        None,
    ));
    let (inner, narrow, precision) = (768, 256, Precision::Bf16);
    let form = Form {
        activation: Activation::Silu,
        gated: true,
        precision,
    };
    let (x, w): (&[usize], &[usize]) = (&[TOKENS, WIDTH], &[TOKENS, ACTIVE]);
    let up = [EXPERTS, 2 * inner, WIDTH];
    let down = [EXPERTS, WIDTH, inner];
    let rows = |t: &Tensor<1>| t.clone().reshape([TOKENS, WIDTH]);
    measure(
        "feed-forward experts",
        ACTIVE * 3 * inner * WIDTH,
        &[x, w, &up, &down],
        |t| {
            let weights = t[1].clone().reshape([TOKENS, ACTIVE]);
            expert_feed_forward(
                rows(&t[0]),
                weights,
                t[2].clone().reshape(up),
                t[3].clone().reshape(down),
                &routing,
                form,
                None,
            )
        },
    );
    measure(
        "a dense map of the size of the first",
        ACTIVE * 2 * inner * WIDTH,
        &[x, &[4 * inner, WIDTH]],
        |t| {
            linear(
                rows(&t[0]),
                t[1].clone().reshape([4 * inner, WIDTH]),
                None,
                precision,
            )
        },
    );
    let query = [EXPERTS, narrow, WIDTH];
    measure(
        "query experts",
        ACTIVE * narrow * WIDTH,
        &[x, &query],
        |t| {
            expert_linear(
                rows(&t[0]),
                t[1].clone().reshape(query),
                &routing,
                [1, 4],
                precision,
                None,
            )
        },
    );
    let output = [EXPERTS, WIDTH, narrow];
    measure(
        "output experts",
        ACTIVE * narrow * WIDTH,
        &[&[TOKENS * ACTIVE, narrow], &output, w],
        |t| {
            let x = t[0].clone().reshape([TOKENS * ACTIVE, narrow]);
            expert_sum(
                x,
                t[1].clone().reshape(output),
                t[2].clone().reshape([TOKENS, ACTIVE]),
                &routing,
                4,
                precision,
            )
        },
    );
}
