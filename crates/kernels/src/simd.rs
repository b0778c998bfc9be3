//! Vector code without intrinsics: plain loops over lanes, compiled once for each instruction set and chosen at run time.
//!
//! Hot loops count with an index over slices of one length: `zip` is a call where the compiler splits the crate, and lanes that
//! are added to outside the loop over chunks stay in memory.
//!
//! Loops fuse a multiplication with an addition only where they say so, by `multiply_add`; all others give the same bits with
//! every instruction set.

use std::{fmt, sync::OnceLock};

/// An instruction set for which the loops are compiled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Whatever the target has at least.
    Portable,
    /// AVX2 with fused multiplication and addition.
    Avx2,
    /// AVX-512 F, VL, DQ and BW.
    Avx512,
    /// AVX-512 with products of bf16.
    Avx512Bf16,
    /// The same, and AMX with products of bf16.
    Amx,
}

/// Environment variable that lowers the level: `portable`, `avx2`, `avx512`, `avx512bf16` or `amx`.
pub const LEVEL_VARIABLE: &str = "ESPALIER_SIMD";

/// The levels by the names that [`LEVEL_VARIABLE`] knows.
const LEVELS: [(&str, Level); 5] = [
    ("portable", Level::Portable),
    ("avx2", Level::Avx2),
    ("avx512", Level::Avx512),
    ("avx512bf16", Level::Avx512Bf16),
    ("amx", Level::Amx),
];

/// [`LEVEL_VARIABLE`] names no level.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnknownLevel(String);

impl fmt::Display for UnknownLevel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = LEVELS.map(|(name, _)| name).join(", ");
        write!(
            f,
            "{LEVEL_VARIABLE} is `{}`; leave it out, or choose one of {names}",
            self.0
        )
    }
}

impl std::error::Error for UnknownLevel {}

/// The level that the environment asks for, if it does.
///
/// # Errors
/// When it asks for one that there is not; [`level`] then takes the best.
pub fn asked_level() -> Result<Option<Level>, UnknownLevel> {
    let name = std::env::var_os(LEVEL_VARIABLE).unwrap_or_default();
    parse_level(&name.to_string_lossy())
}

fn parse_level(name: &str) -> Result<Option<Level>, UnknownLevel> {
    let known = LEVELS.iter().find(|(known, _)| *known == name);
    match (name, known) {
        ("", _) => Ok(None),
        (_, Some((_, level))) => Ok(Some(*level)),
        (_, None) => Err(UnknownLevel(name.chars().take(40).collect())),
    }
}

/// The level in use: the best that this processor has, or the lower one that [`LEVEL_VARIABLE`] asks for.
pub fn level() -> Level {
    static LEVEL: OnceLock<Level> = OnceLock::new();
    *LEVEL.get_or_init(|| {
        let asked = asked_level().ok().flatten();
        asked.unwrap_or(Level::Amx).min(best())
    })
}

#[cfg(target_arch = "x86_64")]
fn best() -> Level {
    let avx512 = is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512vl")
        && is_x86_feature_detected!("avx512dq")
        && is_x86_feature_detected!("avx512bw");
    let avx2 = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
    match (avx2, avx512, is_x86_feature_detected!("avx512bf16")) {
        (true, true, true) if may_use_amx() => Level::Amx,
        (true, true, true) => Level::Avx512Bf16,
        (true, true, false) => Level::Avx512,
        (true, false, _) => Level::Avx2,
        (false, ..) => Level::Portable,
    }
}

/// Whether the processor has AMX for bf16 and the kernel lets this process use it, which has to be asked for: its registers are
/// large.
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
fn may_use_amx() -> bool {
    const BF16: u32 = 1 << 22;
    const TILES: u32 = 1 << 24;
    const REQUEST: i64 = 0x1023; // ARCH_REQ_XCOMP_PERM
    const TILE_DATA: i64 = 18; // XFEATURE_XTILE_DATA
    let features = std::arch::x86_64::__cpuid_count(7, 0).edx;
    #[allow(unsafe_code)]
    // SAFETY: the call changes what this process may use, and nothing else.
    let permitted = || unsafe { libc::syscall(libc::SYS_arch_prctl, REQUEST, TILE_DATA) } == 0;
    features & BF16 != 0 && features & TILES != 0 && permitted()
}

#[cfg(all(target_arch = "x86_64", not(target_os = "linux")))]
fn may_use_amx() -> bool {
    false
}

#[cfg(not(target_arch = "x86_64"))]
fn best() -> Level {
    Level::Portable
}

/// Whether the target itself fuses a multiplication with an addition; where it does not, the standard library would call a slow
/// function.
pub(crate) const FUSED: bool = cfg!(any(target_feature = "fma", target_arch = "aarch64"));

/// `a b + c`, rounded once where the instruction set can.
#[inline(always)]
pub(crate) fn multiply_add<const FUSED: bool>(a: f32, b: f32, c: f32) -> f32 {
    if FUSED { a.mul_add(b, c) } else { a * b + c }
}

/// Defines a function whose body is compiled for every [`Level`]; what the body calls must be `#[inline(always)]`. With
/// `<const FUSED: bool>` the body learns whether [`multiply_add`] may fuse.
macro_rules! vectorised {
    ($(#[$meta:meta])* $visibility:vis fn $name:ident $(<const $fused:ident: bool>)? ($($argument:ident: $type:ty),* $(,)?) $(-> $output:ty)? $body:block) => {
        $(#[$meta])*
        #[allow(unsafe_code, clippy::too_many_arguments)]
        $visibility fn $name($($argument: $type),*) $(-> $output)? {
            #[inline(always)]
            #[allow(clippy::too_many_arguments)]
            fn body $(<const $fused: bool>)? ($($argument: $type),*) $(-> $output)? $body
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx2,fma")]
                #[allow(clippy::too_many_arguments)]
                fn avx2($($argument: $type),*) $(-> $output)? {
                    body$(::<{ $crate::simd::second!($fused, true) }>)?($($argument),*)
                }
                #[target_feature(enable = "avx2,fma,avx512f,avx512vl,avx512dq,avx512bw")]
                #[allow(clippy::too_many_arguments)]
                fn avx512($($argument: $type),*) $(-> $output)? {
                    body$(::<{ $crate::simd::second!($fused, true) }>)?($($argument),*)
                }
                match $crate::simd::level() {
                    // SAFETY: `level` never exceeds what the processor was seen to have.
                    $crate::simd::Level::Amx | $crate::simd::Level::Avx512Bf16 | $crate::simd::Level::Avx512 => unsafe {
                        avx512($($argument),*)
                    },
                    // SAFETY: as above.
                    $crate::simd::Level::Avx2 => unsafe { avx2($($argument),*) },
                    $crate::simd::Level::Portable => {
                        body$(::<{ $crate::simd::second!($fused, $crate::simd::FUSED) }>)?($($argument),*)
                    }
                }
            }
            #[cfg(not(target_arch = "x86_64"))]
            body$(::<{ $crate::simd::second!($fused, $crate::simd::FUSED) }>)?($($argument),*)
        }
    };
}

/// The second of two.
macro_rules! second {
    ($first:ident, $second:expr) => {
        $second
    };
}

pub(crate) use {second, vectorised};

/// Partial sums of a reduction: the order of additions is fixed by this number, not by the processor.
pub(crate) const LANES: usize = 32;

#[inline(always)]
pub(crate) fn fold(lanes: [f32; LANES], combine: impl Fn(f32, f32) -> f32) -> f32 {
    let mut lanes = lanes;
    let mut half = LANES / 2;
    while half > 0 {
        for i in 0..half {
            lanes[i] = combine(lanes[i], lanes[i + half]);
        }
        half /= 2;
    }
    lanes[0]
}

/// `sum(a_i b_i)`.
#[inline(always)]
pub(crate) fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut lanes = [0f32; LANES];
    let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<LANES>(), b.as_chunks::<LANES>());
    for i in 0..a.len().min(b.len()) {
        let (a, b) = (&a[i], &b[i]);
        for l in 0..LANES {
            lanes[l] += a[l] * b[l];
        }
    }
    let mut all = lanes;
    for i in 0..a_rest.len().min(b_rest.len()).min(LANES) {
        all[i] += a_rest[i] * b_rest[i];
    }
    fold(all, |a, b| a + b)
}

/// `sum(x_i)`.
#[inline(always)]
pub(crate) fn sum(x: &[f32]) -> f32 {
    let mut lanes = [0f32; LANES];
    let (x, rest) = x.as_chunks::<LANES>();
    for x in x {
        for l in 0..LANES {
            lanes[l] += x[l];
        }
    }
    let mut all = lanes;
    for i in 0..rest.len().min(LANES) {
        all[i] += rest[i];
    }
    fold(all, |a, b| a + b)
}

/// `max(x_i)`, negative infinity for nothing.
#[inline(always)]
pub(crate) fn maximum(x: &[f32]) -> f32 {
    let larger = |a: f32, b: f32| if a > b { a } else { b };
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let (x, rest) = x.as_chunks::<LANES>();
    for x in x {
        for l in 0..LANES {
            lanes[l] = larger(x[l], lanes[l]);
        }
    }
    let mut all = lanes;
    for i in 0..rest.len().min(LANES) {
        all[i] = larger(rest[i], all[i]);
    }
    fold(all, larger)
}

/// `e^x` to about two units in the last place (Cephes' polynomial); 0 below -87.3, infinite above 88.3, NaN of NaN.
#[inline(always)]
pub(crate) fn exp<const FUSED: bool>(x: f32) -> f32 {
    const ROUND: f32 = 12_583_039.0; // 1.5 * 2^23: adding it leaves the nearest integer in the low bits; and 127, the offset of exponents
    let shifted = multiply_add::<FUSED>(x, std::f32::consts::LOG2_E, ROUND);
    let power = shifted - ROUND;
    let rest = multiply_add::<FUSED>(power, -0.693_359_4, x);
    let rest = multiply_add::<FUSED>(power, 2.121_944_4e-4, rest);
    let mut series = 1.987_569_1e-4;
    for coefficient in [
        1.398_199_9e-3,
        8.333_452e-3,
        4.166_579_6e-2,
        0.166_666_66,
        0.5,
        1.0,
        1.0,
    ] {
        series = multiply_add::<FUSED>(series, rest, coefficient);
    }
    let value = series * f32::from_bits(shifted.to_bits() << 23);
    let value = if x < -87.3 { 0.0 } else { value };
    if x > 88.3 { f32::INFINITY } else { value }
}

/// `2^x` to about two units in the last place (Cephes' polynomial), for `x` within 126 of zero and as if it were beyond;
/// cheaper than [`exp`]. NaN of NaN.
#[inline(always)]
pub(crate) fn exp2<const FUSED: bool>(x: f32) -> f32 {
    const ROUND: f32 = 12_583_039.0; // see `exp`
    let x = if x < -126.0 { -126.0 } else { x };
    let x = if x > 126.0 { 126.0 } else { x };
    let shifted = x + ROUND;
    let rest = x - (shifted - ROUND);
    let mut series = 1.535_336_2e-4;
    for coefficient in [
        1.339_887_4e-3,
        9.618_437e-3,
        5.550_332_5e-2,
        0.240_226_48,
        std::f32::consts::LN_2,
        1.0,
    ] {
        series = multiply_add::<FUSED>(series, rest, coefficient);
    }
    series * f32::from_bits(shifted.to_bits() << 23)
}

/// `ln(1 + e^x)`, exact to a few units in the last place for every `x`.
#[inline(always)]
pub(crate) fn softplus<const FUSED: bool>(x: f32) -> f32 {
    // ln(1 + e) = 2 artanh(s) with s = e / (2 + e), at most a third; artanh(s) / s by a polynomial in its square, to 4e-9.
    let e = exp::<FUSED>(-x.abs());
    let s = e / (2.0 + e);
    let square = s * s;
    let mut series = 0.140_788_9;
    for coefficient in [0.139_825_79, 0.200_122_98, 0.333_331_6, 1.0] {
        series = multiply_add::<FUSED>(series, square, coefficient);
    }
    let positive = if x < 0.0 { 0.0 } else { x };
    multiply_add::<FUSED>(s + s, series, positive)
}

/// `1 / (1 + e^-x)`.
#[inline(always)]
pub(crate) fn sigmoid<const FUSED: bool>(x: f32) -> f32 {
    1.0 / (1.0 + exp::<FUSED>(-x))
}

/// The hyperbolic tangent, to 2e-7.
#[inline(always)]
pub(crate) fn tanh<const FUSED: bool>(x: f32) -> f32 {
    1.0 - 2.0 / (exp::<FUSED>(2.0 * x) + 1.0)
}

/// The error function, to 2e-7 (Abramowitz and Stegun 7.1.26).
#[inline(always)]
pub(crate) fn erf<const FUSED: bool>(x: f32) -> f32 {
    let size = x.abs();
    let t = 1.0 / (1.0 + 0.327_591_1 * size);
    let mut series = 1.061_405_4;
    for coefficient in [-1.453_152, 1.421_413_7, -0.284_496_74, 0.254_829_6] {
        series = multiply_add::<FUSED>(series, t, coefficient);
    }
    let value = 1.0 - series * t * exp::<FUSED>(-size * size);
    if x < 0.0 { -value } else { value }
}

vectorised! {
    /// Adds `values` to `sums`.
    pub(crate) fn add(sums: &mut [f32], values: &[f32]) {
        sums.iter_mut().zip(values).for_each(|(sum, value)| *sum += value);
    }
}

vectorised! {
    /// Writes `x + y`.
    pub(crate) fn sums(out: &mut [f32], x: &[f32], y: &[f32]) {
        out.iter_mut().zip(x.iter().zip(y)).for_each(|(sum, (x, y))| *sum = x + y);
    }
}

vectorised! {
    /// Writes `values` times `factor`.
    pub(crate) fn scaled(out: &mut [f32], values: &[f32], factor: f32) {
        out.iter_mut().zip(values).for_each(|(out, value)| *out = value * factor);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Values with and without fused multiplications.
    fn both<T>(fused: impl Fn(f32) -> T, plain: impl Fn(f32) -> T, x: f32) -> [T; 2] {
        [fused(x), plain(x)]
    }

    #[test]
    fn exponentials_agree_with_the_standard_library() {
        let exp = |x| both(exp::<true>, exp::<false>, x);
        for i in -8700..8800 {
            let x = i as f32 * 0.01 + 0.003;
            for value in exp(x) {
                let (value, expected) = (f64::from(value), f64::from(x).exp());
                assert!(
                    ((value - expected) / expected).abs() < 3e-7,
                    "{x}: {value} against {expected}"
                );
            }
        }
        assert_eq!(exp(f32::NEG_INFINITY), [0.0; 2]);
        assert_eq!(exp(f32::INFINITY), [f32::INFINITY; 2]);
        assert_eq!((exp(-1e30), exp(0.0)), ([0.0; 2], [1.0; 2]));
        assert!(exp(f32::NAN).iter().all(|value| value.is_nan()));
    }

    #[test]
    fn powers_of_two_and_softplus_agree_with_the_standard_library() {
        let exp2 = |x| both(exp2::<true>, exp2::<false>, x);
        let softplus = |x| both(softplus::<true>, softplus::<false>, x);
        for i in -12600..12600 {
            let x = i as f32 * 0.01 + 0.003;
            for value in exp2(x) {
                let (value, expected) = (f64::from(value), f64::from(x).exp2());
                assert!(
                    ((value - expected) / expected).abs() < 3e-7,
                    "{x}: {value} against {expected}"
                );
            }
            let x = i as f32 * 0.005;
            for value in softplus(x) {
                let (value, expected) = (f64::from(value), f64::from(x).exp().ln_1p());
                assert!(
                    ((value - expected) / expected).abs() < 5e-7,
                    "{x}: {value} against {expected}"
                );
            }
        }
        for (x, expected) in [
            (0.0, 1.0),
            (-5.0, 0.03125),
            (f32::NEG_INFINITY, f32::MIN_POSITIVE),
        ] {
            assert_eq!(exp2(x), [expected; 2]);
        }
        assert!(
            exp2(f32::NAN)
                .iter()
                .chain(&softplus(f32::NAN))
                .all(|value| value.is_nan())
        );
        assert_eq!((softplus(100.0), softplus(-100.0)), ([100.0; 2], [0.0; 2]));
    }

    #[test]
    fn error_function_and_tangent() {
        let (erf, tanh) = (
            |x| both(erf::<true>, erf::<false>, x),
            |x| both(tanh::<true>, tanh::<false>, x),
        );
        for (x, expected) in [
            (0.5f32, 0.520_499_9f32),
            (1.0, 0.842_700_8),
            (2.5, 0.999_593),
            (0.0, 0.0),
        ] {
            assert!(
                erf(x).iter().all(|value| (value - expected).abs() < 2e-7),
                "{x}"
            );
            assert!(
                erf(-x).iter().all(|value| (value + expected).abs() < 2e-7),
                "{x}"
            );
            assert!(
                tanh(x).iter().all(|value| (value - x.tanh()).abs() < 2e-7),
                "{x}"
            );
        }
    }

    #[test]
    fn unknown_levels_are_named_with_the_choices() {
        assert_eq!(parse_level(""), Ok(None));
        assert_eq!(parse_level("avx2"), Ok(Some(Level::Avx2)));
        assert_eq!(
            parse_level("avx3").unwrap_err().to_string(),
            "ESPALIER_SIMD is `avx3`; leave it out, or choose one of portable, avx2, avx512, avx512bf16, amx"
        );
    }

    /// Runs all tests of this crate again with each lower instruction set.
    #[test]
    fn all_tests_pass_with_every_instruction_set() {
        if std::env::var(LEVEL_VARIABLE).is_ok() {
            return;
        }
        for name in ["portable", "avx2", "avx512", "avx512bf16"] {
            let tests = std::process::Command::new(std::env::current_exe().unwrap())
                .env(LEVEL_VARIABLE, name)
                .output();
            let tests = tests.unwrap();
            assert!(
                tests.status.success(),
                "{name}: {}",
                String::from_utf8_lossy(&tests.stdout)
            );
        }
    }

    #[test]
    fn reductions_see_every_element() {
        for count in [0, 1, 31, 32, 33, 100] {
            let x: Vec<f32> = (0..count).map(|i| ((i * 7) % 11) as f32 - 5.0).collect();
            assert_eq!(sum(&x), x.iter().sum::<f32>());
            assert_eq!(dot(&x, &x), x.iter().map(|v| v * v).sum::<f32>());
            assert_eq!(
                maximum(&x),
                x.iter().fold(f32::NEG_INFINITY, |a, b| a.max(*b))
            );
        }
    }
}
