"""How much runs at once on the machine's GPUs, over all flow runs and processes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from prefect.concurrency.sync import concurrency


@contextmanager
def slot(limit: str | None) -> Iterator[None]:
    """Hold one slot of a global concurrency limit while the block runs.

    A slot is leased: that of a killed process comes back after five minutes.

    Args:
        limit: Name of the limit; None takes no slot.

    Raises:
        ConcurrencySlotAcquisitionError: If the server has no limit of this name. Prefect's own
            default is to run unbounded then, which a misspelled name would hide.
    """
    if limit is None:
        yield
        return
    with concurrency(limit, occupy=1, strict=True):
        yield
