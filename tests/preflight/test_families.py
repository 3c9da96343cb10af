"""``dynllava check`` and ``compare`` with folders of every family, whole and broken."""

from __future__ import annotations

import json
import shutil

import family_folders
import pytest
from family_folders import BUILDERS

from dynllava import cli
from dynllava.models.layouts import Layout, inspect
from dynllava.models.loading import load_model
from dynllava.preflight import Wanted, check_model
from dynllava.preflight.model import image_positions, spec_of
from dynllava.records import RecordStore


@pytest.fixture(scope="module", autouse=True)
def quiet():
    with family_folders.quiet():
        yield


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return family_folders.made_once(tmp_path_factory.mktemp("families"))


def said(found, topic):
    return [item.text for item in found.findings if item.topic == topic]


@pytest.mark.parametrize("name", BUILDERS)
def test_a_folder_of_every_family_can_start_and_nothing_is_loaded(folders, name, monkeypatch):
    import safetensors.torch

    def refuse(*args, **kwargs):
        raise AssertionError("weights were read")

    monkeypatch.setattr(safetensors.torch, "load_file", refuse)
    folder = folders(name)
    assert inspect(folder).layout is Layout.STOCK
    wanted = Wanted(str(folder), ("fastv", "full"), 4, device="cpu")
    found = check_model(wanted)
    assert found.ready, found.text()
    assert said(found, "layout")[0].startswith("stock transformers")
    assert "What is in the picture?" in said(found, "template")[0]
    assert said(found, "method") == ["fastv", "full"]
    assert all("batch 4" in line for line in said(found, "memory"))
    # Two ways to the same number: the processor's own prompt, and the rule that costs follow.
    spec = spec_of(inspect(folder))
    tokens = said(found, "tokens")[0]
    assert f" x {image_positions(spec)}" in tokens
    assert tokens.split(":")[0].endswith("640 x 480")


def test_predicted_weights_are_those_of_the_loaded_model(folders):
    model, _ = load_model(folders("qwen2_5_vl"))
    held = sum(tensor.numel() * tensor.element_size() for tensor in model.parameters())
    predicted = spec_of(inspect(folders("qwen2_5_vl"))).weight_bytes("float32")
    # Biases and norms of the tower, a few percent in a model this small.
    assert predicted == pytest.approx(held, rel=0.05)


def config(folder, **changes):
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**values, **changes}))


def gone(name):
    return lambda folder: (folder / name).unlink()


def other_token(folder):
    config(folder, image_token_id=7)


def torn(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


BROKEN = {
    "no image processor": (gone("preprocessor_config.json"), "no preprocessor_config.json"),
    "no template": (gone("chat_template.json"), "no chat template"),
    "no weights": (gone("model.safetensors"), "no weights; accepted are"),
    "torn weights": (torn, "truncated or not a safetensors file"),
    "another image token": (other_token, "one of the two is wrong"),
    "quantised": (lambda f: config(f, quantization_config={"bits": 4}), "quantised"),
    "sliding windows": (
        lambda f: config(f, use_sliding_window=True, sliding_window=8, max_window_layers=0),
        "sliding_attention layers",
    ),
    "a family that is refused": (lambda f: config(f, model_type="mllama"), "cross-attention"),
    "no family": (lambda f: config(f, model_type="unheard"), "model_type='unheard'; accepted are"),
    "a list for a name": (lambda f: config(f, model_type=["a"]), "accepted are"),
    "absurd patches": (
        lambda f: config(f, vision_config={"patch_size": 0}),
        "vision tower has patch_size=0",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_folder_is_one_line(folders, tmp_path, name, capsys):
    spoil, line = BROKEN[name]
    folder = tmp_path / "spoilt"
    shutil.copytree(folders("qwen2_5_vl"), folder)
    spoil(folder)
    assert cli.main(["check", str(folder), "--device", "cpu", "--method", "fastv"]) == 1
    out = capsys.readouterr().out
    refusals = [row for row in out.splitlines() if row.startswith("no ")]
    assert len(refusals) == 1, out
    assert line in refusals[0]


def test_settings_that_change_greedy_answers_are_a_note(folders, tmp_path):
    folder = tmp_path / "penalty"
    shutil.copytree(folders("qwen2_5_vl"), folder)
    (folder / "generation_config.json").write_text('{"repetition_penalty": 1.05}')
    found = check_model(Wanted(str(folder), ("full",), device="cpu"))
    assert found.ready
    assert "repetition_penalty=1.05 holds" in said(found, "generation")[0]


def test_methods_that_a_family_does_not_take(folders, capsys):
    command = ["check", str(folders("qwen2_5_vl")), "--device", "cpu", "--methods"]
    assert cli.main([*command, "visionzip", "dynamic_llava", "fastv"]) == 1
    out = capsys.readouterr().out
    assert "its vision tower has no class token" in out
    assert "no trained predictors" in out
    assert "ok    method" in out


@pytest.mark.parametrize(
    "name", [item if item == "qwen2_5_vl" else pytest.param(item, marks=pytest.mark.slow)
             for item in BUILDERS]
)  # fmt: skip
def test_compare_answers_embedded_tasks_with_every_family(folders, tmp_path, name):
    store = tmp_path / "store"
    command = ["compare", "--pretrained", str(folders(name)), "--limit", "2", "--device", "cpu"]
    command += ["--methods", "full", "fastv:k=2,keep_ratio=0.5", "--tasks", "embedded_attribute"]
    assert cli.main([*command, "--out", str(store), "--quiet"]) == 0
    records = RecordStore(store).read()[0]
    assert [record.status for record in records] == ["ok", "ok"]
    full, fastv = (record.counted for record in records)
    shown = full["image_tokens"].value
    assert full["mean_image_tokens"].value == shown == fastv["image_tokens"].value
    # Five layers, two of them whole.
    kept = fastv["image_tokens_kept"].value
    assert fastv["mean_image_tokens"].value == pytest.approx((2 * shown + 3 * kept) / 5)
    assert fastv["prefill_flops"].value < full["prefill_flops"].value
    assert "without the tower" in full["prefill_flops"].convention
    assert records[0].environment.image_aspect == "checkpoint"
