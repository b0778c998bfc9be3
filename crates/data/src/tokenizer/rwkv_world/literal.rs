//! Python literals of type `str` and `bytes`, read as the grammar has them and never evaluated.

/// The bytes of a literal as `repr` writes it: `'..'` or `".."` means its UTF-8 bytes, `b'..'` and `b".."` are raw.
///
/// # Errors
/// What is wrong with the literal.
pub(super) fn parse(literal: &str) -> Result<Vec<u8>, String> {
    let (raw, quoted) = match literal.strip_prefix('b') {
        Some(rest) => (true, rest),
        None => (false, literal),
    };
    let inside = ['\'', '"'].into_iter().find_map(|quote| {
        let inside = quoted.strip_prefix(quote)?.strip_suffix(quote)?;
        Some((quote, inside))
    });
    let (quote, inside) =
        inside.ok_or_else(|| format!("`{literal}`: expected a Python string in quotes"))?;
    let mut bytes = Vec::with_capacity(inside.len());
    let mut rest = inside.chars();
    while let Some(character) = rest.next() {
        match character {
            '\\' => escape(&mut rest, raw, &mut bytes)
                .map_err(|reason| format!("`{literal}`: {reason}"))?,
            _ if character == quote => {
                return Err(format!("`{literal}`: a quote inside needs a backslash"));
            }
            _ if raw && !character.is_ascii() => {
                return Err(format!("`{literal}`: bytes beyond ASCII need `\\x`"));
            }
            _ => push(character, &mut bytes),
        }
    }
    Ok(bytes)
}

/// Reads what follows a backslash.
fn escape(rest: &mut std::str::Chars, raw: bool, bytes: &mut Vec<u8>) -> Result<(), String> {
    let kind = rest.next().ok_or("ends with a backslash")?;
    match kind {
        'n' => bytes.push(b'\n'),
        'r' => bytes.push(b'\r'),
        't' => bytes.push(b'\t'),
        '\\' | '\'' | '"' => push(kind, bytes),
        'x' if raw => bytes.extend(u8::try_from(hexadecimal(rest, 2)?)),
        'x' => push(character(hexadecimal(rest, 2)?)?, bytes),
        'u' if !raw => push(character(hexadecimal(rest, 4)?)?, bytes),
        'U' if !raw => push(character(hexadecimal(rest, 8)?)?, bytes),
        other => return Err(format!("unknown escape `\\{other}`")),
    }
    Ok(())
}

fn hexadecimal(rest: &mut std::str::Chars, digits: usize) -> Result<u32, String> {
    let next = || rest.next().and_then(|digit| digit.to_digit(16));
    let read: Option<Vec<u32>> = std::iter::repeat_with(next).take(digits).collect();
    let read = read.ok_or_else(|| format!("expected {digits} hexadecimal digits"))?;
    Ok(read.into_iter().fold(0, |value, digit| value << 4 | digit))
}

fn character(code: u32) -> Result<char, String> {
    char::from_u32(code).ok_or_else(|| format!("U+{code:04X} is no character"))
}

fn push(character: char, bytes: &mut Vec<u8>) {
    bytes.extend(character.encode_utf8(&mut [0; 4]).as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strings_mean_their_utf8_and_bytes_themselves() {
        assert_eq!(parse("'é'").unwrap(), "é".as_bytes());
        assert_eq!(parse(r"'\xe9'").unwrap(), "é".as_bytes());
        assert_eq!(parse(r"b'\xe9'").unwrap(), [0xe9]);
        assert_eq!(
            parse(r"'\u2028\U0001f600'").unwrap(),
            "\u{2028}\u{1f600}".as_bytes()
        );
        assert_eq!(
            parse(r#""it's \" \\ \n\r\t""#).unwrap(),
            b"it's \" \\ \n\r\t"
        );
        assert_eq!(parse("' '").unwrap(), b" ");
    }

    #[test]
    fn what_is_no_literal_is_an_error() {
        let bad = [
            "",
            "b",
            "'",
            "a",
            "'a",
            "'a\"",
            "'a'b'",
            r"'\'",
            r"'\x1'",
            r"'\u12'",
            r"'\ud800'",
            r"'\U00110000'",
            r"'\q'",
            r"b'\u0041'",
            "b'é'",
            "f'a'",
            "rb'a'",
            "'a' + 'b'",
            "open('x')",
            r"b'\x'",
        ];
        for literal in bad {
            assert!(parse(literal).is_err(), "{literal}");
        }
    }
}
