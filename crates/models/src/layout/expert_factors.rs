//! Low-rank factors of a stack of experts in one matrix each, as PEFT lays them out for a parameter `[experts, out, in]`.
//!
//! With rank `R`, `A` is `[experts R, in]`, expert by expert, and `B` is `[out, R experts]`, where the experts of one rank stand
//! side by side. An expert's matrix may have several parts (gates and inputs), each with a rank and an addition of its own: their
//! ranks add up to `R`, and each part's `B` fills its own rows.

/// The rows of one part of an expert's matrix, and the largest rank that any expert's adapter has there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PartSize {
    /// Outputs.
    pub outputs: usize,
    /// The rank.
    pub rank: usize,
}

/// Which of the two factors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Factor {
    /// `A`, from so many inputs.
    Down {
        /// Columns.
        inputs: usize,
    },
    /// `B`.
    Up,
}

/// Where the factors of single experts lie in the whole.
///
/// ```
/// use espalier_models::layout::{ExpertFactors, Factor, PartSize};
/// let parts = vec![PartSize { outputs: 1, rank: 2 }];
/// let factors = ExpertFactors { experts: 2, parts, places: vec![[0, 0], [1, 0]], factor: Factor::Up };
/// let whole = factors.assemble([(&[1, 2][..], vec![1.0, 2.0]), (&[1, 2][..], vec![3.0, 4.0])].into_iter());
/// assert_eq!(whole, [1.0, 3.0, 2.0, 4.0]);
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExpertFactors {
    /// Experts of the stack.
    pub experts: usize,
    /// The parts of an expert's matrix, in the order of their rows.
    pub parts: Vec<PartSize>,
    /// Expert and part of each factor.
    pub places: Vec<[usize; 2]>,
    /// Which of the two factors.
    pub factor: Factor,
}

impl ExpertFactors {
    /// The shape of the whole.
    pub fn shape(&self) -> [usize; 2] {
        let rank: usize = self.parts.iter().map(|part| part.rank).sum();
        let outputs = self.parts.iter().map(|part| part.outputs).sum();
        match self.factor {
            Factor::Down { inputs } => [self.experts * rank, inputs],
            Factor::Up => [outputs, rank * self.experts],
        }
    }

    /// Where an element of the factor of an expert's part lies in the whole.
    fn place(&self, [expert, part]: [usize; 2], row: usize, column: usize) -> usize {
        let before = &self.parts[..part];
        let first_rank: usize = before.iter().map(|part| part.rank).sum();
        let first_row: usize = before.iter().map(|part| part.outputs).sum();
        let [rows, width] = self.shape();
        match self.factor {
            Factor::Down { .. } => {
                let rank = rows / self.experts;
                (expert * rank + first_rank + row) * width + column
            }
            Factor::Up => (first_row + row) * width + (first_rank + column) * self.experts + expert,
        }
    }

    /// The whole, of the shapes and row-major values of all factors in the order of `places`; zero where nothing lies.
    pub fn assemble<'a>(&self, factors: impl Iterator<Item = (&'a [usize], Vec<f32>)>) -> Vec<f32> {
        let mut whole = vec![0.0; self.shape().iter().product()];
        for (place, (shape, values)) in self.places.iter().zip(factors) {
            let columns = shape[1];
            for (index, value) in values.into_iter().enumerate() {
                whole[self.place(*place, index / columns, index % columns)] = value;
            }
        }
        whole
    }

    /// The factors of these shapes in the order of `places`.
    pub fn split<'a>(
        &self,
        shapes: impl Iterator<Item = &'a [usize]>,
        whole: &[f32],
    ) -> Vec<Vec<f32>> {
        let factor = |(place, shape): (&[usize; 2], &[usize])| {
            let columns = shape[1];
            (0..shape[0] * columns)
                .map(|index| whole[self.place(*place, index / columns, index % columns)])
                .collect()
        };
        self.places.iter().zip(shapes).map(factor).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two experts of gates (rank 1) and inputs (rank 2), three outputs each from two inputs.
    fn factors(factor: Factor) -> ExpertFactors {
        let part = |rank| PartSize { outputs: 3, rank };
        ExpertFactors {
            experts: 2,
            parts: vec![part(1), part(2)],
            places: vec![[0, 0], [0, 1], [1, 0], [1, 1]],
            factor,
        }
    }

    fn check(factor: Factor, shapes: [[usize; 2]; 4]) -> Vec<f32> {
        let factors = factors(factor);
        let mut next = 0.0;
        let values = shapes.map(|[rows, columns]| {
            (0..rows * columns)
                .map(|_| {
                    next += 1.0;
                    next
                })
                .collect::<Vec<f32>>()
        });
        let whole = factors.assemble(shapes.iter().map(|shape| &shape[..]).zip(values.clone()));
        assert_eq!(
            factors.split(shapes.iter().map(|shape| &shape[..]), &whole),
            values
        );
        whole
    }

    #[test]
    fn first_factors_lie_expert_by_expert() {
        let down = Factor::Down { inputs: 2 };
        let whole = check(down, [[1, 2], [2, 2], [1, 2], [2, 2]]);
        let all: Vec<f32> = (1..=12).map(|value| value as f32).collect();
        assert_eq!(whole, all);
    }

    #[test]
    fn second_factors_lie_rank_by_rank_with_a_block_for_each_part() {
        let whole = check(Factor::Up, [[3, 1], [3, 2], [3, 1], [3, 2]]);
        // Columns: rank 0 of both experts, rank 1 of both, rank 2 of both.
        let expected = [
            [1.0, 10.0, 0.0, 0.0, 0.0, 0.0],
            [2.0, 11.0, 0.0, 0.0, 0.0, 0.0],
            [3.0, 12.0, 0.0, 0.0, 0.0, 0.0],
            [0.0, 0.0, 4.0, 13.0, 5.0, 14.0],
            [0.0, 0.0, 6.0, 15.0, 7.0, 16.0],
            [0.0, 0.0, 8.0, 17.0, 9.0, 18.0],
        ];
        assert_eq!(whole, expected.concat());
    }
}
