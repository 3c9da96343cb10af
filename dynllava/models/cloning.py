"""A second model over the same parameters: other classes, other module tables, nothing shared else.

A clone has its own modules all the way down, so that switching it to training, changing its
configuration or hooking into it leaves the original bit-equal; only parameters and buffers are
the same objects.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from functools import wraps
from types import MethodType
from typing import Any

from torch import nn

TABLES = (
    "_parameters",
    "_buffers",
    "_modules",
    "_non_persistent_buffers_set",
    "_backward_pre_hooks",
    "_backward_hooks",
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_state_dict_hooks",
    "_state_dict_pre_hooks",
    "_load_state_dict_pre_hooks",
    "_load_state_dict_post_hooks",
)
HOOK = "_hf_hook"


def clone(model: nn.Module, classes: Mapping[int, type] | None = None) -> nn.Module:
    """Return a model with modules of its own over ``model``'s parameters and buffers.

    Parameters
    ----------
    model : Module
        Left as it is.
    classes : mapping, optional
        {id of a module: the class its clone gets}.

    Returns
    -------
    Module
        Configurations (attributes named ``config``) are copied once each, so that modules that
        share one still do; hooks that accelerate put on a module (offloading, several devices)
        are put on its clone.
    """
    return _Cloner(classes or {}, getattr(model, "config", None)).clone(model)


class _Cloner:
    def __init__(self, classes: Mapping[int, type], config: Any) -> None:
        self.classes = classes
        self.modules: dict[int, nn.Module] = {}
        self.configs: dict[int, Any] = {}
        if config is not None:
            self._copy_config(config)

    def clone(self, module: nn.Module) -> nn.Module:
        if id(module) in self.modules:
            return self.modules[id(module)]
        cls: Any = self.classes.get(id(module), type(module))
        made = cls.__new__(cls)
        self.modules[id(module)] = made
        values = dict(vars(module))
        for name in TABLES:
            if name in values:
                values[name] = copy.copy(values[name])
        hooked = values.pop(HOOK, None)
        if hooked is not None:
            values.pop("forward", None)
            values.pop("_old_forward", None)
        for name, value in values.items():
            # A method bound to the original would run the original.
            if isinstance(value, MethodType) and value.__self__ is module:
                values[name] = MethodType(value.__func__, made)
        if values.get("config") is not None:
            values["config"] = self._copy_config(values["config"])
        vars(made).update(values)
        for name, child in list(made._modules.items()):
            if child is not None:
                made._modules[name] = self.clone(child)
        if hooked is not None:
            _hook(made, hooked)
        return made

    def _copy_config(self, config: Any) -> Any:
        if id(config) not in self.configs:
            made = copy.deepcopy(config)
            self._pair(config, made)
        return self.configs[id(config)]

    def _pair(self, config: Any, made: Any) -> None:
        """Remember the copies of a configuration and of the configurations inside it."""
        self.configs[id(config)] = made
        for name in getattr(type(config), "sub_configs", {}):
            inner = getattr(config, name, None)
            if inner is not None and not isinstance(inner, dict):
                self._pair(inner, getattr(made, name))


def _hook(module: nn.Module, hook: Any) -> None:
    """Put an accelerate hook on a clone, as ``add_hook_to_module`` does, without moving weights."""
    own = copy.copy(hook)
    run: Callable[..., Any] = module.forward
    vars(module)["_old_forward"] = run
    vars(module)[HOOK] = own

    @wraps(run)
    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        args, kwargs = own.pre_forward(self, *args, **kwargs)
        return own.post_forward(self, run(*args, **kwargs))

    vars(module)["forward"] = MethodType(forward, module)
