//! Cuts a stream into the bytes of single records, with line numbers, holding only one record at a time.
//!
//! The array splitter looks only at brackets, quotes and backslashes; whether an element is valid JSON is for the reader of
//! the element to say. That way a malformed element costs one record and not the rest of the file.

use std::io::{self, BufRead, Read};
use std::path::{Path, PathBuf};

use crate::{Error, Result};

/// The longest record: a longer one is an error, not a reason to run out of memory.
const MOST_BYTES: usize = 64 << 20;

/// The bytes of one record.
pub(super) struct Element {
    /// Line of its first byte, from 1.
    pub line: usize,
    pub bytes: Vec<u8>,
}

pub(super) type Elements = Box<dyn Iterator<Item = Result<Element>> + Send>;

/// Splits plain text by paragraphs, and JSON by array elements or by lines, whichever its first byte shows.
pub(super) fn split(
    input: impl BufRead + Send + 'static,
    path: &Path,
    plain: bool,
) -> Result<Elements> {
    let mut stream = Stream {
        input,
        path: path.to_path_buf(),
        line: 1,
        most: MOST_BYTES,
    };
    if plain {
        return Ok(Box::new(Paragraphs { stream }));
    }
    if stream.skip_space()? == Some(b'[') {
        stream.bump()?;
        return Ok(Box::new(Array {
            stream,
            place: Place::First,
        }));
    }
    Ok(Box::new(Lines { stream }))
}

/// Bytes with the number of the current line.
struct Stream<R> {
    input: R,
    path: PathBuf,
    line: usize,
    most: usize,
}

impl<R: BufRead> Stream<R> {
    fn record_error(&self, line: usize, reason: impl Into<String>) -> Error {
        Error::Record {
            path: self.path.clone(),
            line,
            reason: reason.into(),
        }
    }

    fn file_error(&self, error: io::Error) -> Error {
        Error::file(&self.path, error)
    }

    fn too_long(&self, line: usize) -> Error {
        self.record_error(
            line,
            format!("the record is longer than {} bytes", self.most),
        )
    }

    fn peek(&mut self) -> Result<Option<u8>> {
        match self.input.fill_buf() {
            Ok(buffer) => Ok(buffer.first().copied()),
            Err(error) => Err(Error::file(&self.path, error)),
        }
    }

    fn bump(&mut self) -> Result<()> {
        if self.peek()? == Some(b'\n') {
            self.line += 1;
        }
        self.input.consume(1);
        Ok(())
    }

    /// Goes to the first byte that is no white space.
    fn skip_space(&mut self) -> Result<Option<u8>> {
        while let Some(byte) = self.peek()? {
            if !byte.is_ascii_whitespace() {
                return Ok(Some(byte));
            }
            self.bump()?;
        }
        Ok(None)
    }

    /// The next line without its end, or nothing at the end of the stream.
    fn next_line(&mut self) -> Result<Option<Element>> {
        let line = self.line;
        let mut bytes = Vec::new();
        let read = (&mut self.input)
            .take(self.most as u64 + 1)
            .read_until(b'\n', &mut bytes);
        if read.map_err(|error| self.file_error(error))? == 0 {
            return Ok(None);
        }
        self.line += 1;
        if bytes.last() == Some(&b'\n') {
            bytes.pop();
        } else if bytes.len() > self.most {
            self.input
                .skip_until(b'\n')
                .map_err(|error| self.file_error(error))?;
            return Err(self.too_long(line));
        }
        if bytes.last() == Some(&b'\r') {
            bytes.pop();
        }
        Ok(Some(Element { line, bytes }))
    }
}

/// Non-blank lines.
struct Lines<R> {
    stream: Stream<R>,
}

impl<R: BufRead> Iterator for Lines<R> {
    type Item = Result<Element>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            match self.stream.next_line().transpose()? {
                Ok(line) if line.bytes.trim_ascii().is_empty() => {}
                line => return Some(line),
            }
        }
    }
}

/// Runs of non-blank lines.
struct Paragraphs<R> {
    stream: Stream<R>,
}

impl<R: BufRead> Paragraphs<R> {
    fn paragraph(&mut self) -> Result<Option<Element>> {
        let mut paragraph: Option<Element> = None;
        while let Some(line) = self.stream.next_line()? {
            let blank = line.bytes.trim_ascii().is_empty();
            match &mut paragraph {
                None if blank => {}
                None => paragraph = Some(line),
                Some(_) if blank => break,
                Some(whole) if whole.bytes.len() + line.bytes.len() < self.stream.most => {
                    whole.bytes.push(b'\n');
                    whole.bytes.extend(line.bytes);
                }
                Some(whole) => return Err(self.stream.too_long(whole.line)),
            }
        }
        Ok(paragraph)
    }
}

impl<R: BufRead> Iterator for Paragraphs<R> {
    type Item = Result<Element>;

    fn next(&mut self) -> Option<Self::Item> {
        self.paragraph().transpose()
    }
}

#[derive(PartialEq)]
enum Place {
    First,
    Later,
    End,
}

/// The elements of a JSON array whose `[` is read already.
struct Array<R> {
    stream: Stream<R>,
    place: Place,
}

impl<R: BufRead> Array<R> {
    fn element(&mut self) -> Result<Option<Element>> {
        if self.place == Place::End {
            return Ok(None);
        }
        let first = std::mem::replace(&mut self.place, Place::End) == Place::First;
        match self.stream.skip_space()? {
            Some(b']') => return self.close(),
            // Only a comma can follow an element: the element would have gone on otherwise.
            Some(_) if !first => self.after_comma()?,
            _ => {}
        }
        self.stream.skip_space()?;
        let line = self.stream.line;
        let bytes = self.value()?;
        self.place = Place::Later;
        if bytes.len() > self.stream.most {
            return Err(self.stream.too_long(line));
        }
        Ok(Some(Element { line, bytes }))
    }

    /// Passes the comma between two elements, behind which there must be one.
    fn after_comma(&mut self) -> Result<()> {
        let line = self.stream.line;
        self.stream.bump()?;
        if self.stream.skip_space()? != Some(b']') {
            return Ok(());
        }
        // The bracket is read next time.
        self.place = Place::First;
        let reason = "invalid JSON: a comma before `]`; take it out, the last element has none";
        Err(self.stream.record_error(line, reason))
    }

    /// The bytes up to the comma or bracket that ends the element; one more than allowed when it is too long.
    fn value(&mut self) -> Result<Vec<u8>> {
        let (mut bytes, mut scanner) = (Vec::new(), Scanner::default());
        while let Some(byte) = self.stream.peek()? {
            if scanner.ends(byte) {
                return Ok(bytes);
            }
            scanner.pass(byte);
            if bytes.len() <= self.stream.most {
                bytes.push(byte);
            }
            self.stream.bump()?;
        }
        Err(self.stream.record_error(
            self.stream.line,
            "the file ends inside the array: expected `]`",
        ))
    }

    fn close(&mut self) -> Result<Option<Element>> {
        self.stream.bump()?;
        match self.stream.skip_space()? {
            Some(_) => Err(self
                .stream
                .record_error(self.stream.line, "text after the end of the array")),
            None => Ok(None),
        }
    }
}

impl<R: BufRead> Iterator for Array<R> {
    type Item = Result<Element>;

    fn next(&mut self) -> Option<Self::Item> {
        self.element().transpose()
    }
}

/// How deep inside brackets, and whether inside a string.
#[derive(Default)]
struct Scanner {
    depth: usize,
    in_string: bool,
    escaped: bool,
}

impl Scanner {
    fn ends(&self, byte: u8) -> bool {
        self.depth == 0 && !self.in_string && matches!(byte, b',' | b']')
    }

    fn pass(&mut self, byte: u8) {
        if self.in_string {
            self.in_string = self.escaped || byte != b'"';
            self.escaped = !self.escaped && byte == b'\\';
            return;
        }
        match byte {
            b'"' => self.in_string = true,
            b'[' | b'{' => self.depth += 1,
            b']' | b'}' => self.depth = self.depth.saturating_sub(1),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(text: &str, most: usize) -> Vec<Result<(usize, String), String>> {
        let input = io::Cursor::new(text.as_bytes().to_vec());
        let mut stream = Stream {
            input,
            path: "x".into(),
            line: 1,
            most,
        };
        let elements: Elements = if stream.skip_space().unwrap() == Some(b'[') {
            stream.bump().unwrap();
            Box::new(Array {
                stream,
                place: Place::First,
            })
        } else {
            Box::new(Lines { stream })
        };
        let elements = elements
            .map(|element| element.map(|part| (part.line, String::from_utf8(part.bytes).unwrap())));
        elements
            .map(|element| element.map_err(|error| error.to_string()))
            .collect()
    }

    #[test]
    fn arrays_split_at_their_own_commas() {
        let parts = parts("\n[{\"a\": \"],\\\"{\"},\n\n [1, [2]] , \"x,\"]\n", 100);
        let expected = [(2, "{\"a\": \"],\\\"{\"}"), (4, "[1, [2]] "), (4, "\"x,\"")];
        assert_eq!(
            parts,
            expected.map(|(line, text)| Ok((line, text.to_string())))
        );
    }

    #[test]
    fn a_comma_after_the_last_element_is_named() {
        let parts = parts("[1,\n2 ,\n]\n", 100);
        assert_eq!(parts[..2], [Ok((1, "1".into())), Ok((2, "2 ".into()))]);
        let reason =
            "x:2: invalid JSON: a comma before `]`; take it out, the last element has none";
        assert_eq!(parts[2..], [Err(reason.to_string())]);
    }

    #[test]
    fn broken_arrays_are_errors() {
        assert_eq!(
            parts("[1, 2", 100)[1],
            Err("x:1: the file ends inside the array: expected `]`".into())
        );
        assert_eq!(
            parts("[1]\n2", 100)[1],
            Err("x:2: text after the end of the array".into())
        );
        assert_eq!(parts("[", 100).len(), 1);
    }

    #[test]
    fn long_records_are_errors_and_the_next_is_read() {
        let long = Err("x:1: the record is longer than 4 bytes".into());
        assert_eq!(
            parts("12345\n1234\n", 4),
            [long.clone(), Ok((2, "1234".into()))]
        );
        assert_eq!(parts("[12345,\n1234]", 4), [long, Ok((2, "1234".into()))]);
    }
}
