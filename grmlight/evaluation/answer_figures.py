"""What became of a policy's answers while it was trained: their rewards, KL and length, in a line and in a picture."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Series = dict[str, list[tuple[int, float]]]
"""Logged figures by name, each as (step, value)."""

_ROLLOUT = "rollout/"
"""Begins the figures of an online run, which are of the answers that it learns from."""
_POLICY = "policy/"
"""Begins those of `SampledKL`, which are of answers to held-out prompts."""
_KL = {_ROLLOUT: "rollout/kl", _POLICY: "policy/kl_k1"}
_REWARDS = ("score", "proxy", "gold")
_NAMED = ("reward_", "watch_")


def is_online(series: Series) -> bool:
    """Whether the run learned from answers of its own."""
    return _KL[_ROLLOUT] in series


def describe_answers(series: Series) -> str:
    """One line: rewards, KL (nats an answer, k1) and length (tokens) of the answers, from the first to the last look.

    Empty for a run that has none.
    """
    prefix = next((prefix for prefix, name in _KL.items() if name in series), None)
    if prefix is None:
        return ""
    parts = [_change(name, points) for name, points in _rewards(series, prefix).items()]
    parts += [f"{_change('KL', series[_KL[prefix]])} nats", f"{_change('length', series[f'{prefix}tokens'])} tokens"]
    steps = series[_KL[prefix]]
    return f"answers, step {steps[0][0]} to {steps[-1][0]}: {', '.join(parts)}"


def _change(name: str, points: list[tuple[int, float]]) -> str:
    return f"{name} {points[0][1]:.2f} to {points[-1][1]:.2f}"


def _rewards(series: Series, prefix: str) -> Series:
    """The figures that are rewards, by the names that users gave them; the score first.

    One that repeats another, as the only reward repeats the score, is left out.
    """
    found: Series = {}
    for name in (name for start in (*_REWARDS, *_NAMED) for name in series if name.startswith(prefix + start)):
        short = name.removeprefix(prefix)
        kept = short in _REWARDS or short.startswith(_NAMED)
        if kept and series[name] not in found.values():
            found[short] = series[name]
    return found


def plot_answers(series: Series) -> Figure:
    """Three panels over optimizer steps: rewards, KL to the reference, and length of an online run's answers."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(14, 4), layout="constrained")
    rewards, kl, length = figure.subplots(1, 3)
    for name, points in _rewards(series, _ROLLOUT).items():
        rewards.plot(*zip(*points, strict=True), label=name, marker=".")
    kl.plot(*zip(*series[_KL[_ROLLOUT]], strict=True), marker=".")
    length.plot(*zip(*series[f"{_ROLLOUT}tokens"], strict=True), marker=".")
    rewards.set(xlabel="optimizer step", ylabel="mean reward of the answers")
    kl.set(xlabel="optimizer step", ylabel="KL to the reference, nats an answer")
    length.set(xlabel="optimizer step", ylabel="tokens an answer")
    rewards.legend(fontsize="small")
    for panel in (rewards, kl, length):
        panel.grid(alpha=0.3)
    return figure
