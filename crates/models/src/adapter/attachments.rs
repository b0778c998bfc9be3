//! The adapters at one place of a model (a linear map, a block), by name; each can be switched off without being lost.

use std::sync::Arc;

use crate::{
    layers::linear::{LinearMap, LinearMapMut},
    parameter::{Parameter, Parameters},
};

/// The parts of adapters at one place: a linear map, a recurrent layer, a site of the residual stream.
///
/// ```
/// use espalier_models::adapter::attachments::{Attached, Attachments};
/// let mut scales = Attachments::default();
/// scales.attach("german", 2.0);
/// scales.attach("polite", 3.0);
/// scales.switch(&|adapter| adapter == "polite");
/// assert_eq!(scales.active().copied().collect::<Vec<f64>>(), [3.0]);
/// ```
#[derive(Debug, Clone)]
pub struct Attachments<T> {
    attached: Vec<Attachment<T>>,
}

#[derive(Debug, Clone)]
struct Attachment<T> {
    adapter: Arc<str>,
    active: bool,
    part: T,
}

/// What is attached at one place, whatever it is.
pub trait Attached {
    /// Calls `visitor` with the name of every adapter that has a part here, and whether it is active.
    fn adapters(&self, visitor: &mut dyn FnMut(&str, bool));

    /// Makes the parts of those adapters active that `choose` accepts, and no others.
    fn switch(&mut self, choose: &dyn Fn(&str) -> bool);

    /// Removes the part of the adapter of this name.
    fn detach(&mut self, adapter: &str);
}

impl<T> Default for Attachments<T> {
    fn default() -> Self {
        Self {
            attached: Vec::new(),
        }
    }
}

impl<T> Attachments<T> {
    /// Adds the part of an adapter, active, in place of one that this adapter has here.
    pub fn attach(&mut self, adapter: &str, part: T) {
        self.detach(adapter);
        self.attached.push(Attachment {
            adapter: adapter.into(),
            active: true,
            part,
        });
    }

    /// The part of the adapter of this name.
    pub fn get(&self, adapter: &str) -> Option<&T> {
        self.attached
            .iter()
            .find(|attachment| &*attachment.adapter == adapter)
            .map(|attachment| &attachment.part)
    }

    /// As [`Attachments::get`], for change.
    pub fn get_mut(&mut self, adapter: &str) -> Option<&mut T> {
        let mut attached = self.attached.iter_mut();
        let found = attached.find(|attachment| &*attachment.adapter == adapter);
        found.map(|attachment| &mut attachment.part)
    }

    /// The parts of active adapters, in the order in which they were attached.
    pub fn active(&self) -> impl Iterator<Item = &T> {
        self.attached
            .iter()
            .filter(|attachment| attachment.active)
            .map(|attachment| &attachment.part)
    }

    /// Whether any part is active.
    pub fn is_active(&self) -> bool {
        self.active().next().is_some()
    }

    /// All parts, active or not.
    pub fn parts(&self) -> impl Iterator<Item = &T> {
        self.attached.iter().map(|attachment| &attachment.part)
    }

    /// All parts for change.
    pub fn parts_mut(&mut self) -> impl Iterator<Item = &mut T> {
        self.attached
            .iter_mut()
            .map(|attachment| &mut attachment.part)
    }

    /// Removes the active parts.
    pub fn detach_active(&mut self) {
        self.attached.retain(|attachment| !attachment.active);
    }
}

impl<T: Parameters> Parameters for Attachments<T> {
    fn visit<'a>(&'a self, visitor: &mut dyn FnMut(&'a Parameter)) {
        self.parts().for_each(|part| part.visit(visitor));
    }

    fn visit_mut(&mut self, visitor: &mut dyn FnMut(&mut Parameter)) {
        self.parts_mut().for_each(|part| part.visit_mut(visitor));
    }

    fn visit_linears_mut(&mut self, _: &mut dyn FnMut(LinearMapMut<'_>)) {}

    fn visit_linears<'a>(&'a self, _: &mut dyn FnMut(LinearMap<'a>)) {}
}

impl<T> Attached for Attachments<T> {
    fn adapters(&self, visitor: &mut dyn FnMut(&str, bool)) {
        for attachment in &self.attached {
            visitor(&attachment.adapter, attachment.active);
        }
    }

    fn switch(&mut self, choose: &dyn Fn(&str) -> bool) {
        for attachment in &mut self.attached {
            attachment.active = choose(&attachment.adapter);
        }
    }

    fn detach(&mut self, adapter: &str) {
        self.attached
            .retain(|attachment| &*attachment.adapter != adapter);
    }
}
