"""What the endpoints of tokenizers answer."""

from __future__ import annotations

from typing import Any

from ..api.conversation import conversation_of
from ..api.protocol import ChatBody, DetokenizeBody, TokenizeBody
from ..chat_template import encode


def encoded(body: TokenizeBody, llm: Any) -> dict[str, Any]:
    """The answer of /tokenize."""
    if body.messages is not None:
        names = ("messages", "tools", "chat_template_kwargs", "add_generation_prompt", "continue_final_message")
        tokens = conversation_of(llm, ChatBody(**{name: getattr(body, name) for name in names})).ids
    else:
        tokens = encode(llm.tokenizer, str(body.prompt), add_special_tokens=body.add_special_tokens)
    found: dict[str, Any] = {"tokens": tokens, "count": len(tokens), "max_model_len": llm.context}
    if body.return_token_strs:
        found["token_strs"] = llm.tokenizer.convert_ids_to_tokens(tokens)
    return found


def decoded(body: DetokenizeBody, llm: Any) -> dict[str, Any]:
    """The answer of /detokenize."""
    tokens = llm.prompt_ids(body.tokens) if body.tokens else []
    return {"prompt": llm.tokenizer.decode(tokens)}


def facts(llm: Any) -> dict[str, Any]:
    """The answer of /tokenizer_info."""
    tokenizer = llm.tokenizer
    return {
        "tokenizer_class": type(tokenizer).__name__,
        "vocab_size": len(tokenizer),
        "model_max_length": llm.context,
        "bos_token": tokenizer.bos_token,
        "eos_token": tokenizer.eos_token,
        "pad_token": tokenizer.pad_token,
        "chat_template": tokenizer.chat_template,
    }
