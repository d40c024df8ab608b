"""The acceptance rule: the target's own choices are followed down the tree, and the first one the tree lacks is the bonus."""

from torch import Tensor

from .tree import TokenTree


def accept(tree: TokenTree, choices: Tensor) -> tuple[Tensor, int]:
    """`choices[i]` [n] is the token the exact model puts after node i.

    Returns the accepted path (node indices, the root first) and the token after its end. Exact for any tree, since only
    the target's choices are ever emitted (SubSpec, arXiv 2509.18344, section 3; with shared noise also when sampling)."""
    wrong = choices[tree.parents.clamp(min=0)] != tree.tokens
    wrong[0] = False
    if tree.is_chain:
        kept = ~wrong.cumsum(0).bool()
        path = kept.nonzero().flatten()
    else:
        kept = ~(tree.ancestors & wrong).any(1)
        last = (tree.depths * kept).argmax()
        path = tree.ancestors[last].nonzero().flatten()
    return path, int(choices[path[-1]])
