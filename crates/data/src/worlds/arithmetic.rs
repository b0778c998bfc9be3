//! G1, arithmetic word problems: chains of one to five operations told as a story, with the work shown.
//!
//! Level 1 is a bare operation. From level 2 on, a quantity changes step by step; the solution has one line `a op b = c` a
//! step and `#### answer` at the end, the form of GSM8K. Names and wording are not part of the key, so a chain of numbers
//! never occurs in two splits. Answers are integers of at least 1 (level 1: 0).

use serde_json::Map;

use super::lists::{ITEMS, NAMES, fill};
use super::{Draft, Item, Split, World};
use crate::random::Random;

/// The world of arithmetic word problems.
pub const WORLD: World = World {
    name: "g1",
    description: "arithmetic word problems of one to five steps, with the work shown",
    tasks: &["g1/1", "g1/2", "g1/3", "g1/4"],
    dials: &[],
    generate,
    check,
};

/// Above this, a quantity is not multiplied any more.
const LARGEST_PRODUCT: i64 = 200;

fn generate(task: &str, _: Split, random: &mut Random) -> Draft {
    match task {
        "g1/2" => story(2, 1, 1, random),
        "g1/3" => story(3, 2, 3, random),
        "g1/4" => story(4, 4, 5, random),
        _ => operation(random),
    }
}

fn operation(random: &mut Random) -> Draft {
    let operator = *random.pick(&['+', '-', '*']);
    let largest = if operator == '*' { 12 } else { 99 };
    let smallest = if operator == '*' { 2 } else { 1 };
    let mut a = random.range(smallest, largest);
    let mut b = random.range(smallest, largest);
    if operator == '-' && b > a {
        std::mem::swap(&mut a, &mut b);
    }
    let answer = apply(a, operator, b).unwrap_or_default().to_string();
    let prompt = format!("{a} {operator} {b} =");
    Draft {
        prompt,
        solution: answer.clone(),
        answer,
        key: format!("1|{a}{operator}{b}"),
        fields: Map::new(),
    }
}

fn story(level: u8, fewest: i64, most: i64, random: &mut Random) -> Draft {
    let steps = random.range(fewest, most);
    let (name, item) = (*random.pick(NAMES), *random.pick(ITEMS));
    let mut x = random.range(2, 20);
    let mut sentences = vec![format!("{name} has {x} {item}.")];
    let mut work = Vec::new();
    let mut key = vec![x.to_string()];
    for _ in 0..steps {
        let (operator, k) = step(x, random);
        let y = apply(x, operator, k).unwrap_or_default();
        let template = random.pick(templates(operator));
        sentences.push(fill(
            template,
            &[("n", name), ("k", k.to_string().as_str()), ("i", item)],
        ));
        work.push(format!("{x} {operator} {k} = {y}"));
        key.push(format!("{operator}{k}"));
        x = y;
    }
    sentences.push(format!("How many {item} does {name} have now?"));
    Draft {
        prompt: sentences.join(" "),
        solution: format!("{}\n#### {x}", work.join("\n")),
        answer: x.to_string(),
        key: format!("{level}|{}", key.join(",")),
        fields: Map::new(),
    }
}

/// An operation that keeps the quantity an integer of at least 1, and its second number.
fn step(x: i64, random: &mut Random) -> (char, i64) {
    let divisors: Vec<i64> = (2..=5).filter(|divisor| x % divisor == 0).collect();
    let mut allowed = vec!['+'];
    allowed.extend((x >= 2).then_some('-'));
    allowed.extend((2 * x <= LARGEST_PRODUCT).then_some('*'));
    allowed.extend((!divisors.is_empty()).then_some('/'));
    let operator = *random.pick(&allowed);
    let k = match operator {
        '-' => random.range(1, x - 1),
        '*' => random.range(2, (LARGEST_PRODUCT / x).min(5)),
        '/' => *random.pick(&divisors),
        _ => random.range(1, 30),
    };
    (operator, k)
}

fn templates(operator: char) -> &'static [&'static str] {
    match operator {
        '-' => &[
            "{n} gives away {k} {i}.",
            "{n} loses {k} {i}.",
            "{n} sells {k} {i}.",
        ],
        '*' => &[
            "Then {n} gets enough to have {k} times as many {i}.",
            "The number of {i} grows to {k} times what it was.",
        ],
        '/' => &[
            "{n} shares the {i} equally among {k} boxes and keeps one box.",
            "{n} puts the {i} in {k} equal groups and keeps one group.",
        ],
        _ => &[
            "{n} finds {k} more {i}.",
            "A friend gives {n} {k} {i}.",
            "{n} buys {k} {i}.",
        ],
    }
}

/// The result of an operation, unless it overflows, is inexact or divides by zero.
fn apply(a: i64, operator: char, b: i64) -> Option<i64> {
    match operator {
        '+' => a.checked_add(b),
        '-' => a.checked_sub(b),
        '*' => a.checked_mul(b),
        '/' if b != 0 && a.checked_rem(b)? == 0 => a.checked_div(b),
        _ => None,
    }
}

fn check(item: &Item, output: &str) -> bool {
    let number = if item.task == "g1/1" {
        integer(output.trim())
    } else {
        final_answer(output)
    };
    number.is_some() && number == integer(&item.answer)
}

fn integer(text: &str) -> Option<i64> {
    text.replace(',', "").parse().ok()
}

/// The integer after the last `#### `, commas removed.
///
/// ```
/// use espalier_data::worlds::arithmetic::final_answer;
/// assert_eq!(final_answer("#### 3\n2 + 2 = 4\n#### 1,004."), Some(1004));
/// ```
pub fn final_answer(output: &str) -> Option<i64> {
    let rest = output.rsplit_once("#### ")?.1;
    let digits = rest.strip_prefix('-').unwrap_or(rest);
    let length = digits
        .find(|letter: char| !letter.is_ascii_digit() && letter != ',')
        .unwrap_or(digits.len());
    integer(&rest[..rest.len() - digits.len() + length])
}

/// Whether every line before the `####` line is a true `a op b = c` whose `a` is the result before it.
///
/// ```
/// use espalier_data::worlds::arithmetic::steps_hold;
/// assert!(steps_hold("9 + 3 = 12\n12 / 4 = 3\n#### 3"));
/// assert!(!steps_hold("9 + 3 = 12\n11 - 4 = 7\n#### 7"));
/// ```
pub fn steps_hold(output: &str) -> bool {
    let lines = output
        .lines()
        .map(str::trim)
        .take_while(|line| !line.starts_with("####"));
    let mut previous = None;
    lines.filter(|line| !line.is_empty()).all(|line| {
        let Some((a, result)) = true_step(line) else {
            return false;
        };
        previous.replace(result).is_none_or(|before| before == a)
    })
}

/// First number and result of a true line `a op b = c`.
fn true_step(line: &str) -> Option<(i64, i64)> {
    let words: Vec<&str> = line.split(' ').collect();
    let [a, operator, b, "=", result] = words.as_slice() else {
        return None;
    };
    let (a, b, result) = (a.parse().ok()?, b.parse().ok()?, result.parse().ok()?);
    let operator = operator.parse().ok()?;
    (apply(a, operator, b)? == result).then_some((a, result))
}

#[cfg(test)]
mod tests {
    use super::super::{check, item};
    use super::*;

    #[test]
    fn changed_answers_fail() {
        for task in WORLD.tasks {
            for index in 0..1000 {
                let item = item(task, Split::Train, index, 0).unwrap();
                let answer: i64 = item.answer.parse().unwrap();
                assert!(answer >= i64::from(*task != "g1/1"));
                let wrong = item
                    .solution
                    .replace(&item.answer, &(answer + 1).to_string());
                assert!(!check(&item, &wrong).unwrap());
                let without_last_line = item
                    .solution
                    .rsplit_once('\n')
                    .map_or("", |(lines, _)| lines);
                assert!(!check(&item, without_last_line).unwrap());
                assert!(*task == "g1/1" || steps_hold(&item.solution));
            }
        }
    }

    #[test]
    fn steps_must_be_true_and_chained() {
        assert!(!steps_hold("9 + 3 = 13\n#### 13"));
        assert!(!steps_hold("9 / 2 = 4\n#### 4"));
        assert!(!steps_hold("9 / 0 = 4\n#### 4"));
        assert!(!steps_hold("so 9 + 3 = 12\n#### 12"));
        assert!(!steps_hold("9223372036854775807 + 1 = 0"));
    }

    #[test]
    fn the_last_mark_counts() {
        assert_eq!(final_answer("#### 1\n#### -2 apples"), Some(-2));
        assert_eq!(final_answer("#### none"), None);
        assert_eq!(final_answer("12"), None);
    }
}
