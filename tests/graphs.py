"""Random lists of traces for the tests of --low-memory, and what tells whether two are the same.

One generator of graphs: objects that are shared within a trace and between traces, cycles through
lists, dicts, sets, states and arguments, and classes that pickle in all the ways there are, among
them those whose code changes other objects while they are loaded.
"""

from __future__ import annotations

import collections
import enum
import pickle
import random
import re
import types
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import cloudpickle


class Plain:
    def __repr__(self) -> str:  # the default would follow cycles in a failing test
        return f"<{type(self).__name__}>"


class Slots:
    __slots__ = ("a", "b")
    a: Any
    b: Any

    def __getstate__(self) -> Any:  # protocols 0 and 1 know no slots
        return None, {"a": self.a, "b": self.b}


class ListSubclass(list[Any]):
    tag: Any


class DictSubclass(dict[str, Any]):
    pass


class Stateful(Plain):
    """Its state is a tuple, which __setstate__ takes apart."""

    x: Any = None

    def __getstate__(self) -> Any:
        return (self.x,)

    def __setstate__(self, state: Any) -> None:
        (self.x,) = state


class Reduced(Plain):
    items: Any = None

    def __reduce__(self) -> Any:
        return make_reduced, (self.items,)


def make_reduced(items: Any) -> Reduced:
    made = Reduced()
    made.items = items
    return made


class Keyword(Plain):
    """Its arguments by name are in a dict of the pickle (NEWOBJ_EX, or a partial)."""

    def __new__(cls, *, value: Any = None) -> Keyword:
        made = super().__new__(cls)
        made.value = value  # type: ignore[attr-defined]
        return made

    def __getnewargs_ex__(self) -> Any:
        return (), {"value": self.value}  # type: ignore[attr-defined]

    def __getstate__(self) -> Any:
        return None


class Amended(list[Any]):
    """A list whose arguments may lead back to it: its items are added after it is fetched again."""

    args: Any = None

    def __reduce__(self) -> Any:
        return make_amended, (self.args,), None, iter(list(self))


def make_amended(args: Any, items: Iterable[Any] = ()) -> Amended:
    made = Amended(items)
    made.args = args
    return made


class WithSetter(Plain):
    """Its state is set by a call whose result is thrown away, as cloudpickle does."""

    def __reduce__(self) -> Any:
        return WithSetter, (), self.__dict__, None, None, set_state


def set_state(made: Any, state: Any) -> None:
    made.__dict__.update(state)


class Filled(Plain):
    """Made empty, and filled by a second call, as functions by cloudpickle before 1.3."""

    def __reduce__(self) -> Any:
        return fill, (Skeleton(), self.__dict__)


class Skeleton(Plain):
    def __reduce__(self) -> Any:
        return make_skeleton, ()


def make_skeleton() -> Filled:
    return Filled()


def fill(made: Filled, state: Any) -> Filled:
    made.__dict__.update(state)
    return made


class Hashed(Plain):
    """Equal by value: a set or a dict asks it while it may not have its state yet."""

    def __init__(self, value: int) -> None:
        self.value = value

    def __reduce__(self) -> Any:
        return Hashed, (self.value,), {k: v for k, v in self.__dict__.items() if k != "value"}

    def __hash__(self) -> int:
        return hash(self.value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Hashed) and other.value == self.value


class Late(Plain):
    """Gets an attribute when it is on the stack already, as modules and classes by dill."""


def assign(made: Any, value: Any) -> None:
    made.__dict__["late"] = value


class Kid(Plain):
    """What is changed by what it is made for (see change), but not by what only fetches it."""

    __slots__ = ("is_written",)  # not in its __dict__, so in no pickle
    is_written: bool

    def __reduce__(self) -> Any:
        self.is_written = True
        return Kid, (), self.__dict__


def find_kid(pair: Any) -> Kid:
    """Return the kid that is first in all that lies around it, or in a tuple last behind a list."""
    while not isinstance(pair, Kid):
        if isinstance(pair, dict):
            pair = pair["kid"]
        else:
            pair = pair[-1 if isinstance(pair, tuple) and isinstance(pair[0], list) else 0]
    return pair


def is_new(pair: Any) -> bool:
    """Return, as a pair is about to be written, whether its kid will be made in it."""
    return not hasattr(find_kid(pair), "is_written")


def change(pair: Any, maker: Any, is_made: bool) -> None:
    if is_made:
        find_kid(pair).__dict__["maker"] = maker


class Changing(Plain):
    """Changes the kid in the tuple that it is made with; here by REDUCE."""

    def __init__(self, pair: Any = None, is_made: bool = False) -> None:
        self.pair = pair
        change(pair, self, is_made)

    def __reduce__(self) -> Any:
        return type(self), (self.pair, is_new(self.pair))


class ChangingByClass(Changing):
    """By OBJ or INST, if a pickler writes them."""


class ChangingBySetter(Changing):
    def __reduce__(self) -> Any:
        return ChangingBySetter, (), (self.pair, is_new(self.pair)), None, None, set_changing


def set_changing(made: Changing, state: Any) -> None:
    made.pair, is_made = state
    change(made.pair, made, is_made)


class ChangingByNew(Plain):
    """By NEWOBJ, from protocol 2 on."""

    pair: Any

    def __new__(cls, pair: Any = None, is_made: bool = False) -> ChangingByNew:
        made = super().__new__(cls)
        made.pair = pair
        change(pair, made, is_made)
        return made

    def __getnewargs__(self) -> Any:
        return self.pair, is_new(self.pair)

    def __getstate__(self) -> Any:
        return None


class ChangingByName(ChangingByNew):
    """By NEWOBJ_EX, from protocol 4 on; before, the arguments are of an object of their own."""

    is_made = False

    def __reduce_ex__(self, protocol: Any) -> Any:
        self.is_made = protocol >= 4 and is_new(self.pair)
        return super().__reduce_ex__(protocol)

    def __getnewargs_ex__(self) -> Any:
        return (), {"pair": self.pair, "is_made": self.is_made}


class ChangingByState(Plain):
    pair: Any

    def __getstate__(self) -> Any:
        return self.pair, is_new(self.pair)

    def __setstate__(self, state: Any) -> None:
        self.pair, is_made = state
        change(self.pair, self, is_made)


class ChangingList(list[Any]):
    """Changes its first item as it is appended."""

    def __init__(self, is_made: bool = False) -> None:
        self.is_made = is_made

    def append(self, item: Any) -> None:
        change(item, self, self.is_made and not self)
        super().append(item)

    def extend(self, items: Iterable[Any]) -> None:
        for item in items:
            self.append(item)

    def __reduce__(self) -> Any:
        return ChangingList, (is_new(self[0]),), None, iter(list(self))


class ChangingDict(dict[Any, Any]):
    """Changes its first value as it is set."""

    def __init__(self, is_made: bool = False) -> None:
        self.is_made = is_made

    def __setitem__(self, key: Any, value: Any) -> None:
        change(value, self, self.is_made and not self)
        super().__setitem__(key, value)

    def __reduce__(self) -> Any:
        return ChangingDict, (is_new(next(iter(self.values()))),), None, None, iter(self.items())


class LatePickler(pickle._Pickler):
    """Writes Late as dill does: the object, then a call, then POP; and OBJ and INST."""

    proto: int
    memo: dict[int, Any]

    def save(self, obj: Any, save_persistent_id: bool = True) -> None:
        is_new = id(obj) not in self.memo
        if is_new and isinstance(obj, ChangingByClass):
            self.save_by_class(obj)
            return
        super().save(obj, save_persistent_id)  # type: ignore[misc]
        if is_new and isinstance(obj, Late) and id(obj) in self.memo:
            late = Plain()
            late.owner = [obj]  # type: ignore[attr-defined]
            self.save_reduce(assign, (obj, late))  # type: ignore[attr-defined]
            self.write(pickle.POP)  # type: ignore[attr-defined]

    def save_by_class(self, obj: Any) -> None:
        made_by, args = obj.__reduce__()
        self.write(pickle.MARK)  # type: ignore[attr-defined]
        for part in (made_by, *args) if self.proto else args:
            self.save(part)
        name = f"{made_by.__module__}\n{made_by.__name__}\n".encode()
        self.write(pickle.OBJ if self.proto else pickle.INST + name)  # type: ignore[attr-defined]
        if id(obj) in self.memo:  # as pickle does: it was met in its own arguments
            get = self.get(self.memo[id(obj)][0])  # type: ignore[attr-defined]
            self.write(pickle.POP + get)  # type: ignore[attr-defined]
        else:
            self.memoize(obj)  # type: ignore[attr-defined]


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
        b"z" * rng.choice([70, 70_000]),
        Color.RED,
        Plain,
        (),
        frozenset({1, 2}),
        {7},
    ]
    return rng.choice(leaves)


def make_function(kids: list[Any]) -> Any:
    """Return a function that only cloudpickle can write: it holds kids, and itself."""

    def function(*args: Any) -> Any:
        return kids, function, args

    function.__dict__["tag"] = kids
    return function


CHANGING = [
    *(Changing, ChangingByClass, ChangingBySetter, ChangingByNew, ChangingByName, ChangingByState),
    *(ChangingList, ChangingDict),
]


def make_changing(rng: random.Random, kids: list[Any], pool: list[Any]) -> Any:
    """Return what changes a kid as it is made; let others have the kid, too."""
    kid = Kid()
    kid.__dict__.update({f"a{i}": item for i, item in enumerate(kids)})
    box = [kid, *kids]
    pairs: list[Any] = [kid, (kid,), (kid, *kids), ((kid, *kids),), ((kid,), *kids)]
    pairs += [(box, kid), ((box, kid),)]
    made: Any = rng.choice(CHANGING)()
    if not isinstance(made, (list, dict)):  # those change what they get, but nothing that is in it
        pairs += [box, [box], {"kid": kid}, ({"kid": kid}, *kids), [({"kid": box},)]]
    pair = rng.choice(pairs)
    pool += [kid, pair]
    if isinstance(made, list):
        list.extend(made, [pair, *kids])
    elif isinstance(made, dict):
        dict.update(made, enumerate([pair, *kids]))
    else:
        made.pair = pair
    return made


def make_node(rng: random.Random, kids: list[Any], pick: Any, kinds: str, pool: list[Any]) -> Any:
    """Return a container of any kind that holds kids."""
    kind = rng.choice(kinds)
    named = {f"a{i}": kid for i, kid in enumerate(kids)}
    if kind == "l":
        return list(kids)
    if kind == "d":
        return {f"k{i % 5}": kid for i, kid in enumerate(kids)}
    if kind == "t":
        return tuple(kids)
    if kind == "f":
        return make_function(kids)
    if kind == "c":
        return make_changing(rng, kids, pool)
    made: Any
    if kind == "s":
        made = {Hashed(i) for i in range(rng.randrange(4))}
        for member in made:
            member.kid = pick()
        return made if rng.random() < 0.5 else dict.fromkeys(made, pick())
    if kind == "o":
        made = Slots()
        made.a, made.b = pick(), pick()
    elif kind == "v":  # what an object has for its attributes, beside it
        made = Plain()
        made.__dict__.update(named)
        return [made, vars(made)]
    elif kind == "L":
        made = ListSubclass(kids)
        made.tag = pick()
    elif kind == "D":
        made = rng.choice([DictSubclass, collections.OrderedDict])(zip("qrst", kids))
    elif kind == "a":
        made = make_amended(pick(), kids)
    elif kind == "r":
        made = rng.choice([make_reduced(kids), Pair(pick(), pick()), Keyword(value=kids)])
    else:
        made = rng.choice([Plain, Stateful, WithSetter, Filled, Late])()
        made.__dict__.update(named)
    return made


KINDS = "lddttsovvLDarppppcc"  # one letter a kind of node, see make_node


def make_traces(rng: random.Random, *, kinds: str = KINDS) -> list[Any]:
    """Return 1 to 8 traces of these kinds of nodes that share objects, and refer to themselves."""
    pool: list[Any] = []

    def pick() -> Any:
        if pool and rng.random() < 0.6:
            return rng.choice(pool)
        leaf = make_leaf(rng)
        pool.append(leaf)
        return leaf

    for _ in range(rng.randrange(1, 12)):
        pool.append(make_node(rng, [pick() for _ in range(rng.randrange(4))], pick, kinds, pool))
    for _ in range(rng.randrange(6)):
        target = rng.choice(pool)
        if isinstance(target, Amended) and rng.random() < 0.7:
            target.args = [rng.choice(pool)]
        elif isinstance(target, list):
            list.append(target, rng.choice(pool))
        elif isinstance(target, dict):
            target["m"] = rng.choice(pool)
        elif isinstance(target, Plain):
            target.__dict__["x"] = rng.choice(pool)
    return [rng.choice(pool) for _ in range(rng.randrange(1, 9))]


def dump_python(value: object, protocol: int) -> bytes:
    return _dump_with(pickle._Pickler, value, protocol)


def dump_late(value: object, protocol: int) -> bytes:
    return _dump_with(LatePickler, value, protocol)


def _dump_with(pickler: Any, value: object, protocol: int) -> bytes:
    parts: list[bytes] = []
    sink = types.SimpleNamespace(write=lambda data: parts.append(bytes(data)))
    pickler(sink, protocol).dump(value)
    return b"".join(parts)


PICKLERS = {
    "c": pickle.dumps,
    "python": dump_python,
    "late": dump_late,
    "cloudpickle": cloudpickle.dumps,
}

_ATOMS = (int, float, complex, str, bytes, bool, type(None), enum.Enum, types.BuiltinFunctionType)


def find_difference(left: Any, right: Any) -> str:
    """Return where two graphs differ in types, values or identities; nothing if they do not.

    Objects are paired as they are met: one on the left is always the same one on the right.
    """
    paired: dict[int, int] = {}
    paired_back: dict[int, int] = {}
    kept = []  # so that no id is used twice
    waiting = [(left, right, "")]
    while waiting:
        one, other, path = waiting.pop()
        if type(one) is not type(other):
            return f"{path}: {type(one).__name__} and {type(other).__name__}"
        if isinstance(one, _ATOMS) or one == ():
            if one != other and one == one:
                return f"{path}: {one!r:.80} and {other!r:.80}"
            continue
        if paired.setdefault(id(one), id(other)) != id(other):
            return f"{path}: shared on the left only"
        if paired_back.setdefault(id(other), id(one)) != id(one):
            return f"{path}: shared on the right only"
        kept.append((one, other))
        if len(kept) > 1 and any(one is known for known, _ in kept[-2:-1]):
            continue
        parts, other_parts = list(_parts(one)), list(_parts(other))
        if [key for key, _ in parts] != [key for key, _ in other_parts]:
            return f"{path}: has {[k for k, _ in parts]} and {[k for k, _ in other_parts]}"
        for (key, part), (_, other_part) in zip(parts, other_parts):
            pair = (id(part), id(other_part))
            if paired.get(pair[0]) == pair[1] and paired_back.get(pair[1]) == pair[0]:
                continue
            waiting.append((part, other_part, f"{path}.{key}"))
    return ""


def _parts(value: Any) -> Iterator[tuple[Any, Any]]:
    """Yield all that a value is made of, each part with a name that does not depend on identity."""
    if isinstance(value, type):
        if value.__module__ == "__main__" or "<locals>" in value.__qualname__:
            yield from ((k, v) for k, v in vars(value).items() if not k.startswith("__"))
        yield value.__qualname__, None
    elif isinstance(value, types.FunctionType):
        code = value.__code__
        yield code.co_code, None
        yield "defaults", value.__defaults__
        for name, cell in zip(code.co_freevars, value.__closure__ or ()):
            yield name, cell
        for name in code.co_names:
            if name in value.__globals__:
                yield name, value.__globals__[name]
        yield from vars(value).items()
    elif isinstance(value, types.CellType):
        yield "contents", value.cell_contents
    elif isinstance(value, bytearray):
        yield bytes(value), None
    if isinstance(value, (list, tuple)):
        yield from enumerate(list.__iter__(value) if isinstance(value, list) else value)
    elif isinstance(value, (set, frozenset)):
        yield from ((_name(item), item) for item in sorted(value, key=_name))
    elif isinstance(value, dict):
        for number, (key, item) in enumerate(value.items()):
            yield (number, _name(key)), key
            yield (number, "item"), item
    if hasattr(value, "__dict__") and not isinstance(value, (type, types.FunctionType)):
        yield from ((_name(name), part) for name, part in vars(value).items())
    for name in getattr(type(value), "__slots__", ()):
        if hasattr(value, name):
            yield name, getattr(value, name)


def _name(key: Any) -> str:
    if isinstance(key, Hashed):
        return f"Hashed {key.__dict__.get('value')}"
    return re.sub(" at 0x[0-9a-f]+", "", repr(key))
