"""Drives a running server with the official clients: python clients.py http://127.0.0.1:8000 [MODEL]

Needs `pip install openai`; Anthropic's client is tried where it is installed. Every line says what was tried; a failure ends the script.
"""

import sys

import openai

base = sys.argv[1]
client = openai.OpenAI(base_url=f"{base}/v1", api_key="none", max_retries=0)
model = sys.argv[2] if len(sys.argv) > 2 else client.models.list().data[0].id
messages = [{"role": "user", "content": "Hello"}]
chat = client.chat.completions


def tried(what, good):
    print(("ok   " if good else "FAIL ") + what)
    if not good:
        sys.exit(1)


whole = chat.create(model=model, messages=messages, max_tokens=12, seed=3, temperature=1)
text = whole.choices[0].message.content
tried("an answer", whole.usage.completion_tokens <= 12 and whole.choices[0].finish_reason in ("stop", "length"))

chunks = list(
    chat.create(
        model=model, messages=messages, max_tokens=12, seed=3, temperature=1, stream=True,
        stream_options={"include_usage": True},
    )
)
pieces = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
tried("the same as a stream", pieces == text and chunks[-1].usage == whole.usage.model_copy(
    update={"prompt_tokens_details": chunks[-1].usage.prompt_tokens_details}))

several = chat.create(model=model, messages=messages, max_tokens=4, n=3, logprobs=True, top_logprobs=2)
tried("three answers with log-probabilities", len(several.choices) == 3
      and all(len(t.top_logprobs) == 2 for c in several.choices for t in c.logprobs.content))

completed = client.completions.create(model=model, prompt="Once", max_tokens=5, logprobs=1)
tried("a completion", len(completed.choices[0].logprobs.tokens) <= 5)
streamed = client.completions.create(model=model, prompt=["Once", "Twice"], max_tokens=5, stream=True)
tried("two completions as a stream", {c.choices[0].index for c in streamed} == {0, 1})

vectors = client.embeddings.create(model=model, input=["one", "two"])
tried("vectors", len(vectors.data) == 2 and abs(sum(x * x for x in vectors.data[0].embedding) - 1) < 1e-4)

response = client.responses.create(model=model, input="Hello", max_output_tokens=12)
tried("a response", response.output_text is not None and response.usage.output_tokens <= 12)
with client.responses.stream(model=model, input="Hello", max_output_tokens=12) as stream:
    deltas = "".join(e.delta for e in stream if e.type == "response.output_text.delta")
tried("a response as a stream", isinstance(deltas, str))

for what, kind, call in [
    ("an unknown model", openai.NotFoundError, lambda: chat.create(model="none", messages=messages)),
    ("a temperature of 9", openai.BadRequestError, lambda: chat.create(model=model, messages=messages, temperature=9)),
    ("an unknown field", openai.BadRequestError, lambda: chat.create(model=model, messages=messages, extra_body={"x": 1})),
]:
    try:
        call()
        tried(f"{what} is refused", False)
    except kind as error:
        tried(f"{what} is refused: {error.body['message'][:60]}", True)

try:
    import anthropic
except ImportError:
    sys.exit(0)
other = anthropic.Anthropic(base_url=base, api_key="none", max_retries=0)
said = other.messages.create(model=model, messages=messages, max_tokens=12)
tried("Anthropic's message", said.role == "assistant" and said.usage.output_tokens <= 12)
with other.messages.stream(model=model, messages=messages, max_tokens=12) as stream:
    tried("Anthropic's message as a stream", isinstance("".join(stream.text_stream), str))
try:
    other.messages.create(model="none", messages=messages, max_tokens=12)
    tried("Anthropic's refusal", False)
except anthropic.NotFoundError:
    tried("Anthropic's refusal", True)
