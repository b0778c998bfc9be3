//! AVX2 with fused multiplication and addition: tiles of 6 x 16.

use std::arch::x86_64::*;

use super::{Lanes, Segment, portable::pack_with};

const ROWS: usize = 6;
const COLUMNS: usize = 16;

/// See [`super::Tile`].
#[allow(unsafe_code)]
#[target_feature(enable = "avx2,fma")]
pub(super) unsafe fn tile(segments: &[Segment<'_>], out: *mut f32, stride: usize, add: bool) {
    let mut sums = [[_mm256_setzero_ps(); 2]; ROWS];
    // SAFETY: panels and output are as long as the caller promises.
    unsafe {
        for segment in segments {
            let (left, right) = (segment.left.as_ptr(), segment.right.as_ptr());
            for unit in 0..segment.units {
                let (left, right) = (left.add(unit * ROWS), right.add(unit * COLUMNS));
                let right = [_mm256_loadu_ps(right), _mm256_loadu_ps(right.add(8))];
                for (i, sums) in sums.iter_mut().enumerate() {
                    let left = _mm256_broadcast_ss(&*left.add(i));
                    for (sum, right) in sums.iter_mut().zip(right) {
                        *sum = _mm256_fmadd_ps(left, right, *sum);
                    }
                }
            }
        }
        for (i, sums) in sums.iter().enumerate() {
            for (j, sum) in sums.iter().enumerate() {
                let out = out.add(i * stride + j * 8);
                let sum = if add {
                    _mm256_add_ps(_mm256_loadu_ps(out), *sum)
                } else {
                    *sum
                };
                _mm256_storeu_ps(out, sum);
            }
        }
    }
}

/// See [`super::Pack`].
#[allow(unsafe_code)]
#[target_feature(enable = "avx2,fma")]
pub(super) unsafe fn pack(out: *mut f32, width: usize, lanes: Lanes) {
    // SAFETY: by the caller's promise.
    unsafe { pack_blocks(out, width, lanes, |x| x, |x| x) }
}

/// As [`pack`], with values rounded to bf16.
#[allow(unsafe_code)]
#[target_feature(enable = "avx2,fma")]
pub(super) unsafe fn pack_rounded(out: *mut f32, width: usize, lanes: Lanes) {
    let round = |x| {
        let bits = _mm256_castps_si256(x);
        let odd = _mm256_and_si256(_mm256_srli_epi32::<16>(bits), _mm256_set1_epi32(1));
        let rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
        let quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x40_0000));
        let nan = _mm256_cmp_ps::<_CMP_UNORD_Q>(x, x);
        let chosen = _mm256_blendv_ps(
            _mm256_castsi256_ps(rounded),
            _mm256_castsi256_ps(quiet),
            nan,
        );
        _mm256_and_ps(
            chosen,
            _mm256_castsi256_ps(_mm256_set1_epi32(0xffff_0000u32 as i32)),
        )
    };
    // SAFETY: by the caller's promise.
    unsafe { pack_blocks(out, width, lanes, round, crate::bf16::round) }
}

/// Lanes that are adjacent in memory are copied; others are turned in blocks of 8 x 8.
#[allow(unsafe_code)]
#[inline(always)]
unsafe fn pack_blocks(
    out: *mut f32,
    width: usize,
    lanes: Lanes,
    change: impl Fn(__m256) -> __m256,
    change_one: impl Fn(f32) -> f32 + Copy,
) {
    if lanes.across == 1 {
        // SAFETY: by the caller's promise.
        unsafe { pack_with(out, width, lanes, change_one) };
        return;
    }
    for first in (0..lanes.count).step_by(width) {
        let count = width.min(lanes.count - first);
        let full = lanes.depth / 8 * 8;
        // SAFETY: all reads and writes lie inside what the caller promises: `count` lanes of `depth` steps, and panels of
        // `width` lanes for them. A turned block is stored lane by lane where it is narrower than 8.
        unsafe {
            let (source, panel) = (
                lanes.start.add(first * lanes.across),
                out.add(first * lanes.panel),
            );
            for block in (0..width).step_by(8) {
                let size = (width - block).min(8);
                for step in (0..full).step_by(8) {
                    let mut rows = [_mm256_setzero_ps(); 8];
                    for (i, row) in rows
                        .iter_mut()
                        .enumerate()
                        .take(size.min(count.saturating_sub(block)))
                    {
                        *row = change(_mm256_loadu_ps(
                            source.add((block + i) * lanes.across + step),
                        ));
                    }
                    for (k, column) in transposed(rows).into_iter().enumerate() {
                        store(panel.add((step + k) * width + block), column, size);
                    }
                }
                for step in full..lanes.depth {
                    for lane in block..block + size {
                        let inside = lane < count;
                        let value = if inside {
                            source.add(lane * lanes.across + step).read()
                        } else {
                            0.0
                        };
                        panel.add(step * width + lane).write(change_one(value));
                    }
                }
            }
        }
    }
}

/// The first `count` elements.
#[allow(unsafe_code)]
#[target_feature(enable = "avx2")]
#[inline]
unsafe fn store(out: *mut f32, values: __m256, count: usize) {
    // SAFETY: the caller has room for `count` elements.
    unsafe {
        if count == 8 {
            _mm256_storeu_ps(out, values);
        } else {
            let mut all = [0f32; 8];
            _mm256_storeu_ps(all.as_mut_ptr(), values);
            out.copy_from_nonoverlapping(all.as_ptr(), count);
        }
    }
}

/// Rows become columns.
#[target_feature(enable = "avx2")]
#[inline]
fn transposed(rows: [__m256; 8]) -> [__m256; 8] {
    let mut pairs = rows;
    for i in 0..4 {
        pairs[2 * i] = _mm256_unpacklo_ps(rows[2 * i], rows[2 * i + 1]);
        pairs[2 * i + 1] = _mm256_unpackhi_ps(rows[2 * i], rows[2 * i + 1]);
    }
    let mut fours = pairs;
    for i in 0..2 {
        let [a, b, c, d] = [0, 1, 2, 3].map(|j| pairs[4 * i + j]);
        fours[4 * i] = _mm256_shuffle_ps::<0x44>(a, c);
        fours[4 * i + 1] = _mm256_shuffle_ps::<0xee>(a, c);
        fours[4 * i + 2] = _mm256_shuffle_ps::<0x44>(b, d);
        fours[4 * i + 3] = _mm256_shuffle_ps::<0xee>(b, d);
    }
    let mut columns = fours;
    for j in 0..4 {
        columns[j] = _mm256_permute2f128_ps::<0x20>(fours[j], fours[4 + j]);
        columns[4 + j] = _mm256_permute2f128_ps::<0x31>(fours[j], fours[4 + j]);
    }
    columns
}
