//! Figures of choices as classes: Matthews' correlation (Matthews 1975; of several classes Gorodkin 2004) and F1 of the class 1, as
//! scikit-learn computes them for lm-evaluation-harness.

use std::collections::HashMap;

/// Matthews' correlation of pairs of the right class and the chosen one; 0 where either side knows one class alone.
///
/// ```
/// use espalier_evaluate::tasks::metric::classes::matthews;
/// let pairs = [(1, 1), (1, 1), (1, 0), (0, 0)];
/// assert!((matthews(&pairs) - 0.5773502691896258).abs() < 1e-12);
/// assert_eq!(matthews(&[(0, 1), (1, 1)]), 0.0);
/// ```
pub fn matthews(pairs: &[(usize, usize)]) -> f64 {
    let total = pairs.len() as f64;
    let right = pairs.iter().filter(|(gold, chosen)| gold == chosen).count() as f64;
    let mut times: HashMap<usize, [f64; 2]> = HashMap::new();
    for (gold, chosen) in pairs {
        times.entry(*gold).or_default()[0] += 1.0;
        times.entry(*chosen).or_default()[1] += 1.0;
    }
    let sum = |product: fn(&[f64; 2]) -> f64| times.values().map(product).sum::<f64>();
    let covariance = right * total - sum(|[gold, chosen]| gold * chosen);
    let of_gold = total * total - sum(|[gold, _]| gold * gold);
    let of_chosen = total * total - sum(|[_, chosen]| chosen * chosen);
    match of_gold * of_chosen > 0.0 {
        true => covariance / (of_gold * of_chosen).sqrt(),
        false => 0.0,
    }
}

/// F1 of the class 1; 0 where nobody names it.
///
/// ```
/// use espalier_evaluate::tasks::metric::classes::f1_of_one;
/// assert_eq!(f1_of_one(&[(1, 1), (1, 1), (1, 0), (0, 0)]), 0.8);
/// ```
pub fn f1_of_one(pairs: &[(usize, usize)]) -> f64 {
    let count = |wanted: fn(&(usize, usize)) -> bool| {
        pairs.iter().filter(|pair| wanted(pair)).count() as f64
    };
    let right = count(|pair| *pair == (1, 1));
    let named = count(|pair| pair.0 == 1) + count(|pair| pair.1 == 1);
    match named > 0.0 {
        true => 2.0 * right / named,
        false => 0.0,
    }
}
