"""Constraints on combinations of parameters: expressions such as `batch_size * accumulate <= 512`.

Limits on the metrics of a trial, such as `accuracy >= 0.97`, are the same expressions, of which
only the ends are compared.

An expression is compared, calculated and combined of numbers, texts, parameters and a few
functions. It is parsed by `ast` and evaluated here; nothing of it is executed by Python.
"""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable, Mapping
from typing import Any

from tuner.config.values import ParameterValue

LONGEST = 300
"""Characters of an expression."""
EXAMPLE = '"batch_size * accumulate <= 512"'
LIMIT_EXAMPLE = '"accuracy >= 0.97"'
MOST_EXCESS = 1e100
"""The most by which a limit counts as exceeded: sums and models of excesses stay finite."""

_ARITHMETIC: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: math.pow,
}
_COMPARISONS: dict[type[ast.cmpop], Callable[[Any, Any], bool]] = {
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.In: lambda one, others: one in others,
    ast.NotIn: lambda one, others: one not in others,
}
_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "min": min,
    "max": max,
    "abs": abs,
    "log": math.log,
    "log2": math.log2,
    "log10": math.log10,
    "sqrt": math.sqrt,
}


class Constraint:
    """One constraint of a search space."""

    def __init__(self, text: str) -> None:
        """Parse an expression. Raise `ValueError` with what was expected."""
        if len(text) > LONGEST:
            raise ValueError(f"an expression of at most {LONGEST} characters")
        try:
            self._tree = ast.parse(text.strip(), mode="eval").body
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            raise ValueError(f"an expression such as {EXAMPLE}") from None
        self.text = text
        self.names = frozenset(_names(self._tree))

    def holds(self, params: Mapping[str, ParameterValue]) -> bool:
        """Return whether a trial's parameters satisfy the constraint.

        A constraint on a parameter that the trial does not have holds. One that cannot be
        calculated, such as a division by zero, does not hold. Raise `TypeError` for a calculation
        with texts.
        """
        if not self.names <= params.keys():
            return True
        try:
            return bool(_value(self._tree, params))
        except (ArithmeticError, ValueError):
            return False


class Limit(Constraint):
    """One limit on the metrics of a trial: two sides that are compared by `<=` or `>=`."""

    def __init__(self, text: str) -> None:
        """Parse an expression. Raise `ValueError` with what was expected."""
        super().__init__(text)
        match self._tree:
            case ast.Compare(left=left, ops=[ast.LtE()], comparators=[right]):
                self._sides = left, right
            case ast.Compare(left=left, ops=[ast.GtE()], comparators=[right]):
                self._sides = right, left
            case _:
                raise ValueError(f"one comparison by <= or >=, such as {LIMIT_EXAMPLE}")
        if not self.names:
            raise ValueError(f"a comparison with a metric, such as {LIMIT_EXAMPLE}")
        if any(
            isinstance(node, ast.List | ast.Tuple) or isinstance(getattr(node, "value", None), str)
            for node in ast.walk(self._tree)
        ):
            raise ValueError(f"a comparison of numbers, such as {LIMIT_EXAMPLE}")

    def excess(self, metrics: Mapping[str, ParameterValue]) -> float:
        """Return by how much the limit is exceeded; 0 or less if it holds.

        A limit that cannot be calculated, such as that of a metric that is nan, is exceeded by
        `MOST_EXCESS`, the most that is returned.
        """
        try:
            less, more = (float(_value(side, metrics)) for side in self._sides)
        except (ArithmeticError, ValueError):
            return MOST_EXCESS
        found = less - more
        return MOST_EXCESS if math.isnan(found) else min(max(found, -MOST_EXCESS), MOST_EXCESS)


def _names(node: ast.expr) -> list[str]:  # noqa: PLR0911 - one for each kind
    """Return the parameters of an expression. Raise `ValueError` for what it may not have."""
    match node:
        case ast.Name(id=name):
            return [name]
        case ast.Attribute(value=ast.Name(id=before), attr=after):  # such as sgd.momentum
            return [f"{before}.{after}"]
        case ast.Constant(value=bool() | int() | float() | str()):
            return []
        case ast.UnaryOp(op=ast.Not() | ast.USub() | ast.UAdd(), operand=inner):
            return _names(inner)
        case ast.BinOp(op=op, left=left, right=right) if type(op) in _ARITHMETIC:
            return _names(left) + _names(right)
        case ast.BoolOp(values=parts):
            return [name for part in parts for name in _names(part)]
        case ast.Compare(left=left, ops=ops, comparators=others) if all(
            type(op) in _COMPARISONS for op in ops
        ):
            return [name for part in (left, *others) for name in _names(part)]
        case ast.List(elts=parts) | ast.Tuple(elts=parts):
            return [name for part in parts for name in _names(part)]
        case ast.Call(func=ast.Name(id=function), args=parts, keywords=[]) if (
            function in _FUNCTIONS and parts
        ):
            return [name for part in parts for name in _names(part)]
    raise ValueError(
        f"an expression of parameters, numbers, texts, comparisons, and, or, not, arithmetic and "
        f"{', '.join(_FUNCTIONS)}, such as {EXAMPLE}"
    )


def _value(node: ast.expr, params: Mapping[str, ParameterValue]) -> Any:  # noqa: PLR0911
    match node:
        case ast.Name(id=name):
            return params[name]
        case ast.Attribute(value=ast.Name(id=before), attr=after):
            return params[f"{before}.{after}"]
        case ast.Constant(value=value):
            return value
        case ast.UnaryOp(op=ast.Not(), operand=inner):
            return not _value(inner, params)
        case ast.UnaryOp(op=op, operand=inner):
            number = _number(_value(inner, params))
            return -number if isinstance(op, ast.USub) else number
        case ast.BinOp(op=op, left=left, right=right):
            one, other = _number(_value(left, params)), _number(_value(right, params))
            return _ARITHMETIC[type(op)](one, other)
        case ast.BoolOp(op=op, values=parts):
            some = (bool(_value(part, params)) for part in parts)
            return all(some) if isinstance(op, ast.And) else any(some)
        case ast.Compare(left=left, ops=ops, comparators=others):
            values = [_value(part, params) for part in (left, *others)]
            return all(_COMPARISONS[type(op)](values[i], values[i + 1]) for i, op in enumerate(ops))
        case ast.List(elts=parts) | ast.Tuple(elts=parts):
            return [_value(part, params) for part in parts]
        case ast.Call(func=ast.Name(id=function), args=parts):
            return _FUNCTIONS[function](*(_number(_value(part, params)) for part in parts))
    raise AssertionError(f"{ast.dump(node)} was checked when the constraint was parsed")


def _number(value: Any) -> Any:
    """Return a number; whole ones as floats beyond 64 bits, so that none grows without limit."""
    if isinstance(value, str | list):
        raise TypeError(f"a number, got {value!r}")
    return float(value) if isinstance(value, int) and value.bit_length() > 63 else value
