//! AMX, products of bf16 in a unit of its own: tiles of 32 x 32, four of the unit's eight registers holding sums of 16 x 16.
//!
//! A register of the right factor holds 16 units of 16 columns as they lie in a panel. One of the left factor wants the units of
//! a row side by side: there a panel holds `[16 units][32 rows]` turned around, block after block. Both are filled up with zeros
//! to whole blocks of [`BLOCK`] units. The unit takes subnormal numbers as zeros.

use std::{arch::asm, arch::x86_64::*, cell::Cell};

use super::{
    Lanes, Segment,
    avx512::{VECTOR, pack_pairs, pairs_along, pairs_beside, transposed},
};

/// Rows of a tile.
pub(super) const ROWS: usize = 32;
/// Units of a block.
pub(super) const BLOCK: usize = 16;
/// Bytes of a row of a register.
const ROW: usize = 64;

/// The shapes of the unit's registers, as the processor reads them.
#[repr(C, align(64))]
struct Configuration {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

static CONFIGURATION: Configuration = {
    let (mut row_bytes, mut rows, mut i) = ([0; 16], [0; 16], 0);
    while i < 8 {
        (row_bytes[i], rows[i]) = (ROW as u16, 16);
        i += 1;
    }
    Configuration {
        palette: 1,
        start_row: 0,
        reserved: [0; 14],
        row_bytes,
        rows,
    }
};

/// Shapes the calling thread's registers, once.
#[allow(unsafe_code)]
#[inline]
fn configure() {
    thread_local! {
        static DONE: Cell<bool> = const { Cell::new(false) };
    }
    if !DONE.get() {
        // SAFETY: the processor has the unit and the process may use it, else these loops would not have been chosen.
        unsafe {
            asm!("ldtilecfg [{}]", in(reg) &raw const CONFIGURATION, options(nostack, readonly));
        }
        DONE.set(true);
    }
}

/// Defines a tile of one or two registers of columns: their loads, products and stores, in assembly, for which Rust has no
/// stable functions. Sums are loaded from the output and stored there once a segment.
macro_rules! tile {
    ($(#[$meta:meta])* $name:ident, $columns:literal, [$($load:literal),*], [$($clear:literal),*], [$($multiply:literal),*],
        [$($store:literal),*]) => {
        $(#[$meta])*
        #[allow(unsafe_code)]
        pub(super) unsafe fn $name(segments: &[Segment<'_>], out: *mut f32, stride: usize, add: bool) {
            configure();
            for (i, segment) in segments.iter().enumerate() {
                // SAFETY: panels and output are as long as the caller promises, and all registers are named.
                unsafe {
                    asm!(
                        "test {add}, {add}",
                        "jz 3f",
                        $($load,)*
                        "jmp 4f",
                        "3:",
                        $($clear,)*
                        "4:",
                        "test {count}, {count}",
                        "jz 5f",
                        "2:",
                        $($multiply,)*
                        "dec {count}",
                        "jnz 2b",
                        "5:",
                        $($store,)*
                        add = in(reg) usize::from(add || i > 0),
                        count = inout(reg) segment.units / BLOCK => _,
                        left = inout(reg) segment.left.as_ptr() => _,
                        right = inout(reg) segment.right.as_ptr() => _,
                        left_row = in(reg) ROW,
                        right_row = in(reg) $columns * size_of::<f32>(),
                        top = in(reg) out,
                        bottom = in(reg) out.wrapping_add(16 * stride),
                        out_row = in(reg) stride * size_of::<f32>(),
                        out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                        out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                        options(nostack),
                    );
                }
            }
        }
    };
}

tile! {
    /// See [`super::Tile`].
    tile, 32,
    ["tileloadd tmm0, [{top} + {out_row}]", "tileloadd tmm1, [{top} + {out_row} + 64]",
     "tileloadd tmm2, [{bottom} + {out_row}]", "tileloadd tmm3, [{bottom} + {out_row} + 64]"],
    ["tilezero tmm0", "tilezero tmm1", "tilezero tmm2", "tilezero tmm3"],
    ["tileloadd tmm4, [{left} + {left_row}]", "tileloadd tmm6, [{right} + {right_row}]", "tdpbf16ps tmm0, tmm4, tmm6",
     "tileloadd tmm7, [{right} + {right_row} + 64]", "tdpbf16ps tmm1, tmm4, tmm7",
     "tileloadd tmm5, [{left} + {left_row} + 1024]", "tdpbf16ps tmm2, tmm5, tmm6", "tdpbf16ps tmm3, tmm5, tmm7",
     "add {left}, 2048", "add {right}, 2048"],
    ["tilestored [{top} + {out_row}], tmm0", "tilestored [{top} + {out_row} + 64], tmm1",
     "tilestored [{bottom} + {out_row}], tmm2", "tilestored [{bottom} + {out_row} + 64], tmm3"]
}
tile! {
    /// As [`tile`], half as wide.
    narrow_tile, 16,
    ["tileloadd tmm0, [{top} + {out_row}]", "tileloadd tmm2, [{bottom} + {out_row}]"],
    ["tilezero tmm0", "tilezero tmm2"],
    ["tileloadd tmm4, [{left} + {left_row}]", "tileloadd tmm6, [{right} + {right_row}]", "tdpbf16ps tmm0, tmm4, tmm6",
     "tileloadd tmm5, [{left} + {left_row} + 1024]", "tdpbf16ps tmm2, tmm5, tmm6",
     "add {left}, 2048", "add {right}, 1024"],
    ["tilestored [{top} + {out_row}], tmm0", "tilestored [{bottom} + {out_row}], tmm2"]
}

/// Packs lanes of the right factor.
#[allow(unsafe_code)]
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
pub(super) unsafe fn pack_right(out: *mut f32, width: usize, lanes: Lanes) {
    // SAFETY: by the caller's promise; panels have room for whole blocks.
    unsafe {
        pack_pairs(out, width, lanes);
        let units = lanes.depth.div_ceil(2);
        let missing = units.next_multiple_of(BLOCK) - units;
        for first in (0..lanes.count).step_by(width) {
            out.add(first * lanes.panel + units * width)
                .write_bytes(0, missing * width);
        }
    }
}

/// Packs lanes of the left factor.
#[allow(unsafe_code)]
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
pub(super) unsafe fn pack_left(out: *mut f32, width: usize, lanes: Lanes) {
    let zeros = _mm512_setzero_ps();
    for block in 0..lanes.depth.div_ceil(2 * BLOCK) {
        let (step, left) = (block * 2 * BLOCK, lanes.depth - block * 2 * BLOCK);
        for first in (0..lanes.count).step_by(width) {
            let to = out.wrapping_add(first * lanes.panel + block * BLOCK * width);
            for x in (0..width).step_by(VECTOR) {
                let count = (lanes.count - first).saturating_sub(x).min(VECTOR);
                let source = lanes
                    .start
                    .wrapping_add((first + x) * lanes.across + step * lanes.along);
                let mut rows = [zeros; VECTOR];
                for (i, row) in rows.iter_mut().enumerate() {
                    // SAFETY: lanes and steps that are read are those that the caller has.
                    unsafe {
                        if lanes.across == 1 && 2 * i < left {
                            let unit = source.wrapping_add(2 * i * lanes.along);
                            let second = (2 * i + 1 < left).then(|| unit.wrapping_add(lanes.along));
                            *row = pairs_beside(unit, second, count);
                        } else if lanes.across != 1 && i < count {
                            *row = pairs_along(source.wrapping_add(i * lanes.across), left);
                        }
                    }
                }
                let rows = if lanes.across == 1 {
                    transposed(rows)
                } else {
                    rows
                };
                for (i, row) in rows.into_iter().enumerate() {
                    // SAFETY: panels have room for whole blocks of all lanes.
                    unsafe { _mm512_storeu_ps(to.wrapping_add((x + i) * BLOCK), row) };
                }
            }
        }
    }
}
