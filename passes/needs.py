"""What implementations need and a plan does not give: told when it is made, not when its program starts elsewhere."""

from __future__ import annotations

from epsc.ir.attrs import ExpertGemmAttrs, PlaceAttrs, RowsAttrs
from epsc.ir.errors import Diagnostic, EpsError, Faults
from epsc.ir.graph import Graph, Node
from epsc.ir.impls import Choice, Impl, Metric, impls_of
from epsc.ir.source import Span
from epsc.machine.cluster import Device
from epsc.passes.questions import name_of, why_not_persistent


def check_needs(graph: Graph, node: Node, choice: Choice, device: Device, span: Span | None, faults: Faults) -> None:
    """Add a fault for every implementation that `choice` may take on `device` and that cannot run there."""
    impls = impls_of(node.kind)
    for name in choice.possible(device.backend):
        why = _why_not(graph, node, impls[name], device)
        if why:
            ways = [other for other, impl in impls.items() if not _why_not(graph, node, impl, device)]
            help = f"`use {ways[0]} for {_name(node)}`" if ways else None
            if ways and isinstance(node.attrs, ExpertGemmAttrs):
                help = f'{help}, or -p "choose{{experts={ways[0]}}}" wherever no `use` stands'
            faults.add("needs", f"`{name}` cannot run `{_name(node)}`: {why}", span or node.span, help=help)
    if device.backend == "cuda" and _one_sided(graph, node):
        for metric in {condition.metric for _, condition in choice.cases} & _OF_ROWS:
            faults.add(
                "needs",
                f"`{_name(node)}` cannot be chosen by `{metric}`: {_UNKNOWN}",
                span or node.span,
                help="compare `tokens`",
            )


def _name(node: Node) -> str:
    """What a schedule calls an op: what stands in `return`, if it has no name of its own, by what was joined to it."""
    name = name_of(node)
    return next(iter(node.also), name) if name == "return" else name


_OF_ROWS = {Metric.ROWS, Metric.MEAN_ROWS, Metric.MAX_ROWS}
_UNKNOWN = "of rows that come one-sided the host does not know how many there are"


def _one_sided(graph: Graph, node: Node) -> bool:
    """Whether an op multiplies rows that come by one-sided transfers."""
    if not isinstance(node.attrs, ExpertGemmAttrs):
        return False
    return isinstance(graph.maker[node.ins[1]].attrs, PlaceAttrs)


def first_that_can(graph: Graph, node: Node, backend: str, device: Device | None) -> str:
    """The first implementation of the table that runs an op on `backend`; capability is asked of `device`, if known.

    Raises EpsError where there is none: of expert gemms over rows that come one-sided, on a device that lacks TMA.
    """
    known = device if device and device.backend == backend else None
    reasons = []
    for name, impl in impls_of(node.kind).items():
        if impl.needs.device not in ("any", backend):
            continue
        if not (why := _lacks(impl, known) or _unfit(graph, node, impl, backend)):
            return name
        reasons.append(f"`{name}`: {why}")
    where = device.name if known and device else backend
    message = f"nothing runs `{_name(node)}` on {where} ({'; '.join(reasons)})"
    help = "let rows travel by a collective: leave `use put` and `use copy` out" if _one_sided(graph, node) else None
    raise EpsError(Diagnostic("needs", message, node.span, help=help))


def _why_not(graph: Graph, node: Node, impl: Impl, device: Device) -> str:
    """What keeps an implementation from running an op; nothing if it can run it."""
    if impl.needs.device not in ("any", device.backend):
        return f"it needs {impl.needs.device}, and the cluster's device is {device.name}"
    return _lacks(impl, device) or _unfit(graph, node, impl, device.backend)


def _lacks(impl: Impl, device: Device | None) -> str:
    """What a device lacks for an implementation."""
    if device is None or device.backend != "cuda" or impl.needs.capability <= device.capability:
        return ""
    least, has = (".".join(map(str, each)) for each in (impl.needs.capability, device.capability))
    return f"it needs compute capability {least}, {device.name} has {has}"


def _unfit(graph: Graph, node: Node, impl: Impl, backend: str) -> str:
    """What of an op's own shapes and dtypes an implementation cannot do."""
    needs = impl.needs
    read = graph.types[node.ins[0]] if node.ins else None
    if impl.name in ("dense", "batched") and backend == "cuda" and _one_sided(graph, node):
        return _UNKNOWN
    if impl.name == "triton" and node.kind == "layout" and isinstance(node.attrs, RowsAttrs) and node.attrs.selective:
        return "it ranks copies that are all sent, and this dispatch sends some"
    if impl.name == "persistent" and (why := why_not_persistent(graph, node)):
        return why
    if needs.align > 1 and read is not None:
        # Rows as they lie in memory: of what it reads, and of its weights, [.., out, in] or [.., in, out].
        weights = [graph.param[name].local for name in node.params[:1]]
        for tensor in (read, *weights):
            width, size = tensor.shape[-1].scale, tensor.shape[-1].scale * tensor.dtype.bytes
            if size % needs.align:
                return f"rows of {width} {tensor.dtype} are {size} bytes, no multiple of {needs.align}"
    if backend == "cuda" and node.info.role.value == "compute" and read and read.dtype not in needs.dtypes:
        return f"it takes {' or '.join(sorted(needs.dtypes))}, not {read.dtype}"
    return ""
