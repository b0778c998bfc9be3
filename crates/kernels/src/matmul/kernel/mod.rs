//! The inner loops of a product, one set for each instruction set, and the layout that they read.
//!
//! A *panel* holds some lanes (rows of the left factor or columns of the right one) over a range of the depth: for each
//! unit of depth, one 32-bit value a lane. A unit is one f32, or where the processor multiplies bf16, a pair of bf16 from
//! two steps of the depth, the first in the lower half. A *tile* multiplies a panel of the left factor with one of the
//! right factor, with all its sums in registers.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod portable;

use super::{Matrix, Precision, Source};
use crate::simd::{Level, level};

/// The lanes that a pack reads: a pointer to the first, and the distances in elements between lanes and between steps; and
/// the units of a whole panel, of which the steps fill the first.
#[derive(Clone, Copy)]
struct Lanes {
    start: *const f32,
    count: usize,
    across: usize,
    depth: usize,
    along: usize,
    panel: usize,
}

/// Two panels of the same units of depth, whose product is part of a tile.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Segment<'a> {
    pub units: usize,
    pub left: &'a [f32],
    pub right: &'a [f32],
}

/// Packs lanes into panels of `width`, one after another: `(out, width, lanes)`.
type Pack = unsafe fn(*mut f32, usize, Lanes);
/// Sums the products of panels: `(segments, out, distance between rows of out, whether to add to out)`.
type Tile = unsafe fn(&[Segment<'_>], *mut f32, usize, bool);

/// The inner loops of one instruction set in one precision.
#[derive(Debug)]
pub(crate) struct Kernel {
    /// Rows of a tile.
    pub rows: usize,
    /// Columns of a tile.
    pub columns: usize,
    /// Steps of the depth in a unit.
    pub pair: usize,
    pack: Pack,
    tile: Tile,
}

/// The largest tile of all instruction sets, in elements.
pub(crate) const LARGEST_TILE: usize = 14 * 32;

static PORTABLE: [Kernel; 2] = [
    Kernel { rows: 4, columns: 8, pair: 1, pack: portable::pack, tile: portable::tile },
    Kernel { rows: 4, columns: 8, pair: 1, pack: portable::pack_rounded, tile: portable::tile },
];
#[cfg(target_arch = "x86_64")]
static AVX2: [Kernel; 2] = [
    Kernel { rows: 6, columns: 16, pair: 1, pack: avx2::pack, tile: avx2::tile },
    Kernel { rows: 6, columns: 16, pair: 1, pack: avx2::pack_rounded, tile: avx2::tile },
];
#[cfg(target_arch = "x86_64")]
static AVX512: [Kernel; 3] = [
    Kernel { rows: 14, columns: 32, pair: 1, pack: avx512::pack, tile: avx512::tile },
    Kernel { rows: 14, columns: 32, pair: 1, pack: avx512::pack_rounded, tile: avx512::tile },
    Kernel { rows: 14, columns: 32, pair: 2, pack: avx512::pack_pairs, tile: avx512::tile_pairs },
];
/// The same, half as wide.
#[cfg(target_arch = "x86_64")]
static AVX512_NARROW: [Kernel; 3] = [
    Kernel { rows: 14, columns: 16, pair: 1, pack: avx512::pack, tile: avx512::narrow_tile },
    Kernel { rows: 14, columns: 16, pair: 1, pack: avx512::pack_rounded, tile: avx512::narrow_tile },
    Kernel { rows: 14, columns: 16, pair: 2, pack: avx512::pack_pairs, tile: avx512::narrow_tile_pairs },
];

/// The loops for this processor.
pub(crate) fn kernel(precision: Precision) -> &'static Kernel {
    let index = usize::from(precision == Precision::Bf16);
    match level() {
        #[cfg(target_arch = "x86_64")]
        Level::Avx512Bf16 => &AVX512[2 * index],
        #[cfg(target_arch = "x86_64")]
        Level::Avx512 => &AVX512[index],
        #[cfg(target_arch = "x86_64")]
        Level::Avx2 => &AVX2[index],
        _ => &PORTABLE[index],
    }
}

/// The loops for a product of so many columns; they read the same panels of the left factor as [`kernel`]'s.
pub(crate) fn kernel_for(precision: Precision, columns: usize) -> &'static Kernel {
    #[cfg(target_arch = "x86_64")]
    if columns <= 16 {
        let index = usize::from(precision == Precision::Bf16);
        match level() {
            Level::Avx512Bf16 => return &AVX512_NARROW[2 * index],
            Level::Avx512 => return &AVX512_NARROW[index],
            _ => {}
        }
    }
    let _ = columns;
    kernel(precision)
}

impl Kernel {
    /// Units in which `depth` steps fit.
    pub fn units(&self, depth: usize) -> usize {
        depth.div_ceil(self.pair)
    }

    /// Length of the panels of `lanes` lanes.
    pub fn packed_len(&self, width: usize, lanes: usize, depth: usize) -> usize {
        lanes.div_ceil(width) * width * self.units(depth)
    }

    /// Packs the rows of `matrix` as lanes, its columns as depth, into panels of `width` lanes. Lanes that are missing in
    /// the last panel are zero.
    pub fn pack(&self, out: &mut [f32], width: usize, matrix: Matrix<'_>) {
        assert!(out.len() >= self.packed_len(width, matrix.rows, matrix.columns), "room for the panels");
        #[allow(unsafe_code)]
        // SAFETY: the panels lie inside the slice by the assertion.
        unsafe {
            self.pack_steps(out.as_mut_ptr(), width, matrix, self.units(matrix.columns));
        }
    }

    /// As [`Kernel::pack`] for some steps of panels that hold `panel` units.
    ///
    /// # Safety
    /// `out` points to the first of these units in the first panel, and nobody else uses the units of any panel meanwhile.
    #[allow(unsafe_code)]
    pub unsafe fn pack_steps(&self, out: *mut f32, width: usize, matrix: Matrix<'_>, panel: usize) {
        if matrix.rows * matrix.columns == 0 {
            return;
        }
        let Source::Values(values) = matrix.source else {
            // SAFETY: by the caller's promise.
            unsafe { self.make_steps(out, width, matrix, panel) };
            return;
        };
        assert!(matrix.row_stride == 1 || matrix.column_stride == 1, "neither rows nor columns are adjacent");
        let last = (matrix.rows - 1) * matrix.row_stride + (matrix.columns - 1) * matrix.column_stride;
        assert!(last < values.len(), "the matrix lies inside its values");
        let lanes = Lanes {
            start: values.as_ptr(),
            count: matrix.rows,
            across: matrix.row_stride,
            depth: matrix.columns,
            along: matrix.column_stride,
            panel,
        };
        // SAFETY: all elements lie inside the values by the assertion, all units where the caller promises; `kernel` chose
        // loops that the processor has.
        unsafe {
            (self.pack)(out, width, lanes);
        }
    }

    /// As [`Kernel::pack_steps`] for a matrix that is not in memory, in pieces that stay in the first cache.
    ///
    /// # Safety
    /// As there.
    #[allow(unsafe_code)]
    unsafe fn make_steps(&self, out: *mut f32, width: usize, matrix: Matrix<'_>, panel: usize) {
        /// Steps of a piece where the lanes of a step are adjacent: whole units.
        const STEPS: usize = 8;
        let (lanes, depth) = (matrix.rows, matrix.columns);
        let size = if matrix.is_transposed() { STEPS } else { width };
        for first in (0..if matrix.is_transposed() { depth } else { lanes }).step_by(size) {
            let (out, piece) = match matrix.is_transposed() {
                true => {
                    let piece = matrix.part(0, lanes, first, size.min(depth - first));
                    (out.wrapping_add(first / self.pair * width), piece)
                }
                false => (out.wrapping_add(first * panel), matrix.part(first, size.min(lanes - first), 0, depth)),
            };
            // SAFETY: the pieces are parts of what the caller gave, and their places are those of these parts.
            piece.in_memory(|piece, _| unsafe { self.pack_steps(out, width, piece, panel) });
        }
    }

    /// `out = sum` or `out += sum` of the segments' products, on the first `size` rows and columns of a tile.
    ///
    /// # Safety
    /// `out` points to that many rows, `stride` apart, of that many elements, which nobody else uses meanwhile.
    #[allow(unsafe_code)]
    #[inline]
    pub unsafe fn tile(&self, segments: &[Segment<'_>], out: *mut f32, stride: usize, size: [usize; 2], add: bool) {
        for segment in segments {
            let Segment { units, left, right } = segment;
            assert!(left.len() >= units * self.rows && right.len() >= units * self.columns);
        }
        if size == [self.rows, self.columns] {
            // SAFETY: the panels are long enough by the assertion, the output by the caller's promise.
            unsafe { (self.tile)(segments, out, stride, add) };
            return;
        }
        // SAFETY: as above.
        unsafe { self.partial_tile(segments, out, stride, size, add) };
    }

    /// A tile at the edge of the output, by way of a whole one.
    #[allow(unsafe_code)]
    unsafe fn partial_tile(&self, segments: &[Segment<'_>], out: *mut f32, stride: usize, size: [usize; 2], add: bool) {
        let mut whole = [0.0; LARGEST_TILE];
        // SAFETY: as above; `whole` has room for the largest tile.
        unsafe { (self.tile)(segments, whole.as_mut_ptr(), self.columns, false) };
        for (i, row) in whole.chunks_exact(self.columns).take(size[0]).enumerate() {
            // SAFETY: the row lies inside the output by the caller's promise.
            let out = unsafe { std::slice::from_raw_parts_mut(out.add(i * stride), size[1]) };
            match add {
                true => out.iter_mut().zip(row).for_each(|(out, value)| *out += value),
                false => out.copy_from_slice(&row[..size[1]]),
            }
        }
    }
}
