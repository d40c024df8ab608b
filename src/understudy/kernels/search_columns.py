"""Where the numbers of a tree search lie in its arrays on a device: the search in torch's operations and the one in kernels share
them."""

# Columns of a node, int64: its token, parent, depth, whether it is on the chain of first choices, how many children were found;
# from CHILDREN on, the tokens of its best children.
TOKEN, PARENT, DEPTH, SPINE, FOUND, CHILDREN = range(6)
# Columns of its chances, float64: its own; from THROUGH on, the chance of each child (-1: there is none, or it is a node). As many
# follow of the children that may still be run, and then as many scores.
CHANCE, THROUGH = 0, 1
# Rows of the candidates, int64: the sequence's place in the draft, where the candidate's chance lies among all nodes' chances, its
# parent, token and depth, whether it is on the chain of first choices, and whether there is a candidate at all.
ROW, PLACE, FROM, WHAT, DEEP, CHAIN, VALID = range(7)
# One row more of those that a level took: the node that each became; -1: none.
BECAME = 7
