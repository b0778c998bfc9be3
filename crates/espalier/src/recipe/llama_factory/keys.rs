//! What every key of a training file becomes.

use std::path::PathBuf;

use serde_json::{Value, json};
use toml::{Table, Value as Toml};

use super::{Reading, data_sets, options::options, ppo, preferences, set};
use crate::Result;

/// Keys that change nothing of what is computed here: where things are kept, shown or sent, and how fast they are got ready.
const HARMLESS: &[&str] = &[
    "cache_dir",
    "dataloader_num_workers",
    "dataloader_pin_memory",
    "ddp_timeout",
    "data_shared_file_system",
    "double_quantization_device",
    "eval_on_each_dataset",
    "flash_attn",
    "hf_hub_token",
    "include_effective_tokens_per_second",
    "include_num_input_tokens_seen",
    "low_cpu_mem_usage",
    "model_revision",
    "overwrite_cache",
    "overwrite_output_dir",
    "plot_loss",
    "preprocessing_batch_size",
    "preprocessing_num_workers",
    "remove_unused_columns",
    "report_to",
    "run_name",
    "save_only_model",
    "save_safetensors",
    "trust_remote_code",
    "use_fast_tokenizer",
    "use_kv_cache",
    "use_reentrant_gc",
    "use_unsloth_gc",
    "use_v1_kernels",
    "gradient_checkpointing",
    "gradient_checkpointing_kwargs",
    "infer_dtype",
    "logging_strategy",
    "ms_hub_token",
    "offload_folder",
    "om_hub_token",
    "per_device_eval_batch_size",
    "compute_accuracy",
    "print_param_status",
    "enable_liger_kernel",
    "use_unsloth",
    // How pictures and sounds are read; data that has some is refused.
    "audio_sampling_rate",
    "crop_to_patches",
    "freeze_multi_modal_projector",
    "freeze_vision_tower",
    "image_do_pan_and_scan",
    "image_max_pixels",
    "image_min_pixels",
    "use_audio_in_video",
    "video_fps",
    "video_max_pixels",
    "video_maxlen",
    "video_min_pixels",
];

/// Keys that mean something which has no counterpart, unless they have the value beside them.
fn without_counterpart() -> Vec<(&'static str, Vec<Value>)> {
    let no = || vec![json!(false)];
    vec![
        ("adapter_folder", vec![]),
        ("badam_mode", vec![]),
        ("buffer_size", vec![json!(16384)]),
        ("deepspeed", vec![]),
        ("disable_shuffling", no()),
        ("do_eval", vec![json!(true), json!(false)]),
        ("do_predict", no()),
        ("do_train", vec![json!(true)]),
        ("early_stopping_steps", vec![]),
        ("fp16", no()),
        ("fp8", no()),
        ("freeze_language_model", no()),
        ("fsdp", vec![json!("")]),
        ("infer_backend", vec![json!("huggingface")]),
        ("init_special_tokens", vec![]),
        ("interleave_probs", vec![]),
        ("media_dir", vec![]),
        ("mix_strategy", vec![json!("concat")]),
        ("mixture_of_depths", vec![]),
        ("neat_packing", vec![json!(true), json!(false)]),
        ("new_special_tokens_config", vec![]),
        ("predict_with_generate", no()),
        ("pure_bf16", no()),
        ("resume_from_checkpoint", vec![json!(true), json!(false)]),
        ("rope_scaling", vec![]),
        ("shift_attn", no()),
        ("split_special_tokens", no()),
        ("streaming", no()),
        ("tokenized_path", vec![]),
        ("tool_format", vec![]),
        ("train_from_scratch", no()),
        ("train_on_prompt", no()),
        ("upcast_layernorm", no()),
        ("upcast_lmhead_output", no()),
        ("use_adam_mini", no()),
        ("use_apollo", no()),
        ("use_asft_loss", no()),
        ("use_badam", no()),
        ("use_eaft_loss", no()),
        ("use_swanlab", no()),
        ("create_new_adapter", no()),
        // An adapter that starts as a part of the base is always written as one on the base as it was.
        ("pissa_convert", vec![json!(true), json!(false)]),
        ("galore_proj_type", vec![json!("std")]),
        ("galore_target", vec![json!("all")]),
        ("loraplus_lr_embedding", vec![json!(1e-6)]),
        ("ref_model_adapters", vec![]),
        ("ref_model_quantization_bit", vec![]),
        ("reward_model_adapters", vec![]),
        ("reward_model_quantization_bit", vec![]),
        (
            "quantization_method",
            vec![json!("bnb"), json!("bitsandbytes")],
        ),
        ("quantization_device_map", vec![]),
        ("default_system", vec![]),
        ("enable_thinking", vec![json!(true)]),
        ("preserve_thinking", no()),
        ("ignore_pad_token_for_loss", vec![json!(true)]),
        ("eval_dataset_dir", vec![]),
        ("resize_vocab", vec![json!(true), json!(false)]),
        ("moe_aux_loss_coef", vec![]),
    ]
}

/// The recipe of one training stage.
pub(super) fn recipe(reading: &mut Reading) -> Result<Table> {
    for key in HARMLESS {
        reading.take(key);
    }
    for (key, harmless) in without_counterpart() {
        reading.refuse_unless(key, &harmless, "has no counterpart here");
    }
    let mut train = Table::new();
    model(reading, &mut train)?;
    objective(reading, &mut train)?;
    adapter(reading, &mut train)?;
    data(reading, &mut train)?;
    let mut options = options(reading)?;
    if reading.keys.get("stage") == Some(&json!("ppo")) {
        ppo::reuse(reading, &mut options)?;
    }
    train.insert("options".into(), Toml::Table(options));
    let output = reading.text("output_dir")?;
    let mut recipe = Table::new();
    set(
        &mut recipe,
        "output",
        Some(output.unwrap_or_else(|| "runs/llama-factory".into())),
    );
    let stage = Table::from_iter([
        ("name".to_owned(), Toml::from("train")),
        ("train".to_owned(), Toml::Table(train)),
    ]);
    recipe.insert("stage".into(), Toml::Array(vec![Toml::Table(stage)]));
    Ok(recipe)
}

fn model(reading: &mut Reading, train: &mut Table) -> Result<()> {
    let model = reading.text("model_name_or_path")?;
    let adapters = reading.list("adapter_name_or_path")?;
    let model = match (&adapters[..], model) {
        ([], Some(model)) => model,
        ([adapter], _) => {
            let remark =
                format!("the adapter `{adapter}` is trained on; its folder names its base");
            reading.remarks.push(remark);
            adapter.clone()
        }
        ([_, _, ..], _) => {
            let reason = "names several adapters, of which one is trained at a time";
            reading.refuse("adapter_name_or_path", reason);
            String::new()
        }
        ([], None) => {
            let reason = match reading.take("model") {
                Some(_) => {
                    "`model` without `model_name_or_path` is of LLaMA-Factory's files for its version 1, which are not read"
                }
                None => "`model_name_or_path` is missing",
            };
            reading.refused.push(reason.into());
            String::new()
        }
    };
    set(train, "model", Some(model));
    let mut added = reading.list("add_tokens")?;
    added.extend(reading.list("add_special_tokens")?);
    if !added.is_empty() {
        set(train, "add_tokens", Some(added));
    }
    // Theirs are written for models whose tokenizers have the same template as Jinja.
    match reading.text("template")?.as_deref() {
        None => {}
        Some("chatml") => set(train, "template", Some("chatml")),
        Some(name) => reading.remarks.push(format!(
            "`template: {name}`: the template of the model's own tokenizer is used"
        )),
    }
    Ok(())
}

fn objective(reading: &mut Reading, train: &mut Table) -> Result<()> {
    let stage = reading.text("stage")?;
    let sft = of_sft(reading, stage.as_deref())?;
    let ppo = ppo::Keys::read(reading)?;
    let objective = match stage.as_deref() {
        Some("dpo") => Toml::Table(preferences::of_dpo(reading)?),
        Some("kto") => Toml::Table(preferences::of_kto(reading)?),
        Some("ppo") => Toml::Table(ppo.objective(reading)?),
        other => {
            preferences::take(reading)?;
            match other {
                Some("pt") => Toml::from("pretrain"),
                None | Some("sft") => sft,
                // Their heads start as those of TRL do.
                Some("rm") => Toml::from("reward"),
                Some(_) => {
                    reading.refuse(
                        "stage",
                        "has no counterpart here; `pt`, `sft`, `rm`, `ppo`, `dpo` and `kto` have",
                    );
                    return Ok(());
                }
            }
        }
    };
    set(train, "objective", Some(objective));
    Ok(())
}

/// Supervised fine-tuning with the keys that are its own.
fn of_sft(reading: &mut Reading, stage: Option<&str>) -> Result<Toml> {
    let mut options = Table::new();
    for (key, option, value) in [
        ("mask_history", "turns", "last"),
        ("use_dft_loss", "loss", "dft"),
    ] {
        let wanted = reading.flag(key)?;
        if wanted && !matches!(stage, None | Some("sft")) {
            reading.refuse(key, "belongs to the stage `sft`");
        }
        set(&mut options, option, wanted.then_some(value));
    }
    Ok(match options.is_empty() {
        true => Toml::from("sft"),
        false => Toml::Table(Table::from_iter([("sft".to_owned(), Toml::Table(options))])),
    })
}

fn adapter(reading: &mut Reading, train: &mut Table) -> Result<()> {
    let kind = reading.text("finetuning_type")?;
    let rank = reading.integer("lora_rank")?.unwrap_or(8);
    let alpha = reading.number("lora_alpha")?;
    let dropout = reading.number("lora_dropout")?;
    let targets = reading.list("lora_target")?;
    let more = reading.list("additional_target")?;
    let rslora = reading.flag("use_rslora")?;
    let dora = reading.flag("use_dora")?;
    let pissa = reading.flag("pissa_init")?;
    let passes = reading.integer("pissa_iter")?;
    let ratio = reading.number("loraplus_lr_ratio")?;
    let layers = reading.integer("freeze_trainable_layers")?;
    let modules = reading.list("freeze_trainable_modules")?;
    let extra = reading.list("freeze_extra_modules")?;
    let expanded = reading.flag("use_llama_pro")?;
    let bits = reading.integer("quantization_bit")?;
    let quantised = reading.text("quantization_type")?;
    let double = reading.take("double_quantization");
    match kind.as_deref() {
        Some("full") => {}
        None | Some("lora") => {
            let mut lora = Table::new();
            set(&mut lora, "rank", Some(rank));
            set(&mut lora, "alpha", alpha);
            set(
                &mut lora,
                "dropout",
                dropout.filter(|dropout| *dropout != 0.0),
            );
            if targets.iter().all(|target| target != "all") && !targets.is_empty() {
                set(&mut lora, "target_modules", Some(targets));
            }
            if !more.is_empty() {
                set(&mut lora, "modules_to_save", Some(more));
            }
            set(&mut lora, "rslora", rslora.then_some(true));
            set(&mut lora, "dora", dora.then_some(true));
            if pissa {
                let passes = passes.unwrap_or(16);
                let exact = Toml::from("pissa");
                let fast = Toml::from(format!("pissa_niter_{passes}"));
                set(
                    &mut lora,
                    "init",
                    Some(if passes < 0 { exact } else { fast }),
                );
            }
            set(&mut lora, "plus_ratio", ratio);
            if expanded {
                reading.refuse("use_llama_pro", "has a counterpart with `finetuning_type: freeze` alone; name the new blocks in a recipe (`layers_to_transform`)");
            }
            let lora = Table::from_iter([("lora".to_owned(), Toml::Table(lora))]);
            set(train, "adapter", Some(lora));
        }
        Some("freeze") => {
            let mut freeze = Table::new();
            set(&mut freeze, "layers", Some(layers.unwrap_or(2)));
            if modules.iter().all(|module| module != "all") && !modules.is_empty() {
                set(&mut freeze, "modules", Some(modules));
            }
            if !extra.is_empty() {
                set(&mut freeze, "extra_modules", Some(extra));
            }
            set(&mut freeze, "expanded", expanded.then_some(true));
            set(train, "freeze", Some(freeze));
        }
        Some(_) => reading.refuse(
            "finetuning_type",
            "has no counterpart here; `full`, `lora` and `freeze` have",
        ),
    }
    match (bits, quantised.as_deref()) {
        (None, _) => {}
        (Some(4), kind @ (None | Some("nf4" | "fp4"))) => {
            let mut quantise = Table::new();
            set(
                &mut quantise,
                "double",
                double.and_then(|double| double.as_bool()),
            );
            let kind = kind.unwrap_or("nf4").to_owned();
            let quantise = Table::from_iter([(kind, Toml::Table(quantise))]);
            set(train, "quantise", Some(quantise));
        }
        (Some(4), Some(_)) => {
            reading.refuse(
                "quantization_type",
                "has no counterpart; `nf4` and `fp4` have",
            );
        }
        (Some(_), _) => reading.refuse("quantization_bit", "has no counterpart; 4 has"),
    }
    Ok(())
}

fn data(reading: &mut Reading, train: &mut Table) -> Result<()> {
    let folder = reading.text("dataset_dir")?;
    let folder = folder.unwrap_or_else(|| "data".into());
    let limit = reading.integer("max_samples")?;
    let [names, held_out] = [reading.list("dataset")?, reading.list("eval_dataset")?];
    let is_remote = folder == "ONLINE" || folder.starts_with("REMOTE:");
    match names.is_empty() {
        true => reading.refused.push("`dataset` is missing".into()),
        false if is_remote => reading.refuse(
            "dataset_dir",
            "is on a hub; download it, and give the folder",
        ),
        false => {
            let folder = PathBuf::from(folder);
            let sources = data_sets::sources(reading, &folder, &names, limit)?;
            set(train, "data", Some(sources));
            if !held_out.is_empty() {
                let sources = data_sets::sources(reading, &folder, &held_out, limit)?;
                set(train, "validation", Some(sources));
            }
        }
    }
    match reading.number("val_size")? {
        None | Some(0.0) => {}
        Some(share) if share < 1.0 => set(train, "validation_share", Some(share)),
        Some(count) if count.fract() == 0.0 && count < 1e15 => {
            set(train, "validation_count", Some(count as i64));
        }
        Some(_) => reading.refuse("val_size", "is neither a share below 1 nor a count"),
    }
    Ok(())
}
