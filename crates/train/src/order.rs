//! The order of the data: a function of seed and position alone, so that a resumed run needs no memory of it.

use espalier_data::random::{Random, fnv};

/// Shuffled passes over `count` examples.
///
/// ```
/// use espalier_train::order::Order;
/// let mut order = Order::new(5, 42);
/// let mut first: Vec<usize> = (0..5).map(|i| order.example(i)).collect();
/// first.sort();
/// assert_eq!(first, [0, 1, 2, 3, 4]);
/// ```
#[derive(Debug, Clone)]
pub struct Order {
    count: usize,
    seed: u64,
    epoch: Option<usize>,
    shuffled: Vec<usize>,
}

impl Order {
    /// Passes over `count` examples (at least one), each shuffled anew.
    pub fn new(count: usize, seed: u64) -> Self {
        Self {
            count: count.max(1),
            seed,
            epoch: None,
            shuffled: Vec::new(),
        }
    }

    /// The example at position `position` of the endless sequence of passes.
    pub fn example(&mut self, position: usize) -> usize {
        let epoch = position / self.count;
        if self.epoch != Some(epoch) {
            self.shuffled = (0..self.count).collect();
            Random::new(fnv(&format!("order|{}|{epoch}", self.seed))).shuffle(&mut self.shuffled);
            self.epoch = Some(epoch);
        }
        self.shuffled[position % self.count]
    }
}
