//! The container of GGUF files: metadata by name, and a list of tensors whose bytes stand behind it.
//!
//! The format is version 3 of ggml's `docs/gguf.md`, little-endian; version 2 is the same. A file is its magic, a version, two counts, so
//! many pairs of key and value, so many descriptions of tensors, and, from a multiple of `general.alignment` on, the tensors' bytes. It
//! comes from outside, so nothing in it is believed: a count or a length is refused where the rest of the file is too short for
//! it, before anything is allocated. What types of tensors there are is not known here; the crate of models checks their sizes.

mod read;
mod write;

use std::collections::BTreeMap;

pub use self::{
    read::{Header, ReadError, TensorEntry, is_gguf, read_header},
    write::{header_bytes, padding},
};

/// The bytes that a file begins with.
pub const MAGIC: [u8; 4] = *b"GGUF";
/// The version that is written.
pub const VERSION: u32 = 3;
/// What offsets are multiples of where the file does not say otherwise.
pub const ALIGNMENT: u64 = 32;
/// The key that says otherwise.
pub const ALIGNMENT_KEY: &str = "general.alignment";

/// Metadata, by key.
pub type Metadata = BTreeMap<String, Value>;

/// A value of the metadata, in the type that the file has it in.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs)]
pub enum Value {
    U8(u8),
    I8(i8),
    U16(u16),
    I16(i16),
    U32(u32),
    I32(i32),
    F32(f32),
    Bool(bool),
    Text(String),
    /// Elements of one type, whose number (as of [`Value::kind`]) comes first.
    List(u32, Vec<Value>),
    U64(u64),
    I64(i64),
    F64(f64),
}

impl Value {
    /// The number of the type in files.
    pub fn kind(&self) -> u32 {
        match self {
            Self::U8(_) => 0,
            Self::I8(_) => 1,
            Self::U16(_) => 2,
            Self::I16(_) => 3,
            Self::U32(_) => 4,
            Self::I32(_) => 5,
            Self::F32(_) => 6,
            Self::Bool(_) => 7,
            Self::Text(_) => 8,
            Self::List(..) => 9,
            Self::U64(_) => 10,
            Self::I64(_) => 11,
            Self::F64(_) => 12,
        }
    }

    /// A list of texts.
    pub fn texts(texts: impl IntoIterator<Item = String>) -> Self {
        Self::List(8, texts.into_iter().map(Self::Text).collect())
    }

    /// A list of numbers.
    pub fn floats(numbers: impl IntoIterator<Item = f32>) -> Self {
        Self::List(6, numbers.into_iter().map(Self::F32).collect())
    }

    /// A list of whole numbers.
    pub fn integers(numbers: impl IntoIterator<Item = i32>) -> Self {
        Self::List(5, numbers.into_iter().map(Self::I32).collect())
    }

    /// A whole number of any type that is not below zero.
    pub fn as_u64(&self) -> Option<u64> {
        match *self {
            Self::U8(value) => Some(value.into()),
            Self::U16(value) => Some(value.into()),
            Self::U32(value) => Some(value.into()),
            Self::U64(value) => Some(value),
            Self::I8(value) => value.try_into().ok(),
            Self::I16(value) => value.try_into().ok(),
            Self::I32(value) => value.try_into().ok(),
            Self::I64(value) => value.try_into().ok(),
            _ => None,
        }
    }

    /// A number of any type.
    pub fn as_f64(&self) -> Option<f64> {
        match *self {
            Self::F32(value) => Some(value.into()),
            Self::F64(value) => Some(value),
            Self::I8(value) => Some(value.into()),
            Self::I16(value) => Some(value.into()),
            Self::I32(value) => Some(value.into()),
            Self::I64(value) => Some(value as f64),
            _ => self.as_u64().map(|value| value as f64),
        }
    }

    /// A yes or no.
    pub fn as_bool(&self) -> Option<bool> {
        match *self {
            Self::Bool(value) => Some(value),
            _ => None,
        }
    }

    /// A text.
    pub fn as_text(&self) -> Option<&str> {
        match self {
            Self::Text(text) => Some(text),
            _ => None,
        }
    }

    /// The elements of a list.
    pub fn as_list(&self) -> Option<&[Self]> {
        match self {
            Self::List(_, elements) => Some(elements),
            _ => None,
        }
    }
}
