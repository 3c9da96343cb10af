"""Rows about every command's own arguments, and the files that it reads and writes."""

from __future__ import annotations

import json
import shutil

from tests.bad_inputs.harness import (
    GOLDEN,
    NESTED,
    Case,
    cut,
    folder,
    record,
    several,
    text,
    without,
)
from tests.bad_inputs.rows_checkpoints import picture

# ---------------------------------------------------------------- every command

NO_METHODS = several(text("m.py", "x = 1\n"))
cases = [
    Case("", "no command", "arguments are required: COMMAND"),
    Case("nothing", "an unknown command", "invalid choice: 'nothing'"),
    Case("methods --nothing", "an unknown option", "unrecognized arguments: --nothing"),
    Case("methods --plugin {tmp}/none.py", "the plugin is missing", "none.py"),
    Case("methods --plugin {tmp}", "the plugin is a folder", "{tmp}"),
    Case("methods --plugin {tmp}/m.txt", "the plugin is no Python", "m.txt", 2, text("m.txt", "x")),
    Case("methods --plugin {tmp}/m.py", "the plugin has no method", "m.py", 2, NO_METHODS),
    Case("methods --plugin {tmp}/m.py", "the plugin is torn", "m.py", 2, text("m.py", "def f(:")),
    Case("methods --plugin {tmp}/m.py", "the plugin fails", "m.py", 2, text("m.py", "1 / 0")),
    Case("methods --plugin {tmp}/m.py", "the plugin is not UTF-8", "m.py", 2,
         text("m.py", b"# \xff\xfe\n")),
    Case("methods --plugin {tmp}/m.py", "the plugin imports what is not there", "m.py", 2,
         text("m.py", "import no_such_package\n")),
]  # fmt: skip

# ---------------------------------------------------------------- texts of a method

# (what is wrong, the text, part of the line): the same in every command that takes one.
METHODS = [
    ("the method is unknown", "fastw", "did you mean fastv?"),
    ("the method is empty", "''", "accepted "),
    ("a parameter is unknown", "fastv:kk=2", "fastv has no parameter 'kk'"),
    ("a parameter is no pair", "fastv:k", "accepted is NAME=VALUE"),
    ("a parameter is given twice", "fastv:k=2,k=3", "k is given twice"),
    ("no parameter behind the colon", "fastv:", "accepted is NAME or NAME:PARAMETER=VALUE"),
    ("an integer is a fraction", "fastv:k=1.5", "k='1.5': accepted is an integer"),
    ("an integer is beyond reason", "fastv:k=99999999999999999999", "accepted is an integer"),
    ("a number is a text", "fastv:keep_ratio=half", "accepted is a number"),
    ("a number is NaN", "fastv:keep_ratio=nan", "accepted is a number"),
    ("a number is infinite", "random:output_keep_rate=inf", "accepted is a number"),
    ("a truth value is a number", "dynamic_llava:strict_official=7", "true or false"),
    ("a list is empty", "sparsevlm:pruning_layers=[]", "pruning_layers"),
    ("a part of a composition is empty", "fastv+", "accepted "),
    ("a composition of one method with itself", "fastv+fastv", "two different methods"),
]
# (what is wrong, the text, part of the line): what the sizes of a model refuse.
RANGES = [
    ("the version is unknown", "sparsevlm:version=9", "accepted are 1.5, rank, 2.0"),
    ("the setting is not published", "sparsevlm:retain=100", "accepted are 192"),
    ("both parts drop image tokens", "fastv+sparsevlm", "both parts drop image tokens"),
    ("a layer is beyond the model", "fastv:k=99", "k=99: accepted is a layer index from 1 to"),
    ("a layer is before the first", "fastv:k=0", "k=0: accepted is a layer index"),
    ("a share is 0", "fastv:keep_ratio=0", "keep_ratio=0.0: accepted is a number in (0, 1]"),
    ("a share is above 1", "uniform:image_keep_rate=1.5", "image_keep_rate=1.5: accepted"),
    ("a share is negative", "random:image_keep_rate=-0.1", "image_keep_rate=-0.1: accepted"),
    ("more tokens than an image has", "fastv:keep=99999", "keep=99999: accepted is a number"),
    ("no token at all", "fastv:keep=0", "keep=0: accepted"),
    ("the decoder is unknown", "fastv:decoder=magic", "decoder='magic': accepted are"),
    ("more heads than a layer has", "sparsevlm:version=2.0,priority_heads=999", "priority_heads"),
    ("no head", "sparsevlm:version=2.0,priority_heads=0", "priority_heads=0: accepted"),
    ("a pruning layer beyond the model", "sparsevlm:pruning_layers=1/2/99", "pruning_layers"),
    ("pruning layers that fall", "sparsevlm:pruning_layers=3/2/1", "pruning_layers"),
    ("budgets that grow", "sparsevlm:budgets=10/20/30", "cannot keep more than an earlier one"),
    ("two budgets for three layers", "sparsevlm:budgets=20/10", "2 budgets for 3"),
    ("a share of the cache above 1", "h2o:heavy=1.5", "heavy=1.5: accepted"),
    ("a negative share of the cache", "h2o:recent=-0.1", "recent=-0.1: accepted"),
    ("a share that keeps nothing", "h2o:recent=0.0001", "recent=0.0001: keeps none of"),
    ("a cache of nothing", "h2o:heavy=0,recent=0", "accepted is a budget above 0"),
    ("positions are unknown", "h2o:position=odd", "position='odd': accepted are"),
    ("the phase is unknown", "h2o:phase=odd", "phase='odd': accepted are"),
    ("full layers beyond the model", "h2o:first_full_layers=99", "first_full_layers=99: accepted"),
    ("the sparse layer is beyond", "dynamic_llava:sparse_layer=99", "sparse_layer=99: accepted"),
    ("the keep rate is 0", "dynamic_llava:vision_keep_rate=0", "vision_keep_rate=0.0: accepted"),
]
NO_MODEL = "--pretrained /nowhere/at/all"
cases += [
    Case(f"profile --no-record --model embedded --method {method}", wrong, line)
    for wrong, method, line in (*METHODS, *RANGES)
]
cases += [
    Case(f"compare {NO_MODEL} --methods {method}", f"before loading: {wrong}", line)
    for wrong, method, line in METHODS
]
cases += [
    Case(f"compare --suite smoke --methods full {method}", f"before loading: {wrong}", line)
    for wrong, method, line in RANGES
]
cases += [
    Case(f"bench --model mid-size --methods {method} --no-record", wrong, line)
    for wrong, method, line in METHODS
]
cases += [
    Case(f"model_args method={method}", wrong, line)
    for wrong, method, line in METHODS
    if "," not in method and "=" not in method and method != "''"
]
cases += [
    Case("show {tmp}/p.png what --pretrained /nowhere --method " + method, wrong, line, 2, picture)
    for wrong, method, line in METHODS
]

# ---------------------------------------------------------------- show

SHOW = "show {tmp}/p.png what"
NOWHERE = " --pretrained /nowhere"
cases += [
    Case("show", "no picture and no question", "arguments are required: image, question"),
    Case("show {tmp}/p.png", "no question", "arguments are required: question"),
    Case("show {tmp}/none.png what", "the picture is missing", "none.png"),
    Case("show {tmp} what", "the picture is a folder", "not a readable image"),
    Case(SHOW, "the picture is text", "p.png", 2, text("p.png", "hello")),
    Case(SHOW, "the picture is empty", "p.png", 2, text("p.png", "")),
    Case(SHOW, "the picture is torn", "p.png", 2, several(picture, cut("p.png", 0.6))),
    Case(SHOW + NOWHERE, "the model is missing", "/nowhere: no such folder", 2, picture),
    Case(SHOW + " --pretrained who/never", "the model cannot be reached", "who/never", 2, picture),
    Case(SHOW + " --pretrained {tmp}", "the folder is no checkpoint", "no config.json", 2, picture),
    Case(SHOW + " --pretrained {tmp}/p.png", "the model is a file", "p.png", 2, picture),
    Case(SHOW + " --pretrained ''", "the model is empty", "", 2, picture),
    Case(SHOW + " --dtype float8", "the dtype is unknown", "accepted are float32", 2, picture),
    Case(SHOW + " --device cuda", "there is no GPU", "device='cuda': not available", 2, picture),
    Case(SHOW + " --device cuda:77", "there is no such GPU", "not available here", 2, picture),
    Case(SHOW + " --device tpu9", "the device is unknown", "device='tpu9'", 2, picture),
    Case(SHOW + " --device mps", "the device is of others", "device='mps'", 2, picture),
    Case(SHOW + " --attention fast", "the kernel is unknown", "accepted are sdpa", 2, picture),
    Case(SHOW + " --dtype float16 --attention flash_attention_2", "flash on a CPU", "a CUDA", 2,
         picture),
    Case(SHOW + " --max-new-tokens 0", "no token to answer with", "number from 1", 2, picture),
    Case(SHOW + " --max-new-tokens -3", "a negative number of tokens", "number from 1", 2, picture),
    Case(SHOW + " --max-new-tokens ten", "a number as a word", "invalid int value", 2, picture),
    Case(SHOW + " --method-args k=2", "parameters without a method", "needs --method", 2, picture),
    Case(SHOW + " --method fastv:k=2 --method-args k=3", "a parameter twice", "given twice", 2,
         picture),
    Case(SHOW + " --method fastv --method-args k", "a parameter without a value", "NAME=VALUE", 2,
         picture),
    Case(SHOW + " --out {tmp}", "the target is a folder", "is a folder, a file name", 2, picture),
    Case(SHOW + " --out {tmp}/p.png/x.png", "the target's folder is a file", "is a file", 2,
         picture),
    Case(SHOW + " --out /proc/x.png", "the target cannot be written", "cannot be written", 1,
         picture),
    Case(SHOW + " --store {tmp}/p.png", "the store is a picture", "is a file, a folder", 2,
         picture),
    Case(SHOW + " --store /proc/none", "the store cannot be written", "cannot be written", 1,
         picture),
    Case(SHOW, "a bomb of a picture", "p.png", 2,
         text("p.png", bytes.fromhex("89504e470d0a1a0a0000000d49484452000fffff000fffff0802000000")
              + bytes(4))),
]  # fmt: skip

# ---------------------------------------------------------------- serve, serve-check


def exported(tmp) -> None:
    """Write what serving reads before it loads anything."""
    text(
        "m/config.json",
        json.dumps({"model_type": "llava", "text_config": {"num_hidden_layers": 4}}),
    )(tmp)
    text("m/dynllava.json", json.dumps({"method": "divprune", "dtype": "float32"}))(tmp)


NO_EXPORT = "accepted is a folder of dynllava export"
for name in ("serve", "serve-check"):
    cases += [
        Case(name, "no folder", "arguments are required: folder"),
        Case(name + " {tmp}/none", "the folder is missing", NO_EXPORT),
        Case(name + " {tmp}/m", "the folder is another checkpoint", NO_EXPORT, 2,
             text("m/config.json", "{}")),
        Case(name + " {tmp}/m", "dynllava.json is torn", "dynllava.json", 2,
             several(exported, text("m/dynllava.json", "{"))),
        Case(name + " {tmp}/m", "dynllava.json names no method", "method and dtype", 2,
             several(exported, text("m/dynllava.json", "{}"))),
        Case(name + " {tmp}/m", "config.json has no layers", "num_hidden_layers is expected", 2,
             several(exported, text("m/config.json", "{}"))),
        Case(name + " {tmp}/m --methods divprune fastv", "a method of class C", "of class C", 2,
             exported),
        Case(name + " {tmp}/m --methods h2o", "a method of class D", "of class D", 2, exported),
    ]  # fmt: skip
    cases += [
        Case(name + " {tmp}/m --methods " + method, wrong, line, 2, exported)
        for wrong, method, line in METHODS
    ]
cases += [
    Case("serve {tmp}/m --port 0", "no port", "accepted is a number from 1 to 65535", 2, exported),
    Case("serve {tmp}/m --port 65536", "no such port", "from 1 to 65535", 2, exported),
    Case("serve {tmp}/m --engine-port 0", "no port of the engine", "--engine-port 0", 2, exported),
    Case("serve {tmp}/m --batch 0", "an empty batch", "--batch 0: accepted", 2, exported),
    Case("serve {tmp}/m --threads 0", "no thread", "--threads 0: accepted", 2, exported),
    Case("serve {tmp}/m --cache-mb -1", "a negative cache", "--cache-mb -1: accepted", 2, exported),
    Case("serve {tmp}/m --max-images 0", "no picture", "--max-images 0: accepted", 2, exported),
    Case("serve {tmp}/m --max-seconds 0", "no time", "--max-seconds 0", 2, exported),
    Case("serve {tmp}/m --max-pixels nan", "pixels as a word", "invalid int value", 2, exported),
    Case("serve {tmp}/m --engine-url here:80", "a URL without scheme", "accepted is http://", 2,
         exported),
    Case("serve {tmp}/m --engine-args \"'\"", "a quotation that is not closed", "--engine-args", 2,
         exported),
    Case("serve-check {tmp}/m --prompts 0", "no prompt", "--prompts 0: accepted", 2, exported),
    Case("serve-check {tmp}/m --rounds 0", "no round", "--rounds 0: accepted", 2, exported),
    Case("serve-check {tmp}/m --budgets 0", "no image token", "--budgets 0: accepted", 2, exported),
    Case("serve-check {tmp}/m --concurrency 4 0", "nobody asks", "--concurrency 0", 2, exported),
    Case("serve-check {tmp}/m --only speed", "an unknown part", "invalid choice: 'speed'", 2,
         exported),
    Case("serve-check {tmp}/m --timed fastv", "a timed method of class C", "of class C", 2,
         exported),
]  # fmt: skip

# ---------------------------------------------------------------- compare, demo

COMPARE = "compare --suite smoke"
TASK = "task: mine\ndataset_path: parquet\n"
cases += [
    Case("compare --suite nope", "the suite is unknown", "unknown task 'nope'"),
    Case("compare --tasks nope", "the task is unknown", "unknown task 'nope'"),
    Case("compare --tasks pope nope", "the second task is unknown", "unknown task 'nope'"),
    Case("compare --tasks embedded_none", "the embedded task is unknown", "embedded_none"),
    Case("compare --tasks pope --suite smoke", "tasks and a suite", "not allowed with"),
    Case("compare --tasks", "no task", "expected at least one argument"),
    Case(COMPARE + " --data {tmp}/none", "the data folder is missing", "none: no such folder"),
    Case(COMPARE + " --data {tmp}/a", "the data folder is a file", "no such folder", 2,
         text("a", "x")),
    Case(COMPARE + " --data {tmp}/a", "the data folder is empty", "no task file", 2, folder("a")),
    Case(COMPARE + " --data {tmp}/a", "the data folder holds other files", "no task file", 2,
         text("a/pope.parquet", "x")),
    Case("compare --tasks mine --data {tmp}/a", "the task's data are missing",
         "its data cannot be loaded", 1,
         text("a/mine.yaml", TASK + "test_split: test\ndataset_kwargs:\n  data_files:\n"
              "    test: none.parquet\n"), leaves="results"),
    Case("compare --tasks other --data {tmp}/a", "the folder holds another task",
         "unknown task 'other'", 2, text("a/mine.yaml", TASK)),
    Case(COMPARE + " --limit 0", "no document", "accepted is a number from 1"),
    Case(COMPARE + " --limit -5", "a negative number of documents", "accepted is a number from 1"),
    Case(COMPARE + " --limit all", "documents as a word", "invalid int value: 'all'"),
    Case(COMPARE + " --batch-size 0", "an empty batch", "accepted are auto and numbers from 1"),
    Case(COMPARE + " --batch-size -1", "a negative batch", "auto"),
    Case(COMPARE + " --batch-size big", "a batch as a word", "accepted are auto and numbers"),
    Case(COMPARE + " --batch-size 2.5", "a fraction of a batch", "accepted are auto and numbers"),
    Case(COMPARE + " --seeds 0", "no seed", "--seeds 0: accepted is a number from 1"),
    Case(COMPARE + " --budgets 0", "a budget of nothing", "accepted is a finite number above 0"),
    Case(COMPARE + " --budgets -10", "a negative budget", "above 0"),
    Case(COMPARE + " --budgets nan", "a budget that is no number", "accepted is a finite number"),
    Case(COMPARE + " --budgets inf", "a budget without end", "accepted is a finite number"),
    Case(COMPARE + " --budgets many", "a budget as a word", "invalid float value: 'many'"),
    Case(COMPARE + " --methods fastv --budgets 100000", "a budget beyond the image", "100000"),
    Case(COMPARE + " --methods fastv --budgets 0.001", "a budget out of reach", "0.001"),
    Case(COMPARE + " --param k=2", "a parameter of no method", "accepted is METHOD.NAME=VALUE"),
    Case(COMPARE + " --param fastv.k", "a parameter without a value", "accepted is METHOD.NAME"),
    Case(COMPARE + " --param fastv.k=2", "a parameter of an absent method", "not among the"),
    Case(COMPARE + " --methods fastv:k=2 --param fastv.k=3", "a parameter twice", "already"),
    Case(COMPARE + " --methods fastv --param fastv.k=x", "a parameter as a word", "an integer"),
    Case(COMPARE + " --methods fastv --param fastv.keep_ratio=nan", "a parameter that is NaN",
         "accepted is a number"),
    Case(COMPARE + " --methods uniform --param uniform.layer=99", "a layer beyond the model",
         "layer=99: accepted is a layer index"),
    Case(COMPARE + " --prompts mine", "prompts are unknown", "invalid choice: 'mine'"),
    Case(COMPARE + " --dtype int8", "the dtype is unknown", "dtype='int8': accepted are"),
    Case(COMPARE + " --device cuda", "there is no GPU", "device='cuda': not available here"),
    Case(COMPARE + " --device abc", "the device is unknown", "device='abc'"),
    Case(COMPARE + " --attention fast", "the kernel is unknown", "accepted are sdpa"),
    Case(COMPARE + " --device cpu --dtype float16 --attention flash_attention_2",
         "flash on a CPU", "accepted is a CUDA device"),
    Case(COMPARE + " --pretrained {tmp}/none", "the model is missing", "none: no such folder"),
    Case(COMPARE + " --pretrained who/never", "the model cannot be reached", "who/never"),
    Case(COMPARE + " --pretrained {tmp}", "the folder is no checkpoint", "no config.json"),
    Case(COMPARE + " --out {tmp}/a", "the store is a file", "is a file, a folder is expected", 2,
         text("a", "notes")),
    Case(COMPARE + " --out {tmp}/a/b/c", "the store's parent is a file", "is a file, a folder", 2,
         text("a", "notes")),
    Case(COMPARE + " --out /proc/none", "the store cannot be written", "cannot be written", 1),
    Case(COMPARE + " --launcher slurm", "the launcher is unknown", "invalid choice: 'slurm'"),
    Case(COMPARE + " --launcher accelerate --num-processes 0", "no process", "--num-processes 0"),
    Case(COMPARE + " --launcher accelerate --launcher-args '\"'", "a quote is open",
         "--launcher-args"),
    Case("demo --limit 0", "no sample", "accepted is a number from 1"),
    Case("demo --limit few", "samples as a word", "invalid int value"),
    Case("demo --budgets 0", "a budget of nothing", "accepted is a finite number above 0"),
    Case("demo --budgets nan", "a budget that is no number", "accepted is a finite number above"),
    Case("demo --budgets 100000", "a budget beyond the image", "100000"),
    Case("demo --methods fastw", "a method is unknown", "did you mean fastv?"),
    Case("demo --methods fastv:k=77", "a layer beyond the model", "k=77"),
    Case("demo --pretrained /nowhere", "the model is missing", "/nowhere: no such folder"),
    Case("demo --out {tmp}/a", "the target is a file", "is a file, a folder", 2, text("a", "x")),
    Case("demo --out /proc/none", "the target cannot be written", "cannot be written", 1),
]  # fmt: skip

# ---------------------------------------------------------------- profile, bench

PROFILE = "profile --no-record"
BENCH = "bench --no-record --methods full"
CFG = "m/config.json"
LLAMA = {
    "model_type": "llama",
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "vocab_size": 100,
}


def llama(**changes):
    """Return a config.json of a small LLaMA, with changes."""
    return text(CFG, json.dumps({**LLAMA, **changes}))


cases += [
    Case(PROFILE + " --model nope", "the model is unknown", "accepted are llava-1.5-7b"),
    Case(PROFILE + " --model {tmp}", "the folder has no config", "config.json"),
    Case(PROFILE + " --model {tmp}/m", "the config is torn", "not valid JSON", 2, text(CFG, "{")),
    Case(PROFILE + " --model {tmp}/m", "the config is a list", "object is", 2, text(CFG, "[]")),
    Case(PROFILE + " --model {tmp}/m", "the config is no UTF-8", "UTF-8", 2, text(CFG, b"\xff")),
    Case(PROFILE + " --model {tmp}/m", "the config is nested", "too deeply", 2, text(CFG, NESTED)),
    Case(PROFILE + " --model {tmp}/m", "the config is empty", "not a LLaVA", 2, text(CFG, "{}")),
    Case(PROFILE + " --model {tmp}/m", "the config is a BERT's", "not a LLaVA or LLaMA config", 2,
         llama(model_type="bert")),
    Case(PROFILE + " --model {tmp}/m", "a million layers", "from 1 to 1000", 2,
         llama(num_hidden_layers=1_000_000)),
    Case(PROFILE + " --model {tmp}/m", "no layer", "num_hidden_layers=0", 2,
         llama(num_hidden_layers=0)),
    Case(PROFILE + " --model {tmp}/m", "no head", "num_attention_heads=0", 2,
         llama(num_attention_heads=0)),
    Case(PROFILE + " --model {tmp}/m", "a size as a text", "hidden_size='64'", 2,
         llama(hidden_size="64")),
    Case(PROFILE + " --prompt-tokens 0", "an empty prompt", "-tokens 0: accepted"),
    Case(PROFILE + " --prompt-tokens -4", "a negative prompt", "-tokens -4: accepted"),
    Case(PROFILE + " --prompt-tokens x", "a prompt as a word", "invalid int value"),
    Case(PROFILE + " --prompt-tokens 10000000000000", "an absurd prompt", "10000000000000"),
    Case(PROFILE + " --output-tokens 0", "no output", "output"),
    Case(PROFILE + " --output-tokens -1", "negative output", "output"),
    Case(PROFILE + " --output-tokens 10000000000000", "absurd output", "10000000000000"),
    Case(PROFILE + " --batch 0", "an empty batch", "batch"),
    Case(PROFILE + " --batch -2", "a negative batch", "batch"),
    Case(PROFILE + " --batch 10000000000000", "an absurd batch", "10000000000000"),
    Case(PROFILE + " --dtype int3", "the dtype is unknown", "dtype 'int3': accepted are"),
    Case(PROFILE + " --realised-output-keep 1.5", "a share above 1", "a share in [0, 1]"),
    Case(PROFILE + " --realised-output-keep -1", "a negative share", "[0, 1]"),
    Case(PROFILE + " --realised-output-keep nan", "a share that is NaN", "a share in [0, 1]"),
    Case(PROFILE + " --convention mine", "the convention is unknown", "mine"),
    Case(PROFILE + " --unit GMAC", "the unit is unknown", "invalid choice: 'GMAC'"),
    Case(PROFILE + " --counter hand", "the counter is unknown", "invalid choice: 'hand'"),
    Case(PROFILE + " --device a1000", "the device is unknown", "device 'a1000': accepted are"),
    Case(PROFILE + " --device a100-80g --dtype float8", "a dtype without a peak", "float8"),
    Case(PROFILE + " --compute-efficiency 0", "no efficiency", "share in (0, 1]"),
    Case(PROFILE + " --compute-efficiency 2", "efficiency above 1", "share in (0, 1]"),
    Case(PROFILE + " --bandwidth-efficiency nan", "efficiency that is NaN", "share in (0, 1]"),
    Case(PROFILE + " --json --csv", "two formats", "not allowed with argument"),
    Case(PROFILE + " --method fastv --method-args k", "a parameter without value", "NAME=VALUE"),
    Case(PROFILE + " --method fastv:k=2 --method-args k=3", "a parameter twice", "given twice"),
    Case("profile --store {tmp}/a", "the store is a file of notes", "is a file", 2,
         text("a", "my notes\n")),
    Case("profile --store {tmp}/a.jsonl", "the store is another's JSON lines", "no run records", 2,
         text("a.jsonl", '{"text": "hello"}\n')),
    Case("profile --store {tmp}/a.jsonl", "the store is text called .jsonl", "no run records", 2,
         text("a.jsonl", "hello\n")),
    Case("profile --store /proc/none", "the store cannot be written", "cannot be written", 1),
    Case("profile --store {tmp}/a/b", "the store's parent is a file", "is a file", 2,
         text("a", "x")),
    Case(BENCH + " --model nope", "the model is unknown", "accepted are llava-1.5-7b"),
    Case(BENCH + " --batch 0", "an empty batch", "--batch '0': accepted are positive integers"),
    Case(BENCH + " --batch 1,x", "a batch as a word", "--batch '1,x': accepted are"),
    Case(BENCH + " --batch 1,,2", "a gap in a list", "--batch '1,,2': accepted are"),
    Case(BENCH + " --batch ''", "an empty list", "--batch '': accepted are"),
    Case(BENCH + " --batch 100000000000", "an absurd batch", "100000000000"),
    Case(BENCH + " --output-tokens 0", "no output", "--output-tokens '0': accepted are"),
    Case(BENCH + " --output-tokens 1e3", "a number with an exponent", "--output-tokens '1e3'"),
    Case(BENCH + " --output-tokens 100000000000", "absurd output", "100000000000"),
    Case(BENCH + " --repeats 0", "no round", "--repeats 0: accepted is"),
    Case(BENCH + " --repeats -1", "a negative number of rounds", "--repeats -1: accepted is"),
    Case(BENCH + " --warmup -1", "a negative warm-up", "--warmup -1: accepted is"),
    Case(BENCH + " --prompt-tokens 0", "an empty prompt", "-tokens 0: accepted"),
    Case(BENCH + " --prompt-tokens 1000000000000", "an absurd prompt", "1000000000000"),
    Case(BENCH + " --threads 0", "no thread", "threads=0"),
    Case(BENCH + " --threads -3", "negative threads", "-3"),
    Case(BENCH + " --device cuda", "there is no GPU", "device='cuda': not available here"),
    Case(BENCH + " --device abc", "the device is unknown", "device='abc'"),
    Case(BENCH + " --dtype int8", "the dtype is unknown", "int8"),
    Case(BENCH + " --attention fast", "the kernel is unknown", "accepted are sdpa"),
    Case(BENCH + " --dtype float16 --attention flash_attention_2", "flash on a CPU",
         "accepted is a CUDA device"),
    Case(BENCH + " --stock none", "the stock cache is unknown", "invalid choice: 'none'"),
    Case(BENCH + " --clock sun", "the clock is unknown", "invalid choice: 'sun'"),
    Case("bench --methods full --store {tmp}/a", "the store is a file of notes", "is a file", 2,
         text("a", "my notes\n")),
    Case("bench --methods full --store /proc/none", "the store cannot be written", "/proc/none", 1),
]  # fmt: skip

# ---------------------------------------------------------------- conformance

INDEX = "g/cases.json"
VISION = {
    "name": "v",
    "kind": "vision",
    "file": "vision_features.safetensors",
}


def golden(*edits, keep=("vision_features",)):
    """Copy the golden folder of Dynamic-LLaVA with one case (and its own files), then edit it."""

    def make(tmp):
        source = GOLDEN / "dynamic_llava"
        (tmp / "g").mkdir()
        index = json.loads((source / "cases.json").read_text())
        index["cases"] = [case for case in index["cases"] if case["name"] in keep]
        (tmp / INDEX).write_text(json.dumps(index))
        for case in index["cases"]:
            shutil.copy(source / case["file"], tmp / "g" / case["file"])
        several(*edits)(tmp)

    return make


def case_with(**changes):
    """Return an edit of the single case of the index."""

    def make(tmp):
        index = json.loads((tmp / INDEX).read_text())
        index["cases"][0].update(changes)
        (tmp / INDEX).write_text(json.dumps(index))

    return make


def recorded(change):
    """Return an edit of the recorded tensors."""

    def make(tmp):
        from safetensors.torch import load_file, save_file

        path = tmp / "g" / "vision_features.safetensors"
        state = load_file(path)
        change(state)
        save_file({name: tensor.contiguous() for name, tensor in state.items()}, path)

    return make


GOLD = "conformance {tmp}/g"
SET = "{golden}/dynamic_llava"
cases += [
    Case("conformance", "no folder", "arguments are required: folder"),
    Case(GOLD, "the folder is missing", "no cases.json, so not a golden folder"),
    Case(GOLD, "the folder has no index", "no cases.json", 2, folder("g")),
    Case(GOLD, "the folder is a file", "no cases.json", 2, text("g", "x")),
    Case(GOLD, "the index is torn", "not valid JSON", 2, text(INDEX, '{"cases": [')),
    Case(GOLD, "the index is a list", "a JSON object is expected", 2, text(INDEX, "[]")),
    Case(GOLD, "the index is not UTF-8", "not UTF-8", 2, text(INDEX, b"\xff\xff")),
    Case(GOLD, "the index is nested", "nested too deeply", 2, text(INDEX, NESTED)),
    Case(GOLD, "the index has no cases", "a list 'cases' is expected", 2, text(INDEX, "{}")),
    Case(GOLD, "the cases are an object", "a list 'cases'", 2, text(INDEX, '{"cases": {}}')),
    Case(GOLD, "the list of cases is empty", "nothing would be", 2, text(INDEX, '{"cases": []}')),
    Case(GOLD, "a case is a number", "case 0 is no object", 2, text(INDEX, '{"cases": [3]}')),
    Case(GOLD, "a case has no name", "no object with a 'name'", 2, text(INDEX, '{"cases": [{}]}')),
    Case(GOLD + " --case v2", "the case is unknown", "--case 'v2': accepted are v", 2,
         text(INDEX, json.dumps({"cases": [VISION]}))),
    Case(GOLD, "the case's file is missing", "case vision_features: FileNotFoundError", 2,
         golden(without("g/vision_features.safetensors"))),
    Case(GOLD, "the case's file is torn", "case vision_features: SafetensorError", 2,
         golden(cut("g/vision_features.safetensors"))),
    Case(GOLD, "the case's file is text", "case vision_features: SafetensorError", 2,
         golden(text("g/vision_features.safetensors", "hello"))),
    Case(GOLD, "the checkpoint is missing", "no such folder", 2, golden()),
    Case(SET + " --json {tmp}", "no command before the set", "invalid choice"),
    Case("conformance " + SET + " --json {tmp}", "the certificate is a folder", "a file name"),
    Case("conformance " + SET + " --json {tmp}/a/x", "the certificate's folder is a file",
         "is a file, a folder is expected", 2, text("a", "x")),
    Case("conformance " + SET + " --json /proc/x.json", "the certificate cannot be written",
         "cannot be written", 1),
]  # fmt: skip

# ---------------------------------------------------------------- results: table, report, ...

STORE = "r/records.jsonl"
NEWER = record(schema_version=99)
for command in ("table ours --results {tmp}/r", "regress {tmp}/r {tmp}/r",
                "regress --history {tmp}/r", "report {tmp}/o.html --results {tmp}/r",
                "pareto {tmp}/o --results {tmp}/r"):  # fmt: skip
    cases += [
        Case(command, "the results are missing", "no such file or folder"),
        Case(command, "a record is of a newer schema", "schema_version 99 is unknown", 1,
             text(STORE, NEWER)),
    ]  # fmt: skip
LINES = [
    ("a line is torn", '{"schema_version": 2, "rec'),
    ("a line is text", "hello\n"),
    ("a line is not UTF-8", b"\xff\xfe\n"),
    ("a line is a list", "[1]\n"),
    ("a line is null", "null\n"),
    ("a line is nested beyond reason", NESTED + "\n"),
    ("a line is somebody else's", '{"text": "hello"}\n'),
    ("a record lacks its model", json.dumps({k: v for k, v in json.loads(record()).items()
                                             if k != "model"}) + "\n"),
    ("a record has a field too much", record(extra=1)),
    ("a record's kind is unknown", record(kind="dream")),
    ("a record's status is unknown", record(status="maybe")),
    ("a record failed without an error", record(status="failed")),
    ("a record's score is NaN", record(scores={"accuracy": {"value": float("nan"), "stderr": None,
                                                            "n": 1}})),
    ("a record's score is a text", record(scores={"accuracy": {"value": "1", "stderr": None,
                                                               "n": 1}})),
    ("a record's scores are a list", record(scores=[1])),
    ("a record's parameters are nested", record(method={
        "name": "full", "label": "", "budget": None,
        "parameters": {"a": json.loads("[" * 200 + "]" * 200)}})),
    ("a record's id is a path", record(record_id="../../x")),
    ("a record's metric has no score", record(scores={})),
    ("an evaluation has no task", record(task=None)),
    ("a record's samples lie elsewhere", record(samples_file=7)),
]  # fmt: skip
cases += [
    Case("table ours --results {tmp}/r", wrong, "no evaluation record", 1, text(STORE, line))
    for wrong, line in LINES
]
cases += [
    Case("regress --history {tmp}/r", wrong, "no successful record", 1, text(STORE, line))
    for wrong, line in LINES[:8]
]
POLICY = "regress {tmp}/r {tmp}/r --policy {tmp}/p.yaml"
POLICIES = [
    ("the policy is torn", "a: [", "cannot read the policy"),
    ("the policy is a list", "- a\n", "a mapping is expected"),
    ("the policy is not UTF-8", b"\xff\xff", "cannot read the policy"),
    ("a key is unknown", "alpa: 0.1\n", "'alpa' is unknown"),
    ("a key is a number", "7: 1\n", "7 is unknown"),
    ("alpha is a text", "alpha: small\n", "of the wrong type"),
    ("alpha is 0", "alpha: 0\n", "alpha"),
    ("alpha is 1", "alpha: 1.0\n", "alpha"),
    ("alpha is NaN", "alpha: .nan\n", "of the wrong type"),
    ("power is above 1", "power: 1.5\n", "power"),
    ("the tolerance is negative", "tolerated_drop: -1\n", "tolerated_drop"),
    ("the tolerance is infinite", "tolerated_drop: .inf\n", "of the wrong type"),
    ("processes are a fraction", "least_processes: 2.5\n", "of the wrong type"),
    ("what is ignored is a text", "ignore: pope\n", "of the wrong type"),
    ("what is ignored are numbers", "ignore: [1]\n", "of the wrong type"),
]
cases += [
    Case(POLICY, wrong, line, 2, several(text(STORE, record()), text("p.yaml", content)))
    for wrong, content, line in POLICIES
]


def overlay(**changes):
    """Return a valid store with one overlay that is changed."""

    def make(tmp):
        import base64
        import io

        from PIL import Image

        buffer = io.BytesIO()
        Image.new("RGB", (4, 4)).save(buffer, "PNG")
        value = {
            "overlay": 1, "method": "full", "label": "full", "model": "m", "grid": 2, "kept": [0],
            "image": base64.b64encode(buffer.getvalue()).decode(), "question": "q", "answer": "a",
            "words": [["a", True]],
        } | changes  # fmt: skip
        text(STORE, record())(tmp)
        text("r/overlays/a.json", json.dumps(value))(tmp)

    return make


REPORT = "report {tmp}/o.html --results {tmp}/r"
OVERLAYS = [
    ("an overlay is torn", several(text(STORE, record()), text("r/overlays/a.json", "{"))),
    ("an overlay is a list", several(text(STORE, record()), text("r/overlays/a.json", "[]"))),
    ("an overlay is not UTF-8", several(text(STORE, record()), text("r/overlays/a.json", b"\xff"))),
    ("an overlay is nested", several(text(STORE, record()), text("r/overlays/a.json", NESTED))),
    ("an overlay's grid is a text", overlay(grid="2")),
    ("an overlay's grid is absurd", overlay(grid=10**9)),
    ("an overlay's grid is 0", overlay(grid=0, kept=[])),
    ("an overlay keeps what is not there", overlay(kept=[99])),
    ("an overlay keeps texts", overlay(kept=["a"])),
    ("an overlay's label is a number", overlay(label=3)),
    ("an overlay's question is a list", overlay(question=["q"])),
    ("an overlay's words are numbers", overlay(words=[1, 2])),
    ("an overlay's picture is no base64", overlay(image="***")),
    ("an overlay's picture is no PNG", overlay(image="aGVsbG8=")),
    ("an overlay's picture is torn", overlay(image="iVBORw0KGgo=")),
    ("an overlay is of another version", overlay(overlay=9)),
]
cases += [
    Case("table 0", "a table below the first", "table"),
    Case("table 18", "a table beyond the last", "18"),
    Case("table x", "a table as a word", "accepted are 1 to 17, all, ours and across"),
    Case("table -1", "a negative table", "accepted are 1 to 17"),
    Case("table 1.5", "half a table", "accepted are 1 to 17, all, ours and across"),
    Case("table 99999999999999999999", "an absurd table", "99999999999999999999"),
    Case("table 1 --format pdf", "the format is unknown", "invalid choice: 'pdf'"),
    Case("table 1 --out {tmp}", "the target is a folder", "is a folder, a file name is expected"),
    Case("table 1 --out {tmp}/a/b", "the target's folder is a file", "a", 1, text("a", "x")),
    Case("table 1 --out /proc/t.md", "the target cannot be written", "cannot write", 1),
    Case("table 1 --out {tmp}/t.md", "the disk is full", "cannot write", 1, None, full=10),
    Case("table ours --results {tmp}/r", "there are no records", "no evaluation record", 1,
         folder("r")),
    Case("table 1 --with-ours --results {tmp}/none", "the results are missing", "no such file"),
    Case("pareto {tmp}/o --cost money", "the cost is unknown", "money"),
    Case("pareto {tmp}/o --source mine", "the source is unknown", "mine"),
    Case("pareto {tmp}/o --model none", "no such model", "model 'none': accepted are", 2),
    Case("pareto {tmp}/o --average most", "the average is unknown", "invalid choice: 'most'"),
    Case("pareto {tmp}/a", "the target is a file", "", 1, text("a", "x")),
    Case("pareto /proc/none", "the target cannot be written", "cannot write", 1),
    Case("report", "no target", "arguments are required: OUT.html"),
    Case("report {tmp}/o.html --json --quiet", "two forms at once", "not allowed with argument"),
    Case("choose --model llava-hf/llava-9.9-7b-hf", "a hub name of no known size", "accepted are"),
    Case("new-method my_method --out {tmp}/a --json", "no such folder", "no such folder"),
    Case("report {tmp}", "the target is a folder", "ends in .html is expected"),
    Case("report {tmp}/a/o.html", "the target's folder is a file", "", 1, text("a", "x")),
    Case("report /proc/o.html", "the target cannot be written", "cannot", 1),
    Case("regress", "nothing to compare", "BASE and CANDIDATE are needed"),
    Case("regress {tmp}/r", "one store only", "BASE and CANDIDATE are needed", 2,
         text(STORE, record())),
    Case("regress {tmp}/none {tmp}/r", "the base is missing", "none: no such file or folder", 2,
         text(STORE, record())),
    Case("regress {tmp}/r {tmp}/none", "the candidate is missing", "none: no such file", 2,
         text(STORE, record())),
    Case("regress {tmp}/r {tmp}/r --policy {tmp}/none", "the policy is missing", "cannot read the",
         2, text(STORE, record())),
    Case("regress --history {tmp}/r", "the history is empty", "no successful record", 1,
         folder("r")),
    Case("regress --history {tmp}/r --out {tmp}/a", "the history's folder is a file", "a", 1,
         several(text(STORE, record()), text("a", "x"))),
]  # fmt: skip
survived = [Case(REPORT, wrong, "a.json", 0, make) for wrong, make in OVERLAYS]
"""Rows that end well: the report is written, and a line says what was left out."""

# ---------------------------------------------------------------- train

TRAIN = "train embedded run.device=cpu"
SECTIONS = [
    ("a key is unknown", "optim.lr=1", "unknown key optim.lr"),
    ("a section is unknown", "optimizer.lr=1", "unknown key optimizer"),
    ("an override is no pair", "optim.learning_rate", "overrides are key=value"),
    ("an override has no key", "=3", "overrides are key=value"),
    ("an override goes through a value", "optim.learning_rate.x=1", "holds a value"),
    ("an override is no YAML", "data.path=[", "the value is no YAML"),
    ("a section is a value", "optim=3", "optim: accepted is a section"),
    ("the learning rate is infinite", "optim.learning_rate=.inf", "accepted is a finite number"),
    ("the learning rate is NaN", "optim.learning_rate=.nan", "accepted is a finite number"),
    ("the learning rate is negative", "optim.learning_rate=-1", "accepted is a finite number"),
    ("the learning rate is a word", "optim.learning_rate=fast", "learning_rate='fast'"),
    ("the learning rate is a list", "optim.learning_rate=[1]", "learning_rate=[1]"),
    ("the predictors' rate is infinite", "optim.predictor_learning_rate=.inf", "finite number"),
    ("the decay is infinite", "optim.weight_decay=.inf", "accepted is a finite number"),
    ("the clipping is NaN", "optim.max_grad_norm=.nan", "accepted is a finite number"),
    ("the warm-up is everything", "optim.warmup_ratio=1", "accepted is [0, 1)"),
    ("the warm-up is negative", "optim.warmup_ratio=-0.1", "accepted is [0, 1)"),
    ("the temperature is 0", "optim.tau_end=0", "accepted is a finite number above 0"),
    ("the temperature is infinite", "optim.tau_start=.inf", "accepted is a finite number above 0"),
    ("the schedule is unknown", "optim.scheduler=zigzag", "optim.scheduler='zigzag'"),
    ("the optimiser is unknown", "optim.optimizer=magic", "optim.optimizer='magic'"),
    ("a truth value is a word", "optim.train_language=maybe", "train_language='maybe'"),
    ("the batch is 0", "run.global_batch=0", "run.global_batch=0: accepted is 1 or more"),
    ("the batch is a fraction", "run.global_batch=2.5", "run.global_batch=2.5: accepted is int"),
    ("the batch is a truth value", "run.device_batch=true", "run.device_batch=True"),
    ("the batches do not fit", "run.global_batch=7", "run.global_batch=7 is no multiple"),
    ("epochs are 0", "run.epochs=0", "run.epochs=0.0: accepted"),
    ("epochs are infinite", "run.epochs=.inf", "run.epochs=inf: accepted"),
    ("the seed is negative", "run.seed=-1", "run.seed=-1: accepted"),
    ("the workers are negative", "run.workers=-1", "run.workers=-1: accepted"),
    ("steps between checkpoints are 0", "run.save_steps=0", "run.save_steps=0: accepted"),
    ("kept checkpoints are 0", "run.save_limit=0", "run.save_limit=0: accepted"),
    ("the dtype is unknown", "run.dtype=int8", "dtype='int8': accepted are"),
    ("the kernel is unknown", "run.attention=fast", "accepted are sdpa"),
    ("the device is unknown", "run.device=abc", "run.device='abc'"),
    ("the length is 0", "data.max_length=0", "data.max_length=0: accepted"),
    ("the template is unknown", "data.template=mine", "mine"),
    ("the aspect is unknown", "data.image_aspect=stretch", "image_aspect=stretch: accepted are"),
    ("there is no model", "model=", "model"),
    ("the model is missing", "model=/nowhere", "/nowhere: no such folder"),
    ("there are no data", "data.path=", "data.path=None: accepted is str"),
    ("the method is unknown", "method=fastw", "did you mean fastv?"),
    ("a keep rate is 0", "sparsity.vision_keep_rate=0", "vision_keep_rate"),
    ("a keep rate is 2", "sparsity.output_keep_rate=2", "output_keep_rate"),
    ("both keep rates are 1", "sparsity.vision_keep_rate=1 sparsity.output_keep_rate=1",
     "no predictor would be trained"),
    ("the sparse layer is beyond the model", "sparse_layer=99", "sparse_layer=99"),
    ("the predictor's size is unknown", "predictor.depth=3", "unknown key predictor.depth"),
    ("the predictor's size is 0", "predictor.nhead=0", "predictor.nhead=0: accepted is 1 or more"),
    ("the predictor's size is a fraction", "predictor.d_model=1.5", "accepted is int"),
]  # fmt: skip
cases += [
    Case(f"{TRAIN} data.path=embedded:1:4 {override} run.output_dir={{tmp}}/out", wrong, line)
    for wrong, override, line in SECTIONS
]
CONFIG = "train {tmp}/c.yaml"
cases += [
    Case("train", "no configuration", "arguments are required: config"),
    Case("train nope", "the configuration is unknown", "no configuration nope: give a YAML file"),
    Case(CONFIG, "the configuration is torn", "c.yaml", 2, text("c.yaml", "a: [")),
    Case(CONFIG, "the configuration is a list", "not a mapping", 2, text("c.yaml", "- a")),
    Case(CONFIG, "the configuration is a text", "not a mapping", 2, text("c.yaml", "hello")),
    Case(CONFIG, "the configuration is not UTF-8", "c.yaml", 2, text("c.yaml", b"\xff\xfe")),
    Case(CONFIG, "the configuration is empty", "model is empty", 2, text("c.yaml", "")),
    Case(CONFIG, "a key is a number", "unknown key 7", 2, text("c.yaml", "7: 1")),
    Case(CONFIG, "a section is a list", "accepted is a section", 2, text("c.yaml", "run: [1]")),
    Case(CONFIG, "the configuration makes objects", "c.yaml", 2,
         text("c.yaml", "model: !!python/object/apply:os.system ['true']")),
    Case(TRAIN + " data.path=embedded:1:4 run.output_dir={tmp}/out --resume", "nothing to resume",
         "holds no run to resume"),
    Case(TRAIN + " data.path=embedded:1:4 run.output_dir={tmp}/out", "the target is a file",
         "is a file, a folder is expected", 2, text("out", "x")),
    Case(TRAIN + " data.path=embedded:1:4 run.output_dir=/proc/out", "the target cannot be written",
         "cannot be written", 1),
    Case("train embedded data.path=embedded:1:4 --dry-run --processes 0", "no process",
         "--processes 0"),
    Case("train embedded --dry-run --processes x", "processes as a word", "invalid int value"),
]  # fmt: skip
ANSWER = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]
DATA = [
    ("the data are missing", "d.json", None, "cannot be read"),
    ("the data are torn", "d.json", "[{", "d.json"),
    ("the data are not UTF-8", "d.json", b"\xff\xff", "cannot be read"),
    ("the data are an object", "d.json", "{}", "holds no list of records"),
    ("the data are empty", "d.json", "[]", "the data holds no records"),
    ("the data are nested", "d.json", NESTED, "d.json"),
    ("a line is torn", "d.jsonl", '{"a": 1}\n{"a"', "d.jsonl"),
    ("the lines are none", "d.jsonl", "\n", "the data holds no records"),
    ("a record is a number", "d.json", "[3]", "record 0: no conversations"),
    ("a record has no conversation", "d.json", '[{"id": "a"}]', "record 0 (id a): no conversat"),
    ("a conversation is a text", "d.json", '[{"conversations": "hello"}]', "record 0"),
    ("a conversation is empty", "d.json", '[{"conversations": []}]', "record 0"),
    ("a turn is a number", "d.json", '[{"conversations": [1, 2]}]', "record 0"),
    ("a turn has no text", "d.json", '[{"conversations": [{"from": "human"}]}]', "record 0"),
    ("a picture without its placeholder", "d.json",
     json.dumps([{"image": "a.png", "conversations": ANSWER}]), "0 image placeholders, 1 images"),
    ("a placeholder without its picture", "d.json",
     json.dumps([{"conversations": [{"from": "human", "value": "<image>\nq"}, ANSWER[1]]}]),
     "1 image placeholders, 0 images"),
    ("a picture that is missing", "d.json",
     json.dumps([{"image": "a.png",
                  "conversations": [{"from": "human", "value": "<image>\nq"}, ANSWER[1]]}]),
     "image files are not in"),
    ("a picture that lies elsewhere", "d.json",
     json.dumps([{"image": "../../a.png",
                  "conversations": [{"from": "human", "value": "<image>\nq"}, ANSWER[1]]}]),
     "lies outside the image folder"),
    ("the table is missing", "d.parquet", None, "does not exist"),
    ("the table is text", "d.parquet", "hello", "d.parquet"),
]  # fmt: skip
cases += [
    Case(TRAIN + " data.path={tmp}/" + name + " data.image_folder={tmp} run.output_dir={tmp}/out",
         wrong, line, 2, None if content is None else text(name, content))
    for wrong, name, content, line in DATA
]  # fmt: skip
cases += [
    Case(TRAIN + " data.path=embedded:x:4 run.output_dir={tmp}/out", "the generator has no seed",
         "accepted is embedded:SEED:COUNT"),
    Case(TRAIN + " data.path=embedded:1:0 run.output_dir={tmp}/out", "the generator gives nothing",
         "the data holds no records"),
    Case(TRAIN + " data.path={tmp}/d run.output_dir={tmp}/out", "the folder is no dataset",
         "/d", 2, folder("d")),
]  # fmt: skip

cases += [
    Case(TRAIN + " data.path={tmp}/d.json data.image_folder={tmp} run.output_dir={tmp}/out",
         "two pictures for a model of one", "record 0: 2 images; accepted is 1", 2,
         text("d.json", json.dumps([{
             "image": ["a.png", "b.png"],
             "conversations": [{"from": "human", "value": "<image><image>q"},
                               {"from": "gpt", "value": "a"}],
         }]))),
]  # fmt: skip

# ---------------------------------------------------------------- published rows

REPRODUCE = "reproduce table1:full-7b"
cases += [
    Case("reproduce", "no row", "no row: accepted is a name such as table1:full-7b"),
    Case("reproduce table1:ful-7b", "the row is misspelt", "did you mean table1:full-7b?"),
    Case("reproduce table99:x", "the table is unknown", "no published row 'table99:x'"),
    Case("reproduce table2:llava-ldp-v2-7b", "the row is quoted", "not part of this package"),
    Case("reproduce table1:voco-llama-7b", "the weights were never published", "not published"),
    Case("reproduce table14:full-13b --run", "a row of times", "dynllava bench"),
    Case("reproduce table1:dynamic_llava-7b-I --run", "the row's weights are not trained",
         "is not there); run the training command above, or give --checkpoint"),
    Case(REPRODUCE + " --run --checkpoint {tmp}/none", "the checkpoint is missing",
         "{tmp}/none: no such folder"),
    Case(REPRODUCE + " --run --tasks gqa", "the weights are not in the cache", "hf download"),
    Case(REPRODUCE + " --tasks vizwiz", "the row has no such score", "prints no such score"),
    Case(REPRODUCE + " --limit 0", "no sample", "--limit 0: accepted is a number from 1"),
    Case(REPRODUCE + " --margin -1", "a margin below 0", "--margin -1: accepted is a number from"),
    Case(REPRODUCE + " --margin nan", "a margin that is no number", "--margin nan: accepted"),
    Case(REPRODUCE + " --dtype int8", "an unknown dtype", "invalid choice: 'int8'"),
    Case(REPRODUCE + " --data {tmp}/none", "the data folder is missing", "no such folder"),
]  # fmt: skip

# ---------------------------------------------------------------- the plugin's arguments

cases += [
    Case("model_args nothing=1", "an unknown argument", "unknown argument nothing"),
    Case("model_args metod=fastv", "a misspelt argument", "did you mean method"),
    Case("model_args method=fastv,kk=2", "an unknown parameter", "unknown argument kk"),
    Case("model_args method=fastv,k=x", "a parameter as a word", "k='x': accepted is an integer"),
    Case("model_args method=fastv:k=2,k=3", "a parameter twice", "k is given twice"),
    Case("model_args dtype=int8", "the dtype is unknown", "dtype=int8: accepted are"),
    Case("model_args batch_size=0", "an empty batch", "batch_size=0: accepted is an integer from"),
    Case("model_args batch_size=big", "a batch as a word", "batch_size=big: accepted"),
    Case("model_args max_batch_size=-1", "a negative batch", "max_batch_size=-1"),
    Case("model_args max_new_tokens=0", "no token", "max_new_tokens=0: accepted"),
    Case("model_args compile=maybe", "a truth value as a word", "compile=maybe: accepted"),
    Case("model_args plugin=/nowhere.py", "the plugin is missing", "/nowhere.py"),
    Case("model_args code_version=0", "the code is another", "the code that runs is"),
]  # fmt: skip
