"""The best items of many users by the kernels of ``top_k.cu``: what to launch, and the launches.

The plan is a pure function of shapes and device limits; it decides where work goes, and no plan
changes a result. Users come in calls of :func:`users_per_call`, which bounds the memory whatever
the number of users and items.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse as sp

from gpu_als.backends.cupy.launch import DeviceLimits, round_up, stride_of
from gpu_als.core.problem import Array

__all__ = [
    "MOST_BEST",
    "FusedTopK",
    "TopKPlan",
    "bits_of",
    "padded",
    "plan_top_k",
    "run_top_k",
    "users_per_call",
]

GetKernel = Callable[[str, str, tuple[tuple[str, int], ...]], Any]

MOST_BEST = 4096
"""The largest n_best; beyond it lists are long, and a full sort is not worse."""

_USERS, _ITEMS, _ROW, _PENDING = 16, 128, 20, 64  # of a warp; top_k.cu
_KEY_BYTES = 8
_WORKSPACE_BYTES = 1 << 29
_BLOCK_RESERVE = 1024  # bytes of shared memory that the system keeps for every block
_LARGEST_FAN = 32
_FEWEST_ITEMS = 256  # of a list, where the items are split
_BUSY = 0.9  # share of the device that a plan tries to keep busy

_FEW_USERS = (1, 2)
_MANY_USERS = ((8, 1), (4, 1))
_MOST_BLOCKS = {(8, 1): 2, (4, 1): 3, (1, 2): 4}  # on a multiprocessor, by their registers


@dataclass(frozen=True)
class TopKPlan:
    """The launches for one call.

    Attributes
    ----------
    n_users, n_items, n_factors, n_best : int
    user_warps, item_warps : int
        Warps of a block that share the items and that share the users.
    blocks : int
        Blocks of the scan that share a multiprocessor.
    items_per_split : int
        Items that one block scans.
    merges : tuple of (int, int)
        For each round of merging, how many lists become one, and how many lists lie between them.
    """

    n_users: int
    n_items: int
    n_factors: int
    n_best: int
    user_warps: int
    item_warps: int
    blocks: int
    items_per_split: int
    merges: tuple[tuple[int, int], ...]

    @property
    def macros(self) -> tuple[tuple[str, int], ...]:
        """The specialisation of ``top_k.cu``."""
        return (
            ("USER_WARPS", self.user_warps),
            ("ITEM_WARPS", self.item_warps),
            ("BLOCKS", self.blocks),
        )

    @property
    def users_per_block(self) -> int:
        """Users whose scores a block computes."""
        return _USERS * self.user_warps

    @property
    def threads(self) -> int:
        """Threads of a block of the scan."""
        return 32 * self.user_warps * self.item_warps

    @property
    def shared_bytes(self) -> int:
        """Shared memory of a block of the scan."""
        return _scan_bytes(self.user_warps, self.item_warps)

    @property
    def splits(self) -> int:
        """Parts that the items are cut into."""
        return -(-self.n_items // self.items_per_split)

    @property
    def grid(self) -> tuple[int, int]:
        """Blocks of the scan."""
        return -(-self.n_users // self.users_per_block), self.splits

    @property
    def lists(self) -> int:
        """Lists that the scan leaves for each user."""
        return self.splits * self.item_warps

    @property
    def workspace_bytes(self) -> int:
        """Memory for the lists of all users."""
        return self.n_users * self.lists * self.n_best * _KEY_BYTES

    @property
    def merge_size(self) -> int:
        """Keys that a block of the merge holds in shared memory."""
        return 1 << (self.n_best - 1).bit_length()

    @property
    def merge_threads(self) -> int:
        """Threads of a block of the merge."""
        return min(max(self.merge_size // 2, 32), 256)

    def __str__(self) -> str:
        """Return the plan as a table."""
        tiles, splits = self.grid
        macros = " ".join(f"{name}={value}" for name, value in self.macros)
        lines = [
            f"{self.n_best} best of {self.n_items} items for {self.n_users} users, "
            f"{self.n_factors} factors; workspace {self.workspace_bytes / 2**20:.1f} MB",
            f"top_k_scan   {tiles} x {splits} blocks of {self.threads} threads, "
            f"{self.shared_bytes / 1024:.1f} KB each; {self.users_per_block} users and "
            f"{self.items_per_split} items each  [{macros}]",
        ]
        lines += [
            f"top_k_merge  {self.n_users} x {self.groups(fan, spacing)} blocks of "
            f"{self.merge_threads} threads, {self.merge_size * _KEY_BYTES / 1024:.1f} KB each; "
            f"{fan} lists each, {spacing} apart"
            for fan, spacing in self.merges
        ]
        return "\n".join(lines)

    def groups(self, fan: int, spacing: int) -> int:
        """Return how many lists of each user a round of merging leaves."""
        return -(-self.lists // (fan * spacing))


def plan_top_k(
    n_users: int,
    n_items: int,
    n_factors: int,
    n_best: int,
    limits: DeviceLimits,
    *,
    multiprocessors: int = 132,
) -> TopKPlan:
    """Plan one call.

    Parameters
    ----------
    n_users : int
        Of this call; see :func:`users_per_call`.
    n_items : int
        Less than 2^31.
    n_factors : int
    n_best : int
        At most n_items, and at most :data:`MOST_BEST`.
    limits : DeviceLimits
    multiprocessors : int
        Of the device; more of them, and fewer users, split the items more often.
    """
    if not 1 <= n_best <= min(n_items, MOST_BEST) or max(n_items, n_users) >= 2**31:
        raise ValueError(f"no plan for {n_best} of {n_items} items for {n_users} users")
    user_warps, item_warps = _warps(n_users, limits)
    blocks = max(1, _blocks((user_warps, item_warps), limits))
    tile_items = _ITEMS * item_warps
    # Lists of many splits cost memory, and each has to find its own good candidates first.
    most = min(
        n_items // (item_warps * max(_FEWEST_ITEMS, n_best)),
        _WORKSPACE_BYTES // (max(n_users, 1) * item_warps * n_best * _KEY_BYTES),
    )
    items_per_split = tile_items * _tiles_per_split(
        -(-n_users // (_USERS * user_warps)),
        -(-n_items // tile_items),
        multiprocessors * blocks,
        most,
    )
    lists = -(-n_items // items_per_split) * item_warps
    return TopKPlan(
        n_users=n_users,
        n_items=n_items,
        n_factors=n_factors,
        n_best=n_best,
        user_warps=user_warps,
        item_warps=item_warps,
        blocks=blocks,
        items_per_split=items_per_split,
        merges=_merges(lists),
    )


def users_per_call(n_best: int) -> int:
    """Return how many users to ask for at a time: whole tiles, room for two lists of each."""
    tile = _USERS * _MANY_USERS[0][0]
    return max(tile, _WORKSPACE_BYTES // (2 * n_best * _KEY_BYTES) // tile * tile)


def _scan_bytes(user_warps: int, item_warps: int) -> int:
    rows = _USERS * user_warps + _ITEMS * item_warps
    return 4 * _ROW * rows + _KEY_BYTES * _PENDING * _USERS * user_warps * item_warps


def _blocks(warps: tuple[int, int], limits: DeviceLimits) -> int:
    """Return how many blocks can share a multiprocessor."""
    used = _scan_bytes(*warps)
    if used > limits.shared_per_block:
        return 0
    shared = limits.shared_per_multiprocessor // (used + _BLOCK_RESERVE)
    return min(shared, _MOST_BLOCKS[warps])


def _warps(n_users: int, limits: DeviceLimits) -> tuple[int, int]:
    """Return the warps of a block: as many as can be busy; of two such shapes the larger."""
    if n_users <= _USERS:
        return _FEW_USERS
    smaller = _MANY_USERS[-1]
    if n_users <= _USERS * smaller[0]:
        return smaller
    return max(_MANY_USERS, key=lambda warps: warps[0] * warps[1] * _blocks(warps, limits))


def _tiles_per_split(user_tiles: int, item_tiles: int, slots: int, most: int) -> int:
    """Return the most tiles of items a block may scan for the device to be busy until the end.

    Or, where at most ``most`` splits cannot achieve that, those that end first.
    """

    def rounds(tiles: int) -> int:
        """Return how long the last block of ``slots`` at a time takes, in tiles."""
        return -(-user_tiles * -(-item_tiles // tiles) // slots) * tiles

    best = item_tiles
    for splits in range(1, min(most, slots) + 1):
        tiles = -(-item_tiles // splits)
        if rounds(tiles) < rounds(best):
            best = tiles
        if user_tiles * item_tiles >= _BUSY * slots * rounds(best):
            break
    return best


def _merges(lists: int) -> tuple[tuple[int, int], ...]:
    """Return the rounds that make one list of ``lists``; at least one, which writes results."""
    rounds, spacing = [], 1
    while lists > _LARGEST_FAN:
        fan = max(_LARGEST_FAN, math.isqrt(lists - 1) + 1)
        rounds.append((fan, spacing))
        lists, spacing = -(-lists // fan), spacing * fan
    return (*rounds, (lists, spacing))


def padded(xp: Any, factors: Array) -> Array:
    """Return factors with rows of whole 16-byte pieces, zeros at their ends, as the kernels do."""
    n_rows, n_factors = factors.shape
    stride = stride_of(n_factors)
    if stride == n_factors and factors.flags.c_contiguous:
        return factors
    out = xp.zeros((n_rows, stride), factors.dtype)
    out[:, :n_factors] = factors
    return out


def bits_of(items: np.ndarray, n_items: int) -> np.ndarray:
    """Return one bit for each item, set for those named: ``excluded_everywhere``."""
    flags = np.zeros(round_up(n_items, 32), bool)
    flags[items] = True
    return np.packbits(flags, bitorder="little").view("<u4").astype(np.uint32, copy=False)


def run_top_k(
    xp: Any,
    get_kernel: GetKernel,
    plan: TopKPlan,
    users: Array,
    items: Array,
    *,
    excluded: tuple[Array, Array] | None = None,
    excluded_everywhere: Array | None = None,
) -> tuple[Array, Array]:
    """Return the best items of every user.

    Parameters
    ----------
    xp : module
        CuPy.
    get_kernel : callable
        ``get_kernel(file, function, macros)`` returns a compiled kernel with CuPy's interface.
    plan : TopKPlan
    users, items : float32 arrays on the device, shapes (n_users, stride) and (n_items, stride)
        C-contiguous; stride a multiple of 4, columns beyond the factors zero (:func:`padded`).
    excluded : (int64 array, int32 array) on the device, optional
        ``indptr`` and ``indices`` of the items that each user must not get, rising in each row.
        Row i belongs to ``users[i]``; ``indptr`` need not begin at 0.
    excluded_everywhere : uint32 array on the device, optional
        Items that no user may get, as bits (:func:`bits_of`).

    Returns
    -------
    ids : int32 array on the device, shape (n_users, n_best)
    scores : float32 array on the device, shape (n_users, n_best)
        Largest first, equal scores by lowest id. NaN and scores below the lowest finite number
        count as that number, -0 as 0. Excluded items follow all others, by id, with the lowest
        finite score.
    """
    n_users, n_best = plan.n_users, plan.n_best
    stride = stride_of(plan.n_factors)
    if users.shape != (n_users, stride) or items.shape != (plan.n_items, stride):
        raise ValueError(f"factors of shapes {users.shape} and {items.shape} for the plan\n{plan}")
    for array in (users, items):
        if array.dtype != np.float32 or not array.flags.c_contiguous:
            raise ValueError("the factors must be C-contiguous float32 arrays")
    ids = xp.empty((n_users, n_best), np.int32)
    scores = xp.empty((n_users, n_best), np.float32)
    if n_users == 0:
        return ids, scores

    null = np.uint64(0)
    indptr, indices = (null, null) if excluded is None else excluded
    everywhere = null if excluded_everywhere is None else excluded_everywhere
    filters = (indptr, indices, everywhere)
    lists = xp.empty((n_users, plan.lists, n_best), np.uint64)

    scan = get_kernel("top_k", "top_k_scan", plan.macros)
    scan.max_dynamic_shared_size_bytes = plan.shared_bytes
    scan(
        plan.grid,
        (plan.threads,),
        (
            users, items, lists, *filters, np.uint32(n_users), np.uint32(plan.n_items),
            np.uint32(plan.items_per_split), np.int32(stride), np.int32(n_best),
        ),
        shared_mem=plan.shared_bytes,
    )  # fmt: skip
    merge = get_kernel("top_k", "top_k_merge", plan.macros)
    for fan, spacing in plan.merges:
        groups = plan.groups(fan, spacing)
        results = (ids, scores) if groups == 1 else (null, null)
        merge(
            (n_users, groups),
            (plan.merge_threads,),
            (
                lists, *results, *filters, np.uint32(plan.n_items), np.int32(n_best),
                np.int32(plan.lists), np.int32(fan), np.int32(spacing),
            ),
            shared_mem=plan.merge_size * _KEY_BYTES,
        )  # fmt: skip
    return ids, scores


@dataclass(frozen=True)
class FusedTopK:
    """Ranks items with the kernels of top_k.cu.

    Attributes
    ----------
    xp : module
        CuPy.
    limits : DeviceLimits
    multiprocessors : int
    get_kernel : callable
        ``get_kernel(file, function, macros)`` returns a compiled kernel.
    """

    xp: Any
    limits: DeviceLimits
    multiprocessors: int
    get_kernel: Callable[..., Any]

    def __call__(
        self,
        users: Array,
        items: Array,
        n_best: int,
        liked: sp.csr_matrix | None,
        filter_items: np.ndarray | None,
    ) -> tuple[np.ndarray, np.ndarray] | None:
        """Return the best items and their scores; None where no kernel serves the call."""
        if users.dtype != np.float32 or n_best > MOST_BEST:
            return None
        xp = self.xp
        items = padded(xp, items)
        everywhere = None
        if filter_items is not None:
            everywhere = xp.asarray(bits_of(filter_items, len(items)))
        if liked is not None and not liked.has_sorted_indices:
            liked = liked.sorted_indices()
        ids = np.empty((len(users), n_best), np.int32)
        scores = np.empty((len(users), n_best), np.float32)
        height = users_per_call(n_best)
        for start in range(0, len(users), height):
            stop = min(start + height, len(users))
            plan = plan_top_k(
                stop - start,
                len(items),
                users.shape[1],
                n_best,
                self.limits,
                multiprocessors=self.multiprocessors,
            )
            found = run_top_k(
                xp,
                self.get_kernel,
                plan,
                padded(xp, users[start:stop]),
                items,
                excluded=None if liked is None else self._excluded(liked, start, stop),
                excluded_everywhere=everywhere,
            )
            ids[start:stop], scores[start:stop] = (xp.asnumpy(part) for part in found)
        return ids, scores

    def _excluded(self, liked: sp.csr_matrix, start: int, stop: int) -> tuple[Array, Array]:
        """Return the rows of these users on the device."""
        indptr = liked.indptr[start : stop + 1].astype(np.int64)
        indices = liked.indices[indptr[0] : indptr[-1]].astype(np.int32, copy=False)
        return self.xp.asarray(indptr - indptr[0]), self.xp.asarray(indices)
