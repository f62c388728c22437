"""Reads the pickle of a CIFAR batch without executing it.

A pickle is a program. This interpreter knows only the instructions that Python 2 and 3 write, in
protocols 2 to 5, for a dictionary of names, lists of integers or names, and uint8 arrays;
`pickletools` describes them. It calls nothing that the pickle names. Every size is checked before
memory is taken, so that a hostile file costs little more memory than its own size.
"""

import math
import pickletools
import re
from collections.abc import Callable
from typing import Any

import numpy as np

MAX_PIXELS = 50_000 * 3072
"""The most bytes in an array: the training images of CIFAR-100."""
_MAX_INSTRUCTIONS = 1_000_000  # Python 3 writes eight for each name in protocol 2
_MAX_MEMO = 300_000
_MAX_ITEMS = 100_000
_MAX_CONTAINERS = 64
_MAX_NAME = 128
_COPIED_BYTES = 1 << 16  # longer strings remain views of the file
_SMALL_INTS = re.compile(rb"(?:K.){1,100000}", re.DOTALL)


class PickledArray:
    """A uint8 array that is still in the bytes of the file.

    Attributes:
        shape: Shape of the array, None until it is known.
    """

    def __init__(self) -> None:
        self.shape: tuple[int, ...] | None = None
        self._pixels: bytes | memoryview | _Latin1 = b""
        self._order = "C"

    def set_content(self, shape: Any, pixels: Any, order: str) -> None:
        """Sets everything, once.

        Raises:
            ValueError: The content is not an array, is too large, or its parts do not match.
        """
        if self.shape is not None or not isinstance(shape, tuple) or not 0 < len(shape) <= 4:
            raise ValueError("an array has no valid shape")
        if not all(type(side) is int and 0 <= side <= MAX_PIXELS for side in shape):
            raise ValueError(f"an array has a side outside 0 to {MAX_PIXELS}")
        count = math.prod(shape)
        if count > MAX_PIXELS:
            raise ValueError(f"its data is {shape}, more than {MAX_PIXELS} bytes")
        if not isinstance(pixels, bytes | memoryview | _Latin1):
            raise ValueError("an array has no bytes")
        # A character of Latin-1 takes one or two bytes in UTF-8.
        most = 2 * count if isinstance(pixels, _Latin1) else count
        if not count <= len(pixels) <= most:
            raise ValueError(f"its data is {shape}, but has {len(pixels)} bytes")
        self.shape, self._pixels, self._order = shape, pixels, order

    def load(self) -> np.ndarray:
        """Returns the array, which may share the memory of the file.

        Raises:
            ValueError: The content does not match the shape.
        """
        if self.shape is None:
            raise ValueError("an array has no content")
        pixels = self._pixels.decode() if isinstance(self._pixels, _Latin1) else self._pixels
        array = np.frombuffer(pixels, np.uint8)
        return array.reshape(self.shape, order="F" if self._order == "F" else "C")


def read_batch_pickle(content: bytes) -> dict[bytes, Any]:
    """Reads the dictionary in a pickle.

    Args:
        content: Bytes of the file.

    Returns:
        The values by key, text keys as UTF-8: `PickledArray`, lists of int and bytes, and others.

    Raises:
        ValueError: The content is damaged, or has something that no batch needs.
    """
    return _Interpreter(content).run()


class _Latin1:
    """Bytes stored as text with one character for each, in UTF-8; decoded when they are used."""

    def __init__(self, text: bytes | memoryview) -> None:
        self._text = text

    def __len__(self) -> int:
        return len(self._text)

    def decode(self) -> bytes:
        return str(self._text, "utf-8").encode("latin-1")


class _Global:
    """A function or class that the pickle names."""

    def __init__(self, name: str) -> None:
        self.name = name


class _UInt8:
    """The data type of every array."""


def _reconstruct(kind: Any, shape: Any, code: Any) -> PickledArray:
    if not isinstance(kind, _Global) or kind.name != "numpy.ndarray":
        raise ValueError("an array is of another class than numpy.ndarray")
    return PickledArray()


def _frombuffer(pixels: Any, dtype: Any, shape: Any, order: Any) -> PickledArray:
    array = PickledArray()
    _require_uint8(dtype)
    array.set_content(shape, pixels, "F" if order == b"F" else "C")
    return array


def _dtype(name: Any, align: Any = False, copy: Any = True) -> _UInt8:
    if name not in (b"u1", b"|u1"):
        shown = ascii(name.decode("latin-1"))[1:-1] if isinstance(name, bytes) else "unknown"
        raise ValueError(f"its data has the type {shown[:_MAX_NAME]}; expected u1")
    return _UInt8()


def _encode(text: Any, encoding: Any = None) -> _Latin1:
    if not isinstance(text, bytes | memoryview) or encoding not in (b"latin1", b"latin-1"):
        raise ValueError("it encodes something else than Latin-1 text")
    return _Latin1(text)


def _require_uint8(dtype: Any) -> None:
    if not isinstance(dtype, _UInt8):
        raise ValueError("an array has no valid type; expected u1")


def _not_callable(*_: Any) -> Any:
    raise ValueError("it calls numpy.ndarray, which no batch needs")


_GLOBALS: dict[str, Callable[..., Any]] = {
    "_codecs.encode": _encode,
    "numpy.dtype": _dtype,
    "numpy.ndarray": _not_callable,
    "numpy.core.multiarray._reconstruct": _reconstruct,
    "numpy._core.multiarray._reconstruct": _reconstruct,
    "numpy.core.numeric._frombuffer": _frombuffer,
    "numpy._core.numeric._frombuffer": _frombuffer,
}
"""What stands in for everything that a batch refers to."""


class _Interpreter:
    """Executes the instructions of one pickle on placeholders."""

    def __init__(self, content: bytes) -> None:
        self._content = content
        self._view = memoryview(content)
        self._position = 0
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}
        self._containers = 0

    def run(self) -> dict[bytes, Any]:
        head = self._content[:2]
        if head[:1] != b"\x80" or not 2 <= head[-1] <= 5:
            raise ValueError("it does not begin like a pickle of protocol 2 to 5")
        self._position = 2
        handlers = {
            ord(code): getattr(self, f"_{name}")
            for name, codes in _INSTRUCTIONS.items()
            for code in codes
        }
        try:
            for _ in range(_MAX_INSTRUCTIONS):
                code = self._content[self._position]
                self._position += 1
                if code == 0x2E:  # STOP
                    return self._result()
                if code not in handlers:
                    self._refuse(code)
                handlers[code]()
        except (IndexError, KeyError, TypeError) as error:
            raise ValueError(f"it is damaged at byte {self._position}") from error
        raise ValueError(f"it has more than {_MAX_INSTRUCTIONS} instructions")

    def _result(self) -> dict[bytes, Any]:
        value = self._pop()
        if self._stack or self._marks or not isinstance(value, dict):
            raise ValueError(f"it holds a {_kind(value)}; expected a dictionary")
        return value

    def _refuse(self, code: int) -> None:
        known = {ord(op.code): op for op in pickletools.opcodes}.get(code)
        name = known.name if known else f"{code:#04x}"
        raise ValueError(f"it has the instruction {name}, which no batch needs")

    def _push(self, value: Any) -> None:
        if len(self._stack) >= _MAX_ITEMS:
            raise ValueError(f"it has more than {_MAX_ITEMS} entries in a row")
        self._stack.append(value)

    def _pop(self) -> Any:
        if self._marks and self._marks[-1] >= len(self._stack):
            raise IndexError
        return self._stack.pop()

    def _pop_to_mark(self) -> list[Any]:
        start = self._marks.pop()
        items = self._stack[start:]
        del self._stack[start:]
        return items

    def _take(self, count: int) -> bytes | memoryview:
        start, end = self._position, self._position + count
        if count < 0 or end > len(self._content):
            raise ValueError(f"it ends too early: {count} bytes expected at byte {start}")
        self._position = end
        return (self._content if count <= _COPIED_BYTES else self._view)[start:end]

    def _number(self, size: int, *, signed: bool = False) -> int:
        return int.from_bytes(self._take(size), "little", signed=signed)

    # Numbers and strings

    def _none(self) -> None:
        self._push(None)

    def _true(self) -> None:
        self._push(True)

    def _false(self) -> None:
        self._push(False)

    def _int1(self) -> None:
        run = _SMALL_INTS.match(self._content, self._position - 1)
        if run is None:
            raise ValueError("it ends too early, within a number")
        if len(self._stack) + (run.end() - run.start()) // 2 > _MAX_ITEMS:
            raise ValueError(f"it has more than {_MAX_ITEMS} entries in a row")
        self._stack.extend(self._content[self._position : run.end() : 2])
        self._position = run.end()

    def _int2(self) -> None:
        self._push(self._number(2))

    def _int4(self) -> None:
        self._push(self._number(4, signed=True))

    def _long1(self) -> None:
        size = self._number(1)
        if size > 8:
            raise ValueError(f"it has a number of {size} bytes")
        self._push(self._number(size, signed=True))

    def _string1(self) -> None:
        # The most frequent one with `_remember`, so without further calls.
        start = self._position + 1
        end = start + self._content[start - 1]
        if end > len(self._content):
            raise ValueError(f"it ends too early: a name at byte {start} is cut")
        self._position = end
        self._push(self._content[start:end])

    def _string4(self) -> None:
        self._push(self._take(self._number(4)))

    def _string8(self) -> None:
        self._push(self._take(self._number(8)))

    # Containers

    def _new_container(self, value: Any) -> None:
        self._containers += 1
        if self._containers > _MAX_CONTAINERS:
            raise ValueError(f"it has more than {_MAX_CONTAINERS} lists and dictionaries")
        self._push(value)

    def _empty_dict(self) -> None:
        self._new_container({})

    def _empty_list(self) -> None:
        self._new_container([])

    def _mark(self) -> None:
        if len(self._marks) >= _MAX_CONTAINERS:
            raise ValueError("it is nested too deeply")
        self._marks.append(len(self._stack))

    def _append(self) -> None:
        self._extend([self._pop()])

    def _appends(self) -> None:
        self._extend(self._pop_to_mark())

    def _extend(self, items: list[Any]) -> None:
        target = self._stack[-1]
        others = set(map(type, items)) - {int, bytes, _Latin1}
        if not isinstance(target, list) or others:
            kinds = ", ".join(sorted(kind.__name__ for kind in others))
            raise ValueError(f"it appends {kinds or 'items'} to a {_kind(target)}")
        if len(target) + len(items) > _MAX_ITEMS:
            raise ValueError(f"it has a list of more than {_MAX_ITEMS} entries")
        target += items

    def _setitem(self) -> None:
        value, key = self._pop(), self._pop()
        self._update([key, value])

    def _setitems(self) -> None:
        self._update(self._pop_to_mark())

    def _update(self, items: list[Any]) -> None:
        target = self._stack[-1]
        if not isinstance(target, dict) or len(items) % 2:
            raise ValueError(f"it sets entries of a {_kind(target)}")
        if len(target) + len(items) // 2 > _MAX_CONTAINERS:
            raise ValueError(f"it has a dictionary of more than {_MAX_CONTAINERS} entries")
        for key, value in zip(items[::2], items[1::2], strict=True):
            if not isinstance(key, bytes | _Latin1) or len(key) > _MAX_NAME:
                raise ValueError(f"it has a {_kind(key)} as a key; expected a name")
            target[key.decode() if isinstance(key, _Latin1) else key] = value

    def _empty_tuple(self) -> None:
        self._push(())

    def _tuple1(self) -> None:
        self._push_tuple([self._pop()])

    def _tuple2(self) -> None:
        self._push_tuple([self._pop(), self._pop()][::-1])

    def _tuple3(self) -> None:
        self._push_tuple([self._pop(), self._pop(), self._pop()][::-1])

    def _tuple(self) -> None:
        self._push_tuple(self._pop_to_mark())

    def _push_tuple(self, items: list[Any]) -> None:
        if len(items) > _MAX_CONTAINERS:
            raise ValueError(f"it has a tuple of {len(items)} entries")
        if any(type(item) is tuple and any(type(i) is tuple for i in item) for item in items):
            raise ValueError("it is nested too deeply")
        self._push(tuple(items))

    # The memo, globals and calls

    def _remember(self, index: int) -> None:
        if len(self._memo) >= _MAX_MEMO:
            raise ValueError(f"it refers to more than {_MAX_MEMO} objects")
        self._memo[index] = self._stack[-1]

    def _put1(self) -> None:
        self._remember(self._content[self._position])
        self._position += 1

    def _put4(self) -> None:
        self._remember(self._number(4))

    def _memoize(self) -> None:
        self._remember(len(self._memo))

    def _get1(self) -> None:
        self._push(self._memo[self._number(1)])

    def _get4(self) -> None:
        self._push(self._memo[self._number(4)])

    def _frame(self) -> None:
        self._take(8)

    def _global(self) -> None:
        names = []
        for _ in range(2):
            end = self._content.find(b"\n", self._position, self._position + _MAX_NAME)
            if end < 0:
                raise ValueError("it refers to a name without an end")
            names.append(self._take(end - self._position))
            self._position += 1
        self._push_global(*names)

    def _stack_global(self) -> None:
        name, module = self._pop(), self._pop()
        self._push_global(module, name)

    def _push_global(self, *parts: Any) -> None:
        if not all(isinstance(part, bytes) and len(part) <= _MAX_NAME for part in parts):
            raise ValueError("it refers to something that is no name")
        name = b".".join(parts).decode("latin-1")
        if name not in _GLOBALS:
            raise ValueError(f"it refers to {ascii(name)[1:-1]}, which no batch needs")
        self._push(_Global(name))

    def _reduce(self) -> None:
        arguments, function = self._pop(), self._pop()
        if not isinstance(function, _Global) or not isinstance(arguments, tuple):
            raise ValueError(f"it calls a {_kind(function)}")
        self._push(_GLOBALS[function.name](*arguments))

    def _build(self) -> None:
        state = self._pop()
        target = self._stack[-1]
        if isinstance(target, _UInt8):
            if state[1:] != (b"|", None, None, None, -1, -1, 0):
                raise ValueError("its data has a type with fields, flags or a byte order")
        elif isinstance(target, PickledArray):
            _, shape, dtype, is_fortran, pixels = state
            _require_uint8(dtype)
            target.set_content(shape, pixels, "F" if is_fortran else "C")
        else:
            raise ValueError(f"it sets the state of a {_kind(target)}")


_INSTRUCTIONS = {
    "none": "N",
    "true": "\x88",
    "false": "\x89",
    "int1": "K",
    "int2": "M",
    "int4": "J",
    "long1": "\x8a",
    "string1": "U\x8cC",
    "string4": "TXB",
    "string8": "\x8d\x8e\x96",
    "empty_dict": "}",
    "empty_list": "]",
    "empty_tuple": ")",
    "mark": "(",
    "append": "a",
    "appends": "e",
    "setitem": "s",
    "setitems": "u",
    "tuple1": "\x85",
    "tuple2": "\x86",
    "tuple3": "\x87",
    "tuple": "t",
    "put1": "q",
    "put4": "r",
    "memoize": "\x94",
    "get1": "h",
    "get4": "j",
    "frame": "\x95",
    "global": "c",
    "stack_global": "\x93",
    "reduce": "R",
    "build": "b",
}
"""Instructions by handler. Strings, text and bytes are alike."""


def _kind(value: object) -> str:
    return type(value).__name__.lstrip("_")
