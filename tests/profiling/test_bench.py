"""Measuring: protocol, statistics, records.  No test depends on how long anything took."""

import pytest
import torch

from dynllava import methods
from dynllava.errors import UserError
from dynllava.profiling import bench, bench_report, ledger, speed, stats
from dynllava.profiling.speed import STOCK
from dynllava.profiling.syncs import count_syncs
from dynllava.records import Environment, RecordStore


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


def test_dense_decoding_is_the_faster_of_the_stock_caches(results):
    import copy

    slow, fast = copy.copy(results[0]), copy.copy(results[0])
    for result, seconds in ((slow, 2.0), (fast, 1.0)):
        result.times = [speed.Times({"tpot_cpu": seconds, "prefill_cpu": 1.0})]
    assert bench.best_of([slow, fast], "decode") is fast
    assert bench.best_of([slow, fast], bench.LATE) is fast
    assert bench.best_of([slow, fast], "prefill") is slow


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


@pytest.mark.parametrize("name", methods.names())
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
