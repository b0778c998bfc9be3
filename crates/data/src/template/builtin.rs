//! Templates for models that have none.

/// The messages' texts and nothing else, with the end-of-sequence token after the assistant's part: for tasks whose questions and
/// answers carry their own marks.
pub const PLAIN: &str = "\
{%- for message in messages %}
{%- if message.role == 'assistant' %}
{%- generation %}
{{- message.content + eos_token }}
{%- endgeneration %}
{%- else %}
{{- message.content }}
{%- endif %}
{%- endfor %}";

/// ChatML, with generation marks around the assistant's text and the token that ends its turn. It refuses tools, for which ChatML has
/// no one form.
pub const CHATML: &str = "\
{%- if tools %}
{{- raise_exception('the built-in ChatML has no form for tools; use the template of a model that has') }}
{%- endif %}
{%- for message in messages %}
{%- if message.tool_calls %}
{{- raise_exception('the built-in ChatML has no form for tool calls; use the template of a model that has') }}
{%- endif %}
{{- '<|im_start|>' + message.role + '\\n' }}
{%- if message.role == 'assistant' %}
{%- generation %}
{{- message.content + '<|im_end|>' }}
{%- endgeneration %}
{%- else %}
{{- message.content + '<|im_end|>' }}
{%- endif %}
{{- '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|im_start|>assistant\\n' }}
{%- endif %}";
