//! The layer before a head over masked tokens (BERT, arXiv 1810.04805).

use burn::tensor::Tensor;
use espalier_kernels::activation::activate;

use super::{Builder, linear::Linear, norm::Norm};
use crate::{Result, parameter::parameters, spec::HeadTransformSpec};

/// `norm(activation(x W^T + b))`.
#[derive(Debug, Clone)]
pub struct HeadTransform {
    spec: HeadTransformSpec,
    dense: Linear,
    norm: Norm,
}

parameters!(HeadTransform: dense, norm);

impl HeadTransform {
    /// Builds `head_transform` and `head_norm`; `size` is the width of the output and of the input.
    ///
    /// # Errors
    /// When the source lacks a weight.
    pub fn build(builder: &mut Builder, size: [usize; 2], spec: HeadTransformSpec) -> Result<Self> {
        let deviation = builder.deviation;
        let dense = Linear::build(builder, "head_transform", size, spec.bias, deviation)?;
        let norm = Norm::build(builder, "head_norm", size[0], spec.norm)?;
        Ok(Self { spec, dense, norm })
    }

    /// `[.., width]` to `[.., width of the output]`.
    pub fn forward<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        self.norm
            .forward(activate(self.spec.activation, self.dense.forward(x)))
    }
}
