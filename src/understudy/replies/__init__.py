"""What a reply of a chat consists of: reasoning, content and calls of tools, told apart as the text comes.

How models write these is data: a *response template* of transformers, the tokenizer's own or one of `families.py`."""
