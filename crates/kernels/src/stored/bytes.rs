//! Bytes that several weights may share: owned, or a part of a mapped file.

use std::{
    ops::{Deref, Range},
    sync::Arc,
};

use memmap2::Mmap;

use crate::memory_map;

/// Bytes that nobody changes; clones and parts share them.
#[derive(Debug, Clone)]
pub struct StoredBytes {
    source: Source,
    range: Range<usize>,
}

#[derive(Debug, Clone)]
enum Source {
    Owned(Arc<Vec<u8>>),
    Mapped(Arc<Mmap>),
}

impl From<Vec<u8>> for StoredBytes {
    fn from(bytes: Vec<u8>) -> Self {
        Self {
            range: 0..bytes.len(),
            source: Source::Owned(Arc::new(bytes)),
        }
    }
}

impl StoredBytes {
    /// The bytes `range` of a mapped file; nothing where it has no such bytes.
    pub fn mapped(map: Arc<Mmap>, range: Range<usize>) -> Option<Self> {
        map.get(range.clone())?;
        Some(Self {
            source: Source::Mapped(map),
            range,
        })
    }

    /// A part of these bytes; nothing where they have no such part.
    pub fn part(&self, range: Range<usize>) -> Option<Self> {
        self.get(range.clone())?;
        Some(Self {
            source: self.source.clone(),
            range: self.range.start + range.start..self.range.start + range.end,
        })
    }

    /// Whether they lie in a mapped file, whose pages the system shares between processes and takes back when it needs them.
    pub fn is_mapped(&self) -> bool {
        matches!(self.source, Source::Mapped(_))
    }

    /// Gives the pages of mapped bytes back until they are read again; owned ones stay.
    pub fn release(&self) {
        if let Source::Mapped(map) = &self.source {
            memory_map::release(map, self.range.clone());
        }
    }
}

impl Deref for StoredBytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        let all: &[u8] = match &self.source {
            Source::Owned(bytes) => bytes,
            Source::Mapped(map) => map,
        };
        &all[self.range.clone()]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_lie_inside() {
        let whole = StoredBytes::from(vec![1, 2, 3, 4]);
        let part = whole.part(1..4).unwrap();
        assert_eq!(
            (&part[..], &part.part(1..2).unwrap()[..]),
            (&[2, 3, 4][..], &[3][..])
        );
        assert!(part.part(1..4).is_none() && !part.is_mapped());
    }

    #[test]
    fn released_bytes_of_a_file_read_the_same() {
        let path = std::env::temp_dir().join(format!("espalier-stored-{}", std::process::id()));
        std::fs::write(&path, vec![7; 10_000]).unwrap();
        let map = Arc::new(memory_map::map_file(&path).unwrap());
        std::fs::remove_file(&path).unwrap();
        assert!(StoredBytes::mapped(map.clone(), 9_000..10_001).is_none());
        let bytes = StoredBytes::mapped(map, 3..9_001).unwrap();
        bytes.release();
        assert!(bytes.is_mapped() && bytes.len() == 8_998 && bytes.iter().all(|byte| *byte == 7));
    }
}
