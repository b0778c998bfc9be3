//! Programs of the engine: checked for their nesting before they are parsed, and compiled so that every operator charges for what it
//! touches ([`super::operators`]).

use minijinja::Environment;
use minijinja::machinery::{Instruction, Instructions, Token, WhitespaceConfig};
use minijinja::machinery::{get_compiled_template, tokenize};
use minijinja::value::Value;
use std::collections::BTreeMap;

use super::escapes;
use super::operators::names;
use crate::{Error, Result};

/// The deepest nesting of operators, brackets and branches: the engine parses, compiles and drops a program by recursion.
pub(super) const DEEPEST_PROGRAM: usize = 500;

/// The longest template in bytes; published ones have up to 60,000.
const LONGEST: usize = 4 << 20;

/// A variable that is 1. Products have it as a factor, lest the engine multiply constants before it counts.
pub(super) const ONE: &str = "espalier_one";

const NAME: &str = "chat_template";

/// The instructions of a template and of its blocks.
pub(super) struct Program<'source> {
    pub instructions: Instructions<'source>,
    pub blocks: BTreeMap<&'source str, Instructions<'source>>,
}

impl<'source> Program<'source> {
    /// Compiles a source that [`prepare`] has seen.
    pub fn new(
        environment: &'source Environment<'source>,
        source: &'source str,
    ) -> Result<Self, minijinja::Error> {
        let template = environment.template_from_named_str(NAME, source)?;
        let compiled = get_compiled_template(&template);
        let blocks = compiled.blocks.iter();
        Ok(Self {
            instructions: guarded(&compiled.instructions),
            blocks: blocks
                .map(|(name, block)| (*name, guarded(block)))
                .collect(),
        })
    }
}

/// A source with the factor [`ONE`] in its products, and with its literals in the engine's escapes.
///
/// # Errors
/// [`Error::Template`] with the line, when it is nested too deeply for the engine, or too long.
pub(super) fn prepare(source: &str) -> Result<String> {
    if source.len() > LONGEST {
        return Err(Error::Template(format!(
            "the template has {} bytes, more than {LONGEST}",
            source.len()
        )));
    }
    let tokens = tokenize(
        source,
        false,
        Default::default(),
        WhitespaceConfig::default(),
    );
    let (mut nesting, mut prepared, mut copied) =
        (Nesting::default(), String::with_capacity(source.len()), 0);
    let (mut before, mut block_begins) = (None, false);
    // A token that is none is reported, with its line, by the parser.
    for (token, span) in tokens.map_while(std::result::Result::ok) {
        nesting.note(&token, block_begins);
        if nesting.depth() > DEEPEST_PROGRAM {
            return Err(Error::Template(format!(
                "line {}: operators, brackets or branches are nested deeper than {DEEPEST_PROGRAM} levels",
                span.start_line
            )));
        }
        if let Token::String(_) = token {
            let (start, end) = (span.start_offset as usize, span.end_offset as usize);
            let literal = source.get(start..end).and_then(escapes::rewritten);
            if let Some(literal) = literal {
                prepared.push_str(source.get(copied..start).unwrap_or_default());
                prepared.push_str(&literal);
                copied = end;
            }
        }
        let unpacks = matches!(before, Some(Token::ParenOpen | Token::Comma));
        if matches!(token, Token::Mul) && !unpacks {
            let end = span.end_offset as usize;
            prepared.push_str(source.get(copied..end).unwrap_or_default());
            prepared.push_str(&format!(" {ONE} *"));
            copied = end;
        }
        block_begins = matches!(token, Token::BlockStart);
        before = Some(token);
    }
    prepared.push_str(source.get(copied..).unwrap_or_default());
    Ok(prepared)
}

/// An upper bound of how deep the parser goes.
#[derive(Default)]
struct Nesting {
    /// For each open bracket of an expression the operators since its last comma.
    operators: Vec<usize>,
    /// For each open `if` its branches.
    branches: Vec<usize>,
    total: usize,
}

impl Nesting {
    fn depth(&self) -> usize {
        self.total
    }

    fn note(&mut self, token: &Token, block_begins: bool) {
        match token {
            Token::VariableStart | Token::BlockStart => {
                self.total -= self.operators.drain(..).sum::<usize>();
                self.open();
            }
            Token::BracketOpen | Token::ParenOpen | Token::BraceOpen => self.open(),
            Token::BracketClose | Token::ParenClose | Token::BraceClose => {
                self.total -= self.operators.pop().unwrap_or(0);
                self.operate();
            }
            Token::Comma | Token::Colon => {
                if let Some(last) = self.operators.last_mut() {
                    self.total -= *last - 1;
                    *last = 1;
                }
            }
            Token::Ident("if") if block_begins => {
                self.branches.push(1);
                self.total += 1;
            }
            Token::Ident("elif") if block_begins => {
                self.total += self.branches.last_mut().map_or(0, |last| {
                    *last += 1;
                    1
                });
            }
            Token::Ident("endif") if block_begins => {
                self.total -= self.branches.pop().unwrap_or(0);
            }
            Token::TemplateData(_)
            | Token::VariableEnd
            | Token::BlockEnd
            | Token::Str(_)
            | Token::String(_)
            | Token::Int(_)
            | Token::Int128(_)
            | Token::Float(_)
            | Token::Assign => {}
            Token::Ident("not" | "if" | "else" | "and" | "or" | "in" | "is") => self.operate(),
            Token::Ident(_) => {}
            _ => self.operate(),
        }
    }

    fn open(&mut self) {
        self.operators.push(1);
        self.total += 1;
    }

    fn operate(&mut self) {
        if let Some(last) = self.operators.last_mut() {
            *last += 1;
            self.total += 1;
        }
    }
}

/// The same instructions with guarded operators.
fn guarded<'source>(plain: &Instructions<'source>) -> Instructions<'source> {
    let count = plain.len() as u32;
    let mut expanded: Vec<Vec<Instruction<'source>>> = (0..count)
        .filter_map(|place| plain.get(place))
        .map(expand)
        .collect();
    let mut starts = vec![0];
    for part in &expanded {
        starts.push(starts[starts.len() - 1] + part.len() as u32);
    }
    let mut guarded = Instructions::new(plain.name(), plain.source());
    for (place, part) in (0..count).zip(&mut expanded) {
        for mut instruction in part.drain(..) {
            if let Some(target) = target(&mut instruction) {
                *target = starts.get(*target as usize).copied().unwrap_or(*target);
            }
            match (plain.get_span(place), plain.get_line(place)) {
                (Some(span), _) => guarded.add_with_span(instruction, span),
                (None, Some(line)) => {
                    guarded.add_with_line(instruction, u16::try_from(line).unwrap_or(u16::MAX))
                }
                (None, None) => guarded.add(instruction),
            };
        }
    }
    guarded
}

/// The instruction that a jump goes to.
fn target<'a>(instruction: &'a mut Instruction) -> Option<&'a mut u32> {
    match instruction {
        Instruction::Iterate(target)
        | Instruction::Jump(target)
        | Instruction::JumpIfFalse(target)
        | Instruction::JumpIfFalseOrPop(target)
        | Instruction::JumpIfTrueOrPop(target)
        | Instruction::BuildMacro(_, target, _) => Some(target),
        _ => None,
    }
}

/// What stands for an instruction.
fn expand<'source>(instruction: &Instruction<'source>) -> Vec<Instruction<'source>> {
    let binary = |name| vec![Instruction::CallFunction(name, Some(2))];
    let checked = |name| Instruction::CallFunction(name, Some(1));
    let this = || instruction.clone();
    match instruction {
        Instruction::EmitRaw(text) => {
            vec![
                Instruction::LoadConst(Value::from(*text)),
                Instruction::Emit,
            ]
        }
        Instruction::Add => binary(names::ADD),
        Instruction::Sub => binary(names::SUBTRACT),
        Instruction::Mul => binary(names::MULTIPLY),
        Instruction::Div => binary(names::DIVIDE),
        Instruction::IntDiv => binary(names::DIVIDE_WHOLE),
        Instruction::Rem => binary(names::REMAINDER),
        Instruction::Pow => binary(names::POWER),
        Instruction::PushAutoEscape => vec![checked(names::ESCAPE), this()],
        Instruction::StringConcat => binary(names::CONCAT),
        Instruction::GetItem => binary(names::ITEM),
        Instruction::Slice => vec![Instruction::CallFunction(names::SLICE, Some(4))],
        Instruction::In => binary(names::IN),
        Instruction::Eq => binary(names::EQUAL),
        Instruction::Ne => binary(names::UNEQUAL),
        Instruction::Lt => binary(names::LESS),
        Instruction::Lte => binary(names::LESS_OR_EQUAL),
        Instruction::Gt => binary(names::GREATER),
        Instruction::Gte => binary(names::GREATER_OR_EQUAL),
        // Of a chain `a < b < c`: the result, with `b` below it for the next.
        Instruction::CompareAndPreserve(operator) => vec![
            Instruction::StoreLocal(names::KEPT),
            Instruction::Lookup(names::KEPT),
            Instruction::CallFunction(chained(&format!("{operator:?}")), Some(2)),
            Instruction::Lookup(names::KEPT),
            Instruction::Swap,
        ],
        Instruction::PushLoop(_) | Instruction::UnpackLists(_) => {
            vec![checked(names::LOOK), this()]
        }
        Instruction::CallMethod("changed", Some(2)) => vec![checked(names::WALK), this()],
        Instruction::BuildList(_) | Instruction::BuildMap(_) => {
            vec![this(), checked(names::MADE)]
        }
        Instruction::BuildMacro(..) => vec![
            Instruction::CallFunction(names::NEST, Some(0)),
            Instruction::DiscardTop,
            this(),
        ],
        _ => vec![this()],
    }
}

/// The operator of a chain; the engine shows its names in this form alone.
fn chained(operator: &str) -> &'static str {
    match operator {
        "Eq" => names::EQUAL,
        "Ne" => names::UNEQUAL,
        "Lt" => names::LESS,
        "Lte" => names::LESS_OR_EQUAL,
        "Gt" => names::GREATER,
        "Gte" => names::GREATER_OR_EQUAL,
        "In" => names::IN,
        _ => names::NOT_IN,
    }
}
