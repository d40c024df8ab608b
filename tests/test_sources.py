"""From a name to a Store: what is named is found, and what is prepared once is found again."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.tiny import publish, save
from understudy import LLM, SamplingParams, demo, sources, startup
from understudy.drawable import plan_for
from understudy.errors import CheckpointError, UsageError
from understudy.options import Options
from understudy.sources import layout_of, locate, prepare_source, said_aside
from understudy.weights.checkpoint import Checkpoint
from understudy.weights.layout import ModelLayout
from understudy.weights.store import Store


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("model")
    save(directory, "llama", torch.bfloat16)
    return directory


def options(tmp_path: Path, **given: Any) -> Options:
    return Options.of(given, {"UNDERSTUDY_CACHE": str(tmp_path / "cache")})


def test_the_same_content_made_the_same_way_is_one_store(tmp_path: Path, model: Path) -> None:
    chosen = options(tmp_path)
    reports: list[str] = []
    source = locate(model, chosen)
    first = prepare_source(source, chosen, lambda stage, done, total: reports.append(stage))
    assert reports and first.path.is_relative_to(tmp_path / "cache")
    before = (first.path / "index.json").stat().st_mtime_ns
    again = prepare_source(locate(model, chosen), chosen, None)
    assert again.path == first.path and (again.path / "index.json").stat().st_mtime_ns == before
    other = prepare_source(source, options(tmp_path, bits=8), None)
    assert other.path != first.path


class Room:
    """A ceiling under which any Store fits, or none."""

    def __init__(self, enough: bool) -> None:
        self.enough = enough

    def holds(self, *_: Any) -> bool:
        return self.enough

    def suited(self, config: Any, layout: Any, options: Options) -> Options:
        return replace(options, recipe_head="")

    def check(self, *_: Any) -> None:
        pass


def test_of_a_model_that_is_prepared_nothing_is_built(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = options(tmp_path)
    first = prepare_source(locate(model, chosen), chosen, None)
    small = prepare_source(locate(model, chosen), chosen, None, ceiling=Room(enough=False))
    assert small.recipe.head == "" and first.recipe.head, "a Store that does not fit is not taken"
    monkeypatch.setattr("understudy.sources.layout_of", None)
    again = prepare_source(locate(model, chosen), chosen, None, ceiling=Room(enough=True))
    assert again.path == first.path


@pytest.mark.parametrize(("codec", "dtype", "stored"), [("fp8", torch.bfloat16, "delta"), ("delta", torch.float32, "raw")])
def test_a_codec_that_no_weight_is_for_is_told(codec: str, dtype: torch.dtype, stored: str, tmp_path: Path) -> None:
    save(tmp_path / "model", "llama", dtype)
    said: list[str] = []
    for name in (codec, "raw"):
        chosen = options(tmp_path, codec=name)
        prepare_source(locate(tmp_path / "model", chosen), chosen, lambda stage, done, total: said.append(stage))
    told = [line for line in said if line.startswith("No weight")]
    assert told == [f"No weight of this model is one for codec {codec}: stored by {stored}"]


def test_a_store_is_a_model_too(tmp_path: Path, model: Path) -> None:
    chosen = options(tmp_path, output=tmp_path / "store")
    store = prepare_source(locate(model, chosen), chosen, None)
    assert store.path == tmp_path / "store"
    found = locate(store.path, options(tmp_path))
    assert isinstance(found, Store) and prepare_source(found, chosen, None) is found


@pytest.mark.parametrize("model", [5, b"/model", ["demo"]])
def test_what_names_no_model_is_refused(model: Any, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="A model is a name or a path, got "):
        locate(model, options(tmp_path))


def test_python_programs_call_the_built_in_model_what_commands_do(tmp_path: Path) -> None:
    found, unnamed = (locate(name, options(tmp_path)) for name in ("demo", None))
    assert found.path == unnamed.path == demo.path()


def test_a_layout_names_every_matrix_once_and_the_head_last(model: Path, tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(model)
    layout = layout_of(checkpoint, tmp_path)
    names = [spec.weight for spec in layout.linears]
    assert len(set(names)) == len(names) == 3 * 7 + 1 and names[-1] == "lm_head.weight"
    assert {*names, layout.embedding, *layout.shared} == set(checkpoint.tensors)


def test_a_store_is_not_put_into_its_checkpoint(tmp_path: Path, model: Path) -> None:
    before = sorted(model.iterdir())
    (tmp_path / "link").symlink_to(model)
    for place in (model / "sub", model, tmp_path / "link" / "sub" / "deeper"):
        with pytest.raises(UsageError, match=r"lies in the checkpoint .*: name a directory beside it"):
            LLM.prepare(model, output=place)
    assert sorted(model.iterdir()) == before


@pytest.mark.parametrize(
    ("memory", "spare", "kept"),
    [(None, 8 << 30, True), (None, 2 << 30, False), ("32GiB", 8 << 30, True), ("2GiB", 8 << 30, False)],
)
def test_preparing_keeps_what_it_frees_where_memory_is_plentiful(
    memory: str | None, spare: int, kept: bool, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entered: list[str] = []

    @contextmanager
    def keeping() -> Iterator[None]:
        entered.append("kept")
        yield
        entered.append("given back")

    monkeypatch.setattr(sources, "spare_bytes", lambda: spare)
    monkeypatch.setattr(startup, "keeping_memory", keeping)
    store = prepare_source(Checkpoint.open(model), options(tmp_path, memory=memory), None)
    assert store.linears and entered == (["kept", "given back"] if kept else [])


def test_a_directory_that_is_neither_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"neither a checkpoint nor a Store"):
        locate(tmp_path, options(tmp_path))


def test_a_codec_that_was_left_open_is_that_of_a_store_which_is_there(
    model: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr("understudy.sources.fastest_codec", lambda *_: "raw")
    first = prepare_source(locate(model, options(tmp_path)), options(tmp_path), None)
    assert {entry.codec for entry in first.linears.values()} == {"raw"}
    monkeypatch.setattr("understudy.sources.fastest_codec", lambda *_: "delta")
    again = prepare_source(locate(model, options(tmp_path)), options(tmp_path), None)
    assert again.path == first.path, "another verdict does not prepare the model anew"
    own = [replace(options(tmp_path), output=tmp_path / "own", codec=name) for name in ("raw", "auto")]
    assert [prepare_source(locate(model, one), one, None).path for one in own] == [tmp_path / "own"] * 2
    other = prepare_source(locate(model, options(tmp_path / "new")), options(tmp_path / "new"), None)
    assert {entry.codec for entry in other.linears.values()} == {"delta"}
    forced = prepare_source(locate(model, options(tmp_path, codec="delta")), options(tmp_path, codec="delta"), None)
    assert forced.path != first.path


def test_a_codec_is_chosen_for_the_link_that_is_told(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    links: list[float] = []
    monkeypatch.setattr("understudy.sources.fastest_codec", lambda link, *_: links.append(link) or "raw")
    for place, told in (("told", {"throttle": 1e6}), ("measured", {})):
        chosen = options(tmp_path / place, **told)
        prepare_source(locate(model, chosen), chosen, None)
    assert links[0] == 1e6 < links[1]


def test_a_store_that_was_made_from_weights_alone_is_still_found(tmp_path: Path, model: Path) -> None:
    checkpoint = Checkpoint.open(model)
    free = prepare_source(checkpoint, options(tmp_path, codec="raw", calibrate="none"), None)
    assert not free.recipe.calibrated
    assert prepare_source(checkpoint, options(tmp_path, codec="raw"), None).path == free.path
    assert prepare_source(checkpoint, options(tmp_path, output=free.path, codec="raw"), None).path == free.path
    (tmp_path / "text").write_text("words that the copy is fitted to")
    fitted = prepare_source(checkpoint, options(tmp_path, codec="raw", calibrate=tmp_path / "text"), None)
    assert fitted.recipe.calibrated and fitted.path != free.path
    for path in (free.path, fitted.path):
        Store.open(path).verify()


def test_a_store_whose_head_has_the_bits_of_all_weights_is_still_found(tmp_path: Path, model: Path) -> None:
    checkpoint = Checkpoint.open(model)
    same = prepare_source(checkpoint, options(tmp_path, codec="raw", head_bits=4), None)
    assert not same.recipe.head
    assert prepare_source(checkpoint, options(tmp_path, codec="raw"), None).path == same.path
    assert prepare_source(checkpoint, options(tmp_path, output=same.path, codec="raw"), None).path == same.path
    own = prepare_source(checkpoint, options(tmp_path, codec="raw", head_bits=8), None)
    assert own.recipe.head == "int8" and own.path != same.path
    assert prepare_source(checkpoint, options(tmp_path, codec="raw"), None).path == own.path, "the better one is taken"
    Store.open(own.path).verify()


def test_a_revision_is_for_models_of_the_hub(tmp_path: Path, model: Path) -> None:
    chosen = options(tmp_path, revision="v2", offline=True)
    for name in (model, None):
        with pytest.raises(UsageError, match="--revision is for a model of the hub"):
            locate(name, chosen)
    with pytest.raises(UsageError, match="--revision is for a model of the hub"):
        plan_for(model, chosen, config_alone=True)
    with pytest.raises(CheckpointError, match=r"someone/nothing at v2 is not in the local cache"):
        locate("someone/nothing", chosen)
    assert chosen.held_whole().revision is None


@pytest.mark.parametrize(
    ("link", "kept"), [(False, "on disk, for `understudy export` and --method mtp"), (True, "where they are, for --method mtp")]
)
def test_what_is_left_aside_is_said_in_one_line(link: bool, kept: str, tmp_path: Path) -> None:
    publish(tmp_path / "model", "llava")
    chosen, said = options(tmp_path, link=link), list[str]()
    prepare_source(locate(tmp_path / "model", chosen), chosen, lambda what, *_: said.append(what))
    lines = [line for line in said if line.startswith("Left aside")]
    assert len(lines) == 1 and lines[0].endswith(f"mtp, multi_modal_projector, vision_tower (kept {kept})"), lines


def test_layers_that_predict_further_tokens_are_said_to_be_for_drafts(tmp_path: Path) -> None:
    for name, aside, kept in (
        ("further", {"layers.3": ("a",)}, "on disk, for `understudy export` and --method mtp"),
        ("ERNIE's", {"mtp_block.0": ("a",)}, "on disk, for `understudy export` and --method mtp"),
        ("tower", {"visual": ("a",)}, "on disk, for `understudy export`"),
    ):
        layout = ModelLayout((), "embedding", (), aside=aside)
        source: Any = SimpleNamespace(info=lambda tensor: SimpleNamespace(published=(SimpleNamespace(nbytes=2048),)))
        assert said_aside(source, layout, "raw") == f"Left aside: 1 tensors, 2 KiB: {next(iter(aside))} (kept {kept})", name


@pytest.mark.parametrize(
    ("made", "given", "named"),
    [
        ({}, {"bits": 3}, "--bits 3"),
        ({"bits": 3}, {"bits": 8}, "--bits 8"),
        ({"bits": "mixed:bits=4"}, {"bits": "mixed:bits=3.5"}, "--bits mixed:bits=3.5"),
        ({"head_bits": 4}, {"head_bits": 8}, "--head-bits 8"),
        ({}, {"head_bits": 4}, "--head-bits 4"),
        ({}, {"calibrate": "none"}, "--calibrate none"),
        ({"codec": "raw"}, {"codec": "delta"}, "--codec delta"),
        ({"codec": "raw"}, {"link": True}, "--link"),
        ({}, {"output": "other"}, "--output other"),
    ],
)
def test_a_store_is_not_prepared_anew_and_options_that_ask_for_another_are_refused(
    made: dict[str, Any], given: dict[str, Any], named: str, tmp_path: Path, model: Path
) -> None:
    chosen = options(tmp_path, **{"codec": "raw", **made})
    store = prepare_source(locate(model, chosen), chosen, None)
    with pytest.raises(UsageError, match=f"^{named} is for preparing, and {store.path} is prepared already"):
        locate(store.path, options(tmp_path, **given))
    # What it was made with may be said again.
    found = locate(store.path, chosen)
    assert isinstance(found, Store) and found.recipe == store.recipe


def test_a_mix_may_be_named_without_the_text_that_weighs_it(tmp_path: Path, model: Path) -> None:
    (tmp_path / "text").write_text("one two three four five six seven eight nine ten")
    chosen = options(tmp_path, codec="raw", bits="mixed:bits=4", calibrate=tmp_path / "text")
    store = prepare_source(locate(model, chosen), chosen, None)
    assert "calibrated" in store.recipe.quantizer
    for given in ({"bits": "mixed:bits=4"}, {"calibrate": tmp_path / "text"}):
        assert isinstance(locate(store.path, options(tmp_path, **given)), Store)
    with pytest.raises(UsageError, match="--calibrate none"):
        locate(store.path, options(tmp_path, bits="mixed:bits=4", calibrate="none"))


def test_a_second_models_store_is_one_that_is_held_whole(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UNDERSTUDY_CACHE", str(tmp_path / "cache"))
    asked = {"memory": "1GiB", "context": 64, "bits": 3, "codec": "delta"}
    streamed = LLM.prepare(model, output=tmp_path / "streamed")
    with pytest.raises(
        UsageError, match=f"held whole, and {streamed.path} keeps it beside a copy: name its checkpoint"
    ):
        LLM(model, method=f"classic:{streamed.path}", **asked)
    whole = LLM.prepare(model, quantizer="exact", output=tmp_path / "whole")
    texts = []
    for method in ("none", f"classic:{whole.path}"):
        with LLM(model, method=method, **asked) as llm:
            done = llm.generate([5, 9, 33], SamplingParams(max_new_tokens=12, ignore_eos=True))[0]
            assert method == "none" or done.stats.accepted > 0
        texts.append(done.token_ids)
    assert texts[0] == texts[1]
