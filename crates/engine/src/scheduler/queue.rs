//! Who comes next: the highest priority first, then whoever was sent back for lack of memory, then the client that has least under way,
//! then who came first.

use std::collections::HashMap;

/// A waiting request and what decides about its turn.
#[derive(Debug)]
struct Waiting<T> {
    item: T,
    priority: i32,
    returned: bool,
    client: u64,
    number: u64,
}

/// The queue.
#[derive(Debug)]
pub(super) struct FairQueue<T> {
    waiting: Vec<Waiting<T>>,
    arrivals: u64,
}

impl<T> Default for FairQueue<T> {
    fn default() -> Self {
        Self {
            waiting: Vec::new(),
            arrivals: 0,
        }
    }
}

impl<T> FairQueue<T> {
    pub fn len(&self) -> usize {
        self.waiting.len()
    }

    /// A request comes, or comes back (`returned`).
    pub fn push(&mut self, item: T, priority: i32, client: u64, returned: bool) {
        self.arrivals += 1;
        self.waiting.push(Waiting {
            item,
            priority,
            returned,
            client,
            number: self.arrivals,
        });
    }

    /// The place of the request whose turn it is, `under_way` being the requests of every client that are computed.
    pub fn next(&self, under_way: &HashMap<u64, usize>) -> Option<usize> {
        let rank = |waiting: &Waiting<T>| {
            let busy = under_way.get(&waiting.client).copied().unwrap_or(0);
            let first = std::cmp::Reverse(waiting.priority);
            (first, !waiting.returned, busy, waiting.number)
        };
        let places = self.waiting.iter().enumerate();
        places
            .min_by_key(|(_, waiting)| rank(waiting))
            .map(|(place, _)| place)
    }

    /// A request by its place.
    pub fn get(&self, place: usize) -> Option<&T> {
        self.waiting.get(place).map(|waiting| &waiting.item)
    }

    /// Takes a request out.
    pub fn take(&mut self, place: usize) -> Option<T> {
        (place < self.waiting.len()).then(|| self.waiting.remove(place).item)
    }

    /// Takes out all requests of which this is true.
    pub fn take_all(&mut self, mut which: impl FnMut(&T) -> bool) -> Vec<T> {
        let (out, rest) = std::mem::take(&mut self.waiting)
            .into_iter()
            .partition(|waiting| which(&waiting.item));
        self.waiting = rest;
        out.into_iter().map(|waiting| waiting.item).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn turns_are_fair() {
        let mut queue = FairQueue::default();
        for (name, priority, client, returned) in [
            ("a1", 0, 1, false),
            ("a2", 0, 1, false),
            ("b1", 0, 2, false),
            ("urgent", 5, 1, false),
            ("back", 0, 1, true),
        ] {
            queue.push(name, priority, client, returned);
        }
        let mut under_way: HashMap<u64, usize> = HashMap::new();
        let mut order = Vec::new();
        while let Some(place) = queue.next(&under_way) {
            let name = queue.take(place).unwrap();
            let client = if name == "b1" { 2 } else { 1 };
            *under_way.entry(client).or_default() += 1;
            order.push(name);
        }
        assert_eq!(order, ["urgent", "back", "b1", "a1", "a2"]);
    }
}
