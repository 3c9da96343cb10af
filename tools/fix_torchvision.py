"""Remove a torchvision that cannot work with this torch; leave every other one alone.

lmms-eval depends on torchvision, of which package registries may offer CUDA builds only.  Beside a
CPU build of torch such a torchvision fails on import, and with it transformers' image processors,
which work without torchvision (with PIL).  timm, another dependency of lmms-eval, needs
torchvision; once that is gone, an installed timm would break ``accelerate launch``.
"""

import importlib.util
import subprocess
import sys

PACKAGES = ("torchvision", "timm")


def main() -> int:
    """Uninstall the packages that fail on import, if torch is a CPU build."""
    import torch

    if torch.version.cuda is not None or getattr(torch.version, "hip", None) is not None:
        print(f"torch {torch.__version__} has GPU support: {', '.join(PACKAGES)} are left alone")
        return 0
    for name in PACKAGES:
        if importlib.util.find_spec(name) is None:
            print(f"{name} is not installed")
            continue
        if subprocess.run([sys.executable, "-c", f"import {name}"], capture_output=True).returncode:
            print(f"{name} cannot work with torch {torch.__version__} (a CPU build): removed")
            command = [sys.executable, "-m", "pip", "uninstall", "-q", "-y", name]
            subprocess.run(command, check=True)
        else:
            print(f"{name} works with this torch: left alone")
    return 0


if __name__ == "__main__":
    sys.exit(main())
