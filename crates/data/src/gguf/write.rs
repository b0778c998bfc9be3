//! Writing the part of a file before its tensors' bytes.

use super::{ALIGNMENT, MAGIC, Metadata, TensorEntry, VERSION, Value};

/// The header of a file, padded to where the bytes of the first tensor begin. `general.architecture` comes first, as readers of old
/// expect it; the other keys follow in alphabetical order.
pub fn header_bytes(metadata: &Metadata, tensors: &[TensorEntry]) -> Vec<u8> {
    const FIRST: &str = "general.architecture";
    let mut bytes = MAGIC.to_vec();
    bytes.extend(VERSION.to_le_bytes());
    bytes.extend((tensors.len() as u64).to_le_bytes());
    bytes.extend((metadata.len() as u64).to_le_bytes());
    let first = metadata.get_key_value(FIRST);
    let others = metadata.iter().filter(|(key, _)| *key != FIRST);
    for (key, value) in first.into_iter().chain(others) {
        put_text(&mut bytes, key);
        bytes.extend(value.kind().to_le_bytes());
        put(&mut bytes, value);
    }
    for tensor in tensors {
        put_text(&mut bytes, &tensor.name);
        bytes.extend((tensor.axes.len() as u32).to_le_bytes());
        tensor
            .axes
            .iter()
            .for_each(|axis| bytes.extend(axis.to_le_bytes()));
        bytes.extend(tensor.kind.to_le_bytes());
        bytes.extend(tensor.offset.to_le_bytes());
    }
    bytes.resize(bytes.len() + padding(bytes.len() as u64), 0);
    bytes
}

/// Zeros that bring so many bytes to a multiple of [`ALIGNMENT`].
pub fn padding(length: u64) -> usize {
    (length.next_multiple_of(ALIGNMENT) - length) as usize
}

fn put_text(bytes: &mut Vec<u8>, text: &str) {
    bytes.extend((text.len() as u64).to_le_bytes());
    bytes.extend(text.as_bytes());
}

fn put(bytes: &mut Vec<u8>, value: &Value) {
    match value {
        Value::U8(value) => bytes.push(*value),
        Value::I8(value) => bytes.extend(value.to_le_bytes()),
        Value::U16(value) => bytes.extend(value.to_le_bytes()),
        Value::I16(value) => bytes.extend(value.to_le_bytes()),
        Value::U32(value) => bytes.extend(value.to_le_bytes()),
        Value::I32(value) => bytes.extend(value.to_le_bytes()),
        Value::F32(value) => bytes.extend(value.to_le_bytes()),
        Value::Bool(value) => bytes.push(u8::from(*value)),
        Value::Text(text) => put_text(bytes, text),
        Value::List(kind, elements) => {
            bytes.extend(kind.to_le_bytes());
            bytes.extend((elements.len() as u64).to_le_bytes());
            elements.iter().for_each(|element| put(bytes, element));
        }
        Value::U64(value) => bytes.extend(value.to_le_bytes()),
        Value::I64(value) => bytes.extend(value.to_le_bytes()),
        Value::F64(value) => bytes.extend(value.to_le_bytes()),
    }
}
