//! Experts as PEFT adapts them: a stack is one parameter of transformers 5, and a `target_parameters` entry means it.
//!
//! Files may hold the experts one by one (`experts.3.w1`), but the module in memory is one tensor for all of them
//! (`experts.gate_up_proj`, `[experts, out, in]`), and PEFT's wrapper of it has one `lora_A` and one `lora_B`. Where both parameters of
//! a module are adapted, the second one's wrapper stands around the first one's, whose tensors are then under `base_layer`.

use std::collections::BTreeMap;

use super::PEFT_PREFIX;
use crate::layout::Module;

/// A stack of experts by the name of its parameter in transformers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExpertParameter {
    /// The full name, such as `model.layers.1.mlp.experts.gate_up_proj`.
    pub name: String,
    /// Our names of the linear maps of each expert, in the order of their rows.
    pub experts: Vec<Vec<String>>,
}

impl ExpertParameter {
    /// The stacks of a model's modules; of a module's parameters the outer one is last.
    pub fn all(modules: &[Module]) -> Vec<Self> {
        let mut stacks: BTreeMap<String, Experts<'_>> = BTreeMap::new();
        let mut order = Vec::new();
        for module in modules {
            let Some((name, expert)) = parameter(module).zip(module.expert.as_ref()) else {
                continue;
            };
            if !order.contains(&name) {
                order.push(name.clone());
            }
            let experts = stacks.entry(name).or_default();
            experts
                .entry(expert.number)
                .or_default()
                .push((expert.row, module));
        }
        order.sort_by_key(|name| name.ends_with(DOWN));
        let stack = |name: String| {
            let of_expert = |modules: &mut Vec<(usize, &Module)>| {
                modules.sort_by_key(|(row, _)| *row);
                modules
                    .iter()
                    .flat_map(|(_, module)| module.maps.clone())
                    .collect()
            };
            let experts = stacks.get_mut(&name)?.values_mut().map(of_expert).collect();
            Some(Self { name, experts })
        };
        order.into_iter().filter_map(stack).collect()
    }

    /// The module that has the parameter.
    fn module(&self) -> &str {
        self.name.rsplit_once('.').map_or("", |(module, _)| module)
    }

    /// PEFT's names of `A` and `B`, where `adapted` are all stacks with an adapter, in the order of [`ExpertParameter::all`].
    pub fn tensors(&self, adapted: &[&Self]) -> [String; 2] {
        let outer = adapted
            .iter()
            .rfind(|other| other.module() == self.module());
        let inner = match outer {
            Some(outer) if outer.name != self.name => ".base_layer",
            _ => "",
        };
        ["lora_A", "lora_B"]
            .map(|factor| format!("{PEFT_PREFIX}{}{inner}.{factor}.weight", self.module()))
    }
}

/// The modules of every expert of a stack, each with the first of its rows.
type Experts<'a> = BTreeMap<usize, Vec<(usize, &'a Module)>>;

/// The parameter of the second layer of experts, which transformers defines last.
const DOWN: &str = ".down_proj";

/// The parameter of transformers that holds an expert's module.
fn parameter(module: &Module) -> Option<String> {
    let expert = module.expert.as_ref()?;
    let one_by_one = || {
        let (head, leaf) = expert.tensor.strip_suffix(".weight")?.rsplit_once('.')?;
        let (stack, number) = head.rsplit_once('.')?;
        (number.parse() == Ok(expert.number)).then_some((stack, leaf))
    };
    let Some((stack, leaf)) = one_by_one() else {
        return Some(expert.tensor.clone());
    };
    match leaf {
        // The names of Mixtral's own code.
        "w1" | "w3" => Some(format!("{stack}.gate_up_proj")),
        "w2" => Some(format!("{stack}{DOWN}")),
        "gate_proj" | "up_proj" => Some(format!("{stack}.gate_up_proj")),
        _ => Some(format!("{stack}.{leaf}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::ExpertModule;

    fn module(tensor: &str, number: usize, row: usize) -> Module {
        Module {
            name: tensor.trim_end_matches(".weight").to_owned(),
            other_names: Vec::new(),
            by_parameter: false,
            left_out: None,
            maps: vec![format!("{tensor}.{number}")],
            groups: 1,
            expert: Some(ExpertModule {
                tensor: tensor.to_owned(),
                number,
                row,
            }),
        }
    }

    #[test]
    fn experts_that_are_stored_one_by_one_are_one_parameter() {
        let mut modules = Vec::new();
        for (number, leaf, row) in [
            (0, "w1", 0),
            (0, "w2", 0),
            (0, "w3", 4),
            (1, "w3", 12),
            (1, "w1", 8),
            (1, "w2", 4),
        ] {
            let name = format!("model.layers.0.mlp.experts.{number}.{leaf}.weight");
            modules.push(module(&name, number, row));
        }
        let all = ExpertParameter::all(&modules);
        let names: Vec<&str> = all.iter().map(|stack| stack.name.as_str()).collect();
        let experts = "model.layers.0.mlp.experts";
        assert_eq!(
            names,
            [
                format!("{experts}.gate_up_proj"),
                format!("{experts}.down_proj")
            ]
        );
        assert!(
            all[0]
                .experts
                .iter()
                .all(|maps| maps[0].contains("w1") && maps[1].contains("w3"))
        );
        let both: Vec<&ExpertParameter> = all.iter().collect();
        let prefix = format!("base_model.model.{experts}");
        assert_eq!(
            all[0].tensors(&both)[0],
            format!("{prefix}.base_layer.lora_A.weight")
        );
        assert_eq!(all[1].tensors(&both)[1], format!("{prefix}.lora_B.weight"));
        assert_eq!(
            all[0].tensors(&both[..1])[1],
            format!("{prefix}.lora_B.weight")
        );
    }

    #[test]
    fn experts_that_are_stored_together_keep_their_name() {
        let tensor = "model.layers.1.mlp.input_linear.weight";
        let all = ExpertParameter::all(&[module(tensor, 0, 0), module(tensor, 1, 8)]);
        assert_eq!(
            (all.len(), all[0].name.as_str(), all[0].experts.len()),
            (1, tensor, 2)
        );
        let names = all[0].tensors(&[&all[0]]);
        assert_eq!(
            names[0],
            "base_model.model.model.layers.1.mlp.input_linear.lora_A.weight"
        );
    }
}
