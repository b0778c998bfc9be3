//! What an adapter does to the residual stream: the hidden state after the embedding or after a block is replaced.

use std::fmt::Debug;

use burn::tensor::Tensor;
use espalier_data::random::fnv;

use super::attachments::{Attached, Attachments};
use crate::{
    layers::linear::{LinearMap, LinearMapMut},
    parameter::{Parameter, Parameters, parameters},
    taps::Site,
    token_places::TokenPlaces,
};

/// A change of the hidden state that belongs to the model, as in representation fine-tuning (ReFT, arXiv 2404.03592). It is
/// part of every pass: training, cached decoding, scoring.
///
/// ```
/// use burn::tensor::{Device, Tensor};
/// use espalier_models::{
///     adapter::Intervention, model::{Input, LanguageModel}, parameter::Parameter, source::Seed, spec::ModelSpec,
///     taps::Site, token_places::TokenPlaces,
/// };
/// /// Silences the last token of every prompt.
/// #[derive(Debug, Clone)]
/// struct Silence;
/// impl Intervention for Silence {
///     fn forward(&self, hidden: Tensor<3>, places: &TokenPlaces) -> Tensor<3> {
///         places.added(hidden, &places.ends_of_prompts(0, 1), |rows| rows.neg())
///     }
///     fn parameters(&self) -> Vec<&Parameter> {
///         Vec::new()
///     }
///     fn parameters_mut(&mut self) -> Vec<&mut Parameter> {
///         Vec::new()
///     }
/// }
/// let mut model = LanguageModel::build(ModelSpec::llama(64, 16, 2, 2, 1, 32, 32), &mut Seed(0), &Device::flex())?;
/// model.decoder_mut().intervene(Site::Block(1), "silence", Box::new(Silence))?;
/// let hidden = model.hidden(&Input::rows(&[vec![1, 2, 3]])?, None)?;
/// assert_eq!(hidden.narrow(1, 2, 1).abs().max().into_scalar::<f32>(), 0.0);
/// # Ok::<(), espalier_models::Error>(())
/// ```
pub trait Intervention: CloneIntervention + Debug + Send + Sync {
    /// The hidden state to go on with; `hidden` and what comes back are `[batch, time, width]`. `places` tells where each token
    /// stands in its text, however the pass is cut into rows and steps.
    fn forward(&self, hidden: Tensor<3>, places: &TokenPlaces) -> Tensor<3>;

    /// The parameters, in a fixed order.
    fn parameters(&self) -> Vec<&Parameter>;

    /// The parameters for change, in the same order.
    fn parameters_mut(&mut self) -> Vec<&mut Parameter>;

    /// Draws anew what it drops in training, where it says that something is; nothing is dropped when absent.
    fn set_dropout(&mut self, _seed: Option<u64>) {}

    /// Share of what it makes that it drops in training.
    fn dropout(&self) -> f64 {
        0.0
    }
}

/// Copies an intervention of any kind; every [`Intervention`] that is [`Clone`] has it.
pub trait CloneIntervention {
    /// A copy. Its parameters share memory with this one's until one of them changes.
    fn boxed(&self) -> Box<dyn Intervention>;
}

impl<T: Intervention + Clone + 'static> CloneIntervention for T {
    fn boxed(&self) -> Box<dyn Intervention> {
        Box::new(self.clone())
    }
}

impl Clone for Box<dyn Intervention> {
    fn clone(&self) -> Self {
        (**self).boxed()
    }
}

/// The interventions of a stack, at most one of an adapter at each site.
#[derive(Debug, Clone, Default)]
pub struct Interventions {
    sites: Vec<AtSite>,
}

parameters!(Interventions: sites);

/// What adapters have at one site.
#[derive(Debug, Clone)]
struct AtSite {
    site: Site,
    attached: Attachments<Box<dyn Intervention>>,
}

parameters!(AtSite: attached);

impl Interventions {
    /// Adds the intervention of an adapter at a site, active, in place of one that this adapter has there.
    pub fn attach(&mut self, site: Site, adapter: &str, intervention: Box<dyn Intervention>) {
        if let Some(here) = self.sites.iter_mut().find(|here| here.site == site) {
            return here.attached.attach(adapter, intervention);
        }
        let mut attached = Attachments::default();
        attached.attach(adapter, intervention);
        self.sites.push(AtSite { site, attached });
    }

    /// Those of the adapter of this name, with their sites.
    pub fn of(&self, adapter: &str) -> impl Iterator<Item = (Site, &dyn Intervention)> {
        self.sites
            .iter()
            .filter_map(move |here| Some((here.site, here.attached.get(adapter)?.as_ref())))
    }

    /// Draws anew what each drops in training.
    pub fn set_dropout(&mut self, seed: Option<u64>) {
        for here in &mut self.sites {
            let place = fnv(&format!("{:?}", here.site));
            for part in here.attached.parts_mut() {
                part.set_dropout(seed.map(|seed| seed ^ place));
            }
        }
    }

    /// The largest share that an active one drops in training.
    pub fn dropout(&self) -> f64 {
        let active = self.sites.iter().flat_map(|here| here.attached.active());
        active.map(|part| part.dropout()).fold(0.0, f64::max)
    }

    /// Whether any is active.
    pub fn is_active(&self) -> bool {
        self.sites.iter().any(|here| here.attached.is_active())
    }

    /// The hidden state after the active interventions of a site, `[batch, time, width]`: each adds its own change.
    pub fn forward(&self, site: Site, hidden: Tensor<3>, places: &TokenPlaces) -> Tensor<3> {
        let at_site = self.sites.iter().filter(|here| here.site == site);
        let mut active = at_site.flat_map(|here| here.attached.active());
        let Some(first) = active.next() else {
            return hidden;
        };
        let changed = first.forward(hidden.clone(), places);
        active.fold(changed, |sum, intervention| {
            sum + intervention.forward(hidden.clone(), places) - hidden.clone()
        })
    }

    /// What is attached at each site.
    pub fn attached(&self) -> impl Iterator<Item = &dyn Attached> {
        self.sites
            .iter()
            .map(|here| &here.attached as &dyn Attached)
    }

    /// What is attached at each site, for change.
    pub fn attached_mut(&mut self) -> impl Iterator<Item = &mut dyn Attached> {
        self.sites
            .iter_mut()
            .map(|here| &mut here.attached as &mut dyn Attached)
    }
}

impl Parameters for Box<dyn Intervention> {
    fn visit<'a>(&'a self, visitor: &mut dyn FnMut(&'a Parameter)) {
        self.parameters().into_iter().for_each(visitor);
    }

    fn visit_mut(&mut self, visitor: &mut dyn FnMut(&mut Parameter)) {
        self.parameters_mut().into_iter().for_each(visitor);
    }

    fn visit_linears_mut(&mut self, _: &mut dyn FnMut(LinearMapMut<'_>)) {}

    fn visit_linears<'a>(&'a self, _: &mut dyn FnMut(LinearMap<'a>)) {}
}
