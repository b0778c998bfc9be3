//! Values of options that are several numbers.

use espalier_engine::sampler::{Step, dry::Dry, mirostat::MirostatOptions, xtc::Xtc};

use super::Order;

/// At least one number, at most `most`, with commas between them.
fn numbers(text: &str, most: usize) -> Result<Vec<f32>, String> {
    let numbers: Result<Vec<f32>, _> = text.split(',').map(|part| part.trim().parse()).collect();
    let numbers = numbers.map_err(|_| "expected numbers, with commas between them".to_owned())?;
    match numbers.len() <= most {
        true => Ok(numbers),
        false => Err(format!("expected at most {most} numbers")),
    }
}

/// `--xtc PROBABILITY[,THRESHOLD]`.
pub(super) fn xtc(text: &str) -> Result<Xtc, String> {
    let numbers = numbers(text, 2)?;
    let usual = Xtc::default();
    Ok(Xtc {
        probability: numbers[0],
        threshold: numbers.get(1).copied().unwrap_or(usual.threshold),
    })
}

/// `--mirostat BITS[,RATE]`.
pub(super) fn mirostat(text: &str) -> Result<MirostatOptions, String> {
    let numbers = numbers(text, 2)?;
    let usual = MirostatOptions::default();
    Ok(MirostatOptions {
        target: numbers[0],
        learning_rate: numbers.get(1).copied().unwrap_or(usual.learning_rate),
    })
}

/// `--dry MULTIPLIER[,BASE[,LENGTH]]`.
pub(super) fn dry(text: &str) -> Result<Dry, String> {
    let numbers = numbers(text, 3)?;
    let usual = Dry::default();
    let length = numbers.get(2).map(|length| match *length {
        length if length >= 1.0 && length.fract() == 0.0 && length <= 1e6 => Ok(length as usize),
        length => Err(format!("expected a length of at least 1, found {length}")),
    });
    Ok(Dry {
        multiplier: numbers[0],
        base: numbers.get(1).copied().unwrap_or(usual.base),
        allowed_length: length.transpose()?.unwrap_or(usual.allowed_length),
        ..usual
    })
}

/// `--logit-bias ID=NUMBER`.
pub(super) fn bias(text: &str) -> Result<(u32, f32), String> {
    let parts = text.split_once('=').and_then(|(id, bias)| {
        let bias: f32 = bias.trim().parse().ok()?;
        Some((id.trim().parse().ok()?, bias)).filter(|_| bias.is_finite())
    });
    parts.ok_or_else(|| "expected the id of a token and a number, such as 50256=-100".to_owned())
}

/// `--order STEPS`.
pub(super) fn order(text: &str) -> Result<Order, String> {
    if text == "llama.cpp" {
        return Ok(Order(Step::LLAMA_CPP.to_vec()));
    }
    let steps = text.split(',').map(|name| {
        Step::named(name.trim()).ok_or_else(|| {
            let known: Vec<&str> = Step::USUAL.iter().map(|step| step.name()).collect();
            format!("no step `{}`; there are {}", name.trim(), known.join(", "))
        })
    });
    steps.collect::<Result<_, _>>().map(Order)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_given_is_usual() {
        let options = dry("0.5").unwrap();
        assert_eq!(
            (options.multiplier, options.base, options.allowed_length),
            (0.5, 1.75, 2)
        );
        let options = dry("0.5, 2, 4").unwrap();
        assert_eq!((options.base, options.allowed_length), (2.0, 4));
        assert_eq!(xtc("0.3,0.2").unwrap().threshold, 0.2);
        assert_eq!(mirostat("3").unwrap().learning_rate, 0.1);
        assert_eq!(bias("7=-2.5").unwrap(), (7, -2.5));
        assert_eq!(
            order("top_k,temperature").unwrap().0,
            [Step::TopK, Step::Temperature]
        );
    }

    #[test]
    fn what_is_no_value_is_told() {
        assert!(dry("a").unwrap_err().contains("numbers"));
        assert!(dry("1,2,0.5").unwrap_err().contains("length"));
        assert!(xtc("1,2,3").unwrap_err().contains("at most 2"));
        assert!(bias("7").is_err() && bias("7=inf").is_err() && bias("-1=2").is_err());
        assert!(
            order("top_q")
                .unwrap_err()
                .contains("there are temperature, ")
        );
    }
}
