//! What an adapter of low rank does to the embedding and the head besides: LoRA on the embedding (`lora_embedding_A` and `_B`), and rows of
//! some tokens that are trained (`trainable_tokens_delta`).
//!
//! Where the head is the embedding, trained rows are both's, as in PEFT, unless head and embedding have lists of their own. LoRA on one of the
//! two parts them, unless `ensure_weight_tying` says otherwise: then both have one adapter, which PEFT's files hold twice. A head's bias
//! stays, which PEFT leaves out where rows of the head are trained.

use burn::tensor::{Tensor, TensorData};
use espalier_data::random::{Random, fnv};

use super::targets::names_of;
use crate::{
    Error, Result,
    adapter::{
        AdapterFile, Fresh, PEFT_PREFIX, each_linear, linear_parts, no_module,
        saved_modules::{is_module_saved, set_values},
        table::{LowRankTable, TableAdapter, TokenRows},
    },
    checkpoint::{
        PeftConfig,
        peft_config::{TrainedTokens, is_named},
    },
    families::Family,
    layout::{Module, StoredTensor},
    model::LanguageModel,
    parameter::Parameter,
    tied_head::{EMBEDDING, HEAD, tensor_in_memory, tensor_of},
};

/// The name of the embedding that PEFT keeps tied to the head, if it is asked to.
const TIED_BY_PEFT: &str = "embed_tokens";

/// The names of embedding and head: those of transformers, and those of the family's files.
pub(super) struct Vocabulary {
    pub embedding: [String; 2],
    /// None of a model without a head over its vocabulary.
    pub head: Option<[String; 2]>,
    is_tied: bool,
}

/// Where rows of tokens are trained.
#[derive(Debug, Default)]
struct Rows {
    embedding: Option<Vec<u32>>,
    head: Option<Vec<u32>>,
}

impl Rows {
    /// The same where embedding and head are one: then both have the embedding's.
    fn settled(self, is_tied: bool) -> Result<Self> {
        match is_tied && self.head.is_some() {
            false => Ok(self),
            true if self.head == self.embedding => Ok(Self { head: None, ..self }),
            true => Err(Error::Invalid("`trainable_token_indices`: embedding and head are to stay one (`ensure_weight_tying`), and their lists differ; give both the same, or name the embedding alone".into())),
        }
    }
}

impl Vocabulary {
    pub fn of(model: &LanguageModel, family: &Family) -> Option<Self> {
        let spec = model.spec();
        let module = |tensor: Option<String>| tensor?.strip_suffix(".weight").map(str::to_owned);
        let names = |ours: &str| {
            let memory = module(tensor_in_memory(ours, family, spec))?;
            let file = module(tensor_of(ours, family, spec)).unwrap_or_else(|| memory.clone());
            Some([memory, file])
        };
        Some(Self {
            embedding: names(EMBEDDING)?,
            head: names(HEAD).filter(|_| !spec.headless),
            is_tied: spec.tied_head && !spec.headless,
        })
    }

    /// The embedding as a module that an adapter may have.
    pub fn module(&self) -> Module {
        let [name, in_file] = &self.embedding;
        Module {
            name: name.clone(),
            other_names: Some(in_file.clone())
                .filter(|other| other != name)
                .into_iter()
                .collect(),
            maps: vec!["embedding".into()],
            groups: 1,
            expert: None,
            by_parameter: false,
            left_out: None,
        }
    }
}

/// What `trainable_token_indices` mean.
#[derive(Default)]
struct Meant<'a> {
    embedding: Option<&'a Vec<u32>>,
    head: Option<&'a Vec<u32>>,
    /// A key that means neither.
    nothing: Option<&'a str>,
    /// A key that means what another one does, with another list.
    twice: Option<&'a str>,
}

impl TrainedTokens {
    /// Of which of the two modules, each by its names, rows are trained: a key is the end of a name.
    fn meant<'a>(&'a self, embedding: &[&str], head: &[&str]) -> Meant<'a> {
        let mut meant = Meant::default();
        let modules = match self {
            Self::OfEmbedding(ids) => {
                meant.embedding = Some(ids);
                return meant;
            }
            Self::ByModule(modules) => modules,
        };
        for (key, ids) in modules {
            let means = |names: &[&str]| names.iter().any(|name| name.ends_with(key));
            let place = match (means(embedding), means(head)) {
                (true, _) => &mut meant.embedding,
                (false, true) => &mut meant.head,
                (false, false) => {
                    meant.nothing = Some(key);
                    continue;
                }
            };
            if place.replace(ids).is_some_and(|other| other != ids) {
                meant.twice = Some(key);
            }
        }
        meant
    }
}

impl PeftConfig {
    /// Whether the targets mean one of these names.
    pub(super) fn names_any(&self, names: &[String]) -> bool {
        names.iter().any(|name| self.names(name))
    }

    /// Whether the targets mean the embedding, or a head that stays it.
    pub(super) fn targets_embedding(&self, vocabulary: &Vocabulary) -> bool {
        let by_head = vocabulary.is_tied
            && vocabulary
                .head
                .as_ref()
                .is_some_and(|head| self.names_any(head));
        self.names_any(&vocabulary.embedding) || by_head
    }

    /// Whether an entry of the targets means the embedding, or a head that stays it.
    pub(super) fn is_entry_of_embedding(entry: &str, vocabulary: Option<&Vocabulary>) -> bool {
        let Some(vocabulary) = vocabulary else {
            return false;
        };
        let head = vocabulary.head.as_ref().filter(|_| vocabulary.is_tied);
        let mut names = vocabulary
            .embedding
            .iter()
            .chain(head.into_iter().flatten());
        names.any(|name| is_named(name, entry))
    }

    /// Whether rows of a head that is the embedding are trained apart from the embedding's.
    pub(super) fn rows_part(&self, embedding: &[&str], head: &[&str]) -> bool {
        self.tokens.as_ref().is_some_and(|tokens| {
            let meant = tokens.meant(embedding, head);
            meant.head.is_some() && meant.head != meant.embedding
        })
    }

    /// Where rows are trained.
    fn trained_rows(&self, model: &LanguageModel, family: &Family) -> Result<Rows> {
        let Some((tokens, vocabulary)) = self.tokens.as_ref().zip(Vocabulary::of(model, family))
        else {
            return Ok(Rows::default());
        };
        let embedding = vocabulary.embedding.each_ref().map(String::as_str);
        let head = vocabulary.head.iter().flatten();
        let head: Vec<&str> = head.map(String::as_str).collect();
        let meant = tokens.meant(&embedding, &head);
        if let Some(key) = meant.nothing {
            return Err(no_module("trainable_token_indices", key, model, family));
        }
        if let Some(key) = meant.twice {
            return Err(Error::Invalid(format!(
                "`trainable_token_indices`: `{key}` and another key mean one module, with other lists; keep one of them"
            )));
        }
        Ok(Rows {
            embedding: meant.embedding.cloned(),
            head: meant.head.cloned(),
        })
    }

    /// How many rows embedding and head need. Those that the base lacks must all be trained ones.
    pub(super) fn vocabulary_needed(
        &self,
        model: &LanguageModel,
        family: &Family,
    ) -> Result<usize> {
        let spec = model.spec();
        let rows = self.trained_rows(model, family)?;
        let all = rows.embedding.iter().chain(&rows.head).flatten();
        let needed = all.max().map_or(0, |id| *id as usize + 1);
        let known = spec.vocabulary;
        if needed <= known {
            return Ok(known);
        }
        let has_all = |ids: &Option<Vec<u32>>| {
            let mut new = known as u32..needed as u32;
            ids.as_ref()
                .is_some_and(|ids| new.all(|id| ids.contains(&id)))
        };
        let shares = spec.tied_head && rows.head.is_none();
        let head_is_whole = shares || spec.headless || has_all(&rows.head);
        if !(has_all(&rows.embedding) && head_is_whole) || spec.head_bias {
            let bias = if spec.head_bias {
                ", whose bias no adapter holds"
            } else {
                ""
            };
            return Err(Error::Invalid(format!(
                "`trainable_token_indices` names row {} of a base that has {known}, and the adapter does not hold all rows from {known} on of embedding and head{bias}; give a base that has them",
                needed - 1
            )));
        }
        Ok(needed)
    }

    /// Refuses what embedding and head cannot have.
    fn check_vocabulary(
        &self,
        vocabulary: &Vocabulary,
        rows: &Rows,
        family: &Family,
    ) -> Result<()> {
        let is_targeted = self.targets_embedding(vocabulary);
        let [name, _] = &vocabulary.embedding;
        let refused = |reason: String| Err(Error::Invalid(reason));
        if !is_targeted && rows.embedding.is_none() && rows.head.is_none() {
            return Ok(());
        }
        if family.modules.unread.is_some() {
            return refused(format!(
                "`{name}` is a table for each of the model's two sides in transformers, and one for both here; leave it out of `target_modules` and `trainable_token_indices`"
            ));
        }
        if is_targeted && self.use_dora {
            return refused(format!(
                "DoRA is not supported for the embedding `{name}`; leave it out of `target_modules`, or train rows of it (`trainable_token_indices`)"
            ));
        }
        if is_targeted && self.lora_bias {
            return refused(format!(
                "the embedding `{name}` has no `lora_bias` in PEFT; leave one of them out"
            ));
        }
        let stays_tied = vocabulary.is_tied && is_targeted;
        if stays_tied && name.rsplit('.').next() != Some(TIED_BY_PEFT) {
            return refused(format!(
                "`ensure_weight_tying`: PEFT keeps an adapter of head and embedding one only where the embedding is called `{TIED_BY_PEFT}`, and this model's is `{name}`; leave it out"
            ));
        }
        let both = is_module_saved(name, &self.modules_to_save) || is_targeted;
        if rows.embedding.is_some() && both {
            return refused(format!(
                "rows of `{name}` are trained (`trainable_token_indices`), and all of it is adapted or trained besides; leave it out of one of them"
            ));
        }
        if let (Some(_), Some(head)) = (&rows.head, &vocabulary.head)
            && (is_module_saved(&head[0], &self.modules_to_save) || self.names_any(head))
        {
            return refused(format!(
                "rows of `{}` are trained (`trainable_token_indices`), and all of it is adapted or trained besides; leave it out of one of them",
                head[0]
            ));
        }
        Ok(())
    }

    /// Puts the parts at embedding and head on the model.
    pub(super) fn attach_vocabulary(
        &self,
        model: &mut LanguageModel,
        family: &Family,
        fresh: Fresh<'_>,
    ) -> Result<()> {
        let rows = self.trained_rows(model, family)?;
        let Some(vocabulary) = Vocabulary::of(model, family) else {
            return Ok(());
        };
        let rows = rows.settled(vocabulary.is_tied)?;
        self.check_vocabulary(&vocabulary, &rows, family)?;
        let known = model.spec().vocabulary;
        let mut all = rows.embedding.iter().chain(&rows.head).flatten();
        if let Some(id) = all.find(|id| **id as usize >= known) {
            return Err(Error::Invalid(format!(
                "`trainable_token_indices`: the model has no row {id}, only {known}"
            )));
        }
        let adapter = fresh.adapter;
        let weight = &model.embedding().weight;
        let part = match rows.embedding {
            Some(ids) => {
                let own = token_rows("embedding", weight, ids, adapter);
                Some(TableAdapter::Rows(Box::new(own)))
            }
            None if self.targets_embedding(&vocabulary) => {
                let names = names_of(&vocabulary.module());
                let names: Vec<&str> = names.iter().map(String::as_str).collect();
                let (rank, scale) = (self.rank_of(&names), self.scale_of(&names));
                let own = low_rank(weight, rank, scale, fresh);
                Some(TableAdapter::LowRank(Box::new(own)))
            }
            None => None,
        };
        if let Some(part) = part {
            model.embedding_mut().adapters.attach(adapter, part);
        }
        let Some(ids) = rows.head else {
            return Ok(());
        };
        each_linear(model, &mut |map| match map.name == "head" {
            false => Ok(()),
            true => {
                let own = token_rows("head", map.weight(), ids.clone(), adapter);
                map.attach(adapter, Box::new(own))
            }
        })
    }
}

/// Rows of a weight for training, with the base's values.
fn token_rows(place: &str, weight: &Parameter, ids: Vec<u32>, adapter: &str) -> TokenRows {
    let own = ids
        .iter()
        .map(|id| weight.rows(*id as usize..*id as usize + 1));
    let rows = Tensor::cat(own.collect(), 0);
    let [count, width] = rows.dims();
    let name = format!("{place}.adapter.{adapter}.rows");
    let rows = Parameter::new(name, vec![count, width], rows.reshape([count * width]));
    TokenRows {
        ids,
        rows: rows.of_adapter(adapter),
    }
}

/// A fresh addition to a table: `A` is zero and `B` is normal, whatever the others' start.
fn low_rank(weight: &Parameter, rank: usize, scale: f64, fresh: Fresh<'_>) -> LowRankTable {
    let (adapter, device) = (fresh.adapter, weight.device());
    let [vocabulary, width] = [weight.shape()[0], weight.shape()[1]];
    let parameter = |part: &str, shape: [usize; 2], values: Vec<f32>| {
        let flat = TensorData::new(values, [shape[0] * shape[1]]);
        let name = format!("embedding.adapter.{adapter}.{part}");
        Parameter::new(name, shape.to_vec(), Tensor::from_data(flat, &device)).of_adapter(adapter)
    };
    let mut random = Random::new(fnv(&format!("{}|embedding|adapter", fresh.seed)));
    let up = (0..width * rank).map(|_| random.normal() as f32).collect();
    LowRankTable {
        down: parameter(DOWN, [vocabulary, rank], vec![0.0; vocabulary * rank]),
        up: parameter(UP, [width, rank], up),
        scale,
    }
}

/// What the factors' names end with; LoRA+ leaves them alone, for their parts are the other way round.
const DOWN: &str = "looked_up";
const UP: &str = "widened";

/// The low-rank part at the embedding.
pub(super) fn low_rank_table<'a>(
    model: &'a LanguageModel,
    adapter: &str,
) -> Option<&'a LowRankTable> {
    match model.embedding().adapters.get(adapter)? {
        TableAdapter::LowRank(own) => Some(own.as_ref()),
        TableAdapter::Rows(_) => None,
    }
}

/// The parts at embedding and head under the names of PEFT's files.
pub(super) fn tensors<'a>(
    model: &'a LanguageModel,
    family: &Family,
    adapter: &str,
) -> Vec<StoredTensor<'a>> {
    let mut tensors = Vec::new();
    let Some(vocabulary) = Vocabulary::of(model, family) else {
        return tensors;
    };
    let rows = |names: &[String; 2], own: &'a TokenRows| {
        let name = format!(
            "{PEFT_PREFIX}{}.token_adapter.trainable_tokens_delta",
            names[0]
        );
        StoredTensor::whole(name, &own.rows)
    };
    match model.embedding().adapters.get(adapter) {
        None => {}
        Some(TableAdapter::Rows(own)) => tensors.push(rows(&vocabulary.embedding, own)),
        Some(TableAdapter::LowRank(own)) => {
            let name = |part: &str| {
                format!(
                    "{PEFT_PREFIX}{}.lora_embedding_{part}",
                    vocabulary.embedding[0]
                )
            };
            tensors.push(StoredTensor::transposed(name("A"), &own.down));
            tensors.push(StoredTensor::whole(name("B"), &own.up));
        }
    }
    let parts = linear_parts(model, adapter);
    let own = parts.get("head").and_then(|part| part.token_rows());
    tensors.extend(
        vocabulary
            .head
            .as_ref()
            .zip(own)
            .map(|(head, own)| rows(head, own)),
    );
    tensors
}

/// The addition to an embedding that is the head too, as the head's, which PEFT's files hold besides.
pub(super) fn repeated<'a>(
    model: &'a LanguageModel,
    family: &Family,
    adapter: &str,
) -> Vec<StoredTensor<'a>> {
    let vocabulary = Vocabulary::of(model, family).filter(|vocabulary| vocabulary.is_tied);
    let head = vocabulary.and_then(|vocabulary| vocabulary.head);
    let Some((own, [head, _])) = low_rank_table(model, adapter).zip(head) else {
        return Vec::new();
    };
    let name = |part: &str| format!("{PEFT_PREFIX}{head}.lora_{part}.weight");
    vec![
        StoredTensor::transposed(name("A"), &own.up),
        StoredTensor::whole(name("B"), &own.down),
    ]
}

/// Puts the file's values into the attached parts at embedding and head.
pub(super) fn read(
    model: &mut LanguageModel,
    family: &Family,
    adapter: &str,
    file: &mut AdapterFile,
) -> Result<()> {
    let values = file.values(tensors(model, family, adapter))?;
    for tensor in repeated(model, family, adapter) {
        if file.shape(&tensor.name).is_none() {
            continue;
        }
        let again = file.read(&tensor.name, &tensor.shape)?;
        for (parameter, again) in tensor.split(again) {
            if values.get(&parameter).is_some_and(|own| *own != again) {
                return Err(file.error(format!(
                    "`{}` is not that of the embedding, and the configuration says that the two are one (`ensure_weight_tying`)",
                    tensor.name
                )));
            }
        }
    }
    set_values(model, values);
    Ok(())
}
