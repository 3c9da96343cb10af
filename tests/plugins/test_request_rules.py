"""Rules of single requests: end tokens, stop strings, sampling, counts, losses, means."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from lmms_eval.api.instance import Instance
from lmms_eval_dynllava.efficiency import mean_costs
from lmms_eval_dynllava.engine import Engine, Scored
from lmms_eval_dynllava.models import DynamicLlavaSimple
from lmms_eval_dynllava.prompts import GenerationArguments, Prompt, Source, generation_arguments

from dynllava.errors import UserError

EOS, FIRST = 2, 10


def make_engine(model, processor, ends=EOS, auto=False):
    model.generation_config = type("Config", (), {"eos_token_id": ends})()
    return Engine(model, processor, torch.device("cpu"), auto=auto)


def answers(engine, texts, **options):
    prompts = [Prompt(Source("t", "test", i), text) for i, text in enumerate(texts)]
    arguments = generation_arguments(options, 40)
    return engine.generate(prompts, engine.encode(prompts), arguments)


@pytest.mark.parametrize("ends", [EOS, [EOS], [EOS, FIRST + ord("|")], [FIRST + ord("|"), EOS]])
def test_every_end_token_ends_an_answer_and_is_counted_once(ends, scripted, processor):
    """The longer rows of a batch keep going, so what stands behind a row's end is not its own."""
    model = scripted(lambda text, pixel: {"a": "yes|more", "b": "no", "c": "a|longer|answer"}[text])
    engine = make_engine(model, processor, ends)
    found = answers(engine, ["a", "b", "c"])
    if isinstance(ends, list) and len(ends) == 2:
        assert [item.text for item in found] == ["yes|", "no", "a|"]
        assert [item.output_tokens for item in found] == [4, 3, 2]
    else:
        assert [item.text for item in found] == ["yes|more", "no", "a|longer|answer"]
        assert [item.output_tokens for item in found] == [9, 3, 16]
    assert [item.input_tokens for item in found] == [2, 2, 2]
    assert [item.costs["output_tokens_fed"] for item in found] == [
        item.output_tokens - 1 for item in found
    ]
    # The model itself must stop at each of them.
    expected = sorted(ends) if isinstance(ends, list) else [ends]
    assert sorted(model.calls[0][2]["eos_token_id"]) == expected


def test_an_answer_cut_by_the_token_limit_has_no_end_token(scripted, processor):
    engine = make_engine(scripted(lambda text, pixel: "abcdef"), processor)
    for limit, count in ((1, 1), (6, 6), (7, 7), (30, 7)):
        (found,) = answers(engine, ["q"], max_new_tokens=limit)
        assert found.output_tokens == count
        assert found.text == "abcdef"[:limit]


def test_without_end_tokens_of_its_own_a_model_ends_at_the_tokenizers(scripted, processor):
    engine = make_engine(scripted(lambda text, pixel: "ab"), processor, ends=None)
    assert engine.end_ids == {EOS}
    assert answers(engine, ["q"])[0].output_tokens == 3


def test_the_first_stop_string_in_the_text_ends_the_answer_whatever_their_order():
    for until in itertools.permutations(["\n\n", "###", "STOP", "absent"]):
        arguments = GenerationArguments({}, list(until))
        assert arguments.cut(" one###two\n\nthreeSTOPfour") == "one"
        assert arguments.cut("one\n\ntwo###") == "one"
        assert arguments.cut("###one") == ""
        assert arguments.cut(" nothing to cut ") == "nothing to cut"


@pytest.mark.parametrize(
    ("given", "samples"),
    [
        ({}, False),
        ({"do_sample": True}, True),
        ({"do_sample": False}, False),
        ({"temperature": 0}, False),
        ({"temperature": 0.0, "do_sample": True}, False),
        ({"temperature": 0, "do_sample": False}, False),
        ({"temperature": 0.7}, True),
        ({"temperature": 0.7, "do_sample": True}, True),
        ({"temperature": 0.7, "do_sample": False}, False),
        ({"temperature": None, "do_sample": True}, True),
        ({"temperature": None}, False),
    ],
)
def test_answers_are_sampled_only_if_asked_for_and_never_at_temperature_0(given, samples):
    given = {**given, "top_p": 0.9, "top_k": 5}
    options = generation_arguments(given, 7).options
    assert options["do_sample"] is samples
    kept = {"temperature", "top_p", "top_k"} & {k for k, v in given.items() if v is not None}
    assert {"temperature", "top_p", "top_k"} & set(options) == (kept if samples else set())
    assert options["max_new_tokens"] == 7


@pytest.mark.parametrize("limit", [0, -1, 2.0, True, "3"])
def test_a_token_limit_that_is_no_positive_integer_is_refused(limit):
    with pytest.raises(UserError, match="accepted is an integer from 1"):
        generation_arguments({"max_new_tokens": limit}, 7)


def test_a_token_limit_of_1_and_known_options_are_passed_on_and_others_are_not():
    given = {"max_new_tokens": 1, "num_beams": 3, "image_aspect_ratio": "pad", "until": "x"}
    arguments = generation_arguments(given, 7)
    assert arguments.options == {"max_new_tokens": 1, "num_beams": 3, "do_sample": False}
    assert arguments.until == ["x"]


def choice_losses(scripted, processor, right, choices):
    """Loss of each choice under a model whose own answer is ``right``."""
    adapter = DynamicLlavaSimple.from_model(scripted(lambda text, pixel: right), processor)
    adapter.task_dict = {"t": {"test": [{}]}}
    requests = [
        Instance(
            request_type="loglikelihood",
            arguments=("q", choice, lambda doc: [], 0, "t", "test"),
            idx=index,
            metadata={"task": "t", "doc_id": 0, "repeats": 1},
        )
        for index, choice in enumerate(choices)
    ]
    return [(value, greedy) for value, greedy in adapter.loglikelihood(requests)]


def test_the_loss_of_a_choice_is_its_mean_per_token(scripted, processor):
    """A long right choice beats a short wrong one, and equal shares of right tokens tie."""
    right = " " + "ab" * 30
    losses = choice_losses(scripted, processor, right, ["ab" * 30, "z", "az", "ab", "azaz"])
    each = [-v for v in torch.log_softmax(torch.tensor([7.0] + [0.0] * 137), 0)[:2].tolist()]
    hit, miss = each
    # The separating blank is a token of the continuation, and right in all of them.
    expected = [hit, (hit + miss) / 2, (2 * hit + miss) / 3, hit, (3 * hit + 2 * miss) / 5]
    assert [value for value, _ in losses] == pytest.approx(expected, rel=1e-5)
    assert [greedy for _, greedy in losses] == [True, False, False, True, False]


def test_scores_of_a_batch_know_only_their_own_tokens(scripted, processor):
    engine = make_engine(scripted(lambda text, pixel: "abcdef"), processor)
    prompts = [Prompt(Source("t", "test", i), "q") for i in range(3)]
    tokens = [[FIRST + ord(letter) for letter in text] for text in ("abcdef", "a", "ax")]
    found = engine.score(prompts, engine.encode(prompts), tokens)
    hit, miss = torch.log_softmax(torch.tensor([7.0] + [0.0] * 137), 0)[:2].tolist()
    assert [item.tokens for item in found] == [6, 1, 2]
    assert [item.greedy for item in found] == [True, True, False]
    assert [item.logprob for item in found] == pytest.approx([6 * hit, hit, hit + miss], rel=1e-5)
    assert isinstance(found[0], Scored)


def test_a_batch_that_does_not_fit_is_halved_until_it_does_and_stays_small(scripted, processor):
    model = scripted(lambda text, pixel: text, memory=2)
    engine = make_engine(model, processor, auto=True)
    texts = [f"q{index}" for index in range(7)]
    assert [item.text for item in answers(engine, texts)] == texts
    sizes = [len(prompts) for prompts, _, _ in model.calls]
    assert sum(sizes) == 7
    assert max(sizes) == 2
    tried = []
    model.generate, inner = (
        lambda **k: tried.append(len(k["input_ids"])) or inner(**k),
        (model.generate),
    )
    answers(engine, texts)
    assert max(tried) <= 2, "a size that did not fit is not tried again"


def test_one_prompt_that_does_not_fit_is_an_error_even_with_auto(scripted, processor):
    engine = make_engine(scripted(lambda text, pixel: text, memory=0), processor, auto=True)
    with pytest.raises(UserError, match="out of memory with 1 prompts"):
        answers(engine, ["q"])


def test_means_are_over_the_requests_that_have_the_number():
    rows = [{"a": 1.0, "b": 10}, {"a": 2.0}, {"a": 6.0, "b": 0}, {}]
    assert mean_costs(rows) == {"a": 3.0, "b": 5.0}
    assert mean_costs([]) == {}
    assert not any(math.isnan(value) for value in mean_costs(rows).values())


def test_a_continuation_adds_only_its_own_tokens(scripted, processor):
    engine = make_engine(scripted(lambda text, pixel: text), processor)
    assert engine.continuation_ids("ab", "cd") == [FIRST + ord("c"), FIRST + ord("d")]

    def merging(text, add_special_tokens=True):
        """A tokenizer that reads "ab" as one token: the prompt's last token changes."""
        ids, rest = [1] if add_special_tokens else [], text
        while rest:
            size = 2 if rest.startswith("ab") else 1
            ids.append(99 if size == 2 else FIRST + ord(rest[0]))
            rest = rest[size:]
        return {"input_ids": ids}

    engine.processor.tokenizer = merging
    assert engine.continuation_ids("xa", "bc") == [FIRST + ord("b"), FIRST + ord("c")]
    assert engine.continuation_ids("xab", "c") == [FIRST + ord("c")]
