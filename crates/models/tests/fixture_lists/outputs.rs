//! What a model computes of a fixture's inputs, beside what it should.

use espalier_models::{
    checkpoint::TensorFile,
    model::{Input, LanguageModel},
};

/// What a model gives and what is expected, padding aside: logits, scores of classes, or the hidden states of a model without a head.
pub fn computed(model: &LanguageModel, expected: &TensorFile) -> (Vec<f32>, Vec<f32>) {
    let rows = |tensor: &str| {
        let info = expected.info(tensor).unwrap().shape.clone();
        let ids = expected.read_i64(tensor).unwrap();
        let rows = ids.chunks(info[1]);
        rows.map(|row| row.iter().map(|id| *id as u32).collect())
            .collect::<Vec<Vec<u32>>>()
    };
    let ids = rows("input_ids");
    let lengths: Vec<usize> = match expected.info("attention_mask") {
        Some(_) => rows("attention_mask")
            .iter()
            .map(|row| row.iter().filter(|seen| **seen == 1).count())
            .collect(),
        None => ids.iter().map(Vec::len).collect(),
    };
    let own: Vec<Vec<u32>> = ids
        .iter()
        .zip(&lengths)
        .map(|(row, length)| row[..*length].to_vec())
        .collect();
    let tensor = match expected.info("logits") {
        Some(_) => "logits",
        None => "last_hidden_state",
    };
    let input = match &model.spec().encoder {
        Some(encoder) => {
            let start = |row: &[u32]| match encoder.starts_with_last {
                true => row[row.len() - 1],
                false => encoder.decoder_start,
            };
            let target =
                |row: Vec<u32>| [vec![start(&row)], row[..row.len() - 1].to_vec()].concat();
            Input {
                source: Some(Box::new(Input::padded(&own))),
                ..Input::rows(&rows("labels").into_iter().map(target).collect::<Vec<_>>()).unwrap()
            }
        }
        None => Input::padded(&own),
    };
    let theirs = expected.read_f32(tensor, None).unwrap();
    let hidden = || model.hidden(&input, None).unwrap();
    let ours = match (tensor, model.spec().classifier) {
        ("logits", Some(_)) => {
            let scores = model.class_scores(hidden(), &input).unwrap();
            let ours = scores.into_data().try_into_vec::<f32>().unwrap();
            assert_eq!(ours.len(), theirs.len());
            return (ours, theirs);
        }
        ("logits", None) => model.logits(&input).unwrap(),
        _ => hidden(),
    };
    let [_, time, width] = ours.dims();
    let ours = ours.into_data().try_into_vec::<f32>().unwrap();
    assert_eq!(ours.len(), theirs.len());
    // Padding is nobody's business.
    let seen = |values: &[f32]| -> Vec<f32> {
        let rows = values.chunks(time * width).zip(&lengths);
        match input.source {
            Some(_) => values.to_vec(),
            None => rows
                .flat_map(|(row, length)| row[..length * width].to_vec())
                .collect(),
        }
    };
    (seen(&ours), seen(&theirs))
}

/// The largest difference.
pub fn gap(a: &[f32], b: &[f32]) -> f32 {
    a.iter()
        .zip(b)
        .map(|(a, b)| (a - b).abs())
        .fold(0.0, f32::max)
}
