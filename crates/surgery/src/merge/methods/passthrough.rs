//! Passthrough: the tensor of the one model there is, times `scale` where that is given. It stacks the blocks of one model or of several:
//! depth up-scaling (Kim and others, arXiv 2312.15166), pruning and what is called a frankenmerge are slices of this.

use super::{Base, Default, Method, Operands, Parameter, for_each};

/// Tensors as they are.
pub const PASSTHROUGH: Method = Method {
    name: "passthrough",
    title: "Passthrough",
    source: "https://arxiv.org/abs/2312.15166",
    globals: &[],
    own: &[Parameter {
        name: "scale",
        default: Default::Absent,
    }],
    base: Base::Plain,
    models: (1, 1),
    merge,
};

fn merge(operands: Operands) -> Result<Vec<f32>, String> {
    let mut inputs = operands.inputs.into_iter();
    let input = inputs.next().ok_or("there is no model")?;
    let mut numbers = input.numbers;
    if let Some(scale) = input.values.get("scale") {
        for_each(&mut numbers, |_, number| *number *= scale as f32);
    }
    Ok(numbers)
}

#[cfg(test)]
mod tests {
    use super::super::testing::{merged, near};
    use super::*;

    #[test]
    fn nothing_changes_without_a_scale() {
        let given: [f32; 2] = [0.1, 3.0];
        near(
            &merged(&PASSTHROUGH, None, &[(&given, &[])], &[], None).unwrap(),
            &[0.1, 3.0],
        );
        near(
            &merged(
                &PASSTHROUGH,
                None,
                &[(&given, &[("scale", 0.5)])],
                &[],
                None,
            )
            .unwrap(),
            &[0.05, 1.5],
        );
    }
}
