//! How much memory the machine has, how much the process has used, and what options may ask for.

use std::{fmt::Display, sync::OnceLock};

use burn::tensor::Device;
use sysinfo::{MemoryRefreshKind, RefreshKind, System};

use crate::{Error, Result, units};

/// The memory of this machine in bytes; in a container that of its limit, which counts.
#[derive(Debug, Clone, Copy)]
pub struct MachineMemory {
    /// All of it.
    pub total: u64,
    /// What is free.
    pub free: u64,
}

impl MachineMemory {
    /// Asks the system.
    pub fn look() -> Self {
        let kinds = RefreshKind::nothing().with_memory(MemoryRefreshKind::nothing().with_ram());
        let system = System::new_with_specifics(kinds);
        let limits = system
            .cgroup_limits()
            .filter(|limits| limits.total_memory > 0);
        let least =
            |machine: u64, limit: Option<u64>| limit.map_or(machine, |limit| machine.min(limit));
        Self {
            total: least(
                system.total_memory(),
                limits.as_ref().map(|limits| limits.total_memory),
            ),
            free: least(
                system.available_memory(),
                limits.as_ref().map(|limits| limits.free_memory),
            ),
        }
    }
}

/// The bound that takes the machine's place in [`check`], in bytes.
static LIMIT: OnceLock<u64> = OnceLock::new();

/// Sets the bound of [`check`], which is the machine's memory otherwise; the first one stays.
pub fn set_limit(bytes: u64) {
    // Who comes second has said nothing new.
    let _ = LIMIT.set(bytes);
}

/// A bound in words: bytes, with K, M, G or T for their multiples (of 1024 each), or `none`.
///
/// ```
/// use espalier::memory::parse_limit;
/// assert_eq!(parse_limit("64GiB"), Ok(64 << 30));
/// assert_eq!(parse_limit("1.5g"), Ok(3 << 29));
/// assert_eq!(parse_limit("none"), Ok(u64::MAX));
/// assert!(parse_limit("much").is_err());
/// ```
///
/// # Errors
/// When it is none of these.
pub fn parse_limit(text: &str) -> Result<u64, String> {
    if text == "none" {
        return Ok(u64::MAX);
    }
    let place = text.find(|c: char| !c.is_ascii_digit() && c != '.');
    let (number, unit) = text.split_at(place.unwrap_or(text.len()));
    let unit = unit.trim().to_ascii_lowercase();
    let unit = unit.trim_end_matches("ib").trim_end_matches('b');
    let power = ["", "k", "m", "g", "t"]
        .iter()
        .position(|name| *name == unit);
    let number: Option<f64> = number.parse().ok();
    match (number, power) {
        (Some(number), Some(power)) => Ok((number * 1024f64.powi(power as i32)) as u64),
        _ => Err("expected a size such as 64GiB, or none".into()),
    }
}

/// Whether what an option asks for fits into this machine's memory, or into the bound that was set in its place; other devices have
/// their own, which is not known here.
///
/// ```
/// use burn::tensor::Device;
/// use espalier::memory::check;
/// assert!(check("`--beams` = 4", 1e6, "fewer beams take less", &Device::flex()).is_ok());
/// let error = check("`--beams` = 99999", 1e18, "fewer beams take less", &Device::flex()).unwrap_err();
/// assert!(error.to_string().starts_with("`--beams` = 99999 takes about 888 PiB of memory, but this machine has "));
/// assert_eq!(error.exit_code(), 2);
/// ```
///
/// # Errors
/// When `bytes`, an estimate, are more than that; the error says what was `asked` for, the `fix`, and what to do about an estimate that is
/// too high.
pub fn check(asked: impl Display, bytes: f64, fix: &str, device: &Device) -> Result<()> {
    let set = LIMIT.get().copied();
    let bound = set.unwrap_or_else(|| MachineMemory::look().total);
    if *device != Device::flex() || bound == 0 && set.is_none() || bytes <= bound as f64 {
        return Ok(());
    }
    let (bytes, bound) = (units::bytes(bytes as u64), units::bytes(bound));
    let but = match set {
        Some(_) => format!("`--memory-limit` is {bound}"),
        None => format!("this machine has {bound}"),
    };
    Err(Error::usage(format!(
        "{asked} takes about {bytes} of memory, but {but}; {fix}, or, where that is estimated too high, raise `--memory-limit`"
    )))
}

/// Lets [`peak_bytes`] begin again at what is in use now, where the system can (Linux).
pub fn forget_peak() {
    // "5" resets the high-water mark (proc_pid_clear_refs(5)); a system that does not know it keeps the old one.
    if cfg!(target_os = "linux") {
        let _ = std::fs::write("/proc/self/clear_refs", "5");
    }
}

/// Most resident memory of this process in bytes (`VmHWM`), since its start or [`forget_peak`]; nothing on systems without `/proc`.
pub fn peak_bytes() -> Option<u64> {
    peak_of(&std::fs::read_to_string("/proc/self/status").ok()?)
}

fn peak_of(status: &str) -> Option<u64> {
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kibibytes * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(target_os = "linux")]
    fn a_peak_is_forgotten() {
        let large = std::hint::black_box(vec![1u8; 256 << 20]);
        let with = peak_bytes().unwrap();
        assert!(large.contains(&1));
        drop(large);
        forget_peak();
        let without = peak_bytes().unwrap();
        assert!(without + (200 << 20) < with, "{with} {without}");
    }

    #[test]
    fn the_high_water_mark_is_read() {
        assert_eq!(
            peak_of("Name:\tx\nVmPeak:\t  90 kB\nVmHWM:\t    1234 kB\n"),
            Some(1234 * 1024)
        );
        assert_eq!(peak_of("Name:\tx\n"), None);
        assert_eq!(peak_of("VmHWM: many kB\n"), None);
    }
}
