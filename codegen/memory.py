"""Memory: when each storage is allocated, how large, and when a buffer becomes a variable."""

from __future__ import annotations

from epsc.codegen.lines import call, comment
from epsc.codegen.names import Names
from epsc.codegen.regions import Regions, refuse, row_cut
from epsc.ir.dims import Axis, Dim, DType, is_tokens
from epsc.ir.kinds import Role
from epsc.ir.schedule import Buffer, Schedule, Step, Storage

TORCH_DTYPES = {
    DType.BF16: "torch.bfloat16",
    DType.FP16: "torch.float16",
    DType.FP32: "torch.float32",
    DType.INT64: "torch.int64",
    DType.INT32: "torch.int32",
}


def base_dtype(schedule: Schedule) -> DType:
    """The element type that the layer is written in: the one that a program may be told to replace."""
    return schedule.graph.types[schedule.graph.inputs[0]].dtype


def dtype_text(dtype: DType, base: DType, own: str) -> str:
    """`own` for the layer's own element type, else torch's name."""
    return own if dtype is base else TORCH_DTYPES[dtype]


class Memory:
    """The storages of one schedule. `own_result` says which steps make their result themselves instead of filling
    the buffer that they are given."""

    def __init__(self, schedule: Schedule, regions: Regions, lanes: dict[str, str], own_result: frozenset[str]) -> None:
        self.schedule, self.regions, self.lanes = schedule, regions, lanes
        self.base = base_dtype(schedule)
        self.names: Names = regions.names
        self._first_write: dict[tuple[str, str], int] = {}
        self._filled: set[tuple[str, str]] = set()
        for i, step in enumerate(schedule.steps):
            for ref in step.writes:
                buffer = regions.buffer(ref)
                if buffer is None:
                    continue
                key = buffer.storage, buffer.key
                self._first_write.setdefault(key, i)
                if step.key not in own_result or not regions.whole(ref):
                    self._filled.add(key)

    def allocations(self) -> dict[int, list[str]]:
        """Lines that allocate the storages that are needed (indented by 8), by the step before which they stand."""
        found: dict[int, list[str]] = {}
        known = self._known_from()
        for storage in self.schedule.storages:
            if storage.symmetric:
                continue  # made once, with the module
            buffers = [b for b in self.schedule.buffers if b.storage == storage.name and self._used(b)]
            if not buffers:
                continue
            first = min(self._first_write[b.storage, b.key] for b in buffers)
            at = max((known.get(dim.symbol, 0) for dim in storage.sizes), default=0)
            if at > first:
                raise refuse(f"storage `{storage.name}` is written before the host knows how large it is")
            lane = self.lanes[self.schedule.steps[first].lane]
            dtype = dtype_text(storage.dtype, self.base, "self.dtype")
            lines = call(f"{self.variable(storage)} = self.{lane}.memory", [self._size(storage), dtype], indent=8)
            found.setdefault(at, []).extend([*comment(self._tenants(buffers), 8), *lines])
        return found

    def _tenants(self, buffers: list[Buffer]) -> str:
        names = list(dict.fromkeys(buffer.value for buffer in buffers))
        shown = names if len(names) < 6 else [*names[:4], f"{len(names) - 4} more"]
        return f"Holds {', then '.join(shown)}."

    def _used(self, buffer: Buffer) -> bool:
        """Whether some step fills it; a step that makes its own result leaves it alone."""
        return (buffer.storage, buffer.key) in self._filled

    def variable(self, storage: Storage) -> str:
        return self.names.of(f"storage {storage.name}", f"memory_{storage.name}")

    def views(self, number: int, step: Step) -> list[tuple[str, str]]:
        """(variable, expression) for each buffer that `step` is the first to write."""
        found = []
        storages = {s.name: s for s in self.schedule.storages}
        for ref in step.writes:
            buffer = self.regions.buffer(ref)
            if buffer is None or storages[buffer.storage].symmetric:
                continue
            if self._first_write[buffer.storage, buffer.key] != number or not self._used(buffer):
                continue
            rows, *rest = buffer.type.shape
            name = self.regions.chunk(buffer.value, buffer.cuts)
            if rows.symbol.startswith("experts("):
                local = self.regions.slots_of(buffer.value, buffer.cuts)
                shape = ", ".join(map(str, (local, *(dim.scale for dim in rest))))
                found.append((name, f"{self.variable(storages[buffer.storage])}.view({shape})"))
                continue
            width = rest[0].scale if rest else 1
            part = "part"
            if (cut := row_cut(buffer.cuts, f"`{buffer.key}`")) and cut != row_cut(step.cuts, f"`{step.key}`"):
                part = self.regions.part(self.regions.dispatch(self.regions.graph.maker[buffer.value]), cut)
            count = self.regions.count(rows, buffer.value, part)
            expr = f"view({self.variable(storages[buffer.storage])}, {count}, {width})"
            found.append((name, expr))
        return found

    def _known_from(self) -> dict[str, int]:
        """For each `rows(d)` or `sends(d)`: the step from which on the host knows it."""
        found = {}
        for i, step in enumerate(self.schedule.steps):
            node = self.schedule.node(step)
            if node.info.role is Role.HOST:
                d = self.regions.dispatch(node)
                found[f"rows({d})"] = found[f"sends({d})"] = found[f"gets({d})"] = i + 1
        return found

    def _size(self, storage: Storage) -> str:
        sizes = dict.fromkeys(self._elements(storage, dim) for dim in storage.sizes)
        return next(iter(sizes)) if len(sizes) == 1 else f"max({', '.join(sizes)})"

    def _elements(self, storage: Storage, dim: Dim) -> str:
        if dim.known:
            return str(dim.scale)
        if dim.symbol.startswith("experts("):
            held = [buffer for buffer in self.schedule.buffers if buffer.storage == storage.name]
            return str(dim.scale * max(self.regions.slots_of(buffer.value, buffer.cuts) for buffer in held))
        cut = row_cut(dim.cuts, f"storage `{storage.name}`")
        if is_tokens(dim.symbol) and (cut is None or cut.axis is Axis.TOKENS):
            regions, symbol = self.regions, dim.symbol
            rows = regions.length(regions.tokens(cut, 1, symbol)) if cut else regions.token_count(symbol)
        else:
            dispatch = dim.symbol.partition("(")[2].removesuffix(")")
            if dim.symbol.startswith("sends("):
                rows = self.regions.leaving(dispatch)
                return f"{dim.scale} * {rows}" if dim.scale != 1 else rows
            # One figure for all pieces: they are about as large as each other, and the line stays short.
            rows = self.regions.largest(dispatch, cut.count) if cut else self.regions.arrived(dispatch)
        return f"{dim.scale} * {rows}" if dim.scale != 1 else rows
