from __future__ import annotations

import pytest


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    from dynllava.models.export import export

    return export("embedded-dense", tmp_path_factory.mktemp("serving") / "model", dtype="float32")


@pytest.fixture(scope="session")
def side(folder):
    from dynllava.serving.selection import Bundle, ImageSide
    from tests.serving.fake_front import LIMITS

    return ImageSide(Bundle.read(folder), "cpu", LIMITS)


@pytest.fixture(scope="session")
def picture():
    from dynllava.embedded import generate_scene
    from dynllava.serving.check.prompts import png

    return png(generate_scene("serving").image)


@pytest.fixture(scope="session")
def prompt(picture):
    from dynllava.serving.check.prompts import Prompt

    return Prompt("scene", picture, "what colour is the circle ?")


@pytest.fixture(scope="module")
def front(side):
    from tests.serving.fake_front import served

    with served(side, ["divprune:keep=48", "full"]) as found:
        yield found
