//! The objective's loss and metrics on held-out data, without gradients.

use espalier_data::random::Random;
use espalier_models::model::LanguageModel;

use crate::{Result, batch::Sample, metrics::Window, objectives::Objective, trained};

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
        let (mut sum, mut units) = (0.0, 0.0);
        for (number, chunk) in samples.chunks(batch.max(1)).enumerate() {
            let mut random = Random::named(&format!("evaluation|{number}"));
            let chunk: Vec<&Sample> = chunk.iter().collect();
            let batch = objective.collate(&model, &chunk, &mut random)?;
            if batch.units > 0.0 {
                let loss = objective.loss(&model, &batch)?;
                sum += loss.value();
                units += batch.units;
                window.add(&loss.metrics);
            }
        }
        Ok((sum / units.max(1.0), window.means()))
    })
}
