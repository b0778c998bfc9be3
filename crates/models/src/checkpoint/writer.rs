//! Writes safetensors files tensor by tensor: never more than one tensor in memory, never a half-written file.
//!
//! The plan of names, types and shapes comes first, so the header is known before any data; then a callback gives
//! each tensor's elements. Shards follow the layout of Hugging Face checkpoints: `model-00001-of-000NN.safetensors` and
//! `model.safetensors.index.json`. Left out: integers of 16 and 32 bits.

use super::folder::{INDEX_FILE, SINGLE_FILE};
use super::safetensors::Dtype;
use crate::error::{Error, Result};
use espalier_data::disk::{self, PartialFile};
use half::vec::HalfFloatVecExt;
use half::{bf16, f16};
use serde_json::{Map, Value, json};
use std::borrow::Cow;
use std::collections::HashSet;
use std::path::{Path, PathBuf};

/// One tensor to be written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorPlan {
    /// Its name in the file.
    pub name: String,
    /// How to store each element: F32, F16 or BF16, also I64 for whole numbers, and U8 or I8 for bytes.
    pub dtype: Dtype,
    /// The length of each axis, row-major.
    pub shape: Vec<usize>,
}

impl TensorPlan {
    fn elements(&self) -> Option<u64> {
        self.shape
            .iter()
            .try_fold(1u64, |product, &axis| product.checked_mul(axis as u64))
    }

    fn byte_count(&self) -> Result<u64> {
        let width = match self.dtype {
            Dtype::F32 => 4,
            Dtype::F16 | Dtype::BF16 => 2,
            // Token ids, which f32 holds exactly up to 2^24.
            Dtype::I64 => 8,
            Dtype::U8 | Dtype::I8 => 1,
            other => {
                return Err(Error::Invalid(format!(
                    "`{}`: {other:?} cannot be written; use F32, F16, BF16, I64, U8 or I8",
                    self.name
                )));
            }
        };
        let overflow =
            || Error::Invalid(format!("`{}`: shape {:?} overflows", self.name, self.shape));
        self.elements()
            .and_then(|elements| elements.checked_mul(width))
            .ok_or_else(overflow)
    }
}

/// A tensor's elements, row-major.
#[derive(Debug, Clone)]
pub enum Elements<'a> {
    /// Numbers, to be stored in the type that is planned.
    Numbers(Vec<f32>),
    /// Little-endian bytes in the type that is planned.
    Bytes(Cow<'a, [u8]>),
}

impl From<Vec<f32>> for Elements<'_> {
    fn from(numbers: Vec<f32>) -> Self {
        Self::Numbers(numbers)
    }
}

/// Writes the planned tensors, in their order.
///
/// ```
/// use espalier_models::checkpoint::{Dtype, TensorFile, TensorPlan, TensorWriter};
/// # let path = std::env::temp_dir().join(format!("tensor-writer-example-{}.safetensors", std::process::id()));
/// let plan = TensorPlan { name: "weight".into(), dtype: Dtype::BF16, shape: vec![2, 1] };
/// TensorWriter::new(vec![plan])?.write_file(&path, |_name| Ok(vec![0.5, -2.0]))?;
/// assert_eq!(TensorFile::open(&path)?.read_f32("weight", None)?, [0.5, -2.0]);
/// # std::fs::remove_file(&path).unwrap();
/// # Ok::<(), espalier_models::error::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct TensorWriter {
    tensors: Vec<TensorPlan>,
}

impl TensorWriter {
    /// A writer of `tensors`.
    ///
    /// # Errors
    /// When a name comes twice, is `__metadata__`, a type cannot be written or a size overflows.
    pub fn new(tensors: Vec<TensorPlan>) -> Result<Self> {
        check_names(&tensors)?;
        total_bytes(&tensors)?;
        Ok(Self { tensors })
    }

    /// Writes one file; `elements` gives the row-major elements of each tensor by its name.
    ///
    /// # Errors
    /// When `elements` fails or gives the wrong count, or the disk fails; the file at `path` is then as it was.
    pub fn write_file<'a, E: Into<Elements<'a>>>(
        &self,
        path: &Path,
        mut elements: impl FnMut(&str) -> Result<E>,
    ) -> Result<()> {
        let file = write_partial(path, &self.tensors, &mut elements)?;
        file.rename().map_err(Error::file(path))
    }

    /// Writes a model folder's weights: one `model.safetensors` if its tensors fit `max_shard_bytes`, else shards and
    /// their index. A tensor larger than that gets a shard of its own. Gives the weight files written.
    ///
    /// # Errors
    /// As [`TensorWriter::write_file`]; no file gets its name before all have been written.
    pub fn write_sharded<'a, E: Into<Elements<'a>>>(
        &self,
        folder: &Path,
        max_shard_bytes: u64,
        mut numbers: impl FnMut(&str) -> Result<E>,
    ) -> Result<Vec<PathBuf>> {
        let shards = split(&self.tensors, max_shard_bytes)?;
        let names: Vec<String> = (1..=shards.len())
            .map(|number| shard_name(number, shards.len()))
            .collect();
        let paths: Vec<PathBuf> = names.iter().map(|name| folder.join(name)).collect();
        let mut partial = Vec::new();
        for (path, tensors) in paths.iter().zip(&shards) {
            partial.push(write_partial(path, tensors, &mut numbers)?);
        }
        for (file, path) in partial.into_iter().zip(&paths) {
            file.rename().map_err(Error::file(path))?;
        }
        self.finish_folder(folder, &shards, &names)?;
        Ok(paths)
    }

    /// Writes the index where there are shards, and removes the other layout's entry file, which readers would prefer.
    fn finish_folder(
        &self,
        folder: &Path,
        shards: &[&[TensorPlan]],
        names: &[String],
    ) -> Result<()> {
        let stale = if shards.len() > 1 {
            let index = index(shards, names, total_bytes(&self.tensors)?);
            let path = folder.join(INDEX_FILE);
            disk::write_whole(&path, format!("{index:#}\n").as_bytes())
                .map_err(Error::file(&path))?;
            folder.join(SINGLE_FILE)
        } else {
            folder.join(INDEX_FILE)
        };
        disk::remove_file(&stale).map_err(Error::file(&stale))
    }
}

fn check_names(tensors: &[TensorPlan]) -> Result<()> {
    let mut names = HashSet::from(["__metadata__"]);
    match tensors.iter().find(|tensor| !names.insert(&tensor.name)) {
        Some(twice) => Err(Error::Invalid(format!(
            "tensor `{}` is planned twice or reserved; rename it",
            twice.name
        ))),
        None => Ok(()),
    }
}

fn total_bytes(tensors: &[TensorPlan]) -> Result<u64> {
    let overflow = || Error::Invalid("the tensors together overflow 64 bits".into());
    tensors.iter().try_fold(0u64, |total, tensor| {
        total.checked_add(tensor.byte_count()?).ok_or_else(overflow)
    })
}

/// Consecutive runs of tensors of at most `limit` bytes, at least one tensor each; one empty run if there are none.
fn split(tensors: &[TensorPlan], limit: u64) -> Result<Vec<&[TensorPlan]>> {
    let (mut shards, mut start, mut size) = (Vec::new(), 0, 0u64);
    for (position, tensor) in tensors.iter().enumerate() {
        let bytes = tensor.byte_count()?;
        if position > start && size.saturating_add(bytes) > limit {
            shards.push(&tensors[start..position]);
            (start, size) = (position, 0);
        }
        size = size.saturating_add(bytes);
    }
    shards.push(&tensors[start..]);
    Ok(shards)
}

fn shard_name(number: usize, count: usize) -> String {
    if count == 1 {
        SINGLE_FILE.into()
    } else {
        format!("model-{number:05}-of-{count:05}.safetensors")
    }
}

fn index(shards: &[&[TensorPlan]], names: &[String], total: u64) -> Value {
    let entries = shards.iter().zip(names);
    let weight_map: Map<String, Value> = entries
        .flat_map(|(shard, file)| {
            shard
                .iter()
                .map(move |tensor| (tensor.name.clone(), file.clone().into()))
        })
        .collect();
    json!({ "metadata": { "total_size": total }, "weight_map": weight_map })
}

/// Appends bytes to a file.
type Write<'a> = &'a mut dyn FnMut(&[u8]) -> Result<()>;

/// Writes a whole file under its temporary name.
fn write_partial<'a, E: Into<Elements<'a>>>(
    path: &Path,
    tensors: &[TensorPlan],
    elements: &mut impl FnMut(&str) -> Result<E>,
) -> Result<PartialFile> {
    let mut file = PartialFile::create(path).map_err(Error::file(path))?;
    let mut write = |bytes: &[u8]| file.write(bytes).map_err(Error::file(path));
    write(&header(tensors)?)?;
    for tensor in tensors {
        write_elements(&mut write, tensor, &elements(&tensor.name)?.into())?;
    }
    file.finish().map_err(Error::file(path))?;
    Ok(file)
}

fn write_elements(write: Write<'_>, plan: &TensorPlan, elements: &Elements) -> Result<()> {
    let (whole, found) = match elements {
        Elements::Numbers(values) => (plan.elements() == Some(values.len() as u64), values.len()),
        Elements::Bytes(bytes) => (plan.byte_count()? == bytes.len() as u64, bytes.len()),
    };
    if !whole {
        return Err(Error::Shape {
            operator: plan.name.clone(),
            expected: format!("{:?}", plan.shape),
            found: vec![found],
        });
    }
    match (elements, plan.dtype) {
        (Elements::Numbers(_), Dtype::U8 | Dtype::I8) => Err(Error::Invalid(format!(
            "`{}`: numbers are not rounded to {:?}; give its bytes",
            plan.name, plan.dtype
        ))),
        (Elements::Numbers(values), dtype) => write_numbers(write, dtype, values),
        (Elements::Bytes(bytes), _) => write(bytes),
    }
}

/// The header with its length before it, padded by spaces so that the data begins at a multiple of eight.
fn header(tensors: &[TensorPlan]) -> Result<Vec<u8>> {
    let mut entries = Map::from_iter([("__metadata__".to_owned(), json!({ "format": "pt" }))]);
    let mut begin = 0;
    for tensor in tensors {
        let end = begin + tensor.byte_count()?;
        let entry = json!({ "dtype": tensor.dtype.to_string(), "shape": tensor.shape, "data_offsets": [begin, end] });
        entries.insert(tensor.name.clone(), entry);
        begin = end;
    }
    let mut json = Value::Object(entries).to_string().into_bytes();
    json.resize(json.len().next_multiple_of(8), b' ');
    Ok([&(json.len() as u64).to_le_bytes()[..], &json].concat())
}

/// Replaces what `bytes` holds by those of all numbers: whole numbers at a time, which are many times faster than single bytes.
fn fill<const N: usize>(bytes: &mut Vec<u8>, numbers: impl ExactSizeIterator<Item = [u8; N]>) {
    bytes.resize(N * numbers.len(), 0);
    bytes
        .as_chunks_mut()
        .0
        .iter_mut()
        .zip(numbers)
        .for_each(|(place, number)| *place = number);
}

/// Writes `values` in pieces, so that the converted copy stays small.
fn write_numbers(write: Write<'_>, dtype: Dtype, values: &[f32]) -> Result<()> {
    const PIECE: usize = 1 << 16;
    let mut bytes = Vec::with_capacity(4 * PIECE.min(values.len()));
    for piece in values.chunks(PIECE) {
        match dtype {
            Dtype::F16 => fill(
                &mut bytes,
                Vec::<f16>::from_f32_slice(piece)
                    .iter()
                    .map(|value| value.to_le_bytes()),
            ),
            Dtype::BF16 => fill(
                &mut bytes,
                Vec::<bf16>::from_f32_slice(piece)
                    .iter()
                    .map(|value| value.to_le_bytes()),
            ),
            Dtype::I64 => fill(
                &mut bytes,
                piece.iter().map(|value| (*value as i64).to_le_bytes()),
            ),
            _ => fill(&mut bytes, piece.iter().map(|value| value.to_le_bytes())),
        }
        write(&bytes)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::{Checkpoint, TensorFile};
    use super::*;
    use std::fs;

    const FIXTURES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures");

    fn fixture() -> Checkpoint {
        Checkpoint::open(format!("{FIXTURES}/qwen3").as_ref()).unwrap()
    }

    fn plan_of(checkpoint: &Checkpoint, dtype: Dtype) -> Vec<TensorPlan> {
        let plan = |name: &str| {
            let shape = checkpoint.info(name).unwrap().shape.clone();
            TensorPlan {
                name: name.into(),
                dtype,
                shape,
            }
        };
        checkpoint.names().map(plan).collect()
    }

    fn entries(folder: &Path) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn bytes_are_written_as_they_are() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("bytes.safetensors");
        let plan = TensorPlan {
            name: "codes".into(),
            dtype: Dtype::U8,
            shape: vec![3],
        };
        let writer = TensorWriter::new(vec![plan]).unwrap();
        let bytes = |count: u8| Elements::Bytes((0..count).collect::<Vec<u8>>().into());
        writer.write_file(&path, |_| Ok(bytes(3))).unwrap();
        let file = TensorFile::open(&path).unwrap();
        assert_eq!(&file.bytes("codes").unwrap()[..], [0, 1, 2]);
        assert!(writer.write_file(&path, |_| Ok(bytes(2))).is_err());
        assert!(writer.write_file(&path, |_| Ok(vec![0.5; 3])).is_err());
    }

    #[test]
    fn a_round_trip_keeps_every_byte() {
        let (checkpoint, folder) = (fixture(), tempfile::tempdir().unwrap());
        let writer = TensorWriter::new(plan_of(&checkpoint, Dtype::F32)).unwrap();
        writer
            .write_sharded(folder.path(), u64::MAX, |name| {
                checkpoint.read_f32(name, None)
            })
            .unwrap();
        assert_eq!(entries(folder.path()), [SINGLE_FILE]);
        let bytes = fs::read(folder.path().join(SINGLE_FILE)).unwrap();
        assert_eq!(u64::from_le_bytes(bytes[..8].try_into().unwrap()) % 8, 0);
        let reference = ::safetensors::SafeTensors::deserialize(&bytes).unwrap();
        assert_eq!(reference.len(), checkpoint.names().count());
        for name in checkpoint.names() {
            let tensor = reference.tensor(name).unwrap();
            assert_eq!(
                (tensor.data(), tensor.shape()),
                (
                    &checkpoint.bytes(name).unwrap()[..],
                    &checkpoint.info(name).unwrap().shape[..]
                )
            );
        }
    }

    #[test]
    fn half_precision_survives_a_second_round_trip() {
        let (checkpoint, folder) = (fixture(), tempfile::tempdir().unwrap());
        for dtype in [Dtype::F16, Dtype::BF16] {
            let (first, second) = (folder.path().join("first"), folder.path().join("second"));
            let writer = TensorWriter::new(plan_of(&checkpoint, dtype)).unwrap();
            writer
                .write_file(&first, |name| checkpoint.read_f32(name, None))
                .unwrap();
            let rounded = TensorFile::open(&first).unwrap();
            writer
                .write_file(&second, |name| rounded.read_f32(name, None))
                .unwrap();
            assert_eq!(fs::read(&first).unwrap(), fs::read(&second).unwrap());
            let exact = checkpoint.read_f32("model.norm.weight", None).unwrap();
            let near = rounded.read_f32("model.norm.weight", None).unwrap();
            assert!(
                exact
                    .iter()
                    .zip(&near)
                    .all(|(exact, near)| (exact - near).abs() <= exact.abs() / 256.0)
            );
        }
    }

    #[test]
    fn shards_and_index_read_back_the_same() {
        let (checkpoint, folder) = (fixture(), tempfile::tempdir().unwrap());
        fs::write(folder.path().join(SINGLE_FILE), b"of an earlier save").unwrap();
        let writer = TensorWriter::new(plan_of(&checkpoint, Dtype::F32)).unwrap();
        let files = writer
            .write_sharded(folder.path(), 20_000, |name| {
                checkpoint.read_f32(name, None)
            })
            .unwrap();
        assert!(
            files.len() > 2
                && files[0].ends_with(format!("model-00001-of-{:05}.safetensors", files.len()))
        );
        assert_eq!(entries(folder.path()).len(), files.len() + 1);
        let again = Checkpoint::open(folder.path()).unwrap();
        assert_eq!(again.total_bytes(), checkpoint.total_bytes());
        assert!(again.names().eq(checkpoint.names()));
        assert!(
            again
                .names()
                .all(|name| again.bytes(name).unwrap() == checkpoint.bytes(name).unwrap())
        );
        let index: Value =
            serde_json::from_slice(&fs::read(folder.path().join(INDEX_FILE)).unwrap()).unwrap();
        assert_eq!(index["metadata"]["total_size"], checkpoint.total_bytes());
    }

    #[test]
    fn a_tensor_above_the_limit_has_its_own_shard() {
        let tensor = |name: &str, rows| TensorPlan {
            name: name.into(),
            dtype: Dtype::F32,
            shape: vec![rows],
        };
        let tensors = [
            tensor("a", 2),
            tensor("b", 100),
            tensor("c", 2),
            tensor("d", 2),
        ];
        let sizes: Vec<usize> = split(&tensors, 16)
            .unwrap()
            .iter()
            .map(|shard| shard.len())
            .collect();
        assert_eq!(sizes, [1, 1, 2]);
    }

    #[test]
    fn a_failure_leaves_the_folder_as_it_was() {
        let (checkpoint, folder) = (fixture(), tempfile::tempdir().unwrap());
        let path = folder.path().join(SINGLE_FILE);
        fs::write(&path, b"old").unwrap();
        let writer = TensorWriter::new(plan_of(&checkpoint, Dtype::F32)).unwrap();
        let mut left = 5;
        let error = writer.write_sharded(folder.path(), 10_000, |name| {
            left -= 1;
            if left == 0 {
                Err(Error::Invalid("no more".into()))
            } else {
                checkpoint.read_f32(name, None)
            }
        });
        assert_eq!(error.unwrap_err().to_string(), "no more");
        let error = writer.write_file(&path, |_| Ok(vec![1.0])).unwrap_err();
        assert!(matches!(error, Error::Shape { .. }));
        assert_eq!(
            (entries(folder.path()), fs::read(&path).unwrap()),
            (vec![SINGLE_FILE.into()], b"old".to_vec())
        );
    }

    #[test]
    fn impossible_plans_are_refused() {
        let tensor = |name: &str, dtype, shape: &[usize]| TensorPlan {
            name: name.into(),
            dtype,
            shape: shape.into(),
        };
        let refused = |tensors| TensorWriter::new(tensors).unwrap_err().to_string();
        assert!(
            refused(vec![
                tensor("a", Dtype::F32, &[1]),
                tensor("a", Dtype::F32, &[1])
            ])
            .contains("planned twice")
        );
        assert!(
            refused(vec![tensor("a", Dtype::F4, &[1])])
                .contains("use F32, F16, BF16, I64, U8 or I8")
        );
        assert!(refused(vec![tensor("a", Dtype::F32, &[usize::MAX, 2])]).contains("overflows"));
        assert!(refused(vec![tensor("__metadata__", Dtype::F32, &[1])]).contains("`__metadata__`"));
    }

    #[test]
    fn no_tensors_and_empty_tensors_are_files_too() {
        let folder = tempfile::tempdir().unwrap();
        TensorWriter::new(vec![])
            .unwrap()
            .write_sharded(folder.path(), 1, |_| Ok(vec![]))
            .unwrap();
        assert_eq!(Checkpoint::open(folder.path()).unwrap().names().count(), 0);
        let plan = vec![TensorPlan {
            name: "a".into(),
            dtype: Dtype::F16,
            shape: vec![0, 3],
        }];
        TensorWriter::new(plan)
            .unwrap()
            .write_sharded(folder.path(), 1, |_| Ok(vec![]))
            .unwrap();
        assert_eq!(
            Checkpoint::open(folder.path())
                .unwrap()
                .info("a")
                .unwrap()
                .shape,
            [0, 3]
        );
    }
}
