//! Values of parameters: one number, a gradient over the blocks, or a list of values by parts of tensors' names.

use serde_json::Value;

/// A parameter's value as a recipe writes it; flags are 0 and 1.
#[derive(Debug, Clone, PartialEq)]
pub enum Setting {
    /// The same everywhere.
    Number(f64),
    /// Interpolated from the first block of a slice to its last.
    Gradient(Vec<f64>),
    /// The first whose filter is part of the tensor's name.
    Filtered(Vec<(Option<String>, Setting)>),
}

impl Setting {
    /// Reads a value.
    ///
    /// # Errors
    /// When it is none of the forms; the text says which are.
    pub fn read(value: &Value) -> Result<Self, String> {
        if let Some(number) = number(value) {
            return Ok(Self::Number(number));
        }
        match value {
            Value::Array(list) if list.is_empty() => Err("an empty list says nothing".into()),
            Value::Array(list) if list.iter().all(|entry| number(entry).is_some()) => {
                Ok(Self::Gradient(list.iter().filter_map(number).collect()))
            }
            Value::Array(list) => list
                .iter()
                .map(filtered)
                .collect::<Result<_, _>>()
                .map(Self::Filtered),
            Value::Object(_) => Ok(Self::Filtered(vec![filtered(value)?])),
            _ => Err(format!(
                "{value} is neither a number, a flag, a list of numbers, nor a list of `{{filter, value}}`"
            )),
        }
    }

    /// The value for a tensor at the share `t` of the way through the blocks of its slice; nothing where no filter fits.
    pub fn value(&self, tensor: &str, t: f64) -> Option<f64> {
        match self {
            Self::Number(number) => Some(*number),
            Self::Gradient(points) => {
                let place = t * (points.len() - 1) as f64;
                let first = (place as usize).min(points.len() - 1);
                let second = (first + 1).min(points.len() - 1);
                let share = place - first as f64;
                Some((1.0 - share) * points[first] + share * points[second])
            }
            Self::Filtered(entries) => {
                let fits = |filter: &Option<String>| match filter.as_deref() {
                    None | Some("*") => true,
                    Some(part) => tensor.contains(part),
                };
                let entry = entries.iter().find(|(filter, _)| fits(filter));
                entry.and_then(|(_, setting)| setting.value(tensor, t))
            }
        }
    }
}

fn number(value: &Value) -> Option<f64> {
    match value {
        Value::Bool(flag) => Some(f64::from(u8::from(*flag))),
        // Python's YAML takes `1e-4` for a text, and those who write it mean the number.
        Value::String(text) => text.parse().ok().filter(|number: &f64| number.is_finite()),
        _ => value.as_f64(),
    }
}

fn filtered(entry: &Value) -> Result<(Option<String>, Setting), String> {
    let Value::Object(keys) = entry else {
        return Err(format!("{entry} is no `{{filter, value}}`"));
    };
    if let Some(unknown) = keys
        .keys()
        .find(|key| !["filter", "value"].contains(&key.as_str()))
    {
        return Err(format!(
            "`{unknown}` is unknown beside `filter` and `value`"
        ));
    }
    let filter = match keys.get("filter") {
        None | Some(Value::Null) => None,
        Some(Value::String(part)) => Some(part.clone()),
        Some(other) => return Err(format!("`filter`: {other} is no text")),
    };
    let value = keys
        .get("value")
        .ok_or_else(|| format!("{entry} has no `value`"))?;
    match Setting::read(value)? {
        Setting::Filtered(_) => Err("a filter's value is a number or a list of numbers".into()),
        setting => Ok((filter, setting)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn gradients_are_interpolated_over_the_blocks() {
        let setting = Setting::read(&json!([0, 0.5, 0.3, 0.7, 1])).unwrap();
        let expected = [
            0.0, 0.285714, 0.471429, 0.357143, 0.414286, 0.642857, 0.828571, 1.0,
        ];
        for (i, expected) in expected.iter().enumerate() {
            let found = setting.value("", i as f64 / 7.0).unwrap();
            assert!((found - expected).abs() < 1e-6, "{i}: {found}");
        }
        assert_eq!(
            Setting::read(&json!([3])).unwrap().value("", 1.0),
            Some(3.0)
        );
    }

    #[test]
    fn the_first_filter_that_fits_wins() {
        let list = json!([{"filter": "mlp", "value": [1, 0]}, {"value": 0.3}]);
        let setting = Setting::read(&list).unwrap();
        assert_eq!(setting.value("layers.1.mlp.up", 0.5), Some(0.5));
        assert_eq!(setting.value("norm", 0.5), Some(0.3));
        let one = Setting::read(&json!({"filter": "mlp", "value": true})).unwrap();
        assert_eq!(
            (one.value("mlp", 0.0), one.value("norm", 0.0)),
            (Some(1.0), None)
        );
        for wrong in [
            json!("much"),
            json!([]),
            json!([{"value": 1, "filtre": "a"}]),
            json!([{"filter": "a"}]),
        ] {
            assert!(Setting::read(&wrong).is_err(), "{wrong}");
        }
    }
}
