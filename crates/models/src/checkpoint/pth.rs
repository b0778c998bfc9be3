//! Checkpoints of PyTorch (`.pth`, `.pt`, `pytorch_model.bin`): a zip archive with a pickle that describes the tensors and an
//! entry for the elements of each storage.
//!
//! Nothing in the file is run, see [`super::pickle`]. Left out: files of PyTorch before 1.6, which are no archives, and
//! tensors that repeat elements (`expand`).

use super::pickle::{self, View};
use super::safetensors::{MOST_TENSORS, Place, Strided, TensorInfo};
use super::zip;
use std::collections::BTreeMap;
use std::ops::Range;

/// What describes the tensors, within the archive's only folder.
const PICKLE: &str = "/data.pkl";
/// A tensor takes about two hundred bytes; more than this is no file of weights.
const LARGEST_PICKLE: usize = 16 << 20;

/// How files of PyTorch before 1.6 begin.
const OLD_FORM: &[u8] = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19";

/// Whether a file begins like one of PyTorch; a safetensors file that did would have a header of a hundred megabytes.
pub(super) fn is_pytorch(file: &[u8]) -> bool {
    zip::is_archive(file) || file.starts_with(OLD_FORM)
}

/// The place of each tensor in `file`, which may be anything that begins like a zip archive.
///
/// # Errors
/// What is wrong with the file.
pub(super) fn parse(file: &[u8]) -> Result<BTreeMap<String, Place>, String> {
    if file.starts_with(OLD_FORM) {
        return Err("saved by PyTorch before 1.6; load it there and save it again".into());
    }
    let entries =
        zip::entries(file).map_err(|reason| format!("{reason}; download or save it again"))?;
    let mut pickles = entries
        .iter()
        .filter_map(|(name, place)| Some((name.strip_suffix(PICKLE)?, place)));
    let (Some((folder, place)), None) = (pickles.next(), pickles.next()) else {
        return Err("an archive without exactly one data.pkl".into());
    };
    if place.len() > LARGEST_PICKLE {
        return Err(format!(
            "its data.pkl has {} bytes; expected at most {LARGEST_PICKLE}",
            place.len()
        ));
    }
    if entries
        .get(&*format!("{folder}/byteorder"))
        .is_some_and(|order| &file[order.clone()] != b"little")
    {
        return Err("its numbers are big-endian; expected little-endian".into());
    }
    let found = pickle::tensors(&file[place.clone()])?;
    if found.len() > MOST_TENSORS {
        return Err(format!("holds more than {MOST_TENSORS} tensors"));
    }
    let stored = |(name, view): (&str, _)| {
        let view: &View = view;
        let storage = entries.get(&*format!("{folder}/data/{}", view.storage));
        let placed = storage
            .ok_or("its storage is not in the archive")
            .and_then(|storage| placed(view, storage));
        let stored = placed.map_err(|reason| format!("tensor `{name}`: {reason}"))?;
        Ok((name.to_owned(), stored))
    };
    found
        .iter()
        .map(|(name, view)| stored((name, view)))
        .collect()
}

/// Checks that a view lies within its storage and repeats nothing.
fn placed(view: &View, storage: &Range<usize>) -> Result<Place, &'static str> {
    let width = view.dtype.bitsize() / 8;
    let available = view.length.min(storage.len() / width);
    if view.shape.len() != view.strides.len() {
        return Err("its shape and its strides differ in number");
    }
    let count = view
        .shape
        .iter()
        .try_fold(1usize, |product, axis| product.checked_mul(*axis));
    let steps = view.shape.iter().zip(&view.strides);
    let span = steps.clone().try_fold(1usize, |sum, (axis, stride)| {
        axis.saturating_sub(1)
            .checked_mul(*stride)
            .and_then(|reach| sum.checked_add(reach))
    });
    let (Some(count), Some(span)) = (count, span) else {
        return Err("its size overflows");
    };
    let span = if count == 0 { 0 } else { span };
    let end = view
        .offset
        .checked_add(span)
        .filter(|end| *end <= available)
        .ok_or("it lies outside its storage")?;
    if count > span {
        return Err("it repeats elements; save a contiguous copy");
    }
    let bytes = storage.start + view.offset * width..storage.start + end * width;
    let is_contiguous = count == 0 || (count == span && is_row_major(&view.shape, &view.strides));
    let strided = (!is_contiguous).then(|| Strided {
        strides: view.strides.clone(),
        width,
    });
    Ok(Place {
        info: TensorInfo {
            dtype: view.dtype,
            shape: view.shape.clone(),
        },
        bytes,
        strided,
        encoding: None,
    })
}

/// Whether each axis steps over all that the later ones hold; axes of length one do not step.
fn is_row_major(shape: &[usize], strides: &[usize]) -> bool {
    let mut expected = 1;
    shape.iter().zip(strides).rev().all(|(axis, stride)| {
        let fits = *axis <= 1 || *stride == expected;
        expected *= (*axis).max(1);
        fits
    })
}

#[cfg(test)]
mod tests {
    use super::super::safetensors::{Dtype, TensorFile};
    use super::super::zip::tests::archive;
    use super::*;
    use proptest::prelude::*;

    const FIXTURES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures/pth");

    fn view(shape: &[usize], strides: &[usize], offset: usize) -> View<'static> {
        let (shape, strides) = (shape.to_vec(), strides.to_vec());
        View {
            dtype: Dtype::F32,
            storage: "0",
            length: 12,
            offset,
            shape,
            strides,
        }
    }

    #[test]
    fn views_stay_within_their_storage() {
        let storage = 100..148;
        let place = |shape: &[usize], strides: &[usize], offset| {
            placed(&view(shape, strides, offset), &storage)
        };
        assert_eq!(place(&[3, 4], &[4, 1], 0).unwrap().bytes, 100..148);
        assert_eq!(place(&[2, 1, 2], &[2, 77, 1], 3).unwrap().bytes, 112..128);
        assert_eq!(place(&[], &[], 11).unwrap().bytes, 144..148);
        assert!(place(&[4, 3], &[1, 4], 0).unwrap().strided.is_some());
        assert!(place(&[0, 9], &[9, 1], 12).unwrap().strided.is_none());
        assert!(
            place(&[0, usize::MAX, usize::MAX], &[0, 0, 0], 0)
                .unwrap()
                .bytes
                .is_empty()
        );
        let wrong: [(&[usize], &[usize], usize, &str); 8] = [
            (&[3, 4], &[4, 1], 1, "outside"),
            (&[13], &[1], 0, "outside"),
            (&[], &[], 12, "outside"),
            (&[2], &[1], usize::MAX, "outside"),
            (&[4], &[0], 0, "repeats"),
            (&[3, 3], &[1, 1], 0, "repeats"),
            (&[usize::MAX, 2], &[0, 0], 0, "overflows"),
            (&[2], &[1, 1], 0, "differ in number"),
        ];
        for (shape, strides, offset, says) in wrong {
            assert!(
                place(shape, strides, offset).unwrap_err().contains(says),
                "{shape:?} {strides:?}"
            );
        }
    }

    /// Every kind of tensor that torch saves, beside a safetensors file of the same values.
    #[test]
    fn files_of_torch_agree_with_safetensors() {
        for name in ["kinds.pth", "wrapped.pth"] {
            let (read, same) = (file(name), file("kinds.safetensors"));
            assert!(read.names().eq(same.names()), "{name}");
            for tensor in same.names() {
                assert_eq!(read.info(tensor), same.info(tensor), "{name}: {tensor}");
                assert_eq!(
                    read.bytes(tensor).unwrap(),
                    same.bytes(tensor).unwrap(),
                    "{name}: {tensor}"
                );
            }
            assert_eq!(
                read.read_f32("transposed", Some(1..3)).unwrap(),
                same.read_f32("transposed", Some(1..3)).unwrap()
            );
        }
    }

    fn file(name: &str) -> TensorFile {
        TensorFile::open(format!("{FIXTURES}/{name}").as_ref()).unwrap()
    }

    fn open(bytes: &[u8]) -> crate::Result<TensorFile> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.pth");
        std::fs::write(&path, bytes).unwrap();
        TensorFile::open(&path)
    }

    #[test]
    fn files_that_are_something_else_are_explained() {
        let error = |bytes: &[u8]| open(bytes).unwrap_err().to_string();
        assert!(error(&archive(&[("a/b", b"x")], false)).contains("without exactly one data.pkl"));
        assert!(
            error(&archive(
                &[("a/data.pkl", b"}."), ("b/data.pkl", b"}.")],
                false
            ))
            .contains("exactly one")
        );
        assert!(
            error(&archive(
                &[("a/data.pkl", b"}."), ("a/byteorder", b"big")],
                true
            ))
            .contains("big-endian")
        );
        assert!(
            error(&archive(&[("a/data.pkl", b"cos\nsystem\n.")], false)).contains("`os.system`")
        );
        assert!(error(b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.").contains("before 1.6"));
        let whole = std::fs::read(format!("{FIXTURES}/kinds.pth")).unwrap();
        assert!(open(&whole).is_ok() && open(&whole[..whole.len() - 30]).is_err());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]
        #[test]
        fn flipped_bits_never_panic(flips in prop::collection::vec((any::<prop::sample::Index>(), 0u8..8), 1..10), cut in any::<prop::sample::Index>(), whole in any::<bool>()) {
            let mut bytes = std::fs::read(format!("{FIXTURES}/kinds.pth")).unwrap();
            for (place, bit) in flips {
                let place = place.index(bytes.len());
                bytes[place] ^= 1 << bit;
            }
            if !whole {
                bytes.truncate(cut.index(bytes.len()));
            }
            let Ok(read) = open(&bytes) else { return Ok(()) };
            for name in read.names() {
                prop_assert!(read.bytes(name).unwrap().len() <= bytes.len());
                let _ = (read.read_f32(name, None), read.read_f32(name, Some(0..1)), read.read_i64(name));
            }
        }
    }
}
