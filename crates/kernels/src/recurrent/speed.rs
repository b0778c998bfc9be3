//! How long the operators take; run by name with `--ignored --nocapture` on a quiet machine.

use std::time::Instant;

use burn::tensor::Tensor;

use super::{
    causal_convolution::causal_convolution,
    linear_scan::linear_scan,
    rg_lru::{RgLru, rg_lru},
    s4d::{S4d, s4d, s4d_by_fourier},
    selective_scan::{SelectiveScan, selective_scan},
    ssd::{Ssd, ssd},
    testing::tensor,
    wkv4::{Wkv4, wkv4},
    wkv6::{Wkv6, wkv6},
    wkv7::{Wkv7, wkv7},
};

/// Sequences and steps of a measurement.
const BATCH: usize = 4;
const TIME: usize = 1024;

/// Prints the nanoseconds that forward, and forward and backward together, take for each of `elements` numbers, the best
/// of several runs on all threads.
fn measure(
    name: &str,
    elements: usize,
    shapes: &[&[usize]],
    operator: impl Fn(&[Tensor<1>]) -> Tensor<3>,
) {
    let flat: Vec<Tensor<1>> = shapes
        .iter()
        .enumerate()
        .map(|(i, shape)| tensor([shape.iter().product()], i as u64 + 1))
        .collect();
    let best = |run: &dyn Fn()| {
        let seconds = (0..10).map(|_| {
            let start = Instant::now();
            run();
            start.elapsed().as_secs_f64()
        });
        seconds.fold(f64::INFINITY, f64::min)
    };
    let forward = best(&|| drop(operator(&flat)));
    let both = best(&|| {
        let tracked: Vec<Tensor<1>> = flat
            .iter()
            .map(|x| x.clone().autodiff().require_grad())
            .collect();
        drop(operator(&tracked).sum().backward());
    });
    let each = |seconds: f64| seconds * 1e9 / elements as f64;
    println!(
        "{name}: forward {:.2} ms, {:.3} ns each; with backward {:.2} ms, {:.3} ns each",
        forward * 1e3,
        each(forward),
        both * 1e3,
        each(both)
    );
}

#[test]
#[ignore = "measures speed"]
fn channelwise() {
    crate::allocator::keep_freed_memory();
    const WIDTH: usize = 1024;
    let (x, count): ([usize; 3], _) = ([BATCH, TIME, WIDTH], BATCH * TIME * WIDTH);
    measure(
        "causal convolution of 4 taps with SiLU, a channel",
        count,
        &[&x, &[WIDTH, 4]],
        |t| {
            causal_convolution(
                t[0].clone().reshape(x),
                t[1].clone().reshape([WIDTH, 4]),
                None,
                None,
                true,
            )
            .0
        },
    );
    measure("linear scan, a channel", count, &[&x, &x], |t| {
        linear_scan(t[0].clone().reshape(x), t[1].clone().reshape(x), None).0
    });
    measure("RG-LRU, a channel", count, &[&x, &x, &x, &[WIDTH]], |t| {
        let [x, recurrence_gate, input_gate] = [0, 1, 2].map(|i| t[i].clone().reshape(x));
        rg_lru(RgLru {
            x,
            recurrence_gate,
            input_gate,
            decay: t[3].clone(),
            state: None,
            starts: None,
        })
        .0
    });
    measure(
        "wkv4, a channel",
        count,
        &[&x, &x, &[WIDTH], &[WIDTH]],
        |t| {
            let [key, value] = [0, 1].map(|i| t[i].clone().reshape(x));
            wkv4(Wkv4 {
                key,
                value,
                decay: t[2].clone(),
                bonus: t[3].clone(),
                state: None,
            })
            .0
        },
    );
    let (states, table) = (16, [WIDTH, 16]);
    let each = [BATCH, TIME, states];
    measure(
        "selective scan, a state",
        count * states,
        &[&x, &x, &table, &each, &each, &[WIDTH]],
        |t| {
            let [input, output] = [3, 4].map(|i| t[i].clone().reshape(each));
            selective_scan(SelectiveScan {
                x: t[0].clone().reshape(x),
                step: t[1].clone().reshape(x),
                step_bias: None,
                transition: -t[2].clone().reshape(table).exp(),
                input,
                output,
                skip: t[5].clone(),
                state: None,
                readers: None,
            })
            .0
        },
    );
}

/// As in an RWKV of width 512: 8 heads of 64.
const WIDTH: usize = 512;
const ROWS: [usize; 3] = [BATCH, TIME, WIDTH];

#[test]
#[ignore = "measures speed"]
fn heads_of_wkv6() {
    crate::allocator::keep_freed_memory();
    let (x, count) = (ROWS, BATCH * TIME * WIDTH);
    measure(
        "wkv6 with heads of 64, a state",
        count * 64,
        &[&x, &x, &x, &x, &[WIDTH]],
        |t| {
            let [receptance, key, value, decay] = [0, 1, 2, 3].map(|i| t[i].clone().reshape(x));
            wkv6(Wkv6 {
                receptance,
                key,
                value,
                decay,
                bonus: t[4].clone().reshape([8, 64]),
                state: None,
            })
            .0
        },
    );
}

#[test]
#[ignore = "measures speed"]
fn heads_of_wkv7() {
    crate::allocator::keep_freed_memory();
    let (x, count) = (ROWS, BATCH * TIME * WIDTH);
    measure(
        "wkv7 with heads of 64, a state",
        count * 64,
        &[&x, &x, &x, &x, &x, &x],
        |t| {
            let [receptance, log_decay, key, value, removal, replacement] =
                [0, 1, 2, 3, 4, 5].map(|i| t[i].clone().reshape(x));
            let (log_decay, removal) = (log_decay - 1.0, removal * 0.01);
            wkv7(Wkv7 {
                receptance,
                log_decay,
                key,
                value,
                removal,
                replacement,
                heads: 8,
                state: None,
            })
            .0
        },
    );
}

/// As in a Mamba-2 of width 512: 16 heads of 64, one group of 128 states.
#[test]
#[ignore = "measures speed"]
fn heads_of_ssd() {
    crate::allocator::keep_freed_memory();
    let count = BATCH * TIME * WIDTH;
    let (x, each, states): ([usize; 3], _, _) =
        ([BATCH, TIME, 1024], [BATCH, TIME, 16], [BATCH, TIME, 128]);
    measure(
        "ssd with heads of 64, a state",
        count * 2 * 128,
        &[&x, &each, &[16], &states, &states, &[16]],
        |t| {
            ssd(Ssd {
                x: t[0].clone().reshape(x),
                step: t[1].clone().reshape(each).abs(),
                transition: -t[2].clone().exp(),
                input: t[3].clone().reshape(states),
                output: t[4].clone().reshape(states),
                skip: t[5].clone(),
                groups: 1,
                state: None,
            })
            .0
        },
    );
}

/// Prints the microseconds of one step of one sequence.
fn measure_step(name: &str, run: impl Fn()) {
    run();
    let (start, mut runs) = (Instant::now(), 0);
    while start.elapsed().as_secs_f64() < 0.5 {
        run();
        runs += 1;
    }
    println!(
        "{name}: {:.1} us a step",
        start.elapsed().as_secs_f64() * 1e6 / f64::from(runs)
    );
}

#[test]
#[ignore = "measures speed"]
fn decoding() {
    let row = |width: usize, seed: u64| tensor::<3>([1, 1, width], seed);
    let (x, taps, state) = (row(1024, 1), tensor([1024, 4], 2), tensor([1, 3, 1024], 3));
    measure_step("causal convolution, 1024 channels", || {
        drop(causal_convolution(
            x.clone(),
            taps.clone(),
            None,
            Some(state.clone()),
            true,
        ));
    });
    let scan = SelectiveScan {
        x: x.clone(),
        step: row(1024, 2),
        step_bias: None,
        transition: -tensor::<2>([1024, 16], 3).exp(),
        input: row(16, 4),
        output: row(16, 5),
        skip: tensor([1024], 6),
        state: Some(tensor([1, 16, 1024], 7)),
        readers: None,
    };
    measure_step("selective scan, 1024 channels of 16 states", || {
        drop(selective_scan(scan.clone()))
    });
    let [receptance, key, value, decay] = [1, 2, 3, 4].map(|seed| row(512, seed));
    let state = Some(tensor([1, 8, 64, 64], 6));
    let wkv = Wkv6 {
        receptance,
        key,
        value,
        decay,
        bonus: tensor([8, 64], 5),
        state,
    };
    measure_step("wkv6, 8 heads of 64", || drop(wkv6(wkv.clone())));
    let scan = Ssd {
        x,
        step: row(16, 2).abs(),
        transition: -tensor::<1>([16], 3).exp(),
        input: row(128, 4),
        output: row(128, 5),
        skip: tensor([16], 6),
        groups: 1,
        state: Some(tensor([1, 16, 64, 128], 7)),
    };
    measure_step("ssd, 16 heads of 64 with 128 states", || {
        drop(ssd(scan.clone()))
    });
}

#[test]
#[ignore = "measures speed"]
fn long_convolutions() {
    crate::allocator::keep_freed_memory();
    for time in [256, 1024, 4096, 16384] {
        let layer = S4d {
            x: tensor([1, time, 512], 1),
            real: -tensor::<1>([64], 2).abs() - 0.1,
            imaginary: tensor::<1>([64], 3) * 9.0,
            output: tensor([64, 2], 4),
            log_step: tensor::<1>([1], 5) - 3.0,
            skip: tensor([1], 6),
            state: None,
        };
        measure_step(&format!("S4D in chunks, {time} steps"), || {
            drop(s4d(layer.clone()))
        });
        measure_step(&format!("S4D by Fourier transforms, {time} steps"), || {
            drop(s4d_by_fourier(layer.clone()))
        });
    }
}
