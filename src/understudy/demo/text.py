"""Documents to token windows: the demo model's tokenizer and the order in which it reads."""

from collections.abc import Iterator, Sequence

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from understudy.demo.corpus import Document

VOCABULARY = 4096
CONTEXT = 4096
END = "<|endoftext|>"
WORDS = r"\n+[ \t]*| ?_*\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|[^\S\n]+(?!\S)|[^\S\n]+"
"""A line break with the indentation after it, a word with its underscores, one digit, a run of signs, other space."""


def train_tokenizer(texts: Sequence[str]) -> PreTrainedTokenizerFast:
    """A byte-level BPE that loses no byte and spends one token on a line break with its indentation."""
    tokenizer = Tokenizer(models.BPE())
    words = pre_tokenizers.Split(Regex(WORDS), "isolated")
    letters = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([words, letters])
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=[END], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer,
        bos_token=END,
        eos_token=END,
        clean_up_tokenization_spaces=False,
        model_max_length=CONTEXT,
    )


def encode(tokenizer: PreTrainedTokenizerFast, chosen: Sequence[Document]) -> list[Tensor]:
    """Each document's tokens, ended."""
    end = [tokenizer.eos_token_id]
    return [torch.tensor(tokenizer(document.text)["input_ids"] + end) for document in chosen]


def batches(texts: Sequence[Tensor], count: int, window: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Forever: [count, window] tokens of the documents, each time round in a new order and cut from a new offset."""
    while True:
        order = torch.randperm(len(texts), generator=generator).tolist()
        stream = torch.cat([texts[index] for index in order])
        stream = stream.roll(int(torch.randint(len(stream), (1,), generator=generator)))
        windows = stream[: len(stream) // window * window].view(-1, window)
        windows = windows[torch.randperm(len(windows), generator=generator)]
        yield from torch.split(windows[: len(windows) // count * count], count)
