//! One tensor for several readers: their gradients are added in one pass on all threads, not one after another by one thread.

use burn::tensor::Tensor;
use burn_flex::FlexTensor;

use crate::{
    host::{self, Given, HostOperator, Outputs, Saved, dimensions, owned, slice, tensor},
    parallel::{chunk, for_chunks, piece},
    simd::vectorised,
    transient::Transient,
};

/// The tensor, once for each reader.
///
/// ```
/// use burn::tensor::{Device, Tensor};
/// use espalier_kernels::fan::fan;
/// let x = Tensor::<1>::from_floats([3.0], &Device::flex().autodiff()).require_grad();
/// let [a, b] = fan(x.clone());
/// let gradients = (a * b).backward();
/// assert_eq!(x.grad(&gradients).map(|of_x| of_x.into_scalar::<f32>()), Some(6.0));
/// ```
pub fn fan<const D: usize, const N: usize>(x: Tensor<D>) -> [Tensor<D>; N] {
    if !host::on_host(&x) {
        return std::array::from_fn(|_| x.clone());
    }
    let outputs = Outputs::<N>::default();
    let node: Tensor<D> = host::one(x, Fan { outputs: outputs.clone() });
    std::array::from_fn(|i| outputs.output(i, &node))
}

impl<const D: usize> Transient<D> {
    /// As [`fan`]; every part can be made again as the whole can.
    pub fn fan<const N: usize>(self) -> [Self; N] {
        let (x, remake) = self.into_parts();
        fan(x).map(|x| Self::from_parts(x, remake.clone()))
    }
}

#[derive(Debug)]
struct Fan<const N: usize> {
    outputs: Outputs<N>,
}

impl<const N: usize> HostOperator<1> for Fan<N> {
    fn forward(&self, [x]: &[FlexTensor; 1], _: [bool; 1]) -> (FlexTensor, Saved) {
        self.outputs.put(std::array::from_fn(|_| x.clone()));
        (tensor(Vec::new(), &[0]), Vec::new())
    }

    fn keeps_input(&self, _: usize) -> bool {
        false
    }

    fn backward(&self, _: Given<1>, _: [bool; 1]) -> [Option<FlexTensor>; 1] {
        let mut gradients = self.outputs.gradients().into_iter().flatten();
        let Some(first) = gradients.next() else { return [None] };
        let rest: Vec<FlexTensor> = gradients.collect();
        if rest.is_empty() {
            return [Some(first)];
        }
        let mut sum = owned(first);
        let size = piece(dimensions(&sum).iter().product());
        for_chunks([(&mut sum.storage_mut::<f32>()[..], size)], |i, [sum]| {
            rest.iter().for_each(|gradient| add(sum, chunk(slice(gradient), size, i)));
        });
        [Some(sum)]
    }
}

vectorised! {
    fn add(sum: &mut [f32], values: &[f32]) {
        sum.iter_mut().zip(values).for_each(|(sum, value)| *sum += value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::agree;

    #[test]
    fn gradients_of_all_readers_are_added() {
        for count in [1, 7, 5000] {
            let sum = |[a, b, _]: [Tensor<1>; 3]| a.clone() * 2.0 + b.clone() * a + b;
            agree(&[&[count]], 1e-6, |t| sum(fan(t[0].get())), |t| sum(std::array::from_fn(|_| t[0].get())));
        }
    }
}
