"""Sampling: the masked-token scheduler and the pipeline that generates images with it."""

from .pipeline_titok import TiTokPipeline, TiTokPipelineOutput
from .scheduling_maskgit import MaskGitScheduler

__all__ = ["MaskGitScheduler", "TiTokPipeline", "TiTokPipelineOutput"]
