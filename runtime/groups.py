"""Functions of many parts that are alike, such as the first weights of a network's layers.

XLA makes a kernel of each of the hundreds of draws, constants and copies that the first state of a
training run consists of, and takes ten seconds of CPU time for a small network. Of these operations
most are the same but for their arguments. `evaluate` carries out equal operations that do not
depend on each other as one, on their arguments in a stack, which gives the same numbers to the bit.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.extend.core import Literal

from runtime import backend


class Operation(NamedTuple):
    """An equation of a traced function, between the numbers of its values."""

    equation: Any
    operands: tuple[Any, ...]  # the number of a value, or a `Literal`
    results: tuple[int, ...]


class Row(NamedTuple):
    """A value that is `stack[place]`, or the whole `stack` where `place` is None."""

    stack: Any
    place: int | None = None

    @property
    def value(self) -> Any:
        return self.stack if self.place is None else self.stack[self.place]


def evaluate(function: Callable[..., Any], *args: Any) -> Any:
    """`jax.jit(function)(*args)` in NumPy, but for typed keys; soon compiled if parts are alike.

    Leaves may share memory, and are not to be written to.

    Args:
      function: from arrays to a tree of arrays; without side effects.
    """
    closed, shapes = jax.make_jaxpr(function, return_shape=True)(*args)
    inputs = [*closed.consts, *jax.tree.leaves(args)]
    operations, outputs = flattened(closed.jaxpr)
    needed = _needed(operations, outputs)
    places: list[tuple[int, int | None]] = []  # of each output: its stack, and its row there

    def program(values: Sequence[Any]) -> list[Any]:
        rows = _carried_out(needed, dict(enumerate(map(Row, values))))
        found = [Row(v.val) if isinstance(v, Literal) else rows[v] for v in outputs]
        stacks = {id(row.stack): row.stack for row in found}
        order = {key: i for i, key in enumerate(stacks)}
        places[:] = [(order[id(row.stack)], row.place) for row in found]
        return [*stacks.values()]

    run = jax.jit(program, compiler_options=backend.options_of_one_run(jax.default_backend()))
    stacks = [_fetched(stack) for stack in run(inputs)]
    leaves = [Row(stacks[i], place).value for i, place in places]
    return jax.tree.unflatten(jax.tree.structure(shapes), leaves)


def _fetched(array: jax.Array) -> Any:
    """The array on the host; typed keys, which NumPy has not, stay where they are."""
    is_key = jax.dtypes.issubdtype(array.dtype, jax.dtypes.prng_key)
    return array if is_key else np.asarray(array)


def flattened(jaxpr: Any) -> tuple[list[Operation], list[Any]]:
    """All operations, those of nested `jax.jit` in their place, and the outputs.

    Values have numbers: first the constants, then the arguments, then what operations make.
    """
    count = itertools.count()
    operations: list[Operation] = []

    def walk(jaxpr: Any, given: Iterable[Any]) -> list[Any]:
        names: dict[Any, Any] = dict(zip([*jaxpr.constvars, *jaxpr.invars], given, strict=True))

        def name(variable: Any) -> Any:
            return variable if isinstance(variable, Literal) else names[variable]

        for equation in jaxpr.eqns:
            operands = tuple(map(name, equation.invars))
            if equation.primitive.name in ("jit", "pjit") and not equation.params["jaxpr"].consts:
                results = walk(equation.params["jaxpr"].jaxpr, operands)
            else:
                results = [next(count) for _ in equation.outvars]
                operations.append(Operation(equation, operands, tuple(results)))
            names.update(zip(equation.outvars, results, strict=True))
        return [name(variable) for variable in jaxpr.outvars]

    given = [next(count) for _ in [*jaxpr.constvars, *jaxpr.invars]]
    return operations, walk(jaxpr, given)


def _needed(operations: Sequence[Operation], outputs: Iterable[Any]) -> list[Operation]:
    """The operations on which the outputs depend, in their order."""
    wanted = {output for output in outputs if not isinstance(output, Literal)}
    kept: list[Operation] = []
    for operation in reversed(operations):
        if wanted.intersection(operation.results):
            kept.append(operation)
            wanted.update(v for v in operation.operands if not isinstance(v, Literal))
    return kept[::-1]


def _carried_out(operations: Sequence[Operation], rows: dict[int, Row]) -> Mapping[int, Row]:
    """The rows of all values. Each operation waits for its operands and no longer."""
    depth = dict.fromkeys(rows, 0)
    waves: dict[int, list[Operation]] = {}
    for operation in operations:
        values = [v for v in operation.operands if not isinstance(v, Literal)]
        wave = 1 + max((depth[v] for v in values), default=0)
        depth.update(dict.fromkeys(operation.results, wave))
        waves.setdefault(wave, []).append(operation)
    for wave in sorted(waves):
        groups: dict[Hashable, list[Operation]] = {}
        for operation in waves[wave]:
            groups.setdefault(_kind(operation, rows), []).append(operation)
        for group in groups.values():
            _carry_out(group, rows)
    return rows


def _kind(operation: Operation, rows: Mapping[int, Row]) -> Hashable:
    """What operations of one group have in common.

    That is all but which rows of a stack they take and which constants they take beside them.
    """
    equation, operands = operation.equation, operation.operands
    shapes = tuple((v.aval.shape, v.aval.dtype) for v in equation.invars)
    stacks = [None if isinstance(v, Literal) else id(rows[v].stack) for v in operands]
    constant = all(stack is None for stack in stacks)
    origins = tuple(np.asarray(v.val).tobytes() for v in operands) if constant else tuple(stacks)
    kind = (equation.primitive, tuple(sorted(equation.params.items())), shapes, origins)
    try:
        hash(kind)
    except TypeError:
        return id(operation)
    return kind


def _carry_out(group: Sequence[Operation], rows: dict[int, Row]) -> None:
    """Adds the results of equal operations to `rows`."""
    equation = group[0].equation
    primitive = equation.primitive
    parameters = primitive.get_bind_params(equation.params)

    def run(*operands: Any) -> Any:
        results = primitive.bind(*operands, **parameters)
        return results if primitive.multiple_results else [results]

    columns = [_column(values, rows) for values in zip(*(o.operands for o in group), strict=True)]
    if all(axis is None for _, axis in columns):  # the same operands: the same results
        results = run(*(column for column, _ in columns))
        for operation in group:
            rows.update(zip(operation.results, map(Row, results), strict=True))
        return
    axes = [axis for _, axis in columns]
    stacks = jax.vmap(run, in_axes=axes)(*(column for column, _ in columns))
    for place, operation in enumerate(group):
        found = (Row(stack, place) for stack in stacks)
        rows.update(zip(operation.results, found, strict=True))


def _column(values: Sequence[Any], rows: Mapping[int, Row]) -> tuple[Any, int | None]:
    """One operand of all operations of a group: a stack and 0, or one for all and None."""
    if isinstance(values[0], Literal):
        constants = np.stack([np.asarray(v.val) for v in values])
        alike = constants.tobytes() == constants[:1].tobytes() * len(constants)
        return (constants[0], None) if alike else (constants, 0)
    stack, places = rows[values[0]].stack, [rows[v].place for v in values]
    if len(set(places)) == 1:
        return rows[values[0]].value, None
    return (stack if places == [*range(len(stack))] else stack[np.array(places)]), 0
