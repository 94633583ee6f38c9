"""Rewrite a case of the verifier ``code``, so that it runs in an interpreter that never ran the judged program.

The case keeps its own control flow, variables, imports and comparisons. Every name that it does not define itself
stands for something in the program. A call of such a name leaves the interpreter as a question (``_sw_host``). The
program answers it in its own session, and the answer comes back as plain data. An object that is not plain data stays
with the program, and the case gets a stand-in (``_sw_Remote``). The stand-in passes on calls, attributes, ``len``,
``str``, indexing and arithmetic, but never equality or order, so an object's own ``__eq__`` decides nothing.
"""

from __future__ import annotations

import ast
import builtins
from dataclasses import dataclass
from typing import TypeVar

from skillweave.tools.source import parse

_BUILTINS = frozenset(dir(builtins)) - {"_"}
_LITERALS = (ast.Constant, ast.JoinedStr, ast.List, ast.Dict, ast.Set, ast.Tuple, ast.ListComp, ast.DictComp)
_N = TypeVar("_N", bound=ast.AST)

PRELUDE = """
_sw_list, _sw_tuple, _sw_dict, _sw_set, _sw_is, _sw_any = list, tuple, dict, set, isinstance, any
_sw_print, _sw_len, _sw_bool, _sw_Assertion, _sw_range = print, len, bool, AssertionError, range
_sw_in_place = [False]

class _sw_Remote:
    def __init__(self, target): self._sw_target = target
    def __call__(self, *a, **k):
        reply, after = _sw_host('call', self._sw_target, _sw_pack(a), _sw_pack(k), _sw_in_place[0])
        for old, new in after:
            _sw_write(a[old] if not _sw_is(old, str) else k[old], new)
        return _sw_take(reply)
    def __getitem__(self, i): return _sw_op('getitem', self, i)
    def __setitem__(self, i, v): _sw_op('setitem', self, i, v)
    def __contains__(self, x): return _sw_op('contains', self, x)
    def __iter__(self): return iter(_sw_op('iter', self))
    def __len__(self): return _sw_op('len', self)
    def __bool__(self): return _sw_op('bool', self)
    def __str__(self): return _sw_op('str', self)
    def __repr__(self): return _sw_op('repr', self)
    def __int__(self): return _sw_op('int', self)
    def __float__(self): return _sw_op('float', self)
    def __abs__(self): return _sw_op('abs', self)
    def __neg__(self): return _sw_op('neg', self)
    def __add__(self, o): return _sw_op('add', self, o)
    def __radd__(self, o): return _sw_op('add', o, self)
    def __sub__(self, o): return _sw_op('sub', self, o)
    def __rsub__(self, o): return _sw_op('sub', o, self)
    def __mul__(self, o): return _sw_op('mul', self, o)
    def __rmul__(self, o): return _sw_op('mul', o, self)
    def __truediv__(self, o): return _sw_op('truediv', self, o)
    def __eq__(self, o): return False
    def __ne__(self, o): return True
    def __hash__(self): return 0

class _sw_Code:
    def __init__(self, native, source): self._sw_native, self._sw_source = native, source
    def __call__(self, *a, **k): return self._sw_native(*a, **k)

def _sw_odd(x):
    if _sw_is(x, (_sw_Remote, _sw_Code)): return True
    if _sw_is(x, (_sw_list, _sw_tuple)): return _sw_any([_sw_odd(i) for i in x])
    if _sw_is(x, _sw_dict): return _sw_any([_sw_odd(i) for i in x.values()])
    return False

def _sw_pack(x):
    if _sw_is(x, _sw_Remote): return ['source', x._sw_target]
    if _sw_is(x, _sw_Code): return ['source', x._sw_source]
    if not _sw_odd(x): return ['data', x]
    if _sw_is(x, _sw_list): return ['list', [_sw_pack(i) for i in x]]
    if _sw_is(x, _sw_tuple): return ['tuple', [_sw_pack(i) for i in x]]
    return ['dict', [[i, _sw_pack(v)] for i, v in x.items()]]

def _sw_take(reply):
    return _sw_Remote(reply[1]) if reply[0] else reply[1]

def _sw_op(name, *operands):
    return _sw_take(_sw_host('op', name, [_sw_pack(x) for x in operands]))

def _sw_write(old, new):
    if _sw_is(old, _sw_list): old[:] = new
    else:
        old.clear()
        old.update(new)

def _sw_root(name): return _sw_Remote(name)
def _sw_name(name): return _sw_take(_sw_host('value', name))

def _sw_method(o, name, native):
    if _sw_is(o, _sw_Remote): return _sw_Remote(o._sw_target + '.' + name)
    return lambda *a, **k: native(o, *a, **k)

def _sw_attr(o, name, native):
    if _sw_is(o, _sw_Remote): return _sw_take(_sw_host('value', o._sw_target + '.' + name))
    return native(o)

def _sw_length(x): return x.__len__() if _sw_is(x, _sw_Remote) else _sw_len(x)

def _sw_same(a, b):
    if a == b: return True
    return _sw_host('same', a, b)

def _sw_assert(value):
    held = value.__bool__() if _sw_is(value, _sw_Remote) else _sw_bool(value)
    _sw_host('judged', held)
    if not held: raise _sw_Assertion()
"""

INTERPRETER_PRELUDE = """
def map(function, *items): return iter([function(*given) for given in zip(*items)])
def filter(function, items): return iter([item for item in items if (item if function is None else function(item))])
"""
"""The interpreter's own ``map`` and ``filter`` cannot be interrupted by a question."""


@dataclass(frozen=True)
class Case:
    """A rewritten case. ``roots``: the names that it takes from the program; ``asserts``: whether it has an assert."""

    source: str
    roots: frozenset[str]
    asserts: bool


def read_case(text: str, defined: frozenset[str] = frozenset(), *, value: bool = False) -> Case:
    """Return the rewritten case of ``text``.

    - ``defined``: the names that the program defines. A builtin name stands for the program's own function only if the
      program defines it and the case takes no other name from the program: ``assert sum(10, 15) == 6`` tests a
      function ``sum``.
    - ``value``: the text must end with an expression, whose value is the result

    Raises ``SyntaxError`` for a text that is not Python.
    """
    tree = parse(text)
    if value and not (tree.body and isinstance(tree.body[-1], ast.Expr)):
        raise SyntaxError("it must end with an expression, whose value is compared")
    bound = _bound(tree)
    loaded = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}
    roots = frozenset(loaded - bound - _BUILTINS)
    if not roots:
        roots = frozenset(loaded & defined - bound)
    asserts = any(isinstance(node, ast.Assert) for node in ast.walk(tree))
    if value:  # the value gets a name, so that the last expression is the value and not the call that computes it
        last = tree.body.pop()
        assert isinstance(last, ast.Expr)
        tree.body.append(ast.Assign([ast.Name("_sw_result", ast.Store())], last.value))
    rewritten = ast.unparse(ast.fix_missing_locations(_Rewriter(roots, bound, _imported(tree)).visit(tree)))
    return Case(rewritten + ("\n_sw_result" if value else ""), roots, asserts)


def why_it_proves_nothing(text: str, *, value: bool = False) -> str | None:
    """Return why a case (Python, as :func:`read_case` takes it) would pass whatever the program does, or None."""
    tree = parse(text)
    for node in ast.walk(tree):
        if isinstance(node, ast.Assert) and isinstance(node.test, ast.Tuple) and node.test.elts:
            return "has an assert on a tuple, which always holds: remove the parentheses around condition and message"
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Compare) and not value:
            return "compares without an assert, so the outcome does not count: write assert before it"
    loaded = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}
    if loaded <= _bound(tree):
        return "uses nothing of the program, so every answer passes it: join it with a case that does, or remove it"
    return None


def top_level_names(source: str, *, imports: bool = True) -> frozenset[str]:
    """Return the names that a program binds at top level, also in ``if``, ``try`` and ``with``; none if not Python.

    ``imports``: whether names that it imports count.
    """
    try:
        tree = parse(source)
    except SyntaxError:
        return frozenset()
    names: set[str] = set()
    waiting: list[ast.AST] = [*tree.body]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names |= {(alias.asname or alias.name).partition(".")[0] for alias in node.names if imports}
        elif not isinstance(node, ast.Lambda):
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                names.add(node.id)
            waiting += ast.iter_child_nodes(node)
    return frozenset(names)


def missing_names(source: str) -> frozenset[str]:
    """Return the names that a program reads but neither binds nor has as builtins; none if it is not Python."""
    try:
        tree = parse(source)
    except SyntaxError:
        return frozenset()
    return frozenset(node.id for node in ast.walk(tree) if isinstance(node, ast.Name)) - _bound(tree) - _BUILTINS


def _bound(tree: ast.AST) -> frozenset[str]:
    """Every name that the case binds anywhere."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load):
            names.add(node.id)
        elif isinstance(node, ast.arg):
            names.add(node.arg)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.ExceptHandler):
            names.add(node.name or "")
    return frozenset(names) | _imported(tree)


def _imported(tree: ast.AST) -> frozenset[str]:
    return frozenset(
        (alias.asname or alias.name).partition(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
    )


class _Rewriter(ast.NodeTransformer):
    """Turns names of the program into questions, and each ``assert`` into a counted check."""

    def __init__(self, roots: frozenset[str], bound: frozenset[str], imported: frozenset[str]) -> None:
        self._roots, self._bound, self._imported = roots, bound, imported
        self._in_assert = False

    def visit_Name(self, node: ast.Name) -> ast.expr:
        if node.id in self._roots and isinstance(node.ctx, ast.Load):
            return _call("_sw_name", ast.Constant(node.id))
        return node

    def visit_Attribute(self, node: ast.Attribute) -> ast.expr:
        if not isinstance(node.ctx, ast.Load) or self._is_native(node.value):
            return self._children(node)
        native = _lambda(["_sw_o"], ast.Attribute(_name("_sw_o"), node.attr, ast.Load()))
        return _call("_sw_attr", self._base(node.value), ast.Constant(node.attr), native)

    def visit_Call(self, node: ast.Call) -> ast.expr:
        function = node.func
        is_passed_on = self._may_be_program(function)
        arguments = [self._argument(argument, function) if is_passed_on else argument for argument in node.args]
        keywords = [
            ast.keyword(word.arg, self._argument(word.value, function) if is_passed_on else word.value)
            for word in node.keywords
        ]
        arguments = [self.visit(argument) for argument in arguments]
        keywords = [ast.keyword(word.arg, self.visit(word.value)) for word in keywords]
        if isinstance(function, ast.Name) and function.id in self._roots:
            return ast.Call(_call("_sw_root", ast.Constant(function.id)), arguments, keywords)
        if isinstance(function, ast.Name) and function.id == "len" and "len" not in self._bound:
            return ast.Call(_name("_sw_length"), arguments, keywords)
        if isinstance(function, ast.Attribute) and not self._is_native(function.value):
            called = ast.Call(
                ast.Attribute(_name("_sw_o"), function.attr, ast.Load()),
                [ast.Starred(_name("_sw_a"), ast.Load())],
                [ast.keyword(None, _name("_sw_k"))],
            )
            native = _lambda(["_sw_o"], called, rest=("_sw_a", "_sw_k"))
            method = _call("_sw_method", self._base(function.value), ast.Constant(function.attr), native)
            return ast.Call(method, arguments, keywords)
        return ast.Call(self.visit(function), arguments, keywords)

    def visit_Compare(self, node: ast.Compare) -> ast.expr:
        node = self._children(node)
        if not self._in_assert or len(node.ops) != 1 or not isinstance(node.ops[0], ast.Eq | ast.NotEq):
            return node
        same = _call("_sw_same", node.left, node.comparators[0])
        return same if isinstance(node.ops[0], ast.Eq) else ast.UnaryOp(ast.Not(), same)

    def visit_Assert(self, node: ast.Assert) -> list[ast.stmt]:
        self._in_assert = True
        test = self.visit(node.test)
        self._in_assert = False
        return [_in_place(False), ast.Expr(_call("_sw_assert", test))]

    def visit_Expr(self, node: ast.Expr) -> ast.stmt | list[ast.stmt]:
        return self._in_place(self._children(node))

    def visit_Assign(self, node: ast.Assign) -> ast.stmt | list[ast.stmt]:
        return self._in_place(self._children(node))

    def _in_place(self, node: ast.stmt) -> ast.stmt | list[ast.stmt]:
        """Allow a call that is a statement by itself to change its arguments; a call inside a comparison may not."""
        if not any(isinstance(part, ast.Name) and part.id in ("_sw_root", "_sw_method") for part in ast.walk(node)):
            return node
        return [_in_place(True), node, _in_place(False)]

    def _may_be_program(self, function: ast.expr) -> bool:
        """Whether the called function may be the program's. A function in its arguments is then passed on as text."""
        if isinstance(function, ast.Name):
            return function.id in self._roots or function.id in self._bound - self._imported
        return isinstance(function, ast.Attribute) and not self._is_native(function.value)

    def _argument(self, node: ast.expr, function: ast.expr) -> ast.expr:
        """The argument; a lambda of the case, or a builtin that is passed to the program, gets its text beside it."""
        is_root = isinstance(function, ast.Name) and function.id in self._roots
        builtin = isinstance(node, ast.Name) and node.id in _BUILTINS - self._bound and is_root
        if builtin or (isinstance(node, ast.Lambda) and not _free(node) & self._bound):
            return _call("_sw_Code", node, ast.Constant(ast.unparse(node)))
        return node

    def _is_native(self, base: ast.expr) -> bool:
        if isinstance(base, ast.Name):
            return base.id in self._imported or (base.id in _BUILTINS - self._bound and base.id not in self._roots)
        return isinstance(base, _LITERALS) or (isinstance(base, ast.Attribute) and self._is_native(base.value))

    def _base(self, base: ast.expr) -> ast.expr:
        if isinstance(base, ast.Name) and base.id in self._roots:
            return _call("_sw_root", ast.Constant(base.id))
        visited: ast.expr = self.visit(base)
        return visited

    def _children(self, node: _N) -> _N:
        self.generic_visit(node)
        return node


def _free(node: ast.Lambda) -> set[str]:
    """The names that a lambda reads and does not bind."""
    inner = {part.arg for part in ast.walk(node) if isinstance(part, ast.arg)}
    return {part.id for part in ast.walk(node) if isinstance(part, ast.Name)} - inner


def _in_place(allowed: bool) -> ast.stmt:
    return ast.Assign([ast.Subscript(_name("_sw_in_place"), ast.Constant(0), ast.Store())], ast.Constant(allowed))


def _name(name: str) -> ast.Name:
    return ast.Name(name, ast.Load())


def _call(name: str, *arguments: ast.expr) -> ast.Call:
    return ast.Call(_name(name), list(arguments), [])


def _lambda(names: list[str], body: ast.expr, rest: tuple[str, str] | None = None) -> ast.Lambda:
    arguments = ast.arguments(
        posonlyargs=[],
        args=[ast.arg(name) for name in names],
        vararg=ast.arg(rest[0]) if rest else None,
        kwonlyargs=[],
        kw_defaults=[],
        kwarg=ast.arg(rest[1]) if rest else None,
        defaults=[],
    )
    return ast.Lambda(arguments, body)
