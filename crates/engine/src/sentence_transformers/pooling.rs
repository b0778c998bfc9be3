//! Pooling as sentence-transformers does it: one or several ways, one after another in the vector.

use std::path::Path;

use serde_json::{Map, Value};

use super::folder::wrong;
use crate::Result;

/// A way to make one vector of many.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// The first token.
    First,
    /// The largest value of each feature.
    Max,
    /// The mean.
    Mean,
    /// The sum over the square root of the number of tokens.
    MeanSqrtLength,
    /// The mean with weights 1, 2, 3, ... by place in the whole text.
    WeightedMean,
    /// The last token.
    Last,
}

/// The modes with their names and the keys that older files have, in the order in which these are joined.
const MODES: [(Mode, &str, &str); 6] = [
    (Mode::First, "cls", "pooling_mode_cls_token"),
    (Mode::Max, "max", "pooling_mode_max_tokens"),
    (Mode::Mean, "mean", "pooling_mode_mean_tokens"),
    (
        Mode::MeanSqrtLength,
        "mean_sqrt_len_tokens",
        "pooling_mode_mean_sqrt_len_tokens",
    ),
    (
        Mode::WeightedMean,
        "weightedmean",
        "pooling_mode_weightedmean_tokens",
    ),
    (Mode::Last, "lasttoken", "pooling_mode_lasttoken"),
];

/// The pooling of a folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SentencePooling {
    /// The ways, whose vectors are joined.
    pub modes: Vec<Mode>,
    /// Whether the tokens of the prompt count.
    pub include_prompt: bool,
}

impl SentencePooling {
    /// Reads `config.json` of a pooling module.
    ///
    /// # Errors
    /// When it names a way that there is not.
    pub(super) fn read(path: &Path, config: &Map<String, Value>) -> Result<Self> {
        let include_prompt = config
            .get("include_prompt")
            .and_then(Value::as_bool)
            .unwrap_or(true);
        let named: Vec<&str> = match config.get("pooling_mode") {
            Some(Value::String(name)) => vec![name],
            Some(Value::Array(names)) => names
                .iter()
                .map(|name| name.as_str().unwrap_or("?"))
                .collect(),
            _ => Vec::new(),
        };
        let mut modes = Vec::new();
        for name in named {
            let mode = MODES.iter().find(|(_, known, _)| *known == name);
            modes.push(
                mode.ok_or_else(|| {
                    let known: Vec<&str> = MODES.iter().map(|(_, name, _)| *name).collect();
                    wrong(
                        path,
                        format!(
                            "unknown `pooling_mode` `{name}`; known are {}",
                            known.join(", ")
                        ),
                    )
                })?
                .0,
            );
        }
        if modes.is_empty() {
            let is_on = |key: &str| config.get(key).and_then(Value::as_bool) == Some(true);
            modes.extend(
                MODES
                    .iter()
                    .filter(|(_, _, key)| is_on(key))
                    .map(|(mode, ..)| *mode),
            );
        }
        if modes.is_empty() {
            modes.push(Mode::Mean);
        }
        Ok(Self {
            modes,
            include_prompt,
        })
    }

    /// The vector of a text: `hidden` is `[time, width]`, the first `prompt` tokens of which are the prompt's.
    pub fn pool(&self, hidden: &[f32], width: usize, prompt: usize) -> Vec<f32> {
        let skipped = if self.include_prompt { 0 } else { prompt };
        let one = |mode: &Mode| mode.pool(hidden, width, skipped);
        self.modes.iter().flat_map(one).collect()
    }
}

impl Mode {
    fn pool(self, hidden: &[f32], width: usize, skipped: usize) -> Vec<f32> {
        let tokens = || hidden.chunks(width).enumerate().skip(skipped);
        let token = |place: usize| hidden.chunks(width).nth(place).unwrap_or_default().to_vec();
        let time = hidden.len() / width.max(1);
        let weighted = |weight: &dyn Fn(usize) -> f64, divisor: &dyn Fn(f64) -> f64| {
            let (mut sum, mut total) = (vec![0.0f64; width], 0.0);
            for (place, token) in tokens() {
                let weight = weight(place);
                total += weight;
                sum.iter_mut()
                    .zip(token)
                    .for_each(|(sum, x)| *sum += weight * f64::from(*x));
            }
            let divisor = divisor(total.max(1e-9));
            sum.into_iter().map(|sum| (sum / divisor) as f32).collect()
        };
        match self {
            // A text that is all prompt has its first token.
            Self::First => token(if skipped < time { skipped } else { 0 }),
            // Such a text has no last token that counts.
            Self::Last if skipped >= time => vec![0.0; width],
            Self::Last => token(time - 1),
            Self::Max => tokens().fold(vec![f32::NEG_INFINITY; width], |most, (_, token)| {
                most.iter().zip(token).map(|(a, b)| a.max(*b)).collect()
            }),
            Self::Mean => weighted(&|_| 1.0, &|total| total),
            Self::MeanSqrtLength => weighted(&|_| 1.0, &f64::sqrt),
            Self::WeightedMean => weighted(&|place| (place + 1) as f64, &|total| total),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_mode_pools() {
        let hidden = [1.0, 8.0, 3.0, 4.0, 5.0, 0.0];
        let pool = |mode: Mode, prompt| {
            let pooling = SentencePooling {
                modes: vec![mode],
                include_prompt: false,
            };
            pooling.pool(&hidden, 2, prompt)
        };
        assert_eq!(pool(Mode::First, 0), [1.0, 8.0]);
        assert_eq!(pool(Mode::First, 1), [3.0, 4.0]);
        assert_eq!(pool(Mode::Last, 1), [5.0, 0.0]);
        assert_eq!(pool(Mode::Max, 0), [5.0, 8.0]);
        assert_eq!(pool(Mode::Max, 1), [5.0, 4.0]);
        assert_eq!(pool(Mode::Mean, 0), [3.0, 4.0]);
        assert_eq!(
            pool(Mode::MeanSqrtLength, 1),
            [8.0 / 2f32.sqrt(), 4.0 / 2f32.sqrt()]
        );
        // Places count from the start of the prompt: weights 2 and 3.
        assert_eq!(pool(Mode::WeightedMean, 1), [21.0 / 5.0, 8.0 / 5.0]);
    }

    #[test]
    fn older_and_newer_configurations_say_the_same() {
        let read = |text: &str| {
            SentencePooling::read(Path::new("p"), &serde_json::from_str(text).unwrap())
        };
        let modes = |text| read(text).unwrap().modes;
        assert_eq!(
            modes(r#"{"pooling_mode_mean_tokens":true,"pooling_mode_cls_token":true}"#),
            [Mode::First, Mode::Mean]
        );
        assert_eq!(
            modes(r#"{"pooling_mode":["mean","cls"]}"#),
            [Mode::Mean, Mode::First]
        );
        assert_eq!(
            modes(r#"{"pooling_mode":"lasttoken","pooling_mode_max_tokens":true}"#),
            [Mode::Last]
        );
        assert_eq!(modes("{}"), [Mode::Mean]);
        assert!(
            read(r#"{"pooling_mode":"median"}"#)
                .unwrap_err()
                .to_string()
                .contains("`median`; known are cls, max")
        );
    }
}
