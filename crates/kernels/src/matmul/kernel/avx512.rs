//! AVX-512, with and without products of bf16 pairs: tiles of 14 x 32, so that 28 of the 32 registers hold sums.

use std::{arch::x86_64::*, mem::transmute};

use super::{Lanes, Segment};

const ROWS: usize = 14;
/// Units of a vector.
pub(super) const VECTOR: usize = 16;

/// Defines the first `HIGH` rows of a tile of some vectors in a row, around one instruction `(sums, left, right) -> sums`.
macro_rules! tile {
    ($(#[$meta:meta])* $name:ident, $vectors:literal, $features:literal, $multiply_add:expr) => {
        $(#[$meta])*
        #[allow(unsafe_code)]
        #[target_feature(enable = $features)]
        pub(super) unsafe fn $name<const HIGH: usize>(
            segments: &[Segment<'_>],
            out: *mut f32,
            stride: usize,
            add: bool,
        ) {
            let mut sums = [[_mm512_setzero_ps(); $vectors]; HIGH];
            // SAFETY: panels and output are as long as the caller promises; a prefetch may point anywhere.
            unsafe {
                for i in 0..HIGH {
                    for j in 0..$vectors {
                        _mm_prefetch::<_MM_HINT_T0>(out.wrapping_add(i * stride + j * VECTOR).cast());
                    }
                }
                for segment in segments {
                    let (left, right) = (segment.left.as_ptr(), segment.right.as_ptr());
                    for unit in 0..segment.units {
                        let (left, right) = (left.add(unit * ROWS), right.add(unit * $vectors * VECTOR));
                        let mut columns = [_mm512_setzero_ps(); $vectors];
                        for j in 0..$vectors {
                            columns[j] = _mm512_loadu_ps(right.add(j * VECTOR));
                        }
                        for i in 0..HIGH {
                            let left = _mm512_set1_ps(left.add(i).read());
                            for j in 0..$vectors {
                                sums[i][j] = $multiply_add(sums[i][j], left, columns[j]);
                            }
                        }
                    }
                }
                for (i, sums) in sums.iter().enumerate() {
                    for (j, sum) in sums.iter().enumerate() {
                        let out = out.add(i * stride + j * VECTOR);
                        let sum = if add { _mm512_add_ps(_mm512_loadu_ps(out), *sum) } else { *sum };
                        _mm512_storeu_ps(out, sum);
                    }
                }
            }
        }
    };
}

tile! {
    /// See [`super::Tile`].
    tile, 2, "avx512f", |sums, left, right| _mm512_fmadd_ps(left, right, sums)
}
tile! {
    /// As [`tile`], half as wide.
    narrow_tile, 1, "avx512f", |sums, left, right| _mm512_fmadd_ps(left, right, sums)
}
tile! {
    /// As [`tile`], over pairs of bf16.
    tile_pairs, 2, "avx512f,avx512bf16", |sums, left: __m512, right: __m512| {
        // SAFETY: both types are 512 bits of plain data.
        _mm512_dpbf16_ps(sums, transmute::<__m512, __m512bh>(left), transmute::<__m512, __m512bh>(right))
    }
}
tile! {
    /// As [`tile_pairs`], half as wide.
    narrow_tile_pairs, 1, "avx512f,avx512bf16", |sums, left: __m512, right: __m512| {
        // SAFETY: as above.
        _mm512_dpbf16_ps(sums, transmute::<__m512, __m512bh>(left), transmute::<__m512, __m512bh>(right))
    }
}

/// The first `count` of 16 elements, and zeros; 16 or more means all.
#[allow(unsafe_code)]
#[target_feature(enable = "avx512f")]
#[inline]
unsafe fn load(from: *const f32, count: usize) -> __m512 {
    // SAFETY: the caller has `count` elements; masked lanes are not read.
    unsafe {
        match count >= VECTOR {
            true => _mm512_loadu_ps(from),
            false => _mm512_maskz_loadu_ps(mask(count), from),
        }
    }
}

/// The first `count` of 16 elements; 16 or more means all.
#[allow(unsafe_code)]
#[target_feature(enable = "avx512f")]
#[inline]
unsafe fn store(out: *mut f32, values: __m512, count: usize) {
    // SAFETY: the caller has room for `count` elements; masked lanes are not written.
    unsafe {
        match count >= VECTOR {
            true => _mm512_storeu_ps(out, values),
            false => _mm512_mask_storeu_ps(out, mask(count), values),
        }
    }
}

#[inline(always)]
fn mask(count: usize) -> u16 {
    ((1u32 << count) - 1) as u16
}

/// Defines a pack from `beside(start, second start, count)`, which loads a unit of 16 adjacent lanes from one step or two, and
/// `along(start, left)`, which loads 16 units of one lane, of whose steps `left` are left.
macro_rules! pack {
    ($(#[$meta:meta])* $name:ident, $features:literal, $pair:literal, $beside:expr, $along:expr) => {
        $(#[$meta])*
        #[allow(unsafe_code)]
        #[target_feature(enable = $features)]
        pub(super) unsafe fn $name(out: *mut f32, width: usize, lanes: Lanes) {
            let units = lanes.depth.div_ceil($pair);
            // SAFETY: all reads and writes lie inside what the caller promises: `count` lanes of `depth` steps, and panels
            // of `width` lanes for them.
            unsafe {
                if lanes.across == 1 {
                    // Panel by panel: they often lie whole pages apart, where the first cache could not hold a line of each.
                    for first in (0..lanes.count).step_by(width) {
                        for unit in 0..units {
                            let source = lanes.start.add($pair * unit * lanes.along);
                            let second = ($pair * unit + 1 < lanes.depth).then(|| source.wrapping_add(lanes.along));
                            let to = out.add(first * lanes.panel + unit * width);
                            for x in (0..width).step_by(VECTOR) {
                                let count = (lanes.count - first).min(width).saturating_sub(x);
                                let second = second.map(|second| second.wrapping_add(first + x));
                                store(to.add(x), $beside(source.wrapping_add(first + x), second, count), width - x);
                            }
                        }
                    }
                    return;
                }
                for first in (0..lanes.count).step_by(width) {
                    for x in (0..width).step_by(VECTOR) {
                        let count = (lanes.count - first).min(width).saturating_sub(x).min(VECTOR);
                        let source = lanes.start.wrapping_add((first + x) * lanes.across);
                        let mut unit = 0;
                        while unit < units {
                            let mut rows = [_mm512_setzero_ps(); VECTOR];
                            let (step, left) = ($pair * unit, lanes.depth - $pair * unit);
                            for i in 0..VECTOR {
                                if i < count {
                                    rows[i] = $along(source.wrapping_add(i * lanes.across + step), left);
                                }
                            }
                            let to = out.add(first * lanes.panel + unit * width + x);
                            let columns = transposed(rows);
                            for k in 0..VECTOR {
                                if k < units - unit {
                                    store(to.wrapping_add(k * width), columns[k], width - x);
                                }
                            }
                            unit += VECTOR;
                        }
                    }
                }
            }
        }
    };
}

pack! {
    /// See [`super::Pack`].
    pack, "avx512f", 1, |source, _: Option<*const f32>, count| load(source, count), |source, left| load(source, left)
}
pack! {
    /// As [`pack`], with values rounded to bf16.
    pack_rounded, "avx512f", 1, |source, _: Option<*const f32>, count| rounded(load(source, count)),
    |source, left| rounded(load(source, left))
}
pack! {
    /// As [`pack`], in pairs of bf16.
    pack_pairs, "avx512f,avx512bw,avx512bf16", 2,
    |source, second, count| pairs_beside(source, second, count), |source, left| pairs_along(source, left)
}

/// A pair of steps of 16 adjacent lanes, of which there are `count`.
#[allow(unsafe_code)]
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
#[inline]
pub(super) unsafe fn pairs_beside(
    source: *const f32,
    second: Option<*const f32>,
    count: usize,
) -> __m512 {
    // SAFETY: as for `load`; both types are 512 bits of plain data.
    unsafe {
        let second = second.map_or(_mm512_setzero_ps(), |second| load(second, count));
        let both = transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(second, load(source, count)));
        _mm512_castsi512_ps(_mm512_permutexvar_epi16(interleaving(), both))
    }
}

/// 16 pairs of steps of one lane, of whose steps `left` are left.
#[allow(unsafe_code)]
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
#[inline]
pub(super) unsafe fn pairs_along(source: *const f32, left: usize) -> __m512 {
    // SAFETY: as for `load`; both types are 512 bits of plain data.
    unsafe {
        let second = match left > VECTOR {
            true => load(source.wrapping_add(VECTOR), left - VECTOR),
            false => _mm512_setzero_ps(),
        };
        transmute::<__m512bh, __m512>(_mm512_cvtne2ps_pbh(second, load(source, left)))
    }
}

/// The order that brings element `i` of the lower half beside element `i` of the upper half.
#[target_feature(enable = "avx512f,avx512bw")]
#[inline]
fn interleaving() -> __m512i {
    let pair = |i: i32| (i + 16) << 16 | i;
    _mm512_set_epi32(
        pair(15),
        pair(14),
        pair(13),
        pair(12),
        pair(11),
        pair(10),
        pair(9),
        pair(8),
        pair(7),
        pair(6),
        pair(5),
        pair(4),
        pair(3),
        pair(2),
        pair(1),
        pair(0),
    )
}

/// To bf16, to nearest with ties to even; NaN stays NaN.
#[target_feature(enable = "avx512f")]
#[inline]
fn rounded(x: __m512) -> __m512 {
    let bits = _mm512_castps_si512(x);
    let odd = _mm512_and_si512(_mm512_srli_epi32::<16>(bits), _mm512_set1_epi32(1));
    let rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    let quiet = _mm512_or_si512(bits, _mm512_set1_epi32(0x40_0000));
    let nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(x, x);
    let chosen = _mm512_mask_blend_epi32(nan, rounded, quiet);
    _mm512_castsi512_ps(_mm512_and_si512(
        chosen,
        _mm512_set1_epi32(0xffff_0000u32 as i32),
    ))
}

/// The even quarters of both.
#[target_feature(enable = "avx512f")]
#[inline]
fn even(a: __m512, b: __m512) -> __m512 {
    _mm512_shuffle_f32x4::<0x88>(a, b)
}

/// The odd quarters of both.
#[target_feature(enable = "avx512f")]
#[inline]
fn odd(a: __m512, b: __m512) -> __m512 {
    _mm512_shuffle_f32x4::<0xdd>(a, b)
}

/// Rows become columns.
#[target_feature(enable = "avx512f")]
#[inline]
pub(super) fn transposed(mut rows: [__m512; 16]) -> [__m512; 16] {
    for i in 0..8 {
        let (a, b) = (rows[2 * i], rows[2 * i + 1]);
        rows[2 * i] = _mm512_unpacklo_ps(a, b);
        rows[2 * i + 1] = _mm512_unpackhi_ps(a, b);
    }
    // After this, quarter `l` of `rows[4 i + j]` holds column `4 l + j` of rows `4 i` to `4 i + 3`.
    for i in 0..4 {
        let (a, b) = (
            _mm512_castps_pd(rows[4 * i]),
            _mm512_castps_pd(rows[4 * i + 1]),
        );
        let (c, d) = (
            _mm512_castps_pd(rows[4 * i + 2]),
            _mm512_castps_pd(rows[4 * i + 3]),
        );
        rows[4 * i] = _mm512_castpd_ps(_mm512_unpacklo_pd(a, c));
        rows[4 * i + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(a, c));
        rows[4 * i + 2] = _mm512_castpd_ps(_mm512_unpacklo_pd(b, d));
        rows[4 * i + 3] = _mm512_castpd_ps(_mm512_unpackhi_pd(b, d));
    }
    for j in 0..4 {
        let (a, b, c, d) = (rows[j], rows[4 + j], rows[8 + j], rows[12 + j]);
        let (even_low, even_high) = (even(a, b), even(c, d));
        let (odd_low, odd_high) = (odd(a, b), odd(c, d));
        rows[j] = even(even_low, even_high);
        rows[4 + j] = even(odd_low, odd_high);
        rows[8 + j] = odd(even_low, even_high);
        rows[12 + j] = odd(odd_low, odd_high);
    }
    rows
}
