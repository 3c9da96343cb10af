"""Remove a torchvision that cannot work with this torch; leave every other one alone.

lmms-eval depends on torchvision, of which package registries may offer CUDA builds only.  Beside a
CPU build of torch such a torchvision fails on import, and with it transformers' image processors,
which work without torchvision (with PIL).
"""

import importlib.util
import subprocess
import sys


def main() -> int:
    """Uninstall torchvision if torch is a CPU build and importing torchvision fails."""
    import torch

    if torch.version.cuda is not None or getattr(torch.version, "hip", None) is not None:
        print(f"torch {torch.__version__} has GPU support: torchvision is left alone")
        return 0
    if importlib.util.find_spec("torchvision") is None:
        print("torchvision is not installed: images are processed with PIL")
        return 0
    done = subprocess.run([sys.executable, "-c", "import torchvision"], capture_output=True)
    if done.returncode == 0:
        print("torchvision works with this torch: left alone")
        return 0
    print(f"torchvision cannot work with torch {torch.__version__} (a CPU build): removed")
    return subprocess.call([sys.executable, "-m", "pip", "uninstall", "-q", "-y", "torchvision"])


if __name__ == "__main__":
    sys.exit(main())
