//! Options that make no sense, have no room or do not suit: refused early, with their names and places.

use std::{fs, process::Command};

use super::{espalier, fixture, recipe, refused};

/// Asserts that a recipe is refused with this part, with this exit code and before any plan.
fn refused_unplanned(recipe: &str, overrides: &[&str], code: i32, part: &str) {
    let output = espalier(&[&["run", recipe], overrides].concat());
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{said}");
    assert!(said.contains(part), "`{part}` is not in: {said}");
    assert!(!said.contains("plan:"), "{said}");
}

#[test]
fn what_cannot_have_room_is_refused_with_its_option() {
    let folder = tempfile::tempdir().unwrap();
    let recipe = recipe(
        folder.path(),
        "{ world = \"g8\", as = \"text\", limit = 4 }",
    );
    let lora = "adapter={ lora = { rank = 4096 } }";
    for (change, part) in [
        ("batch=99999999", "`batch`: 99999999 is more than 65536"),
        (
            "accumulation=65537",
            "`accumulation`: 65537 is more than 65536",
        ),
        ("length=99999999", "`length`: 99999999 is more than"),
        (
            "data.limit=99999999",
            "`limit`: 99999999 items of a world are more than",
        ),
        ("new.width=0", "`new.width`: 0 is outside 1 to 1048576"),
        ("new.layers=4097", "`new.layers`: 4097 is outside 1 to 4096"),
        (
            "new.vocabulary=99999999",
            "`new.vocabulary`: 99999999 is outside 1 to",
        ),
    ] {
        refused_unplanned(&recipe, &[change], 2, part);
    }
    // 24 TiB is more than this machine has, whichever it is.
    let wide = ["objective=pretrain", "new.width=1048576"];
    let part = "`new.width` = 1048576: a model of these sizes takes about 24.0 TiB of memory, but this machine has ";
    refused_unplanned(&recipe, &wide, 2, part);
    refused_unplanned(
        &recipe,
        &["objective=pretrain", lora],
        1,
        "`rank`: 4096 is more than 64, the width of the model's widest map",
    );
    let llama = fixture("llama");
    let llama = llama.to_string_lossy();
    for (arguments, part) in [
        (
            &["bench", "attention", "--length", "99999999999"][..],
            "`--length`",
        ),
        (
            &["bench", "matmul", "--rows", "999999999999"],
            "`--rows` 999999999999",
        ),
        (
            &["bench", "train", &llama, "--batch", "9999999999999"],
            "`--batch` 9999999999999 of `--length` 256 tokens takes about",
        ),
        (
            &[
                "bench",
                "generate",
                &llama,
                "--batch",
                "999999999999999",
                "--prompt",
                "8",
            ],
            "`--batch` 999999999999999 of `--prompt` 8 tokens takes about",
        ),
        (
            &["eval", &llama, "g1/1", "--limit", "999999999"],
            "limit`: 999999999 is more than",
        ),
    ] {
        refused(&espalier(arguments), 2, part);
    }
}

#[test]
fn counts_beyond_all_measure_are_refused_with_their_options() {
    let folder = tempfile::tempdir().unwrap();
    let path = recipe(folder.path(), "{ world = \"sentence/1\", limit = 8 }");
    assert!(espalier(&["--quiet", "run", &path]).status.success());
    let model = folder.path().join("run/01-train/model");
    let model = model.to_string_lossy();
    let (llama, input) = (fixture("llama"), fixture("llama/expected.safetensors"));
    let [llama, input] = [&llama, &input].map(|path| path.to_string_lossy());
    let output = folder.path().join("traced.safetensors");
    let output = output.to_string_lossy();
    const MUCH: &str = "18446744073709551615";
    for (arguments, part) in [
        (
            &["generate", &model, "hi", "--beams", MUCH][..],
            "--beams 18446744073709551615: expected at most 3",
        ),
        (
            &[
                "generate",
                &model,
                "hi",
                "--beams",
                "200",
                "--memory-limit",
                "64KiB",
            ],
            "--beams 200: to follow so many continuations takes about ",
        ),
        (
            &["bench", "train", &llama, "--runs", MUCH],
            "'--runs <RUNS>'",
        ),
        (
            &["bench", "dpo", &llama, "--runs", "100001"],
            "'--runs <RUNS>'",
        ),
        (&["bench", "attention", "--runs", MUCH], "'--runs <RUNS>'"),
        (&["bench", "matmul", "--runs", "0"], "'--runs <RUNS>'"),
        (
            &["trace", &llama, &input, &output, "--generate", MUCH],
            "'--generate <N>'",
        ),
        (
            &["data", "show", "g1/1", "--count", MUCH],
            "`--count`: 18446744073709551615 items of a world are more than",
        ),
    ] {
        let output = espalier(&[arguments, &["--json"]].concat());
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        let said: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        let said = said["error"]["message"].as_str().unwrap();
        assert!(said.contains(part), "`{part}` is not in: {said}");
    }
}

#[test]
fn an_estimate_of_memory_can_be_overruled() {
    let folder = tempfile::tempdir().unwrap();
    let recipe = recipe(
        folder.path(),
        "{ world = \"g8\", as = \"text\", limit = 4 }",
    );
    let run = |limit: &str| {
        espalier(&[
            "run",
            &recipe,
            "objective=pretrain",
            "--memory-limit",
            limit,
        ])
    };
    let said = |limit: &str| {
        let output = run(limit);
        (
            output.status.code(),
            String::from_utf8_lossy(&output.stderr).into_owned(),
        )
    };
    let (code, small) = said("100K");
    assert_eq!(code, Some(2), "{small}");
    assert!(
        small.contains("of memory, but `--memory-limit` is 100 KiB; ")
            && small.contains(", or, where that is estimated too high, raise `--memory-limit`"),
        "{small}"
    );
    // What is refused for this machine is not with a higher bound; what comes then is another matter.
    let length = ["bench", "attention", "--length", "99999999999"];
    refused(&espalier(&length), 2, "but this machine has ");
    let asked = ["bench", "generate", "nowhere", "--memory-limit", "much"];
    let output = espalier(&asked);
    assert_eq!(output.status.code(), Some(2));
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(
        error.contains("expected a size such as 64GiB, or none"),
        "{error}"
    );
    let (code, enough) = said("none");
    assert_eq!(code, Some(0), "{enough}");
}

#[test]
fn adapters_that_their_library_would_not_read_are_refused_before_the_plan() {
    let folder = tempfile::tempdir().unwrap();
    let recipe = recipe(
        folder.path(),
        "{ world = \"g8\", as = \"text\", limit = 4 }",
    );
    let small = "hidden_size = 32, num_hidden_layers = 2, num_attention_heads = 2, num_key_value_heads = 2, moe_intermediate_size = 32, \
        num_experts = 4, num_experts_per_tok = 2, intermediate_size = 64, head_dim = 16, max_position_embeddings = 256";
    let experts = format!(
        "new={{ vocabulary = 300, config = {{ architectures = [\"Qwen3MoeForCausalLM\"], model_type = \"qwen3_moe\", {small} }} }}"
    );
    let lora = |options: &str| format!("adapter={{ lora = {{ {options} }} }}");
    let text = ["objective=pretrain", &experts];
    for (options, part) in [
        (
            "dropout = 0.1",
            "is trained without dropout, for it is an expert of a stack",
        ),
        ("dora = true", "DoRA needs a layer of its own"),
    ] {
        let lora = lora(options);
        refused_unplanned(&recipe, &[&text[..], &[&lora]].concat(), 1, part);
    }
    // Of attention alone it may be; what then fails is that nobody has kept the base.
    let attention = lora("dropout = 0.1, target_modules = [\"q_proj\", \"v_proj\"]");
    let part = "an adapter's folder names its base, and a `new` model has no folder yet";
    refused_unplanned(&recipe, &[&text[..], &[&attention]].concat(), 2, part);
}

#[test]
fn objectives_and_models_that_do_not_suit_are_refused_before_the_plan() {
    let folder = tempfile::tempdir().unwrap();
    let recipe = recipe(folder.path(), "{ world = \"sentence/1\", limit = 4 }");
    let text = "data={ world = \"g8\", as = \"text\", limit = 4 }";
    let pairs = "data={ world = \"sentence/1\", as = \"preference\", limit = 4 }";
    let small = "hidden_size = 32, num_hidden_layers = 1, num_attention_heads = 2, intermediate_size = 64, max_position_embeddings = 256";
    let encoder = format!(
        "new={{ vocabulary = 300, config = {{ architectures = [\"BertForMaskedLM\"], model_type = \"bert\", {small} }} }}"
    );
    let classifier = format!(
        "new={{ vocabulary = 300, config = {{ architectures = [\"LlamaForSequenceClassification\"], model_type = \"llama\", {small} }} }}"
    );
    let reads_all = "a model that sees the whole text would only learn to copy the next token";
    let headless = "this model has no head over its vocabulary";
    for (changes, part) in [
        (&["objective=sft", &encoder][..], reads_all),
        (&["objective=dpo", pairs, &encoder], reads_all),
        (&["objective=dpo", pairs, &classifier], headless),
        (&["objective=sft", &classifier], headless),
        (
            &["objective=mlm", text],
            "`mlm` needs a model that sees the whole text",
        ),
        (
            &[
                "objective=simcse",
                "dropout=0.1",
                "data={ world = \"g8\", as = \"text\", limit = 1 }",
            ],
            "`data`: `simcse` tells texts of a batch apart, and there is only one",
        ),
        (
            &["objective=simcse", "dropout=0.1", "batch=1", text],
            "`batch`: `simcse` tells texts of a batch apart",
        ),
    ] {
        refused_unplanned(&recipe, changes, 1, part);
    }
}

#[test]
fn wrong_upcycling_is_a_wrong_command() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("recipe.toml");
    let wrong = |table: &str, part: &str| {
        let text = format!(
            "output = {:?}\n[[stage]]\nname = 'grow'\n[stage.upcycle]\nmodel = 'm'\n{table}\n",
            folder.path().join("run")
        );
        fs::write(&path, text).unwrap();
        let output = espalier(&["run", &path.to_string_lossy()]);
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(said.contains(part), "`{part}` is not in: {said}");
    };
    let place = |line: usize, rest: &str| format!("recipe.toml:{line}:1: stage `grow`: {rest}");
    wrong(
        "experts = 0",
        &place(6, "`experts`: 0 is outside 1 to 4096"),
    );
    wrong(
        "experts = 99999",
        &place(6, "`experts`: 99999 is outside 1 to 4096"),
    );
    wrong(
        "experts = 2\nactive = 3",
        &place(7, "`active`: 3 is outside 1 to 2, the number of experts"),
    );
    wrong("active = 0", &place(6, "`active`: 0 is outside 1 to 8"));
    wrong(
        "noise = -1.0",
        &place(6, "`noise`: -1 is outside 0 to 1000"),
    );
    wrong(
        "experts = 2\ngate_mode = 'hidden'\nprompts = [{ positive = ['a'] }]",
        &place(8, "`prompts`: 2 experts need as many entries, there are 1"),
    );
    wrong(
        "gate_mode = 'hidden'\nprompts = [{ positive = ['a'] }, { positive = [] }]",
        &place(7, "`prompts`: expert 2 has no positive ones"),
    );
    wrong(
        "prompts = [{ positive = ['a'] }]\nactive = 1",
        "`prompts` need a `gate_mode`",
    );
}

#[test]
fn range_errors_name_the_line_that_is_at_fault() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("recipe.toml");
    let text = "output = 'o'\n[defaults.train.options]\nbatch = 0\n[[stage]]\nname = 'a'\ntrain = { model = 'm', objective = 'sft', data = 'd' }\n\
        [[stage]]\nname = 'r'\n[stage.repeat]\ntimes = 2\n[[stage.repeat.stage]]\nname = 'tune'\n[stage.repeat.stage.train]\nmodel = 'm'\nobjective = 'sft'\ndata = 'd'\n\
        [stage.repeat.stage.train.options]\nbeta1 = 1.5\n";
    let wrong = |text: &str, overrides: &[&str], part: &str| {
        fs::write(&path, text).unwrap();
        let output = espalier(&[&["run", &path.to_string_lossy()], overrides].concat());
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(said.contains(part), "`{part}` is not in: {said}");
    };
    // In the defaults, in a repetition, on the command line.
    wrong(
        text,
        &[],
        "recipe.toml:3:1: stage `a`: `batch`: must be at least 1\n  3 | batch = 0\n    | ^^^^^",
    );
    let mended = text.replace("batch = 0", "batch = 1");
    wrong(
        &mended,
        &[],
        "recipe.toml:18:1: stage `tune-1`: `beta1`: 1.5 is outside 0 to",
    );
    let mended = mended.replace("1.5", "0.5");
    wrong(
        &mended,
        &["stage.a.train.options.clip=-1"],
        "override `stage.a.train.options.clip=-1`: stage `a`: `clip`: -1 is outside 0 to",
    );
    // What is missing has no line of its own: that of the stage's name is told.
    wrong(
        &mended.replace("model = 'm', ", ""),
        &[],
        "recipe.toml:5:1: stage `a`: a train stage needs one of `model` and `new`",
    );
}

#[test]
fn an_unknown_instruction_set_is_refused_with_the_choices() {
    let run = Command::new(env!("CARGO_BIN_EXE_espalier"))
        .arg("families")
        .env("ESPALIER_SIMD", "avx3")
        .output()
        .unwrap();
    refused(
        &run,
        2,
        "ESPALIER_SIMD is `avx3`; leave it out, or choose one of portable, avx2",
    );
}

#[test]
fn an_empty_output_is_refused_everywhere() {
    let folder = tempfile::tempdir().unwrap();
    let recipe = recipe(
        folder.path(),
        "{ world = \"g8\", as = \"text\", limit = 4 }",
    );
    let llama = fixture("llama");
    let llama = llama.to_string_lossy();
    for arguments in [
        &["run", &recipe, "output="][..],
        &["run", &recipe, "output=\"\""],
        &[
            "train", "--model", &llama, "--data", "d.jsonl", "--output", "",
        ],
        &[
            "train", "--model", &llama, "--data", "d.jsonl", "--output", "o", "output=",
        ],
        &["quickstart", "--output", ""],
        &["data", "generate", "g1/1", "--count", "1", "--output", ""],
        &["generate", &llama, "a", "--save-state", ""],
        &["trace", &llama, "input", ""],
    ] {
        let output = espalier(arguments);
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {said}");
        assert!(
            said.contains("empty") || said.contains("a value is required"),
            "{arguments:?}: {said}"
        );
    }
}
