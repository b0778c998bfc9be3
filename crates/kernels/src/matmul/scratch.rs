//! Working memory that a thread keeps between products.

use std::cell::RefCell;

/// A cache line: vectors that start with one are aligned for every instruction set.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([f32; 16]);

thread_local! {
    /// Memory that is not in use, the last one of the innermost call first.
    static KEPT: RefCell<Vec<Vec<Line>>> = const { RefCell::new(Vec::new()) };
}

/// Calls `work` with `count` numbers of any value. Nested calls get memory of their own.
pub(crate) fn with<T>(count: usize, work: impl FnOnce(&mut [f32]) -> T) -> T {
    let mut lines = KEPT.with_borrow_mut(Vec::pop).unwrap_or_default();
    let wanted = count.div_ceil(16);
    if lines.len() < wanted {
        lines.resize(wanted, Line([0.0; 16]));
    }
    #[allow(unsafe_code)]
    // SAFETY: lines are arrays of f32 without padding, one after another.
    let numbers = unsafe {
        std::slice::from_raw_parts_mut(lines.as_mut_ptr().cast::<f32>(), lines.len() * 16)
    };
    let result = work(&mut numbers[..count]);
    KEPT.with_borrow_mut(|kept| kept.push(lines));
    result
}

/// As [`with`], in parts of the given lengths, each of which starts with a cache line. Parts of equal lengths do not start at equal
/// places of a page, where the first cache could not hold what is read from all of them together.
pub(crate) fn parts<const N: usize, T>(
    lengths: [usize; N],
    work: impl FnOnce([&mut [f32]; N]) -> T,
) -> T {
    const APART: usize = 64;
    let starts = lengths.map(|length| length.next_multiple_of(16) + APART);
    with(starts.iter().sum(), |mut rest| {
        let parts = std::array::from_fn(|i| {
            let (part, behind) = std::mem::take(&mut rest).split_at_mut(starts[i]);
            rest = behind;
            &mut part[..lengths[i]]
        });
        work(parts)
    })
}
