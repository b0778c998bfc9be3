//! Python's random draws, to the bit: the Mersenne Twister as CPython's `random` and NumPy's old `randint` use it.
//!
//! RULER's generators draw from these two, so that its published data are a function of a seed. Sources: Matsumoto and Nishimura,
//! "Mersenne Twister" (1998); CPython's `Lib/random.py`; NumPy's `RandomState`.

use std::collections::HashSet;

const WORDS: usize = 624;
const MIDDLE: usize = 397;

/// The Mersenne Twister MT19937.
#[derive(Debug, Clone)]
struct MersenneTwister {
    state: [u32; WORDS],
    next: usize,
}

impl MersenneTwister {
    /// `init_genrand`, by which NumPy seeds.
    fn of_number(seed: u32) -> Self {
        let mut state = [seed; WORDS];
        for i in 1..WORDS {
            let before = state[i - 1];
            let spread = 1_812_433_253u32.wrapping_mul(before ^ (before >> 30));
            state[i] = spread.wrapping_add(i as u32);
        }
        Self { state, next: WORDS }
    }

    /// `init_by_array`, by which Python seeds.
    fn of_key(key: &[u32]) -> Self {
        let mut state = Self::of_number(19_650_218).state;
        let mixed = |state: &[u32; WORDS], i: usize, factor: u32| {
            state[i] ^ (state[i - 1] ^ (state[i - 1] >> 30)).wrapping_mul(factor)
        };
        let mut i = 1;
        let advance = |state: &mut [u32; WORDS], i: &mut usize| {
            *i += 1;
            if *i == WORDS {
                state[0] = state[WORDS - 1];
                *i = 1;
            }
        };
        for k in 0..WORDS.max(key.len()) {
            let j = k % key.len();
            state[i] = mixed(&state, i, 1_664_525)
                .wrapping_add(key[j])
                .wrapping_add(j as u32);
            advance(&mut state, &mut i);
        }
        for _ in 1..WORDS {
            state[i] = mixed(&state, i, 1_566_083_941).wrapping_sub(i as u32);
            advance(&mut state, &mut i);
        }
        state[0] = 0x8000_0000;
        Self { state, next: WORDS }
    }

    fn twist(&mut self) {
        for i in 0..WORDS {
            let bits = (self.state[i] & 0x8000_0000) | (self.state[(i + 1) % WORDS] & 0x7fff_ffff);
            let odd = if bits & 1 == 1 { 0x9908_b0df } else { 0 };
            self.state[i] = self.state[(i + MIDDLE) % WORDS] ^ (bits >> 1) ^ odd;
        }
        self.next = 0;
    }

    fn next_u32(&mut self) -> u32 {
        if self.next == WORDS {
            self.twist();
        }
        let mut y = self.state[self.next];
        self.next += 1;
        y ^= y >> 11;
        y ^= (y << 7) & 0x9d2c_5680;
        y ^= (y << 15) & 0xefc6_0000;
        y ^ (y >> 18)
    }
}

/// Python's `random.Random`.
///
/// ```
/// use espalier_evaluate::ruler::python_random::PythonRandom;
/// let mut random = PythonRandom::new(42);
/// assert_eq!(random.range(1_000_000, 9_999_999), 2_867_825); // random.seed(42); random.randint(1000000, 9999999)
/// ```
#[derive(Debug, Clone)]
pub struct PythonRandom(MersenneTwister);

impl PythonRandom {
    /// `random.Random(seed)`.
    pub fn new(seed: u64) -> Self {
        let (low, high) = (seed as u32, (seed >> 32) as u32);
        let key = if high == 0 {
            vec![low]
        } else {
            vec![low, high]
        };
        Self(MersenneTwister::of_key(&key))
    }

    /// `random()`: a number in `[0, 1)` with 53 random bits.
    pub fn random(&mut self) -> f64 {
        let (high, low) = (self.0.next_u32() >> 5, self.0.next_u32() >> 6);
        (f64::from(high) * 67_108_864.0 + f64::from(low)) / 9_007_199_254_740_992.0
    }

    /// `getrandbits(128)`.
    pub fn bits_128(&mut self) -> u128 {
        (0..4).fold(0, |bits, word| {
            bits | u128::from(self.0.next_u32()) << (32 * word)
        })
    }

    /// `_randbelow(n)`: a number below `n`, of fewer than 32 bits; 0 for an `n` of 0.
    pub fn below(&mut self, n: usize) -> usize {
        if n == 0 {
            return 0;
        }
        let bits = usize::BITS - n.leading_zeros();
        loop {
            let drawn = (self.0.next_u32() >> (32 - bits.clamp(1, 32))) as usize;
            if drawn < n {
                return drawn;
            }
        }
    }

    /// `randint(low, high)`, both included.
    pub fn range(&mut self, low: usize, high: usize) -> usize {
        low + self.below(high + 1 - low)
    }

    /// `shuffle(list)`.
    pub fn shuffle<T>(&mut self, list: &mut [T]) {
        for i in (1..list.len()).rev() {
            list.swap(i, self.below(i + 1));
        }
    }

    /// `sample(range(n), count)`: places, all different; nothing where there are fewer than `count`.
    pub fn sample(&mut self, n: usize, count: usize) -> Option<Vec<usize>> {
        if count > n {
            return None;
        }
        let mut table = 21;
        if count > 5 {
            let exponent = ((count * 3) as f64).log(4.0).ceil() as u32;
            table += 4usize.pow(exponent);
        }
        if n <= table {
            let mut pool: Vec<usize> = (0..n).collect();
            let take = |i| {
                let j = self.below(n - i);
                let taken = pool[j];
                pool[j] = pool[n - i - 1];
                taken
            };
            return Some((0..count).map(take).collect());
        }
        let mut seen = HashSet::with_capacity(count);
        let take = |_| {
            loop {
                let j = self.below(n);
                if seen.insert(j) {
                    return j;
                }
            }
        };
        Some((0..count).map(take).collect())
    }

    /// `''.join(choices(letters, k=count))`, of ASCII letters.
    pub fn letters(&mut self, letters: &[u8], count: usize) -> String {
        let draw = |_| {
            let place = (self.random() * letters.len() as f64) as usize;
            char::from(letters[place])
        };
        (0..count).map(draw).collect()
    }
}

/// NumPy's `RandomState`, of which RULER uses `randint` alone.
#[derive(Debug, Clone)]
pub struct NumpyRandom(MersenneTwister);

impl NumpyRandom {
    /// `numpy.random.seed(seed)`; of the seed, the low 32 bits count.
    pub fn new(seed: u64) -> Self {
        Self(MersenneTwister::of_number(seed as u32))
    }

    /// `numpy.random.randint(low, high)`, without `high`, of a range below 2^32.
    pub fn range(&mut self, low: u32, high: u32) -> u32 {
        let largest = high - low - 1;
        if largest == 0 {
            return low;
        }
        let mask = u32::MAX.wrapping_shr(largest.leading_zeros());
        loop {
            let drawn = self.0.next_u32() & mask;
            if drawn <= largest {
                return low + drawn;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // The numbers are those that CPython 3.11 and NumPy 2.4 print for seed 42.

    #[test]
    fn numbers_are_pythons() {
        let mut random = PythonRandom::new(42);
        assert_eq!(random.random(), 0.639_426_798_457_883_7);
        assert_eq!(random.random(), 0.025_010_755_222_666_936);
        let mut random = PythonRandom::new(42);
        let drawn: Vec<usize> = (0..5).map(|_| random.range(1_000_000, 9_999_999)).collect();
        assert_eq!(drawn, INTEGERS);
        let mut random = PythonRandom::new(42);
        assert_eq!(random.bits_128(), BITS);
        assert_eq!(random.letters(b"ABCDEFGHIJKLMNOPQRSTUVWXYZ", 8), LETTERS);
        assert_eq!(random.sample(40, 4).unwrap(), FEW);
        assert_eq!(random.sample(30, 12).unwrap(), MANY);
        let mut list: Vec<usize> = (0..10).collect();
        random.shuffle(&mut list);
        assert_eq!(list, SHUFFLED);
        assert_eq!(random.sample(3, 4), None);
        let mut random = PythonRandom::new(1 << 40);
        assert_eq!(random.below(1_000_000), LARGE_SEED);
    }

    #[test]
    fn numbers_are_numpys() {
        let mut random = NumpyRandom::new(42);
        let drawn: Vec<u32> = (0..6).map(|_| random.range(10_000, 99_999)).collect();
        assert_eq!(drawn, NUMPY);
        assert_eq!(random.range(5, 6), 5);
    }

    const INTEGERS: [usize; 5] = [2867825, 1419610, 5614226, 5108603, 4744854];
    const BITS: u128 = 0xbdd640fb06671ad11c80317fa3b1799d;
    const LETTERS: &str = "HFTRXCKA";
    const FEW: [usize; 4] = [13, 14, 32, 38];
    const MANY: [usize; 12] = [0, 17, 6, 22, 20, 26, 28, 13, 7, 14, 18, 8];
    const SHUFFLED: [usize; 10] = [5, 9, 3, 4, 1, 7, 8, 6, 2, 0];
    const LARGE_SEED: usize = 108673;
    const NUMPY: [u32; 6] = [25795, 10860, 86820, 64886, 16265, 92386];
}
