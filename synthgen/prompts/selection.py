"""Choosing prompts so that classes come equally often."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Sequence

from synthgen.types import Prompt

_NO_CLASS = ""


def class_counts(prompts: Iterable[Prompt]) -> dict[str, int]:
    """Number of prompts per class, most frequent first, then by name.

    >>> class_counts([Prompt("1", "x", ("cat",)), Prompt("2", "y", ("dog", "cat"))])
    {'cat': 2, 'dog': 1}
    """
    counts = Counter(name for prompt in prompts for name in prompt.class_names)
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def balance(prompts: Sequence[Prompt], num: int) -> list[Prompt]:
    """``num`` prompts whose classes come as equally often as the supply allows.

    Greedy: again and again, the class that was chosen least so far (ties: the one that appears
    first in the file) gives its first unused prompt; all classes of that prompt are counted.
    Prompts without classes form a class of their own. No randomness, and ``balance(p, n)`` is
    the beginning of ``balance(p, n + 1)``, so that a larger dataset keeps the smaller one.

    Args:
        prompts: To choose from.
        num: How many, at most ``len(prompts)``.

    Raises:
        ValueError: If there are not that many.

    >>> supply = [Prompt(str(i), "x", ("dog" if i == 3 else "cat",)) for i in range(4)]
    >>> [prompt.id for prompt in balance(supply, 3)]
    ['0', '3', '1']
    """
    if not 0 <= num <= len(prompts):
        raise ValueError(f"num must be 0 to {len(prompts)}, the number of prompts. Got {num}.")
    supply: dict[str, deque[int]] = {}
    for i, prompt in enumerate(prompts):
        for name in prompt.class_names or (_NO_CLASS,):
            supply.setdefault(name, deque()).append(i)
    counts = dict.fromkeys(supply, 0)
    used: set[int] = set()
    chosen: list[Prompt] = []
    while len(chosen) < num:
        i = _next_of_rarest(supply, counts, used)
        used.add(i)
        chosen.append(prompts[i])
        for name in prompts[i].class_names or (_NO_CLASS,):
            counts[name] += 1
    return chosen


def _next_of_rarest(supply: dict[str, deque[int]], counts: dict[str, int], used: set[int]) -> int:
    """First unused prompt of the least chosen class; classes that ran out leave the supply."""
    while True:
        rarest = min(supply, key=counts.__getitem__)
        queue = supply[rarest]
        while queue and queue[0] in used:
            queue.popleft()
        if queue:
            return queue.popleft()
        del supply[rarest]
