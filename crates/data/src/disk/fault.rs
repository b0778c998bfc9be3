//! A disk that fails when a test says so.
//!
//! `ESPALIER_FAULT=fail:12` lets the twelfth change to the disk fail as on a full one, `kill:12` ends the process there, as a
//! loss of power does. A write that is hit has written half of its bytes. Without the variable nothing happens.

use std::{
    env,
    fs::File,
    io::{self, Write},
    process,
    sync::{
        LazyLock,
        atomic::{AtomicUsize, Ordering},
    },
};

const VARIABLE: &str = "ESPALIER_FAULT";

/// What becomes of the change that is hit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    Fail,
    Kill,
}

impl Fault {
    fn strike(self) -> io::Error {
        match self {
            Self::Fail => io::ErrorKind::StorageFull.into(),
            Self::Kill => process::abort(),
        }
    }
}

/// The fault that is asked for, and the number of the change that it hits.
fn parse(text: &str) -> Option<(Fault, usize)> {
    let (kind, number) = text.split_once(':')?;
    let fault = match kind {
        "fail" => Fault::Fail,
        "kill" => Fault::Kill,
        _ => return None,
    };
    Some((fault, number.parse().ok()?))
}

/// Counts a change; gives the fault where this is the one that is hit.
fn next() -> io::Result<Option<Fault>> {
    static ASKED: LazyLock<Option<String>> = LazyLock::new(|| env::var(VARIABLE).ok());
    static CHANGES: AtomicUsize = AtomicUsize::new(0);
    let Some(text) = &*ASKED else {
        return Ok(None);
    };
    let (fault, number) = parse(text).ok_or_else(|| {
        io::Error::other(format!(
            "{VARIABLE} is `{text}`; expected `fail:NUMBER` or `kill:NUMBER`"
        ))
    })?;
    Ok((CHANGES.fetch_add(1, Ordering::Relaxed) + 1 == number).then_some(fault))
}

/// To be called before a change.
///
/// # Errors
/// When it is hit.
pub fn point() -> io::Result<()> {
    next()?.map_or(Ok(()), |fault| Err(fault.strike()))
}

/// A file whose every write is a change.
#[derive(Debug)]
pub struct FaultyFile(pub File);

impl Write for FaultyFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match next()? {
            None => self.0.write(bytes),
            Some(fault) => {
                self.0.write_all(&bytes[..bytes.len() / 2])?;
                Err(fault.strike())
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_are_named_with_their_change() {
        assert_eq!(parse("fail:3"), Some((Fault::Fail, 3)));
        assert_eq!(parse("kill:12"), Some((Fault::Kill, 12)));
        for wrong in ["", "fail", "fail:", "fail:x", "crash:1", "kill:-1"] {
            assert_eq!(parse(wrong), None, "{wrong}");
        }
    }
}
