"""Options and rules that every test shares."""

import functools
import importlib
import os
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

# A busy machine is no failure: tests have a time limit of their own, and what a property takes is not what it says.
settings.register_profile("epsc", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("epsc")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="rewrite golden files with what was got")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--update-golden") and os.environ.get("CI"):
        raise pytest.UsageError("--update-golden would make any result look right; not under CI")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    gpu = [item for item in items if item.get_closest_marker("gpu")]
    if not gpu:
        return
    import torch  # only when asked for: most tests run without it

    if not torch.cuda.is_available():
        for item in gpu:
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))


@pytest.fixture
def update_golden(request: pytest.FixtureRequest) -> bool:
    """Whether to write the golden file instead of comparing with it."""
    return bool(request.config.getoption("--update-golden"))


@pytest.fixture
def interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton kernels made in this test run under Triton's interpreter, on the CPU."""
    triton = pytest.importorskip("triton", reason="triton is not installed: it is there for Linux only")
    # Triton asks each time that it makes a kernel, not only when it is imported.
    # (The knob first: it reads the environment, and what it was is what it becomes again.)
    monkeypatch.setattr(triton.knobs.runtime, "interpret", True, raising=False)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    interpreter = importlib.import_module("triton.runtime.interpreter")
    patch = interpreter._patch_lang_tensor

    def patched(tensor: Any, scope: Any) -> None:
        """Triton 3.6 makes a loop bound of an array of one number, which numpy 2.4 no longer takes for a number."""
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    monkeypatch.setattr(interpreter, "_patch_lang_tensor", patched)

    one_by_one = interpreter.ReduceOps.generic_reduce

    def slice_by_slice(self: Any, input: Any) -> Any:
        """Triton combines numbers one by one, which takes minutes; slices along the axis are the same, in the same
        order."""
        if self.axis is None or self.keep_dims or len(input) != 1:
            return one_by_one(self, input)
        data, dtype = input[0].handle.data, input[0].dtype
        first, *rest = (self.to_tensor(data.take(i, self.axis), dtype) for i in range(data.shape[self.axis]))
        return [functools.reduce(self.combine_fn.fn, rest, first)]

    monkeypatch.setattr(interpreter.ReduceOps, "generic_reduce", slice_by_slice)
