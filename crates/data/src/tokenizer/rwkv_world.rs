//! The RWKV world tokenizer (section 5 of arXiv 2404.05892): a table of byte strings and the greedy longest match over them.
//!
//! There are no merges, no normalisation and no words. Every single byte has an entry, so any bytes can be encoded and come
//! back exactly. Id 0 ends a document; it is not in the table and has no bytes. The table is the authors' text file, an
//! entry a line: an id, a Python literal of type `str` (meaning its UTF-8 bytes) or `bytes`, and the length in bytes.
//!
//! Left out: the transposed tables of other makers (`vocab.json` keyed by text), which lose entries that are not UTF-8.

mod literal;
mod trie;

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;

use regex::Regex;

use super::Encoding;
use crate::{Error, Result};
use trie::Trie;

/// The file's name, which folders of these models share.
pub(super) const VOCABULARY: &str = "rwkv_vocab_v20230424.txt";
/// The text of id 0 where a folder names none.
pub(super) const END_OF_TEXT: &str = "<|rwkv_tokenizer_end_of_text|>";
/// No known table comes near this id.
const LARGEST_ID: u32 = 1 << 24;

/// A table of byte strings, and the special tokens beside it.
#[derive(Debug, Clone)]
pub(super) struct World {
    /// The file as it was read; written back on save.
    pub source: String,
    entries: BTreeMap<u32, Box<[u8]>>,
    trie: Trie,
    special: BTreeMap<u32, String>,
    /// Any special token; nothing where there is none.
    written: Option<Regex>,
}

impl World {
    /// Reads the text of a table; `path` is named in errors.
    pub fn parse(path: &Path, source: String) -> Result<Self> {
        let wrong = |line: usize, reason: String| Error::Record {
            path: path.to_path_buf(),
            line,
            reason,
        };
        let (mut entries, mut sorted) = (BTreeMap::new(), BTreeMap::new());
        for (line, text) in (1..)
            .zip(source.lines())
            .filter(|(_, text)| !text.is_empty())
        {
            let (id, bytes) = parse_line(text).map_err(|reason| wrong(line, reason))?;
            if let Some(other) = sorted.insert(bytes.clone(), id) {
                return Err(wrong(
                    line,
                    format!("id {id} stands for the same bytes as id {other}; each may come once"),
                ));
            }
            if entries.insert(id, bytes).is_some() {
                return Err(wrong(line, format!("id {id} comes twice; ids must differ")));
            }
        }
        if let Some(byte) = (0..=255).find(|byte| !sorted.contains_key(&[*byte][..])) {
            let reason = format!(
                "no entry is the single byte {byte:#04x}, so not every text could be encoded"
            );
            return Err(Error::Tokenizer(format!("{}: {reason}", path.display())));
        }
        let trie = Trie::new(&sorted);
        Ok(Self {
            source,
            entries,
            trie,
            special: BTreeMap::new(),
            written: None,
        })
    }

    /// The same table with special tokens, which have ids of their own. Those whose text is an entry stay that entry.
    pub fn with_special(mut self, special: BTreeMap<u32, String>) -> Result<Self> {
        if let Some(id) = special.keys().find(|id| self.entries.contains_key(id)) {
            return Err(Error::Tokenizer(format!(
                "special token `{}` has id {id}, which an entry of the table has; use 0 or an id beyond the table",
                special[id]
            )));
        }
        self.special = special
            .into_iter()
            .filter(|(_, text)| self.entry(text).is_none() && !text.is_empty())
            .collect();
        let mut texts: Vec<&String> = self.special.values().collect();
        // Alternatives are tried in order, and the longest is meant.
        texts.sort_by_key(|text| std::cmp::Reverse(text.len()));
        let pattern = texts
            .iter()
            .map(|text| regex::escape(text))
            .collect::<Vec<_>>()
            .join("|");
        let compiled = Regex::new(&pattern)
            .map_err(|reason| Error::Tokenizer(format!("special tokens: {reason}")))?;
        self.written = (!texts.is_empty()).then_some(compiled);
        Ok(self)
    }

    /// Ids of any bytes with the range of bytes of each.
    pub fn encode_bytes<'a>(
        &'a self,
        bytes: &'a [u8],
    ) -> impl Iterator<Item = (u32, Range<usize>)> + 'a {
        let mut start = 0;
        std::iter::from_fn(move || {
            let (id, length) = self.trie.longest(bytes.get(start..)?)?;
            let range = start..start + length;
            start = range.end;
            Some((id, range))
        })
    }

    /// Ids of a text with the range of bytes of each; special tokens written out count as such if `special`.
    pub fn encode(&self, text: &str, special: bool) -> Vec<(u32, Range<usize>)> {
        let (mut tokens, mut start) = (Vec::new(), 0);
        let plain = |tokens: &mut Vec<_>, range: Range<usize>| {
            let shifted = |(id, inner): (u32, Range<usize>)| {
                (id, inner.start + range.start..inner.end + range.start)
            };
            tokens.extend(
                self.encode_bytes(&text.as_bytes()[range.clone()])
                    .map(shifted),
            );
        };
        for found in self
            .written
            .iter()
            .filter(|_| special)
            .flat_map(|pattern| pattern.find_iter(text))
        {
            plain(&mut tokens, start..found.start());
            tokens.extend(
                self.special_id(found.as_str())
                    .map(|id| (id, found.range())),
            );
            start = found.end();
        }
        plain(&mut tokens, start..text.len());
        tokens
    }

    /// As [`World::encode`], with ranges of characters.
    pub fn encoding(&self, text: &str) -> Encoding {
        let characters: Vec<usize> = text
            .chars()
            .enumerate()
            .flat_map(|(number, c)| std::iter::repeat_n(number, c.len_utf8()))
            .collect();
        // A token may begin or end within a character, which is then its own.
        let offsets =
            |bytes: &Range<usize>| (characters[bytes.start], characters[bytes.end - 1] + 1);
        let tokens = self.encode(text, true).into_iter();
        let (ids, offsets) = tokens.map(|(id, bytes)| (id, offsets(&bytes))).unzip();
        Encoding { ids, offsets }
    }

    /// The bytes of the ids; special tokens give their text unless `skip_special`, unknown ids nothing.
    pub fn decode_bytes(&self, ids: &[u32], skip_special: bool) -> Vec<u8> {
        let special = |id: &u32| {
            self.special
                .get(id)
                .filter(|_| !skip_special)
                .map(|text| text.as_bytes())
        };
        ids.iter()
            .filter_map(|id| {
                self.entries
                    .get(id)
                    .map(|bytes| &bytes[..])
                    .or_else(|| special(id))
            })
            .flatten()
            .copied()
            .collect()
    }

    /// The text of the ids; what is not UTF-8 becomes U+FFFD.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> String {
        String::from_utf8_lossy(&self.decode_bytes(ids, skip_special)).into_owned()
    }

    /// One above the largest id.
    pub fn vocabulary_size(&self) -> usize {
        let largest = self
            .entries
            .keys()
            .next_back()
            .max(self.special.keys().next_back());
        largest.map_or(0, |id| *id as usize + 1)
    }

    /// The id of a special token or of exactly these bytes.
    pub fn id(&self, token: &str) -> Option<u32> {
        self.special_id(token).or_else(|| self.entry(token))
    }

    /// The text of an id; what is not UTF-8 becomes U+FFFD.
    pub fn token(&self, id: u32) -> Option<String> {
        let known = self.entries.contains_key(&id) || self.special.contains_key(&id);
        known.then(|| self.decode(&[id], false))
    }

    /// The special tokens by id.
    pub fn special(&self) -> &BTreeMap<u32, String> {
        &self.special
    }

    fn special_id(&self, token: &str) -> Option<u32> {
        self.special
            .iter()
            .find(|(_, text)| *text == token)
            .map(|(id, _)| *id)
    }

    fn entry(&self, token: &str) -> Option<u32> {
        let (id, length) = self.trie.longest(token.as_bytes())?;
        (length == token.len()).then_some(id)
    }
}

/// `<id> <literal> <length>`; the literal may hold spaces.
fn parse_line(line: &str) -> Result<(u32, Box<[u8]>), String> {
    let parts = line
        .split_once(' ')
        .and_then(|(id, rest)| Some((id, rest.rsplit_once(' ')?)));
    let Some((id, (literal, length))) = parts else {
        return Err("expected `<id> <Python literal> <length>` with a space between".into());
    };
    let id = id.parse().ok().filter(|id| (1..=LARGEST_ID).contains(id));
    let id = id.ok_or_else(|| {
        format!("the id must be a number from 1 to {LARGEST_ID}; 0 is the end of a document")
    })?;
    let bytes = literal::parse(literal)?;
    match length.trim_end().parse::<usize>() {
        Ok(length) if bytes.len() == length && length > 0 => Ok((id, bytes.into())),
        _ => Err(format!(
            "the literal has {} bytes, not `{length}`",
            bytes.len()
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tokenizer::Tokenizer;
    use proptest::prelude::*;
    use std::{collections::HashSet, sync::LazyLock};

    const FOLDER: &str = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../tests/fixtures/tokenizers/rwkv-world"
    );

    static WORLD: LazyLock<World> = LazyLock::new(|| {
        let path = Path::new(FOLDER).join(VOCABULARY);
        let source = std::fs::read_to_string(&path).unwrap();
        World::parse(&path, source)
            .unwrap()
            .with_special(BTreeMap::from([(0, END_OF_TEXT.into())]))
            .unwrap()
    });

    static TOKENIZER: LazyLock<Tokenizer> =
        LazyLock::new(|| Tokenizer::load(FOLDER.as_ref()).unwrap());

    fn ids(bytes: &[u8]) -> Vec<u32> {
        WORLD.encode_bytes(bytes).map(|(id, _)| id).collect()
    }

    #[test]
    fn published_table_and_examples() {
        assert_eq!(WORLD.entries.len(), 65529);
        assert_eq!(WORLD.vocabulary_size(), 65530);
        assert_eq!(ids(b"Hello world"), [33155, 40213]);
        assert_eq!(
            ids("User: hi\n\nAssistant:".as_bytes()),
            [24281, 59, 4571, 261, 5585, 41693, 59]
        );
        assert_eq!(ids("数据é".as_bytes()), [13004, 12797, 2503]);
        assert_eq!(WORLD.token(65529).unwrap(), " ".repeat(128));
        assert_eq!(WORLD.id("\n\n"), Some(261));
    }

    #[test]
    fn broken_utf8_is_encoded_as_the_reference_does() {
        #[derive(serde::Deserialize)]
        struct Case {
            bytes: String,
            ids: Vec<u32>,
        }
        let text = std::fs::read_to_string(format!("{FOLDER}/bytes.json")).unwrap();
        let cases: Vec<Case> = serde_json::from_str(&text).unwrap();
        assert!(
            cases
                .iter()
                .any(|case| std::str::from_utf8(&unhex(&case.bytes)).is_err())
        );
        for case in cases {
            let bytes = unhex(&case.bytes);
            assert_eq!(ids(&bytes), case.ids, "{}", case.bytes);
            assert_eq!(WORLD.decode_bytes(&case.ids, false), bytes);
        }
    }

    fn unhex(text: &str) -> Vec<u8> {
        text.as_bytes()
            .chunks(2)
            .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
            .collect()
    }

    /// The longest entry that `bytes` begin with, by trying every length.
    fn longest_by_search(bytes: &[u8]) -> usize {
        static KNOWN: LazyLock<HashSet<&[u8]>> =
            LazyLock::new(|| WORLD.entries.values().map(|bytes| &bytes[..]).collect());
        (1..=bytes.len())
            .rev()
            .find(|length| KNOWN.contains(&bytes[..*length]))
            .unwrap()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]
        #[test]
        fn any_bytes_come_back(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            prop_assert_eq!(WORLD.decode_bytes(&ids(&bytes), false), bytes);
        }

        #[test]
        fn any_text_comes_back(text in "\\PC*") {
            let tokens: Vec<u32> = WORLD.encode(&text, true).into_iter().map(|(id, _)| id).collect();
            prop_assert_eq!(WORLD.decode(&tokens, false), text);
        }

        #[test]
        fn any_ids_stream_as_they_decode(ids in prop::collection::vec(prop_oneof![0u32..300, 60000u32..65536], 0..40)) {
            let mut stream = TOKENIZER.stream();
            let mut text: String = ids.iter().filter_map(|id| stream.push(*id).unwrap()).collect();
            text += &stream.finish().unwrap().unwrap_or_default();
            prop_assert_eq!(text, WORLD.decode(&ids, true));
        }

        #[test]
        fn the_match_is_the_longest(text in "[a-e \n]{1,30}|\\PC{1,12}") {
            let (_, first) = WORLD.encode_bytes(text.as_bytes()).next().unwrap();
            prop_assert_eq!(first.end, longest_by_search(text.as_bytes()));
        }
    }

    #[test]
    fn the_end_of_text_is_a_token_of_its_own() {
        let text = format!("a{END_OF_TEXT}b");
        let tokens: Vec<u32> = WORLD
            .encode(&text, true)
            .into_iter()
            .map(|(id, _)| id)
            .collect();
        assert_eq!(tokens, [98, 0, 99]);
        assert_eq!(
            (WORLD.decode(&tokens, true), WORLD.decode(&tokens, false)),
            ("ab".into(), text.clone())
        );
        assert!(WORLD.encode(&text, false).len() > 3);
        assert_eq!(WORLD.decode(&[98, 65535, 99], false), "ab");
    }

    /// The 256 bytes, then `more`.
    fn small(more: &str) -> Result<World> {
        let bytes: String = (0..256)
            .map(|byte| format!("{} b'\\x{byte:02x}' 1\n", byte + 1))
            .collect();
        World::parse(Path::new("table.txt"), bytes + more)
    }

    #[test]
    fn malformed_tables_name_the_line() {
        let error = |more: &str| small(more).unwrap_err().to_string();
        for (line, says) in [
            ("257", "expected `<id>"),
            ("257 'ab'", "expected `<id>"),
            ("x 'ab' 2", "the id must be a number"),
            ("0 'ab' 2", "0 is the end of a document"),
            ("257 'ab' 3", "the literal has 2 bytes, not `3`"),
            ("257 '' 0", "0 bytes"),
            ("257 __import__('os') 2", "expected a Python string"),
            ("257 'a' 1", "the same bytes as id 98"),
            ("12 'ab' 2", "id 12 comes twice"),
        ] {
            assert!(
                error(line).starts_with("table.txt:257: "),
                "{line}: {}",
                error(line)
            );
            assert!(error(line).contains(says), "{line}: {}", error(line));
        }
        let missing = World::parse(Path::new("table.txt"), "1 'a' 1\n".into())
            .unwrap_err()
            .to_string();
        assert!(
            missing.contains("no entry is the single byte 0x00"),
            "{missing}"
        );
    }

    #[test]
    fn special_tokens_cannot_take_an_entrys_id() {
        let table = small("257 'ab' 2\n").unwrap();
        let special = |id: u32, text: &str| {
            table
                .clone()
                .with_special(BTreeMap::from([(id, text.to_owned())]))
        };
        assert!(
            special(257, "<x>")
                .unwrap_err()
                .to_string()
                .contains("`<x>` has id 257")
        );
        // A special token that is an entry anyway stays one, so that texts keep their ids.
        assert_eq!(special(300, "ab").unwrap().id("ab"), Some(257));
        assert_eq!(special(300, "<x>").unwrap().vocabulary_size(), 301);
    }
}
