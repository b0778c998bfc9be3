//! Any text as a chat template: an error or a prompt, never a panic and never a loop without an end.
#![no_main]

use espalier::data::{
    record::Message,
    template::{ChatTemplate, Conversation},
    tokenizer::SpecialTokens,
};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let Ok(template) = ChatTemplate::new(text) else {
        return;
    };
    let messages = [
        Message::user("a < b"),
        Message::assistant("{{ c }}"),
        Message::user("\u{e9}"),
    ];
    let special = SpecialTokens::default();
    let _ = template.render(&Conversation::new(&messages, &special));
});
