//! Gradients that are given away in the middle of a backward, as soon as they are whole (LOMO, arXiv 2306.09782).
//!
//! A segment that runs again in the backward ([`crate::checkpoint`]) has all gradients of its parameters when it is done, and nothing
//! before it in the graph needs them or the parameters' old values. Where its parameters stand in no other segment, a receiver gets
//! them at once, so that one segment's gradients exist at a time.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    ptr::NonNull,
};

use burn::{
    backend::autodiff::NodeId,
    tensor::{Gradients, Tensor},
};

use crate::{
    backward::{LostGradients, backward},
    checkpoint,
};

/// A trained parameter, as the graph knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Leaf(NodeId);

impl Leaf {
    /// The leaf that a tensor is; nothing where it is not tracked, or not on the host.
    pub fn of(tensor: &Tensor<1>) -> Option<Self> {
        checkpoint::node(tensor).map(Self)
    }
}

impl From<NodeId> for Leaf {
    fn from(id: NodeId) -> Self {
        Self(id)
    }
}

/// What gets the gradients of a segment's leaves, and may replace these.
type Receiver<'a> = dyn FnMut(HashMap<Leaf, Tensor<1>>) + 'a;

thread_local! {
    /// In how many segments each leaf stands, where they are counted.
    static SEGMENTS: RefCell<Option<HashMap<NodeId, usize>>> = const { RefCell::new(None) };
    /// The receiver of the backward under way.
    static RECEIVER: Cell<Option<NonNull<Receiver<'static>>>> = const { Cell::new(None) };
}

/// Forward and backward of one loss on this thread, whose gradients are released.
#[derive(Debug)]
pub struct Release(());

impl Release {
    /// Begins before the forward pass.
    pub fn begin() -> Self {
        SEGMENTS.set(Some(HashMap::new()));
        Self(())
    }

    /// The gradients of `loss` that were not given to `receive` on the way.
    ///
    /// # Errors
    /// As [`backward`].
    pub fn backward(
        self,
        loss: Tensor<1>,
        receive: &mut Receiver<'_>,
    ) -> Result<Gradients, LostGradients> {
        struct Reset;
        impl Drop for Reset {
            fn drop(&mut self) {
                RECEIVER.set(None);
            }
        }
        let receiver: NonNull<Receiver<'_>> = NonNull::from(receive);
        #[allow(unsafe_code)]
        // SAFETY: the two types differ in a lifetime alone, and the pointer is gone when this function ends, also by a panic.
        let receiver = unsafe {
            std::mem::transmute::<NonNull<Receiver<'_>>, NonNull<Receiver<'static>>>(receiver)
        };
        let _reset = Reset;
        RECEIVER.set(Some(receiver));
        backward(loss)
    }
}

impl Drop for Release {
    fn drop(&mut self) {
        SEGMENTS.set(None);
    }
}

/// A segment with these leaves has joined the graph.
pub(crate) fn joined(leaves: &[NodeId]) {
    SEGMENTS.with_borrow_mut(|segments| {
        if let Some(segments) = segments {
            leaves
                .iter()
                .for_each(|leaf| *segments.entry(*leaf).or_default() += 1);
        }
    });
}

/// Whether the gradient of a leaf is whole after its segment.
pub(crate) fn is_alone(leaf: NodeId) -> bool {
    RECEIVER.get().is_some()
        && SEGMENTS.with_borrow(|segments| segments.as_ref().and_then(|s| s.get(&leaf)) == Some(&1))
}

/// Gives a segment's gradients to the receiver.
pub(crate) fn give(gradients: HashMap<Leaf, Tensor<1>>) {
    if gradients.is_empty() {
        return;
    }
    // While it is busy there is none, so that nothing can give to it from within.
    if let Some(mut receiver) = RECEIVER.take() {
        #[allow(unsafe_code)]
        // SAFETY: it lives as long as `Release::backward` runs, which has lent it to nobody else.
        let receive = unsafe { receiver.as_mut() };
        receive(gradients);
        RECEIVER.set(Some(receiver));
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::checkpoint::{Segment, Tracked, recomputed};
    use burn::tensor::Device;

    /// Each number times its weight.
    #[derive(Debug)]
    struct Scale(Tensor<1>);

    impl Segment for Scale {
        fn forward(&self, x: Tensor<3>) -> Tensor<3> {
            x * self.0.clone().unsqueeze()
        }

        fn tracked(&self, x: Tensor<3>, _: [bool; 2]) -> Tracked {
            let leaf = self.0.clone().autodiff().require_grad();
            Tracked {
                output: x * leaf.clone().unsqueeze(),
                leaves: vec![leaf],
                shared: [None, None],
            }
        }
    }

    fn read(x: Tensor<1>) -> Vec<f32> {
        x.into_data().try_into_vec().unwrap()
    }

    #[test]
    fn gradients_of_lone_segments_come_one_after_another_and_those_of_others_at_the_end() {
        let device = Device::flex();
        let numbers = |x: [f32; 2]| Tensor::<1>::from_floats(x, &device);
        let weights = [[2.0, 3.0], [5.0, 7.0], [11.0, 13.0]].map(numbers);
        let leaves = weights
            .clone()
            .map(|weight| weight.autodiff().require_grad());
        let run = |x, i: usize| {
            let segment = Arc::new(Scale(weights[i].clone()));
            recomputed(x, [None, None], vec![leaves[i].clone()], segment)
        };
        let x = || Tensor::<3>::from_floats([[[1.0, -1.0]]], &device);
        // The third weight stands in two segments.
        let all = |x| run(run(run(run(x, 2), 0), 1), 2).sum();
        let expected = backward(all(x())).unwrap();
        let release = Release::begin();
        let loss = all(x());
        let mut order = Vec::new();
        let found = release.backward(loss, &mut |gradients| {
            for (i, leaf) in leaves.iter().enumerate() {
                if let Some(gradient) = Leaf::of(leaf).and_then(|leaf| gradients.get(&leaf)) {
                    assert_eq!(read(gradient.clone()), read(leaf.grad(&expected).unwrap()));
                    order.push(i);
                }
            }
        });
        let found = found.unwrap();
        assert_eq!(order, [1, 0]);
        assert!(leaves[0].grad(&found).is_none() && leaves[1].grad(&found).is_none());
        let [own, whole] = [&found, &expected].map(|all| read(leaves[2].grad(all).unwrap()));
        assert_eq!(own, whole);
        // Nothing is released in a backward that did not ask for it.
        let plain = backward(all(x())).unwrap();
        assert!(leaves.iter().all(|leaf| leaf.grad(&plain).is_some()));
        assert!(Leaf::of(&weights[0]).is_none());
    }
}
