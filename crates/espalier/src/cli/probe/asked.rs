//! A model that is asked one prompt after another, greedily.

use std::path::Path;

use espalier_data::{
    disk::{self, PartialFile},
    record::Message,
    template::Conversation,
};
use espalier_engine::{
    sampler::SamplerOptions,
    text::{TextModel, TextOptions},
};
use serde_json::{Map, Value};

use super::{Asking, Context};
use crate::{Error, Result, model_path::open_text_model, stages::model::beyond_context};

/// Stands where a task will be while the chat template is rendered.
const PLACE: &str = "\u{e000}task\u{e000}";

/// A model, and the text that its chat template puts around a task.
pub struct Asked {
    /// The model.
    pub text: TextModel,
    /// What stands before and after a task.
    pub template: [String; 2],
    chat: bool,
    batch: usize,
}

impl Asked {
    /// Loads the model.
    ///
    /// # Errors
    /// When it cannot be loaded, or has no chat template and is to be asked through one.
    pub fn open(asking: &Asking, context: &Context) -> Result<Self> {
        if asking.batch == 0 {
            return Err(Error::usage("`--batch` must be at least 1"));
        }
        let opened = open_text_model(&asking.model, &context.device)?;
        context.terminal.notes(&opened.remarks);
        let template = match asking.chat {
            true => around(&opened.text)?,
            false => Default::default(),
        };
        Ok(Self {
            text: opened.text,
            template,
            chat: asking.chat,
            batch: asking.batch,
        })
    }

    /// Tokens of a text, without special ones around it.
    ///
    /// # Errors
    /// When the text cannot be encoded.
    pub fn count(&self, text: &str) -> espalier_evaluate::Result<usize> {
        Ok(self.text.tokenizer.encode_ids(text, false)?.len())
    }

    /// Says where prompts are longer than what the model was made for.
    pub fn warn(&self, longest: usize, context: &Context) {
        if let Some(remark) = beyond_context(self.text.model.spec(), longest) {
            context.terminal.note(&remark);
        }
    }

    /// The likeliest answers, of so many tokens at most.
    ///
    /// # Errors
    /// When a prompt does not fit the model, or the user stopped the work.
    pub fn answers(
        &self,
        label: &str,
        prompts: &[String],
        most: usize,
        context: &Context,
    ) -> Result<Vec<String>> {
        let options = TextOptions {
            max_new_tokens: most,
            sampler: SamplerOptions {
                temperature: 0.0,
                ..SamplerOptions::default()
            },
            stops: Vec::new(),
        };
        let progress = context.terminal.progress(prompts.len() as u64, label);
        let mut answers = Vec::with_capacity(prompts.len());
        for chunk in prompts.chunks(self.batch) {
            // A chat template writes its special tokens itself.
            let encode = |prompt: &String| self.text.tokenizer.encode_ids(prompt, !self.chat);
            let ids = chunk.iter().map(encode).collect::<Result<Vec<_>, _>>()?;
            let generated = self.text.generate_batch(&ids, &options)?;
            answers.extend(generated.into_iter().map(|answer| answer.text));
            progress.set(answers.len() as u64, "");
        }
        progress.finish("done");
        Ok(answers)
    }
}

/// What the chat template puts before and after a user's words.
fn around(model: &TextModel) -> Result<[String; 2]> {
    let template = model.tokenizer.template().ok_or_else(|| {
        Error::usage("`--chat`: the tokenizer has no chat template; leave the option out")
    })?;
    let rendered = template.render(&Conversation {
        messages: &[Message::user(PLACE)],
        tools: None,
        add_generation_prompt: true,
        continue_final_message: false,
        special: model.tokenizer.special(),
        variables: Map::new(),
    })?;
    let parts = rendered.text.split_once(PLACE);
    let (before, after) = parts.ok_or_else(|| {
        Error::work(
            "the chat template changes what the user says, so that no task can be put in its place",
        )
    })?;
    Ok([before.to_owned(), after.to_owned()])
}

/// Writes lines of JSON to a file of the folder, where there is one.
///
/// # Errors
/// When the folder or the file cannot be written.
pub fn save(folder: Option<&Path>, name: &str, lines: impl Iterator<Item = Value>) -> Result<()> {
    let Some(folder) = folder else {
        return Ok(());
    };
    let path = folder.join(name);
    let parent = path.parent().unwrap_or(folder);
    disk::create_folder(parent).map_err(Error::file(parent))?;
    let mut file = PartialFile::create(&path).map_err(Error::file(&path))?;
    for line in lines {
        file.write(format!("{line}\n").as_bytes())
            .map_err(Error::file(&path))?;
    }
    file.rename().map_err(Error::file(&path))
}
