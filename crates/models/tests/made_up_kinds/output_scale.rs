//! Outputs of chosen linear maps are scaled, each by a factor of its own, as in (IA)3 (arXiv 2205.05638): `y = s * (x W^T + b)`.

use std::{collections::HashSet, sync::Arc};

use burn::tensor::Tensor;
use espalier_models::{
    Result,
    adapter::{
        AdapterKind, Fresh, LinearAdapter, PEFT_PREFIX, Registration, each_linear,
        linear_adapter::{LinearPass, LinearWeights},
        linear_parts, target_modules,
    },
    families::{Config, Family},
    layout::{self, StoredTensor},
    model::LanguageModel,
    parameter::Parameter,
};
use serde_json::{Value, json};

use super::constant;

pub const REGISTRATION: Registration = Registration {
    peft_type: "OUTPUT_SCALE",
    read: |config: &Config| {
        let names = config.optional_texts("target_modules")?.unwrap_or_default();
        let targets = names.into_iter().map(str::to_owned).collect();
        config.refuse_unread()?;
        Ok(Arc::new(OutputScale { targets }))
    },
};

/// The ends of the names of scaled modules.
#[derive(Debug)]
pub struct OutputScale {
    pub targets: Vec<String>,
}

#[derive(Debug, Clone)]
struct Scale(Parameter);

impl Scale {
    /// `s - 1`.
    fn change(&self) -> Tensor<1> {
        self.0.value::<1>() - 1.0
    }
}

impl LinearAdapter for Scale {
    fn addition(&self, pass: &LinearPass<'_>) -> Tensor<2> {
        let output = match &pass.bias {
            Some(bias) => pass.product.clone() + bias.clone().unsqueeze(),
            None => pass.product.clone(),
        };
        output * self.change().unsqueeze()
    }

    fn merge(&self, base: &LinearWeights) -> Result<LinearWeights> {
        let change = self.change().inner();
        let bias = base.bias.clone().map(|bias| bias * change.clone());
        let weight = base.weight.clone() * change.unsqueeze_dim(1);
        Ok(LinearWeights { weight, bias })
    }

    fn parameters(&self) -> Vec<&Parameter> {
        vec![&self.0]
    }

    fn parameters_mut(&mut self) -> Vec<&mut Parameter> {
        vec![&mut self.0]
    }
}

impl AdapterKind for OutputScale {
    fn peft_type(&self) -> &'static str {
        REGISTRATION.peft_type
    }

    fn attach(&self, model: &mut LanguageModel, family: &Family, fresh: Fresh<'_>) -> Result<()> {
        let is_target = |module: &str| {
            let last = module.rsplit('.').next().unwrap_or_default();
            self.targets.iter().any(|target| target == last)
        };
        let modules = target_modules(model, family, &is_target)?;
        let maps: HashSet<String> = modules.into_iter().flat_map(|m| m.maps).collect();
        let device = model.device().clone();
        each_linear(model, &mut |map| {
            if !maps.contains(&map.name) {
                return Ok(());
            }
            let name = format!("{}.adapter.{}.scale", map.name, fresh.adapter);
            let scale = constant(name, fresh.adapter, &[map.size()[0]], 1.0, &device);
            map.attach(fresh.adapter, Box::new(Scale(scale)))
        })
    }

    fn tensors<'a>(
        &self,
        model: &'a LanguageModel,
        family: &Family,
        adapter: &str,
    ) -> Vec<StoredTensor<'a>> {
        let parts = linear_parts(model, adapter);
        let of_module = |module: layout::Module| {
            let own = module.maps.iter().map(|map| parts.get(map).copied());
            let own: Vec<&dyn LinearAdapter> = own.collect::<Option<_>>()?;
            let scales = own.into_iter().flat_map(|part| part.parameters()).collect();
            let name = format!("{PEFT_PREFIX}{}.scale", module.name);
            Some(StoredTensor::rows_of(name, scales))
        };
        let modules = layout::modules(model, family).into_iter();
        modules.filter_map(of_module).collect()
    }

    fn configuration(&self, _: &LanguageModel, _: &Family, _: &str) -> Value {
        json!({ "target_modules": self.targets })
    }

    fn describe(&self) -> String {
        format!("scaled outputs of {}", self.targets.join(", "))
    }
}
