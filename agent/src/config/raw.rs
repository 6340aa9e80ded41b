//! What was written: a configuration file as a tree in which every node knows its line and column.
//!
//! Pure. Knows YAML and nothing of Weir; never follows an alias, so that a small file cannot become a large tree.

use saphyr_parser::{Event, Parser, ScalarStyle, Span};

/// Longest file taken; a ConfigMap holds at most 1 MiB.
const FILE_MAX: usize = 1024 * 1024;

/// Levels of nesting; the vocabulary has less than half of them.
const DEPTH_MAX: usize = 32;

/// Where something stands, counted from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Mark {
    pub(super) line: usize,
    pub(super) column: usize,
}

/// What is wrong at a mark, and what to do about it.
pub(super) type Fault = (Mark, String);

#[derive(Debug)]
pub(super) struct Node {
    pub(super) mark: Mark,
    pub(super) content: Content,
}

#[derive(Debug)]
pub(super) enum Content {
    /// `plain`: without quotes.
    Scalar {
        text: String,
        plain: bool,
    },
    Sequence(Vec<Node>),
    Mapping(Vec<(Key, Node)>),
}

#[derive(Debug)]
pub(super) struct Key {
    pub(super) mark: Mark,
    pub(super) text: String,
}

/// A collection that is not complete.
struct Open {
    mark: Mark,
    items: Items,
}

enum Items {
    Sequence(Vec<Node>),
    Mapping(Vec<(Key, Node)>, Option<Key>),
}

impl Node {
    /// Nothing was written: `key:`, `key: null`, `key: ~`.
    pub(super) fn is_null(&self) -> bool {
        let Content::Scalar { text, plain: true } = &self.content else { return false };
        matches!(text.as_str(), "" | "~" | "null" | "Null" | "NULL")
    }

    /// What kind of node this is, for messages.
    pub(super) const fn kind(&self) -> &'static str {
        match self.content {
            Content::Scalar { .. } => "a single value",
            Content::Sequence(_) => "a list",
            Content::Mapping(_) => "a mapping",
        }
    }
}

/// The tree of the one document in `text`; `None` when it is empty. After a syntax error nothing can be trusted, so
/// there is no tree; other faults leave one.
pub(super) fn parse(text: &str) -> (Option<Node>, Vec<Fault>) {
    let start = Mark { line: 1, column: 1 };
    if text.len() > FILE_MAX {
        return (None, vec![(start, "the file is larger than 1 MiB; make it smaller".to_owned())]);
    }
    let mut faults = Vec::new();
    let mut stack: Vec<Open> = Vec::new();
    let mut root = None;
    let mut documents = 0;
    for event in Parser::new_from_str(text) {
        let (event, span) = match event {
            Ok(event) => event,
            Err(error) => {
                let marker = error.marker();
                let mark = Mark { line: marker.line().max(1), column: marker.col() + 1 };
                return (None, vec![(mark, format!("this is not YAML: {}; correct the syntax", error.info()))]);
            }
        };
        let mark = mark_of(&span);
        let node = match event {
            Event::DocumentStart(_) => {
                documents += 1;
                if documents > 1 {
                    faults.push((mark, "a second document begins here; keep one document in the file".to_owned()));
                    return (root, faults);
                }
                continue;
            }
            Event::Alias(_) => {
                faults.push((mark, "aliases are not supported; write the value here".to_owned()));
                Node { mark, content: Content::Scalar { text: String::new(), plain: true } }
            }
            Event::Scalar(text, style, anchor, tag) => {
                refuse_extras(anchor, tag.is_some(), mark, &mut faults);
                let plain = style == ScalarStyle::Plain;
                Node { mark, content: Content::Scalar { text: text.into_owned(), plain } }
            }
            Event::SequenceStart(anchor, tag) => {
                refuse_extras(anchor, tag.is_some(), mark, &mut faults);
                stack.push(Open { mark, items: Items::Sequence(Vec::new()) });
                if stack.len() > DEPTH_MAX {
                    faults.push((mark, "nested too deeply; no key needs that".to_owned()));
                    return (None, faults);
                }
                continue;
            }
            Event::MappingStart(anchor, tag) => {
                refuse_extras(anchor, tag.is_some(), mark, &mut faults);
                stack.push(Open { mark, items: Items::Mapping(Vec::new(), None) });
                if stack.len() > DEPTH_MAX {
                    faults.push((mark, "nested too deeply; no key needs that".to_owned()));
                    return (None, faults);
                }
                continue;
            }
            Event::SequenceEnd | Event::MappingEnd => match stack.pop() {
                Some(open) => open.close(),
                None => continue,
            },
            Event::Nothing | Event::StreamStart | Event::StreamEnd | Event::DocumentEnd => continue,
        };
        match stack.last_mut() {
            Some(open) => open.push(node, &mut faults),
            None => root = Some(node),
        }
    }
    (root.filter(|root| !root.is_null()), faults)
}

fn mark_of(span: &Span) -> Mark {
    Mark { line: span.start.line(), column: span.start.col() + 1 }
}

fn refuse_extras(anchor: usize, tag: bool, mark: Mark, faults: &mut Vec<Fault>) {
    if anchor > 0 {
        faults.push((mark, "anchors are not supported; remove the `&` and its name".to_owned()));
    }
    if tag {
        faults.push((mark, "tags are not supported; remove the `!` and its name".to_owned()));
    }
}

impl Open {
    fn close(self) -> Node {
        let content = match self.items {
            Items::Sequence(items) => Content::Sequence(items),
            Items::Mapping(entries, _) => Content::Mapping(entries),
        };
        Node { mark: self.mark, content }
    }

    fn push(&mut self, node: Node, faults: &mut Vec<Fault>) {
        match &mut self.items {
            Items::Sequence(items) => items.push(node),
            Items::Mapping(entries, pending) => match pending.take() {
                None => {
                    let text = match node.content {
                        Content::Scalar { text, .. } => text,
                        Content::Sequence(_) | Content::Mapping(_) => {
                            faults.push((node.mark, "a key is a collection; write a name".to_owned()));
                            String::new()
                        }
                    };
                    *pending = Some(Key { mark: node.mark, text });
                }
                Some(key) => match entries.iter().find(|(other, _)| other.text == key.text) {
                    Some((first, _)) => {
                        let text =
                            format!("{}: written twice, first in line {}; keep one of them", key.text, first.mark.line);
                        faults.push((key.mark, text));
                    }
                    None => entries.push((key, node)),
                },
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn faults(text: &str) -> Vec<(usize, usize, String)> {
        parse(text).1.into_iter().map(|(mark, text)| (mark.line, mark.column, text)).collect()
    }

    #[test]
    fn nodes_know_where_they_stand() {
        let (root, faults) = parse("a: 1\nb:\n  - x\n  - 'y'\n");
        assert!(faults.is_empty());
        let Content::Mapping(entries) = root.unwrap().content else { panic!("a mapping") };
        let (key, node) = &entries[1];
        assert_eq!((key.text.as_str(), key.mark), ("b", Mark { line: 2, column: 1 }));
        let Content::Sequence(items) = &node.content else { panic!("a list") };
        assert_eq!(items[1].mark, Mark { line: 4, column: 5 });
        assert!(matches!(&items[1].content, Content::Scalar { text, plain: false } if text == "y"));
    }

    #[test]
    fn an_empty_file_is_an_empty_configuration() {
        for text in ["", "\n", "# only a comment\n", "---\n", "~", "null"] {
            let (root, faults) = parse(text);
            assert!(root.is_none() && faults.is_empty(), "{text:?}");
        }
    }

    #[test]
    fn what_is_not_supported_is_refused_where_it_stands() {
        for (text, line, column, part) in [
            ("a: 1\na: 2", 2, 1, "written twice, first in line 1"),
            ("a: &x 1", 1, 4, "anchors"),
            ("a: &x 1\nb: *x", 1, 4, "anchors"),
            ("a: !!str 1", 1, 4, "tags"),
            ("? [1]\n: 2", 1, 3, "a key is a collection"),
            ("a: 1\n---\nb: 2", 2, 1, "second document"),
            ("a: [1", 1, 7, "not YAML"),
            ("a: 'b", 1, 7, "not YAML"),
            ("a: b: c", 1, 5, "not YAML"),
        ] {
            let found = faults(text);
            assert!(found.iter().any(|(_, _, message)| message.contains(part)), "{text:?}: no {part:?} in {found:?}");
            // Where a syntax error is noticed is the parser's choice.
            if part != "not YAML" {
                assert_eq!((found[0].0, found[0].1), (line, column), "{text:?}: {found:?}");
            }
        }
        assert!(faults(&"[".repeat(200)).len() == 1);
        let nested = (0..100).map(|depth| " ".repeat(depth) + "a:\n").collect::<String>();
        assert!(faults(&nested)[0].2.contains("too deeply"));
        assert!(faults(&" ".repeat(FILE_MAX + 1))[0].2.contains("1 MiB"));
    }

    proptest! {
        #[test]
        fn any_text_gives_a_tree_or_faults(
            text in "([a-z]{1,3}: ?|- |\\n|  |\\[|\\]|\\{|\\}|'|\"|&a|\\*a|!|#|\\||---|\\PC){0,40}"
        ) {
            let (root, faults) = parse(&text);
            prop_assert!(root.is_some() || !faults.is_empty() || text.len() < 400);
        }
    }
}
