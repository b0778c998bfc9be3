//! Model Breadcrumbs: of every task vector the largest `gamma` of entries go, as outliers, and the smallest, until `density` of them are
//! left; then sums, or TIES' vote on signs (`breadcrumbs_ties`). Davari and Belilovsky, arXiv 2312.06795.
//!
//! Where `gamma` of a tensor's entries is less than one entry, mergekit keeps none at all, and so does this: such a tensor, a norm mostly,
//! stays the base's.

use super::{
    Base, Method, Operand, Parameter, default,
    magnitude::keep_ranks,
    required,
    task_arithmetic::{globals, merge},
};

const OWN: [Parameter; 3] = [
    required("weight"),
    default("density", 1.0),
    default("gamma", 0.01),
];

/// Neither outliers nor small entries, then sums.
pub const BREADCRUMBS: Method = Method {
    name: "breadcrumbs",
    title: "Model Breadcrumbs",
    source: "https://arxiv.org/abs/2312.06795",
    globals: &globals(false, false),
    own: &OWN,
    base: Base::Required,
    models: (1, usize::MAX),
    merge: |operands| merge(operands, Some(cut_both_ends), false),
};

/// Neither outliers nor small entries, then TIES' vote.
pub const BREADCRUMBS_TIES: Method = Method {
    name: "breadcrumbs_ties",
    title: "Model Breadcrumbs with TIES",
    merge: |operands| merge(operands, Some(cut_both_ends), true),
    ..BREADCRUMBS
};

fn cut_both_ends(other: &mut Operand, _row: usize) -> Result<(), String> {
    let count = other.numbers.len();
    let part = |share: f64| (share * count as f64) as usize;
    let kept = part(other.values.number("density"));
    let largest = part(other.values.number("gamma")).min(count - kept);
    let smallest = count - kept - largest;
    let end = if largest == 0 {
        smallest
    } else {
        count - largest
    };
    keep_ranks(&mut other.numbers, smallest..end);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::testing::{FIRST, ONES, merged, near};
    use super::*;

    #[test]
    fn worked_values() {
        let given = [("weight", 1.0), ("density", 0.5), ("gamma", 0.2)];
        for method in [&BREADCRUMBS, &BREADCRUMBS_TIES] {
            let found = merged(method, Some(&ONES), &[(&FIRST, &given)], &[], None).unwrap();
            near(&found, &[1.0, 0.7, 1.0, 1.0, 0.8, 1.4]);
            let none = [("weight", 1.0), ("density", 0.5), ("gamma", 0.1)];
            let found = merged(method, Some(&ONES), &[(&FIRST, &none)], &[], None).unwrap();
            near(&found, &[1.0; 6]);
        }
    }
}
