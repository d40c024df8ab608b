"""What is in use is not deleted; what is being deleted is not used meanwhile."""

import errno
import fcntl
import subprocess
import sys
from pathlib import Path

import pytest

from understudy.errors import UnderstudyError
from understudy.weights.holding import Hold, in_use, unused


@pytest.fixture
def model(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text("{}")
    return tmp_path


def test_a_directory_is_in_use_until_its_last_user_is_gone(model: Path) -> None:
    first, second = Hold(), Hold()
    for hold in (first, second, second):
        hold.add(model)
    assert in_use(model)
    with pytest.raises(UnderstudyError, match="in use by a running process"), unused([model]):
        pass
    first.close()
    assert in_use(model)
    second.close()
    assert not in_use(model)
    with unused([model]):
        assert in_use(model)
    assert not in_use(model)


def test_another_process_is_noticed_and_its_end_too(model: Path) -> None:
    code = "; ".join(
        [
            "from pathlib import Path",
            "from understudy.weights.holding import Hold",
            "hold = Hold()",
            f"hold.add(Path({str(model)!r}))",
            "print('held', flush=True)",
            "input()",
        ]
    )
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        assert in_use(model)
        process.kill()
        process.wait()
    assert not in_use(model)


def test_what_is_not_there_is_not_held(tmp_path: Path) -> None:
    hold = Hold()
    hold.add(tmp_path / "nowhere")
    assert not in_use(tmp_path / "nowhere")
    with unused([tmp_path / "nowhere"]):
        pass


def test_a_file_system_without_locks_can_be_read_and_nothing_is_deleted_there(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
    Hold().add(model)
    assert not in_use(model)
    with pytest.raises(UnderstudyError, match="No locks available"), unused([model]):
        pass
