//! How the files of each architecture name and change the tensors of Hugging Face's.
//!
//! Names are llama.cpp's (`gguf-py`, `tensor_mapping.py`), changes those of its converters: LLaMA's queries and keys have the two halves of a
//! head's rows in turns, for rotary positions that turn neighbours; Gemma's norms have the one added that the class adds itself; the
//! experts of a layer lie in one tensor; Mamba's `A` is `-e^A_log`; GPT-2's matrices are the right way round.

use super::Change;

/// What the files of an architecture are to ours.
#[derive(Debug)]
pub struct Layout {
    /// `general.architecture`.
    pub architecture: &'static str,
    /// `model_type` of the family.
    pub family: &'static str,
    /// Tensors here and there, without `.weight` and `.bias`; `{}` is the number of a block, and a second one that of an expert.
    pub names: &'static [&'static [(&'static str, &'static str)]],
    /// Whether queries and keys have the halves of their heads' rows in turns.
    pub rotary: bool,
    /// Whether norms have one added.
    pub norms_from_one: bool,
    /// Whether matrices that the family stores `[in, out]` are the other way round.
    pub upright: bool,
}

const LLAMA: &[(&str, &str)] = &[
    ("token_embd", "model.embed_tokens"),
    ("output_norm", "model.norm"),
    ("output", "lm_head"),
    ("blk.{}.attn_norm", "model.layers.{}.input_layernorm"),
    ("blk.{}.attn_q", "model.layers.{}.self_attn.q_proj"),
    ("blk.{}.attn_k", "model.layers.{}.self_attn.k_proj"),
    ("blk.{}.attn_v", "model.layers.{}.self_attn.v_proj"),
    ("blk.{}.attn_output", "model.layers.{}.self_attn.o_proj"),
    ("blk.{}.attn_q_norm", "model.layers.{}.self_attn.q_norm"),
    ("blk.{}.attn_k_norm", "model.layers.{}.self_attn.k_norm"),
    ("blk.{}.ffn_gate", "model.layers.{}.mlp.gate_proj"),
    ("blk.{}.ffn_up", "model.layers.{}.mlp.up_proj"),
    ("blk.{}.ffn_down", "model.layers.{}.mlp.down_proj"),
];

const LLAMA_NORM: &[(&str, &str)] = &[(
    "blk.{}.ffn_norm",
    "model.layers.{}.post_attention_layernorm",
)];

const GEMMA_NORMS: &[(&str, &str)] = &[
    (
        "blk.{}.post_attention_norm",
        "model.layers.{}.post_attention_layernorm",
    ),
    (
        "blk.{}.ffn_norm",
        "model.layers.{}.pre_feedforward_layernorm",
    ),
    (
        "blk.{}.post_ffw_norm",
        "model.layers.{}.post_feedforward_layernorm",
    ),
];

const MIXTRAL: &[(&str, &str)] = &[
    (
        "blk.{}.ffn_gate_inp",
        "model.layers.{}.block_sparse_moe.gate",
    ),
    (
        "blk.{}.ffn_gate_exps",
        "model.layers.{}.block_sparse_moe.experts.{}.w1",
    ),
    (
        "blk.{}.ffn_down_exps",
        "model.layers.{}.block_sparse_moe.experts.{}.w2",
    ),
    (
        "blk.{}.ffn_up_exps",
        "model.layers.{}.block_sparse_moe.experts.{}.w3",
    ),
];

const QWEN_EXPERTS: &[(&str, &str)] = &[
    ("blk.{}.ffn_gate_inp", "model.layers.{}.mlp.gate"),
    (
        "blk.{}.ffn_gate_exps",
        "model.layers.{}.mlp.experts.{}.gate_proj",
    ),
    (
        "blk.{}.ffn_down_exps",
        "model.layers.{}.mlp.experts.{}.down_proj",
    ),
    (
        "blk.{}.ffn_up_exps",
        "model.layers.{}.mlp.experts.{}.up_proj",
    ),
];

const PHI3: &[(&str, &str)] = &[
    ("blk.{}.attn_qkv", "model.layers.{}.self_attn.qkv_proj"),
    ("blk.{}.ffn_up", "model.layers.{}.mlp.gate_up_proj"),
];

const GPT2: &[(&str, &str)] = &[
    ("token_embd", "transformer.wte"),
    ("position_embd", "transformer.wpe"),
    ("output_norm", "transformer.ln_f"),
    ("output", "lm_head"),
    ("blk.{}.attn_norm", "transformer.h.{}.ln_1"),
    ("blk.{}.attn_qkv", "transformer.h.{}.attn.c_attn"),
    ("blk.{}.attn_output", "transformer.h.{}.attn.c_proj"),
    ("blk.{}.ffn_norm", "transformer.h.{}.ln_2"),
    ("blk.{}.ffn_up", "transformer.h.{}.mlp.c_fc"),
    ("blk.{}.ffn_down", "transformer.h.{}.mlp.c_proj"),
];

const MAMBA: &[(&str, &str)] = &[
    ("token_embd", "backbone.embeddings"),
    ("output_norm", "backbone.norm_f"),
    ("output", "lm_head"),
    ("blk.{}.attn_norm", "backbone.layers.{}.norm"),
    ("blk.{}.ssm_in", "backbone.layers.{}.mixer.in_proj"),
    ("blk.{}.ssm_conv1d", "backbone.layers.{}.mixer.conv1d"),
    ("blk.{}.ssm_x", "backbone.layers.{}.mixer.x_proj"),
    ("blk.{}.ssm_dt", "backbone.layers.{}.mixer.dt_proj"),
    ("blk.{}.ssm_a", "backbone.layers.{}.mixer.A_log"),
    ("blk.{}.ssm_d", "backbone.layers.{}.mixer.D"),
    ("blk.{}.ssm_out", "backbone.layers.{}.mixer.out_proj"),
];

const PLAIN: Layout = Layout {
    architecture: "",
    family: "",
    names: &[LLAMA_NORM, LLAMA],
    rotary: false,
    norms_from_one: false,
    upright: false,
};

/// What is read and written. The files of Mistral and Mixtral call themselves `llama`.
pub const LAYOUTS: &[Layout] = &[
    Layout {
        architecture: "llama",
        family: "llama",
        rotary: true,
        ..PLAIN
    },
    Layout {
        architecture: "llama",
        family: "mistral",
        rotary: true,
        ..PLAIN
    },
    Layout {
        architecture: "llama",
        family: "mixtral",
        rotary: true,
        names: &[MIXTRAL, LLAMA_NORM, LLAMA],
        ..PLAIN
    },
    Layout {
        architecture: "qwen2",
        family: "qwen2",
        ..PLAIN
    },
    Layout {
        architecture: "qwen3",
        family: "qwen3",
        ..PLAIN
    },
    Layout {
        architecture: "qwen3moe",
        family: "qwen3_moe",
        names: &[QWEN_EXPERTS, LLAMA_NORM, LLAMA],
        ..PLAIN
    },
    Layout {
        architecture: "gemma",
        family: "gemma",
        norms_from_one: true,
        ..PLAIN
    },
    Layout {
        architecture: "gemma2",
        family: "gemma2",
        norms_from_one: true,
        names: &[GEMMA_NORMS, LLAMA],
        ..PLAIN
    },
    Layout {
        architecture: "gemma3",
        family: "gemma3_text",
        norms_from_one: true,
        names: &[GEMMA_NORMS, LLAMA],
        ..PLAIN
    },
    Layout {
        architecture: "phi3",
        family: "phi3",
        names: &[PHI3, LLAMA_NORM, LLAMA],
        ..PLAIN
    },
    Layout {
        architecture: "gpt2",
        family: "gpt2",
        names: &[GPT2],
        upright: true,
        ..PLAIN
    },
    Layout {
        architecture: "mamba",
        family: "mamba",
        names: &[MAMBA],
        ..PLAIN
    },
];

/// Tensors that say something of rotary positions and are no weights.
pub const FACTORS: [&str; 3] = [
    "rope_freqs.weight",
    "rope_factors_long.weight",
    "rope_factors_short.weight",
];

impl Layout {
    /// The layout of a family's files.
    pub fn of_family(family: &str) -> Option<&'static Self> {
        LAYOUTS.iter().find(|layout| layout.family == family)
    }

    /// The name at Hugging Face of a tensor of a file, `{}` where an expert's number belongs.
    pub fn theirs(&self, name: &str) -> Option<String> {
        let (bare, end) = split_end(name);
        let (pattern, block) = with_block(bare);
        let (_, theirs) = self.pairs().find(|(ours, _)| *ours == pattern)?;
        Some(match block {
            Some(block) => format!("{}{end}", theirs.replacen("{}", block, 1)),
            None => format!("{theirs}{end}"),
        })
    }

    /// The name in a file of a tensor of Hugging Face, and the number of its expert.
    pub fn ours(&self, name: &str) -> Option<(String, Option<usize>)> {
        let (bare, end) = split_end(name);
        self.pairs().find_map(|(ours, theirs)| {
            let numbers = matched(theirs, bare)?;
            let name = match numbers.first() {
                Some(block) => ours.replacen("{}", block, 1),
                None => ours.to_owned(),
            };
            let expert = numbers.get(1).and_then(|number| number.parse().ok());
            Some((format!("{name}{end}"), expert))
        })
    }

    fn pairs(&self) -> impl Iterator<Item = (&'static str, &'static str)> {
        self.names.iter().flat_map(|names| names.iter().copied())
    }

    /// How a tensor of a file differs from Hugging Face's; `heads` are those of queries and of keys.
    pub fn change(&self, name: &str, heads: [usize; 2]) -> Change {
        let (bare, _) = split_end(name);
        let (pattern, _) = with_block(bare);
        match pattern.as_str() {
            "blk.{}.attn_q" if self.rotary => Change::Halves(heads[0]),
            "blk.{}.attn_k" if self.rotary => Change::Halves(heads[1]),
            "blk.{}.ssm_a" => Change::NegatedExponential,
            "blk.{}.ssm_conv1d" if name.ends_with(".weight") => Change::MiddleAxis,
            pattern if self.norms_from_one && pattern.ends_with("_norm") => Change::OneMore,
            _ => Change::None,
        }
    }
}

/// `blk.3.x` as `blk.{}.x` and `3`.
fn with_block(name: &str) -> (String, Option<&str>) {
    let parts = name
        .strip_prefix("blk.")
        .and_then(|rest| rest.split_once('.'));
    match parts {
        Some((block, rest)) if block.bytes().all(|byte| byte.is_ascii_digit()) => {
            (format!("blk.{{}}.{rest}"), Some(block))
        }
        _ => (name.to_owned(), None),
    }
}

fn split_end(name: &str) -> (&str, &str) {
    let end = [".weight", ".bias"]
        .into_iter()
        .find(|end| name.ends_with(end));
    name.split_at(name.len() - end.map_or(0, str::len))
}

/// The numbers that stand for `{}` in a name.
fn matched<'a>(pattern: &str, name: &'a str) -> Option<Vec<&'a str>> {
    let mut parts = pattern.split("{}");
    let mut rest = name.strip_prefix(parts.next()?)?;
    let mut numbers = Vec::new();
    for part in parts {
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        let (number, behind) = rest.split_at(digits);
        if number.is_empty() {
            return None;
        }
        numbers.push(number);
        rest = behind.strip_prefix(part)?;
    }
    rest.is_empty().then_some(numbers)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_go_there_and_back() {
        let layout = Layout::of_family("mixtral").unwrap();
        for (ours, theirs) in [
            ("token_embd.weight", "model.embed_tokens.weight"),
            (
                "blk.12.attn_q.bias",
                "model.layers.12.self_attn.q_proj.bias",
            ),
            (
                "blk.0.ffn_norm.weight",
                "model.layers.0.post_attention_layernorm.weight",
            ),
        ] {
            assert_eq!(layout.theirs(ours).as_deref(), Some(theirs));
            assert_eq!(layout.ours(theirs), Some((ours.to_owned(), None)));
        }
        let expert = "model.layers.3.block_sparse_moe.experts.5.w2.weight";
        assert_eq!(
            layout.ours(expert),
            Some(("blk.3.ffn_down_exps.weight".into(), Some(5)))
        );
        let stack = layout.theirs("blk.3.ffn_down_exps.weight").unwrap();
        assert_eq!(stack.replace("{}", "5"), expert);
        assert_eq!(layout.theirs("blk.3.nothing.weight"), None);
        assert_eq!(layout.ours("model.layers.x.mlp.gate_proj.weight"), None);
        let mamba = Layout::of_family("mamba").unwrap();
        assert_eq!(
            mamba.theirs("blk.1.ssm_a").as_deref(),
            Some("backbone.layers.1.mixer.A_log")
        );
    }
}
