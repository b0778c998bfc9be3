//! Runs of eight kinds that are killed (kill -9) at random moments, started again until they end, and compared with a run that was
//! left alone: weights, logs and all other files are the same.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

use espalier::data::random::Random;

use crate::runs::{difference, files};

/// A kind of run: its recipe, or the quickstart.
pub struct Kind {
    /// Its name on the command line of the example.
    pub name: &'static str,
    recipe: Option<&'static str>,
}

/// What all recipes share: a fresh model that is trained in no time, with checkpoints and measurements at odd steps.
const SHARED: &str = r#"
output = "run"
[defaults.train]
validation = { world = "g8", as = "text", split = "val", limit = 2 }
[defaults.train.options]
steps = 24
batch = 2
length = 96
learning_rate = 1e-3
log_every = 2
checkpoint_every = 5
evaluate_every = 7
[[stage]]
name = "grow"
[stage.train]
objective = "pretrain"
data = { world = "g8", as = "text", limit = 16 }
new = { vocabulary = 290, width = 24, layers = 2, heads = 2, kv_heads = 1, inner = 40, context = 256 }
"#;

/// The kinds of which each has its own way to go on.
pub const KINDS: &[Kind] = &[
    Kind {
        name: "pretrain",
        recipe: Some(""),
    },
    Kind {
        name: "dpo",
        recipe: Some(
            r#"
[[stage]]
name = "align"
[stage.train]
model = "grow"
objective = { dpo = { beta = 0.2, loss = { sigmoid = 1.0, sft = 0.1 } } }
data = { world = "sentence/1", as = "preference", limit = 12 }
validation = { world = "sentence/1", as = "preference", split = "val", limit = 2 }
"#,
        ),
    },
    Kind {
        name: "lora",
        recipe: Some(
            r#"
[[stage]]
name = "tune"
[stage.train]
model = "grow"
objective = "sft"
adapter = { lora = { rank = 2, dropout = 0.1 } }
data = { world = "sentence/1", limit = 12 }
"#,
        ),
    },
    Kind {
        name: "packing",
        recipe: Some(
            r#"
[[stage]]
name = "tune"
[stage.train]
model = "grow"
objective = "sft"
data = { world = "sentence/1", limit = 24 }
validation_share = 0.1
validation = []
[stage.train.options]
packing = true
accumulation = 3
dropout = 0.1
"#,
        ),
    },
    Kind {
        name: "grpo",
        recipe: Some(
            r#"
[[stage]]
name = "reinforce"
[stage.train]
model = "grow"
objective.grpo = { num_generations = 3, num_iterations = 2, beta = 0.1, rollout = { rewards = [{ length = { target = 4 } }], max_completion_length = 9 } }
data = { world = "addition", limit = 12 }
validation = { world = "addition", as = "chat", split = "val", limit = 2 }
"#,
        ),
    },
    Kind {
        name: "ppo",
        recipe: Some(
            r#"
[[stage]]
name = "reinforce"
[stage.train]
model = "grow"
objective.ppo = { num_ppo_epochs = 2, num_mini_batches = 2, kl_target = 1.0, rollout = { rewards = [{ length = { target = 4 } }], max_completion_length = 9 } }
adapter = { lora = { rank = 2 } }
data = { world = "addition", limit = 12 }
validation = { world = "addition", as = "chat", split = "val", limit = 2 }
"#,
        ),
    },
    Kind {
        name: "quickstart",
        recipe: None,
    },
    Kind {
        name: "repeat",
        recipe: Some(
            r#"
[[stage]]
name = "rounds"
[stage.repeat]
times = 2
first = { tune = "grow" }
[[stage.repeat.stage]]
name = "tune"
[stage.repeat.stage.train]
model = "previous.tune"
objective = "sft"
data = { world = "sentence/1", limit = 8 }
options = { steps = 9 }
[[stage.repeat.stage]]
name = "measure"
[stage.repeat.stage.evaluate]
model = "tune"
data = { world = "g8", as = "text", split = "test", limit = 2 }
"#,
        ),
    },
];

/// A run that was left alone.
pub struct Whole<'k> {
    program: PathBuf,
    kind: &'k Kind,
    files: BTreeMap<String, Vec<u8>>,
    /// The recipe as it was run.
    recipe: Vec<u8>,
    lasted: Duration,
}

impl<'k> Whole<'k> {
    /// Runs it.
    pub fn of(kind: &'k Kind, program: &Path) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let started = Instant::now();
        let mut command = kind.command(program, folder.path());
        let output = command.stderr(Stdio::piped()).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{}: {said}", kind.name);
        Self {
            program: program.to_owned(),
            kind,
            lasted: started.elapsed(),
            files: files(folder.path()),
            recipe: fs::read(folder.path().join("run/recipe.toml")).unwrap(),
        }
    }

    /// Kills a run of this kind up to `most` times, each time at a moment of its own, lets it end, and compares. Gives the number
    /// of kills, and what differs or failed, with the folder.
    pub fn trial(
        &self,
        most: usize,
        random: &mut Random,
    ) -> (usize, Result<(), (String, tempfile::TempDir)>) {
        let folder = tempfile::tempdir().unwrap();
        // The quickstart chooses its arithmetic by a measurement, unless it was begun before.
        fs::create_dir(folder.path().join("run")).unwrap();
        fs::write(folder.path().join("run/recipe.toml"), &self.recipe).unwrap();
        let mut kills = 0;
        while kills < most {
            let child = self.kind.command(&self.program, folder.path()).spawn();
            let moment = self.lasted.mul_f64(random.f());
            match ends_before(child.unwrap(), moment) {
                true => break,
                false => kills += 1,
            }
        }
        let mut command = self.kind.command(&self.program, folder.path());
        let last = command.stderr(Stdio::piped()).output().unwrap();
        let failure = match last.status.success() {
            false => Some(String::from_utf8_lossy(&last.stderr).into_owned()),
            true => {
                difference(&self.files, &files(folder.path())).map(|name| format!("{name} differs"))
            }
        };
        (kills, failure.map_or(Ok(()), |what| Err((what, folder))))
    }
}

/// Whether a process ends by itself before it has lived for so long; it is killed then.
fn ends_before(mut child: Child, moment: Duration) -> bool {
    let started = Instant::now();
    while started.elapsed() < moment {
        if child.try_wait().unwrap().is_some() {
            return true;
        }
        sleep(Duration::from_micros(200));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    false
}

impl Kind {
    fn command(&self, program: &Path, folder: &Path) -> Command {
        let mut command = Command::new(program);
        command
            .current_dir(folder)
            .env("RAYON_NUM_THREADS", "1")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .arg("--quiet");
        match self.recipe {
            Some(stages) => {
                fs::write(folder.join("recipe.toml"), format!("{SHARED}{stages}")).unwrap();
                command.args(["run", "recipe.toml"]);
            }
            None => {
                command.args([
                    "quickstart",
                    "--short",
                    "--size",
                    "small",
                    "--output",
                    "run",
                ]);
            }
        }
        command
    }
}
