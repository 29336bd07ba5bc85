"""Schedules of papers have the structure that their paper describes: a wrong one of the right values fails here."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from epsc import driver, plans
from epsc.ir.amount import Amount
from epsc.ir.attrs import CallAttrs
from epsc.ir.dims import Axis
from epsc.ir.errors import EpsError
from epsc.ir.schedule import Schedule
from epsc.machine.simulate import simulate
from epsc.passes.order import _behind
from epsc.proof.happens import Happens
from epsc.proof.verify import prove

PAPERS = Path(__file__).parents[2] / "examples" / "papers"
CHAIN = ("dense", "attn", "shared")
"""What the experts of ScMoE's block run beside, in order."""


def planned(name: str, schedule: str | None = None, **defines: str) -> Schedule:
    layer = driver.understand(driver.read(PAPERS / f"{name}.eps"), driver.Options(defines))
    return driver.plan(layer, schedule).schedule


def test_eps_moe() -> None:
    """dispatch[i] and combine[i] by expert group on 16 SMs, in order; products of the group on 116; one sum."""
    made = planned("eps_moe")
    for node in ("sent.all2all", "back.all2all"):
        steps = [step for step in made.steps if step.node == node]
        assert [(step.cuts[0].axis, step.cuts[0].index) for step in steps] == [(Axis.EXPERT_GROUP, i) for i in range(5)]
        assert {(step.sms, step.lane) for step in steps} == {(16, "transfer")}
    gemms = [step for step in made.steps if step.node in ("gate_up", "down")]
    assert {step.sms for step in gemms} == {116}
    assert {str(step.impl) for step in gemms} == {"grouped when mean_rows < 2048 else dense"}
    happens = Happens.of(made)
    for i in range(5):
        chunk = f"[expert_group:{i}/5]"
        assert happens.before(f"sent.all2all{chunk}", f"gate_up{chunk}")
        assert happens.before(f"down{chunk}", f"back.all2all{chunk}")
    assert happens.beside("gate_up[expert_group:0/5]", "sent.all2all[expert_group:2/5]")
    assert happens.beside("gate_up[expert_group:3/5]", "back.all2all[expert_group:1/5]")


def test_tutel() -> None:
    """Pieces of the capacity; all dispatches are issued before any combine; one sum at the end."""
    made = planned("tutel")
    place = {step.key: i for i, step in enumerate(made.steps)}
    dispatches = [place[f"sent.all2all[tokens:{i}/4]"] for i in range(4)]
    combines = [place[f"back.all2all[tokens:{i}/4]"] for i in range(4)]
    assert dispatches == sorted(dispatches) and combines == sorted(combines)
    assert max(dispatches) < min(combines)
    assert {made.step[made.steps[i].key].lane for i in (*dispatches, *combines)} == {"transfer"}
    assert Happens.of(made).beside("h[tokens:0/4]", "sent.all2all[tokens:3/4]")


def test_tutel_looks_its_degree_up_by_load() -> None:
    layer = driver.understand(driver.read(PAPERS / "tutel.eps"))
    made = plans.plans(layer, "dictionary")
    degrees = [
        (part.layer.load, len([step for step in part.schedule.steps if step.node == "sent.all2all"]))
        for part in made.parts
    ]
    assert degrees == [((512, 1024), 1), ((1025, 4096), 2), ((4097, 16384), 4)]
    assert made.parts[2].schedule.steps == planned("tutel").steps


def test_tutel_in_two_levels() -> None:
    """The same order; rows of both ways go within nodes, and between the ranks of one place in each."""
    made = planned("tutel_two_level", "two_level")
    place = {step.key: i for i, step in enumerate(made.steps)}
    moves = [step for step in made.steps if made.node(step).kind == "all2all"]
    assert {step.node for step in moves} == {"sent.all2all", "back.all2all"} and len(moves) == 4
    assert {(str(step.impl), step.lane) for step in moves} == {("two_level", "transfer")}
    assert place["sent.all2all[tokens:1/2]"] < place["back.all2all[tokens:0/2]"]
    assert made.mesh_of("intra").groups("intra")[1] == list(range(8, 16))
    assert made.mesh_of("inter").groups("inter")[1] == list(range(1, 64, 8))
    # The host stops once, for all counts: what passes through is known when it does.
    assert made.graph.node["sent.sizes"].ins == ("sent.layout.counts", "sent.exchange", "sent.passing")
    assert not [step for step in planned("tutel_two_level", "linear").steps if "two_level" in step.impl.names]


def test_read_me() -> None:
    """No router in the layer: rows are on their way before anything else, and nothing is waited for to send them."""
    made = planned("read_me")
    assert not [node for node in made.graph.nodes if node.kind == "route"]
    assert not made.step["sent.copy"].waits
    assert Happens.of(made).beside("sent.copy", "sent.tell")
    assert Happens.of(made).beside("sent.copy", "mlp.gate_up")


def test_read_me_prefetch() -> None:
    """Counts of the second layer are told, and the weights of its experts come, beside the experts of the first; those
    that the first layer waits for come before them."""
    made = planned("read_me_prefetch", "prefetch")
    happens = Happens.of(made)
    place = {step.key: i for i, step in enumerate(made.steps)}
    first, second = (made.graph.node[f"{layer}.sent.all2all"] for layer in ("y", "block"))
    assert second.ins[0] == "block.sent.permute"  # rows of the second layer are those that the first made
    group = "[expert_group:0/2]"
    assert happens.beside("block.sent.exchange", f"y.h{group}") and happens.beside("block.sent.exchange", "y.mlp")
    assert place[first.name] < place["block.sent.exchange"] < place[f"y.h{group}"] < place["block.sent.sizes"]
    copies = [step.key for step in made.steps if step.lane == "host_link"]
    assert [key.partition(".")[0] for key in copies] == ["y"] * 4 + ["block"] * 4
    for weight in ("gate_up", "down"):
        key = f"block.{weight}.slots{group}"
        assert happens.beside(key, "y.h[expert_group:1/2]") and happens.beside(key, "y.back.all2all")
        assert happens.before(key, f"block.{'h' if weight == 'gate_up' else 'down'}{group}")


def test_ppmoe() -> None:
    """No all2all: rows of local experts are selected where they are, put into zeros, and one all_reduce sums them."""
    made = planned("ppmoe")
    assert [step.key for step in made.steps if step.comm] == ["y"] and made.graph.node["y"].kind == "all_reduce"
    assert not [step for step in made.steps if made.node(step).info.one_sided]
    kinds = [made.node(step).kind for step in made.steps]
    wanted = ["route", "own_rows", "pick_rows", "expert_gemm_act", "expert_gemm", "place_rows", "all_reduce"]
    assert [kind for kind in kinds if kind in wanted] == wanted
    assert made.same_tokens == ((1, 8),)


def test_parm_s1() -> None:
    """The ranks of tp split their tokens before the gate; all2alls are over all ranks; an all_gather ends it."""
    made = planned("parm_s1")
    node = made.graph.node
    assert node["r"].ins == node["sent.permute"].ins[:1] == ("mine",) and node["mine"].kind == "split_tokens"
    assert made.graph.results == ("y",) and (node["y"].kind, node["y"].ins) == ("all_gather", ("back",))
    over = {step.node: made.node(step).attrs.mesh for step in made.steps if step.comm}  # type: ignore[union-attr]
    assert over == {"sent.exchange": "ep", "sent.all2all": "ep", "back.all2all": "ep", "y": "tp"}
    assert made.same_tokens == ((1, 2),)
    assert made.mesh_of("tp").groups("tp") == [[0, 1], [2, 3], [4, 5], [6, 7]]
    assert made.mesh_of("ep").groups("ep") == [list(range(8))]


def test_parm_s2() -> None:
    """All ranks of tp gate all tokens, and send a share of them; home the all2all goes rank by rank, and beside each of
    its steps runs the all_gather of what came at the step before."""
    made = planned("parm_s2")
    node = made.graph.node
    assert node["r"].ins == ("x",) and made.graph.types["r.experts"].shape[0].symbol == "tokens"
    assert node["sent.layout"].ins == ("share.experts",) and node["share.experts"].ins == ("r.experts",)
    assert (node["back.gather"].kind, node["back.gather"].ins[0]) == ("all_gather_copies", "back.all2all")
    assert node["back"].ins[0] == "back.gather" and "r.weights" in node["back"].ins
    over = {step.node: made.node(step).attrs.mesh for step in made.steps if step.comm}  # type: ignore[union-attr]
    assert over == {"sent.exchange": "ep", "sent.all2all": "ep", "back.all2all": "ep", "back.gather": "tp"}
    cuts = [[step.cuts for step in made.steps if step.node == name] for name in ("back.all2all", "back.gather")]
    assert cuts[0] == cuts[1] and [cut.axis for (cut,) in cuts[0]] == [Axis.PEER] * 8
    happens = Happens.of(made)
    for i in range(8):
        assert happens.before(f"back.all2all[peer:{i}/8]", f"back.gather[peer:{i}/8]")
        if i:
            assert happens.beside(f"back.all2all[peer:{i}/8]", f"back.gather[peer:{i - 1}/8]")
    assert made.same_tokens == ((1, 2),)


def test_fsmoe() -> None:
    """Three resources: all2alls between nodes, all_gather and reduce_scatter within nodes, experts; all dispatches are
    issued before any combine; each may run beside the others."""
    made = planned("fsmoe", r="3")
    lanes = dict.fromkeys(("sent.all2all", "back.all2all"), "inter")
    lanes |= dict.fromkeys(("sent.gather", "back.scatter"), "intra")
    lanes |= dict.fromkeys(("h", "down"), "compute")
    assert {step.node: step.lane for step in made.steps if step.node in lanes} == lanes
    assert made.mesh_of("etp").groups("etp") == [[0, 1], [2, 3], [4, 5], [6, 7]]  # nodes
    assert made.mesh_of("ep").groups("ep") == [[0, 2, 4, 6], [1, 3, 5, 7]]  # one rank of each node
    place = {step.key: i for i, step in enumerate(made.steps)}
    assert place["sent.all2all[tokens:2/3]"] < place["back.all2all[tokens:0/3]"]
    happens = Happens.of(made)
    chain = ["sent.all2all", "sent.gather", "h", "down", "back.scatter", "back.all2all"]
    for i in range(3):
        for first, then in pairwise(chain):
            assert happens.before(f"{first}[tokens:{i}/3]", f"{then}[tokens:{i}/3]")
    assert happens.beside("sent.all2all[tokens:2/3]", "sent.gather[tokens:1/3]")
    assert happens.beside("sent.gather[tokens:1/3]", "h[tokens:0/3]")
    assert happens.beside("back.all2all[tokens:0/3]", "back.scatter[tokens:1/3]")


def test_parallel_folding() -> None:
    """Attention and experts on two meshes over the same ranks; permute, all2all(ep), all_gather(etp), experts,
    reduce_scatter(etp), all2all(ep), un-permute."""
    made = planned("parallel_folding")
    assert [str(mesh) for mesh in made.meshes] == ["mesh experts: ep 4, etp 2", "mesh layer: dp 2, tp 4"]
    moved = ["permute", "all2all", "all_gather_rows", "regroup", "expert_gemm_act", "expert_gemm", "ungroup"]
    moved += ["reduce_scatter_rows", "all2all", "unpermute_sum", "all_gather"]
    kinds = [made.node(step).kind for step in made.steps]
    assert [kind for kind in kinds if kind in moved] == moved
    over = {step.node: made.node(step).attrs.mesh for step in made.steps if step.comm}  # type: ignore[union-attr]
    assert {over[node] for node in ("sent.all2all", "back.all2all")} == {"ep"}
    assert {over[node] for node in ("sent.gather", "back.scatter")} == {"etp"} and over["y"] == "tp"
    assert made.same_tokens == ((1, 4),)
    assert made.graph.param["gate_up"].local.shape[1].scale == 14336  # a half of gate and a half of up


def test_memtl() -> None:
    """Nothing is sent; heads run beside each other, behind the trunk."""
    made = planned("memtl")
    assert not [step for step in made.steps if step.comm or made.node(step).info.one_sided]
    happens = Happens.of(made)
    assert all(happens.before("trunk", f"{head}_up") for head in ("one", "two", "three"))
    assert happens.beside("one_up", "two_up")


def test_scmoe() -> None:
    """Experts read the block before; their products take one of four slots in a chain that hides both transfers."""
    for slot in range(4):
        made = planned("scmoe", f"slot_{slot + 1}")
        graph = made.graph
        # An edge across blocks: what routes and travels comes from the first attention, and needs nothing after it.
        assert graph.node["n"].ins == ("a",) and graph.node["r"].ins == graph.node["sent.permute"].ins[:1] == ("n",)
        assert graph.users["back.all2all"] == [graph.node["return"]] and made.steps[-1].node == "return"
        place = {step.key: i for i, step in enumerate(made.steps)}
        products = [place["up"], place["h"], place["down"]]
        assert {made.step[key].lane for key in ("up", "down", *CHAIN)} == {"compute"}
        for i, each in enumerate(CHAIN):
            assert place[each] < min(products) if i < slot else place[each] > max(products)
        happens = Happens.of(made)
        for i, each in enumerate(CHAIN):
            assert happens.beside(each, "sent.all2all" if i < slot else "back.all2all")
        assert not [step for step in made.steps if step.cuts]


def test_the_model_of_costs_chooses_the_slot() -> None:
    """Of uncut plans the best leaves something beside either transfer; on one node, where transfers are short, none is
    worth it."""
    layer = driver.understand(driver.read(PAPERS / "scmoe.eps"))
    asked = driver.plan(layer, "best").considered
    uncut = {c.decl.name: c.seconds for c in asked if c.decl.name.startswith("beside_sms_0")}
    assert list(uncut) == ["beside_sms_0", *(f"beside_sms_0_slot_{slot}" for slot in (3, 2, 1, 0))]
    assert min(uncut, key=lambda name: uncut[name]) == "beside_sms_0_slot_1"
    assert driver.plan(layer, "slot_2").schedule.steps != driver.plan(layer, "slot_3").schedule.steps
    near = driver.understand(driver.read(PAPERS / "scmoe.eps"), driver.Options({"nodes": "1"}))
    plan = driver.plan(near, "best")
    assert min(plan.considered, key=lambda c: c.seconds).seconds > plan.considered[0].seconds * 0.95
    assert len({step.lane for step in plan.schedule.steps}) == 2


@pytest.mark.parametrize(
    ("name", "behind", "before", "after"),
    [("arctic", "x", ("attn",), ("dense",)), ("longcat_flash", "a", ("dense_1",), ("attn", "dense_2"))],
)
def test_shapes_of_models_with_a_shortcut(
    name: str, behind: str, before: tuple[str, ...], after: tuple[str, ...]
) -> None:
    """Experts read what the dense half reads; rows leave beside its beginning, and come home beside its end."""
    made = planned(name, "shortcut")
    assert made.graph.node["n"].ins == (behind,) and made.graph.node["r"].ins == ("n",)
    happens = Happens.of(made)
    for each in before:
        assert happens.beside(each, "sent.all2all") and happens.before(each, "h")
    for each in after:
        assert happens.beside(each, "back.all2all") and happens.before("down", each)
    assert made.graph.users["back.all2all"] == [made.graph.node["return"]]


def test_two_batches() -> None:
    """Each transfer of one batch runs beside what the other computes; nothing is cut, and weights are one for both."""
    made = planned("two_batches", "interleaved")
    happens = Happens.of(made)
    for moves, computes in (("sent_a", "attn_b"), ("sent_b", "h_a"), ("back_a", "h_b")):
        assert happens.beside(f"{moves}.all2all", computes)
    assert not [step for step in made.steps if step.cuts]
    params = [made.graph.node[name].params for name in ("attn_a", "attn_b", "h_a", "h_b", "down", "down.2")]
    assert params[::2] == params[1::2]
    batches = {name: _behind(made.graph, f"{name}.all2all") for name in ("back_a", "back_b")}
    assert "attn_b" not in batches["back_a"] and "attn_a" not in batches["back_b"]


def test_rmoe() -> None:
    """A state for each token, from each layer's router to the next one; it stays where the token is at home."""
    graph = planned("rmoe", "serial").graph
    states = ["h_1.cell", "h_2.cell", "h_3.cell"]
    for i, state in enumerate(states):
        # One cell for all layers; projection and router of each layer's own.
        assert graph.node[state].attrs == CallAttrs("cell", flops=Amount((0.0, 12.0 * 256 * 256)))
        assert graph.node[state].ins == (f"h_{i + 1}.project", *states[i - 1 : i])
        (router,) = [node for node in graph.users[state] if node.kind == "route"]
        assert graph.param[router.params[0]].type.shape[1].scale == 256
    weights = [node.params[0] for node in graph.nodes if node.kind in ("route", "gemm")]
    assert len(set(weights)) == 6
    # Experts read tokens: whatever travels, or is laid out to travel, holds no state.
    for node in graph.nodes:
        if node.info.moves_rows or node.kind in ("permute", "expert_gemm", "expert_gemm_act"):
            assert graph.types[node.ins[0]].shape[1].scale >= 1024
            assert not {*node.ins} & {*states}


def test_adapter_albert() -> None:
    """One backbone for all layers, on every rank; adapters of each layer and task, those of a task on one rank."""
    made = planned("adapter_albert", "serial")
    graph = made.graph
    assert not [node for node in graph.nodes if node.kind == "route"]
    assert all(node.ins == ("task",) for node in graph.nodes if node.kind == "layout")
    users: dict[str, int] = {}
    for node in graph.nodes:
        for name in (*node.params, *([node.attrs.module] if isinstance(node.attrs, CallAttrs) else ())):
            users[name] = users.get(name, 0) + 1
    backbone = ("attention", "norm_1", "norm_2", "ffn.up", "ffn.down")
    assert all(users[name] == 12 for name in backbone)
    adapters = [f"layers.{i}.adapter_{way}" for i in range(12) for way in ("down", "up")]
    assert {name: users[name] for name in adapters} == dict.fromkeys(adapters, 1)
    assert {*users} == {*backbone, *adapters}
    # A shared weight is there once, whole; adapters are cut by task.
    assert {param.name: param.sharded for param in graph.params} == {
        **dict.fromkeys(("ffn.up", "ffn.down"), False),
        **dict.fromkeys(adapters, True),
    }
    assert {graph.param[name].type.shape[0].scale for name in adapters} == {16}
    assert made.ep == 8
    # Where a weight is stands in the schedule: adapters in the memory of the host, the backbone on the device.
    host = planned("adapter_albert", "host")
    copied = {name for node in host.graph.nodes if node.kind == "weight_copy" for name in node.params}
    assert copied == {*adapters}


def test_duo_llm() -> None:
    """Big and small experts in one layer, by a routing from outside; a token that skips is sent nowhere."""
    made = planned("duo_llm")
    graph = made.graph
    assert graph.inputs == ("x", "ids", "weights")
    assert not [node for node in graph.nodes if node.kind == "route"]
    sent = {node.name.partition(".")[0]: node.attrs for node in graph.nodes if node.kind == "layout"}
    assert {name: (attrs.first, attrs.experts, attrs.among) for name, attrs in sent.items()} == {
        "to_big": (0, 2, 5),
        "to_small": (2, 2, 5),
    }
    wide, slim = (graph.types[name].shape[1].scale for name in ("wide", "slim"))
    assert wide > slim
    (identity,) = (node for node in graph.nodes if node.kind == "identity")
    assert set(identity.ins) == set(graph.inputs), "a token that skips needs nothing of other ranks"
    assert (identity.attrs.first, identity.attrs.experts) == (4, 1)
    happens = Happens.of(made)
    assert happens.beside("y_big.all2all", "slim") and happens.beside("y_big.all2all", "small_down")


def test_what_is_sent_is_what_tokens_chose() -> None:
    """Bytes of the predicted all2alls: of copies for the experts of each dispatch, and of no token that skips."""
    made = planned("duo_llm")
    layer = driver.understand(driver.read(PAPERS / "duo_llm.eps"))
    timeline = simulate(made, layer.cluster, 1000)
    for name in ("to_big.all2all", "to_small.all2all", "y_big.all2all", "y_small.all2all"):
        # 2 of 5 experts, half of them on the other rank, 2048 columns of 2 bytes.
        assert timeline.event[name].work.link_bytes == pytest.approx(1000 * 2 / 5 / 2 * 2048 * 2)


def test_ds_moe() -> None:
    """Dense: every expert meets every token, which travels once to each rank. Sparse: by a threshold, k is counted."""
    dense = planned("ds_moe", "dense")
    layer = driver.understand(driver.read(PAPERS / "ds_moe.eps"))
    events = simulate(dense, layer.cluster, 1000).event
    # 16 experts on 4 ranks: 4 of them, with the tokens of all ranks each.
    assert events["down"].work.rows == 4 * 4000
    for name in ("sent.put", "back.put"):
        assert events[name].work.link_bytes == pytest.approx(3 * 1000 * 2048 * 2)
    assert not [node for node in dense.graph.nodes if getattr(node.attrs, "selective", False)]
    sparse = driver.understand(driver.read(PAPERS / "ds_moe.eps"), driver.Options(preset="sparse"))
    assert sparse.graph.params == layer.graph.params, "one set of weights serves both modes"
    made = driver.plan(sparse, "sparse").schedule
    assert str(made.graph.types["back.all2all"].shape[0]) == "sends(sent)"
    assert made.graph.node["r"].attrs.top_k == 6 and made.graph.node["r"].attrs.threshold == 0.05
    with pytest.raises(EpsError, match="here some go nowhere"):
        driver.plan(sparse, "dense")


def test_inf_moe() -> None:
    """weight_copy[e] on the host's link into slot e mod c, after ffn[e-c]; ffn[e] after weight_copy[e]."""
    made = planned("inf_moe", slots="3")
    happens = Happens.of(made)
    storage = {buffer.key: buffer.storage for buffer in made.buffers}
    waits = {step.key: {(wait.step, str(wait.hazard)) for wait in step.waits} for step in made.steps}
    for name in ("up", "down"):
        for e in range(16):
            copy, gemm = f"{name}.slots[expert_group:{e}/16]", f"{name}[expert_group:{e}/16]"
            assert made.step[copy].lane == "host_link" and made.step[gemm].lane == "compute"
            assert storage[copy] == storage[f"{name}.slots[expert_group:{e % 3}/16]"]
            assert (copy, "raw") in waits[gemm]
            if e >= 3:
                assert (f"{name}[expert_group:{e - 3}/16]", "war") in waits[copy]
            if e >= 2:
                assert happens.beside(copy, f"{name}[expert_group:{e - 2}/16]")
        assert len({storage[f"{name}.slots[expert_group:{e}/16]"] for e in range(16)}) == 3
    text = driver.write(driver.plan(driver.understand(driver.read(PAPERS / "inf_moe.eps")))).text
    assert text.count("if part.rows:\n                up_slots") == 16, "an expert without rows is passed over"
    assert '"up": Weight("up", (32, 10240, 4096), ' in text and text.count("offloaded=True") == 2


def test_a_slot_that_is_overwritten_too_early_is_found() -> None:
    made = planned("inf_moe")
    found = 0
    for i, step in enumerate(made.steps):
        for wait in step.waits:
            if wait.value.endswith(".slots"):
                left = replace(step, waits=tuple(other for other in step.waits if other != wait))
                steps = (*made.steps[:i], left, *made.steps[i + 1 :])
                with pytest.raises(EpsError, match="nothing orders it"):
                    prove(made.with_steps(steps))
                found += 1
    assert found == 2 * (16 + 14)
    # Into a slot whose weight nobody has used yet, on one lane with its uses: no race, and wrong all the same.
    one = tuple(
        replace(step, lane="compute" if step.lane == "host_link" else step.lane, waits=()) for step in made.steps
    )
    keys = [step.key for step in one]
    early, late = keys.index("up[expert_group:0/16]"), keys.index("up.slots[expert_group:2/16]")
    moved = (*one[:early], one[late], *one[early:late], *one[late + 1 :])
    with pytest.raises(EpsError, match="is still used"):
        prove(made.with_steps(moved))


def test_pruned() -> None:
    """Experts of several widths in a layer, of other ones in the next; one layer is cut, and the other is not."""
    made = planned("pruned")
    graph = made.graph
    widths = {name: [d.scale for d in graph.param[name].type.shape] for name in graph.param if "down" in name}
    assert widths == {
        "y.down1": [6, 4096, 14336],
        "y.down1s": [2, 4096, 7168],
        "late.down2": [2, 4096, 7168],
        "late.down2s": [6, 4096, 2048],
    }
    taken = {node.name: (node.attrs.first, node.attrs.experts) for node in graph.nodes if node.kind == "layout"}
    for layer, first in (("y.sent1", 6), ("late.sent2", 2)):
        assert taken[f"{layer}.layout"] == (0, first) and taken[f"{layer}s.layout"] == (first, 8 - first)
    cut = {step.node for step in made.steps if step.cuts}
    assert {"y.sent1.all2all", "y.down1", "y.back1.all2all"} <= cut
    assert not [name for name in cut if name.startswith("late.") or "1s" in name]
    assert {str(step.impl) for step in made.steps if step.node == "y.down1"} == {"dense"}
    happens = Happens.of(made)
    assert happens.beside("y.down1[expert_group:0/3]", "y.sent1.all2all[expert_group:2/3]")


def test_comet() -> None:
    """dispatch and first product by source rank, the own one first; second product, transfer home and sum by output
    columns, of all experts and all rows; SMs of their own for transfers, the rest for products."""
    made = planned("comet")
    place = {step.key: i for i, step in enumerate(made.steps)}
    steps = {node: [step for step in made.steps if step.node == node] for node in made.graph.node}
    for nodes, axis, count in (
        (("sent", "h"), Axis.PEER, 8),
        (("down", "back.ungroup", "back.all2all", "back"), Axis.COLUMNS, 4),
    ):
        for node in nodes:
            cuts = [(step.cuts[0].axis, step.cuts[0].index, step.cuts[0].count) for step in steps[node]]
            assert cuts == [(axis, i, count) for i in range(count)], node
    moved = [*steps["sent"], *steps["back.all2all"]]
    assert {(step.sms, step.lane, step.comm) for step in moved} == {(24, "transfer", "transfer")}
    assert {(step.sms, step.lane) for node in ("h", "down") for step in steps[node]} == {(108, "compute")}
    happens = Happens.of(made)
    for i in range(8):
        assert happens.before(f"sent[peer:{i}/8]", f"h[peer:{i}/8]")
        assert happens.before(f"h[peer:{i}/8]", "down[columns:0/4]")
    # The own rows need no other rank: their product runs while the others are on their way.
    assert all(happens.beside("h[peer:0/8]", f"sent[peer:{i}/8]") for i in range(1, 8))
    assert place["sent[peer:0/8]"] < min(place[f"sent[peer:{i}/8]"] for i in range(1, 8))
    for i in range(4):
        chunk = f"[columns:{i}/4]"
        assert {ref.cuts for ref in made.step[f"down{chunk}"].reads} == {()}
        assert happens.before(f"down{chunk}", f"back.all2all{chunk}")
        assert happens.before(f"back.all2all{chunk}", f"back{chunk}")
    for i in range(3):
        assert happens.beside(f"back.all2all[columns:{i}/4]", f"down[columns:{i + 1}/4]")
        assert not happens.before(f"back.all2all[columns:{i + 1}/4]", f"back[columns:{i}/4]")
