//! TIES: of every task vector the largest `density` of entries, then a vote on every entry's sign, then the weighted mean of those that
//! agree. Yadav and others, arXiv 2306.01708.

use super::{
    Base, Method, Operand, default,
    magnitude::keep_ranks,
    required,
    task_arithmetic::{globals, merge},
};

/// Trim, elect signs, merge.
pub const TIES: Method = Method {
    name: "ties",
    title: "TIES",
    source: "https://arxiv.org/abs/2306.01708",
    globals: &globals(true, false),
    own: &[required("weight"), default("density", 1.0)],
    base: Base::Required,
    models: (1, usize::MAX),
    merge: |operands| merge(operands, Some(trim), true),
};

/// Keeps the largest.
fn trim(other: &mut Operand, _row: usize) -> Result<(), String> {
    let count = other.numbers.len();
    let density = other.values.number("density");
    let kept = (density * count as f64) as usize;
    if kept == 0 {
        return Err(format!(
            "`density`: {density} of {count} numbers is none; raise it, or set the weight to 0"
        ));
    }
    keep_ranks(&mut other.numbers, count - kept..count);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::testing::{FIRST, Given, ONES, SECOND, merged, near};
    use super::*;

    fn ties(weight: f64, keys: &[(&'static str, f64)]) -> Vec<f32> {
        let (first, second) = (
            [("weight", 1.0), ("density", 0.5)],
            [("weight", weight), ("density", 0.5)],
        );
        let models: [Given<'_>; 2] = [(&FIRST, &first), (&SECOND, &second)];
        merged(&TIES, Some(&ONES), &models, keys, None).unwrap()
    }

    #[test]
    fn worked_values() {
        near(&ties(1.0, &[]), &[1.45, 1.6, 1.0, 1.0, 1.0, 0.5]);
        near(&ties(0.5, &[]), &[1.466_666_7, 1.6, 1.0, 1.0, 1.0, 1.4]);
        near(
            &ties(0.5, &[("normalize", 0.0)]),
            &[1.7, 1.3, 1.0, 1.0, 1.0, 1.4],
        );
    }

    #[test]
    fn one_whole_model_is_itself_and_none_of_it_an_error() {
        let whole = merged(
            &TIES,
            Some(&ONES),
            &[(&FIRST, &[("weight", 1.0)])],
            &[],
            None,
        );
        near(&whole.unwrap(), &FIRST.map(f64::from));
        let thin = [("weight", 1.0), ("density", 0.1)];
        assert!(merged(&TIES, Some(&ONES), &[(&FIRST, &thin)], &[], None).is_err());
    }
}
