//! Which of transformers' tokenizer classes reads a folder without a `tokenizer.json`, and what that class says without being asked.
//!
//! Source: transformers 5, `models/auto/tokenization_auto.py` (which class) and `models/*/tokenization_*.py` (special tokens).

use serde_json::{Map, Value};

use super::SpecialTokens;

/// What a class builds from its files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    /// GPT-2's words in the byte alphabet.
    Gpt2,
    /// The same behind Unicode's composition.
    GptNeoX,
    /// Qwen's words, digits one by one.
    Qwen2,
    /// GPT-2's words between RoBERTa's marks.
    Roberta,
    /// BERT's words and pieces.
    Bert,
    /// The same between MPNet's marks.
    MpNet,
    /// LLaMA's merges of a SentencePiece model.
    Llama,
    /// Gemma's.
    Gemma,
    /// T5's likeliest pieces, and its sentinels.
    T5,
    /// XLM-RoBERTa's, in fairseq's order.
    XlmRoberta,
    /// ALBERT's.
    Albert,
    /// mBART's: XLM-RoBERTa's order, and a language behind each text.
    MBart,
    /// Pegasus's, behind a hundred marks.
    Pegasus,
    /// What the SentencePiece model itself says.
    AsWritten,
}

impl Form {
    /// Whether its file is a SentencePiece model.
    pub(super) fn is_sentencepiece(self) -> bool {
        use Form::{Albert, AsWritten, Gemma, Llama, MBart, Pegasus, T5, XlmRoberta};
        matches!(
            self,
            Llama | Gemma | T5 | XlmRoberta | Albert | MBart | Pegasus | AsWritten
        )
    }
}

/// A class: its names, the models whose class it is, what it builds, and its special tokens by role.
struct Class {
    names: &'static [&'static str],
    model_types: &'static [&'static str],
    form: Form,
    special: &'static [(&'static str, &'static str)],
}

const GPT2_TOKENS: &[(&str, &str)] = &[
    ("bos_token", "<|endoftext|>"),
    ("eos_token", "<|endoftext|>"),
    ("unk_token", "<|endoftext|>"),
];
const ROBERTA_TOKENS: &[(&str, &str)] = &[
    ("bos_token", "<s>"),
    ("eos_token", "</s>"),
    ("unk_token", "<unk>"),
    ("sep_token", "</s>"),
    ("pad_token", "<pad>"),
    ("cls_token", "<s>"),
    ("mask_token", "<mask>"),
];

#[rustfmt::skip]
const CLASSES: &[Class] = &[
    Class {
        names: &["GPT2Tokenizer", "CodeGenTokenizer"],
        model_types: &["gpt2", "gptj", "gpt_neo", "phi", "opt", "starcoder2", "codegen", "dbrx"],
        form: Form::Gpt2,
        special: GPT2_TOKENS,
    },
    Class {
        names: &["GPTNeoXTokenizer"],
        model_types: &["gpt_neox", "mamba", "mamba2", "falcon_mamba", "mpt", "olmo", "olmoe"],
        form: Form::GptNeoX,
        special: &[
            ("bos_token", "<|endoftext|>"), ("eos_token", "<|endoftext|>"), ("unk_token", "<|endoftext|>"),
            ("pad_token", "<|padding|>"),
        ],
    },
    Class {
        names: &["Qwen2Tokenizer"],
        model_types: &["qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "qwen3_next"],
        form: Form::Qwen2,
        special: &[
            ("eos_token", "<|endoftext|>"), ("unk_token", "<|endoftext|>"), ("pad_token", "<|endoftext|>"),
        ],
    },
    Class {
        names: &["RobertaTokenizer", "BartTokenizer", "LongformerTokenizer", "LEDTokenizer", "MvpTokenizer"],
        model_types: &["roberta", "roberta-prelayernorm", "bart", "longformer", "led", "mvp"],
        form: Form::Roberta,
        special: ROBERTA_TOKENS,
    },
    Class {
        names: &["BertTokenizer", "DistilBertTokenizer", "ElectraTokenizer", "MobileBertTokenizer", "SqueezeBertTokenizer",
            "ConvBertTokenizer", "LxmertTokenizer", "RetriBertTokenizer", "LayoutLMTokenizer"],
        model_types: &["bert", "distilbert", "electra", "mobilebert", "squeezebert", "convbert", "nomic_bert", "megatron-bert"],
        form: Form::Bert,
        special: &[
            ("unk_token", "[UNK]"), ("sep_token", "[SEP]"), ("pad_token", "[PAD]"), ("cls_token", "[CLS]"),
            ("mask_token", "[MASK]"),
        ],
    },
    Class {
        names: &["MPNetTokenizer"],
        model_types: &["mpnet"],
        form: Form::MpNet,
        special: &[
            ("bos_token", "<s>"), ("eos_token", "</s>"), ("unk_token", "[UNK]"), ("sep_token", "</s>"), ("pad_token", "<pad>"),
            ("cls_token", "<s>"), ("mask_token", "<mask>"),
        ],
    },
    Class {
        names: &["LlamaTokenizer"],
        model_types: &[],
        form: Form::Llama,
        special: &[("bos_token", "<s>"), ("eos_token", "</s>"), ("unk_token", "<unk>")],
    },
    Class {
        names: &["GemmaTokenizer"],
        model_types: &["gemma", "gemma2", "gemma3", "gemma3_text", "recurrent_gemma", "t5gemma"],
        form: Form::Gemma,
        special: &[
            ("bos_token", "<bos>"), ("eos_token", "<eos>"), ("unk_token", "<unk>"), ("pad_token", "<pad>"),
            ("mask_token", "<mask>"),
        ],
    },
    Class {
        names: &["T5Tokenizer"],
        model_types: &["t5", "mt5", "switch_transformers"],
        form: Form::T5,
        special: &[("eos_token", "</s>"), ("unk_token", "<unk>"), ("pad_token", "<pad>")],
    },
    Class {
        names: &["XLMRobertaTokenizer"],
        model_types: &["xlm-roberta", "xmod", "gte"],
        form: Form::XlmRoberta,
        special: ROBERTA_TOKENS,
    },
    Class {
        names: &["AlbertTokenizer"],
        model_types: &["albert"],
        form: Form::Albert,
        special: &[
            ("bos_token", "[CLS]"), ("eos_token", "[SEP]"), ("unk_token", "<unk>"), ("sep_token", "[SEP]"), ("pad_token", "<pad>"),
            ("cls_token", "[CLS]"), ("mask_token", "[MASK]"),
        ],
    },
    Class {
        names: &["MBartTokenizer"],
        model_types: &["mbart"],
        form: Form::MBart,
        special: ROBERTA_TOKENS,
    },
    Class {
        names: &["PegasusTokenizer"],
        model_types: &["pegasus"],
        form: Form::Pegasus,
        special: &[
            ("eos_token", "</s>"), ("unk_token", "<unk>"), ("pad_token", "<pad>"), ("mask_token", "<mask_2>"),
        ],
    },
];

/// Models whose SentencePiece pieces stand in an order of their own that is not read here; their `tokenizer.json` has it.
const OF_THEIR_OWN: &[(&str, &str)] = &[
    ("camembert", "CamembertTokenizer"),
    ("xglm", "XGLMTokenizer"),
    ("mbart50", "MBart50Tokenizer"),
    ("m2m_100", "M2M100Tokenizer"),
    ("nllb", "NllbTokenizer"),
    ("nllb-moe", "NllbTokenizer"),
    ("marian", "MarianTokenizer"),
    ("deberta-v2", "DebertaV2Tokenizer"),
    ("xlnet", "XLNetTokenizer"),
    ("rembert", "RemBertTokenizer"),
    ("big_bird", "BigBirdTokenizer"),
    ("fnet", "FNetTokenizer"),
];

/// Names that say nothing of how texts are cut.
const GENERIC: &[&str] = &[
    "PreTrainedTokenizer",
    "PreTrainedTokenizerFast",
    "TokenizersBackend",
    "PythonBackend",
];

/// Models whose SentencePiece model is read as it is written, whatever class their folder names.
const AS_WRITTEN: &[&str] = &[
    "mistral",
    "mixtral",
    "mistral3",
    "ministral",
    "stablelm",
    "phi3",
    "umt5",
    "internlm2",
    "minicpm3",
    "jamba",
    "olmo2",
    "granite",
];

/// The class of a folder.
#[derive(Debug, Clone, Copy)]
pub(super) enum Chosen {
    /// One that is known.
    Known(&'static str, Form),
    /// None is named, or one that leaves it open.
    Open,
}

/// The class that a folder's `tokenizer_config.json` or `config.json` names, else the model's own; the name where nobody knows it.
pub(super) fn choose(
    config: &Map<String, Value>,
    model: &Map<String, Value>,
) -> Result<Chosen, String> {
    let text =
        |map: &Map<String, Value>, key| map.get(key).and_then(Value::as_str).map(str::to_owned);
    let model_type = text(model, "model_type").unwrap_or_default();
    let named = text(config, "tokenizer_class")
        .or_else(|| text(model, "tokenizer_class"))
        .map(|name| name.strip_suffix("Fast").unwrap_or(&name).to_owned())
        .filter(|name| !GENERIC.contains(&name.as_str()));
    let own = CLASSES
        .iter()
        .find(|class| class.model_types.contains(&model_type.as_str()));
    if AS_WRITTEN.contains(&model_type.as_str()) && named.as_deref() == Some("LlamaTokenizer") {
        return Ok(Chosen::Known("LlamaTokenizer", Form::AsWritten));
    }
    let strange = OF_THEIR_OWN.iter().find(|(own, _)| *own == model_type);
    if let (None, Some((_, class))) = (&named, strange) {
        return Err((*class).to_owned());
    }
    let Some(name) = named else {
        return Ok(own.map_or(Chosen::Open, |class| {
            Chosen::Known(class.names[0], class.form)
        }));
    };
    let class = CLASSES
        .iter()
        .find(|class| class.names.contains(&name.as_str()));
    class
        .map(|class| Chosen::Known(class.names[0], class.form))
        .ok_or(name)
}

/// Gives the special tokens of a class that are `known` the roles that the folder leaves open; a role that it sets to null stays open.
pub(super) fn fill_special(
    name: &str,
    config: &Map<String, Value>,
    known: &dyn Fn(&str) -> bool,
    special: &mut SpecialTokens,
) {
    let class = CLASSES.iter().find(|class| class.names.contains(&name));
    let usual = class.into_iter().flat_map(|class| class.special);
    let open = usual.filter(|(role, token)| !config.contains_key(*role) && known(token));
    special.fill_from(
        &open
            .map(|(role, token)| ((*role).to_owned(), Value::from(*token)))
            .collect(),
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn form(config: Value, model: Value) -> Option<Form> {
        let map = |value: Value| value.as_object().cloned().unwrap();
        match choose(&map(config), &map(model)).unwrap() {
            Chosen::Known(_, form) => Some(form),
            Chosen::Open => None,
        }
    }

    #[test]
    fn the_folder_s_class_wins_over_the_model_s() {
        let class = |name: &str| json!({ "tokenizer_class": name });
        let model = |name: &str| json!({ "model_type": name });
        assert_eq!(
            form(class("RobertaTokenizerFast"), model("gpt2")),
            Some(Form::Roberta)
        );
        assert_eq!(
            form(class("PreTrainedTokenizerFast"), model("qwen3")),
            Some(Form::Qwen2)
        );
        assert_eq!(
            form(json!({}), json!({ "tokenizer_class": "T5Tokenizer" })),
            Some(Form::T5)
        );
        assert_eq!(
            form(class("LlamaTokenizer"), model("llama")),
            Some(Form::Llama)
        );
        assert_eq!(
            form(class("LlamaTokenizer"), model("mistral")),
            Some(Form::AsWritten)
        );
        assert_eq!(form(json!({}), model("llama")), None);
        let unknown = json!({ "tokenizer_class": "BertJapaneseTokenizer" });
        assert_eq!(
            choose(unknown.as_object().unwrap(), &Map::new()).unwrap_err(),
            "BertJapaneseTokenizer"
        );
    }

    #[test]
    fn a_model_with_an_order_of_its_own_is_not_taken_for_another() {
        let model = json!({ "model_type": "xglm" });
        let chosen = choose(&Map::new(), model.as_object().unwrap());
        assert_eq!(chosen.unwrap_err(), "XGLMTokenizer");
    }

    #[test]
    fn a_role_set_to_null_stays_open() {
        let config = json!({ "pad_token": null, "eos_token": "<end>" });
        let config = config.as_object().unwrap();
        let mut special = SpecialTokens::default();
        special.fill_from(config);
        fill_special(
            "Qwen2Tokenizer",
            config,
            &|token| token != "<pad>",
            &mut special,
        );
        assert_eq!(special.eos.as_deref(), Some("<end>"));
        assert_eq!(
            (special.pad, special.unk.as_deref()),
            (None, Some("<|endoftext|>"))
        );
    }
}
