"""The built-in demo model: a small Llama that writes Python, trained by `understudy.demo.train`."""

from pathlib import Path

# What commands and Python programs call it.
NAME = "demo"
PROMPT = '''class Walker:
    """Visits the nodes of a tree."""

    def walk(self, node, depth=0):
        """Visit a node and then its children, in order."""
        method = getattr(self, "visit_" + node.__class__.__name__, None)
        if method is not None:
            result = method(node)
            if result is not None:
                return result
        for child in node.children:
            self.walk(child, depth + 1)'''


def path() -> Path:
    """The directory of the packaged model, in Hugging Face's format."""
    return Path(__file__).parent / "model"


def head_path() -> Path:
    """The directory of the packaged model's draft head (EAGLE, one layer), made by `understudy.scaling.demo_head`."""
    return Path(__file__).parent / "head"
