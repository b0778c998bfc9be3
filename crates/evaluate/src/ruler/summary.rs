//! What the scores at several lengths say together: weighted means and the effective length, as they are published.

use serde::{Deserialize, Serialize};

/// The score of Llama-2-7B-chat at 4096 tokens, which a length must exceed to be effective.
pub const THRESHOLD: f64 = 85.6;

/// The mean score of the tasks at each length.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Summary {
    /// Length in tokens and score in percent, by rising length.
    pub scores: Vec<(usize, f64)>,
}

impl Summary {
    /// The summary of these scores, in any order.
    pub fn new(mut scores: Vec<(usize, f64)>) -> Self {
        scores.sort_by_key(|(length, _)| *length);
        Self { scores }
    }

    fn weighted(&self, weight: impl Fn(usize) -> f64) -> f64 {
        let weights = (0..self.scores.len()).map(&weight);
        let total: f64 = weights.clone().sum();
        let scores = self.scores.iter().map(|(_, score)| score);
        weights.zip(scores).map(|(w, score)| w * score).sum::<f64>() / total
    }

    /// The mean over lengths.
    pub fn mean(&self) -> f64 {
        self.weighted(|_| 1.0)
    }

    /// The mean in which longer texts count more: weights 1, 2, 3 and so on.
    ///
    /// ```
    /// use espalier_evaluate::ruler::summary::Summary;
    /// let gpt_4 = Summary::new([96.6, 96.3, 95.2, 93.2, 87.0, 81.2].into_iter().zip(12..).map(|(s, k)| (1 << k, s)).collect());
    /// assert_eq!((format!("{:.2}", gpt_4.increasing()), format!("{:.2}", gpt_4.decreasing())), ("89.04".into(), "94.13".into()));
    /// assert_eq!(gpt_4.effective_length(85.6), Some(65_536));
    /// ```
    pub fn increasing(&self) -> f64 {
        self.weighted(|place| (place + 1) as f64)
    }

    /// The mean in which shorter texts count more.
    pub fn decreasing(&self) -> f64 {
        let count = self.scores.len();
        self.weighted(|place| (count - place) as f64)
    }

    /// The largest length whose score exceeds `threshold`; none where none does.
    pub fn effective_length(&self, threshold: f64) -> Option<usize> {
        let exceeding = self.scores.iter().filter(|(_, score)| *score > threshold);
        exceeding.map(|(length, _)| *length).max()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Rows of the authors' README: effective length in thousands, scores at 4K to 128K, mean, increasing, decreasing.
    #[rustfmt::skip]
    const PUBLISHED: &[(&str, usize, [f64; 6], [f64; 3])] = &[
        ("Jamba-1.5-large 94B/398B", 128, [96.7, 96.6, 96.4, 96.0, 95.4, 95.1], [96.0, 95.7, 96.3]),
        ("Gemini-1.5-pro", 128, [96.7, 95.8, 96.0, 95.9, 95.9, 94.4], [95.8, 95.5, 96.1]),
        ("Jamba-1.5-mini 12B/52B", 128, [95.6, 95.6, 94.8, 94.6, 92.8, 90.0], [93.9, 93.1, 94.8]),
        ("GPT-4-1106-preview", 64, [96.6, 96.3, 95.2, 93.2, 87.0, 81.2], [91.6, 89.0, 94.1]),
        ("Llama3.1 70B", 64, [96.5, 95.8, 95.4, 94.8, 88.4, 66.6], [89.6, 85.5, 93.7]),
        ("Mistral-Large-2411 123B", 64, [96.4, 96.3, 95.3, 94.0, 85.9, 48.1], [86.0, 79.5, 92.5]),
        ("Command-R-plus-0824 104B", 32, [96.0, 95.1, 94.0, 92.4, 85.4, 64.6], [87.9, 83.4, 92.4]),
        ("Qwen2 72B", 32, [96.9, 96.1, 94.9, 94.1, 79.8, 53.7], [85.9, 79.6, 92.3]),
        ("Command-R-plus 104B", 32, [95.6, 95.2, 94.2, 92.0, 84.3, 63.1], [87.4, 82.7, 92.1]),
        ("Command-R-0824 32B", 64, [94.7, 93.7, 93.1, 90.8, 86.6, 74.7], [88.9, 86.0, 91.9]),
        ("GLM4 9B", 64, [94.7, 92.8, 92.1, 89.9, 86.7, 83.1], [89.9, 88.0, 91.7]),
        ("Llama3.1 8B", 32, [95.5, 93.8, 91.6, 87.4, 84.7, 77.0], [88.3, 85.4, 91.3]),
        ("ProLong 8B", 32, [94.5, 92.5, 92.3, 89.3, 83.2, 81.6], [88.9, 86.6, 91.2]),
        ("Command-R 35B", 32, [93.8, 93.3, 92.4, 89.5, 84.9, 76.0], [88.3, 85.5, 91.1]),
        ("MegaBeam-Mistral 7B", 32, [93.8, 92.5, 92.0, 89.2, 83.7, 83.7], [89.1, 87.3, 91.0]),
        ("Mistral-Large-2407 123B", 32, [96.2, 96.1, 95.1, 93.0, 78.8, 23.7], [80.5, 70.6, 90.4]),
        ("GradientAI/Llama3 70B", 16, [95.1, 94.4, 90.8, 85.4, 80.9, 72.1], [86.5, 82.6, 90.3]),
        ("Mixtral-8x22B 39B/141B", 32, [95.6, 94.9, 93.4, 90.9, 84.7, 31.7], [81.9, 73.5, 90.3]),
        ("Yi 34B", 32, [93.3, 92.2, 91.3, 87.5, 83.2, 77.3], [87.5, 84.8, 90.1]),
        ("Phi3-mini 3.8B", 32, [92.2, 91.5, 90.7, 87.5, 80.6, 66.7], [84.8, 80.9, 88.7]),
        ("Phi3-medium 14B", 32, [93.3, 93.2, 91.1, 86.8, 78.6, 46.1], [81.5, 74.8, 88.3]),
        ("Mixtral-8x7B 12.9B/46.7B", 32, [94.9, 92.1, 92.5, 85.9, 72.4, 44.5], [80.4, 72.8, 87.9]),
        ("GradientAI/Llama3 8B", 16, [92.8, 90.3, 85.7, 79.9, 76.3, 69.5], [82.4, 78.5, 86.3]),
        ("FILM-7B 7B", 32, [92.8, 88.2, 88.1, 86.9, 70.1, 27.1], [75.5, 66.4, 84.7]),
        ("InternLM2.5 7B", 4, [88.1, 85.5, 84.5, 82.7, 75.5, 68.9], [80.9, 77.8, 83.9]),
        ("Mistral 7B", 16, [93.6, 91.2, 87.2, 75.4, 49.0, 13.8], [68.4, 55.6, 81.2]),
        ("Mistral-Nemo", 16, [87.8, 87.2, 87.7, 69.0, 46.8, 19.0], [66.2, 54.7, 77.8]),
        ("GLM3 6B", 4, [87.8, 83.4, 78.6, 69.9, 56.0, 42.0], [69.6, 62.0, 77.2]),
        ("LWM 7B", 0, [82.3, 78.4, 73.7, 69.1, 68.1, 65.0], [72.8, 69.9, 75.7]),
        ("DBRX 36B/132B", 8, [95.1, 93.8, 83.6, 63.1, 2.4, 0.0], [56.3, 38.0, 74.7]),
        ("Qwen1.5 72B", 8, [94.9, 93.8, 78.0, 67.8, 0.0, 0.0], [55.7, 37.5, 74.0]),
        ("Together 7B", 4, [88.2, 81.1, 69.4, 63.0, 0.0, 0.0], [50.3, 33.8, 66.7]),
        ("LongChat 7B", 0, [84.7, 79.9, 70.8, 59.3, 0.0, 0.0], [49.1, 33.1, 65.2]),
        ("LongAlpaca 13B", 0, [60.6, 57.0, 56.6, 43.6, 0.0, 0.0], [36.3, 24.7, 47.9]),
    ];

    #[test]
    fn published_means_follow_from_published_rows() {
        for (model, effective, scores, means) in PUBLISHED {
            let scores = scores.iter().zip(12..).map(|(score, k)| (1 << k, *score));
            let summary = Summary::new(scores.collect());
            let ours = [summary.mean(), summary.increasing(), summary.decreasing()];
            for (ours, published) in ours.into_iter().zip(means) {
                // Scores and means are rounded to one decimal each.
                assert!(
                    (ours - published).abs() < 0.1 + 1e-9,
                    "{model}: {ours}, {published}"
                );
            }
            let length = summary
                .effective_length(THRESHOLD)
                .map_or(0, |length| length >> 10);
            assert_eq!(length, *effective, "{model}");
        }
        assert_eq!(
            Summary::new(vec![(8, 80.0), (4, 90.0)]).effective_length(85.6),
            Some(4)
        );
    }
}
