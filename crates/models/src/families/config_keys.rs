//! Keys of `config.json` that no family has read: which of them may be another model, and which say nothing.

use std::{
    collections::BTreeSet,
    path::Path,
    sync::{Mutex, PoisonError},
};

/// Keys that say nothing of what a model computes when it is not being trained: bookkeeping, defaults of generation, heads of
/// other tasks, and the libraries' own switches.
const HARMLESS: &[&str] = &[
    "_attn_implementation",
    "_attn_implementation_autoset",
    "_name_or_path",
    "architectures",
    "attn_implementation",
    "auto_map",
    "bad_words_ids",
    "begin_suppress_tokens",
    "cache_implementation",
    "bos_token_id",
    "chunk_size_feed_forward",
    "cls_token_id",
    "decoder_start_token_id",
    "diversity_penalty",
    "do_sample",
    "dtype",
    "early_stopping",
    "encoder_no_repeat_ngram_size",
    "eos_token_id",
    "finetuning_task",
    "flash_attn",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "gradient_checkpointing",
    "id2label",
    "init_std",
    "initializer_factor",
    "initializer_range",
    "label2id",
    "length_penalty",
    "mask_token_id",
    "max_length",
    "min_length",
    "model_type",
    "name_or_path",
    "no_repeat_ngram_size",
    "num_beam_groups",
    "num_beams",
    "num_labels",
    "num_return_sequences",
    "output_attentions",
    "output_hidden_states",
    "output_scores",
    "pad_token_id",
    "prefix",
    "pretraining_tp",
    "problem_type",
    "remove_invalid_values",
    "repetition_penalty",
    "return_dict",
    "return_dict_in_generate",
    "sep_token_id",
    "suppress_tokens",
    "task_specific_params",
    "temperature",
    "tf_legacy_loss",
    "tokenizer_class",
    "top_k",
    "top_p",
    "torch_dtype",
    "torchscript",
    "transformers.js_config",
    "transformers_version",
    "typical_p",
    "unk_token_id",
    "use_bfloat16",
    "use_flash_attn",
    "use_cache",
];

/// Whether a key is known to change nothing: by its name, or because it is about dropout.
pub(super) fn is_harmless(key: &str) -> bool {
    HARMLESS.contains(&key) || key.contains("drop") || key.starts_with("summary_")
}

/// Parts of the names of keys that change what a model computes, in any family: a key with one of them that its own family does not know
/// is more likely another model than bookkeeping.
const GRAVE: &[&str] = &[
    "act_fn",
    "activation",
    "alibi",
    "attention",
    "attn",
    "bias",
    "clip",
    "conv",
    "embed",
    "expert",
    "ffn",
    "gate",
    "head",
    "hidden_act",
    "layer_type",
    "logit",
    "lora_rank",
    "mamba",
    "mlp",
    "moe",
    "multiplier",
    "norm",
    "parallel_residual",
    "position",
    "quantization",
    "residual",
    "rope",
    "rotary",
    "scale",
    "scaling",
    "sliding",
    "softcap",
    "ssm",
    "window",
];

/// Whether the name of a key speaks of the computation.
pub(super) fn may_matter(key: &str) -> bool {
    GRAVE.iter().any(|part| key.contains(part))
}

/// Tells of keys that are ignored, once for each file.
pub(super) fn tell_ignored(path: &Path, keys: &[&str]) {
    static TOLD: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());
    if keys.is_empty() {
        return;
    }
    let line = format!(
        "warning: {}: ignored, as nothing of the computation: {}",
        path.display(),
        keys.join(", ")
    );
    let mut told = TOLD.lock().unwrap_or_else(PoisonError::into_inner);
    if told.insert(line.clone()) {
        eprintln!("{line}");
    }
}
