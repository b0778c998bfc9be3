//! Pegasus (arXiv 1912.08777): BART with norms before the mixers and after each stack, and with Marian's positions.

use super::{
    Config, Family, ModuleNames,
    bart::{self, Switches},
};
use crate::error::Result;
use crate::spec::{ModelSpec, PositionSpec};
use serde_json::{Map, Value};

/// The registration of Pegasus.
pub const FAMILY: Family = Family {
    model_type: "pegasus",
    architecture: "PegasusForConditionalGeneration",
    read,
    write,
    tensors: bart::tensors,
    modules: ModuleNames {
        unread: Some("shared"),
        ..ModuleNames::OF_FILES
    },
    prefix: "model.",
    // Sines and cosines are computed.
    ignored: &[
        "embed_positions.weight",
        "encoder.embed_tokens.weight",
        "decoder.embed_tokens.weight",
    ],
};

fn read(config: &Config) -> Result<ModelSpec> {
    let switches = Switches {
        positions: |_| PositionSpec::Sinusoidal { interleaved: false },
        embedding_norm: false,
        norms_before: true,
        ..Switches::BART
    };
    bart::read(config, &FAMILY, &switches)
}

fn write(spec: &ModelSpec) -> Map<String, Value> {
    bart::write(spec, &FAMILY)
}

#[cfg(test)]
mod tests {
    use super::super::tests::{changed, fixture};
    use super::*;
    use crate::checkpoint::{Checkpoint, Dtype, TensorPlan, TensorWriter};
    use serde_json::json;

    #[test]
    fn a_table_of_other_numbers_is_taken_as_it_is() {
        let fixture = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures/pegasus");
        let folder = tempfile::tempdir().unwrap();
        let file = Checkpoint::open(fixture.as_ref()).unwrap();
        let plan = |name: &str, shape: Vec<usize>| TensorPlan {
            name: name.to_owned(),
            dtype: Dtype::F32,
            shape,
        };
        const TABLE: &str = "model.encoder.embed_positions.weight";
        let mut plans: Vec<TensorPlan> = file
            .names()
            .map(|name| plan(name, file.info(name).unwrap().shape.clone()))
            .collect();
        plans.push(plan(TABLE, vec![2, 16]));
        let config = std::path::Path::new(fixture).join("config.json");
        std::fs::copy(config, folder.path().join("config.json")).unwrap();
        let load = |second: f32| {
            // Position 0: eight sines of 0, eight cosines of 0.
            let table: Vec<f32> = (0..16).map(|i| if i < 8 { 0.0 } else { 1.0 }).collect();
            let row: Vec<f32> = (0..8)
                .map(|i| 10_000f32.powf(-f32::from(i as u8) / 8.0))
                .flat_map(|angle| [angle.sin(), angle.cos()])
                .collect();
            let halves = |first: usize| row.iter().skip(first).step_by(2).copied();
            let mut table = [table, halves(0).chain(halves(1)).collect()].concat();
            table[16] += second;
            TensorWriter::new(plans.clone())
                .unwrap()
                .write_file(&folder.path().join("model.safetensors"), |name| {
                    match name == TABLE {
                        true => Ok(table.clone()),
                        false => file.read_f32(name, None),
                    }
                })
                .unwrap();
            crate::folder::load(folder.path(), &burn::tensor::Device::flex())
        };
        let positions = |second: f32| {
            let model = load(second).unwrap().model;
            let encoder = model.spec().encoder.as_ref().unwrap().positions;
            (encoder, model.spec().positions)
        };
        let sines = Some(PositionSpec::Sinusoidal { interleaved: false });
        assert_eq!(positions(0.0), (sines, sines));
        let fixed = Some(PositionSpec::Fixed { count: 2 });
        assert_eq!(positions(0.5), (fixed, sines));
    }

    #[test]
    fn reads_the_fixture() {
        let spec = fixture("pegasus");
        assert_eq!(
            spec.positions,
            Some(PositionSpec::Sinusoidal { interleaved: false })
        );
        assert!(spec.final_norm.is_some() && spec.embedding_norm.is_none());
        // The published files say so.
        let published = json!({ "normalize_before": true, "add_final_layer_norm": true, "normalize_embedding": false });
        assert_eq!(changed("pegasus", published).unwrap(), spec);
    }
}
