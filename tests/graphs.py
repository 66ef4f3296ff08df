"""Random graphs of objects for the tests of --low-memory: sharing, recursion, odd classes."""

from __future__ import annotations

import collections
import enum
import random
from collections.abc import Iterable
from typing import Any, NamedTuple


class Plain:
    pass


class Slots:
    __slots__ = ("a", "b")


class ListSubclass(list[Any]):
    tag: Any


class DictSubclass(dict[str, Any]):
    pass


class Stateful:
    x: Any = None

    def __getstate__(self) -> Any:
        return (self.x,)

    def __setstate__(self, state: Any) -> None:
        (self.x,) = state


class Reduced:
    items: Any = None

    def __reduce__(self) -> Any:
        return make_reduced, (self.items,)


def make_reduced(items: Any) -> Reduced:
    made = Reduced()
    made.items = items
    return made


class Amended(list[Any]):
    """A list whose arguments may lead back to it: its items are added after it is fetched again."""

    args: Any = None

    def __reduce__(self) -> Any:
        return make_amended, (self.args,), None, iter(list(self))


def make_amended(args: Any, items: Iterable[Any] = ()) -> Amended:
    made = Amended(items)
    made.args = args
    return made


class Color(enum.Enum):
    RED = 1


class Pair(NamedTuple):
    x: Any
    y: Any


def make_leaf(rng: random.Random) -> Any:
    """Return one of the values that picklers write in many ways."""
    leaves = [
        None,
        True,
        rng.randrange(-5, 300),
        rng.randrange(10**6),
        2**70 + rng.randrange(9),
        2**3000,
        rng.random(),
        f"s{rng.randrange(6)}",
        b"b" * rng.randrange(5),
        bytearray(b"x%d" % rng.randrange(3)),
        "\udcff\n\\\r\0",
        "é" * rng.randrange(300),
        b"z" * 70_000,
        Color.RED,
        Plain,
        (),
        frozenset({1, 2}),
        {7},
    ]
    return rng.choice(leaves)


def make_node(rng: random.Random, kids: list[Any], pick: Any) -> Any:
    """Return a container of any kind that holds kids."""
    kind = rng.randrange(12)
    if kind <= 2:
        return list(kids)
    if kind <= 4:
        return {f"k{i % 5}": kid for i, kid in enumerate(kids)}
    if kind <= 6:
        return tuple(kids)
    if kind == 7:
        made: Any = Plain()
        made.__dict__.update({f"a{i}": kid for i, kid in enumerate(kids)})
    elif kind == 8:
        made = Slots()
        made.a, made.b = pick(), pick()
    elif kind == 9:
        made = ListSubclass(kids)
        made.tag = pick()
    elif kind == 10:
        made = rng.choice([DictSubclass, collections.OrderedDict])(zip("qrst", kids))
    else:
        made = rng.choice(
            [Stateful(), Pair(pick(), pick()), make_reduced(kids), make_amended(pick(), kids)]
        )
    return made


def make_traces(rng: random.Random, *, recursive: bool) -> list[Any]:
    """Return 1 to 8 traces that share objects, and refer to themselves if recursive."""
    pool: list[Any] = []

    def pick() -> Any:
        if pool and rng.random() < 0.5:
            return rng.choice(pool)
        leaf = make_leaf(rng)
        pool.append(leaf)
        return leaf

    for _ in range(rng.randrange(1, 12)):
        pool.append(make_node(rng, [pick() for _ in range(rng.randrange(4))], pick))
    if recursive:
        for _ in range(rng.randrange(6)):
            target = rng.choice(pool)
            if isinstance(target, Amended) and rng.random() < 0.7:
                target.args = [rng.choice(pool)]
            elif isinstance(target, list):
                target.append(rng.choice(pool))
            elif isinstance(target, dict):
                target["m"] = rng.choice(pool)
            elif isinstance(target, (Plain, Stateful)):
                target.x = rng.choice(pool)  # type: ignore[union-attr]
    return [rng.choice(pool) for _ in range(rng.randrange(1, 9))]


def make_amended_traces(rng: random.Random) -> list[Any]:
    """Return 2 to 5 traces of few objects, many of which are amended while others are made."""
    pool: list[Any] = [["leaf"]]
    for _ in range(rng.randrange(2, 7)):
        pool.append(rng.choice([make_amended(None), [], {}, (rng.choice(pool), rng.choice(pool))]))
    for target in pool:
        for _ in range(rng.randrange(3)):
            other = rng.choice(pool)
            if isinstance(target, Amended) and target.args is None and rng.random() < 0.7:
                target.args = other
            elif isinstance(target, list):
                target.append(other)
            elif isinstance(target, dict):
                target[rng.randrange(3)] = other
    return [rng.choice(pool) for _ in range(rng.randrange(2, 6))]
