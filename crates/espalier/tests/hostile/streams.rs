//! What goes in and out: results as JSON, lines that are no text, files that change while they are read.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use super::{espalier, fixture, recipe, refused};

/// A model of a run, with a tokenizer and a template.
fn grown(folder: &Path) -> PathBuf {
    let recipe = recipe(folder, "{ world = \"sentence/1\", limit = 8 }");
    let output = espalier(&["--quiet", "run", &recipe]);
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    folder.join("run/01-train/model")
}

#[test]
fn results_are_json_where_that_is_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    let model = grown(folder.path());
    let json = |arguments: &[&str]| -> serde_json::Value {
        let output = espalier(arguments);
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        assert!(!output.stderr.contains(&0x1b) && !output.stdout.contains(&0x1b));
        serde_json::from_slice(&output.stdout).unwrap()
    };
    let state = folder.path().join("state");
    let saved = json(&[
        "generate",
        &model.to_string_lossy(),
        "Once upon",
        "--save-state",
        &state.to_string_lossy(),
        "--json",
    ]);
    assert_eq!(saved["state"], state.to_string_lossy().as_ref());
    // One layer of one head of 16, keys and values in f32.
    let tokens = saved["tokens"].as_u64().unwrap();
    assert!(tokens > 0);
    assert_eq!(saved["bytes"], tokens * 2 * 16 * 4);
    let traced = folder.path().join("traced.safetensors");
    let written = json(&[
        "trace",
        &fixture("llama").to_string_lossy(),
        &fixture("llama/expected.safetensors").to_string_lossy(),
        &traced.to_string_lossy(),
        "--json",
    ]);
    assert_eq!(written["output"], traced.to_string_lossy().as_ref());
    let logits = written["tensors"]["logits"].as_array().unwrap();
    assert_eq!((logits.len(), &logits[2]), (3, &serde_json::json!(61)));
    assert_eq!(written["tensors"]["loss"], serde_json::json!([]));
}

#[test]
fn a_line_of_bad_utf_8_does_not_end_a_chat() {
    use std::{io::Write, process::Stdio};
    let folder = tempfile::tempdir().unwrap();
    let model = grown(folder.path());
    let mut child = Command::new(env!("CARGO_BIN_EXE_espalier"))
        .args([
            "chat",
            &model.to_string_lossy(),
            "--json",
            "--max-new-tokens",
            "2",
        ])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child
        .stdin
        .take()
        .unwrap()
        .write_all(b"one\ntw\xff\xfe\nthree\n")
        .unwrap();
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    assert!(
        said.contains("line 2 is skipped: its byte 3 is not UTF-8"),
        "{said}"
    );
    assert_eq!(String::from_utf8_lossy(&output.stdout).lines().count(), 2);
    assert!(!output.stderr.contains(&0x1b), "{said}");
}

#[cfg(target_os = "linux")]
#[test]
fn weights_that_are_cut_off_while_they_are_in_use_end_the_program_with_a_word() {
    use espalier::models::{checkpoint::Dtype, folder};
    use std::{
        io::{BufRead, BufReader, Write},
        process::Stdio,
    };
    let place = tempfile::tempdir().unwrap();
    let grown = grown(place.path());
    // Weights that are not trained stay in a file that is smaller than they are in f32.
    let loaded = folder::load(&grown, &burn::tensor::Device::flex()).unwrap();
    let model = place.path().join("half");
    folder::save(&loaded.model, &model, Some(&loaded.config), Dtype::BF16).unwrap();
    for name in ["tokenizer.json", "tokenizer_config.json"] {
        fs::copy(grown.join(name), model.join(name)).unwrap();
    }
    let mut child = Command::new(env!("CARGO_BIN_EXE_espalier"))
        .args([
            "chat",
            &model.to_string_lossy(),
            "--json",
            "--max-new-tokens",
            "2",
        ])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    stdin.write_all(b"one\n").unwrap();
    let mut answer = String::new();
    stdout.read_line(&mut answer).unwrap();
    assert!(answer.contains("assistant"), "{answer}");
    let weights = model.join("model.safetensors");
    fs::OpenOptions::new()
        .write(true)
        .open(&weights)
        .unwrap()
        .set_len(8)
        .unwrap();
    stdin.write_all(b"two\n").unwrap();
    drop(stdin);
    let mut said = String::new();
    std::io::Read::read_to_string(&mut child.stderr.take().unwrap(), &mut said).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(1), "{said}");
    assert!(
        said.contains("error: a file of weights became shorter"),
        "{said}"
    );
    // The next one is told of it when it opens the file.
    let next = espalier(&["generate", &model.to_string_lossy(), "a"]);
    refused(&next, 1, "model.safetensors: not a whole safetensors file");
}

/// A model that says one letter for ever: its blocks add nothing, and its table knows one token.
#[cfg(unix)]
fn endless(folder: &Path) -> PathBuf {
    use espalier::models::checkpoint::{Checkpoint, Dtype, TensorPlan, TensorWriter};
    let model = grown(folder);
    let config = model.join("config.json");
    let text = fs::read_to_string(&config).unwrap();
    let mut map: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(map["tie_word_embeddings"], true);
    map["max_position_embeddings"] = (1 << 16).into();
    fs::write(&config, map.to_string()).unwrap();
    let tokenizer = espalier::data::tokenizer::Tokenizer::load(&model).unwrap();
    let letter = tokenizer.encode_ids("a", false).unwrap()[0] as usize;
    let weights = model.join("model.safetensors");
    let checkpoint = Checkpoint::open(&weights).unwrap();
    let plan = |name: &str| TensorPlan {
        name: name.into(),
        dtype: Dtype::F32,
        shape: checkpoint.info(name).unwrap().shape.clone(),
    };
    let writer = TensorWriter::new(checkpoint.names().map(plan).collect()).unwrap();
    let changed = folder.join("changed.safetensors");
    writer
        .write_file(&changed, |name| {
            let shape = &checkpoint.info(name).unwrap().shape;
            let number = |index: usize| match (name.contains("embed"), name.contains("norm")) {
                (true, _) if index / shape[1] == letter => 1.0,
                (true, _) => 0.01,
                (_, true) => 1.0,
                _ => 0.0,
            };
            Ok((0..shape.iter().product())
                .map(number)
                .collect::<Vec<f32>>())
        })
        .unwrap();
    drop(checkpoint);
    fs::rename(&changed, &weights).unwrap();
    model
}

/// A chat that is written to and listened to by pipes.
#[cfg(unix)]
struct Talk {
    child: std::process::Child,
    stdin: std::process::ChildStdin,
    /// What it said so far, on both streams.
    said: [std::sync::Arc<std::sync::Mutex<Vec<u8>>>; 2],
}

#[cfg(unix)]
impl Talk {
    fn with(model: &Path) -> Self {
        use std::{io::Read, process::Stdio, sync::Arc};
        let mut child = Command::new(env!("CARGO_BIN_EXE_espalier"))
            .arg("chat")
            .arg(model)
            .args(["--temperature", "0", "--max-new-tokens", "60000"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let streams: [Box<dyn Read + Send>; 2] = [
            Box::new(child.stdout.take().unwrap()),
            Box::new(child.stderr.take().unwrap()),
        ];
        let said = streams.map(|mut stream| {
            let said = Arc::default();
            let heard: Arc<std::sync::Mutex<Vec<u8>>> = Arc::clone(&said);
            std::thread::spawn(move || {
                let mut bytes = [0; 4096];
                while let Ok(count @ 1..) = stream.read(&mut bytes) {
                    heard.lock().unwrap().extend(&bytes[..count]);
                }
            });
            said
        });
        let stdin = child.stdin.take().unwrap();
        Self { child, stdin, said }
    }

    fn text(&self, stream: usize) -> String {
        String::from_utf8_lossy(&self.said[stream].lock().unwrap()).into_owned()
    }

    fn say(&mut self, line: &str) {
        use std::io::Write;
        self.stdin.write_all(line.as_bytes()).unwrap();
        self.stdin.flush().unwrap();
    }

    fn interrupt(&self) {
        let id = self.child.id().to_string();
        let sent = Command::new("kill").args(["-INT", &id]).status().unwrap();
        assert!(sent.success());
    }

    /// Waits until something holds; the program must not end meanwhile.
    fn until(&mut self, what: &str, holds: impl Fn(&Self) -> bool) {
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
        while !holds(self) {
            let ended = self.child.try_wait().unwrap();
            assert!(ended.is_none(), "{what}: ended: {}", self.text(1));
            assert!(std::time::Instant::now() < deadline, "{what} never came");
            std::thread::sleep(std::time::Duration::from_millis(2));
        }
    }

    fn code(mut self) -> Option<i32> {
        self.child.wait().unwrap().code()
    }
}

#[cfg(unix)]
#[test]
fn an_interruption_stops_the_answer_and_the_next_one_the_chat() {
    let folder = tempfile::tempdir().unwrap();
    let model = endless(folder.path());
    let mut chat = Talk::with(&model);
    for turn in 1..=2 {
        chat.say("hello\n");
        // The answer is under way: much longer than any that is not stopped before 60000 tokens would be by then.
        let before = chat.text(0).len();
        chat.until("an answer", |chat| chat.text(0).len() > before + 20);
        let stops = |chat: &Talk| chat.text(1).matches("(stopped; Ctrl-C again").count();
        assert_eq!(stops(&chat), turn - 1);
        chat.interrupt();
        chat.until("the end of the answer", |chat| stops(chat) == turn);
        let answer = chat.text(0);
        assert!(
            answer.ends_with('\n') && answer.len() < 50_000,
            "{}",
            answer.len()
        );
        assert_eq!(answer.lines().count(), turn);
    }
    chat.interrupt();
    assert_eq!(chat.code(), Some(130));
    // Before the first question one is enough.
    let mut chat = Talk::with(&model);
    chat.say("/nothing\n");
    chat.until("a word", |chat| chat.text(1).contains("no command"));
    chat.interrupt();
    assert_eq!(chat.code(), Some(130));
}

/// Paths that are not UTF-8 are found or refused, with JSON on the standard output in either case.
#[cfg(target_os = "linux")]
#[test]
fn paths_that_are_no_text_are_refused_or_answered_in_json() {
    use std::{ffi::OsStr, os::unix::ffi::OsStrExt};
    let place = tempfile::tempdir().unwrap();
    let model = grown(place.path());
    let strange = place.path().join(OsStr::from_bytes(b"m\xffodel"));
    fs::create_dir(&strange).unwrap();
    for entry in fs::read_dir(&model).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, strange.join(path.file_name().unwrap())).unwrap();
    }
    fs::copy(fixture("llama/expected.safetensors"), strange.join("input")).unwrap();
    fs::write(strange.join("data.jsonl"), "{\"text\": \"once upon\"}\n").unwrap();
    fs::write(strange.join("broken.jsonl"), "{\n").unwrap();
    fs::copy(
        place.path().join("recipe.toml"),
        strange.join("recipe.toml"),
    )
    .unwrap();
    let words = |text: &str| {
        text.split(' ')
            .map(OsStr::new)
            .map(OsStr::to_owned)
            .collect()
    };
    // `@` stands for the folder; the second number says how the command ends.
    let cases: &[(&str, i32)] = &[
        ("inspect @", 0),
        ("generate @ hi --max-new-tokens 2", 0),
        ("generate @ hi --beams 2 --max-new-tokens 2", 0),
        ("generate @ hi --save-state @/state", 0),
        ("generate @ hi --from-state @/state --max-new-tokens 2", 0),
        ("generate @ --file @/none", 1),
        ("embed @ hi", 0),
        ("embed @ --file @/data.jsonl", 0),
        ("chat @ --prompt hi --max-new-tokens 2", 0),
        ("eval @ g1/1 --limit 1", 0),
        ("data generate g1/1 --count 1 --output @/items.jsonl", 0),
        ("data show @/data.jsonl --tokenizer @", 2),
        ("bench generate @ --prompt 2 --new 2", 0),
        ("trace @ @/input @/output", 0),
        ("run @/none.toml", 1),
        ("run @/recipe.toml", 0),
        ("train --model @ --data d.jsonl --output o", 2),
        ("train --from-llamafactory @/recipe.toml", 2),
        ("quickstart --output @/run", 2),
        ("inspect @/none", 1),
        ("inspect @/data.jsonl", 1),
    ];
    let check = |arguments: &[std::ffi::OsString], folder: &Path, code: i32| {
        let output = Command::new(env!("CARGO_BIN_EXE_espalier"))
            .arg("--json")
            .args(arguments)
            .current_dir(folder)
            .output()
            .unwrap();
        let [out, said] = [&output.stdout, &output.stderr].map(|s| String::from_utf8_lossy(s));
        let case = format!("{arguments:?}: {out}{said}");
        assert_eq!(output.status.code(), Some(code), "{case}");
        assert!(
            !case.contains("panicked") && !case.contains("a bug of"),
            "{case}"
        );
        let mut lines = std::str::from_utf8(&output.stdout)
            .unwrap()
            .lines()
            .peekable();
        assert!(lines.peek().is_some(), "{case}");
        for line in lines {
            let value: Result<serde_json::Value, _> = serde_json::from_str(line);
            assert!(value.is_ok(), "{case}");
        }
    };
    for (command, code) in cases {
        let arguments: Vec<std::ffi::OsString> = words(command);
        let put = |argument: &std::ffi::OsString| {
            let bytes: Vec<u8> = argument.as_bytes().to_vec();
            match bytes.strip_prefix(b"@") {
                Some(rest) => {
                    OsStr::from_bytes(&[strange.as_os_str().as_bytes(), rest].concat()).to_owned()
                }
                None => argument.clone(),
            }
        };
        let arguments: Vec<_> = arguments.iter().map(put).collect();
        check(&arguments, place.path(), *code);
    }
    // From inside such a folder.
    let cases: &[(&str, i32)] = &[
        ("inspect .", 0),
        ("eval . --data data.jsonl", 0),
        ("data show data.jsonl --tokenizer .", 0),
        ("data show broken.jsonl", 1),
        (
            "train --model . --data data.jsonl --objective pretrain --output run steps=1",
            2,
        ),
        ("run recipe.toml output=run", 2),
    ];
    for (command, code) in cases {
        let arguments: Vec<std::ffi::OsString> = words(command);
        check(&arguments, &strange, *code);
    }
}
