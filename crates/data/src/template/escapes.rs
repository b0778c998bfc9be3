//! Escapes in a template's literals as Python reads them; the engine knows those of JSON.

/// A literal with its quotes, in the escapes that the engine and Python read alike; nothing where it is malformed.
pub(super) fn rewritten(literal: &str) -> Option<String> {
    let quote = literal
        .chars()
        .next()
        .filter(|quote| matches!(quote, '\'' | '"'))?;
    let inside = literal.strip_prefix(quote)?.strip_suffix(quote)?;
    let mut written = String::from(quote);
    for character in unescaped(inside)?.chars() {
        match character {
            '\\' => written.push_str("\\\\"),
            '\n' => written.push_str("\\n"),
            other if other == quote => written.extend(['\\', quote]),
            other => written.push(other),
        }
    }
    written.push(quote);
    Some(written)
}

/// The text that a literal's inside means; nothing for escapes that Python refuses, and for halves of surrogate pairs.
fn unescaped(inside: &str) -> Option<String> {
    let (mut text, mut rest) = (String::with_capacity(inside.len()), inside);
    while let Some(place) = rest.find('\\') {
        text.push_str(&rest[..place]);
        let escape = &rest[place + 1..];
        let kind = escape.chars().next()?;
        let plain = match kind {
            '\n' => Some(""),
            '\\' => Some("\\"),
            '\'' => Some("'"),
            '"' => Some("\""),
            'a' => Some("\x07"),
            'b' => Some("\x08"),
            'f' => Some("\x0c"),
            'n' => Some("\n"),
            'r' => Some("\r"),
            't' => Some("\t"),
            'v' => Some("\x0b"),
            _ => None,
        };
        if let Some(plain) = plain {
            text.push_str(plain);
            rest = &escape[1..];
            continue;
        }
        let digits = match kind {
            'x' => 2,
            'u' => 4,
            'U' => 8,
            '0'..='7' => {
                let octal = escape.bytes().take(3);
                let length = octal.take_while(|byte| matches!(byte, b'0'..=b'7')).count();
                let code = u32::from_str_radix(&escape[..length], 8).ok()?;
                text.push(char::from_u32(code)?);
                rest = &escape[length..];
                continue;
            }
            // A name of a character; nobody writes one in a template.
            'N' => return None,
            other => {
                text.extend(['\\', other]);
                rest = &escape[other.len_utf8()..];
                continue;
            }
        };
        let code = escape.get(1..=digits)?;
        let hexadecimal = code.bytes().all(|byte| byte.is_ascii_hexdigit());
        let code = u32::from_str_radix(code, 16).ok().filter(|_| hexadecimal)?;
        text.push(char::from_u32(code)?);
        rest = &escape[1 + digits..];
    }
    text.push_str(rest);
    Some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escapes_are_pythons() {
        let read = |inside: &str| unescaped(inside).unwrap();
        assert_eq!(read(r"\x41\u00e9\U0001F600\'\101\0"), "Aé😀'A\0");
        assert_eq!(read(r"\a\b\f\n\r\t\v"), "\x07\x08\x0c\n\r\t\x0b");
        assert_eq!(read("a\\\nb\\d\\é"), "ab\\d\\é");
        for malformed in [
            r"\x4",
            r"\u12",
            r"\ud83d\ude00",
            r"\N{BULLET}",
            r"\U00110000",
        ] {
            assert_eq!(unescaped(malformed), None, "{malformed}");
        }
        assert_eq!(rewritten(r#"'\x27\\"\n'"#).unwrap(), r#"'\'\\"\n'"#);
    }
}
