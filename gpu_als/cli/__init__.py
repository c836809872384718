"""The command ``gpu-als``: parsing of arguments and printing, no numerics."""

from __future__ import annotations

import argparse
import contextlib
import difflib
import os
import re
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NoReturn

from gpu_als.cli import (
    convert,
    demo,
    evaluate,
    export,
    fit,
    info,
    plan,
    predict,
    recommend,
    similar,
    split,
)
from gpu_als.errors import GpuAlsError, InputError

__all__ = ["build_parser", "main"]

_FAILED, _MISUSED = 1, 2
_INTERRUPTED, _PIPE_CLOSED = 130, 141  # as a shell reports signals
_EXAMPLES = """\
start here:
  gpu-als demo                                    train on made-up ratings, in seconds
  gpu-als fit ratings.csv -o model.npz            train on your own
  gpu-als recommend model.npz --users 7           what to show user 7
  gpu-als similar model.npz 318                   items like item 318
  gpu-als evaluate model.npz test.csv
  gpu-als convert huge.csv huge.shards            for data larger than memory
  gpu-als plan --users 1M --items 200K --nnz 500M --factors 128 --device-memory 80G
  gpu-als info                                    versions, processors, GPU

'gpu-als COMMAND --help' explains the options of a command.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code.

    Parameters
    ----------
    argv : sequence of str, optional
        The arguments; those of the process by default.

    Returns
    -------
    int
        0 for success; after an error that was explained on stderr 2 where the command is at fault,
        1 where a file, a device or a cluster is; 130 after Ctrl-C.
    """
    parser, commands = build_parser()
    try:
        args = _parse(parser, commands, argv)
    except SystemExit as leave:  # --help, --version, or a usage error that argparse explained
        return leave.code if isinstance(leave.code, int) else _MISUSED
    if args.command is None:
        parser.print_help(sys.stderr)
        return _MISUSED
    try:
        with _plain_warnings():
            code: int = args.run(args)
            sys.stdout.flush()
        return code
    except BrokenPipeError:
        _forget_stdout()
        return _PIPE_CLOSED
    except KeyboardInterrupt:
        return _explain("interrupted", _INTERRUPTED)
    except OSError as error:
        what = f"{error.filename}: {error.strerror}" if error.filename else str(error)
        return _explain(f"error: {what}")
    except MemoryError as error:
        return _explain(f"error: out of memory ({error}); try fewer --factors or --dtype float32")
    except GpuAlsError as error:
        wrong = isinstance(error, InputError)
        return _explain(f"error: {error}", _MISUSED if wrong else _FAILED)


def _parse(
    parser: argparse.ArgumentParser,
    commands: Mapping[str, argparse.ArgumentParser],
    argv: Sequence[str] | None,
) -> argparse.Namespace:
    args, rest = parser.parse_known_args(argv)
    # argparse stops filling a list of files at the first option that stands between them
    takes_more = args.command in ("evaluate", "convert")
    if rest and takes_more and not any(text.startswith("-") for text in rest):
        args.files += rest
    elif rest:
        commands[args.command].error(f"unrecognized arguments: {' '.join(rest)}")
    return args


class _Parser(argparse.ArgumentParser):
    """A parser that says what may have been meant."""

    def error(self, message: str) -> NoReturn:
        known = re.findall(r"--[\w-]+", self.format_help())
        wrong = re.findall(r"(--[\w-]+)", message.partition("unrecognized arguments: ")[2])
        choice = re.search(r"invalid choice: '(.*?)' \(choose from (.*)\)", message)
        if choice is not None:
            wrong, known = [choice[1]], re.findall(r"[\w.-]+", choice[2])
        for text in wrong:
            if near := difflib.get_close_matches(text, known, 1):
                message += f"; did you mean {near[0]}?"
        super().error(message)


def build_parser() -> tuple[argparse.ArgumentParser, Mapping[str, argparse.ArgumentParser]]:
    """Return the parser of the whole command line, and those of the commands."""
    from gpu_als.version import __version__

    parser = _Parser(
        prog="gpu-als",
        description="Exact alternating least squares on GPU and CPU: learn from ratings or "
        "clicks, recommend, and measure how well it works.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"gpu-als {__version__}")
    parser.add_argument(
        "--print-completion", action=_Completion, choices=("bash", "zsh", "tcsh"),
        help="print the script that completes commands in this shell (needs shtab)",
    )  # fmt: skip
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", title="commands")
    for module in (
        demo, fit, recommend, similar, predict, evaluate, split, export, convert, plan, info,
    ):  # fmt: skip
        module.add_command(commands)
    return parser, commands.choices


class _Completion(argparse.Action):
    """Print the script that completes commands and options in a shell."""

    def __call__(self, parser: argparse.ArgumentParser, *given: Any) -> NoReturn:
        try:
            import shtab
        except ImportError as error:
            parser.error(f"--print-completion needs shtab ({error}); run pip install shtab")
        print(shtab.complete(parser, given[1]))
        parser.exit()


@contextlib.contextmanager
def _plain_warnings() -> Iterator[None]:
    """Show warnings as one plain line, without the place in the source."""

    def show(message: Warning | str, *_: Any, **__: Any) -> None:
        print(f"gpu-als: warning: {message}", file=sys.stderr)

    with warnings.catch_warnings():
        warnings.showwarning = show
        yield


def _forget_stdout() -> None:
    """Keep the interpreter from failing once more when it flushes a closed pipe at exit."""
    with contextlib.suppress(OSError, ValueError):
        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, sys.stdout.fileno())
        os.close(nothing)


def _explain(text: str, code: int = _FAILED) -> int:
    print(f"gpu-als: {text}", file=sys.stderr)
    return code
