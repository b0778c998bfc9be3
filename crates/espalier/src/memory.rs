//! How much memory the machine has, how much the process has used, and what options may ask for.

use std::fmt::Display;

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

/// Whether what an option asks for fits into this machine's memory; other devices have their own, which is not known here.
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
/// When `bytes`, an estimate, are more than the machine has; the error says what was `asked` for, and the `fix`.
pub fn check(asked: impl Display, bytes: f64, fix: &str, device: &Device) -> Result<()> {
    let total = MachineMemory::look().total;
    if *device != Device::flex() || total == 0 || bytes <= total as f64 {
        return Ok(());
    }
    let (bytes, total) = (units::bytes(bytes as u64), units::bytes(total));
    Err(Error::usage(format!(
        "{asked} takes about {bytes} of memory, but this machine has {total}; {fix}"
    )))
}

/// Most resident memory of this process so far in bytes (`VmHWM`); nothing on systems without `/proc`.
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
    fn the_high_water_mark_is_read() {
        assert_eq!(
            peak_of("Name:\tx\nVmPeak:\t  90 kB\nVmHWM:\t    1234 kB\n"),
            Some(1234 * 1024)
        );
        assert_eq!(peak_of("Name:\tx\n"), None);
        assert_eq!(peak_of("VmHWM: many kB\n"), None);
    }
}
