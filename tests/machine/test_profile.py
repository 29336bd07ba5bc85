"""Profiles: what is shipped reads whole, numbers keep their origin, and every fault names file and key."""

import json
from dataclasses import replace
from statistics import median

import pytest

from epsc.ir.errors import EpsError
from epsc.ir.impls import impls_of
from epsc.machine.cluster import DEVICES, Cluster
from epsc.machine.device import Device, Origin
from epsc.machine.profile import load, parse, shipped, shipped_for
from epsc.machine.roofline import least, ratio
from epsc.machine.tables import Beside, Table
from epsc.machine.tiles import COLUMNS, DEFAULT, Tile, tiles_for

SMALLEST = """
device = "x1"
measured = true
origin = "here"
[chip]
origin = "here"
backend = "cpu"
sms = 2
copy_engines = 0
transfer_sms = 1
memory_sms = 2
[rates]
origin = "here"
bf16_tflops = 1
fp32_tflops = 1
hbm_gb_per_s = 1
intra_gb_per_s = 1
inter_gb_per_s = 1
copy_gb_per_s = 1
host_gb_per_s = 1
[latencies]
origin = "here"
launch_us = 1
step_us = 1
kernel_us = 1
event_us = 1
transfer_us = 1
host_sync_us = 1
signal_us = 1
"""


@pytest.mark.parametrize("name", shipped())
def test_shipped_profiles_say_where_every_number_is_from(name: str) -> None:
    profile = load(name)
    device = profile.device
    assert profile.origin
    assert {section for section, _ in device.origins} == {"chip", "rates", "latencies"}
    assert all(origin for _, origin in device.origins)
    assert all(item.origin for item in (*device.tables, *device.besides))
    assert (device.origin is Origin.MEASURED) == (name in ("h200x2", "cpux2"))


def test_the_nearest_profile_of_a_device_is_taken() -> None:
    assert shipped_for("h200", 2, 1) == "h200x2"
    assert shipped_for("h200", 4, 1) == "h200x2"
    assert shipped_for("h200", 64, 8) == "h200x8"
    assert [shipped_for("h100", n * 8, n) for n in (1, 2, 8, 64)] == [
        "h100x8",
        "h100x16_nodes2",
        "h100x64_nodes8",
        "h100x512_nodes64",
    ]
    assert shipped_for("h300", 8, 1) is None
    assert set(DEVICES) == {"a100", "cpu", "h100", "h200", "h800"}


def test_a_named_profile_wins_over_the_device(tmp_path) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "mine.toml"
    path.write_text('base = "h200x2"\nmeasured = true\norigin = "me"\n[rates]\norigin = "me"\nhbm_gb_per_s = 4000\n')
    cluster = Cluster.make("c", "cpu", 2, profile=str(path))
    assert cluster.device.profile == "mine"
    assert cluster.device.hbm_bytes_per_s == 4e12
    assert cluster.device.flops_bf16 == 771e12
    assert dict(cluster.device.origins)["rates"].startswith("me; what it does not say: ")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            ("hbm_gb_per_s = 1", "hbm_gb_per_s = -1"),
            r"x\.toml: rates\.hbm_gb_per_s: it must be a finite number above 0",
        ),
        (
            ("hbm_gb_per_s = 1", 'hbm_gb_per_s = "fast"'),
            r"x\.toml: rates\.hbm_gb_per_s: it must be a number, not 'fast'",
        ),
        (("hbm_gb_per_s = 1", "hbm_gb = 1"), r"x\.toml: rates\.hbm_gb: there is no such key"),
        (("event_us = 1\n", ""), r"x\.toml: latencies\.event_us: it is missing"),
        (('backend = "cpu"', 'backend = "tpu"'), r"x\.toml: chip\.backend: it must be `cuda` or `cpu`"),
        (('origin = "here"\n[chip]', 'origin = ""\n[chip]'), r"x\.toml: origin: every number has an origin"),
        (("measured = true", "measured = 1"), r"x\.toml: measured: it must be true or false"),
        (("sms = 2\n", "sms = 2 2\n"), r"x\.toml: this is not TOML"),
        (('device = "x1"', 'device = "x1"\nbase = "h20x2"'), r"x\.toml: base: `h20x2` is no shipped profile"),
    ],
)
def test_faults_name_file_and_key(change: tuple[str, str], message: str) -> None:
    assert change[0] in SMALLEST
    with pytest.raises(EpsError, match=message):
        parse(SMALLEST.replace(*change, 1), "x", "x.toml")


RATE = '[[rate]]\nkind = "gemm"\nimpl = "torch"\norigin = "here"\n'
TILES = f'[[tiles]]\nout = 64\nin = 32\nact = true\norigin = "here"\ncolumns = {json.dumps(COLUMNS)}\n'
TILE = "128, 256, 64, 8, 4, 8, 0"
PAIR = '[[beside]]\ntransfer = "gloo"\ncompute = "*"\norigin = "here"\ncolumns = ["sms", "hidden"]\n'


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (RATE.replace("gemm", "gem") + 'columns = ["mb", "us"]\npoints = [[1, 2]]', r"`gem` is no kind of op"),
        (RATE + 'columns = ["rows", "out", "tflops"]\npoints = [[1, 2, 3]]', r"rate\[0\]\.columns: tflops needs in"),
        (RATE + 'columns = ["mb", "parsecs"]\npoints = [[1, 2]]', r"the last must be one of tflops, gb_per_s, us"),
        (RATE + 'columns = ["mib", "us"]\npoints = [[1, 2]]', r"`mib` is no coordinate"),
        (RATE + 'columns = ["mb", "us"]\npoints = [[1, 2, 3]]', r"points\[0\]: a point has 2 numbers"),
        (RATE + 'columns = ["mb", "us"]\npoints = [[1, 0]]', r"points\[0\]\.us: it must be a finite number above 0"),
        (RATE + 'columns = ["mb", "us"]\npoints = [[1, 2], [1, 3]]', r"two points have the same coordinates"),
        (PAIR + "points = [[132, 1.5]]", r"at most all of it, 1, can be hidden, not 1\.5"),
        (TILES + "points = [[8, 128, 256, 64, 8, 4, 8]]", r"tiles\[0\]\.points\[0\]: a point has 8 numbers"),
        (TILES + "points = [[8, 100, 256, 64, 8, 4, 8, 0]]", r"points\[0\]: .*must be powers of two"),
        (
            TILES + "points = [[8, 128, 256, 64, 8, 4, 8, 128]]",
            r"points\[0\]: low_rows must be 0, or .*below tile_rows",
        ),
        (TILES + "points = [[8, 128, 256, 64, 8, 6, 8, 0]]", r"points\[0\]: it takes 327680 bytes of shared memory"),
        (TILES + "points = [[8, 128, 256, 64, 6, 4, 8, 0]]", r"points\[0\]: it takes 4 or 8 warps"),
        (TILES + "points = [[0.5, 128, 256, 64, 8, 4, 8, 0]]", r"points\[0\]: it must be whole numbers"),
        (TILES + f"points = [[8, {TILE}], [8, {TILE}]]", r"tiles\[0\]\.points: rows must rise"),
        (TILES.replace("rows", "tokens", 1) + "points = [[8, 1]]", r"tiles\[0\]\.columns: it must be \[\"rows\""),
        (PAIR + "points = []", r"beside\[0\]\.points: it must be a list of points, at least one"),
    ],
)
def test_faults_of_tables_name_the_entry(more: str, message: str) -> None:
    with pytest.raises(EpsError, match=message):
        parse(SMALLEST + more, "x", "x.toml")


def test_a_tile_is_of_the_nearest_shape_and_rows() -> None:
    """Between two loads, that of the nearer by ratio; 0 rows are less than one."""
    points = "points = [[0, 64, 64, 64, 4, 4, 8, 0], [8, 64, 128, 64, 4, 4, 8, 0], [32, 128, 256, 64, 8, 4, 8, 64]]"
    wide = TILES.replace("out = 64", "out = 4096") + f"points = [[1, {TILE}]]"
    tables = parse(f"{SMALLEST}{TILES}{points}\n{wide}", "x", "x.toml").device.tiles
    few, some, many = Tile(64, 64, 64, 4), Tile(64, 128, 64, 4), Tile(low=64)
    assert tiles_for(tables, 128, 32, True) == {0: few, 1: some, 16: many}
    assert tiles_for(tables, 2048, 32, True) == {0: Tile()}
    assert tiles_for(tables, 64, 32, False) == DEFAULT
    assert tiles_for((), 64, 32, True) == DEFAULT


def test_all_faults_are_told_at_once() -> None:
    text = SMALLEST.replace("event_us = 1\n", "").replace("sms = 2\n", 'sms = "two"\n', 1)
    with pytest.raises(EpsError) as caught:
        parse(text, "x", "x.toml")
    assert len(caught.value.diagnostics) == 2


def test_a_profile_that_is_not_there() -> None:
    with pytest.raises(EpsError, match="no profile `h200x3` is shipped, and no file") as caught:
        load("h200x3")
    assert "did you mean `h200x8`" in str(caught.value)


def _seconds(device: Device, table: Table, point: tuple[float, ...]) -> float:
    impl = impls_of(table.kinds[0])[table.impl]
    at = table.at(point)
    there = least(device, impl, at)
    return there.floor + there.slope * ratio(device, impl, at)


MEASURED = [t for t in load("h200x2").device.tables if t.kinds[0] not in ("tell", "exchange")]


@pytest.mark.parametrize("table", MEASURED, ids=lambda t: f"{t.kinds[0]} {t.impl}")
def test_a_table_gives_back_what_it_was_told(table: Table) -> None:
    device = load("h200x2").device
    for point in table.points:
        assert _seconds(device, table, point) == pytest.approx(table.seconds(point))


@pytest.mark.parametrize(("impl", "most"), [("persistent", 0.05), ("grouped", 0.13), ("dense", 0.06), ("batched", 0.1)])
def test_a_point_left_out_is_predicted_from_the_others(impl: str, most: float) -> None:
    # How good interpolation is: docs/cost-model.md quotes these medians.
    device = load("h200x2").device
    table = device.table["expert_gemm", impl]
    errors = []
    for i, point in enumerate(table.points):
        rest = replace(table, points=table.points[:i] + table.points[i + 1 :])
        others = replace(device, tables=tuple(rest if t is table else t for t in device.tables))
        errors.append(abs(_seconds(others, table, point) / table.seconds(point) - 1))
    assert median(errors) < most


def test_rates_of_another_device_scale_its_own_roofline() -> None:
    # An H100 has an H200's arithmetic and 3.0 instead of 4.3 TB/s: a pass takes 4.3/3.0 as long, not the measured time.
    h200, h100 = load("h200x2").device, load("h100x8").device
    table = h200.table["ungroup", "triton"]
    (point,) = table.points
    assert _seconds(h100, table, point) - 3e-6 == pytest.approx((table.seconds(point) - 3e-6) * 4300 / 3001)


def test_the_pace_of_a_pair_by_hand() -> None:
    pair = Beside("nccl", "*", ((100.0, 0.5), (132.0, 0.0)), "made up", False)
    assert pair.pace(132) == 0.5
    assert pair.pace(100) == pytest.approx(2 / 3)
    assert pair.pace(116) == pytest.approx(1 / 1.75)
    assert pair.pace(50) == pair.pace(100)
