//! A judge model between two models' answers to the same questions.
//!
//! Every pair is shown twice, with the order swapped, for judges prefer a place (Zheng et al., arXiv 2306.05685): an answer wins where it is
//! preferred in both orders, else the pair is a tie. The length-controlled rate (Dubois et al., arXiv 2404.04475, without its terms for
//! models and questions) is what a logistic model of wins, with the difference in length as its second input, says of answers of one length.
//! Where a checker marks the answers, the judge itself is measured: how often it agrees, Cohen's kappa, and how well its probabilities are
//! calibrated (Brier score, expected calibration error over ten bins).

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{
    Error, Result,
    respondent::Response,
    run::Answered,
    statistics::{Accuracy, Interval, bootstrap},
    tasks::{
        Generation, Item, Metric, Pipeline, Prompt, Request, Task, build::digest,
        metric::Likelihood, prompt::ChatTemplate,
    },
};
use espalier_data::record::Message;

/// What a judge is asked, where the user asks nothing else.
pub const USUAL_QUESTION: &str = "Which of two answers to a question is better? Reply with the letter A or B and nothing else.\n\n\
    Question: {question}\n\nAnswer A: {first}\n\nAnswer B: {second}\n\nThe better answer is";

/// Bins of the calibration.
const BINS: usize = 10;

/// Steps of Newton's method; ten are plenty.
const STEPS: usize = 25;

/// Keeps the fit finite where one model wins everything.
const RIDGE: f64 = 1e-2;

/// Two answers to a question.
#[derive(Debug, Clone, PartialEq)]
pub struct Pair {
    /// The question.
    pub question: String,
    /// The answer of the model that is evaluated, and that of the other.
    pub answers: [String; 2],
    /// A checker's marks of both, where there is a checker.
    pub marks: Option<[f64; 2]>,
}

/// The questions to a judge: two items a pair, the second with the order swapped. A judge that gives no likelihoods writes its letter.
///
/// # Errors
/// When the question lacks an answer's place, or the template refuses it.
pub fn task(
    pairs: &[Pair],
    question: &str,
    chat: Option<ChatTemplate<'_>>,
    writes: bool,
) -> Result<Task> {
    for place in ["{first}", "{second}"] {
        if !question.contains(place) {
            return Err(Error::task(format!(
                "the judge never sees an answer: its question lacks {place}"
            )));
        }
    }
    let mut items = Vec::with_capacity(2 * pairs.len());
    for pair in pairs {
        let [own, other] = &pair.answers;
        for answers in [[own, other], [other, own]] {
            items.push(Item {
                number: items.len(),
                doc: Value::Null,
                request: request(&filled(question, &pair.question, answers), chat, writes)?,
            });
        }
    }
    Ok(Task {
        name: "judge".into(),
        alias: "judge".into(),
        groups: Vec::new(),
        version: String::new(),
        shots: 0,
        items,
        generation: Generation {
            max_tokens: 8,
            cuts_prompt: true,
            ..Generation::default()
        },
        repeats: 1,
        filters: vec![Pipeline::none()],
        metrics: vec![Metric::named("bypass")?],
        definition: digest(question),
    })
}

fn request(text: &str, chat: Option<ChatTemplate<'_>>, writes: bool) -> Result<Request> {
    let messages = vec![Message::user(text)];
    let (text, space) = match chat {
        Some(chat) => (chat(&messages, false)?, ""),
        None => (text.to_owned(), " "),
    };
    let prompt = Prompt {
        text,
        messages,
        marked: false,
    };
    Ok(match writes {
        true => Request::Generate {
            prompt,
            gold: Vec::new(),
        },
        false => Request::Choice {
            prompt,
            contexts: Vec::new(),
            continuations: ["A", "B"].map(|letter| format!("{space}{letter}")).to_vec(),
            choices: ["A", "B"].map(str::to_owned).to_vec(),
            gold: Vec::new(),
            alone: false,
        },
    })
}

/// The question with its places filled in one pass, so that an answer that says `{first}` stays as it is.
fn filled(template: &str, question: &str, [first, second]: [&String; 2]) -> String {
    let known = [
        ("{question}", question),
        ("{first}", first.as_str()),
        ("{second}", second.as_str()),
    ];
    let (mut text, mut rest) = (String::new(), template);
    while let Some(at) = rest.find('{') {
        text.push_str(&rest[..at]);
        rest = &rest[at..];
        let (length, value) = known
            .iter()
            .find(|(place, _)| rest.starts_with(place))
            .map_or((1, "{"), |(place, value)| (place.len(), *value));
        text.push_str(value);
        rest = &rest[length..];
    }
    text + rest
}

/// How far the judge prefers the first answer, from 0 to 1; nothing where its reply has no letter.
fn preference(response: &Response) -> Option<f64> {
    match response {
        Response::Likelihoods(found) => {
            let [
                Likelihood {
                    log_probability: first,
                    ..
                },
                Likelihood {
                    log_probability: second,
                    ..
                },
            ] = found[..]
            else {
                return None;
            };
            Some(1.0 / (1.0 + (second - first).exp()))
        }
        Response::Texts(texts) => {
            let text = texts.first()?;
            let words = text.split(|c: char| !c.is_alphanumeric());
            words.into_iter().find_map(|word| match word {
                "A" => Some(1.0),
                "B" => Some(0.0),
                _ => None,
            })
        }
    }
}

/// What a judge says of two models, and how far it can be trusted.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Verdicts {
    /// Pairs that were judged in both orders.
    pub pairs: usize,
    /// Pairs without an opinion in one of the orders.
    pub without_opinion: usize,
    /// Pairs that the evaluated model wins, that are ties, and that it loses.
    pub outcomes: [usize; 3],
    /// Wins, and half of the ties.
    pub win_rate: f64,
    /// Its 95% interval, by bootstrap.
    pub win_interval: [f64; 2],
    /// The same of answers of one length.
    pub length_controlled: f64,
    /// Its 95% interval, by bootstrap.
    pub length_interval: [f64; 2],
    /// How often the answer that is shown first is preferred; 0.5 of a fair judge.
    pub first_place: f64,
    /// The judge against a checker, of pairs of which the checker has one answer right alone.
    pub trust: Option<Trust>,
}

/// A judge against a checker.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Trust {
    /// Orders that were compared, two a pair.
    pub judged: u64,
    /// How often the judge prefers the right answer.
    pub agreement: f64,
    /// Its 95% interval (Wilson's).
    pub agreement_interval: [f64; 2],
    /// Cohen's kappa: agreement beyond chance.
    pub kappa: f64,
    /// Mean squared distance of its probabilities from the truth.
    pub brier: f64,
    /// Mean distance of confidence and accuracy over ten bins.
    pub calibration_error: f64,
    /// Of each bin of probability: judged, mean probability, share right.
    pub bins: Vec<(usize, f64, f64)>,
}

/// Sums up what a judge said of pairs.
///
/// # Errors
/// When the judge has no opinion on any pair.
pub fn verdicts(pairs: &[Pair], answered: &[Answered<'_>]) -> Result<Verdicts> {
    let opinions: Vec<Option<[f64; 2]>> = answered
        .chunks(2)
        .map(|both| {
            let [first, swapped] = both else { return None };
            // How far the evaluated model's answer is preferred, in both orders.
            Some([
                preference(&first.response)?,
                1.0 - preference(&swapped.response)?,
            ])
        })
        .collect();
    let judged: Vec<(&Pair, [f64; 2])> = pairs
        .iter()
        .zip(&opinions)
        .filter_map(|(pair, opinion)| Some((pair, (*opinion)?)))
        .collect();
    if judged.is_empty() {
        return Err(Error::task(
            "the judge chose neither A nor B of any pair; its question or its template does not suit it",
        ));
    }
    let outcomes: Vec<(f64, f64)> = judged
        .iter()
        .map(|(pair, opinion)| (outcome(*opinion), longer(pair)))
        .collect();
    let count = |wanted: f64| {
        outcomes
            .iter()
            .filter(|(outcome, _)| *outcome == wanted)
            .count()
    };
    let chosen = |places: &[usize]| {
        places
            .iter()
            .map(|place| outcomes[*place])
            .collect::<Vec<_>>()
    };
    let interval = |found: Interval| [found.low, found.high];
    let firsts: f64 = judged
        .iter()
        .map(|(_, [first, second])| first + 1.0 - second)
        .sum();
    Ok(Verdicts {
        pairs: judged.len(),
        without_opinion: pairs.len() - judged.len(),
        outcomes: [count(1.0), count(0.5), count(0.0)],
        win_rate: mean(&outcomes),
        win_interval: interval(bootstrap(outcomes.len(), |places| mean(&chosen(places)))),
        length_controlled: length_controlled(&outcomes),
        length_interval: interval(bootstrap(outcomes.len(), |places| {
            length_controlled(&chosen(places))
        })),
        first_place: firsts / (2 * judged.len()) as f64,
        trust: trust(&judged),
    })
}

/// 1 where the answer is preferred in both orders, 0 in neither, else a half.
fn outcome([first, swapped]: [f64; 2]) -> f64 {
    match (first > 0.5, swapped > 0.5) {
        (true, true) => 1.0,
        _ if first < 0.5 && swapped < 0.5 => 0.0,
        _ => 0.5,
    }
}

/// How much longer the evaluated model's answer is, in characters.
fn longer(pair: &Pair) -> f64 {
    let length = |text: &String| text.chars().count() as f64;
    length(&pair.answers[0]) - length(&pair.answers[1])
}

fn mean(outcomes: &[(f64, f64)]) -> f64 {
    outcomes.iter().map(|(outcome, _)| outcome).sum::<f64>() / outcomes.len() as f64
}

/// The rate of wins of answers of one length: `sigmoid(a)` of the fit `sigmoid(a + b * tanh(difference / deviation))`.
fn length_controlled(outcomes: &[(f64, f64)]) -> f64 {
    let count = outcomes.len() as f64;
    let centre = outcomes.iter().map(|(_, longer)| longer).sum::<f64>() / count;
    let spread = outcomes
        .iter()
        .map(|(_, longer)| (longer - centre).powi(2))
        .sum::<f64>()
        / count;
    let scale = spread.sqrt().max(1.0);
    let (mut a, mut b) = (0.0, 0.0);
    for _ in 0..STEPS {
        // Gradient and Hessian of the penalised log-likelihood.
        let (mut ga, mut gb) = (-RIDGE * a, -RIDGE * b);
        let (mut haa, mut hab, mut hbb) = (RIDGE, 0.0, RIDGE);
        for (outcome, longer) in outcomes {
            let x = (longer / scale).tanh();
            let p = sigmoid(a + b * x);
            let weight = p * (1.0 - p);
            ga += outcome - p;
            gb += (outcome - p) * x;
            haa += weight;
            hab += weight * x;
            hbb += weight * x * x;
        }
        let determinant = haa * hbb - hab * hab;
        let (da, db) = (
            (hbb * ga - hab * gb) / determinant,
            (haa * gb - hab * ga) / determinant,
        );
        (a, b) = (a + da.clamp(-2.0, 2.0), b + db.clamp(-2.0, 2.0));
    }
    sigmoid(a)
}

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

fn trust(judged: &[(&Pair, [f64; 2])]) -> Option<Trust> {
    // Of each order: the probability of the evaluated model's answer, and whether it is the right one.
    let mut known: Vec<(f64, bool)> = Vec::new();
    for (pair, opinions) in judged {
        if let Some([own, other]) = pair.marks.filter(|[own, other]| own != other) {
            known.extend(opinions.iter().map(|opinion| (*opinion, own > other)));
        }
    }
    if known.is_empty() {
        return None;
    }
    let agrees = known
        .iter()
        .map(|(opinion, right)| (*opinion > 0.5) == *right);
    let accuracy: Accuracy = agrees.collect();
    let (low, high) = accuracy.interval();
    let count = known.len() as f64;
    let share = |holds: &dyn Fn(&(f64, bool)) -> bool| {
        known.iter().filter(|one| holds(one)).count() as f64 / count
    };
    let (says, is) = (
        share(&|(opinion, _)| *opinion > 0.5),
        share(&|(_, right)| *right),
    );
    let chance = says * is + (1.0 - says) * (1.0 - is);
    let kappa = if chance < 1.0 {
        (accuracy.value() - chance) / (1.0 - chance)
    } else {
        0.0
    };
    let truth = |right: bool| f64::from(u8::from(right));
    let mut bins = vec![(0, 0.0, 0.0); BINS];
    for (opinion, right) in &known {
        let bin = &mut bins[((opinion * BINS as f64) as usize).min(BINS - 1)];
        *bin = (bin.0 + 1, bin.1 + opinion, bin.2 + truth(*right));
    }
    let error = bins
        .iter()
        .map(|(_, said, was)| (said - was).abs())
        .sum::<f64>()
        / count;
    let means = |(judged, said, was): (usize, f64, f64)| {
        let divisor = judged.max(1) as f64;
        (judged, said / divisor, was / divisor)
    };
    Some(Trust {
        judged: accuracy.total,
        agreement: accuracy.value(),
        agreement_interval: [low, high],
        kappa,
        brier: known
            .iter()
            .map(|(opinion, right)| (opinion - truth(*right)).powi(2))
            .sum::<f64>()
            / count,
        calibration_error: error,
        bins: bins.into_iter().map(means).collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair(own: &str, other: &str, marks: Option<[f64; 2]>) -> Pair {
        Pair {
            question: "Q {first}".into(),
            answers: [own.into(), other.into()],
            marks,
        }
    }

    fn judged(pairs: &[Pair], replies: &[&str]) -> Result<Verdicts> {
        let task = task(pairs, USUAL_QUESTION, None, true).unwrap();
        let answered: Vec<Answered<'_>> = task
            .items
            .iter()
            .zip(replies)
            .map(|(item, reply)| Answered {
                item,
                response: Response::Texts(vec![(*reply).to_owned()]),
                filtered: vec![],
                marks: vec![],
            })
            .collect();
        verdicts(pairs, &answered)
    }

    #[test]
    fn a_question_shows_both_orders() {
        let task = task(&[pair("one", "two", None)], USUAL_QUESTION, None, false).unwrap();
        let [first, swapped] = [0, 1].map(|number| task.items[number].request.prompt());
        assert!(
            first.contains("Question: Q {first}")
                && first.contains("Answer A: one\n\nAnswer B: two")
        );
        assert!(swapped.contains("Answer A: two\n\nAnswer B: one"));
        assert!(super::task(&[], "{first}?", None, false).is_err());
    }

    #[test]
    fn an_answer_wins_in_both_orders_alone() {
        let pairs = vec![
            pair("a", "b", Some([1.0, 0.0])),
            pair("a", "b", Some([0.0, 1.0])),
            pair("a", "b", None),
            pair("a", "b", None),
        ];
        let found = judged(&pairs, &["A", "B", "B.", "So A", "A", "A", "hm", "A"]).unwrap();
        assert_eq!(
            (found.pairs, found.without_opinion, found.outcomes),
            (3, 1, [1, 1, 1])
        );
        assert_eq!((found.win_rate, found.length_controlled), (0.5, 0.5));
        // The third judge said A twice, whoever stood there.
        assert!((found.first_place - 4.0 / 6.0).abs() < 1e-12);
        let trust = found.trust.unwrap();
        assert_eq!(
            (trust.judged, trust.agreement, trust.kappa, trust.brier),
            (4, 1.0, 1.0, 0.0)
        );
        assert!(judged(&pairs, &["?"; 8]).is_err());
    }

    #[test]
    fn length_is_controlled() {
        // A judge that prefers the longer answer four times in five, between models of which one is mostly longer.
        let outcomes: Vec<(f64, f64)> = (0..200)
            .map(|i| {
                let (long, usual) = (i % 4 != 0, (i / 4) % 5 != 0);
                (
                    f64::from(u8::from(long == usual)),
                    if long { 30.0 } else { -30.0 },
                )
            })
            .collect();
        assert!((mean(&outcomes) - 0.65).abs() < 1e-9);
        assert!((length_controlled(&outcomes) - 0.5).abs() < 0.01);
        let even: Vec<(f64, f64)> = (0..200)
            .map(|i| {
                (
                    f64::from(u8::from(i % 4 != 0)),
                    if i % 8 < 4 { 30.0 } else { -30.0 },
                )
            })
            .collect();
        assert!((length_controlled(&even) - 0.75).abs() < 0.01);
    }

    #[test]
    fn probabilities_are_calibrated_or_not() {
        let pairs: Vec<Pair> = (0..10)
            .map(|i| pair("a", "b", Some(if i < 7 { [1.0, 0.0] } else { [0.0, 1.0] })))
            .collect();
        let known: Vec<(&Pair, [f64; 2])> = pairs.iter().map(|pair| (pair, [0.7, 0.7])).collect();
        let trust = trust(&known).unwrap();
        assert!(trust.calibration_error < 1e-9, "{trust:?}");
        assert!((trust.brier - 0.21).abs() < 1e-9 && (trust.agreement - 0.7).abs() < 1e-9);
        assert!(trust.kappa.abs() < 1e-9);
    }
}
