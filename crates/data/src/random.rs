//! The project's random generator: SplitMix64 and the draws built on it.
//!
//! Every generated world, shuffle and initialisation draws from here and never from a library, so that a seed gives the
//! same bytes on every machine and in every version. Each draw consumes exactly one output of the generator, also when
//! there is only one choice (`normal` consumes two). Source: Steele, Lea and Flood, "Fast splittable pseudorandom number
//! generators" (2014); FNV-1a for hashing text. Not for cryptography.

const GOLDEN_GAMMA: u64 = 0x9E37_79B9_7F4A_7C15;

/// A SplitMix64 generator.
///
/// ```
/// use espalier_data::random::Random;
/// let mut random = Random::new(42);
/// let draws: Vec<usize> = (0..5).map(|_| random.below(10)).collect();
/// assert_eq!(draws, [7, 1, 2, 3, 0]);
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Random {
    state: u64,
}

impl Random {
    /// A generator that starts from `seed`.
    pub fn new(seed: u64) -> Self {
        Self { state: seed }
    }

    /// A generator whose stream is named by a text, such as `"shuffle|3|42"`.
    pub fn named(text: &str) -> Self {
        Self::new(mix(fnv(text)))
    }

    /// The state; `Random::new(state)` continues the same stream.
    pub fn state(&self) -> u64 {
        self.state
    }

    /// The next 64 random bits.
    pub fn next_u64(&mut self) -> u64 {
        self.state = self.state.wrapping_add(GOLDEN_GAMMA);
        let z = self.state;
        let z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// A uniform integer in `0..n` (0 when `n` is 0), by the high half of a 128-bit product.
    pub fn below(&mut self, n: usize) -> usize {
        ((u128::from(self.next_u64()) * n as u128) >> 64) as usize
    }

    /// A uniform integer from `low` to `high`, both included.
    pub fn range(&mut self, low: i64, high: i64) -> i64 {
        low + self.below((high - low + 1) as usize) as i64
    }

    /// A uniform element of `list`, which must not be empty.
    pub fn pick<'a, T>(&mut self, list: &'a [T]) -> &'a T {
        &list[self.below(list.len())]
    }

    /// A uniform number in `[0, 1)` with 53 random bits.
    pub fn f(&mut self) -> f64 {
        (self.next_u64() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// True with probability `p`.
    pub fn chance(&mut self, p: f64) -> bool {
        self.f() < p
    }

    /// A standard normal number by the Box-Muller transform; consumes two outputs.
    pub fn normal(&mut self) -> f64 {
        let radius = (-2.0 * (1.0 - self.f()).ln()).sqrt();
        radius * (std::f64::consts::TAU * self.f()).cos()
    }

    /// Shuffles in place (Fisher-Yates from the end).
    pub fn shuffle<T>(&mut self, list: &mut [T]) {
        for i in (1..list.len()).rev() {
            list.swap(i, self.below(i + 1));
        }
    }

    /// `count` distinct elements in random order; all of them when `count` exceeds the list.
    pub fn sample<T: Clone>(&mut self, list: &[T], count: usize) -> Vec<T> {
        let mut copy = list.to_vec();
        let count = count.min(copy.len());
        for i in 0..count {
            let j = i + self.below(copy.len() - i);
            copy.swap(i, j);
        }
        copy.truncate(count);
        copy
    }
}

/// FNV-1a over the UTF-8 bytes, 64 bits.
pub fn fnv(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

/// The first output of a generator seeded with `x`: spreads a hash over all 64 bits.
pub fn mix(x: u64) -> u64 {
    Random::new(x).next_u64()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_stream_of_seed_zero() {
        let mut random = Random::new(0);
        let first: Vec<u64> = (0..3).map(|_| random.next_u64()).collect();
        assert_eq!(
            first,
            [
                0xe220_a839_7b1d_cdaf,
                0x6e78_9e6a_a1b9_65f4,
                0x06c4_5d18_8009_454f
            ]
        );
        assert_eq!(mix(0), first[0]);
    }

    #[test]
    fn draws_match_their_vectors() {
        let mut random = Random::new(42);
        let draws: Vec<usize> = (0..10).map(|_| random.below(10)).collect();
        assert_eq!(draws, [7, 1, 2, 3, 0, 8, 2, 8, 3, 6]);
        let mut list: Vec<u8> = (0..8).collect();
        Random::new(7).shuffle(&mut list);
        assert_eq!(list, [7, 4, 6, 1, 2, 5, 0, 3]);
        assert_eq!(
            Random::new(7).sample(&[0, 1, 2, 3, 4, 5, 6, 7], 3),
            [3, 1, 7]
        );
    }

    #[test]
    fn fnv_of_a() {
        assert_eq!(fnv("a"), 0xaf63_dc4c_8601_ec8c);
    }

    #[test]
    fn normal_has_mean_zero_and_variance_one() {
        let mut random = Random::new(1);
        let draws: Vec<f64> = (0..20_000).map(|_| random.normal()).collect();
        let mean = draws.iter().sum::<f64>() / 20_000.0;
        let variance = draws.iter().map(|x| x * x).sum::<f64>() / 20_000.0;
        assert!(
            mean.abs() < 0.03 && (variance - 1.0).abs() < 0.05,
            "mean {mean}, variance {variance}"
        );
        let mut counter = Random::new(9);
        counter.normal();
        let mut twice = Random::new(9);
        twice.f();
        twice.f();
        assert_eq!(counter, twice);
    }

    #[test]
    fn the_state_resumes_the_stream() {
        let mut random = Random::named("resume");
        random.f();
        let mut resumed = Random::new(random.state());
        assert_eq!(random.next_u64(), resumed.next_u64());
    }
}
