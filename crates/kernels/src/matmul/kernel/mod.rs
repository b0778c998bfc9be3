//! The inner loops of a product, one set for each instruction set, and the layout that they read.
//!
//! A *panel* holds some lanes (rows of the left factor or columns of the right one) over a range of the depth: for each
//! unit of depth, one 32-bit value a lane. A unit is one f32, or where the processor multiplies bf16, a pair of bf16 from
//! two steps of the depth, the first in the lower half. A *tile* multiplies a panel of the left factor with one of the
//! right factor, with all its sums in registers.

#[cfg(target_arch = "x86_64")]
mod amx;
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

impl Lanes {
    /// The rows of a matrix over `values`.
    fn new(values: &[f32], matrix: Matrix<'_>, panel: usize) -> Self {
        assert!(
            matrix.row_stride == 1 || matrix.column_stride == 1,
            "neither rows nor columns are adjacent"
        );
        let last =
            (matrix.rows - 1) * matrix.row_stride + (matrix.columns - 1) * matrix.column_stride;
        assert!(last < values.len(), "the matrix lies inside its values");
        Self {
            start: values.as_ptr(),
            count: matrix.rows,
            across: matrix.row_stride,
            depth: matrix.columns,
            along: matrix.column_stride,
            panel,
        }
    }
}

/// Rows become columns: `values` `[rows, columns]`, `out` `[columns, rows]`.
pub(crate) fn transpose(values: &[f32], rows: usize, columns: usize, out: &mut [f32]) {
    assert!(out.len() >= rows * columns, "room for the columns");
    if rows * columns > 0 {
        let kernel = kernel(Precision::F32);
        let lanes = Lanes::new(values, Matrix::new(values, rows, columns), columns);
        #[allow(unsafe_code)]
        // SAFETY: one panel of all rows as lanes, over the columns as depth, for which there is room by the assertion.
        unsafe {
            (kernel.pack[0])(out.as_mut_ptr(), rows, lanes);
        }
    }
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
    /// Units of which a panel has a multiple.
    block: usize,
    /// For panels of the left and the right factor.
    pack: [Pack; 2],
    tile: Tile,
    /// The same with fewer rows, each with its number of them, the lowest first.
    low: &'static [(usize, Tile)],
}

/// A factor of a product, whose panels have a width and a layout of their own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    /// Lanes are its rows.
    Left,
    /// Lanes are its columns.
    Right,
}

/// The largest tile of all instruction sets, in elements.
pub(crate) const LARGEST_TILE: usize = 32 * 32;

/// Loops whose panels of both factors have the same layout, and hold units alone.
const fn alike(rows: usize, columns: usize, pair: usize, pack: Pack, tile: Tile) -> Kernel {
    Kernel {
        rows,
        columns,
        pair,
        block: 1,
        pack: [pack; 2],
        tile,
        low: &[],
    }
}

/// Loops of AVX-512, for all rows of a panel and for the first ones.
#[cfg(target_arch = "x86_64")]
macro_rules! avx512 {
    ($columns:literal, $pair:literal, $pack:path, $tile:path) => {{
        use $tile as tile;
        let low = &[
            (2, tile::<2> as Tile),
            (4, tile::<4>),
            (6, tile::<6>),
            (8, tile::<8>),
            (10, tile::<10>),
            (12, tile::<12>),
        ];
        Kernel {
            low,
            ..alike(14, $columns, $pair, $pack, tile::<14>)
        }
    }};
}

static PORTABLE: [Kernel; 2] = [
    alike(4, 8, 1, portable::pack, portable::tile),
    alike(4, 8, 1, portable::pack_rounded, portable::tile),
];
#[cfg(target_arch = "x86_64")]
static AVX2: [Kernel; 2] = [
    alike(6, 16, 1, avx2::pack, avx2::tile),
    alike(6, 16, 1, avx2::pack_rounded, avx2::tile),
];
#[cfg(target_arch = "x86_64")]
static AVX512: [Kernel; 3] = [
    avx512!(32, 1, avx512::pack, avx512::tile),
    avx512!(32, 1, avx512::pack_rounded, avx512::tile),
    avx512!(32, 2, avx512::pack_pairs, avx512::tile_pairs),
];
/// The same, half as wide.
#[cfg(target_arch = "x86_64")]
static AVX512_NARROW: [Kernel; 3] = [
    avx512!(16, 1, avx512::pack, avx512::narrow_tile),
    avx512!(16, 1, avx512::pack_rounded, avx512::narrow_tile),
    avx512!(16, 2, avx512::pack_pairs, avx512::narrow_tile_pairs),
];

/// With tiles as wide as AVX-512's.
#[cfg(target_arch = "x86_64")]
static AMX: [Kernel; 2] = {
    const fn kernel(columns: usize, tile: Tile) -> Kernel {
        let pack: [Pack; 2] = [amx::pack_left, amx::pack_right];
        Kernel {
            rows: amx::ROWS,
            columns,
            pair: 2,
            block: amx::BLOCK,
            pack,
            tile,
            low: &[],
        }
    }
    [kernel(32, amx::tile), kernel(16, amx::narrow_tile)]
};

/// The loops for this processor.
pub(crate) fn kernel(precision: Precision) -> &'static Kernel {
    let index = usize::from(precision == Precision::Bf16);
    match level() {
        #[cfg(target_arch = "x86_64")]
        Level::Amx if precision == Precision::Bf16 => &AMX[0],
        #[cfg(target_arch = "x86_64")]
        Level::Amx | Level::Avx512Bf16 => &AVX512[2 * index],
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
            Level::Amx if precision == Precision::Bf16 => return &AMX[1],
            Level::Amx | Level::Avx512Bf16 => return &AVX512_NARROW[2 * index],
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
        depth.div_ceil(self.pair).next_multiple_of(self.block)
    }

    /// Lanes of a panel.
    pub fn width(&self, side: Side) -> usize {
        match side {
            Side::Left => self.rows,
            Side::Right => self.columns,
        }
    }

    /// Length of the panels of `lanes` lanes.
    pub fn packed_len(&self, side: Side, lanes: usize, depth: usize) -> usize {
        lanes.next_multiple_of(self.width(side)) * self.units(depth)
    }

    /// Packs the rows of `matrix` as lanes, its columns as depth, into panels. Lanes that are missing in the last panel are
    /// zero.
    pub fn pack(&self, out: &mut [f32], side: Side, matrix: Matrix<'_>) {
        assert!(
            out.len() >= self.packed_len(side, matrix.rows, matrix.columns),
            "room for the panels"
        );
        #[allow(unsafe_code)]
        // SAFETY: the panels lie inside the slice by the assertion.
        unsafe {
            self.pack_steps(out.as_mut_ptr(), side, matrix, self.units(matrix.columns));
        }
    }

    /// As [`Kernel::pack`] for some steps of panels that hold `panel` units: whole blocks of units, unless they are the last.
    ///
    /// # Safety
    /// `out` points to the first of these units in the first panel, and nobody else uses the units of any panel meanwhile.
    #[allow(unsafe_code)]
    pub unsafe fn pack_steps(&self, out: *mut f32, side: Side, matrix: Matrix<'_>, panel: usize) {
        if matrix.rows * matrix.columns == 0 {
            return;
        }
        let Source::Values(values) = matrix.source else {
            // SAFETY: by the caller's promise.
            unsafe { self.make_steps(out, side, matrix, panel) };
            return;
        };
        let lanes = Lanes::new(values, matrix, panel);
        // SAFETY: all elements lie inside the values, all units where the caller promises; `kernel` chose loops that the
        // processor has.
        unsafe {
            (self.pack[side as usize])(out, self.width(side), lanes);
        }
    }

    /// As [`Kernel::pack_steps`] for a matrix that is not in memory, in pieces that stay in the first cache.
    ///
    /// # Safety
    /// As there.
    #[allow(unsafe_code)]
    unsafe fn make_steps(&self, out: *mut f32, side: Side, matrix: Matrix<'_>, panel: usize) {
        /// Steps of a piece where the lanes of a step are adjacent.
        const STEPS: usize = 8;
        let (lanes, depth, width) = (matrix.rows, matrix.columns, self.width(side));
        let size = if matrix.is_transposed() {
            STEPS.max(self.block * self.pair)
        } else {
            width
        };
        for first in (0..if matrix.is_transposed() { depth } else { lanes }).step_by(size) {
            let (out, piece) = match matrix.is_transposed() {
                true => {
                    let piece = matrix.part(0, lanes, first, size.min(depth - first));
                    (out.wrapping_add(first / self.pair * width), piece)
                }
                false => (
                    out.wrapping_add(first * panel),
                    matrix.part(first, size.min(lanes - first), 0, depth),
                ),
            };
            // SAFETY: the pieces are parts of what the caller gave, and their places are those of these parts.
            piece.in_memory(|piece, _| unsafe { self.pack_steps(out, side, piece, panel) });
        }
    }

    /// `out = sum` or `out += sum` of the segments' products, on the first `size` rows and columns of a tile.
    ///
    /// # Safety
    /// `out` points to that many rows, `stride` apart, of that many elements, which nobody else uses meanwhile.
    #[allow(unsafe_code)]
    #[inline]
    pub unsafe fn tile(
        &self,
        segments: &[Segment<'_>],
        out: *mut f32,
        stride: usize,
        size: [usize; 2],
        add: bool,
    ) {
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
    unsafe fn partial_tile(
        &self,
        segments: &[Segment<'_>],
        out: *mut f32,
        stride: usize,
        size: [usize; 2],
        add: bool,
    ) {
        let mut whole = [0.0; LARGEST_TILE];
        // SAFETY: the rows lie inside the output by the caller's promise.
        let row =
            |i: usize| unsafe { std::slice::from_raw_parts_mut(out.add(i * stride), size[1]) };
        if add {
            whole
                .chunks_exact_mut(self.columns)
                .take(size[0])
                .enumerate()
                .for_each(|(i, whole)| {
                    whole[..size[1]].copy_from_slice(row(i));
                });
        }
        let tile = self
            .low
            .iter()
            .find(|(rows, _)| *rows >= size[0])
            .map_or(self.tile, |(_, tile)| *tile);
        // SAFETY: as above; `whole` has room for the largest tile.
        unsafe { tile(segments, whole.as_mut_ptr(), self.columns, add) };
        whole
            .chunks_exact(self.columns)
            .take(size[0])
            .enumerate()
            .for_each(|(i, whole)| {
                row(i).copy_from_slice(&whole[..size[1]]);
            });
    }
}
