//! The parts of a specification that route tokens: experts, attention experts, depths.

use serde::{Deserialize, Serialize};

use crate::spec::{ChannelSpec, MixerSpec, MlpSpec, ModelSpec, RotarySpec};

/// How tokens choose among experts, and how the chosen ones are weighed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RouterSpec {
    /// Experts to choose from.
    pub experts: usize,
    /// Experts that each token passes through.
    pub active: usize,
    /// Whether the weights of the chosen experts are divided by their sum (Mixtral), rather than the softmax over all
    /// experts (Switch). With a single active expert, weights that sum to one give the router no gradient.
    pub normalised: bool,
    /// How many tokens an expert takes at most, the earliest first; the others it leaves to the residual.
    pub capacity: Option<CapacitySpec>,
    /// What is made of the logits before experts are chosen and weighed.
    pub scores: RouterScores,
    /// Whether each expert has a number that is added to its score where experts are chosen, and not where they are weighed. It
    /// balances loads during pretraining and is never trained by gradients (DeepSeek-V3).
    pub choice_bias: bool,
    /// Which experts are open to a token, by groups; all where absent.
    pub groups: Option<ExpertGroups>,
    /// Factor on the weights.
    pub scale: f64,
    /// A bias on the logits.
    pub bias: bool,
}

/// What a router makes of its logits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RouterScores {
    /// Their softmax over all experts.
    Softmax,
    /// The logistic function of each (DeepSeek-V3).
    Sigmoid,
}

/// Groups of neighbouring experts, of which a token's experts may come from a few alone (DeepSeek-V2, arXiv 2405.04434).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExpertGroups {
    /// Groups of equal size.
    pub count: usize,
    /// Groups that are open to a token.
    pub active: usize,
    /// A group is as good as the sum of so many of its best scores.
    pub judged_by: usize,
}

/// The most tokens of an expert, as multiples of an equal share.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct CapacitySpec {
    /// In training.
    pub training: f64,
    /// Elsewhere.
    pub evaluation: f64,
}

/// Feed-forward layers of which each token passes through a few.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ExpertsSpec {
    /// Who goes where.
    pub router: RouterSpec,
    /// The sizes of one expert.
    pub expert: MlpSpec,
    /// Whether experts have a gate.
    pub gated: bool,
    /// The form of gates that are cut off, in place of the activation.
    pub clamped: Option<ClampedGate>,
    /// A bias on the sum of the experts' outputs.
    pub output_bias: bool,
    /// An expert that all tokens pass through besides.
    pub shared: Option<SharedExpertSpec>,
}

/// Gates and inputs that are cut off at `limit`: `g sigmoid(alpha g) (u + 1)`, with `g` at most the limit and `u` between minus the
/// limit and the limit. In the experts' matrices their rows take turns, a gate first (gpt-oss).
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct ClampedGate {
    /// Steepness of the gate's logistic function.
    pub alpha: f64,
    /// Where both are cut off.
    pub limit: f64,
}

/// An expert that all tokens pass through; it has a gate where the others have.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SharedExpertSpec {
    /// Its sizes.
    pub expert: MlpSpec,
    /// Whether its output is multiplied by the logistic function of a linear map of its input (Qwen2-MoE).
    pub weighed: bool,
}

/// Multi-head experts (arXiv 2404.15045): tokens are cut into sub-tokens that are routed one by one.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MultiHeadExpertsSpec {
    /// Sub-tokens of a token; divides the width.
    pub heads: usize,
    /// The experts, as wide as a sub-token.
    pub experts: ExpertsSpec,
}

/// Attention whose query and output projections are experts, over keys and values that all of them share (JetMoE).
///
/// Each choice of a token gives it `kv_heads` query heads.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AttentionExpertsSpec {
    /// Who goes where.
    pub router: RouterSpec,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Width of one head.
    pub head_dim: usize,
    /// Factor on the scores.
    pub scale: f64,
    /// Rotary positions, where the family has them.
    pub rotary: Option<RotarySpec>,
}

/// Losses that keep routers in order while they learn.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct RouterLosses {
    /// Whether they are part of the loss.
    pub added: bool,
    /// Weight of the load-balance loss.
    pub balance: f64,
    /// Its form.
    pub form: BalanceForm,
    /// Weight of the mean squared log-sum-exp of the router's logits (ST-MoE, arXiv 2202.08906).
    pub z: f64,
}

/// The load-balance loss `E sum_e f_e P_e`, with `f_e` the share of tokens that go to expert `e` and `P_e` its mean
/// probability.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BalanceForm {
    /// Once over the tokens of all layers, counting all choices (Mixtral): balanced is the number of active experts.
    Joint,
    /// For each layer, counting first choices (Switch), and summed: balanced is the number of layers.
    PerLayer,
}

/// Mixture of Depths (arXiv 2404.02258): only some tokens pass through the block.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct DepthRouting {
    /// Share of each sequence that passes in training.
    pub capacity: f64,
    /// What decides where later tokens are not known yet.
    pub predictor: DepthPredictor,
    /// How a score weighs what the block adds.
    pub gate: DepthGate,
}

/// How a router's score weighs what a routed block adds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DepthGate {
    /// By itself (the paper): a block that learns its outputs with the opposite sign serves scores below zero as well.
    Raw,
    /// By its logistic function, so that a token to which the block is of use can only ask for more.
    Sigmoid,
}

/// What decides causally whether a token passes through a routed block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DepthPredictor {
    /// The router itself, which learns by an auxiliary loss to stand above one half for chosen tokens.
    AuxLoss,
    /// A small network beside it, which the language model does not feel.
    Mlp,
}

impl RouterSpec {
    /// A router whose weights are shares of a softmax, over the chosen experts where `normalised`, without capacities or groups.
    pub fn softmax(experts: usize, active: usize, normalised: bool) -> Self {
        Self {
            experts,
            active,
            normalised,
            capacity: None,
            scores: RouterScores::Softmax,
            choice_bias: false,
            groups: None,
            scale: 1.0,
            bias: false,
        }
    }

    /// Share of the experts that a token passes through.
    pub fn share(&self) -> f64 {
        self.active as f64 / self.experts.max(1) as f64
    }
}

impl ModelSpec {
    /// The share of tokens whose way leads through the parameter of this name: less than one for experts and for blocks that
    /// tokens may skip, more than one for blocks that are run more than once. Multi-head experts see parts of tokens, and count by their parts.
    pub fn share_of_tokens(&self, name: &str) -> f64 {
        let number = name
            .strip_prefix("blocks.")
            .and_then(|rest| rest.split('.').next()?.parse::<usize>().ok());
        let Some(block) = number.and_then(|number| self.blocks.get(number)) else {
            return 1.0;
        };
        let runs = |order: &Vec<usize>| order.iter().filter(|run| Some(**run) == number).count();
        let runs = self.block_order.as_ref().map_or(1, runs) as f64;
        let depth = match block.routing {
            Some(routing) if !name.contains(".depth.") => routing.capacity,
            _ => 1.0,
        };
        let mixer = match &block.mixer {
            MixerSpec::AttentionExperts(attention) => attention.router.share(),
            MixerSpec::Attention(_) | MixerSpec::LatentAttention(_) | MixerSpec::Recurrent(_) => {
                1.0
            }
        };
        let channel = match &block.channel {
            ChannelSpec::SparseExperts(experts) => experts.router.share(),
            ChannelSpec::MultiHeadExperts(spec) => spec.experts.router.share() * spec.heads as f64,
            ChannelSpec::Mlp(_)
            | ChannelSpec::GatedMlp(_)
            | ChannelSpec::Rwkv(_)
            | ChannelSpec::None => 1.0,
        };
        runs * match (
            name.contains(".mixer.experts."),
            name.contains(".channel.experts."),
        ) {
            (true, _) => depth * mixer,
            (_, true) => depth * channel,
            _ => depth,
        }
    }

    /// Numbers in the parameters that the mean token passes through; the others cost memory, not time.
    pub fn active_parameter_count(&self) -> f64 {
        let size = |(name, shape): &(String, Vec<usize>)| {
            self.share_of_tokens(name) * shape.iter().map(|axis| *axis as f64).product::<f64>()
        };
        self.parameters().iter().map(size).sum()
    }
}
