"""The two classes lmms-eval loads; they differ only in what their requests look like."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lmms_eval.api.instance import Instance

from dynllava.prompts import Turn

from .adapter import DynamicLlava, Job
from .prompts import Source, turns_from_context, turns_from_messages


class DynamicLlavaSimple(DynamicLlava):
    """Requests carry text and a function for the images (``--force_simple``)."""

    is_simple = True

    def jobs(self, requests: Sequence[Instance]) -> list[Job]:
        """Return the prompts; multi-round requests have a ``doc_to_text`` in between."""
        found = []
        for request in requests:
            context, options, doc_to_visual = request.args[:3]
            doc_id, task, split = request.args[-3:]
            found.append(
                self.question(Source(task, split, doc_id), context, doc_to_visual, options)
            )
        return found

    def next_turns(
        self, request: Instance, round_index: int, outputs: list[str], info: Any
    ) -> tuple[list[Turn] | None, list[str], Any]:
        """Ask the task's ``doc_to_text`` for the next question."""
        doc_to_text = request.args[3]
        doc_id, task, split = request.args[-3:]
        payload = doc_to_text(
            self.document(Source(task, split, doc_id)),
            previous_output=list(outputs),
            round_idx=round_index,
            previous_round_info=info,
        )
        if not isinstance(payload, tuple):
            return None, outputs, info
        visuals, context, finished, revised, info = payload
        outputs = outputs if revised is None else list(revised)
        return (None if finished else turns_from_context(context, visuals)), outputs, info


class DynamicLlavaChat(DynamicLlava):
    """Requests carry a function for the whole conversation."""

    is_simple = False

    def jobs(self, requests: Sequence[Instance]) -> list[Job]:
        """Return the prompts."""
        return [self._job(request) for request in requests]

    def _job(self, request: Instance) -> Job:
        context, doc_to_messages, options, doc_id, task, split = request.args
        source = Source(task, split, doc_id)

        def turns() -> list[Turn]:
            return turns_from_messages(doc_to_messages(self.document(source)))

        return Job(source, turns, options, len(context))

    def next_turns(
        self, request: Instance, round_index: int, outputs: list[str], info: Any
    ) -> tuple[list[Turn] | None, list[str], Any]:
        """Ask the task's ``doc_to_messages`` for the next round's conversation."""
        _, doc_to_messages, _, doc_id, task, split = request.args
        payload = doc_to_messages(
            self.document(Source(task, split, doc_id)),
            round_idx=round_index,
            previous_output=list(outputs),
            previous_round_info=info,
        )
        if not (isinstance(payload, tuple) and len(payload) == 4):
            return None, outputs, info
        messages, finished, revised, info = payload
        outputs = outputs if revised is None else list(revised)
        return (None if finished else turns_from_messages(messages)), outputs, info
