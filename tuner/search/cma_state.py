"""Read the state of CMA-ES, which Optuna stores as a pickle with the trials of a study.

A login that may write to the database chooses the bytes. No class or function that they name is
called: the pickle may name only the parts of such a state. These are read as plain values of
bounded size, checked, and then put together here.
"""

from __future__ import annotations

import io
import math
import pickle
import pickletools
import re
from typing import Any

import numpy as np
from cmaes import CMA

LARGEST = 4_000_000
"""Bytes of the largest state that is read; a state of 100 parameters has about 200,000."""
LARGEST_INTEGER = 1_000_000
_MEMO_BY_INDEX = frozenset({"PUT", "BINPUT", "LONG_BINPUT"})
"""Opcodes that reserve memory for an index given in the bytes; no state has them."""


def restored(content: bytes) -> CMA:
    """Return the optimizer of a pickled state. Raise `UnpicklingError` for anything else."""
    if len(content) > LARGEST:
        raise pickle.UnpicklingError(f"not a state of CMA-ES: more than {LARGEST} bytes")
    try:
        for opcode, _, _ in pickletools.genops(content):
            if opcode.name in _MEMO_BY_INDEX:
                raise pickle.UnpicklingError(f"not a state of CMA-ES: it has {opcode.name}")  # noqa: TRY301
        found = _Parts(io.BytesIO(content)).load()
        if not isinstance(found, _State):
            raise pickle.UnpicklingError("not a state of CMA-ES")  # noqa: TRY301
        optimizer = CMA.__new__(CMA)
        optimizer.__setstate__({str(key): _plain(value) for key, value in found.values.items()})
    except pickle.UnpicklingError:
        raise
    except Exception as error:
        raise pickle.UnpicklingError(f"not a state of CMA-ES: {error}") from error
    return optimizer


class _State:
    """The attributes of an optimizer."""

    values: dict[str, Any]

    def __setstate__(self, values: dict[str, Any]) -> None:
        self.values = dict(values)


class _Type:
    """The type of an array's numbers."""

    def __init__(self, name: str, *_: object) -> None:
        if re.fullmatch(r"[fiu]8|[iu]4|b1", name) is None:
            raise pickle.UnpicklingError(f"not part of CMA-ES: numbers of type {name[:20]!r}")
        self.order, self.name = "<", name

    def __setstate__(self, state: tuple[object, ...]) -> None:
        if state[1] not in ("<", ">", "|", "="):
            raise pickle.UnpicklingError("not part of CMA-ES: a byte order")
        self.order = str(state[1])

    @property
    def known(self) -> np.dtype[Any]:
        """The NumPy type."""
        return np.dtype(self.order + self.name)


class _Array:
    """An array."""

    values: np.ndarray

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, kind, is_fortran, content = state
        if math.prod(shape) * kind.known.itemsize != len(content):
            raise pickle.UnpicklingError("not part of CMA-ES: an array of another size")
        flat = np.frombuffer(content, kind.known)
        self.values = flat.copy().reshape(shape, order="F" if is_fortran else "C")


def _reconstruct(kind: object, shape: object, letter: object) -> _Array:
    """Return an empty array, as NumPy pickles one."""
    if (kind, shape, letter) != (_Array, (0,), b"b"):
        raise pickle.UnpicklingError("not part of CMA-ES: an unusual array")
    return _Array()


def _scalar(kind: _Type, content: bytes) -> Any:
    """Return a NumPy number."""
    (number,) = np.frombuffer(content, kind.known)
    return number


class _Parts(pickle.Unpickler):
    """An unpickler that maps the names in a state to the classes and functions here."""

    _known = {  # noqa: RUF012 - constant
        ("cmaes._cma", "CMA"): _State,
        ("numpy", "dtype"): _Type,
        ("numpy", "ndarray"): _Array,
        ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
        ("numpy._core.multiarray", "scalar"): _scalar,
    }

    def find_class(self, module_name: str, global_name: str) -> Any:
        """Return what reads a part of a state. Raise `UnpicklingError` for anything else."""
        if (module_name, global_name) not in self._known:
            raise pickle.UnpicklingError(f"not part of CMA-ES: {module_name}.{global_name}")
        return self._known[module_name, global_name]


def _plain(value: Any, depth: int = 0) -> Any:
    """Return a value of a state with its arrays; refuse values that no state has."""
    if isinstance(value, _Array):
        return value.values
    if isinstance(value, list | tuple) and depth < 3:
        return type(value)(_plain(one, depth + 1) for one in value)
    if isinstance(value, int | np.integer) and abs(int(value)) > LARGEST_INTEGER:
        raise pickle.UnpicklingError("not part of CMA-ES: so large an integer")
    if value is None or isinstance(value, bool | int | float | np.number | np.bool_):
        return value
    raise pickle.UnpicklingError(f"not part of CMA-ES: a {type(value).__name__}")
