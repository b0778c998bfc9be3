//! A batch of token ids as a model reads it, and the ways to make one of rows of different lengths.

use espalier_data::packing::Row;
use espalier_kernels::dropout::Dropout;

use crate::{Error, Result, embedding_noise::EmbeddingNoise};

/// A batch of token ids as the model reads it. All rows have the same length; padding is a matter of segments.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Input {
    /// Token ids, `[batch * time]`, row by row.
    pub ids: Vec<u32>,
    /// Rows.
    pub batch: usize,
    /// Position of each token, `[batch * time]`; counts on from the state when absent.
    pub positions: Option<Vec<u32>>,
    /// Segment of each token, `[batch * time]`, in runs: tokens see their own segment only. One segment when absent.
    pub segments: Option<Vec<u32>>,
    /// Type of each token, `[batch * time]`, for models that have types; 0 when absent.
    pub token_types: Option<Vec<u32>>,
    /// Tokens of the prompt of each token's text, `[batch * time]`, for interventions that count from its ends. Texts are prompts
    /// as a whole when absent; what is read behind a state is none.
    pub prompts: Option<Vec<u32>>,
    /// What an encoder-decoder's encoder reads, one row for each row; the state remembers it between steps.
    pub source: Option<Box<Input>>,
    /// Dropout of this pass, in training.
    pub dropout: Option<Dropout>,
    /// Noise on the embeddings of this pass, in training.
    pub noise: Option<EmbeddingNoise>,
}

impl Input {
    /// Rows of the same length.
    ///
    /// # Errors
    /// When there are no rows, a row is empty or lengths differ.
    pub fn rows(rows: &[Vec<u32>]) -> Result<Self> {
        let time = rows.first().map_or(0, Vec::len);
        if time == 0 || rows.iter().any(|row| row.len() != time) {
            return Err(Error::Invalid(
                "a batch needs rows of one length, at least one token long".into(),
            ));
        }
        Ok(Self {
            ids: rows.concat(),
            batch: rows.len(),
            ..Self::default()
        })
    }

    /// Rows of any lengths, padded on the right with tokens of segment 0.
    pub fn padded(rows: &[Vec<u32>]) -> Self {
        let time = rows.iter().map(Vec::len).max().unwrap_or(0);
        let uneven = rows.iter().any(|row| row.len() != time);
        let ones: Vec<Vec<u32>> = rows.iter().map(|row| vec![1; row.len()]).collect();
        Self {
            ids: rectangle(rows, time),
            batch: rows.len(),
            segments: uneven.then(|| rectangle(&ones, time)),
            ..Self::default()
        }
    }

    /// Rows with their own positions and segments, padded on the right with tokens of segment 0. Nothing sees padding, and
    /// routers leave it out. The prompt of a text ends before its first target.
    pub fn packed(rows: &[&Row]) -> Self {
        let time = rows.iter().map(|row| row.ids.len()).max();
        let time = time.unwrap_or(0).max(1);
        let packed = rows.iter().any(|row| row.segments.iter().any(|s| *s != 1));
        let uneven = rows.iter().any(|row| row.ids.len() < time);
        let all = |part: fn(&Row) -> &Vec<u32>| {
            let parts: Vec<&Vec<u32>> = rows.iter().map(|row| part(row)).collect();
            rectangle(&parts, time)
        };
        let prompts: Vec<Vec<u32>> = rows.iter().map(|row| row.prompts()).collect();
        Self {
            ids: all(|row| &row.ids),
            batch: rows.len(),
            positions: packed.then(|| all(|row| &row.positions)),
            segments: (packed || uneven).then(|| all(|row| &row.segments)),
            prompts: Some(rectangle(&prompts, time)),
            ..Self::default()
        }
    }

    /// Prompts on the right of a rectangle, so that all end together; padding before them has segment 0, and positions
    /// count from each prompt's first token.
    pub fn padded_before(prompts: &[Vec<u32>]) -> Self {
        let longest = prompts.iter().map(Vec::len).max().unwrap_or(0);
        let even = prompts.iter().all(|prompt| prompt.len() == longest);
        let all = |values: fn(&[u32]) -> Vec<u32>| -> Vec<u32> {
            let padding = |prompt: &[u32]| std::iter::repeat_n(0, longest - prompt.len());
            let filled = |prompt: &Vec<u32>| padding(prompt).chain(values(prompt));
            prompts.iter().flat_map(filled).collect()
        };
        Self {
            ids: all(<[u32]>::to_vec),
            batch: prompts.len(),
            positions: (!even).then(|| all(|prompt| (0..prompt.len() as u32).collect())),
            segments: (!even).then(|| all(|prompt| vec![1; prompt.len()])),
            ..Self::default()
        }
    }

    /// Sets the dropout of this pass, for the source too; none where the probability is 0.
    pub fn set_dropout(&mut self, probability: f64, seed: u64) {
        self.dropout = (probability > 0.0).then_some(Dropout { probability, seed });
        if let Some(source) = &mut self.source {
            source.dropout = self.dropout;
        }
    }

    /// Sets the noise on the embeddings of this pass, on the source's too; none where its strength is 0.
    pub fn set_noise(&mut self, alpha: f64, seed: u64) {
        self.noise = (alpha > 0.0).then_some(EmbeddingNoise { alpha, seed });
        if let Some(source) = &mut self.source {
            let seed = !seed;
            source.noise = self.noise.map(|noise| EmbeddingNoise { seed, ..noise });
        }
    }

    /// Tokens of each row.
    pub fn time(&self) -> usize {
        self.ids.len() / self.batch.max(1)
    }
}

/// Rows side by side, each filled with zeros up to `time` on the right.
fn rectangle(rows: &[impl AsRef<[u32]>], time: usize) -> Vec<u32> {
    let filled = |row: &[u32]| -> Vec<u32> {
        let padding = std::iter::repeat_n(0, time - row.len());
        row.iter().copied().chain(padding).collect()
    };
    rows.iter().flat_map(|row| filled(row.as_ref())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prompts_end_together() {
        let input = Input::padded_before(&[vec![5, 6, 7], vec![8]]);
        assert_eq!(input.ids, [5, 6, 7, 0, 0, 8]);
        assert_eq!(input.positions, Some(vec![0, 1, 2, 0, 0, 0]));
        assert_eq!(input.segments, Some(vec![1, 1, 1, 0, 0, 1]));
        let even = Input::padded_before(&[vec![5], vec![8]]);
        assert_eq!((even.positions, even.segments), (None, None));
    }

    #[test]
    fn rows_are_filled_behind_their_end() {
        let input = Input::padded(&[vec![5, 6], vec![8]]);
        assert_eq!(input.ids, [5, 6, 8, 0]);
        assert_eq!(input.segments, Some(vec![1, 1, 1, 0]));
        let row = Row {
            ids: vec![3, 4],
            targets: vec![false; 2],
            positions: vec![0, 0],
            segments: vec![1, 2],
        };
        let input = Input::packed(&[&row]);
        assert_eq!(input.positions, Some(vec![0, 0]));
        assert_eq!(input.segments, Some(vec![1, 2]));
    }
}
