//! Programs that a model wrote, run against a test: `pass@k` (Chen et al., arXiv 2107.03374).
//!
//! A program is Python and runs with `python3`, isolated from the user's packages, in an empty folder of its own, without the
//! environment's variables, with bounds on time, memory, files and processes that the shell's `ulimit` sets, and without network where
//! the system lets a user unshare it. That keeps mistakes at bay, not malice: who runs such tasks says so (`--allow-code`).

use std::{
    io::Write,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use crate::{Error, Result};

/// Longest run of a program, in seconds; HumanEval's harness takes 3.
const SECONDS: u64 = 3;

/// Bounds of a program: memory 2 GiB, files of 1 MiB, no core, 64 processes; less where the system sets less.
const LIMITS: &str =
    "ulimit -t 4; ulimit -v 2097152; ulimit -f 2048; ulimit -c 0; ulimit -u 64 2>/dev/null; ";

/// The unbiased estimate that one of `k` of the programs passes a test. A program is followed by the test.
///
/// # Errors
/// When there are fewer than `k` programs, or `python3` cannot be started.
pub fn pass_at(k: usize, programs: &[String], tests: &[String]) -> Result<f64> {
    if programs.len() < k {
        return Err(Error::task(format!(
            "pass@{k} needs {k} answers to each item, and there are {}; set `repeats` of the task",
            programs.len()
        )));
    }
    let test = tests.first().map_or("", String::as_str);
    let mut passed = 0;
    for program in programs {
        passed += usize::from(passes(&format!("{program}\n{test}"))?);
    }
    Ok(estimate(programs.len(), passed, k))
}

/// `1 - C(n-c, k) / C(n, k)`.
fn estimate(count: usize, passed: usize, k: usize) -> f64 {
    if count - passed < k {
        return 1.0;
    }
    let factors = (count - passed + 1..=count).map(|i| 1.0 - k as f64 / i as f64);
    1.0 - factors.product::<f64>()
}

/// Whether a program ends well and in time.
fn passes(program: &str) -> Result<bool> {
    let wrong =
        |error: std::io::Error| Error::task(format!("cannot run a program in `sh`: {error}"));
    let folder = scratch().map_err(wrong)?;
    let run = "exec $(command -v unshare >/dev/null && unshare -rn true 2>/dev/null && echo unshare -rn) python3 -I -";
    let mut child = Command::new("sh")
        .args([
            "-c",
            &format!("command -v python3 >/dev/null || exit 117; {LIMITS}{run}"),
        ])
        .current_dir(&folder)
        .env_clear()
        .env("PATH", "/usr/local/bin:/usr/bin:/bin")
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .map_err(wrong)?;
    if let Some(mut input) = child.stdin.take() {
        // A program that ends before it is read has failed, which its status says.
        let _ = input.write_all(program.as_bytes());
    }
    let end = Instant::now() + Duration::from_secs(SECONDS);
    let status = loop {
        if let Some(status) = child.try_wait().map_err(wrong)? {
            break Some(status);
        }
        if Instant::now() >= end {
            child.kill().map_err(wrong)?;
            child.wait().map_err(wrong)?;
            break None;
        }
        thread::sleep(Duration::from_millis(5));
    };
    let _ = std::fs::remove_dir_all(&folder);
    match status.and_then(|status| status.code()) {
        Some(117) => Err(Error::task(
            "programs are Python, and there is no `python3` in /usr/local/bin, /usr/bin or /bin",
        )),
        code => Ok(code == Some(0)),
    }
}

/// An empty folder.
fn scratch() -> std::io::Result<std::path::PathBuf> {
    static NUMBER: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);
    let number = NUMBER.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    let name = format!("espalier-program-{}-{number}", std::process::id());
    let folder = std::env::temp_dir().join(name);
    std::fs::create_dir(&folder)?;
    Ok(folder)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_estimate_is_the_papers() {
        assert_eq!(estimate(1, 1, 1), 1.0);
        assert_eq!(estimate(1, 0, 1), 0.0);
        assert!((estimate(5, 2, 1) - 0.4).abs() < 1e-12);
        // 1 - C(3,2)/C(5,2)
        assert!((estimate(5, 2, 2) - 0.7).abs() < 1e-12);
    }

    #[test]
    fn programs_pass_fail_and_never_end() {
        let run = |program: &str, test: &str| pass_at(1, &[program.to_owned()], &[test.to_owned()]);
        let has_python = Command::new("sh")
            .args(["-c", "command -v python3"])
            .output()
            .unwrap()
            .status
            .success();
        if !has_python {
            assert!(run("", "").is_err());
            return;
        }
        let add = "def add(a, b):\n    return a + b\n";
        assert_eq!(run(add, "assert add(2, 3) == 5").unwrap(), 1.0);
        assert_eq!(run(add, "assert add(2, 3) == 6").unwrap(), 0.0);
        assert_eq!(run("while True: pass", "").unwrap(), 0.0);
        assert_eq!(
            run("import os; assert 'HOME' not in os.environ", "").unwrap(),
            1.0
        );
        assert_eq!(run("x = bytearray(4 << 30)", "").unwrap(), 0.0);
        assert!(
            pass_at(2, &[add.to_owned()], &[])
                .unwrap_err()
                .to_string()
                .contains("repeats")
        );
    }
}
