"""One grammar for methods: what is written is what is created, and what is wrong is named."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynllava import methods
from dynllava.errors import UserError
from dynllava.methods import parameters


def test_a_text_gives_a_method_with_values_of_the_parameters_own_types():
    method = methods.create("fastv:k=2,keep_ratio=0.25")
    assert (method.name, method.k, method.keep_ratio) == ("fastv", 2, 0.25)
    assert type(method.k) is int
    method = methods.create("dynamic_llava:strict_official=False;vision_keep_rate=1")
    assert method.strict_official is False
    assert type(method.vision_keep_rate) is float


def test_parts_joined_by_a_plus_become_a_composition_and_a_plus_in_a_number_does_not():
    text = parameters.parse("fastv:k=2,keep_ratio=2.5e-1+h2o:heavy=0.25")
    assert text == parameters.MethodText(
        "fastv+h2o", {"fastv_k": 2, "fastv_keep_ratio": 0.25, "h2o_heavy": 0.25}
    )
    assert text.create().name == "fastv+h2o"
    assert parameters.parse("sparsevlm:scale=1e+1").parameters == {"scale": 10.0}


def test_lists_are_written_with_slashes_or_brackets():
    expected = {"pruning_layers": (2, 6, 15)}
    written = parameters.parse("sparsevlm:pruning_layers=[2,6,15],version=1.5")
    assert written.parameters == {**expected, "version": "1.5"}
    # A text is one of this parameter's own types: the method reads the list itself.
    assert parameters.parse("sparsevlm:budgets=300/200/110").parameters == {
        "budgets": "300/200/110"
    }


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("fastvv", "did you mean fastv?"),
        ("fastv:kep_ratio=0.5", "did you mean keep_ratio?"),
        ("fastv:k=two", "accepted is an integer"),
        ("fastv:k=2.5", "accepted is an integer"),
        ("fastv:keep_ratio=nan", "accepted is a number"),
        ("fastv:k", "accepted is NAME=VALUE"),
        ("fastv:", "accepted is NAME or NAME:PARAMETER=VALUE"),
        ("fastv:k=2,k=3", "given twice"),
        ("fastv+", "accepted is NAME or NAME:PARAMETER=VALUE"),
        ("", "accepted is NAME or NAME:PARAMETER=VALUE"),
        ("dynamic_llava:strict_official=perhaps", "accepted is true or false"),
        ("full:k=2", "accepted are no parameters"),
        ("fastv:k=2+fastv:k=3", "two different methods"),
    ],
)
def test_what_is_wrong_is_named_in_one_line_with_what_is_accepted(text, line):
    with pytest.raises(UserError) as caught:
        parameters.parse(text).create()
    assert line in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_parameter_is_given_once_in_the_text_or_beside_it():
    assert methods.create("fastv:k=2", keep_ratio=0.25) == methods.create(
        "fastv", k=2, keep_ratio=0.25
    )
    assert methods.create("fastv:k=2+h2o", h2o_heavy=0.5).parameters()["h2o_heavy"] == 0.5
    with pytest.raises(UserError, match="k is given twice"):
        methods.create("fastv:k=2", k=3)


@given(
    k=st.integers(1, 30),
    ratio=st.floats(0.01, 1, allow_nan=False),
    keep=st.none() | st.integers(1, 500),
    separator=st.sampled_from([",", ";"]),
)
def test_rendered_texts_read_back_to_the_same_parameters(k, ratio, keep, separator):
    given_values = {"k": k, "keep_ratio": ratio, "keep": keep, "decoder": "static"}
    text = parameters.render("fastv", given_values, separator)
    assert parameters.parse(text) == parameters.MethodText("fastv", given_values)
    both = {**{f"fastv_{key}": value for key, value in given_values.items()}, "h2o_heavy": 0.5}
    text = parameters.render("fastv+h2o", both, separator)
    assert parameters.parse(text) == parameters.MethodText("fastv+h2o", both)


def test_every_form_passes_lmms_evals_own_parser():
    from lmms_eval.utils import simple_parse_args_string

    text = "fastv:k=2;keep_ratio=0.25+h2o:heavy=0.25"
    read = simple_parse_args_string(f"pretrained=embedded,method={text},batch_size=4")
    assert read["method"] == text
    assert parameters.parse(read["method"]).name == "fastv+h2o"
    # Numbers that lmms-eval has read become the parameter's own type again.
    flat = simple_parse_args_string("method=fastv,k=2,keep_ratio=1")
    assert parameters.convert("fastv", "k", flat["k"]) == 2
    assert type(parameters.convert("fastv", "keep_ratio", flat["keep_ratio"])) is float
