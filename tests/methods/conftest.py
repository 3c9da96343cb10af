import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    """Tensors this small make threads wait for each other: six times slower on busy cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
