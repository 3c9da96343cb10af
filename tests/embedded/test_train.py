"""The training script: what a row looks like, resuming, exporting, bad usage."""

import json

import pytest
import torch

from dynllava.embedded import ask, generate_scene
from dynllava.embedded.evaluate import main as evaluate_main
from dynllava.embedded.model import build_model
from dynllava.embedded.muon import orthogonalise
from dynllava.embedded.packing import PREFIX, attention_masks, draw_questions, pack
from dynllava.embedded.scenes import seeded_random
from dynllava.embedded.tokenizer import vocabulary
from dynllava.embedded.train import Run, Settings, main


@pytest.fixture
def packed():
    scenes = [generate_scene(seed) for seed in range(3)]
    questions = [draw_questions(scene, seeded_random("row", scene.seed)) for scene in scenes]
    return scenes, questions, pack(scenes, questions)


def test_rows_hold_the_answers(packed):
    _, questions, rows = packed
    words = vocabulary()
    for row, asked in enumerate(questions):
        labels = [words[index] for index in rows.labels[row] if index >= 0]
        assert labels.count("</s>") == len(asked)
        assert (rows.segments[row] == len(asked)).any()
        assert not (rows.segments[row] == len(asked) + 1).any()


def test_packed_question_equals_the_question_alone(packed):
    """Block-diagonal packing changes nothing: logits of a segment as if it stood alone."""
    from dynllava.embedded.alignment import image_tokens, pixel_batch
    from dynllava.embedded.language import run_layers

    scenes, questions, rows = packed
    model = build_model(0).eval()
    with torch.inference_mode():
        images = image_tokens(model, pixel_batch(scenes))
        mask, _ = attention_masks(rows, torch.zeros(3, dtype=torch.bool))
        states, _ = run_layers(model, rows.tokens, rows.positions, images, [mask] * 6)
        together = states[0][rows.segments[0] == 2]
        alone = pack(scenes[:1], [[questions[0][1]]])
        output = model.model.language_model(
            inputs_embeds=torch.cat(
                [
                    model.get_input_embeddings()(alone.tokens[:, :3]),
                    images[:1],
                    model.get_input_embeddings()(alone.tokens[:, PREFIX:]),
                ],
                1,
            )
        ).last_hidden_state[0, PREFIX:]
    torch.testing.assert_close(together, output, atol=2e-4, rtol=1e-4)


def test_links_point_at_the_named_object(packed):
    scenes, _, _ = packed
    for scene in scenes:
        question = ask(scene, "attribute", seeded_random(scene.seed))
        rows = pack([scene], [[question]])
        (index,) = question.subjects
        shown = set((scene.patches.reshape(-1) == index).nonzero()[0] + 3)
        for layer in (2, 3):
            goal = rows.links[layer].goal[0, 0].nonzero()[:, 0]
            assert set(goal.tolist()) == shown


def test_early_mask_hides_the_image_from_the_text_only(packed):
    _, _, rows = packed
    blind = torch.tensor([True, False, True])
    open_mask, early_mask = attention_masks(rows, blind)
    assert torch.equal(open_mask[1], early_mask[1])
    text = rows.segments[0] > 0
    assert torch.isinf(early_mask[0, 0][text][:, 3:PREFIX]).all()
    assert torch.equal(early_mask[0, 0][:PREFIX], open_mask[0, 0][:PREFIX])


def test_orthogonalise_gives_singular_values_near_one():
    torch.manual_seed(0)
    for shape in ((2, 128, 128), (2, 256, 128), (2, 128, 256)):
        values = torch.linalg.svdvals(orthogonalise(torch.randn(shape)))
        assert values.max() < 1.3
        assert values.median() > 0.6


def test_resumed_run_equals_an_unbroken_one(tmp_path):
    settings = Settings(steps=(2, 2), batch=(2, 2))
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    for folder in (whole, parts):
        folder.mkdir()
    unbroken = Run(settings, whole, resume=False)
    unbroken.train(save_every=1)
    first = Run(settings, parts, resume=False)
    advance, steps = first._advance, []

    def interrupted(*arguments):
        if len(steps) == 3:
            raise KeyboardInterrupt
        steps.append(advance(*arguments))

    first._advance = interrupted
    with pytest.raises(KeyboardInterrupt):
        first.train(save_every=1)
    second = Run(settings, parts, resume=True)
    assert (second.stage, second.step) == (1, 1)
    second.train(save_every=1)
    for (name, one), two in zip(
        unbroken.model.named_parameters(), second.model.parameters(), strict=True
    ):
        torch.testing.assert_close(one, two, msg=name)
    assert len((parts / "log.jsonl").read_text().splitlines()) == 4


def test_trained_folder_loads_in_stock_transformers(tmp_path):
    from transformers import LlavaForConditionalGeneration, LlavaProcessor

    assert main([str(tmp_path), "--steps", "1", "1", "--batch", "2", "2"]) == 0
    folder = tmp_path / "model"
    assert LlavaForConditionalGeneration.from_pretrained(folder).dtype == torch.float16
    assert LlavaProcessor.from_pretrained(folder).image_token == "<image>"
    stages = [
        json.loads(line)["stage"]
        for line in (folder / "training_log.jsonl").read_text().split("\n")
        if line
    ]
    assert stages == ["vision", "language"]
    more = ["--steps", "1", "1", "--batch", "2", "2", "--init", str(folder)]
    assert main([str(tmp_path / "more"), *more]) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--steps", "0", "5"], "--steps must be positive"),
        (["--resume"], "no checkpoint.pt"),
        (["--init", "nowhere"], "no model.safetensors"),
    ],
)
def test_bad_usage_is_one_clear_line(tmp_path, capsys, arguments, message):
    with pytest.raises(SystemExit) as stop:
        main([str(tmp_path / "out"), *arguments])
    assert stop.value.code == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_evaluate_without_a_model(tmp_path, capsys):
    assert evaluate_main(["--model", str(tmp_path)]) == 2
    assert "no model in" in capsys.readouterr().err
