//! The pickle inside a `torch.save` archive, read without running any of it.
//!
//! A pickle is a program for a stack machine that may import and call anything. This machine knows the instructions that
//! `torch.save` writes (protocol 2) and six names that it may "import": those that rebuild tensors, parameters and ordered
//! dictionaries. Any other name is an error that says it; nothing is ever called. Values live in one list and refer to each
//! other by index, so that no nesting can exhaust the stack, and their number is limited. What the pickle says once and names
//! often is kept once: names are pieces of the pickle, views are shared, and arguments are read where they are.

use super::safetensors::Dtype;
use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;

/// A tensor takes about twenty-five values; more than this is no file of weights.
const MOST_VALUES: usize = 1 << 21;

/// PyTorch's own limit is 64; weights have four at most, and each axis takes memory for every tensor.
const MOST_AXES: usize = 16;

/// A tensor as the pickle describes it: a view of a storage.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct View<'a> {
    pub dtype: Dtype,
    /// The entry under `data/` that holds the elements.
    pub storage: &'a str,
    /// Elements of the storage.
    pub length: usize,
    /// First element of the tensor.
    pub offset: usize,
    pub shape: Vec<usize>,
    /// Elements from one index of an axis to the next.
    pub strides: Vec<usize>,
}

type Id = usize;

#[derive(Debug, Clone)]
enum Value<'a> {
    None,
    Flag,
    Number(i64),
    Real,
    Text(&'a str),
    Tuple(Vec<Id>),
    List(Vec<Id>),
    Dictionary(Vec<(Id, Id)>),
    Name(Name),
    Storage {
        dtype: Dtype,
        key: &'a str,
        length: usize,
    },
    Tensor(Rc<View<'a>>),
}

/// What a pickle may import.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Name {
    RebuildTensor,
    RebuildParameter,
    OrderedDictionary,
    Storage(Dtype),
}

impl Name {
    fn parse(module: &str, name: &str) -> Result<Self, String> {
        Ok(match (module, name) {
            ("torch._utils", "_rebuild_tensor_v2") => Self::RebuildTensor,
            ("torch._utils", "_rebuild_parameter") => Self::RebuildParameter,
            ("collections", "OrderedDict") => Self::OrderedDictionary,
            ("torch", "FloatStorage") => Self::Storage(Dtype::F32),
            ("torch", "DoubleStorage") => Self::Storage(Dtype::F64),
            ("torch", "HalfStorage") => Self::Storage(Dtype::F16),
            ("torch", "BFloat16Storage") => Self::Storage(Dtype::BF16),
            ("torch", "LongStorage") => Self::Storage(Dtype::I64),
            ("torch", "IntStorage") => Self::Storage(Dtype::I32),
            ("torch", "ShortStorage") => Self::Storage(Dtype::I16),
            ("torch", "CharStorage") => Self::Storage(Dtype::I8),
            ("torch", "ByteStorage") => Self::Storage(Dtype::U8),
            ("torch", "BoolStorage") => Self::Storage(Dtype::BOOL),
            _ => {
                let shown = |text: &str| text.chars().take(64).collect::<String>();
                return Err(format!(
                    "the pickle asks for `{}.{}`, which is nothing that weights need; it is not run",
                    shown(module),
                    shown(name)
                ));
            }
        })
    }
}

/// The tensors of a pickled dictionary by name; those of its `state_dict` or `model` where it has one. What is no tensor is
/// left out, and of a name that is given twice the last counts, as in Python.
///
/// # Errors
/// What is wrong with the pickle.
pub(super) fn tensors(pickle: &[u8]) -> Result<BTreeMap<&str, Rc<View<'_>>>, String> {
    let mut machine = Machine::default();
    let result = machine.run(pickle)?;
    let mut pairs = machine.dictionary(result)?;
    let inside = ["state_dict", "model"]
        .into_iter()
        .find_map(|name| pairs.iter().find(|pair| machine.is_text(pair.0, name)));
    if let Some(Value::Dictionary(inner)) = inside.and_then(|(_, value)| machine.values.get(*value))
    {
        pairs = inner;
    }
    let tensor = |(key, value): &(Id, Id)| match (&machine.values[*key], &machine.values[*value]) {
        (Value::Text(name), Value::Tensor(view)) => Some((*name, Rc::clone(view))),
        _ => None,
    };
    let found: BTreeMap<_, _> = pairs.iter().filter_map(tensor).collect();
    if found.is_empty() && !pairs.is_empty() {
        return Err("the pickle holds no tensors by name; save a state dictionary".into());
    }
    Ok(found)
}

#[derive(Default)]
struct Machine<'a> {
    values: Vec<Value<'a>>,
    stack: Vec<Id>,
    /// Heights of the stack where lists of arguments begin.
    marks: Vec<usize>,
    memo: HashMap<u32, Id>,
}

const CUT: &str = "the pickle is cut off";
const UNBALANCED: &str = "the pickle takes what it has not put there";

impl<'a> Machine<'a> {
    /// Runs the program and gives its result.
    fn run(&mut self, pickle: &'a [u8]) -> Result<Id, String> {
        let mut code = Code(pickle);
        loop {
            let instruction = code.byte()?;
            match instruction {
                0x80 => match code.byte()? {
                    2 => {}
                    other => {
                        return Err(format!(
                            "the pickle is of protocol {other}; torch.save writes protocol 2"
                        ));
                    }
                },
                b'.' => return self.pop(),
                b'(' => self.marks.push(self.stack.len()),
                b'q' => self.remember(u32::from(code.byte()?))?,
                b'r' => self.remember(u32::from_le_bytes(code.array()?))?,
                b'h' => self.recall(u32::from(code.byte()?))?,
                b'j' => self.recall(u32::from_le_bytes(code.array()?))?,
                b's' => self.set_items(1)?,
                b'u' => self.set_items_from_mark()?,
                b'a' => self.append(1)?,
                b'e' => {
                    let count = self.since_mark()?;
                    self.append(count)?;
                }
                // The attributes of a dictionary (`_metadata` of a state dictionary) say nothing of its tensors.
                b'b' => {
                    self.pop()?;
                    let object = *self.stack.last().ok_or(UNBALANCED)?;
                    self.dictionary(object).map_err(
                        |_| "the pickle gives attributes to something else than a dictionary",
                    )?;
                }
                _ => {
                    let value = self.value(instruction, &mut code)?;
                    self.push(value)?;
                }
            }
        }
    }

    /// Instructions that put one value on the stack.
    fn value(&mut self, instruction: u8, code: &mut Code<'a>) -> Result<Value<'a>, String> {
        Ok(match instruction {
            b'N' => Value::None,
            0x88 | 0x89 => Value::Flag,
            b'J' => Value::Number(i64::from(i32::from_le_bytes(code.array()?))),
            b'K' => Value::Number(i64::from(code.byte()?)),
            b'M' => Value::Number(i64::from(u16::from_le_bytes(code.array()?))),
            0x8a => Value::Number(code.long()?),
            b'G' => {
                code.array::<8>()?;
                Value::Real
            }
            b'X' => {
                let length = u32::from_le_bytes(code.array()?);
                Value::Text(text(code.take(length as usize)?)?)
            }
            b'c' => Value::Name(Name::parse(code.line()?, code.line()?)?),
            b')' => Value::Tuple(vec![]),
            b']' => Value::List(vec![]),
            b'}' => Value::Dictionary(vec![]),
            0x85..=0x87 => Value::Tuple(self.take(usize::from(instruction - 0x84))?),
            b't' => {
                let count = self.since_mark()?;
                Value::Tuple(self.take(count)?)
            }
            b'Q' => self.storage()?,
            b'R' => self.call()?,
            other => {
                return Err(format!(
                    "the pickle has instruction {other:#04x}, which torch.save does not write"
                ));
            }
        })
    }

    fn push(&mut self, value: Value<'a>) -> Result<(), String> {
        if self.values.len() >= MOST_VALUES {
            return Err(format!(
                "the pickle has more than {MOST_VALUES} values, so it is no file of weights"
            ));
        }
        self.stack.push(self.values.len());
        self.values.push(value);
        Ok(())
    }

    /// Takes the top of the stack, down to the last mark.
    fn pop(&mut self) -> Result<Id, String> {
        let [top] = self.take(1)?[..] else {
            return Err(UNBALANCED.into());
        };
        Ok(top)
    }

    fn take(&mut self, count: usize) -> Result<Vec<Id>, String> {
        let floor = self.marks.last().copied().unwrap_or(0);
        let start = self
            .stack
            .len()
            .checked_sub(count)
            .filter(|start| *start >= floor)
            .ok_or(UNBALANCED)?;
        Ok(self.stack.split_off(start))
    }

    /// Values on the stack above the last mark, which goes.
    fn since_mark(&mut self) -> Result<usize, String> {
        let mark = self.marks.pop().ok_or(UNBALANCED)?;
        self.stack
            .len()
            .checked_sub(mark)
            .ok_or_else(|| UNBALANCED.into())
    }

    fn remember(&mut self, number: u32) -> Result<(), String> {
        self.memo
            .insert(number, *self.stack.last().ok_or(UNBALANCED)?);
        Ok(())
    }

    fn recall(&mut self, number: u32) -> Result<(), String> {
        self.stack.push(
            *self
                .memo
                .get(&number)
                .ok_or("the pickle recalls what it has not remembered")?,
        );
        if self.stack.len() > MOST_VALUES {
            return Err(format!(
                "the pickle has more than {MOST_VALUES} values, so it is no file of weights"
            ));
        }
        Ok(())
    }

    fn set_items_from_mark(&mut self) -> Result<(), String> {
        let count = self.since_mark()?;
        if !count.is_multiple_of(2) {
            return Err(UNBALANCED.into());
        }
        self.set_items(count / 2)
    }

    fn set_items(&mut self, count: usize) -> Result<(), String> {
        let items = self.take(2 * count)?;
        let target = *self.stack.last().ok_or(UNBALANCED)?;
        let Some(Value::Dictionary(pairs)) = self.values.get_mut(target) else {
            return Err(UNBALANCED.into());
        };
        pairs.extend(
            items
                .as_chunks::<2>()
                .0
                .iter()
                .map(|[key, value]| (*key, *value)),
        );
        Ok(())
    }

    fn append(&mut self, count: usize) -> Result<(), String> {
        let items = self.take(count)?;
        let target = *self.stack.last().ok_or(UNBALANCED)?;
        let Some(Value::List(list)) = self.values.get_mut(target) else {
            return Err(UNBALANCED.into());
        };
        list.extend(items);
        Ok(())
    }

    /// `('storage', type, key, device, elements)`, by which a pickle refers to an entry of the archive.
    fn storage(&mut self) -> Result<Value<'a>, String> {
        let id = self.pop()?;
        let &[kind, name, key, _, length] = self.tuple(id)? else {
            return Err("a storage is not described by five values".into());
        };
        match (
            self.is_text(kind, "storage"),
            &self.values[name],
            &self.values[key],
        ) {
            (true, Value::Name(Name::Storage(dtype)), Value::Text(key)) => Ok(Value::Storage {
                dtype: *dtype,
                key,
                length: self.size(length)?,
            }),
            _ => Err("the pickle refers to something else than a storage".into()),
        }
    }

    /// What one of the known names makes of its arguments.
    fn call(&mut self) -> Result<Value<'a>, String> {
        let (arguments, name) = (self.pop()?, self.pop()?);
        let arguments = self.tuple(arguments)?;
        match (&self.values[name], arguments) {
            (Value::Name(Name::OrderedDictionary), []) => Ok(Value::Dictionary(vec![])),
            (Value::Name(Name::RebuildParameter), [tensor, ..]) => match &self.values[*tensor] {
                Value::Tensor(view) => Ok(Value::Tensor(Rc::clone(view))),
                _ => Err("a parameter is made of something else than a tensor".into()),
            },
            (Value::Name(Name::RebuildTensor), [storage, offset, shape, strides, ..]) => {
                let &Value::Storage { dtype, key, length } = &self.values[*storage] else {
                    return Err("a tensor is made of something else than a storage".into());
                };
                let (offset, shape, strides) = (
                    self.size(*offset)?,
                    self.sizes(*shape)?,
                    self.sizes(*strides)?,
                );
                Ok(Value::Tensor(Rc::new(View {
                    dtype,
                    storage: key,
                    length,
                    offset,
                    shape,
                    strides,
                })))
            }
            _ => Err(
                "the pickle calls something with arguments that torch.save does not write".into(),
            ),
        }
    }

    fn tuple(&self, id: Id) -> Result<&[Id], String> {
        match &self.values[id] {
            Value::Tuple(parts) => Ok(parts),
            _ => Err("the pickle has something else where a tuple belongs".into()),
        }
    }

    fn dictionary(&self, id: Id) -> Result<&Vec<(Id, Id)>, String> {
        match &self.values[id] {
            Value::Dictionary(pairs) => Ok(pairs),
            _ => Err("the pickle is something else than a dictionary of tensors; save a state dictionary".into()),
        }
    }

    fn is_text(&self, id: Id, expected: &str) -> bool {
        matches!(self.values[id], Value::Text(text) if text == expected)
    }

    fn size(&self, id: Id) -> Result<usize, String> {
        match self.values[id] {
            Value::Number(number) => {
                usize::try_from(number).map_err(|_| format!("{number} is no size"))
            }
            _ => Err("the pickle has something else where a size belongs".into()),
        }
    }

    fn sizes(&self, id: Id) -> Result<Vec<usize>, String> {
        let axes = self.tuple(id)?;
        if axes.len() > MOST_AXES {
            let count = axes.len();
            return Err(format!(
                "the pickle has a tensor of {count} axes; expected at most {MOST_AXES}"
            ));
        }
        axes.iter().map(|id| self.size(*id)).collect()
    }
}

/// What is left of the program.
struct Code<'a>(&'a [u8]);

impl<'a> Code<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], String> {
        let (taken, rest) = self.0.split_at_checked(count).ok_or(CUT)?;
        self.0 = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], String> {
        let (taken, rest) = self.0.split_first_chunk().ok_or(CUT)?;
        self.0 = rest;
        Ok(*taken)
    }

    fn byte(&mut self) -> Result<u8, String> {
        Ok(self.array::<1>()?[0])
    }

    fn line(&mut self) -> Result<&'a str, String> {
        let end = self.0.iter().position(|byte| *byte == b'\n').ok_or(CUT)?;
        let line = self.take(end + 1)?;
        text(&line[..end])
    }

    /// A signed number of up to eight bytes.
    fn long(&mut self) -> Result<i64, String> {
        let length = usize::from(self.byte()?);
        let bytes = self.take(length)?;
        if length > 8 {
            return Err("the pickle has a number of more than 64 bits".into());
        }
        let negative = bytes.last().is_some_and(|byte| *byte >= 128);
        let mut whole = [if negative { 255 } else { 0 }; 8];
        whole[..length].copy_from_slice(bytes);
        Ok(i64::from_le_bytes(whole))
    }
}

fn text(bytes: &[u8]) -> Result<&str, String> {
    std::str::from_utf8(bytes).map_err(|_| "the pickle has text that is not UTF-8".into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A dictionary `{"a": tensor}` as torch.save writes it, with this name to import first.
    fn pickle(name: &str) -> Vec<u8> {
        let mut code = b"\x80\x02}q\x00X\x01\x00\x00\x00aq\x01c".to_vec();
        code.extend(name.as_bytes());
        code.extend(b"\nq\x02((X\x07\x00\x00\x00storageq\x03ctorch\nFloatStorage\nq\x04X\x01\x00\x00\x000q\x05X\x03\x00\x00\x00cpuq\x06K\x06tq\x07QK\x00K\x02K\x03\x86q\x08K\x03K\x01\x86q\x09\x89ccollections\nOrderedDict\nq\x0a)Rq\x0btq\x0cRq\x0ds.");
        code
    }

    const REBUILD: &str = "torch._utils\n_rebuild_tensor_v2";

    #[test]
    fn reads_what_torch_writes() {
        let code = pickle(REBUILD);
        let found = tensors(&code).unwrap();
        let (shape, strides) = (vec![2, 3], vec![3, 1]);
        let view = View {
            dtype: Dtype::F32,
            storage: "0",
            length: 6,
            offset: 0,
            shape,
            strides,
        };
        assert_eq!(found, BTreeMap::from([("a", Rc::new(view))]));
        assert!(tensors(b"\x80\x02}q\x00.").unwrap().is_empty());
    }

    #[test]
    fn names_that_could_do_harm_are_refused_and_named() {
        for name in [
            "os\nsystem",
            "builtins\neval",
            "posix\nsystem",
            "torch\nload",
            "__builtin__\ngetattr",
        ] {
            let error = tensors(&pickle(name)).unwrap_err();
            assert!(error.contains(&name.replace('\n', ".")), "{error}");
        }
        let classic = b"cposix\nsystem\nX\x04\x00\x00\x00echo\x85R.";
        assert!(tensors(classic).unwrap_err().contains("`posix.system`"));
        assert!(tensors(b"\x80\x04\x95").unwrap_err().contains("protocol 4"));
        assert!(
            tensors(b"(i__builtin__\neval\n.")
                .unwrap_err()
                .contains("instruction 0x69")
        );
        assert!(
            tensors(b"ctorch\nFloatStorage\n)R.")
                .unwrap_err()
                .contains("arguments")
        );
    }

    #[test]
    fn every_cut_is_an_error() {
        let code = pickle(REBUILD);
        assert!((0..code.len()).all(|length| tensors(&code[..length]).is_err()));
    }

    #[test]
    fn nesting_and_growth_are_harmless() {
        // A tuple in a tuple in a tuple; and one value recalled without end.
        let deep = [&b")"[..], &vec![0x85; 1_000_000], b"."].concat();
        assert!(
            tensors(&deep)
                .unwrap_err()
                .contains("else than a dictionary")
        );
        let many = vec![b'N'; MOST_VALUES + 1];
        assert!(tensors(&many).unwrap_err().contains("more than"));
        let recalled = [&b"Nq\x00"[..], &b"h\x00".repeat(MOST_VALUES + 1)].concat();
        assert!(tensors(&recalled).unwrap_err().contains("more than"));
        // A list that holds itself.
        assert!(tensors(b"]q\x00h\x00a.").is_err());
        assert!(
            tensors(b"X\xff\xff\xff\xffabc")
                .unwrap_err()
                .contains("cut off")
        );
    }

    /// The function that rebuilds tensors under number 1, a storage of six under 2, its tensor under 3.
    const BEGUN: &[u8] = b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\nq\x01(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x06tQq\x02h\x01(h\x02K\x00K\x06\x85K\x01\x85tRq\x03";

    #[test]
    fn what_is_shared_is_kept_once() {
        // Twenty thousand tensors of one shape of a million axes.
        let mut code = [BEGUN, b"("].concat();
        code.extend(b"K\x01".repeat(1_000_000));
        code.extend(b"tq\x04}(");
        for number in 0..20_000 {
            code.extend(b"X\x05\x00\x00\x00");
            code.extend(format!("{number:05}").bytes());
            code.extend(b"h\x01(h\x02K\x00h\x04h\x04tR");
        }
        code.extend(b"u.");
        let error = tensors(&code).unwrap_err();
        assert!(
            error.contains("1000000 axes; expected at most 16"),
            "{error}"
        );
        // One name of a megabyte and one tensor, half a million times.
        let mut code = [BEGUN, b"X\x40\x42\x0f\x00"].concat();
        code.extend(b"n".repeat(1_000_000));
        code.extend(b"q\x04}(");
        code.extend(b"h\x04h\x03".repeat(500_000));
        code.extend(b"u.");
        let found = tensors(&code).unwrap();
        assert_eq!(found.len(), 1);
        assert!(found.values().all(|view| view.shape == [6]));
    }

    #[test]
    fn many_arguments_take_linear_time() {
        // Half a million arguments, with which a parameter is rebuilt as often: 10^11 copies if each call made its own.
        let mut code = [BEGUN, b"ctorch._utils\n_rebuild_parameter\nq\x04(h\x03"].concat();
        code.extend(b"N".repeat(500_000));
        code.extend(b"tq\x05");
        code.extend(b"h\x04h\x05R".repeat(500_000));
        code.extend(b"}.");
        let started = std::time::Instant::now();
        assert!(tensors(&code).unwrap().is_empty());
        assert!(started.elapsed().as_secs() < 20);
    }

    proptest! {
        #[test]
        fn changed_bytes_never_panic(changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8)) {
            let mut code = pickle(REBUILD);
            for (place, byte) in changes {
                let place = place.index(code.len());
                code[place] = byte;
            }
            let _ = tensors(&code);
        }

        #[test]
        fn any_instructions_never_panic(code in prop::collection::vec(prop::sample::select(&b"\x80\x02}q\x00X(cKtQR)s.uabe]jJN\x85\x86\x87\x8a\x01\n"[..]), 0..80)) {
            let _ = tensors(&code);
        }
    }
}
