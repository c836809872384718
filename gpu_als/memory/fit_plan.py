"""How a fit will run on a machine, or what it lacks there and what would fit."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

from gpu_als.memory.device_plan import (
    DevicePlan,
    batch_bytes,
    device_batch_elements,
    lay_out,
    most_factors,
)
from gpu_als.memory.fit_shape import FitShape
from gpu_als.memory.host_plan import HostPlan, Threads, plan_host

__all__ = ["FitPlan", "Machine"]

_MOST_WORKERS = 1024


@dataclass(frozen=True)
class Machine:
    """What a fit has to run on.

    Attributes
    ----------
    threads : Threads
        What solves rows where there is no device.
    device_memory : int or None
        Bytes free on the GPU; None without one.
    host_memory : int or None
        Bytes of the host; None where they are enough.
    """

    threads: Threads
    device_memory: int | None
    host_memory: int | None


@dataclass(frozen=True)
class FitPlan:
    """How a fit will run, and the memory that takes; made by :func:`gpu_als.planning.plan`.

    Attributes
    ----------
    shape : FitShape
    machine : Machine
    host : HostPlan
        Without Python itself and what it has imported.
    device : DevicePlan or None
        None where the fit runs on the CPU.
    """

    shape: FitShape
    machine: Machine
    host: HostPlan
    device: DevicePlan | None

    @classmethod
    def of(cls, shape: FitShape, machine: Machine) -> FitPlan:
        """Take the quickest way that fits: data in memory before shards, resident before parts."""
        device: DevicePlan | None = None
        threads: Threads | None = machine.threads
        part = None
        if machine.device_memory is not None:
            workspace = batch_bytes(device_batch_elements(machine.device_memory))
            device = lay_out(shape, machine.device_memory, workspace)
            threads, part = None, device.part_bytes
        in_memory, from_shards = (
            plan_host(shape, threads, from_shards=shards, part_bytes=part)
            for shards in (False, True)
        )
        host = in_memory
        if machine.host_memory is not None and in_memory.total > machine.host_memory:
            host = min(in_memory, from_shards, key=lambda each: each.total)
        return cls(shape, machine, host, device)

    @property
    def host_fits(self) -> bool:
        """Whether the host has enough memory."""
        return self.machine.host_memory is None or self.host.total <= self.machine.host_memory

    @property
    def device_fits(self) -> bool:
        """Whether the device has enough memory; True without one."""
        given = self.machine.device_memory
        return self.device is None or given is None or self.device.total <= given

    @property
    def fits(self) -> bool:
        """Whether the fit can run."""
        return self.host_fits and self.device_fits

    @cached_property
    def options(self) -> tuple[str, ...]:
        """What else would fit, where this does not."""
        if self.fits:
            return ()
        found = []
        if fewer := most_factors(self._fits_with, self.shape.factors):
            found.append(f"at most {fewer:,} factors")
        workers = next((n for n in range(2, _MOST_WORKERS + 1) if self._fits_on(n)), None)
        if workers:
            found.append(f"{workers:,} workers with as much memory each (gpu_als.dask)")
        without = FitPlan.of(self.shape, replace(self.machine, device_memory=None))
        if self.device and without.fits:
            found.append("the processors instead of the GPU (backend='numpy', use_gpu=False)")
        if not self.device_fits and self.device:
            found.append(f"a GPU with {self.device.total:,} bytes free")
        if not self.host_fits:
            found.append(f"{self.host.total:,} bytes of host memory")
        return tuple(found)

    @property
    def summary(self) -> str:
        """What will happen, or what is missing and what would fit, in words."""
        if not self.fits:
            missing = []
            if not self.device_fits and self.device:
                missing.append(
                    f"{self.device.total:,} bytes of GPU memory, of which "
                    f"{self.machine.device_memory:,} are there"
                )
            if not self.host_fits:
                missing.append(
                    f"{self.host.total:,} bytes of host memory, of which "
                    f"{self.machine.host_memory:,} are there"
                )
            return (
                f"this fit needs {' and '.join(missing)}; what would fit: "
                f"{'; or '.join(self.options)}"
            )
        if self.device is None:
            number = self.machine.threads.number
            where = f"on the CPU, with {number} thread" + "s" * (number > 1)
        elif self.device.part_bytes is None:
            where = "on the GPU, where all data stay"
        else:
            where = (
                "on the GPU, through which the data pass in every half-sweep, in parts of "
                f"{self.device.part_bytes:,} bytes"
            )
        source = "the data are in host memory"
        if self.host.from_shards:
            source = "the data do not fit in host memory: pass them as shards (gpu-als convert)"
        return f"The fit runs {where}; {source}."

    def to_dict(self) -> dict[str, Any]:
        """Return all numbers, for JSON."""
        parts: dict[str, Any] = {}
        for name, each in (("host", self.host), ("device", self.device)):
            parts[name] = None if each is None else asdict(each) | {"total": each.total}
        return {
            "shape": asdict(self.shape),
            "threads": self.machine.threads.number,
            "host_memory": self.machine.host_memory,
            "device_memory": self.machine.device_memory,
            **parts,
            "fits": self.fits,
            "options": list(self.options),
            "summary": self.summary,
        }

    def _fits_with(self, factors: int) -> bool:
        return FitPlan.of(replace(self.shape, factors=factors), self.machine).fits

    def _fits_on(self, n_workers: int) -> bool:
        """Tell whether so many machines would do, each with its share of the rows of both sides.

        A worker has the pieces of the whole fixed side, puts them together and takes them into
        their coordinates; of its own rows it keeps what they were and what they become.
        """
        entries = -(-self.shape.entries // n_workers)
        share = FitPlan.of(replace(self.shape, entries=entries), self.machine)
        value = self.shape.width * self.shape.value_bytes
        fixed = max(self.shape.users, self.shape.items) * value
        own = -(-(self.shape.users + self.shape.items) * value // n_workers)
        host = share.host.data + share.host.workspace + 3 * fixed + 2 * own
        given = self.machine.host_memory
        return share.device_fits and (given is None or host <= given)
