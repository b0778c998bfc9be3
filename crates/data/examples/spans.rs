//! What models learn of conversations, through any number of chat templates: for whoever checks templates.
//!
//! `spans TEMPLATES RECORDS [SPECIAL ...]` renders each record of a jsonl file (`name`, `messages`, `tools`) through each template of a
//! folder (`*.jinja`) and prints a line of JSON for each: the text, and the characters of it that are learned, or the error.
//! The special tokens are those of the command line.

use std::{error::Error, fs, path::PathBuf};

use espalier_data::{
    encode::render_learned,
    record::Message,
    template::{ChatTemplate, Conversation},
    tokenizer::SpecialTokens,
};
use serde_json::{Value, json};

#[derive(serde::Deserialize)]
struct Case {
    name: String,
    messages: Vec<Message>,
    tools: Option<Value>,
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let folder = arguments.next().ok_or("a folder of templates is missing")?;
    let records = arguments.next().ok_or("a file of records is missing")?;
    let tokens: Vec<String> = arguments.collect();
    let special = SpecialTokens {
        bos: Some("<s>".into()),
        eos: Some("</s>".into()),
        ..SpecialTokens::default()
    };
    let records = fs::read_to_string(records)?;
    let cases: Vec<Case> = records
        .lines()
        .map(serde_json::from_str)
        .collect::<Result<_, _>>()?;
    let mut paths: Vec<PathBuf> = fs::read_dir(folder)?
        .map(|entry| Ok(entry?.path()))
        .collect::<Result<_, std::io::Error>>()?;
    paths.retain(|path| path.extension().is_some_and(|ending| ending == "jinja"));
    paths.sort();
    for path in paths {
        let name = path.file_stem().unwrap_or_default().to_string_lossy();
        let template = match ChatTemplate::new(&fs::read_to_string(&path)?) {
            Ok(template) => template,
            Err(error) => {
                println!("{}", json!({"template": name, "error": error.to_string()}));
                continue;
            }
        };
        for case in &cases {
            let conversation = Conversation {
                tools: case.tools.as_ref(),
                ..Conversation::new(&case.messages, &special)
            };
            let plain = template.render(&conversation).is_ok();
            let line = match render_learned(&template, &conversation, &tokens) {
                Ok(rendered) => json!({"text": rendered.text, "learned": rendered.generation}),
                Err(error) => json!({"error": error.to_string(), "renders": plain}),
            };
            println!(
                "{}",
                json!({"template": name, "case": case.name, "result": line})
            );
        }
    }
    Ok(())
}
