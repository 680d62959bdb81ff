"""A bandit with exact gradients: a softmax policy over arms, each arm worth something in every reward.

The policy gradient of a mixture of advantages is the sum over arms of p(a) A(a) grad log p(a), here without sampling.
"""

import math

import torch

from grmlight.policy.online.mixing import KL, Minibatch


class Bandit:
    """A policy over arms that a mixer trains.

    Args:
        rewards: by name, what each arm is worth.
        reference: log-odds of the reference policy.
        policy: log-odds to start from.
    """

    def __init__(self, rewards, mixer, reference=(0.0, 0.0), policy=None, kl_coefficient=0.0, lr=0.5):
        self.rewards = {name: torch.tensor(values, dtype=torch.float64) for name, values in rewards.items()}
        self.mixer, self.lr, self.kl_coefficient = mixer, lr, kl_coefficient
        self.reference = torch.tensor(reference, dtype=torch.float64)
        self.logits = torch.tensor(reference if policy is None else policy, dtype=torch.float64)
        self.history = []
        mixer.setup([*rewards, KL])

    @property
    def policy(self):
        return self.logits.softmax(0)

    def values(self):
        """The mean of each reward under the policy."""
        return {name: float(self.policy @ values) for name, values in self.rewards.items()}

    def optimized(self):
        """What each arm returns in what is optimized: shaped rewards, and the KL."""
        kl = -(self.logits.log_softmax(0) - self.reference.log_softmax(0))
        return self.mixer.shape(self.rewards) | {KL: kl}

    def step(self):
        policy = self.policy
        self.mixer.update(self.values() | {KL: 0.0})
        advantages = {name: values - policy @ values for name, values in self.optimized().items()}
        batch = Minibatch(torch.arange(len(policy)), self.rewards, self.kl_coefficient)
        mixed = self.mixer.mix(advantages, batch)
        # grad of log p(a) with regard to the logits is the one-hot of a minus p.
        self.logits = self.logits + self.lr * (policy * mixed - policy * (policy @ mixed))
        self.history.append(self.values())

    def run(self, steps):
        for _ in range(steps):
            self.step()
        return self

    def mean(self, name, last):
        return math.fsum(values[name] for values in self.history[-last:]) / last
