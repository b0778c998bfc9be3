//! The file of a SentencePiece model: a protocol buffer, of which the parts that decide how texts are cut are read.
//!
//! Source: `sentencepiece_model.proto` of SentencePiece, whose field numbers and defaults these are. Left out: how the model was trained, and
//! the rules that its own denormaliser would apply.

use std::path::Path;

use crate::{Error, Result};

/// A SentencePiece model, as its file says.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelFile {
    /// The pieces; their places are their ids.
    pub pieces: Vec<Piece>,
    /// How pieces are chosen.
    pub algorithm: Algorithm,
    /// Characters that no piece has are written as pieces of their bytes.
    pub byte_fallback: bool,
    /// The ids of the unknown piece, the beginning, the end and padding; negative where there is none.
    pub ids: Ids,
    /// The text of the unknown piece.
    pub unknown_piece: String,
    /// The normaliser's table, empty where it has none.
    pub charsmap: Vec<u8>,
    /// A text begins with a space.
    pub add_dummy_prefix: bool,
    /// Spaces at the ends and repeated ones are dropped.
    pub remove_extra_whitespaces: bool,
    /// Spaces are written as `▁`.
    pub escape_whitespaces: bool,
}

/// Ids with a role; negative where there is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ids {
    /// The unknown piece.
    pub unknown: i64,
    /// The beginning of a text.
    pub beginning: i64,
    /// The end of a text.
    pub end: i64,
}

/// How pieces are chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Algorithm {
    /// The likeliest pieces (Kudo, arXiv 1804.10959).
    Unigram,
    /// Byte-pair merges, by their score.
    Bpe,
}

/// A piece of a vocabulary.
#[derive(Debug, Clone, PartialEq)]
pub struct Piece {
    /// Its text.
    pub text: String,
    /// Its log-probability, or minus its rank.
    pub score: f32,
    /// What it is for.
    pub kind: PieceKind,
}

/// What a piece is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PieceKind {
    /// Text.
    Normal,
    /// A mark that no text contains.
    Control,
    /// Text that is never cut.
    UserDefined,
    /// Unknown, unused, or a byte.
    Other,
}

impl ModelFile {
    /// Reads the bytes of a file; `path` is for messages.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] when the bytes are no SentencePiece model, or one of words or characters.
    pub fn parse(path: &Path, bytes: &[u8]) -> Result<Self> {
        let damaged = |reason: &str| {
            Error::Tokenizer(format!(
                "{}: no SentencePiece model: {reason}{}",
                path.display(),
                hint(bytes)
            ))
        };
        let mut model = Self::empty();
        for field in Fields(bytes) {
            match field.map_err(damaged)? {
                (1, Value::Bytes(piece)) => model.pieces.push(read_piece(piece).map_err(damaged)?),
                (2, Value::Bytes(spec)) => model.read_trainer(spec).map_err(damaged)?,
                (3, Value::Bytes(spec)) => model.read_normaliser(spec).map_err(damaged)?,
                _ => {}
            }
        }
        match model.pieces.is_empty() {
            true => Err(damaged("it has no pieces")),
            false => Ok(model),
        }
    }

    /// The defaults of the format.
    fn empty() -> Self {
        Self {
            pieces: Vec::new(),
            algorithm: Algorithm::Unigram,
            byte_fallback: false,
            ids: Ids {
                unknown: 0,
                beginning: 1,
                end: 2,
            },
            unknown_piece: "<unk>".into(),
            charsmap: Vec::new(),
            add_dummy_prefix: true,
            remove_extra_whitespaces: true,
            escape_whitespaces: true,
        }
    }

    fn read_trainer(&mut self, bytes: &[u8]) -> std::result::Result<(), &'static str> {
        for field in Fields(bytes) {
            match field? {
                (3, Value::Number(1)) => self.algorithm = Algorithm::Unigram,
                (3, Value::Number(2)) => self.algorithm = Algorithm::Bpe,
                (3, Value::Number(_)) => {
                    return Err("its pieces are words or characters; expected unigram or BPE");
                }
                (35, Value::Number(flag)) => self.byte_fallback = flag != 0,
                (40, Value::Number(id)) => self.ids.unknown = signed(id),
                (41, Value::Number(id)) => self.ids.beginning = signed(id),
                (42, Value::Number(id)) => self.ids.end = signed(id),
                (45, Value::Bytes(piece)) => self.unknown_piece = text(piece)?,
                _ => {}
            }
        }
        Ok(())
    }

    fn read_normaliser(&mut self, bytes: &[u8]) -> std::result::Result<(), &'static str> {
        for field in Fields(bytes) {
            match field? {
                (2, Value::Bytes(table)) => self.charsmap = table.to_vec(),
                (3, Value::Number(flag)) => self.add_dummy_prefix = flag != 0,
                (4, Value::Number(flag)) => self.remove_extra_whitespaces = flag != 0,
                (5, Value::Number(flag)) => self.escape_whitespaces = flag != 0,
                _ => {}
            }
        }
        Ok(())
    }
}

/// What else a file of that name may be.
fn hint(bytes: &[u8]) -> &'static str {
    // A table of tiktoken begins with the base64 of one byte, `IQ==` for `!`.
    match bytes.starts_with(b"IQ==") {
        true => "; it is a table of tiktoken: use the tokenizer.json of the same model",
        false => "",
    }
}

fn read_piece(bytes: &[u8]) -> std::result::Result<Piece, &'static str> {
    let mut piece = Piece {
        text: String::new(),
        score: 0.0,
        kind: PieceKind::Normal,
    };
    for field in Fields(bytes) {
        match field? {
            (1, Value::Bytes(bytes)) => piece.text = text(bytes)?,
            (2, Value::Word(bits)) => piece.score = f32::from_bits(bits),
            (3, Value::Number(kind)) => {
                piece.kind = match kind {
                    1 => PieceKind::Normal,
                    3 => PieceKind::Control,
                    4 => PieceKind::UserDefined,
                    _ => PieceKind::Other,
                }
            }
            _ => {}
        }
    }
    match piece.score.is_finite() {
        true => Ok(piece),
        false => Err("a piece has a score that is no number"),
    }
}

fn text(bytes: &[u8]) -> std::result::Result<String, &'static str> {
    String::from_utf8(bytes.to_vec()).map_err(|_| "a piece is not UTF-8")
}

/// Negative numbers are written as 64-bit two's complements.
fn signed(number: u64) -> i64 {
    number as i64
}

/// The value of a field of a protocol buffer.
#[derive(Debug, Clone, Copy)]
enum Value<'a> {
    /// A number of any length.
    Number(u64),
    /// Four bytes.
    Word(u32),
    /// Eight bytes, which no field here has.
    Long,
    /// A text, a message or bytes.
    Bytes(&'a [u8]),
}

/// The fields of a message, with their numbers.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn take(&mut self, count: usize) -> std::result::Result<&'a [u8], &'static str> {
        let (taken, rest) = self.0.split_at_checked(count).ok_or("it is cut off")?;
        self.0 = rest;
        Ok(taken)
    }

    /// Seven bits a byte, the lowest first; the highest bit says that more follow.
    fn number(&mut self) -> std::result::Result<u64, &'static str> {
        let mut number = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.take(1)?[0];
            number |= u64::from(byte & 0x7F) << shift;
            if byte < 0x80 {
                return Ok(number);
            }
        }
        Err("it has a number of more than 64 bits")
    }

    fn field(&mut self) -> std::result::Result<(u64, Value<'a>), &'static str> {
        let key = self.number()?;
        let value = match key & 7 {
            0 => Value::Number(self.number()?),
            1 => self.take(8).map(|_| Value::Long)?,
            2 => {
                let length = usize::try_from(self.number()?).map_err(|_| "it is cut off")?;
                Value::Bytes(self.take(length)?)
            }
            5 => {
                let bytes = self.take(4)?;
                Value::Word(u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
            }
            _ => return Err("it has a field of an unknown type"),
        };
        Ok((key >> 3, value))
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = std::result::Result<(u64, Value<'a>), &'static str>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let field = self.field();
        if field.is_err() {
            self.0 = &[];
        }
        Some(field)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A field of bytes.
    fn bytes(number: u8, contents: &[u8]) -> Vec<u8> {
        let mut field = vec![number << 3 | 2, contents.len() as u8];
        field.extend(contents);
        field
    }

    #[test]
    fn reads_pieces_and_settings() {
        let mut piece = bytes(1, "▁a".as_bytes());
        piece.extend([2 << 3 | 5]);
        piece.extend((-1.5f32).to_le_bytes());
        let control = [bytes(1, b"<s>"), vec![3 << 3, 3]].concat();
        // Model type BPE; byte fallback, field 35, has a key of two bytes; the end's id is -1, in ten bytes.
        let mut trainer = vec![3 << 3, 2, 0x98, 0x02, 1, 0xD0, 0x02];
        trainer.extend([0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0x01]);
        let normaliser = [bytes(2, b"map"), vec![3 << 3, 0]].concat();
        let file = [
            bytes(1, &piece),
            bytes(1, &control),
            bytes(2, &trainer),
            bytes(3, &normaliser),
        ]
        .concat();
        let model = ModelFile::parse(Path::new("m"), &file).unwrap();
        assert_eq!(model.pieces[0].text, "▁a");
        assert_eq!(model.pieces[0].score, -1.5);
        assert_eq!(model.pieces[0].kind, PieceKind::Normal);
        assert_eq!(model.pieces[1].kind, PieceKind::Control);
        assert_eq!(model.algorithm, Algorithm::Bpe);
        assert!(model.byte_fallback && !model.add_dummy_prefix && model.escape_whitespaces);
        assert_eq!(model.ids.end, -1);
        assert_eq!(model.charsmap, b"map");
    }

    #[test]
    fn a_damaged_file_says_so() {
        let message = |bytes: &[u8]| {
            ModelFile::parse(Path::new("x.model"), bytes)
                .unwrap_err()
                .to_string()
        };
        assert!(
            message(&bytes(1, b"abc")[..3])
                .contains("x.model: no SentencePiece model: it is cut off")
        );
        assert!(message(b"").contains("no pieces"));
        assert!(message(b"IQ== 0\nIg== 1\n").contains("tokenizer.json of the same model"));
        assert!(message(&[0xFF; 12]).contains("64 bits"));
        assert!(message(&bytes(2, &[3 << 3, 3])).contains("words or characters"));
    }
}
