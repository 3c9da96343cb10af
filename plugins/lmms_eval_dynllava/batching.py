"""Which requests run together, and preparing the next batch while the model works."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def plan_batches(
    keys: Sequence[Hashable], lengths: Sequence[int], batch_size: int
) -> list[list[int]]:
    """Return batches of indices.

    Only requests with the same key (generation arguments) run together, longest first: little
    padding, and the largest batch shows at once whether memory is enough.

    Parameters
    ----------
    keys : sequence of hashable
        [N] generation arguments of each request.
    lengths : sequence of int
        [N] length of each prompt; equal lengths keep their order.
    batch_size : int
        Rows at most.
    """
    groups: dict[Hashable, list[int]] = {}
    for index, key in enumerate(keys):
        groups.setdefault(key, []).append(index)
    batches = []
    for members in groups.values():
        members.sort(key=lambda index: -lengths[index])
        batches += [
            members[start : start + batch_size] for start in range(0, len(members), batch_size)
        ]
    return batches


def prefetched(
    prepare: Callable[[Item], Result], items: Sequence[Item]
) -> Iterator[tuple[Item, Result]]:
    """Yield (item, ``prepare(item)``) in order; a thread prepares one item ahead.

    Decoding and resizing images releases the interpreter lock, so it overlaps with the model.
    An error in ``prepare`` is raised at its item.
    """
    if not items:
        return
    with ThreadPoolExecutor(1, thread_name_prefix="prefetch") as executor:
        upcoming = executor.submit(prepare, items[0])
        for index, item in enumerate(items):
            result = upcoming.result()
            if index + 1 < len(items):
                upcoming = executor.submit(prepare, items[index + 1])
            yield item, result
