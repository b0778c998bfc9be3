//! The residual stream is changed at the first and last tokens of the prompt: a vector is added after some blocks, and after
//! others a low-rank edit of the hidden state, `h + h A^T B^T`, as in ReFT (arXiv 2404.03592).

use std::sync::Arc;

use burn::tensor::Tensor;
use espalier_models::{
    Result,
    adapter::{AdapterKind, Fresh, Intervention, Registration},
    families::{Config, Family},
    layout::StoredTensor,
    model::LanguageModel,
    parameter::Parameter,
    taps::Site,
    token_places::TokenPlaces,
};
use serde_json::{Value, json};

use super::constant;

const LIMIT: usize = 1 << 16;

pub const REGISTRATION: Registration = Registration {
    peft_type: "STEERING",
    read: |config: &Config| {
        let blocks = |key| Ok(config.optional_counts(key, LIMIT)?.unwrap_or_default());
        let steering = Steering {
            vectors: blocks("vectors")?,
            edits: blocks("edits")?,
            rank: config.size("rank", LIMIT)?,
            ends: [
                config.count_or("first", 0, LIMIT)?,
                config.count_or("last", 0, LIMIT)?,
            ],
        };
        config.refuse_unread()?;
        Ok(Arc::new(steering))
    },
};

#[derive(Debug)]
pub struct Steering {
    /// Blocks after which a vector is added.
    pub vectors: Vec<usize>,
    /// Blocks after which the hidden state is edited.
    pub edits: Vec<usize>,
    pub rank: usize,
    /// First and last tokens of the prompt.
    pub ends: [usize; 2],
}

#[derive(Debug, Clone)]
struct Vector {
    value: Parameter,
    ends: [usize; 2],
}

impl Intervention for Vector {
    fn forward(&self, hidden: Tensor<3>, places: &TokenPlaces) -> Tensor<3> {
        let tokens = places.ends_of_prompts(self.ends[0], self.ends[1]);
        let vector = || self.value.value::<1>().unsqueeze::<2>();
        places.added(hidden, &tokens, |rows| {
            vector().repeat_dim(0, rows.dims()[0])
        })
    }

    fn parameters(&self) -> Vec<&Parameter> {
        vec![&self.value]
    }

    fn parameters_mut(&mut self) -> Vec<&mut Parameter> {
        vec![&mut self.value]
    }
}

#[derive(Debug, Clone)]
struct Edit {
    down: Parameter,
    up: Parameter,
    ends: [usize; 2],
}

impl Intervention for Edit {
    fn forward(&self, hidden: Tensor<3>, places: &TokenPlaces) -> Tensor<3> {
        let tokens = places.ends_of_prompts(self.ends[0], self.ends[1]);
        let factors = || [&self.down, &self.up].map(|factor| factor.value::<2>());
        places.added(hidden, &tokens, |rows| {
            let [down, up] = factors();
            rows.matmul(down.transpose()).matmul(up.transpose())
        })
    }

    fn parameters(&self) -> Vec<&Parameter> {
        vec![&self.down, &self.up]
    }

    fn parameters_mut(&mut self) -> Vec<&mut Parameter> {
        vec![&mut self.down, &mut self.up]
    }
}

impl AdapterKind for Steering {
    fn peft_type(&self) -> &'static str {
        REGISTRATION.peft_type
    }

    fn attach(&self, model: &mut LanguageModel, _: &Family, fresh: Fresh<'_>) -> Result<()> {
        let (width, device) = (model.spec().width, model.device().clone());
        let (adapter, ends) = (fresh.adapter, self.ends);
        let stack = model.decoder_mut();
        let part = |block: &usize, part: &str, shape: &[usize], value: f32| {
            let name = format!("blocks.{block}.adapter.{adapter}.{part}");
            constant(name, adapter, shape, value, &device)
        };
        for block in &self.vectors {
            let value = part(block, "vector", &[width], 0.0);
            let vector = Box::new(Vector { value, ends });
            stack.intervene(Site::Block(*block), adapter, vector)?;
        }
        for block in &self.edits {
            let down = part(block, "down", &[self.rank, width], 0.1);
            let up = part(block, "up", &[width, self.rank], 0.0);
            let edit = Box::new(Edit { down, up, ends });
            stack.intervene(Site::Block(*block), adapter, edit)?;
        }
        Ok(())
    }

    fn tensors<'a>(
        &self,
        model: &'a LanguageModel,
        _: &Family,
        adapter: &str,
    ) -> Vec<StoredTensor<'a>> {
        let at_site = |(site, intervention): (Site, &'a dyn Intervention)| {
            let parameters = intervention.parameters().into_iter().enumerate();
            parameters.map(move |(number, parameter)| {
                StoredTensor::whole(format!("{site:?}.{number}"), parameter)
            })
        };
        let interventions = model.decoder().interventions().of(adapter);
        interventions.flat_map(at_site).collect()
    }

    fn configuration(&self, _: &LanguageModel, _: &Family, _: &str) -> Value {
        json!({
            "vectors": self.vectors, "edits": self.edits, "rank": self.rank,
            "first": self.ends[0], "last": self.ends[1],
        })
    }

    fn merge_refusal(&self) -> Option<&'static str> {
        Some("it looks at the hidden state")
    }

    fn describe(&self) -> String {
        "steered hidden states".into()
    }
}
