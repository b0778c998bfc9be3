//! Reading the part of a file before its tensors' bytes.

use std::{
    collections::BTreeSet,
    io::{self, BufReader, Read},
};

use super::{ALIGNMENT, ALIGNMENT_KEY, MAGIC, Metadata, VERSION, Value};

/// Tensors of one file: the largest models have some thousands.
const MOST_TENSORS: u64 = 1 << 17;
/// The longest key and the longest name of a tensor.
const LONGEST_NAME: u64 = 65_535;
/// Lists in lists in lists are more than any file has.
const DEEPEST: usize = 3;
/// Axes of a tensor.
const MOST_AXES: u32 = 4;
/// The largest step of offsets.
const LARGEST_ALIGNMENT: u64 = 1 << 20;

/// Why a file cannot be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReadError {
    /// The system's reason.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// What is wrong with the file.
    #[error("{0}")]
    Broken(String),
}

type Result<T> = std::result::Result<T, ReadError>;

fn broken<T>(reason: impl Into<String>) -> Result<T> {
    Err(ReadError::Broken(reason.into()))
}

/// What stands before the tensors' bytes.
#[derive(Debug, Clone, PartialEq)]
pub struct Header {
    /// Everything that the file says by name.
    pub metadata: Metadata,
    /// The tensors, in the order of the file.
    pub tensors: Vec<TensorEntry>,
    /// Where in the file the tensors' bytes begin.
    pub data: u64,
    /// What offsets of tensors are multiples of.
    pub alignment: u64,
}

/// A tensor as the file describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorEntry {
    /// Its name.
    pub name: String,
    /// The length of each axis, the one of neighbouring elements first.
    pub axes: Vec<u64>,
    /// The number of the type of its elements.
    pub kind: u32,
    /// Where its bytes begin, counted from [`Header::data`].
    pub offset: u64,
}

/// Whether a file that begins so is a GGUF file, of whatever version.
pub fn is_gguf(beginning: &[u8]) -> bool {
    beginning.starts_with(&MAGIC)
}

/// Reads the header of a file of `length` bytes.
///
/// ```
/// use espalier_data::gguf::{Metadata, Value, header_bytes, read_header};
/// let metadata = Metadata::from([("general.name".into(), Value::Text("small".into()))]);
/// let bytes = header_bytes(&metadata, &[]);
/// let header = read_header(&bytes[..], bytes.len() as u64)?;
/// assert_eq!(header.metadata, metadata);
/// assert!(read_header(&bytes[..20], 20).is_err());
/// # Ok::<(), espalier_data::gguf::ReadError>(())
/// ```
///
/// # Errors
/// When the file breaks the format in any way, or is of a version or byte order that is not read.
pub fn read_header(file: impl Read, length: u64) -> Result<Header> {
    let mut reader = Reader {
        file: BufReader::with_capacity(1 << 16, file),
        place: 0,
        length,
    };
    if reader.bytes::<4>("the magic")? != MAGIC {
        return broken("does not begin with GGUF");
    }
    let version = reader.u32("the version")?;
    match version {
        2 | VERSION => {}
        1 => {
            return broken(
                "of version 1, which no converter has written since 2023; convert the model again",
            );
        }
        _ if version.swap_bytes() <= VERSION => {
            return broken("big-endian; convert the model again for little-endian machines");
        }
        _ => return broken(format!("of version {version}; versions 2 and 3 are read")),
    }
    let (tensors, pairs) = (
        reader.u64("the number of tensors")?,
        reader.u64("the number of keys")?,
    );
    if tensors > MOST_TENSORS {
        return broken(format!(
            "says that it has {tensors} tensors; at most {MOST_TENSORS} are read"
        ));
    }
    let mut metadata = Metadata::new();
    // A key of no letters, its type and a byte.
    reader.check_count(pairs, 13, "keys")?;
    for _ in 0..pairs {
        let key = reader.name("a key")?;
        let kind = reader.u32(&key)?;
        let value = reader.value(kind, &key, 0)?;
        if metadata.insert(key.clone(), value).is_some() {
            return broken(format!("has the key `{key}` twice"));
        }
    }
    let alignment = alignment(&metadata)?;
    reader.check_count(tensors, 24, "tensors")?;
    let tensors = (0..tensors)
        .map(|_| reader.tensor(alignment))
        .collect::<Result<Vec<_>>>()?;
    let mut names = BTreeSet::new();
    if let Some(twice) = tensors.iter().find(|tensor| !names.insert(&tensor.name)) {
        return broken(format!("has the tensor `{}` twice", twice.name));
    }
    let data = reader.place.next_multiple_of(alignment);
    if data > length && !tensors.is_empty() {
        return broken("ends before the bytes of its tensors; download it again");
    }
    Ok(Header {
        metadata,
        tensors,
        data,
        alignment,
    })
}

fn alignment(metadata: &Metadata) -> Result<u64> {
    let Some(value) = metadata.get(ALIGNMENT_KEY) else {
        return Ok(ALIGNMENT);
    };
    let fits = |alignment: &u64| {
        *alignment > 0 && *alignment <= LARGEST_ALIGNMENT && alignment.is_multiple_of(8)
    };
    match value.as_u64().filter(fits) {
        Some(alignment) => Ok(alignment),
        None => broken(format!(
            "`{ALIGNMENT_KEY}` is {value:?}; expected a multiple of 8, at most {LARGEST_ALIGNMENT}"
        )),
    }
}

struct Reader<R> {
    file: R,
    /// Bytes read so far.
    place: u64,
    /// Bytes of the whole file.
    length: u64,
}

impl<R: Read> Reader<R> {
    fn left(&self) -> u64 {
        self.length - self.place
    }

    /// Refuses a count of things that take at least `size` bytes each where the rest of the file is too short for them.
    fn check_count(&self, count: u64, size: u64, what: &str) -> Result<()> {
        match count.checked_mul(size) {
            Some(bytes) if bytes <= self.left() => Ok(()),
            _ => broken(format!(
                "says that it has {count} {what}, but only {} bytes follow; download it again",
                self.left()
            )),
        }
    }

    fn bytes<const N: usize>(&mut self, what: &str) -> Result<[u8; N]> {
        let mut bytes = [0; N];
        if (N as u64) > self.left() {
            return broken(format!("ends within {what}; download it again"));
        }
        self.file.read_exact(&mut bytes)?;
        self.place += N as u64;
        Ok(bytes)
    }

    fn u32(&mut self, what: &str) -> Result<u32> {
        self.bytes(what).map(u32::from_le_bytes)
    }

    fn u64(&mut self, what: &str) -> Result<u64> {
        self.bytes(what).map(u64::from_le_bytes)
    }

    fn text(&mut self, what: &str, longest: u64) -> Result<String> {
        let length = self.u64(what)?;
        if length > longest.min(self.left()) {
            return broken(format!(
                "{what} is said to have {length} bytes, but {} follow; download it again",
                self.left()
            ));
        }
        let mut bytes = vec![0; length as usize];
        self.file.read_exact(&mut bytes)?;
        self.place += length;
        // Pieces of a vocabulary may be bytes of no text.
        Ok(String::from_utf8(bytes)
            .unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned()))
    }

    fn name(&mut self, what: &str) -> Result<String> {
        self.text(what, LONGEST_NAME)
    }

    fn value(&mut self, kind: u32, key: &str, depth: usize) -> Result<Value> {
        Ok(match kind {
            0 => Value::U8(u8::from_le_bytes(self.bytes(key)?)),
            1 => Value::I8(i8::from_le_bytes(self.bytes(key)?)),
            2 => Value::U16(u16::from_le_bytes(self.bytes(key)?)),
            3 => Value::I16(i16::from_le_bytes(self.bytes(key)?)),
            4 => Value::U32(self.u32(key)?),
            5 => Value::I32(i32::from_le_bytes(self.bytes(key)?)),
            6 => Value::F32(f32::from_le_bytes(self.bytes(key)?)),
            7 => match self.bytes::<1>(key)? {
                [0] => Value::Bool(false),
                [1] => Value::Bool(true),
                [other] => return broken(format!("`{key}` is neither yes nor no but {other}")),
            },
            8 => Value::Text(self.text(key, u64::MAX)?),
            9 => self.list(key, depth)?,
            10 => Value::U64(self.u64(key)?),
            11 => Value::I64(i64::from_le_bytes(self.bytes(key)?)),
            12 => Value::F64(f64::from_le_bytes(self.bytes(key)?)),
            other => return broken(format!("`{key}` has the type {other}, which there is not")),
        })
    }

    fn list(&mut self, key: &str, depth: usize) -> Result<Value> {
        if depth == DEEPEST {
            return broken(format!(
                "`{key}` has lists within lists, deeper than {DEEPEST}"
            ));
        }
        let (kind, count) = (self.u32(key)?, self.u64(key)?);
        let size = match kind {
            0 | 1 | 7 => 1,
            2 | 3 => 2,
            4..=6 => 4,
            8 | 10..=12 => 8,
            9 => 12,
            other => {
                return broken(format!(
                    "`{key}` lists the type {other}, which there is not"
                ));
            }
        };
        self.check_count(count, size, &format!("elements of `{key}`"))?;
        let elements = (0..count).map(|_| self.value(kind, key, depth + 1));
        Ok(Value::List(kind, elements.collect::<Result<_>>()?))
    }

    fn tensor(&mut self, alignment: u64) -> Result<TensorEntry> {
        let name = self.name("the name of a tensor")?;
        let axes = self.u32(&name)?;
        if axes > MOST_AXES {
            return broken(format!(
                "tensor `{name}` has {axes} axes; at most {MOST_AXES} are read"
            ));
        }
        let axes = (0..axes)
            .map(|_| self.u64(&name))
            .collect::<Result<Vec<_>>>()?;
        let elements = axes
            .iter()
            .try_fold(1u64, |all, axis| all.checked_mul(*axis));
        if elements.is_none_or(|elements| elements > 1 << 56) {
            return broken(format!(
                "tensor `{name}` is said to have the impossible shape {axes:?}"
            ));
        }
        let (kind, offset) = (self.u32(&name)?, self.u64(&name)?);
        if !offset.is_multiple_of(alignment) {
            return broken(format!(
                "tensor `{name}` begins at {offset}, which is no multiple of {alignment}"
            ));
        }
        Ok(TensorEntry {
            name,
            axes,
            kind,
            offset,
        })
    }
}
