//! A stage's folder in that of its run.
//!
//! A finished result stays where it is until the next one is finished: that one is made beside it, in `NN-name.partial`, and
//! takes its place by renaming. Whenever a run is interrupted, the same command goes on, and one of the two is whole.

use std::path::{Path, PathBuf};

use espalier_data::disk;
use espalier_models::adapter::{self, Adapter};

use super::{kinds::Input, stage_folder};
use crate::{
    Error, Result,
    model_path::resolve_model,
    recipe::{Recipe, Stage},
};

/// What is added to a stage's name where its next result is made.
const PARTIAL: &str = ".partial";

/// What is added to a stage's name where its last result is about to be removed.
const OLD: &str = ".old";

/// Whether a folder's name is that of a result that is not in its place.
pub fn is_out_of_place(name: &str) -> bool {
    name.ends_with(PARTIAL) || name.ends_with(OLD)
}

/// The folder of a stage, and those in which results are exchanged.
#[derive(Debug)]
pub struct StageFolder {
    /// Where the stage's result lies.
    pub home: PathBuf,
    /// Where the next one is made as long as there is a finished one.
    pub partial: PathBuf,
    old: PathBuf,
}

impl StageFolder {
    /// Makes the folder; an exchange that was interrupted is finished or taken back.
    ///
    /// # Errors
    /// When a folder cannot be made, renamed or removed.
    pub fn open(home: PathBuf) -> Result<Self> {
        let beside = |ending: &str| {
            let mut name = home.clone().into_os_string();
            name.push(ending);
            PathBuf::from(name)
        };
        let (partial, old) = (beside(PARTIAL), beside(OLD));
        match (home.exists(), old.exists()) {
            (true, true) => disk::remove_folder(&old).map_err(Error::file(&old))?,
            (false, true) => disk::rename(&old, &home).map_err(Error::file(&old))?,
            _ => disk::create_folder(&home).map_err(Error::file(&home))?,
        }
        Ok(Self { home, partial, old })
    }

    /// Puts the finished result of [`StageFolder::partial`] in the place of the one before.
    ///
    /// # Errors
    /// When a folder cannot be renamed or removed.
    pub fn exchange(&self) -> Result<()> {
        disk::rename(&self.home, &self.old).map_err(Error::file(&self.home))?;
        disk::rename(&self.partial, &self.home).map_err(Error::file(&self.partial))?;
        disk::remove_folder(&self.old).map_err(Error::file(&self.old))
    }
}

/// Whether no stage reads a file of its own folder, which it replaces.
///
/// # Errors
/// The first that does.
pub fn check_own_folders(recipe: &Recipe) -> Result<()> {
    for (index, stage) in recipe.stage.iter().enumerate() {
        let folder = stage_folder(&recipe.output, index + 1, &stage.name);
        let Ok(place) = folder.canonicalize() else {
            continue;
        };
        let is_inside = |path: &PathBuf| path.canonicalize().is_ok_and(|p| p.starts_with(&place));
        if let Some(path) = paths(stage).into_iter().find(is_inside) {
            return Err(Error::usage(format!(
                "stage `{}`: it reads `{}`, which lies in the folder that it would replace, `{}`; give another `output`",
                stage.name,
                path.display(),
                folder.display()
            )));
        }
    }
    Ok(())
}

/// The files and folders that a stage names, the base models of adapters included.
fn paths(stage: &Stage) -> Vec<PathBuf> {
    let mut paths = Vec::new();
    for input in stage.clone().kind.work_mut().inputs() {
        match input {
            Input::Model(name) => with_bases(Path::new(name), &mut paths),
            Input::Tokenizer(name) | Input::Template(name) | Input::Evaluation(name) => {
                paths.push(PathBuf::from(&*name));
            }
            Input::Word(word) => paths.push(PathBuf::from(word)),
            Input::Data(data) => paths.extend(data.path.clone()),
        }
    }
    paths
}

/// A model, the base that it stands on where it is an adapter, and so on.
fn with_bases(path: &Path, paths: &mut Vec<PathBuf>) {
    let mut next = resolve_model(path).ok();
    while let Some(path) = next.filter(|path| !paths.contains(path)) {
        let base = Adapter::read(&path).and_then(|read| adapter::base_folder(&path, &read));
        paths.push(path);
        next = base.ok();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn an_interrupted_exchange_leaves_a_whole_result() {
        let run = tempfile::tempdir().unwrap();
        let home = run.path().join("01-a");
        let open = || StageFolder::open(home.clone()).unwrap();
        let (first, second) = (home.join("first"), home.join("second"));
        let folder = open();
        fs::write(&first, "").unwrap();
        fs::create_dir(&folder.partial).unwrap();
        fs::write(folder.partial.join("second"), "").unwrap();
        // Killed between the two renamings: the result before is back, the next one is where it was.
        fs::rename(&home, &folder.old).unwrap();
        let folder = open();
        assert!(first.exists() && folder.partial.join("second").exists() && !folder.old.exists());
        // Killed after them: the result before is removed.
        fs::rename(&home, &folder.old).unwrap();
        fs::rename(&folder.partial, &home).unwrap();
        let folder = open();
        assert!(second.exists() && !first.exists() && !folder.old.exists());
    }
}
