//! Left factors of products with quantised rows, rounded to eight bits in blocks of 32.
//!
//! A row of activations is rounded once, `x = d q` with `d = max |x| / 127` over 32 numbers, and every row of the weight is then
//! multiplied in integers, which is exact: sums of 32 products of bytes fit in 32 bits. Such a product takes a fraction of the
//! arithmetic of one in f32, so that decoding waits for the memory alone. Products with many rows on the left stay in floating point.

use crate::simd::vectorised;

/// Numbers that have a scale in common.
pub const ROUNDED_BLOCK: usize = 32;

/// Rows of a left factor in eight bits.
///
/// ```
/// use espalier_kernels::stored::{Format, Q8_0, Rounded, quantised};
/// let weight = quantised(&Q8_0, &[1, 32], &[2.0; 32], None).ok_or("one block")?;
/// let left = Rounded::of(&[1.0; 32], 32);
/// let dot = Q8_0.rounded_dot().ok_or("its products are rounded")?;
/// let mut out = [0.0];
/// dot(left.row(0), weight.bytes(), 34, &mut out);
/// assert!((out[0] - 64.0).abs() < 0.1);
/// # Ok::<(), &str>(())
/// ```
#[derive(Debug)]
pub struct Rounded {
    width: usize,
    quants: Vec<i8>,
    scales: Vec<f32>,
    sums: Vec<i32>,
    totals: Vec<f32>,
}

/// One row.
#[derive(Debug, Clone, Copy)]
pub struct RoundedRow<'a> {
    /// The numbers, over their block's scale.
    pub quants: &'a [i8],
    /// Scales of the blocks.
    pub scales: &'a [f32],
    /// Sums of the blocks' quants.
    pub sums: &'a [i32],
    /// Those sums times their scales.
    pub totals: &'a [f32],
}

/// Adds the dot products of a rounded row with rows in a format, each of so many bytes, to as many numbers.
pub type RoundedDot = fn(RoundedRow<'_>, &[u8], usize, &mut [f32]);

/// Rows that are multiplied side by side: they share the left factor's registers, and additions of one need not wait for another's.
#[cfg(target_arch = "x86_64")]
pub(super) const SIDE_BY_SIDE: usize = 4;

impl Rounded {
    /// Rounds rows of `width` numbers, a multiple of [`ROUNDED_BLOCK`].
    pub fn of(values: &[f32], width: usize) -> Self {
        let blocks = values.len() / ROUNDED_BLOCK;
        let mut rounded = Self {
            width,
            quants: vec![0; blocks * ROUNDED_BLOCK],
            scales: vec![0.0; blocks],
            sums: vec![0; blocks],
            totals: vec![0.0; blocks],
        };
        round(
            values,
            &mut rounded.quants,
            &mut rounded.scales,
            &mut rounded.sums,
            &mut rounded.totals,
        );
        rounded
    }

    /// A row.
    pub fn row(&self, row: usize) -> RoundedRow<'_> {
        let blocks = self.width / ROUNDED_BLOCK;
        let place = row * blocks..(row + 1) * blocks;
        RoundedRow {
            quants: &self.quants[row * self.width..(row + 1) * self.width],
            scales: &self.scales[place.clone()],
            sums: &self.sums[place.clone()],
            totals: &self.totals[place],
        }
    }
}

vectorised! {
    fn round(values: &[f32], quants: &mut [i8], scales: &mut [f32], sums: &mut [i32], totals: &mut [f32]) {
        let blocks = values.as_chunks::<ROUNDED_BLOCK>().0;
        let quants = quants.as_chunks_mut::<ROUNDED_BLOCK>().0;
        for i in 0..blocks.len().min(quants.len()) {
            let (values, quants) = (&blocks[i], &mut quants[i]);
            let mut largest = 0f32;
            for value in values {
                let size = value.abs();
                largest = if size > largest { size } else { largest };
            }
            let scale = largest / 127.0;
            let inverse = if scale > 0.0 { 1.0 / scale } else { 0.0 };
            let mut sum = 0;
            for l in 0..ROUNDED_BLOCK {
                let quant = (values[l] * inverse).round_ties_even() as i32;
                quants[l] = quant as i8;
                sum += quant;
            }
            (scales[i], sums[i], totals[i]) = (scale, sum, scale * sum as f32);
        }
    }
}

/// `sum(a_i b_i)` of one block, in integers.
#[inline(always)]
pub(super) fn block_dot(left: &[i8], right: impl Fn(usize) -> i32) -> i32 {
    left.iter()
        .enumerate()
        .map(|(i, left)| i32::from(*left) * right(i))
        .sum()
}

/// Instructions for the integer products of one row, and whether they may run.
#[cfg(target_arch = "x86_64")]
pub(super) mod x86 {
    use std::{arch::x86_64::*, sync::OnceLock};

    use crate::simd::{Level, level};

    /// An instruction set with integer products.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub enum Instructions {
        Vnni,
        Avx2,
    }

    /// The best of the level in use.
    pub fn instructions() -> Option<Instructions> {
        static BEST: OnceLock<Option<Instructions>> = OnceLock::new();
        *BEST.get_or_init(|| {
            let vnni = level() >= Level::Avx512 && is_x86_feature_detected!("avx512vnni");
            let avx2 = level() >= Level::Avx2 && is_x86_feature_detected!("f16c");
            match (avx2, vnni) {
                (true, true) => Some(Instructions::Vnni),
                (true, false) => Some(Instructions::Avx2),
                _ => None,
            }
        })
    }

    /// Adds to each of eight sums four products of a byte without and a byte with a sign. Neighbouring products must fit 16 bits
    /// together.
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    pub fn sums_avx2(sums: __m256i, unsigned: __m256i, signed: __m256i) -> __m256i {
        let pairs = _mm256_maddubs_epi16(unsigned, signed);
        _mm256_add_epi32(sums, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)))
    }

    /// As [`sums_avx2`], in one instruction.
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512vl,avx512bw,avx512vnni")]
    pub fn sums_vnni(sums: __m256i, unsigned: __m256i, signed: __m256i) -> __m256i {
        _mm256_dpbusd_epi32(sums, unsigned, signed)
    }

    /// An f16 in f32.
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    pub fn wide(half: [u8; 2]) -> f32 {
        let half = i32::from(u16::from_le_bytes(half));
        _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(half)))
    }

    /// The sum of eight numbers.
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    pub fn total(sums: __m256) -> f32 {
        let halves = _mm_add_ps(
            _mm256_castps256_ps128(sums),
            _mm256_extractf128_ps::<1>(sums),
        );
        let pairs = _mm_add_ps(halves, _mm_movehl_ps(halves, halves));
        _mm_cvtss_f32(_mm_add_ss(pairs, _mm_movehdup_ps(pairs)))
    }

    /// The sums of eight numbers of several rows.
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    pub fn totals<const ROWS: usize>(sums: [__m256; ROWS]) -> [f32; ROWS] {
        let mut out = [0.0; ROWS];
        for row in 0..ROWS {
            out[row] = total(sums[row]);
        }
        out
    }

    /// Bytes by which memory is asked for before it is read, more than the rows side by side take up mostly: the processor itself looks no
    /// further than the end of a page, and a mapped file has small ones.
    const AHEAD: usize = 8192;

    /// Asks for the bytes so far behind a block. They may be nobody's, which such a request does not mind.
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    pub fn ask_ahead<const BYTES: usize>(block: &[u8; BYTES]) {
        const LINE: usize = 64;
        for line in (0..BYTES).step_by(LINE) {
            _mm_prefetch::<_MM_HINT_T0>(block.as_ptr().wrapping_add(AHEAD + line).cast());
        }
    }

    /// Rows as blocks of so many bytes, and the least number of blocks of one.
    #[inline(always)]
    pub fn blocks<const ROWS: usize, const BYTES: usize>(
        rows: [&[u8]; ROWS],
    ) -> ([&[[u8; BYTES]]; ROWS], usize) {
        let blocks = rows.map(|row| row.as_chunks::<BYTES>().0);
        let count = blocks.iter().map(|blocks| blocks.len()).min();
        (blocks, count.unwrap_or(0))
    }

    /// 32 bytes from here on.
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    pub fn bytes(block: &[u8; 32]) -> __m256i {
        #[allow(unsafe_code)]
        // SAFETY: they are 32 bytes.
        unsafe {
            _mm256_loadu_si256(block.as_ptr().cast())
        }
    }

    /// 32 bytes with a sign from here on.
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    pub fn signed_bytes(block: &[i8; 32]) -> __m256i {
        #[allow(unsafe_code)]
        // SAFETY: they are 32 bytes.
        unsafe {
            _mm256_loadu_si256(block.as_ptr().cast())
        }
    }

    /// Eight numbers from here on.
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    pub fn eight(numbers: &[f32; 8]) -> __m256 {
        #[allow(unsafe_code)]
        // SAFETY: they are eight.
        unsafe {
            _mm256_loadu_ps(numbers.as_ptr())
        }
    }

    /// Eight numbers in memory.
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    pub fn array(numbers: __m256) -> [f32; 8] {
        let mut out = [0.0; 8];
        #[allow(unsafe_code)]
        // SAFETY: there is room for eight.
        unsafe {
            _mm256_storeu_ps(out.as_mut_ptr(), numbers);
        }
        out
    }
}

/// Defines a [`RoundedDot`] over a body in AVX2 instructions, compiled with and without VNNI, and a portable definition of one row. The body is
/// given `$rows`, an array of `$count` rows, and leaves their products; in it `$sums` is [`x86::sums_avx2`] or its like.
macro_rules! rounded_dot {
    (
        $(#[$meta:meta])*
        fn $name:ident($left:ident, $rows:ident: [_; $count:ident]) = $portable:path;
        with $sums:ident $body:block
    ) => {
        $(#[$meta])*
        fn $name(left: $crate::stored::RoundedRow<'_>, rows: &[u8], size: usize, out: &mut [f32]) {
            #[cfg(target_arch = "x86_64")]
            {
                use $crate::stored::rounded::{SIDE_BY_SIDE, x86};

                #[inline]
                #[target_feature(enable = "avx2,fma,f16c")]
                fn avx2<const $count: usize>($left: $crate::stored::RoundedRow<'_>, $rows: [&[u8]; $count]) -> [f32; $count] {
                    use $crate::stored::rounded::x86::sums_avx2 as $sums;
                    $body
                }
                #[inline]
                #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512vl,avx512bw,avx512vnni")]
                fn vnni<const $count: usize>($left: $crate::stored::RoundedRow<'_>, $rows: [&[u8]; $count]) -> [f32; $count] {
                    use $crate::stored::rounded::x86::sums_vnni as $sums;
                    $body
                }
                #[target_feature(enable = "avx2,fma,f16c")]
                fn all_avx2(left: $crate::stored::RoundedRow<'_>, rows: &[u8], size: usize, out: &mut [f32]) {
                    let (groups, rest) = out.as_chunks_mut::<SIDE_BY_SIDE>();
                    let row = |i: usize| &rows[i * size..(i + 1) * size];
                    let alone = SIDE_BY_SIDE * groups.len();
                    for (i, out) in groups.iter_mut().enumerate() {
                        let first = SIDE_BY_SIDE * i;
                        let found = avx2(left, [row(first), row(first + 1), row(first + 2), row(first + 3)]);
                        for (out, found) in out.iter_mut().zip(found) {
                            *out += found;
                        }
                    }
                    for (i, out) in rest.iter_mut().enumerate() {
                        let [found] = avx2(left, [row(alone + i)]);
                        *out += found;
                    }
                }
                #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512vl,avx512bw,avx512vnni")]
                fn all_vnni(left: $crate::stored::RoundedRow<'_>, rows: &[u8], size: usize, out: &mut [f32]) {
                    let (groups, rest) = out.as_chunks_mut::<SIDE_BY_SIDE>();
                    let row = |i: usize| &rows[i * size..(i + 1) * size];
                    let alone = SIDE_BY_SIDE * groups.len();
                    for (i, out) in groups.iter_mut().enumerate() {
                        let first = SIDE_BY_SIDE * i;
                        let found = vnni(left, [row(first), row(first + 1), row(first + 2), row(first + 3)]);
                        for (out, found) in out.iter_mut().zip(found) {
                            *out += found;
                        }
                    }
                    for (i, out) in rest.iter_mut().enumerate() {
                        let [found] = vnni(left, [row(alone + i)]);
                        *out += found;
                    }
                }
                match x86::instructions() {
                    #[allow(unsafe_code)]
                    // SAFETY: the processor was seen to have the instructions.
                    Some(x86::Instructions::Vnni) => return unsafe { all_vnni(left, rows, size, out) },
                    #[allow(unsafe_code)]
                    // SAFETY: as above.
                    Some(x86::Instructions::Avx2) => return unsafe { all_avx2(left, rows, size, out) },
                    None => {}
                }
            }
            for (out, row) in out.iter_mut().zip(rows.chunks_exact(size.max(1))) {
                *out += $portable(left, row);
            }
        }
    };
}

pub(super) use rounded_dot;
