//! The edit of one hidden state `h`, in six forms: `h + D^T (s(h) - D h)` or a part of that, with a few directions `D`.

use burn::tensor::{Device, Tensor, TensorData};
use espalier_data::random::Random;
use espalier_kernels::{
    activation::{Activation, activate},
    decomposition::orthonormal,
    dropout::Dropout,
    linear::{Precision, linear},
};
use serde::{Deserialize, Serialize};

use crate::parameter::Parameter;

/// The form of the edit. `R` has orthonormal rows, which stay so in training; `P` is any matrix of that size.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum Method {
    /// `h + R^T (W h + b - R h)`: the part of `h` along `R` becomes `W h + b`.
    #[default]
    Loreft,
    /// `h + P^T (W h + b)`, the paper's DiReFT (pyreft's `NodireftIntervention`).
    Direft,
    /// `h + R^T (W h + b)` (pyreft's `DireftIntervention`).
    OrthonormalDireft,
    /// `h + P^T (W h + b - P h)`.
    Noreft,
    /// `h + R^T (b - R h)`: the part along `R` becomes the same for all `h`.
    Consreft,
    /// `h + R^T b`: the same is added to all `h`.
    Lobireft,
}

impl Method {
    /// All forms, each with its name in configurations.
    pub const ALL: [(Self, &'static str); 6] = [
        (Self::Loreft, "loreft"),
        (Self::Direft, "direft"),
        (Self::OrthonormalDireft, "orthonormal_direft"),
        (Self::Noreft, "noreft"),
        (Self::Consreft, "consreft"),
        (Self::Lobireft, "lobireft"),
    ];

    /// Its name in configurations.
    pub fn name(self) -> &'static str {
        let own = Self::ALL.into_iter().find(|(method, _)| *method == self);
        own.map_or("loreft", |(_, name)| name)
    }

    /// Whether the directions stay orthonormal.
    pub fn is_orthonormal(self) -> bool {
        !matches!(self, Self::Direft | Self::Noreft)
    }

    /// Whether it has a `W`, so that what is added depends on the hidden state.
    pub fn has_weight(self) -> bool {
        !matches!(self, Self::Consreft | Self::Lobireft)
    }

    /// What an edit of this form has, in the order of its parameters.
    pub(super) fn parts(self) -> &'static [Factor] {
        match self.has_weight() {
            true => &[Factor::Directions, Factor::Weight, Factor::Bias],
            false => &[Factor::Directions, Factor::Bias],
        }
    }

    /// Whether the part of the hidden state along the directions is taken away.
    fn replaces(self) -> bool {
        matches!(self, Self::Loreft | Self::Noreft | Self::Consreft)
    }
}

/// One of the parameters of an edit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Factor {
    Directions,
    Weight,
    Bias,
}

impl Factor {
    /// Its name in our own files.
    pub fn name(self) -> &'static str {
        match self {
            Self::Directions => "R",
            Self::Weight => "W",
            Self::Bias => "b",
        }
    }
}

/// Where training starts.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum Start {
    /// At random, as in the reference; the model computes something else from the first step.
    #[default]
    Random,
    /// At what changes nothing: `W` is `R` (or `P`) where that is subtracted and zero where not, `b` is zero.
    Identity,
}

/// The edit with its parameters.
#[derive(Debug, Clone)]
pub(super) struct Edit {
    /// `R` or `P`, `[rank, width]`.
    pub directions: Parameter,
    /// `W`, `[rank, width]`, where the form has it.
    pub weight: Option<Parameter>,
    /// `b`, `[rank]`.
    pub bias: Parameter,
    pub method: Method,
    /// Of `W h + b`.
    pub activation: Option<Activation>,
    /// Share of the edited state that is zeroed in training.
    pub dropout: f64,
    /// Which elements are zeroed now.
    pub dropped: Option<Dropout>,
}

/// What an edit is made of, but for its numbers.
#[derive(Debug, Clone, Copy)]
pub(super) struct Form {
    pub method: Method,
    pub activation: Option<Activation>,
    pub dropout: f64,
    pub rank: usize,
    pub width: usize,
    pub start: Start,
}

impl Edit {
    /// A fresh edit, whose parameters are named by `name`.
    pub fn fresh(
        form: Form,
        random: &mut Random,
        name: &dyn Fn(&str) -> String,
        adapter: &str,
        device: &Device,
    ) -> Self {
        let Form {
            method,
            rank,
            width,
            ..
        } = form;
        let bound = 1.0 / (width as f64).sqrt();
        let on_device = |values: Vec<f32>| {
            let count = values.len();
            Tensor::<1>::from_data(TensorData::new(values, [count]), device)
        };
        let directions = match method.is_orthonormal() {
            true => {
                let normal = (0..width * rank).map(|_| random.normal() as f32).collect();
                let normal = on_device(normal).reshape([width, rank]);
                orthonormal(normal).transpose().reshape([rank * width])
            }
            false => on_device(uniform(random, rank * width, -bound, bound)),
        };
        let mut weight = uniform(random, rank * width, -bound, bound);
        let mut bias = match method.has_weight() {
            true => uniform(random, rank, -bound, bound),
            false => uniform(random, rank, 0.0, 1.0),
        };
        if form.start == Start::Identity {
            bias = vec![0.0; rank];
            weight = vec![0.0; rank * width];
        }
        let parameter = |part: &str, shape: Vec<usize>, flat: Tensor<1>| {
            Parameter::new(name(part), shape, flat).of_adapter(adapter)
        };
        let weight = match form.start == Start::Identity && method.replaces() {
            true => directions.clone() + 0.0,
            false => on_device(weight),
        };
        let mut directions = parameter("directions", vec![rank, width], directions);
        if method.is_orthonormal() {
            directions = directions.with_orthonormal_rows();
        }
        Self {
            directions,
            weight: (method.has_weight()).then(|| parameter("weight", vec![rank, width], weight)),
            bias: parameter("bias", vec![rank], on_device(bias)),
            method,
            activation: form.activation,
            dropout: form.dropout,
            dropped: None,
        }
    }

    /// What is added to hidden states, `[tokens, width]` both.
    pub fn change(&self, hidden: Tensor<2>) -> Tensor<2> {
        let tokens = hidden.dims()[0];
        let product = |weight: &Parameter, bias: Option<Tensor<1>>| {
            linear(hidden.clone(), weight.weight(), bias, Precision::F32)
        };
        let source: Tensor<2> = match &self.weight {
            Some(weight) => {
                let source = product(weight, Some(self.bias.value()));
                match self.activation {
                    Some(activation) => activate(activation, source),
                    None => source,
                }
            }
            None => self
                .bias
                .value::<1>()
                .unsqueeze::<2>()
                .repeat_dim(0, tokens),
        };
        let source = match self.method.replaces() {
            true => source - product(&self.directions, None),
            false => source,
        };
        let change = source.matmul(self.directions.value());
        match self.dropped {
            // The whole edited state is what elements are dropped of.
            Some(dropout) => dropout.forward(hidden.clone() + change) - hidden,
            None => change,
        }
    }

    /// The parameters in the order of [`Method::parts`].
    pub fn parameters(&self) -> impl Iterator<Item = &Parameter> {
        [&self.directions]
            .into_iter()
            .chain(&self.weight)
            .chain([&self.bias])
    }

    /// The same for change.
    pub fn parameters_mut(&mut self) -> impl Iterator<Item = &mut Parameter> {
        let own = [&mut self.directions].into_iter();
        own.chain(&mut self.weight).chain([&mut self.bias])
    }
}

fn uniform(random: &mut Random, count: usize, low: f64, high: f64) -> Vec<f32> {
    let one = |_| (low + (high - low) * random.f()) as f32;
    (0..count).map(one).collect()
}

#[cfg(test)]
mod tests {
    use espalier_kernels::readback::ReadFloats;

    use super::*;

    const W: [f32; 6] = [1.0, 0.0, -1.0, 0.5, 0.5, 0.0];

    fn edit(method: Method, directions: &[f32], weight: &[f32], bias: &[f32]) -> Edit {
        let (rank, width) = (bias.len(), directions.len() / bias.len());
        let form = Form {
            method,
            activation: None,
            dropout: 0.0,
            rank,
            width,
            start: Start::Random,
        };
        let name = |part: &str| part.to_owned();
        let device = Device::flex();
        let mut edit = Edit::fresh(form, &mut Random::new(1), &name, "default", &device);
        edit.directions.set_data(directions.to_vec(), &device);
        edit.bias.set_data(bias.to_vec(), &device);
        if let Some(own) = &mut edit.weight {
            own.set_data(weight.to_vec(), &device);
        }
        edit
    }

    fn edited(edit: &Edit, hidden: &[f32]) -> Vec<f32> {
        let hidden = Tensor::<1>::from_floats(hidden, &Device::flex()).unsqueeze::<2>();
        let after = hidden.clone() + edit.change(hidden);
        after.flatten::<1>(0, 1).floats()
    }

    fn assert_near(found: &[f32], expected: &[f32]) {
        assert_eq!(found.len(), expected.len());
        for (a, b) in found.iter().zip(expected) {
            assert!((a - b).abs() < 1e-5, "{found:?} against {expected:?}");
        }
    }

    const R: [f32; 6] = [0.6, 0.8, 0.0, 0.0, 0.0, 1.0];
    const B: [f32; 2] = [0.1, -0.2];
    const H: [f32; 3] = [1.0, 2.0, 3.0];

    #[test]
    fn the_worked_example_of_loreft() {
        let after = edited(&edit(Method::Loreft, &R, &W, &B), &H);
        assert_near(&after, &[-1.46, -1.28, 1.3]);
        // Along R it is W h + b, across it nothing has changed.
        let along = |h: &[f32]| [0.6 * h[0] + 0.8 * h[1], h[2]];
        assert_near(&along(&after), &[-1.9, 1.3]);
        let across = |h: &[f32]| {
            let [first, last] = along(h);
            vec![h[0] - 0.6 * first, h[1] - 0.8 * first, h[2] - last]
        };
        assert_near(&across(&after), &[-0.32, 0.24, 0.0]);
        assert_near(&across(&H), &[-0.32, 0.24, 0.0]);
    }

    #[test]
    fn the_worked_example_of_direft() {
        let p = [1.0, 0.0, 1.0, 0.0, 2.0, 0.0];
        assert_near(
            &edited(&edit(Method::Direft, &p, &W, &B), &H),
            &[-0.9, 4.6, 1.1],
        );
        // h + P^T (W h + b - P h), with P h = [4, 4].
        assert_near(
            &edited(&edit(Method::Noreft, &p, &W, &B), &H),
            &[-4.9, -3.4, -2.9],
        );
    }

    #[test]
    fn the_librarys_other_forms() {
        // R^T (W h + b) = R^T [-1.9, 1.3].
        let direct = edited(&edit(Method::OrthonormalDireft, &R, &W, &B), &H);
        assert_near(&direct, &[-0.14, 0.48, 4.3]);
        // R^T (b - R h) = R^T [-2.1, -3.2].
        let constant = edited(&edit(Method::Consreft, &R, &[], &B), &H);
        assert_near(&constant, &[-0.26, 0.32, -0.2]);
        let added = edited(&edit(Method::Lobireft, &R, &[], &B), &H);
        assert_near(&added, &[1.06, 2.08, 2.8]);
    }

    #[test]
    fn the_subspace_itself_is_the_identity_and_a_full_one_is_direct() {
        let same = edited(&edit(Method::Loreft, &R, &R, &[0.0, 0.0]), &H);
        assert_near(&same, &H);
        // R is a rotation of all three axes: nothing of h is left but W h + b.
        let r = [0.6, 0.8, 0.0, -0.8, 0.6, 0.0, 0.0, 0.0, 1.0];
        let w = [1.0, 0.0, -1.0, 0.5, 0.5, 0.0, 2.0, 0.0, 0.0];
        let b = [0.1, -0.2, 0.3];
        let after = edited(&edit(Method::Loreft, &r, &w, &b), &H);
        let s = [-1.9, 1.3, 2.3];
        let expected = [0.6 * s[0] - 0.8 * s[1], 0.8 * s[0] + 0.6 * s[1], s[2]];
        assert_near(&after, &expected);
    }

    #[test]
    fn fresh_directions_are_orthonormal_and_identity_changes_nothing() {
        for (method, name) in Method::ALL {
            let form = |start| Form {
                method,
                activation: None,
                dropout: 0.0,
                rank: 3,
                width: 8,
                start,
            };
            let name_of = |part: &str| part.to_owned();
            let device = Device::flex();
            let make =
                |start| Edit::fresh(form(start), &mut Random::new(5), &name_of, "a", &device);
            let directions = make(Start::Random).directions.value::<2>();
            let gram = directions.clone().matmul(directions.transpose());
            let gap = (gram - Tensor::eye(3, &device))
                .abs()
                .max()
                .into_scalar::<f32>();
            assert_eq!(gap < 1e-6, method.is_orthonormal(), "{name}: {gap}");
            let hidden: Vec<f32> = (0..8).map(|i| i as f32 - 3.0).collect();
            let change = edited(&make(Start::Random), &hidden);
            assert!(
                change
                    .iter()
                    .zip(&hidden)
                    .any(|(a, b)| (a - b).abs() > 0.01)
            );
            if method != Method::Consreft {
                assert_near(&edited(&make(Start::Identity), &hidden), &hidden);
            }
        }
    }

    #[test]
    fn dropout_falls_on_the_whole_edited_state() {
        let mut edit = edit(Method::Loreft, &R, &W, &B);
        edit.dropped = Some(Dropout {
            probability: 0.5,
            seed: 3,
        });
        let rows: Vec<f32> = H.repeat(400);
        let hidden = Tensor::<1>::from_floats(&rows[..], &Device::flex()).reshape([400, 3]);
        let after = (hidden.clone() + edit.change(hidden))
            .flatten::<1>(0, 1)
            .floats();
        let doubled = [-2.92, -2.56, 2.6];
        let is_either = |(i, x): (usize, &f32)| x.abs() < 1e-5 || (x - doubled[i % 3]).abs() < 1e-4;
        assert!(after.iter().enumerate().all(is_either));
        let zeros = after.iter().filter(|x| x.abs() < 1e-5).count();
        assert!((500..700).contains(&zeros), "{zeros}");
    }
}
