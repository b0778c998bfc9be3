//! The objective's loss and metrics on held-out data, without gradients.

use espalier_data::random::Random;
use espalier_models::model::LanguageModel;

use crate::{
    Result,
    batch::Sample,
    metrics::Window,
    objectives::{Batch, Objective},
    trained,
};

/// A mean loss, and named metrics.
pub type Evaluation = (f64, Vec<(String, f64)>);

/// Mean loss and named metrics of `samples` under `model`. Neither changes, so that how often is evaluated changes no weight.
///
/// # Errors
/// When a sample does not fit the objective or the model.
pub fn evaluate(
    model: &LanguageModel,
    objective: &mut dyn Objective,
    samples: &[Sample],
    batch: usize,
) -> Result<Evaluation> {
    let model = model.frozen();
    trained::frozen(objective, |objective| {
        let mut window = Window::default();
        let collate = |(number, chunk): (usize, &[Sample])| {
            let mut random = Random::named(&format!("evaluation|{number}"));
            objective.collate(&model, &chunk.iter().collect::<Vec<_>>(), &mut random)
        };
        let chunks = samples.chunks(batch.max(1)).enumerate();
        let mut batches = chunks.map(collate).collect::<Result<Vec<_>>>()?;
        let units = Batch::of_step(&mut batches);
        let mut sum = 0.0;
        for batch in batches.iter().filter(|batch| batch.units > 0.0) {
            let loss = objective.loss(&model, batch)?;
            sum += loss.value();
            window.add(&loss.metrics);
        }
        Ok((sum / units, window.means()))
    })
}
