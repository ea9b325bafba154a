"""What the passes of the check share: an entry, its roles, and the rules of its ops."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

from superscaler.errors import SplitError
from superscaler.ir.check import limits
from superscaler.ir.check.fault import Place, fault
from superscaler.ir.entry import Contents, Entry
from superscaler.ir.graph import Graph, Op
from superscaler.ir.layout import Space
from superscaler.ir.program import Block, Offload, Program, Recv, Send, Step
from superscaler.ir.rules import has_rule, rule_for
from superscaler.ir.rules.rule import Rule

Terms = frozenset[int] | None  # the numbers of the inputs of an add_n that a sum has; None: all


def args_key(args: Any) -> Any:
    """Arguments in a form that compares exactly: ``1``, ``1.0`` and ``True`` differ, lists and tuples do not."""
    if isinstance(args, list | tuple):
        return tuple(args_key(a) for a in args)  # pyright: ignore[reportUnknownVariableType]
    if isinstance(args, Mapping):
        return ("{}", *sorted((str(k), args_key(v)) for k, v in args.items()))  # pyright: ignore[reportUnknownVariableType]
    return args if isinstance(args, str) else (type(args).__name__, repr(args))


class Scope:
    """One entry under check."""

    def __init__(self, plan: Contents, name: str, entry: Entry) -> None:
        self.plan = plan
        self.name = name
        self.entry = entry
        self.graph: Graph = entry.graph
        self.space: Space = plan.space
        self.micro = entry.microaxis
        self.microbatches = entry.microbatches
        self.roles: list[Role] = []
        self.role_of: dict[int, Role] = {}
        self.actions = 0
        self._rules: dict[int, Rule] = {}
        self._texts: dict[int, str] = {}
        self._origins: dict[tuple[object, ...], int] = {}

    def add_roles(self) -> None:
        """Index the Programs by their workers; structure has been checked."""
        self.roles = [Role(self, i, program) for i, program in enumerate(self.entry.programs)]
        self.role_of = {w: role for role in self.roles for w in role.program.workers}

    def place(self, **where: Any) -> Place:
        """A place in this entry, for a fault."""
        return Place(self.name, **where)

    def spend(self, actions: int) -> None:
        """Count what tasks do; raises when it is more than any honest plan's do."""
        self.actions += actions
        if self.actions > limits.ACTIONS:
            raise fault("too large", f"the tasks do more than {limits.ACTIONS:,} things", self.place())

    def rule(self, index: int) -> Rule:
        """The rule of the Graph's op number ``index``. Nothing without a rule may be in a plan."""
        found = self._rules.get(index)
        if found is None:
            op = self.graph.ops[index]
            found = self._rules[index] = self._rule(op)
        return found

    def _rule(self, op: Op) -> Rule:
        try:
            return rule_for(op, self.graph)
        except SplitError as e:
            kind = "malformed plan" if has_rule(op.target) else "no rule"
            raise fault(kind, e.what, self.place(), *e.details, right=e.hint) from e
        except RecursionError as e:
            raise fault("malformed plan", f"the arguments of op {op.name} are nested too deeply", self.place()) from e
        except Exception as e:  # a builder meets arguments that no trace emits: the file is at fault, not the rule
            raise fault(
                "malformed plan", f"the arguments of op {op.name} ({op.target}) are not those of this op",
                self.place(), f"{type(e).__name__}: {e}",
            ) from e  # fmt: skip

    def args_text(self, index: int) -> str:
        """The arguments of the Graph's op number ``index``, in a form that equal ones share."""
        found = self._texts.get(index)
        if found is None:
            found = self._texts[index] = repr(self.graph.ops[index].args)
        return found

    def origin(self, *how: object) -> int:
        """A number that stands for how a partial value was cut into terms; equal derivations have equal numbers."""
        return self._origins.setdefault(how, len(self._origins) + 1)

    @cached_property
    def addends(self) -> dict[str, tuple[str, ...]]:
        """Results of ``add_n`` -> its inputs."""
        return {op.outputs[0]: op.inputs for op in self.graph.ops if op.target == "superscaler.add_n" and op.outputs}

    def terms(self, tensor: str, terms: tuple[int, ...]) -> Terms:
        """The terms that a value's ``terms`` name, in the form in which they are compared."""
        if not terms or terms == tuple(range(len(self.addends.get(tensor, ())))):
            return None
        return frozenset(terms)


class Role:
    """One Program under check."""

    def __init__(self, scope: Scope, index: int, program: Program) -> None:
        self.scope = scope
        self.index = index
        self.program = program
        self.workers = program.workers
        self.inputs = frozenset(program.inputs.values())
        self.state_of = {value: name for name, value in program.state.items()}
        hosted = {state.name for state in scope.plan.state if state.memory == "host"}
        offloaded = {
            step.dst
            for block in program.blocks
            for step in block.steps
            if isinstance(step, Offload) and step.to == "host"
        }
        self.host = frozenset(offloaded | {value for value, name in self.state_of.items() if name in hosted})
        self._outside: dict[str, frozenset[int]] = {}
        self.buffered = frozenset(buffer.value for buffer in program.buffers)
        self.shared = (self.buffered | self.host) - set(self.state_of)
        self.terms = tuple(scope.terms(v.tensor, v.terms) for v in program.values)

    def outside(self, mesh: str) -> frozenset[int]:
        """The role's workers that are not on a mesh."""
        found = self._outside.get(mesh)
        if found is None:
            found = self._outside[mesh] = frozenset(self.workers) - set(self.scope.space.mesh(mesh).devices)
        return found

    def place(self, block: int | None = None, microbatch: int | None = None, step: Step | None = None) -> Place:
        """A place in this role's program, for a fault."""
        name = block_text(self.program.blocks[block], block) if block is not None else ""
        return Place(self.scope.name, self.workers, name, microbatch, step_kind(step) if step is not None else "")

    def value_text(self, value: int) -> str:
        """A value as messages call it."""
        v = self.program.values[value]
        over = f" per {', '.join(v.over)}" if v.over else ""
        terms = f" terms {list(v.terms)}" if v.terms else ""
        return f"tensor {v.tensor!r} as {v.layout}{over}{terms} (value {value})"


def block_text(block: Block, number: int) -> str:
    """A block as messages call it."""
    return f"block {number} ({block.name or block.kind})"


def step_kind(step: Step) -> str:
    """The kind of a step, for messages."""
    name = type(step).__name__.lower()
    match name:
        case "collective":
            return str(step.kind)  # type: ignore[union-attr]
        case "offload":
            return f"offload to {step.to}"  # type: ignore[union-attr]
        case _:
            return f"{name} on route {step.route}" if isinstance(step, Send | Recv) else name
