//! Reads one file of tensors through a memory map: safetensors, a checkpoint of PyTorch (see `pth.rs`), or a GGUF file (see `gguf/`).
//!
//! The format of safetensors is that of huggingface/safetensors: a `u64` header length, a JSON header, then the tensors' bytes. The
//! header comes from outside, so nothing in it is believed: the `safetensors` crate checks its length, its JSON, and
//! that shapes, types and offsets cover the buffer without overlap or hole; this file adds duplicate names and a bound on their
//! number. Nothing is allocated by a size that the file only claims. Left out: 8-bit and 4-bit floats, which have readers of their own.

use super::{gguf, pth};
use crate::error::{Error, Result};
use crate::source::Values;
use espalier_kernels::{
    memory_map,
    stored::{Bf16, F16, F32, Format, Stored, StoredBytes},
};
use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use memmap2::Mmap;
pub use safetensors::Dtype;
use safetensors::{SafeTensors, tensor::TensorInfo as Entry};
use serde::de::{Deserializer, Error as _, IgnoredAny, MapAccess, Visitor};
use std::borrow::Cow;
use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Tensors of one file: the largest models have about a hundred thousand in all, and a header of a million takes seconds.
pub(super) const MOST_TENSORS: usize = 1 << 17;

/// The type and shape of one stored tensor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorInfo {
    /// How each element is stored.
    pub dtype: Dtype,
    /// The length of each axis, row-major.
    pub shape: Vec<usize>,
}

impl TensorInfo {
    /// Elements of the tensor.
    pub fn elements(&self) -> usize {
        self.shape
            .iter()
            .fold(1, |product, &axis| product.saturating_mul(axis))
    }
}

/// One file of tensors, memory-mapped and checked.
///
/// ```no_run
/// use espalier_models::checkpoint::TensorFile;
/// let file = TensorFile::open("model/model.safetensors".as_ref())?;
/// for name in file.names() {
///     println!("{name}: {} numbers", file.read_f32(name, None)?.len());
/// }
/// # Ok::<(), espalier_models::error::Error>(())
/// ```
#[derive(Debug)]
pub struct TensorFile {
    path: PathBuf,
    map: Arc<Mmap>,
    tensors: BTreeMap<String, Place>,
    /// What a GGUF file says besides.
    gguf: Option<gguf::Contents>,
}

/// Where a tensor lies in the map.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Place {
    pub info: TensorInfo,
    pub bytes: Range<usize>,
    /// How its elements are reached where they do not lie row by row.
    pub strided: Option<Strided>,
    /// How its numbers are written, in a GGUF file.
    pub encoding: Option<gguf::Encoding>,
}

/// Elements that are spread over the bytes of a tensor, all of which lie within them.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Strided {
    /// Elements from one index of an axis to the next.
    pub strides: Vec<usize>,
    /// Bytes of an element.
    pub width: usize,
}

impl Strided {
    /// The elements row by row.
    fn gather(&self, bytes: &[u8], shape: &[usize]) -> Vec<u8> {
        let mut places = vec![0];
        for (axis, stride) in shape.iter().zip(&self.strides) {
            places = places
                .iter()
                .flat_map(|place| (0..*axis).map(move |index| place + index * stride))
                .collect();
        }
        let element = |place: usize| bytes.get(place * self.width..(place + 1) * self.width);
        places
            .into_iter()
            .filter_map(element)
            .flatten()
            .copied()
            .collect()
    }
}

impl TensorFile {
    /// Maps the file at `path` and checks its header.
    ///
    /// # Errors
    /// When the file cannot be read, or its header breaks the format in any way.
    pub fn open(path: &Path) -> Result<Self> {
        Self::open_part(path, None)
    }

    /// As [`TensorFile::open`], of a part of a GGUF file whose first part is given.
    pub(super) fn open_part(path: &Path, first: Option<&Self>) -> Result<Self> {
        let map = memory_map::map_file(path).map_err(Error::file(path))?;
        let mut gguf = None;
        let tensors = match pth::is_pytorch(&map) {
            true => pth::parse(&map),
            false if gguf::is_gguf(&map) => {
                let first = first.and_then(|first| first.gguf.as_ref());
                gguf::parse(&map, first.map(|first| &first.header)).map(|mut contents| {
                    let tensors = std::mem::take(&mut contents.tensors);
                    gguf = Some(contents);
                    tensors
                })
            }
            false if path.extension().is_some_and(|ending| ending == "gguf") => {
                Err("does not begin as a GGUF file does; download it again".into())
            }
            false => parse_header(&map),
        };
        let tensors = tensors.map_err(|reason| Error::checkpoint(path, reason))?;
        Ok(Self {
            path: path.to_path_buf(),
            map: Arc::new(map),
            tensors,
            gguf,
        })
    }

    /// What a GGUF file says besides its tensors.
    pub(super) fn gguf(&self) -> Option<&gguf::Contents> {
        self.gguf.as_ref()
    }

    /// The bytes of the file.
    pub(super) fn map(&self) -> &Mmap {
        &self.map
    }

    /// The name of the format of the tensor `name`, if the file has it.
    pub fn format_name(&self, name: &str) -> Option<String> {
        let place = self.tensors.get(name)?;
        Some(match &place.encoding {
            Some(encoding) => encoding.format.name().to_owned(),
            None => format!("{:?}", place.info.dtype).to_lowercase(),
        })
    }

    /// Bytes of the tensor `name`; none where the file lacks it.
    pub fn size(&self, name: &str) -> u64 {
        let place = self.tensors.get(name);
        place.map_or(0, |place| match place.strided {
            None => place.bytes.len() as u64,
            Some(_) => {
                (place.info.elements() as u64).saturating_mul(place.info.dtype.bitsize() as u64) / 8
            }
        })
    }

    /// Whether a matrix lies with its outputs as rows even where the family's files have it transposed.
    pub(crate) fn is_upright(&self, name: &str) -> bool {
        let encoding = self.tensors.get(name).and_then(|place| place.encoding);
        encoding.is_some_and(|encoding| encoding.upright)
    }

    /// Where the file is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The tensors' names, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// The type and shape of the tensor `name`, if the file has it.
    pub fn info(&self, name: &str) -> Option<&TensorInfo> {
        self.tensors.get(name).map(|place| &place.info)
    }

    /// The bytes of the tensor `name`, little-endian and row-major.
    ///
    /// # Errors
    /// When the file lacks the tensor.
    pub fn bytes(&self, name: &str) -> Result<Cow<'_, [u8]>> {
        let place = self.place(name)?;
        let outside = || self.error(format!("tensor `{name}` lies outside the file"));
        let bytes = self.map.get(place.bytes.clone()).ok_or_else(outside)?;
        Ok(match &place.strided {
            None => bytes.into(),
            Some(strided) => strided.gather(bytes, &place.info.shape).into(),
        })
    }

    /// The tensor `name` as `f32`, row-major; only `rows` of its first axis when given.
    ///
    /// # Errors
    /// When the file lacks the tensor or the rows, or the tensor is not F32, F16, BF16 or F64.
    pub fn read_f32(&self, name: &str, rows: Option<Range<usize>>) -> Result<Vec<f32>> {
        let info = &self.place(name)?.info;
        if self.place(name)?.encoding.is_some() {
            return self.read_encoded(name, rows);
        }
        let whole = self.bytes(name)?;
        let mut bytes = &whole[..];
        if let Some(rows) = rows {
            let part = row_bytes(info, bytes.len(), &rows)
                .ok_or_else(|| self.missing_rows(name, info, &rows))?;
            bytes = &bytes[part];
        }
        let values = floats(info.dtype, bytes).ok_or_else(|| self.no_floats(name, info));
        // The copy is what stays in memory, not the map beside it.
        memory_map::release(&self.map, self.place(name)?.bytes.clone());
        values
    }

    /// As [`TensorFile::read_f32`], of a tensor of a GGUF file.
    fn read_encoded(&self, name: &str, rows: Option<Range<usize>>) -> Result<Vec<f32>> {
        let info = &self.place(name)?.info;
        let stored = self.stored(name)?;
        let Some(rows) = rows else {
            return Ok(Values::Stored(stored).into_floats());
        };
        let count = info.shape.first().copied().unwrap_or(1);
        if rows.start > rows.end || rows.end > count {
            return Err(self.missing_rows(name, info, &rows));
        }
        // Of a single axis the elements are the rows.
        if info.shape.len() < 2 {
            return Ok(stored.expanded()[rows].to_vec());
        }
        let each = stored.rows().checked_div(count).unwrap_or(0);
        Ok(stored.expanded_rows(rows.start * each..rows.end * each))
    }

    /// The tensor `name` as the file holds it, mapped and not yet read. F64 is rounded to f32, and elements that do not lie row by row
    /// are put in order, both in memory of their own.
    ///
    /// # Errors
    /// When the file lacks the tensor, or it is not F32, F16, BF16 or F64.
    pub fn stored(&self, name: &str) -> Result<Stored> {
        let Place {
            info,
            bytes,
            strided,
            encoding,
        } = self.place(name)?;
        if let Some(encoding) = encoding {
            let stored = StoredBytes::mapped(self.map.clone(), bytes.clone());
            return stored
                .and_then(|bytes| encoding.stored(&info.shape, bytes))
                .ok_or_else(|| {
                    self.error(format!(
                        "tensor `{name}` of shape {:?} does not divide into the heads that the file says",
                        info.shape
                    ))
                });
        }
        let format: &'static dyn Format = match info.dtype {
            Dtype::F32 | Dtype::F64 => &F32,
            Dtype::F16 => &F16,
            Dtype::BF16 => &Bf16,
            _ => return Err(self.no_floats(name, info)),
        };
        let stored = match (info.dtype, strided) {
            (Dtype::F64, _) => {
                let values = self.read_f32(name, None)?;
                Some(
                    values
                        .iter()
                        .flat_map(|value| value.to_le_bytes())
                        .collect::<Vec<u8>>()
                        .into(),
                )
            }
            (_, None) => StoredBytes::mapped(self.map.clone(), bytes.clone()),
            (_, Some(_)) => Some(self.bytes(name)?.into_owned().into()),
        };
        // A single number is a row of one.
        let shape = if info.shape.is_empty() {
            vec![1]
        } else {
            info.shape.clone()
        };
        stored
            .and_then(|bytes| Stored::new(format, shape, bytes))
            .ok_or_else(|| self.error(format!("tensor `{name}` lies outside the file")))
    }

    /// The integer tensor `name`, row-major.
    ///
    /// # Errors
    /// When the file lacks the tensor, it is not of an integer type, or a `u64` does not fit.
    pub fn read_i64(&self, name: &str) -> Result<Vec<i64>> {
        let info = &self.place(name)?.info;
        integers(info.dtype, &self.bytes(name)?).ok_or_else(|| {
            self.error(format!(
                "tensor `{name}` holds {:?}; expected integers that fit 64 signed bits",
                info.dtype
            ))
        })
    }

    fn place(&self, name: &str) -> Result<&Place> {
        self.tensors
            .get(name)
            .ok_or_else(|| self.error(format!("has no tensor `{name}`; `names` lists what it has")))
    }

    fn no_floats(&self, name: &str, info: &TensorInfo) -> Error {
        self.error(format!(
            "tensor `{name}` holds {:?}; expected F32, F16, BF16 or F64: convert the file",
            info.dtype
        ))
    }

    fn error(&self, reason: String) -> Error {
        Error::checkpoint(&self.path, reason)
    }

    fn missing_rows(&self, name: &str, info: &TensorInfo, rows: &Range<usize>) -> Error {
        self.error(format!(
            "tensor `{name}` of shape {:?} has no rows {}..{}",
            info.shape, rows.start, rows.end
        ))
    }
}

/// The byte range of `rows`, or nothing if the tensor lacks them.
fn row_bytes(info: &TensorInfo, length: usize, rows: &Range<usize>) -> Option<Range<usize>> {
    let count = *info.shape.first()?;
    if rows.start > rows.end || rows.end > count {
        return None;
    }
    let row = length.checked_div(count).unwrap_or(0);
    Some(rows.start * row..rows.end * row)
}

/// Checks the header of `file`, which may be anything, and gives each tensor's place.
fn parse_header(file: &[u8]) -> std::result::Result<BTreeMap<String, Place>, String> {
    if file.is_empty() {
        return Err("the file is empty; download or save it again".into());
    }
    let broken =
        |reason| format!("not a whole safetensors file ({reason}); download or save it again");
    // Names first: a header of too many is not worth more.
    if let Some(header) = header(file) {
        check_names(header).map_err(|error| broken(error.to_string()))?;
    }
    let (length, metadata) =
        SafeTensors::read_metadata(file).map_err(|error| broken(error.to_string()))?;
    let start = 8 + length;
    let placed = |(name, entry): (String, &Entry)| {
        let (begin, end) = entry.data_offsets;
        let info = TensorInfo {
            dtype: entry.dtype,
            shape: entry.shape.clone(),
        };
        (
            name,
            Place {
                info,
                bytes: start + begin..start + end,
                strided: None,
                encoding: None,
            },
        )
    };
    Ok(metadata.tensors().into_iter().map(placed).collect())
}

/// The JSON of the header, where the file is as long as it says.
fn header(file: &[u8]) -> Option<&[u8]> {
    let (length, rest) = file.split_first_chunk::<8>()?;
    rest.get(..usize::try_from(u64::from_le_bytes(*length)).ok()?)
}

/// A JSON object may name a key twice and readers then disagree on which counts; and it may have too many.
fn check_names(header: &[u8]) -> serde_json::Result<()> {
    struct Names;
    impl<'de> Visitor<'de> for Names {
        type Value = ();
        fn expecting(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
            formatter.write_str("a JSON object of tensors")
        }
        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<(), A::Error> {
            let mut seen = HashSet::new();
            while let Some((name, _)) = map.next_entry::<String, IgnoredAny>()? {
                if let Some(name) = seen.replace(name) {
                    return Err(A::Error::custom(format!("tensor `{name}` is named twice")));
                }
                if seen.len() > MOST_TENSORS + 1 {
                    let reason = format!("it names more than {MOST_TENSORS} tensors");
                    return Err(A::Error::custom(reason));
                }
            }
            Ok(())
        }
    }
    serde_json::Deserializer::from_slice(header).deserialize_map(Names)
}

/// Little-endian `bytes` of a floating type as `f32`.
fn floats(dtype: Dtype, bytes: &[u8]) -> Option<Vec<f32>> {
    Some(match dtype {
        Dtype::F32 => elements(bytes, f32::from_le_bytes),
        Dtype::F64 => elements(bytes, |element| f64::from_le_bytes(element) as f32),
        Dtype::F16 => elements(bytes, f16::from_le_bytes).to_f32_vec(),
        Dtype::BF16 => elements(bytes, bf16::from_le_bytes).to_f32_vec(),
        _ => return None,
    })
}

/// Little-endian `bytes` of an integer type as `i64`.
fn integers(dtype: Dtype, bytes: &[u8]) -> Option<Vec<i64>> {
    Some(match dtype {
        Dtype::I64 => elements(bytes, i64::from_le_bytes),
        Dtype::I32 => elements(bytes, |element| i32::from_le_bytes(element).into()),
        Dtype::U32 => elements(bytes, |element| u32::from_le_bytes(element).into()),
        Dtype::I16 => elements(bytes, |element| i16::from_le_bytes(element).into()),
        Dtype::U16 => elements(bytes, |element| u16::from_le_bytes(element).into()),
        Dtype::I8 => elements(bytes, |element| i8::from_le_bytes(element).into()),
        Dtype::U8 | Dtype::BOOL => elements(bytes, |[element]| element.into()),
        Dtype::U64 => {
            let checked = elements(bytes, |element| {
                i64::try_from(u64::from_le_bytes(element)).ok()
            });
            return checked.into_iter().collect();
        }
        _ => return None,
    })
}

fn elements<const N: usize, T>(bytes: &[u8], convert: impl Fn([u8; N]) -> T) -> Vec<T> {
    bytes
        .as_chunks::<N>()
        .0
        .iter()
        .map(|element| convert(*element))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const FIXTURES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures");

    /// A file with this header and this many bytes of data.
    fn file(header: &str, data: usize) -> Vec<u8> {
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend(header.as_bytes());
        bytes.extend((0..data).map(|index| index as u8));
        bytes
    }

    fn open(bytes: &[u8]) -> Result<TensorFile> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.safetensors");
        std::fs::write(&path, bytes).unwrap();
        TensorFile::open(&path)
    }

    const VALID: &str = r#"{"__metadata__":{"format":"pt"},"a":{"dtype":"F32","shape":[2,2],"data_offsets":[0,16]},"b":{"dtype":"U8","shape":[3],"data_offsets":[16,19]}}"#;

    #[test]
    fn reads_names_rows_and_integers() {
        let read = open(&file(VALID, 19)).unwrap();
        assert_eq!(read.names().collect::<Vec<_>>(), ["a", "b"]);
        assert_eq!(
            read.info("a").unwrap(),
            &TensorInfo {
                dtype: Dtype::F32,
                shape: vec![2, 2]
            }
        );
        assert_eq!(*read.bytes("b").unwrap(), [16, 17, 18]);
        let all = read.read_f32("a", None).unwrap();
        assert_eq!(all[1], f32::from_le_bytes([4, 5, 6, 7]));
        assert_eq!(read.read_f32("a", Some(1..2)).unwrap(), all[2..]);
        assert!(read.read_f32("a", Some(2..2)).unwrap().is_empty());
        assert_eq!(read.read_i64("b").unwrap(), [16, 17, 18]);
    }

    #[test]
    #[allow(clippy::reversed_empty_ranges)]
    fn refuses_missing_tensors_rows_and_types() {
        let read = open(&file(VALID, 19)).unwrap();
        assert!(
            read.read_f32("c", None)
                .unwrap_err()
                .to_string()
                .contains("no tensor `c`")
        );
        assert!(
            read.read_f32("a", Some(1..3))
                .unwrap_err()
                .to_string()
                .contains("no rows 1..3")
        );
        assert!(read.read_f32("a", Some(2..1)).is_err());
        assert!(
            read.read_f32("b", None)
                .unwrap_err()
                .to_string()
                .contains("U8")
        );
        assert!(read.read_i64("a").is_err());
    }

    #[test]
    fn converts_every_float_type() {
        let header = |dtype: &str, size: usize| {
            format!(r#"{{"a":{{"dtype":"{dtype}","shape":[],"data_offsets":[0,{size}]}}}}"#)
        };
        let read = |dtype: &str, bytes: &[u8]| {
            let mut file = file(&header(dtype, bytes.len()), 0);
            file.extend(bytes);
            open(&file).unwrap().read_f32("a", None).unwrap()
        };
        assert_eq!(read("F32", &1.5f32.to_le_bytes()), [1.5]);
        assert_eq!(read("F64", &(-2.25f64).to_le_bytes()), [-2.25]);
        assert_eq!(read("F16", &f16::from_f32(0.125).to_le_bytes()), [0.125]);
        assert_eq!(read("BF16", &bf16::from_f32(96.0).to_le_bytes()), [96.0]);
    }

    #[test]
    fn converts_every_integer_type() {
        assert_eq!(integers(Dtype::I8, &[255]), Some(vec![-1]));
        assert_eq!(integers(Dtype::U16, &[255, 255]), Some(vec![65535]));
        assert_eq!(integers(Dtype::I16, &[255, 255]), Some(vec![-1]));
        assert_eq!(
            integers(Dtype::U32, &[1, 0, 0, 128]),
            Some(vec![0x8000_0001])
        );
        assert_eq!(integers(Dtype::I32, &[254, 255, 255, 255]), Some(vec![-2]));
        assert_eq!(integers(Dtype::U64, &[255; 8]), None);
        assert_eq!(integers(Dtype::I64, &[255; 8]), Some(vec![-1]));
        assert_eq!(integers(Dtype::F32, &[0; 4]), None);
    }

    #[test]
    fn hostile_headers_are_errors() {
        let one = |dtype: &str, shape: &str, offsets: &str| {
            format!(r#"{{"a":{{"dtype":"{dtype}","shape":{shape},"data_offsets":{offsets}}}}}"#)
        };
        let two = |first: &str, second: &str| {
            let entry =
                |offsets| format!(r#"{{"dtype":"U8","shape":[4],"data_offsets":{offsets}}}"#);
            format!(r#"{{"a":{},"b":{}}}"#, entry(first), entry(second))
        };
        let cases: Vec<(&str, Vec<u8>)> = vec![
            ("empty file", vec![]),
            ("five bytes", vec![1, 0, 0, 0, 0]),
            ("header of 2^63 bytes", (1u64 << 63).to_le_bytes().to_vec()),
            ("header longer than the file", 100u64.to_le_bytes().to_vec()),
            ("truncated data", file(VALID, 18)),
            ("bytes after the data", file(VALID, 20)),
            ("not JSON", file("{not json", 0)),
            ("not an object", file("[1, 2]", 0)),
            (
                "not UTF-8",
                [&2u64.to_le_bytes()[..], &[0xff, 0xfe]].concat(),
            ),
            ("unknown dtype", file(&one("F31", "[1]", "[0,4]"), 4)),
            ("negative shape", file(&one("F32", "[-1]", "[0,4]"), 4)),
            (
                "shape product overflows",
                file(&one("F32", "[4294967296,4294967296,4]", "[0,4]"), 4),
            ),
            (
                "byte count overflows",
                file(&one("F64", "[4611686018427387904]", "[0,8]"), 8),
            ),
            ("wrong byte count", file(&one("F32", "[2]", "[0,4]"), 4)),
            ("offsets reversed", file(&one("U8", "[4]", "[4,0]"), 4)),
            (
                "offsets outside",
                file(&one("U8", "[4]", "[1000000,1000004]"), 4),
            ),
            ("overlap", file(&two("[0,4]", "[2,6]"), 6)),
            ("hole", file(&two("[0,4]", "[5,9]"), 9)),
            ("same bytes twice", file(&two("[0,4]", "[0,4]"), 4)),
            (
                "a name twice",
                file(&two("[0,4]", "[0,4]").replace("\"b\"", "\"a\""), 4),
            ),
        ];
        for (case, bytes) in cases {
            let error = open(&bytes).expect_err(case);
            assert!(matches!(error, Error::Checkpoint { .. }), "{case}: {error}");
            assert!(
                error.to_string().contains("download or save it again"),
                "{case}: {error}"
            );
        }
        let twice = file(&two("[0,4]", "[0,4]").replace("\"b\"", "\"a\""), 4);
        assert!(
            open(&twice)
                .unwrap_err()
                .to_string()
                .contains("`a` is named twice")
        );
    }

    /// A file of this many tensors of one byte.
    fn file_of(count: usize) -> Vec<u8> {
        let entry = |i: usize| {
            format!(
                r#""blocks.{i}.weight":{{"dtype":"U8","shape":[1],"data_offsets":[{i},{}]}}"#,
                i + 1
            )
        };
        let entries: Vec<String> = (0..count).map(entry).collect();
        file(&format!("{{{}}}", entries.join(",")), count)
    }

    #[test]
    fn a_header_of_a_million_tensors_is_refused_at_once() {
        let bytes = file_of(1_000_000);
        let started = std::time::Instant::now();
        let error = open(&bytes).unwrap_err().to_string();
        assert!(error.contains("more than 131072 tensors"), "{error}");
        assert!(started.elapsed().as_secs_f64() < 2.0);
        assert_eq!(open(&file_of(5_000)).unwrap().names().count(), 5_000);
    }

    /// Reads everything that a file offers; nothing read may be longer than the file allows.
    fn read_all(bytes: &[u8]) {
        let Ok(read) = open(bytes) else { return };
        for name in read.names() {
            assert!(read.bytes(name).unwrap().len() <= bytes.len());
            let rows = read.info(name).unwrap().shape.first().copied();
            for rows in [None, rows.map(|rows| 0..rows)] {
                assert!(
                    read.read_f32(name, rows).map_or(0, |numbers| numbers.len()) * 2 <= bytes.len()
                );
            }
            assert!(read.read_i64(name).map_or(0, |numbers| numbers.len()) <= bytes.len());
        }
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            read_all(&bytes);
        }

        #[test]
        fn arbitrary_headers_never_panic(header in r#"\{("[ab]":\{"dtype":"(F32|F4|BOOL)","shape":\[[0-9]{1,20}(,[0-9]{1,3})?\],"data_offsets":\[[0-9],[0-9]{1,20}\]\},?){0,2}\}"#) {
            read_all(&file(&header, 9));
        }

        #[test]
        fn flipped_bits_never_panic(flips in proptest::collection::vec((any::<proptest::sample::Index>(), 0u8..8), 1..6)) {
            let mut bytes = std::fs::read(format!("{FIXTURES}/gpt2/model.safetensors")).unwrap();
            // Most of the file is data, in which any bit is as good as any other.
            let header = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
            for (place, bit) in flips {
                bytes[place.index(header)] ^= 1 << bit;
            }
            read_all(&bytes);
        }
    }
}
