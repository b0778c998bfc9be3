//! Python's two ways of formatting: `'%s' % value` (and the filter `format`) and `'{}'.format(value)`.

use minijinja::Error;
use minijinja::value::{Kwargs, Value, ValueKind};

use super::{bounds, numbers, python};

/// Refuses widths and precisions of five digits or more in a format, each of which would be written out.
fn check(text: &str) -> Result<(), Error> {
    let mut digits = 0;
    for character in text.chars() {
        digits = if character.is_ascii_digit() {
            digits + 1
        } else {
            0
        };
        if digits > 4 && text.contains(['%', '{']) {
            return Err(bounds::refused(
                "a number of five digits or more in a format: write it in the text around it",
            ));
        }
    }
    Ok(())
}

/// Bytes charged for a field beside its width and its digits: a number has up to so many before its point.
const FIELD: usize = 400;

/// How a value is to be written: `[[fill]align][sign][#][0][width][grouping][.precision][type]`.
#[derive(Debug, Clone, Default)]
struct Spec {
    fill: Option<char>,
    align: Option<char>,
    sign: Option<char>,
    alternate: bool,
    zero: bool,
    width: usize,
    grouping: Option<char>,
    precision: Option<usize>,
    kind: Option<char>,
}

impl Spec {
    /// Reads the part of a field behind its colon.
    fn parse(text: &str) -> Result<Self, Error> {
        let mut spec = Self::default();
        let characters: Vec<char> = text.chars().collect();
        let mut rest = characters.as_slice();
        let is_align = |character: &char| matches!(character, '<' | '>' | '^' | '=');
        if let [fill, align, behind @ ..] = rest
            && is_align(align)
        {
            (spec.fill, spec.align, rest) = (Some(*fill), Some(*align), behind);
        } else if let [align, behind @ ..] = rest
            && is_align(align)
        {
            (spec.align, rest) = (Some(*align), behind);
        }
        let mut take = |wanted: &[char]| match rest.first() {
            Some(character) if wanted.contains(character) => {
                rest = &rest[1..];
                Some(*character)
            }
            _ => None,
        };
        spec.sign = take(&['+', '-', ' ']);
        spec.alternate = take(&['#']).is_some();
        spec.zero = take(&['0']).is_some();
        const DIGITS: [char; 10] = ['0', '1', '2', '3', '4', '5', '6', '7', '8', '9'];
        let mut width = String::new();
        while let Some(digit) = take(&DIGITS) {
            width.push(digit);
        }
        spec.grouping = take(&[',', '_']);
        let mut precision = take(&['.']).map(|_| String::new());
        if let Some(precision) = &mut precision {
            while let Some(digit) = take(&DIGITS) {
                precision.push(digit);
            }
        }
        spec.kind = rest.first().copied();
        let number = |digits: &str| digits.parse::<usize>();
        let bad = || bounds::refused(&format!("`{text}` is no format of a value"));
        if rest.len() > 1 || precision.as_ref().is_some_and(String::is_empty) {
            return Err(bad());
        }
        if !width.is_empty() {
            spec.width = number(&width).map_err(|_| bad())?;
        }
        spec.precision = precision
            .map(|digits| number(&digits))
            .transpose()
            .map_err(|_| bad())?;
        Ok(spec)
    }

    /// Charges for what a field may take that is not in its value.
    fn charge(&self) -> Result<(), Error> {
        bounds::charge(FIELD + self.width + self.precision.unwrap_or(0))
    }

    /// A value as the specification writes it.
    fn write(&self, value: &Value) -> Result<String, Error> {
        let is_number = value.kind() == ValueKind::Number;
        let is_truth = value.kind() == ValueKind::Bool;
        match self.kind {
            None if is_number && !value.is_integer() => self.float(real(value)?, 'r'),
            None if is_number => self.whole(value, 'd'),
            None | Some('s') if !is_number => {
                let text = python::text(value)?;
                Ok(self.text(&text))
            }
            Some(kind @ ('d' | 'x' | 'X' | 'o' | 'b' | 'c')) if value.is_integer() || is_truth => {
                self.whole(value, kind)
            }
            Some(kind @ ('e' | 'E' | 'f' | 'F' | 'g' | 'G' | '%')) if is_number || is_truth => {
                self.float(real(value)?, kind)
            }
            _ => Err(bounds::refused(&format!(
                "no format `{}` of a {}",
                self.kind.map(String::from).unwrap_or_default(),
                value.kind()
            ))),
        }
    }

    fn text(&self, text: &str) -> String {
        let kept: String = match self.precision {
            Some(most) => text.chars().take(most).collect(),
            None => text.to_string(),
        };
        let fill = if self.zero { '0' } else { ' ' };
        self.aligned(
            "",
            &kept,
            self.fill.unwrap_or(fill),
            self.align.unwrap_or('<'),
        )
    }

    fn whole(&self, value: &Value, kind: char) -> Result<String, Error> {
        let number = i128::try_from(value.clone())?;
        if kind == 'c' {
            let character = u32::try_from(number).ok().and_then(char::from_u32);
            let character = character.ok_or_else(|| bounds::refused("no such character"))?;
            return Ok(self.text(&character.to_string()));
        }
        let size = number.unsigned_abs();
        let (prefix, digits) = match kind {
            'x' => ("0x", format!("{size:x}")),
            'X' => ("0X", format!("{size:X}")),
            'o' => ("0o", format!("{size:o}")),
            'b' => ("0b", format!("{size:b}")),
            _ => ("", size.to_string()),
        };
        let prefix = if self.alternate { prefix } else { "" };
        let every = if matches!(kind, 'd') { 3 } else { 4 };
        let digits = self.grouped(&digits, every);
        Ok(self.number(number < 0, prefix, &digits))
    }

    fn float(&self, number: f64, kind: char) -> Result<String, Error> {
        let size = number.abs();
        let precision = self.precision.unwrap_or(6);
        let written = match kind {
            _ if !size.is_finite() => if size.is_nan() { "nan" } else { "inf" }.to_string(),
            'f' | 'F' => format!("{size:.precision$}"),
            '%' => format!("{:.precision$}%", size * 100.0),
            'e' | 'E' => exponential(size, precision),
            // Without a type, as `repr`, or in `g` with at least one digit behind the point.
            'r' => match self.precision {
                None => python::text(&size.into())?,
                Some(precision) => {
                    let general = general(size, precision, false);
                    match general.contains(['.', 'e']) {
                        true => general,
                        false => general + ".0",
                    }
                }
            },
            _ => general(size, precision, self.alternate),
        };
        let written = match kind {
            'E' | 'F' | 'G' => written.to_uppercase(),
            _ => written,
        };
        let whole = written.find(|character: char| !character.is_ascii_digit());
        let (digits, rest) = written.split_at(whole.unwrap_or(written.len()));
        let digits = self.grouped(digits, 3) + rest;
        Ok(self.number(number.is_sign_negative() && !number.is_nan(), "", &digits))
    }

    fn grouped(&self, digits: &str, every: usize) -> String {
        let Some(separator) = self.grouping else {
            return digits.to_string();
        };
        let mut grouped = String::new();
        for (place, digit) in digits.chars().enumerate() {
            if place > 0 && (digits.len() - place).is_multiple_of(every) {
                grouped.push(separator);
            }
            grouped.push(digit);
        }
        grouped
    }

    fn number(&self, negative: bool, prefix: &str, digits: &str) -> String {
        let sign = match (negative, self.sign) {
            (true, _) => "-",
            (false, Some('+')) => "+",
            (false, Some(' ')) => " ",
            _ => "",
        };
        let zero = self.zero && self.align.is_none();
        let (fill, align) = match zero {
            true => ('0', '='),
            false => (self.fill.unwrap_or(' '), self.align.unwrap_or('>')),
        };
        self.aligned(&[sign, prefix].concat(), digits, fill, align)
    }

    fn aligned(&self, head: &str, body: &str, fill: char, align: char) -> String {
        let length = head.chars().count() + body.chars().count();
        let pad = self.width.saturating_sub(length);
        let left = match align {
            '<' => 0,
            '^' => pad / 2,
            _ => pad,
        };
        let filled = |count: usize| std::iter::repeat_n(fill, count).collect::<String>();
        match align {
            '=' => [head, &filled(pad), body].concat(),
            _ => [&filled(left), head, body, &filled(pad - left)].concat(),
        }
    }
}

fn real(value: &Value) -> Result<f64, Error> {
    match value.kind() {
        ValueKind::Bool => Ok(f64::from(u8::from(value.is_true()))),
        _ if value.is_integer() => Ok(i128::try_from(value.clone())? as f64),
        _ => f64::try_from(value.clone()),
    }
}

/// With an exponent of two digits at least.
fn exponential(size: f64, precision: usize) -> String {
    let written = format!("{size:.precision$e}");
    let (digits, exponent) = written.split_once('e').unwrap_or((&written, "0"));
    let (sign, exponent) = match exponent.strip_prefix('-') {
        Some(exponent) => ('-', exponent),
        None => ('+', exponent),
    };
    format!("{digits}e{sign}{exponent:0>2}")
}

/// C's `%g`: so many digits in all, without zeros behind, with an exponent where the number is small or large.
fn general(size: f64, precision: usize, keep_zeros: bool) -> String {
    let precision = precision.max(1);
    let rounded = exponential(size, precision - 1);
    let (_, exponent) = rounded.split_once('e').unwrap_or(("", "0"));
    let exponent: i64 = exponent.parse().unwrap_or(0);
    let is_plain = exponent >= -4 && exponent < precision as i64;
    let (digits, tail) = match is_plain {
        true => {
            let decimals = (precision as i64 - 1 - exponent).max(0) as usize;
            (format!("{size:.decimals$}"), String::new())
        }
        false => {
            let (digits, exponent) = rounded.split_once('e').unwrap_or((&rounded, "+00"));
            (digits.to_string(), format!("e{exponent}"))
        }
    };
    let digits = match digits.contains('.') && !keep_zeros {
        true => digits
            .trim_end_matches('0')
            .trim_end_matches('.')
            .to_string(),
        false => digits,
    };
    digits + &tail
}

/// `'%s and %d' % values`: conversions of values by place, or by name (`%(name)s`) of a mapping.
pub(super) fn percent(
    text: &str,
    values: &[Value],
    names: Option<&Value>,
) -> Result<String, Error> {
    check(text)?;
    let (mut written, mut rest, mut values) = (String::new(), text, values.iter());
    let missing = || bounds::refused("not enough values for the format");
    while let Some(place) = rest.find('%') {
        written.push_str(&rest[..place]);
        let conversion = Conversion::parse(&rest[place + 1..])?;
        rest = &rest[place + 1 + conversion.length..];
        if conversion.spec.kind == Some('%') {
            written.push('%');
            continue;
        }
        let mut spec = conversion.spec.clone();
        if conversion.width_follows {
            let width = values.next().ok_or_else(missing)?;
            let width = bounds::check_width(width)?;
            spec.align = if width < 0 { Some('<') } else { spec.align };
            spec.width = width.unsigned_abs() as usize;
        }
        let value = match (&conversion.name, names) {
            (Some(name), Some(names)) => names.get_item(&Value::from(name.as_str()))?,
            (Some(_), None) => return Err(bounds::refused("the format requires a mapping")),
            (None, _) => values.next().ok_or_else(missing)?.clone(),
        };
        spec.charge()?;
        written.push_str(&converted(&spec, &value)?);
    }
    if names.is_none() && values.next().is_some() {
        return Err(bounds::refused(
            "more values than the format has places for",
        ));
    }
    written.push_str(rest);
    Ok(written)
}

/// How many values a `%` format takes by place.
pub(super) fn places(text: &str) -> Result<usize, Error> {
    let (mut count, mut rest) = (0, text);
    while let Some(place) = rest.find('%') {
        let conversion = Conversion::parse(&rest[place + 1..])?;
        rest = &rest[place + 1 + conversion.length..];
        let takes = conversion.spec.kind != Some('%') && conversion.name.is_none();
        count += usize::from(takes) + usize::from(conversion.width_follows);
    }
    Ok(count)
}

/// One `%(name)-5.2f` of a format.
struct Conversion {
    name: Option<String>,
    spec: Spec,
    width_follows: bool,
    /// Bytes behind the per cent sign.
    length: usize,
}

impl Conversion {
    fn parse(text: &str) -> Result<Self, Error> {
        let bad = || bounds::refused("an incomplete or unknown conversion behind `%` in a format");
        let mut rest = text;
        let mut name = None;
        if let Some(inside) = rest.strip_prefix('(') {
            let (named, behind) = inside.split_once(')').ok_or_else(bad)?;
            (name, rest) = (Some(named.to_string()), behind);
        }
        let mut spec = Spec::default();
        while let Some(flag) = rest.chars().next().filter(|flag| "-+ #0".contains(*flag)) {
            match flag {
                '-' => spec.align = Some('<'),
                '#' => spec.alternate = true,
                '0' => spec.zero = true,
                // A sign wins over a blank.
                flag if spec.sign != Some('+') => spec.sign = Some(flag),
                _ => {}
            }
            rest = &rest[1..];
        }
        let width_follows = rest.starts_with('*');
        rest = rest.strip_prefix('*').unwrap_or(rest);
        let digits =
            |text: &str| text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        let width = digits(rest);
        spec.width = rest[..width].parse().unwrap_or(0);
        rest = &rest[width..];
        if let Some(behind) = rest.strip_prefix('.') {
            let precision = digits(behind);
            spec.precision = Some(behind[..precision].parse().unwrap_or(0));
            rest = &behind[precision..];
        }
        rest = rest.trim_start_matches(['h', 'l', 'L']);
        let kind = rest.chars().next().ok_or_else(bad)?;
        if !"diouxXeEfFgGcrsa%".contains(kind) {
            return Err(bad());
        }
        spec.kind = Some(kind);
        let length = text.len() - rest.len() + kind.len_utf8();
        Ok(Self {
            name,
            spec,
            width_follows,
            length,
        })
    }
}

/// A value by a `%` conversion.
fn converted(spec: &Spec, value: &Value) -> Result<String, Error> {
    let mut spec = spec.clone();
    let right = |spec: &mut Spec| spec.align = spec.align.or(Some('>'));
    match spec.kind {
        Some('s' | 'r' | 'a') => {
            let text = match spec.kind {
                Some('s') => python::text(value)?,
                _ => python::quoted(value)?,
            };
            (spec.kind, spec.zero) = (None, false);
            right(&mut spec);
            Ok(spec.text(&text))
        }
        Some('c') if value.as_str().is_some_and(|text| text.chars().count() == 1) => {
            right(&mut spec);
            Ok(spec.text(value.as_str().unwrap_or_default()))
        }
        Some(kind @ ('d' | 'i' | 'u' | 'x' | 'X' | 'o' | 'c')) => {
            let cut = matches!(kind, 'd' | 'i' | 'u') && value.kind() == ValueKind::Number;
            let whole = match cut && !value.is_integer() {
                true => Value::from(numbers::whole_part(real(value)?)?),
                false => value.clone(),
            };
            spec.kind = Some(if matches!(kind, 'i' | 'u') { 'd' } else { kind });
            spec.zero &= spec.align.is_none();
            spec.write(&whole)
        }
        _ => {
            spec.zero &= spec.align.is_none();
            spec.write(value)
        }
    }
}

/// `'{} and {name:>5}'.format(values)`.
pub(super) fn fields(text: &str, given: &[Value]) -> Result<String, Error> {
    check(text)?;
    given.iter().try_for_each(bounds::walk)?;
    let (mut places, mut names) = (Vec::new(), None);
    for value in given {
        match value.is_kwargs() {
            true => names = Some(Kwargs::try_from(value.clone())?),
            false => places.push(value.clone()),
        }
    }
    let mut values = Values {
        places,
        names,
        next: 0,
    };
    values.write(text, 0)
}

/// The values of a format's fields.
struct Values {
    places: Vec<Value>,
    names: Option<Kwargs>,
    /// The place of the next field without a name.
    next: usize,
}

impl Values {
    fn write(&mut self, text: &str, depth: usize) -> Result<String, Error> {
        if depth > 2 {
            return Err(bounds::refused("a format is nested deeper than two levels"));
        }
        let (mut written, mut rest) = (String::new(), text);
        while let Some(place) = rest.find(['{', '}']) {
            written.push_str(&rest[..place]);
            let brace = &rest[place..=place];
            rest = &rest[place + 1..];
            if let Some(behind) = rest.strip_prefix(brace) {
                written.push_str(brace);
                rest = behind;
                continue;
            }
            if brace == "}" {
                return Err(bounds::refused("a single `}` in a format"));
            }
            let length = closing(rest)?;
            written.push_str(&self.field(&rest[..length], depth)?);
            rest = &rest[length + 1..];
        }
        written.push_str(rest);
        Ok(written)
    }

    /// `name!conversion:specification`.
    fn field(&mut self, field: &str, depth: usize) -> Result<String, Error> {
        let (head, spec) = match field.find(':') {
            Some(place) => (&field[..place], &field[place + 1..]),
            None => (field, ""),
        };
        let (name, conversion) = match head.split_once('!') {
            Some((name, conversion)) => (name, Some(conversion)),
            None => (head, None),
        };
        let value = self.value(name)?;
        let value = match conversion {
            None => value,
            Some("s") => python::text(&value)?.into(),
            Some("r" | "a") => python::quoted(&value)?.into(),
            Some(other) => return Err(bounds::refused(&format!("no conversion `!{other}`"))),
        };
        let spec = self.write(spec, depth + 1)?;
        check(&format!("{{{spec}"))?;
        let spec = Spec::parse(&spec)?;
        spec.charge()?;
        spec.write(&value)
    }

    /// The value of `0`, `name`, `name.part` or `name[part]`.
    fn value(&mut self, name: &str) -> Result<Value, Error> {
        let end = name.find(['.', '[']).unwrap_or(name.len());
        let (first, mut rest) = name.split_at(end);
        let place = match first.is_empty() {
            true => {
                self.next += 1;
                Some(self.next - 1)
            }
            false => first.parse::<usize>().ok(),
        };
        let missing =
            || bounds::refused(&format!("no value for the field `{{{name}}}` of a format"));
        let mut value = match (place, &self.names) {
            (Some(place), _) => self.places.get(place).cloned(),
            (None, Some(names)) if names.has(first) => Some(names.get::<Value>(first)?),
            _ => None,
        }
        .ok_or_else(missing)?;
        while !rest.is_empty() {
            let (key, behind) = match rest.strip_prefix('[') {
                Some(inside) => inside.split_once(']').ok_or_else(missing)?,
                None => {
                    let inside = &rest[1..];
                    inside.split_at(inside.find(['.', '[']).unwrap_or(inside.len()))
                }
            };
            let key = key.parse::<i64>().map_or_else(|_| key.into(), Value::from);
            value = value.get_item(&key)?;
            rest = behind;
        }
        Ok(value)
    }
}

/// Bytes up to the brace that closes a field.
fn closing(text: &str) -> Result<usize, Error> {
    let mut depth = 0;
    for (place, character) in text.char_indices() {
        match character {
            '{' => depth += 1,
            '}' if depth == 0 => return Ok(place),
            '}' => depth -= 1,
            _ => {}
        }
    }
    Err(bounds::refused("a single `{` in a format"))
}
