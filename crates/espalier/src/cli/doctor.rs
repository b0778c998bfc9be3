//! `espalier doctor`: what this machine has, and what models it can train, tune and run.

use std::path::Path;
use std::time::{Duration, Instant};

use burn::tensor::{Device, Distribution, Tensor};
use serde_json::json;
use sysinfo::{CpuRefreshKind, Disks, RefreshKind, System};

use super::Context;
use crate::{Error, Result, device::DEVICES, memory::MachineMemory, units};

/// Side of the square matrices of the speed test.
const SIDE: usize = 512;
/// How long the speed test runs.
const SPEED_TEST: Duration = Duration::from_millis(300);

/// Show what this machine has and what it can do.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:
  espalier doctor
  espalier doctor --device cuda:0 --json")]
pub struct DoctorArgs {}

/// What was found.
struct Machine {
    processor: String,
    cores: usize,
    instructions: Vec<&'static str>,
    memory_total: u64,
    memory_free: u64,
    disk_free: Option<u64>,
    gigaflops: f64,
}

/// Largest models for the free memory, in parameters.
struct Verdict {
    run: u64,
    tune: u64,
    train: u64,
}

/// Looks, measures and prints.
///
/// # Errors
/// When the device cannot compute.
pub fn run(_: &DoctorArgs, context: &Context) -> Result<()> {
    let machine = Machine::look(&context.device)?;
    let verdict = Verdict::of(machine.memory_free);
    match context.json {
        true => context.terminal.json(&machine.json(&verdict)),
        false => machine.print(&verdict, context),
    }
}

impl Machine {
    fn look(device: &Device) -> Result<Self> {
        let kinds = RefreshKind::nothing().with_cpu(CpuRefreshKind::nothing());
        let system = System::new_with_specifics(kinds);
        let brand = system
            .cpus()
            .first()
            .map(|cpu| cpu.brand().trim().to_string())
            .unwrap_or_default();
        let memory = MachineMemory::look();
        Ok(Self {
            processor: if brand.is_empty() {
                "unknown".into()
            } else {
                brand
            },
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            instructions: instructions(),
            memory_total: memory.total,
            memory_free: memory.free,
            disk_free: std::env::current_dir()
                .ok()
                .and_then(|folder| disk_free(&folder)),
            gigaflops: gigaflops(device)?,
        })
    }

    fn print(&self, verdict: &Verdict, context: &Context) -> Result<()> {
        let terminal = &context.terminal;
        let (built, missing): (Vec<_>, Vec<_>) = DEVICES.iter().partition(|(_, built)| *built);
        let names = |list: Vec<&(&'static str, bool)>| {
            list.iter()
                .map(|(name, _)| *name)
                .collect::<Vec<_>>()
                .join(", ")
        };
        let (free, total) = (
            units::bytes(self.memory_free),
            units::bytes(self.memory_total),
        );
        terminal.facts(&[
            (
                "processor",
                format!("{}, {} threads", self.processor, self.cores),
            ),
            (
                "instructions",
                if self.instructions.is_empty() {
                    "none that help".into()
                } else {
                    self.instructions.join(", ")
                },
            ),
            ("memory", format!("{free} free of {total}")),
            (
                "disk",
                self.disk_free.map_or("unknown".into(), |bytes| {
                    format!("{} free here", units::bytes(bytes))
                }),
            ),
            (
                "devices",
                format!("{} (not built in: {})", names(built), names(missing)),
            ),
            (
                "speed",
                format!(
                    "{} GFLOP/s, f32 products of {SIDE} x {SIDE}",
                    units::rate(self.gigaflops)
                ),
            ),
        ])?;
        terminal.line(
            &terminal
                .bold("\nIn the free memory, all in f32, with a quarter kept for activations:"),
        )?;
        terminal.facts(&[
            (
                "  run",
                format!(
                    "models up to about {} parameters",
                    units::count(verdict.run)
                ),
            ),
            (
                "  tune (LoRA)",
                format!(
                    "models up to about {} parameters",
                    units::count(verdict.tune)
                ),
            ),
            (
                "  train whole",
                format!(
                    "models up to about {} parameters",
                    units::count(verdict.train)
                ),
            ),
        ])
    }

    fn json(&self, verdict: &Verdict) -> serde_json::Value {
        let built: Vec<&str> = DEVICES
            .iter()
            .filter(|(_, built)| *built)
            .map(|(name, _)| *name)
            .collect();
        json!({
            "processor": self.processor, "threads": self.cores, "instructions": self.instructions,
            "memory_total_bytes": self.memory_total, "memory_free_bytes": self.memory_free,
            "disk_free_bytes": self.disk_free, "devices": built, "matmul_gflops": self.gigaflops,
            "largest_model_parameters": {"run": verdict.run, "tune": verdict.tune, "train": verdict.train},
        })
    }
}

impl Verdict {
    /// Four bytes a parameter to run; a twentieth more for adapters and their optimiser; sixteen for weights, gradients and
    /// AdamW's moments.
    fn of(free: u64) -> Self {
        let usable = free / 4 * 3;
        Self {
            run: usable / 4,
            tune: usable / 84 * 20,
            train: usable / 16,
        }
    }
}

/// Free bytes of the disk that a folder is on: of the disks mounted above it, the one mounted nearest.
fn disk_free(folder: &Path) -> Option<u64> {
    let disks = Disks::new_with_refreshed_list();
    let above = disks
        .list()
        .iter()
        .filter(|disk| folder.starts_with(disk.mount_point()));
    above
        .max_by_key(|disk| disk.mount_point().components().count())
        .map(|disk| disk.available_space())
}

/// Billions of multiplications and additions a second.
fn gigaflops(device: &Device) -> Result<f64> {
    let random = || Tensor::<2>::random([SIDE, SIDE], Distribution::Uniform(-1.0, 1.0), device);
    let (left, right) = (random(), random());
    let multiply = || -> Result<()> {
        left.clone().matmul(right.clone());
        device
            .sync()
            .map_err(|error| Error::Work(format!("the device cannot compute: {error:?}")))
    };
    multiply()?;
    let (start, mut products) = (Instant::now(), 0u32);
    while start.elapsed() < SPEED_TEST {
        multiply()?;
        products += 1;
    }
    Ok(2.0 * (SIDE as f64).powi(3) * f64::from(products) / start.elapsed().as_secs_f64() / 1e9)
}

/// The processor's vector instructions that matter here.
#[cfg(target_arch = "x86_64")]
fn instructions() -> Vec<&'static str> {
    let mut found: Vec<(&str, bool)> = vec![
        ("avx2", is_x86_feature_detected!("avx2")),
        ("fma", is_x86_feature_detected!("fma")),
        ("f16c", is_x86_feature_detected!("f16c")),
        ("avx512f", is_x86_feature_detected!("avx512f")),
        ("avx512_vnni", is_x86_feature_detected!("avx512vnni")),
        ("avx512_bf16", is_x86_feature_detected!("avx512bf16")),
    ];
    // The standard library cannot tell these yet.
    let flags = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let has = |name: &str| {
        flags
            .lines()
            .find(|line| line.starts_with("flags"))
            .is_some_and(|line| line.contains(name))
    };
    found.extend(["amx_tile", "amx_bf16", "amx_int8"].map(|name| (name, has(name))));
    found
        .into_iter()
        .filter(|(_, has)| *has)
        .map(|(name, _)| name)
        .collect()
}

/// The processor's vector instructions that matter here.
#[cfg(target_arch = "aarch64")]
fn instructions() -> Vec<&'static str> {
    use std::arch::is_aarch64_feature_detected;
    let found = [
        ("neon", is_aarch64_feature_detected!("neon")),
        ("fp16", is_aarch64_feature_detected!("fp16")),
        ("bf16", is_aarch64_feature_detected!("bf16")),
        ("i8mm", is_aarch64_feature_detected!("i8mm")),
    ];
    found
        .into_iter()
        .filter(|(_, has)| *has)
        .map(|(name, _)| name)
        .collect()
}

/// Nothing is known of other processors.
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn instructions() -> Vec<&'static str> {
    Vec::new()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_verdict_keeps_a_quarter() {
        let verdict = Verdict::of(16_000_000_000);
        assert_eq!((verdict.run, verdict.train), (3_000_000_000, 750_000_000));
        assert!(verdict.tune < verdict.run && verdict.tune > verdict.train);
    }

    #[test]
    fn the_speed_is_a_number() {
        assert!(gigaflops(&Device::flex()).unwrap() > 0.01);
    }
}
