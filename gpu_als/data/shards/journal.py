"""How far a conversion has come: what lets the next run continue after one that was killed."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

from gpu_als.data.atomic import replacing
from gpu_als.data.shards.array_files import check_file
from gpu_als.data.shards.records import SIDES, IdRecord, ShardRecord, listed, parse_ids, parse_shard
from gpu_als.errors import InputError, ReadError

__all__ = ["Journal"]

_FILE = "journal.json"


@dataclass
class Journal:
    """The state of a conversion after its last completed step.

    Attributes
    ----------
    identity : dict
        What it is a conversion of: files and options.
    stage : {"read", "sort", "build"}
        What is to be done next: read the input; sort entries out into parts; sort the parts and
        write shards.
    shape : (int, int)
    entries_bytes : int
        Size of the file of entries.
    value_dtype : str
        The smallest float type that holds all values of the input.
    entries_of_parts : dict of str to list of int
        How many entries each part has, duplicates counted.
    ids : dict of str to IdRecord or None
    finished : dict of str to list of ShardRecord
    codes : list of float
    """

    identity: dict[str, Any]
    stage: str = "read"
    shape: tuple[int, int] = (0, 0)
    entries_bytes: int = 0
    value_dtype: str = "<f2"
    entries_of_parts: dict[str, list[int]] = field(default_factory=dict)
    ids: dict[str, IdRecord | None] = field(default_factory=lambda: dict.fromkeys(SIDES))
    finished: dict[str, list[ShardRecord]] = field(
        default_factory=lambda: {side: [] for side in SIDES}
    )
    codes: list[float] = field(default_factory=list)

    def save(self, work: Path) -> None:
        """Replace the journal in one step."""
        with replacing(work / _FILE) as stream:
            stream.write(json.dumps(asdict(self)).encode())

    @classmethod
    def load(cls, work: Path) -> Self | None:
        """Read the journal, if there is one.

        Raises
        ------
        ReadError
            If it is damaged.
        """
        path = work / _FILE
        try:
            body = json.loads(path.read_bytes())
            body["shape"] = tuple(body["shape"])
            body["ids"] = {side: parse_ids(body["ids"][side]) for side in SIDES}
            body["finished"] = {
                side: list(map(parse_shard, body["finished"][side])) for side in SIDES
            }
            return cls(**body)
        except FileNotFoundError:
            return None
        except (ValueError, TypeError, KeyError) as error:
            raise ReadError(
                f"{path}: damaged ({error!r:.200}); run the conversion again without resume"
            ) from error

    def check(self, identity: dict[str, Any], folder: Path) -> set[str]:
        """Refuse to continue another conversion, or where files were lost.

        Returns
        -------
        set of str
            The paths, below the folder, of the files that are complete.

        Raises
        ------
        InputError
            If it is another one; the message names what differs.
        ReadError
            If such a file is gone or has another size.
        """
        now = json.loads(json.dumps(identity))
        differing = [name for name in now if self.identity.get(name) != now[name]]
        if differing:
            raise InputError(
                f"{folder}: holds an unfinished conversion with other {', '.join(differing)}; "
                "repeat it with the same, or start afresh without resume"
            )
        files = dict(listed(self.ids, self.finished))
        for name, record in files.items():
            check_file(folder / name, record)
        return set(files)
