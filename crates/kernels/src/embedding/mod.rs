//! Embedding: rows of a table `[rows, width]` by token id, whose gradient adds each row's contributions.

mod cpu;

use burn::tensor::{Device, Int, Tensor, TensorData};

use crate::{fused, weight::Weight};

/// The rows of `table` `[rows, width]` that `ids` name: `[ids, width]`. Ids are below `rows`; of a stored table only these rows are
/// read.
///
/// ```
/// use burn::tensor::{Device, Tensor};
/// use espalier_kernels::embedding::embedding;
/// let table = Tensor::<2>::from_floats([[1.0, 2.0], [3.0, 4.0]], &Device::flex());
/// let rows = embedding(table, &[1, 0, 1]);
/// assert_eq!(rows.into_data().try_to_vec::<f32>().unwrap(), [3.0, 4.0, 1.0, 2.0, 3.0, 4.0]);
/// ```
pub fn embedding(table: impl Into<Weight<2>>, ids: &[u32]) -> Tensor<2> {
    let table = match table.into() {
        Weight::Tensor(table) => table,
        Weight::Stored(table) => {
            let shape = [ids.len(), table.width()];
            return Tensor::from_data(TensorData::new(table.gathered(ids), shape), &Device::flex());
        }
    };
    if fused::on_host(&table) {
        return fused::one(table, cpu::Embedding { ids: ids.to_vec() });
    }
    let indices: Vec<i32> = ids.iter().map(|id| *id as i32).collect();
    let device = table.device().inner();
    let indices = Tensor::<1, Int>::from_data(TensorData::new(indices, [ids.len()]), &device);
    reference(table, indices)
}

/// The definition in Burn operations.
fn reference(table: Tensor<2>, ids: Tensor<1, Int>) -> Tensor<2> {
    table.select(0, ids)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::agree;

    #[test]
    fn agrees_with_the_reference() {
        let ids = [3u32, 0, 3, 1, 3];
        let indices = Tensor::<1, Int>::from_ints([3, 0, 3, 1, 3], &Device::flex());
        agree(
            &[&[5, 7]],
            1e-6,
            |t| embedding(t[0].get(), &ids).reshape([-1]),
            |t| reference(t[0].get(), indices.clone()).reshape([-1]),
        );
    }
}
