"""Septet's model and its pre-training."""

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
