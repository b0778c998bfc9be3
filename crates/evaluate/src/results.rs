//! From marks to the figures of tasks and groups, with what else a result needs to be understood and compared.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::{
    respondent::Response,
    run::{Answered, prompt_digest},
    statistics::{self, Interval},
    tasks::{Metric, Score, Task, metric::Aggregation},
};

/// One figure of a task or a group.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Figure {
    /// The metric.
    pub metric: String,
    /// The way of reading answers; `none` where there is only one.
    pub filter: String,
    /// The figure.
    pub value: f64,
    /// Its 95% interval.
    pub low: f64,
    /// Its 95% interval.
    pub high: f64,
    /// The standard error, as lm-evaluation-harness has it; absent of a single item.
    pub stderr: Option<f64>,
    /// Whether more is better.
    pub higher_is_better: bool,
    /// Whether it is a share of items, from 0 to 1.
    pub is_share: bool,
}

/// What was found of a task.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TaskResult {
    /// The task.
    pub task: String,
    /// The name for readers.
    pub alias: String,
    /// Its version.
    pub version: String,
    /// Labelled examples before each item.
    pub shots: usize,
    /// Items.
    pub items: usize,
    /// Answers to each item.
    pub repeats: usize,
    /// A digest of all that was asked.
    pub prompts: String,
    /// A digest of the task's definition.
    pub definition: String,
    /// The figures.
    pub figures: Vec<Figure>,
}

/// What was found of a group: means over its tasks.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GroupResult {
    /// The group.
    pub group: String,
    /// Its tasks.
    pub tasks: Vec<String>,
    /// The figures.
    pub figures: Vec<Figure>,
}

/// The figures of a task.
pub fn task_result(task: &Task, answered: &[Answered<'_>]) -> TaskResult {
    let readings = answered.first().map_or(0, |answered| answered.marks.len());
    let mut figures = Vec::new();
    for reading in 0..readings {
        let generated = matches!(
            answered.first(),
            Some(Answered {
                response: Response::Texts(_),
                ..
            })
        );
        let filter = task.filters.get(reading).filter(|_| generated);
        let filter = filter.map_or("none", |filter| filter.name.as_str());
        for (number, metric) in task.metrics.iter().enumerate() {
            let marks = answered
                .iter()
                .filter_map(|answered| answered.marks[reading][number]);
            figures.extend(figure(metric, filter, &marks.collect::<Vec<_>>()));
        }
    }
    TaskResult {
        task: task.name.clone(),
        alias: task.alias.clone(),
        version: task.version.clone(),
        shots: task.shots,
        items: task.items.len(),
        repeats: task.repeats,
        prompts: prompt_digest(task),
        definition: task.definition.clone(),
        figures,
    }
}

fn figure(metric: &Metric, filter: &str, marks: &[Score]) -> Option<Figure> {
    let value = metric.aggregate(marks)?;
    let values: Vec<f64> = marks.iter().map(|mark| mark.value).collect();
    let verdicts = metric.is_verdict();
    let Interval { low, high, error } = match metric.aggregation {
        Aggregation::Mean => statistics::mean_interval(&values, verdicts),
        _ => statistics::bootstrap(marks.len(), |chosen| {
            let drawn: Vec<Score> = chosen.iter().map(|place| marks[*place]).collect();
            metric.aggregate(&drawn).unwrap_or(f64::NAN)
        }),
    };
    Some(Figure {
        metric: metric.name.clone(),
        filter: filter.to_owned(),
        value,
        low,
        high,
        stderr: error,
        higher_is_better: metric.higher_is_better,
        is_share: verdicts && metric.aggregation == Aggregation::Mean,
    })
}

/// The figures of all groups of some tasks, in the order of their first tasks, outer ones first.
pub fn group_results(tasks: &[(&Task, &TaskResult)]) -> Vec<GroupResult> {
    let mut names: Vec<&crate::tasks::Group> = Vec::new();
    for group in tasks.iter().flat_map(|(task, _)| &task.groups) {
        if !names.iter().any(|known| known.name == group.name) {
            names.push(group);
        }
    }
    let result = |group: &crate::tasks::Group| {
        let own = |task: &Task| task.groups.iter().any(|known| known.name == group.name);
        let members: Vec<&TaskResult> = tasks
            .iter()
            .filter(|(task, _)| own(task))
            .map(|(_, result)| *result)
            .collect();
        GroupResult {
            group: group.name.clone(),
            tasks: members.iter().map(|member| member.task.clone()).collect(),
            figures: means(&members, group),
        }
    };
    names.into_iter().map(result).collect()
}

/// Means of the group's metrics over its tasks; the standard error is pooled over all items, or over tasks that count alike.
fn means(members: &[&TaskResult], group: &crate::tasks::Group) -> Vec<Figure> {
    let mut figures = Vec::new();
    let Some(first) = members.first() else {
        return figures;
    };
    for figure in first
        .figures
        .iter()
        .filter(|figure| group.metrics.contains(&figure.metric))
    {
        let same = |other: &&Figure| other.metric == figure.metric && other.filter == figure.filter;
        let found: Option<Vec<(f64, f64, f64)>> = members
            .iter()
            .map(|member| {
                let own = member.figures.iter().find(same)?;
                Some((own.value, own.stderr.unwrap_or(0.0), member.items as f64))
            })
            .collect();
        let Some(found) = found else { continue };
        let weight = |items: f64| if group.by_size { items } else { 1.0 };
        let total: f64 = found.iter().map(|(_, _, items)| weight(*items)).sum();
        let value = found
            .iter()
            .map(|(value, _, items)| value * weight(*items))
            .sum::<f64>()
            / total;
        let error = found
            .iter()
            .map(|(_, error, items)| (error * weight(*items) / total).powi(2))
            .sum::<f64>()
            .sqrt();
        let half = statistics::Z * error;
        let bound = |bound: f64| {
            if figure.is_share {
                bound.clamp(0.0, 1.0)
            } else {
                bound
            }
        };
        figures.push(Figure {
            value,
            low: bound(value - half),
            high: bound(value + half),
            stderr: Some(error),
            ..figure.clone()
        });
    }
    figures
}

/// The samples of a task, one object an item: the record, what was asked, what was answered and read, and the marks.
pub fn samples(task: &Task, answered: &[Answered<'_>]) -> Vec<Value> {
    let sample = |answered: &Answered<'_>| {
        let item = answered.item;
        let mut marks = serde_json::Map::new();
        for (reading, row) in answered.marks.iter().enumerate() {
            let filter = task
                .filters
                .get(reading)
                .filter(|_| !answered.filtered[reading].is_empty());
            let filter = filter.map_or("none", |filter| filter.name.as_str());
            for (metric, mark) in task.metrics.iter().zip(row) {
                if let Some(mark) = mark {
                    let value = if mark.weight == 1.0 {
                        json!(mark.value)
                    } else {
                        json!([mark.value, mark.weight])
                    };
                    marks.insert(format!("{},{filter}", metric.name), value);
                }
            }
        }
        json!({
            "doc_id": item.number,
            "doc": item.doc,
            "prompt": item.request.prompt(),
            "target": item.request.gold(),
            "arguments": crate::run::asked(&item.request),
            "response": answered.response,
            "filtered": answered.filtered,
            "marks": marks,
        })
    };
    answered.iter().map(sample).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_are_the_harness() {
        let marks: Vec<Score> = [1.0, 1.0, 0.0, 1.0].into_iter().map(Score::of).collect();
        let figure = figure(&Metric::named("acc").unwrap(), "none", &marks).unwrap();
        assert_eq!((figure.value, figure.stderr), (0.75, Some(0.25)));
        assert!(figure.low > 0.3 && figure.high < 0.96);
    }

    #[test]
    fn groups_are_means_of_their_tasks() {
        let task = |items: usize, value: f64| TaskResult {
            task: "t".into(),
            alias: "t".into(),
            version: String::new(),
            shots: 0,
            items,
            repeats: 1,
            prompts: String::new(),
            definition: String::new(),
            figures: vec![Figure {
                metric: "acc".into(),
                filter: "none".into(),
                value,
                low: 0.0,
                high: 1.0,
                stderr: Some(0.1),
                higher_is_better: true,
                is_share: true,
            }],
        };
        let members = [task(30, 0.5), task(10, 0.9)];
        let members: Vec<&TaskResult> = members.iter().collect();
        let mut group = crate::tasks::Group {
            name: "g".into(),
            by_size: true,
            metrics: vec!["acc".into()],
        };
        assert!((means(&members, &group)[0].value - 0.6).abs() < 1e-12);
        group.by_size = false;
        assert!((means(&members, &group)[0].value - 0.7).abs() < 1e-12);
    }
}
