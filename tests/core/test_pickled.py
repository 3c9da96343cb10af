"""Names and shapes of ``.bin`` files are those that torch loads; nothing in them is run."""

from __future__ import annotations

import os
import pickle
from collections import OrderedDict

import pytest
import torch

from dynllava.models.pickled import pickled_shapes


def module():
    found = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.LayerNorm(4)).half()
    found.register_buffer("number", torch.tensor(2.5))
    return found


TENSORS = {
    "state dict": lambda: module().state_dict(),
    "plain dictionary": lambda: dict(module().state_dict()),
    "parameters": lambda: dict(module().named_parameters()),
    "bfloat16 and integers": lambda: {
        "a": torch.ones(2, 0, 5, dtype=torch.bfloat16),
        "b": torch.arange(7)[None],
        "c": torch.ones(3, dtype=torch.bool),
    },
    "views of one memory": lambda: dict(enumerate_named(torch.arange(24.0).view(4, 6))),
    "nothing": dict,
}


def enumerate_named(whole):
    return ((f"row {index}", row) for index, row in enumerate(whole))


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("name", list(TENSORS))
def test_shapes_are_those_that_torch_loads(tmp_path, name, legacy):
    path = tmp_path / "x.bin"
    torch.save(TENSORS[name](), path, _use_new_zipfile_serialization=not legacy)
    loaded = torch.load(path, weights_only=True)
    expected = {key: tuple(value.shape) for key, value in loaded.items()}
    assert pickled_shapes(path) == expected


class Code:
    """What a hostile file would run."""

    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return (os.mkdir, (str(self.target),))


@pytest.mark.parametrize("legacy", [False, True])
def test_code_in_a_file_is_not_run(tmp_path, legacy):
    path, target = tmp_path / "x.bin", tmp_path / "made"
    state = OrderedDict(a=torch.ones(2), b=Code(target))
    torch.save(state, path, _use_new_zipfile_serialization=not legacy)
    assert pickled_shapes(path) is None
    path.write_bytes(pickle.dumps(state))
    assert pickled_shapes(path) is None
    assert not target.exists()


def test_a_file_cannot_change_what_reads_it(tmp_path):
    """BUILD sets attributes on whatever stands for a class: of that file alone."""
    build = b"\x80\x02ccollections\nOrderedDict\nN}X\x05\x00\x00\x00itemsK\x01s\x86b."
    (tmp_path / "bad.bin").write_bytes(b"\x80\x02K\x00." * 3 + build)
    pickled_shapes(tmp_path / "bad.bin")
    torch.save(module().state_dict(), tmp_path / "good.bin")
    assert pickled_shapes(tmp_path / "good.bin")["0.weight"] == (4, 3)


OTHER = {
    "a module": module,
    "a list": lambda: [torch.ones(1)],
    "a number among tensors": lambda: {"a": torch.ones(1), "b": 3},
    "one tensor": lambda: torch.ones(3),
}


@pytest.mark.parametrize("name", list(OTHER))
def test_anything_but_a_dictionary_of_tensors_is_not_known(tmp_path, name):
    torch.save(OTHER[name](), tmp_path / "x.bin")
    assert pickled_shapes(tmp_path / "x.bin") is None


@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
def test_a_torn_file_is_not_known(tmp_path, share):
    path = tmp_path / "x.bin"
    torch.save(module().state_dict(), path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    assert pickled_shapes(path) is None
