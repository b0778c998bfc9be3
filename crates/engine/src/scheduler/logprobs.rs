//! How likely tokens were under the model.

use super::request::Logprobs;

/// Log-probabilities of a token and of the likeliest ones.
pub(super) fn logprobs(logits: &[f32], chosen: u32, count: usize) -> Logprobs {
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits
        .iter()
        .map(|logit| f64::from(logit - largest).exp())
        .sum();
    let normaliser = f64::from(largest) + sum.ln();
    let of = |id: u32| {
        let logit = logits.get(id as usize).copied().map(f64::from);
        (logit.unwrap_or(f64::NEG_INFINITY) - normaliser) as f32
    };
    let mut ids: Vec<u32> = (0..logits.len() as u32).collect();
    let likelier = |a: &u32, b: &u32| {
        let [a_logit, b_logit] = [a, b].map(|id| logits[*id as usize]);
        b_logit.total_cmp(&a_logit).then(a.cmp(b))
    };
    if count < ids.len() {
        ids.select_nth_unstable_by(count, likelier);
        ids.truncate(count);
    }
    ids.sort_unstable_by(likelier);
    Logprobs {
        chosen: of(chosen),
        likeliest: ids.into_iter().map(|id| (id, of(id))).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_likeliest_come_in_order() {
        let logits = [0.1f32, 0.4, 0.2, 0.3].map(f32::ln);
        let found = logprobs(&logits, 2, 2);
        assert!((found.chosen - 0.2f32.ln()).abs() < 1e-6);
        let ids: Vec<u32> = found.likeliest.iter().map(|(id, _)| *id).collect();
        assert_eq!(ids, [1, 3]);
        assert_eq!(logprobs(&logits, 0, 9).likeliest.len(), 4);
    }
}
