//! Copies of tensors' values into plain vectors, with the one check that their element type is the one asked for.

use burn::tensor::{Int, Tensor, TensorData};

/// Floating-point values in row-major order, outside autodiff.
///
/// ```
/// use burn::tensor::{Device, Tensor};
/// use espalier_kernels::readback::ReadFloats;
/// let tensor = Tensor::<2>::from_floats([[1.0, 2.0]], &Device::flex());
/// assert_eq!(tensor.floats(), [1.0, 2.0]);
/// ```
pub trait ReadFloats {
    /// The values as f32; f16 and bf16 values are widened.
    ///
    /// # Panics
    /// When the values are no floating-point numbers, which no tensor of floats holds.
    fn floats(self) -> Vec<f32>;
}

impl<const D: usize> ReadFloats for Tensor<D> {
    fn floats(self) -> Vec<f32> {
        self.inner().into_data().floats()
    }
}

impl ReadFloats for TensorData {
    fn floats(self) -> Vec<f32> {
        assert!(
            self.dtype().is_float(),
            "floats are read from {:?}",
            self.dtype()
        );
        match self.convert::<f32>().try_into_vec::<f32>() {
            Ok(values) => values,
            Err(error) => unreachable!("converted to f32 above: {error:?}"),
        }
    }
}

/// Integer values in row-major order.
///
/// ```
/// use burn::tensor::{Device, Int, Tensor};
/// use espalier_kernels::readback::ReadIntegers;
/// let tensor = Tensor::<1, Int>::from_ints([3, 1], &Device::flex());
/// assert_eq!(tensor.integers(), [3, 1]);
/// ```
pub trait ReadIntegers {
    /// The values as i64, whatever the width that the device keeps them in.
    fn integers(self) -> Vec<i64>;
}

impl<const D: usize> ReadIntegers for Tensor<D, Int> {
    fn integers(self) -> Vec<i64> {
        match self.into_data().convert::<i64>().try_into_vec::<i64>() {
            Ok(values) => values,
            Err(error) => unreachable!("converted to i64 above: {error:?}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::bf16;

    #[test]
    fn narrow_floats_are_widened() {
        let narrow = TensorData::new(vec![bf16::from_f32(1.5), bf16::from_f32(-2.0)], [2]);
        assert_eq!(narrow.floats(), [1.5, -2.0]);
    }

    #[test]
    #[should_panic(expected = "floats are read from")]
    fn integers_are_no_floats() {
        TensorData::new(vec![1i32], [1]).floats();
    }
}
