//! Translation edit rate (Snover et al. 2006) of a corpus as sacrebleu has it, which follows Tercom: words in small letters, insertions,
//! deletions, substitutions and shifts of up to ten words, found greedily; edits over the references' mean length.

use std::collections::HashMap;

use super::corpus::{COUNTS, Counts};

/// Longest run of words that is shifted.
const LONGEST_SHIFT: usize = 10;

/// Farthest distance over which words are shifted.
const FARTHEST_SHIFT: usize = 50;

/// Width of the band in which edits are searched.
const BEAM: usize = 25;

/// Shifts that are tried for one answer.
const MOST_SHIFTS: usize = 1000;

/// Edits to the closest reference, and the references' mean length.
pub fn counts(answer: &str, golds: &[String]) -> Counts {
    let answer = answer.to_lowercase();
    let answer: Vec<&str> = answer.split_whitespace().collect();
    let (mut fewest, mut length) = (usize::MAX, 0);
    for gold in golds {
        let gold = gold.to_lowercase();
        let gold: Vec<&str> = gold.split_whitespace().collect();
        fewest = fewest.min(edits(&answer, &gold));
        length += gold.len();
    }
    let mut counts = [0.0; COUNTS];
    if !golds.is_empty() {
        counts[0] = fewest as f64;
        counts[1] = length as f64 / golds.len() as f64;
    }
    counts
}

/// The rate of summed counts in per cent; less is better.
pub fn score(counts: &Counts) -> f64 {
    match counts[1] > 0.0 {
        true => 100.0 * counts[0] / counts[1],
        false => 100.0 * f64::from(u8::from(counts[0] > 0.0)),
    }
}

/// What is done to a word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Edit {
    Keep,
    Substitute,
    Insert,
    Delete,
    Unknown,
}

/// Edits that make an answer of the reference, shifts among them.
fn edits(answer: &[&str], gold: &[&str]) -> usize {
    if gold.is_empty() {
        return answer.len();
    }
    let (mut words, mut shifts, mut tried) = (answer.to_vec(), 0, 0);
    loop {
        let (gain, shifted) = best_shift(&words, gold, &mut tried);
        if tried >= MOST_SHIFTS || gain <= 0 {
            break;
        }
        (words, shifts) = (shifted, shifts + 1);
    }
    shifts + distance(&words, gold).0
}

/// The edits between two rows of words without shifts, and which they are, from the first to the last.
fn distance(words: &[&str], gold: &[&str]) -> (usize, Vec<Edit>) {
    const FAR: usize = usize::MAX / 2;
    let (height, width) = (words.len() + 1, gold.len() + 1);
    let mut table = vec![(FAR, Edit::Unknown); height * width];
    for (column, cell) in table[..width].iter_mut().enumerate() {
        *cell = (column, Edit::Insert);
    }
    let ratio = match words.is_empty() {
        true => 1.0,
        false => gold.len() as f64 / words.len() as f64,
    };
    // Lengths may differ so much that bands of neighbouring rows would not meet.
    let beam = match (BEAM as f64) < ratio / 2.0 {
        true => (ratio / 2.0 + BEAM as f64).ceil() as usize,
        false => BEAM,
    };
    for row in 1..height {
        let diagonal = (row as f64 * ratio).floor() as usize;
        let end = match row + 1 == height {
            true => width,
            false => width.min(diagonal + beam),
        };
        for column in diagonal.saturating_sub(beam)..end {
            let at = row * width + column;
            let above = table[at - width].0;
            if column == 0 {
                table[at] = (above + 1, Edit::Delete);
                continue;
            }
            let same = words[row - 1] == gold[column - 1];
            let (cost, edit) = if same {
                (0, Edit::Keep)
            } else {
                (1, Edit::Substitute)
            };
            for (cost, edit) in [
                (table[at - width - 1].0 + cost, edit),
                (above + 1, Edit::Delete),
                (table[at - 1].0 + 1, Edit::Insert),
            ] {
                if cost < table[at].0 {
                    table[at] = (cost, edit);
                }
            }
        }
    }
    let (mut row, mut column, mut trace) = (height - 1, width - 1, Vec::new());
    while row > 0 || column > 0 {
        let edit = table[row * width + column].1;
        trace.push(edit);
        match edit {
            Edit::Keep | Edit::Substitute => (row, column) = (row - 1, column - 1),
            Edit::Insert => column -= 1,
            Edit::Delete => row -= 1,
            // Outside of the band there is no way back; the last row reaches every column.
            Edit::Unknown => break,
        }
    }
    trace.reverse();
    (table[height * width - 1].0, trace)
}

/// Which word of the answer each of the reference's stands beside, and which words of both are wrong.
struct Alignment {
    places: HashMap<usize, isize>,
    wrong_gold: Vec<bool>,
    wrong: Vec<bool>,
}

fn alignment(trace: &[Edit]) -> Alignment {
    let mut found = Alignment {
        places: HashMap::new(),
        wrong_gold: Vec::new(),
        wrong: Vec::new(),
    };
    for edit in trace {
        // From the answer's side, what was inserted is missing and what was deleted is too much.
        let (in_answer, in_gold) = match edit {
            Edit::Keep | Edit::Substitute => (true, true),
            Edit::Delete | Edit::Unknown => (true, false),
            Edit::Insert => (false, true),
        };
        let wrong = *edit != Edit::Keep;
        if in_answer {
            found.wrong.push(wrong);
        }
        if in_gold {
            let place = found.wrong.len() as isize - 1;
            found.places.insert(found.wrong_gold.len(), place);
            found.wrong_gold.push(wrong);
        }
    }
    found
}

/// How a shift is chosen: by what it saves, then the longest, the first, and the nearest to the beginning.
type Rank = (isize, usize, isize, isize);

/// The shift that saves most, how many edits that are, and the words after it.
fn best_shift<'a>(words: &[&'a str], gold: &[&str], tried: &mut usize) -> (isize, Vec<&'a str>) {
    let (before, trace) = distance(words, gold);
    let aligned = alignment(&trace);
    let mut best: Option<(Rank, Vec<&str>)> = None;
    for (start, target, length) in runs_in_common(words, gold) {
        let has_error = |wrong: &[bool], from: usize| wrong[from..from + length].contains(&true);
        let beside = aligned.places[&target];
        let within = (start as isize..(start + length) as isize).contains(&beside);
        if !has_error(&aligned.wrong, start) || !has_error(&aligned.wrong_gold, target) || within {
            continue;
        }
        let mut last = None;
        for offset in 0..=length {
            let place = match (target + offset).checked_sub(1) {
                None => 0,
                Some(place) => match aligned.places.get(&place) {
                    Some(place) => *place + 1,
                    None => break,
                },
            };
            if last == Some(place) {
                continue;
            }
            last = Some(place);
            let shifted = shift(words, start, length, place as usize);
            let gain = before as isize - distance(&shifted, gold).0 as isize;
            let rank = (gain, length, -(start as isize), -place);
            *tried += 1;
            let better = best
                .as_ref()
                .is_none_or(|(known, other)| (rank, &shifted) > (*known, other));
            if better {
                best = Some((rank, shifted));
            }
        }
        if *tried >= MOST_SHIFTS {
            break;
        }
    }
    best.map_or((0, words.to_vec()), |((gain, ..), shifted)| (gain, shifted))
}

fn shift<'a>(words: &[&'a str], start: usize, length: usize, target: usize) -> Vec<&'a str> {
    let end = start + length;
    let (run, order) = (&words[start..end], words);
    if target < start {
        [&order[..target], run, &order[target..start], &order[end..]].concat()
    } else if target > end {
        [&order[..start], &order[end..target], run, &order[target..]].concat()
    } else {
        let behind = (length + target).min(words.len());
        let between = &order[end.min(behind)..behind];
        [&order[..start], between, run, &order[behind..]].concat()
    }
}

/// Runs of words that both rows have: where they begin in each, and how long they are.
fn runs_in_common(words: &[&str], gold: &[&str]) -> Vec<(usize, usize, usize)> {
    let mut runs = Vec::new();
    for start in 0..words.len() {
        for target in 0..gold.len() {
            if start.abs_diff(target) > FARTHEST_SHIFT {
                continue;
            }
            let pairs = words[start..].iter().zip(&gold[target..]);
            let same = pairs
                .take(LONGEST_SHIFT)
                .take_while(|(a, b)| a == b)
                .count();
            runs.extend((1..=same).map(|length| (start, target, length)));
        }
    }
    runs
}
