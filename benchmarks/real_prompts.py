"""Prompts for instruct models in the eleven categories of SPEED-Bench, two each, written for this purpose.

Long passages stand in `texts/`: the American Declaration of Independence and the beginning of Alice's Adventures in Wonderland
(both in the public domain), and a page of documentation, a class and minutes of a meeting of our own."""

from dataclasses import dataclass
from pathlib import Path

TEXTS = Path(__file__).with_name("texts")


@dataclass(frozen=True)
class Prompt:
    """What a user asks, turn after turn; the model answers each turn."""

    category: str
    # What the user writes in each turn.
    turns: tuple[str, ...]
    # The names of the passages in `texts/` that stand before the first turn.
    passages: tuple[str, ...] = ()

    @property
    def messages(self) -> list[str]:
        """The user's messages, the passages included."""
        read = [f"[{i}]\n{(TEXTS / f'{name}.txt').read_text()}" for i, name in enumerate(self.passages, 1)]
        return ["\n".join([*read, self.turns[0]]), *self.turns[1:]]


PROMPTS = (
    Prompt(
        "coding",
        (
            "Write a Python function `merge_intervals(intervals)` that takes a list of (start, end) pairs and merges those "
            "that overlap. Give it a docstring, and show two calls with their results.",
            "Now write unit tests for this function with the unittest module, the empty list included.",
        ),
    ),
    Prompt(
        "coding",
        (
            "The code above holds a tree of tokens and the nodes of one forward pass. Write the class TokenTree again with a "
            "docstring for every method, and add a method `leaves` that returns the numbers of all nodes without children.",
        ),
        ("tree",),
    ),
    Prompt(
        "math",
        (
            "A shop sells pencils at 35 cents each and notebooks at 2 dollars and 40 cents each. Mira buys 4 notebooks and some "
            "pencils and pays 12 dollars and 40 cents in all. How many pencils does she buy? Show each step.",
        ),
    ),
    Prompt(
        "math",
        (
            "Solve the quadratic equation 2x^2 - 7x + 3 = 0 with the quadratic formula. Explain every step and check both "
            "solutions by putting them into the equation.",
        ),
    ),
    Prompt(
        "humanities",
        (
            "Explain the causes of the French Revolution. Treat the state's money, the harvests, the orders of society and the "
            "ideas of the Enlightenment, one paragraph each.",
        ),
    ),
    Prompt(
        "humanities",
        ("What did Immanuel Kant mean by the categorical imperative? Give its main formulations and an everyday example.",),
    ),
    Prompt(
        "stem",
        (
            "How does photosynthesis work? Describe the light-dependent reactions and the Calvin cycle, where each happens in "
            "the cell, and what goes in and comes out.",
        ),
    ),
    Prompt(
        "stem",
        ("Explain Newton's three laws of motion to a student of fifteen, with one example from sport for each law.",),
    ),
    Prompt(
        "writing",
        (
            "Write a short story about a lighthouse keeper who finds a letter in a bottle. Begin with the weather and end with "
            "a question.",
        ),
    ),
    Prompt(
        "writing",
        (
            "Write an email to all residents of an apartment building: the lift will be out of service from Monday to Wednesday "
            "for repairs. Be polite, say how people who cannot use the stairs get help, and thank them for their patience.",
        ),
    ),
    Prompt(
        "summarization",
        ("Summarize the document above in one paragraph of about 120 words, then list its five most important points.",),
        ("declaration",),
    ),
    Prompt(
        "summarization",
        ("Summarize these minutes for the members who were not there: what was decided, what it costs, and what is still open.",),
        ("minutes",),
    ),
    Prompt(
        "roleplay",
        (
            "You are the captain of a sailing ship in the year 1790, and I am a boy who wants to join the crew. Stay in this "
            "role. Tell me about the ship and ask me why I want to go to sea.",
            "I want to see the islands of spices, sir, and I can already tie every knot. What will my first day on board be like?",
        ),
    ),
    Prompt(
        "roleplay",
        (
            "You are a detective of few words in a rainy city. A woman comes into your office and says that her clock has been "
            "stolen. Answer her in your role, and describe the office.",
        ),
    ),
    Prompt(
        "rag",
        (
            "Answer only from the texts above and say which one you used. Why must a node's logits not depend on the other nodes "
            "of its pass, and how is that arranged? Quote the sentence that says how large a tile is.",
        ),
        ("design", "minutes"),
    ),
    Prompt(
        "rag",
        (
            "Answer only from the texts above and say which one you used. Which firm repairs the roof, what does it cost, and "
            "when does the work begin? Then: what was written on the jar that Alice took from the shelf?",
        ),
        ("minutes", "alice"),
    ),
    Prompt(
        "multilingual",
        ("Traduis en français, puis en espagnol: The train to the coast leaves at half past seven, and the tickets are cheaper "
         "if you buy them the day before.",),
    ),
    Prompt(
        "multilingual",
        ("Erkläre auf Deutsch in fünf Sätzen, warum der Himmel am Tag blau und am Abend rot ist.",),
    ),
    Prompt(
        "reasoning",
        (
            "Anna, Ben and Carla each have one pet: a cat, a dog and a parrot. Ben is allergic to fur. Anna walks her pet in the "
            "park every morning. Who has which pet? Think step by step, then give the answer.",
        ),
    ),
    Prompt(
        "reasoning",
        (
            "A farmer must take a wolf, a goat and a cabbage across a river in a boat that holds him and one of them. The wolf "
            "may not be left with the goat, nor the goat with the cabbage. Give the crossings in order and say who is on which "
            "bank after each.",
        ),
    ),
    Prompt("qa", ("What is the capital of Australia, and why was it not Sydney or Melbourne?",)),
    Prompt("qa", ("Who wrote the novel Frankenstein, when was it first published, and what is it about?",)),
)  # fmt: skip

CATEGORIES = tuple(dict.fromkeys(prompt.category for prompt in PROMPTS))


def chosen(categories: tuple[str, ...], count: int) -> list[Prompt]:
    """The first `count` prompts of each of `categories`."""
    return [prompt for name in categories for prompt in [p for p in PROMPTS if p.category == name][:count]]
