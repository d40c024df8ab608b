"""Imports point one way, and every file stays small and says what it is for."""

import ast
import functools
import re
from pathlib import Path

import pytest

from tests.sabotage import MUTATIONS, Mutation

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "understudy"
FILES = sorted(PACKAGE.rglob("*.py"))

# What each part may import of the others. All may import errors, params, registry, and what params holds.
ANYONE = {"errors", "params", "registry", "constraint", "schema_ends", "reasoning"}
MAY_IMPORT = {
    "torch_import": set(),
    "startup": {"torch_import"},
    "library_lists": {"plan"},
    "seeds": set(),
    "tree": set(),
    "logprobs": set(),
    "grammar": set(),
    "sequence": {"grammar", "logprobs"},
    "recurrent_tips": {"tree"},
    "recurrent": {"recurrent_tips", "tree"},
    "small_keys": set(),
    "token_history": {"tree"},
    "compression": set(),
    "layer_states": {"tree", "recurrent", "small_keys", "tiers", "token_history", "compression"},
    "compressed": {"tree", "layer_states", "compression"},
    "spilled": {"tree", "layer_states", "tiers"},
    "cache": {"tree", "recurrent", "layer_states", "spilled", "token_history", "compressed"},
    "rectangle": {"tree", "layer_states", "cache"},
    "verify": {"tree"},
    "adjust": {"sequence"},
    "sampling": {"adjust", "kernels"},
    "chat_template": set(),
    "detokenizer": set(),
    "token_texts": {"detokenizer"},
    "grammar_compiler": {"chat_template", "grammar", "plan", "token_texts"},
    "text": {"detokenizer"},
    "demo": set(),
    "generation_config": set(),
    "kernels": {"tree", "layer_states", "recurrent", "small_keys", "spilled"},
    "tiers": set(),
    "codecs": {"kernels", "quantizers"},
    "quantizers": {"kernels", "seeds"},
    "weights": {"tiers", "codecs", "quantizers", "kernels"},
    "plan": {"small_keys", "tiers"},
    "devices": {"plan", "startup", "kernels", "tiers", "codecs", "quantizers", "tree", "recurrent", "spilled"},
    "models": {
        *("spilled", "generation_config", "devices", "sampling", "cache", "layer_states", "rectangle", "tree", "recurrent"),
        *("recurrent_tips", "small_keys", "compressed", "compression"),
        *("seeds", "startup", "weights", "tiers", "codecs", "quantizers", "kernels", "plan"),
    },
    "heads": {"demo", "tree", "layer_states", "cache", "models", "weights", "quantizers", "kernels"},
    "drafters": {
        *("heads", "adjust", "sequence", "cache", "layer_states", "tree", "verify", "sampling", "models", "plan", "devices"),
        *("kernels", "ways"),
    },
    "batch": {"adjust", "logprobs", "sequence", "tree", "sampling"},
    "clock": set(),
    "reading": {"models"},
    "reuse": {"cache", "sequence"},
    "prefixes": {"cache", "sequence"},
    "advance": {"logprobs", "sequence", "tree"},
    "beside": {"sequence"},
    "ways": set(),
    "engine": {
        *("advance", "beside", "batch", "reading", "reuse", "sequence", "cache", "rectangle", "tree", "verify", "sampling"),
        *("drafters", "clock", "models", "prefixes", "kernels", "ways"),
    },
    "stats": {"advance", "engine", "models", "plan"},
    "request": {"advance", "logprobs", "sequence", "stats", "text"},
    "policies": set(),
    "admission": {"engine", "policies", "request", "sequence"},
    "scheduler": {"admission", "advance", "engine", "policies", "request", "sequence", "stats"},
    "option_kinds": set(),
    "option_rules": {"devices", "plan", "policies"},
    "options": {
        *("option_kinds", "option_rules"),
        *("policies", "plan", "tiers", "drafters", "devices", "weights", "codecs", "quantizers"),
    },
    "stores": {"options", "codecs", "weights"},
    "sources": {"options", "stores", "devices", "models", "weights", "demo", "plan", "codecs", "startup"},
    "blueprint": {
        "spilled",
        *("heads", "drafters", "layer_states", "prefixes", "recurrent", "options", "policies", "devices", "models", "weights"),
        "plan",
    },
    "copy_bits": {"blueprint", "codecs", "devices", "options", "plan", "quantizers"},
    "planning": {
        *("blueprint", "copy_bits", "sources", "stores", "options"),
        *("devices", "codecs", "models", "weights", "plan", "drafters", "heads"),
    },
    "chat_table": {"plan"},
    "concessions": {"chat_table", "spilled", "blueprint", "codecs", "copy_bits", "drafters", "options", "plan"},
    "drawable": {"blueprint", "codecs", "devices", "options", "plan", "planning", "sources", "stores", "weights"},
    "chat_plan": {"chat_table", "concessions", "drawable", "options", "plan", "small_keys"},
    "diagnosis": {"concessions", "copy_bits", "options", "plan"},
    "yardstick": {"llm", "codecs", "devices", "kernels", "quantizers", "plan", "weights"},
    "loading": {
        *("planning", "small_keys", "startup"),
        *("generation_config", "blueprint", "sources", "options"),
        *("devices", "models", "weights", "plan", "drafters", "tiers"),
    },
    "prompts": set(),
    "room": {"cache", "plan", "sequence"},
    "making": {
        *("adjust", "chat_template", "grammar", "grammar_compiler", "prompts", "request", "room", "sequence", "stats", "text"),
        "token_texts",
    },
    "llm": {
        "prefixes",
        "making",
        "prompts",
        "batch",
        "engine",
        "policies",
        "request",
        "scheduler",
        "stats",
        "loading",
        "drawable",
        "sources",
        "options",
        "cache",
        "kernels",
        "sampling",
        "drafters",
        "models",
        "plan",
        "tiers",
        "weights",
    },
    "shelf": {"llm", "options", "plan", "sources", "weights"},
    "inventory": {"demo", "weights"},
    "scaling": {"demo", "llm", "training", "heads", "drafters", "models", "weights"},
    "service": {"request"},
    "async_llm": {"llm", "service", "prompts", "request", "sources"},
    "replies": set(),
    "api": {
        *("text", "chat_template", "grammar_compiler", "token_texts", "logprobs"),
        *("replies", "service", "request", "sampling", "stats"),
    },
    "jobs": {"api", "service"},
    "server": {"__version__", "chat_template", "api", "service", "request"},
    "cluster": {"api", "jobs", "llm", "plan", "server", "service"},
    "training": {"llm", "jobs", "api", "seeds", "heads", "models", "weights", "plan", "kernels", "tree", "chat_template"},
    "frontends": {
        *("cluster", "training"),
        *("llm", "policies", "server", "api", "jobs", "scaling", "drafters", "stats", "plan", "weights", "tiers", "kernels"),
        *("demo", "devices", "options", "chat_plan", "drawable", "yardstick", "shelf", "inventory", "startup", "library_lists"),
        "diagnosis",
        "grammar_compiler",
    },
}
LONGEST_LINE = 132
MOST_PARAMETERS = 9
COMPILED = re.compile(r"\b(jit|intrinsic|contracted)\b")
VAGUE = re.compile(r"(Manager|Handler|Context|Backend|Utils?)$")


@functools.cache
def text_of(path: Path) -> str:
    return path.read_text()


@functools.cache
def tree_of(path: Path) -> ast.Module:
    """The syntax of a file, which several tests look at."""
    return ast.parse(text_of(path))


def part(path: Path) -> str:
    """`weights` of src/understudy/weights/store.py."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(path: Path) -> set[str]:
    """The parts of the package that this file imports when it runs (not only for type checking)."""
    package = ("understudy", *path.relative_to(PACKAGE).parts[:-1])
    found = set()
    for node in _running(tree_of(path)):
        if isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = (*base, *(node.module or "").split("."))
            names = [tuple(filter(None, module))] if node.module else [(*base, alias.name) for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [tuple(alias.name.split(".")) for alias in node.names]
        else:
            continue
        found |= {name[1] for name in names if name[0] == "understudy" and len(name) > 1}
    return found - {part(path)}


def _running(tree: ast.AST) -> list[ast.AST]:
    """All nodes but those under `if TYPE_CHECKING:`."""
    nodes = [tree]
    for child in ast.iter_child_nodes(tree):
        if not (isinstance(child, ast.If) and isinstance(child.test, ast.Name) and child.test.id == "TYPE_CHECKING"):
            nodes += _running(child)
    return nodes


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_file_imports_only_what_lies_below_it(path: Path) -> None:
    if part(path) not in {"__init__", "__main__", *ANYONE}:
        assert imported(path) <= MAY_IMPORT[part(path)] | ANYONE


def test_no_part_imports_itself_through_others() -> None:
    def below(name: str, seen: frozenset[str] = frozenset()) -> set[str]:
        assert name not in seen, f"{name} imports itself through {sorted(seen)}"
        lower = MAY_IMPORT.get(name, set())
        return lower.union(*(below(other, seen | {name}) for other in lower))

    for name in MAY_IMPORT:
        assert name not in below(name)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_file_says_its_idea_and_stays_small(path: Path) -> None:
    source = text_of(path)
    tree = tree_of(path)
    assert ast.get_docstring(tree), "no docstring says what this file is for"
    assert source.count("\n") <= 300
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            assert not VAGUE.search(node.name), node.name
        if isinstance(node, ast.FunctionDef):
            assert (node.end_lineno or 0) - node.lineno < 70, f"{node.name} does not fit a screen"


def marks(function: ast.FunctionDef) -> str:
    """The decorators of a function, as they are written."""
    return " ".join(map(ast.unparse, function.decorator_list))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_lines_and_lists_of_parameters_stay_short(path: Path) -> None:
    source = text_of(path)
    assert [number for number, line in enumerate(source.splitlines(), 1) if len(line) > LONGEST_LINE] == []
    for node in ast.walk(tree_of(path)):
        # A compiled kernel takes bare pointers and numbers, which nothing can group.
        if isinstance(node, ast.FunctionDef) and not COMPILED.search(marks(node)):
            given = [argument.arg for argument in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
            count = len([name for name in given if name not in {"self", "cls"}])
            assert count <= MOST_PARAMETERS, f"{node.name} has {count} parameters"


def test_every_part_is_tested() -> None:
    """Some test imports each part, or lies in a folder of its name."""
    tests = sorted((ROOT / "tests").rglob("test_*.py"))
    tested = {path.relative_to(ROOT / "tests").parts[0].removeprefix("test_").removesuffix(".py") for path in tests}
    for path in tests:
        tested |= set(re.findall(r"^\s*(?:from|import) understudy\.(\w+)", path.read_text(), re.M))
        tested |= set(re.findall(r"^from understudy import (\w+)", path.read_text(), re.M))
    assert set(MAY_IMPORT) <= tested, sorted(set(MAY_IMPORT) - tested)


# Parts of which every module has a test file of its own name, but for what the file named here tests.
MIRRORED = ("heads", "heads/formats", "models", "drafters", "policies", "plan", "weights", "tiers", "kernels")
TESTED_IN = {
    "heads/mtp.py": "heads/formats/test_mtp.py",
    "drafters/kernel_search.py": "drafters/test_device_search.py",
    "kernels/search_columns.py": "drafters/test_device_state.py",
    "kernels/level_kernels.py": "drafters/test_device_search.py",
    "kernels/state_form.py": "kernels/test_draft_states.py",
    "kernels/expert_kernels.py": "kernels/gpu/test_expert_rows.py",
    "kernels/attention_cpu.py": "kernels/test_attention.py",
    "kernels/channel_given.py": "kernels/test_channel_cpu.py",
    "kernels/channel_rated.py": "kernels/test_channel_cpu.py",
    "tiers/cuda_streams.py": "gpu/test_pinned.py",
    "tiers/streams.py": "tiers/test_pinned.py",
    "weights/layout.py": "models/stock/test_structure.py",
    "models/sharing.py": "models/test_streamed.py",
    "models/rehearsal.py": "models/test_whole_pass.py",
    "models/layer_sizes.py": "models/test_footprint.py",
}


@pytest.mark.parametrize("part", MIRRORED)
def test_every_module_has_its_test_file(part: str) -> None:
    modules = [path.relative_to(PACKAGE) for path in (PACKAGE / part).glob("*.py") if path.name != "__init__.py"]
    files = [TESTED_IN.get(module.as_posix(), f"{part}/test_{module.name}") for module in modules]
    missing = [file for file in files if not (ROOT / "tests" / file).exists()]
    assert modules and not missing, missing


def test_no_class_name_stands_twice() -> None:
    places: dict[str, list[str]] = {}
    for path in FILES:
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.ClassDef):
                places.setdefault(node.name, []).append(str(path.relative_to(PACKAGE)))
    assert len(places) > 100
    assert not {name: where for name, where in places.items() if len(where) > 1}


def test_machine_code_is_kept_in_one_place_alone() -> None:
    """What `kernels.compiled` keeps bears a stamp over the sources; what others kept could be that of older ones. What it makes for
    kernels to call has a name of its own."""
    assert not [path.name for path in FILES if re.search(r"\bcache=True", text_of(path))]
    for word in ("CodeCache(function)", "njit(", "CFunc("):
        assert [path.name for path in FILES if word in text_of(path)] == ["compiled.py"]


def test_the_package_is_small() -> None:
    assert sum(path.stat().st_size for path in PACKAGE.rglob("*") if "__pycache__" not in path.parts) < 25 << 20


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.what)
def test_what_sabotage_would_break_is_there(mutation: Mutation) -> None:
    assert mutation.old in text_of(PACKAGE / mutation.file) and all((ROOT / name).exists() for name in mutation.tests.split())


def test_the_packages_data_is_small() -> None:
    # but for machine code, which `make wheel` makes and git leaves out
    left_out = {"__pycache__", "ready"}
    data = [path for path in PACKAGE.rglob("*") if path.is_file() and path.suffix != ".py" and not left_out & set(path.parts)]
    assert len(data) > 10 and sum(path.stat().st_size for path in data) <= 20_000_000
