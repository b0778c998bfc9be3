//! A client that sends what it is told, right or wrong, and a server to send it to.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use burn::tensor::Device;
use espalier_data::{
    template::ChatTemplate,
    tokenizer::{BpeOptions, Tokenizer},
};
use espalier_engine::{sampler::SamplerOptions, scheduler::Options, text::TextModel};
use espalier_models::{model::LanguageModel, source::Seed, spec::ModelSpec};
use espalier_serve::{Config, Limits, Model, Server};
use serde_json::Value;

/// A template that renders tools, in the dialect of Hermes.
const TEMPLATE: &str = "{% if tools %}<|im_start|>system\n<tools>{{ tools | tojson }}</tools> <tool_call><|im_end|>\n{% endif %}\
{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}{% for call in message.tool_calls %}\
<tool_call>{{ call.function.arguments.a }}</tool_call>{% endfor %}<|im_end|>\n{% endfor %}\
{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";

/// A tiny model of random weights that writes all kinds of bytes.
pub fn text_model(seed: u64) -> TextModel {
    let texts = vec!["the sum of two and three is five, é 日本".to_string(); 4];
    let options = BpeOptions {
        vocabulary: 290,
        ..Default::default()
    };
    let tokenizer = Tokenizer::train_byte_level_bpe(texts.into_iter(), &options).unwrap();
    let mut spec = ModelSpec::llama(tokenizer.vocabulary_size(), 32, 2, 4, 2, 64, 512);
    // Small enough that no two tokens are equally likely but for rounding, which the company of other rows changes.
    spec.initializer_range = 0.1;
    spec.eos = vec![tokenizer.id("<|im_end|>").unwrap()];
    let model = LanguageModel::build(spec, &mut Seed(seed), &Device::flex()).unwrap();
    TextModel {
        model: model.frozen(),
        tokenizer: tokenizer.with_template(ChatTemplate::new(TEMPLATE).unwrap()),
    }
}

pub fn model(name: &str, seed: u64) -> Model {
    Model {
        name: name.into(),
        text: text_model(seed),
        sampler: SamplerOptions::default(),
        stops: Vec::new(),
        embedder: None,
    }
}

/// A server under test, which ends with this.
pub struct Running {
    pub address: SocketAddr,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

pub fn serve(limits: Limits, keys: &[&str]) -> Running {
    serve_with(limits, keys, Options::default())
}

pub fn serve_with(limits: Limits, keys: &[&str], scheduler: Options) -> Running {
    let config = Config {
        models: vec![model("tiny", 1), model("other", 2)],
        scheduler,
        limits,
        keys: keys.iter().map(|key| (*key).to_string()).collect(),
        log: Box::new(|_| {}),
    };
    let server = Server::listen(config, "127.0.0.1:0").unwrap();
    let (address, stop) = (server.address(), Arc::new(AtomicBool::new(false)));
    let seen = Arc::clone(&stop);
    let thread = thread::spawn(move || server.run(move || seen.load(Ordering::SeqCst)).unwrap());
    Running {
        address,
        stop,
        thread: Some(thread),
    }
}

impl Running {
    /// Asks the server to end.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::SeqCst);
    }

    /// Waits for its end.
    pub fn join(&mut self) {
        self.stop();
        self.thread.take().unwrap().join().unwrap();
    }

    pub fn post(&self, path: &str, body: &Value) -> Reply {
        self.send("POST", path, &[], body.to_string().as_bytes())
    }

    pub fn get(&self, path: &str) -> Reply {
        self.send("GET", path, &[], b"")
    }

    pub fn send(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Reply {
        let mut stream = self.open(method, path, headers, body);
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes).unwrap();
        Reply::parse(&bytes)
    }

    /// Sends a request and reads nothing.
    pub fn open(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> TcpStream {
        let mut stream = TcpStream::connect(self.address).unwrap();
        stream
            .set_read_timeout(Some(Duration::from_secs(60)))
            .unwrap();
        let mut head = format!(
            "{method} {path} HTTP/1.1\r\nConnection: close\r\nContent-Length: {}\r\n",
            body.len()
        );
        if !headers.iter().any(|(name, _)| *name == "Host") {
            head += &format!("Host: {}\r\n", self.address);
        }
        for (name, value) in headers {
            head += &format!("{name}: {value}\r\n");
        }
        head += "\r\n";
        stream.write_all(head.as_bytes()).unwrap();
        // A server that refuses by the head need not read the body.
        let _ = stream.write_all(body);
        stream
    }

    /// A figure of `/metrics`.
    pub fn figure(&self, name: &str) -> f64 {
        let text = self.get("/metrics").text();
        let line = text.lines().find(|line| line.starts_with(name));
        let line = line.unwrap_or_else(|| panic!("no {name} in {text}"));
        line.rsplit(' ').next().unwrap().parse().unwrap()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop();
        if let Some(thread) = self.thread.take() {
            let ended = thread.join();
            if !thread::panicking() {
                ended.unwrap();
            }
        }
    }
}

/// A response.
#[derive(Debug)]
pub struct Reply {
    pub status: u16,
    pub head: String,
    pub body: Vec<u8>,
}

impl Reply {
    pub fn parse(bytes: &[u8]) -> Self {
        let end = bytes
            .windows(4)
            .position(|four| four == b"\r\n\r\n")
            .unwrap_or_else(|| panic!("no head: {:?}", String::from_utf8_lossy(bytes)));
        let head = String::from_utf8(bytes[..end].to_vec()).unwrap();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        let raw = &bytes[end + 4..];
        let chunked = head.to_lowercase().contains("transfer-encoding: chunked");
        let body = if chunked {
            unchunked(raw)
        } else {
            raw.to_vec()
        };
        Self { status, head, body }
    }

    pub fn text(&self) -> String {
        String::from_utf8(self.body.clone()).unwrap()
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|_| panic!("no JSON: {self:?}"))
    }

    /// The sentence of an error in OpenAI's form.
    pub fn error(&self) -> String {
        let body = self.json();
        let error = &body["error"];
        for key in ["message", "type", "param", "code"] {
            assert!(error.get(key).is_some(), "{body}");
        }
        error["message"].as_str().unwrap().to_owned()
    }

    /// The data of the events of a stream that is whole.
    pub fn events(&self) -> Vec<Value> {
        let text = self.text();
        let mut events: Vec<&str> = text.split("\n\n").collect();
        assert_eq!(events.pop(), Some(""), "{text}");
        assert_eq!(events.pop(), Some("data: [DONE]"), "{text}");
        events
            .into_iter()
            .map(|event| serde_json::from_str(event.strip_prefix("data: ").unwrap()).unwrap())
            .collect()
    }
}

fn unchunked(mut rest: &[u8]) -> Vec<u8> {
    let mut body = Vec::new();
    while let Some(end) = rest.windows(2).position(|two| two == b"\r\n") {
        let size = std::str::from_utf8(&rest[..end]).unwrap();
        let size = usize::from_str_radix(size, 16).unwrap();
        rest = &rest[end + 2..];
        if size == 0 {
            break;
        }
        body.extend(&rest[..size]);
        rest = &rest[size + 2..];
    }
    body
}
