//! The words of RULER's keys and lists: those of the Python package wonderwords 3.0.1 (MIT; its licence is beside them).

use std::collections::BTreeSet;
use std::sync::LazyLock;

const NOUNS: &str = include_str!("words/nouns.txt");
const ADJECTIVES: &str = include_str!("words/adjectives.txt");
const VERBS: &str = include_str!("words/verbs.txt");

/// Every noun, adjective and verb once, sorted.
pub fn all() -> Vec<&'static str> {
    let words = [NOUNS, ADJECTIVES, VERBS].into_iter().flat_map(str::lines);
    words.collect::<BTreeSet<_>>().into_iter().collect()
}

/// The nouns, in the order of their file.
pub fn nouns() -> Vec<&'static str> {
    NOUNS.lines().collect()
}

/// All six million pairs `adjective-noun`, sorted and each once, of which few are ever written down.
#[derive(Debug)]
pub struct Pairs {
    nouns: Vec<&'static str>,
    blocks: Vec<Block>,
    count: usize,
}

/// A run of the sorted pairs.
#[derive(Debug)]
enum Block {
    /// An adjective with every noun.
    Adjective(&'static str),
    /// Adjectives of which one begins another one (`old`, `old-fashioned`), so that their pairs mix.
    Mixed(Vec<String>),
}

static PAIRS: LazyLock<Pairs> = LazyLock::new(Pairs::collect);

/// The pairs.
pub fn pairs() -> &'static Pairs {
    &PAIRS
}

impl Pairs {
    fn collect() -> Self {
        let sorted = |list: &'static str| list.lines().collect::<BTreeSet<_>>();
        let nouns: Vec<&str> = sorted(NOUNS).into_iter().collect();
        let mut starts: Vec<String> = sorted(ADJECTIVES).iter().map(|a| format!("{a}-")).collect();
        starts.sort_unstable();
        let mut groups: Vec<Vec<String>> = Vec::new();
        for start in starts {
            match groups.last_mut() {
                Some(group) if start.starts_with(group[0].as_str()) => group.push(start),
                _ => groups.push(vec![start]),
            }
        }
        let block = |group: Vec<String>| match group.as_slice() {
            [only] => ADJECTIVES
                .lines()
                .find(|adjective| only.strip_suffix('-') == Some(adjective))
                .map(Block::Adjective),
            _ => {
                let mut pairs = BTreeSet::new();
                for start in &group {
                    pairs.extend(nouns.iter().map(|noun| format!("{start}{noun}")));
                }
                Some(Block::Mixed(pairs.into_iter().collect()))
            }
        };
        let blocks: Vec<Block> = groups.into_iter().filter_map(block).collect();
        let size = |block: &Block| match block {
            Block::Adjective(_) => nouns.len(),
            Block::Mixed(pairs) => pairs.len(),
        };
        let count = blocks.iter().map(size).sum();
        Self {
            nouns,
            blocks,
            count,
        }
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.count
    }

    /// The pair at a place below [`Pairs::count`]; nothing beyond.
    pub fn at(&self, mut place: usize) -> Option<String> {
        for block in &self.blocks {
            let size = match block {
                Block::Adjective(_) => self.nouns.len(),
                Block::Mixed(pairs) => pairs.len(),
            };
            if place < size {
                return Some(match block {
                    Block::Adjective(adjective) => format!("{adjective}-{}", self.nouns[place]),
                    Block::Mixed(pairs) => pairs[place].clone(),
                });
            }
            place -= size;
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // The numbers and words are those that Python prints for `sorted(set(words))`.

    #[test]
    fn the_lists_are_wonderwords() {
        let words = all();
        assert_eq!((words.len(), words[0], words[4000]), WORDS);
        assert_eq!(pairs().count(), COUNT);
        for (place, pair) in SOME {
            assert_eq!(pairs().at(place).as_deref(), Some(pair));
        }
        assert_eq!(pairs().at(COUNT), None);
    }

    const WORDS: (usize, &str, &str) = (8166, "ATM", "kitty");
    const COUNT: usize = 6171620;
    const SOME: [(usize, &str); 9] = [
        (0, "Early-ATM"),
        (1, "Early-CD"),
        (123456, "absorbed-controversy"),
        (3333333, "many-lambkin"),
        (6171619, "zonked-zucchini"),
        (3793420, "old-fashioned-aardvark"),
        (3793380, "old-fabric"),
        (623927, "blue-zampone"),
        (210225, "ad hoc-zampone"),
    ];
}
