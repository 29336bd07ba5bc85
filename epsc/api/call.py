"""Calls: the arguments of a stand-in, which are those of the block that it stands in for."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from epsc.api.refuse import refusal
from epsc.ir.errors import EpsError


@dataclass(frozen=True)
class Call:
    """How a block was called when it was traced: what is no tensor is a constant of the trace."""

    block: str
    signature: inspect.Signature
    example: tuple[Any, ...]

    @staticmethod
    def of(module: nn.Module, example: tuple[Any, ...]) -> Call:
        kept = tuple(torch.empty(0) if isinstance(value, Tensor) else value for value in example)
        return Call(type(module).__name__, inspect.signature(module.forward), kept)

    def __call__(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
        """The arguments in the order of the example. Raises EpsError for a call of another kind."""
        if kwargs or len(args) != len(self.example):
            args = self._in_order(args, kwargs)
        for i, (value, traced) in enumerate(zip(args, self.example, strict=True)):
            if not _same(value, traced):
                raise self._other(f"argument {i + 1} was {_told(traced)}, and is {_told(value)}")
        return args

    def _in_order(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
        """All arguments, of which those that the example left out must be what they are by default."""
        named = self._named(args, kwargs)
        traced = self._named(self.example, {})
        for name in named.keys() | traced.keys():
            value, default = named.get(name), traced.get(name)
            if name not in list(traced)[: len(self.example)] and value is not default and not _same(value, default):
                raise self._other(f"`{name}` was {_told(default)}, and is {_told(value)}")
        return tuple(named[name] for name in list(traced)[: len(self.example)])

    def _named(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        """Arguments by name in the order of the signature, those of `*args` and `**kwargs` among them."""
        given = self.signature.bind(*args, **kwargs)
        given.apply_defaults()
        found: dict[str, Any] = {}
        for name, value in given.arguments.items():
            kind = self.signature.parameters[name].kind
            if kind is inspect.Parameter.VAR_POSITIONAL:
                found |= {f"{name}[{i}]": each for i, each in enumerate(value)}
            elif kind is inspect.Parameter.VAR_KEYWORD:
                found |= value
            else:
                found[name] = value
        return found

    def _other(self, what: str) -> EpsError:
        return refusal(
            "other-call",
            f"{self.block} is called in another way than it was traced: {what}",
            help="compile it with `example_inputs` as it is called",
        )


def _same(value: Any, traced: Any) -> bool:
    """Whether a call may have `value` where the trace had `traced`: any tensor for a tensor."""
    if isinstance(value, Tensor) or isinstance(traced, Tensor):
        return isinstance(value, Tensor) and isinstance(traced, Tensor)
    return bool(value == traced)


def _told(value: Any) -> str:
    return "a tensor" if isinstance(value, Tensor) else repr(value)
