//! Hostile input, made by changing good files and command lines at random, and the program run on it.
//!
//! Whatever comes, the program ends by itself within [`PATIENCE`] and [`MEMORY`] with 0, 1 or 2, and without a panic. A test runs
//! some hundred changes; `cargo run --release --example torture -- MINUTES SEED` runs as many as the time allows and keeps what it finds.

pub mod mutator;

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

use espalier::train::checkpoint;
use mutator::Mutator;

/// The longest that a command on tiny files may take.
pub const PATIENCE: Duration = Duration::from_secs(30);

const ENDLESS: &str = "does not end in time";

/// The largest address space that it may ask for, in KiB.
pub const MEMORY: u64 = 8 << 20;

/// A recipe that grows a tiny model with a tokenizer, an adapter and checkpoints.
const RECIPE: &str = r#"
output = "run"
[[stage]]
name = "grow"
[stage.train]
objective = "pretrain"
data = { world = "g8", as = "text", limit = 8 }
new = { vocabulary = 280, width = 16, layers = 1, heads = 2, kv_heads = 1, inner = 24, context = 256 }
[stage.train.options]
steps = 4
batch = 2
length = 128
checkpoint_every = 2
[[stage]]
name = "tune"
[stage.train]
objective = "sft"
model = "grow"
adapter = { lora = { rank = 2 } }
data = "data.jsonl"
[stage.train.options]
steps = 2
batch = 2
length = 128
"#;

const DATA: &str = r#"{"messages": [{"role": "user", "content": "Say it."}, {"role": "assistant", "content": "It, it is."}]}
{"messages": [{"role": "system", "content": "Be."}, {"role": "user", "content": "1 and 2"}, {"role": "assistant", "content": "3", "weight": 1}]}
{"messages": [{"role": "user", "content": [{"type": "text", "text": "Sum"}]}, {"role": "assistant", "content": "Two", "name": "x"}], "id": 3}
"#;

const TEMPLATE: &str = r#"{{ messages | map(attribute='role') | list | join(',') | length }}{{ "%s" | format(messages | length) }}{%- set ns = namespace(first=true) -%}{%- macro part(m) -%}<|{{ m.role | trim }}|>{{ m['content'] if m.content is string else m | tojson(indent=2) }}{%- endmacro -%}
{%- for m in messages[:100] -%}{%- if not loop.first -%}{{ '\n' * 2 }}{%- endif -%}{{ part(m) | replace("  ", " ") }}{%- if m.role == 'assistant' -%}{{ eos_token }}{%- set ns.first = false -%}{%- endif -%}{%- endfor -%}
{%- if add_generation_prompt -%}<|assistant|>{%- endif -%}"#;

/// What is changed, and the command that then runs on it.
pub struct Target {
    /// Its name on the command line of the example.
    pub name: &'static str,
    /// The file that is changed, in the work folder.
    file: &'static str,
    /// The command line, run in the work folder.
    command: &'static [&'static str],
}

/// Everything that comes from outside.
pub const TARGETS: &[Target] = &[
    Target {
        name: "configuration",
        file: "run/01-grow/model/config.json",
        command: &[
            "generate",
            "run/01-grow/model",
            "Once",
            "--max-new-tokens",
            "3",
        ],
    },
    Target {
        name: "weights",
        file: "run/01-grow/model/model.safetensors",
        command: &["inspect", "run/01-grow/model"],
    },
    Target {
        name: "generation",
        file: "run/01-grow/model/generation_config.json",
        command: &[
            "generate",
            "run/01-grow/model",
            "Once",
            "--max-new-tokens",
            "3",
        ],
    },
    Target {
        name: "tokenizer",
        file: "run/01-grow/model/tokenizer.json",
        command: &[
            "data",
            "show",
            "data.jsonl",
            "--tokenizer",
            "run/01-grow/model",
            "--template",
            "chatml",
        ],
    },
    Target {
        name: "tokenizer-configuration",
        file: "run/01-grow/model/tokenizer_config.json",
        command: &[
            "data",
            "show",
            "data.jsonl",
            "--tokenizer",
            "run/01-grow/model",
        ],
    },
    Target {
        name: "template",
        file: "template.jinja",
        command: &[
            "data",
            "show",
            "data.jsonl",
            "--tokenizer",
            "run/01-grow/model",
            "--template",
            "template.jinja",
            "--count",
            "9",
        ],
    },
    Target {
        name: "adapter",
        file: "run/02-tune/model/adapter_config.json",
        command: &[
            "generate",
            "run/02-tune/model",
            "Once",
            "--max-new-tokens",
            "3",
        ],
    },
    Target {
        name: "adapter-weights",
        file: "run/02-tune/model/adapter_model.safetensors",
        command: &[
            "generate",
            "run/02-tune/model",
            "Once",
            "--max-new-tokens",
            "3",
        ],
    },
    Target {
        name: "state",
        file: "once.state",
        command: &[
            "generate",
            "run/01-grow/model",
            "upon",
            "--from-state",
            "once.state",
            "--max-new-tokens",
            "3",
        ],
    },
    Target {
        name: "pickle",
        file: "rwkv.pth",
        command: &["inspect", "rwkv.pth"],
    },
    Target {
        name: "data",
        file: "data.jsonl",
        command: &[
            "data",
            "show",
            "data.jsonl",
            "--tokenizer",
            "run/01-grow/model",
            "--template",
            "chatml",
            "--count",
            "9",
        ],
    },
    Target {
        name: "recipe",
        file: "recipe.toml",
        command: &["--quiet", "run", "recipe.toml"],
    },
    Target {
        name: "progress",
        file: "run/01-grow/checkpoints/step-00000004/progress.json",
        command: &["--quiet", "run", "recipe.toml"],
    },
    Target {
        name: "moments",
        file: "run/01-grow/checkpoints/step-00000004/optimiser.safetensors",
        command: &["--quiet", "run", "recipe.toml"],
    },
    Target {
        name: "checkpoint-weights",
        file: "run/01-grow/checkpoints/step-00000004/weights.safetensors",
        command: &["--quiet", "run", "recipe.toml"],
    },
    Target {
        name: "checkpoint-objective",
        file: "run/01-grow/checkpoints/step-00000004/objective.safetensors",
        command: &["--quiet", "run", "recipe.toml"],
    },
    Target {
        name: "checksums",
        file: "run/01-grow/checkpoints/step-00000004/checksums.json",
        command: &["--quiet", "run", "recipe.toml"],
    },
    Target {
        name: "log",
        file: "run/01-grow/metrics.jsonl",
        command: &["--quiet", "run", "recipe.toml"],
    },
    Target {
        name: "hashes",
        file: "run/hashes.json",
        command: &["--quiet", "run", "recipe.toml"],
    },
    Target {
        name: "lock",
        file: "run/.lock",
        command: &["--quiet", "run", "recipe.toml"],
    },
    Target {
        name: "record",
        file: "run/01-grow/stage.json",
        command: &["--quiet", "run", "recipe.toml"],
    },
];

/// Good command lines, whose words are changed.
const COMMAND_LINES: &[&str] = &[
    "generate run/01-grow/model Once upon --temperature 0.5 --top-p 0.9 --top-k 5 --min-p 0.1 --repetition-penalty 1.1 --max-new-tokens 4 --seed 3",
    "generate run/01-grow/model Once --beams 3 --length-penalty 1.0 --max-new-tokens 4 --stop a",
    "generate run/02-tune/model --chat --file data.jsonl --max-new-tokens 2 --json",
    "generate run/01-grow/model Once --save-state new.state --max-new-tokens 2",
    "chat run/02-tune/model --prompt Hi --max-new-tokens 3 --system Be",
    "embed run/01-grow/model one two --pooling last --raw --json",
    "eval run/01-grow/model --data data.jsonl --length 64 --json",
    "eval run/01-grow/model g1/1 --limit 2 --sample --seed 1",
    "inspect run/01-grow/model --json",
    "data generate g1/2 --count 3 --seed 1 --output new.jsonl",
    "data show data.jsonl --tokenizer run/01-grow/model --max-length 32 --count 2 --form messages --template chatml",
    "train --model run/01-grow/model --data data.jsonl --adapter lora --output new steps=1 batch=1 length=64 learning_rate=1e-4 warmup=0 accumulation=1",
    "run recipe.toml steps=4 output=new seeds=[0] batch=2",
    "bench train --help",
];

/// The program and a folder of good files.
pub struct Torture {
    program: PathBuf,
    good: tempfile::TempDir,
}

impl Torture {
    /// Grows the model and the rest; `pickle` is a file of PyTorch.
    pub fn new(program: &Path, pickle: &Path) -> Self {
        let good = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| fs::write(good.path().join(name), text).unwrap();
        write("recipe.toml", RECIPE);
        write("data.jsonl", DATA);
        write("template.jinja", TEMPLATE);
        fs::copy(pickle, good.path().join("rwkv.pth")).unwrap();
        let torture = Self {
            program: program.to_owned(),
            good,
        };
        for line in [
            "--quiet run recipe.toml",
            "generate run/01-grow/model Once --save-state once.state --max-new-tokens 2",
        ] {
            let words: Vec<String> = line.split(' ').map(str::to_owned).collect();
            let ended = torture.run(torture.good.path(), &words);
            assert_eq!(ended.map_err(|finding| finding.reason), Ok(0), "{line}");
        }
        // A run keeps the hashes of files that are some seconds old.
        let hashes =
            r#"{"format": 1, "files": {"data.jsonl": {"size": 3, "modified": 7, "hash": "00"}}}"#;
        fs::write(torture.good.path().join("run/hashes.json"), hashes).unwrap();
        for target in TARGETS {
            let path = torture.good.path().join(target.file);
            assert!(path.is_file(), "{} is missing", path.display());
        }
        torture
    }

    /// A fresh copy of the good files.
    fn copy(&self) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        copy_into(self.good.path(), folder.path());
        folder
    }

    /// Changes the target's file and runs its command.
    pub fn file(&self, target: &Target, mutator: &mut Mutator) -> Result<(), Finding> {
        let folder = self.copy();
        let path = folder.path().join(target.file);
        let changed = mutator.file(&fs::read(&path).unwrap());
        fs::write(&path, changed).unwrap();
        if target.file.contains("checkpoints") || target.file.ends_with("metrics.jsonl") {
            // Without its record the stage goes on from its checkpoints.
            fs::remove_file(folder.path().join("run/01-grow/stage.json")).unwrap();
        }
        if target.file.contains("checkpoints") && mutator.below(2) == 0 {
            // Damage is found by its checksum, malice is not.
            let _ = checkpoint::seal(path.parent().unwrap());
        }
        let words: Vec<String> = target.command.iter().map(|&word| word.to_owned()).collect();
        self.check(folder, &words)
    }

    /// Changes a command line and runs it.
    pub fn command_line(&self, mutator: &mut Mutator) -> Result<(), Finding> {
        let line = COMMAND_LINES[mutator.below(COMMAND_LINES.len())];
        let words = mutator.words(line.split(' ').map(str::to_owned).collect());
        match self.check(self.copy(), &words) {
            // Much work may be asked for.
            Err(finding) if finding.reason == ENDLESS => Ok(()),
            result => result,
        }
    }

    fn check(&self, folder: tempfile::TempDir, words: &[String]) -> Result<(), Finding> {
        match self.run(folder.path(), words) {
            Ok(_) => Ok(()),
            Err(finding) => Err(Finding {
                folder: Some(folder),
                ..finding
            }),
        }
    }

    /// Runs the program and gives its exit code.
    fn run(&self, folder: &Path, words: &[String]) -> Result<i32, Finding> {
        let limited = format!("ulimit -v {MEMORY}; ulimit -c 0; exec \"$0\" \"$@\"");
        let [out, error] = ["stdout", "stderr"].map(|name| folder.join(name));
        let mut child = Command::new("bash")
            .args(["-c", &limited])
            .arg(&self.program)
            .args(words)
            .current_dir(folder)
            .env("RAYON_NUM_THREADS", "2")
            // With it, panics that are caught and told as errors would be printed.
            .env_remove("RUST_BACKTRACE")
            .stdin(Stdio::null())
            .stdout(fs::File::create(out).unwrap())
            .stderr(fs::File::create(&error).unwrap())
            .spawn()
            .unwrap();
        let started = Instant::now();
        let status = loop {
            if let Some(status) = child.try_wait().unwrap() {
                break Some(status);
            }
            if started.elapsed() > PATIENCE {
                child.kill().unwrap();
                child.wait().unwrap();
                break None;
            }
            sleep(Duration::from_millis(2));
        };
        let said = String::from_utf8_lossy(&fs::read(&error).unwrap()).into_owned();
        let finding = |reason: String| Finding {
            reason,
            words: words.to_vec(),
            said: said.chars().take(2000).collect(),
            folder: None,
        };
        let Some(status) = status else {
            return Err(finding(ENDLESS.into()));
        };
        let Some(code @ 0..=2) = status.code() else {
            return Err(finding(format!("ends with {status}")));
        };
        if said.contains("panicked at") {
            return Err(finding("panics".into()));
        }
        if code != 0 && !said.contains("error") && !words.iter().any(|word| word == "--json") {
            return Err(finding(format!("ends with {code} and says no error")));
        }
        Ok(code)
    }
}

/// Something that must not happen.
pub struct Finding {
    /// What happened.
    pub reason: String,
    /// The command line.
    pub words: Vec<String>,
    /// What was written to the standard error.
    pub said: String,
    /// Where it happened; the example keeps it.
    #[allow(dead_code, reason = "the test looks at nothing")]
    pub folder: Option<tempfile::TempDir>,
}

fn copy_into(from: &Path, to: &Path) {
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let copy = to.join(path.file_name().unwrap());
        if path.is_dir() {
            fs::create_dir(&copy).unwrap();
            copy_into(&path, &copy);
        } else {
            fs::copy(&path, &copy).unwrap();
        }
    }
}
