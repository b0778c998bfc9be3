//! NearSwap: the base moves to a second model where the two are near each other: `w x + (1 - w) b` with `w = min(t / |b - x|, 1)`. A
//! method of mergekit without a paper: <https://huggingface.co/alchemonaut/QuartetAnemoi-70B-t0.0001>.

use super::{Base, Method, Operands, for_each, required};

/// Interpolation that is stronger where models are near.
pub const NEARSWAP: Method = Method {
    name: "nearswap",
    title: "NearSwap",
    source: "https://huggingface.co/alchemonaut/QuartetAnemoi-70B-t0.0001",
    globals: &[required("t")],
    own: &[],
    base: Base::Required,
    models: (1, 1),
    merge,
};

fn merge(operands: Operands) -> Result<Vec<f32>, String> {
    let (base, others, values) = operands.split_from_base()?;
    let t = values.number("t") as f32;
    let mut merged = base.numbers;
    let other = &others.first().ok_or("there is no second model")?.numbers;
    for_each(&mut merged, |i, number| {
        let weight = (t / (*number - other[i]).abs().max(1e-6)).clamp(0.0, 1.0);
        *number = weight * other[i] + (1.0 - weight) * *number;
    });
    Ok(merged)
}

#[cfg(test)]
mod tests {
    use super::super::testing::{merged, near};
    use super::*;

    #[test]
    fn near_entries_are_swapped_and_far_ones_moved_by_t() {
        let model: [f32; 3] = [0.1, 1.0, -4.0];
        let found = merged(
            &NEARSWAP,
            Some(&[0.0; 3]),
            &[(&model, &[])],
            &[("t", 0.5)],
            None,
        );
        near(&found.unwrap(), &[0.1, 0.5, -0.5]);
    }
}
