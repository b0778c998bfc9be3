//! The `config.json` that a file's metadata stands for.
//!
//! Keys are those of ggml's `docs/gguf.md` and of llama.cpp's converters. What these leave out is what llama.cpp computes with: Gemma 2's and
//! 3's scores are scaled by the width of a head, but by the width over the heads in their models of 27 billion; Gemma 3's windows are on five of
//! six layers. Llama 3's rotary scaling lies in a tensor of factors, of which its parameters are found again.

use espalier_data::gguf::{Header, Value as Meta};
use serde_json::{Map, Value, json};

use super::layouts::{LAYOUTS, Layout};
use crate::families;

type Result<T> = std::result::Result<T, String>;

/// What a file says of its model, under its architecture's name.
struct Reader<'a> {
    header: &'a Header,
    architecture: &'a str,
}

impl<'a> Reader<'a> {
    fn new(header: &'a Header) -> Result<Self> {
        let architecture = header
            .metadata
            .get("general.architecture")
            .and_then(Meta::as_text);
        Ok(Self {
            header,
            architecture: architecture
                .ok_or("has no `general.architecture`, so that it is no model")?,
        })
    }

    fn get(&self, key: &str) -> Option<&'a Meta> {
        self.header
            .metadata
            .get(&format!("{}.{key}", self.architecture))
    }

    fn wrong(&self, key: &str, expected: &str) -> String {
        match self.get(key) {
            Some(value) => {
                let mut found = format!("{value:?}");
                found.truncate(
                    found
                        .char_indices()
                        .nth(60)
                        .map_or(found.len(), |(end, _)| end),
                );
                format!(
                    "`{}.{key}` is {found}; expected {expected}",
                    self.architecture
                )
            }
            None => format!("lacks `{}.{key}`", self.architecture),
        }
    }

    /// A whole number; of a list of equal ones, one for each layer, that one.
    fn optional_size(&self, key: &str) -> Result<Option<u64>> {
        let Some(value) = self.get(key) else {
            return Ok(None);
        };
        let size = match value.as_list() {
            Some([first, rest @ ..]) if rest.iter().all(|other| other == first) => first.as_u64(),
            _ => value.as_u64(),
        };
        size.map(Some)
            .ok_or_else(|| self.wrong(key, "a whole number, the same for all layers"))
    }

    fn size(&self, key: &str) -> Result<u64> {
        self.optional_size(key)?.ok_or_else(|| self.wrong(key, ""))
    }

    fn optional_number(&self, key: &str) -> Result<Option<f64>> {
        let Some(value) = self.get(key) else {
            return Ok(None);
        };
        value
            .as_f64()
            .map(|number| Some(tidy(number)))
            .ok_or_else(|| self.wrong(key, "a number"))
    }

    fn text(&self, key: &str) -> Option<&'a str> {
        self.get(key)?.as_text()
    }
}

/// An f32 as it was written: `1e-6`, not the nearest double of its bits.
fn tidy(number: f64) -> f64 {
    (number as f32).to_string().parse().unwrap_or(number)
}

/// The layout of a file's tensors.
///
/// # Errors
/// When the architecture is none that is read.
pub(super) fn layout(header: &Header) -> Result<&'static Layout> {
    let reader = Reader::new(header)?;
    let experts = reader.optional_size("expert_count")?.unwrap_or(0) > 0;
    let family = match (reader.architecture, experts) {
        ("llama", true) => "mixtral",
        ("llama", false) => "llama",
        (other, _) => LAYOUTS
            .iter()
            .find(|layout| layout.architecture == other)
            .map(|layout| layout.family)
            .ok_or_else(|| unknown(other))?,
    };
    Layout::of_family(family).ok_or_else(|| unknown(family))
}

fn unknown(architecture: &str) -> String {
    let mut known: Vec<&str> = LAYOUTS.iter().map(|layout| layout.architecture).collect();
    known.dedup();
    let hint = espalier_data::nearest::suggestion(architecture, known.iter().copied());
    format!(
        "is of the architecture `{architecture}`, which is not read{hint}; {} are: give the folder of the safetensors",
        known.join(", ")
    )
}

/// Heads of queries, and of keys.
pub(super) fn heads(header: &Header) -> Result<[usize; 2]> {
    let reader = Reader::new(header)?;
    let Some(queries) = reader.optional_size("attention.head_count")? else {
        return Ok([0; 2]);
    };
    let keys = reader
        .optional_size("attention.head_count_kv")?
        .unwrap_or(queries);
    Ok([queries, keys].map(|count| usize::try_from(count).unwrap_or(0)))
}

/// What reads the shape of a tensor by the name that Hugging Face's checkpoint has for it.
pub(super) type Shape<'a> = dyn Fn(&str) -> Option<Vec<usize>> + 'a;
/// What reads a tensor of rotary factors.
pub(super) type Factors<'a> = dyn Fn(&str) -> Option<Vec<f64>> + 'a;

/// The configuration.
///
/// # Errors
/// When a key is missing or no number, or says something that no family has.
pub(super) fn configuration(
    header: &Header,
    factors: &Factors<'_>,
    shape: &Shape<'_>,
) -> Result<Map<String, Value>> {
    let reader = Reader::new(header)?;
    let layout = layout(header)?;
    let family = families::by_name(layout.family).map_err(|error| error.to_string())?;
    let embedding = layout.theirs("token_embd.weight").unwrap_or_default();
    let rows = shape(&embedding).and_then(|shape| shape.first().copied());
    let rows = rows.ok_or("has no tensor `token_embd.weight`")?;
    let head = layout.theirs("output.weight").unwrap_or_default();
    let mut map = Map::from_iter([
        ("architectures".to_owned(), json!([family.architecture])),
        ("model_type".to_owned(), json!(family.model_type)),
        ("vocab_size".to_owned(), json!(rows)),
        (
            "tie_word_embeddings".to_owned(),
            json!(shape(&head).is_none()),
        ),
    ]);
    map.extend(tokens(header));
    let own = match layout.family {
        "gpt2" => gpt2(&reader)?,
        "mamba" => mamba(&reader)?,
        _ => llama(&reader, layout, factors, shape)?,
    };
    map.extend(own);
    Ok(map)
}

fn object(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(map) => map,
        _ => Map::new(),
    }
}

/// The ids of beginning and end; texts end too with the marks after which llama.cpp stops.
fn tokens(header: &Header) -> Map<String, Value> {
    const ENDS: [&str; 11] = [
        "<|eot_id|>",
        "<|im_end|>",
        "<|end|>",
        "<end_of_turn>",
        "<|endoftext|>",
        "<|eom_id|>",
        "<EOT>",
        "_<EOT>",
        "[EOT]",
        "<|end_of_text|>",
        "<end_of_utterance>",
    ];
    let id = |key: &str| {
        header
            .metadata
            .get(&format!("tokenizer.ggml.{key}_token_id"))?
            .as_u64()
    };
    let mut ends: Vec<u64> = ["eos", "eot", "eom"].into_iter().filter_map(id).collect();
    let list = |key: &str| {
        header
            .metadata
            .get(&format!("tokenizer.ggml.{key}"))
            .and_then(Meta::as_list)
    };
    let kinds = list("token_type").unwrap_or_default();
    for (place, token) in list("tokens").unwrap_or_default().iter().enumerate() {
        let is_mark = kinds
            .get(place)
            .and_then(Meta::as_u64)
            .is_some_and(|kind| kind == 3 || kind == 4);
        if is_mark && token.as_text().is_some_and(|text| ENDS.contains(&text)) {
            ends.push(place as u64);
        }
    }
    let mut seen = std::collections::BTreeSet::new();
    ends.retain(|id| seen.insert(*id));
    let mut map = Map::new();
    for (key, id) in [("bos_token_id", id("bos")), ("pad_token_id", id("padding"))] {
        map.insert(key.into(), json!(id));
    }
    let ends = match &ends[..] {
        [] => Value::Null,
        [one] => json!(one),
        many => json!(many),
    };
    map.insert("eos_token_id".into(), ends);
    map
}

fn gpt2(reader: &Reader<'_>) -> Result<Map<String, Value>> {
    Ok(object(json!({
        "n_embd": reader.size("embedding_length")?,
        "n_head": reader.size("attention.head_count")?,
        "n_layer": reader.size("block_count")?,
        "n_positions": reader.size("context_length")?,
        "n_inner": reader.size("feed_forward_length")?,
        "layer_norm_epsilon": reader.optional_number("attention.layer_norm_epsilon")?.unwrap_or(1e-5),
        "activation_function": "gelu_new",
    })))
}

fn mamba(reader: &Reader<'_>) -> Result<Map<String, Value>> {
    let (width, inner) = (
        reader.size("embedding_length")?,
        reader.size("ssm.inner_size")?,
    );
    if reader.get("ssm.dt_b_c_rms").and_then(Meta::as_bool) == Some(true) {
        return Err(
            "is a Falcon-Mamba, which is not read from GGUF; give the folder of the safetensors"
                .into(),
        );
    }
    Ok(object(json!({
        "hidden_size": width,
        "intermediate_size": inner,
        "expand": inner / width.max(1),
        "num_hidden_layers": reader.size("block_count")?,
        "state_size": reader.size("ssm.state_size")?,
        "conv_kernel": reader.size("ssm.conv_kernel")?,
        "time_step_rank": reader.size("ssm.time_step_rank")?,
        "layer_norm_epsilon": reader.optional_number("attention.layer_norm_rms_epsilon")?.unwrap_or(1e-5),
        "use_bias": false,
        "use_conv_bias": true,
    })))
}

/// The many that are LLaMA with a few switches.
fn llama(
    reader: &Reader<'_>,
    layout: &Layout,
    factors: &Factors<'_>,
    shape: &Shape<'_>,
) -> Result<Map<String, Value>> {
    let (width, heads) = (
        reader.size("embedding_length")?,
        reader.size("attention.head_count")?,
    );
    let rotary = reader.optional_size("rope.dimension_count")?;
    let head = reader
        .optional_size("attention.key_length")?
        .or(rotary.filter(|_| layout.family != "phi3"))
        .unwrap_or(width / heads.max(1));
    let layers = reader.size("block_count")?;
    let mut map = object(json!({
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": reader.optional_size("attention.head_count_kv")?.unwrap_or(heads),
        "head_dim": head,
        "max_position_embeddings": reader.size("context_length")?,
        "rms_norm_eps": reader.optional_number("attention.layer_norm_rms_epsilon")?.unwrap_or(1e-6),
    }));
    let inner = match layout.family {
        "qwen3_moe" => reader.size("expert_feed_forward_length")?,
        _ => reader.size("feed_forward_length")?,
    };
    let experts = reader.optional_size("expert_used_count")?;
    let sliding = reader.optional_size("attention.sliding_window")?;
    let bias = shape("model.layers.0.self_attn.q_proj.bias").is_some();
    let more = match layout.family {
        "llama" => json!({ "intermediate_size": inner, "attention_bias": bias }),
        "mixtral" => json!({
            "intermediate_size": inner, "sliding_window": sliding, "num_experts_per_tok": experts,
            "num_local_experts": reader.size("expert_count")?,
        }),
        "qwen3_moe" => json!({
            "intermediate_size": reader.optional_size("feed_forward_length")?.unwrap_or(inner),
            "moe_intermediate_size": inner, "num_experts": reader.size("expert_count")?,
            "num_experts_per_tok": experts, "norm_topk_prob": true, "decoder_sparse_step": 1, "mlp_only_layers": [],
        }),
        "phi3" => json!({ "intermediate_size": inner, "sliding_window": sliding }),
        "gemma" => {
            json!({ "intermediate_size": inner, "hidden_activation": "gelu_pytorch_tanh", "hidden_act": "gelu_pytorch_tanh" })
        }
        "gemma2" | "gemma3_text" => {
            gemma(reader, layout.family, [width, heads, head, layers], sliding)?
        }
        _ => json!({ "intermediate_size": inner }),
    };
    map.extend(object(more));
    map.entry("intermediate_size").or_insert(json!(inner));
    let partial = rotary.filter(|rotary| *rotary != head && layout.family == "phi3");
    map.extend(positions(
        reader,
        layout.family,
        partial.map(|rotary| rotary as f64 / head as f64),
        factors,
    )?);
    Ok(map)
}

fn gemma(
    reader: &Reader<'_>,
    family: &str,
    [width, heads, head, layers]: [u64; 4],
    sliding: Option<u64>,
) -> Result<Value> {
    // Their largest models alone divide by something else than the width of a head.
    let largest = layers == if family == "gemma2" { 46 } else { 62 };
    let scale = if largest { width / heads.max(1) } else { head };
    let cap = |key: &str| reader.optional_number(key);
    let mut map = json!({
        "hidden_activation": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": scale,
        "sliding_window": sliding.unwrap_or(4096),
        "final_logit_softcapping": cap("final_logit_softcapping")?,
    });
    if family == "gemma2" {
        map["attn_logit_softcapping"] = json!(cap("attn_logit_softcapping")?);
    } else {
        let pattern = reader.get("attention.sliding_window_pattern");
        let every = pattern.and_then(Meta::as_u64).unwrap_or(6).max(1);
        let by_list = pattern.and_then(Meta::as_list);
        let slides = |layer: u64| match by_list {
            _ if sliding.is_none() => false,
            Some(list) => list
                .get(layer as usize)
                .and_then(Meta::as_bool)
                .unwrap_or(true),
            None => (layer + 1) % every != 0,
        };
        let kind = |layer| {
            if slides(layer) {
                "sliding_attention"
            } else {
                "full_attention"
            }
        };
        map["layer_types"] = (0..layers).map(kind).collect();
    }
    Ok(map)
}

/// Rotary positions.
fn positions(
    reader: &Reader<'_>,
    family: &str,
    share: Option<f64>,
    factors: &Factors<'_>,
) -> Result<Map<String, Value>> {
    let usual = if family == "gemma3_text" { 1e6 } else { 1e4 };
    let theta = reader.optional_number("rope.freq_base")?.unwrap_or(usual);
    let mut map = Map::from_iter([("rope_theta".to_owned(), json!(theta))]);
    if family == "gemma3_text" {
        let local = reader.optional_number("rope.freq_base_swa")?.unwrap_or(1e4);
        map.insert("rope_local_base_freq".into(), json!(local));
    }
    if let Some(share) = share {
        map.insert("partial_rotary_factor".into(), json!(share));
    }
    let original = reader.optional_size("rope.scaling.original_context_length")?;
    let stretch = reader.optional_number("rope.scaling.attn_factor")?;
    let factor = reader
        .optional_number("rope.scaling.factor")?
        .or(reader.optional_number("rope.scale_linear")?);
    let long = factors("rope_factors_long.weight").zip(factors("rope_factors_short.weight"));
    let scaling = match (
        reader.text("rope.scaling.type"),
        long,
        factors("rope_freqs.weight"),
    ) {
        (_, Some((long, short)), _) => {
            let original =
                original.ok_or_else(|| reader.wrong("rope.scaling.original_context_length", ""))?;
            map.insert("original_max_position_embeddings".into(), json!(original));
            let mut scaling = json!({ "rope_type": "longrope", "long_factor": tidied(long), "short_factor": tidied(short) });
            if let Some(stretch) = stretch {
                scaling["attention_factor"] = json!(stretch);
            }
            scaling
        }
        (_, None, Some(factors)) => by_factors(reader, theta, &factors)?,
        (None | Some("none"), None, None) => match factor {
            Some(factor) if factor != 1.0 => json!({ "rope_type": "linear", "factor": factor }),
            _ => Value::Null,
        },
        (Some("linear"), ..) => match factor {
            Some(factor) if factor != 1.0 => json!({ "rope_type": "linear", "factor": factor }),
            _ => Value::Null,
        },
        (Some("yarn"), ..) => {
            let mut scaling = json!({ "rope_type": "yarn", "factor": factor.unwrap_or(1.0) });
            if let Some(original) = original {
                scaling["original_max_position_embeddings"] = json!(original);
            }
            if let Some(stretch) = stretch {
                scaling["attention_factor"] =
                    json!(stretch * (0.1 * factor.unwrap_or(1.0).ln() + 1.0));
            }
            scaling
        }
        (Some(other), ..) => {
            return Err(format!(
                "scales rotary positions by `{other}`, which is not read; none, linear, yarn and tensors of factors are"
            ));
        }
    };
    if !scaling.is_null() {
        map.insert("rope_scaling".into(), scaling);
    }
    Ok(map)
}

fn tidied(numbers: Vec<f64>) -> Vec<f64> {
    numbers.into_iter().map(tidy).collect()
}

/// Llama 3's scaling from its factors: one for short waves, the largest for long ones, and between by how many waves fit in the context
/// that the model was trained in first. That is 8192 tokens in all published files, and the bounds 1 and 4 waves.
fn by_factors(reader: &Reader<'_>, theta: f64, factors: &[f64]) -> Result<Value> {
    const CONTEXT: f64 = 8192.0;
    const WAVES: [f64; 2] = [1.0, 4.0];
    let factor = factors
        .iter()
        .fold(1.0f64, |most, factor| most.max(*factor));
    if factor == 1.0 {
        return Ok(Value::Null);
    }
    let width = 2 * factors.len();
    let fits = factors.iter().enumerate().all(|(i, found)| {
        let waves = CONTEXT * theta.powf(-(2.0 * i as f64) / width as f64) / std::f64::consts::TAU;
        let share = ((waves - WAVES[0]) / (WAVES[1] - WAVES[0])).clamp(0.0, 1.0);
        let expected = 1.0 / ((1.0 - share) / factor + share);
        (found - expected).abs() < 1e-4 * expected
    });
    match fits {
        true => Ok(json!({
            "rope_type": "llama3", "factor": factor, "low_freq_factor": WAVES[0], "high_freq_factor": WAVES[1],
            "original_max_position_embeddings": CONTEXT as u64,
        })),
        false => {
            let context = reader.size("context_length")?;
            Ok(json!({
                "rope_type": "longrope", "long_factor": tidied(factors.to_vec()), "short_factor": tidied(factors.to_vec()),
                "original_max_position_embeddings": context, "attention_factor": 1.0,
            }))
        }
    }
}
