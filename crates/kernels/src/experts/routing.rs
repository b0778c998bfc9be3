//! Routing: which experts compute which token, by the largest scores (top-k), with an optional capacity for each expert.

use std::{cmp::Ordering, ops::Range};

/// The choice of experts for some tokens, made outside autodiff. A slot is one of a token's choices: slot
/// `token * active + i` is the token's choice `i`, the best first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Routing {
    experts: usize,
    active: usize,
    /// The expert of every slot.
    chosen: Vec<u32>,
    /// Slots grouped by expert, within a group in the order of tokens; slots whose expert was full are left out.
    order: Vec<u32>,
    /// Where each expert's slots begin in `order`, and where the last one's end: `[experts + 1]`.
    starts: Vec<usize>,
    /// The place of every slot in `order`, [`DROPPED`] for those left out.
    places: Vec<u32>,
}

/// The place of a slot whose expert was full.
const DROPPED: u32 = u32::MAX;

impl Routing {
    /// The `active` experts with the highest scores, for every token of `scores` `[tokens, experts]`; of equal scores the
    /// first wins. With a capacity, an expert takes so many tokens, the earliest, and drops the others. Tokens that are
    /// not `present` (padding) take no room.
    ///
    /// ```
    /// use espalier_kernels::experts::Routing;
    /// let routing = Routing::top_k(&[0.1, 0.9, 0.8, 0.2], 2, 1, None, None);
    /// assert_eq!(routing.load(), [1, 1]);
    /// assert_eq!(routing.chosen(), [1, 0]);
    /// ```
    pub fn top_k(
        scores: &[f32],
        experts: usize,
        active: usize,
        capacity: Option<usize>,
        present: Option<&[bool]>,
    ) -> Self {
        let (experts, active) = (experts.max(1), active.clamp(1, experts.max(1)));
        let mut chosen = Vec::with_capacity(scores.len() / experts * active + 1);
        scores
            .chunks_exact(experts)
            .for_each(|row| best(row, active, &mut chosen));
        let is_present = |slot: usize| {
            capacity.is_none() || present.is_none_or(|present| present[slot / active])
        };
        let mut groups: Vec<Vec<u32>> = vec![Vec::new(); experts];
        for (slot, expert) in chosen
            .iter()
            .enumerate()
            .filter(|(slot, _)| is_present(*slot))
        {
            let group = &mut groups[*expert as usize];
            if capacity.is_none_or(|capacity| group.len() < capacity) {
                group.push(slot as u32);
            }
        }
        let mut starts = vec![0];
        starts.extend(groups.iter().scan(0, |end, group| {
            *end += group.len();
            Some(*end)
        }));
        let order = groups.concat();
        let mut places = vec![DROPPED; chosen.len()];
        order
            .iter()
            .enumerate()
            .for_each(|(place, slot)| places[*slot as usize] = place as u32);
        Self {
            experts,
            active,
            chosen,
            order,
            starts,
            places,
        }
    }

    /// Experts to choose from.
    pub fn experts(&self) -> usize {
        self.experts
    }

    /// Choices of a token.
    pub fn active(&self) -> usize {
        self.active
    }

    /// Tokens.
    pub fn tokens(&self) -> usize {
        self.chosen.len() / self.active
    }

    /// The expert of every slot, dropped ones included: `[tokens * active]`.
    pub fn chosen(&self) -> &[u32] {
        &self.chosen
    }

    /// Slots that each expert takes.
    pub fn load(&self) -> Vec<usize> {
        self.starts
            .windows(2)
            .map(|pair| pair[1] - pair[0])
            .collect()
    }

    /// Slots whose expert was full.
    pub fn dropped(&self) -> usize {
        self.chosen.len() - self.order.len()
    }

    /// The slots of all experts, one expert after another.
    pub(super) fn order(&self) -> &[u32] {
        &self.order
    }

    /// Where an expert's slots lie in [`Routing::order`].
    pub(super) fn group(&self, expert: usize) -> Range<usize> {
        self.starts[expert]..self.starts[expert + 1]
    }

    /// The place of a slot in [`Routing::order`], unless it was dropped.
    pub(super) fn place(&self, slot: usize) -> Option<usize> {
        (self.places[slot] != DROPPED).then(|| self.places[slot] as usize)
    }

    /// The places of a token's slots in [`Routing::order`], without dropped ones: slot and place.
    pub(super) fn places(&self, token: usize) -> impl Iterator<Item = (usize, usize)> + '_ {
        let slots = token * self.active..(token + 1) * self.active;
        slots.filter_map(|slot| Some((slot, self.place(slot)?)))
    }
}

/// Appends the indices of the highest `count` scores, best first.
fn best(scores: &[f32], count: usize, chosen: &mut Vec<u32>) {
    let first = chosen.len();
    for (expert, score) in scores.iter().enumerate() {
        let is_better =
            |other: &u32| score.total_cmp(&scores[*other as usize]) == Ordering::Greater;
        let place = chosen[first..]
            .iter()
            .position(is_better)
            .map_or(chosen.len(), |place| first + place);
        chosen.insert(place, expert as u32);
        chosen.truncate(first + count);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_grouped_by_expert_in_the_order_of_tokens() {
        let scores = [0.0, 3.0, 2.0, 5.0, 1.0, 4.0, 1.0, 1.0, 0.0];
        let routing = Routing::top_k(&scores, 3, 2, None, None);
        assert_eq!(routing.chosen(), [1, 2, 0, 2, 0, 1]);
        assert_eq!(routing.order(), [2, 4, 0, 5, 1, 3]);
        assert_eq!(routing.load(), [2, 2, 2]);
        assert_eq!(routing.places(1).collect::<Vec<_>>(), [(2, 0), (3, 5)]);
    }

    #[test]
    fn a_full_expert_drops_the_last_tokens() {
        let scores = [1.0, 0.0].repeat(6);
        let routing = Routing::top_k(&scores, 2, 1, Some(2), None);
        assert_eq!((routing.load(), routing.dropped()), (vec![2, 0], 4));
        assert!((2..6).all(|token| routing.places(token).count() == 0));
        let present = [false, true, true, true, true, true];
        let routing = Routing::top_k(&scores, 2, 1, Some(2), Some(&present));
        assert_eq!(routing.order(), [1, 2]);
    }
}
