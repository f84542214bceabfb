"""What the model server's image brings is not fetched: not for a model's own lines, nor for what its packages need."""

import subprocess
import sys

import pytest

from builds.offers import hold_against, stand_in
from builds.requirements import RequirementsError, check_lines, fetch
from tests.builds.test_requirements import PYTHON, index, wheel  # noqa: F401

OFFERS = {"torch": "2.13.0+cpu", "torchserve": "0.12.0"}


def held(text):
    log = bytearray()
    return [line.name for line in hold_against(check_lines(text), OFFERS, log.extend)], log.decode()


@pytest.mark.parametrize("line", ["torch", "torch>=2,<3", "Torch==2.13.0", "torch~=2.0", "torchserve==0.12.0"])
def test_a_line_that_the_image_satisfies_is_answered_by_it(line):
    left, log = held(f"numpy\n{line}\n")

    assert left == ["numpy"]
    assert "nothing is fetched" in log


@pytest.mark.parametrize(("line", "has"), [("torch==1.13.1", "torch 2.13.0"), ("torchserve<0.9", "torchserve 0.12.0")])
def test_another_version_is_refused_with_the_line_and_what_the_image_has(line, has):
    with pytest.raises(RequirementsError, match=f"line 3: .*{has}") as refused:
        held(f"numpy\n\n{line}\n")

    assert refused.value.line == 3


def test_a_line_for_another_python_asks_for_nothing():
    assert held('torch==1.0; python_version < "3"\n')[0] == []


def test_an_image_without_offers_fetches_everything(tmp_path):
    assert hold_against(check_lines("torch==1.13.1\n"), {}, print)[0].name == "torch"
    assert stand_in({}, tmp_path) == []


@pytest.mark.parametrize("versions", [["2.13.0"], ["2.13.0", "2.14.1"]])
def test_what_other_packages_need_of_it_is_not_fetched_either(tmp_path, settings, index, versions):  # noqa: F811
    index.add(wheel("vision", needs=["torch>=2"]))
    for version in versions:
        index.add(wheel("torch", version))
    wheels, target = tmp_path / "wheels", tmp_path / "packages"

    fetch(check_lines("vision\n"), wheels, python=PYTHON, log=print, name="test", options=stand_in({**OFFERS}, wheels))
    argv = ["install", "--no-index", "--find-links", str(wheels), "--target", str(target), "-q", "vision"]
    subprocess.run([sys.executable, "-m", "pip", *argv], check=True)

    assert not [path for path in index.hits if path.startswith("/files/torch")]
    assert sorted(path.name for path in target.glob("*.py")) == ["vision.py"]


def test_packages_that_need_another_version_conflict(tmp_path, settings, index):  # noqa: F811
    index.add(wheel("vision", needs=["torch<2"]))
    index.add(wheel("torch", "1.13.1"))

    with pytest.raises(RequirementsError, match="conflicting dependencies"):
        options = stand_in(OFFERS, tmp_path)
        fetch(check_lines("vision\n"), tmp_path, python=PYTHON, log=print, name="test", options=options)
