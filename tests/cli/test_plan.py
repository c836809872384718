"""``gpu-als plan``: a table and a sentence, or what is missing and what would fit."""

import json

import pytest

from gpu_als.cli import main
from gpu_als.train.planning import plan

SHAPE = ["--users", "1M", "--items", "200K", "--nnz", "0.5G", "--factors", "128"]


def run(*arguments):
    return main(["plan", *SHAPE, *arguments])


def test_it_shows_every_part_and_what_will_happen(capsys):
    assert run("--host-memory", "4G", "--threads", "2") == 0
    shown = capsys.readouterr()
    found = plan(10**6, 200_000, 5 * 10**8, 128, threads=2, host_memory=4 << 30)
    lines = shown.out.splitlines()
    assert lines[0].split() == ["host"]
    assert lines[2].split() == ["factors", f"{found.host.factors / 2**20:.1f}", "MiB"]
    assert lines[6].split() == ["total", f"{found.host.total / 2**30:.1f}", "GiB"]
    assert lines[7].split() == ["given", "4.0", "GiB"]
    assert lines[8] == found.summary
    assert shown.err == ""


def test_options_reach_the_plan(capsys):
    options = ["--model", "implicit", "--dtype", "float64", "--threads", "3", "--ones", "0.25"]
    memory = ["--device-memory", "80G", "--host-memory", "0.25T", "--longest", "150K"]
    assert run(*options, *memory, "--json") == 0
    said = json.loads(capsys.readouterr().out)
    found = plan(
        10**6,
        200_000,
        5 * 10**8,
        128,
        model="implicit",
        dtype="float64",
        threads=3,
        ones=0.25,
        longest=150_000,
        device_memory=80 << 30,
        host_memory=256 << 30,
    )
    assert said == found.to_dict()
    assert said["device"]["part_bytes"] is None


@pytest.mark.parametrize("form", [[], ["--json"]])
def test_too_small_a_machine_is_an_error_with_the_options(capsys, form):
    assert run("--host-memory", "512M", *form) == 1
    shown = capsys.readouterr()
    found = plan(10**6, 200_000, 5 * 10**8, 128, host_memory=512 << 20)
    assert found.options
    assert shown.err == f"gpu-als: error: {found.summary}\n"
    if form:
        assert json.loads(shown.out)["fits"] is False
    else:
        assert "given" in shown.out


@pytest.mark.parametrize("bad", [["--users", "many"], ["--host-memory", "8Q"]])
def test_what_is_no_number_is_refused(capsys, bad):
    assert run(*bad) == 2
    assert f"argument {bad[0]}: invalid" in capsys.readouterr().err
