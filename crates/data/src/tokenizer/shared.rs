//! Pipelines that are read again are the same ones.
//!
//! The library remembers the pieces of up to ten thousand words for each of its tokenizers on each thread, and forgets them with the
//! thread alone. Threads of a pool live as long as the process, so that every reading of the same file, as by the stages of a recipe, would
//! keep some megabytes more.

use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, LazyLock, Mutex, PoisonError};

use super::Pipeline;
use crate::Result;

/// Pipelines that are kept for who reads their files again.
const KEPT: usize = 4;

/// A file by its length and its hash, under a key of this process's own.
type Contents = (usize, u64);

static HASHER: LazyLock<RandomState> = LazyLock::new(RandomState::new);
/// The newest are last.
static PIPELINES: Mutex<Vec<(Contents, Arc<Pipeline>)>> = Mutex::new(Vec::new());

/// The pipeline of a file with these contents: one that was made of the same before, or a new one.
pub(super) fn pipeline(
    bytes: &[u8],
    make: impl FnOnce() -> Result<Arc<Pipeline>>,
) -> Result<Arc<Pipeline>> {
    let contents = (bytes.len(), HASHER.hash_one(bytes));
    let kept = || PIPELINES.lock().unwrap_or_else(PoisonError::into_inner);
    let found = kept().iter().find(|(own, _)| *own == contents).cloned();
    let (_, pipeline) = match found {
        Some(found) => found,
        None => (contents, make()?),
    };
    let mut kept = kept();
    kept.retain(|(own, _)| *own != contents);
    kept.push((contents, pipeline.clone()));
    let most = kept.len().saturating_sub(KEPT);
    kept.drain(..most);
    Ok(pipeline)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use crate::tokenizer::{BpeOptions, Tokenizer};

    #[test]
    fn what_is_read_again_is_the_same() {
        let options = |vocabulary| BpeOptions {
            vocabulary,
            ..BpeOptions::default()
        };
        let folder = tempfile::tempdir().unwrap();
        let save = |vocabulary: usize| {
            let texts = vec!["the cat and the hat on the mat".to_owned(); 8];
            let made = Tokenizer::train_byte_level_bpe(texts.into_iter(), &options(vocabulary));
            made.unwrap().save(folder.path()).unwrap();
        };
        let load = || Tokenizer::load(folder.path()).unwrap();
        save(262);
        let (first, again) = (load(), load());
        assert!(Arc::ptr_eq(&first.pipeline, &again.pipeline));
        save(264);
        let other = load();
        assert!(!Arc::ptr_eq(&first.pipeline, &other.pipeline));
        assert_ne!(first.vocabulary_size(), other.vocabulary_size());
    }
}
