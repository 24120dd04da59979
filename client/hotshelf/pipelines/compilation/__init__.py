"""`load_pipeline(compile=…)`: what one worker compiled, the next one runs at once; a fallback is said and draws the same."""

from hotshelf.pipelines.compilation.applying import Compilation, apply, of
from hotshelf.pipelines.compilation.report import Report

__all__ = ["Compilation", "Report", "apply", "of"]
