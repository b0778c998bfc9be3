//! Tests of `readers`.

use super::*;
use crate::record::Message;
use proptest::prelude::*;
use serde_json::json;

fn load(name: &str, bytes: &[u8]) -> (Vec<Record>, Vec<String>) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(name);
    std::fs::write(&path, bytes).unwrap();
    let (records, errors): (Vec<_>, Vec<_>) =
        open(&Source::new(path)).unwrap().partition(Result::is_ok);
    let errors = errors
        .into_iter()
        .map(|error| error.unwrap_err().to_string());
    (
        records.into_iter().flatten().collect(),
        errors
            .map(|error| error.replace(folder.path().to_str().unwrap(), ""))
            .collect(),
    )
}

fn chat(turns: &[(&str, &str)]) -> Record {
    let messages = turns
        .iter()
        .map(|(role, content)| Message::new(*role, *content))
        .collect();
    Record::Chat {
        messages,
        tools: None,
    }
}

#[test]
fn lines_and_arrays_read_alike_and_go_on_after_errors() {
    let good = r#"{"question": "a", "answer": "b"}"#;
    let expected = chat(&[("user", "a"), ("assistant", "b")]);
    let (records, errors) = load(
        "x.jsonl",
        format!("{good}\n{{\"question\n\n{good}\n[1]\n").as_bytes(),
    );
    assert_eq!(records, [expected.clone(), expected.clone()]);
    assert!(
        errors[0].starts_with("/x.jsonl:2: invalid JSON at column "),
        "{errors:?}"
    );
    assert_eq!(errors[1], "/x.jsonl:5: expected an object, found a list");
    let (records, errors) = load(
        "x.json",
        format!("\u{feff}[\n{good},\n{{\"question\":\n 3x}}, {good}]\n").as_bytes(),
    );
    assert_eq!(records, [expected.clone(), expected]);
    assert!(
        errors.len() == 1 && errors[0].starts_with("/x.json:4: invalid JSON at column 3"),
        "{errors:?}"
    );
}

#[test]
fn layouts_that_are_no_records_are_named() {
    let (records, errors) = load("x.json", b"{\n  \"data\": [\n  ]\n}\n");
    assert!(records.is_empty());
    assert_eq!(
        errors[0],
        "/x.json:1: invalid JSON at column 1: EOF while parsing an object; a record is one line, or an element of a list `[...]`"
    );
    let (records, errors) = load(
        "x.jsonl",
        b"{\"text\": \"a\"}\n\xef\xbb\xbf{\"text\": \"b\"}\n",
    );
    assert_eq!(records.len(), 1);
    assert!(
        errors[0].starts_with("/x.jsonl:2: a byte order mark"),
        "{errors:?}"
    );
    let (records, errors) = load("x.json", b"[{\"text\": \"a\"},\n]");
    assert_eq!(records.len(), 1);
    assert!(
        errors[0].starts_with("/x.json:1: invalid JSON: a comma before `]`"),
        "{errors:?}"
    );
    let (_, errors) = load("x.json", br#"{"train": [{"text": "a"}]}"#);
    assert!(
        errors[0].ends_with("; `train` holds a list: write the list alone to a file"),
        "{errors:?}"
    );
    let (_, errors) = load("x.json", br#"{"role": "user", "content": "a"}"#);
    assert!(
        errors[0].ends_with("; a message alone: put the list of them under `messages`"),
        "{errors:?}"
    );
}

#[test]
fn a_key_that_stands_twice_is_named_with_its_line() {
    let good = r#"{"prompt": "a", "completion": "b"}"#;
    let twice = r#"{"prompt": "a", "completion": "b", "completion": "c"}"#;
    let (records, errors) = load("x.jsonl", format!("{good}\n{twice}\n{good}\n").as_bytes());
    assert_eq!(records.len(), 2);
    assert_eq!(
        errors,
        [
            "/x.jsonl:2: invalid JSON at column 47: the key `completion` stands twice in an object; keep one of them"
        ]
    );
    let laid_out = "[{\"text\": \"a\"},\n{\"text\":\n\"b\",\n\"text\": \"c\"}]";
    let (_, errors) = load("x.json", laid_out.as_bytes());
    assert!(
        errors[0].starts_with("/x.json:4: invalid JSON at column 6: the key `text`"),
        "{errors:?}"
    );
}

#[test]
fn utf_16_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.jsonl");
    for bytes in [&b"\xff\xfe{\0"[..], b"{\0\"\0t\0", b"\0{\0\"\0t"] {
        std::fs::write(&path, bytes).unwrap();
        let error = read_all(&Source::new(&path), true).unwrap_err();
        assert!(
            error
                .to_string()
                .ends_with("the file is UTF-16; save it as UTF-8"),
            "{error}"
        );
    }
}

#[test]
fn folders_and_devices_are_no_data() {
    let folder = tempfile::tempdir().unwrap();
    let said = |path: &Path| read_all(&Source::new(path), true).unwrap_err().to_string();
    assert!(said(folder.path()).ends_with("a folder; give a file in it"));
    #[cfg(unix)]
    assert!(said(Path::new("/dev/null")).ends_with("write it to a file first"));
}

#[test]
fn the_lines_of_records_are_known() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.json");
    std::fs::write(&path, "[{\"text\":\n\"a\"},\n3,\n{\"text\": \"b\"}]").unwrap();
    let loaded = read_all(&Source::new(&path), true).unwrap();
    assert_eq!((loaded.records.len(), loaded.lines), (2, vec![1, 4]));
}

#[test]
fn text_files_split_at_blank_lines() {
    let (records, errors) = load("x.txt", b"\xef\xbb\xbfa\r\nb\r\n\r\n \nc\n\n\xff\n\nd");
    let texts: Vec<&str> = records
        .iter()
        .map(|record| {
            if let Record::Text { text } = record {
                text.as_str()
            } else {
                ""
            }
        })
        .collect();
    assert_eq!(texts, ["a\nb", "c", "d"]);
    assert_eq!(
        errors,
        ["/x.txt:7: invalid UTF-8 after 0 bytes of the record"]
    );
}

#[test]
fn columns_are_renamed() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.jsonl");
    std::fs::write(&path, r#"{"input": "ask", "reply": "say"}"#).unwrap();
    let columns = [("prompt", "input"), ("completion", "reply")];
    let columns = columns
        .into_iter()
        .map(|(ours, theirs)| (ours.to_string(), theirs.to_string()));
    let mut source = Source {
        columns: columns.collect(),
        ..Source::new(path)
    };
    assert_eq!(
        read_all(&source, false).unwrap().records,
        [chat(&[("user", "ask"), ("assistant", "say")])]
    );
    source.columns.insert("promt".into(), "input".into());
    let message = read_all(&source, false).unwrap_err().to_string();
    assert!(message.contains("did you mean `prompt`?"), "{message}");
}

#[test]
fn a_renamed_column_is_read_and_no_other_in_its_place() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.jsonl");
    let read = |lines: &str, column: &str| {
        std::fs::write(&path, lines).unwrap();
        let columns = BTreeMap::from([("text".to_owned(), column.to_owned())]);
        let source = Source {
            columns,
            ..Source::new(&path)
        };
        read_all(&source, false)
    };
    let line = r#"{"text": "a", "body": "b"}"#;
    let loaded = read(line, "body").unwrap();
    assert_eq!(loaded.records, [Record::Text { text: "b".into() }]);
    assert_eq!(loaded.unread, ["`text`"]);
    let message = read(line, "bdy").unwrap_err().to_string();
    assert!(
        message.ends_with(
            "; `columns.text` names the column `bdy`, which it lacks; did you mean `body`?"
        ),
        "{message}"
    );
    // Where the column may be absent, no record has it.
    let turns = r#"{"prompt": "a", "completion": "b", "sys": "c"}"#;
    std::fs::write(&path, turns).unwrap();
    let columns = BTreeMap::from([("system".to_owned(), "syss".to_owned())]);
    let source = Source {
        columns,
        ..Source::new(&path)
    };
    let message = read_all(&source, false).unwrap_err().to_string();
    assert!(
        message.ends_with("x.jsonl: `columns.system` names the column `syss`, which no record has; did you mean `sys`?"),
        "{message}"
    );
}

#[test]
fn columns_that_are_not_read_are_named_once() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.jsonl");
    let lines = [
        r#"{"instruction": "a", "inptu": "b", "output": "c", "id": 7}"#,
        r#"{"instruction": "a", "input": "b", "output": "c", "id": 8, "empty": []}"#,
    ];
    std::fs::write(&path, lines.join("\n")).unwrap();
    let loaded = read_all(&Source::new(&path), false).unwrap();
    assert_eq!(loaded.records.len(), 2);
    assert_eq!(loaded.unread, ["`id`", "`inptu` (did you mean `input`?)"]);
}

#[test]
fn empty_sets_and_unknown_files_are_errors() {
    let folder = tempfile::tempdir().unwrap();
    for (name, content, reason) in [
        ("a.jsonl", "\n", "no records"),
        ("b.json", " [ ] ", "no records"),
        ("c.txt", " \n", "no records"),
        ("d.jsonl", "{}", "the first malformed one"),
        ("e.parquet", "PAR1", "e.parquet: "),
        ("f.csv", "text\n", "no records"),
        ("g.xlsx", "PK", "ends in `xlsx`: expected .jsonl"),
    ] {
        let path = folder.path().join(name);
        std::fs::write(&path, content).unwrap();
        let message = read_all(&Source::new(path), true).unwrap_err().to_string();
        assert!(message.contains(reason), "{message}");
    }
    let missing = read_all(&Source::new(folder.path().join("none.json")), true).unwrap_err();
    assert!(matches!(missing, Error::File { .. }));
}

#[test]
fn without_skipping_the_first_error_is_returned() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.jsonl");
    std::fs::write(&path, "{\"text\": \"a\"}\n{\"txt\": \"b\"}\n").unwrap();
    let message = read_all(&Source::new(&path), false)
        .unwrap_err()
        .to_string();
    assert!(
        message.ends_with(
            "x.jsonl:2: text record without `text` (keys found: txt; did you mean `text`?)"
        ),
        "{message}"
    );
    assert_eq!(
        read_all(&Source::new(&path), true).unwrap().skipped.len(),
        1
    );
}

fn messages(count: usize) -> impl Strategy<Value = Vec<Message>> {
    proptest::collection::vec(any::<String>(), count).prop_map(|contents| {
        let turns = contents.into_iter().enumerate();
        turns
            .map(|(turn, content)| Message::new(["user", "assistant"][turn % 2], content))
            .collect()
    })
}

fn record() -> impl Strategy<Value = Record> {
    let tools = proptest::option::of(Just(
        json!([{"type": "function", "function": {"name": "f"}}]),
    ));
    let margin = proptest::option::of((-8i32..8).prop_map(|eighths| f64::from(eighths) / 8.0));
    prop_oneof![
        any::<String>().prop_map(|text| Record::Text { text }),
        (messages(4), tools.clone()).prop_map(|(messages, tools)| Record::Chat { messages, tools }),
        (messages(3), any::<String>(), any::<String>(), margin, tools).prop_map(
            |(prompt, chosen, rejected, margin, tools)| {
                let (chosen, rejected) = (Message::assistant(chosen), Message::assistant(rejected));
                Record::Preference {
                    prompt,
                    chosen,
                    rejected,
                    margin,
                    tools,
                }
            }
        ),
    ]
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(bytes: Vec<u8>, structure in r#"[\[\]{},:"\\a1 \n]{0,40}"#) {
        for name in ["x.json", "x.jsonl", "x.txt"] {
            load(name, &bytes);
            load(name, structure.as_bytes());
            load(name, format!("[{structure}").as_bytes());
        }
    }

    #[test]
    fn written_records_read_back(record in record()) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.jsonl");
        write_jsonl(&path, [to_json(&record), to_json(&record)]).unwrap();
        prop_assert_eq!(read_all(&Source::new(path), false).unwrap().records, vec![record.clone(), record]);
    }
}
