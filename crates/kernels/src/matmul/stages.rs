//! One queue of tasks for several products: first the products that one thread computes as a whole, then for each stage (a block
//! of columns and depth) the tasks that pack its panels and the tasks that compute its register tiles.
//!
//! Threads take the tasks in order. A task waits for the panels that it reads, not for the end of a stage: while the last tiles of
//! one stage are computed, the next one is packed and begun.

use std::{
    slice,
    sync::atomic::{AtomicUsize, Ordering},
};

use super::{
    Matrix, Threads,
    blocked::{PACKED, Places, Plan},
    kernel::{Kernel, Side},
    scratch,
};
use crate::parallel::for_each;

/// Packed elements up to which plans share a stage: with more, tiles find them further away.
const TOGETHER: usize = 1 << 19;
/// Steps of a task of packing, where lanes lie side by side in memory, so that it reads whole rows.
const STEPS: usize = 32;
/// Elements of a cache line, with which the panels of a stage start.
const LINE: usize = 16;
/// Looks at a counter before a waiting thread lets others run.
const SPINS: usize = 2000;

/// All rounds of all plans: those of a plan that is `alone` by one thread, then those of `shared` plans by all `threads`.
///
/// # Safety
/// The outputs of the plans have room for all of their rows and columns, initialised where something is added, and none overlaps
/// another.
#[allow(unsafe_code)]
pub(super) unsafe fn run(alone: &[Plan<'_>], shared: &[Plan<'_>], threads: Threads) {
    let rounds = rounds(shared);
    let room = |plans: &Vec<&Plan<'_>>| plans.iter().flat_map(|plan| plan.room).sum::<usize>();
    let most = rounds
        .iter()
        .map(|(plans, _)| room(plans))
        .max()
        .unwrap_or(0)
        .next_multiple_of(LINE);
    // A stage has the memory of the one before the last.
    let halves = rounds.len().min(2);
    scratch::with(most * halves, |room| {
        let room = room.as_mut_ptr();
        let mut queue = Queue {
            stages: Vec::new(),
            tasks: alone.iter().map(Task::Whole).collect(),
        };
        for (number, (plans, round)) in rounds.into_iter().enumerate() {
            queue.push(plans, round, room.wrapping_add(number % halves * most));
        }
        let (count, queue) = (queue.tasks.len(), &queue);
        // SAFETY: by the caller's promise; every task comes once, after all before it.
        let one = |task| unsafe { queue.run(task) };
        match threads {
            Threads::One => (0..count).for_each(one),
            Threads::All => for_each(count, one),
        }
    });
}

/// The plans of every stage, as many as fit, and which of their rounds.
fn rounds<'a>(mut plans: &'a [Plan<'a>]) -> Vec<(Vec<&'a Plan<'a>>, usize)> {
    let mut stages = Vec::new();
    while !plans.is_empty() {
        let ends = plans.iter().scan(0, |room, plan| {
            *room += plan.room.iter().sum::<usize>();
            Some(*room)
        });
        let (here, rest) = plans.split_at(ends.take_while(|room| *room <= TOGETHER).count().max(1));
        let rounds = here.iter().map(Plan::rounds).max().unwrap_or(0);
        let running = |round| here.iter().filter(|plan| round < plan.rounds()).collect();
        stages.extend((0..rounds).map(|round| (running(round), round)));
        plans = rest;
    }
    stages
}

/// One round of some plans.
struct Stage<'a> {
    plans: Vec<&'a Plan<'a>>,
    round: usize,
    /// Where the panels of each plan are.
    rooms: Vec<*mut f32>,
    places: Vec<Vec<Vec<Places>>>,
    /// Tasks that are not done yet.
    packing: AtomicUsize,
    computing: AtomicUsize,
}

/// A task, which one thread runs without a break.
enum Task<'a> {
    /// All of a plan.
    Whole(&'a Plan<'a>),
    /// A part of the work of the stage with this number.
    Part(usize, Work<'a>),
}

/// A part of a stage's work.
enum Work<'a> {
    Pack(PackTask<'a>),
    /// A group of the tiles of one of the plans.
    Tiles {
        plan: usize,
        group: usize,
    },
}

struct Queue<'a> {
    stages: Vec<Stage<'a>>,
    tasks: Vec<Task<'a>>,
}

#[allow(unsafe_code)]
// SAFETY: no two tasks write to the same memory, and what one writes, others read after it is done, by the counters of stages.
unsafe impl Sync for Queue<'_> {}

impl<'a> Queue<'a> {
    /// Adds a stage that packs into memory from `room` on.
    fn push(&mut self, plans: Vec<&'a Plan<'a>>, round: usize, mut room: *mut f32) {
        let (mut packs, mut rooms, mut places, mut tiles) =
            (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for (number, plan) in plans.iter().enumerate() {
            rooms.push(room);
            places.push(plan.pack(round, room, &mut packs));
            tiles.extend((0..plan.groups(round)).map(|group| Work::Tiles {
                plan: number,
                group,
            }));
            room = room.wrapping_add(plan.room.iter().sum());
        }
        let [packing, computing] = [packs.len(), tiles.len()].map(AtomicUsize::new);
        let work = packs.into_iter().map(Work::Pack).chain(tiles);
        self.tasks
            .extend(work.map(|work| Task::Part(self.stages.len(), work)));
        self.stages.push(Stage {
            plans,
            round,
            rooms,
            places,
            packing,
            computing,
        });
    }

    /// One task, once what it needs is there. Tasks before it do not wait for it.
    ///
    /// # Safety
    /// As for [`run`]; other threads are at work on all tasks before this one, or have done them.
    #[allow(unsafe_code)]
    unsafe fn run(&self, task: usize) {
        match &self.tasks[task] {
            // SAFETY: by the caller's promise.
            Task::Whole(plan) => unsafe { run(&[], slice::from_ref(*plan), Threads::One) },
            // SAFETY: as above.
            Task::Part(stage, work) => unsafe { self.part(*stage, work) },
        }
    }

    /// A part of the work of a stage.
    ///
    /// # Safety
    /// As for [`Queue::run`].
    #[allow(unsafe_code)]
    unsafe fn part(&self, number: usize, work: &Work<'a>) {
        let stage = &self.stages[number];
        match work {
            Work::Pack(pack) => {
                let _done = Done(&stage.packing);
                if let Some(before) = number.checked_sub(2) {
                    wait(&self.stages[before].computing);
                }
                pack.run();
            }
            Work::Tiles { plan, group } => {
                let _done = Done(&stage.computing);
                wait(&stage.packing);
                if stage.round > 0 {
                    // Its sums may be added to those of the round before.
                    wait(&self.stages[number - 1].computing);
                }
                let (room, places) = (stage.rooms[*plan], &stage.places[*plan]);
                let plan = stage.plans[*plan];
                // SAFETY: the plan's room is packed, and packed anew only when all tiles of this stage are done; outputs are as
                // large as the caller promises.
                unsafe {
                    let room = slice::from_raw_parts(room, plan.room.iter().sum());
                    plan.tiles(stage.round, room, places).run_group(*group);
                }
            }
        }
    }
}

/// Counts a task as done when it ends, even by a panic: no thread may wait for it for ever.
struct Done<'a>(&'a AtomicUsize);

impl Drop for Done<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Release);
    }
}

/// Waits until no task is left.
fn wait(left: &AtomicUsize) {
    let mut spins = 0;
    while left.load(Ordering::Acquire) > 0 {
        spins += 1;
        if spins > SPINS {
            std::thread::yield_now()
        } else {
            std::hint::spin_loop()
        }
    }
}

/// Panels, or steps of them, to be packed: where, of which width, from which lanes.
pub(super) struct PackTask<'a> {
    kernel: &'static Kernel,
    out: *mut f32,
    panel: usize,
    side: Side,
    lanes: Matrix<'a>,
}

/// Plans to pack the rows of `matrix` as lanes, in tasks of a few panels or steps, into memory from `start` on.
pub(super) fn pack_later<'a>(
    kernel: &'static Kernel,
    start: *mut f32,
    side: Side,
    matrix: Matrix<'a>,
    tasks: &mut Vec<PackTask<'a>>,
) {
    let width = kernel.width(side);
    let (rows, columns) = (matrix.rows, matrix.columns);
    let panel = kernel.units(columns);
    if matrix.row_stride == 1 {
        tasks.extend((0..columns).step_by(STEPS).map(|first| {
            let out = start.wrapping_add(first / kernel.pair * width);
            PackTask {
                kernel,
                out,
                panel,
                side,
                lanes: matrix.part(0, rows, first, STEPS.min(columns - first)),
            }
        }));
        return;
    }
    let lanes = PACKED * width;
    tasks.extend((0..rows).step_by(lanes).map(|first| {
        let out = start.wrapping_add(first * panel);
        PackTask {
            kernel,
            out,
            panel,
            side,
            lanes: matrix.part(first, lanes.min(rows - first), 0, columns),
        }
    }));
}

impl PackTask<'_> {
    fn run(&self) {
        let PackTask {
            kernel,
            out,
            panel,
            side,
            lanes,
        } = *self;
        #[allow(unsafe_code)]
        // SAFETY: tasks are planned in memory that holds all panels, each unit of them in one task.
        unsafe {
            kernel.pack_steps(out, side, lanes, panel);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{How, Matrix, Precision, multiplied, multiplied_each};
    use crate::testing::numbers;

    /// The sizes need one block of depth or several, one block of columns or several, and either factor packed by the tasks; they
    /// come so often that most products have a thread of their own on machines of a few threads.
    #[test]
    fn products_in_one_queue_have_the_bits_of_each_alone() {
        let values = numbers(2200 * 900, 1);
        let sizes = [
            [500, 640, 300],
            [10, 2200, 900],
            [700, 90, 530],
            [0, 50, 20],
            [300, 640, 40],
            [90, 700, 600],
        ]
        .repeat(3);
        for precision in [Precision::F32, Precision::Bf16] {
            for transposed in [false, true] {
                let matrix = |rows: usize, columns: usize| match transposed {
                    true => Matrix::new(&values, columns, rows).transposed(),
                    false => Matrix::new(&values, rows, columns),
                };
                let pair = |[rows, columns, depth]: &[usize; 3]| {
                    (matrix(*rows, *depth), matrix(*depth, *columns))
                };
                let factors: Vec<_> = sizes.iter().map(pair).collect();
                let together = multiplied_each(&factors, false, precision);
                let alone: Vec<_> = factors
                    .iter()
                    .map(|(x, y)| multiplied(*x, *y, How::one(precision)))
                    .collect();
                assert!(together == alone.concat());
            }
        }
    }
}
