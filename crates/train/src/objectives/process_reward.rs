//! Process rewards: whether each step of an answer is right, at the step's last token (arXiv 2211.14275; TRL's `PRMTrainer`).
//!
//! The loss is the cross-entropy of two classes, a mean over the steps of the whole optimisation step.

use espalier_data::readers::Wanted;
use serde::{Deserialize, Serialize};

use super::{classification::Classify, registry::Entry};
use crate::metrics::MetricDescription;

/// The options of process rewards; there are none yet.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ProcessRewardOptions {}

/// The objective's registration.
pub const ENTRY: Entry<ProcessRewardOptions> = Entry::of_classes(
    &[MetricDescription::share(
        "accuracy",
        "accuracy",
        "share of the steps of which the model says rightly whether they are right",
    )],
    Wanted::Labels,
    |_| Ok(()),
    |_, _| {
        Ok(Box::new(Classify {
            name: "process_reward",
        }))
    },
);
