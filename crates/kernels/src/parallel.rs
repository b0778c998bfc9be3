//! Parallel loops for operators, and writing to one buffer from many threads.
//!
//! A training step runs thousands of short loops. The threads of this pool spin for a while between two of them before they
//! sleep, and a loop never waits for a thread that has not come: starting one costs a microsecond, not the tens that
//! waking a thread takes. Which thread runs which task changes no result.

use std::{
    cell::{Cell, UnsafeCell},
    marker::PhantomData,
    mem::MaybeUninit,
    ops::Range,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Condvar, Mutex, OnceLock, PoisonError,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

/// Time for which an idle thread spins before it sleeps.
const AWAKE: Duration = Duration::from_micros(500);
/// Looks at the state before an idle thread lets others run.
const SPINS: usize = 2000;

/// The state word: bit 0 says that the loop takes threads, bits 1 to 15 count those in it, the rest counts loops.
const OPEN: u64 = 1;
const ONE_THREAD: u64 = 2;
const THREADS: u64 = 0xfffe;
const ONE_LOOP: u64 = 0x1_0000;

type Task<'a> = dyn Fn(usize) + Sync + 'a;

/// The loop that is running.
struct Loop {
    task: *const Task<'static>,
    count: usize,
}

#[allow(unsafe_code)]
// SAFETY: the task may be called from all threads.
unsafe impl Send for Loop {}

struct Pool {
    /// Threads beside the calling one.
    helpers: usize,
    /// Held by the caller whose loop runs.
    busy: Mutex<()>,
    state: AtomicU64,
    current: UnsafeCell<Option<Loop>>,
    next: AtomicUsize,
    panicked: AtomicBool,
    sleeping: AtomicUsize,
    sleep: Mutex<()>,
    wake: Condvar,
}

#[allow(unsafe_code)]
// SAFETY: `current` is written only by the holder of `busy` while no thread is in the loop, and read only by threads that
// entered the loop through `state`.
unsafe impl Sync for Pool {}

thread_local! {
    /// Whether this thread runs a task; loops inside tasks run on it alone.
    static INSIDE: Cell<bool> = const { Cell::new(false) };
}

static POOL: OnceLock<Pool> = OnceLock::new();

/// The pool, as large as rayon's, which the environment and the binary set.
fn pool() -> &'static Pool {
    let mut fresh = false;
    let pool = POOL.get_or_init(|| {
        fresh = true;
        Pool {
            helpers: rayon::current_num_threads().saturating_sub(1).min(1000),
            busy: Mutex::new(()),
            state: AtomicU64::new(0),
            current: UnsafeCell::new(None),
            next: AtomicUsize::new(0),
            panicked: AtomicBool::new(false),
            sleeping: AtomicUsize::new(0),
            sleep: Mutex::new(()),
            wake: Condvar::new(),
        }
    });
    if fresh {
        for number in 0..pool.helpers {
            // Without a helper the loops run on fewer threads, with the same results.
            let _ = std::thread::Builder::new()
                .name(format!("operator {number}"))
                .spawn(|| pool.help());
        }
    }
    pool
}

impl Pool {
    /// A helper's life: joins every loop that it comes across.
    fn help(&self) {
        INSIDE.set(true);
        let mut seen = 0;
        loop {
            let state = self.wait_for(seen);
            seen = state / ONE_LOOP;
            let entered = state.wrapping_add(ONE_THREAD);
            if self
                .state
                .compare_exchange(state, entered, Ordering::AcqRel, Ordering::Relaxed)
                .is_err()
            {
                // Another thread entered first, or the loop has ended; look again.
                seen -= 1;
                continue;
            }
            #[allow(unsafe_code)]
            // SAFETY: this thread is counted in the loop, so that its caller waits and the loop is not changed.
            if let Some(running) = unsafe { &*self.current.get() } {
                self.work(running);
            }
            self.state.fetch_sub(ONE_THREAD, Ordering::Release);
        }
    }

    /// Waits for an open loop after number `seen`; returns the state that shows it.
    fn wait_for(&self, seen: u64) -> u64 {
        let mut idle_since = None;
        let open = |state: u64| state & OPEN != 0 && state / ONE_LOOP != seen;
        loop {
            for _ in 0..SPINS {
                let state = self.state.load(Ordering::Acquire);
                if open(state) {
                    return state;
                }
                std::hint::spin_loop();
            }
            if idle_since.get_or_insert_with(Instant::now).elapsed() < AWAKE {
                std::thread::yield_now();
                continue;
            }
            let mut guard = self.sleep.lock().unwrap_or_else(PoisonError::into_inner);
            self.sleeping.fetch_add(1, Ordering::SeqCst);
            while !open(self.state.load(Ordering::SeqCst)) {
                guard = self
                    .wake
                    .wait(guard)
                    .unwrap_or_else(PoisonError::into_inner);
            }
            self.sleeping.fetch_sub(1, Ordering::SeqCst);
            idle_since = None;
        }
    }

    /// Runs tasks until none is left.
    fn work(&self, running: &Loop) {
        loop {
            let index = self.next.fetch_add(1, Ordering::Relaxed);
            if index >= running.count {
                return;
            }
            #[allow(unsafe_code)]
            // SAFETY: the caller keeps the task alive until every thread has left the loop.
            let task = unsafe { &*running.task };
            if catch_unwind(AssertUnwindSafe(|| task(index))).is_err() {
                self.panicked.store(true, Ordering::Relaxed);
            }
        }
    }

    /// Runs a loop with whatever threads come.
    fn run(&self, count: usize, task: &Task<'_>) {
        #[allow(unsafe_code)]
        // SAFETY: only the lifetime changes. The pointer is used by threads in the loop, for whose end this function waits.
        let task = unsafe { std::mem::transmute::<*const Task<'_>, *const Task<'static>>(task) };
        #[allow(unsafe_code)]
        // SAFETY: this thread holds `busy` and the last loop has no threads left: nobody else looks at it.
        unsafe {
            *self.current.get() = Some(Loop { task, count });
        }
        self.next.store(0, Ordering::Relaxed);
        let number = self.state.load(Ordering::Relaxed) / ONE_LOOP + 1;
        self.state
            .store(number.wrapping_mul(ONE_LOOP) | OPEN, Ordering::SeqCst);
        if self.sleeping.load(Ordering::SeqCst) > 0 {
            drop(self.sleep.lock().unwrap_or_else(PoisonError::into_inner));
            self.wake.notify_all();
        }
        INSIDE.set(true);
        self.work(&Loop { task, count });
        INSIDE.set(false);
        self.state.fetch_and(!OPEN, Ordering::AcqRel);
        let mut spins = 0;
        while self.state.load(Ordering::Acquire) & THREADS != 0 {
            spins += 1;
            if spins > SPINS {
                std::thread::yield_now()
            } else {
                std::hint::spin_loop()
            }
        }
        if self.panicked.swap(false, Ordering::Relaxed) {
            std::panic::resume_unwind(Box::new("a task of a parallel loop panicked"));
        }
    }
}

/// Threads that may run a loop.
pub(crate) fn threads() -> usize {
    pool().helpers + 1
}

/// Calls `task` with every number below `count`, on all threads. Inside another loop, or while another thread runs one, it
/// runs on the calling thread alone.
pub(crate) fn for_each(count: usize, task: impl Fn(usize) + Sync) {
    if count > 1 && !INSIDE.get() {
        let pool = pool();
        if pool.helpers > 0
            && let Ok(_busy) = pool.busy.try_lock()
        {
            pool.run(count, &task);
            return;
        }
    }
    (0..count).for_each(task);
}

/// Calls `task` with every item.
pub(crate) fn for_items<T: Send>(items: Vec<T>, task: impl Fn(T) + Sync) {
    let items: Vec<Mutex<Option<T>>> = items
        .into_iter()
        .map(|item| Mutex::new(Some(item)))
        .collect();
    for_each(items.len(), |i| {
        if let Some(item) = items[i]
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take()
        {
            task(item);
        }
    });
}

/// Calls `task` with chunk `i` of every buffer, each of which has a chunk size of its own; the first one says how many chunks
/// there are, and a buffer that has fewer gives empty ones.
pub(crate) fn for_chunks<T: Send, const N: usize>(
    buffers: [(&mut [T], usize); N],
    task: impl Fn(usize, [&mut [T]; N]) + Sync,
) {
    let count = buffers
        .first()
        .map_or(0, |(buffer, size)| buffer.len().div_ceil((*size).max(1)));
    let chunks = buffers.map(|(buffer, size)| DisjointChunks::new(buffer, size));
    for_each(count, |i| {
        #[allow(unsafe_code)]
        // SAFETY: every number comes once.
        let parts = std::array::from_fn(|n| unsafe { chunks[n].chunk(i) });
        task(i, parts);
    });
}

/// New buffers of `(length, chunk size)`, whose chunks `task` fills as in [`for_chunks`]. The thread that fills a chunk clears it
/// just before: clearing a whole buffer would be a pass over memory of its own, on one thread.
pub(crate) fn fresh<T: Zero, const N: usize>(
    sizes: [(usize, usize); N],
    task: impl Fn(usize, [&mut [T]; N]) + Sync,
) -> [Vec<T>; N] {
    fresh_with(sizes, [], |i, chunks, _: [&mut [u8]; 0]| task(i, chunks)).0
}

/// As [`fresh`], with buffers of two types. The first one of the first type says how many chunks there are.
pub(crate) fn fresh_with<A: Zero, B: Zero, const N: usize, const M: usize>(
    sizes: [(usize, usize); N],
    others: [(usize, usize); M],
    task: impl Fn(usize, [&mut [A]; N], [&mut [B]; M]) + Sync,
) -> ([Vec<A>; N], [Vec<B>; M]) {
    let count = sizes
        .first()
        .map_or(0, |(length, size)| length.div_ceil((*size).max(1)));
    let covered = |(length, size): &(usize, usize)| *length <= count * size;
    assert!(
        sizes.iter().all(covered) && others.iter().all(covered),
        "chunks cover every buffer"
    );
    let (mut first, mut second) = (
        sizes.map(|size| Fresh::new(size)),
        others.map(|size| Fresh::new(size)),
    );
    {
        let (first, second) = (
            first.each_mut().map(Fresh::chunks),
            second.each_mut().map(Fresh::chunks),
        );
        for_each(count, |i| {
            #[allow(unsafe_code)]
            // SAFETY: every number comes once.
            let parts = unsafe {
                (
                    first.each_ref().map(|a| clear(a.chunk(i))),
                    second.each_ref().map(|b| clear(b.chunk(i))),
                )
            };
            task(i, parts.0, parts.1);
        });
    }
    #[allow(unsafe_code)]
    // SAFETY: every chunk was cleared, and the chunks cover every buffer.
    unsafe {
        (
            first.map(|fresh| fresh.whole()),
            second.map(|fresh| fresh.whole()),
        )
    }
}

/// Elements of a task of an elementwise loop over so many: long pieces, which memory reads ahead, but enough for many threads.
pub(crate) fn piece(count: usize) -> usize {
    (count / 32).clamp(1 << 12, 1 << 15).next_multiple_of(64)
}

/// New memory that is all zeros.
pub(crate) fn zeros(length: usize) -> Vec<f32> {
    let [zeros] = fresh([(length, 1 << 15)], |_, _: [&mut [f32]; 1]| ());
    zeros
}

/// New memory of `count` pieces of `width` elements, each a copy of what `source` names or, where it names nothing, zeros; it is
/// not cleared first.
pub(crate) fn copied<'a>(
    count: usize,
    width: usize,
    source: impl Fn(usize) -> Option<&'a [f32]> + Sync,
) -> Vec<f32> {
    /// Elements that one thread takes at a time.
    const TASK: usize = 1 << 14;
    let pieces = (TASK / width.max(1)).max(1);
    let mut fresh = Fresh::new((count * width, pieces * width));
    if width > 0 {
        let chunks = fresh.chunks();
        for_each(count.div_ceil(pieces), |task| {
            #[allow(unsafe_code)]
            // SAFETY: every number comes once.
            let chunk = unsafe { chunks.chunk(task) };
            for (i, piece) in chunk.chunks_exact_mut(width).enumerate() {
                match source(task * pieces + i) {
                    Some(source) => {
                        piece.write_copy_of_slice(source);
                    }
                    None => piece.iter_mut().for_each(|value| {
                        value.write(0.0);
                    }),
                }
            }
        });
    }
    #[allow(unsafe_code)]
    // SAFETY: all pieces were written, and they are the whole.
    unsafe {
        fresh.whole()
    }
}

/// Numbers whose zero is all zero bits.
///
/// # Safety
/// As it says.
#[allow(unsafe_code)]
pub(crate) unsafe trait Zero: Copy + Send {}

#[allow(unsafe_code)]
// SAFETY: by the definition of the types.
mod zero {
    unsafe impl super::Zero for f32 {}
    unsafe impl super::Zero for u16 {}
    unsafe impl super::Zero for u8 {}
}

/// A buffer that is filled for the first time, and the size of its chunks.
struct Fresh<T> {
    values: Vec<T>,
    length: usize,
    size: usize,
}

impl<T> Fresh<T> {
    fn new((length, size): (usize, usize)) -> Self {
        Self {
            values: Vec::with_capacity(length),
            length,
            size,
        }
    }

    fn chunks(&mut self) -> DisjointChunks<'_, MaybeUninit<T>> {
        DisjointChunks::new(
            &mut self.values.spare_capacity_mut()[..self.length],
            self.size,
        )
    }

    /// The buffer.
    ///
    /// # Safety
    /// All of it was written.
    #[allow(unsafe_code)]
    unsafe fn whole(mut self) -> Vec<T> {
        // SAFETY: by the caller's promise.
        unsafe { self.values.set_len(self.length) };
        self.values
    }
}

/// Clears memory.
#[allow(unsafe_code)]
fn clear<T: Zero>(memory: &mut [MaybeUninit<T>]) -> &mut [T] {
    // SAFETY: what is handed on has just been written.
    unsafe {
        memory.as_mut_ptr().write_bytes(0, memory.len());
        &mut *(std::ptr::from_mut(memory) as *mut [T])
    }
}

/// Chunk `i` of a slice; empty behind its end.
pub(crate) fn chunk<T>(values: &[T], size: usize, i: usize) -> &[T] {
    &values[(i * size).min(values.len())..((i + 1) * size).min(values.len())]
}

/// A buffer in chunks of one size, the last perhaps shorter, each of which one task may write.
struct DisjointChunks<'a, T> {
    start: *mut T,
    length: usize,
    size: usize,
    buffer: PhantomData<&'a mut [T]>,
}

#[allow(unsafe_code)]
// SAFETY: the buffer is borrowed mutably for as long as this lives, and `chunk` asks for disjoint use.
unsafe impl<T: Send> Sync for DisjointChunks<'_, T> {}

impl<'a, T> DisjointChunks<'a, T> {
    fn new(buffer: &'a mut [T], size: usize) -> Self {
        Self {
            start: buffer.as_mut_ptr(),
            length: buffer.len(),
            size,
            buffer: PhantomData,
        }
    }

    /// One chunk; empty behind the end.
    ///
    /// # Safety
    /// No two users may hold the same chunk at the same time.
    #[allow(unsafe_code, clippy::mut_from_ref)]
    unsafe fn chunk(&self, index: usize) -> &mut [T] {
        let (start, end) = (
            (index * self.size).min(self.length),
            ((index + 1) * self.size).min(self.length),
        );
        // SAFETY: the chunk lies inside the buffer, and nobody else uses it by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(start), end - start) }
    }

    /// Some elements of one chunk.
    ///
    /// # Safety
    /// No two users may hold the same element at the same time.
    #[allow(unsafe_code, clippy::mut_from_ref)]
    unsafe fn part(&self, index: usize, elements: Range<usize>) -> &mut [T] {
        let start = index * self.size + elements.start;
        assert!(
            elements.end <= self.size && start + elements.len() <= self.length,
            "a part inside the buffer"
        );
        // SAFETY: the part lies inside the buffer by the assertion, and nobody else uses it by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(start), elements.len()) }
    }
}

/// A buffer as rows of one width, each of which, or some columns of each, one task may write.
pub(crate) struct DisjointRows<'a>(DisjointChunks<'a, f32>);

impl<'a> DisjointRows<'a> {
    /// `buffer` as rows of `width` elements.
    pub fn new(buffer: &'a mut [f32], width: usize) -> Self {
        Self(DisjointChunks::new(buffer, width))
    }

    /// One row.
    ///
    /// # Safety
    /// No two users may hold the same row at the same time.
    #[allow(unsafe_code, clippy::mut_from_ref)]
    pub unsafe fn row(&self, index: usize) -> &mut [f32] {
        // SAFETY: by the caller's promise.
        unsafe { self.0.chunk(index) }
    }

    /// Some columns of one row.
    ///
    /// # Safety
    /// No two users may hold the same element at the same time.
    #[allow(unsafe_code, clippy::mut_from_ref)]
    pub unsafe fn part(&self, index: usize, columns: Range<usize>) -> &mut [f32] {
        // SAFETY: by the caller's promise.
        unsafe { self.0.part(index, columns) }
    }
}

/// New memory as rows of one width, which tasks fill in pieces of any shape: as [`DisjointRows`], and each piece is cleared when it
/// is handed out, just before it is filled, rather than all of it in a pass of its own.
pub(crate) struct FreshRows {
    values: Vec<f32>,
    rows: DisjointChunks<'static, MaybeUninit<f32>>,
}

#[allow(unsafe_code)]
impl FreshRows {
    /// `length` elements in rows of `width`.
    pub fn new(length: usize, width: usize) -> Self {
        let mut values = Vec::with_capacity(length);
        let start = values.spare_capacity_mut().as_mut_ptr();
        Self {
            values,
            rows: DisjointChunks {
                start,
                length,
                size: width,
                buffer: PhantomData,
            },
        }
    }

    /// One row.
    ///
    /// # Safety
    /// No two users may hold the same row at the same time.
    #[allow(clippy::mut_from_ref)]
    pub unsafe fn row(&self, index: usize) -> &mut [f32] {
        // SAFETY: by the caller's promise; the vector does not grow, so that its memory stays where it is.
        clear(unsafe { self.rows.chunk(index) })
    }

    /// Some columns of one row.
    ///
    /// # Safety
    /// No two users may hold the same element at the same time.
    #[allow(clippy::mut_from_ref)]
    pub unsafe fn part(&self, index: usize, columns: Range<usize>) -> &mut [f32] {
        // SAFETY: as above.
        clear(unsafe { self.rows.part(index, columns) })
    }

    /// The memory.
    ///
    /// # Safety
    /// All of it was handed out.
    pub unsafe fn whole(mut self) -> Vec<f32> {
        // SAFETY: by the caller's promise, and what was handed out was cleared.
        unsafe { self.values.set_len(self.rows.length) };
        self.values
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_task_runs_once_whoever_runs_it() {
        for count in [0, 1, 2, 7, 1000] {
            for _ in 0..50 {
                let calls: Vec<AtomicUsize> = (0..count).map(|_| AtomicUsize::new(0)).collect();
                for_each(count, |i| {
                    calls[i].fetch_add(1, Ordering::Relaxed);
                    // A loop inside a task.
                    for_each(3, |_| {
                        calls[i].fetch_add(10, Ordering::Relaxed);
                    });
                });
                assert!(
                    calls
                        .iter()
                        .all(|calls| calls.load(Ordering::Relaxed) == 31)
                );
            }
            std::thread::sleep(2 * AWAKE);
        }
    }

    #[test]
    fn loops_of_several_threads_do_not_mix() {
        std::thread::scope(|scope| {
            for number in 0..4 {
                scope.spawn(move || {
                    for _ in 0..200 {
                        let mut values = vec![0.0; 100];
                        for_chunks([(&mut values, 7)], |i, [chunk]| {
                            chunk.fill((number * 100 + i) as f32)
                        });
                        assert!((0..100).all(|i| values[i] == (number * 100 + i / 7) as f32));
                    }
                });
            }
        });
    }

    #[test]
    fn fresh_buffers_are_clear_before_they_are_filled() {
        for _ in 0..20 {
            let ([a, b], [c]) = fresh_with(
                [(100, 7), (15, 1)],
                [(40, 3)],
                |i, [a, b], [c]: [&mut [u16]; 1]| {
                    assert!(
                        a.iter().chain(b.iter()).all(|value| *value == 0.0)
                            && c.iter().all(|value| *value == 0)
                    );
                    a.fill(i as f32);
                    b.fill(-(i as f32));
                    c.iter_mut().skip(1).for_each(|value| *value = i as u16);
                },
            );
            assert!(
                (0..100).all(|i| a[i] == (i / 7) as f32) && (0..15).all(|i| b[i] == -(i as f32))
            );
            assert!(
                (0..40).all(|i| c[i] == if i % 3 == 0 { 0 } else { (i / 3) as u16 })
                    && c.len() == 40
            );
        }
        assert!(fresh([(0, 5)], |_, [_]: [&mut [f32]; 1]| ())[0].is_empty());
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_pool_goes_on() {
        for _ in 0..3 {
            let result = catch_unwind(|| for_each(20, |i| assert!(i != 11)));
            assert!(result.is_err());
        }
        let sum = AtomicUsize::new(0);
        for_items((0..10).collect(), |item: usize| {
            sum.fetch_add(item, Ordering::Relaxed);
        });
        assert_eq!(sum.load(Ordering::Relaxed), 45);
    }
}
