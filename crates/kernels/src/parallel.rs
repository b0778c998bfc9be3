//! Writing to one buffer from many threads.

use std::marker::PhantomData;

/// A buffer as rows of one width, each of which one task may write.
pub(crate) struct DisjointRows<'a> {
    start: *mut f32,
    rows: usize,
    width: usize,
    buffer: PhantomData<&'a mut [f32]>,
}

#[allow(unsafe_code)]
// SAFETY: the buffer is borrowed mutably for as long as this lives, and `row` asks for disjoint use.
unsafe impl Sync for DisjointRows<'_> {}

impl<'a> DisjointRows<'a> {
    /// `buffer` as rows of `width` elements.
    pub fn new(buffer: &'a mut [f32], width: usize) -> Self {
        Self { rows: buffer.len() / width.max(1), start: buffer.as_mut_ptr(), width, buffer: PhantomData }
    }

    /// One row.
    ///
    /// # Safety
    /// No two users may hold the same row at the same time.
    #[allow(unsafe_code, clippy::mut_from_ref)]
    pub unsafe fn row(&self, index: usize) -> &mut [f32] {
        assert!(index < self.rows, "row {index} of {}", self.rows);
        // SAFETY: the row lies inside the buffer by the assertion, and nobody else uses it by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(index * self.width), self.width) }
    }
}
