"""What a sweep costs on one device or many: the model of docs/scale.md, and its check.

    python benchmarks/scale_model.py            # the worked answers
    python benchmarks/scale_model.py --check    # predictions beside measurements on this machine

Nothing in it is fitted to a GPU. ``--check`` measures three rates of this machine on small fits in
one process and predicts larger ones, in one process and on Dask workers, which it then runs.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import Any

import numpy as np
from gpu_floor import Work
from harness import machine, write_results

_QUANTILES = 2000
_WORKSPACE = 4e9
"""Bytes, with two parts on their way."""


@dataclass(frozen=True)
class Machine:
    """Nodes of devices; rates are of one device unless something else is said.

    Attributes
    ----------
    devices, nodes : int
        Devices of a node, and nodes.
    flops : float
        FLOP/s that row solves reach.
    gather : float
        Bytes/s at which rows of factors are gathered.
    row_seconds : float
        What a row costs whatever its length.
    products : float
        FLOP/s that products with k x k matrices reach: changes of coordinates.
    link : float
        Bytes/s between host and device.
    peer : float
        Bytes/s into a device from others of its node.
    network : float
        Bytes/s into a node.
    memory, host_memory : float
        Bytes of a device, and of a node.
    start : float
        Seconds until the workers of a cluster have their tasks of a half-sweep and the client knows
        that these are done.
    overlap : bool
        Whether gathering and arithmetic overlap: the larger counts, not their sum.
    """

    devices: int
    nodes: int
    flops: float
    gather: float
    row_seconds: float
    products: float
    link: float
    peer: float
    network: float
    memory: float
    host_memory: float
    start: float = 0.1
    overlap: bool = True

    @property
    def workers(self) -> int:
        """Devices in all."""
        return self.devices * self.nodes


@dataclass(frozen=True)
class Job:
    """What is to be factorised.

    Attributes
    ----------
    rows : (int, int)
        Users and items.
    entries, factors : int
    spread : (float, float)
        Standard deviation of the logarithm of the entries of a user and of an item.
    shared_base : bool
        Implicit feedback: the fixed side changes coordinates in every half-sweep.
    """

    rows: tuple[int, int]
    entries: int
    factors: int
    spread: tuple[float, float] = (1.2, 1.8)
    shared_base: bool = True

    def factor_bytes(self, side: int) -> float:
        """Return the bytes of one side's factors in float32."""
        return 4.0 * self.rows[side] * self.factors

    def lengths(self, side: int) -> np.ndarray:
        """Return a sample of row lengths, lognormal, whose mean is entries / rows."""
        normal = NormalDist(0, self.spread[side])
        places = (np.arange(_QUANTILES) + 0.5) / _QUANTILES
        sample = np.exp([normal.inv_cdf(place) for place in places])
        most = self.rows[1 - side]
        return np.minimum(sample * (self.entries / self.rows[side] / sample.mean()), most)

    def work(self, side: int) -> Work:
        """Return the bytes and FLOPs of all rows of a side."""
        sample = Work.of(self.lengths(side), self.factors)
        scale = self.rows[side] / _QUANTILES
        return Work(sample.bytes * scale, sample.flops * scale)


@dataclass(frozen=True)
class Cost:
    """Seconds of a half-sweep, by what takes them.

    Attributes
    ----------
    gather, solve, rows : float
        The rows of one worker: gathering factors, arithmetic, and what every row costs.
    coordinates : float
        The Gram of a share of the fixed side, and the rotation of all of it.
    exchange : float
        Getting the fixed side from other workers.
    stream : float
        Entries from the host, which goes on behind the rows.
    start : float
        Tasks, in a cluster.
    overlap : bool
    """

    gather: float
    solve: float
    rows: float
    coordinates: float
    exchange: float
    stream: float
    start: float
    overlap: bool

    @property
    def total(self) -> float:
        """Seconds in all."""
        solve = max(self.gather, self.solve) if self.overlap else self.gather + self.solve
        rows = max(solve + self.rows, self.stream)
        return rows + self.coordinates + self.exchange + self.start


def half_sweep(job: Job, where: Machine, side: int, *, streamed: bool, collective: bool) -> Cost:
    """Return the cost of solving one side.

    Parameters
    ----------
    job : Job
    where : Machine
    side : int
        0 solves users, 1 items.
    streamed : bool
        Entries come from the host in every half-sweep.
    collective : bool
        The fixed side is gathered from device to device, and once to a node (NCCL). Otherwise as
        Dask does it: every worker fetches it from every other, through the hosts.
    """
    work, k, fixed = job.work(side), job.factors, job.rows[1 - side]
    n = where.workers
    share = job.factor_bytes(1 - side) / n  # what each device has of the fixed side
    inside, outside = where.devices - 1, n - where.devices
    if n == 1:
        exchange = 0.0
    elif collective:
        exchange = inside * share / where.peer + outside * share / where.network
    else:
        # all devices of a node share its network, and everything passes the host link twice
        network = where.devices * outside * share / where.network
        exchange = (inside + outside) * share / where.peer + network + n * share / where.link
    square = float(fixed) * k**2 if job.shared_base else 0.0
    return Cost(
        gather=work.bytes / where.gather / n,
        solve=work.flops / where.flops / n,
        rows=job.rows[side] * where.row_seconds / n,
        coordinates=(square / n + 2 * square) / where.products,
        exchange=exchange,
        stream=12.0 * job.entries / n / where.link if streamed else 0.0,
        start=where.start if n > 1 else 0.0,
        overlap=where.overlap,
    )


def device_bytes(job: Job, where: Machine) -> tuple[float, float]:
    """Return the bytes that a device needs with all its entries on it, and without.

    Its own rows of both sides, the larger side in the coordinates of a half-sweep and, where that
    has come from other workers too, as it is, a workspace, and 12 bytes for each entry of its rows
    in either orientation.
    """
    own = sum(job.factor_bytes(side) for side in (0, 1)) / where.workers
    fixed = max(job.factor_bytes(side) for side in (0, 1))
    factors = own + fixed * (1 if where.workers == 1 else 2) + _WORKSPACE
    return factors + 2 * 12.0 * job.entries / where.workers, factors


H200 = Machine(
    devices=1, nodes=1,
    # A third of the data sheet's 67 TFLOP/s in float32 and two thirds of its 4.8 TB/s: assumptions.
    flops=22e12, gather=3.2e12, row_seconds=2e-9, products=30e12,
    link=50e9, peer=350e9, network=8 * 40e9, memory=141e9, host_memory=2e12,
)  # fmt: skip
"""An H200 by its data sheet: HBM3e 4.8 TB/s, PCIe 5 x16, NVLink 900 GB/s both ways, 400 Gbit/s of
network for each GPU. No figure of it has been measured."""

ANSWERS = [
    ("10 billion, 1 H200", Job((100_000_000, 10_000_000), 10**10, 128), H200),
    ("10 billion, 8 H200", Job((100_000_000, 10_000_000), 10**10, 128), replace(H200, devices=8)),
    (
        "100 billion, 4 nodes of 8",
        Job((100_000_000, 10_000_000), 10**11, 128),
        replace(H200, devices=8, nodes=4),
    ),
]


def answer(name: str, job: Job, where: Machine) -> list[str]:
    """Return one worked answer in words."""
    resident, streamed = device_bytes(job, where)
    lines = [
        f"{name}: {job.rows[0]:,} users x {job.rows[1]:,} items, {job.entries:,} entries, "
        f"k = {job.factors}, {where.workers} device(s)",
        f"  factors {job.factor_bytes(0) / 1e9:.1f} + {job.factor_bytes(1) / 1e9:.1f} GB; a device "
        f"needs {resident / 1e9:.0f} GB with its entries on it, {streamed / 1e9:.0f} GB without; "
        f"it has {where.memory / 1e9:.0f} GB",
    ]
    if streamed > where.memory:
        lines.append("  does not fit: the fixed side alone is too large; fewer factors would do")
        share = (where.memory - _WORKSPACE) / (streamed - _WORKSPACE)
        most = int(job.factors * share) // 4 * 4
        job = replace(job, factors=most)
        resident, streamed = device_bytes(job, where)
        lines.append(f"  with k = {most}: {streamed / 1e9:.0f} GB without entries")
    stream = resident > where.memory
    ways = (
        (("NCCL", True), ("Dask's transport", False)) if where.workers > 1 else (("alone", True),)
    )
    for way, collective in ways:
        costs = [half_sweep(job, where, s, streamed=stream, collective=collective) for s in (0, 1)]
        total = sum(cost.total for cost in costs)
        parts = ", ".join(
            f"{part} {sum(getattr(cost, part) for cost in costs):.2f}"
            for part in ("gather", "solve", "rows", "coordinates", "exchange", "stream", "start")
        )
        how = "streamed" if stream else "resident"
        lines.append(f"  {way}, {how}: {total:.1f} s a sweep ({parts})")
    return lines


# ---- the check on this machine -------------------------------------------------------------------

CALIBRATION = [((20_000, 4_000), 1_000_000, k) for k in (16, 32, 64, 128)] + [
    ((100_000, 2_000), 250_000, 64),
    ((2_000, 2_000), 1_000_000, 128),
]
TINY = (200, 100), 2_000, 8
"""A fit that is all start."""
CHECKED = [
    ((60_000, 12_000), 3_000_000, 32, 0),
    ((60_000, 12_000), 3_000_000, 96, 0),
    ((100_000, 5_000), 1_000_000, 64, 0),
    ((60_000, 12_000), 3_000_000, 32, 2),
    ((60_000, 12_000), 3_000_000, 96, 2),
]
"""Shape, entries, factors, and Dask workers of one thread each; 0 for this process alone."""


def interactions(shape: tuple[int, int], entries: int) -> Any:
    """Return made-up counts of that shape."""
    from powerlaw import powerlaw_interactions

    median = max(1, int(0.5 * entries / shape[0]))
    return powerlaw_interactions(*shape, entries, median_user=median, seed=20)


def measured(data: Any, k: int, threads: int) -> list[float]:
    """Return the seconds of a users' and an items' half-sweep, the best of three."""
    from gpu_als import AlternatingLeastSquares

    model = AlternatingLeastSquares(
        factors=k, use_cg=False, use_gpu=False, iterations=3, num_threads=threads, random_state=6,
        alpha=2.5,
    )  # fmt: skip
    model.fit(data, show_progress=False)
    assert model.report_ is not None
    return np.min(model.report_.seconds, axis=0).tolist()


def terms(counts: np.ndarray, n_fixed: int, k: int) -> np.ndarray:
    """Return what a half-sweep is made of: bytes, FLOPs, rows, FLOPs of coordinates."""
    work = Work.of(counts, k)
    return np.array([work.bytes, work.flops, len(counts), 3.0 * n_fixed * k**2])


def calibrate(threads: int) -> np.ndarray:
    """Return seconds per byte, FLOP, row and FLOP of coordinates of one process."""
    from scipy.optimize import nnls

    rows, seconds = [], []
    for shape, entries, k in CALIBRATION:
        data = interactions(shape, entries)
        counts = np.diff(data.indptr), np.bincount(data.indices, minlength=shape[1])
        for side, found in enumerate(measured(data, k, threads)):
            rows.append(terms(counts[side], shape[1 - side], k))
            seconds.append(found)
    scaled = np.array(rows) / np.array(seconds)[:, None]  # relative errors count alike
    size = scaled.max(axis=0)
    return nnls(scaled / size, np.ones(len(seconds)))[0] / size


def check(threads: int) -> list[dict[str, Any]]:
    """Print predictions beside measurements."""
    from distributed import Client, LocalCluster

    from gpu_als.dask import DaskInteractions

    rates = calibrate(threads)
    names = ("s/byte", "s/FLOP", "s/row", "s/FLOP of coordinates")
    shown = ", ".join(f"{rate:.2e} {name}" for rate, name in zip(rates, names, strict=True))
    print(f"rates of one process with {threads} threads: {shown}\n")
    print("  users   items    entries    k  workers   predicted s   measured s   ratio")
    results = []
    for shape, entries, k, workers in CHECKED:
        data = interactions(shape, entries)
        counts = np.diff(data.indptr), np.bincount(data.indices, minlength=shape[1])
        predicted = 0.0
        for side in (0, 1):
            parts = terms(counts[side], shape[1 - side], k) * rates
            # a worker has one of the threads; all of them rotate all of the fixed side
            predicted += parts[:3].sum() + parts[3] * (max(workers, 1) * 2 + 1) / 3
        if workers:
            with (
                LocalCluster(
                    n_workers=workers, threads_per_worker=1, dashboard_address="127.0.0.1:0"
                ) as cluster,
                Client(cluster) as client,
            ):
                tiny, tiny_entries, tiny_k = TINY
                few = DaskInteractions(client, interactions(tiny, tiny_entries))
                predicted += sum(measured(few, tiny_k, 1))
                found = measured(DaskInteractions(client, data), k, 1)
        else:
            found = measured(data, k, threads)
        total = sum(found)
        print(
            f"{shape[0]:7,} {shape[1]:7,} {entries:10,} {k:4} {workers:8} {predicted:13.2f} "
            f"{total:12.2f} {predicted / total:7.2f}",
            flush=True,
        )
        results.append(
            {
                "shape": shape, "entries": entries, "k": k, "workers": workers,
                "predicted": predicted, "measured": found,
            }
        )  # fmt: skip
    return results


def main(argv: Sequence[str] | None = None) -> None:
    """Print the worked answers, or the check."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--write", action="store_true", help="write benchmarks/results/*.json")
    arguments = parser.parse_args(argv)
    if not arguments.check:
        for case in ANSWERS:
            print("\n".join(answer(*case)), end="\n\n")
        return
    found = {"machine": machine("distributed"), "threads": arguments.threads}
    for name, value in found["machine"].items():
        print(f"{name}: {value}")
    results = found | {"rows": check(arguments.threads)}
    if arguments.write:
        print(f"written to {write_results('scale-model', results)}")


if __name__ == "__main__":
    main()
