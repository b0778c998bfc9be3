//! "Did you mean ...?": the nearest of the valid names, for error messages of every kind.

/// A longer word is no slip of the finger, and the distance takes memory with the product of the lengths.
const LONGEST: usize = 64;

/// The choice nearest to `name`, if it is near: at most a third of the letters were changed, left out, added or swapped
/// (Damerau-Levenshtein). Case, hyphens and spaces count for nothing.
///
/// ```
/// use espalier_data::nearest::nearest;
/// assert_eq!(nearest("alpacca", ["alpaca", "sharegpt"]), Some("alpaca"));
/// assert_eq!(nearest("Learning-Rate", ["model", "learning_rate"]), Some("learning_rate"));
/// assert_eq!(nearest("csv", ["alpaca", "sharegpt"]), None);
/// ```
pub fn nearest<'a>(name: &str, choices: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    if name.len() > LONGEST {
        return None;
    }
    let folded = fold(name);
    let near = |choice: &str| (folded.chars().count().max(choice.len()) / 3).max(1);
    choices
        .into_iter()
        .filter(|choice| choice.len() <= LONGEST)
        .map(|choice| (strsim::damerau_levenshtein(&folded, &fold(choice)), choice))
        .filter(|(distance, choice)| *distance <= near(choice))
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, choice)| choice)
}

/// ``; did you mean `x`?`` for the nearest choice, or nothing.
///
/// ```
/// use espalier_data::nearest::suggestion;
/// assert_eq!(suggestion("alpacca", ["alpaca"]), "; did you mean `alpaca`?");
/// assert_eq!(suggestion("csv", ["alpaca"]), "");
/// ```
pub fn suggestion<'a>(name: &str, choices: impl IntoIterator<Item = &'a str>) -> String {
    nearest(name, choices)
        .map(|choice| format!("; did you mean `{choice}`?"))
        .unwrap_or_default()
}

/// As [`nearest`], for names of models' architectures: what they have in common (`ForCausalLM`) says nothing, and families of
/// short names or of other numbers are not each other's slips.
///
/// ```
/// use espalier_data::nearest::nearest_architecture;
/// let known = ["GPTJForCausalLM", "gptj", "LlamaForCausalLM", "MptForCausalLM", "Gemma2ForCausalLM"];
/// assert_eq!(nearest_architecture("LamaForCausalLM", known), Some("LlamaForCausalLM"));
/// assert_eq!(nearest_architecture("LlamaForCausalML", known), Some("LlamaForCausalLM"));
/// assert_eq!(nearest_architecture("gpt-j", known), Some("gptj"));
/// assert_eq!(nearest_architecture("OPTForCausalLM", known), None);
/// assert_eq!(nearest_architecture("Gemma3ForCausalLM", known), None);
/// ```
pub fn nearest_architecture<'a>(
    name: &str,
    choices: impl IntoIterator<Item = &'a str>,
) -> Option<&'a str> {
    if name.len() > LONGEST {
        return None;
    }
    let of_family = |name: &str| {
        let ends = ["For", "LMHead", "Model"].map(|end| name.find(end));
        let end = ends.into_iter().flatten().min().unwrap_or(name.len());
        name[..end].to_lowercase().replace(['-', '_', ' '], "")
    };
    let digits = |name: &str| {
        name.chars()
            .filter(char::is_ascii_digit)
            .collect::<String>()
    };
    let wanted = of_family(name);
    let distance = |choice: &'a str| {
        let family = of_family(choice);
        let distance = strsim::damerau_levenshtein(&wanted, &family);
        let near = wanted.chars().count().max(family.chars().count()) / 5;
        let of_kind = name.contains("For") == choice.contains("For");
        (distance <= near && digits(&wanted) == digits(&family))
            .then_some(((distance, !of_kind), choice))
    };
    choices
        .into_iter()
        .filter_map(distance)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, choice)| choice)
}

fn fold(word: &str) -> String {
    word.to_lowercase().replace(['-', ' '], "_")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn swapped_letters_are_one_slip() {
        assert_eq!(nearest("smaple", ["sample"]), Some("sample"));
        assert_eq!(nearest("ab", ["ba"]), Some("ba"));
    }

    #[test]
    fn long_names_are_no_slips() {
        let long = "x".repeat(65);
        assert_eq!(nearest(&long, [long.as_str()]), None);
    }
}
