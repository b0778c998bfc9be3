//! Plain loops, which compilers turn into whatever vectors the target has (NEON on 64-bit ARM).

use super::{Lanes, Segment};
use crate::bf16::round;

const ROWS: usize = 4;
const COLUMNS: usize = 8;

/// `a b + c`, fused where that is one instruction of every processor of the target.
#[inline(always)]
fn multiply_add(a: f32, b: f32, c: f32) -> f32 {
    if cfg!(any(target_feature = "fma", target_arch = "aarch64")) {
        a.mul_add(b, c)
    } else {
        a * b + c
    }
}

/// See [`super::Tile`].
#[allow(unsafe_code)]
pub(super) unsafe fn tile(segments: &[Segment<'_>], out: *mut f32, stride: usize, add: bool) {
    let mut sums = [[0f32; COLUMNS]; ROWS];
    for segment in segments {
        let panels = segment
            .left
            .as_chunks::<ROWS>()
            .0
            .iter()
            .zip(segment.right.as_chunks::<COLUMNS>().0);
        for (left, right) in panels.take(segment.units) {
            for (sums, left) in sums.iter_mut().zip(left) {
                for (sum, right) in sums.iter_mut().zip(right) {
                    *sum = multiply_add(*left, *right, *sum);
                }
            }
        }
    }
    for (i, sums) in sums.iter().enumerate() {
        // SAFETY: the output is as large as the caller promises.
        let out = unsafe { std::slice::from_raw_parts_mut(out.add(i * stride), COLUMNS) };
        for (out, sum) in out.iter_mut().zip(sums) {
            *out = if add { *out + sum } else { *sum };
        }
    }
}

/// See [`super::Pack`].
#[allow(unsafe_code)]
pub(super) unsafe fn pack(out: *mut f32, width: usize, lanes: Lanes) {
    // SAFETY: by the caller's promise.
    unsafe { pack_with(out, width, lanes, |x| x) }
}

/// As [`pack`], with values rounded to bf16.
#[allow(unsafe_code)]
pub(super) unsafe fn pack_rounded(out: *mut f32, width: usize, lanes: Lanes) {
    // SAFETY: by the caller's promise.
    unsafe { pack_with(out, width, lanes, round) }
}

#[allow(unsafe_code)]
#[inline(always)]
pub(super) unsafe fn pack_with(
    out: *mut f32,
    width: usize,
    lanes: Lanes,
    change: impl Fn(f32) -> f32,
) {
    for first in (0..lanes.count).step_by(width) {
        let seen = width.min(lanes.count - first);
        // SAFETY: all reads and writes lie inside what the caller promises: `count` lanes of `depth` steps, and panels of
        // `width` lanes for them.
        unsafe {
            let (source, panel) = (
                lanes.start.add(first * lanes.across),
                out.add(first * lanes.panel),
            );
            for step in 0..lanes.depth {
                let (source, to) = (source.add(step * lanes.along), panel.add(step * width));
                for lane in 0..seen {
                    to.add(lane)
                        .write(change(source.add(lane * lanes.across).read()));
                }
                for lane in seen..width {
                    to.add(lane).write(0.0);
                }
            }
        }
    }
}
