//! A state dictionary as `torch.save` writes it: a zip archive of stored entries with a pickle and the elements of each tensor.
//!
//! The pickle builds an ordered dictionary of f32 tensors with the instructions that PyTorch itself allows in files of weights
//! (`weights_only`). Left out: zip64, so that all of it fits into four gigabytes.

use super::zip;
use crate::{Error, Result};

/// Protocol 2, and the start of the dictionary.
const HEAD: &[u8] = b"\x80\x02ccollections\nOrderedDict\n)R(";

/// The bytes of a file with these tensors: name, shape and elements, row by row.
///
/// # Errors
/// When they need more than four gigabytes.
pub fn state_dictionary(tensors: &[(String, Vec<usize>, Vec<f32>)]) -> Result<Vec<u8>> {
    let mut pickle = HEAD.to_vec();
    let mut entries = Vec::new();
    for (number, (name, shape, values)) in tensors.iter().enumerate() {
        text(&mut pickle, name);
        pickle.extend(b"ctorch._utils\n_rebuild_tensor_v2\n(");
        pickle.extend(b"(");
        text(&mut pickle, "storage");
        pickle.extend(b"ctorch\nFloatStorage\n");
        text(&mut pickle, &number.to_string());
        text(&mut pickle, "cpu");
        integer(&mut pickle, values.len())?;
        pickle.extend(b"tQ");
        integer(&mut pickle, 0)?;
        tuple(&mut pickle, shape)?;
        tuple(&mut pickle, &strides(shape))?;
        // No gradient, no hooks.
        pickle.extend(b"\x89ccollections\nOrderedDict\n)RtR");
        let bytes = values
            .iter()
            .flat_map(|value| value.to_le_bytes())
            .collect();
        entries.push((format!("archive/data/{number}"), bytes));
    }
    pickle.extend(b"u.");
    let described = [
        ("archive/data.pkl".to_owned(), pickle),
        ("archive/byteorder".to_owned(), b"little".to_vec()),
    ];
    let version = ("archive/version".to_owned(), b"3\n".to_vec());
    let all: Vec<(String, Vec<u8>)> = described
        .into_iter()
        .chain(entries)
        .chain([version])
        .collect();
    zip::archive(&all).ok_or_else(too_large)
}

fn too_large() -> Error {
    Error::Invalid(
        "a file of PyTorch holds four gigabytes at most here; choose a smaller rank".into(),
    )
}

/// Elements from one index of an axis to the next, row by row.
fn strides(shape: &[usize]) -> Vec<usize> {
    (1..=shape.len())
        .map(|axis| shape[axis..].iter().product())
        .collect()
}

fn text(pickle: &mut Vec<u8>, text: &str) {
    pickle.push(b'X');
    pickle.extend((text.len() as u32).to_le_bytes());
    pickle.extend(text.as_bytes());
}

fn integer(pickle: &mut Vec<u8>, number: usize) -> Result<()> {
    let number = i32::try_from(number).map_err(|_| too_large())?;
    pickle.push(b'J');
    pickle.extend(number.to_le_bytes());
    Ok(())
}

fn tuple(pickle: &mut Vec<u8>, numbers: &[usize]) -> Result<()> {
    pickle.push(b'(');
    numbers
        .iter()
        .try_for_each(|number| integer(pickle, *number))?;
    pickle.push(b't');
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::TensorFile;

    #[test]
    fn what_is_written_is_read() {
        let tensors = vec![
            (
                "weight".to_owned(),
                vec![2, 3],
                vec![1.0, -2.5, 3.0, 4.0, 5.0, 6.0],
            ),
            ("bias".to_owned(), vec![2], vec![0.5, f32::MIN_POSITIVE]),
        ];
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("some.bin");
        std::fs::write(&path, state_dictionary(&tensors).unwrap()).unwrap();
        let file = TensorFile::open(&path).unwrap();
        assert_eq!(file.names().count(), 2);
        for (name, shape, values) in tensors {
            assert_eq!(file.info(&name).unwrap().shape, shape);
            assert_eq!(file.read_f32(&name, None).unwrap(), values);
        }
    }

    #[test]
    fn strides_are_those_of_rows() {
        assert_eq!(strides(&[2, 3, 4]), [12, 4, 1]);
        assert_eq!(strides(&[]), [0; 0]);
    }
}
