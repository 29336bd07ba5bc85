"""The profile that a journal makes: every number where it belongs, and what is hidden worked out by hand."""

from __future__ import annotations

from typing import Any

import pytest

from epsc.calibrate.written import Head, profile_text
from epsc.machine.device import Origin
from epsc.machine.profile import Profile, load, parse

MACHINE = {
    "machine: bf16_flops": 700e12,
    "machine: fp32_flops": 50e12,
    "machine: copy_bytes_per_s": 4e12,
    "machine: link_bytes_per_s": 250e9,
    "machine: launch_s": 5e-6,
    "machine: kernel_s": 2e-6,
    "machine: event_s": 1e-6,
    "machine: transfer_s": 50e-6,
    "machine: round_trip_s": 20e-6,
    "torch": "2.11.0",
    "nccl": "2.28.9",
    "hardware": "NVIDIA H200",
    "sms": 132,
    "capability": [9, 0],
}


def step(kind: str, impl: str, role: str, launches: int = 1, **at: float) -> dict[str, Any]:
    where = {"sms": 132, "element": 2, "mb": 100.0, **at}
    return {"kind": kind, "impl": impl, "role": role, "at": where, "besides_mb": 0.0, "launches": launches}


STEPS = {
    "sent.all2all": step("all2all", "nccl", "transfer", mb=126.0, sms=16),
    "sent": step("regroup", "torch", "memory", mb=500.0),
    "up": step("expert_gemm", "persistent", "compute", experts=80, rows=307.0, out=3072, sms=116, **{"in": 5120}),
    "n": step("sizes", "pinned", "host"),
}
ALONE = {"sent.all2all": 500e-6, "sent": 150e-6, "up": 1000e-6, "n": 300e-6}


def written(together: list[dict[str, tuple[float, float]]] | None = None, issued: float = 1e-3, **more: Any) -> Profile:
    manifest = {"probes": [{"name": "p", "together": True, "loads": [{"tokens": 4096, "steps": STEPS}]}]}
    found = {"tokens": 4096, "alone": ALONE, "whole": 2e-3, "issued": issued, "together": together or []}
    journal = {**MACHINE, "program: p": [found], **more}
    head = Head("h200", "cuda", 2, "2026-11-22", line_gb_per_s=450)
    return parse(profile_text(journal, manifest, head), "p", "p.toml")


def test_numbers_come_back() -> None:
    profile = written()
    device = profile.device
    assert (profile.ranks, device.name, device.origin) == (2, "h200", Origin.MEASURED)
    assert profile.origin == "epsc calibrate, 2026-11-22: 2 ranks on NVIDIA H200; torch 2.11.0, NCCL 2.28.9"
    assert (device.flops_bf16, device.hbm_bytes_per_s, device.intra_bytes_per_s) == (700e12, 4e12, 450e9)
    assert (device.launch_s, device.kernel_s, device.event_s) == pytest.approx((5e-6, 2e-6, 1e-6))
    assert device.host_sync_s == pytest.approx(300e-6)  # the step, which takes longer than a round trip
    assert (device.sms, device.capability, device.tile) == (132, (9, 0), (128, 256))
    assert set(device.table) == {("all2all", "nccl"), ("regroup", "torch"), ("expert_gemm", "persistent")}
    for (kind, _), table in device.table.items():
        name = {"all2all": "sent.all2all", "regroup": "sent", "expert_gemm": "up"}[kind]
        assert table.seconds(table.points[0]) == pytest.approx(ALONE[name], rel=1e-3)


def test_what_is_hidden_by_hand() -> None:
    # Alone 500 us and 1000 us. Together: the transfer [0, 700], the product [100, 1250]: 1250 us for both.
    # Hidden: (500 + 1000 - 1250) / 500 = 0.5.
    spans = {"sent.all2all": (0.0, 700e-6), "up": (100e-6, 1250e-6), "sent": (2e-3, 2.15e-3), "n": (3e-3, 3.3e-3)}
    (pair,) = written([spans]).device.besides
    assert (pair.transfer, pair.compute) == ("nccl", "persistent")
    assert pair.points == ((116.0, 0.5),)


def test_a_gather_in_between_counts_as_work() -> None:
    # The transfer [0, 700] beside the gather [0, 200] and the product [200, 1350]: 500 + 150 + 1000 - 1350 is 300 of
    # the 500 of the transfer.
    spans = {"sent.all2all": (0.0, 700e-6), "sent": (0.0, 200e-6), "up": (200e-6, 1350e-6)}
    (pair,) = written([spans]).device.besides
    assert pair.points == ((116.0, 0.6),)


def test_those_that_hardly_met_say_nothing() -> None:
    spans = {"sent.all2all": (0.0, 500e-6), "up": (400e-6, 1400e-6)}
    assert written([spans]).device.besides == ()


def test_a_run_that_waited_for_the_host_says_nothing() -> None:
    met = [{"sent.all2all": (0.0, 500e-6), "up": (100e-6, 1200e-6)}]
    assert written(met, issued=1.4e-3).device.besides
    assert not written(met, issued=1.6e-3).device.besides


def test_what_issuing_costs_by_hand() -> None:
    # 30 us for each step, 80 for each Triton launch, 5 for others; a stop for sizes takes 400 more.
    def program(name: str, torch: int, triton: int, stops: bool) -> tuple[dict[str, Any], list[Any]]:
        steps = {f"{name} t{i}": step("permute", "torch", "memory") for i in range(torch)}
        steps |= {f"{name} k{i}": {**step("activation", "triton", "memory"), "triton": True} for i in range(triton)}
        steps |= {f"{name} n": {**step("sizes", "pinned", "host"), "launches": 0}} if stops else {}
        issued = len(steps) * 30e-6 + triton * 80e-6 + torch * 5e-6 + stops * 400e-6
        found = [{"tokens": 16, "alone": dict.fromkeys(steps, 1e-4), "whole": 1e-3, "issued": issued}]
        return {"name": name, "together": False, "loads": [{"tokens": 16, "steps": steps}]}, found

    made = [program("a", 3, 5, True), program("b", 1, 9, False), program("c", 8, 20, True), program("d", 4, 4, False)]
    journal = {**MACHINE, **{f"program: {probe['name']}": found for probe, found in made}}
    text = profile_text(journal, {"probes": [probe for probe, _ in made]}, Head("h200", "cuda", 2, "2026-11-22"))
    device = parse(text, "p", "p.toml").device
    assert (device.step_s, device.triton_s) == pytest.approx((30e-6, 80e-6), rel=1e-2)


def test_what_failed_is_that_of_the_base() -> None:
    journal = {
        name: found for name, found in MACHINE.items() if name not in ("machine: fp32_flops", "machine: launch_s")
    }
    text = profile_text(journal, {"probes": []}, Head("h200", "cuda", 2, "2026-11-22", base="h200x2"))
    made, base = parse(text, "p", "p.toml").device, load("h200x2").device
    assert made.flops_bf16 == 700e12
    assert (made.flops_fp32, made.launch_s, made.triton_s) == (base.flops_fp32, base.launch_s, base.triton_s)
    assert made.intra_bytes_per_s == base.intra_bytes_per_s
    assert made.signal_s == base.signal_s
    assert made.table == base.table
