"""Exact arithmetic on what a model wrote: parsed, walked and bounded, never evaluated as Python."""

from __future__ import annotations

import ast
from decimal import Context, Decimal
from fractions import Fraction

_LENGTH = 500
"""Characters of an expression. Bounds the depth of its tree as well."""
_BITS = 4096
"""Bits of a numerator or a denominator: numbers of some 1200 digits."""
_DIGITS = 15
"""Significant digits of a result that no decimal writes exactly, like 1/3."""


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
    """The number as it is written: the decimal 0.1 is a tenth, which the float is not."""
    if isinstance(read, int):
        return _bounded(Fraction(read))
    decimal = Decimal(written)
    if abs(decimal.adjusted()) > _BITS // 4:  # before 1e999999999 is multiplied out
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
    if abs(base) in (0, 1):  # these stay small whatever the exponent
        return base if times % 2 else base * base
    if (_size(base) - 1) * abs(times) > _BITS:  # before the result is made
        raise ValueError("the result is too large")
    return base**times


def _size(value: Fraction) -> int:
    return max(value.numerator.bit_length(), value.denominator.bit_length())


def _bounded(value: Fraction) -> Fraction:
    if _size(value) > _BITS:
        raise ValueError("the result is too large")
    return value


def _written(value: Fraction) -> str:
    """An integer or a decimal exactly as it is; anything else to 15 significant digits."""
    places = _places(value.denominator)
    if places is None:
        return str(Context(prec=_DIGITS).divide(Decimal(value.numerator), Decimal(value.denominator)))
    digits = f"{abs(value.numerator) * 10**places // value.denominator:0{places + 1}d}"
    point = len(digits) - places
    return ("-" if value < 0 else "") + digits[:point] + ("." + digits[point:] if places else "")


def _places(denominator: int) -> int | None:
    """The decimal places that a fraction in lowest terms needs, None where no number of them is enough."""
    twos = (denominator & -denominator).bit_length() - 1
    rest, fives = denominator >> twos, 0
    while rest % 5 == 0:
        rest, fives = rest // 5, fives + 1
    return max(twos, fives) if rest == 1 else None
