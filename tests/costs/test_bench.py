"""Measuring: protocol, statistics, records.  No test depends on how long anything took."""

import dataclasses

import pytest
import torch
from embedding_methods import FROM_EMBEDDINGS

from dynllava.costs import ledger
from dynllava.engine.compiled import CompiledSteps
from dynllava.errors import UserError
from dynllava.records import Environment, RecordStore
from dynllava.timing import bench, bench_report, speed, stats
from dynllava.timing.speed import STOCK
from dynllava.timing.syncs import count_syncs


@pytest.fixture(scope="module")
def results(tiny_bench, tiny_spec):
    subjects = bench.make_subjects(
        lambda: tiny_bench, ["full", "dynamic_llava", "fastv:k=2,keep_ratio=0.25"], tiny_spec
    )
    plan = bench.Plan(tiny_spec.prompt(12), 2, 6, repeats=2, nocache_fed=(1, 5))
    return bench.measure(subjects, plan)


def test_every_subject_ran_every_round(results):
    assert [result.subject.name for result in results] == [
        STOCK,
        "full",
        "dynamic_llava",
        "fastv:k=2,keep_ratio=0.25",
    ]
    assert all(len(result.times) == 2 for result in results)
    assert {"ttft", "prefill", "tpot", "nocache_call", "tpot_cpu"} <= set(results[0].names)


def test_dense_ratios_are_one_and_its_share_is_undefined(results):
    for mode in bench.TIMED:
        assert results[0].ratios[mode].median == 1
        assert results[0].cost_ratios[mode] == 1
        assert results[0].shares[mode] is None
        assert results[1].cost_ratios[mode] == 1


@pytest.mark.parametrize(("device", "wanted"), [("cpu", "busy host"), ("cuda", "slow kernels")])
def test_the_faster_stock_cache_is_chosen_by_the_clock_of_the_device(device, wanted):
    """The host's time is what a CPU works; on an accelerator it says nothing about the wait."""
    place = type("Place", (), {"device": torch.device(device)})
    seconds = {
        "busy host": {"tpot": 2.0, "tpot_cpu": 1.0, "prefill": 1.0},
        "slow kernels": {"tpot": 1.0, "tpot_cpu": 2.0, "prefill": 1.0},
    }
    stock = [
        bench.Result(speed.Subject(place, name, None), None, [speed.Times(found)])
        for name, found in seconds.items()
    ]
    assert bench.best_of(stock, "decode").subject.name == wanted
    assert bench.best_of(stock, bench.LATE).subject.name == wanted
    for mode in ("prefill", "decode_nocache"):
        assert bench.best_of(stock, mode) is stock[0]


def test_the_order_is_shuffled_in_every_round():
    plan = bench.Plan(None, 1, 1, repeats=200)
    orders = [tuple(plan.order(number, 4)) for number in range(200)]
    assert {tuple(sorted(order)) for order in orders} == {(0, 1, 2, 3)}
    # Every subject stands everywhere about equally often: no one always runs behind another.
    for place in range(4):
        counts = [sum(order[place] == subject for order in orders) for subject in range(4)]
        assert min(counts) > 25
    assert orders == [tuple(plan.order(number, 4)) for number in range(200)]
    other = bench.Plan(None, 1, 1, repeats=200, seed=1)
    assert orders != [tuple(other.order(number, 4)) for number in range(200)]


def test_compiled_steps_are_compared_with_compiled_and_with_eager_dense(tiny_bench, tiny_spec):
    """With the compiler's "eager" backend, on times that are put in by hand."""
    place = dataclasses.replace(
        tiny_bench, compiled_steps=CompiledSteps("eager"), compiled_stock=None
    )
    subjects = bench.make_subjects(
        lambda: place, ["full", "fastv"], tiny_spec, True, (STOCK, speed.STATIC)
    )
    plan = bench.Plan(tiny_spec.prompt(12), 1, 4, repeats=1)
    ready, inputs = bench.prepare(subjects, plan)
    times = dict(
        zip([item.name for item in ready], bench.run_round(ready, inputs, plan, 0), strict=True)
    )
    assert times[speed.STATIC_COMPILED].kv_allocated == times[speed.STATIC].kv_allocated
    tpot = {STOCK: 5.0, speed.STATIC: 4.0, speed.STATIC_COMPILED: 2.0, "full": 4.4, "fastv": 4.0}
    tpot |= {"full, compiled": 2.2, "fastv, compiled": 1.0}
    rounds = []
    for factor in (1.0, 3.0):
        found = [dataclasses.replace(one, seconds=dict(one.seconds)) for one in times.values()]
        for name, one in zip(times, found, strict=True):
            for key in ("tpot", "tpot_cpu", "tpot_late", "tpot_late_cpu"):
                one.seconds[key] = factor * tpot[name]
        rounds.append(found)
    results = {item.subject.name: item for item in bench.summarise(ready, plan, rounds)}
    fastv = results["fastv, compiled"]
    assert fastv.ratios["decode"].median == pytest.approx(1 / 4)
    assert fastv.ratios_to_compiled["decode"].median == pytest.approx(1 / 2)
    assert results["full, compiled"].ratios_to_compiled["decode_late"].median == pytest.approx(1.1)
    assert results[speed.STATIC_COMPILED].ratios["decode"].median == pytest.approx(1 / 2)
    assert not results["fastv"].ratios_to_compiled
    stored = bench_report.measured(fastv)
    assert stored["time_ratio_to_compiled_decode"].median == pytest.approx(0.5)
    assert stored["time_ratio_decode"].higher_is_better is False
    assert stored["tokens_per_second"].higher_is_better is True
    dense = bench_report.describe(results[speed.STATIC_COMPILED].subject)[1]
    assert dense.label == "dense, stock, StaticCache, compiled"
    assert dense.parameters == {"implementation": "transformers, StaticCache, compiled"}


def test_every_round_is_stored_with_its_process(results):
    found = bench_report.measured(results[3])
    (process,) = found["prefill"].rounds
    assert process == speed.process_name()
    seconds = [float(f"{value:.6g}") for value in results[3].series("prefill")]
    assert found["prefill"].rounds == {process: seconds}
    ratios = found["time_ratio_prefill"].rounds[process]
    dense = results[0].series("prefill")
    assert ratios == pytest.approx([a / b for a, b in zip(seconds, dense, strict=True)], rel=1e-4)
    assert all(len(item.rounds[process]) == 2 for item in found.values())


def test_all_subjects_are_fed_the_same_random_tokens(tiny_bench, tiny_spec):
    inputs = speed.make_inputs(tiny_bench, tiny_spec.prompt(12), 2, 6)
    assert inputs.fed.shape == (2, 6)
    fed = []
    subject = bench.make_subjects(lambda: tiny_bench, ["full"], tiny_spec, stock=())[0]
    model = subject.prepare()
    hook = model.get_input_embeddings().register_forward_pre_hook(
        lambda _, arguments: fed.append(arguments[0])
    )
    try:
        subject.time(inputs, 6)
    finally:
        hook.remove()
    assert torch.equal(torch.cat([ids for ids in fed if ids.shape[1] == 1], 1), inputs.fed[:, :5])


def test_shares_follow_their_definition(results):
    fastv = results[3]
    for mode in bench.TIMED:
        saving = 1 - fastv.cost_ratios[mode]
        share = fastv.shares[mode]
        if saving < stats.MIN_SAVING:
            assert share is None
        else:
            assert share == pytest.approx((1 - fastv.ratios[mode].median) / saving)


def test_untrained_predictors_are_calibrated_to_their_rate(results):
    assert results[2].output_keep is not None
    assert 0.2 <= results[2].output_keep <= 0.8


def test_cost_of_probed_calls_is_that_of_single_calls(results, tiny_spec):
    result = results[3]
    run = ledger.Run(tiny_spec, result.subject.method, result.plan.shape, 2, 2)
    first = ledger.total(ledger.entries(run, "decode_nocache"))
    assert bench._nocache_call(run, 1) == first


def test_records_round_trip(results, tmp_path):
    store = RecordStore(tmp_path)
    for result in results:
        store.append(bench_report.record(result, Environment()))
    found, problems = store.read()
    assert not problems
    assert [record.kind for record in found] == ["bench"] * 4
    assert "random weights" in found[0].model.name
    assert found[2].measured["tpot"].repeats == 2
    assert found[3].counted["prefill_macs"].unit == "MAC"


def test_tables_name_undefined_shares_and_slow_methods(results):
    results[1].ratios["prefill"] = stats.Spread(1.5, 0.1, 2)
    rows = bench_report.tables(results)[1].rows
    assert rows[0][-2:] == ["undefined", "SLOWER THAN DENSE"]


def test_spread_and_ratios():
    assert stats.spread([3.0, 1.0, 2.0, 4.0]) == stats.Spread(2.5, 1.5, 4)
    assert stats.spread([7.0]) == stats.Spread(7.0, 0.0, 1)
    assert stats.paired_ratios([2.0, 6.0], [1.0, 2.0]) == [2.0, 3.0]
    assert stats.realised_share(0.7, 0.5) == pytest.approx(0.6)
    assert stats.realised_share(1.2, 0.5) == pytest.approx(-0.4)
    assert stats.realised_share(0.7, 0.96) is None


def test_probes_end_with_the_last_call():
    assert bench.nocache_probes(64) == (21, 42, 63)
    assert bench.nocache_probes(2) == (1,)
    assert bench.nocache_probes(1) == ()


def test_unknown_method_is_refused_before_a_model_is_built(tiny_spec):
    def never():
        raise AssertionError("the model was built")

    with pytest.raises(UserError, match="accepted"):
        bench.make_subjects(never, ["fastw"], tiny_spec)


def test_syncs_are_counted_by_kind():
    x = torch.arange(5)
    with count_syncs() as syncs:
        x.sum().item()
        bool(x[0] == 0)
        x.tolist()
        x[x > 2]
        torch.equal(x, x)
        x + 1
    assert dict(syncs) == {"_local_scalar_dense": 2, "tolist": 1, "boolean_index": 1, "equal": 1}


@pytest.mark.parametrize("name", FROM_EMBEDDINGS)
def test_a_decode_step_makes_no_host_synchronisation(name, tiny_bench, tiny_spec):
    subject = bench.make_subjects(lambda: tiny_bench, [name], tiny_spec)[1]
    inputs = speed.make_inputs(tiny_bench, tiny_spec.prompt(12), 2)
    model = subject.prepare()
    with torch.inference_mode():
        out = model(inputs_embeds=inputs.embeds, image_mask=inputs.image_mask, logits_to_keep=1)
        token = out.logits[:, -1:].argmax(-1)
        with count_syncs() as syncs:
            for _ in range(4):
                out = model(input_ids=token, past_key_values=out.past_key_values, logits_to_keep=1)
                token = out.logits[:, -1:].argmax(-1)
    assert not syncs
