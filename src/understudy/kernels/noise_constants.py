"""What the noise of sampling is mixed with, wherever it is made: by torch, by the processor's kernel and by a GPU's."""

# The factors of splitmix64's finaliser.
MIX_FIRST, MIX_SECOND = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
# By how much the number that is mixed grows from one token to the next.
TOKEN_STEP = 0xD1B54A32D192ED03
