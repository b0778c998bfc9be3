//! Taps: observers that see, and may replace, the hidden state after any block, and may stop there.
//!
//! Interventions, early exits, extra heads, layer similarity and probes are all observers; there is one forward function.

use burn::tensor::Tensor;

/// Where in the model a hidden state was taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Site {
    /// After the embedding, before the first block.
    Embedding,
    /// After the block of this index.
    Block(usize),
}

/// What happens after an observer has seen a hidden state.
#[derive(Debug, Clone)]
pub enum Flow {
    /// Goes on with this hidden state.
    Continue(Tensor<3>),
    /// Skips the remaining blocks.
    Stop(Tensor<3>),
}

/// Sees hidden states on their way through the model.
pub trait Observer {
    /// `hidden`: `[batch, time, width]`; returns the state to go on with, of the same shape.
    fn observe(&mut self, site: Site, hidden: Tensor<3>) -> Flow;
}

/// The observer that changes nothing.
#[derive(Debug, Clone, Copy, Default)]
pub struct Unobserved;

impl Observer for Unobserved {
    fn observe(&mut self, _: Site, hidden: Tensor<3>) -> Flow {
        Flow::Continue(hidden)
    }
}

impl<F: FnMut(Site, Tensor<3>) -> Flow> Observer for F {
    fn observe(&mut self, site: Site, hidden: Tensor<3>) -> Flow {
        self(site, hidden)
    }
}
