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
    if name.is_empty() || name.len() > LONGEST {
        return None;
    }
    let folded = fold(name);
    let near = |choice: &str| (folded.chars().count().max(choice.len()) / 3).max(1);
    choices
        .into_iter()
        .filter(|choice| !choice.is_empty() && choice.len() <= LONGEST)
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

/// As [`nearest`], for names of models' architectures, the nearest first: what they have in common (`ForCausalLM`) says nothing, and
/// families of short names or of other numbers are not each other's slips.
///
/// ```
/// use espalier_data::nearest::nearest_architectures;
/// let known = ["GPTJForCausalLM", "gptj", "LlamaForCausalLM", "MptForCausalLM", "Gemma2ForCausalLM", ""];
/// assert_eq!(nearest_architectures("LamaForCausalLM", known), ["LlamaForCausalLM"]);
/// assert_eq!(nearest_architectures("LlamaForCausalML", known), ["LlamaForCausalLM"]);
/// assert_eq!(nearest_architectures("gpt-j", known), ["gptj"]);
/// assert!(nearest_architectures("OPTForCausalLM", known).is_empty());
/// assert!(nearest_architectures("Gemma3ForCausalLM", known).is_empty());
/// ```
pub fn nearest_architectures<'a>(
    name: &str,
    choices: impl IntoIterator<Item = &'a str>,
) -> Vec<&'a str> {
    if name.len() > LONGEST {
        return Vec::new();
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
        (!family.is_empty() && distance <= near && digits(&wanted) == digits(&family))
            .then_some(((distance, !of_kind), choice))
    };
    let mut found: Vec<_> = choices.into_iter().filter_map(distance).collect();
    found.sort_unstable();
    found.dedup();
    // Types of models where one was given, architectures where one was.
    let of_kind = found.first().map(|((_, of_kind), _)| *of_kind);
    let found = found
        .into_iter()
        .filter(|((_, kind), _)| Some(*kind) == of_kind);
    found.map(|(_, choice)| choice).collect()
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
    fn nothing_is_nobodys_slip() {
        assert_eq!(nearest("", ["a", ""]), None);
        assert_eq!(nearest("a", [""]), None);
        assert!(nearest_architectures("", ["", "a"]).is_empty());
    }

    #[test]
    fn long_names_are_no_slips() {
        let long = "x".repeat(65);
        assert_eq!(nearest(&long, [long.as_str()]), None);
    }
}
