//! Who answers a task's requests: a model in this process, or any endpoint that speaks OpenAI's interface.

use espalier_data::{record::Message, template::Conversation};
use espalier_engine::{
    sampler::SamplerOptions,
    text::{TextModel, TextOptions},
};

use crate::{
    Error, Result,
    likelihood::{Bounds, Question, likelihoods, windows},
    tasks::{Generation, Item, Prompt, Request, metric::Likelihood},
};

/// What was answered to an item.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Response {
    /// How likely each text is.
    Likelihoods(Vec<Likelihood>),
    /// What was written.
    Texts(Vec<String>),
}

/// Takes an item's place among those that were asked, and the response.
pub type Sink<'a> = &'a mut dyn FnMut(usize, Response) -> Result<()>;

/// Who answers.
pub trait Respondent {
    /// Answers items of one task; `sink` gets each response as soon as it is there.
    ///
    /// # Errors
    /// When an item cannot be answered.
    fn answer(
        &mut self,
        items: &[&Item],
        generation: &Generation,
        repeats: usize,
        sink: Sink<'_>,
    ) -> Result<()>;
}

/// A model in this process.
#[derive(Debug)]
pub struct LocalModel<'a> {
    /// The model and its tokenizer.
    pub text: &'a TextModel,
    /// Most tokens that it reads at once.
    pub longest: usize,
    /// Answers that are written at once.
    pub batch: usize,
    /// Seed of sampled answers.
    pub seed: u64,
}

/// Tokens of a batch whose likelihood is computed, for each answer that is written at once.
const TOKENS_OF_ROW: usize = 128;

impl LocalModel<'_> {
    /// A conversation as its template renders it; with `continues` the last message stays open.
    ///
    /// # Errors
    /// When the tokenizer has no template, or the template refuses the conversation.
    pub fn chat(text: &TextModel, messages: &[Message], continues: bool) -> Result<String> {
        let template = text.tokenizer.template().ok_or_else(|| {
            Error::task("the tokenizer has no chat template; leave `--chat` out, or give a model that was tuned on conversations")
        })?;
        let rendered = template.render(&Conversation {
            messages,
            tools: None,
            add_generation_prompt: !continues,
            continue_final_message: continues,
            special: text.tokenizer.special(),
            variables: serde_json::Map::new(),
        })?;
        Ok(rendered.text)
    }

    /// The token before the first of a text, and its text: that of the beginning, or of the end where there is none.
    fn start(&self) -> Result<(u32, &str)> {
        let special = self.text.tokenizer.special();
        let text = special.bos.as_deref().or(special.eos.as_deref());
        let found = text.and_then(|text| Some((self.text.tokenizer.id(text)?, text)));
        found.ok_or_else(|| {
            Error::task("the tokenizer names neither a token of the beginning nor of the end (`bos_token`, `eos_token` in tokenizer_config.json), and texts are scored behind one")
        })
    }

    /// Tokens of a text, with the tokenizer's own marks unless the text brings the first.
    fn encode(&self, text: &str) -> Result<Vec<u32>> {
        let special = self.text.tokenizer.special();
        let start = special.bos.as_deref().or(special.eos.as_deref());
        let marked = start.is_some_and(|start| !start.is_empty() && text.starts_with(start));
        Ok(self.text.tokenizer.encode_ids(text, !marked)?)
    }

    /// Context and continuation in tokens. White space at the end of the context belongs to the continuation, and tokens that reach over the
    /// border too.
    fn pair(&self, context: &str, continuation: &str) -> Result<(Vec<u32>, Vec<u32>)> {
        let (start, _) = self.start()?;
        if context.is_empty() {
            let mut tokens = self.text.tokenizer.encode_ids(continuation, false)?;
            if tokens.first() == Some(&start) && tokens.len() > 1 {
                tokens.remove(0);
            }
            return Ok((vec![start], tokens));
        }
        let kept = context.trim_end();
        let whole = self.encode(&format!("{context}{continuation}"))?;
        let before = self.encode(kept)?;
        let border = before.len().min(whole.len());
        match before.is_empty() {
            true => Ok((vec![start], whole)),
            false => Ok((before, whole[border..].to_vec())),
        }
    }

    fn questions(&self, request: &Request) -> Result<Vec<Question>> {
        let pairs = match request {
            Request::Likelihood { prompt, target } => vec![self.pair(&prompt.text, target)?],
            Request::Rolling { text, .. } => {
                windows(&self.encode(text)?, self.start()?.0, self.longest)
            }
            Request::Choice {
                continuations,
                alone,
                ..
            } => {
                let behind = continuations
                    .iter()
                    .enumerate()
                    .map(|(choice, text)| self.pair(&request.context(choice), text));
                let mut all = behind.collect::<Result<Vec<_>>>()?;
                if *alone {
                    for text in continuations {
                        all.push(self.pair("", text)?);
                    }
                }
                all
            }
            Request::Generate { .. } => Vec::new(),
        };
        let mut questions: Vec<Question> = Vec::new();
        for (context, continuation) in pairs {
            match questions.last_mut().filter(|last| last.context == context) {
                Some(last) => last.continuations.push(continuation),
                None => questions.push(Question {
                    context,
                    continuations: vec![continuation],
                }),
            }
        }
        Ok(questions)
    }

    fn score(&self, items: &[&Item], sink: Sink<'_>) -> Result<()> {
        let (mut questions, mut owners) = (Vec::new(), Vec::new());
        let mut missing = Vec::new();
        for (place, item) in items.iter().enumerate() {
            let own = self.questions(&item.request)?;
            missing.push(own.len());
            owners.extend((0..own.len()).map(|part| (place, part)));
            questions.extend(own);
        }
        let mut parts: Vec<Vec<Vec<Likelihood>>> = missing
            .iter()
            .map(|count| vec![Vec::new(); *count])
            .collect();
        for (place, _) in missing.iter().enumerate().filter(|(_, count)| **count == 0) {
            // A text without tokens has nothing unlikely in it.
            sink(place, combined(&items[place].request, &[]))?;
        }
        let bounds = Bounds {
            longest: self.longest,
            batch: self.batch.max(1) * TOKENS_OF_ROW,
        };
        likelihoods(
            &self.text.model,
            &questions,
            bounds,
            &mut |question, found| {
                let (place, part) = owners[question];
                parts[place][part] = found;
                missing[place] -= 1;
                match missing[place] {
                    0 => sink(
                        place,
                        combined(&items[place].request, &parts[place].concat()),
                    ),
                    _ => Ok(()),
                }
            },
        )
    }

    /// The tokens of a prompt that is answered.
    fn write(&self, prompt: &Prompt, generation: &Generation) -> Result<Vec<u32>> {
        if prompt.marked {
            return Ok(self.text.tokenizer.encode_ids(&prompt.text, false)?);
        }
        if !generation.cuts_prompt {
            return self.encode(&prompt.text);
        }
        let room = self.longest.saturating_sub(generation.max_tokens);
        if room == 0 {
            return Err(Error::task(format!(
                "answers may have {} tokens, and the model reads {} at once; give `max_gen_toks` in `generation_kwargs`, or `--max-length`",
                generation.max_tokens, self.longest
            )));
        }
        let mut tokens = self.encode(&prompt.text)?;
        Ok(tokens.split_off(tokens.len().saturating_sub(room)))
    }

    fn generate(
        &self,
        items: &[(usize, &Item, &Prompt)],
        generation: &Generation,
        repeats: usize,
        sink: Sink<'_>,
    ) -> Result<()> {
        for chunk in items.chunks(self.batch.max(1)) {
            let prompts = chunk
                .iter()
                .map(|(_, _, prompt)| self.write(prompt, generation))
                .collect::<Result<Vec<_>>>()?;
            let mut texts = vec![Vec::new(); chunk.len()];
            for repeat in 0..repeats {
                let options = TextOptions {
                    max_new_tokens: generation.max_tokens,
                    sampler: SamplerOptions {
                        temperature: generation.temperature,
                        top_p: generation.top_p,
                        top_k: generation.top_k,
                        seed: self.seed_of(chunk[0].1.number, repeat),
                        ..SamplerOptions::default()
                    },
                    stops: generation.until.clone(),
                };
                let written = self.text.generate_batch(&prompts, &options)?;
                for (texts, written) in texts.iter_mut().zip(written) {
                    texts.push(written.text);
                }
            }
            for ((place, _, _), texts) in chunk.iter().zip(texts) {
                sink(*place, Response::Texts(texts))?;
            }
        }
        Ok(())
    }

    /// Each item draws from a stream of its own, and each repetition.
    fn seed_of(&self, number: usize, repeat: usize) -> u64 {
        let repeated = (repeat as u64) << 32;
        self.seed.wrapping_add(number as u64).wrapping_add(repeated)
    }
}

/// Likelihoods as a request asks for them: those of a whole text's windows are one.
fn combined(request: &Request, parts: &[Likelihood]) -> Response {
    Response::Likelihoods(match request {
        Request::Rolling { .. } => vec![Likelihood {
            log_probability: parts.iter().map(|part| part.log_probability).sum(),
            first_choice: parts.iter().all(|part| part.first_choice),
        }],
        _ => parts.to_vec(),
    })
}

impl Respondent for LocalModel<'_> {
    fn answer(
        &mut self,
        items: &[&Item],
        generation: &Generation,
        repeats: usize,
        sink: Sink<'_>,
    ) -> Result<()> {
        let (mut written, mut scored) = (Vec::new(), Vec::new());
        for (place, item) in items.iter().enumerate() {
            match &item.request {
                Request::Generate { prompt, .. } => written.push((place, *item, prompt)),
                _ => scored.push((place, *item)),
            }
        }
        let likelihoods: Vec<&Item> = scored.iter().map(|(_, item)| *item).collect();
        self.score(&likelihoods, &mut |place, response| {
            sink(scored[place].0, response)
        })?;
        self.generate(&written, generation, repeats, sink)
    }
}
