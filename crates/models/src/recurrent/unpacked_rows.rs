//! Texts that share a row, each in a row of its own.

use std::sync::Arc;

use burn::tensor::Tensor;
use espalier_kernels::{
    attention::{Mask, MaskSpec},
    embedding::embedding,
    recomputable::Recomputable,
};

use crate::{context::Tokens, stack::Context};

/// Runs `layer` so that it sees one text in a row. Where rows hold several, as packed ones do, each text becomes a row that
/// starts on the left, and its outputs go back to where it stood. `x`: `[batch, time, width]`; the same shape comes back.
pub fn each_text(
    x: Recomputable<3>,
    context: &Context,
    layer: impl FnOnce(Recomputable<3>, &Context) -> Tensor<3>,
) -> Tensor<3> {
    let tokens = &context.tokens;
    let texts = match tokens.past {
        0 => texts(tokens),
        _ => Vec::new(),
    };
    if !shares_rows(&texts) {
        return layer(x, context);
    }
    let x = x.into_tensor();
    let [batch, time, width] = x.dims();
    let longest = texts.iter().map(|text| text.length).max().unwrap_or(0);
    // What stands behind a text is its last token again, which it does not see.
    let ids: Vec<u32> = texts
        .iter()
        .flat_map(|text| (0..longest).map(|t| text.start(time) + t.min(text.length - 1) as u32))
        .collect();
    let mut back = vec![0; batch * time];
    for (row, text) in texts.iter().enumerate() {
        let start = text.start(time) as usize;
        (0..text.length).for_each(|t| back[start + t] = (row * longest + t) as u32);
    }
    let apart =
        embedding(x.reshape([batch * time, width]), &ids).reshape([texts.len(), longest, width]);
    let y = layer(apart.into(), &separated(context, &texts, &ids, longest));
    let width = y.dims()[2];
    embedding(y.reshape([texts.len() * longest, width]), &back).reshape([batch, time, width])
}

/// One text of a row.
struct Text {
    row: usize,
    first: usize,
    length: usize,
}

impl Text {
    /// Its first token, counted over all rows.
    fn start(&self, time: usize) -> u32 {
        (self.row * time + self.first) as u32
    }
}

/// The texts of all rows, without padding; none where there are no segments.
fn texts(tokens: &Tokens) -> Vec<Text> {
    let Some(segments) = &tokens.segments else {
        return Vec::new();
    };
    let mut found = Vec::new();
    for (row, segments) in segments.chunks(tokens.time.max(1)).enumerate() {
        let mut first = 0;
        for run in segments.chunk_by(|a, b| a == b) {
            if run[0] != 0 {
                found.push(Text {
                    row,
                    first,
                    length: run.len(),
                });
            }
            first += run.len();
        }
    }
    found
}

fn shares_rows(texts: &[Text]) -> bool {
    texts.windows(2).any(|pair| pair[0].row == pair[1].row)
}

/// What is known of the tokens in their new rows.
fn separated(context: &Context, texts: &[Text], ids: &[u32], longest: usize) -> Context {
    let old = &context.tokens;
    let segments = texts
        .iter()
        .flat_map(|text| (0..longest).map(|t| u32::from(t < text.length)))
        .collect();
    let batch = texts.len();
    let tokens = Arc::new(Tokens {
        batch,
        time: longest,
        positions: ids.iter().map(|id| old.positions[*id as usize]).collect(),
        segments: Some(segments),
        ..(**old).clone()
    });
    let mask = Mask::new(MaskSpec {
        batch,
        queries: longest,
        keys: longest,
        causal: true,
        window: None,
        segments: None,
    });
    Context {
        mask,
        present: tokens.present(),
        tokens,
        ..context.clone()
    }
}
