//! The keys of a configuration that all families share.

use super::{
    Family,
    config::{Config, VOCABULARY_LIMIT},
    heads, one_bit,
};
use crate::error::Result;
use crate::spec::{BlockSpec, MixerSpec, ModelSpec, NormSpec};
use serde_json::{Map, Value, json};

/// Our own key for a decoder whose mask was taken off (LLM2Vec, arXiv 2404.05961), in any family.
pub(super) const BIDIRECTIONAL: &str = "bidirectional";

/// The key of transformers by which a decoder's mask is taken off, where it is false.
const IS_CAUSAL: &str = "is_causal";

/// The keys that all families share, read into the spec around `blocks`.
pub(super) struct Frame {
    pub(super) width: usize,
    pub(super) context: usize,
    pub(super) blocks: Vec<BlockSpec>,
    pub(super) final_norm: Option<NormSpec>,
    pub(super) tied_by_default: bool,
}

impl Frame {
    pub(super) fn read(self, config: &Config, family: &Family) -> Result<ModelSpec> {
        config.refuse("add_cross_attention")?;
        config.refuse("is_encoder_decoder")?;
        let spec = self.read_decoder(config, family)?;
        let bidirectional =
            config.flag_or(BIDIRECTIONAL, false)? || !config.flag_or(IS_CAUSAL, true)?;
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
    pub(super) fn read_decoder(self, config: &Config, family: &Family) -> Result<ModelSpec> {
        let bits = one_bit::read(config, &self.blocks)?;
        Ok(ModelSpec {
            family: family.model_type.into(),
            vocabulary: config.size("vocab_size", VOCABULARY_LIMIT)?,
            width: self.width,
            embedding_projection: None,
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
            bits,
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
pub(super) fn write_frame(spec: &ModelSpec, family: &Family) -> Map<String, Value> {
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
    one_bit::write(spec, &mut map);
    if spec.bidirectional && !family.is_masked() {
        map.insert(BIDIRECTIONAL.into(), json!(true));
    }
    map
}
