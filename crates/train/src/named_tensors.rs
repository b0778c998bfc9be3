//! Tensors under names, as checkpoints keep them: trained weights, an optimiser's state, an objective's state.

use std::{
    borrow::Cow,
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use burn::tensor::Tensor;
use espalier_kernels::readback::ReadFloats;
use espalier_models::{
    checkpoint::{Dtype, Elements, TensorFile, TensorInfo, TensorPlan, TensorWriter},
    parameter::{Parameter, Parameters},
};

use crate::{Error, Result};

/// A tensor on its way into a checkpoint. It is read when it is written, so that one tensor at a time is in memory twice.
#[derive(Debug, Clone)]
pub struct NamedTensor<'a> {
    /// Its name in the file.
    pub name: String,
    /// The length of each axis.
    pub shape: Vec<usize>,
    /// Its elements, row-major.
    pub values: Values<'a>,
}

/// The elements of a [`NamedTensor`].
#[derive(Debug, Clone)]
#[expect(
    clippy::large_enum_variant,
    reason = "nearly all state is numbers, the larger kind"
)]
pub enum Values<'a> {
    /// Kept as f32.
    Floats(Tensor<1>),
    /// Little-endian bytes of any type.
    Bytes(Dtype, Cow<'a, [u8]>),
}

impl<'a> NamedTensor<'a> {
    /// Numbers, `[len]`, which are kept as f32.
    pub fn floats(name: impl Into<String>, values: Tensor<1>) -> Self {
        Self {
            name: name.into(),
            shape: values.dims().to_vec(),
            values: Values::Floats(values),
        }
    }

    /// The values of a parameter.
    pub fn parameter(name: impl Into<String>, parameter: &Parameter) -> Self {
        Self {
            shape: parameter.shape().to_vec(),
            ..Self::floats(name, parameter.flat())
        }
    }

    /// The values of all parameters, named `<prefix>.<parameter>`: a reference, a teacher that moves.
    pub fn parameters(prefix: &str, all: &dyn Parameters) -> Vec<Self> {
        let mut tensors = Vec::new();
        all.visit(&mut |p| tensors.push(Self::parameter(format!("{prefix}.{}", p.name()), p)));
        tensors
    }

    fn dtype(&self) -> Dtype {
        match self.values {
            Values::Floats(_) => Dtype::F32,
            Values::Bytes(dtype, _) => dtype,
        }
    }
}

impl<'a> From<&'a NamedTensor<'_>> for Elements<'a> {
    fn from(tensor: &'a NamedTensor<'_>) -> Self {
        match &tensor.values {
            Values::Floats(values) => Self::Numbers(values.clone().floats()),
            Values::Bytes(_, bytes) => Self::Bytes(Cow::Borrowed(bytes)),
        }
    }
}

/// Writes tensors to a file.
///
/// # Errors
/// When a name comes twice or the disk is full.
pub fn write(path: &Path, tensors: &[NamedTensor<'_>]) -> Result<()> {
    let plan = |tensor: &NamedTensor<'_>| TensorPlan {
        name: tensor.name.clone(),
        dtype: tensor.dtype(),
        shape: tensor.shape.clone(),
    };
    let by_name: BTreeMap<&str, &NamedTensor<'_>> = tensors
        .iter()
        .map(|tensor| (tensor.name.as_str(), tensor))
        .collect();
    TensorWriter::new(tensors.iter().map(plan).collect())?
        .write_file(path, |name| Ok(by_name[name]))?;
    Ok(())
}

/// The tensors of a checkpoint, to be put back. Every reading names what is missing or of another shape.
#[derive(Debug)]
pub struct SavedTensors {
    file: TensorFile,
    read: RefCell<BTreeSet<String>>,
}

impl SavedTensors {
    /// Opens a file of tensors.
    ///
    /// # Errors
    /// When the file is missing or damaged.
    pub fn open(path: &Path) -> Result<Self> {
        Ok(Self {
            file: TensorFile::open(path)?,
            read: RefCell::default(),
        })
    }

    /// The type and shape of a tensor, where they are not known beforehand.
    ///
    /// # Errors
    /// When it is missing.
    pub fn info(&self, name: &str) -> Result<&TensorInfo> {
        self.file.info(name).ok_or_else(|| {
            self.damaged(format!(
                "has no tensor `{name}`; delete this checkpoint to go on from the one before"
            ))
        })
    }

    /// The numbers of a tensor of the given shape.
    ///
    /// # Errors
    /// When the tensor is missing, of another shape, or holds no numbers.
    pub fn floats(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
        self.check(name, Dtype::F32, shape)?;
        Ok(self.file.read_f32(name, None)?)
    }

    /// The bytes of a tensor of the given type and shape.
    ///
    /// # Errors
    /// When the tensor is missing, or of another type or shape.
    pub fn bytes(&self, name: &str, dtype: Dtype, shape: &[usize]) -> Result<Vec<u8>> {
        self.check(name, dtype, shape)?;
        Ok(self.file.bytes(name)?.into_owned())
    }

    /// Puts back what [`NamedTensor::parameter`] kept.
    ///
    /// # Errors
    /// As [`SavedTensors::floats`].
    pub fn restore_parameter(&self, name: &str, parameter: &mut Parameter) -> Result<()> {
        let values = self.floats(name, parameter.shape())?;
        let device = parameter.device();
        parameter.set_data(values, &device);
        Ok(())
    }

    /// Puts back what [`NamedTensor::parameters`] kept.
    ///
    /// # Errors
    /// As [`SavedTensors::floats`].
    pub fn restore_parameters(&self, prefix: &str, all: &mut dyn Parameters) -> Result<()> {
        let mut restored = Ok(());
        all.visit_mut(&mut |p| {
            if restored.is_ok() {
                let name = format!("{prefix}.{}", p.name());
                restored = self.restore_parameter(&name, p);
            }
        });
        restored
    }

    /// Refuses tensors that nobody has read: they belong to another run.
    ///
    /// # Errors
    /// When there is one.
    pub fn refuse_unread(&self) -> Result<()> {
        let read = self.read.borrow();
        match self.file.names().find(|name| !read.contains(*name)) {
            Some(name) => Err(self.damaged(format!(
                "has a tensor `{name}` that this run does not know; give another output folder or delete it"
            ))),
            None => Ok(()),
        }
    }

    fn check(&self, name: &str, dtype: Dtype, shape: &[usize]) -> Result<()> {
        let info = self.info(name)?;
        if (info.dtype, info.shape.as_slice()) != (dtype, shape) {
            return Err(self.damaged(format!(
                "tensor `{name}` holds {:?} of shape {:?}, expected {dtype:?} of shape {shape:?}; delete this checkpoint to go \
                 on from the one before",
                info.dtype, info.shape
            )));
        }
        self.read.borrow_mut().insert(name.to_owned());
        Ok(())
    }

    fn damaged(&self, reason: String) -> Error {
        Error::Checkpoint {
            path: self.file.path().to_owned(),
            reason,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::Device;

    fn saved(tensors: &[NamedTensor<'_>]) -> SavedTensors {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state.safetensors");
        write(&path, tensors).unwrap();
        SavedTensors::open(&path).unwrap()
    }

    #[test]
    fn numbers_and_bytes_come_back() {
        let floats = Tensor::from_floats([0.1, -2.0], &Device::flex());
        let codes = NamedTensor {
            name: "codes".into(),
            shape: vec![1, 3],
            values: Values::Bytes(Dtype::U8, vec![7, 0, 255].into()),
        };
        let saved = saved(&[NamedTensor::floats("moment", floats), codes]);
        assert_eq!(saved.floats("moment", &[2]).unwrap(), [0.1, -2.0]);
        assert!(saved.refuse_unread().is_err());
        let codes = saved.bytes("codes", Dtype::U8, &[1, 3]).unwrap();
        assert_eq!(codes, [7, 0, 255]);
        saved.refuse_unread().unwrap();
    }

    #[test]
    fn what_is_missing_or_of_another_shape_is_named() {
        let floats = Tensor::from_floats([0.1, -2.0], &Device::flex());
        let saved = saved(&[NamedTensor::floats("first.head.weight", floats)]);
        let error =
            |name: &str, count: usize| saved.floats(name, &[count]).unwrap_err().to_string();
        assert!(error("second.head.weight", 2).contains("has no tensor `second.head.weight`"));
        let wrong = error("first.head.weight", 3);
        assert!(
            wrong.contains("`first.head.weight` holds F32 of shape [2], expected F32 of shape [3]")
        );
    }

    #[test]
    fn nothing_is_a_file_too() {
        saved(&[]).refuse_unread().unwrap();
    }
}
