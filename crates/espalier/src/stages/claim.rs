//! Whose folder a run's output is: its own, that of another run, a model's, or somebody's who keeps a recipe there.
//!
//! A run leaves `recipe.toml`, its recipe with all that it means. A file of that name that no run wrote is somebody's work and stays; a
//! folder with finished stages of which the recipe has none is another run's, and would mix two.

use std::{fs, path::Path};

use espalier_models::{adapter, checkpoint::Checkpoint, folder};

use super::{record, stage_folder, write_whole};
use crate::{
    Error, Result,
    recipe::{Recipe, document},
};

/// The copy's name.
const COPY: &str = "recipe.toml";

/// The copy's first line, by which a run knows it again.
const MARK: &str = "# Written by espalier: the recipe of this run, with all that it means. Changes here are overwritten.\n";

/// Whether a run may work in its output folder; nothing is written.
///
/// # Errors
/// When it is a model's folder, or holds the run of another recipe.
pub fn check(recipe: &Recipe) -> Result<()> {
    let folder = &recipe.output;
    let other = "give another `output`";
    if is_model(folder) {
        return Err(Error::usage(format!(
            "`output`: {} is a model's folder, and a run would lie in it; {other}",
            folder.display()
        )));
    }
    let Some(Copy::Ours(mut earlier)) = copy(folder) else {
        return Ok(());
    };
    // A folder that was copied or moved says where it was written.
    earlier.output.clone_from(folder);
    let finished = finished(&earlier);
    let has = |name: &&str| recipe.stage.iter().any(|stage| stage.name == *name);
    if finished.is_empty() || finished.iter().any(has) {
        return Ok(());
    }
    Err(Error::usage(format!(
        "`output`: {} holds the run of another recipe, with the stages {}; {other}, or remove the folder",
        folder.display(),
        finished.join(", ")
    )))
}

/// Whether a model lies in a folder itself, and not in a run's below it. A lone file of weights may be anything.
fn is_model(folder: &Path) -> bool {
    let described = folder.join("config.json").is_file() && Checkpoint::file_in(folder).is_some();
    described || folder.join(adapter::CONFIGURATION).is_file() || folder::is_bare(folder)
}

/// Writes the copy of a recipe into its folder, unless somebody's own recipe lies there; whether it does not.
///
/// # Errors
/// When the disk is full.
pub fn write_copy(recipe: &Recipe) -> Result<bool> {
    if matches!(copy(&recipe.output), Some(Copy::Foreign)) {
        return Ok(false);
    }
    let text = MARK.to_owned() + &text(recipe)?;
    write_whole(&recipe.output.join(COPY), text.as_bytes())?;
    Ok(true)
}

fn text(recipe: &Recipe) -> Result<String> {
    toml::to_string(recipe).map_err(|error| Error::work(format!("recipe: {error}")))
}

/// What lies where the copy belongs.
enum Copy {
    /// A copy that a run wrote.
    Ours(Box<Recipe>),
    /// Something else.
    Foreign,
}

/// Reads what lies there; a copy from before the first line was written is one that is written the same again.
fn copy(folder: &Path) -> Option<Copy> {
    let path = folder.join(COPY);
    fs::symlink_metadata(&path).ok()?;
    let read = fs::read_to_string(&path).unwrap_or_default();
    let recipe = document::parse::<Recipe>(&read, COPY, &[]);
    let ours = |recipe: &Recipe| read.starts_with(MARK) || text(recipe).is_ok_and(|t| t == read);
    Some(match recipe {
        Ok(recipe) if ours(&recipe) => Copy::Ours(Box::new(recipe)),
        // Of another version, and of nobody's making.
        _ => Copy::Foreign,
    })
}

/// The names of a recipe's stages that are finished in its folder.
fn finished(recipe: &Recipe) -> Vec<&str> {
    let mut runs: Vec<Recipe> = recipe
        .seeds
        .iter()
        .map(|seed| recipe.of_seed(*seed))
        .collect();
    runs.push(recipe.clone());
    let stages = recipe.stage.iter().enumerate();
    let is_finished = |number: usize, name: &str| {
        let mut folders = runs
            .iter()
            .map(|run| stage_folder(&run.output, number, name));
        folders.any(|folder| folder.join(record::NAME).is_file())
    };
    stages
        .filter(|(index, stage)| is_finished(index + 1, &stage.name))
        .map(|(_, stage)| stage.name.as_str())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recipe(output: &Path, stage: &str) -> Recipe {
        let text = format!(
            "output = {}\n[[stage]]\nname = \"{stage}\"\nevaluate = {{ model = \"m\", tasks = [\"g1/1\"] }}\n",
            toml::Value::String(output.display().to_string())
        );
        document::parse(&text, "recipe.toml", &[]).unwrap()
    }

    #[test]
    fn somebodys_own_recipe_stays() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(COPY);
        let recipe = recipe(folder.path(), "a");
        for own in ["# mine\nstage = []\n", "no toml", ""] {
            fs::write(&path, own).unwrap();
            assert!(!write_copy(&recipe).unwrap());
            assert_eq!(fs::read_to_string(&path).unwrap(), own);
        }
        // One that says the same in other words is somebody's too.
        let own = format!("# mine\n{}", text(&recipe).unwrap());
        fs::write(&path, &own).unwrap();
        assert!(!write_copy(&recipe).unwrap());
        // Copies are replaced: those with the first line, and those from before it.
        fs::write(&path, text(&recipe).unwrap()).unwrap();
        assert!(write_copy(&recipe).unwrap());
        let written = fs::read_to_string(&path).unwrap();
        assert!(written.starts_with(MARK));
        assert!(write_copy(&recipe).unwrap());
        assert_eq!(fs::read_to_string(&path).unwrap(), written);
    }

    #[test]
    fn the_folder_of_another_run_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let (one, other) = (recipe(folder.path(), "a"), recipe(folder.path(), "b"));
        check(&one).unwrap();
        write_copy(&one).unwrap();
        // Nothing is finished yet.
        check(&other).unwrap();
        let stage = stage_folder(folder.path(), 1, "a");
        fs::create_dir(&stage).unwrap();
        fs::write(stage.join(record::NAME), "{}").unwrap();
        check(&one).unwrap();
        let said = check(&other).unwrap_err().to_string();
        assert!(said.contains("with the stages a; give another"), "{said}");
    }

    #[test]
    fn a_copied_folder_is_judged_by_what_lies_in_it() {
        let folder = tempfile::tempdir().unwrap();
        let [first, copied] = ["first", "copied"].map(|name| folder.path().join(name));
        let finish = |run: &Path| {
            let stage = stage_folder(run, 1, "a");
            fs::create_dir_all(&stage).unwrap();
            fs::write(stage.join(record::NAME), "{}").unwrap();
        };
        finish(&first);
        write_copy(&recipe(&first, "a")).unwrap();
        fs::create_dir(&copied).unwrap();
        fs::copy(first.join(COPY), copied.join(COPY)).unwrap();
        // What is finished where it was copied from is not finished here.
        check(&recipe(&copied, "b")).unwrap();
        finish(&copied);
        fs::remove_dir_all(&first).unwrap();
        let said = check(&recipe(&copied, "b")).unwrap_err().to_string();
        assert!(said.contains("with the stages a; give another"), "{said}");
    }

    #[test]
    fn a_models_folder_is_refused() {
        for name in ["model.safetensors", adapter::CONFIGURATION] {
            let folder = tempfile::tempdir().unwrap();
            fs::write(folder.path().join("config.json"), "{}").unwrap();
            let recipe = recipe(folder.path(), "a");
            check(&recipe).unwrap();
            fs::write(folder.path().join(name), "").unwrap();
            let said = check(&recipe).unwrap_err().to_string();
            assert!(said.contains("is a model's folder"), "{said}");
        }
    }
}
