"""What ``--model_args`` accepts, and that everything else is one clear line."""

from __future__ import annotations

import subprocess
import sys

import pytest
from lmms_eval.models import MODEL_REGISTRY_V2
from lmms_eval.utils import simple_parse_args_string
from lmms_eval_dynllava.arguments import ModelArguments, check_cache
from lmms_eval_dynllava.models import DynamicLlavaChat, DynamicLlavaSimple

from dynllava.errors import UserError
from dynllava.prompts import VICUNA_SYSTEM, Template, Turn, choose_template, render
from dynllava.records import environment


def parse(text, **more):
    return ModelArguments.parse({**simple_parse_args_string(text), **more})


def test_method_parameters_are_told_from_the_models_own_arguments():
    arguments = parse(
        "pretrained=embedded,method=dynamic_llava,vision_keep_rate=0.2,output_keep_rate=1.0,"
        "dtype=bfloat16,attn_implementation=eager,conv_template=plain",
        batch_size="16",
        max_batch_size=None,
        device="cpu",
    )
    assert arguments.parameters == {"vision_keep_rate": 0.2, "output_keep_rate": 1.0}
    assert (arguments.method, arguments.dtype, arguments.rows) == ("dynamic_llava", "bfloat16", 16)
    assert parse("batch_size=auto").rows == 32


def test_a_method_carries_its_parameters_and_compositions_are_accepted():
    arguments = parse("pretrained=embedded,method=fastv:k=2;keep_ratio=0.25+h2o:heavy=0.25")
    assert arguments.method == "fastv+h2o"
    expected = {"fastv_k": 2, "fastv_keep_ratio": 0.25, "h2o_heavy": 0.25}
    assert arguments.parameters == expected
    flat = parse("method=fastv+h2o,fastv_k=2,fastv_keep_ratio=0.25,h2o_heavy=0.25")
    assert (flat.method, flat.parameters) == ("fastv+h2o", expected)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "pretraned=x",
            r"unknown argument pretraned: did you mean pretrained\? accepted are .*pretrained",
        ),
        (
            "method=full,vision_keep_rate=0.2",
            r"unknown argument vision_keep_rate: .*for full: none",
        ),
        ("method=guess", r"method='guess': accepted are .*dynamic_llava"),
        ("dtype=int8", r"dtype=int8: accepted are float32, bfloat16, float16"),
        ("batch_size=0", r"batch_size=0: accepted is an integer from 1"),
        ("batch_size=many", r"batch_size=many"),
        ("max_new_tokens=0", r"max_new_tokens=0"),
        ("compile=maybe", r"compile=maybe: accepted are True and False"),
        ("method=fastv:k=2,k=3", r"method=fastv: k is given twice"),
        ("plugin=nowhere.py", r"plugin nowhere.py: cannot be read"),
        ("code_version=0.0.0+old", r"code_version=0.0.0\+old: the code that runs is"),
        ("method=dynamic_llava,sparse_layer=[2", r"sparse_layer='\[2': accepted is an integer"),
    ],
)
def test_unknown_and_impossible_arguments_are_one_clear_line(text, message):
    with pytest.raises(UserError, match=message) as error:
        parse(text)
    assert "\n" not in str(error.value)


def test_unknown_template_is_refused_by_name(scripted, processor):
    with pytest.raises(UserError, match="conv_template=qwen: accepted are checkpoint, vicuna_v1"):
        DynamicLlavaSimple.from_model(scripted(None), processor, conv_template="qwen")
    with pytest.raises(UserError, match="no chat template of its own"):
        choose_template("embedded", processor)


def simple_evaluate(use_cache, given):
    """Stand in for lmms-eval's function of this name, which creates the model."""
    check_cache(given)


def test_answer_cache_needs_the_code_version_so_it_never_goes_stale():
    with pytest.raises(UserError, match=r"add code_version=.*\+.* to model_args"):
        simple_evaluate("folder", None)
    simple_evaluate("folder", environment.code_version())
    simple_evaluate(None, None)


def test_lmms_eval_finds_both_classes_behind_one_name():
    assert MODEL_REGISTRY_V2.get_model_class("dynamic_llava") is DynamicLlavaChat
    simple = MODEL_REGISTRY_V2.get_model_class("dynamic_llava", force_simple=True)
    assert simple is DynamicLlavaSimple


def test_the_entry_point_loads_without_torch_and_without_the_model():
    code = (
        "import sys, lmms_eval_dynllava;"
        "print([m for m in ('torch', 'lmms_eval', 'transformers', 'dynllava') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_vicuna_prompt_is_that_of_llava_15(processor):
    turns = [
        Turn("user", "What is it?", ["image"]),
        Turn("assistant", "A cat."),
        Turn("user", "Why?"),
    ]
    assert render(Template("vicuna_v1"), turns, processor) == (
        f"{VICUNA_SYSTEM} USER: <image>\nWhat is it? ASSISTANT: A cat.</s>USER: Why? ASSISTANT:"
    )
    assert render(Template("plain"), turns[:1], processor) == "<image>\nWhat is it?\n"
