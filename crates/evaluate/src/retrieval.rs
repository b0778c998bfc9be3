//! Retrieval accuracy of embeddings: the share of texts whose nearest neighbour in the set has the same label.

use espalier_engine::embed::normalised;

use crate::statistics::Accuracy;

/// Counts the texts whose nearest neighbour, by the cosine of their vectors, has their label.
pub fn nearest_neighbour(vectors: &[Vec<f32>], labels: &[String]) -> Accuracy {
    let vectors: Vec<Vec<f32>> = vectors.iter().map(|vector| normalised(vector)).collect();
    let similarity = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>();
    let nearest = |i: usize| {
        let others = (0..vectors.len()).filter(|j| *j != i);
        others.max_by(|a, b| {
            similarity(&vectors[i], &vectors[*a]).total_cmp(&similarity(&vectors[i], &vectors[*b]))
        })
    };
    (0..vectors.len())
        .map(|i| nearest(i).is_some_and(|j| labels[i] == labels[j]))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn direction_decides_and_not_length() {
        let vectors = [
            vec![1.0, 0.0],
            vec![9.0, 1.0],
            vec![0.0, 1.0],
            vec![0.5, 4.0],
        ];
        let labels = ["a", "a", "b", "b"].map(str::to_owned);
        assert_eq!(nearest_neighbour(&vectors, &labels).value(), 1.0);
        let crossed = ["a", "b", "a", "b"].map(str::to_owned);
        assert_eq!(nearest_neighbour(&vectors, &crossed).value(), 0.0);
    }
}
