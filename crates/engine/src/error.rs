//! What can go wrong while generating.

/// The crate's result.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An error with the context that the caller has not got.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The model refused its input.
    #[error(transparent)]
    Model(#[from] espalier_models::Error),
    /// The tokenizer or the template.
    #[error(transparent)]
    Data(#[from] espalier_data::Error),
    /// A sampling option makes no sense, or the logits are not numbers.
    #[error("{0}")]
    Sampling(String),
    /// A model without a head over its vocabulary was asked to generate.
    #[error(
        "this model has no head over a vocabulary (`architectures` in config.json) and does not generate"
    )]
    Headless,
    /// A bidirectional model was asked to generate.
    #[error(
        "this model sees its whole text at once (`bidirectional` in config.json) and does not generate"
    )]
    Bidirectional,
    /// A folder of sentence-transformers says something that is not understood.
    #[error("{0}")]
    SentenceTransformer(String),
    /// A bidirectional model was asked for the likelihood of a text.
    #[error(
        "this model sees the tokens that it would predict, so a text has no likelihood under it, and no perplexity; measure its \
         embeddings, or its loss on held-out data while it is trained"
    )]
    NoLikelihood,
    /// A model that gives no text one score was asked for rewards.
    #[error(
        "this model is no reward model: it does not give a text one score (`...ForSequenceClassification` with one label)"
    )]
    NoReward,
    /// A prompt beyond the positions that the model has learned.
    #[error(
        "prompt {number} has {tokens} tokens, but the model has learned {limit} positions; shorten it"
    )]
    PromptTooLong {
        /// The prompt's number, from 1.
        number: usize,
        /// Its tokens, with those of what was read before.
        tokens: usize,
        /// The positions.
        limit: usize,
    },
    /// An encoder-decoder among models that continue texts.
    #[error(
        "this model is an encoder-decoder, and requests of those cannot be computed as they come; use `espalier generate`"
    )]
    EncoderDecoder,
    /// A prompt and an answer that are longer than texts may be.
    #[error(
        "the prompt has {prompt} tokens and the answer may have {new}, but the context is {limit} tokens; shorten the prompt or the answer"
    )]
    BeyondContext {
        /// Tokens of the prompt.
        prompt: usize,
        /// Most tokens of the answer.
        new: usize,
        /// Most tokens of both.
        limit: usize,
    },
    /// A text that the memory for keys and values cannot hold.
    #[error(
        "a text of {tokens} tokens takes {needed} bytes of keys and values, but the budget is {budget}; shorten it, or raise the budget"
    )]
    BeyondMemory {
        /// Its tokens.
        tokens: usize,
        /// Bytes that it takes.
        needed: u64,
        /// Bytes that there are.
        budget: u64,
    },
    /// What ended all requests of a batch.
    #[error("{0}")]
    Together(String),
    /// A prompt without tokens.
    #[error("the prompt is empty; give at least one token")]
    EmptyPrompt,
    /// A text to be embedded without tokens.
    #[error("text {number} is empty; give at least one token")]
    EmptyText {
        /// The text's number, from 1.
        number: usize,
    },
}
