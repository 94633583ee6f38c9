"""Exact arithmetic on an expression that a model wrote. It is parsed and bounded, never evaluated as Python."""

from __future__ import annotations

import ast
from decimal import Context, Decimal
from fractions import Fraction

_LENGTH = 500
"""Most characters of an expression. This bounds the depth of its tree too."""
_BITS = 4096
"""Most bits of a numerator or a denominator: numbers of about 1200 digits."""
_DIGITS = 15
"""Significant digits of a result that has no exact decimal, like 1/3."""


def calculator(expression: str) -> str:
    """Work out an arithmetic expression exactly.

    Args:
        expression: numbers, + - * / // % ** and parentheses, like 2 * (3 + 4.5)
    """
    text = " ".join(expression.split())
    if len(text) > _LENGTH:
        raise ValueError(f"the expression is longer than {_LENGTH} characters")
    try:
        tree = ast.parse(text, mode="eval")
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        raise ValueError("this is no arithmetic expression") from None
    try:
        return _written(_value(tree.body, text))
    except RecursionError:
        raise ValueError("the expression is nested too deeply") from None


def _value(node: ast.expr, text: str) -> Fraction:
    match node:
        case ast.Constant(value=int() | float() as number) if not isinstance(number, bool):
            return _number(ast.get_source_segment(text, node) or "", number)
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_value(operand, text)
        case ast.UnaryOp(op=ast.UAdd(), operand=operand):
            return _value(operand, text)
        case ast.BinOp(left=left, op=operator, right=right):
            return _bounded(_combined(operator, _value(left, text), _value(right, text)))
    raise ValueError("only numbers, + - * / // % ** and parentheses are allowed")


def _number(written: str, read: int | float) -> Fraction:
    """The exact number that is written: 0.1 is one tenth, although the float is not."""
    if isinstance(read, int):
        return _bounded(Fraction(read))
    decimal = Decimal(written)
    if abs(decimal.adjusted()) > _BITS // 4:  # checked before 1e999999999 is expanded
        raise ValueError("a number is too large or too small")
    return Fraction(decimal)


def _combined(operator: ast.operator, left: Fraction, right: Fraction) -> Fraction:
    match operator:
        case ast.Add():
            return left + right
        case ast.Sub():
            return left - right
        case ast.Mult():
            return left * right
        case ast.Pow():
            return _power(left, right)
        case ast.Div() | ast.FloorDiv() | ast.Mod() if right == 0:
            raise ZeroDivisionError("division by zero")
        case ast.Div():
            return left / right
        case ast.FloorDiv():
            return Fraction(left // right)
        case ast.Mod():
            return left % right
        case ast.BitXor():
            raise ValueError("^ is no power here: write **")
    raise ValueError("only + - * / // % ** are allowed")


def _power(base: Fraction, exponent: Fraction) -> Fraction:
    if exponent.denominator != 1:
        raise ValueError("an exponent must be a whole number")
    if base == 0 and exponent < 0:
        raise ZeroDivisionError("division by zero")
    times = exponent.numerator
    if times == 0:
        return Fraction(1)
    if abs(base) in (0, 1):  # these stay small for any exponent
        return base if times % 2 else base * base
    if (_size(base) - 1) * abs(times) > _BITS:  # checked before the power is computed
        raise ValueError("the result is too large")
    return base**times


def _size(value: Fraction) -> int:
    return max(value.numerator.bit_length(), value.denominator.bit_length())


def _bounded(value: Fraction) -> Fraction:
    if _size(value) > _BITS:
        raise ValueError("the result is too large")
    return value


def _written(value: Fraction) -> str:
    """The value as text: an integer or a decimal exactly, anything else with 15 significant digits."""
    places = _places(value.denominator)
    if places is None:
        return str(Context(prec=_DIGITS).divide(Decimal(value.numerator), Decimal(value.denominator)))
    digits = f"{abs(value.numerator) * 10**places // value.denominator:0{places + 1}d}"
    point = len(digits) - places
    return ("-" if value < 0 else "") + digits[:point] + ("." + digits[point:] if places else "")


def _places(denominator: int) -> int | None:
    """The decimal places that a fraction in lowest terms needs, or None if it has no finite decimal."""
    twos = (denominator & -denominator).bit_length() - 1
    rest, fives = denominator >> twos, 0
    while rest % 5 == 0:
        rest, fives = rest // 5, fives + 1
    return max(twos, fives) if rest == 1 else None
