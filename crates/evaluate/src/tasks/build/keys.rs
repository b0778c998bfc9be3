//! Keys of a task's file that hold for all of its records: metrics, filters, and how answers are generated.

use serde_json::{Map, Value};

use super::super::{
    Generation, Metric, Pipeline,
    file::{FilterEntry, OutputType, TaskFile},
    filter::Filter,
    functions,
    metric::{Aggregation, ExactMatch, Measure},
    prompt::plain_text,
};
use crate::{Error, Result};

pub(super) fn metrics(file: &TaskFile, folder: &str) -> Result<Vec<Metric>> {
    let Some(list) = &file.metric_list else {
        let usual: &[&str] = match file.output_type {
            OutputType::Loglikelihood => &["perplexity", "acc"],
            OutputType::LoglikelihoodRolling => {
                &["word_perplexity", "byte_perplexity", "bits_per_byte"]
            }
            OutputType::MultipleChoice => &["acc", "acc_norm"],
            OutputType::GenerateUntil => &["exact_match"],
        };
        return usual.iter().map(|name| Metric::named(name)).collect();
    };
    let mut metrics = Vec::new();
    for entry in list {
        metrics.extend(metric(entry, file.output_type, folder)?);
    }
    for metric in &metrics {
        if !fits(&metric.measure, file.output_type) {
            return Err(Error::task(format!(
                "metric `{}` does not fit `output_type` of the task",
                metric.name
            )));
        }
    }
    Ok(metrics)
}

fn metric(entry: &Map<String, Value>, kind: OutputType, folder: &str) -> Result<Vec<Metric>> {
    let mut rest = entry.clone();
    let name = rest
        .remove("metric")
        .ok_or_else(|| Error::task("an entry of `metric_list` has no `metric`"))?;
    let aggregation = rest.remove("aggregation");
    let higher = rest.remove("higher_is_better");
    rest.remove("hf_evaluate");
    let mut found = match functions::name(&name) {
        Some(function) => {
            functions::runs_programs(folder, function)?;
            let counts = rest.remove("k").unwrap_or(1.into());
            let counts = match counts {
                Value::Array(counts) => counts,
                one => vec![one],
            };
            counts
                .iter()
                .map(|k| Metric::named(&format!("pass@{k}")))
                .collect::<Result<Vec<_>>>()?
        }
        None if name == "f1" && kind == OutputType::MultipleChoice => vec![Metric {
            measure: Measure::Classes,
            aggregation: Aggregation::F1OfOne,
            ..Metric::named("f1")?
        }],
        None => vec![Metric::named(&plain_text(&name))?],
    };
    for metric in &mut found {
        if matches!(metric.measure, Measure::ExactMatch(_)) {
            metric.measure = Measure::ExactMatch(ExactMatch::parse(&rest)?);
        } else if let Some(key) = rest.keys().next() {
            return Err(Error::task(format!(
                "metric `{}` has no option `{key}`",
                metric.name
            )));
        }
        if let Some(aggregation) = &aggregation {
            metric.aggregation = aggregated(aggregation, metric)?;
        }
        if let Some(higher) = higher.as_ref().and_then(Value::as_bool) {
            metric.higher_is_better = higher;
        }
    }
    Ok(found)
}

fn aggregated(name: &Value, metric: &Metric) -> Result<Aggregation> {
    let own = metric.aggregation;
    let is_of_corpus = !matches!(
        own,
        Aggregation::Mean
            | Aggregation::Perplexity
            | Aggregation::WeightedPerplexity
            | Aggregation::BitsPerByte
    );
    let name = name.as_str().unwrap_or_default();
    if is_of_corpus {
        let known = match own {
            Aggregation::Matthews => "mcc",
            Aggregation::F1OfOne => "f1",
            _ => &metric.name,
        };
        return match name == known || own == Aggregation::Matthews && name == "matthews_corrcoef" {
            true => Ok(own),
            false => Err(Error::task(format!(
                "metric `{}`: aggregation `{name}` is not supported; it is `{known}`",
                metric.name
            ))),
        };
    }
    Ok(match name {
        "mean" | "nanmean" | "brier_score" | "bypass" => Aggregation::Mean,
        "perplexity" => Aggregation::Perplexity,
        "weighted_perplexity" => Aggregation::WeightedPerplexity,
        "bits_per_byte" => Aggregation::BitsPerByte,
        other => {
            return Err(Error::task(format!(
                "aggregation `{other}` is not supported; supported are mean, perplexity, weighted_perplexity, bits_per_byte"
            )));
        }
    })
}

fn fits(measure: &Measure, kind: OutputType) -> bool {
    use Measure as M;
    match kind {
        OutputType::Loglikelihood => matches!(measure, M::Accuracy | M::LogLikelihood | M::Nothing),
        OutputType::LoglikelihoodRolling => matches!(measure, M::ByWords | M::ByBytes | M::Nothing),
        OutputType::MultipleChoice => matches!(
            measure,
            M::Accuracy
                | M::AccuracyByCharacters
                | M::AccuracyByBytes
                | M::AccuracyByInformation
                | M::Brier
                | M::LogLikelihood
                | M::ExactMatch(_)
                | M::Classes
                | M::Nothing
        ),
        OutputType::GenerateUntil => matches!(
            measure,
            M::ExactMatch(_)
                | M::F1
                | M::Rouge(_)
                | M::RougeL
                | M::Corpus(_)
                | M::Pass(_)
                | M::ContainsAll
                | M::ContainsAny
                | M::Checked(_)
                | M::Nothing
        ),
    }
}

pub(super) fn filters(file: &TaskFile, folder: &str) -> Result<Vec<Pipeline>> {
    let Some(list) = &file.filter_list else {
        return Ok(vec![Pipeline::none()]);
    };
    let pipeline = |entry: &FilterEntry| {
        let steps = entry
            .filter
            .iter()
            .map(|filter| Filter::parse(filter, folder));
        Ok(Pipeline {
            name: entry.name.clone(),
            steps: steps.collect::<Result<_>>()?,
        })
    };
    list.iter().map(pipeline).collect()
}

pub(super) fn generation(file: &TaskFile) -> Result<Generation> {
    let mut generation = Generation {
        until: vec![file.fewshot_delimiter.clone()],
        ..Generation::default()
    };
    let Some(options) = &file.generation_kwargs else {
        return Ok(generation);
    };
    let mut samples = None;
    for (key, value) in options {
        let wrong = || {
            Error::task(format!(
                "`generation_kwargs`: `{key}`: {value} makes no sense"
            ))
        };
        let number = || {
            value
                .as_f64()
                .or_else(|| value.as_str()?.parse().ok())
                .ok_or_else(wrong)
        };
        let count = || {
            value
                .as_u64()
                .and_then(|count| usize::try_from(count).ok())
                .ok_or_else(wrong)
        };
        match key.as_str() {
            "until" => {
                generation.until = match value {
                    Value::Null => Vec::new(),
                    Value::String(text) => vec![text.clone()],
                    Value::Array(texts) => texts.iter().map(plain_text).collect(),
                    _ => return Err(wrong()),
                };
            }
            "max_gen_toks" | "max_new_tokens" | "max_tokens" | "max_completion_tokens" => {
                generation.max_tokens = count()?;
            }
            "temperature" => generation.temperature = number()? as f32,
            "top_p" => generation.top_p = number()? as f32,
            "top_k" => generation.top_k = count()?,
            "do_sample" => samples = Some(value.as_bool().ok_or_else(wrong)?),
            other => {
                return Err(Error::task(format!(
                    "`generation_kwargs`: `{other}` is not supported; supported are until, max_gen_toks, temperature, top_p, top_k, do_sample"
                )));
            }
        }
    }
    match samples {
        Some(false) => generation.temperature = 0.0,
        Some(true) if generation.temperature == 0.0 => generation.temperature = 1.0,
        _ => {}
    }
    // An empty text would end every answer at once.
    generation.until.retain(|text| !text.is_empty());
    Ok(generation)
}
