"""Stop strings end the generation, and the answers are those of an unstopped one, cut."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from loguru import logger

sys.path.insert(0, str(Path(__file__).parent.parent / "core"))
from lmms_eval_dynllava.engine import Engine
from lmms_eval_dynllava.prompts import GenerationArguments, Prompt, Source
from lmms_eval_dynllava.stopping import StopStrings
from tiny import batch, prompts, tiny_model

END = 2


class Letters:
    """A token is a letter; 3 and 4 are the two bytes of one character, so neither stands alone."""

    pad_token_id, eos_token_id = 0, END

    def batch_decode(self, rows, skip_special_tokens=True):
        return ["".join(map(self._letter, row)).replace("<3><4>", "ß") for row in rows]

    @staticmethod
    def _letter(token):
        return f"<{token}>" if token in (3, 4) else "" if token < 3 else chr(60 + token)


class Processor:
    tokenizer = Letters()
    image_processor = None


def stop(until, width=2, ends=(END,)):
    return StopStrings(Letters(), until, width, ends)


def ids(*rows, prompt=(10, 11)):
    return torch.tensor([[*prompt, *row] for row in rows])


def feed(criterion, rows):
    """Return after how many tokens each row was ended (None: never)."""
    ended = {}
    for count in range(1, len(rows[0]) + 1):
        done = criterion(ids(*[row[:count] for row in rows]))
        for row in done.nonzero()[:, 0].tolist():
            ended.setdefault(row, count)
    return [ended.get(row) for row in range(len(rows))]


def test_rows_end_by_themselves_at_the_string():
    # J = 14, K = 15: "JK" ends with the second token of row 0, the fourth of row 1, never in row 2.
    rows = [[14, 15, 20, 20], [20, 20, 14, 15], [15, 14, 14, 20]]
    criterion = stop(["JK", "XX"])
    assert feed(criterion, rows) == [2, 4, None]
    assert criterion.lengths == {0: 2, 1: 4}


def test_a_string_across_bytes_of_one_character_and_within_a_long_answer():
    long = [20] * 60
    assert feed(stop(["ß"]), [[*long, 3, 4, 20]]) == [62]
    assert feed(stop(["J" * 3]), [[*long, 14, 14, 14]]) == [63]


def test_the_prompt_takes_no_part_and_ended_rows_stay_ended():
    assert feed(stop(["FG"], width=2), [[11, 20, 20]]) == [None]  # prompt FG... is not an answer
    criterion = stop(["JK"])
    assert feed(criterion, [[END, 14, 15]]) == [None]
    assert not criterion.lengths


@pytest.fixture(scope="module")
def model():
    model = tiny_model()
    model.set_method("dynamic_llava")
    return model


def answers(model, until, new_tokens=24):
    steps = []
    hook = model.model.language_model.layers[0].register_forward_pre_hook(
        lambda *_: steps.append(1)
    )
    engine = Engine(model, Processor(), torch.device("cpu"))
    rows = [row for row in prompts() if 99 not in row] * 3
    rows = [torch.cat([row, torch.tensor([5 + index])]) for index, row in enumerate(rows)]
    encoded = batch(rows, [])
    sources = [Prompt(Source("task", "test", index), "") for index in range(len(rows))]
    options = {"max_new_tokens": new_tokens, "do_sample": False}
    try:
        found = engine.generate(sources, encoded, GenerationArguments(options, until))
    finally:
        hook.remove()
    return found, len(steps)


def test_generation_stops_and_answers_and_counts_do_not_change(model):
    free, free_steps = answers(model, [])
    # The third and fourth token of every row's own answer end it: each row stops early.
    until = [answer.text[2:4] for answer in free]
    stopped, steps = answers(model, until)
    for whole, cut in zip(free, stopped, strict=True):
        assert cut.text == GenerationArguments({}, until).cut(whole.text)
        assert cut.output_tokens <= 4
        assert cut.costs["output_tokens_fed"] == cut.output_tokens - 1
    assert free_steps == 24
    assert steps <= 4


def test_positions_beyond_the_trained_ones_are_said_once(model):
    lines = []
    sink = logger.add(lambda message: lines.append(str(message)), level="WARNING")
    try:
        engine = Engine(model, Processor(), torch.device("cpu"))
        engine._check_positions(500, 12)
        assert lines == []
        engine._check_positions(500, 13)
        engine._check_positions(600, 13)
    finally:
        logger.remove(sink)
    assert len(lines) == 1
    assert "500 tokens" in lines[0]
    assert "512 positions" in lines[0]
    assert len(lines[0].strip().splitlines()) == 1
