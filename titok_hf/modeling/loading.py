"""Loading that refuses what does not fit, where transformers would warn and go on with random weights."""

from typing import Any


class CheckedConfigMixin:
    """Refuses the configuration of another kind of model."""

    @classmethod
    def get_config_dict(cls, *args: Any, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """As in transformers.

        Raises:
            ValueError: If the configuration is of another model type.
        """
        config_dict, kwargs = super().get_config_dict(*args, **kwargs)
        model_type = config_dict.get("model_type", cls.model_type)
        if model_type != cls.model_type:
            raise ValueError(f"{cls.__name__} expects a model of type {cls.model_type!r}, got one of {model_type!r}.")
        return config_dict, kwargs


class CheckedLoadingMixin:
    """Refuses a checkpoint that lacks weights or has others."""

    @classmethod
    def from_pretrained(cls, *args: Any, output_loading_info: bool = False, **kwargs: Any) -> Any:
        """As in transformers.

        Raises:
            ValueError: If the checkpoint is of another model type, or lacks weights or has others.
        """
        model, info = super().from_pretrained(*args, output_loading_info=True, **kwargs)
        for problem in ("missing", "unexpected"):
            if names := sorted(info[f"{problem}_keys"]):
                raise ValueError(
                    f"The checkpoint does not fit {cls.__name__} with its configuration: {len(names)} weights are "
                    f"{problem}, {', '.join(names[:3])} among them."
                )
        return (model, info) if output_loading_info else model
