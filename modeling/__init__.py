"""Septet's model and its pre-training."""

import ctypes
from functools import cache


@cache
def register() -> None:
    """Makes transformers' Auto classes know Septet, and makes every saved checkpoint carry the code beside it.

    Kept out of the published files: a stranger gets the classes from the checkpoint itself.
    """
    import transformers

    from septet.modeling import modeling_septet
    from septet.modeling.configuration_septet import AUTO_MAP, SeptetConfig

    SeptetConfig.register_for_auto_class()
    transformers.AutoConfig.register(SeptetConfig.model_type, SeptetConfig, exist_ok=True)
    for auto_class, path in AUTO_MAP.items():
        if auto_class != "AutoConfig":
            model_class = getattr(modeling_septet, path.split(".")[1])
            model_class.register_for_auto_class(auto_class)
            getattr(transformers, auto_class).register(SeptetConfig, model_class, exist_ok=True)


@cache
def keep_freed_memory() -> None:
    """Lets glibc keep freed memory for the next step, where there is a glibc.

    By default it gives every large activation back to the kernel, which fills its pages with zeros again at the next
    allocation: on two CPU cores 10 % of a small model's step (75,000 page faults of 16 sequences of 256 tokens).
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    m_trim_threshold, m_top_pad, m_mmap_max = -1, -2, -4  # malloc.h
    mallopt(m_mmap_max, 0)
    mallopt(m_trim_threshold, 2**31 - 1)
    mallopt(m_top_pad, 2**26)
