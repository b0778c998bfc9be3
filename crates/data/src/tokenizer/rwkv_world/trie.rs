//! A byte trie: the longest entry that some bytes begin with, in one walk.

use std::collections::BTreeMap;
use std::ops::Range;

/// Nodes in breadth-first order, so that the children of a node are neighbours, sorted by their byte.
#[derive(Debug, Clone)]
pub(super) struct Trie {
    nodes: Vec<Node>,
}

#[derive(Debug, Clone)]
struct Node {
    /// The byte on the edge to this node.
    byte: u8,
    /// The entry that ends here, if one does.
    id: Option<u32>,
    children: Range<u32>,
}

impl Trie {
    /// A trie of byte strings with their ids.
    pub fn new(sorted: &BTreeMap<Box<[u8]>, u32>) -> Self {
        let entries: Vec<(&[u8], u32)> =
            sorted.iter().map(|(bytes, id)| (&bytes[..], *id)).collect();
        let mut nodes = vec![Node {
            byte: 0,
            id: None,
            children: 0..0,
        }];
        // For each node in turn, its depth and which entries begin with its path.
        let mut spans = vec![(0, 0..entries.len())];
        let mut number = 0;
        while let Some((depth, span)) = spans.get(number).cloned() {
            let longer = entries[span.clone()].partition_point(|(bytes, _)| bytes.len() == depth);
            nodes[number].id = entries[span.clone()][..longer].first().map(|(_, id)| *id);
            let first = nodes.len() as u32;
            let mut start = span.start + longer;
            for group in
                entries[start..span.end].chunk_by(|left, right| left.0[depth] == right.0[depth])
            {
                nodes.push(Node {
                    byte: group[0].0[depth],
                    id: None,
                    children: 0..0,
                });
                spans.push((depth + 1, start..start + group.len()));
                start += group.len();
            }
            nodes[number].children = first..nodes.len() as u32;
            number += 1;
        }
        Self { nodes }
    }

    /// Id and length of the longest entry that `bytes` begin with.
    pub fn longest(&self, bytes: &[u8]) -> Option<(u32, usize)> {
        let (mut node, mut found) = (self.nodes.first()?, None);
        for (depth, byte) in bytes.iter().enumerate() {
            let children = &self.nodes[node.children.start as usize..node.children.end as usize];
            let Ok(child) = children.binary_search_by_key(byte, |child| child.byte) else {
                break;
            };
            node = &children[child];
            found = node.id.map(|id| (id, depth + 1)).or(found);
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_wins_even_past_a_gap() {
        let entries = ["a", "ab", "abcd", "b", "\u{ff}"].iter().zip(1..);
        let trie = Trie::new(
            &entries
                .map(|(text, id)| (text.as_bytes().into(), id))
                .collect(),
        );
        assert_eq!(trie.longest(b"abcd"), Some((3, 4)));
        assert_eq!(trie.longest(b"abce"), Some((2, 2)));
        assert_eq!(trie.longest(b"ac"), Some((1, 1)));
        assert_eq!(trie.longest("\u{ff}b".as_bytes()), Some((5, 2)));
        assert_eq!((trie.longest(b""), trie.longest(b"z")), (None, None));
        assert_eq!(Trie::new(&BTreeMap::new()).longest(b"a"), None);
    }
}
