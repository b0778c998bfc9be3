//! Integer dot products of packed codes with eight-bit inputs: `sum (code - 1) x = sum code x - sum x`, for codes are not negative and
//! the processor multiplies unsigned bytes with signed ones.

use std::sync::OnceLock;

use crate::{
    simd::{Level, level},
    stored::ternary::{BLOCK, BYTES},
};

/// A row of inputs in eight bits.
pub(super) struct Bytes {
    /// In blocks, zero behind the end.
    pub blocks: Vec<[i8; BLOCK]>,
    /// Their sum.
    pub sum: i32,
}

impl Bytes {
    /// Whole numbers from -128 to 127.
    pub fn new(values: &[f32]) -> Self {
        let mut blocks = vec![[0i8; BLOCK]; values.len().div_ceil(BLOCK)];
        for (block, values) in blocks.iter_mut().zip(values.chunks(BLOCK)) {
            for (byte, value) in block.iter_mut().zip(values) {
                *byte = *value as i8;
            }
        }
        let sum = blocks.iter().flatten().map(|byte| i32::from(*byte)).sum();
        Self { blocks, sum }
    }
}

/// `sum code x` over as many blocks as both have.
pub(super) type Dot = fn(&[[u8; BYTES]], &[[i8; BLOCK]]) -> i32;

/// The best that the instruction set in use has.
pub(super) fn dot() -> Dot {
    static DOT: OnceLock<Dot> = OnceLock::new();
    *DOT.get_or_init(best)
}

#[cfg(target_arch = "x86_64")]
fn best() -> Dot {
    match level() {
        Level::Portable => portable,
        Level::Avx2 => x86::avx2,
        _ if is_x86_feature_detected!("avx512vnni") => x86::vnni,
        _ => x86::avx2,
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn best() -> Dot {
    debug_assert_eq!(level(), Level::Portable);
    portable
}

fn portable(codes: &[[u8; BYTES]], x: &[[i8; BLOCK]]) -> i32 {
    let mut sum = 0;
    for (codes, x) in codes.iter().zip(x) {
        for (quarter, x) in x.as_chunks::<BYTES>().0.iter().enumerate() {
            for (code, x) in codes.iter().zip(x) {
                sum += i32::from(code >> (2 * quarter) & 3) * i32::from(*x);
            }
        }
    }
    sum
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::{BLOCK, BYTES};

    #[allow(unsafe_code)]
    pub fn vnni(codes: &[[u8; BYTES]], x: &[[i8; BLOCK]]) -> i32 {
        // SAFETY: `best` gives this function where the processor was seen to have the instructions.
        unsafe { with_vnni(codes, x) }
    }

    #[allow(unsafe_code)]
    pub fn avx2(codes: &[[u8; BYTES]], x: &[[i8; BLOCK]]) -> i32 {
        // SAFETY: as above.
        unsafe { with_avx2(codes, x) }
    }

    /// The codes of a block in their order.
    #[allow(unsafe_code)]
    #[inline]
    #[target_feature(enable = "avx512f,avx512vl,avx512dq,avx512bw,avx512vnni")]
    fn unpacked(codes: &[u8; BYTES]) -> __m512i {
        let shifts = _mm512_set_epi32(6, 6, 6, 6, 4, 4, 4, 4, 2, 2, 2, 2, 0, 0, 0, 0);
        // SAFETY: the block is sixteen bytes, which need not be aligned.
        let bytes = unsafe { _mm_loadu_si128(codes.as_ptr().cast()) };
        let shifted = _mm512_srlv_epi32(_mm512_broadcast_i32x4(bytes), shifts);
        _mm512_and_si512(shifted, _mm512_set1_epi8(3))
    }

    #[allow(unsafe_code)]
    #[target_feature(enable = "avx512f,avx512vl,avx512dq,avx512bw,avx512vnni")]
    fn with_vnni(codes: &[[u8; BYTES]], x: &[[i8; BLOCK]]) -> i32 {
        let mut sums = [_mm512_setzero_si512(); 2];
        for (i, (codes, x)) in codes.iter().zip(x).enumerate() {
            // SAFETY: the block is 64 bytes, which need not be aligned.
            let x = unsafe { _mm512_loadu_si512(x.as_ptr().cast()) };
            sums[i % 2] = _mm512_dpbusd_epi32(sums[i % 2], unpacked(codes), x);
        }
        _mm512_reduce_add_epi32(_mm512_add_epi32(sums[0], sums[1]))
    }

    /// Pairs of products are at most 2 * 2 * 128, four of them far below 2^15.
    #[allow(unsafe_code)]
    #[target_feature(enable = "avx2,fma")]
    fn with_avx2(codes: &[[u8; BYTES]], x: &[[i8; BLOCK]]) -> i32 {
        let low = _mm256_set_epi32(2, 2, 2, 2, 0, 0, 0, 0);
        let high = _mm256_set_epi32(6, 6, 6, 6, 4, 4, 4, 4);
        let (mask, ones) = (_mm256_set1_epi8(3), _mm256_set1_epi16(1));
        let mut sum = _mm256_setzero_si256();
        for (codes, x) in codes.iter().zip(x) {
            // SAFETY: the blocks are 16 and 64 bytes, which need not be aligned.
            let (bytes, first, second) = unsafe {
                (
                    _mm_loadu_si128(codes.as_ptr().cast()),
                    _mm256_loadu_si256(x.as_ptr().cast()),
                    _mm256_loadu_si256(x.as_ptr().add(32).cast()),
                )
            };
            let all = _mm256_broadcastsi128_si256(bytes);
            let codes = |shifts| _mm256_and_si256(_mm256_srlv_epi32(all, shifts), mask);
            let pairs = _mm256_add_epi16(
                _mm256_maddubs_epi16(codes(low), first),
                _mm256_maddubs_epi16(codes(high), second),
            );
            sum = _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, ones));
        }
        let mut lanes = [0i32; 8];
        // SAFETY: the lanes have room for eight numbers.
        unsafe { _mm256_storeu_si256(lanes.as_mut_ptr().cast(), sum) };
        lanes.iter().sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn every_loop_sums_what_the_plain_one_does(
            blocks in prop::collection::vec((prop::array::uniform16(any::<u8>()), any::<u64>()), 0..40)
        ) {
            // Codes are at most two, and there are inputs of either end.
            let codes: Vec<[u8; BYTES]> = blocks
                .iter()
                .map(|(bytes, _)| bytes.map(|byte| byte & !(byte >> 1 & 0x55)))
                .collect();
            let x: Vec<[i8; BLOCK]> = blocks
                .iter()
                .map(|(_, seed)| std::array::from_fn(|j| match seed.rotate_left(j as u32) & 7 {
                    0 => -128,
                    1 => 127,
                    other => (other as i8 - 4) * 30,
                }))
                .collect();
            let expected = portable(&codes, &x);
            prop_assert_eq!(dot()(&codes, &x), expected);
            #[cfg(target_arch = "x86_64")]
            if level() > Level::Portable {
                prop_assert_eq!(x86::avx2(&codes, &x), expected);
            }
        }
    }
}
