//! Tensors that the backward recomputes instead of keeping: outputs of norms and gates, which cost one pass over inputs that are
//! kept anyway. Selective recomputation, as in arXiv 2205.05198, section 5.

use std::{
    fmt::Debug,
    sync::{Arc, OnceLock},
};

use burn::{backend::Flex, tensor::Tensor};
use burn_flex::FlexTensor;

use crate::fused::{self, contiguous};

/// A tensor, and a function that recomputes it. A linear map that reads it keeps the function for its backward, not the values.
///
/// ```
/// use burn::tensor::{Device, Tensor};
/// use espalier_kernels::recomputable::Recomputable;
/// let plain: Recomputable<1> = Tensor::from_floats([1.0], &Device::flex()).into();
/// assert_eq!(plain.into_tensor().dims(), [1]);
/// ```
#[derive(Debug, Clone)]
pub struct Recomputable<const D: usize> {
    tensor: Tensor<D>,
    remake: Option<Remake>,
}

impl<const D: usize> From<Tensor<D>> for Recomputable<D> {
    /// A tensor that is kept as it is.
    fn from(tensor: Tensor<D>) -> Self {
        Self {
            tensor,
            remake: None,
        }
    }
}

impl<const D: usize> Recomputable<D> {
    /// The values.
    pub fn into_tensor(self) -> Tensor<D> {
        self.tensor
    }

    /// A tensor on the host that `make` recomputes bit for bit.
    pub(crate) fn new(
        tensor: Tensor<D>,
        make: impl Fn() -> FlexTensor + Send + Sync + 'static,
    ) -> Self {
        let remake = fused::on_host(&tensor).then(|| {
            Remake(Arc::new(Shared {
                make: Box::new(make),
                made: OnceLock::new(),
            }))
        });
        Self { tensor, remake }
    }

    pub(crate) fn into_parts(self) -> (Tensor<D>, Option<Remake>) {
        (self.tensor, self.remake)
    }
}

/// The function that recomputes a tensor. All readers share one result, which is freed with the last of them.
#[derive(Clone)]
pub(crate) struct Remake(Arc<Shared>);

struct Shared {
    make: Box<dyn Fn() -> FlexTensor + Send + Sync>,
    made: OnceLock<FlexTensor>,
}

impl Remake {
    /// The tensor.
    pub fn get(&self) -> &FlexTensor {
        self.0.made.get_or_init(|| (self.0.make)())
    }
}

impl Debug for Remake {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Remake")
    }
}

/// The values of a tensor on the host, outside autodiff; they are shared, not copied.
pub(crate) fn values<const D: usize>(tensor: &Tensor<D>) -> FlexTensor {
    let primitive = tensor.clone().inner().try_into_primitive::<Flex>();
    // Callers have seen that the tensor is on the host.
    contiguous(&primitive.unwrap_or_else(|_| fused::tensor(Vec::new(), &[0])))
}
