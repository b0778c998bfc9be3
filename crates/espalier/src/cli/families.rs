//! `espalier families`: which models load.

use espalier_models::families::{FAMILIES, Family};
use serde_json::{Value, json};

use super::Context;
use crate::Result;

/// List the model families that load, with the names that `config.json` gives them.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:
  espalier families
  espalier families --json")]
pub struct FamiliesArgs {}

/// Prints the list.
///
/// # Errors
/// When standard output is closed.
pub fn run(_: &FamiliesArgs, context: &Context) -> Result<()> {
    match context.json {
        true => context.terminal.json(&json()),
        false => context.terminal.line(&text()),
    }
}

fn json() -> Value {
    let entry = |family: &Family| {
        json!({
            "model_type": family.model_type,
            "architecture": family.architecture,
            "kind": kind(family),
        })
    };
    json!({ "families": FAMILIES.iter().map(entry).collect::<Vec<_>>() })
}

/// What a family's models do, by the name of their head.
fn kind(family: &Family) -> &'static str {
    match family.architecture {
        name if name.ends_with("ForMaskedLM") => "encoder",
        name if name.ends_with("ForConditionalGeneration") || name.ends_with("MTModel") => {
            "encoder-decoder"
        }
        _ => "decoder",
    }
}

/// The families by kind, in columns.
fn text() -> String {
    let width = FAMILIES
        .iter()
        .map(|family| family.model_type.len())
        .max()
        .unwrap_or(0);
    let mut lines = Vec::new();
    for wanted in ["decoder", "encoder", "encoder-decoder"] {
        let of_kind = FAMILIES.iter().filter(|family| kind(family) == wanted);
        let mut of_kind: Vec<&Family> = of_kind.collect();
        of_kind.sort_by_key(|family| family.model_type.to_lowercase());
        let rows: Vec<String> = of_kind
            .iter()
            .map(|family| format!("  {:width$}  {}", family.model_type, family.architecture))
            .collect();
        lines.push(format!("{wanted}s ({})", rows.len()));
        lines.extend(rows);
        lines.push(String::new());
    }
    lines.push(
        "The first column is `model_type` in config.json, the second `architectures`; base models without a head load too.".into(),
    );
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_family_is_listed_once_under_its_kind() {
        let text = text();
        for family in FAMILIES {
            let row = |line: &&str| {
                line.split_whitespace()
                    .eq([family.model_type, family.architecture])
            };
            assert_eq!(text.lines().filter(row).count(), 1, "{}", family.model_type);
        }
        let list = json();
        assert_eq!(
            list["families"].as_array().map(Vec::len),
            Some(FAMILIES.len())
        );
        let kind_of = |name: &str| {
            FAMILIES
                .iter()
                .find(|family| family.model_type == name)
                .map(kind)
        };
        assert_eq!(kind_of("olmo2"), Some("decoder"));
        assert_eq!(kind_of("bert"), Some("encoder"));
        assert_eq!(kind_of("t5"), Some("encoder-decoder"));
        assert_eq!(kind_of("marian"), Some("encoder-decoder"));
    }
}
