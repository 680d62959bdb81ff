"""What a GPU would have to be waited for."""

from torch.utils._python_dispatch import TorchDispatchMode


class Waits(TorchDispatchMode):
    """Notes operations whose result the host needs, or whose result's size depends on values."""

    NAMES = ("_local_scalar_dense", "nonzero", "bincount", "equal", "is_nonzero", "unique", "masked_select")

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if any(name in str(function) for name in self.NAMES):
            self.found.append(str(function))
        return function(*args, **(kwargs or {}))
