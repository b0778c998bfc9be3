//! Loads an adapter of the fixtures and saves it again: `save_adapter MODEL FOLDER`. PEFT is then asked to open it.

use std::{env, path::Path};

use burn::tensor::Device;
use espalier_models::{Error, folder};

fn main() -> Result<(), Error> {
    let wrong = || Error::Invalid("usage: save_adapter MODEL FOLDER".into());
    let mut arguments = env::args().skip(1);
    let (model, output) = arguments.next().zip(arguments.next()).ok_or_else(wrong)?;
    let fixtures = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures/adapters");
    let loaded = folder::load(&Path::new(fixtures).join(model), &Device::flex())?;
    let adapter = loaded.adapter.as_ref().ok_or_else(wrong)?;
    adapter.save(&loaded.model, loaded.family()?, Path::new(&output))
}
