//! Tables as training data: CSV with quotes and types, Parquet with lists and structures, in each compression that is read.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test may fail loudly"
)]

use std::{fs, path::Path, sync::Arc};

use espalier_data::{
    readers::{Source, Wanted, read_all},
    record::Record,
    tables::{Cells, rows},
};
use parquet::{
    basic::Compression,
    column::writer::ColumnWriter,
    data_type::ByteArray,
    file::{properties::WriterProperties, writer::SerializedFileWriter},
    schema::parser::parse_message_type,
};
use serde_json::{Value, json};

/// Writes two conversations, a number for each and a list of words.
fn write(path: &Path, compression: Compression) {
    let schema = "message records {
        required binary prompt (UTF8);
        required binary completion (UTF8);
        optional int64 id;
        optional group words (LIST) { repeated group list { optional binary element (UTF8); } }
    }";
    let schema = Arc::new(parse_message_type(schema).unwrap());
    let properties = WriterProperties::builder()
        .set_compression(compression)
        .build();
    let file = fs::File::create(path).unwrap();
    let mut writer = SerializedFileWriter::new(file, schema, Arc::new(properties)).unwrap();
    let mut group = writer.next_row_group().unwrap();
    let texts = |texts: &[&str]| {
        texts
            .iter()
            .map(|text| ByteArray::from(*text))
            .collect::<Vec<_>>()
    };
    let mut number = 0;
    while let Some(mut column) = group.next_column().unwrap() {
        match column.untyped() {
            ColumnWriter::ByteArrayColumnWriter(column) => match number {
                0 => column
                    .write_batch(&texts(&["Who?", "Wo, \"bitte\"?"]), None, None)
                    .unwrap(),
                1 => column
                    .write_batch(&texts(&["I", "Hier"]), None, None)
                    .unwrap(),
                _ => column
                    .write_batch(&texts(&["a", "b"]), Some(&[3, 3, 0]), Some(&[0, 1, 0]))
                    .unwrap(),
            },
            ColumnWriter::Int64ColumnWriter(column) => {
                column.write_batch(&[7], Some(&[1, 0]), None).unwrap()
            }
            _ => panic!("an unexpected column"),
        };
        number += 1;
        column.close().unwrap();
    }
    group.close().unwrap();
    writer.close().unwrap();
}

fn read(path: &Path, cells: &Cells) -> Vec<(usize, Value)> {
    let rows = rows(path, cells).unwrap();
    rows.map(|row| row.map(|(line, row)| (line, Value::Object(row))).unwrap())
        .collect()
}

fn said(record: &Record) -> Vec<String> {
    match record {
        Record::Chat { messages, .. } => messages
            .iter()
            .map(|message| message.text().to_string())
            .collect(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn parquet_rows_are_records() {
    let folder = tempfile::tempdir().unwrap();
    for (name, compression) in [
        ("plain", Compression::UNCOMPRESSED),
        ("snappy", Compression::SNAPPY),
        ("zstd", Compression::ZSTD(Default::default())),
    ] {
        let path = folder.path().join(format!("{name}.parquet"));
        write(&path, compression);
        assert_eq!(
            read(&path, &Cells::Numbers),
            [
                (
                    1,
                    json!({"prompt": "Who?", "completion": "I", "id": 7, "words": ["a", "b"]})
                ),
                (
                    2,
                    json!({"prompt": "Wo, \"bitte\"?", "completion": "Hier", "id": null, "words": null})
                ),
            ],
            "{name}"
        );
        let loaded = read_all(&Source::new(&path), false).unwrap();
        assert_eq!(said(&loaded.records[1]), ["Wo, \"bitte\"?", "Hier"]);
        // A file that was cut off says so, with its name.
        let bytes = fs::read(&path).unwrap();
        fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
        let error = read_all(&Source::new(&path), false)
            .unwrap_err()
            .to_string();
        assert!(error.contains(name), "{error}");
    }
}

#[test]
fn csv_cells_are_texts_but_for_labels() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.csv");
    fs::write(
        &path,
        "\u{feff}question,answer\n\"1, or\n2?\",2\n\"say \"\"no\"\"\",no\n",
    )
    .unwrap();
    let loaded = read_all(&Source::new(&path), false).unwrap();
    assert_eq!(
        said(&loaded.records[0]),
        ["1, or\n2?", "2"],
        "a number is a text in an answer"
    );
    assert_eq!(said(&loaded.records[1]), ["say \"no\"", "no"]);
    assert_eq!(loaded.lines, [2, 4]);
    let path = folder.path().join("labels.csv");
    fs::write(&path, "text,label\n7,1\nb,0\n").unwrap();
    let source = Source {
        wanted: Wanted::Labels,
        ..Source::new(&path)
    };
    let loaded = read_all(&source, false).unwrap();
    assert_eq!(
        loaded.records.len(),
        2,
        "a text of digits, and whole numbers as labels"
    );
    assert_eq!(
        read(&path, &Cells::Numbers)[0].1,
        json!({"text": "7", "label": 1})
    );
    for (text, words) in [
        (
            "prompt,completion\na\n",
            "1 cells, but the first row names 2 columns",
        ),
        ("prompt,prompt\na,b\n", "two columns are named `prompt`"),
    ] {
        fs::write(&path, text).unwrap();
        let error = read_all(&Source::new(&path), false)
            .unwrap_err()
            .to_string();
        assert!(
            error.contains(words) && error.contains("labels.csv:"),
            "{error}"
        );
    }
}
