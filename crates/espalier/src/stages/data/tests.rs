//! Tests of `data`.

use super::*;
use espalier_data::{
    encode::Example, record::Label, template::ChatTemplate, tokenizer::BpeOptions,
};

struct Said(Vec<String>);

impl Voice for Said {
    fn say(&mut self, line: &str) {
        self.0.push(line.to_owned());
    }

    fn progress(&mut self, _: &str, _: usize, _: usize, _: &str) {}
}

#[test]
fn packed_documents_are_cut_into_pieces_and_lose_nothing() {
    let ids: Vec<u32> = (0..10).collect();
    let document = || vec![Encoded::Example(Example::new(ids.clone(), vec![true; 10]))];
    let read = |strategy| -> Vec<u32> {
        let samples = samples(document(), strategy, 4, None).unwrap();
        let rows = samples.iter().flat_map(|sample| &sample.rows);
        rows.flat_map(|row| row.ids.clone()).collect()
    };
    let mut whole = read(Some(Strategy::BestFitSplit));
    whole.sort_unstable();
    assert_eq!(whole, ids);
    assert_eq!(read(Some(Strategy::BestFit)), ids[..4]);
}

#[test]
fn half_of_the_answers_that_are_rated_are_wrong() {
    let mut scores = [0, 0];
    for index in 0..200 {
        let record = |shape| of_item(shape, "addition", Split::Train, index, 0).unwrap();
        let messages = |record| match record {
            Record::Chat { messages, .. } => {
                [0, 1].map(|at: usize| messages[at].text().into_owned())
            }
            other => panic!("{other:?}"),
        };
        let [asked, reply] = messages(record(WorldShape::Rating));
        let [prompt, right] = messages(record(WorldShape::Chat));
        let of_right = judge::question(judge::USUAL_PROMPT, &prompt, &right);
        assert_eq!(asked == of_right, reply == format!("{right} Score: 10"));
        assert!(reply.starts_with(&format!("{right} Score: ")), "{reply}");
        scores[usize::from(reply.ends_with("10"))] += 1;
    }
    assert!(scores[0] > 70 && scores[1] > 70, "{scores:?}");
}

#[test]
fn some_preferences_are_flipped_and_counted() {
    let source = |flip: f64, as_what: WorldShape| DataOptions {
        world: Some("addition".into()),
        shape: as_what,
        flip,
        limit: Some(200),
        ..DataOptions::default()
    };
    let mut voice = Said(Vec::new());
    let mut read = |flip: f64| -> Vec<(String, String)> {
        let sources = [source(flip, WorldShape::Preference)];
        let found = records(&sources, Wanted::Pairs, &mut voice).unwrap();
        let texts = |sourced: Sourced| match sourced.record {
            Record::Preference {
                chosen, rejected, ..
            } => (chosen.text().into_owned(), rejected.text().into_owned()),
            other => panic!("{other:?}"),
        };
        found.into_iter().map(texts).collect()
    };
    let (plain, some, all) = (read(0.0), read(0.2), read(1.0));
    let turned = |(better, worse): &(String, String)| (worse.clone(), better.clone());
    assert_eq!(all, plain.iter().map(turned).collect::<Vec<_>>());
    assert_eq!(some, read(0.2));
    let flipped = some.iter().zip(&plain).filter(|(a, b)| a != b).count();
    assert!((25..56).contains(&flipped), "{flipped}");
    assert_eq!(
        voice.0[0],
        format!("   {flipped} of 200 preferences are flipped (`flip` = 0.2)")
    );
    let chat = source(0.2, WorldShape::Chat).check().unwrap_err();
    assert!(chat.to_string().contains("as = \"preference\""), "{chat}");
    assert!(source(1.5, WorldShape::Preference).check().is_err());
}

#[test]
fn of_a_document_every_part_is_packed_and_of_an_answer_the_beginning() {
    let options = BpeOptions {
        vocabulary: 259,
        ..BpeOptions::default()
    };
    let tokenizer = Tokenizer::train_byte_level_bpe(std::iter::empty(), &options).unwrap();
    let source = "{% for m in messages %}{{ m.content }}{% endfor %}";
    let tokenizer = tokenizer.with_template(ChatTemplate::new(source).unwrap());
    let sourced = |record| Sourced {
        record,
        place: None,
        origin: Value::Null,
    };
    let text = "abcdefgh".to_owned();
    let records = [
        sourced(Record::Chat {
            messages: vec![Message::user("q"), Message::assistant(&text)],
            tools: None,
        }),
        sourced(Record::Text { text }),
    ];
    let encoded = encode_within(
        &tokenizer,
        &records,
        Wanted::Texts,
        4,
        Truncation::default(),
        true,
        &mut Said(Vec::new()),
    );
    let packed = samples(encoded.unwrap(), Some(Strategy::BestFitSplit), 4, None).unwrap();
    let rows = packed.iter().map(|sample| sample.rows[0].ids.as_slice());
    let texts: Vec<String> = rows
        .map(|ids| tokenizer.decode(ids, true).unwrap())
        .collect();
    assert!(
        texts.iter().any(|text| text.starts_with("qabc")),
        "{texts:?}"
    );
    let all = texts.concat();
    assert_eq!(all.matches("abc").count(), 2, "{texts:?}");
    assert_eq!(all.matches('h').count(), 1, "{texts:?}");
}

#[test]
fn pairs_beside_conversations_are_read_where_they_are_wanted() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("ultrafeedback.jsonl");
    let turns = |answer: &str| {
        format!(r#"[{{"role":"user","content":"q"}},{{"role":"assistant","content":"{answer}"}}]"#)
    };
    let (good, bad) = (turns("good"), turns("bad"));
    let line = format!(r#"{{"prompt":"q","messages":{good},"chosen":{good},"rejected":{bad}}}"#);
    std::fs::write(&path, line).unwrap();
    let source = DataOptions {
        path: Some(path),
        ..DataOptions::default()
    };
    let read = |wanted| {
        let source = std::slice::from_ref(&source);
        let found = records(source, wanted, &mut Said(Vec::new())).unwrap();
        found[0].record.clone()
    };
    assert_eq!(
        read(Wanted::Pairs),
        Record::Preference {
            prompt: vec![Message::user("q")],
            chosen: Message::assistant("good"),
            rejected: Message::assistant("bad"),
            margin: None,
            tools: None,
        }
    );
    assert!(matches!(read(Wanted::Texts), Record::Chat { .. }));
}

#[test]
fn records_that_cannot_be_encoded_are_counted_with_their_lines() {
    let options = BpeOptions {
        vocabulary: 259,
        ..BpeOptions::default()
    };
    let tokenizer = Tokenizer::train_byte_level_bpe(std::iter::empty(), &options).unwrap();
    let source = "{% for m in messages %}{{ m.content }}{% if m.content == 'no' %}{{ raise_exception('no') }}{% endif %}{% endfor %}";
    let tokenizer = tokenizer.with_template(ChatTemplate::new(source).unwrap());
    let path: Arc<Path> = Path::new("chats.jsonl").into();
    let records: Vec<Sourced> = ["a", "no", "b"]
        .into_iter()
        .enumerate()
        .map(|(index, text)| Sourced {
            record: Record::Chat {
                messages: vec![Message::user(text), Message::assistant("yes")],
                tools: None,
            },
            place: Some((path.clone(), index + 1)),
            origin: Value::Null,
        })
        .collect();
    let mut said = Said(Vec::new());
    let mut encode = |records| encode(&tokenizer, records, Wanted::Texts, 100, &mut said);
    assert_eq!(encode(&records).unwrap().len(), 2);
    let error = encode(&records[1..2]).unwrap_err();
    assert!(error.to_string().contains("chats.jsonl:2: "), "{error}");
    assert!(
        said.0[0].starts_with("1 of 3 records left out that cannot be encoded; the first: chats.jsonl:2: chat template: "),
        "{:?}",
        said.0
    );
}

#[test]
fn a_pair_of_equal_answers_is_left_out_and_told() {
    let options = BpeOptions {
        vocabulary: 259,
        ..BpeOptions::default()
    };
    let tokenizer = Tokenizer::train_byte_level_bpe(std::iter::empty(), &options).unwrap();
    let source = "{% for m in messages %}{{ m.content }}{% endfor %}";
    let tokenizer = tokenizer.with_template(ChatTemplate::new(source).unwrap());
    let path: Arc<Path> = Path::new("pairs.jsonl").into();
    let rejected = ["b", "a", "abc", "a", "abd"];
    let pair = |(index, rejected): (usize, &str)| Sourced {
        record: Record::Preference {
            prompt: vec![Message::user("q")],
            chosen: Message::assistant(if rejected.len() > 1 { "ab" } else { "a" }),
            rejected: Message::assistant(rejected),
            tools: None,
            margin: None,
        },
        place: Some((path.clone(), index + 1)),
        origin: Value::Null,
    };
    let records: Vec<Sourced> = rejected.into_iter().enumerate().map(pair).collect();
    let mut said = Said(Vec::new());
    let kept = encode(&tokenizer, &records, Wanted::Pairs, 3, &mut said).unwrap();
    assert_eq!(kept.len(), 1);
    assert_eq!(
        said.0[1..],
        [
            "2 of 5 records left out: `chosen` and `rejected` are the same within `length`; the first: pairs.jsonl:3",
            "2 of 5 records left out: `chosen` and `rejected` are the same, so that neither is better; the first: pairs.jsonl:2",
        ]
    );
}
#[test]
fn records_with_labels_are_counted_where_none_are_wanted() {
    let options = BpeOptions {
        vocabulary: 259,
        ..BpeOptions::default()
    };
    let tokenizer = Tokenizer::train_byte_level_bpe(std::iter::empty(), &options).unwrap();
    let path: Arc<Path> = Path::new("mixed.jsonl").into();
    let sourced = |line: usize, record: Record| Sourced {
        record,
        place: Some((path.clone(), line)),
        origin: Value::Null,
    };
    let text = || "a text".to_owned();
    let labelled = Record::Labelled {
        text: text(),
        label: Label::Flag(true),
    };
    let records = [
        sourced(1, Record::Text { text: text() }),
        sourced(2, labelled),
    ];
    let mut said = Said(Vec::new());
    let mut encode = |records, wanted| encode(&tokenizer, records, wanted, 100, &mut said);
    assert_eq!(encode(&records, Wanted::Texts).unwrap().len(), 1);
    assert_eq!(encode(&records, Wanted::Labels).unwrap().len(), 2);
    let error = encode(&records[1..], Wanted::Texts).unwrap_err();
    assert!(error.to_string().contains(LABELS_ALONE), "{error}");
    let told = format!("1 of 2 records left out: {LABELS_ALONE}; the first: mixed.jsonl:2");
    assert_eq!(said.0[0], told);
}
