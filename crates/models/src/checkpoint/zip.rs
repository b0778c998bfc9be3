//! The directory of a zip archive whose entries are stored as they are, zip64 included.
//!
//! That is all `torch.save` writes, and all that can be read through a memory map. Nothing in the file is believed: every
//! length and offset is checked before it is used. Left out: compressed and encrypted entries, and checksums.

use std::collections::BTreeMap;
use std::ops::Range;

const END: u32 = 0x0605_4b50;
const END_64: u32 = 0x0606_4b50;
const LOCATOR_64: u32 = 0x0706_4b50;
const ENTRY: u32 = 0x0201_4b50;
const LOCAL: u32 = 0x0403_4b50;
/// The zip64 form of an entry's sizes and offset.
const EXTRA_64: u16 = 1;
/// The end record without its comment.
const END_LENGTH: usize = 22;

/// Whether a file begins like a zip archive.
pub(super) fn is_archive(file: &[u8]) -> bool {
    number::<4>(file, 0) == Some(u64::from(LOCAL))
}

/// The bytes of every entry by its name.
///
/// # Errors
/// What is wrong with the archive.
pub(super) fn entries(file: &[u8]) -> Result<BTreeMap<&str, Range<usize>>, String> {
    let directory = directory(file).ok_or("not a whole zip archive")?;
    let (mut entries, mut rest) = (BTreeMap::new(), &file[directory]);
    while !rest.is_empty() {
        let (name, place, length) = entry(file, rest)?;
        if entries.insert(name, place).is_some() {
            return Err(format!("entry `{name}` comes twice"));
        }
        rest = rest.get(length..).ok_or("the directory is cut off")?;
    }
    Ok(entries)
}

/// Where the list of entries is, as the record at the end of the file says.
fn directory(file: &[u8]) -> Option<Range<usize>> {
    let last = file.len().checked_sub(END_LENGTH)?;
    let is_end = |at: &usize| {
        let comment = number::<2>(file, at + 20).map(|length| length as usize);
        number::<4>(file, *at) == Some(u64::from(END)) && comment == Some(last - at)
    };
    let end = (last.saturating_sub(usize::from(u16::MAX))..=last)
        .rev()
        .find(is_end)?;
    let (mut size, mut start) = (number::<4>(file, end + 12)?, number::<4>(file, end + 16)?);
    let saturated = |value: u64| value == u64::from(u32::MAX);
    if saturated(size) || saturated(start) || number::<2>(file, end + 10)? == u64::from(u16::MAX) {
        let locator = end
            .checked_sub(20)
            .filter(|at| number::<4>(file, *at) == Some(u64::from(LOCATOR_64)))?;
        let end = usize::try_from(number::<8>(file, locator + 8)?).ok()?;
        number::<4>(file, end).filter(|signature| *signature == u64::from(END_64))?;
        (size, start) = (
            number::<8>(file, end.checked_add(40)?)?,
            number::<8>(file, end.checked_add(48)?)?,
        );
    }
    range(file, start, size)
}

/// The first entry of the directory: its name, its bytes, and how long its record is.
fn entry<'a>(file: &'a [u8], record: &'a [u8]) -> Result<(&'a str, Range<usize>, usize), String> {
    let field = |at| {
        number::<2>(record, at)
            .map(|length| length as usize)
            .ok_or("the directory is cut off")
    };
    if number::<4>(record, 0) != Some(u64::from(ENTRY)) {
        return Err("the directory holds something else than entries".into());
    }
    let (flags, method, name, extra, comment) =
        (field(8)?, field(10)?, field(28)?, field(30)?, field(32)?);
    let name = record
        .get(46..46 + name)
        .ok_or("the directory is cut off")?;
    let name = std::str::from_utf8(name).map_err(|_| "an entry's name is not UTF-8")?;
    if method != 0 || flags & 1 != 0 {
        return Err(format!("entry `{name}` is compressed or encrypted"));
    }
    let extra_start = 46 + name.len();
    let extra_bytes = record
        .get(extra_start..extra_start + extra)
        .ok_or("the directory is cut off")?;
    let place = data(file, record, extra_bytes)
        .ok_or_else(|| format!("entry `{name}` lies outside the file"))?;
    Ok((name, place, extra_start + extra + comment))
}

/// The bytes of an entry: behind its local header, whose extra field may be longer than the directory's.
fn data(file: &[u8], record: &[u8], extra: &[u8]) -> Option<Range<usize>> {
    let mut long = extra_64(extra);
    // The long forms come in this order, for those alone whose short form is full.
    let mut value = |at| match number::<4>(record, at)? {
        short if short == u64::from(u32::MAX) => {
            let value = number::<8>(long, 0)?;
            long = &long[8..];
            Some(value)
        }
        short => Some(short),
    };
    let (size, stored, offset) = (value(24)?, value(20)?, value(42)?);
    let offset = usize::try_from(offset).ok()?;
    number::<4>(file, offset)
        .filter(|signature| *signature == u64::from(LOCAL) && size == stored)?;
    let behind = number::<2>(file, offset + 26)? + number::<2>(file, offset + 28)?;
    range(file, offset as u64 + 30 + behind, size)
}

/// The zip64 part of an extra field; empty where there is none.
fn extra_64(mut extra: &[u8]) -> &[u8] {
    while let (Some(kind), Some(length)) = (number::<2>(extra, 0), number::<2>(extra, 2)) {
        let Some(body) = extra.get(4..4 + length as usize) else {
            break;
        };
        if kind == u64::from(EXTRA_64) {
            return body;
        }
        extra = &extra[4 + length as usize..];
    }
    &[]
}

/// An archive of these entries, stored as they are; nothing where it would need more than four gigabytes. The bytes of each entry begin at
/// a multiple of 64, where tensors are expected.
pub(super) fn archive(entries: &[(String, Vec<u8>)]) -> Option<Vec<u8>> {
    let (mut file, mut directory) = (Vec::new(), Vec::new());
    for (name, bytes) in entries {
        let offset = u32::try_from(file.len()).ok()?;
        let padding = (64 - (file.len() + 34 + name.len()) % 64) % 64;
        let size = u32::try_from(bytes.len()).ok()?.to_le_bytes();
        let lengths = |extra: usize| {
            [name.len() as u16, extra as u16]
                .map(u16::to_le_bytes)
                .concat()
        };
        // Version, flags, method, time and date are zero.
        let checked = [&[0u8; 10][..], &checksum(bytes).to_le_bytes(), &size, &size].concat();
        file.extend([&LOCAL.to_le_bytes()[..], &checked].concat());
        file.extend([&lengths(4 + padding)[..], name.as_bytes(), b"FB"].concat());
        file.extend((padding as u16).to_le_bytes());
        file.resize(file.len() + padding, b'Z');
        file.extend(bytes);
        directory.extend([&ENTRY.to_le_bytes()[..], &[0; 2], &checked, &lengths(0)].concat());
        directory.extend([&[0; 10][..], &offset.to_le_bytes(), name.as_bytes()].concat());
    }
    let (start, size) = (
        u32::try_from(file.len()).ok()?,
        u32::try_from(directory.len()).ok()?,
    );
    let count = u16::try_from(entries.len()).ok()?.to_le_bytes();
    file.extend(directory);
    file.extend([&END.to_le_bytes()[..], &[0; 4], &count, &count].concat());
    file.extend([&size.to_le_bytes()[..], &start.to_le_bytes(), &[0; 2]].concat());
    u32::try_from(file.len()).ok().map(|_| file)
}

/// CRC-32 as zip has it.
fn checksum(bytes: &[u8]) -> u32 {
    let byte = |sum: u32, byte: &u8| {
        let bit = |sum: u32, _| sum >> 1 ^ (0xEDB8_8320 & (sum & 1).wrapping_neg());
        (0..8).fold(sum ^ u32::from(*byte), bit)
    };
    !bytes.iter().fold(u32::MAX, byte)
}

/// A range that lies within the file.
fn range(file: &[u8], start: u64, size: u64) -> Option<Range<usize>> {
    let end = usize::try_from(start.checked_add(size)?).ok()?;
    (end <= file.len()).then_some(start as usize..end)
}

/// The little-endian number of `N` bytes at `at`.
fn number<const N: usize>(bytes: &[u8], at: usize) -> Option<u64> {
    let bytes = bytes.get(at..at.checked_add(N)?)?;
    Some(
        bytes
            .iter()
            .rev()
            .fold(0, |value, byte| value << 8 | u64::from(*byte)),
    )
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_that_of_zip() {
        assert_eq!(checksum(b"123456789"), 0xCBF4_3926);
    }

    /// An archive of these entries, as zip64 or not.
    pub fn archive(entries: &[(&str, &[u8])], long: bool) -> Vec<u8> {
        let (mut file, mut directory) = (Vec::new(), Vec::new());
        for (name, bytes) in entries {
            let (size, offset) = (bytes.len() as u64, file.len() as u64);
            let sizes = [size, size]
                .map(|size| if long { u32::MAX } else { size as u32 }.to_le_bytes())
                .concat();
            let names = [name.len() as u16, 3].map(u16::to_le_bytes).concat();
            let local = [&LOCAL.to_le_bytes()[..], &[0; 14], &sizes, &names].concat();
            file.extend([&local, name.as_bytes(), &[0; 3], bytes].concat());
            let (mut extra, mut at) = (Vec::new(), offset as u32);
            if long {
                let values = [size, size, offset].map(u64::to_le_bytes).concat();
                extra = [&[9, 0, 1, 0, 7][..], &[1, 0, 24, 0], &values].concat();
                at = u32::MAX;
            }
            let lengths = [name.len() as u16, extra.len() as u16, 2]
                .map(u16::to_le_bytes)
                .concat();
            let head = [
                &ENTRY.to_le_bytes()[..],
                &[0; 16],
                &sizes,
                &lengths,
                &[0; 8],
                &at.to_le_bytes(),
            ]
            .concat();
            directory.extend([&head, name.as_bytes(), &extra, b"co"].concat());
        }
        let (size, start) = (directory.len() as u64, file.len() as u64);
        file.extend(&directory);
        let count = entries.len() as u64;
        let (mut short, mut end) = (
            [count as u32, count as u32, size as u32, start as u32],
            Vec::new(),
        );
        if long {
            short = [u32::from(u16::MAX), u32::from(u16::MAX), u32::MAX, u32::MAX];
            let values = [count, count, size, start].map(u64::to_le_bytes).concat();
            end = [&END_64.to_le_bytes()[..], &[0; 20], &values].concat();
            end.extend(
                [
                    &LOCATOR_64.to_le_bytes()[..],
                    &[0; 4],
                    &(start + size).to_le_bytes(),
                    &[0; 4],
                ]
                .concat(),
            );
        }
        let counts = [short[0] as u16, short[1] as u16]
            .map(u16::to_le_bytes)
            .concat();
        let places = [short[2], short[3]].map(u32::to_le_bytes).concat();
        file.extend(
            [
                &end[..],
                &END.to_le_bytes(),
                &[0; 4],
                &counts,
                &places,
                &[1, 0],
                b"!",
            ]
            .concat(),
        );
        file
    }

    #[test]
    fn finds_entries_of_both_forms() {
        for long in [false, true] {
            let file = archive(&[("a/b", b"first"), ("c", b"")], long);
            assert!(is_archive(&file));
            let found = entries(&file).unwrap();
            assert_eq!(found.keys().copied().collect::<Vec<_>>(), ["a/b", "c"]);
            assert_eq!(
                (&file[found["a/b"].clone()], found["c"].len()),
                (&b"first"[..], 0)
            );
        }
        assert!(entries(&archive(&[], false)).unwrap().is_empty());
    }

    #[test]
    fn broken_archives_are_errors() {
        for long in [false, true] {
            let file = archive(&[("a", b"first"), ("b", b"second")], long);
            assert!((0..file.len()).all(|length| entries(&file[..length]).is_err()));
        }
        let error = |file: &[u8]| entries(file).unwrap_err();
        assert!(error(b"").contains("not a whole zip"));
        assert!(error(&archive(&[("a", b""), ("a", b"")], false)).contains("comes twice"));
        let mut compressed = archive(&[("a", b"x")], false);
        let at = compressed
            .windows(4)
            .position(|bytes| bytes == ENTRY.to_le_bytes())
            .unwrap();
        compressed[at + 10] = 8;
        assert!(error(&compressed).contains("entry `a` is compressed"));
    }
}
