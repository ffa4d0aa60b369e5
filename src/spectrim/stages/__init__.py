"""Steps of a recipe: each changes the model of a job and leaves a plan or new blocks behind."""

from __future__ import annotations

from spectrim.registry import Registry

stages = Registry("stage", "spectrim.stages")
