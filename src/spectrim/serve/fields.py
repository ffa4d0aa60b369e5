"""What requests may say: OpenAI's fields, their kinds and their limits."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator, model_validator

# Fields that are taken only with a value that asks nothing of the server.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "n": (None, 1),
    "best_of": (None, 1),
    "echo": (None, False),
    "suffix": (None, ""),
    "frequency_penalty": (None, 0),
    "presence_penalty": (None, 0),
    "logit_bias": (None, {}),
    "tools": (None, []),
    "tool_choice": (None, "none", "auto"),
    "functions": (None, []),
    "function_call": (None, "none", "auto"),
    "response_format": (None, {"type": "text"}),
    "modalities": (None, ["text"]),
    "dimensions": (None,),
}


def _encodable(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError("half of a surrogate pair is no letter") from error
    return text


Text = Annotated[str, AfterValidator(_encodable)]
Tokens = Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)]
Lists = Annotated[list[Tokens], Field(min_length=1, max_length=256)]
Stop = Annotated[Text, Field(min_length=1, max_length=1000)]


class _Fields(BaseModel):
    """Nothing is converted, and no field that is not known is passed over."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)


class StreamOptions(_Fields):
    """What a stream holds beside the answer."""

    include_usage: bool = False
    include_obfuscation: bool = False


class _Request(_Fields):
    model: Text
    # These are for OpenAI's own records.
    user: Any = None
    metadata: Any = None
    store: Any = None
    service_tier: Any = None
    safety_identifier: Any = None
    prompt_cache_key: Any = None


class _Generation(_Request):
    """What requests for chats and for completions share."""

    max_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: Stop | Annotated[list[Stop], Field(max_length=4)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Any = None
    frequency_penalty: Any = None
    presence_penalty: Any = None
    logit_bias: Any = None

    @field_validator(*_NEUTRAL, mode="before", check_fields=False)
    @classmethod
    def _asks_nothing(cls, value: Any, info: Any) -> Any:
        neutral = _NEUTRAL[info.field_name]
        # True is 1 to Python, and [] is not hashable.
        if not any(value == one and isinstance(value, bool) <= (one is False) for one in neutral):
            allowed = " or ".join(repr(one) for one in neutral if one is not None)
            raise ValueError(f"this server does not offer it; leave it out, or give {allowed}")
        return value

    @property
    def stops(self) -> tuple[str, ...]:
        """Return the texts that end an answer."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())


class CompletionRequest(_Generation):
    """The body of /v1/completions."""

    prompt: Text | Annotated[list[Text], Field(min_length=1, max_length=1)] | Tokens | Lists
    logprobs: Annotated[int, Field(ge=0, le=5)] | None = None
    best_of: Any = None
    echo: Any = None
    suffix: Any = None

    @field_validator("prompt")
    @classmethod
    def _one_prompt(cls, prompt: Any) -> Any:
        if isinstance(prompt, list) and isinstance(prompt[0], list) and len(prompt) > 1:
            raise ValueError("one request has one prompt; send the others by themselves")
        return prompt


class Part(_Fields):
    """A part of a message; only text is understood."""

    type: Literal["text"]
    text: Text


class Message(_Fields):
    """One turn of a chat."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Text | list[Part] | None
    name: Any = None
    # What earlier answers have, as OpenAI's client gives them back.
    refusal: None = None
    annotations: None = None
    audio: None = None
    function_call: None = None
    tool_calls: Annotated[list[Any], Field(max_length=0)] | None = None

    @model_validator(mode="after")
    def _says_something(self) -> Message:
        if self.content is None and self.role != "assistant":
            raise ValueError("only an assistant's message may have no content")
        return self


class ChatRequest(_Generation):
    """The body of /v1/chat/completions."""

    messages: Annotated[list[Message], Field(min_length=1)]
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    tools: Any = None
    tool_choice: Any = None
    parallel_tool_calls: bool | None = None
    functions: Any = None
    function_call: Any = None
    response_format: Any = None
    modalities: Any = None


class EmbeddingRequest(_Request):
    """The body of /v1/embeddings."""

    input: Text | Annotated[list[Text], Field(min_length=1, max_length=256)] | Tokens | Lists
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: None = None
