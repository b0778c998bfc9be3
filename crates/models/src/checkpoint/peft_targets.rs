//! Which modules an adapter is for: names, regular expressions, or all linear layers, by the rules of the PEFT library.
//!
//! A name matches a module whose full name is it or ends with a dot and it; an expression must match the whole name.

use crate::error::{Error, Result};
use regex::Regex;
use serde_json::{Value, json};

/// Which modules are meant.
///
/// ```
/// use espalier_models::checkpoint::peft_config::{Pattern, Targets};
/// let targets = Targets::Regex(Pattern::whole(r".*\.[qv]_proj")?);
/// assert!(targets.matches("layers.0.v_proj") && !targets.matches("layers.0.k_proj"));
/// # Ok::<(), espalier_models::error::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub enum Targets {
    /// Modules whose full name is an entry, or ends with a dot and an entry.
    List(Vec<String>),
    /// Modules whose full name the expression matches.
    Regex(Pattern),
    /// Every linear layer except the head.
    AllLinear,
}

/// A regular expression with the text it came from, by which it is compared and written.
#[derive(Debug, Clone)]
pub struct Pattern {
    source: String,
    regex: Regex,
}

impl PartialEq for Pattern {
    fn eq(&self, other: &Self) -> bool {
        self.source == other.source
    }
}

impl Pattern {
    /// An expression that must match a module's whole name.
    ///
    /// # Errors
    /// When `source` is no regular expression, or uses look-around or back-references, which are not supported.
    pub fn whole(source: &str) -> Result<Self> {
        Self::within(source, &format!("^(?:{source})$"))
    }

    /// An expression that must match a module's name from its start or from any dot to its end.
    ///
    /// # Errors
    /// As [`Pattern::whole`].
    pub fn suffix(source: &str) -> Result<Self> {
        Self::within(source, &format!(r"^(?:.*\.)?(?:{source})$"))
    }

    /// An expression for the name before a layer's number.
    ///
    /// # Errors
    /// As [`Pattern::whole`].
    pub fn layer(source: &str) -> Result<Self> {
        Self::within(source, &format!(r"^(?:.*\.)?(?:{source})\.(?<layer>\d+)\."))
    }

    fn within(source: &str, whole: &str) -> Result<Self> {
        let wrong = |error: regex::Error| {
            let reason = error
                .to_string()
                .lines()
                .last()
                .unwrap_or_default()
                .to_owned();
            Error::Invalid(format!(
                "`{source}` is not a supported regular expression ({reason}); list the names instead"
            ))
        };
        Ok(Self {
            source: source.into(),
            regex: Regex::new(whole).map_err(wrong)?,
        })
    }

    /// The expression as written.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// Whether the expression matches the module's name.
    pub fn matches(&self, module: &str) -> bool {
        self.regex.is_match(module)
    }

    /// The number of the layer that `module` is in, for an expression of [`Pattern::layer`].
    pub(super) fn layer_of(&self, module: &str) -> Option<usize> {
        self.regex
            .captures(module)?
            .name("layer")?
            .as_str()
            .parse()
            .ok()
    }
}

impl Targets {
    /// Whether the module of this full name is meant; for [`Targets::AllLinear`], ask only about linear layers.
    pub fn matches(&self, module: &str) -> bool {
        match self {
            Self::List(entries) => entries.iter().any(|entry| is_named(module, entry)),
            Self::Regex(pattern) => pattern.matches(module),
            Self::AllLinear => !["lm_head", "head"]
                .iter()
                .any(|head| is_named(module, head)),
        }
    }

    pub(super) fn write(&self) -> Value {
        match self {
            Self::List(entries) if entries.is_empty() => Value::Null,
            Self::List(entries) => json!(entries),
            Self::Regex(pattern) => json!(pattern.source),
            Self::AllLinear => json!("all-linear"),
        }
    }
}

/// Whether `module` is `entry` or ends with a dot and `entry`.
pub fn is_named(module: &str, entry: &str) -> bool {
    module
        .strip_suffix(entry)
        .is_some_and(|before| before.is_empty() || before.ends_with('.'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_match_at_dots_only() {
        for (module, entry) in [
            ("q_proj", "q_proj"),
            ("a.q_proj", "q_proj"),
            ("a.b.q_proj", "b.q_proj"),
        ] {
            assert!(is_named(module, entry), "{module} {entry}");
        }
        assert!(!is_named("a.xq_proj", "q_proj") && !is_named("proj", "q_proj"));
    }

    #[test]
    fn expressions_match_whole_names_or_whole_ends() {
        let matches = |pattern: Result<Pattern>, module: &str| pattern.unwrap().matches(module);
        assert!(matches(Pattern::whole("a|b"), "b") && !matches(Pattern::whole("a|b"), "xb"));
        assert!(matches(Pattern::suffix("a|b"), "x.b") && !matches(Pattern::suffix("a|b"), "xb"));
        assert_eq!(
            Pattern::layer("h|layers")
                .unwrap()
                .layer_of("model.layers.12.q"),
            Some(12)
        );
        assert_eq!(
            Pattern::layer("h").unwrap().layer_of("model.layers.12.q"),
            None
        );
        assert!(
            Pattern::whole("(?=a)")
                .unwrap_err()
                .to_string()
                .contains("list the names instead")
        );
    }

    #[test]
    fn the_head_is_not_among_all_linear_layers() {
        assert!(
            Targets::AllLinear.matches("model.layers.0.mlp.up_proj")
                && !Targets::AllLinear.matches("lm_head")
        );
    }
}
