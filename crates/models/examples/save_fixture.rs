//! Loads a fixture and saves it again: `save_fixture MODEL FOLDER`, or `save_fixture adapters/MODEL FOLDER`. The libraries that others use
//! are then asked to open what was saved.

use std::{env, path::Path};

use burn::tensor::Device;
use espalier_models::{Error, checkpoint::Dtype, folder};

fn main() -> Result<(), Error> {
    let wrong = || Error::Invalid("usage: save_fixture NAME FOLDER".into());
    let mut arguments = env::args().skip(1);
    let (name, output) = arguments.next().zip(arguments.next()).ok_or_else(wrong)?;
    let fixtures = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures");
    let loaded = folder::load(&Path::new(fixtures).join(name), &Device::flex())?;
    let output = Path::new(&output);
    match &loaded.adapter {
        Some(adapter) => adapter.save(&loaded.model, loaded.family()?, output),
        None => folder::save(&loaded.model, output, Some(&loaded.config), Dtype::F32),
    }
}
