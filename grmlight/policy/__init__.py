"""Policies: optimized against a reward, and kept from over-optimizing it."""

from grmlight.policy.prompts import PromptDataModule as PromptDataModule
