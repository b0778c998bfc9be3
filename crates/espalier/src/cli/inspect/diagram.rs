//! A specification as a diagram: what a token passes on its way, from top to bottom.

use espalier_models::{
    pooling::Pooling,
    spec::{
        BlockSpec, ChannelSpec, ClassifierSpec, EmbeddingProjectionSpec, ModelSpec, NormSpec,
        PositionSpec, RelativePositionSpec, Residual, Subject,
    },
};

use super::describe;

/// The lines of the diagram.
pub fn lines(spec: &ModelSpec) -> Vec<String> {
    let mut lines = Vec::new();
    if let Some(encoder) = &spec.encoder {
        lines.push("source tokens".into());
        embedding(&mut lines, spec, encoder.positions, encoder.embedding_norm);
        if let Some(relative) = encoder.relative {
            lines.push(biases(relative));
        }
        blocks(&mut lines, &encoder.blocks);
        lines.extend(encoder.final_norm.map(|kind| format!("  {}", norm(kind))));
        lines.push("  to every block of the decoder".into());
        lines.push(String::new());
    }
    lines.push("tokens".into());
    embedding(&mut lines, spec, spec.positions, spec.embedding_norm);
    if let Some(relative) = spec.relative {
        lines.push(biases(relative));
    }
    blocks(&mut lines, &spec.blocks);
    let order = |order: &Vec<usize>| format!("  run in the order {order:?}");
    lines.extend(spec.block_order.as_ref().map(order));
    lines.extend(spec.final_norm.map(|kind| format!("  {}", norm(kind))));
    if spec.hidden_width() != spec.width {
        lines.push(format!(
            "  linear {} to {}",
            spec.width,
            spec.hidden_width()
        ));
    }
    lines.extend(
        spec.pooler
            .then(|| "  pooled: tanh of a dense layer over the first token".into()),
    );
    lines.extend(
        spec.head_transform
            .map(|transform| format!("  dense layer and {}", norm(transform.norm))),
    );
    lines.push(head(spec));
    lines
}

fn biases(relative: RelativePositionSpec) -> String {
    let whose = if relative.per_block {
        "for each block"
    } else {
        "for all blocks"
    };
    format!(
        "  biases by distance in {} buckets, {whose}",
        relative.buckets
    )
}

fn embedding(
    lines: &mut Vec<String>,
    spec: &ModelSpec,
    positions: Option<PositionSpec>,
    over: Option<NormSpec>,
) {
    let positions = match positions {
        Some(
            PositionSpec::Learned { count, .. } | PositionSpec::LearnedBehindPadding { count, .. },
        ) => format!(" + {count} learned positions"),
        Some(PositionSpec::Sinusoidal { .. } | PositionSpec::SinusoidalBehindPadding { .. }) => {
            " + sines and cosines".into()
        }
        Some(PositionSpec::Fixed { count }) => format!(" + {count} positions of the file"),
        None => String::new(),
    };
    let types = spec
        .token_types
        .map(|count| format!(" + {count} token types"))
        .unwrap_or_default();
    lines.push(format!(
        "  embedding {} x {}{positions}{types}",
        spec.vocabulary,
        spec.outer_width()
    ));
    lines.extend(over.map(|kind| format!("  {}", norm(kind))));
    let projection = |projection: EmbeddingProjectionSpec| {
        format!("  linear {} to {}", projection.width, spec.width)
    };
    lines.extend(spec.embedding_projection.map(projection));
}

/// Equal neighbours in one box.
fn blocks(lines: &mut Vec<String>, blocks: &[BlockSpec]) {
    for group in blocks.chunk_by(|a, b| a == b) {
        let depth = group[0]
            .routing
            .map(|routing| format!(", for {} of the tokens", routing.capacity))
            .unwrap_or_default();
        lines.push(format!("  ╭ {} x{depth}", group.len()));
        lines.extend(
            block(&group[0])
                .into_iter()
                .map(|line| format!("  │ {line}")),
        );
        lines.push("  ╰".into());
    }
}

fn block(block: &BlockSpec) -> Vec<String> {
    let mut parts = vec![(
        describe::mixer(&block.mixer),
        block.mixer_norm,
        block.mixer_output_norm,
    )];
    if let Some(cross) = &block.cross {
        parts.push((
            format!("{} to the source", describe::attention(&cross.attention)),
            Some(cross.norm),
            None,
        ));
    }
    if block.channel != ChannelSpec::None {
        parts.push((
            describe::channel(&block.channel),
            block.channel_norm,
            block.channel_output_norm,
        ));
    }
    let part = |(what, before, after): &(String, Option<NormSpec>, Option<NormSpec>)| {
        let after = after
            .map(|kind| format!(", then {}", norm(kind)))
            .unwrap_or_default();
        match (block.residual, before) {
            (Residual::PostNorm, Some(kind)) => format!("x = {} of x + {what}", norm(*kind)),
            (Residual::OutputNorm, Some(kind)) => format!("x + {} of {what}", norm(*kind)),
            (Residual::Parallel, Some(kind)) => format!("  + {what} ← {}{after}", norm(*kind)),
            (Residual::Parallel, None) => format!("  + {what} ← the same{after}"),
            (Residual::NormedStream, Some(kind)) => format!("x = {} of x, + {what}", norm(*kind)),
            (_, Some(kind)) => format!("x + {what} ← {}{after}", norm(*kind)),
            (_, None) => format!("x + {what}{after}"),
        }
    };
    let mut lines: Vec<String> = parts.iter().map(part).collect();
    if block.residual == Residual::Parallel {
        lines[0] = lines[0].replacen("  +", "x +", 1);
    }
    lines
}

fn norm(kind: NormSpec) -> &'static str {
    match kind {
        NormSpec::LayerNorm { .. } | NormSpec::Standardised { .. } => "LayerNorm",
        NormSpec::RmsNorm { .. } | NormSpec::Scaled { .. } => "RMSNorm",
    }
}

fn head(spec: &ModelSpec) -> String {
    let softcap = spec
        .logit_softcap
        .map(|cap| format!(", soft cap {cap}"))
        .unwrap_or_default();
    let bias = if spec.head_bias { " with a bias" } else { "" };
    if let Some(classifier) = spec.classifier {
        return classes(&classifier);
    }
    match (spec.headless, spec.tied_head) {
        (true, _) => "hidden states".into(),
        (false, true) => format!("  head: the embedding's table{bias}{softcap}\nlogits"),
        (false, false) => format!(
            "  head {} x {}{bias}{softcap}\nlogits",
            spec.vocabulary,
            spec.outer_width()
        ),
    }
}

fn classes(classifier: &ClassifierSpec) -> String {
    let dense = classifier.dense.map_or("", |_| "dense layer and ");
    let (of, what) = match classifier.subject {
        Subject::Texts(Pooling::First) => ("the first token", "texts"),
        Subject::Texts(Pooling::Last) => ("the last token", "texts"),
        Subject::Texts(Pooling::Mean | Pooling::WeightedMean) => ("the mean", "texts"),
        Subject::Tokens => ("every token", "tokens"),
    };
    let labels = classifier.labels;
    format!("  {dense}linear layer over {of}\nscores of {labels} classes of {what}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use espalier_models::spec::{AttentionSpec, CrossSpec, EncoderSpec, MixerSpec};

    #[test]
    fn a_llama_is_a_box() {
        let lines = lines(&ModelSpec::llama(100, 64, 3, 4, 2, 160, 64));
        let expected = [
            "tokens",
            "  embedding 100 x 64",
            "  ╭ 3 x",
            "  │ x + attention 4/2 heads of 16, rotary 10000 ← RMSNorm",
            "  │ x + gated MLP 160 silu ← RMSNorm",
            "  ╰",
            "  RMSNorm",
            "  head: the embedding's table\nlogits",
        ];
        assert_eq!(lines, expected);
    }

    #[test]
    fn an_encoder_stands_before_its_decoder() {
        let mut spec = ModelSpec::llama(100, 64, 2, 4, 4, 160, 64);
        let (blocks, norm) = (spec.blocks.clone(), NormSpec::layer(1e-5));
        for block in &mut spec.blocks {
            let MixerSpec::Attention(_) = &block.mixer else {
                panic!()
            };
            block.residual = Residual::PostNorm;
            block.cross = Some(CrossSpec {
                attention: AttentionSpec::plain(4, 4, 16),
                norm,
            });
        }
        spec.encoder = Some(EncoderSpec {
            blocks,
            positions: Some(PositionSpec::Sinusoidal { interleaved: true }),
            relative: None,
            embedding_norm: Some(norm),
            final_norm: None,
            decoder_start: 0,
            starts_with_last: false,
            fixed_padding: false,
            forced_first: None,
            forced_last: None,
        });
        let text = lines(&spec).join("\n");
        assert!(
            text.starts_with(
                "source tokens\n  embedding 100 x 64 + sines and cosines\n  LayerNorm\n  ╭ 2 x\n"
            ),
            "{text}"
        );
        assert!(
            text.contains("│ x = LayerNorm of x + attention 4 heads of 16 to the source"),
            "{text}"
        );
    }
}
