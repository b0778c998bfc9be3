//! Training files as their users write them.

use super::*;
use crate::recipe::{Recipe, document::parse};
use std::fs;

/// A folder with the data sets' list, and the training file `text` in it.
fn translated(text: &str) -> Result<Translated> {
    let folder = tempfile::tempdir().unwrap();
    let info = r#"{
        "identity": { "file_name": "identity.json" },
        "calls": { "file_name": "calls.json", "formatting": "sharegpt", "columns": { "messages": "conversations", "tools": "tools" } },
        "openai": { "file_name": "o.jsonl", "formatting": "sharegpt", "columns": { "messages": "messages" },
            "tags": { "role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant" } },
        "pairs": { "file_name": "pairs.json", "ranking": true, "formatting": "sharegpt",
            "columns": { "messages": "conversations", "chosen": "chosen", "rejected": "rejected" } },
        "verdicts": { "file_name": "kto.json", "formatting": "sharegpt",
            "columns": { "messages": "conversations", "kto_tag": "kto_tag" } },
        "ours": { "file_name": "q.jsonl", "columns": { "prompt": "question", "response": "output" } },
        "ranked": { "file_name": "r.jsonl", "ranking": true,
            "columns": { "prompt": "prompt", "chosen": "chosen", "rejected": "rejected" } },
        "web": { "file_name": "web.jsonl", "columns": { "prompt": "content" } },
        "hub": { "hf_hub_url": "someone/something" },
        "odd": { "file_name": "odd.json", "formatting": "sharegpt", "tags": { "user_tag": "prompter" } },
        "pictures": { "file_name": "p.json", "columns": { "prompt": "instruction", "images": "images" } }
    }"#;
    fs::write(folder.path().join("dataset_info.json"), info).unwrap();
    let path = folder.path().join("train.yaml");
    let text = text.replace("DATA", &folder.path().display().to_string());
    fs::write(&path, text).unwrap();
    translate(&path)
}

fn value(text: &str) -> Toml {
    let translated = translated(text).unwrap();
    // What it says is a recipe.
    parse::<Recipe>(&translated.recipe, "translated", &[]).unwrap();
    let table: Table = translated.recipe.parse().unwrap();
    table["stage"][0]["train"].clone()
}

fn refusal(text: &str) -> String {
    translated(text).unwrap_err().to_string()
}

/// The project's own example, key by key.
const EXAMPLE: &str = "
### model
model_name_or_path: meta-llama/Meta-Llama-3-8B-Instruct
trust_remote_code: true

### method
stage: sft
do_train: true
finetuning_type: lora
lora_rank: 8
lora_target: all

### dataset
dataset: identity,calls
dataset_dir: DATA
template: llama3
cutoff_len: 2048
max_samples: 1000
overwrite_cache: true
preprocessing_num_workers: 16
dataloader_num_workers: 4

### output
output_dir: saves/llama3-8b/lora/sft
logging_steps: 10
save_steps: 500
plot_loss: true
overwrite_output_dir: true
save_only_model: false
report_to: none  # choices: [none, wandb, tensorboard, swanlab, mlflow]

### train
per_device_train_batch_size: 1
gradient_accumulation_steps: 8
learning_rate: 1.0e-4
num_train_epochs: 3.0
lr_scheduler_type: cosine
warmup_ratio: 0.1
bf16: true
ddp_timeout: 180000000
resume_from_checkpoint: null
";

#[test]
fn the_example_of_the_project_is_a_recipe() {
    let translated = translated(EXAMPLE).unwrap();
    let recipe: Recipe = parse(&translated.recipe, "translated", &[]).unwrap();
    assert_eq!(recipe.output.to_str(), Some("saves/llama3-8b/lora/sft"));
    assert!(translated.remarks[0].contains("`template: llama3`"));
    let train = value(EXAMPLE);
    assert_eq!(train["objective"].as_str(), Some("sft"));
    assert_eq!(train["adapter"]["lora"]["rank"].as_integer(), Some(8));
    assert!(train["adapter"]["lora"].get("target_modules").is_none());
    let options = &train["options"];
    assert_eq!(options["accumulation"].as_integer(), Some(8));
    assert_eq!(options["learning_rate"].as_float(), Some(1e-4));
    assert_eq!(options["warmup"].as_float(), Some(0.1));
    assert_eq!(options["precision"].as_str(), Some("bf16"));
    assert_eq!(options["length"].as_integer(), Some(2048));
    let data = train["data"].as_array().unwrap();
    assert!(data[0]["path"].as_str().unwrap().ends_with("identity.json"));
    assert_eq!(
        (data[0]["form"].as_str(), data[1]["form"].as_str()),
        (Some("alpaca"), Some("sharegpt"))
    );
    assert_eq!(data[1]["limit"].as_integer(), Some(1000));
    assert!(data[1].get("columns").is_none());
}

#[test]
fn learning_rates_that_python_takes_for_texts_are_numbers() {
    let text = EXAMPLE.replace("1.0e-4", "1e-4");
    assert_eq!(
        value(&text)["options"]["learning_rate"].as_float(),
        Some(1e-4)
    );
    let error = refusal(&EXAMPLE.replace("1.0e-4", "fast"));
    assert!(
        error.contains("`learning_rate`: \"fast\" is not a number"),
        "{error}"
    );
}

#[test]
fn forms_and_columns_are_ours() {
    let data = |name: &str| {
        let mut text = EXAMPLE.replace("identity,calls", name);
        if name == "ranked" {
            text = text.replace("stage: sft", "stage: rm");
        }
        value(&text)["data"][0].clone()
    };
    assert_eq!(data("openai")["form"].as_str(), Some("messages"));
    assert!(data("openai").get("columns").is_none());
    let pairs = "model_name_or_path: m\ndataset: pairs\ndataset_dir: DATA\nstage: rm\n";
    let form = value(pairs)["data"][0]["form"].clone();
    assert_eq!(form.as_str(), Some("sharegpt"));
    let refused = refusal(&EXAMPLE.replace("identity,calls", "pairs"));
    assert!(
        refused.contains("`ranking` of the data set `pairs`"),
        "{refused}"
    );
    assert_eq!(data("ours")["form"].as_str(), Some("alpaca"));
    assert_eq!(
        data("ours")["columns"]["instruction"].as_str(),
        Some("question")
    );
    assert_eq!(data("ranked")["form"].as_str(), Some("alpaca"));
    assert_eq!(data("web")["form"].as_str(), Some("text"));
    assert_eq!(data("web")["columns"]["text"].as_str(), Some("content"));
}

#[test]
fn what_has_no_counterpart_is_named_and_all_of_it() {
    let more = |keys: &str| refusal(&format!("{EXAMPLE}{keys}"));
    let error = more("shift_attn: true\nuse_badam: true\nmystery: 3\n");
    for key in [
        "`shift_attn: true`",
        "`use_badam: true`",
        "`mystery: 3` is no key",
    ] {
        assert!(error.contains(key), "{key}: {error}");
    }
    assert!(more("max_samples_: 3\n").contains("max_samples_"));
    let stage = |stage: &str| refusal(&EXAMPLE.replace("stage: sft", stage));
    assert!(stage("stage: grpo").contains("`stage: \"grpo\"`"));
    let all = EXAMPLE.replace("identity,calls", "identiti");
    let all = refusal(&format!("{all}use_badam: true\n"));
    assert!(
        all.contains("`use_badam: true`") && all.contains("`identity`?"),
        "{all}"
    );
    let first = refusal("model: m\ntrain_dataset: data/v1_sft_demo.yaml\n");
    assert!(first.contains("for its version 1"), "{first}");
    let first = refusal("model_name_or_path: m\neval_dataset: identity\ndo_predict: true\n");
    assert!(
        first.contains("`dataset` is missing") && first.contains("`do_predict: true`"),
        "{first}"
    );
    assert!(!first.contains("no key that is known"), "{first}");
    let data = |name: &str| refusal(&EXAMPLE.replace("identity,calls", name));
    assert!(data("hub").contains("`hf_hub_url` of the data set `hub`"));
    assert!(data("odd").contains("neither sharegpt's nor OpenAI's"));
    assert!(data("pictures").contains("`images` of the data set `pictures`"));
    assert!(
        data("identiti").contains("did you mean `identity`?"),
        "{}",
        data("identiti")
    );
    // What means nothing beyond its usual value is nothing.
    assert!(
        translated(&format!(
            "{EXAMPLE}shift_attn: false\nmix_strategy: concat\n"
        ))
        .is_ok()
    );
}

#[test]
fn ways_to_tune_and_optimisers() {
    let with = |keys: &str| value(&format!("{EXAMPLE}{keys}"));
    let lora = with("lora_alpha: 32\nuse_rslora: true\nadditional_target: embed_tokens,lm_head\n");
    let lora = &lora["adapter"]["lora"];
    assert_eq!(lora["alpha"].as_float(), Some(32.0));
    assert_eq!(lora["rslora"].as_bool(), Some(true));
    assert_eq!(lora["modules_to_save"].as_array().unwrap().len(), 2);
    let full = EXAMPLE.replace("finetuning_type: lora", "finetuning_type: full");
    let galore = value(&format!("{full}use_galore: true\ngalore_rank: 64\n"));
    assert!(galore.get("adapter").is_none());
    let own = &galore["options"]["optimiser"]["galore"];
    assert_eq!(
        (own["rank"].as_integer(), own["scale"].as_float()),
        (Some(64), Some(2.0))
    );
    let optimiser = with("optim: paged_adamw_8bit\nneftune_noise_alpha: 5\n");
    assert_eq!(
        optimiser["options"]["optimiser"].as_str(),
        Some("adamw_8bit")
    );
    assert_eq!(
        optimiser["options"]["embedding_noise"].as_float(),
        Some(5.0)
    );
    let dpo = EXAMPLE.replace("stage: sft", "stage: dpo\npref_beta: 0.2\npref_ftx: 0.5");
    let dpo = value(&dpo.replace("identity,calls", "pairs"));
    assert_eq!(dpo["objective"]["dpo"]["beta"].as_float(), Some(0.2));
    assert_eq!(dpo["objective"]["dpo"]["loss"]["sft"].as_float(), Some(0.5));
}

#[test]
fn preferences() {
    let with = |stage: &str, data: &str| {
        let text = EXAMPLE.replace("stage: sft", stage);
        value(&text.replace("identity,calls", data))["objective"].clone()
    };
    let objective = |text: &str| text.parse::<Table>().unwrap()["o"].clone();
    for (keys, expected) in [
        (
            "stage: dpo",
            "o = { dpo = { beta = 0.1, loss = 'sigmoid' } }",
        ),
        (
            "stage: dpo\ndpo_label_smoothing: 0.2",
            "o = { dpo = { beta = 0.1, loss = 'cdpo', label_smoothing = 0.2 } }",
        ),
        (
            "stage: dpo\npref_loss: ipo\npref_bco_weight: 0.5\nref_model: other",
            "o = { dpo = { beta = 0.1, loss = { ipo = 1.0, bco = 0.5 }, reference = { folder = 'other' } } }",
        ),
        (
            "stage: dpo\npref_loss: hinge\nld_alpha: 0.5",
            "o = { dpo = { beta = 0.1, loss = 'hinge', ld_alpha = 0.5 } }",
        ),
        (
            "stage: dpo\npref_loss: kto_pair\npref_beta: 0.3",
            "o = { kto = { beta = 0.3 } }",
        ),
        (
            "stage: dpo\npref_loss: orpo",
            "o = { orpo = { beta = 0.1, nll_on = 'completion' } }",
        ),
        (
            "stage: dpo\npref_loss: simpo\npref_beta: 2\nsimpo_gamma: 1\npref_ftx: 0.1",
            "o = { cpo = { beta = 2.0, loss = 'simpo', simpo_gamma = 1.0, cpo_alpha = 0.1 } }",
        ),
        (
            "stage: dpo\nadapter_name_or_path: mine",
            "o = { dpo = { beta = 0.1, loss = 'sigmoid', reference = 'without_adapter' } }",
        ),
    ] {
        assert_eq!(with(keys, "pairs"), objective(expected), "{keys}");
    }
    let keys = "stage: kto\nkto_chosen_weight: 1.0\nkto_rejected_weight: 1.33";
    let expected =
        "o = { kto = { beta = 0.1, desirable_weight = 1.0, undesirable_weight = 1.33 } }";
    assert_eq!(with(keys, "verdicts"), objective(expected));
    let text = EXAMPLE.replace("stage: sft", keys);
    let data = &value(&text.replace("identity,calls", "verdicts"))["data"][0];
    assert_eq!(data["columns"]["label"].as_str(), Some("kto_tag"));
    for (keys, refused) in [
        ("stage: dpo\npref_loss: exo", "`pref_loss: \"exo\"`"),
        (
            "stage: dpo\npref_loss: orpo\npref_ftx: 1",
            "`pref_ftx: 1` has no counterpart beside",
        ),
        (
            "stage: dpo\npref_loss: simpo\nref_model: x",
            "`ref_model: \"x\"`",
        ),
        ("stage: kto\npref_ftx: 1", "`pref_ftx: 1`"),
    ] {
        let error = refusal(&EXAMPLE.replace("stage: sft", keys));
        assert!(error.contains(refused), "{error}");
    }
}

#[test]
fn reward_models_and_what_is_learned_of_conversations() {
    let of = |data: &str, lines: &str| {
        let text = format!("model_name_or_path: m\ndataset: {data}\ndataset_dir: DATA\n{lines}\n");
        value(&text)["objective"].clone()
    };
    assert_eq!(of("pairs", "stage: rm").as_str(), Some("reward"));
    let sft = of(
        "identity",
        "stage: sft\nmask_history: true\nuse_dft_loss: true",
    );
    assert_eq!(sft["sft"]["turns"].as_str(), Some("last"));
    assert_eq!(sft["sft"]["loss"].as_str(), Some("dft"));
    let refused = refusal(
        "model_name_or_path: m\ndataset: web\ndataset_dir: DATA\nstage: pt\nuse_dft_loss: true\n",
    );
    assert!(refused.contains("belongs to the stage `sft`"), "{refused}");
}

#[test]
fn what_changed_its_name_is_mapped() {
    let with = |keys: &str| value(&format!("{EXAMPLE}{keys}"));
    let held_out = with("val_size: 100\n");
    assert_eq!(held_out["validation_count"].as_integer(), Some(100));
    let held_out = with("val_size: 0.1\n");
    assert_eq!(held_out["validation_share"].as_float(), Some(0.1));
    let rounded = with("quantization_bit: 4\nquantization_type: fp4\ndouble_quantization: false\n");
    assert_eq!(rounded["quantise"]["fp4"]["double"].as_bool(), Some(false));
    let frozen = EXAMPLE.replace("finetuning_type: lora", "finetuning_type: freeze");
    let frozen = format!("{frozen}freeze_trainable_layers: 8\nuse_llama_pro: true\n");
    let frozen = value(&frozen);
    assert_eq!(frozen["freeze"]["layers"].as_integer(), Some(8));
    assert_eq!(frozen["freeze"]["expanded"].as_bool(), Some(true));
    let galore = EXAMPLE
        .replace("finetuning_type: lora", "finetuning_type: full")
        .replace(
            "gradient_accumulation_steps: 8",
            "gradient_accumulation_steps: 1",
        );
    let galore = value(&format!(
        "{galore}use_galore: true\ngalore_layerwise: true\n"
    ));
    assert_eq!(galore["options"]["release_gradients"].as_bool(), Some(true));
    let expanded = refusal(&format!("{EXAMPLE}use_llama_pro: true\n"));
    assert!(expanded.contains("`use_llama_pro: true`"), "{expanded}");
    let hub = EXAMPLE.replace("dataset_dir: DATA", "dataset_dir: REMOTE:a/b");
    assert!(refusal(&hub).contains("`dataset_dir: \"REMOTE:a/b\"`"));
}

#[test]
fn rewarded_answers() {
    let keys = "stage: ppo\nreward_model: runs/reward\nreward_model_type: full\nref_model: null\nppo_buffer_size: 2\nppo_epochs: 3\n\
        ppo_target: 5\nppo_whiten_rewards: true\nmax_new_tokens: 128\ntop_k: 0\ntop_p: 0.9\nlength_penalty: 1\nmax_steps: 10\nwarmup_steps: 2";
    let train = value(&EXAMPLE.replace("stage: sft", keys));
    let expected = "o = { ppo = { rollout = { rewards = [{ model = { path = 'runs/reward' } }], max_completion_length = 128, temperature = 0.95, \
        top_p = 0.9, top_k = 0 }, num_ppo_epochs = 3, num_mini_batches = 2, kl_coef = 0.2, kl_target = 5.0, kl_horizon = 10000.0, \
        whiten_rewards = true } }";
    assert_eq!(train["objective"], expected.parse::<Table>().unwrap()["o"]);
    let options = &train["options"];
    // One of theirs a forward pass, eight of these a step, two steps a round: a batch of answers is sixteen.
    assert_eq!(
        ["batch", "accumulation", "steps", "checkpoint_every"].map(|key| options[key].as_integer()),
        [Some(2), Some(8), Some(60), Some(3000)]
    );
    assert_eq!(options["warmup"].as_float(), Some(12.0));
    for (keys, refused) in [
        ("stage: ppo", "`reward_model` is missing"),
        (
            "stage: ppo\nreward_model: http://localhost\nreward_model_type: api",
            "`reward_model_type: \"api\"`",
        ),
        (
            "stage: ppo\nreward_model: m\nppo_score_norm: true",
            "`ppo_score_norm: true`",
        ),
        (
            "stage: ppo\nreward_model: m\nnum_beams: 4",
            "`num_beams: 4`",
        ),
        (
            "stage: ppo\nreward_model: m\nreward_model_quantization_bit: 4",
            "`reward_model_quantization_bit: 4`",
        ),
    ] {
        let error = refusal(&EXAMPLE.replace("stage: sft", keys));
        assert!(error.contains(refused), "{keys}: {error}");
    }
    // In other stages these keys mean nothing, as there.
    let others = "reward_model: m\nreward_model_type: api\nppo_epochs: 3\nnum_beams: 4\nmax_new_tokens: 12\n";
    assert_eq!(
        value(&format!("{EXAMPLE}{others}"))["objective"].as_str(),
        Some("sft")
    );
}

/// The project's own examples of LoRA, full tuning, QLoRA and extras by what they say besides the first: recipes, or refused with
/// these keys.
#[test]
fn the_examples_of_the_project_are_recipes_or_their_keys_are_named() {
    const PICTURES: &str = "image_max_pixels: 262144\nvideo_max_pixels: 16384\n";
    const FULL: (&str, &str) = ("finetuning_type: lora", "finetuning_type: full");
    const PAIRS: (&str, &str) = ("identity,calls", "pairs");
    type Case<'a> = (&'a str, &'a [(&'a str, &'a str)], &'a str, &'a [&'a str]);
    let cases: &[Case<'_>] = &[
        ("lora sft", &[], "", &[]),
        (
            "lora dpo",
            &[("stage: sft", "stage: dpo"), PAIRS],
            "pref_beta: 0.1\npref_loss: sigmoid  # choices: [sigmoid (dpo), orpo, simpo]\n",
            &[],
        ),
        (
            "lora pretrain",
            &[("stage: sft", "stage: pt"), ("identity,calls", "web")],
            "",
            &[],
        ),
        (
            "lora sft ds3",
            &[],
            "deepspeed: examples/deepspeed/ds_z3_config.json\n",
            &["deepspeed"],
        ),
        (
            "lora sft ray",
            &[],
            "ray_num_workers: 4\n",
            &["ray_num_workers"],
        ),
        (
            "preprocess",
            &[],
            "tokenized_path: saves/dataset/sft\n",
            &["tokenized_path"],
        ),
        (
            "pictures",
            &[("identity,calls", "pictures,identity")],
            PICTURES,
            &["images"],
        ),
        (
            "full sft",
            &[FULL],
            "deepspeed: examples/deepspeed/ds_z3_config.json\n",
            &["deepspeed"],
        ),
        (
            "pictures full",
            &[FULL, ("identity,calls", "pictures")],
            "freeze_vision_tower: true\nfreeze_multi_modal_projector: true\nfreeze_language_model: false\n",
            &["images"],
        ),
        (
            "qlora otfq",
            &[],
            "quantization_bit: 4\nquantization_method: bnb\n",
            &[],
        ),
        (
            "qlora npu",
            &[],
            "quantization_bit: 4\nquantization_method: bnb\ndouble_quantization: false\n",
            &[],
        ),
        (
            "adam mini",
            &[FULL],
            "use_adam_mini: true\n",
            &["use_adam_mini"],
        ),
        (
            "apollo",
            &[FULL],
            "use_apollo: true\napollo_rank: 128\n",
            &["use_apollo", "apollo_rank"],
        ),
        (
            "badam",
            &[FULL],
            "use_badam: true\nbadam_mode: layer\n",
            &["use_badam", "badam_mode"],
        ),
        (
            "fp8",
            &[FULL],
            "fp8: true\nfp8_backend: torchao\n",
            &["fp8", "fp8_backend"],
        ),
        (
            "llama pro",
            &[("finetuning_type: lora", "finetuning_type: freeze")],
            "use_llama_pro: true\n",
            &[],
        ),
        ("lora plus", &[], "loraplus_lr_ratio: 16.0\n", &[]),
        (
            "depths",
            &[FULL],
            "mixture_of_depths: convert\noptim: paged_adamw_8bit\n",
            &["mixture_of_depths"],
        ),
        ("muon", &[FULL], "use_muon: true\n", &[]),
        (
            "predict",
            &[],
            "do_predict: true\npredict_with_generate: true\n",
            &["do_predict", "predict_with_generate"],
        ),
        (
            "oft",
            &[("finetuning_type: lora", "finetuning_type: oft")],
            "oft_block_size: 32\n",
            &["finetuning_type", "oft_block_size"],
        ),
        (
            "pissa",
            &[],
            "pissa_init: true\npissa_iter: 16\npissa_convert: true\n",
            &[],
        ),
    ];
    for (name, changes, keys, refused) in cases {
        let text = changes.iter().fold(EXAMPLE.to_owned(), |text, (old, new)| {
            text.replace(old, new)
        });
        match translated(&format!("{text}{keys}")) {
            Ok(translated) => {
                assert!(refused.is_empty(), "{name}");
                parse::<Recipe>(&translated.recipe, "translated", &[]).unwrap();
            }
            Err(error) => {
                let error = error.to_string();
                assert!(!refused.is_empty(), "{name}: {error}");
                let named = |key: &&&str| error.contains(&format!("`{key}"));
                assert_eq!(
                    refused.iter().filter(named).count(),
                    refused.len(),
                    "{name}: {error}"
                );
            }
        }
    }
}
