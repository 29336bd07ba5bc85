"""The numbers of a Spec: `let`s, replaced by presets and by `-D` on the command line, and expressions over them."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from copy import copy

from epsc.ir.errors import Diagnostic, EpsError, Faults, did_you_mean
from epsc.ir.spec import Binary, Broken, Call, ClusterDecl, Expr, Let, Load, Name, Number, Preset, Spec

Value = int | float

# What `-D` may set besides `let`s: settings of the cluster, and the load.
CLUSTER_KEYS = ("device", "ranks", "nodes", "ep", "etp", "tp", "dp", "sms")
LOAD_KEY = "tokens"

MOST = 2**31 - 1
"""The largest size, load or count."""


def parse_defines(texts: tuple[str, ...]) -> dict[str, str]:
    """`("hidden=64", "ep=2")` -> names and values. Raises EpsError when one has no `=`, or a name comes twice."""
    found: dict[str, str] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name.strip() or not value.strip():
            raise EpsError(Diagnostic("bad-define", f"`-D {text}` should read `-D name=number`"))
        if name.strip() in found:
            raise EpsError(Diagnostic("bad-define", f"`-D {name.strip()}` is given twice"))
        found[name.strip()] = value.strip()
    return found


class Numbers:
    """What every `let` of a Spec is worth in this compile.

    A `-D` beats a preset, a preset beats the file. Later lets may use earlier ones, and see the replaced value.
    """

    def __init__(self, spec: Spec, faults: Faults, defines: Mapping[str, str], preset: str | None = None) -> None:
        self.faults = faults
        self.values: dict[str, Value] = {}
        lets = [item for item in spec.items if isinstance(item, Let)]
        known = {let.name for let in lets}
        replaced: dict[str, Expr] = {}
        if preset is not None:
            presets = {item.name: item for item in spec.items if isinstance(item, Preset)}
            if preset not in presets:
                faults.add("unknown-preset", f"there is no preset `{preset}`", help=did_you_mean(preset, presets))
            else:
                for let in presets[preset].values:
                    if let.name not in known | {*CLUSTER_KEYS, LOAD_KEY}:
                        faults.add(
                            "unknown-name",
                            f"preset `{preset}` sets `{let.name}`, which no `let` defines",
                            let.span,
                            help=did_you_mean(let.name, known),
                        )
                    replaced[let.name] = let.value
        for name, text in defines.items():
            if name not in known | {*CLUSTER_KEYS, LOAD_KEY}:
                faults.add(
                    "unknown-name",
                    f"`-D {name}` sets what no `let` defines",
                    help=did_you_mean(name, known | {*CLUSTER_KEYS, LOAD_KEY}),
                )
            replaced[name] = _literal(name, text, faults)
        self._lets = known
        self._replaced = replaced
        for let in lets:
            value = self.of(replaced.get(let.name, let.value))
            if value is not None:
                self.values[let.name] = value

    def telling(self, faults: Faults) -> Numbers:
        """The same numbers, for who gathers faults of its own, after those of the file were told."""
        made = copy(self)
        made.faults = faults
        return made

    def replaced(self, name: str) -> Expr | None:
        """What `-D` or the preset gave for a cluster setting or the load."""
        return self._replaced.get(name)

    def of(self, expr: Expr) -> Value | None:
        """The number that an expression is worth; None after adding a fault."""
        match expr:
            case Number(value):
                return value
            case Name(name):
                if name in self.values:
                    return self.values[name]
                if name not in self._lets:  # else its own definition was reported already
                    self.faults.add(
                        "unknown-name",
                        f"`{name}` is not a number that this file defines",
                        expr.span,
                        help=did_you_mean(name, self.values),
                    )
                return None
            case Binary(op, left, right):
                a, b = self.of(left), self.of(right)
                if a is None or b is None:
                    return None
                if op in ("/", "//") and b == 0:
                    self.faults.add("bad-number", "this divides by zero", expr.span)
                    return None
                try:
                    result = _ARITHMETIC[op](a, b)
                except OverflowError:
                    self.faults.add("bad-number", "this is too large a number", expr.span)
                    return None
                return int(result) if isinstance(result, float) and op != "*" and result.is_integer() else result
            case Call(fn):
                self.faults.add("bad-number", f"`{fn}(...)` is not a number", expr.span)
                return None
            case Broken():
                return None

    def whole(self, expr: Expr, what: str, least: int = 1) -> int | None:
        """A whole number from `least` to `MOST`; None after adding a fault that calls it `what`."""
        value = self.of(expr)
        if value is None:
            return None
        if not isinstance(value, int) or value < least:
            self.faults.add("bad-number", f"{what} must be a whole number of at least {least}, not {value}", expr.span)
            return None
        if value > MOST:
            self.faults.add("bad-number", f"{what} must be at most {MOST}", expr.span)
            return None
        return value


_ARITHMETIC: dict[str, Callable[[Value, Value], Value]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": operator.truediv,
    "//": operator.floordiv,
}


def _literal(name: str, text: str, faults: Faults) -> Expr:
    for kind in (int, float):
        try:
            return Number(kind(text))
        except ValueError:
            continue
    if name != "device":
        faults.add("bad-define", f"`-D {name}={text}`: `{text}` is not a number")
        return Broken()
    return Name(text)


def load_of(spec: Spec, numbers: Numbers) -> tuple[int, int]:
    """Tokens per rank (low, high) that the plan is made for: `-D tokens`, the `tokens` item, or 4096."""
    if (given := numbers.replaced(LOAD_KEY)) is not None:
        count = numbers.whole(given, "tokens", least=0) or 0
        return count, count
    for item in spec.items:
        if isinstance(item, Load):
            low, high = numbers.whole(item.low, "tokens", least=0), numbers.whole(item.high, "tokens", least=0)
            if low is not None and high is not None and low > high:
                numbers.faults.add(
                    "bad-number",
                    f"the load {low} .. {high} runs backwards",
                    item.span,
                    help=f"write `tokens {high} .. {low}`",
                )
            return low or 0, high or 0
    return 4096, 4096


def cluster_settings(decl: ClusterDecl | None, numbers: Numbers) -> dict[str, int | str]:
    """The settings of a cluster with `-D` and presets applied: whole numbers, but `device`, a name."""
    exprs: dict[str, Expr] = {}
    for setting in decl.settings if decl else ():
        if setting.key not in CLUSTER_KEYS:
            numbers.faults.add(
                "unknown-setting",
                f"a cluster has no `{setting.key}`",
                setting.span,
                help=did_you_mean(setting.key, CLUSTER_KEYS),
            )
        elif setting.key in exprs:
            numbers.faults.add("duplicate-name", f"`{setting.key}` is set twice", setting.span)
        exprs[setting.key] = setting.value
    exprs |= {key: given for key in CLUSTER_KEYS if (given := numbers.replaced(key)) is not None}
    found: dict[str, int | str] = {}
    for key, expr in exprs.items():
        if key == "device" and isinstance(expr, Name):
            found[key] = expr.name
        elif key in CLUSTER_KEYS and (value := numbers.whole(expr, f"`{key}`")) is not None:
            found[key] = value
    return found
