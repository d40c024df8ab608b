"""What `gpu_check` can measure: the rows of its table, by short names, and which of them share a process."""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace

GIB = 1 << 30


@dataclass(frozen=True)
class Size:
    """How much is done: k of the stand-in (parameters grow k*k times, 20: 3.3 billion, 29: about 7), memory cap, tokens of a
    prompt, of a text, of plain text, of a text before any is measured, of the long prompt."""

    widen: int = 20
    memory: int = 4 * GIB
    prompt: int = 256
    tokens: int = 256
    plain_tokens: int = 8
    warm_tokens: int = 128
    long: int = 2000
    # Seconds after which nothing is begun, that a row may take, for which a row is measured again, and of the exact half before any
    # row: what is not done by then goes on after the rows.
    seconds: float = 560.0
    row_seconds: float = 90.0
    again_seconds: float = 8.0
    exact_seconds: float = 90.0
    # How many groups of what must be exact are checked, see `gpu_work`.
    exact_groups: int = 5
    device: str = "cuda"


FAKE = Size(
    widen=1, memory=GIB, prompt=16, tokens=5, plain_tokens=3, warm_tokens=2, long=70, row_seconds=240, again_seconds=0,
    exact_groups=3, device="fake",
)  # fmt: skip
# For a GPU that is at hand for a few minutes.
QUICK = {"seconds": 195.0, "row_seconds": 75.0, "again_seconds": 4.0, "exact_seconds": 60.0}
SUBSTITUTE, PAPER = "substitute", "substitute:width=6,depth=48"
# In a method, for the directory of the stand-in's head.
HEAD = "{head}"


@dataclass(frozen=True)
class Load:
    """How a model is loaded. Rows that differ in nothing of it share a process, one after another."""

    method: str
    codec: str = "raw"
    resident: str = "none"
    # Requests that run together.
    rows: int = 1


@dataclass(frozen=True)
class Run:
    """One row of the table. `short` picks it with --only; `long`: the long prompt, of which only the first tokens count."""

    short: str
    name: str
    load: Load
    temperature: float = 0.0
    long: bool = False
    # What is measured besides the text: "passes", "links", "levels", "compiled".
    more: tuple[str, ...] = ()


PLAINLY, PAPERLY = Load("none"), Load(PAPER)
RAW_LOAD, DELTA_LOAD = Load(SUBSTITUTE), Load(SUBSTITUTE, "delta")
BEST_LOAD, RESIDENT_LOAD = replace(DELTA_LOAD, resident="auto"), replace(RAW_LOAD, resident="auto")
PLAIN, PLAIN_SAMPLED = Run("plain", "plain", PLAINLY), Run("plain-sampled", "plain, T=0.6", PLAINLY, 0.6)
PAPERS = Run("paper", "paper: raw, fixed beam, no residents", PAPERLY)
PAPERS_SAMPLED = Run("paper-sampled", "paper, T=0.6", PAPERLY, 0.6)
RAW = Run("raw", "drafted, raw, no residents", RAW_LOAD, more=("passes", "links"))
LONG = Run("long", "drafted, raw, long prompt", RAW_LOAD, long=True)
DELTA = Run("delta", "drafted, delta, no residents", DELTA_LOAD)
BEST = Run("best", "drafted, delta", BEST_LOAD, more=("levels",))
BEST_SAMPLED = Run("best-sampled", "drafted, delta, T=0.6", BEST_LOAD, 0.6)
RESIDENT = Run("resident", "drafted, raw", RESIDENT_LOAD, more=("compiled",))
RESIDENT_SAMPLED = Run("resident-sampled", "drafted, raw, T=0.6", RESIDENT_LOAD, 0.6)
ROWS8 = Run("rows8", "drafted, delta, 8 requests together", replace(BEST_LOAD, rows=8))
# The same plans with a draft ahead of every pass, and with none; the rows above take the faster way, as they find it.
AHEAD_LOAD, ALONE_LOAD = (replace(RAW_LOAD, method=f"{SUBSTITUTE}:ahead={when}") for when in ("on", "off"))
AHEAD, ALONE = Run("raw-ahead", "drafted ahead, raw", AHEAD_LOAD), Run("raw-alone", "drafted, none ahead, raw", ALONE_LOAD)
AHEAD_SAMPLED = Run("raw-ahead-sampled", "drafted ahead, raw, T=0.6", AHEAD_LOAD, 0.6)
ALONE_SAMPLED = Run("raw-alone-sampled", "drafted, none ahead, raw, T=0.6", ALONE_LOAD, 0.6)
BEST_AHEAD = Run("best-ahead", "drafted ahead, delta", replace(BEST_LOAD, method=AHEAD_LOAD.method))
BEST_ALONE = Run("best-alone", "drafted, none ahead, delta", replace(BEST_LOAD, method=ALONE_LOAD.method))
# As "best", with the built-in model's head in front of the copy, as wide as the stand-in.
HEAD_LOAD = replace(BEST_LOAD, method=f"{SUBSTITUTE}:suggest=eagle:{HEAD}")
HEADED = Run("head", "a head in front, delta", HEAD_LOAD)
HEADED_SAMPLED = Run("head-sampled", "a head in front, delta, T=0.6", HEAD_LOAD, 0.6)
OFFLOAD = Run("accelerate", "accelerate, CPU offload", Load("accelerate"))
# What matters most comes first: time may run out.
RUNS = (
    PLAIN, PLAIN_SAMPLED, PAPERS, PAPERS_SAMPLED, RAW, LONG, DELTA, BEST, BEST_SAMPLED, ROWS8, RESIDENT, RESIDENT_SAMPLED, OFFLOAD,
    AHEAD, ALONE, AHEAD_SAMPLED, ALONE_SAMPLED, BEST_AHEAD, BEST_ALONE, HEADED, HEADED_SAMPLED,
)  # fmt: skip
# The fewest that show all goals of speed.
QUICK_RUNS = RUNS[:10]
FAKE_PAPER = Load("substitute:width=2,depth=3")
# What --only takes besides the rows' own names.
GROUPS = {
    "speed": tuple(run.short for run in RUNS),
    "sampled": tuple(run.short for run in RUNS if run.temperature),
    "ahead": tuple(run.short for run in RUNS if ":ahead=" in run.load.method),
}
EXACT = "exact"


def simulated(runs: Iterable[Run]) -> tuple[Run, ...]:
    """`runs` for a simulated device, where the paper's trees would take minutes."""
    return tuple(replace(run, load=FAKE_PAPER) if run.load == PAPERLY else run for run in runs)


def unknown(names: Collection[str]) -> list[str]:
    known = {EXACT, *GROUPS, *GROUPS["speed"]}
    return [name for name in names if name not in known]


def chosen(names: Collection[str], quick: bool) -> tuple[tuple[Run, ...], bool]:
    """The rows that `names` pick (all, or the quick ones, if there are none), and whether the exact half is run."""
    if not names:
        return (QUICK_RUNS if quick else RUNS), True
    wanted = {short for name in names for short in GROUPS.get(name, (name,))}
    return tuple(run for run in RUNS if run.short in wanted), EXACT in names


def by_load(runs: Sequence[Run]) -> list[list[Run]]:
    """Rows that share a process, in the order of the first of each."""
    groups: dict[Load, list[Run]] = {}
    for run in runs:
        groups.setdefault(run.load, []).append(run)
    return list(groups.values())


def headed(runs: Iterable[Run]) -> bool:
    """Does one of `runs` need the stand-in's head?"""
    return any(HEAD in run.load.method for run in runs)


def codecs_of(runs: Iterable[Run]) -> list[str]:
    """The codecs whose Stores `runs` need, each once."""
    return list(dict.fromkeys(run.load.codec for run in runs if run.load.method != "accelerate"))
