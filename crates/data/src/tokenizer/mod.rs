//! Text to token ids and back.
//!
//! The text pipeline itself (normalizer, pre-tokenizer, model, post-processor, decoder of a `tokenizer.json`) is the
//! `tokenizers` library's, so ids equal the reference's. This module adds what surrounds it: a model folder's companion files,
//! training, streaming and special tokens. The RWKV world tokenizer, which the library lacks, is here in full.
//!
//! Where a folder has a `tokenizer.json`, its post-processor alone decides which special tokens are added, and `add_bos_token` and
//! `add_eos_token` of `tokenizer_config.json` say nothing; where it has older files, they decide. Truncation and padding stored in
//! `tokenizer.json` are dropped, for they would cut texts unasked.

mod added_tokens;
mod class;
mod files;
mod gguf;
mod growth;
mod older_files;
mod parts;
mod patterns;
mod rwkv_world;
mod sentencepiece;
mod shared;
mod special;
mod stream;
mod template_files;
mod train;

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, OnceLock};

use serde_json::{Map, Value};
use tokenizers::DecoderWrapper;

use crate::template::ChatTemplate;
use crate::{Error, Result};
use rwkv_world::World;
pub use special::SpecialTokens;
pub use stream::TextStream;
pub use train::BpeOptions;

/// Token ids with the characters that each came from.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Encoding {
    /// Token ids, `[time]`.
    pub ids: Vec<u32>,
    /// Half-open range of characters (not bytes) of the text for each token, `[time]`; `(0, 0)` for an added special token.
    pub offsets: Vec<(usize, usize)>,
}

/// A tokenizer with its special tokens and chat template. Cloning it is cheap.
///
/// ```
/// use espalier_data::tokenizer::{BpeOptions, Tokenizer};
/// let texts = vec!["the cat and the hat".to_string(); 3];
/// let tokenizer = Tokenizer::train_byte_level_bpe(texts.into_iter(), &BpeOptions { vocabulary: 270, ..Default::default() })?;
/// let ids = tokenizer.encode("the bat", false)?.ids;
/// assert_eq!(tokenizer.decode(&ids, true)?, "the bat");
/// # Ok::<(), espalier_data::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct Tokenizer {
    pipeline: Arc<Pipeline>,
    companion: Arc<Companion>,
}

/// The pipeline from text to ids, with the values that are derived from it on first use.
#[derive(Debug)]
struct Pipeline {
    kind: Kind,
    without_special: OnceLock<tokenizers::Tokenizer>,
    vocabulary: OnceLock<usize>,
    fingerprint: OnceLock<u64>,
}

/// The two kinds of pipeline.
#[derive(Debug)]
enum Kind {
    /// The pipeline of a `tokenizer.json`.
    Library(Box<tokenizers::Tokenizer>),
    /// RWKV's table of byte strings.
    World(World),
}

/// Special tokens, templates and limits from the files next to `tokenizer.json`.
#[derive(Debug, Clone, Default)]
struct Companion {
    special: SpecialTokens,
    /// By name; the usual one is called `default`.
    templates: BTreeMap<String, ChatTemplate>,
    /// `tokenizer_config.json` as it was read.
    config: Map<String, Value>,
}

/// The name of the template that is used when none is asked for.
const DEFAULT_TEMPLATE: &str = "default";

/// The name of the template for conversations with tools.
const TOOL_TEMPLATE: &str = "tool_use";

impl Tokenizer {
    /// Reads the text of a `tokenizer.json`. It names no special tokens and no template: see [`Tokenizer::with_special`] and
    /// [`Tokenizer::with_template`].
    ///
    /// # Errors
    /// [`Error::Tokenizer`] when the text is not a tokenizer that the library knows.
    pub fn from_json(bytes: &[u8]) -> Result<Self> {
        let pipeline = shared::pipeline(bytes, || Self::parsed(bytes).map(|made| made.pipeline))?;
        Ok(Self {
            pipeline,
            companion: Arc::default(),
        })
    }

    fn parsed(bytes: &[u8]) -> Result<Self> {
        let translated = patterns::translated(bytes);
        let library = caught("tokenizer.json has a part that cannot be read", || {
            tokenizers::Tokenizer::from_bytes(translated.as_deref().unwrap_or(bytes))
        })?;
        let refused = |reason| {
            patterns::refused(bytes)
                .unwrap_or_else(|| Error::Tokenizer(format!("tokenizer.json: {reason}")))
        };
        Self::from_library(library.map_err(refused)?)
    }

    fn from_library(mut library: tokenizers::Tokenizer) -> Result<Self> {
        library.with_truncation(None).map_err(library_error)?;
        library.with_padding(None);
        Ok(Self::from_kind(Kind::Library(Box::new(library))))
    }

    fn from_kind(kind: Kind) -> Self {
        let (without_special, vocabulary, fingerprint) =
            (OnceLock::new(), OnceLock::new(), OnceLock::new());
        let pipeline = Pipeline {
            kind,
            without_special,
            vocabulary,
            fingerprint,
        };
        Self {
            pipeline: Arc::new(pipeline),
            companion: Arc::default(),
        }
    }

    /// Encodes a text. `add_special` adds what the post-processor adds (a beginning-of-sequence token, say); a text rendered by
    /// a chat template has those already.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] when the model of the tokenizer cannot hold the text (an unknown piece without an unknown token).
    pub fn encode(&self, text: &str, add_special: bool) -> Result<Encoding> {
        let library = match &self.pipeline.kind {
            Kind::Library(library) => library,
            Kind::World(world) => return Ok(world.encoding(text)),
        };
        check_length(text)?;
        let encoding = caught(FAILS, || library.encode_char_offsets(text, add_special))?
            .map_err(library_error)?;
        Ok(Encoding {
            ids: encoding.get_ids().to_vec(),
            offsets: encoding.get_offsets().to_vec(),
        })
    }

    /// The ids of [`Tokenizer::encode`] alone, which is faster.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub fn encode_ids(&self, text: &str, add_special: bool) -> Result<Vec<u32>> {
        match &self.pipeline.kind {
            Kind::Library(library) => {
                check_length(text)?;
                let encoding = caught(FAILS, || library.encode_fast(text, add_special))?;
                Ok(encoding.map_err(library_error)?.get_ids().to_vec())
            }
            Kind::World(world) => Ok(world
                .encode(text, true)
                .into_iter()
                .map(|(id, _)| id)
                .collect()),
        }
    }

    /// Encodes what a user typed: a special token written out in the text becomes ordinary pieces. Added tokens that are not
    /// flagged special are still matched.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub fn encode_user_text(&self, text: &str) -> Result<Vec<u32>> {
        let library = match &self.pipeline.kind {
            Kind::Library(library) => library,
            Kind::World(world) => {
                return Ok(world
                    .encode(text, false)
                    .into_iter()
                    .map(|(id, _)| id)
                    .collect());
            }
        };
        let library = self.pipeline.without_special.get_or_init(|| {
            let mut library = tokenizers::Tokenizer::clone(library);
            library.set_encode_special_tokens(true);
            library
        });
        check_length(text)?;
        let encoding = caught(FAILS, || library.encode_fast(text, false))?;
        Ok(encoding.map_err(library_error)?.get_ids().to_vec())
    }

    /// Text of the ids, without the special tokens if `skip_special`. An id outside the vocabulary gives no text, as models
    /// may have more rows than the tokenizer has tokens.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] when the decoder refuses the tokens.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String> {
        match &self.pipeline.kind {
            Kind::Library(library) => {
                caught(FAILS, || library.decode(ids, skip_special))?.map_err(library_error)
            }
            Kind::World(world) => Ok(world.decode(ids, skip_special)),
        }
    }

    /// Number of ids, holes counted: one above the largest.
    pub fn vocabulary_size(&self) -> usize {
        let largest = || match &self.pipeline.kind {
            Kind::Library(library) => library
                .get_vocab(true)
                .into_values()
                .max()
                .map_or(0, |id| id as usize + 1),
            Kind::World(world) => world.vocabulary_size(),
        };
        *self.pipeline.vocabulary.get_or_init(largest)
    }

    /// The id of a token, written as in the vocabulary.
    pub fn id(&self, token: &str) -> Option<u32> {
        match &self.pipeline.kind {
            Kind::Library(library) => library.token_to_id(token),
            Kind::World(world) => world.id(token),
        }
    }

    /// The token of an id, written as in the vocabulary.
    pub fn token(&self, id: u32) -> Option<String> {
        match &self.pipeline.kind {
            Kind::Library(library) => library.id_to_token(id),
            Kind::World(world) => world.token(id),
        }
    }

    /// Whether decoding with `skip_special` leaves this token out.
    pub fn is_special(&self, id: u32) -> bool {
        match &self.pipeline.kind {
            Kind::Library(library) => library
                .id_to_token(id)
                .is_some_and(|token| library.get_added_vocabulary().is_special_token(&token)),
            Kind::World(world) => world.special().contains_key(&id),
        }
    }

    /// Whether this token is found before a text is cut, special or not.
    pub fn is_added(&self, id: u32) -> bool {
        match &self.pipeline.kind {
            Kind::Library(library) => library.get_added_tokens_decoder().contains_key(&id),
            Kind::World(world) => world.special().contains_key(&id),
        }
    }

    /// Every added token that is flagged special, as text, by id.
    pub fn special_texts(&self) -> Vec<String> {
        let library = match &self.pipeline.kind {
            Kind::Library(library) => library,
            Kind::World(world) => return world.special().values().cloned().collect(),
        };
        let added = library.get_added_tokens_decoder();
        let special: BTreeMap<u32, String> = added
            .into_iter()
            .filter(|(_, token)| token.special)
            .map(|(id, token)| (id, token.content))
            .collect();
        special.into_values().collect()
    }

    /// The special tokens by their role.
    pub fn special(&self) -> &SpecialTokens {
        &self.companion.special
    }

    /// The same tokenizer with other roles for its special tokens.
    #[must_use]
    pub fn with_special(mut self, special: SpecialTokens) -> Self {
        Arc::make_mut(&mut self.companion).special = special;
        self
    }

    /// The chat template that is used when none is asked for.
    pub fn template(&self) -> Option<&ChatTemplate> {
        self.template_named(DEFAULT_TEMPLATE)
    }

    /// The chat template of that name (`default`, `tool_use`, `rag`, ...).
    pub fn template_named(&self, name: &str) -> Option<&ChatTemplate> {
        self.companion.templates.get(name)
    }

    /// The chat template of a conversation, with or without tools on offer: the one named `tool_use` where there is one for tools, as
    /// `transformers` chooses.
    pub fn template_for(&self, tools: bool) -> Option<&ChatTemplate> {
        let of_tools = self.template_named(TOOL_TEMPLATE).filter(|_| tools);
        of_tools.or_else(|| self.template())
    }

    /// The names of the chat templates, in order.
    pub fn template_names(&self) -> impl Iterator<Item = &str> {
        self.companion.templates.keys().map(String::as_str)
    }

    /// The same tokenizer with another default template, which is then that of conversations with tools too.
    #[must_use]
    pub fn with_template(mut self, template: ChatTemplate) -> Self {
        let templates = &mut Arc::make_mut(&mut self.companion).templates;
        templates.remove(TOOL_TEMPLATE);
        templates.insert(DEFAULT_TEMPLATE.into(), template);
        self
    }

    /// The longest input in tokens that the model's makers name, if they name one.
    pub fn model_max_length(&self) -> Option<usize> {
        // "No limit" is written as a float of about 1e30.
        let length = self.companion.config.get("model_max_length")?.as_u64()?;
        usize::try_from(length)
            .ok()
            .filter(|length| *length < 1 << 40)
    }

    /// The ids of [`Tokenizer::encode`] with its special tokens, of a text that is cut at its end until they are at most `longest`.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub fn encode_within(&self, text: &str, longest: usize) -> Result<Vec<u32>> {
        let ids = self.encode_ids(text, true)?;
        if ids.len() <= longest {
            return Ok(ids);
        }
        let plain = self.encode_ids(text, false)?;
        let added = ids.len().saturating_sub(plain.len());
        let front = (0..=added)
            .find(|front| ids[*front..].starts_with(&plain))
            .unwrap_or(0);
        let kept = longest.saturating_sub(added).min(plain.len());
        let (before, behind) = (&ids[..front], &ids[front + plain.len()..]);
        Ok([before, &plain[..kept], behind].concat())
    }

    /// The same tokenizer on texts in small letters.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] for RWKV's world tokenizer, which changes no text.
    pub fn lowercasing(&self) -> Result<Self> {
        let Kind::Library(library) = &self.pipeline.kind else {
            return Err(Error::Tokenizer(
                "RWKV's world tokenizer cannot write texts in small letters".into(),
            ));
        };
        let unreadable = |reason: serde_json::Error| Error::Tokenizer(reason.to_string());
        let mut file: Value =
            serde_json::from_str(&library.to_string(false).map_err(library_error)?)
                .map_err(unreadable)?;
        let old = file["normalizer"].take();
        let lower = serde_json::json!({ "type": "Lowercase" });
        let steps: Vec<Value> = [lower]
            .into_iter()
            .chain(Some(old).filter(|old| !old.is_null()))
            .collect();
        file["normalizer"] = parts::sequence("normalizers", steps);
        let mut lowercasing = Self::from_json(file.to_string().as_bytes())?;
        lowercasing.companion = self.companion.clone();
        Ok(lowercasing)
    }

    /// A decoder that takes ids one by one and gives text as soon as it is complete; special tokens give none.
    pub fn stream(&self) -> TextStream {
        TextStream::new(self.clone(), true)
    }

    /// As [`Tokenizer::stream`], with the special tokens' text.
    pub fn stream_with_special(&self) -> TextStream {
        TextStream::new(self.clone(), false)
    }

    /// As [`Tokenizer::stream`], behind tokens whose text is there already: a decoder that takes the first space of a text away leaves
    /// the one that stands between the two.
    pub fn stream_after(&self, before: &[u32]) -> TextStream {
        TextStream::after(self.clone(), &self.context(before))
    }

    /// The text of the ids without special tokens, behind tokens whose text is there already (see [`Tokenizer::stream_after`]).
    ///
    /// # Errors
    /// As [`Tokenizer::decode`].
    pub fn decode_after(&self, before: &[u32], ids: &[u32]) -> Result<String> {
        let context = self.context(before);
        let (old, whole) = (
            self.decode(&context, true)?,
            self.decode(&[&context, ids].concat(), true)?,
        );
        let shared = old
            .chars()
            .zip(whole.chars())
            .take_while(|(old, new)| old == new);
        Ok(whole.chars().skip(shared.count()).collect())
    }

    /// The last tokens of a text, as many as decide how the next one is written: none before a special token. Where words are
    /// joined by spaces, as those of BERT, a special token parts none: such a tokenizer puts one behind every text, also behind one
    /// that goes on.
    fn context(&self, before: &[u32]) -> Vec<u32> {
        /// A character has at most four bytes, a token each.
        const LONGEST: usize = 6;
        let joined = self.joins_words();
        let recent = before.iter().copied().rev();
        let mut context: Vec<u32> = recent
            .take_while(|id| joined || !self.is_special(*id))
            .filter(|id| !self.is_special(*id))
            .take(LONGEST)
            .collect();
        context.reverse();
        context
    }

    /// Whether tokens are words and parts of words, which decoding joins by spaces.
    fn joins_words(&self) -> bool {
        match &self.pipeline.kind {
            Kind::Library(library) => {
                matches!(library.get_decoder(), Some(DecoderWrapper::WordPiece(_)))
            }
            Kind::World(_) => false,
        }
    }

    /// A number that tells tokenizers apart: 64-bit FNV-1a of the main file as [`Tokenizer::save`] writes it, and of the
    /// special tokens where that file has not got them.
    pub fn fingerprint(&self) -> u64 {
        let special = match &self.pipeline.kind {
            Kind::Library(_) => String::new(),
            Kind::World(world) => format!("{:?}", world.special()),
        };
        *self
            .pipeline
            .fingerprint
            .get_or_init(|| fnv1a((self.main_file().unwrap_or_default() + &special).as_bytes()))
    }

    /// The text of the file that the ids come from: `tokenizer.json`, or the table of an RWKV world tokenizer.
    fn main_file(&self) -> Result<String> {
        match &self.pipeline.kind {
            Kind::Library(library) => library.to_string(false).map_err(library_error),
            Kind::World(world) => Ok(world.source.clone()),
        }
    }
}

/// The longest text in bytes that is encoded at once; the library keeps some hundred bytes for each piece.
pub const LONGEST_TEXT: usize = 16 << 20;

fn check_length(text: &str) -> Result<()> {
    if text.len() <= LONGEST_TEXT {
        return Ok(());
    }
    Err(Error::Tokenizer(format!(
        "a text of {} bytes is too long to encode at once (at most {LONGEST_TEXT}); split it into several documents",
        text.len()
    )))
}

const FAILS: &str = "a part of tokenizer.json makes the library fail on this text";

/// What the library does, which panics on some malformed parts instead of giving an error.
fn caught<T>(what: &str, work: impl FnOnce() -> T) -> Result<T> {
    catch_unwind(AssertUnwindSafe(work)).map_err(|_| Error::Tokenizer(what.into()))
}

/// Fowler, Noll and Vo's 64-bit hash, variant 1a.
fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

fn library_error(reason: tokenizers::Error) -> Error {
    Error::Tokenizer(reason.to_string())
}

#[cfg(test)]
mod published;

#[cfg(test)]
mod tests;
