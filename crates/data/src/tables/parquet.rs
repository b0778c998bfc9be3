//! Parquet (uncompressed, Snappy or Zstandard), by its own record reader: lists, structures and maps become JSON's.

use std::{fs::File, path::Path};

use ::parquet::{
    errors::ParquetError,
    file::reader::SerializedFileReader,
    record::{Field, Row as Record},
};
use serde_json::{Map, Value};

use super::Rows;
use crate::{Error, Result};

pub(super) fn rows(path: &Path) -> Result<Rows> {
    let file = File::open(path).map_err(|error| Error::file(path, error))?;
    let whole = |error: ParquetError| Error::Invalid(format!("{}: {error}", path.display()));
    let reader = SerializedFileReader::new(file).map_err(whole)?;
    let path = path.to_owned();
    let row = move |(number, row): (usize, Result<Record, ParquetError>)| {
        let wrong = |reason: String| Error::Record {
            path: path.clone(),
            line: number + 1,
            reason,
        };
        let row = row.map_err(|error| wrong(error.to_string()))?;
        let object = object(&row).map_err(wrong)?;
        Ok((number + 1, object))
    };
    Ok(Box::new(reader.into_iter().enumerate().map(row)))
}

fn object(row: &Record) -> Result<Map<String, Value>, String> {
    let columns = row.get_column_iter();
    columns
        .map(|(name, field)| {
            Ok((
                name.clone(),
                value(field).map_err(|reason| format!("column `{name}`: {reason}"))?,
            ))
        })
        .collect()
}

fn value(field: &Field) -> Result<Value, String> {
    Ok(match field {
        Field::Null => Value::Null,
        Field::Bool(flag) => (*flag).into(),
        Field::Byte(number) => (*number).into(),
        Field::Short(number) => (*number).into(),
        Field::Int(number) => (*number).into(),
        Field::Long(number) => (*number).into(),
        Field::UByte(number) => (*number).into(),
        Field::UShort(number) => (*number).into(),
        Field::UInt(number) => (*number).into(),
        Field::ULong(number) => (*number).into(),
        Field::Float16(number) => f32::from(*number).into(),
        Field::Float(number) => (*number).into(),
        Field::Double(number) => (*number).into(),
        Field::Str(text) => text.clone().into(),
        Field::Bytes(bytes) => match std::str::from_utf8(bytes.data()) {
            Ok(text) => text.into(),
            // Images and sounds stand beside texts in some data sets; nobody here reads them.
            Err(_) => format!("({} bytes)", bytes.data().len()).into(),
        },
        Field::Group(row) => Value::Object(object(row)?),
        Field::ListInternal(list) => {
            let values = list.elements().iter().map(value);
            Value::Array(values.collect::<Result<_, _>>()?)
        }
        Field::MapInternal(map) => {
            let entry = |(key, held): &(Field, Field)| {
                let key = match value(key)? {
                    Value::String(text) => text,
                    other => other.to_string(),
                };
                Ok((key, value(held)?))
            };
            Value::Object(
                map.entries()
                    .iter()
                    .map(entry)
                    .collect::<Result<_, String>>()?,
            )
        }
        other => other.to_string().into(),
    })
}
