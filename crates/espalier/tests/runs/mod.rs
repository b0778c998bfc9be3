//! What a run leaves, as it is compared with what another one left.

use std::{collections::BTreeMap, fs, path::Path};

use serde_json::Value;

/// The files of a run, in the folder `run`, by name, without what tells of time and of checkpoints.
pub fn files(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    fn visit(root: &Path, folder: &Path, found: &mut BTreeMap<String, Vec<u8>>) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path
                .strip_prefix(root)
                .unwrap()
                .to_string_lossy()
                .into_owned();
            if path.is_dir() {
                visit(root, &path, found);
            } else if name.ends_with("hashes.json") {
                // What is remembered of files so as not to read them again depends on how old they are.
            } else if name.ends_with(".jsonl") {
                found.insert(name, without_times(&fs::read_to_string(&path).unwrap()));
            } else if ![".lock", "report.html", "stage.json", "result.json"]
                .iter()
                .any(|with_times| name.ends_with(with_times))
            {
                found.insert(name, without_place(fs::read(&path).unwrap(), root));
            } else {
                found.insert(name, Vec::new());
            }
        }
    }
    let mut found = BTreeMap::new();
    visit(folder, &folder.join("run"), &mut found);
    found
}

/// A file's bytes, and where it names its own folder, a name that all runs share.
fn without_place(bytes: Vec<u8>, root: &Path) -> Vec<u8> {
    match String::from_utf8(bytes) {
        Ok(text) => text.replace(&*root.to_string_lossy(), "").into_bytes(),
        Err(error) => error.into_bytes(),
    }
}

fn without_times(log: &str) -> Vec<u8> {
    let line = |line: &str| {
        let mut value: Value = serde_json::from_str(line).unwrap();
        let map = value.as_object_mut().unwrap();
        map.retain(|key, _| !key.contains("second") && !key.contains("memory"));
        value.to_string()
    };
    log.lines()
        .map(line)
        .collect::<Vec<_>>()
        .join("\n")
        .into_bytes()
}

/// The first file in which two runs differ, if they do.
pub fn difference(
    expected: &BTreeMap<String, Vec<u8>>,
    found: &BTreeMap<String, Vec<u8>>,
) -> Option<String> {
    let names = expected.keys().chain(found.keys());
    let differs = |name: &&String| expected.get(*name) != found.get(*name);
    names.into_iter().find(differs).cloned()
}
