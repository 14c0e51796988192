"""Sampling: pipelines that generate images of classes, schedulers, and editing by tokens."""

from .class_conditional import ClassConditionalPipeline
from .editing import complete, interpolate, interpolate_classes, swap_tokens, token_influence
from .pipeline_latent_dit import LatentDiTPipeline, LatentDiTPipelineOutput
from .pipeline_titok import TiTokPipeline, TiTokPipelineOutput
from .scheduling_flow_match_heun import FlowMatchHeunScheduler
from .scheduling_maskgit import MaskGitScheduler

__all__ = [
    "ClassConditionalPipeline",
    "FlowMatchHeunScheduler",
    "LatentDiTPipeline",
    "LatentDiTPipelineOutput",
    "MaskGitScheduler",
    "TiTokPipeline",
    "TiTokPipelineOutput",
    "complete",
    "interpolate",
    "interpolate_classes",
    "swap_tokens",
    "token_influence",
]
