"""The API without HTTP: what needs no server does not ask for one."""

import subprocess
import sys
from pathlib import Path

import pytest

from understudy.api.asking import check_model
from understudy.api.errors import ApiError
from understudy.api.settings import AnswerSettings

SOURCE = Path(__file__).parents[2] / "src"


def test_bodies_are_answered_without_the_packages_of_a_server() -> None:
    words = "import sys; import understudy.api.answers, understudy.api.protocol; "
    words += "print({'fastapi', 'starlette', 'uvicorn', 'prometheus_client'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", words], capture_output=True, text=True, env={"PYTHONPATH": str(SOURCE)})
    assert done.stdout == "set()\n", done.stderr


def test_a_body_may_name_this_model_or_none() -> None:
    settings = AnswerSettings(model_name="tiny")
    for name in (None, "", "tiny"):
        check_model(name, settings)
    with pytest.raises(ApiError, match="only 'tiny' is") as refused:
        check_model("gpt-4", settings)
    assert refused.value.status == 404 and refused.value.param == "model"
