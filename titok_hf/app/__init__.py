"""A web demo of tokenizers and pipelines, with Gradio."""

from .blocks import build_app, launch_app
from .models import AppModels, open_models
from .space import push_space, write_space

__all__ = ["AppModels", "build_app", "launch_app", "open_models", "push_space", "write_space"]
