//! The keys of the stages `dpo` and `kto`: `pref_loss` and what belongs to it.

use toml::{Table, Value as Toml};

use super::{Reading, set};
use crate::Result;

/// The keys of both stages.
struct Preferences {
    loss: String,
    beta: f64,
    ftx: f64,
    bco: f64,
    gamma: f64,
    smoothing: f64,
    ld_alpha: Option<f64>,
    weights: [Option<f64>; 2],
    reference: Option<Toml>,
}

impl Preferences {
    fn read(reading: &mut Reading) -> Result<Self> {
        let number = |reading: &mut Reading, key, usual: f64| {
            reading.number(key).map(|number| number.unwrap_or(usual))
        };
        let reference = reference(reading)?;
        Ok(Self {
            loss: reading.text("pref_loss")?.unwrap_or("sigmoid".into()),
            beta: number(reading, "pref_beta", 0.1)?,
            ftx: number(reading, "pref_ftx", 0.0)?,
            bco: number(reading, "pref_bco_weight", 0.0)?,
            gamma: number(reading, "simpo_gamma", 0.5)?,
            smoothing: number(reading, "dpo_label_smoothing", 0.0)?,
            ld_alpha: reading.number("ld_alpha")?,
            weights: [
                reading.number("kto_chosen_weight")?,
                reading.number("kto_rejected_weight")?,
            ],
            reference,
        })
    }

    fn with_reference(&self, mut options: Table) -> Table {
        set(&mut options, "reference", self.reference.clone());
        options
    }

    /// DPO with a loss of ours, and whatever is added to it.
    fn dpo(self, loss: &str) -> Table {
        let name = match (loss, self.smoothing) {
            ("sigmoid", smoothing) if smoothing > 0.0 => "cdpo",
            _ => loss,
        };
        let mut options = table("beta", self.beta);
        let parts = [(name, 1.0), ("bco", self.bco), ("sft", self.ftx)];
        let parts = parts.into_iter().filter(|(_, weight)| *weight != 0.0);
        let weights: Table = parts.map(|(name, w)| (name.to_owned(), w.into())).collect();
        let loss = match weights.len() {
            1 => Toml::from(name),
            _ => Toml::Table(weights),
        };
        set(&mut options, "loss", Some(loss));
        if name == "cdpo" {
            set(&mut options, "label_smoothing", Some(self.smoothing));
        }
        set(&mut options, "ld_alpha", self.ld_alpha);
        table("dpo", self.with_reference(options))
    }

    fn kto(self) -> Table {
        let mut options = table("beta", self.beta);
        set(&mut options, "desirable_weight", self.weights[0]);
        set(&mut options, "undesirable_weight", self.weights[1]);
        table("kto", self.with_reference(options))
    }
}

/// What a policy is measured against, where it is not the model as it starts.
pub(super) fn reference(reading: &mut Reading) -> Result<Option<Toml>> {
    let folder = reading.text("ref_model")?;
    // An adapter that is trained on has its base as the reference, and a fresh one adds nothing yet.
    let goes_on = !reading.list("adapter_name_or_path")?.is_empty();
    Ok(match folder {
        Some(folder) => Some(Toml::Table(table("folder", folder))),
        None => goes_on.then(|| "without_adapter".into()),
    })
}

pub(super) fn table(key: &str, value: impl Into<Toml>) -> Table {
    Table::from_iter([(key.to_owned(), value.into())])
}

/// The objective of the stage `dpo`.
pub(super) fn of_dpo(reading: &mut Reading) -> Result<Table> {
    let keys = Preferences::read(reading)?;
    let refuse_beside = |reading: &mut Reading, beside: &[(&str, bool)]| {
        for (key, _) in beside.iter().filter(|(_, given)| *given) {
            reading.refuse(key, "has no counterpart beside this `pref_loss`");
        }
    };
    let smooth = ("dpo_label_smoothing", keys.smoothing != 0.0);
    let (ftx, bco) = (
        ("pref_ftx", keys.ftx != 0.0),
        ("pref_bco_weight", keys.bco != 0.0),
    );
    let (length, model) = (
        ("ld_alpha", keys.ld_alpha.is_some()),
        (
            "ref_model",
            keys.reference.is_some() && reading.keys.contains_key("ref_model"),
        ),
    );
    match keys.loss.clone().as_str() {
        "sigmoid" => Ok(keys.dpo("sigmoid")),
        loss @ ("hinge" | "ipo") => {
            refuse_beside(reading, &[smooth]);
            Ok(keys.dpo(loss))
        }
        "kto_pair" => {
            refuse_beside(reading, &[smooth, ftx, bco, length]);
            reading.remarks.push(
                "`pref_loss: kto_pair` is learned as `kto`: the answers of a pair by themselves, against answers to other prompts".into(),
            );
            Ok(keys.kto())
        }
        "orpo" => {
            refuse_beside(reading, &[smooth, ftx, bco, length, model]);
            let mut options = table("beta", keys.beta);
            set(&mut options, "nll_on", Some("completion"));
            Ok(table("orpo", options))
        }
        "simpo" => {
            refuse_beside(reading, &[smooth, bco, length, model]);
            let mut options = table("beta", keys.beta);
            set(&mut options, "loss", Some("simpo"));
            set(&mut options, "simpo_gamma", Some(keys.gamma));
            set(&mut options, "cpo_alpha", Some(keys.ftx));
            Ok(table("cpo", options))
        }
        _ => {
            reading.refuse(
                "pref_loss",
                "has no counterpart here; `sigmoid`, `hinge`, `ipo`, `kto_pair`, `orpo` and `simpo` have",
            );
            Ok(Table::new())
        }
    }
}

/// The objective of the stage `kto`.
pub(super) fn of_kto(reading: &mut Reading) -> Result<Table> {
    let keys = Preferences::read(reading)?;
    if keys.ftx != 0.0 {
        reading.refuse("pref_ftx", "has no counterpart beside `stage: kto`");
    }
    Ok(keys.kto())
}

/// Takes the keys of other stages, which mean nothing here.
pub(super) fn take(reading: &mut Reading) -> Result<()> {
    Preferences::read(reading).map(drop)
}
