//! `espalier data show`: records, or with a tokenizer the tokens that a model reads and those that it learns.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::ValueEnum;
use espalier_data::{
    encode::{Encoded, Encoder, Example, Labelled},
    nearest::suggestion,
    readers::{self, Form, Source, Wanted, to_json},
    record::{Label, Message, Record},
    tokenizer::Tokenizer,
    worlds::{self, Split},
};
use espalier_models::adapter::{self, Adapter};
use espalier_train::objectives::registry::{OBJECTIVES, Registered};
use serde_json::{Value, json};

use super::world_record;
use crate::cli::Context;
use crate::{
    Error, Result, model_path,
    recipe::{WorldShape, data::MOST_ITEMS},
    stages::{
        data::{Sourced, unpaired},
        model::with_template,
        prompts,
    },
    terminal::harmless,
};

/// Show records of a file or a world; with a tokenizer, what a model learns of them.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:
  espalier data show conversations.jsonl --tokenizer MODEL --count 2
  espalier data show pairs.json --tokenizer MODEL --objective dpo
  espalier data show g1/2 --tokenizer MODEL --template chatml

With a tokenizer, what the loss asks for is green, or between ⟦ and ⟧ where there are no colours.")]
pub struct ShowArgs {
    /// A data file (.jsonl, .json, .txt), or a task of a generated world
    #[arg(value_name = "FILE|WORLD")]
    pub data: String,
    /// A model's folder, whose tokenizer and chat template are used
    #[arg(long, value_name = "MODEL")]
    pub tokenizer: Option<PathBuf>,
    /// Another chat template: `chatml`, or a Jinja file
    #[arg(long, value_name = "NAME|FILE", requires = "tokenizer")]
    pub template: Option<String>,
    /// Longer examples keep their first tokens
    #[arg(long, value_name = "TOKENS", default_value_t = 1024)]
    pub max_length: usize,
    /// How many records
    #[arg(long, value_name = "COUNT", default_value_t = 3)]
    pub count: usize,
    /// The file's form (alpaca, sharegpt, messages, preference, completion, text), or a world's (chat, text, preference, label, steps)
    #[arg(long, value_name = "FORM")]
    pub form: Option<String>,
    /// What this objective of training would learn of the data: `sft` answers, `dpo` and `reward` pairs, `kto` answers with verdicts,
    /// `grpo` prompts, `classify` labels [default: all that a record says, as `sft` reads it]
    #[arg(long, value_name = "NAME")]
    pub objective: Option<String>,
}

impl ShowArgs {
    /// The objective that was named.
    fn objective(&self) -> Result<Option<&'static Registered>> {
        let Some(name) = &self.objective else {
            return Ok(None);
        };
        let known = OBJECTIVES.iter().find(|known| known.name == name);
        known.map(Some).ok_or_else(|| {
            let names: Vec<&str> = OBJECTIVES.iter().map(|known| known.name).collect();
            let hint = suggestion(name, names.iter().copied());
            Error::Usage(format!(
                "`--objective {name}`: there is none of this name{hint}; there are {}",
                names.join(", ")
            ))
        })
    }
}

/// Shows the first records.
///
/// # Errors
/// When the data or the tokenizer cannot be read, or a record cannot be encoded.
pub fn run(args: &ShowArgs, context: &Context) -> Result<()> {
    let objective = args.objective()?;
    let wanted = objective.map_or(Wanted::Texts, |objective| objective.wanted);
    let records = records(args, wanted, context)?;
    let encoder = args
        .tokenizer
        .as_ref()
        .map(|path| encoder(path, args))
        .transpose()?;
    for (index, sourced) in records.iter().enumerate() {
        let record = &sourced.record;
        let Some(encoder) = &encoder else {
            match context.json {
                true => context.terminal.json(&to_json(record))?,
                false => show_structure(index, record, context)?,
            }
            continue;
        };
        for encoded in encoded(sourced, encoder, wanted)? {
            match context.json {
                true => context.terminal.json(&encoded_json(encoder, encoded)?)?,
                false => show_encoded(index, encoder, encoded, context)?,
            }
        }
    }
    Ok(())
}

/// What is learned of a record: of prompts nothing, for their answers are yet to be written.
fn encoded(sourced: &Sourced, encoder: &Encoder, wanted: Wanted) -> Result<Vec<Encoded>> {
    let whole = || sourced.encoded(encoder);
    Ok(match wanted {
        Wanted::Prompts => vec![match prompts::of_record(encoder, sourced)? {
            Some(ids) => Encoded::Example(Example::new(ids.clone(), vec![false; ids.len()])),
            None => Encoded::Dropped {
                reason: "it asks for no answer".into(),
            },
        }],
        Wanted::Verdicts => unpaired(vec![whole()?]),
        Wanted::Texts | Wanted::Pairs | Wanted::Labels => vec![whole()?],
    })
}

fn records(args: &ShowArgs, wanted: Wanted, context: &Context) -> Result<Vec<Sourced>> {
    let path = Path::new(&args.data);
    if path.exists() {
        let form = args
            .form
            .as_deref()
            .map(str::parse::<Form>)
            .transpose()
            .map_err(usage)?;
        let mut reader = readers::open(&Source {
            form,
            wanted,
            ..Source::new(path)
        })?;
        let path: Arc<Path> = path.into();
        let mut records = Vec::new();
        while let Some(record) = reader.next().filter(|_| records.len() < args.count) {
            records.push(Sourced {
                record: record?,
                place: Some((path.clone(), reader.line())),
                origin: Value::Null,
            });
        }
        let unread: Vec<&str> = reader.unread().collect();
        if !unread.is_empty() {
            let columns = unread.join(", ");
            let note = format!("columns that are not read: {columns}");
            context.terminal.note(&harmless(&note));
        }
        return Ok(records);
    }
    if let Err(error) = worlds::world(&args.data) {
        return Err(Error::Usage(format!(
            "`{}`: no such file, and {error}",
            args.data
        )));
    }
    let form = world_form(args.form.as_deref(), wanted)?;
    if args.count > MOST_ITEMS {
        return Err(Error::usage(format!(
            "`--count`: {} items of a world are more than {MOST_ITEMS}",
            args.count
        )));
    }
    (0..args.count as u64)
        .map(|index| {
            let record = world_record(&args.data, Split::Train, index, 0, form)?;
            Ok(Sourced {
                record,
                place: None,
                origin: Value::Null,
            })
        })
        .collect()
}

fn world_form(name: Option<&str>, wanted: Wanted) -> Result<WorldShape> {
    let Some(name) = name else {
        return Ok(match wanted {
            Wanted::Pairs | Wanted::Verdicts => WorldShape::Preference,
            Wanted::Labels => WorldShape::Label,
            Wanted::Texts | Wanted::Prompts => WorldShape::Chat,
        });
    };
    WorldShape::from_str(name, true).map_err(|_| {
        Error::Usage(format!(
            "`--form {name}`: a world's is `chat`, `text`, `answer`, `preference`, `label` or `steps`"
        ))
    })
}

fn usage(error: espalier_data::Error) -> Error {
    Error::Usage(error.to_string())
}

/// The encoder of a model's folder, which may hold a tokenizer and nothing else.
fn encoder(path: &Path, args: &ShowArgs) -> Result<Encoder> {
    let folder = if Tokenizer::file_in(path).is_some() {
        path.to_path_buf()
    } else {
        model_path::resolve_model(path)?
    };
    let base = match folder.join(adapter::CONFIGURATION).is_file() {
        true => adapter::base_folder(&folder, &Adapter::read(&folder)?)?,
        false => folder.clone(),
    };
    let tokenizer = Tokenizer::load(&model_path::tokenizer_folder(&folder, &base))?;
    Ok(Encoder::new(
        with_template(tokenizer, args.template.as_deref())?,
        args.max_length,
    ))
}

fn show_structure(index: usize, record: &Record, context: &Context) -> Result<()> {
    let terminal = &context.terminal;
    let tools = |tools: &Option<Value>| if tools.is_some() { ", with tools" } else { "" };
    let line = |name: &str, text: &str| {
        terminal.line(&format!("{}  {}", terminal.faint(name), harmless(text)))
    };
    let turns = |turns: &[Message]| {
        turns
            .iter()
            .try_for_each(|turn| line(&turn.role, &turn.text()))
    };
    match record {
        Record::Text { text } => {
            heading(index, "text", context)?;
            line("text", text)?;
        }
        Record::Chat {
            messages,
            tools: offered,
        } => {
            heading(index, &format!("conversation{}", tools(offered)), context)?;
            turns(messages)?;
        }
        Record::Preference {
            prompt,
            chosen,
            rejected,
            margin,
            tools: offered,
        } => {
            heading(index, &format!("preference{}", tools(offered)), context)?;
            turns(prompt)?;
            line("chosen", &chosen.text())?;
            line("rejected", &rejected.text())?;
            if let Some(margin) = margin {
                line("margin", &margin.to_string())?;
            }
        }
        Record::Labelled { text, label } => {
            heading(index, "text with a label", context)?;
            line("text", text)?;
            line("label", &said(label))?;
        }
        Record::Tagged { words, labels } => {
            heading(index, "words with labels", context)?;
            let mut all = words.iter().zip(labels);
            all.try_for_each(|(word, label)| line(&said(label), word))?;
        }
        Record::Steps {
            prompt,
            steps,
            labels,
        } => {
            heading(index, "steps with labels", context)?;
            turns(prompt)?;
            let mut all = steps.iter().zip(labels);
            all.try_for_each(|(step, label)| line(&said(label), step))?;
        }
        Record::Unpaired {
            prompt,
            answer,
            desirable,
            tools: offered,
        } => {
            heading(index, &format!("answer{}", tools(offered)), context)?;
            turns(prompt)?;
            line(verdict(*desirable), &answer.text())?;
        }
    }
    terminal.line("")
}

/// A label as a file says it.
fn said(label: &Label) -> String {
    serde_json::to_string(label).unwrap_or_default()
}

/// A verdict in a word.
fn verdict(desirable: bool) -> &'static str {
    match desirable {
        true => "desirable",
        false => "undesirable",
    }
}

fn heading(index: usize, text: &str, context: &Context) -> Result<()> {
    context.terminal.line(
        &context
            .terminal
            .bold(&format!("record {}: {text}", index + 1)),
    )
}

fn show_encoded(
    index: usize,
    encoder: &Encoder,
    encoded: Encoded,
    context: &Context,
) -> Result<()> {
    let terminal = &context.terminal;
    let show = |example: &Example| -> Result<()> {
        terminal.line(&shown(encoder, example, terminal.colour())?)
    };
    let sizes = |example: &Example| {
        format!(
            "{} tokens, {} learned",
            example.ids.len(),
            example.target_count()
        )
    };
    match encoded {
        Encoded::Example(example) => {
            heading(index, &sizes(&example), context)?;
            show(&example)?;
        }
        Encoded::Pair(pair) => {
            heading(index, &format!("chosen, {}", sizes(&pair.chosen)), context)?;
            show(&pair.chosen)?;
            heading(
                index,
                &format!("rejected, {}", sizes(&pair.rejected)),
                context,
            )?;
            show(&pair.rejected)?;
        }
        Encoded::Unpaired { example, desirable } => {
            let title = format!("{}, {}", verdict(desirable), sizes(&example));
            heading(index, &title, context)?;
            show(&example)?;
        }
        Encoded::Labelled(labelled) => {
            let example = unlearned(&labelled);
            let labels = labelled.labels.len();
            let words = format!("{} tokens, {labels} labels", example.ids.len());
            heading(index, &words, context)?;
            show(&example)?;
        }
        Encoded::Dropped { reason } => heading(index, &format!("left out: {reason}"), context)?,
    }
    terminal.line("")
}

/// The tokens of a labelled text, none of which is predicted.
fn unlearned(labelled: &Labelled) -> Example {
    Example::new(labelled.ids.clone(), vec![false; labelled.ids.len()])
}

/// The example's text without control characters other than the colours.
fn shown(encoder: &Encoder, example: &Example, colour: bool) -> Result<String> {
    const COLOURS: [&str; 3] = ["[0m", "[2m", "[32m"];
    let text = encoder.show(example, colour)?;
    let mut kept = String::with_capacity(text.len());
    for (index, piece) in text.split('\x1b').enumerate() {
        if colour && index > 0 && COLOURS.iter().any(|code| piece.starts_with(code)) {
            kept.push('\x1b');
        }
        kept.push_str(&harmless(piece));
    }
    Ok(kept)
}

fn encoded_json(encoder: &Encoder, encoded: Encoded) -> Result<Value> {
    let example = |example: &Example| -> Result<Value> {
        let text = encoder.show(example, false)?;
        let (tokens, learned) = (example.ids.len(), example.target_count());
        Ok(
            json!({"tokens": tokens, "learned": learned, "shown": text, "ids": example.ids, "targets": example.targets}),
        )
    };
    Ok(match encoded {
        Encoded::Example(one) => example(&one)?,
        Encoded::Pair(pair) => {
            json!({"chosen": example(&pair.chosen)?, "rejected": example(&pair.rejected)?})
        }
        Encoded::Labelled(labelled) => {
            let mut shown = example(&unlearned(&labelled))?;
            shown["places"] = json!(labelled.places);
            shown["labels"] = json!(labelled.labels);
            shown
        }
        Encoded::Unpaired {
            example: one,
            desirable,
        } => json!({verdict(desirable): example(&one)?}),
        Encoded::Dropped { reason } => json!({"dropped": reason}),
    })
}
