//! From the names that a user gives to definitions of tasks: files, names of tasks, groups and tags in the folders of task files, and
//! what comes with the program.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use espalier_data::worlds;
use serde_json::{Map, Value};

use super::{
    Group,
    build::{Definition, digest},
    file::{self, Content, GroupFile, TaskFile},
};
use crate::{Error, Result};

/// Task files that come with the program, by name.
const BUILT_IN: &[(&str, &str)] = &[("gsm8k", include_str!("gsm8k.yaml"))];

/// The deepest nesting of groups.
const DEEPEST_GROUP: usize = 16;

/// Where task files are looked for.
#[derive(Debug, Default)]
pub struct Registry {
    folders: Vec<PathBuf>,
    /// What each file defines, once it was needed.
    index: Option<Index>,
}

/// Names, and the files that define them.
#[derive(Debug, Default)]
struct Index {
    tasks: BTreeMap<String, PathBuf>,
    groups: BTreeMap<String, PathBuf>,
    tags: BTreeMap<String, Vec<String>>,
}

impl Registry {
    /// Looks in these folders and the folders in them.
    pub fn new(folders: Vec<PathBuf>) -> Self {
        Self {
            folders,
            index: None,
        }
    }

    /// The tasks that a name or a path means, in order.
    ///
    /// # Errors
    /// When there is no such task, or its file cannot be read.
    pub fn find(&mut self, name: &str) -> Result<Vec<Definition>> {
        let path = Path::new(name);
        if path.is_file() {
            let beside = path.parent().unwrap_or(Path::new("")).to_path_buf();
            let beside = if beside.as_os_str().is_empty() {
                PathBuf::from(".")
            } else {
                beside
            };
            if !self.folders.contains(&beside) {
                self.folders.push(beside);
                self.index = None;
            }
            return self.of_file(path, &[], 0);
        }
        match self.named(name, &[], 0)? {
            Some(found) => Ok(found),
            None => Err(self.unknown(name)),
        }
    }

    fn unknown(&mut self, name: &str) -> Error {
        let own = BUILT_IN.iter().map(|(name, _)| (*name).to_owned());
        let index = self.index();
        let known: Vec<String> = index
            .tasks
            .keys()
            .chain(index.groups.keys())
            .chain(index.tags.keys())
            .cloned()
            .chain(own)
            .chain(worlds::tasks().map(str::to_owned))
            .collect();
        let hint = espalier_data::nearest::suggestion(name, known.iter().map(String::as_str));
        Error::task(format!(
            "no task `{name}`{hint}; give a task file (.yaml), a world's task such as g1/1, or the folder of task files as `include`"
        ))
    }

    fn index(&mut self) -> &Index {
        let folders = &self.folders;
        self.index.get_or_insert_with(|| Index::of(folders))
    }

    fn named(
        &mut self,
        name: &str,
        groups: &[Group],
        depth: usize,
    ) -> Result<Option<Vec<Definition>>> {
        let index = self.index();
        let file = index
            .tasks
            .get(name)
            .or_else(|| index.groups.get(name))
            .cloned();
        if let Some(path) = file {
            return self.of_file(&path, groups, depth).map(Some);
        }
        if let Some(members) = index.tags.get(name).cloned() {
            let mut groups = groups.to_vec();
            groups.push(Group {
                name: name.to_owned(),
                by_size: true,
                metrics: Vec::new(),
            });
            let mut all = Vec::new();
            for member in members {
                all.extend(self.named(&member, &groups, depth + 1)?.unwrap_or_default());
            }
            return Ok(Some(all));
        }
        let built_in = BUILT_IN.iter().find(|(own, _)| *own == name);
        built_in
            .map(|(name, text)| {
                let keys = file::parse(text).map_err(Error::Task)?;
                self.of_keys(Path::new(name), keys, groups, depth)
            })
            .transpose()
    }

    fn of_file(&mut self, path: &Path, groups: &[Group], depth: usize) -> Result<Vec<Definition>> {
        if depth > DEEPEST_GROUP {
            return Err(Error::task(format!(
                "{}: groups hold one another without end",
                path.display()
            )));
        }
        self.of_keys(path, file::keys(path)?, groups, depth)
    }

    fn of_keys(
        &mut self,
        path: &Path,
        keys: Map<String, Value>,
        groups: &[Group],
        depth: usize,
    ) -> Result<Vec<Definition>> {
        let digest = digest(&Value::Object(keys.clone()).to_string());
        match file::content(path, keys)? {
            Content::Task(file) => Ok(vec![definition(path, *file, groups, digest)?]),
            Content::Group(group) => self.of_group(path, &group, groups, depth),
        }
    }

    fn of_group(
        &mut self,
        path: &Path,
        file: &GroupFile,
        groups: &[Group],
        depth: usize,
    ) -> Result<Vec<Definition>> {
        let mut groups = groups.to_vec();
        groups.push(group(path, file)?);
        let mut all = Vec::new();
        for member in &file.task {
            all.extend(self.member(path, member, &groups, depth + 1)?);
        }
        Ok(all)
    }

    /// A member of a group: a name, or a table with a name and what differs, or a group within.
    fn member(
        &mut self,
        path: &Path,
        member: &Value,
        groups: &[Group],
        depth: usize,
    ) -> Result<Vec<Definition>> {
        let wrong = |reason: String| Error::task(format!("{}: {reason}", path.display()));
        let missing = |name: &str| {
            wrong(format!(
                "`task`: there is no task, group or tag `{name}` in the folders of task files; give its folder as `include`"
            ))
        };
        match member {
            Value::String(name) => self
                .named(name, groups, depth)?
                .ok_or_else(|| missing(name)),
            Value::Object(changes) => {
                let name = changes.get("task").and_then(Value::as_str);
                let base = name.and_then(|name| self.index().tasks.get(name).cloned());
                let mut keys = match (&base, name) {
                    (Some(base), _) => file::keys(base)?,
                    (None, Some(name)) if !changes.contains_key("dataset_path") => {
                        return Err(missing(name));
                    }
                    _ => Map::new(),
                };
                keys.extend(changes.clone());
                self.of_keys(base.as_deref().unwrap_or(path), keys, groups, depth)
            }
            other => Err(wrong(format!("`task`: {other} is no name of a task"))),
        }
    }
}

fn definition(path: &Path, file: TaskFile, groups: &[Group], digest: String) -> Result<Definition> {
    let wrong = |reason: &str| Error::task(format!("{}: {reason}", path.display()));
    if file.task.is_empty() {
        return Err(wrong(
            "`task` is missing, the name of the task; is it a file that others include?",
        ));
    }
    if file.dataset_path.is_empty() {
        return Err(wrong("`dataset_path` is missing"));
    }
    Ok(Definition {
        file,
        path: path.to_owned(),
        groups: groups.to_vec(),
        digest,
    })
}

fn group(path: &Path, file: &GroupFile) -> Result<Group> {
    let mut group = Group {
        name: file.group.clone(),
        by_size: true,
        metrics: Vec::new(),
    };
    let entries = match &file.aggregate_metric_list {
        Some(Value::Array(entries)) => entries.clone(),
        Some(one) => vec![one.clone()],
        None => Vec::new(),
    };
    for entry in entries {
        let wrong = |reason: String| {
            Error::task(format!(
                "{}: `aggregate_metric_list`: {reason}",
                path.display()
            ))
        };
        for (key, value) in entry.as_object().into_iter().flatten() {
            match key.as_str() {
                "metric" => group
                    .metrics
                    .extend(file::names(value).into_iter().map(str::to_owned)),
                "weight_by_size" => {
                    group.by_size = value
                        .as_bool()
                        .ok_or_else(|| wrong(format!("{value} is not true or false")))?;
                }
                "aggregation" if value == "mean" => {}
                "filter_list" => {}
                other => return Err(wrong(format!("`{other}: {value}` is not supported"))),
            }
        }
    }
    Ok(group)
}

impl Index {
    /// Files that cannot be read are left out; who names them is told why.
    fn of(folders: &[PathBuf]) -> Self {
        let mut index = Self::default();
        for path in folders.iter().flat_map(|folder| file::files_in(folder)) {
            if let Ok(keys) = file::keys(&path) {
                index.add(&path, &keys);
            }
        }
        index
    }

    fn add(&mut self, path: &Path, keys: &Map<String, Value>) {
        let text = |key: &str| keys.get(key).and_then(Value::as_str);
        let is_list = keys.get("task").is_some_and(Value::is_array);
        let name = match (text("group"), text("task")) {
            (Some(group), _) if is_list => {
                self.groups.insert(group.to_owned(), path.to_owned());
                group
            }
            (_, Some(task)) => {
                self.tasks.insert(task.to_owned(), path.to_owned());
                task
            }
            _ => return,
        };
        let nothing = Value::Null;
        let tags = ["tag", "group"].map(|key| keys.get(key).unwrap_or(&nothing));
        for tag in tags
            .into_iter()
            .flat_map(file::names)
            .filter(|tag| *tag != name)
        {
            self.tags
                .entry(tag.to_owned())
                .or_default()
                .push(name.to_owned());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(found: &[Definition]) -> Vec<&str> {
        found.iter().map(|found| found.file.task.as_str()).collect()
    }

    #[test]
    fn groups_tags_and_files_are_found() {
        let folder = tempfile::tempdir().unwrap();
        let write =
            |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
        write("one.yaml", "task: one\ndataset_path: json\ntag: both\n");
        write("two.yaml", "include: one.yaml\ntask: two\n");
        write(
            "all.yaml",
            "group: all\ntask:\n  - both\n  - task: two\n    task_alias: second\n    num_fewshot: 3\naggregate_metric_list:\n  - metric: acc\n    weight_by_size: false\n",
        );
        let mut registry = Registry::new(vec![folder.path().to_owned()]);
        assert_eq!(names(&registry.find("both").unwrap()), ["one", "two"]);
        let all = registry.find("all").unwrap();
        assert_eq!(names(&all), ["one", "two", "two"]);
        assert_eq!(all[2].file.num_fewshot, Some(3));
        assert!(!all[2].groups[0].by_size && all[2].groups[0].metrics == ["acc"]);
        let error = registry.find("tow").unwrap_err().to_string();
        assert!(error.contains("did you mean `two`"), "{error}");
        let path = folder.path().join("two.yaml");
        assert_eq!(
            names(&Registry::default().find(path.to_str().unwrap()).unwrap()),
            ["two"]
        );
        assert_eq!(
            names(&Registry::default().find("gsm8k").unwrap()),
            ["gsm8k"]
        );
    }
}
