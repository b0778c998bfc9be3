//! What must hold of every way to tune a model and of every optimiser, through the real binary; of edits of hidden states, which need
//! prompts, in `reft.rs`.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test may fail loudly"
)]

mod runs;
mod tuned;

use std::{
    cell::Cell,
    fs,
    path::{Path, PathBuf},
};

use espalier::models::checkpoint::TensorFile;
use tuned::{base, base_of, espalier, gap, logged, logits, recipe, run, succeeded};

/// A way to tune.
struct Way {
    /// Its keys in a train stage.
    keys: &'static str,
    /// What it leaves.
    leaves: Leaves,
    /// What a run without learning may change of the logits.
    allowed: f32,
}

#[derive(Clone, Copy, PartialEq)]
enum Leaves {
    /// An adapter that can be merged into its base.
    Mergeable,
    /// An adapter that cannot.
    Apart,
    /// An adapter on a base that is rounded when it is read.
    OverRounded,
    /// A whole model.
    Whole,
}

const fn lora(keys: &'static str) -> Way {
    Way {
        keys,
        leaves: Leaves::Mergeable,
        allowed: 0.0,
    }
}

/// Rows of some tokens besides.
const OF_TOKENS: Way = lora(
    "adapter = { lora = { rank = 2, target_modules = ['q_proj'], trainable_tokens = [40, 9, 57, 30] } }",
);

/// The last norm whole besides.
const WITH_NORM: Way = lora("adapter = { lora = { rank = 2, modules_to_save = ['norm'] } }");

/// Some modules of the last block, and the last norm.
const FROZEN: Way = Way {
    leaves: Leaves::Whole,
    ..lora("freeze = { layers = 1, modules = ['mlp'], extra_modules = ['norm'] }")
};

/// Ways to tune a decoder of attention.
const WAYS: &[Way] = &[
    lora("adapter = { lora = { rank = 4 } }"),
    lora("adapter = { lora = { rank = 4, init = 'gaussian', rslora = true, plus_ratio = 4.0 } }"),
    lora("adapter = { lora = { rank = 4, dora = true } }"),
    lora("adapter = { lora = { rank = 4, dora = true, dropout = 0.1 } }"),
    Way {
        allowed: 1e-4,
        ..lora("adapter = { lora = { rank = 4, init = 'pissa' } }")
    },
    Way {
        allowed: 1e-4,
        ..lora("adapter = { lora = { rank = 4, init = 'pissa_niter_4', dropout = 0.1 } }")
    },
    lora(
        "adapter = { lora = { rank = 4, rank_pattern = { q_proj = 2 }, alpha_pattern = { 'mlp.*' = 3.0 }, layers_to_transform = [1], layers_pattern = ['layers'], exclude_modules = ['o_proj'] } }",
    ),
    lora(
        "adapter = { lora = { rank = 2, target_modules = ['q_proj', 'embed_tokens'], rank_pattern = { embed_tokens = 3 } } }",
    ),
    lora(
        "adapter = { lora = { rank = 2, target_modules = ['v_proj', 'embed_tokens'], ensure_weight_tying = true, rslora = true } }",
    ),
    OF_TOKENS,
    WITH_NORM,
    Way {
        leaves: Leaves::Apart,
        ..lora("adapter = { lora = { rank = 2, lora_bias = true } }")
    },
    Way {
        leaves: Leaves::OverRounded,
        ..lora("quantise = 'nf4'\nadapter = { lora = { rank = 4 } }")
    },
    Way {
        leaves: Leaves::OverRounded,
        ..lora(
            "quantise = 'fp4'\nadapter = { lora = { rank = 4, target_modules = ['q_proj'], trainable_tokens = [40, 9] } }",
        )
    },
    FROZEN,
    Way {
        leaves: Leaves::Whole,
        ..lora("")
    },
];

/// A recurrent model, and the way to tune that it alone has.
const RECURRENT: &str = r#"
[[stage]]
name = "base"
[stage.train]
objective = "pretrain"
data = { world = "g8", as = "text", limit = 48 }
[stage.train.new]
vocabulary = 300
[stage.train.new.config]
model_type = "rwkv7"
hidden_size = 32
num_hidden_layers = 2
intermediate_size = 64
head_size = 16
decay_rank = 8
rate_rank = 8
value_rank = 8
gate_rank = 8
[stage.train.options]
steps = 4
batch = 8
length = 128
learning_rate = 3e-3
"#;

const OF_STATES: Way = Way {
    leaves: Leaves::Apart,
    ..lora("adapter = 'state'")
};

/// A decoder whose projections have biases and whose head is its embedding.
const BIASED: &str = r#"
[[stage]]
name = "base"
[stage.train]
objective = "pretrain"
data = { world = "g8", as = "text", limit = 48 }
[stage.train.new]
vocabulary = 300
[stage.train.new.config]
model_type = "qwen2"
hidden_size = 32
num_hidden_layers = 2
num_attention_heads = 2
num_key_value_heads = 1
intermediate_size = 64
max_position_embeddings = 512
tie_word_embeddings = true
[stage.train.options]
steps = 4
batch = 8
length = 128
learning_rate = 3e-3
"#;

/// Ways to tune that need biases or a tied head.
const OF_BIASED: &[Way] = &[
    lora("adapter = { lora = { rank = 2, bias = 'all' } }"),
    lora(
        "adapter = { lora = { rank = 2, bias = 'lora_only', target_modules = ['q_proj', 'up_proj'] } }",
    ),
    lora(
        "adapter = { lora = { rank = 2, lora_bias = true, target_modules = ['k_proj', 'v_proj'] } }",
    ),
    lora(
        "adapter = { lora = { rank = 2, target_modules = ['v_proj', 'embed_tokens'], ensure_weight_tying = true } }",
    ),
    lora("adapter = { lora = { rank = 2, trainable_tokens = [40, 9] } }"),
];

/// The optimisers with options of their own.
const OPTIMISERS: &[&str] = &[
    "'adamw'",
    "'adamw_8bit'",
    "'muon'",
    "{ galore = { rank = 4, interval = 3 } }",
    "'lion'",
    "'adafactor'",
    "{ sgd = { momentum = 0.9 } }",
];

/// A folder with both bases.
struct Bench {
    folder: tempfile::TempDir,
    attention: PathBuf,
    recurrent: PathBuf,
    biased: PathBuf,
    /// The number of the disk's change at which a run was killed behind its first checkpoint.
    kill: Cell<usize>,
    places: Cell<usize>,
}

impl Bench {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        Self {
            attention: base(folder.path()),
            recurrent: base_of(folder.path(), "recurrent", RECURRENT),
            biased: base_of(folder.path(), "biased", BIASED),
            folder,
            kill: Cell::new(10),
            places: Cell::new(0),
        }
    }

    /// Every way with the model that it tunes.
    fn ways(&self) -> impl Iterator<Item = (&Way, &Path)> {
        let usual = WAYS.iter().map(|way| (way, self.attention.as_path()));
        let biased = OF_BIASED.iter().map(|way| (way, self.biased.as_path()));
        usual
            .chain(biased)
            .chain([(&OF_STATES, self.recurrent.as_path())])
    }

    /// A fresh folder.
    fn place(&self) -> PathBuf {
        self.places.set(self.places.get() + 1);
        let place = self.folder.path().join(self.places.get().to_string());
        fs::create_dir(&place).unwrap();
        place
    }

    /// A run of a way with these options.
    fn tuned(&self, way: &Way, model: &Path, options: &str) -> PathBuf {
        let place = self.place();
        run(&place, &recipe(way.keys, &model.to_string_lossy(), options));
        place
    }

    /// Runs a recipe to its end, and again with a kill behind its first checkpoint; what both leave must be the same.
    fn survives_a_kill(&self, text: &str, name: &str) {
        let [whole, killed] = [self.place(), self.place()];
        run(&whole, text);
        fs::write(killed.join("recipe.toml"), text).unwrap();
        let checkpoint = killed.join("run/01-tuned/checkpoints/step-00000002");
        let mut kill = self.kill.get();
        loop {
            let _ = fs::remove_dir_all(killed.join("run"));
            let output = espalier(&killed, &["run", "recipe.toml"])
                .env("ESPALIER_FAULT", format!("kill:{kill}"))
                .output()
                .unwrap();
            let said = String::from_utf8_lossy(&output.stderr);
            assert!(!output.status.success() && kill < 80, "{name}: {said}");
            if checkpoint.exists() {
                break;
            }
            kill += 1;
        }
        self.kill.set(kill.saturating_sub(2));
        assert!(!killed.join("run/01-tuned/model").exists(), "{name}");
        succeeded(espalier(&killed, &["run", "recipe.toml"]).output().unwrap());
        let [expected, found] = [&whole, &killed].map(|place| runs::files(place));
        assert_eq!(runs::difference(&expected, &found), None, "{name}");
    }
}

fn model(place: &Path) -> PathBuf {
    place.join("run/01-tuned/model")
}

#[test]
fn every_way_starts_from_the_base_learns_accumulates_and_is_merged() {
    let bench = Bench::new();
    for (way, base) in bench.ways() {
        let keys = way.keys;
        let (plain, weights) = (
            logits(base),
            fs::read(base.join("model.safetensors")).unwrap(),
        );
        let still = bench.tuned(way, base, "steps = 2\nbatch = 4\nlearning_rate = 0.0");
        if way.leaves != Leaves::OverRounded {
            let difference = gap(&logits(&model(&still)), &plain);
            assert!(difference <= way.allowed, "{keys}: {difference}");
        }
        let whole = bench.tuned(way, base, "steps = 6\nbatch = 4\nlearning_rate = 2e-3");
        let options = "steps = 6\nbatch = 1\naccumulation = 4\nlearning_rate = 2e-3";
        let parts = bench.tuned(way, base, options);
        let [losses, others, unlearned] =
            [&whole, &parts, &still].map(|place| logged(place, "loss"));
        assert_eq!(losses[0], unlearned[0], "{keys}");
        assert!(
            losses.len() == 6 && losses[5] < losses[0],
            "{keys}: {losses:?}"
        );
        // Which inputs are dropped differs with the batches.
        if !keys.contains("dropout") {
            for (a, b) in losses.iter().zip(&others) {
                let near = (a - b).abs() < 1e-4 * a.max(1.0);
                assert!(near, "{keys}: {a} against {b}");
            }
        }
        assert_eq!(fs::read(base.join("model.safetensors")).unwrap(), weights);
        let adapted = logits(&model(&whole));
        assert!(gap(&adapted, &plain) > 1e-4, "{keys}");
        let merged = bench.place();
        let merge = format!(
            "output = \"run\"\n[[stage]]\nname = \"merged\"\n[stage.merge]\nadapters = [{:?}]\n",
            model(&whole)
        );
        match way.leaves {
            Leaves::Mergeable => {
                run(&merged, &merge);
                let difference = gap(&logits(&merged.join("run/01-merged/model")), &adapted);
                assert!(difference < 1e-5, "{keys}: {difference} merged");
            }
            Leaves::Apart => {
                fs::write(merged.join("recipe.toml"), merge).unwrap();
                let output = espalier(&merged, &["run", "recipe.toml"]).output().unwrap();
                assert!(!output.status.success(), "{keys}");
            }
            Leaves::OverRounded | Leaves::Whole => {}
        }
    }
}

#[test]
fn what_is_saved_computes_what_was_trained() {
    let bench = Bench::new();
    for (way, base) in bench.ways() {
        let whole = bench.tuned(way, base, "steps = 4\nbatch = 4\nlearning_rate = 2e-3");
        // The adapter is trained on, in one step that learns nothing.
        let rounding = way.keys.lines().find(|line| line.starts_with("quantise"));
        let again = Way {
            keys: rounding.unwrap_or_default(),
            leaves: way.leaves,
            allowed: 0.0,
        };
        let options = "steps = 1\nbatch = 4\nlearning_rate = 0.0";
        let again = bench.tuned(&again, &model(&whole), options);
        let [trained, loaded] = [&whole, &again].map(|place| logged(place, "eval_loss"));
        assert_eq!(trained.last(), loaded.last(), "{}", way.keys);
        assert!(trained.last().is_some());
    }
}

#[test]
fn packing_changes_no_loss() {
    let bench = Bench::new();
    for (way, base) in bench.ways() {
        let tuned = bench.tuned(way, base, "steps = 4\nbatch = 4\nlearning_rate = 2e-3");
        let rounding = way.keys.lines().find(|line| line.starts_with("quantise"));
        let again = Way {
            keys: rounding.unwrap_or_default(),
            leaves: way.leaves,
            allowed: 0.0,
        };
        let losses = ["true", "false"].map(|packing| {
            let options = format!("steps = 1\nbatch = 4\nlearning_rate = 0.0\npacking = {packing}");
            let place = bench.tuned(&again, &model(&tuned), &options);
            logged(&place, "eval_loss").last().copied().unwrap()
        });
        let near = (losses[0] - losses[1]).abs() < 1e-5;
        assert!(near, "{}: {losses:?}", way.keys);
    }
}

#[test]
fn a_killed_run_of_any_way_leaves_the_same_files() {
    let bench = Bench::new();
    for (way, base) in bench.ways() {
        let options = "steps = 6\nbatch = 4\nlearning_rate = 2e-3\ncheckpoint_every = 2";
        let text = recipe(way.keys, &base.to_string_lossy(), options);
        bench.survives_a_kill(&text, way.keys);
    }
}

#[test]
fn a_killed_run_with_any_optimiser_leaves_the_same_files() {
    let bench = Bench::new();
    let base = bench.attention.to_string_lossy();
    for optimiser in OPTIMISERS {
        for released in [
            "",
            "release_gradients = true\ngradient_checkpointing = true\nclip = 0.0\n",
        ] {
            let options = format!(
                "steps = 6\nbatch = 4\nlearning_rate = 2e-3\ncheckpoint_every = 2\noptimiser = {optimiser}\n{released}"
            );
            bench.survives_a_kill(&recipe("", &base, &options), &options);
        }
    }
}

#[test]
fn threads_change_no_bit() {
    let bench = Bench::new();
    for (way, base) in bench.ways() {
        let options = "steps = 2\nbatch = 4\nlearning_rate = 2e-3";
        let text = recipe(way.keys, &base.to_string_lossy(), options);
        let files = ["1", "3"].map(|threads| {
            let place = bench.place();
            fs::write(place.join("recipe.toml"), &text).unwrap();
            let mut command = espalier(&place, &["run", "recipe.toml"]);
            succeeded(command.env("RAYON_NUM_THREADS", threads).output().unwrap());
            runs::files(&place)
        });
        assert_eq!(runs::difference(&files[0], &files[1]), None, "{}", way.keys);
    }
}

/// What a way does not train is the base's, bit for bit, in what it leaves whole or merged.
#[test]
fn what_is_frozen_stays_as_it_was() {
    let bench = Bench::new();
    let base = TensorFile::open(&bench.attention.join("model.safetensors")).unwrap();
    for (keys, trained) in [
        (FROZEN.keys, &["layers.1.mlp", "model.norm"][..]),
        (OF_TOKENS.keys, &["q_proj", "embed_tokens"]),
        (WITH_NORM.keys, &["_proj", "norm"]),
    ] {
        let way = lora(keys);
        let options = "steps = 3\nbatch = 4\nlearning_rate = 2e-3";
        let tuned = bench.tuned(&way, &bench.attention, options);
        let mut left = model(&tuned);
        if keys.starts_with("adapter") {
            let place = bench.place();
            let merge = format!(
                "output = \"run\"\n[[stage]]\nname = \"merged\"\n[stage.merge]\nadapters = [{left:?}]\n"
            );
            run(&place, &merge);
            left = place.join("run/01-merged/model");
        }
        let left = TensorFile::open(&left.join("model.safetensors")).unwrap();
        for name in base.names() {
            let same = base.read_f32(name, None).unwrap() == left.read_f32(name, None).unwrap();
            let is_trained = trained.iter().any(|part| name.contains(part));
            assert_ne!(same, is_trained, "{keys}: {name}");
        }
        // Of a table whose rows are trained the other rows stay.
        if keys.contains("trainable_tokens") {
            let name = "model.embed_tokens.weight";
            let width = base.info(name).unwrap().shape[1];
            let [before, after] = [&base, &left].map(|file| file.read_f32(name, None).unwrap());
            let rows = before.chunks(width).zip(after.chunks(width)).enumerate();
            for (id, (before, after)) in rows {
                let is_trained = [40, 9, 57, 30].contains(&id);
                assert!(is_trained || before == after, "{id}");
            }
        }
    }
}

/// Rows of added tokens belong to the adapter, whose base grows when it is loaded.
#[test]
fn added_tokens_leave_an_adapter() {
    let bench = Bench::new();
    let texts = bench.folder.path().join("texts.jsonl");
    let line = |i: usize| format!("{{\"text\": \"one <new> and {i} <new> of them <newer>\"}}\n");
    fs::write(&texts, (0..16).map(line).collect::<String>()).unwrap();
    for base in [&bench.attention, &bench.biased] {
        for rounding in ["", "quantise = 'nf4'\n"] {
            let stage = |model: &Path, keys: &str, options: &str| {
                format!(
                    "output = \"run\"\n[[stage]]\nname = \"tuned\"\n[stage.train]\nmodel = {model:?}\nobjective = \"pretrain\"\n{rounding}{keys}\
                     data = {texts:?}\nvalidation = {texts:?}\n[stage.train.options]\nlength = 128\nbatch = 4\nwarmup = 0.0\nlog_every = 1\n{options}\n"
                )
            };
            let keys = "adapter = { lora = { rank = 2, target_modules = ['q_proj'], added_tokens = true } }\nadd_tokens = ['<new>', '<newer>']\n";
            let options = "steps = 6\nlearning_rate = 5e-2\ncheckpoint_every = 2\n";
            let text = stage(base, keys, options);
            bench.survives_a_kill(&text, rounding);
            let whole = bench.place();
            run(&whole, &text);
            assert!(model(&whole).join("adapter_config.json").exists());
            let losses = logged(&whole, "loss");
            assert!(losses[5] < losses[0], "{losses:?}");
            let again = bench.place();
            run(
                &again,
                &stage(&model(&whole), "", "steps = 1\nlearning_rate = 0.0\n"),
            );
            let [trained, loaded] = [&whole, &again].map(|place| logged(place, "eval_loss"));
            assert_eq!(trained.last(), loaded.last());
            if rounding.is_empty() {
                let merged = bench.place();
                let text = format!(
                    "output = \"run\"\n[[stage]]\nname = \"merged\"\n[stage.merge]\nadapters = [{:?}]\n",
                    model(&whole)
                );
                run(&merged, &text);
                let again = bench.place();
                let merged = merged.join("run/01-merged/model");
                run(
                    &again,
                    &stage(&merged, "", "steps = 1\nlearning_rate = 0.0\n"),
                );
                let merged = logged(&again, "eval_loss").last().copied().unwrap();
                assert!((merged - loaded.last().unwrap()).abs() < 1e-5);
            }
        }
    }
    // Tokens that are there already are no added ones, and without any there is nothing to train.
    let place = bench.place();
    let text = recipe(
        "adapter = { lora = { added_tokens = true } }",
        &bench.attention.to_string_lossy(),
        "steps = 1",
    );
    fs::write(place.join("recipe.toml"), text).unwrap();
    let output = espalier(&place, &["run", "recipe.toml"]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        said.contains("`added_tokens` trains the rows of the tokens that `add_tokens` names"),
        "{said}"
    );
}
