//! The model families: how each one's `config.json` becomes a [`ModelSpec`], and its tensor names become ours.
//!
//! A family is one file and one line in [`FAMILIES`]. Everything else, from loading to training, knows only the spec.

pub mod albert;
pub mod bart;
pub mod bert;
pub mod bigs;
pub mod bloom;
pub mod cohere;
pub mod cohere2;
pub mod config;
mod config_keys;
pub mod deepseek;
pub mod distilbert;
pub mod electra;
mod encoder_layout;
pub mod exaone4;
pub mod falcon;
pub mod gemma;
pub mod gemma2;
pub mod gemma3;
pub mod glm;
pub mod gpt2;
pub mod gpt_bigcode;
pub mod gpt_neox;
pub mod gpt_oss;
pub mod gptj;
pub mod granite;
pub mod granitemoe;
mod heads;
pub mod jamba;
pub mod jetmoe;
mod layer_types;
pub mod llama;
mod llama_layout;
pub mod m2m_100;
pub mod mamba;
pub mod mamba2;
pub mod mambaformer;
pub mod marian;
pub mod mbart;
pub mod mistral;
pub mod mixtral;
pub mod modernbert;
pub mod mpnet;
pub mod mpt;
pub mod nemotron;
pub mod nomic_bert;
pub mod olmo;
pub mod olmo2;
pub mod olmo3;
pub mod openelm;
pub mod opt;
pub mod palm;
pub mod pegasus;
pub mod phi;
pub mod phi3;
pub mod qwen2;
pub mod qwen3;
pub mod qwen_moe;
mod qwen_windows;
pub mod recurrent_gemma;
pub mod roberta;
pub mod rope;
mod routers;
mod rwkv;
pub mod rwkv4;
pub mod rwkv5;
pub mod rwkv6;
pub mod rwkv7;
pub mod smollm3;
pub mod stablelm;
pub mod starcoder2;
mod state_spaces;
pub mod t5;

pub use config::Config;
pub use rwkv::bare;

use crate::error::{Error, Result};
use crate::spec::{AttentionSpec, BlockSpec, ChannelSpec, MixerSpec, MlpSpec, ModelSpec, NormSpec};
use config::VOCABULARY_LIMIT;
use espalier_data::nearest::nearest_architecture;
use serde_json::{Map, Value, json};
use std::{ops::Range, path::Path};

/// What the rest of the crate needs to know of a family.
#[derive(Debug)]
pub struct Family {
    /// `model_type` of `config.json`, and [`ModelSpec::family`].
    pub model_type: &'static str,
    /// `architectures[0]` of `config.json`.
    pub architecture: &'static str,
    /// Reads a configuration.
    pub read: fn(&Config) -> Result<ModelSpec>,
    /// Writes a configuration in today's form; use [`write_config`], which checks that nothing was lost.
    pub write: fn(&ModelSpec) -> Map<String, Value>,
    /// The checkpoint's tensors, in the order of [`ModelSpec::parameters`].
    pub tensors: fn(&ModelSpec) -> Vec<TensorEntry>,
    /// What base-model files leave out before tensor names.
    pub prefix: &'static str,
    /// Ends of the names of derived buffers in old files, to be ignored.
    pub ignored: &'static [&'static str],
}

/// All families, one line each.
pub const FAMILIES: &[Family] = &[
    albert::FAMILY,
    bart::FAMILY,
    bert::FAMILY,
    bigs::FAMILY,
    bloom::FAMILY,
    cohere2::FAMILY,
    cohere::FAMILY,
    deepseek::SECOND,
    deepseek::THIRD,
    distilbert::FAMILY,
    electra::FAMILY,
    exaone4::FAMILY,
    falcon::FAMILY,
    gemma2::FAMILY,
    gemma3::FAMILY,
    gemma::FAMILY,
    glm::FAMILY,
    glm::SECOND,
    gpt2::FAMILY,
    gpt_bigcode::FAMILY,
    gpt_neox::FAMILY,
    gpt_oss::FAMILY,
    gptj::FAMILY,
    granite::FAMILY,
    granitemoe::FAMILY,
    granitemoe::SHARED,
    jamba::FAMILY,
    jetmoe::FAMILY,
    llama::FAMILY,
    m2m_100::FAMILY,
    mamba2::FAMILY,
    mamba::FALCON,
    mamba::FAMILY,
    mambaformer::FAMILY,
    marian::FAMILY,
    mbart::FAMILY,
    mistral::FAMILY,
    mixtral::FAMILY,
    modernbert::FAMILY,
    mpnet::FAMILY,
    mpt::FAMILY,
    nemotron::FAMILY,
    nomic_bert::FAMILY,
    olmo2::FAMILY,
    olmo3::FAMILY,
    olmo::FAMILY,
    openelm::FAMILY,
    opt::FAMILY,
    palm::FAMILY,
    pegasus::FAMILY,
    phi3::FAMILY,
    phi::FAMILY,
    qwen2::FAMILY,
    qwen3::FAMILY,
    qwen_moe::OLMOE,
    qwen_moe::QWEN2,
    qwen_moe::QWEN3,
    recurrent_gemma::FAMILY,
    roberta::CAMEMBERT,
    roberta::FAMILY,
    roberta::XLM_ROBERTA,
    rwkv4::AUTHORS,
    rwkv4::FAMILY,
    rwkv5::FAMILY,
    rwkv6::FAMILY,
    rwkv7::FAMILY,
    smollm3::FAMILY,
    stablelm::FAMILY,
    starcoder2::FAMILY,
    t5::FAMILY,
    t5::MT5,
    t5::UMT5,
];

/// How one tensor of a checkpoint makes up our parameters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorEntry {
    /// The name in the checkpoint.
    pub name: String,
    /// Our parameters, which lie in it one after another along our first axis (the outputs).
    pub parts: Vec<String>,
    /// How often the parts take turns: each of so many groups has an equal share of every part's rows. One: each part is
    /// whole.
    pub groups: usize,
    /// Whether it is stored `[in, out]`; ours are `[out, in]`. Of a stack of matrices, `[.., in, out]`, each is.
    pub transposed: bool,
    /// Where it holds some rows of its only part, as one expert's matrix of a stack: which, counted over all axes but the
    /// last.
    pub rows: Option<Range<usize>>,
}

/// The family of a configuration: by `architectures[0]`, or, where that is absent or unknown, by `model_type`.
///
/// # Errors
/// When neither is known, or the architecture is a head of another kind; the error lists the known ones and the nearest.
pub fn family(config: &Config) -> Result<&'static Family> {
    let architectures = config.optional_texts("architectures")?.unwrap_or_default();
    let model_type = config.optional_text("model_type")?;
    match (architectures.first(), model_type) {
        (Some(&name), model_type) => {
            let named = FAMILIES.iter().find(|family| family.is_architecture(name));
            let typed = || {
                let model_type = model_type.filter(|_| !is_other_head(name))?;
                FAMILIES
                    .iter()
                    .find(|family| family.model_type == model_type)
            };
            named.or_else(typed).ok_or_else(|| unknown(name))
        }
        (None, Some(name)) => by_name(name),
        (None, None) => Err(config.error(
            "architectures",
            "missing; add for example [\"LlamaForCausalLM\"]",
        )),
    }
}

/// Whether the architecture of this name ends in something else than a language model.
fn is_other_head(name: &str) -> bool {
    const LANGUAGE: [&str; 4] = [
        "ForCausalLM",
        "ForMaskedLM",
        "ForConditionalGeneration",
        "ForPreTraining",
    ];
    name.contains("For") && !LANGUAGE.iter().any(|head| name.ends_with(head))
}

/// The family of this `model_type`.
///
/// # Errors
/// When it is not known; the error lists the known ones and the nearest.
pub fn by_name(model_type: &str) -> Result<&'static Family> {
    FAMILIES
        .iter()
        .find(|family| family.model_type == model_type)
        .ok_or_else(|| unknown(model_type))
}

/// The configuration of `spec` in its family's form, with `dtype` float32 until the caller says otherwise.
///
/// ```
/// use espalier_models::families::write_config;
/// use espalier_models::spec::ModelSpec;
/// let mut spec = ModelSpec::llama(512, 64, 2, 4, 2, 160, 128);
/// assert_eq!(write_config(&spec)?["num_key_value_heads"], 2);
/// spec.blocks[1].mixer_norm = Some(espalier_models::spec::NormSpec::layer(1e-5));
/// assert!(write_config(&spec).is_err());
/// # Ok::<(), espalier_models::error::Error>(())
/// ```
///
/// # Errors
/// When the family is not known, or its configuration cannot express the spec, for example blocks of unequal width.
pub fn write_config(spec: &ModelSpec) -> Result<Map<String, Value>> {
    let family = by_name(&spec.family)?;
    let map = (family.write)(spec);
    let again = (family.read)(&Config::from_map(Path::new("config.json"), map.clone()))?;
    // These the names of the tensors tell, whatever the configuration says.
    let again = ModelSpec {
        pooler: spec.pooler,
        next_sentence: spec.next_sentence,
        ..again
    };
    if again != *spec {
        let reason = format!(
            "a configuration of the family `{}` cannot express this model",
            spec.family
        );
        return Err(Error::Invalid(format!(
            "{reason}; all blocks must be alike and of the family's kind"
        )));
    }
    Ok(map)
}

impl Family {
    /// Whether `name` is the architecture, its base model, or one that classifies.
    fn is_architecture(&self, name: &str) -> bool {
        heads::Task::named(name, self).is_some() || t5::is_encoder(name, self)
    }

    /// Whether its head predicts masked tokens.
    fn is_masked(&self) -> bool {
        self.architecture.ends_with("ForMaskedLM")
    }
}

fn unknown(name: &str) -> Error {
    let name: &str = &name.chars().take(64).collect::<String>();
    let known: Vec<&str> = FAMILIES
        .iter()
        .flat_map(|family| [family.architecture, family.model_type])
        .collect();
    Error::UnknownArchitecture {
        name: name.into(),
        nearest: nearest_architecture(name, known.iter().copied()).map(Into::into),
        known: known.join(", "),
    }
}

/// Our own key for a decoder whose mask was taken off (LLM2Vec, arXiv 2404.05961), in any family.
const BIDIRECTIONAL: &str = "bidirectional";

/// The keys that all families share, read into the spec around `blocks`.
struct Frame {
    width: usize,
    context: usize,
    blocks: Vec<BlockSpec>,
    final_norm: Option<NormSpec>,
    tied_by_default: bool,
}

impl Frame {
    fn read(self, config: &Config, family: &Family) -> Result<ModelSpec> {
        config.refuse("add_cross_attention")?;
        config.refuse("is_encoder_decoder")?;
        let spec = self.read_decoder(config, family)?;
        let bidirectional = config.flag_or(BIDIRECTIONAL, false)?;
        if bidirectional
            && spec
                .blocks
                .iter()
                .any(|block| matches!(block.mixer, MixerSpec::Recurrent(_)))
        {
            return Err(config.error(
                BIDIRECTIONAL,
                "recurrent blocks read one way; remove the key",
            ));
        }
        let spec = ModelSpec {
            bidirectional,
            ..spec
        };
        heads::put_on_decoder(spec, config, family)
    }

    /// The same of an encoder-decoder, whose encoder the family adds, or of an encoder.
    fn read_decoder(self, config: &Config, family: &Family) -> Result<ModelSpec> {
        config.refuse("quantization_config")?;
        Ok(ModelSpec {
            family: family.model_type.into(),
            vocabulary: config.size("vocab_size", VOCABULARY_LIMIT)?,
            width: self.width,
            embedding_width: None,
            context: self.context,
            positions: None,
            token_types: None,
            relative: None,
            blocks: self.blocks,
            block_order: None,
            final_norm: self.final_norm,
            encoder: None,
            bidirectional: false,
            embedding_scale: 1.0,
            embedding_norm: None,
            tied_head: config.flag_or("tie_word_embeddings", self.tied_by_default)?,
            headless: false,
            head_transform: None,
            head_bias: false,
            head_bias_fixed: false,
            pooler: false,
            classifier: None,
            next_sentence: false,
            logit_scale: 1.0,
            logit_softcap: None,
            router_losses: None,
            z_loss: 0.0,
            initializer_range: config.positive_or("initializer_range", 0.02)?,
            embedding_range: None,
            bos: config.token("bos_token_id")?,
            eos: config.tokens("eos_token_id")?,
            pad: config.token("pad_token_id")?,
        })
    }
}

/// The keys that all families share.
fn write_frame(spec: &ModelSpec, family: &Family) -> Map<String, Value> {
    let eos = match spec.eos[..] {
        [] => Value::Null,
        [token] => json!(token),
        _ => json!(spec.eos),
    };
    let mut map = Map::from_iter(
        [
            ("model_type", json!(family.model_type)),
            ("dtype", json!("float32")),
            ("vocab_size", json!(spec.vocabulary)),
            ("tie_word_embeddings", json!(spec.tied_head)),
            ("initializer_range", json!(spec.initializer_range)),
            ("bos_token_id", json!(spec.bos)),
            ("eos_token_id", eos),
            ("pad_token_id", json!(spec.pad)),
            ("use_cache", json!(true)),
        ]
        .map(|(key, value)| (key.to_owned(), value)),
    );
    heads::write(spec, family, &mut map);
    if spec.bidirectional && !family.is_masked() {
        map.insert(BIDIRECTIONAL.into(), json!(true));
    }
    map
}

/// A number that readers of such files take as an integer: without a point wherever it is one.
fn whole(number: f64) -> Value {
    match number.fract() == 0.0 && number.abs() < 1e15 {
        true => json!(number as i64),
        false => json!(number),
    }
}

/// The attention of a block, if that is its mixer.
fn attention(block: &BlockSpec) -> Option<&AttentionSpec> {
    match &block.mixer {
        MixerSpec::Attention(attention) => Some(attention),
        MixerSpec::AttentionExperts(_)
        | MixerSpec::LatentAttention(_)
        | MixerSpec::Recurrent(_) => None,
    }
}

/// The sizes of a block's feed-forward layer, or of one expert, where there is one.
fn mlp(block: &BlockSpec) -> Option<&MlpSpec> {
    match &block.channel {
        ChannelSpec::Mlp(mlp) | ChannelSpec::GatedMlp(mlp) => Some(mlp),
        ChannelSpec::SparseExperts(experts) => Some(&experts.expert),
        ChannelSpec::MultiHeadExperts(spec) => Some(&spec.experts.expert),
        ChannelSpec::Rwkv(_) | ChannelSpec::None => None,
    }
}

/// The decoder's block to which our parameter of this name belongs.
fn block_of<'a>(spec: &'a ModelSpec, name: &str) -> Option<&'a BlockSpec> {
    let number = name
        .strip_prefix("blocks.")?
        .split('.')
        .next()?
        .parse::<usize>()
        .ok()?;
    spec.blocks.get(number)
}

/// `width / heads`, which must be whole.
fn even_head_dim(config: &Config, heads_key: &str, width: usize, heads: usize) -> Result<usize> {
    if !width.is_multiple_of(heads) {
        return Err(config.error(
            heads_key,
            format!("{heads} heads do not divide the width {width}; choose a divisor"),
        ));
    }
    Ok(width / heads)
}

/// Our parameters that one checkpoint tensor holds, as parts of their names; the first one stands for all in the table.
struct Fused {
    parts: &'static [&'static str],
    /// See [`TensorEntry::groups`].
    groups: usize,
}

/// Queries, keys and values.
const QUERY_KEY_VALUE: &[&str] = &[".mixer.query.", ".mixer.key.", ".mixer.value."];
/// Gates and inputs of a feed-forward layer.
const GATE_UP: &[&str] = &[".channel.gate.", ".channel.up."];

/// The checkpoint's tensors: one for each parameter, or for all that are fused, under the name that `names` makes of ours.
fn table(spec: &ModelSpec, names: &[(&str, &str)], fused: &[Fused]) -> Vec<TensorEntry> {
    // A family whose classifier has a name of its own says so in its table.
    let own_classifier = names
        .iter()
        .any(|(ours, _)| ours.starts_with("^classifier."));
    let theirs = |name: &str| match name.strip_prefix("classifier.output.") {
        Some(rest) if !own_classifier => format!("{}{rest}", heads::decoder_name(spec)),
        _ => rename(name, names),
    };
    let entry = |name: String| {
        let (mut parts, mut groups) = (vec![name.clone()], 1);
        for fusion in fused {
            match fusion.parts.iter().position(|part| name.contains(part)) {
                None => {}
                Some(0) => {
                    parts = fusion
                        .parts
                        .iter()
                        .map(|part| name.replace(fusion.parts[0], part))
                        .collect();
                    groups = fusion.groups;
                }
                Some(_) => return None,
            }
        }
        Some(TensorEntry {
            name: theirs(&name),
            parts,
            groups,
            transposed: false,
            rows: None,
        })
    };
    spec.parameters()
        .into_iter()
        .filter_map(|(name, _)| entry(name))
        .collect()
}

/// `name` with each of our names replaced by the checkpoint's; after `^` ours must stand at the beginning.
fn rename(name: &str, table: &[(&str, &str)]) -> String {
    table.iter().fold(name.to_owned(), |name, (ours, theirs)| {
        match ours.strip_prefix('^') {
            Some(ours) => name
                .strip_prefix(ours)
                .map(|rest| format!("{theirs}{rest}"))
                .unwrap_or(name),
            None => name.replace(ours, theirs),
        }
    })
}

#[cfg(test)]
mod published;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::Checkpoint;
    use std::collections::{BTreeMap, BTreeSet};

    const FIXTURES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures");
    /// The fixtures that have a configuration, found by looking: a new one is tested by lying in its folder.
    fn models() -> Vec<String> {
        let has = |folder: &Path, file: &str| folder.join(file).exists();
        let mut models: Vec<String> = std::fs::read_dir(FIXTURES)
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .filter(|folder| has(folder, "config.json") && has(folder, "expected.safetensors"))
            .map(|folder| folder.file_name().unwrap().to_str().unwrap().to_owned())
            .collect();
        models.sort();
        assert!(models.len() > 30);
        models
    }

    fn config(model: &str) -> Config {
        Config::load(format!("{FIXTURES}/{model}").as_ref()).unwrap()
    }

    /// The fixture's configuration with some keys set or, by null, unset.
    pub(super) fn changed(model: &str, changes: Value) -> Result<ModelSpec> {
        let mut map = config(model).map().clone();
        map.extend(changes.as_object().unwrap().clone());
        let config = Config::from_map("config.json".as_ref(), map);
        let spec = (family(&config)?.read)(&config)?;
        config.refuse_unread()?;
        Ok(spec)
    }

    pub(super) fn fixture(model: &str) -> ModelSpec {
        changed(model, json!({})).unwrap()
    }

    #[test]
    fn every_tensor_of_a_checkpoint_is_consumed_once_and_fits() {
        for model in &models() {
            let spec = fixture(model);
            let checkpoint = Checkpoint::open(format!("{FIXTURES}/{model}").as_ref()).unwrap();
            let entries = (family(&config(model)).unwrap().tensors)(&spec);
            let names: BTreeSet<&str> = entries.iter().map(|entry| entry.name.as_str()).collect();
            assert_eq!(names.len(), entries.len(), "{model}");
            assert!(names.iter().copied().eq(checkpoint.names()), "{model}");
            let shapes: BTreeMap<String, Vec<usize>> = spec.parameters().into_iter().collect();
            for entry in &entries {
                let mut stored = checkpoint.info(&entry.name).unwrap().shape.clone();
                if entry.transposed {
                    let last = stored.len().saturating_sub(2);
                    stored[last..].reverse();
                }
                let mut whole = shapes[&entry.parts[0]].clone();
                whole[0] = entry.parts.iter().map(|part| shapes[part][0]).sum();
                if let Some(rows) = &entry.rows {
                    whole = vec![rows.len(), whole[whole.len() - 1]];
                }
                assert_eq!(stored, whole, "{model}: {}", entry.name);
            }
            let mut rows: BTreeMap<&String, Vec<Range<usize>>> = BTreeMap::new();
            for (entry, part) in entries
                .iter()
                .flat_map(|entry| entry.parts.iter().map(move |part| (entry, part)))
            {
                let shape = &shapes[part];
                let all = 0..shape[..(shape.len() - 1).max(1)].iter().product();
                rows.entry(part)
                    .or_default()
                    .push(entry.rows.clone().unwrap_or(all));
            }
            assert_eq!(
                rows.keys().copied().collect::<BTreeSet<_>>(),
                shapes.keys().collect(),
                "{model}"
            );
            for (part, mut rows) in rows {
                rows.sort_by_key(|rows| rows.start);
                assert!(
                    rows[0].start == 0 && rows.windows(2).all(|pair| pair[0].end == pair[1].start),
                    "{part}"
                );
            }
            let numbers: usize = checkpoint
                .names()
                .map(|name| checkpoint.info(name).unwrap().elements())
                .sum();
            assert_eq!(spec.parameter_count(), numbers as u64);
        }
    }

    #[test]
    fn every_key_of_the_fixtures_is_known() {
        let mut unknown = Vec::new();
        for model in &models() {
            let config = config(model);
            (family(&config).unwrap().read)(&config).unwrap();
            unknown.extend(
                config
                    .refuse_unread()
                    .err()
                    .map(|error| format!("{model}: {error}")),
            );
        }
        assert!(unknown.is_empty(), "{}", unknown.join("\n"));
    }

    #[test]
    fn what_is_written_is_read_back() {
        for model in &models() {
            let spec = fixture(model);
            let map = write_config(&spec).unwrap();
            let text = serde_json::to_string(&map).unwrap();
            let again = Config::parse("config.json".as_ref(), &text).unwrap();
            assert_eq!(
                (family(&again).unwrap().read)(&again).unwrap(),
                spec,
                "{model}"
            );
            // How another library cuts its sequences is no size of the model.
            let is_size = |key: &&String| {
                (key.ends_with("size") && *key != "chunk_size") || key.starts_with("num_")
            };
            for key in config(model).map().keys().filter(is_size) {
                assert_eq!(map.get(key), config(model).map().get(key), "{model}: {key}");
            }
        }
    }

    /// Whole numbers that were written with a point, or the other way round, by their keys.
    fn other_forms(key: &str, written: &Value, theirs: &Value, found: &mut Vec<String>) {
        match (written, theirs) {
            (Value::Object(written), Value::Object(theirs)) => {
                for (key, value) in written {
                    let their = theirs.get(key).unwrap_or(&Value::Null);
                    other_forms(key, value, their, found);
                }
            }
            (Value::Array(written), Value::Array(theirs)) => {
                let pairs = written.iter().zip(theirs);
                pairs.for_each(|(one, other)| other_forms(key, one, other, found));
            }
            (Value::Number(written), Value::Number(theirs))
                if written.is_f64() != theirs.is_f64() =>
            {
                found.push(format!("`{key}`: {written}, not {theirs}"));
            }
            _ => {}
        }
    }

    #[test]
    fn numbers_are_written_in_the_form_that_transformers_writes() {
        for model in &models() {
            let (map, theirs) = (write_config(&fixture(model)).unwrap(), config(model));
            let mut found = Vec::new();
            let [ours, theirs] = [map, theirs.map().clone()].map(Value::Object);
            other_forms("", &ours, &theirs, &mut found);
            assert!(found.is_empty(), "{model}: {}", found.join("; "));
        }
    }

    #[test]
    fn architectures_come_by_name_base_name_and_type() {
        let find = |text: &str| {
            family(&Config::parse("config.json".as_ref(), text).unwrap())
                .map(|family| family.model_type)
        };
        assert_eq!(
            find(r#"{"architectures":["Qwen2ForCausalLM"],"model_type":"qwen3"}"#).unwrap(),
            "qwen2"
        );
        assert_eq!(find(r#"{"architectures":["GPT2Model"]}"#).unwrap(), "gpt2");
        assert_eq!(
            find(r#"{"architectures":[],"model_type":"mistral"}"#).unwrap(),
            "mistral"
        );
        assert_eq!(
            find(r#"{"architectures":["MPTForCausalLM"],"model_type":"mpt"}"#).unwrap(),
            "mpt"
        );
        assert!(
            find("{}")
                .unwrap_err()
                .to_string()
                .contains("key `architectures`: missing")
        );
        assert_eq!(
            find(r#"{"architectures":["LlamaForSequenceClassification"]}"#).unwrap(),
            "llama"
        );
        assert_eq!(
            find(r#"{"architectures":["XLMRobertaForTokenClassification"]}"#).unwrap(),
            "xlm-roberta"
        );
        assert_eq!(
            find(r#"{"architectures":["MT5EncoderModel"]}"#).unwrap(),
            "mt5"
        );
        assert!(find(r#"{"architectures":["LlamaForPreTraining"]}"#).is_err());
        let error = find(r#"{"architectures":["LlamaForCausalML"]}"#)
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("did you mean `LlamaForCausalLM`?") && error.contains("GPT2LMHeadModel"),
            "{error}"
        );
        assert!(
            !find(r#"{"model_type":"zebra_transformer"}"#)
                .unwrap_err()
                .to_string()
                .contains("did you mean")
        );
    }

    #[test]
    fn hostile_sizes_are_errors_in_every_family() {
        // Each size goes by one of several names.
        let names: [&[&str]; 5] = [
            &["hidden_size", "n_embd", "d_model", "dim"],
            &[
                // JetMoE's heads follow from its other sizes.
                "kv_channels",
                "num_attention_heads",
                "n_head",
                "n_heads",
                "num_heads",
                "encoder_attention_heads",
                "attention_hidden_size",
            ],
            &[
                "num_hidden_layers",
                "n_layer",
                "n_layers",
                "num_layers",
                "decoder_layers",
            ],
            &["vocab_size"],
            &[
                "intermediate_size",
                "ffn_hidden_size",
                "decoder_ffn_dim",
                "ffn_dim",
                "d_ff",
                "hidden_dim",
            ],
        ];
        for model in &models() {
            let map = config(model).map().clone();
            let keys = names
                .iter()
                .filter_map(|names| names.iter().find(|key| map.contains_key(**key)));
            for key in keys {
                for value in [
                    json!(0),
                    json!(-3),
                    json!(1e18),
                    json!(1_000_000_000_000_000_000u64),
                    json!(2.5),
                    json!("4"),
                ] {
                    let error = changed(model, json!({ *key: value.clone() }))
                        .unwrap_err()
                        .to_string();
                    assert!(
                        error.contains(&format!("key `{key}`")),
                        "{model} {key} {value}: {error}"
                    );
                }
            }
            let error = changed(model, json!({ "vocab_size": null }))
                .unwrap_err()
                .to_string();
            assert!(error.contains("key `vocab_size`: missing"), "{error}");
            assert!(changed(model, json!({ "quantization_config": { "bits": 4 } })).is_err());
        }
    }

    #[test]
    fn models_that_a_family_cannot_express_are_not_written() {
        let mut unequal = fixture("mistral");
        if let ChannelSpec::GatedMlp(mlp) = &mut unequal.blocks[2].channel {
            mlp.inner = 8;
        }
        assert!(
            write_config(&unequal)
                .unwrap_err()
                .to_string()
                .contains("cannot express")
        );
        let mut empty = fixture("gpt2");
        empty.blocks.clear();
        assert!(write_config(&empty).is_err());
        let foreign = ModelSpec {
            family: "mistrall".into(),
            ..fixture("gpt2")
        };
        assert!(
            write_config(&foreign)
                .unwrap_err()
                .to_string()
                .contains("did you mean `mistral`?")
        );
    }
}
