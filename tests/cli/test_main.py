"""Parsing, help, exit codes."""

import inspect
import re
import subprocess
import sys

import pytest

import gpu_als
from gpu_als.cli import main

COMMANDS = (
    "demo", "fit", "recommend", "similar", "predict", "evaluate", "split", "export", "plan", "info",
)  # fmt: skip


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == f"gpu-als {gpu_als.__version__}"


def test_help_imports_nothing_that_takes_long():
    shown = "import sys; from gpu_als.cli import main; main(['--help']); print(*sys.modules)"
    found = subprocess.run(
        [sys.executable, "-c", shown], capture_output=True, text=True, check=True
    )
    assert not {"scipy", "gpu_als.models", "gpu_als.train"} & set(found.stdout.split())


def test_shells_complete_commands_and_options(capsys, monkeypatch):
    assert main(["--print-completion", "bash"]) == 0
    script = capsys.readouterr().out
    for word in (*COMMANDS, "--min-ratings", "--warm-start"):
        assert word in script
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert main(["--print-completion", "zsh"]) == 2
    assert "pip install shtab" in capsys.readouterr().err


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_an_example(command, capsys):
    assert main([command, "--help"]) == 0
    shown = capsys.readouterr().out
    assert f"gpu-als {command}" in shown.split("example:")[1]
    assert max(map(len, shown.splitlines())) <= 90


def test_defaults_in_the_help_are_those_of_the_estimators(capsys):
    main(["fit", "--help"])
    shown = " ".join(capsys.readouterr().out.split())
    for name in ("factors", "regularization"):
        explicit, implicit = (
            inspect.signature(kind).parameters[name].default
            for kind in (gpu_als.ExplicitALS, gpu_als.AlternatingLeastSquares)
        )
        assert f"{explicit} for explicit, {implicit} for implicit" in shown
    for kind in (gpu_als.ExplicitALS, gpu_als.AlternatingLeastSquares):
        assert inspect.signature(kind).parameters["iterations"].default == 15
    assert "most iterations (default: 15)" in shown


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["fit"], "required: RATINGS"),
        (["fit", "x.csv", "--model", "other"], "invalid choice"),
        (["fit", "x.csv", "--regularization", "1,2,3"], "invalid number"),
        (["info", "extra"], "unrecognized arguments: extra"),
        (["recomend", "m.npz"], "did you mean recommend?"),
        (["fit", "x.csv", "--iteratons", "3"], "did you mean --iterations?"),
        (["fit", "x.csv", "--model", "implicitt"], "did you mean implicit?"),
        (["fit", "missing.csv"], "missing.csv: No such file"),
        (["fit", "x.csv", "--alpha", "2"], "--alpha belongs to --model implicit"),
        (["fit", "x.csv", "--model", "implicit", "--tol", "0.1"], "--tol belongs to --model expl"),
        (["fit", "x.csv", "--patience", "2"], "--patience needs --validation"),
        (["fit", "x.csv", "--model", "implicit", "--regularization", "1,2"], "takes one number"),
        (["fit", "x.csv", "--cg-steps", "2"], "--cg-steps needs --use-cg"),
        (["fit", "x.csv", "--factors", "0"], "factors must be"),
        (["fit", "x.csv", "-o", "no_such_folder/m.npz"], "create it first"),
        (["fit", "x.csv", "--plot", "curve.xyz"], "ends in .png"),
        (["recommend", "missing.npz"], "missing.npz: No such file"),
        (["recommend", "m.npz", "-n", "0"], "-n must be at least 1"),
        (["evaluate", "m.npz"], "two files"),
        (["evaluate", "m.npz", "t.csv", "--factors", "3"], "--factors needs --split"),
        (["evaluate", "--split", "1.5", "x.csv"], "fraction between 0 and 1"),
        (["demo", "--users", "3", "--items", "3", "--ratings", "10"], "nnz: found 10"),
    ],
)
def test_errors_are_one_line_and_set_the_exit_code(arguments, said, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == (1 if "No such file" in said else 2)
    message = capsys.readouterr().err
    assert said in message
    assert re.search(r"^gpu-als( \w+)?: error: ", message, re.MULTILINE)
    assert "Traceback" not in message


def test_foreign_model_file_is_explained(files, capsys):
    assert main(["recommend", str(files / "train.csv")]) == 1
    assert "not a .npz file" in capsys.readouterr().err


def test_interrupt_outside_training(monkeypatch, capsys):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("gpu_als.cli.info._collect", interrupted)
    assert main(["info"]) == 130
    assert "interrupted" in capsys.readouterr().err


def test_warnings_are_plain_lines(monkeypatch, capsys):
    import warnings

    def warn(*_):
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.warn("something to know", gpu_als.errors.SingularRowsWarning, stacklevel=2)
        return 0

    monkeypatch.setattr("gpu_als.cli.info.run", warn)
    assert main(["info"]) == 0
    assert capsys.readouterr().err == "gpu-als: warning: something to know\n"


def test_closed_pipe_is_silent(files):
    command = [
        sys.executable,
        "-m",
        "gpu_als",
        "recommend",
        str(files / "explicit.npz"),
        "-n",
        "60",
    ]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.close()  # before anything is written
    error = process.stderr.read()
    process.stderr.close()
    assert process.wait(timeout=200) == 141
    assert error == b""
