"""The front's manners, on an engine that only repeats what it gets."""

from __future__ import annotations

# ruff: noqa: I001 (what is missing is said before it is imported)
from tests.serving import needed  # noqa: F401

import asyncio
import base64
import io
import json
import threading
import time

import httpx
import pytest
import torch

from dynllava.embedded import generate_scene
from dynllava.errors import UserError
from dynllava.serving.app import CHAT, COMPLETIONS
from dynllava.serving.cache import RowCache
from dynllava.serving.check.faults import killed, malformed
from dynllava.serving.check.prompts import Prompt, png
from dynllava.serving.check.server import Server
from dynllava.serving.limits import Limits
from dynllava.serving.metrics import Metrics
from dynllava.serving.selection import Selector
from dynllava.serving.tower import Tower
from tests.serving.fake_front import LIMITS, served


def post(url, body, path=CHAT):
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return httpx.post(url + path, content=data, timeout=30)


def embeds(reply):
    parts = reply.json()["got"]["messages"][0]["content"]
    sent = [part["data"] for part in parts if part["type"] == "prompt_embeds"]
    return [torch.load(io.BytesIO(base64.b64decode(data)), weights_only=True) for data in sent]


def metric(front, name, **labels):
    return front.metrics.registry.get_sample_value(f"dynllava_{name}", labels) or 0.0


def test_a_request_names_its_method_and_the_rest_goes_to_the_engine_as_it_is(front, prompt):
    url, state = front
    for model, kept in (("full", 144), ("divprune:keep=48", 48), (None, 48), ("model", 48)):
        body = prompt.body(model, 7, top_p=0.5, seed=3)
        got = post(url, {key: value for key, value in body.items() if value is not None})
        assert got.status_code == 200
        assert [tuple(rows.shape) for rows in embeds(got)] == [(kept, 128)]
        sent = got.json()["got"]
        assert {key: sent[key] for key in ("model", "max_tokens", "top_p", "seed")} == {
            "model": "model", "max_tokens": 7, "top_p": 0.5, "seed": 3,
        }  # fmt: skip
    listed = [item["id"] for item in httpx.get(f"{url}/v1/models").json()["data"]]
    assert listed == ["model", "divprune:keep=48", "full"]
    assert metric(state, "kept_tokens_total", method="full") == 144
    assert metric(state, "dropped_tokens_total", method="divprune:keep=48") == 3 * (144 - 48)


def test_several_pictures_and_turns_keep_their_places(front, side, prompt):
    other = png(generate_scene("another").image)
    body = prompt.body("full", 5)
    first = body["messages"][0]
    shown = Prompt("", other, "and now ?").body("full", 5)["messages"][0]
    body["messages"] = [first, {"role": "assistant", "content": "red"}, shown]
    reply = post(front[0], body)
    parts = reply.json()["got"]["messages"][0]["content"]
    kinds = [part["type"] for part in parts]
    assert kinds == ["text", "prompt_embeds", "text", "prompt_embeds", "text"]
    assert "red" in parts[2]["text"]
    expected = [Selector(side, "full").rows(side.pixels(item)[None])[0]
                for item in (prompt.picture, other)]  # fmt: skip
    for sent, rows in zip(embeds(reply), expected, strict=True):
        torch.testing.assert_close(sent, rows, atol=1e-5, rtol=0)


def test_every_malformed_request_gets_a_4xx_and_one_line(front, prompt, picture):
    bodies = malformed(prompt, "full")
    # The engine judges these two.
    bodies = [body for body in bodies if b"warm" not in body and b"-1," not in body]
    good = prompt.body("full", 5)
    hidden = Prompt("", picture, "an <image> and an <image> of mine").body("full", 5)
    big = Prompt("", png(generate_scene(1).image.resize((500, 500))), "?").body("full", 5)
    heavy = json.dumps(good).replace("base64,", "base64," + "A" * 200_000)
    more = [hidden, big, heavy.encode(), {**good, "prompt_embeds": "x"}, {**good, "messages": [1]},
            {**good, "messages": [{"role": "user", "content": []}]},
            {**good, "messages": [{"role": "user", "content": [{"type": "video_url"}]}]},
            {**good, "messages": [{"role": "assistant", "content": "hello"}]},
            {**good, "messages": [{"role": "user", "content": "\ud800"}]},
            {**good, "model": 3}, b"[" * 100_000, b" " * (LIMITS.body + 1)]  # fmt: skip
    for body in [*bodies, *more]:
        reply = post(front[0], body)
        shown = (body if isinstance(body, bytes) else json.dumps(body).encode())[-80:]
        assert 400 <= reply.status_code < 500, shown
        error = reply.json()["error"]
        assert error["message"], shown
        assert "\n" not in error["message"], shown
        assert "Traceback" not in error["message"], shown
    assert post(front[0], {"prompt": [1, 2]}, COMPLETIONS).status_code == 400
    assert httpx.get(front[0] + "/nothing").json()["error"]["code"] == 404


def test_a_bad_picture_takes_no_other_of_its_batch_along(side, picture):
    selector = Selector(side, "full")

    async def ask():
        metrics = Metrics()
        tower = Tower(RowCache(0), metrics)
        asked = [asyncio.ensure_future(tower.rows(selector, item, "")) for item in
                 (picture, b"none", png(generate_scene(3).image))]  # fmt: skip
        await asyncio.sleep(0)
        tower.start()
        found = await asyncio.gather(*asked, return_exceptions=True)
        await tower.stop()
        return found, metrics.registry.get_sample_value("dynllava_tower_batch_sum")

    found, batch = asyncio.run(ask())
    assert isinstance(found[1], UserError)
    assert [tuple(found[index].shape) for index in (0, 2)] == [(144, 128)] * 2
    assert batch == 3


def test_a_picture_is_looked_at_once_for_all_questions(side, prompt):
    with served(side, ["divprune:keep=48"]) as (url, state):
        for question in ("how many ?", "what colour ?", "where ?"):
            asked = Prompt("", prompt.picture, question).body(None, 5)
            rows = embeds(post(url, {key: value for key, value in asked.items() if value}))
            assert len(rows[0]) == 48
        hits, misses = (
            metric(state, "images_total", method="divprune:keep=48", cache=name)
            for name in ("hit", "miss")
        )
        assert (hits, misses) == (2, 1)
        assert state.tower.cache.bytes == 48 * 128 * 4


class Asking(Selector):
    """A method of class B whose rows depend on the question."""

    served = "B"

    def __init__(self, side):
        super().__init__(side, "full")
        self.served, self.text = "B", "asking"

    def rows(self, pixels, questions=None):
        return [torch.ones(len(text), 128) for text in questions]


def test_what_sees_the_question_is_never_shared(side, picture):
    async def ask():
        metrics = Metrics()
        tower = Tower(RowCache(2**20), metrics)
        tower.start()
        selector = Asking(side)
        asked = [tower.rows(selector, picture, text) for text in ("a", "bbb", "a")]
        found = await asyncio.gather(*asked)
        await tower.stop()
        labels = {"method": "asking", "cache": "hit"}
        return found, metrics.registry.get_sample_value("dynllava_images_total", labels), tower

    found, hits, tower = asyncio.run(ask())
    assert [len(rows) for rows in found] == [1, 3, 1]
    assert not hits
    assert len(tower.cache) == 0


def test_the_cache_is_bounded_and_forgets_what_was_used_least_recently():
    cache = RowCache(3 * 40)
    for name in "abc":
        cache.put("m", name, torch.zeros(2, 5))
    cache.get("m", "a")
    cache.put("m", "d", torch.zeros(2, 5))
    assert [cache.get("m", name) is not None for name in "abcd"] == [True, False, True, True]
    cache.put("m", "large", torch.zeros(100, 5))
    assert cache.get("m", "large") is None
    assert cache.bytes <= cache.limit
    assert cache.get("other", "a") is None


def test_streams_pass_through_piece_by_piece(front, prompt):
    with httpx.stream("POST", front[0] + CHAT, json=prompt.body("full", 5, stream=True)) as reply:
        lines = [line for line in reply.iter_lines() if line]
    assert reply.headers["content-type"].startswith("text/event-stream")
    assert [json.loads(line[6:])["choices"][0]["delta"]["content"] for line in lines[:-1]] == [
        "word0 ", "word1 ", "word2 ",
    ]  # fmt: skip
    assert lines[-1] == "data: [DONE]"


def test_the_engines_refusal_passes_and_its_failure_is_a_503(front, picture):
    refused, failed = (
        post(front[0], Prompt("", picture, text).body("full", 5)) for text in ("refuse", "fail")
    )
    assert refused.status_code == 400
    assert refused.json()["error"]["message"] == "the engine refused (line one line two)"
    assert failed.status_code == 503
    text = {"model": "full", "prompt": "hello", "max_tokens": 3}
    got = post(front[0], text, COMPLETIONS).json()["got"]
    assert got == {"model": "model", "prompt": "hello", "max_tokens": 3}


@pytest.mark.parametrize("stream", [False, True])
def test_a_connection_that_breaks_before_an_answer_loses_no_request(front, picture, stream):
    """As one does that the engine closes, idle, at the moment it is used again."""
    reply = post(front[0], Prompt("", picture, f"drop {stream}").body("full", 5, stream=stream))
    assert reply.status_code == 200
    assert "[DONE]" in reply.text or "got" in reply.json()


def test_metrics_are_the_engines_and_ours(front, prompt):
    post(front[0], prompt.body("full", 5))
    text = httpx.get(front[0] + "/metrics").text
    assert "fake_tokens_total 7" in text
    assert "dynllava_engine_up 1.0" in text
    assert 'dynllava_tower_seconds_count{method="full"}' in text


def test_too_many_requests_at_a_time_are_turned_away(side, picture):
    with served(side, ["full"]) as (url, state):
        state.limits = Limits(requests=1, seconds=1.5)
        body = Prompt("", picture, "wait").body("full", 5)
        statuses = []
        first = threading.Thread(target=lambda: statuses.append(post(url, body).status_code))
        first.start()
        until = time.monotonic() + 10
        while not state.under_way and time.monotonic() < until:
            time.sleep(0.02)
        assert post(url, body).status_code == 429
        first.join()
        # Nobody waits for ever either.
        assert statuses == [504]


class Here(Server):
    """A server that runs already."""

    def __init__(self, url):
        self.url = url
        self.process = None


def test_a_dead_engine_is_noticed_by_clients_and_health_and_comes_back(side, picture):
    with served(side, ["full"]) as (url, state):
        waiting = Prompt("", picture, "wait")
        found = asyncio.run(killed(Here(url), "full", [waiting], "server", 6, afterwards="hello"))
        assert found.wrong == []
        assert found.outcomes == {"503": 3, "event": 3}
        assert found.health is not None
        assert found.answered == found.asked == 1
        assert metric(state, "engine_restarts_total") == 1


def test_an_engine_that_is_not_started_again_is_a_503(side, prompt):
    with served(side, ["full"], restart=False) as (url, state):
        state.engine.process.kill()
        until = time.monotonic() + 10
        while httpx.get(url + "/health").status_code == 200:
            assert time.monotonic() < until
            time.sleep(0.05)
        reply = post(url, prompt.body("full", 5))
        assert reply.status_code == 503
        assert "not started again" in reply.json()["error"]["message"]
        assert "not started again" in httpx.get(url + "/health").json()["why"]


def test_an_address_that_is_taken_is_one_line():
    import socket

    from dynllava.serving.run import listen

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"127.0.0.1:{port}: cannot be listened on"):
            listen("127.0.0.1", port)
