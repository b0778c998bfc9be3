//! Numbers as people read them: bytes, counts, rates.

/// Bytes with a binary unit and three digits: `1.21 GiB`.
///
/// ```
/// use espalier::units::bytes;
/// assert_eq!(bytes(1_300_000_000), "1.21 GiB");
/// assert_eq!(bytes(999), "999 B");
/// ```
pub fn bytes(count: u64) -> String {
    scaled(
        count as f64,
        1024.0,
        &["B", "KiB", "MiB", "GiB", "TiB", "PiB"],
    )
}

/// A count with a decimal unit and three digits: `124 M`.
///
/// ```
/// use espalier::units::count;
/// assert_eq!(count(124_439_808), "124 M");
/// assert_eq!(count(7), "7");
/// ```
pub fn count(count: u64) -> String {
    scaled(count as f64, 1000.0, &["", "k", "M", "B", "T"])
        .trim_end()
        .to_string()
}

/// A rate with as many digits as mean something: `1234`, `56.7`.
pub fn rate(value: f64) -> String {
    if value >= 100.0 {
        format!("{value:.0}")
    } else {
        format!("{value:.1}")
    }
}

/// A span of time: `3.2 s`, `4 min 10 s`, `2 h 5 min`.
pub fn duration(seconds: f64) -> String {
    let whole = seconds.round() as u64;
    match whole {
        0..60 => format!("{seconds:.1} s"),
        60..3600 => format!("{} min {} s", whole / 60, whole % 60),
        _ => format!("{} h {} min", whole / 3600, whole % 3600 / 60),
    }
}

fn scaled(value: f64, step: f64, units: &[&str]) -> String {
    let (mut value, mut place) = (value, 0);
    // What would be shown as 1000 (or 1024) of a unit is one of the next.
    while value >= step - 0.5 && place + 1 < units.len() {
        value /= step;
        place += 1;
    }
    let digits = match value {
        _ if place == 0 => 0,
        value if value < 9.995 => 2,
        value if value < 99.95 => 1,
        _ => 0,
    };
    format!("{value:.digits$} {}", units[place])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_change_at_their_step() {
        assert_eq!(bytes(1023), "1023 B");
        assert_eq!(bytes(1024), "1.00 KiB");
        assert_eq!(bytes(u64::MAX), "16384 PiB");
        assert_eq!(count(999), "999");
        assert_eq!(count(999_600), "1.00 M");
        assert_eq!(count(12_340), "12.3 k");
        assert_eq!(rate(123.4), "123");
        assert_eq!(rate(12.34), "12.3");
    }
}
