//! Python's `random.Random`: the Mersenne Twister (Matsumoto and Nishimura 1998) and `sample`, by which lm-evaluation-harness chooses
//! labelled examples. The same seed gives the same examples here.

/// Words of the twister's state.
const N: usize = 624;
const M: usize = 397;

/// A generator that draws as Python's does.
///
/// ```
/// use espalier_evaluate::tasks::sampling::PythonRandom;
/// assert_eq!(PythonRandom::new(1234).sample(10, 3), [7, 1, 0]);
/// ```
#[derive(Debug, Clone)]
pub struct PythonRandom {
    state: Vec<u32>,
    index: usize,
}

impl PythonRandom {
    /// `random.Random(seed)`.
    pub fn new(seed: u64) -> Self {
        let mut key = vec![seed as u32];
        if seed >> 32 != 0 {
            key.push((seed >> 32) as u32);
        }
        let mut state = vec![0; N];
        state[0] = 19_650_218_u32;
        for i in 1..N {
            state[i] = mixed(state[i - 1], 1_812_433_253).wrapping_add(i as u32);
        }
        let (mut i, mut j) = (1, 0);
        for _ in 0..N.max(key.len()) {
            let mixed = state[i] ^ mixed(state[i - 1], 1_664_525);
            state[i] = mixed.wrapping_add(key[j]).wrapping_add(j as u32);
            (i, j) = (next_place(&mut state, i), (j + 1) % key.len());
        }
        for _ in 0..N - 1 {
            let mixed = state[i] ^ mixed(state[i - 1], 1_566_083_941);
            state[i] = mixed.wrapping_sub(i as u32);
            i = next_place(&mut state, i);
        }
        state[0] = 0x8000_0000;
        Self { state, index: N }
    }

    fn twist(&mut self) {
        for k in 0..N {
            let y = (self.state[k] & 0x8000_0000) | (self.state[(k + 1) % N] & 0x7fff_ffff);
            let odd = if y & 1 == 1 { 0x9908_b0df } else { 0 };
            self.state[k] = self.state[(k + M) % N] ^ (y >> 1) ^ odd;
        }
        self.index = 0;
    }

    /// 32 random bits.
    pub fn next_u32(&mut self) -> u32 {
        if self.index >= N {
            self.twist();
        }
        let mut y = self.state[self.index];
        self.index += 1;
        y ^= y >> 11;
        y ^= (y << 7) & 0x9d2c_5680;
        y ^= (y << 15) & 0xefc6_0000;
        y ^ (y >> 18)
    }

    /// A number below `n`, which is at least 1 and below 2^32.
    pub fn below(&mut self, n: usize) -> usize {
        let bits = usize::BITS - n.leading_zeros();
        loop {
            let drawn = (self.next_u32() >> (32 - bits.clamp(1, 32))) as usize;
            if drawn < n {
                return drawn;
            }
        }
    }

    /// `sample(range(n), k)`: places of `k` different things among `n`; all of them, in some order, where `k` is larger.
    pub fn sample(&mut self, n: usize, k: usize) -> Vec<usize> {
        let k = k.min(n);
        let mut largest_pool = 21;
        if k > 5 {
            let power = ((3 * k) as f64).log(4.0).ceil() as u32;
            largest_pool += 4_usize.saturating_pow(power);
        }
        if n <= largest_pool {
            let mut pool: Vec<usize> = (0..n).collect();
            return (0..k)
                .map(|i| {
                    let j = self.below(n - i);
                    let chosen = pool[j];
                    pool[j] = pool[n - i - 1];
                    chosen
                })
                .collect();
        }
        let mut chosen = Vec::with_capacity(k);
        while chosen.len() < k {
            let j = self.below(n);
            if !chosen.contains(&j) {
                chosen.push(j);
            }
        }
        chosen
    }
}

fn mixed(word: u32, factor: u32) -> u32 {
    (word ^ (word >> 30)).wrapping_mul(factor)
}

fn next_place(state: &mut [u32], i: usize) -> usize {
    if i + 1 < N {
        return i + 1;
    }
    state[0] = state[N - 1];
    1
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Drawn by Python 3.11.
    #[test]
    fn draws_are_pythons() {
        let mut random = PythonRandom::new(1234);
        assert_eq!(
            random.sample(7473, 8),
            [6374, 3610, 957, 61, 742, 7462, 6610, 4769]
        );
        assert_eq!(
            random.sample(7473, 8),
            [286, 5501, 5677, 687, 806, 6279, 2905, 1939]
        );
        assert_eq!(random.next_u32(), 74_852_898);
        let mut random = PythonRandom::new(0);
        assert_eq!(random.sample(30, 5), [27, 12, 24, 28, 13]);
        assert_eq!(random.sample(30, 5), [1, 8, 16, 15, 12]);
        let mut random = PythonRandom::new((1 << 40) + 5);
        assert_eq!(random.sample(500, 6), [258, 264, 137, 339, 474, 14]);
    }
}
