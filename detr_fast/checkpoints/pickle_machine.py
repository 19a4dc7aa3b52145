"""Pickles, interpreted without running anything that they ask for.

Unpickling calls what a file names. This interpreter follows the instructions of a pickle (PEP 307 and 574;
`pickletools` documents them) and gives it none of the real things: a name stands for an entry of a table that
only stores what it is given, and any other name ends the reading. Each instruction takes constant time and
memory besides its argument, so a file cannot ask for more than in proportion to its size.
"""

from __future__ import annotations

import io
import pickletools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

MAX_INSTRUCTIONS = 2_000_000  # an official checkpoint with its optimizer has some 50 000
MAX_INTEGER_BITS = 1024
SCALARS = (str, bytes, int, float, bool, type(None))

PUSHED = {
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT", "STRING",
    "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BINBYTES",
    "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8",
}  # fmt: skip
CONSTANTS: dict[str, Any] = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}

Names: TypeAlias = Mapping[tuple[str, str], Any]
Persistent: TypeAlias = Callable[[Any], Any]


class Refused(Exception):
    """The file names something that could run code; `name` says what."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name


class StandIn:
    """What a pickle makes by a name: it keeps what it is given."""

    def build(self, state: Any) -> None:
        """Takes the state that the pickle gives it after it is made."""
        raise ValueError(f"a state for a {type(self).__name__}")


@dataclass(frozen=True)
class Name:
    """Something to call; `make` says what is made then."""

    make: Callable[..., Any]


def interpret(file: io.BytesIO, names: Names, persistent: Persistent | None = None) -> Any:
    """What the pickle at the file's position holds, with stand-ins for what `names` make; read to its end.

    Args:
        file: left behind the pickle.
        names: what each (module, name) stands for; functions are called with the pickle's arguments.
        persistent: what a persistent id stands for; without it there may be none.

    Raises:
        Refused: the pickle names anything else.
        ValueError, and others of many kinds: it is damaged, or too long.
    """
    machine = _Machine(names, persistent)
    for count, (opcode, argument, _) in enumerate(pickletools.genops(file)):
        if count >= MAX_INSTRUCTIONS:
            raise ValueError(f"a pickle of more than {MAX_INSTRUCTIONS} instructions")
        machine.step(opcode.name, argument)
    if len(machine.stack) != 1:
        raise ValueError(f"a pickle of {len(machine.stack)} values")
    return machine.stack[0]


class _Machine:
    def __init__(self, names: Names, persistent: Persistent | None) -> None:
        self.names, self.persistent = names, persistent
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    def step(self, name: str, argument: Any) -> None:
        stack = self.stack
        if name in PUSHED:
            if isinstance(argument, int) and argument.bit_length() > MAX_INTEGER_BITS:
                raise ValueError(f"an integer of {argument.bit_length()} bits")
            stack.append(argument)
        elif name.endswith("PUT"):
            self.memo[int(argument)] = stack[-1]
        elif name == "MEMOIZE":
            self.memo[len(self.memo)] = stack[-1]
        elif name.endswith("GET"):
            stack.append(self.memo[int(argument)])
        elif name == "MARK":
            self.marks.append(len(stack))
        elif name in CONSTANTS:
            stack.append(CONSTANTS[name])
        elif name in TUPLES:
            count = TUPLES[name]
            stack[-count:] = [tuple(stack[-count:])]
        elif name == "TUPLE":
            self._push(tuple(self._since_mark()))
        elif name == "GLOBAL":
            self._push(self._named(*argument.split(" ", 1)))
        elif name == "STACK_GLOBAL":
            attribute, module = stack.pop(), stack.pop()
            self._push(self._named(module, attribute))
        elif name in ("REDUCE", "NEWOBJ"):
            arguments = stack.pop()
            self._push(_call(stack.pop(), arguments))
        elif name == "BUILD":
            state = stack.pop()
            if isinstance(stack[-1], StandIn):
                stack[-1].build(state)
            elif not isinstance(stack[-1], dict):  # what an OrderedDict keeps beside its entries is left out
                raise ValueError(f"a state for a {type(stack[-1]).__name__}")
        elif name in ("PERSID", "BINPERSID"):
            if self.persistent is None:
                raise ValueError("a reference to something outside of the pickle")
            self._push(self.persistent(stack.pop() if name == "BINPERSID" else argument))
        elif not self._collect(name) and name not in ("PROTO", "FRAME", "STOP"):
            raise (
                Refused(f"the registered extension {argument}")
                if name.startswith("EXT")
                else ValueError(f"the instruction {name}")
            )

    def _collect(self, name: str) -> bool:
        """Lists, dicts, sets and what only moves values; whether `name` is one of those."""
        stack = self.stack
        if name == "EMPTY_LIST":
            stack.append([])
        elif name == "EMPTY_DICT":
            stack.append({})
        elif name == "EMPTY_SET":
            stack.append(set())
        elif name == "LIST":
            self._push(self._since_mark())
        elif name == "DICT":
            self._push(set_items({}, self._since_mark()))
        elif name == "FROZENSET":
            self._push(frozenset(map(check_key, self._since_mark())))
        elif name in ("APPEND", "APPENDS"):
            items = [stack.pop()] if name == "APPEND" else self._since_mark()
            _expect(stack[-1], list).extend(items)
        elif name == "ADDITEMS":
            items = self._since_mark()
            _expect(stack[-1], set).update(map(check_key, items))
        elif name in ("SETITEM", "SETITEMS"):
            if name == "SETITEM":
                items = stack[-2:]
                del stack[-2:]
            else:
                items = self._since_mark()
            set_items(_expect(stack[-1], dict), items)
        elif name == "DUP":
            stack.append(stack[-1])
        elif name == "POP":
            stack.pop()
        elif name == "POP_MARK":
            self._since_mark()
        else:
            return False
        return True

    def _push(self, value: Any) -> None:
        self.stack.append(value)

    def _since_mark(self) -> list[Any]:
        start = self.marks.pop()
        items = self.stack[start:]
        del self.stack[start:]
        return items

    def _named(self, module: Any, name: Any) -> Any:
        if not isinstance(module, str) or not isinstance(name, str):
            raise ValueError("a name that is no string")
        if (module, name) not in self.names:
            raise Refused(f"{module}.{name}")
        known = self.names[module, name]
        return Name(known) if callable(known) else known


def _call(name: Any, arguments: Any) -> Any:
    if not isinstance(name, Name) or not isinstance(arguments, tuple):
        raise ValueError(f"a call of a {type(name).__name__}")
    return name.make(*arguments)


def _expect(container: Any, kind: type) -> Any:
    if type(container) is not kind:
        raise ValueError(f"expected a {kind.__name__} to fill; got a {type(container).__name__}")
    return container


def set_items(target: dict[Any, Any], items: list[Any]) -> dict[Any, Any]:
    for key, value in zip(items[::2], items[1::2], strict=True):
        target[check_key(key)] = value
    return target


def check_key(x: Any) -> Any:
    """`x`, where its hash takes no time: hashing tuples that share parts takes exponentially much."""
    if isinstance(x, SCALARS) or (isinstance(x, tuple) and all(isinstance(part, SCALARS) for part in x)):
        return x
    raise ValueError(f"expected a key of plain data; got a {type(x).__name__}")
