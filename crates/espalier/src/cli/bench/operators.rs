//! Single operators, on random numbers.

use std::time::Instant;

use burn::tensor::{Device, Distribution, Tensor};
use espalier_kernels::{
    attention::{Mask, MaskSpec, Options, attention},
    linear::{Precision, linear},
};

use super::{Figures, median};
use crate::{Error, Result, cli::Context, memory};

/// The size of the attention.
#[derive(Debug, clap::Args)]
pub struct AttentionArgs {
    /// Rows of the batch
    #[arg(long, default_value_t = 1)]
    pub batch: usize,
    /// Query, key and value heads
    #[arg(long, default_value_t = 8)]
    pub heads: usize,
    /// Tokens
    #[arg(long, default_value_t = 2048)]
    pub length: usize,
    /// Width of a head
    #[arg(long, default_value_t = 64)]
    pub width: usize,
    /// Arithmetic of the products: f32 or bf16
    #[arg(long, default_value_t = Precision::F32)]
    pub precision: Precision,
    /// Runs that are counted
    #[arg(long, default_value_t = 5, value_parser = super::number_of_runs())]
    pub runs: usize,
}

/// The size of the products.
#[derive(Debug, clap::Args)]
pub struct MatmulArgs {
    /// Rows of the input: tokens
    #[arg(long, default_value_t = 2048)]
    pub rows: usize,
    /// Width of the input
    #[arg(long, default_value_t = 512)]
    pub inputs: usize,
    /// Width of the output
    #[arg(long, default_value_t = 1536)]
    pub outputs: usize,
    /// Arithmetic of the products: f32 or bf16
    #[arg(long, default_value_t = Precision::F32)]
    pub precision: Precision,
    /// Runs that are counted
    #[arg(long, default_value_t = 9, value_parser = super::number_of_runs())]
    pub runs: usize,
}

/// Causal attention, forward and backward.
///
/// # Errors
/// When a size is zero.
pub fn run_attention(args: &AttentionArgs, context: &Context) -> Result<()> {
    check(&[args.batch, args.heads, args.length, args.width, args.runs])?;
    let sizes = [args.batch, args.heads, args.length, args.width];
    // Three inputs, the result, and a gradient of each.
    let asked = "a tensor of `--batch`, `--heads`, `--length` and `--width`, and seven like it,";
    memory::check(asked, 8.0 * floats(&sizes), "ask for less", &context.device)?;
    let shape = [args.batch, args.length, args.heads, args.width];
    let random = || {
        tracked(Tensor::<4>::random(
            shape,
            Distribution::Default,
            &context.device,
        ))
    };
    let (query, key, value) = (random(), random(), random());
    let spec = MaskSpec {
        batch: args.batch,
        queries: args.length,
        keys: args.length,
        causal: true,
        window: None,
        segments: None,
    };
    let mask = Mask::new(spec);
    let scale = (args.width as f64).sqrt().recip();
    let options = Options {
        precision: args.precision,
        ..Options::scaled(scale)
    };
    let seconds = time(args.runs, || {
        let mixed = attention(
            query.clone(),
            key.clone(),
            value.clone(),
            &mask,
            None,
            options,
        );
        let gradients = mixed.sum().backward();
        query.grad(&gradients).map(Tensor::into_data);
    });
    // Two products forward and five backward, of which the causal half counts.
    let pairs = (args.batch * args.heads * args.length) as f64 * (args.length + 1) as f64 / 2.0;
    let operations = 7.0 * 2.0 * pairs * args.width as f64;
    let sizes = vec![
        ("batch", args.batch.into()),
        ("heads", args.heads.into()),
        ("length", args.length.into()),
        ("width", args.width.into()),
        ("precision", args.precision.to_string().into()),
    ];
    let measured = vec![
        ("seconds", "s", seconds),
        ("gflops", "GFLOP/s", operations / seconds * 1e-9),
    ];
    Figures {
        job: "attention",
        model: None,
        sizes,
        measured,
    }
    .show(context)
}

/// A linear layer: forward, gradient of the input, gradient of the weight.
///
/// # Errors
/// When a size is zero.
pub fn run_matmul(args: &MatmulArgs, context: &Context) -> Result<()> {
    check(&[args.rows, args.inputs, args.outputs, args.runs])?;
    let [rows, inputs, outputs] = [args.rows, args.inputs, args.outputs];
    let matrices = [[rows, inputs], [inputs, outputs], [rows, outputs]];
    let bytes = matrices.iter().map(|sizes| 2.0 * floats(sizes)).sum();
    let asked =
        format!("a product of `--rows` {rows}, `--inputs` {inputs} and `--outputs` {outputs}");
    memory::check(asked, bytes, "ask for less", &context.device)?;
    let (device, precision) = (&context.device, args.precision);
    let random = |shape| Tensor::<2>::random(shape, Distribution::Default, device);
    let (x, weight) = (
        random([args.rows, args.inputs]),
        random([args.outputs, args.inputs]),
    );
    let forward = time(args.runs, || {
        linear(x.clone(), weight.clone(), None, precision).into_data();
    });
    let (x, weight) = (tracked(x), tracked(weight));
    let both = time(args.runs, || {
        let gradients = linear(x.clone(), weight.clone(), None, precision)
            .sum()
            .backward();
        for input in [&x, &weight] {
            input.grad(&gradients).map(Tensor::into_data);
        }
    });
    let operations = 2.0 * args.rows as f64 * args.inputs as f64 * args.outputs as f64;
    let peak = peak(device, args.runs, precision);
    let sizes = vec![
        ("rows", args.rows.into()),
        ("inputs", args.inputs.into()),
        ("outputs", args.outputs.into()),
        ("precision", precision.to_string().into()),
    ];
    let (forward, both) = (operations / forward * 1e-9, 3.0 * operations / both * 1e-9);
    let measured = vec![
        ("forward_gflops", "GFLOP/s", forward),
        ("gflops", "GFLOP/s", both),
        ("peak_gflops", "GFLOP/s", peak),
        ("share_of_peak", "", both / peak),
    ];
    Figures {
        job: "matmul",
        model: None,
        sizes,
        measured,
    }
    .show(context)
}

/// The best that a product reaches here: a large square one.
pub(super) fn peak(device: &Device, runs: usize, precision: Precision) -> f64 {
    const SIZE: usize = 1536;
    let random = || Tensor::<2>::random([SIZE, SIZE], Distribution::Default, device);
    let (x, weight) = (random(), random());
    let seconds = time(runs, || {
        linear(x.clone(), weight.clone(), None, precision).into_data();
    });
    2.0 * (SIZE as f64).powi(3) / seconds * 1e-9
}

fn tracked<const D: usize>(tensor: Tensor<D>) -> Tensor<D> {
    tensor.autodiff().require_grad()
}

/// Median seconds of some runs after one that is not counted.
fn time(runs: usize, mut work: impl FnMut()) -> f64 {
    work();
    let one = |_| {
        let started = Instant::now();
        work();
        started.elapsed().as_secs_f64()
    };
    median(&(0..runs).map(one).collect::<Vec<_>>())
}

/// Bytes of a tensor in f32.
fn floats(sizes: &[usize]) -> f64 {
    sizes.iter().fold(4.0, |bytes, size| bytes * *size as f64)
}

fn check(sizes: &[usize]) -> Result<()> {
    match sizes.contains(&0) {
        true => Err(Error::Usage(
            "every size and the number of runs must be at least 1".into(),
        )),
        false => Ok(()),
    }
}
