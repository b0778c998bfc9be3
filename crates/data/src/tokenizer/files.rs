//! A tokenizer's folder, laid out as Hugging Face's: `tokenizer.json`, `tokenizer_config.json`, `special_tokens_map.json`,
//! `chat_template.jinja`, `additional_chat_templates/`. In place of `tokenizer.json` there may be older files (see
//! [`older_files`]), or the table of an RWKV world tokenizer.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::{Map, Value, json};
use tokenizers::AddedToken;

use super::added_tokens::{Added, Sources};
use super::class;
use super::rwkv_world::{self, World};
use super::template_files::{TEMPLATE, named_list, read_templates};
use super::{Companion, Kind, SpecialTokens, Tokenizer, gguf, older_files, sentencepiece};
use crate::disk;
use crate::{Error, Result};

const TOKENIZER: &str = "tokenizer.json";
const CONFIG: &str = "tokenizer_config.json";
const SPECIAL_MAP: &str = "special_tokens_map.json";
const ADDED: &str = "added_tokens.json";
/// What the model's own files say of its tokens.
const MODEL: &str = "config.json";
const GENERATION: &str = "generation_config.json";
/// No known tokenizer comes near this size.
const LARGEST_FILE: u64 = 512 << 20;

impl Tokenizer {
    /// Reads a model folder; or the metadata of a GGUF file where `folder` is one, or has one and no tokenizer. A GGUF file without a
    /// tokenizer that is read has that of the folder around it.
    ///
    /// The chat template is that of `chat_template.jinja`, else of `tokenizer_config.json`; special tokens are those of
    /// `tokenizer_config.json`, then of `special_tokens_map.json`, then of the class that reads older files, then the added tokens whose
    /// ids `config.json` or `generation_config.json` name.
    ///
    /// # Errors
    /// [`Error::File`] when a file cannot be read, [`Error::Tokenizer`] or [`Error::Record`] when the folder has no tokenizer
    /// or a malformed one, [`Error::Template`] when a chat template is malformed.
    pub fn load(folder: &Path) -> Result<Self> {
        match gguf::file_in(folder) {
            Some(file) if folder.is_file() => {
                let around = file.parent().filter(|around| own_file(around).is_some());
                return match (gguf::load(&file), around) {
                    (Err(_), Some(around)) => Self::load(around),
                    (loaded, _) => loaded,
                };
            }
            Some(file) if own_file(folder).is_none() => return gguf::load(&file),
            _ => {}
        }
        let small = SmallFiles::read(folder)?;
        let mut special = SpecialTokens::default();
        special.fill_from(&small.config);
        special.fill_from(&small.special_map);
        let table = folder.join(table_name(&small.config));
        let mut tokenizer = match read_if_there(&folder.join(TOKENIZER))? {
            Some(text) => {
                let tokenizer = Self::from_json(text.as_bytes())
                    .and_then(|tokenizer| tokenizer.with_listed(&small, &special));
                tokenizer.map_err(|reason| in_folder(folder, reason))?
            }
            // A `vocab_file` of BERT's has the same ending.
            None if table.is_file() && !small.has_known_class() => {
                from_table(&table, &small.config, &mut special)?
            }
            None => older_files::load(folder, &small, &mut special)?,
        };
        small.fill_from_model(&tokenizer, &mut special);
        let config = small.config;
        let templates = read_templates(folder, &config)?;
        tokenizer.companion = Arc::new(Companion {
            special,
            templates,
            config,
        });
        Ok(tokenizer)
    }

    /// The file of `folder` that its ids come from: `tokenizer.json`, an RWKV table or one of the older files; nothing where it has
    /// no tokenizer.
    pub fn file_in(folder: &Path) -> Option<PathBuf> {
        own_file(folder).or_else(|| gguf::file_with_tokenizer_in(folder))
    }

    /// Writes `tokenizer.json` (or the table of an RWKV world tokenizer) and `tokenizer_config.json` into a folder, which is
    /// made if need be. Keys of a loaded `tokenizer_config.json` that this crate does not know are kept.
    ///
    /// # Errors
    /// [`Error::File`] when a file cannot be written.
    pub fn save(&self, folder: &Path) -> Result<()> {
        disk::create_folder(folder).map_err(|source| Error::file(folder, source))?;
        let main = match &self.pipeline.kind {
            Kind::Library(_) => TOKENIZER,
            Kind::World(_) => rwkv_world::VOCABULARY,
        };
        write(&folder.join(main), &self.main_file()?)?;
        let config = serde_json::to_string_pretty(&self.config())
            .map_err(|reason| Error::Tokenizer(reason.to_string()))?;
        write(&folder.join(CONFIG), &config)?;
        // A template file left from before would win over the one just written.
        match (self.template(), folder.join(TEMPLATE)) {
            (Some(template), path) if path.exists() => write(&path, template.source()),
            _ => Ok(()),
        }
    }

    /// The contents of `tokenizer_config.json`.
    fn config(&self) -> Map<String, Value> {
        let mut config = self.companion.config.clone();
        match &self.pipeline.kind {
            Kind::Library(_) => {
                _ = config
                    .entry("tokenizer_class")
                    .or_insert(json!("PreTrainedTokenizerFast"))
            }
            Kind::World(world) => {
                let added = world
                    .special()
                    .iter()
                    .map(|(id, text)| (id.to_string(), json!({ "content": text })));
                config.insert("added_tokens_decoder".into(), added.collect());
                config.insert("vocab_file".into(), json!(rwkv_world::VOCABULARY));
                config
                    .entry("tokenizer_class")
                    .or_insert(json!("RwkvTokenizer"));
            }
        }
        for (name, token) in self.special().named() {
            config.insert(name.into(), json!(token));
        }
        let templates = &self.companion.templates;
        match (self.template(), templates.len()) {
            (_, 0) => _ = config.shift_remove("chat_template"),
            (Some(template), 1) => {
                _ = config.insert("chat_template".into(), json!(template.source()))
            }
            _ => _ = config.insert("chat_template".into(), named_list(templates)),
        }
        config
    }
}

/// See [`Tokenizer::file_in`]; GGUF files left out.
fn own_file(folder: &Path) -> Option<PathBuf> {
    let config = read_object(&folder.join(CONFIG)).unwrap_or_default();
    let table = table_name(&config);
    let names = [TOKENIZER, table.as_str(), "vocab.json"];
    names
        .into_iter()
        .chain(sentencepiece::FILES)
        .chain(["vocab.txt"])
        .map(|name| folder.join(name))
        .find(|path| path.is_file())
}

/// The small files beside a vocabulary, empty where they are missing.
#[derive(Debug, Default)]
pub(super) struct SmallFiles {
    /// `tokenizer_config.json`.
    pub(super) config: Map<String, Value>,
    /// `special_tokens_map.json`.
    pub(super) special_map: Map<String, Value>,
    /// `added_tokens.json`: ids by text.
    pub(super) added: Map<String, Value>,
    /// `config.json`.
    pub(super) model: Map<String, Value>,
    /// `generation_config.json`.
    generation: Map<String, Value>,
}

impl SmallFiles {
    fn read(folder: &Path) -> Result<Self> {
        let read = |name| read_object(&folder.join(name));
        Ok(Self {
            config: read(CONFIG)?,
            special_map: read(SPECIAL_MAP)?,
            added: read(ADDED)?,
            model: read(MODEL)?,
            generation: read(GENERATION)?,
        })
    }

    /// Whether a class is known that reads the folder's older files.
    fn has_known_class(&self) -> bool {
        matches!(
            class::choose(&self.config, &self.model),
            Ok(class::Chosen::Known(..))
        )
    }

    /// The texts of the tokens that these files give ids.
    pub(super) fn listed_tokens(&self) -> BTreeSet<String> {
        let listed = added_tokens(&self.config).into_values();
        listed.chain(self.added.keys().cloned()).collect()
    }

    /// Roles that no file of the tokenizer gives go to the added tokens whose ids the model's files name: a piece of ordinary text
    /// under such an id is a default that nobody meant.
    fn fill_from_model(&self, tokenizer: &Tokenizer, special: &mut SpecialTokens) {
        let id = |key| {
            [&self.model, &self.generation]
                .into_iter()
                .find_map(|map| first_id(map.get(key)?))
        };
        for (role, key) in [
            (&mut special.bos, "bos_token_id"),
            (&mut special.eos, "eos_token_id"),
            (&mut special.pad, "pad_token_id"),
        ] {
            let token = || {
                id(key)
                    .filter(|id| tokenizer.is_added(*id))
                    .and_then(|id| tokenizer.token(id))
            };
            *role = role.take().or_else(token);
        }
    }
}

/// An id, or the first of a list.
fn first_id(value: &Value) -> Option<u32> {
    let id = value
        .as_u64()
        .or_else(|| value.as_array()?.first()?.as_u64())?;
    u32::try_from(id).ok()
}

impl Tokenizer {
    /// The tokenizer of a `tokenizer.json` with the tokens that the files beside it add, as far as they have the ids that these files say.
    fn with_listed(self, small: &SmallFiles, special: &SpecialTokens) -> Result<Self> {
        let Kind::Library(library) = &self.pipeline.kind else {
            return Ok(self);
        };
        let known = library.get_added_tokens_decoder();
        // What tokenizer.json adds keeps the id that it has there, whatever the other files say, as in transformers.
        let missing = |token: &Added| known.values().all(|known| known.content != token.content);
        let sources = Sources {
            config: &small.config,
            special_map: &small.special_map,
            added: &small.added,
            special,
        };
        let size = self.vocabulary_size() as u32;
        let listed = small.listed_tokens();
        let tokens = sources.tokens(&|token| self.id(token), size, Vec::new());
        // A role without a token in any file stays a name.
        let wanted =
            |token: &Added| self.id(&token.content).is_some() || listed.contains(&token.content);
        let new: Vec<Added> = tokens
            .into_iter()
            .filter(|token| missing(token) && wanted(token))
            .collect();
        if new.is_empty() {
            return Ok(self);
        }
        let mut library = (**library).clone();
        for token in &new {
            let added = AddedToken::from(token.content.clone(), token.special)
                .normalized(token.normalized)
                .lstrip(token.lstrip)
                .rstrip(token.rstrip)
                .single_word(token.single_word);
            library.add_tokens([added]).map_err(super::library_error)?;
            let id = library.token_to_id(&token.content);
            if id != Some(token.id) {
                let (content, wanted) = (&token.content, token.id);
                let got = id.map_or("none".to_owned(), |id| id.to_string());
                return Err(Error::Tokenizer(format!(
                    "`{content}` has id {wanted} in {CONFIG} or {ADDED}, but {got} in {TOKENIZER}; the files do not belong together"
                )));
            }
        }
        Self::from_library(library)
    }
}

pub(super) fn extension(path: &Path) -> Option<&str> {
    path.extension()?.to_str()
}

/// The name of an RWKV world table: what `vocab_file` says where it is the plain name of a text file.
fn table_name(config: &Map<String, Value>) -> String {
    let named = config.get("vocab_file").and_then(Value::as_str);
    let plain = named.filter(|name| name.ends_with(".txt") && !name.contains(['/', '\\', ':']));
    plain.unwrap_or(rwkv_world::VOCABULARY).to_owned()
}

/// An RWKV world table with the special tokens of `added_tokens_decoder`. Id 0 is the end of a text and, unless the folder says
/// otherwise, its beginning and its padding too.
fn from_table(
    path: &Path,
    config: &Map<String, Value>,
    special: &mut SpecialTokens,
) -> Result<Tokenizer> {
    let world = World::parse(path, read(path)?)?;
    let mut added = added_tokens(config);
    let is_new =
        |token: &&String| world.id(token).is_none() && !added.values().any(|text| text == *token);
    let unknown = [&special.eos, &special.bos, &special.pad]
        .into_iter()
        .flatten()
        .find(is_new)
        .cloned();
    let end = added
        .entry(0)
        .or_insert(unknown.unwrap_or_else(|| rwkv_world::END_OF_TEXT.into()))
        .clone();
    for role in [&mut special.bos, &mut special.eos, &mut special.pad] {
        role.get_or_insert_with(|| end.clone());
    }
    let world = world
        .with_special(added)
        .map_err(|reason| in_folder(path, reason))?;
    Ok(Tokenizer::from_kind(Kind::World(world)))
}

/// `added_tokens_decoder` of `tokenizer_config.json`: ids with an object whose `content` is the text.
fn added_tokens(config: &Map<String, Value>) -> BTreeMap<u32, String> {
    let entries = config
        .get("added_tokens_decoder")
        .and_then(Value::as_object)
        .into_iter()
        .flatten();
    entries
        .filter_map(|(id, token)| {
            Some((id.parse().ok()?, token.get("content")?.as_str()?.to_owned()))
        })
        .collect()
}

/// Puts the folder before the reason.
pub(super) fn in_folder(folder: &Path, error: Error) -> Error {
    match error {
        Error::Tokenizer(reason) => Error::Tokenizer(format!("{}: {reason}", folder.display())),
        Error::Template(reason) => Error::Template(format!("{}: {reason}", folder.display())),
        other => other,
    }
}

/// A JSON object; an empty one when there is no such file.
fn read_object(path: &Path) -> Result<Map<String, Value>> {
    let Some(text) = read_if_there(path)? else {
        return Ok(Map::new());
    };
    serde_json::from_str(&text)
        .map_err(|reason| Error::Tokenizer(format!("{}: {reason}", path.display())))
}

pub(super) fn read_if_there(path: &Path) -> Result<Option<String>> {
    if path.exists() {
        read(path).map(Some)
    } else {
        Ok(None)
    }
}

pub(super) fn read(path: &Path) -> Result<String> {
    let not_text = |_| {
        Error::file(
            path,
            std::io::Error::new(
                std::io::ErrorKind::InvalidData,
                "stream did not contain valid UTF-8",
            ),
        )
    };
    String::from_utf8(read_bytes(path)?).map_err(not_text)
}

/// The bytes of a file of a believable size.
pub(super) fn read_bytes(path: &Path) -> Result<Vec<u8>> {
    let size = std::fs::metadata(path)
        .map_err(|source| Error::file(path, source))?
        .len();
    if size > LARGEST_FILE {
        return Err(Error::Tokenizer(format!(
            "{}: {size} bytes; expected at most {LARGEST_FILE}",
            path.display()
        )));
    }
    std::fs::read(path).map_err(|source| Error::file(path, source))
}

fn write(path: &Path, text: &str) -> Result<()> {
    disk::write_whole(path, text.as_bytes()).map_err(|source| Error::file(path, source))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::template::CHATML;
    use crate::template::ChatTemplate;
    use crate::tokenizer::BpeOptions;

    fn trained() -> Tokenizer {
        let texts = vec!["the cat sat on the mat".to_string(); 4];
        Tokenizer::train_byte_level_bpe(
            texts.into_iter(),
            &BpeOptions {
                vocabulary: 280,
                ..Default::default()
            },
        )
        .unwrap()
    }

    #[test]
    fn saved_and_loaded_is_the_same() {
        let folder = tempfile::tempdir().unwrap();
        let tokenizer = trained().with_template(ChatTemplate::new(CHATML).unwrap());
        tokenizer.save(folder.path()).unwrap();
        let loaded = Tokenizer::load(folder.path()).unwrap();
        let text = "the rat sat <|im_end|> ünder\n";
        assert_eq!(
            loaded.encode(text, true).unwrap(),
            tokenizer.encode(text, true).unwrap()
        );
        assert_eq!(loaded.fingerprint(), tokenizer.fingerprint());
        assert_eq!(loaded.special(), tokenizer.special());
        assert_eq!(loaded.template().unwrap().source(), CHATML);
    }

    #[test]
    fn unknown_keys_are_kept() {
        let folder = tempfile::tempdir().unwrap();
        trained().save(folder.path()).unwrap();
        let config = r#"{"model_max_length":1024,"mystery":{"a":[1]},"eos_token":{"content":"<|im_end|>"},"mask_token":"<m>"}"#;
        write(&folder.path().join(CONFIG), config).unwrap();
        let loaded = Tokenizer::load(folder.path()).unwrap();
        assert_eq!(loaded.model_max_length(), Some(1024));
        let again = tempfile::tempdir().unwrap();
        loaded.save(again.path()).unwrap();
        let config = read_object(&again.path().join(CONFIG)).unwrap();
        assert_eq!(config["mystery"], json!({"a": [1]}));
        assert_eq!(config["mask_token"], json!("<m>"));
        assert_eq!(config["eos_token"], json!("<|im_end|>"));
    }

    #[test]
    fn templates_are_found_in_order() {
        let folder = tempfile::tempdir().unwrap();
        trained().save(folder.path()).unwrap();
        let list = r#"{"chat_template":[{"name":"default","template":"one"},{"name":"rag","template":"two"}]}"#;
        write(&folder.path().join(CONFIG), list).unwrap();
        let source = |name| {
            Tokenizer::load(folder.path())
                .unwrap()
                .template_named(name)
                .map(|t| t.source().to_string())
        };
        assert_eq!(source("default").as_deref(), Some("one"));
        assert_eq!(source("rag").as_deref(), Some("two"));
        std::fs::create_dir(folder.path().join("additional_chat_templates")).unwrap();
        write(
            &folder
                .path()
                .join("additional_chat_templates")
                .join("tool_use.jinja"),
            "three",
        )
        .unwrap();
        write(&folder.path().join(TEMPLATE), "four").unwrap();
        assert_eq!(source("tool_use").as_deref(), Some("three"));
        assert_eq!(source("default").as_deref(), Some("four"));
        let loaded = Tokenizer::load(folder.path())
            .unwrap()
            .with_template(ChatTemplate::new("five").unwrap());
        loaded.save(folder.path()).unwrap();
        assert_eq!(source("default").as_deref(), Some("five"));
        assert_eq!(source("rag").as_deref(), Some("two"));
    }

    #[test]
    fn reads_vocabulary_and_merges() {
        let folder = tempfile::tempdir().unwrap();
        write(
            &folder.path().join("vocab.json"),
            r#"{"a":0,"b":1,"Ġ":2,"ab":3,"<|endoftext|>":4}"#,
        )
        .unwrap();
        write(&folder.path().join("merges.txt"), "#version: 0.2\na b\n").unwrap();
        let tokenizer = Tokenizer::load(folder.path()).unwrap();
        assert_eq!(
            tokenizer.encode("ab ba<|endoftext|>", true).unwrap().ids,
            [3, 2, 1, 0, 4]
        );
        assert_eq!(tokenizer.special().eos.as_deref(), Some("<|endoftext|>"));
        write(&folder.path().join("merges.txt"), "a b\nabc\n").unwrap();
        assert!(
            Tokenizer::load(folder.path())
                .unwrap_err()
                .to_string()
                .contains("merges.txt:2")
        );
    }

    const TABLE: &str = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../tests/fixtures/tokenizers/rwkv-world/rwkv_vocab_v20230424.txt"
    );

    #[test]
    fn a_world_table_is_a_tokenizer() {
        let (folder, again) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        std::fs::copy(TABLE, folder.path().join(rwkv_world::VOCABULARY)).unwrap();
        assert!(
            Tokenizer::file_in(folder.path()).is_some()
                && Tokenizer::file_in(again.path()).is_none()
        );
        let tokenizer = Tokenizer::load(folder.path()).unwrap();
        let end = tokenizer.special().eos.clone().unwrap();
        assert_eq!(
            (tokenizer.id(&end), tokenizer.vocabulary_size()),
            (Some(0), 65530)
        );
        assert!(tokenizer.is_special(0) && !tokenizer.is_special(98));
        assert!(!tokenizer.encode_user_text(&end).unwrap().contains(&0));
        let tokenizer = tokenizer.with_template(ChatTemplate::new(CHATML).unwrap());
        tokenizer.save(again.path()).unwrap();
        let loaded = Tokenizer::load(again.path()).unwrap();
        let text = format!("数据 ünder\n{end}x");
        assert_eq!(
            loaded.encode(&text, true).unwrap(),
            tokenizer.encode(&text, true).unwrap()
        );
        assert_eq!(
            (loaded.fingerprint(), loaded.special()),
            (tokenizer.fingerprint(), tokenizer.special())
        );
        assert_eq!(loaded.template().unwrap().source(), CHATML);
    }

    #[test]
    fn a_world_table_takes_its_folders_special_tokens() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::copy(TABLE, folder.path().join("vocab.txt")).unwrap();
        let config = r#"{"vocab_file":"vocab.txt","bos_token":"<s>","eos_token":"\n\n","added_tokens_decoder":{"0":{"content":"<s>"},"65530":{"content":"<|user|>"},"65531":{"content":"\n\n"}}}"#;
        write(&folder.path().join(CONFIG), config).unwrap();
        let tokenizer = Tokenizer::load(folder.path()).unwrap();
        assert_eq!(
            tokenizer.encode("<s>a<|user|>\n\n", true).unwrap().ids,
            [0, 98, 65530, 261]
        );
        assert_eq!(tokenizer.special_texts(), ["<s>", "<|user|>"]);
        write(
            &folder.path().join(CONFIG),
            r#"{"vocab_file":"vocab.txt","added_tokens_decoder":{"98":{"content":"<s>"}}}"#,
        )
        .unwrap();
        assert!(
            Tokenizer::load(folder.path())
                .unwrap_err()
                .to_string()
                .contains("`<s>` has id 98")
        );
        write(
            &folder.path().join(CONFIG),
            r#"{"vocab_file":"../vocab.txt"}"#,
        )
        .unwrap();
        assert!(
            Tokenizer::load(folder.path())
                .unwrap_err()
                .to_string()
                .contains("no tokenizer.json here")
        );
    }

    #[test]
    fn an_empty_folder_says_what_is_missing() {
        let folder = tempfile::tempdir().unwrap();
        assert!(
            Tokenizer::load(folder.path())
                .unwrap_err()
                .to_string()
                .contains("no tokenizer.json here")
        );
    }
}
