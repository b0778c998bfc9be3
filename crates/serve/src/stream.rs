//! Answers as they are sent: whole, or piece by piece as server-sent events.

use std::{
    collections::VecDeque,
    convert::Infallible,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Instant,
};

use axum::{
    body::{Body, Bytes},
    http::{HeaderValue, Response, header},
};
use futures_core::Stream;
use serde_json::Value;
use tokio::time::{Sleep, sleep, timeout};

use crate::{
    app::App,
    error::Refusal,
    generation::Answers,
    speech::{Ended, Said, Told},
};

/// A whole answer.
#[derive(Debug, Default, Clone)]
pub(crate) struct Whole {
    pub text: String,
    pub told: Vec<Told>,
    pub ended: Option<Ended>,
}

/// Waits for all answers.
pub(crate) async fn collect(app: &Arc<App>, mut answers: Answers) -> Result<Vec<Whole>, Refusal> {
    let mut all = vec![Whole::default(); answers.count];
    let mut left = answers.count;
    let mut times = Times::new(answers.begun);
    let gather = async {
        while left > 0 {
            let Some((number, said)) = answers.heard.recv().await else {
                return Err(Refusal::internal("the answer broke off"));
            };
            let Some(whole) = all.get_mut(number) else {
                continue;
            };
            match said {
                Said::Piece(text, told) => {
                    times.piece(app);
                    whole.text.push_str(&text);
                    whole.told.extend(told);
                }
                Said::End(ended) => {
                    whole.ended = Some(ended);
                    left -= 1;
                }
                Said::Failed(refusal) => return Err(refusal),
            }
        }
        Ok(())
    };
    let limit = app.limits.answer;
    match timeout(limit, gather).await {
        Ok(Ok(())) => Ok(all),
        Ok(Err(refusal)) => Err(refusal),
        Err(_) => Err(Refusal::timeout(limit.as_secs())),
    }
}

/// Times of pieces, for the figures.
struct Times {
    last: Instant,
    first: bool,
}

impl Times {
    fn new(begun: Instant) -> Self {
        Self {
            last: begun,
            first: true,
        }
    }

    fn piece(&mut self, app: &App) {
        let since = self.last.elapsed();
        match std::mem::replace(&mut self.first, false) {
            true => app.metrics.first(since),
            false => app.metrics.next(since),
        }
        self.last = Instant::now();
    }
}

/// Makes events of what is said. Every event is its data, with a name where the interface has names.
pub(crate) trait Writer: Send + 'static {
    /// What comes before anything is said.
    fn begin(&mut self, _events: &mut Events) {}

    /// Something was said of an answer.
    fn said(&mut self, number: usize, said: Said, events: &mut Events);

    /// All answers have ended.
    fn end(&mut self, events: &mut Events);

    /// It failed.
    fn fail(&mut self, refusal: &Refusal, events: &mut Events) {
        events.data(&refusal.to_json());
    }
}

/// Events that wait to be sent.
#[derive(Debug, Default)]
pub(crate) struct Events(VecDeque<Bytes>);

impl Events {
    /// An event without a name.
    pub fn data(&mut self, data: &Value) {
        self.0.push_back(Bytes::from(format!("data: {data}\n\n")));
    }

    /// An event with a name.
    pub fn named(&mut self, name: &str, data: &Value) {
        let text = format!("event: {name}\ndata: {data}\n\n");
        self.0.push_back(Bytes::from(text));
    }

    /// The sign of OpenAI's streams that nothing comes any more.
    pub fn done(&mut self) {
        self.0.push_back(Bytes::from_static(b"data: [DONE]\n\n"));
    }
}

/// A stream of events. Dropped, as when the client leaves, it ends the work.
struct EventStream<W> {
    app: Arc<App>,
    answers: Answers,
    left: usize,
    writer: W,
    events: Events,
    times: Times,
    deadline: Pin<Box<Sleep>>,
    over: bool,
}

impl<W: Writer + Unpin> Stream for EventStream<W> {
    type Item = Result<Bytes, Infallible>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let own = self.get_mut();
        loop {
            if let Some(event) = own.events.0.pop_front() {
                return Poll::Ready(Some(Ok(event)));
            }
            if own.over {
                return Poll::Ready(None);
            }
            if own.deadline.as_mut().poll(context).is_ready() {
                let refusal = Refusal::timeout(own.app.limits.answer.as_secs());
                own.fail(&refusal);
                continue;
            }
            match own.answers.heard.poll_recv(context) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(None) => own.fail(&Refusal::internal("the answer broke off")),
                Poll::Ready(Some((_, Said::Failed(refusal)))) => own.fail(&refusal),
                Poll::Ready(Some((number, said))) => own.hear(number, said),
            }
        }
    }
}

impl<W: Writer> EventStream<W> {
    fn fail(&mut self, refusal: &Refusal) {
        self.writer.fail(refusal, &mut self.events);
        self.over = true;
    }

    fn hear(&mut self, number: usize, said: Said) {
        match &said {
            Said::Piece(..) => self.times.piece(&self.app),
            Said::End(_) => self.left -= 1,
            Said::Failed(_) => {}
        }
        self.writer.said(number, said, &mut self.events);
        if self.left == 0 {
            self.writer.end(&mut self.events);
            self.over = true;
        }
    }
}

/// The response that streams answers. What fails before the first word of an answer is a status of its own.
pub(crate) async fn respond<W: Writer + Unpin>(
    app: &Arc<App>,
    mut answers: Answers,
    writer: W,
) -> Result<Response<Body>, Refusal> {
    let limit = app.limits.answer;
    let Ok(first) = timeout(limit, answers.heard.recv()).await else {
        return Err(Refusal::timeout(limit.as_secs()));
    };
    let mut stream = EventStream {
        app: Arc::clone(app),
        left: answers.count,
        times: Times::new(answers.begun),
        answers,
        writer,
        events: Events::default(),
        deadline: Box::pin(sleep(limit)),
        over: false,
    };
    match first {
        None => return Err(Refusal::internal("the answer broke off")),
        Some((_, Said::Failed(refusal))) => return Err(refusal),
        Some((number, said)) => {
            stream.writer.begin(&mut stream.events);
            stream.hear(number, said);
        }
    }
    let mut response = Response::new(Body::from_stream(stream));
    let headers = response.headers_mut();
    headers.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("text/event-stream; charset=utf-8"),
    );
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    Ok(response)
}

/// A response of JSON.
pub(crate) fn json(value: &Value) -> Response<Body> {
    let mut response = Response::new(Body::from(value.to_string()));
    response.headers_mut().insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/json"),
    );
    response
}
